"""Text that came from elsewhere, such as names in files and addresses, made fit to be printed, recorded and published."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO, cast


def visible(text: object, keep: str = "") -> str:
    r"""Text in which characters that do not print are shown as escapes, such as \x1b; those of `keep` stay.

    A terminal obeys control characters, and characters of direction let text read as another.
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in shown)


class Visible:
    """A stream whose text is `visible`, but for the ends of lines. It is no terminal, so that nobody colours it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(visible(text, keep="\n\t"))
        return len(text)

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def visible_output() -> Iterator[None]:
    """What is printed to standard output in here is `Visible`."""
    with redirect_stdout(cast(TextIO, Visible(sys.stdout))):
        yield


ADDRESS = re.compile(
    r"(\b[a-z][a-z0-9+.-]*://)(?:[^\s/?#]*@)?([^\s?#]*?)(?:[?#]\S*?)?(?=[\"'`)\]},;:.]*(?:\s|$))", re.I
)


def public(text: object) -> str:
    """Text whose web addresses lack what may be a secret: user and password, the query with its signatures, the fragment."""
    return ADDRESS.sub(r"\1\2", str(text))


def inline(text: object) -> str:
    """Text within a line or a cell of Markdown: on one line, without markup, tags and links of its own."""
    return re.sub(r"[\\`|]|<(?=[A-Za-z/!?])|(?<=\])[(\[]", r"\\\g<0>", visible(text))

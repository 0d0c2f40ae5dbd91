"""Errors and warnings as one line for a user."""

from __future__ import annotations

import re
from collections.abc import Sequence


def describe(error: Exception) -> str | None:
    """The message about an error: one line, unless it is a list. None for errors that are bugs of this library.

    An error of the operating system names the file; an error in a user's own Python file names file, line and kind.
    """
    from fewstep.runtime.memory import explained, lacks_memory
    from fewstep.runtime.user_code import place

    where, lacks = place(error), lacks_memory(error)
    loop = isinstance(error, RuntimeError) and str(error).startswith("Symlink loop")  # Path.resolve, up to Python 3.12
    if lacks and (type(error) is not MemoryError or not str(error)):
        message = f"{explained(error)}; a smaller batch (--batch, --micro-batch) or fewer steps need less"
    elif isinstance(error, FileExistsError) and error.filename is not None:
        message = f"{error.filename}: expected a folder, or a name that is free; something else lies there"
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        message = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    elif isinstance(error, OSError) and error.strerror:  # of what has no name, such as standard output
        message = f"{error.strerror[0].lower()}{error.strerror[1:]}"
    else:
        message = str(error)
    if where is not None:
        return f"{where}: {type(error).__name__}: {' '.join(message.split())} (--debug shows the whole trace)"
    return message or type(error).__name__ if lacks or loop or isinstance(error, (ValueError, OSError)) else None


def printable(message: str, words: Sequence[str]) -> str:
    """The message with the words that the user typed escaped where they would break the line or control the terminal."""
    for word in words:
        value = word.partition("=")[2] if word.startswith("--") else word
        if not value.isprintable():
            message = message.replace(value, repr(value))
    return message


def as_typed(message: str, argv: Sequence[str]) -> str:
    """The message with options spelled as the user typed them: `--S_max` and `--S-max` are the same option."""
    typed = {word.replace("_", "-"): word for word in (w.partition("=")[0] for w in argv) if word.startswith("--")}
    return re.sub(r"--[A-Za-z][\w-]*", lambda found: typed.get(found[0].replace("_", "-"), found[0]), message)


def warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning without the place in the source, for `warnings.formatwarning`."""
    return f"fewstep: warning: {for_terminal(message)}\n"


def for_terminal(message: object) -> str:
    """A message safe to print: control characters escaped, lines after the first indented, secrets of addresses removed."""
    from fewstep.runtime.display import public, visible

    return re.sub(r"\n(?! )", "\n  ", visible(public(message), keep="\n\t"))

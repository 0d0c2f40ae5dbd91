"""Options by tyro, whose boxes about mistakes become one line that names the option and what it accepts."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from functools import partial
from typing import Any

import tyro

from fewstep.cli.arguments import POSITIONAL, metadata

KINDS = {"INT": "an integer", "FLOAT": "a number", "PATH": "a path", "STR": "a word"}
"""What tyro's names of values mean."""


def call(function: Callable[..., Any], words: Sequence[str], prog: str) -> Any:
    """The result of a function called with the options in `words`. Raises ValueError for options that it does not take."""
    with told(partial(explain, function, words)):
        return tyro.cli(function, args=words, prog=prog)


def told(hook: Callable[[Any], None]) -> AbstractContextManager[None]:
    """Let `hook` see mistakes before tyro prints them; where this tyro has no hooks, its own box is printed."""
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        return nullcontext()
    return on_parse_error(hook)


def explain(function: Callable[..., Any], words: Sequence[str], event: Any) -> None:
    """Raise ValueError with one line about a mistake; nothing of a kind that is not known, which tyro itself prints."""
    match type(event).__name__:
        case "UnrecognizedArgs":
            unexpected(function, event.tokens, event.prog)
        case "MissingArgs":
            missing = [argument.arg for argument in event.missing_arguments]
            raise ValueError(
                f"{event.prog} needs {', '.join(map(name_of, missing))}: "
                + "; ".join(str(argument.field.helptext or "").strip().rstrip(".") for argument in missing)
                + f"; see {event.prog} --help"
            )
        case "InvalidChoice":
            choices = [choice for choice in event.choices if choice != "None"]
            raise ValueError(f"{name_of(event.argument)}: expected one of {', '.join(choices)}; got {event.value!r}")
        case "BadValue" if event.argument.is_positional():
            known = {*flags(function), *(f.replace("--", "--no-", 1) for f in flags(function))}
            strange = [w for w in words if w.startswith("--") and w.partition("=")[0].replace("_", "-") not in known]
            unexpected(function, strange, event.prog)
            raise ValueError(f"{event.prog} needs {name_of(event.argument)}; see {event.prog} --help")
        case "BadValue":
            raise ValueError(f"{name_of(event.argument)} needs a value: {expected(event.argument)}")
        case "InstantiationFailure" if event.argument is not None:
            name, value = name_of(event.argument), given(event.argument, words)
            raise ValueError(f"{name}: expected {expected(event.argument)}{value and f'; got {value!r}'}")
        case "InstantiationFailure":
            raise ValueError(event.message)


def unexpected(function: Callable[..., Any], words: Sequence[str], prog: str) -> None:
    """Raise ValueError for the first option among words that a command does not take, else for the first word."""
    for word in (w for w in words if w.startswith("-")):
        name = word.partition("=")[0]
        near = get_close_matches(name.replace("_", "-"), flags(function), n=2, cutoff=0.6)
        advice = f"did you mean {' or '.join(near)}?" if near else f"{prog} --help shows them"
        raise ValueError(f"{prog} has no option {name}; {advice}")
    for word in words:
        raise ValueError(f"{prog}: unexpected argument {word!r}; {prog} --help shows all")


def name_of(argument: Any) -> str:
    """An option as the user writes it; an argument without a flag as the help shows it."""
    return str(argument.lowered.metavar) if argument.is_positional() else argument.lowered.name_or_flags[0]


def expected(argument: Any) -> str:
    """The values that an option takes, in words."""
    kinds = [kind for kind in re.split(r"\|(?![^{]*})", str(argument.lowered.metavar)) if kind != "{None}"]
    words = [KINDS.get(kind, f"one of {', '.join(kind.strip('{}').split('|'))}") for kind in kinds]
    return " or ".join(words).replace("None, ", "")


def given(argument: Any, words: Sequence[str]) -> str:
    """The last value that an option was given."""
    found = ""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in argument.lowered.name_or_flags:
            found = value if equals else "".join(words[i + 1 : i + 2])
    return found


def flags(function: Callable[..., Any]) -> list[str]:
    """All options of a function, those of settings that it takes as one object included."""
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(parameter.default):
            found += [field.name for field in dataclasses.fields(parameter.default)]
            continue
        extras = metadata(function.__annotations__.get(name))
        if POSITIONAL in extras:
            continue
        found += [next((extra.name for extra in extras if getattr(extra, "name", None)), name)]
    return [f"--{name.replace('_', '-')}" for name in found]

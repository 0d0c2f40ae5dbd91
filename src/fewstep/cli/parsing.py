"""Options, parsed by tyro. Its boxes about mistakes become one line that names the option and the values it accepts."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_type_hints

import tyro
from tyro.conf import OmitArgPrefixes, arg

from fewstep.cli.arguments import POSITIONAL, metadata, paragraphs, shown_default
from fewstep.recipes.base import FIXED, REQUIRED
from fewstep.runtime.spelling import suggestion
from fewstep.train.options import SEPARATED

KINDS = {"INT": "an integer", "FLOAT": "a number", "PATH": "a path", "STR": "a word"}
"""What tyro's names of values mean."""


def call(function: Callable[..., Any], words: Sequence[str], prog: str, *, description: str | None = None) -> Any:
    """Call a function with the options in `words`.

    Args:
        function: its keyword parameters are the options, with their types, defaults and explanations.
        words: as typed, without the name of the command.
        prog: name of the command, for its help and errors.
        description: shown by the help; the function's docstring if None.

    Raises:
        ValueError: An option is unknown, missing, or has a value of another kind.
    """
    with reported_to(partial(explain, function, words)):
        return tyro.cli(function, args=words, prog=prog, description=description, registry=OPTIONAL)


def call_settings(recipe: Any, options: Any, words: Sequence[str], prog: str, description: str) -> tuple[Any, Any]:
    """The settings of a recipe and the options of its run, with the values in `words`.

    Args:
        recipe: a dataclass instance; fields that are REQUIRED must be among the words.
        options: likewise.
        words, prog, description: see `call`.

    Returns:
        Both, with the fields replaced.
    """
    typed = call(settings_function(recipe, options), words, prog, description=description)
    mine, theirs = (dataclasses.replace(x, **vars(y)) for x, y in zip((recipe, options), typed, strict=True))
    return mine, theirs


def settings_function(recipe: Any, options: Any) -> Callable[..., tuple[Any, Any]]:
    """A function whose options are the fields of both dataclass instances."""
    first, second = form(recipe), form(options)

    def both(recipe: Any = first, run: Any = second) -> tuple[Any, Any]:
        return recipe, run

    both.__annotations__ = {"recipe": OmitArgPrefixes[type(first)], "run": OmitArgPrefixes[type(second)]}
    return both


def form(settings: Any) -> Any:
    """An instance for tyro with those fields of a dataclass instance that are options: required ones first, explained."""
    kind, docs = type(settings), field_docs(type(settings))
    hints = get_type_hints(kind, include_extras=True)
    options = []
    for field in dataclasses.fields(settings):
        if FIXED in metadata(hints[field.name]):
            continue
        value = getattr(settings, field.name)
        hint = arg(help=docs.get(field.name), help_behavior_hint=shown_default)
        default = dataclasses.field(default_factory=lambda v=value: tyro.MISSING if v is REQUIRED else v)
        parsed = Annotated[hints[field.name], COMMAS] if SEPARATED in metadata(hints[field.name]) else hints[field.name]
        options.append((value is not REQUIRED, (field.name, Annotated[parsed, hint], default)))
    fields = [option for _, option in sorted(options, key=lambda pair: pair[0])]
    return dataclasses.make_dataclass(kind.__name__, fields, namespace={"__doc__": paragraphs(kind.__doc__ or "")})()


COMMAS = tyro.constructors.PrimitiveConstructorSpec[tuple[str, ...]](
    nargs=1,
    metavar="STR,...",
    instance_from_str=lambda words: tuple(words[0].split(",")),
    is_instance=lambda value: isinstance(value, tuple),
    str_from_instance=lambda value: [",".join(value) or "unset"],
)
"""Several words in one, as `--track tensorboard,wandb`."""


def field_docs(kind: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass, its bases' included."""
    docs: dict[str, str] = {}
    for base in (b for b in reversed(kind.__mro__) if b is not object):
        try:
            [tree] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError):  # made of a function
            continue
        assert isinstance(tree, ast.ClassDef)
        for field, text in pairwise(tree.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    docs[name] = " ".join(doc.split())
    return docs


OPTIONAL = tyro.constructors.ConstructorRegistry()


@OPTIONAL.primitive_rule
def optional(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Show `T | None` as T. The word None is still accepted, and a default of None is shown as unset."""
    kinds = get_args(info.type)
    if info.type_origin not in (Union, UnionType) or NoneType not in kinds:
        return None
    inner: Any = Union[tuple(kind for kind in kinds if kind is not NoneType)]  # noqa: UP007 - of a tuple
    spec = OPTIONAL.get_primitive_spec(tyro.constructors.PrimitiveTypeInfo.make(inner, info.markers))
    if not isinstance(spec, tyro.constructors.PrimitiveConstructorSpec):
        return None
    return dataclasses.replace(
        spec,
        instance_from_str=lambda words: None if words == ["None"] else spec.instance_from_str(words),
        is_instance=lambda value: value is None or spec.is_instance(value),
        str_from_instance=lambda value: ["unset"] if value is None else spec.str_from_instance(value),
        choices=None if spec.choices is None else (*spec.choices, "None"),
    )


@OPTIONAL.primitive_rule
def integer(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Integers are also written as 1e6."""
    if info.type is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: whole(words[0]),
        is_instance=lambda value: type(value) is int,
        str_from_instance=lambda value: [str(value)],
    )


def whole(word: str) -> int:
    """An integer. Raises ValueError for other words and numbers."""
    try:
        return int(word)
    except ValueError:
        value = float(word)
        if not value.is_integer():
            raise
        return int(value)


def reported_to(hook: Callable[[Any], None]) -> AbstractContextManager[None]:
    """Pass mistakes to `hook` before tyro prints them. A version of tyro without hooks prints its own box."""
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        return nullcontext()
    return on_parse_error(hook)


def explain(function: Callable[..., Any], words: Sequence[str], event: Any) -> None:
    """Raise ValueError with one line about a mistake. Kinds that are not known here are left to tyro."""
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
            name, value = name_of(event.argument), value_of(event.argument, words)
            raise ValueError(f"{name}: expected {expected(event.argument)}{value and f'; got {value!r}'}")
        case "InstantiationFailure":
            raise ValueError(event.message)


def unexpected(function: Callable[..., Any], words: Sequence[str], prog: str) -> None:
    """Raise ValueError for the first unknown option among words, or for the first word if there is none."""
    for word in (w for w in words if w.startswith("-")):
        name = word.partition("=")[0]
        advice = suggestion(name.replace("_", "-"), flags(function), f"{prog} --help shows them")
        raise ValueError(f"{prog} has no option {name}; {advice}")
    for word in words:
        raise ValueError(f"{prog}: unexpected argument {word!r}; {prog} --help shows all")


def name_of(argument: Any) -> str:
    """An option as the user writes it; an argument without a flag as the help shows it."""
    return str(argument.lowered.metavar) if argument.is_positional() else argument.lowered.name_or_flags[0]


def expected(argument: Any) -> str:
    """The values that an option takes, in words."""
    kinds = re.split(r"\|(?![^{]*})", str(argument.lowered.metavar))
    return " or ".join(KINDS.get(kind, f"one of {', '.join(re.split('[|,]', kind.strip('{}')))}") for kind in kinds)


def value_of(argument: Any, words: Sequence[str]) -> str:
    """The last value of an option among words."""
    found = ""
    for i, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in argument.lowered.name_or_flags:
            found = value if equals else "".join(words[i + 1 : i + 2])
    return found


def flags(function: Callable[..., Any]) -> list[str]:
    """All options of a function, including the fields of dataclass parameters."""
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(parameter.default):
            found += [f.name for f in dataclasses.fields(parameter.default)]
            continue
        extras = metadata(function.__annotations__.get(name))
        if POSITIONAL in extras:
            continue
        found += [next((extra.name for extra in extras if getattr(extra, "name", None)), name)]
    return [f"--{name.replace('_', '-')}" for name in found]

"""Words of the command line as values: seeds, and files of options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from tyro.conf import Positional, arg

from fewstep.runtime.display import visible_output
from fewstep.runtime.launch import command_line

Device = Annotated[str | None, arg(help="cpu, cuda, cuda:1, ... If unset: a GPU if there is one, else the CPU.")]
"""The option `--device` of commands that compute with networks."""
MOST_SEEDS = 10_000_000
"""Limit for one command. More are a typo, and would fill the memory."""


def parse_seeds(text: str) -> list[int]:
    """Seeds such as "0-63" or "1,2,5-10"; ranges include both ends."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f'seeds are numbers and ranges, such as "0-63" or "1,2,5-10"; got {text!r}')
        low, high = int(first), int(last or first)
        if low > high:
            raise ValueError(f"the range of seeds {part.strip()} is empty; did you mean {high}-{low}?")
        if len(seeds) + high - low >= MOST_SEEDS:
            raise ValueError(
                f"at most {MOST_SEEDS:,} seeds go into one command; got {text!r}. Make the images in parts"
            )
        seeds.extend(range(low, high + 1))
    if "," in text and len(set(seeds)) < len(seeds):
        twice = next(a for a, b in pairwise(sorted(seeds)) if a == b)
        raise ValueError(f"--seeds {text}: seed {twice} comes twice, and would make one image twice")
    return seeds


MOST_YAML = 2**16
"""Characters of a file of options."""


def with_config(argv: Sequence[str]) -> list[str]:
    """Replace `--config FILE` by the options in that YAML file. They come first, so that the command line overrides them."""
    rest: list[str] = []
    options: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--config" or word.startswith("--config="):
            name = word.partition("=")[2] or next(words, None)
            if name is None:
                raise ValueError("--config needs a file")
            options += flags(read_yaml(Path(name)), name)
        else:
            rest.append(word)
    return options + rest


def read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        with path.open(encoding="utf-8") as file:  # which may be a pipe
            text = file.read(MOST_YAML + 1)
        if len(text) > MOST_YAML:
            raise ValueError(f"it is longer than the {MOST_YAML} characters that options may have")
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ValueError("it must map options to values, one a line, such as 'lr: 0.001'")
        for key, value in node.value:  # before they are made: values that refer to each other can be of any size
            if not (isinstance(key, yaml.ScalarNode) and isinstance(value, yaml.ScalarNode)):
                name = repr(key.value) if isinstance(key, yaml.ScalarNode) else f"in line {key.start_mark.line + 1}"
                raise ValueError(f"option {name} must be a number, a word or true/false")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as options: {' '.join(str(error).split())}") from error


def flags(values: Mapping[str, Any], where: str) -> list[str]:
    """Options of a file as flags."""
    words = []
    for key, value in values.items():
        name = str(key).replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, (int, float, str)):
            words.append(f"--{name}={value}")
        else:
            raise ValueError(f"{where}: option {key!r} must be a number, a word or true/false; got {value!r}")
    return words


def shown(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with the help that users see: positional arguments by name, each explanation as one paragraph."""

    def same(*args: Any, **options: Any) -> Any:
        with visible_output():
            return command(*args, **options)

    def name(key: str, hint: Any) -> str:
        word = f"{key.upper()} ..." if get_origin(get_args(hint)[0]) is tuple else key.upper()
        return word if parameters[key].default is inspect.Parameter.empty else f"[{word}]"

    parameters = inspect.signature(command).parameters
    hints = hinted(get_type_hints(command, include_extras=True))
    named = {k: Annotated[v, arg(metavar=name(k, v))] for k, v in hints.items() if POSITIONAL in metadata(v)}
    same.__signature__ = inspect.signature(command)  # pyright: ignore[reportFunctionMemberAccess] - a dynamic signature
    same.__annotations__ = hints | named
    same.__doc__ = paragraphs(command.__doc__ or "")
    return same


Settings = TypeVar("Settings", bound=type)


def explained(settings: Settings) -> Settings:
    """A dataclass of options with the help that users see, as `shown` for a command."""
    settings.__annotations__ = hinted(get_type_hints(settings, include_extras=True))
    settings.__doc__ = paragraphs(settings.__doc__ or "")
    return settings


def hinted(hints: Mapping[str, Any]) -> dict[str, Any]:
    """Types of options whose help shows the default by `shown_default`."""
    types = {name: get_args(hint)[0] if metadata(hint) else hint for name, hint in hints.items()}
    return {
        name: hint if is_dataclass(types[name]) else Annotated[hint, arg(help_behavior_hint=shown_default)]
        for name, hint in hints.items()
    }


def shown_default(value: str) -> str:
    """The default in an option's help; none for an option that is unset or a flag that is off."""
    return "" if value in ("unset", "False") else f"(default: {value})"


def metadata(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())


(POSITIONAL,) = metadata(Positional[str])


def paragraphs(doc: str) -> str:
    """A docstring whose entries under "Args:" are one line each; the parser would keep their line breaks."""
    return re.sub(r"\n {8,}", " ", inspect.cleandoc(doc))


def next_step(*words: object) -> str:
    """The next command for the user, ready to be pasted into a shell."""
    return f"next: {command_line(list(map(str, words)))}"

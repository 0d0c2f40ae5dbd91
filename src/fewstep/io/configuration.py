"""Configuration objects (frozen dataclasses of numbers, texts and tuples) as values that JSON can hold, and back."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints


def plain(value: Any) -> Any:
    """A value as JSON can hold it: tuples become lists; infinities and NaN become texts."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def field_names(config: Any) -> set[str]:
    """The names of the fields of a dataclass, or of one of its objects."""
    return {f.name for f in dataclasses.fields(config)}


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration object as JSON can hold it, with the name of its class as `kind`.

    Example:
        >>> to_dict(EDM(sigma_data=0.5))
        {'kind': 'EDM', 'sigma_data': 0.5, 'sigma_min': 0.0, 'sigma_max': 'inf'}
    """
    return {"kind": type(config).__name__} | {k: plain(v) for k, v in vars(config).items() if k in field_names(config)}


def from_dict(values: Any, classes: tuple[type, ...], where: Path) -> Any:
    """The configuration object that `to_dict` describes.

    Args:
        values: what `to_dict` returned, after a way through JSON.
        classes: the classes that it may be of.
        where: the file, for messages.

    Returns:
        An object of one of the classes.

    Raises:
        ValueError: the class or an option is not known, or a value has the wrong type or is out of range.
    """
    known = {c.__name__: c for c in classes}
    kind = values.get("kind") if isinstance(values, dict) else values
    if not isinstance(values, dict) or not isinstance(kind, str) or kind not in known:
        raise ValueError(f"{where}: expected one of {', '.join(known)}; got {kind!r}. A newer fewstep may know it")
    cls = known[kind]
    options = {k: v for k, v in values.items() if k != "kind"}
    hints = get_type_hints(cls)
    if unknown := set(options) - field_names(cls):
        raise ValueError(
            f"{where}: {cls.__name__} has no option {', '.join(sorted(unknown))}; a newer fewstep may know it"
        )
    try:
        return cls(**{k: from_json(v, hints[k]) for k, v in options.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {cls.__name__} cannot be made from {reprlib.repr(options)}: {error}") from error


def from_json(value: Any, hint: Any) -> Any:
    """A JSON value as the type of a field: a number, a text, a Literal, a tuple of one type, or one of these or None."""
    kinds = get_args(hint)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(from_json(item, kinds[0]) for item in value)
    if get_origin(hint) is Literal and value in kinds:
        return value
    if type(None) in kinds:
        return None if value is None else from_json(value, kinds[0])
    if hint is float and type(value) in (int, float, str) and not math.isnan(number := float(value)):
        return number
    if type(value) is hint and hint is not float:
        return value
    raise TypeError(f"expected {getattr(hint, '__name__', hint)}; got {reprlib.repr(value)}")

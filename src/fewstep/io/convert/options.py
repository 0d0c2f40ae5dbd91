"""Constructor arguments of upstream U-Nets, checked and turned into configurations of ours."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from fewstep.io.convert.preconditions import is_number
from fewstep.nets.extent import check_extent


def parse_config(kind: type, options: dict[str, object], state: dict[str, Tensor]) -> Any:
    """The configuration for the constructor arguments in a file.

    Args:
        kind: class of the configuration.
        options: constructor arguments of the U-Net by name.
        state: the tensors of the file, which bound the size of the network.

    Raises:
        ValueError: an option is unknown, out of range or of the wrong type, or the network is larger than its tensors.
    """
    hints, known = get_type_hints(kind), {f.name for f in dataclasses.fields(kind)}
    if unknown := [str(name)[:40] for name in options if name not in known]:
        raise ValueError(f"{kind.__name__} has no option {', '.join(unknown)}; this version cannot build the network")
    if "img_resolution" not in options:
        raise ValueError("the file does not say the resolution of its network")
    config = kind(**{name: parse_option(name, value, hints[name]) for name, value in options.items()})
    check_extent(config, state)
    return config


def parse_option(name: str, value: object, hint: Any) -> Any:
    """One constructor argument as the type `hint` of our configuration, if its value is in a sane range."""
    low = 0 if name in ("label_dim", "augment_dim") else 1
    kinds = get_args(hint) if get_origin(hint) is not tuple else ()
    if get_origin(hint) is Literal and isinstance(value, str) and value in kinds:
        return value
    if name == "resample_filter":
        return parse_filter(value)
    share = name in ("dropout", "label_dropout")
    if float in (hint, *kinds) and is_number(value) and (0 <= value <= 1 if share else math.isfinite(value)):
        return float(value)
    if (
        get_origin(hint) is tuple
        and isinstance(value, list | tuple)
        and (name != "attn_resolutions") <= len(value) <= 32
    ):
        return tuple(parse_option(name, item, int) for item in value)
    if int in (hint, *kinds) and type(value) is int and low <= value < 2**16:
        return value
    if value is None and type(None) in kinds:
        return value
    raise ValueError(
        f"{name} of the network is out of range or of the wrong type; expected {hint}, got a {type(value).__name__}"
    )


def parse_filter(value: object) -> tuple[float, ...]:
    """A resampling filter: an even number of taps, whose sum is not 0."""
    found = tuple(v for v in value if is_number(v) and abs(v) < 2**16) if isinstance(value, list | tuple) else ()
    if not 0 < len(found) <= 32 or len(found) % 2 or len(found) < len(value) or not sum(found):  # type: ignore[arg-type]  # a list or tuple by the line above
        raise ValueError("resample_filter of the network is not an even number of taps whose sum is not 0")
    return tuple(int(v) if v == int(v) else float(v) for v in found)

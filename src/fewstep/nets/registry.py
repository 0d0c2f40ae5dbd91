"""Networks of a user's own that model folders may hold."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

REGISTERED: dict[type, type[nn.Module]] = {}
"""The network classes that were registered, by the class of their configuration."""


def register(network: type[nn.Module], config: type) -> None:
    """Let `fs.save` and `fs.load` store a network of your own.

    A model folder holds weights and a configuration, never code, and nothing is imported because a file names it. Register the
    network in your own code before you save or load a model, in every program that does so.

    Args:
        network: the class. `network(config)` builds one, which keeps the configuration as its `config` and has the attributes and
            methods of `fewstep.core.network.Network`.
        config: a frozen dataclass whose fields are annotated with int, float, str, bool, a Literal of strings, a tuple of one of
            these (`tuple[int, ...]`), or one of these or None.

    Raises:
        ValueError: the network has no `encode` and `decode`, `config` is not a frozen dataclass, or another class of that name is
            registered already or belongs to fewstep.

    Example:
        >>> fs.nets.register(MyNet, MyConfig)
        >>> fs.save(fs.Denoiser(MyNet(MyConfig(32))), "models/mine")
        >>> model = fs.load("models/mine")
    """
    if not isinstance(network, type) or not all(
        callable(getattr(network, name, None)) for name in ("encode", "decode")
    ):
        raise ValueError(
            f"a network is a class with the methods encode and decode (see fewstep.core.network.Network); got {network!r}"
        )
    options: Any = getattr(config, "__dataclass_params__", None)
    if not isinstance(config, type) or not dataclasses.is_dataclass(config) or not options.frozen:
        raise ValueError(f"the configuration of a network is a frozen dataclass; got {config!r}")
    taken = {c.__name__: c for c in REGISTERED}
    if config.__name__ in ("SongConfig", "ADMConfig", "EDM2Config"):
        raise ValueError(f"fewstep has a {config.__name__} of its own; give your configuration another name")
    other = taken.get(config.__name__)
    if other is not None and other.__module__ != config.__module__:
        raise ValueError(
            f"a configuration named {config.__name__} is already registered, of {other.__module__}; rename one of the two"
        )
    if other is not None:  # the same module run again, as in a notebook
        del REGISTERED[other]
    REGISTERED[config] = network

"""Pickled modules of PyTorch, as records: their tensors, submodules and hooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fewstep.io.unpickle import Record

MAX_DEPTH = 32
"""Depth of modules within modules. The published networks have 6 levels."""


def state_dict(record: Record) -> dict[str, Tensor]:
    """The tensors of a pickled `nn.Module` by dotted name, in the order of the file.

    Args:
        record: the module, as `unpickle.read` returns it.

    Returns:
        Parameters and persistent buffers of the module and its submodules, all of real numbers.

    Raises:
        ValueError: the module is damaged, its submodules are no tree or too deep, or its tensors overlap.
    """
    return check_apart(dict(walk(record, "", set(), MAX_DEPTH)))


def check_apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors. Raises ValueError if they overlap, because each of them is copied later."""
    stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state.values()}
    if sum(t.numel() * t.element_size() for t in state.values()) > sum(stored.values()):
        raise ValueError("the tensors overlap: together they are larger than the data of the file")
    return state


def walk(record: Record, prefix: str, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors below a module. A file can name a part many times at no cost, so each part is walked once."""

    def part(name: str) -> dict[Any, Any]:
        value = record.state.get(name)
        if not isinstance(value, dict) or id(value) in seen:
            raise ValueError(f"{prefix or 'the network'}: {name} is not a dict of its own; this is no intact module")
        seen.add(id(value))
        return value

    if depth == 0:
        raise ValueError(f"modules are nested more than {MAX_DEPTH} deep at {prefix[:80]}; no network needs that")
    skipped = record.state.get("_non_persistent_buffers_set", set())
    if not isinstance(skipped, set):
        raise ValueError(
            f"{prefix or 'the network'}: _non_persistent_buffers_set is not a set; this is no intact module"
        )
    for group in ("_parameters", "_buffers"):
        for name, tensor in part(group).items():
            if tensor is None or (group == "_buffers" and name in skipped):
                continue
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                raise ValueError(f"{prefix}{name} is not a tensor of real numbers; this is no intact module")
            yield f"{prefix}{name}", tensor
    for name, module in part("_modules").items():
        if module is not None:
            if not isinstance(module, Record):
                raise ValueError(f"{prefix}{name} is not a module but a {type(module).__name__}")
            yield from walk(module, f"{prefix}{name}.", seen, depth - 1)


def submodule(record: Record, *names: str) -> object:
    """The first submodule of one of these names."""
    modules = record.state.get("_modules")
    parts = modules if isinstance(modules, dict) else {}
    return next((parts[name] for name in names if name in parts), None)


def has_normalizing_hook(record: Record) -> bool:
    """Whether a forward hook normalises the weights of a layer of EDM2 once more at each evaluation.

    The hook is a bound method of the layer, which SiDA pickles with a copy of the layer in training mode.
    """
    hooks = record.state.get("_forward_pre_hooks")
    for hook in hooks.values() if isinstance(hooks, dict) else ():
        if isinstance(hook, Record) and hook.class_name == "getattr" and hook.arguments:
            owner = hook.arguments[0]
            if isinstance(owner, Record) and owner.class_name == "MPConv" and owner.state.get("training") is True:
                return True
    modules = record.state.get("_modules")
    parts = modules.values() if isinstance(modules, dict) else ()
    return any(has_normalizing_hook(module) for module in parts if isinstance(module, Record))

"""A run as JSON: its settings, hashes of its weights, where it runs, and where two runs differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.io.configuration import field_names, plain
from fewstep.runtime.distributed import device, world_size


def describe(value: Any) -> Any:
    """Settings as JSON: plain values as they are, objects as their class name and their settings, without networks."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return plain(value)
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    hidden = ("_", "training", "phases", "product", "class_names")
    known = field_names(value) if dataclasses.is_dataclass(value) else vars(value)  # without what is cached
    settings = {k: getattr(value, k) for k in sorted(known) if not k.startswith(hidden)}
    settings = {k: v for k, v in settings.items() if not isinstance(v, nn.Module)}
    return {"kind": type(value).__name__} | {k: describe(v) for k, v in settings.items()}


def digest(module: nn.Module) -> str:
    """SHA-256 of a module's weights."""
    result = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        result.update(name.encode())
        result.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return result.hexdigest()


def environment() -> dict[str, Any]:
    """Versions and machine of a run, for the record."""
    return {
        "versions": {name: version(name) for name in ("fewstep", "torch", "numpy")}
        | {"python": platform.python_version()},
        "machine": {
            "platform": platform.platform(),
            "threads": torch.get_num_threads(),
            "ranks": world_size(),
            "device": torch.cuda.get_device_name() if device().type == "cuda" else f"cpu ({cpu_name()})",
        },
    }


def cpu_name() -> str:
    """The model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def differences(mine: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Where two descriptions differ, in words; nothing if they are equal."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = sorted(set(mine) | set(theirs))
        return [d for k in keys for d in differences(mine.get(k), theirs.get(k), f"{prefix}.{k}" if prefix else k)]
    return [] if mine == theirs else [f"{prefix} was {json.dumps(theirs)}, is {json.dumps(mine)}"]

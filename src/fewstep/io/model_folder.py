"""Model folders: `model.safetensors`, `config.json` and a card, `README.md`. Never a pickle; loading runs no code."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from fewstep.core.codec import Pixels
from fewstep.core.conditional import ConditionalDenoiser, GenerativeDenoiser
from fewstep.core.denoiser import Denoiser
from fewstep.core.precondition import EDM, IDDPM, VE, VP, Boundary
from fewstep.data.codec import StabilityVAE, with_vae
from fewstep.io import hub
from fewstep.io.card import Card
from fewstep.nets.adm import ADMConfig, ADMUNet
from fewstep.nets.controlled import Controlled
from fewstep.nets.edm2 import EDM2Config, EDM2UNet, Uncertainty
from fewstep.nets.extent import check_extent
from fewstep.nets.song import SongConfig, SongUNet
from fewstep.runtime.distributed import as_device
from fewstep.runtime.files import new_folder, read_json, read_tensors, write_json, write_tensors
from fewstep.runtime.precision import chosen_dtype

FORMAT = "fewstep-model"
VERSION = 1
NETWORKS = {SongConfig: SongUNet, ADMConfig: ADMUNet, EDM2Config: EDM2UNet}
PRECONDITIONS = (EDM, Boundary, VP, VE, IDDPM)
CODECS = (Pixels, StabilityVAE)
OPTIONS: dict[type[Denoiser], dict[str, tuple[type, ...]]] = {
    Denoiser: {},
    ConditionalDenoiser: {"fused": (bool,)},
    GenerativeDenoiser: {"gamma": (int, float), "sigma_init": (int, float), "sigma_end": (int, float), "means": (int,)},
}
"""What a denoiser of each class has beside the options of all, and of which types."""
DENOISERS = {c.__name__: c for c in OPTIONS}
WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MOST_CONFIG = 2**20
"""Bytes of a configuration with its card, which is written anew as YAML, slowly."""
MOST_LEVELS = 1000
"""Of a generator, each of which is an evaluation."""
UNSAID = {"fused": False, "means": 0}
"""What the first folders do not say."""


def plain(value: Any) -> Any:
    """A frozen configuration as JSON can hold it: tuples as lists, infinities as words."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def to_dict(config: Any) -> dict[str, Any]:
    return {"kind": type(config).__name__} | {k: plain(v) for k, v in vars(config).items() if k in field_names(config)}


def field_names(config: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(config)}


def from_dict(values: Any, classes: tuple[type, ...], where: Path) -> Any:
    """The configuration object that `to_dict` described; unknown kinds and options are refused."""
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
        return cls(**{k: restore(v, hints[k]) for k, v in options.items()})
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {cls.__name__} cannot be made from {reprlib.repr(options)}: {error}") from error


def restore(value: Any, hint: Any) -> Any:
    """A JSON value as the type of a field: a number, text, one of several texts, a tuple of one type, or perhaps None."""
    kinds = get_args(hint)
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(restore(item, kinds[0]) for item in value)
    if get_origin(hint) is Literal and value in kinds:
        return value
    if type(None) in kinds:
        return None if value is None else restore(value, kinds[0])
    if hint is float and type(value) in (int, float, str) and not math.isnan(number := float(value)):
        return number
    if type(value) is hint and hint is not float:
        return value
    raise TypeError(f"expected {getattr(hint, '__name__', hint)}; got {reprlib.repr(value)}")


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file can hold them: in memory of their own, in row-major order, on the CPU."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def save(denoiser: Denoiser, folder: str | Path, card: Card | None = None) -> Path:
    """Write a model folder, in place of an older one; complete or not at all. A folder that holds anything else is refused."""
    folder = Path(folder)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "shape": list(denoiser.shape),
        "num_classes": denoiser.num_classes,
        "denoiser": kind(denoiser),
        "network": to_dict(denoiser.net.config),
        "precondition": to_dict(denoiser.precondition),
        "uncertainty": uncertainty_channels(denoiser),
        "levels": plain(denoiser.levels),
        "codec": to_dict(denoiser.codec),
        "card": dataclasses.asdict(card or Card()),
    }
    with new_folder(folder, hub.FILES) as partial:
        write_tensors(partial / "model.safetensors", contiguous(denoiser.state_dict()), metadata={"format": "pt"})
        write_json(partial / "config.json", config)
        (partial / "README.md").write_text((card or Card()).markdown(config))
    return folder


def kind(denoiser: Denoiser) -> dict[str, Any]:
    """The class of a denoiser, and the options that only that class has."""
    return {"kind": type(denoiser).__name__} | {
        name: getattr(denoiser, name) for name in OPTIONS.get(type(denoiser), {})
    }


def of_kind(about: Any, net: nn.Module, where: Path, **options: Any) -> Denoiser:
    """The denoiser that `kind` described, with an empty network."""
    if not isinstance(about, dict) or about.get("kind") not in [*DENOISERS]:
        raise ValueError(f"{where}: expected one of {', '.join(DENOISERS)}; got {about!r}. A newer fewstep may know it")
    cls = DENOISERS[about["kind"]]
    wanted = OPTIONS[cls]
    more = {k: v for k, v in UNSAID.items() if k in wanted} | {k: v for k, v in about.items() if k != "kind"}
    if set(more) != set(wanted) or not all(type(v) in wanted[k] for k, v in more.items()):
        raise ValueError(f"{where}: a {cls.__name__} has the options {', '.join(wanted) or 'none'}; got {more}")
    return cls(net if cls is Denoiser else Controlled(net), **options, **more)


def uncertainty_channels(denoiser: Denoiser) -> int:
    """The width of the log-variance head, 0 without one."""
    head = denoiser.uncertainty
    return head.channels if isinstance(head, Uncertainty) else 0


def find_model_folder(path: str | Path) -> Path:
    """The model folder meant by `path`: itself, the newest snapshot of a run folder, or a copy of a model on the hub."""
    if hub.is_address(path):
        return hub.fetch(hub.parse(path))
    path = Path(path)
    if path.suffix in (".pkl", ".pt", ".pth", ".ckpt") and path.is_file():
        raise ValueError(
            f"{path} is a pickle, which can run code when it is loaded; first: fewstep convert {path} FOLDER"
        )
    if not path.is_dir():
        raise ValueError(
            f"expected a model folder or a run folder; {path} is {'a file' if path.exists() else 'missing'}"
        )
    if (path / "config.json").is_file():
        return path
    snapshots = sorted(p for p in path.glob("snapshots/*") if (p / "config.json").is_file())
    if snapshots:
        return snapshots[-1]
    raise ValueError(f"{path} holds neither a model (config.json, model.safetensors) nor a run with snapshots yet")


def read_config(path: str | Path) -> dict[str, Any]:
    """The configuration of a model folder, checked for its format."""
    file = find_model_folder(path) / "config.json"
    if file.is_file() and file.stat().st_size > MOST_CONFIG:
        raise ValueError(
            f"{file}: expected at most {MOST_CONFIG} bytes; got {file.stat().st_size}; do not use this model"
        )
    config = read_json(file)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f'{file} is not the configuration of a model (no "format": "{FORMAT}")')
    if config.get("version") != VERSION:
        raise ValueError(
            f"{file} has version {config.get('version')}; this fewstep reads version {VERSION}: upgrade it"
        )
    return config


def is_metric(value: Any) -> bool:
    """Whether an entry of a card is a result as `fewstep eval` writes it."""
    named = isinstance(value, dict) and isinstance(value.get("metric"), str) and type(value.get("n")) is int
    return named and type(value.get("value")) in (int, float) and isinstance(value.get("protocol", {}), dict)


def card(path: str | Path) -> Card:
    """The card of a model folder; the name of a model on the hub is its address there."""
    values = read_config(path).get("card", {})
    where = find_model_folder(path) / "config.json"
    if not isinstance(values, dict) or set(values) - field_names(Card):
        raise ValueError(f"{where}: the card has unknown entries; a newer fewstep may know them")
    empty = dataclasses.asdict(Card())
    if wrong := [name for name, value in values.items() if type(value) is not type(empty[name])]:
        raise ValueError(f"{where}: entries of the card are of another type than they should be: {', '.join(wrong)}")
    if not all(type(name) is str for name in values.get("lineage", [])):
        raise ValueError(f"{where}: the lineage of the card is a list of names; got {reprlib.repr(values['lineage'])}")
    if bad := [metric for metric in values.get("metrics", []) if not is_metric(metric)]:
        raise ValueError(f"{where}: expected metrics of the card with their value and n; got {reprlib.repr(bad[0])}")
    about = Card(**values)
    return dataclasses.replace(about, name=str(hub.parse(path))) if hub.is_address(path) else about


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    vae: str | Path | None = None,
) -> Denoiser:
    """The denoiser in a model folder, in the newest snapshot of a run folder, or on the hub (hf://owner/name@revision).

    It is in evaluation mode, and its weights are those of the file, every one of them.

    Args:
        path: the folder, or the address on the hub.
        device: where it computes: cpu, cuda, cuda:1, ..., mps.
        dtype: in which its network computes, one of `precision.DTYPES` or auto, which is bfloat16 where the hardware has
            it. Weights keep the precision of the file; results have that of the input.
        vae: for a model of latents, the folder of its VAE (diffusers' AutoencoderKL) or the name on the hub, in place of
            what the model names.

    Raises:
        ValueError: there is no model, it is not intact, the device is not there, or the VAE does not fit it.

    Example:
        >>> model = fs.load("models/imagenet512", device="cuda", dtype="bf16", vae="models/sd-vae-ft-mse")
    """
    if not isinstance(path, (str, Path)):
        raise ValueError(f"path is a model folder, a run folder or hf://owner/name; got a {type(path).__name__}")
    device = as_device(device)
    dtype = chosen_dtype(dtype, device)
    folder = find_model_folder(path)
    config = read_config(folder)
    where = folder / "config.json"
    network = from_dict(config.get("network"), tuple(NETWORKS), where)
    precondition = from_dict(config.get("precondition"), PRECONDITIONS, where)
    codec = from_dict(config.get("codec"), CODECS, where)
    if vae is not None:
        codec = with_vae(codec, vae)
    levels, channels = config.get("levels"), config.get("uncertainty")
    weights = folder / "model.safetensors"
    tensors, _ = read_tensors(weights, device=str(device))
    check_tensors(tensors, weights)
    try:
        check_extent(network, tensors)
        with torch.device("meta"):
            denoiser = of_kind(
                config.get("denoiser", {"kind": "Denoiser"}),
                NETWORKS[type(network)](network),
                where,
                precondition=precondition,
                levels=restored_levels(levels) if levels else None,
                uncertainty=Uncertainty(channels, getattr(network, "normalizations", 1)) if channels else None,
                codec=codec,
                dtype=dtype,
            )
    except (TypeError, ArithmeticError, LookupError, RuntimeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{where}: there is no network of this configuration: {reason}") from error
    check_state_dict(denoiser.state_dict(), tensors, weights)
    denoiser.load_state_dict(tensors, assign=True)
    return denoiser.eval()


def check_tensors(tensors: dict[str, Tensor], where: Path) -> None:
    """Refuse tensors that no network has: empty ones, and those of other types than torch computes networks in."""
    for name, tensor in tensors.items():
        if tensor.dtype not in WEIGHTS or not tensor.numel():
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in WEIGHTS)
            raise ValueError(
                f"{where}: expected weights of {kinds}; {name} is {str(tensor.dtype).removeprefix('torch.')} "
                f"{tuple(tensor.shape)}"
            )


def restored_levels(levels: Any) -> tuple[float, ...]:
    """The noise levels of a generator."""
    result = restore(levels, tuple[float, ...])
    if len(result) > MOST_LEVELS or not all(0 < level < math.inf for level in result):
        raise ValueError(f"expected at most {MOST_LEVELS} levels > 0; got {reprlib.repr(levels)}")
    return result


def check_state_dict(expected: dict[str, Tensor], found: dict[str, Tensor], where: Path) -> None:
    """Name every missing, unexpected and misshapen tensor."""
    problems = [f"missing {k}" for k in expected if k not in found]
    problems += [f"unexpected {k}" for k in found if k not in expected]
    problems += [
        f"{k} has shape {tuple(found[k].shape)}, not {tuple(expected[k].shape)}"
        for k in expected
        if k in found and found[k].shape != expected[k].shape
    ]
    if problems:
        shown = "; ".join(problems[:20]) + ("" if len(problems) <= 20 else f"; and {len(problems) - 20} more")
        raise ValueError(f"{where} does not fit its configuration: {shown}")

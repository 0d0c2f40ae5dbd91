"""Model folders: `model.safetensors`, `config.json` and the card, `README.md`. They hold no pickle; loading runs no code."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.codec import Pixels
from fewstep.core.conditional import ConditionalDenoiser, GenerativeDenoiser
from fewstep.core.denoiser import Denoiser
from fewstep.core.precondition import EDM, IDDPM, VE, VP, Boundary
from fewstep.data.codec import StabilityVAE, with_vae
from fewstep.io import hub
from fewstep.io.card import Card, card_from_dict
from fewstep.io.configuration import from_dict, from_json, plain, to_dict
from fewstep.nets.adm import ADMConfig, ADMUNet
from fewstep.nets.controlled import Controlled
from fewstep.nets.edm2 import EDM2Config, EDM2UNet, Uncertainty
from fewstep.nets.extent import check_extent
from fewstep.nets.registry import REGISTERED
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
"""The options of each class of denoisers beside those of `Denoiser`, with their types."""
DENOISERS = {c.__name__: c for c in OPTIONS}
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
MAX_CONFIG = 2**20
"""Bytes of `config.json`. Its card is written as YAML again, which is slow."""
MAX_LEVELS = 1000
"""Noise levels of a generator; each costs an evaluation."""
SHIPPED = Path(__file__).parent / "shipped"
"""Models that come with the package, a folder each."""
SHORT = {"digits": "digits-student"}
"""Shorter names of them."""
DEFAULT_OPTIONS = {"fused": False, "means": 0}
"""Options that older folders do not state."""


def network_to_dict(net: Any) -> dict[str, Any]:
    """The configuration of a network; of a registered one also the name of its class, which only messages use."""
    config = net.config
    if type(config) in REGISTERED:
        cls = REGISTERED[type(config)]
        return to_dict(config) | {"class": f"{cls.__module__}.{cls.__qualname__}"}
    if type(config) not in NETWORKS:
        raise ValueError(
            f"a {type(net).__name__} is not a network that fewstep can load again; register your own before you save it: "
            f"fs.nets.register({type(net).__name__}, {type(config).__name__})"
        )
    return to_dict(config)


def network_from_dict(values: Any, where: Path) -> Any:
    """The configuration that `network_to_dict` described; a network of the user's own must be registered."""
    if isinstance(values, dict) and "class" in values:
        source, values = values["class"], {k: v for k, v in values.items() if k != "class"}
        if values.get("kind") not in [c.__name__ for c in REGISTERED]:
            raise ValueError(
                f"{where}: this model has a network of its own, {reprlib.repr(source)}, which is not part of fewstep and is not "
                "imported because a file names it. Import its module and call fs.nets.register(Network, Config) before fs.load"
            )
        return from_dict(values, tuple(REGISTERED), where)
    return from_dict(values, tuple(NETWORKS), where)


def contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file can hold them: copied to the CPU, each in its own memory and in row-major order."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def save(denoiser: Denoiser, folder: str | Path, card: Card | None = None) -> Path:
    """Write a model folder, complete or not at all.

    Args:
        denoiser: the model; its weights keep their precision.
        folder: where to write. A model that is already there is replaced.
        card: how the model was made, from which data and under which license.

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds anything else than a model.

    Example:
        >>> fs.save(model, "models/mine", fs.Card(name="mine", method="SiD", license="Apache-2.0"))
    """
    folder = Path(folder)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "shape": list(denoiser.shape),
        "num_classes": denoiser.num_classes,
        "class_names": plain(denoiser.class_names),
        "denoiser": class_options(denoiser),
        "network": network_to_dict(denoiser.net),
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


def class_options(denoiser: Denoiser) -> dict[str, Any]:
    """The class of a denoiser as `kind`, and the options that only this class has."""
    return {"kind": type(denoiser).__name__} | {
        name: getattr(denoiser, name) for name in OPTIONS.get(type(denoiser), {})
    }


def build_denoiser(about: Any, net: nn.Module, where: Path, **options: Any) -> Denoiser:
    """The denoiser around `net` that `class_options` describes. options: those of every Denoiser."""
    if not isinstance(about, dict) or about.get("kind") not in [*DENOISERS]:
        raise ValueError(f"{where}: expected one of {', '.join(DENOISERS)}; got {about!r}. A newer fewstep may know it")
    cls = DENOISERS[about["kind"]]
    wanted = OPTIONS[cls]
    more = {k: v for k, v in DEFAULT_OPTIONS.items() if k in wanted} | {k: v for k, v in about.items() if k != "kind"}
    if set(more) != set(wanted) or not all(type(v) in wanted[k] for k, v in more.items()):
        raise ValueError(f"{where}: a {cls.__name__} has the options {', '.join(wanted) or 'none'}; got {more}")
    return cls(net if cls is Denoiser else Controlled(net), **options, **more)


def uncertainty_channels(denoiser: Denoiser) -> int:
    """The width of the log-variance head; 0 if there is none."""
    head = denoiser.uncertainty
    return head.channels if isinstance(head, Uncertainty) else 0


def find_model_folder(path: str | Path) -> Path:
    """The folder of the model that `path` names.

    Args:
        path: a model folder, a run folder for its newest snapshot, the address of a model on the hub, which is fetched, or,
            where there is no such folder, the name of a model that comes with the package (`shipped_models`).

    Returns:
        A folder with `config.json`. Its weights are not read.

    Raises:
        ValueError: there is no model.
    """
    if hub.is_address(path):
        return hub.fetch(hub.parse(path))
    path = Path(path)
    if path.suffix in (".pkl", ".pt", ".pth", ".ckpt") and path.is_file():
        raise ValueError(
            f"{path} is a pickle, which can run code when it is loaded; convert it first: fewstep convert {path} FOLDER"
        )
    if is_shipped(path):
        return SHIPPED / SHORT.get(str(path), path)
    if not path.is_dir():
        raise ValueError(
            f"expected a model folder, a run folder, hf://owner/name or one of {', '.join(shipped_models())}; {path} is "
            f"{'a file' if path.exists() else 'missing'}"
        )
    if (path / "config.json").is_file():
        return path
    snapshots = sorted(p for p in path.glob("snapshots/*") if (p / "config.json").is_file())
    if snapshots:
        return snapshots[-1]
    raise ValueError(f"{path} holds neither a model (config.json, model.safetensors) nor a run with snapshots yet")


def shipped_models() -> list[str]:
    """Names of the models that come with the package: `fs.load(name)` needs no download."""
    return sorted([*SHORT, *(folder.name for folder in SHIPPED.iterdir() if folder.is_dir())])


def is_shipped(path: str | Path) -> bool:
    """Whether `path` names a model that comes with the package. A file or folder of that name goes before it."""
    return str(path) in shipped_models() and not Path(path).exists()


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of `config.json` of the model that `path` names, whose format and version are known. Raises ValueError."""
    file = find_model_folder(path) / "config.json"
    if file.is_file() and file.stat().st_size > MAX_CONFIG:
        raise ValueError(
            f"{file}: expected at most {MAX_CONFIG} bytes; got {file.stat().st_size}; do not use this model"
        )
    config = read_json(file)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f'{file} is not the configuration of a model (no "format": "{FORMAT}")')
    if config.get("version") != VERSION:
        raise ValueError(
            f"{file} has version {config.get('version')}; this fewstep reads version {VERSION}: upgrade it"
        )
    return config


def card(path: str | Path) -> Card:
    """The card of a model: what it is called, how it was made, and under which license it is.

    Args:
        path: a model folder, a run folder, or hf://owner/name. A model on the hub is named by its address.

    Returns:
        The card.

    Raises:
        ValueError: there is no model, or its card has unknown entries or values of the wrong type.

    Example:
        >>> fs.card("models/mine").license
        'Apache-2.0'
    """
    about = card_from_dict(read_config(path).get("card", {}), find_model_folder(path) / "config.json")
    return dataclasses.replace(about, name=str(hub.parse(path))) if hub.is_address(path) else about


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    vae: str | Path | None = None,
) -> Denoiser:
    """Load a model: from a model folder, from the newest snapshot of a run folder, or from the hub.

    Args:
        path: the folder; hf://owner/name, optionally with @ and a branch, tag or commit; or the name of a model that comes
            with the package: `digits` (one-step generator, also called `digits-student`) or `digits-teacher`.
        device: where to compute: cpu, cuda, cuda:1, ..., mps.
        dtype: in which the network computes: one of `precision.DTYPES`, or auto for bfloat16 where the hardware has it.
            Weights keep the precision of the file; results have the precision of the input.
        vae: for a model of latents, the folder of its VAE (diffusers' AutoencoderKL) or its name on the hub, in place of
            the one that the model names.

    Returns:
        The denoiser in evaluation mode, with the weights of the file.

    Raises:
        ValueError: there is no model, it is not intact, the device does not exist, or the VAE does not fit the model.

    Example:
        >>> model = fs.load("models/imagenet512", device="cuda", dtype="bf16", vae="models/sd-vae-ft-mse")
    """
    if not isinstance(path, (str, Path)):
        raise ValueError(f"path: expected a model folder, a run folder or hf://owner/name; got a {type(path).__name__}")
    device = as_device(device)
    dtype = chosen_dtype(dtype, device)
    folder = find_model_folder(path)
    config = read_config(folder)
    where = folder / "config.json"
    network = network_from_dict(config.get("network"), where)
    precondition = from_dict(config.get("precondition"), PRECONDITIONS, where)
    codec = from_dict(config.get("codec"), CODECS, where)
    if vae is not None:
        codec = with_vae(codec, vae)
    levels, channels = config.get("levels"), config.get("uncertainty")
    weights = folder / "model.safetensors"
    tensors, _ = read_tensors(weights, device=str(device))
    check_dtypes(tensors, weights)
    try:
        if type(network) in NETWORKS:
            check_extent(network, tensors)
        with torch.device("meta"):
            denoiser = build_denoiser(
                config.get("denoiser", {"kind": "Denoiser"}),
                (NETWORKS | REGISTERED)[type(network)](network),
                where,
                precondition=precondition,
                levels=parse_levels(levels) if levels else None,
                uncertainty=Uncertainty(channels, getattr(network, "normalizations", 1)) if channels else None,
                codec=codec,
                dtype=dtype,
            )
    except (TypeError, ArithmeticError, LookupError, RuntimeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{where}: there is no network of this configuration: {reason}") from error
    denoiser.class_names = parse_class_names(config.get("class_names"), denoiser.num_classes, where)
    check_state_dict(denoiser.state_dict(), tensors, weights)
    denoiser.load_state_dict(tensors, assign=True)
    return denoiser.eval()


def check_dtypes(tensors: dict[str, Tensor], where: Path) -> None:
    """Raise ValueError for weights that are empty or of a dtype in which networks do not compute."""
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES or not tensor.numel():
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            raise ValueError(
                f"{where}: expected weights of {kinds}; {name} is {str(tensor.dtype).removeprefix('torch.')} "
                f"{tuple(tensor.shape)}"
            )


def parse_levels(levels: Any) -> tuple[float, ...]:
    """The noise levels of a generator. Raises ValueError for levels that are not positive and finite."""
    result = from_json(levels, tuple[float, ...])
    if len(result) > MAX_LEVELS or not all(0 < level < math.inf for level in result):
        raise ValueError(f"expected at most {MAX_LEVELS} levels > 0; got {reprlib.repr(levels)}")
    return result


def parse_class_names(names: Any, num_classes: int, where: Path) -> tuple[str, ...] | None:
    """The names of a model's classes, which older folders do not have. Raises ValueError unless there is one for each."""
    if names is None:
        return None
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: expected the names of {num_classes} classes; got {reprlib.repr(names)}")
    return tuple(names)


def check_state_dict(expected: dict[str, Tensor], found: dict[str, Tensor], where: Path) -> None:
    """Raise ValueError that names every missing and unexpected tensor, and those of another shape. where: of `found`."""
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

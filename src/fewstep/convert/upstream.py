"""Networks of the EDM family as their authors publish them: out of the inert records of a file, and back by name.

A snapshot holds a preconditioner around a U-Net, with the arguments of their constructors and the tensors of an
`nn.Module`. All names of parameters are kept, but for the prefix: `model.` (EDM and its students) and `unet.` (EDM2)
are `net.` here, and EDM2's `logvar_*` the submodule `uncertainty`. NCVSD's networks are halves of U-Nets: the student
has all of them below `model.`, its fake score and its discriminator have no prefix.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from fewstep.checkpoint import check, check_extent
from fewstep.conditional import ConditionalDenoiser, ConditionalDiscriminator, GenerativeDenoiser
from fewstep.convert.unpickle import Record, read
from fewstep.data.codec import Codec, Pixels, StabilityVAE
from fewstep.denoiser import Denoiser
from fewstep.files import sha256
from fewstep.nets.adm import ADMConfig, ADMUNet
from fewstep.nets.controlled import Controlled
from fewstep.nets.discriminators import PairDiscriminator
from fewstep.nets.edm2 import EDM2Config, EDM2UNet, Uncertainty
from fewstep.nets.song import SongConfig, SongUNet
from fewstep.precondition import EDM, IDDPM, VE, VP, Boundary

MAX_DEPTH = 32
"""Of modules within modules; the published networks have 6 levels."""

NETWORKS: dict[str, tuple[type, type]] = {
    "SongUNet": (SongConfig, SongUNet),
    "SongUNet_EncoderDecoder": (SongConfig, SongUNet),
    "DhariwalUNet": (ADMConfig, ADMUNet),
    "DhariwalUNet_EncoderDecoder": (ADMConfig, ADMUNet),
    "UNet": (EDM2Config, EDM2UNet),
    "UNetEncoder": (EDM2Config, EDM2UNet),
}

LEVELS = {
    "EDMPrecond_EncoderDecoder": (2.5,),
    "EDM_2_Precond_Generator": (2.5,),
    "GDDPrecond": (80.0,),
    "GenerativeDenoiser": (80.0,),
}
"""The noise levels from which students generate: SiD's and SiDA's, GDD's, and that of NCVSD's FFHQ student for one step."""

SID_NAME = re.compile(r"network-snapshot-\d\.\d{6}-\d{6}\.pkl")
"""SiD's students have the class of their teachers; their files are named by alpha and thousands of images."""

PREFIXES = {"GenerativeDenoiser": "model.", "PrecondCondition": "", "DiscriminatorCondition": ""}
"""NCVSD's networks, and what their tensors' names begin with."""


@dataclass(frozen=True)
class Snapshot:
    """A network as it lies in an upstream file.

    class_name, attributes: of the preconditioner. network, options: class and constructor arguments of the U-Net.
    state: tensors by upstream name, in upstream order. codec: between the network's units and images.
    """

    class_name: str
    attributes: dict[str, object] = field(repr=False)
    network: str
    options: dict[str, object]
    state: dict[str, Tensor] = field(repr=False)
    codec: Codec = Pixels()


def load_snapshot(path: str | Path) -> Snapshot:
    """The averaged network of `network-snapshot-*.pkl` and of the published files; runs nothing of the file."""
    return snapshot(read(path), where=str(path))


def snapshot(content: object, *, where: str = "the file") -> Snapshot:
    """The averaged network in what `read` returned."""
    outer = content if isinstance(content, dict) else {"ema": content}
    record = outer.get("ema")
    if not isinstance(record, Record):
        raise ValueError(
            f'{where} holds no network under "ema" ({describe(content)}); a network-snapshot-*.pkl of EDM, EDM2, SiD '
            "or GDD does. A training-state-*.pt has no architecture: take the snapshot that was written with it"
        )
    network = part(record, "model", "unet", "enc")
    attributes = dict(record.state)
    if record.class_name == "GenerativeDenoiser" and isinstance(network, Record):
        attributes = network.state | attributes
        network = part(network, "enc")
    if record.class_name not in PRECONDITIONS or not isinstance(network, Record):
        raise ValueError(
            f"{where} holds a {record.class_name[:80]}; the preconditionings {', '.join(PRECONDITIONS)} are known, "
            "each around one network"
        )
    if network.class_name not in NETWORKS:
        raise ValueError(f"{where} holds the network {network.class_name[:80]}; known are {', '.join(NETWORKS)}")
    options = network.state.get("_init_kwargs")
    if not isinstance(options, dict) or not isinstance(args := network.state.get("_init_args", ()), tuple) or args:
        raise ValueError(f"{where}: {network.class_name} does not name the arguments of its constructor")
    return Snapshot(
        record.class_name,
        {k: v for k, v in attributes.items() if not k.startswith("_")},
        network.class_name,
        options,
        state_dict(record),
        codec(outer.get("encoder"), where),
    )


def part(record: Record, *names: str) -> object:
    """The first submodule of one of these names."""
    modules = record.state.get("_modules")
    parts = modules if isinstance(modules, dict) else {}
    return next((parts[name] for name in names if name in parts), None)


def codec(encoder: object, where: str) -> Codec:
    """Between the network's units and images, from EDM2's encoder; files without one are of pixels."""
    if encoder is None or (isinstance(encoder, Record) and encoder.class_name == "StandardRGBEncoder"):
        return Pixels()
    if not isinstance(encoder, Record) or encoder.class_name != "StabilityVAEEncoder":
        name = encoder.class_name[:80] if isinstance(encoder, Record) else type(encoder).__name__
        raise ValueError(f"{where} has the encoder {name}; known are StandardRGBEncoder and StabilityVAEEncoder")
    try:
        scale, bias = (np.asarray(encoder.state[k], dtype=np.float64).reshape(-1) for k in ("scale", "bias"))
        raw_std, raw_mean = StabilityVAE.final_std / scale, -bias / scale
        means, stds = (tuple(float(f"{v:.6g}") for v in part) for part in (raw_mean, raw_std))  # float32 in the file
        return StabilityVAE(str(encoder.state["vae_name"]), means, stds)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: its encoder of latents is not intact ({error})") from error


def describe(content: object) -> str:
    if isinstance(content, dict):
        return "its entries: " + (", ".join(str(key)[:40] for key in list(content)[:10]) or "none")
    return f"it is a {type(content).__name__}"


def state_dict(record: Record) -> dict[str, Tensor]:
    """The tensors of an `nn.Module` by dotted name: parameters, persistent buffers, submodules, in the file's order."""
    return dict(tensors(record, "", set(), MAX_DEPTH))


def tensors(record: Record, prefix: str, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    # A file can name a part again and again at no cost; each is walked once, so that the walk is as long as the file.
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
            yield from tensors(module, f"{prefix}{name}.", seen, depth - 1)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is a number as a file holds it: no truth value, no object that acts as one."""
    return type(value) in (int, float)


def number(attributes: dict[str, object], name: str) -> float:
    value = attributes.get(name)
    if not is_number(value) or not value >= 0 or (name == "sigma_data" and not 0 < value < math.inf):
        raise ValueError(f"the preconditioning has no usable {name}; got a {type(value).__name__}")
    return float(value)


def count(attributes: dict[str, object], name: str) -> int:
    value = attributes.get(name)
    if type(value) is not int or not 0 < value < 2**16:
        raise ValueError(f"the preconditioning has no usable {name}; got a {type(value).__name__}")
    return value


def edm(snapshot: Snapshot) -> EDM:
    return EDM(**{name: number(snapshot.attributes, name) for name in ("sigma_data", "sigma_min", "sigma_max")})


def vp(snapshot: Snapshot) -> VP:
    a = snapshot.attributes
    return VP(number(a, "beta_d"), number(a, "beta_min"), count(a, "M"), number(a, "epsilon_t"))


def ve(snapshot: Snapshot) -> VE:
    return VE(number(snapshot.attributes, "sigma_min"), number(snapshot.attributes, "sigma_max"))


def iddpm(snapshot: Snapshot) -> IDDPM:
    """The levels in the file must be the formula's: they are dropped on import and written again on export."""
    a, u = snapshot.attributes, snapshot.state.get("u")
    steps = count(a, "M")
    if u is None or u.shape != (steps + 1,):
        raise ValueError(f"iDDPM's levels u need shape ({steps + 1},); got {'none' if u is None else tuple(u.shape)}")
    precondition = IDDPM(number(a, "C_1"), number(a, "C_2"), steps)
    # The last bits depend on the processor that computed them.
    if not torch.allclose(u.float(), precondition.table, rtol=1e-4, atol=0):
        raise ValueError("iDDPM's levels u are not those of its constants C_1, C_2, M; the file is damaged")
    return precondition


def edm2(snapshot: Snapshot) -> EDM:
    return EDM(number(snapshot.attributes, "sigma_data"))


def gdd(snapshot: Snapshot) -> Boundary:
    return Boundary(number(snapshot.attributes, "sigma_data"), number(snapshot.attributes, "eps"))


PRECONDITIONS: dict[str, Callable[[Snapshot], Any]] = {
    "EDMPrecond": edm,
    "EDMPrecond_EncoderDecoder": edm,
    "VPPrecond": vp,
    "VEPrecond": ve,
    "iDDPMPrecond": iddpm,
    "GDDPrecond": gdd,
    "Precond": edm2,
    "EDM_2_Precond_Generator": edm2,
    "GenerativeDenoiser": edm2,
    "PrecondCondition": edm2,
    "DiscriminatorCondition": edm2,
}


def to_denoiser(snapshot: Snapshot, *, levels: tuple[float, ...] | None = None, where: str = "the file") -> Denoiser:
    """The network of a snapshot as a Denoiser in evaluation mode, with the numbers and precision of the file.

    levels: noise levels from which a student generates, where the class of the snapshot does not tell. Raises
    ValueError naming every missing, unexpected and misshapen tensor.
    """
    if snapshot.class_name == "DiscriminatorCondition":
        raise ValueError(f"{where} holds NCVSD's discriminator, which is no denoiser; read it with to_discriminator")
    precondition = PRECONDITIONS[snapshot.class_name](snapshot)
    prefix = PREFIXES.get(snapshot.class_name)
    state = {rename(name, prefix): tensor.contiguous() for name, tensor in snapshot.state.items()}
    if isinstance(precondition, IDDPM):
        del state["u"]
    head = state.get("uncertainty.fourier.freqs")
    levels = levels or LEVELS.get(snapshot.class_name)
    with torch.device("meta"):
        net = build(snapshot, len(state))
        uncertainty = Uncertainty(head.numel()) if head is not None else None
        options: dict[str, Any] = {"precondition": precondition, "uncertainty": uncertainty, "codec": snapshot.codec}
        if snapshot.class_name == "GenerativeDenoiser":
            numbers = {"gamma": "gamma", "sigma_init": "init_sigma"}
            options |= {ours: number(snapshot.attributes, theirs) for ours, theirs in numbers.items()}
            denoiser = GenerativeDenoiser(Controlled(net), levels=levels or (), **options)
        elif snapshot.class_name == "PrecondCondition":
            if levels:
                raise ValueError(f"{where} holds a fake score, which makes no images; leave the levels out")
            denoiser = ConditionalDenoiser(Controlled(net), **options)
        else:
            denoiser = Denoiser(net, levels=levels, **options)
    check(denoiser.state_dict(), state, Path(where))
    denoiser.load_state_dict(state, assign=True)
    return denoiser.eval()


def build(snapshot: Snapshot, n_tensors: int) -> Any:
    """The U-Net of a snapshot, whole, with new weights."""
    kind, network = NETWORKS[snapshot.network]
    return network(configure(kind, snapshot.options, n_tensors))


def to_discriminator(snapshot: Snapshot, *, where: str = "the file") -> ConditionalDiscriminator:
    """NCVSD's discriminator in a snapshot, strict as `to_denoiser`."""
    if snapshot.class_name != "DiscriminatorCondition":
        raise ValueError(f"{where} holds a {snapshot.class_name}, not NCVSD's discriminator; read it with to_denoiser")
    state = {rename(name, ""): tensor.contiguous() for name, tensor in snapshot.state.items()}
    with torch.device("meta"):
        net = PairDiscriminator(build(snapshot, len(state)))
    result = ConditionalDiscriminator(net, precondition=edm2(snapshot))
    check(result.state_dict(), state, Path(where))
    result.load_state_dict(state, assign=True)
    return result.eval()


def rename(name: str, prefix: str | None = None) -> str:
    """A name of the upstream state dict in ours. prefix: of NCVSD's networks, None for others."""
    if prefix is not None:
        name = name.removeprefix(prefix)
        return name.replace("logvar_", "uncertainty.", 1) if name.startswith("logvar_") else f"net.{name}"
    for theirs, ours in (("model.", "net."), ("unet.", "net."), ("logvar_", "uncertainty.")):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def upstream_state_dict(model: Denoiser | ConditionalDiscriminator) -> dict[str, Tensor]:
    """The tensors of a model under the names, and in the order, of the upstream preconditioner's state dict."""
    network, head = "model.", "logvar_"
    if isinstance(model, ConditionalDenoiser) and model.fused:
        raise ValueError("this fake score is fused, for which the upstream format has no place; share its folder")
    if isinstance(model, ConditionalDenoiser | ConditionalDiscriminator):
        network = ""
    elif isinstance(model, GenerativeDenoiser):
        if model.means:
            raise ValueError(
                "this model starts about mean images, for which the upstream format has no place; share its folder"
            )
        head = "model.logvar_"
    elif isinstance(model.net, EDM2UNet):
        network = "unet."
    state: dict[str, Tensor] = {}
    if isinstance(model.precondition, IDDPM):
        state["u"] = model.precondition.table
    for name, tensor in model.state_dict().items():
        part, rest = name.split(".", 1)
        state[f"{network}{rest}" if part == "net" else f"{head}{rest}"] = tensor
    return state


def configure(kind: type, options: dict[str, object], n_tensors: int) -> Any:
    """The frozen configuration for constructor arguments of a file, bounded by the number of tensors that it has."""
    hints, known = get_type_hints(kind), {f.name for f in dataclasses.fields(kind)}
    if kind is EDM2Config and option("resample_filter", options.get("resample_filter", [1, 1]), tuple[int]) == (1, 1):
        options = {k: v for k, v in options.items() if k != "resample_filter"}
    if unknown := [str(name)[:40] for name in options if name not in known]:
        raise ValueError(f"{kind.__name__} has no option {', '.join(unknown)}; this version cannot build the network")
    if "img_resolution" not in options:
        raise ValueError("the file does not say the resolution of its network")
    config = kind(**{name: option(name, value, hints[name]) for name, value in options.items()})
    check_extent(config, n_tensors)
    return config


def option(name: str, value: object, hint: Any) -> Any:
    """One constructor argument, of the type that our configuration declares and of a sane size."""
    low = 0 if name in ("label_dim", "augment_dim") else 1
    if get_origin(hint) is Literal and isinstance(value, str) and value in get_args(hint):
        return value
    share = name in ("dropout", "label_dropout")
    if hint is float and is_number(value) and (0 <= value < 1 if share else math.isfinite(value)):
        return float(value)
    if get_origin(hint) is tuple and isinstance(value, list | tuple) and 0 < len(value) <= 32:
        return tuple(option(name, item, int) for item in value)
    if int in (hint, *get_args(hint)) and type(value) is int and low <= value < 2**16:
        return value
    if value is None and type(None) in get_args(hint):
        return value
    raise ValueError(f"{name} of the network is out of range, or a {type(value).__name__} where {hint} belongs")


NVIDIA = "CC BY-NC-SA 4.0 (NVIDIA): no commercial use; keep the attribution and the license"
INHERITED = "that of its teacher; students of NVIDIA's EDM and EDM2 networks inherit CC BY-NC-SA 4.0: no commercial use"
OWN = "not stated by the file; networks published by NVIDIA are under CC BY-NC-SA 4.0: no commercial use"


def weights_license(source: str, class_name: str) -> str:
    """The license of the weights, as far as the name or address of the file and the class of its network tell."""
    name = source.rsplit("/", 1)[-1]
    if "nvlabs-fi-cdn.nvidia.com" in source or re.match(
        r"(edm|edm2|baseline)-(cifar10|ffhq|afhqv2|imagenet|img\d+)-", name
    ):
        return NVIDIA
    return INHERITED if class_name in LEVELS or SID_NAME.fullmatch(name) else OWN


def convert(
    path: str | Path, *, source: str | None = None, levels: tuple[float, ...] | None = None
) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser in an upstream file, and where it comes from.

    source: the address it was fetched from, if not `path`. levels: as for `to_denoiser`. The provenance has the source,
    the file's bytes and sha256, the upstream classes and the license of the weights. Raises ValueError if the file
    holds anything but a known network, whole; nothing in it is run.
    """
    path, source = Path(path), source or Path(path).name
    found = load_snapshot(path)
    if levels is None and SID_NAME.fullmatch(source.rsplit("/", 1)[-1]) and found.class_name == "EDMPrecond":
        levels = (2.5,)
    denoiser = to_denoiser(found, levels=levels, where=str(path))
    provenance = {
        "source": source,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "classes": [found.class_name, found.network],
        "license": weights_license(source, found.class_name),
    }
    return denoiser, provenance

"""Steps of SiD, SiDA, DMD2, GDD and NCVSD by the Trainer, beside the reference implementations, but for DMD2.

`python -m benchmarks distillation --methods sid --reference SID`, the checkout of SiD's branch `sida`, which has both;
`--methods gdd-vgg --network edm-cifar10-32x32-uncond-ve --reference GDD`; `--methods ncvsd --network edm2-img64-s --reference
NCVSD`. What GDD and NCVSD compute with equal weights also stands side by side. With `--memory` also the peak of a step of each
and what the process held before it, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import networks, reference
from benchmarks.measure import Table, compared, flops, forget_peak, in_fresh_process, resident
from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Method
from fewstep.distill import DMD2, GDD, NCVSD, SiD, SiDA
from fewstep.distill.gdd import EncoderFeatures, generator_of
from fewstep.io.convert.feature_weights import NETWORKS
from fewstep.io.export import upstream_state_dict
from fewstep.nets.discriminators import ProjectedDiscriminator
from fewstep.nets.execution import recompute_blocks
from fewstep.nets.features import EFFICIENTNET, VGG, PretrainedFeatures
from fewstep.runtime.distributed import device

Make = Callable[[Denoiser], Method]


def gdd(teacher: Denoiser) -> GDD:
    networks = [
        PretrainedFeatures(each, NETWORKS[each.name]().eval().requires_grad_(False), "untrained", dtype=teacher.dtype)
        for each in (VGG, EFFICIENTNET)
    ]
    return GDD(teacher, ProjectedDiscriminator(networks))


METHODS: dict[str, Make] = {
    "sid": SiD,
    "sida": lambda teacher: SiDA(teacher, gates=(0, 0)),
    "dmd2": lambda teacher: DMD2(teacher, ratio=1),
    "gdd": lambda teacher: GDD(teacher, ProjectedDiscriminator([EncoderFeatures(teacher, 0.1)])),
    "gdd-vgg": gdd,
    "ncvsd": NCVSD,
}
"""DMD2 with its generator in every step; GDD with the teacher's encoder as the feature network, or with the two networks of
its runs on CIFAR-10, of random weights."""
REFERENCES = ("sid", "sida", "gdd-vgg", "ncvsd")


def arguments(parser: argparse.ArgumentParser) -> None:
    networks.arguments(parser, batch=4, repeats=3)
    parser.add_argument("--reference", type=Path, help=f"checkout of SiD, GDD or NCVSD, for {', '.join(REFERENCES)}")
    parser.add_argument("--methods", default="sid,sida", help=", ".join(METHODS))
    parser.add_argument("--recompute", help="what ours recomputes: light, or pixels a side from which blocks are")
    parser.add_argument("--memory", action="store_true", help="also measure memory")
    parser.add_argument("--peak", help=argparse.SUPPRESS)


def run(given: argparse.Namespace) -> Iterator[Table]:
    if given.peak:
        print(json.dumps(peak(given, given.peak)))
        return
    names = given.methods.split(",")
    if unknown := sorted(set(names) - set(METHODS)):
        raise SystemExit(f"there is no method {', '.join(unknown)}; there are {', '.join(METHODS)}")
    for name in names:
        steps: dict[str, Callable[[], Any]] = {}
        if given.reference is not None and name in REFERENCES:
            steps["reference"] = step_of(given, f"{name}-reference")
        steps["fewstep"] = step_of(given, name)
        title = f"A step of {name}, {given.network}, batch {given.batch}, {networks.precision(given)}"
        operations = flops(steps["fewstep"])
        yield compared(title, steps, given.repeats, images=given.batch, operations=operations)
        if given.reference is not None and name in AGREEMENTS:
            yield AGREEMENTS[name](given)
        if given.memory:
            yield Table(f"Memory of a step of {name}", list(memories(given, name, list(steps))))


def step_of(given: argparse.Namespace, name: str) -> Callable[[], object]:
    """A step of a method of ours, or of NAME-reference of theirs."""
    teacher = networks.denoiser(given)
    kind, _, theirs = name.rpartition("-reference")[0] or name, None, name.endswith("-reference")
    if not theirs:
        method = METHODS[kind](teacher)
        if given.recompute:
            recompute_blocks(method, "light" if given.recompute == "light" else int(given.recompute))
        return networks.trainer(method, teacher, given.batch).step
    batch = networks.Noise(teacher).batch(0, given.batch)
    images = batch.image.to(device())
    label = None if batch.label is None else batch.label.to(device())
    if kind == "gdd-vgg":
        generator = generator_of(teacher, 80.0, 0.002)
        network = networks.theirs(given.reference, generator, precondition="GDDPrecond")
        return reference.gdd_step(given.reference, network, images, label)
    network = networks.theirs(given.reference, teacher)
    if kind == "sid":
        return reference.sid_step(given.reference, network, images)
    if kind == "ncvsd":
        return reference.ncvsd_step(given.reference, network, images, label)
    judge = networks.theirs(given.reference, teacher, precondition="EDMPrecond_EncoderDecoder")
    return reference.sida_step(given.reference, network, judge, images)


def agreement_of_gdd(given: argparse.Namespace) -> Table:
    """GDD's images and logits, ours and theirs, with the same weights in float32; differences in deviations of ours."""
    teacher = networks.denoiser(given)
    teacher.dtype = torch.float32
    method = gdd(teacher).to(device()).eval()
    network = networks.theirs(given.reference, method.generator, precondition="GDDPrecond")
    features, judge = (part.to(device()) for part in reference.gdd_judge(given.reference))
    reference.same_judge(features, judge, method.discriminator)
    sigma = torch.full((given.batch,), method.sigma_init, device=device())
    with torch.no_grad():
        x = method.sigma_init * torch.randn(given.batch, *teacher.shape, device=device())
        image = method.generator(x, sigma)
        answers = {"image": (network(x, sigma, force_fp32=True), image)}
        rows = judge(features(image), None)  # of the first feature network for each image, then of the second
        logits = (torch.stack(rows[: given.batch]), torch.stack(rows[given.batch :]))
        for backbone, theirs, mine in zip((VGG, EFFICIENTNET), logits, method.discriminator(image), strict=True):
            answers[f"logits, {backbone.name}"] = (theirs, mine)
    gaps = {name: ((theirs - mine).abs().max() / mine.std()).item() for name, (theirs, mine) in answers.items()}
    return Table("Answers of the same weights in float32", [{"": k, "largest difference": v} for k, v in gaps.items()])


def agreement_of_ncvsd(given: argparse.Namespace) -> Table:
    """NCVSD's losses, ours and theirs, with the same weights and draws in float32, on the CPU as their draws differ elsewhere."""
    teacher = networks.denoiser(given).cpu()
    teacher.dtype = torch.float32
    observed = reference.module(given.reference, "training.training_loop").UniformNoiseSampler()
    method = NCVSD(teacher, observed=lambda x: observed(x).flatten())  # as our grid is numbered from the other end
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.rand_like(p))  # no gain and no share of the observation is 0
    network = networks.theirs(given.reference, method.teacher).cpu()
    players = reference.ncvsd_players(given.reference, network)
    for name, player in players.items():
        player.eval().load_state_dict(upstream_state_dict(getattr(method, name)))
    batch = networks.Noise(teacher).batch(0, given.batch)
    losses = reference.ncvsd_losses(given.reference, network, players, batch.image, batch.label)
    ours = {phase.player: phase.loss for phase in method.phases}
    rows: list[dict[str, Any]] = []
    for name, loss in losses.items():
        torch.manual_seed(0)
        theirs = loss().item()
        torch.manual_seed(0)
        mine = ours[name](batch)[0].mean().item()
        rows.append({"": name, "reference": theirs, "fewstep": mine, "relative difference": abs(mine / theirs - 1)})
    return Table("Losses of the same weights and draws in float32", rows)


AGREEMENTS = {"gdd-vgg": agreement_of_gdd, "ncvsd": agreement_of_ncvsd}


def memories(given: argparse.Namespace, name: str, kinds: list[str]) -> Iterator[dict[str, Any]]:
    first: float | None = None
    for kind in kinds:
        label = f"{name}-reference" if kind == "reference" else name
        options = ["--batch", str(given.batch), "--network", given.network, "--dtype", given.dtype, "--peak", label]
        options += ["--channels", str(given.channels)] if given.channels else []
        options += ["--recompute", given.recompute] if given.recompute else []
        options += ["--reference", str(given.reference)] if given.reference else []
        loaded, most = in_fresh_process("distillation", *options)
        first = first or most
        yield {"": kind, "networks, MiB": loaded, "peak, MiB": most, "of the first": most / first}


def peak(given: argparse.Namespace, name: str) -> tuple[float, float]:
    """MiB before the second step, when optimizers have their moments, and at its peak."""
    step = step_of(given, name)
    step()
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
        step()
        return before, torch.cuda.max_memory_allocated() / 2**20
    forget_peak()
    before = resident("VmRSS")
    step()
    return before, resident("VmHWM")

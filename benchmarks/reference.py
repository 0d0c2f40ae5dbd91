"""The reference implementations, out of a checkout that the user names; one in a process, as their packages share names.

EDM (github.com/NVlabs/edm) and SiD (github.com/mingyuanzhou/SiD, branch `sida`) have the same layout. What they import
(requests, click, psutil, tqdm, scipy) must be installed beside PyTorch. Networks, losses and samplers are theirs, called from
the checkout; the steps do what their loops do with them. float16 on GPUs and float32 on CPUs, as they have it.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.nets.adm import ADMConfig
from fewstep.nets.song import SongConfig


def module(checkout: Path, name: str) -> ModuleType:
    """A module of the checkout."""
    if not (checkout / f"{name.replace('.', '/')}.py").is_file():
        raise SystemExit(f"{checkout} has no module {name}; give the checkout, and the branch, that has it")
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return import_module(name)


def network(checkout: Path, config: SongConfig | ADMConfig, *, discriminates: bool = False) -> nn.Module:
    """EDM's network under its preconditioning, or SiDA's, whose encoder gives logits."""
    options: dict[str, Any] = dataclasses.asdict(config)
    resolution, channels, classes = (options.pop(k) for k in ("img_resolution", "in_channels", "label_dim"))
    del options["out_channels"]
    kind = "SongUNet" if isinstance(config, SongConfig) else "DhariwalUNet"
    where, what, suffix = "training.networks", "EDMPrecond", ""
    if discriminates:
        where, what, suffix = "sida_training.sida_networks", "EDMPrecond_EncoderDecoder", "_EncoderDecoder"
    build = getattr(module(checkout, where), what)
    half = torch.cuda.is_available()
    return build(resolution, channels, classes, use_fp16=half, model_type=kind + suffix, **options)


def mended(network: nn.Module) -> None:
    for p in network.parameters():
        if p.grad is not None:
            torch.nan_to_num(p.grad, nan=0, posinf=1e5, neginf=-1e5, out=p.grad)


@torch.no_grad()
def averaged(average: nn.Module, network: nn.Module, beta: float = 0.999) -> None:
    for mine, theirs in zip(average.parameters(), network.parameters(), strict=True):
        mine.copy_(theirs.detach().lerp(mine, beta))


def moving(network: nn.Module, *, moves: bool) -> None:
    network.train(moves).requires_grad_(moves)


def adam(params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-5)


def teacher_step(checkout: Path, network: nn.Module, images: Tensor) -> Callable[[], None]:
    """A training step of EDM without augmentation."""
    loss = module(checkout, "training.loss").EDMLoss()
    network = network.train().requires_grad_(True)
    average, optimizer = copy.deepcopy(network).eval().requires_grad_(False), adam(network.parameters())

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(net=network, images=images).sum().mul(1 / len(images)).backward()
        mended(network)
        optimizer.step()
        averaged(average, network)

    return step


def sid_step(checkout: Path, teacher: nn.Module, images: Tensor) -> Callable[[], None]:
    """A step of SiD: its fake score, then its generator."""
    loss = module(checkout, "training.sid_loss").SID_EDMLoss()
    teacher.eval().requires_grad_(False)
    fake, generator = copy.deepcopy(teacher), copy.deepcopy(teacher)
    average = copy.deepcopy(teacher)
    fakes, makes = adam(fake.parameters()), adam(generator.parameters())
    sigma = torch.full((len(images), 1, 1, 1), 2.5, device=images.device)
    augment = torch.zeros(len(images), 9, device=images.device)

    def made() -> Tensor:
        return generator(2.5 * torch.randn_like(images), sigma, None, augment_labels=augment)

    def step() -> None:
        moving(fake, moves=True)
        fakes.zero_grad(set_to_none=True)
        loss(fake_score=fake, images=made()).sum().mul(1 / len(images)).backward()
        moving(fake, moves=False)
        mended(fake)
        fakes.step()
        moving(generator, moves=True)
        makes.zero_grad(set_to_none=True)
        found = loss.generator_loss(true_score=teacher, fake_score=fake, images=made(), alpha=1.2)
        found.sum().mul(100 / len(images)).backward()
        moving(generator, moves=False)
        mended(generator)
        makes.step()
        averaged(average, generator)

    return step


def sida_step(checkout: Path, teacher: nn.Module, judge: nn.Module, images: Tensor) -> Callable[[], None]:
    """A step of SiDA after its warm-ups: its fake score, which discriminates, then its generator."""
    loss = module(checkout, "sida_training.sida_loss").SIDA_EDMLoss()
    teacher.eval().requires_grad_(False)
    generator, average = copy.deepcopy(teacher), copy.deepcopy(teacher)
    fakes, makes = adam(judge.parameters()), adam(generator.parameters())
    sigma = torch.full((len(images), 1, 1, 1), 2.5, device=images.device)
    augment = torch.zeros(len(images), 9, device=images.device)
    pixels = images[0].numel()

    def made() -> Tensor:
        return generator(2.5 * torch.randn_like(images), sigma, None, augment_labels=augment)

    def step() -> None:
        moving(judge, moves=True)
        fakes.zero_grad(set_to_none=True)
        with torch.no_grad():
            x0 = made()
        denoising, game = loss.fakescore_discriminator_share_encoder_loss(
            fake_score=judge, images=x0, real_images=images
        )
        (denoising.sum().mul(1 / len(images)) + game.sum().mul(1 / len(images))).backward()
        moving(judge, moves=False)
        mended(judge)
        torch.nn.utils.clip_grad_value_(judge.parameters(), 1)
        fakes.step()
        fakes.zero_grad(set_to_none=True)
        moving(generator, moves=True)
        sid, gan = loss.generator_share_encoder_loss(true_score=teacher, fake_score=judge, images=made(), alpha=1.0)
        gan = gan.mean(dim=[1, 2, 3], keepdim=True) * pixels
        (0.5 * sid.sum().mul(100 / len(images)) + 0.5 * gan.sum().mul(0.01 / len(images))).backward()
        moving(generator, moves=False)
        mended(generator)
        makes.step()
        makes.zero_grad(set_to_none=True)
        averaged(average, generator)

    return step

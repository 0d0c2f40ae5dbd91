"""The reference implementations, out of a checkout that the user names; one in a process, as their packages share names.

EDM (github.com/NVlabs/edm), SiD (github.com/mingyuanzhou/SiD, branch `sida`), GDD (github.com/Zyriix/GDD) and NCVSD
(github.com/xypeng9903/ncvsd) have the same layout. What they import must be installed beside PyTorch: requests, click, psutil,
tqdm, scipy; for NCVSD also torchvision and tensorboard, and for its PnP-GD piq, prettytable, wandb and pyyaml; for GDD
torchvision, timm, ftfy, regex and setuptools before 80. Networks, losses and samplers are theirs, called from the checkout; the
steps do what their loops do with them. float16 on GPUs, bfloat16 for GDD, and float32 on CPUs, as they have it.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from fewstep.nets.adm import ADMConfig
from fewstep.nets.discriminators import SpectralConv2d
from fewstep.nets.edm2 import EDM2Config
from fewstep.nets.song import SongConfig


def module(checkout: Path, name: str) -> ModuleType:
    """A module of the checkout."""
    if not (checkout / f"{name.replace('.', '/')}.py").is_file():
        raise SystemExit(f"{checkout} has no module {name}; give the checkout, and the branch, that has it")
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise SystemExit(f"{checkout} imports {error.name}, which is missing; install it beside PyTorch") from error


def network(
    checkout: Path, config: SongConfig | ADMConfig | EDM2Config, *, precondition: str = "EDMPrecond"
) -> nn.Module:
    """EDM's or EDM2's network under its preconditioning, GDD's, or SiDA's, whose encoder gives logits."""
    options: dict[str, Any] = dataclasses.asdict(config)
    half = torch.cuda.is_available()
    if isinstance(config, EDM2Config):
        return module(checkout, "training.networks_edm2").Precond(use_fp16=half, **options)
    resolution, channels, classes = (options.pop(k) for k in ("img_resolution", "in_channels", "label_dim"))
    del options["out_channels"]
    kind = "SongUNet" if isinstance(config, SongConfig) else "DhariwalUNet"
    _, suffix, _ = precondition.partition("_EncoderDecoder")
    where = "sida_training.sida_networks" if suffix else "training.networks"
    build = getattr(module(checkout, where), precondition)
    return build(resolution, channels, classes, use_fp16=half, model_type=kind + suffix, **options)


def mended(network: nn.Module, bound: float = 1e5) -> None:
    for p in network.parameters():
        if p.grad is not None:
            torch.nan_to_num(p.grad, nan=0, posinf=bound, neginf=-bound, out=p.grad)


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


@contextmanager
def untrained_features() -> Iterator[None]:
    """Networks of timm, and torchvision's VGG, with new weights in the place of a download."""
    timm, zoo = import_module("timm"), import_module("torchvision.models")
    create, vgg = timm.create_model, zoo.vgg16_bn

    def made(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
        model = create(name, **options)
        if not options:
            model.act1 = nn.Identity()  # which GDD asks for and newer versions of timm have within bn1
        return model

    with patch.object(timm, "create_model", made), patch.object(zoo, "vgg16_bn", lambda pretrained: vgg()):
        yield


def gdd_judge(checkout: Path) -> tuple[Any, Any]:
    """The two feature networks of GDD's runs on CIFAR-10, untrained, and the heads that judge what they see."""
    parts = module(checkout, "pg_modules.discriminator")
    options = {"cout": 64, "expand": True, "proj_type": 2, "num_discs": 4, "im_res": 256}
    common = {"backbones": ["vgg16_bn", "tf_efficientnet_lite0"], "diffaug": False, "backbone_kwargs": options}
    with untrained_features():
        features = parts.ProjectedFeatureOnly(**common).requires_grad_(False).train()
    seen = features.feature_networks.values()
    channels, resolutions = [each.CHANNELS for each in seen], [each.RESOLUTIONS for each in seen]
    return features, parts.ProjectedDiscriminatorOnly(channels=channels, resolutions=resolutions, **common).train()


@torch.no_grad()
def same_judge(features: Any, judge: Any, ours: Any) -> None:
    """Give GDD's discriminator the weights of a `ProjectedDiscriminator`, whose layers come in the same order, and stop its
    power iterations.
    """
    pairs: list[tuple[Any, Any]] = []
    seen = features.feature_networks.values()
    for network, mine, projection in zip(seen, ours.networks, ours.projections, strict=True):
        theirs = network.pretrained
        pairs += zip(theirs.parameters(), mine.net.parameters(), strict=True)
        pairs += zip(theirs.buffers(), mine.net.buffers(), strict=True)
        for kind, layers in (("ccm", projection.across), ("csm", projection.over)):
            for i, layer in enumerate(layers):
                theirs = getattr(network.scratch, f"layer{i}_{kind}")
                pairs += zip(theirs.parameters(), layer.buffers(), strict=True)
    convolutions = (each for each in judge.modules() if isinstance(each, nn.Conv2d))
    spectral = (each for each in ours.heads.modules() if isinstance(each, SpectralConv2d))
    for theirs, mine in zip(convolutions, spectral, strict=True):
        theirs.eval()
        pairs += [(theirs.weight_orig, mine.weight), (theirs.weight_u, mine.u), (theirs.weight_v, mine.v)]
        if mine.bias is not None:
            pairs.append((theirs.bias, mine.bias))
    for theirs, mine in pairs:
        theirs.copy_(mine)


def gdd_step(checkout: Path, generator: Any, images: Tensor, label: Tensor | None) -> Callable[[], None]:
    """A step of GDD: its generator, its discriminator, and the penalty where it is due."""
    features, judge = (part.to(images.device) for part in gdd_judge(checkout))
    generator.train().requires_grad_(True)
    classes = None if label is None else nn.functional.one_hot(label, generator.label_dim).float()
    average = copy.deepcopy(generator)
    loss = module(checkout, "training.loss").GDDLoss(
        generator, judge, lpips_net=None, feature_net=features, score_net=None, r1_type="r1", r1_gamma=1e-4
    )
    makes, judges = adam(generator.parameters()), adam(judge.parameters())
    every, steps = 16, count()

    def step() -> None:
        moves = [(0, generator, makes, 1), (1, judge, judges, 1)]
        k = next(steps)
        if k and k % every == 0:
            moves.append((2, judge, judges, every))
        for stage, player, optimizer, gain in moves:
            optimizer.zero_grad(set_to_none=True)
            loss.accumulate_gradients(images, classes, stage=stage, gain=gain)
            mended(player)
            optimizer.step()
        averaged(average, generator)

    return step


def ncvsd_players(checkout: Path, teacher: Any) -> dict[str, Any]:
    """The players of NCVSD that move, in the order in which they do, made of a network of EDM2."""
    nets = module(checkout, "training.networks_edm2")
    options = {**teacher.init_kwargs, "dropout": 0.0}
    kinds = (nets.PrecondCondition, nets.DiscriminatorCondition, nets.PrecondCondition)
    fake, judge, drawn = (kind(**options).init_from_pretrained(teacher) for kind in kinds)
    return {"fake_score": fake, "discriminator": judge, "generator": nets.GenerativeDenoiser(drawn)}


def ncvsd_losses(
    checkout: Path, teacher: Any, players: Mapping[str, Any], images: Tensor, label: Tensor | None
) -> dict[str, Callable[[], Tensor]]:
    """What each player of NCVSD learns from, with the adversarial term, as of preset `img64`: a mean over images."""
    loop = module(checkout, "training.training_loop")
    levels, observed = loop.LogNormalNoiseSampler(-0.8, 1.6), loop.UniformNoiseSampler()
    classes = None if label is None else nn.functional.one_hot(label, teacher.label_dim).float()
    score, judge, draw = (players[name] for name in ("fake_score", "discriminator", "generator"))
    pixels = images[0].numel()

    def observation() -> dict[str, Any]:
        sigma = observed(images)
        return {"y": images + sigma * torch.randn_like(images), "sigma": sigma, "labels": classes}

    def fake_score() -> Tensor:
        return loop.DSMLoss(levels)(generator=draw, score_model=score, **observation()).sum() / len(images)

    def discriminator() -> Tensor:
        terms = loop.DiscriminatorLoss(levels)(generator=draw, discriminator=judge, images=images, **observation())
        return pixels * torch.cat(terms).sum() / 2 / len(images)

    def generator() -> Tensor:
        vsd, gan = loop.NCVSDLoss(levels)(
            generator=draw, net=teacher, score_model=score, discriminator=judge, **observation()
        )
        return (vsd.sum() + pixels * gan.sum()) / len(images)

    return {"fake_score": fake_score, "discriminator": discriminator, "generator": generator}


def ncvsd_step(checkout: Path, teacher: nn.Module, images: Tensor, label: Tensor | None) -> Callable[[], None]:
    """A step of NCVSD after its warm-up: its fake score, its discriminator, then its generator."""
    teacher.eval().requires_grad_(False)
    players = {name: player.to(images.device) for name, player in ncvsd_players(checkout, teacher).items()}
    losses = ncvsd_losses(checkout, teacher, players, images, label)
    optimizers = {name: adam(player.parameters()) for name, player in players.items()}
    average = copy.deepcopy(players["generator"])
    for player in players.values():
        moving(player, moves=False)

    def step() -> None:
        for name, player in players.items():
            moving(player, moves=True)
            optimizers[name].zero_grad(set_to_none=True)
            losses[name]().backward()
            moving(player, moves=False)
            mended(player, bound=0)
            optimizers[name].step()
        averaged(average, players["generator"])

    return step


def ncvsd_student(checkout: Path, config: EDM2Config) -> Any:
    """NCVSD's generator with new weights."""
    nets = module(checkout, "training.networks_edm2")
    return nets.GenerativeDenoiser(
        nets.PrecondCondition(use_fp16=torch.cuda.is_available(), **dataclasses.asdict(config))
    )


def deblur(
    checkout: Path, student: nn.Module, y: Tensor, *, evaluations: int, beta: float, ema: tuple[float, float]
) -> Callable[[], Tensor]:
    """PnP-GD as NCVSD has it: images behind `y`, which its Gaussian blur of deviation 3 made of them."""
    found = module(checkout, "posterior_sample")
    blur = module(checkout, "tasks.gaussian_blur").GaussialBlurCircular(61, 3.0, y.shape[1], y.shape[2], y.device)
    sigmas = found.karras_sigmas(evaluations + 1, y.device, rho=2.0)
    below, decay = ema

    def draw(x0: Tensor, sigma: Tensor, bar: None) -> Tensor:
        return blur.proximal_generator(x0, y, (beta / 2) ** 0.5, sigma)

    def solved() -> Tensor:
        return found.pnp_gd_sampler(student, torch.randn_like(y), sigmas, draw, ema_sigma=below, ema_decay=decay)

    return solved

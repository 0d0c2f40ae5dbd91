"""GDD and GDD-I (Zheng & Yang, 2024, arXiv 2405.20750): a teacher becomes a one-step generator by a GAN loss alone.

What is distilled is the initialisation: the generator starts as the teacher at its highest noise level, and a projected
discriminator compares its images with data. No score is involved. GDD-I ("innate") freezes most convolutions, so that
what is learnt is how the teacher's layers are used.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Batch, Loss, Method, Phase
from fewstep.core.precondition import EDM, Boundary
from fewstep.distill.adversarial import as_fake, as_real, discriminator_stats
from fewstep.distill.players import check_teacher, one_step
from fewstep.nets.blocks import UNetBlock
from fewstep.nets.features import MIN_SIZE
from fewstep.nets.layers import Frozen
from fewstep.runtime.precision import master

Role = Literal["conv0", "conv1", "proj", "qkv", "skip"]
"""What a layer does in its U-Net block: the two convolutions, attention's output and input, the shortcut."""

INNATE: tuple[Role, ...] = ("conv0", "conv1", "proj")
"""What GDD-I freezes: 84 % of NCSN++'s parameters, 79 % of ADM's."""


def freeze_layers(net: nn.Module, roles: tuple[Role, ...]) -> int:
    """Take the layers of these roles out of training, in every U-Net block; returns how many parameters they have.

    Input and output convolutions, the residual encoder's, norms and embeddings belong to no role and stay trainable.
    """
    layers = [getattr(block, role, None) for block in net.modules() if isinstance(block, UNetBlock) for role in roles]
    fixed = [p for layer in layers if layer is not None for p in layer.parameters()]
    if roles and not fixed:
        raise ValueError(
            f"freezing knows the U-Net blocks of DDPM++, NCSN++ and ADM; {type(net).__name__} has none of them with a "
            f"layer {' or '.join(roles)}. Distil it without: freeze=()"
        )
    for p in fixed:
        p.requires_grad_(False)
    return sum(p.numel() for p in fixed)


def check_start(teacher: Denoiser) -> None:
    if not isinstance(teacher.precondition, EDM):
        raise ValueError(
            f"GDD starts from a teacher with EDM's preconditioning; this one has {type(teacher.precondition).__name__}'s, "
            "under which the network does not predict an image; take one that was trained with --precond edm"
        )


def generator_of(teacher: Denoiser, sigma: float, eps: float) -> Denoiser:
    """Return a generator to train that starts as the teacher and is the identity at the noise level `eps`.

    It has neither dropout nor augmentation labels.

    Args:
        teacher: a denoiser of all noise levels under EDM's preconditioning.
        sigma: the noise level from which it makes images in one step.
        eps: the noise level at which it returns its input.

    Returns:
        The generator.

    Raises:
        ValueError: the teacher has another preconditioning.

    Example:
        >>> generator = fs.distill.generator_of(teacher, 80.0, 0.002)
    """
    check_start(teacher)
    config = teacher.net.config
    off = {name: 0 for name in ("dropout", "label_dropout", "augment_dim") if getattr(config, name, 0)}
    net: Any = type(teacher.net)(dataclasses.replace(config, **off))
    known = net.state_dict().keys()
    net.load_state_dict({k: v.clone() for k, v in teacher.net.state_dict().items() if k in known}, assign=True)
    master(net)
    boundary = Boundary(teacher.sigma_data, eps, teacher.sigma_min, teacher.sigma_max)
    shared = {"dtype": teacher.dtype, "codec": teacher.codec, "class_names": teacher.class_names}
    return Denoiser(net, precondition=boundary, levels=(sigma,), **shared)


class EncoderFeatures(Frozen):
    """The features that a teacher's encoder sees in a clean image, as if it had the noise level `sigma`.

    The last skip connection of each resolution, from the finest down to 4 pixels a side; with the image's class.
    """

    def __init__(self, teacher: Denoiser, sigma: float) -> None:
        super().__init__()
        if sigma <= 0:
            raise ValueError(f"the encoder of a denoiser takes noise levels above 0; got sigma={sigma:g}")
        self.name, self.sigma = f"encoder of the teacher at sigma {sigma:g}", sigma
        self.denoiser = copy.deepcopy(teacher).requires_grad_(False).eval()
        device = next(self.denoiser.parameters()).device
        label = torch.zeros(1, dtype=torch.long, device=device) if teacher.num_classes else None
        with torch.no_grad():
            found = self(torch.zeros(1, *teacher.shape, device=device), label)
        self.channels = tuple(f.shape[1] for f in found)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Sequence[Tensor]:
        skips = self.denoiser.encode(x, self.sigma, label if self.denoiser.num_classes else None).features.skips
        levels = {skip.shape[-1]: skip.to(x.dtype) for skip in skips}
        return [levels[side] for side in sorted(levels, reverse=True) if side >= MIN_SIZE]


class GDD(Method):
    """Distillation by a GAN loss alone (Zheng & Yang, 2024); with `freeze=INNATE` it is GDD-I.

    Players: the generator, which starts as the teacher, and the discriminator. With its logits s of each feature network, and
    x = G(sigma_init z; sigma_init),

    generator:      sum over feature networks of mean_k softplus(-s_k(x)),
    discriminator:  sum over feature networks of mean_k softplus(s_k(x)) + mean_k softplus(-s_k(image)),
    R1, every `r1_every` steps:  r1_every r1 / 2 |d sum s(image) / d image|^2.

    Args:
        teacher: a denoiser of all noise levels under EDM's preconditioning.
        discriminator: `(x, label) -> [logits (B, K), ...]`, one tensor for each feature network; normally a
            `nets.discriminators.ProjectedDiscriminator`.
        freeze: roles of the layers that keep the teacher's weights.
        sigma_init: the noise level from which the generator makes images.
        eps: the noise level at which the generator is the identity.
        r1: gamma of the penalty.
        r1_every: steps between two penalties.
        loss_scale: factor of the adversarial losses. The papers sum over the images of a GPU; Adam is nearly invariant to it.

    Raises:
        ValueError: the teacher is a generator or has another preconditioning, the discriminator has other classes, or no
            layer has one of the roles.

    Example:
        >>> from fewstep.distill.gdd import EncoderFeatures
        >>> features = EncoderFeatures(teacher, 0.2)
        >>> judge = fs.nets.ProjectedDiscriminator([features], num_classes=teacher.num_classes)
        >>> method = fs.distill.GDD(teacher, judge, freeze=fs.distill.INNATE)
    """

    product = "generator"
    warm_started = ("generator",)

    def __init__(
        self,
        teacher: Denoiser,
        discriminator: nn.Module,
        *,
        freeze: tuple[Role, ...] = (),
        sigma_init: float = 80.0,
        eps: float = 0.002,
        r1: float = 1e-4,
        r1_every: int = 16,
        loss_scale: float = 1.0,
    ) -> None:
        super().__init__()
        check_teacher(teacher)
        classes = getattr(discriminator, "num_classes", 0)
        if classes not in (0, teacher.num_classes):
            raise ValueError(
                f"the discriminator has {classes} classes, the teacher {teacher.num_classes or 'none'}; build it with the "
                "teacher's number, or with none"
            )
        self.generator = generator_of(teacher, sigma_init, eps)
        self.frozen = freeze_layers(self.generator.net, freeze)
        self.freeze, self.sigma_init = freeze, sigma_init
        self.discriminator = discriminator
        self.sees = getattr(discriminator, "sees", type(discriminator).__name__)
        self.r1, self.r1_every, self.loss_scale = r1, r1_every, loss_scale
        self.phases = (
            Phase("generator", self.generator_loss),
            Phase("discriminator", self.discriminator_loss),
            Phase(
                "discriminator", self.r1_penalty, every=r1_every, start=1
            ),  # not before the discriminator trained once
        )

    def generator_loss(self, batch: Batch) -> Loss:
        """Return the generator's adversarial loss (B,) and its metrics."""
        logits = self.discriminator(one_step(self.generator, batch, self.sigma_init), batch.label)
        return self.loss_scale * total(as_real, logits), {}

    def discriminator_loss(self, batch: Batch) -> Loss:
        """Return the discriminator's adversarial loss (B,) and its metrics."""
        with torch.no_grad():
            x0 = one_step(self.generator, batch, self.sigma_init)
        fake, real = self.discriminator(x0, batch.label), self.discriminator(batch.image, batch.label)
        loss = self.loss_scale * (total(as_fake, fake) + total(as_real, real))
        return loss, discriminator_stats(torch.cat(real, dim=1), torch.cat(fake, dim=1))

    def r1_penalty(self, batch: Batch) -> Loss:
        """Return every gamma / 2 |d(sum of all logits) / d image|^2 per image (Mescheder et al., 2018), without augmentation."""
        image = batch.image.detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention cannot be differentiated twice
            logits = self.discriminator(image, batch.label)
        [slope] = torch.autograd.grad(torch.cat(logits, dim=1).sum(), image, create_graph=True)
        return self.r1_every * self.r1 / 2 * slope.square().flatten(1).sum(1), {}

    def after_step(self, logs: dict[str, Tensor], images: int) -> None:
        """Update the spectral norms of the heads."""
        if hasattr(self.discriminator, "after_step"):
            cast(Any, self.discriminator).after_step()


def total(term: Callable[[Tensor], Tensor], logits: list[Tensor]) -> Tensor:
    """A term (B,) of the game, summed over feature networks; within each it is a mean over its logits."""
    return torch.stack([term(each) for each in logits]).sum(0)

"""Denoisers that take an observation y = x0 + sigma_y eps: the conditional mean, and draws of the posterior.

For NCVSD (Peng et al., 2025, arXiv 2506.09416). The distribution p(x0 | y) is the denoising posterior. What
`ConditionalDenoiser` estimates with a network follows from a perfect unconditional denoiser D:
E[x0 | x, y] = D(*combine_observations(y, sigma_y, x, sigma)).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.core.denoiser import DEFAULT_SIGMA_MAX, Denoiser
from fewstep.core.guidance import Guidance
from fewstep.core.inputs import check_images
from fewstep.core.noise import GRID, Denoise, Noise, combine_observations, expand, indexed_sigmas
from fewstep.core.plan import Plan, Sampler, closed


class Observation(NamedTuple):
    """A noisy image that is known of x0.

    Args:
        y: the observation y = x0 + sigma_y eps (B, C, H, W).
        sigma: its noise level sigma_y: a number, () or (B,).
    """

    y: Tensor
    sigma: float | Tensor


def check_observation(y: Any, x: Tensor) -> None:
    """Raise ValueError unless the observation has the shape and device of `x`."""
    if not isinstance(y, Tensor) or y.shape != x.shape or y.device != x.device:
        found = f"{tuple(y.shape)} on {y.device}" if isinstance(y, Tensor) else repr(y)
        raise ValueError(
            f"the observation y must have the shape of x, {tuple(x.shape)}; got {found} (x is on {x.device})"
        )


def given_observation(
    denoiser: Denoiser,
    x: Tensor,
    sigma: float | Tensor,
    label: Tensor | None,
    augment: Tensor | None,
    given: Observation,
) -> Tensor:
    """Return the prediction of a `Controlled` network; its preconditioning is that of (x, sigma)."""
    check_observation(given.y, x)
    encoded = denoiser.encode(x, sigma, label, augment=augment)
    control = denoiser.features(denoiser.net.ctrl, *given, label)
    return denoiser.decode(encoded._replace(features=denoiser.net.merge(encoded.features, control)))


class ConditionalDenoiser(Denoiser):
    """An estimate D(x; sigma, y, sigma_y) of E[x0 | x, y]: a `Controlled` network under a preconditioning.

    Args:
        net: the network, usually a `Controlled` one.
        fused: whether the network sees, beside y, not x but `combine_observations(y, sigma_y, x, sigma)`, preconditioned for its
            level. Nothing is lost, as y and this give x. A network that is made from a denoiser then starts at E[x0 | x, y],
            where x0 has the distribution of that denoiser's data, and its error is scaled by what both leave unknown, not by x
            alone.
        **options: further arguments of `Denoiser`.
    """

    needs_observation = True

    def __init__(self, net: nn.Module, *, fused: bool = False, **options: Any) -> None:
        super().__init__(net, **options)
        self.fused = fused

    def forward(
        self,
        x: Tensor,
        sigma: float | Tensor,
        label: Tensor | None = None,
        *,
        augment: Tensor | None = None,
        given: Observation | None = None,
    ) -> Tensor:
        """Predict the clean image E[x0 | x, y].

        Args:
            x: noisy images (B, C, H, W).
            sigma: their noise level: a number, () or (B,).
            label: class indices (B,); None for no class.
            augment: augmentation labels (B, n); None for none.
            given: the observation; required.

        Returns:
            The predicted images (B, C, H, W).

        Raises:
            ValueError: there is no observation, or an argument has the wrong shape, type or device.
        """
        if given is None:
            raise ValueError("this denoiser needs an observation; call it with given=Observation(y, sigma_y)")
        if not torch.compiler.is_compiling():
            self.check(x, sigma, label)
            check_observation(given.y, x)
            expand(given.sigma, x)
            self.check_level(given.sigma, self.trained_sigma_max, "sigma_y")
        if self.fused:
            x, sigma = combine_observations(*given, x, sigma)
        return given_observation(self, x, sigma, label, augment, given)

    def plan(self, steps: int | None = None, **options: Any) -> Plan:
        """Raise ValueError: a fake score does not generate images."""
        raise ValueError("this model is a fake score of NCVSD, for training alone; it does not generate images")


class GenerativeDenoiser(Denoiser):
    """A draw G(y, sigma_y, z) of p(x0 | y = x0 + sigma_y eps) in one evaluation, for every noise level (NCVSD).

    A denoiser predicts the mean of all images that could be behind `y`. This one returns one of them, a different one for each
    z ~ N(0, I). A `Controlled` network sees the observation (y, sigma_y) and, at the level s = (1 + gamma) sigma_y, the noisier
    y + sqrt(s^2 - sigma_y^2) z.

    Called as `(y, sigma_y, label)` it draws z itself, by `noise`. With label and noise bound it is a denoiser for samplers and
    inverse solvers, each prediction of which is a sample. `draw` takes z.

    Args:
        net: the network, usually a `Controlled` one.
        gamma: how far the noise level is raised.
        sigma_init: the noise level of the observation without information, y = sigma_init eps, from which images are made.
        sigma_end: the lowest level of the grid on which other numbers of steps are spread, normally the lowest of training.
        levels: the noise levels of `samplers.posterior` that follow `sigma_init` when the model is sampled.
        means: number of mean images that the model keeps in `mean` (means, C, H, W): one for each class, or one for all; with 0
            sampling starts about 0, as in the paper.
        **options: further arguments of `Denoiser`.

    Raises:
        ValueError: `gamma` or a level is out of range, or there is another number of means.
    """

    draws = True
    mean: Tensor | None

    def __init__(
        self,
        net: nn.Module,
        *,
        gamma: float = 0.414,
        sigma_init: float = 80.0,
        sigma_end: float = 0.002,
        levels: tuple[float, ...] = (80.0,),
        means: int = 0,
        **options: Any,
    ) -> None:
        if not gamma > 0 or not sigma_init > sigma_end > 0 or not levels:
            raise ValueError(
                f"a generative denoiser needs gamma > 0, sigma_init > sigma_end > 0 and at least one level; got "
                f"gamma={gamma}, sigma_init={sigma_init}, sigma_end={sigma_end}, levels={levels}"
            )
        super().__init__(net, levels=levels, **options)
        if means not in (0, 1, self.num_classes):
            raise ValueError(
                f"there is one mean image, or one for each of {self.num_classes} classes; got means={means}"
            )
        self.gamma, self.sigma_init, self.sigma_end, self.means = gamma, sigma_init, sigma_end, means
        self.register_buffer("mean", torch.zeros(means, *self.shape) if means else None)

    def forward(
        self,
        x: Tensor,
        sigma: float | Tensor,
        label: Tensor | None = None,
        *,
        augment: Tensor | None = None,
        noise: Noise = torch.randn_like,
    ) -> Tensor:
        """Draw from p(x0 | x).

        Args:
            x: observations (B, C, H, W).
            sigma: their noise level: a number, () or (B,).
            label: class indices (B,); None for no class.
            augment: augmentation labels (B, n); None for none.
            noise: draws z.

        Returns:
            The draws (B, C, H, W).
        """
        return self.draw(x, sigma, noise(x), label, augment=augment)

    def draw(
        self,
        y: Tensor,
        sigma_y: float | Tensor,
        z: Tensor,
        label: Tensor | None = None,
        *,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Return the draw for a given z; deterministic.

        Args:
            y: observations (B, C, H, W).
            sigma_y: their noise level: a number, () or (B,).
            z: unit Gaussian noise (B, C, H, W).
            label: class indices (B,); None for no class.
            augment: augmentation labels (B, n); None for none.

        Returns:
            The draws (B, C, H, W).

        Raises:
            ValueError: an argument has the wrong shape, type or device.
        """
        if not torch.compiler.is_compiling():
            check_images(y, self.shape, next(self.net.parameters(), None))
            check_images(z, self.shape, y, "z")
            expand(sigma_y, y)
            self.check_level(sigma_y, max(self.sigma_init, DEFAULT_SIGMA_MAX))
        level = expand(sigma_y, y)
        raised = (1 + self.gamma) * level
        x = y + (raised**2 - level**2).sqrt() * z
        return given_observation(self, x, raised.flatten(), label, augment, Observation(y, sigma_y))

    def plan(
        self,
        steps: int | None = None,
        *,
        sampler: str | Sampler | None = None,
        levels: Sequence[float] | Tensor | None = None,
        ts: Sequence[int] | None = None,
        guidance: Guidance | None = None,
        **options: Any,
    ) -> Plan:
        """Return how this model makes images: by the sampler `posterior`, in any number of steps.

        Args:
            steps: number of steps: its own levels if they are as many, else spread over NCVSD's grid.
            sampler: posterior if None; multistep, or a function of the user's.
            levels: the noise levels themselves, largest first, that follow `sigma_init`.
            ts: NCVSD's noise levels by index, see `indexed_sigmas`.
            guidance: must be None, as there is no mean to guide.
            **options: options of the sampler.

        Returns:
            The sampler with its noise levels.

        Raises:
            ValueError: there is guidance, more than one of steps, levels and ts, or a sampler that needs a mean.
        """
        if guidance is not None:
            self.check_guidance(guidance)
        if sampler not in (None, "posterior"):
            if isinstance(sampler, str) and sampler != "multistep":
                raise ValueError(
                    f"{sampler} needs a model that predicts the mean, and this model draws samples; use posterior, "
                    "multistep, or leave the sampler out"
                )
            more = options if ts is None else {"ts": ts, **options}
            return super().plan(steps, sampler=sampler, levels=levels, **more)
        chosen = [name for name, value in (("steps", steps), ("levels", levels), ("ts", ts)) if value is not None]
        if options or len(chosen) > 1:
            raise ValueError(
                "this model draws from the posterior: it takes one of steps, levels and ts, and no option of other samplers; "
                f"got {', '.join(options or chosen)}"
            )
        if ts is not None:
            return Plan("posterior", indexed_sigmas(ts, sigma_init=self.sigma_init))
        if levels is None:
            levels = self.levels if steps in (None, len(self.levels or ())) else None
        return Plan(
            "posterior", self.spread(steps) if levels is None else closed([self.sigma_init, *closed(levels).tolist()])
        )

    def spread(self, steps: int | None) -> Tensor:
        """Return levels of `posterior` for any number of steps, equally spaced in the index: 0,10,20,30,39 for four steps.

        They end at the lowest level that the model has learned.
        """
        if steps is None or not 0 < steps < GRID:
            raise ValueError(f"a generative denoiser takes 1 to {GRID - 1} steps; got {steps}")
        indices = [*(GRID * k // steps for k in range(steps)), GRID - 1]
        return indexed_sigmas(indices, sigma_init=self.sigma_init, sigma_min=self.sigma_end)

    def bind(self, label: Tensor | None, noise: Noise) -> Denoise:
        """Return draws for images of these classes (B,), each from its own noise."""
        return partial(self, label=label, noise=noise)

    def sampler_options(self, label: Tensor | None) -> dict[str, Any]:
        """Return also the mean of all images, for samplers that start about it."""
        mean = self.centre(label)
        return super().sampler_options(label) | ({} if mean is None else {"mean": mean})

    def check_guidance(self, guidance: Guidance) -> None:
        """Raise ValueError: draws have no mean to guide."""
        raise ValueError(
            "guidance needs a model that predicts the mean, and this model draws samples; leave guidance out"
        )

    @property
    def trained_sigma_max(self) -> float:
        """The highest level that the network sees, which is raised."""
        return (1 + self.gamma) * max(self.sigma_init, DEFAULT_SIGMA_MAX)

    def centre(self, label: Tensor | None) -> Tensor | None:
        """Return the mean images (B, C, H, W) of classes (B,), or (1, C, H, W) without; None if the model has none."""
        if self.mean is None or label is None or self.means == 1:
            return self.mean if self.mean is None else self.mean.mean(0, keepdim=True)
        return self.mean[label]

    def log_variance(self, sigma: Tensor) -> Tensor:
        """Return the log-variance (B,) for observations at `sigma`, (B,) or (): the head sees the raised level."""
        return super().log_variance((1 + self.gamma) * sigma)

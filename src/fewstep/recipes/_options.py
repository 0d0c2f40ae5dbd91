"""Options that the recipes of a family share: written and explained once, and part of every recipe's signature."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, get_type_hints

Recipe = Callable[..., Any]
KEYWORDS = inspect.Parameter.VAR_KEYWORD


def extended(*families: Callable[..., None]) -> Callable[[Recipe], Recipe]:
    """Let a recipe that takes `**more` take the options of these functions, with their defaults and explanations.

    A family is a function of keywords whose docstring explains them under "Args:"; its body is never run. What a recipe
    names itself is left as it is there. Options arrive in `more`, defaults included.
    """

    def decorate(recipe: Recipe) -> Recipe:
        own = [p for p in inspect.signature(recipe).parameters.values() if p.kind is not KEYWORDS]
        names = {p.name for p in own}
        added = {
            name: (p, family)
            for family in families
            for name, p in inspect.signature(family).parameters.items()
            if name not in names
        }

        @functools.wraps(recipe)
        def whole(*args: Any, **options: Any) -> Any:
            return recipe(*args, **{name: p.default for name, (p, _) in added.items()} | options)

        parameters = [*own, *(p for p, _ in added.values())]
        signature = inspect.Signature(parameters, return_annotation=inspect.signature(recipe).return_annotation)
        whole.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue] - a dynamic signature
        hints = {name: get_type_hints(family)[name] for name, (_, family) in added.items()}
        kept = {k: v for k, v in recipe.__annotations__.items() if k in names or k == "return"}
        whole.__annotations__ = kept | hints
        lines = [entry for family in families for name, entry in entries(family).items() if name in added]
        whole.__doc__ = f"{(recipe.__doc__ or '').rstrip()}\n{''.join(lines)}    "
        return whole

    return decorate


def entries(family: Callable[..., None]) -> dict[str, str]:
    """The explanations of a family's options, as they stand in the docstring of a function, by name."""
    _, _, text = inspect.cleandoc(family.__doc__ or "").partition("Args:\n")
    result: dict[str, str] = {}
    for line in text.splitlines(keepends=True):
        if not line.startswith("     "):
            name = line.split(":", 1)[0].strip()
            result[name] = ""
        result[name] += f"    {line.rstrip()}\n"
    return result


def stable_target(*, stf: Literal["matched", "published"] | None = None, references: int = 4096) -> None:
    """The stable target field.

    Args:
        stf: train to the stable target field (Xu et al., 2023) instead of the clean image. matched: references of the same
            class and augmentation count, without bias; published: all of them, as in the authors' code (their --stf=1).
        references: images whose posterior mean is that target, those of the micro-batch included (their --rbatch).
    """


def edm(
    *,
    precond: Literal["edm", "vp", "ve"] = "edm",
    cbase: int | None = None,
    cres: str | None = None,
    xflip: bool = False,
    ema: int | None = None,
) -> None:
    """What EDM's training takes beside the rows of its table, under its names.

    Args:
        precond: preconditioning, noise levels and weights of EDM, or those of the VP or VE SDE for comparison.
        cbase: channels of the network at its finest resolution; those of the architecture if left out.
        cres: multiples of them at each resolution, such as 1,2,2,2; those of the data set if left out.
        xflip: mirror each image left to right with probability 1/2, without telling the network.
        ema: half-life of the average of weights, in images (EDM counts millions); that of the data set if left out.
    """


def edm2(
    *,
    channels: int | None = None,
    dropout: float | None = None,
    p_mean: float | None = None,
    p_std: float | None = None,
    decay: float | None = None,
) -> None:
    """What EDM2's training takes beside its presets, under its names.

    Args:
        channels: of the network at its finest resolution; those of the size if left out.
        dropout: probability; that of the size if left out.
        p_mean: mean of the logarithm of the noise level; that of the data set if left out.
        p_std: its standard deviation; that of the data set if left out.
        decay: batches after which the learning rate falls; those of the data set if left out.
    """


def sid(
    *,
    glr: float | None = None,
    g_beta1: float | None = None,
    init_sigma: float = 2.5,
    tmax: float = 800,
    lsg: float | None = None,
    ema: int | None = None,
) -> None:
    """What SiD takes beside the rows of its scripts, under its names.

    Args:
        glr: learning rate of the generator; that of the fake score, lr, if left out.
        g_beta1: first moment of the generator's Adam; the paper's for the data set if left out.
        init_sigma: noise level from which the generator makes images.
        tmax: the scores are compared at the levels of the steps 0 to tmax of a thousand, 80 being the last.
        lsg: factor of the generator's SiD loss, to which Adam is nearly blind; the paper's if left out.
        ema: half-life of the average of weights, in images (SiD counts millions); that of the data set if left out.
    """


def sida(*, lsd: float | None = None, lsg_gan: float = 0.01) -> None:
    """What SiDA takes beside that.

    Args:
        lsd: weight of the discriminator in the fake score's loss; 1, for EDM2 100, if left out.
        lsg_gan: weight of the adversarial term in the generator's loss.
    """


def gdd(
    *,
    freeze: Literal[0, 1, 2, 3] | None = None,
    backbone: Literal["deit", "vgg", "lite"] | None = None,
    r1_gamma: float = 1e-4,
    ema: int | None = None,
) -> None:
    """What GDD takes beside the rows of its scripts, under its names.

    Args:
        freeze: what stays the teacher's in U-Net blocks: 0 nothing, 1 convolutions and attention's output, 2 attention's
            input, too, 3 the shortcuts, too; that of the method if left out.
        backbone: feature network beside EfficientNet-Lite0: deit (GDD's 0), vgg (its 1), or lite for none; the paper's for the
            data set if left out.
        r1_gamma: strength of the penalty on the discriminator's gradient at real images.
        ema: half-life of the average of weights, in images (GDD counts millions); that of the data set if left out.
    """

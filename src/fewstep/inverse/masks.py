"""Inpainting: operators that observe some of the pixels."""

# ruff: noqa: N802 - A, U, V are the names of the field

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.inverse.operator import Decomposed


def box_mask(height: int, width: int, share: float = 0.5) -> Tensor:
    """Return a mask with a centred box of missing pixels.

    Args:
        height: rows of the images.
        width: columns of the images.
        share: size of the box as a share of each side; NCVSD's is half.

    Returns:
        The mask (height, width): 0 in the box, 1 around it.

    Raises:
        ValueError: the share is not between 0 and 1.

    Example:
        >>> operator = fs.inverse.Inpainting(fs.inverse.box_mask(8, 8), (1, 8, 8))
    """
    if not 0 < share < 1:
        raise ValueError(f"the box takes a share of each side between 0 and 1; got {share}")
    mask = torch.ones(height, width)
    h, w = round(height * share), round(width * share)
    top, left = (height - h) // 2, (width - w) // 2
    mask[top : top + h, left : left + w] = 0
    return mask


def random_mask(height: int, width: int, missing: float = 0.7, seed: int = 0) -> Tensor:
    """Return a mask with missing pixels drawn at random.

    Args:
        height: rows of the images.
        width: columns of the images.
        missing: share of the pixels that is missing.
        seed: seed of the draw.

    Returns:
        The mask (height, width): 0 at missing pixels, 1 elsewhere.

    Raises:
        ValueError: the share is not between 0 and 1.

    Example:
        >>> operator = fs.inverse.Inpainting(fs.inverse.random_mask(8, 8, missing=0.7), (1, 8, 8))
    """
    if not 0 < missing < 1:
        raise ValueError(f"the share of missing pixels lies between 0 and 1; got {missing}")
    n = height * width
    mask = torch.ones(n)
    mask[torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: round(missing * n)]] = 0
    return mask.view(height, width)


class Inpainting(Decomposed):
    """Inpainting: y = mask x. The measurement has the image's shape; its values where the mask is 0 are ignored.

    Args:
        mask: non-negative weights (H, W) or (C, H, W); 0 is missing, 1 is observed as it is.
        shape: shape of the images (C, H, W).

    Raises:
        ValueError: the mask has another shape, negative or not finite values, or is zero everywhere.

    Example:
        >>> operator = fs.inverse.Inpainting(fs.inverse.box_mask(8, 8), (1, 8, 8))
        >>> y = operator(x0)
    """

    def __init__(self, mask: Tensor, shape: tuple[int, int, int]) -> None:
        super().__init__(shape)
        if mask.shape not in (shape[1:], shape):
            raise ValueError(
                f"a mask for images of shape {shape} has shape {shape[1:]} or {shape}; got {tuple(mask.shape)}"
            )
        if not mask.isfinite().all() or mask.min() < 0 or mask.max() == 0:
            raise ValueError("a mask must be finite, non-negative and not zero everywhere")
        self.keep_singular(mask.expand(shape).clone().float())

    def V(self, c: Tensor) -> Tensor:
        return c

    def V_adjoint(self, x: Tensor) -> Tensor:
        return x

    def U(self, c: Tensor) -> Tensor:
        return c

    def U_adjoint(self, y: Tensor) -> Tensor:
        return y

    def observed(self, y: Tensor) -> Tensor:
        return torch.where(self.s(y) > 0, y, 0.0)

    def view(self, y: Tensor) -> Tensor:
        """Return the measurement with grey where pixels are missing."""
        return self.observed(y)

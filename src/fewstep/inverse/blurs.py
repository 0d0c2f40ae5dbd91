"""Blurs by a kernel, circular or with a real boundary, and the kernels: Gaussian, and the path of a shaking camera."""

# ruff: noqa: N802 - A, U, V are the names of the field

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from fewstep.inverse.adapters import LinearFunction
from fewstep.inverse.operator import Decomposed


def gaussian_line(std: float, truncate: float = 4.0) -> Tensor:
    """Return weights of a Gaussian on a line.

    Args:
        std: standard deviation in pixels.
        truncate: where the weights end, in standard deviations.

    Returns:
        Weights (n,), float64, that sum to one.

    Raises:
        ValueError: the standard deviation is not positive.

    Example:
        >>> operator = fs.inverse.separable_blur((1, 8, 8), fs.inverse.gaussian_line(0.8))
    """
    if not std > 0:
        raise ValueError(f"the deviation of a Gaussian must be positive; got {std}")
    radius = int(truncate * std + 0.5)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / std) ** 2)
    return line / line.sum()


def gaussian_kernel(std: float) -> Tensor:
    """Return a Gaussian kernel, 4 standard deviations wide to each side.

    Args:
        std: standard deviation in pixels; NCVSD's is 3, which gives 25 x 25 taps.

    Returns:
        The kernel (n, n), float64, which sums to one.

    Raises:
        ValueError: the standard deviation is not positive.

    Example:
        >>> operator = fs.inverse.CircularBlur(fs.inverse.gaussian_kernel(0.8), (1, 8, 8))
    """
    line = gaussian_line(std)
    return line[:, None] * line


def motion_kernel(size: int = 61, intensity: float = 0.5, seed: int = 0) -> Tensor:
    """Return the path of a shaking camera as a kernel; at size 61 and intensity 0.5 it is NCVSD's for each seed.

    A random walk with persistent turns, drawn as a thin line, softened and reduced by two (after L. Borodenko's generator).

    Args:
        size: side of the kernel in pixels, at least 3.
        intensity: how much the path turns: near 0 a straight line, at most 1.
        seed: seed of the path.

    Returns:
        The kernel (size, size), float64, which sums to one.

    Raises:
        ValueError: size or intensity is out of range, or the path of the seed leaves no trace.

    Example:
        >>> operator = fs.inverse.CircularBlur(fs.inverse.motion_kernel(7), (1, 8, 8))
    """
    if size < 3 or not 0 < intensity <= 1:
        raise ValueError(f"a motion kernel has size 3 at least and an intensity in (0, 1]; got {size}, {intensity}")
    draw = np.random.RandomState(seed)
    canvas = 2 * size
    diagonal = math.sqrt(2) * canvas
    longest = 0.75 * diagonal * (draw.uniform() + draw.uniform(0, intensity**2))
    lengths: list[float] = []
    while sum(lengths) < longest:
        length = draw.beta(1, 30) * (1 - intensity + 0.1) * diagonal
        if length < longest:
            lengths.append(length)
    widest = draw.uniform(0, intensity * math.pi)
    jitter = draw.beta(2, 20)
    angles = [draw.uniform(-widest, widest)]
    while len(angles) < len(lengths):
        turn = draw.triangular(0, intensity * widest, widest + 0.1)
        flips = draw.uniform() < jitter
        before = np.sign(angles[-1])
        angles.append(turn * (-before if flips else before))
    path = np.cumsum(np.array(lengths) * np.exp(1j * np.array(angles)))
    path = (path - path.mean()) * np.exp(1j * draw.uniform(0, math.pi)) + canvas / 2 * (1 + 1j)
    image = Image.new("RGB", (canvas, canvas))
    line = [(float(p.real), float(p.imag)) for p in path]
    ImageDraw.Draw(image).line(line, fill=(255, 255, 255), width=max(1, int(diagonal / 150)))
    image = image.filter(ImageFilter.GaussianBlur(radius=int(diagonal * 0.01)))
    grey = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS).convert("L"), dtype=np.float64)
    if grey.sum() == 0:
        raise ValueError(f"the path of seed {seed} leaves no trace at size {size}; use another seed")
    return torch.from_numpy(grey / grey.sum())


def check_kernel(kernel: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise ValueError for an invalid kernel; warn about one that changes the brightness."""
    if kernel.ndim != 2 or not kernel.isfinite().all() or not kernel.any():
        raise ValueError(
            f"a kernel must be a finite matrix (h, w) that is not zero everywhere; got shape {tuple(kernel.shape)}"
        )
    if kernel.shape[0] > shape[1] or kernel.shape[1] > shape[2]:
        raise ValueError(
            f"the kernel {tuple(kernel.shape)} is larger than the images {shape[1]}x{shape[2]}; use a smaller one"
        )
    if abs(total := float(kernel.double().sum()) - 1) > 1e-3:
        warnings.warn(f"the kernel sums to {total + 1:.4g}, not to one: it changes the brightness", stacklevel=3)


class CircularBlur(Decomposed):
    """Blur with the image continued periodically: y = kernel * x, each channel by itself.

    The singular values are those of the Fourier transform, whose phase is part of U.

    Args:
        kernel: the kernel (h, w) of a convolution.
        shape: shape of the images (C, H, W).
        shift: rows and columns by which the image moves. (0, 0) keeps the kernel's centre (h // 2, w // 2) where it is.
            (-1, -1), up and left, is what the code of NCVSD does at 256x256, whose measurements need it.

    Raises:
        ValueError: the kernel is not a finite matrix, is zero, or is larger than the images.

    Example:
        >>> operator = fs.inverse.CircularBlur(fs.inverse.gaussian_kernel(0.8), (1, 8, 8))
        >>> y = operator(x0)
    """

    phase: Tensor

    def __init__(self, kernel: Tensor, shape: tuple[int, int, int], shift: tuple[int, int] = (0, 0)) -> None:
        super().__init__(shape)
        check_kernel(kernel, shape)
        h, w = kernel.shape
        origin = (shift[0] - h // 2, shift[1] - w // 2)
        padded = F.pad(kernel.double(), (0, shape[2] - w, 0, shape[1] - h)).roll(origin, (0, 1))
        spectrum = torch.fft.rfft2(padded)
        self.keep_singular(spectrum.abs())
        self.register_buffer("phase", torch.polar(torch.ones_like(spectrum.abs()), spectrum.angle()))

    def V(self, c: Tensor) -> Tensor:
        return torch.fft.irfft2(c, s=self.shape[1:], norm="ortho")

    def V_adjoint(self, x: Tensor) -> Tensor:
        return torch.fft.rfft2(x, norm="ortho")

    def U(self, c: Tensor) -> Tensor:
        return self.V(c * self.phase.to(c))

    def U_adjoint(self, y: Tensor) -> Tensor:
        c = self.V_adjoint(y)
        return c * self.phase.to(c).conj()


PADDINGS = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate"}


def real_blur(kernel: Tensor, shape: tuple[int, int, int], padding: str = "reflect") -> LinearFunction:
    """Return a blur y = kernel * x with a real boundary; proximal draws use conjugate gradients.

    Args:
        kernel: the kernel (h, w) of a convolution.
        shape: shape of the images (C, H, W).
        padding: how the image is continued: "zeros", "reflect" by its mirror image, "replicate" by its edge; with "valid" only
            the part is measured where the kernel lies within the image.

    Returns:
        The operator.

    Raises:
        ValueError: there is no such padding, or the kernel is not valid.

    Example:
        >>> operator = fs.inverse.real_blur(torch.full((3, 3), 1 / 9), (1, 8, 8))
    """
    check_kernel(kernel, shape)
    if padding not in (*PADDINGS, "valid"):
        raise ValueError(f"the boundary is one of {', '.join(PADDINGS)} and valid; got {padding!r}")
    h, w = kernel.shape
    around = (w - 1 - w // 2, w // 2, h - 1 - h // 2, h // 2)
    channels = shape[0]
    weights = kernel.flip(0, 1).expand(channels, 1, h, w)

    def blur(x: Tensor) -> Tensor:
        padded = x if padding == "valid" else F.pad(x, around, mode=PADDINGS[padding])
        return F.conv2d(padded, weights.to(x), groups=channels)

    return LinearFunction(blur, shape)

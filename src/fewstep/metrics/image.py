"""How close an image is to its target: PSNR, SSIM, LPIPS, one value for each pair."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.metrics import weights
from fewstep.metrics.networks.lpips import LPIPS, Backbone
from fewstep.runtime.distributed import device
from fewstep.runtime.precision import tf32

Pair = Callable[[Tensor, Tensor], Tensor]
CONVENTIONS: dict[str, str] = {
    "psnr": "range 1, mean square + 1e-8 (piq), so at most 80 dB",
    "ssim": "range 1, Gaussian window 11 and deviation 1.5 without padding, images above 256 averaged down (piq)",
    "ssim_7": "range 1, Gaussian window 7 and deviation 1.5 without padding, for images below 11x11; not comparable with ssim",
    "lpips_vgg": "LPIPS 0.1, VGG-16",
    "lpips_alex": "LPIPS 0.1, AlexNet",
}


def unit(images: Tensor) -> Tensor:
    """Images (B, C, H, W) in [0, 1], from uint8 or from pixels in [-1, 1], which are clipped to that range."""
    if images.ndim != 4:
        raise ValueError(f"expected images (B, C, H, W); got the shape {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point() or not images.isfinite().all():
        raise ValueError(f"expected images as uint8, or as finite numbers in [-1, 1]; got {images.dtype}")
    return (images.clamp(-1, 1) + 1) / 2


def pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise ValueError(f"pairs of images must have one shape; got {tuple(a.shape)} and {tuple(b.shape)}")
    return unit(a), unit(b)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of pairs of images: -10 log10(mean square difference + 1e-8), for the range [0, 1].

    Args:
        a: images (B, C, H, W), uint8 or in [-1, 1].
        b: their targets, of the same shape.

    Returns:
        Ratios (B,) in dB.

    Raises:
        ValueError: the shapes differ, or the images are of another type or not finite.

    Example:
        >>> ratio = fs.metrics.psnr(x0, torch.zeros_like(x0))
    """
    a, b = pair(a, b)
    return -10 * ((a - b).square().mean((1, 2, 3)) + 1e-8).log10()


def ssim(a: Tensor, b: Tensor, *, window: int = 11) -> Tensor:
    """Return the structural similarity of pairs of images (Wang et al., 2004), in the convention of piq.

    It is the mean over channels and places of a Gaussian window of deviation 1.5 that lies in the image, with K1 = 0.01 and
    K2 = 0.03. Images are first averaged down by round(min(H, W) / 256).

    Args:
        a: images (B, C, H, W), uint8 or in [-1, 1].
        b: their targets, of the same shape.
        window: side of the window in pixels, odd; small images take one smaller than 11.

    Returns:
        Similarities (B,), at most 1.

    Raises:
        ValueError: the shapes differ, the images are of another type or not finite, or the window does not fit.

    Example:
        >>> similarity = fs.metrics.ssim(x0, torch.zeros_like(x0), window=7)
    """
    a, b = pair(a, b)
    shrink = max(1, round(min(a.shape[2:]) / 256))
    a, b = (F.avg_pool2d(x, shrink) for x in (a, b)) if shrink > 1 else (a, b)
    if min(a.shape[2:]) < window or window % 2 == 0:
        raise ValueError(
            f"SSIM has a window of {window}x{window}, odd and within the images, which are {a.shape[2]}x{a.shape[3]}"
        )
    offsets = torch.arange(window, dtype=a.dtype, device=a.device) - window // 2
    line = torch.exp(-offsets.square() / (2 * 1.5**2))
    line = (line / line.sum()).expand(a.shape[1], 1, 1, -1)

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, line, groups=x.shape[1]), line.transpose(2, 3), groups=x.shape[1])

    with tf32(False):
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a.square(), blur(b * b) - mean_b.square()
        cov = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (structure * (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)).mean((1, 2, 3))


class PerceptualDistance:
    """LPIPS of pairs of images, (B,); lower is closer (Zhang et al., 2018).

    Args:
        backbone: "vgg" or "alex".
        folder: folder of the weights; None for the folder of assets.

    Example:
        >>> distance = fs.metrics.PerceptualDistance("alex")(torch.zeros(2, 3, 64, 64), torch.ones(2, 3, 64, 64))
    """

    def __init__(self, backbone: Backbone = "vgg", folder: Path | None = None) -> None:
        network, linear = {
            "vgg": (weights.VGG, weights.LPIPS_VGG),
            "alex": (weights.ALEX, weights.LPIPS_ALEX),
        }[backbone]
        state, about = weights.read_weights(network, folder)
        lines, about_lines = weights.read_weights(linear, folder)
        self.sha256 = [about["sha256"], about_lines["sha256"]]
        self.network = weights.fill(lambda: LPIPS(backbone), {**state, **lines}, f"{network.file} and {linear.file}")
        self.network.to(device())

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad(), tf32(False):
            a, b = (2 * x.to(device()).expand(-1, 3, -1, -1) - 1 for x in pair(a, b))
            return self.network(a, b).cpu()


def measures(names: Iterable[str], folder: Path | None = None) -> dict[str, Pair]:
    """Measures of pairs by name: psnr, ssim, ssim_7, lpips_vgg, lpips_alex (lpips is lpips_vgg)."""
    found: dict[str, Pair] = {}
    for name in names:
        name = "lpips_vgg" if name == "lpips" else name
        if name not in CONVENTIONS:
            raise ValueError(f"no metric of pairs is called {name!r}; choose from {', '.join(CONVENTIONS)}")
        if name.startswith("lpips_"):
            found[name] = PerceptualDistance("vgg" if name == "lpips_vgg" else "alex", folder)
        else:
            found[name] = {"psnr": psnr, "ssim": ssim, "ssim_7": partial(ssim, window=7)}[name]
    return found

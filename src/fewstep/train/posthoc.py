"""Averages of any length, computed after training from snapshots of a few (Karras et al., 2024, Sec. 3 and App. C).

A snapshot at nimg images with the relative std s holds the weights averaged with the profile

p(tau) = (gamma + 1) / nimg (tau / nimg)^gamma, 0 <= tau <= nimg, gamma = `power(s)`.

The linear combination of snapshots whose profile is closest to the wanted one, in least squares, gives the weights.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fewstep.core.denoiser import Denoiser
from fewstep.io import model_folder
from fewstep.io.card import Card
from fewstep.io.hub import FILES
from fewstep.runtime import outputs
from fewstep.runtime.precision import master
from fewstep.runtime.progress import track
from fewstep.train.ema import power
from fewstep.train.transfer import open_network

FOREIGN = re.compile(r".+-(\d+)-(\d\.\d{3})\.pkl")
"""EDM2's snapshots: thousands of images, relative std."""


def inner_products(nimg_a: ArrayLike, std_a: ArrayLike, nimg_b: ArrayLike, std_b: ArrayLike) -> NDArray[np.float64]:
    """The integrals of p_a p_b over tau for all pairs of two lists of profiles, (n, m) float64.

    (gamma_a + 1) (gamma_b + 1) / ((gamma_a + gamma_b + 1) max(a, b)) (min(a, b) / max(a, b))^gamma, with the gamma of the
    longer of the two.
    """
    a, b = (np.asarray(v, dtype=np.float64) for v in (nimg_a, nimg_b))
    gamma_a, gamma_b = (np.array([power(s) for s in np.atleast_1d(v)]) for v in (std_a, std_b))
    a, b, gamma_a, gamma_b = a[:, None], b[None, :], gamma_a[:, None], gamma_b[None, :]
    longer, shorter = np.maximum(a, b), np.minimum(a, b)
    share = (shorter / longer) ** np.where(a < b, gamma_b, gamma_a)
    return (gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * longer) * share


def coefficients(nimg: ArrayLike, std: ArrayLike, out_nimg: ArrayLike, out_std: ArrayLike) -> NDArray[np.float64]:
    """The weights of n snapshots in m averages.

    Args:
        nimg: Training images of the snapshots (n,).
        std: Relative std of the snapshots (n,).
        out_nimg: Training images at which the averages end (m,).
        out_std: Relative std of the averages (m,).

    Returns:
        Coefficients (n, m) in float64, as the system is ill-conditioned; each column sums to 1.
    """
    known = inner_products(nimg, std, nimg, std)
    solved = np.linalg.solve(known, inner_products(nimg, std, out_nimg, out_std))
    return solved / solved.sum(axis=0)


@dataclass(frozen=True)
class AverageSnapshot:
    """An averaged network on disk, a model folder or one of EDM2's pickles."""

    path: Path
    nimg: int
    std: float

    def load(self) -> tuple[Denoiser, Card]:
        """The network and its card."""
        denoiser, card = open_network(self.path)
        return denoiser, card if self.path.is_dir() else dataclasses.replace(card, method="EDM2")


def whole_nimg(kimg: int) -> int:
    """The exact number of images behind EDM2's file names, which have thousands, rounded down, of a multiple of 1,024."""
    nimg = (kimg * 1000 + 999) // 1024 * 1024
    if nimg // 1000 != kimg:
        raise ValueError(f"{kimg} thousand images are not a multiple of 1,024 images; the file is not EDM2's snapshot")
    return nimg


def snapshots(folder: Path) -> list[AverageSnapshot]:
    """The averages by power functions in a run folder, or in a folder of EDM2's `PREFIX-KIMG-STD.pkl`, sorted.

    Raises:
        ValueError: There are none, or two of the same time and std.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a run folder or a folder of snapshots; {folder} is missing")
    found = []
    models = [*folder.glob("snapshots/*/config.json"), *folder.glob("averages/*/*/config.json")]
    for path in [file.parent for file in models]:
        card = model_folder.card(path)
        if card.ema.get("kind") == "PowerFunction":
            found.append(AverageSnapshot(path, card.nimg, card.ema["std"]))
    for path in folder.glob("*.pkl"):
        if match := FOREIGN.fullmatch(path.name):
            found.append(AverageSnapshot(path, whole_nimg(int(match[1])), float(match[2])))
    if not found:
        raise ValueError(
            f"{folder} holds no averages by power functions: neither a run with ema=PowerFunction(...) nor EDM2's "
            "PREFIX-KIMG-STD.pkl"
        )
    if len({(s.nimg, s.std) for s in found}) < len(found):
        raise ValueError(f"{folder} holds several snapshots of the same std and time; keep those of one training")
    return sorted(found, key=lambda s: (s.nimg, s.std))


def reconstruct(
    folder: str | Path, stds: Sequence[float], *, nimg: int | None = None, out: str | Path | None = None
) -> list[Path]:
    """Compute averages of other lengths from the snapshots of a training, and save each as a model folder.

    Snapshots are read one after the other; the averages are computed in float32.

    Args:
        folder: A run whose `ema` are `PowerFunction`s, or a folder of EDM2's snapshots.
        stds: Relative std of each average.
        nimg: Training images at which the averages end, those of one of the snapshots; None for the last one.
        out: Where to write; None for `folder/posthoc`.

    Returns:
        The model folders, `OUT/NIMG-STD`.

    Raises:
        ValueError: There are no suitable snapshots, none at `nimg`, or two of the stds are the same.

    Example:
        >>> fs.reconstruct("runs/teacher", [0.07, 0.15])
    """
    folder = Path(folder)
    target = folder / "posthoc" if out is None else Path(out)
    found = snapshots(folder)
    if len({f"{std:.3f}" for std in stds}) < len(stds):
        raise ValueError(f"averages are named by their relative std of three digits; two are the same in {list(stds)}")
    times = sorted({s.nimg for s in found})
    nimg = times[-1] if nimg is None else nimg
    if nimg not in times:
        raise ValueError(f"the averages end where a snapshot was taken, at one of {times} images; got nimg={nimg}")
    places = [target / f"{nimg:012d}-{std:.3f}" for std in stds]
    for place in places:
        outputs.new_folder(place, FILES, apart=[s.path for s in found], overwrite=True)
    found = [s for s in found if s.nimg <= nimg]
    weights = coefficients([s.nimg for s in found], [s.std for s in found], [nimg] * len(stds), stds)
    sums: list[dict[str, Tensor]] = [{} for _ in stds]
    for snapshot, row in zip(
        track(found, total=len(found), description="snapshots", unit="snapshots"), weights, strict=True
    ):
        denoiser, _ = snapshot.load()
        for total, weight in zip(sums, row, strict=True):
            for name, parameter in denoiser.named_parameters():
                term = parameter.detach().float() * float(weight)
                total[name] = total[name] + term if name in total else term
    paths = []
    denoiser, card = found[-1].load()  # buffers are the last
    for std, total, place in zip(stds, sums, places, strict=True):
        denoiser.load_state_dict(denoiser.state_dict() | total, assign=True)
        master(denoiser)  # EDM2's buffers are in float16
        ema = {"kind": "PowerFunction", "std": std, "snapshots": len(found)}
        about = dataclasses.replace(card, nimg=nimg, ema=ema, metrics=[])
        paths.append(model_folder.save(denoiser, place, about))
    return paths

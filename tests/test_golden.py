"""Trajectories of the reference implementations on imported networks: agreement to 1e-4, every recorded sampler."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.convert import convert
from fewstep.denoiser import Denoiser
from fewstep.samplers import Ablation, edm_sigmas, heun, last

GOLDEN = Path(__file__).parent / "golden"
STUDENTS = ("gdd", "ncvsd", "sida")
NAMES = sorted(p.stem for p in GOLDEN.glob("*.pkl") if not p.stem.startswith(STUDENTS))


def trajectory(denoiser: Denoiser, name: str, denoise: partial[Tensor], latents: Tensor) -> Tensor:
    """The sampler that an array of the reference is called after, from unit noise."""
    kind, *words = name.split("_")
    if kind == "heun":
        options = {"sigma_min": 0.01, "sigma_max": 50.0, "rho": 5.0} if "rho5" in words else {}
        sigmas = edm_sigmas(denoiser, int(words[0]), **options)
        return last(heun(denoise, latents * sigmas[0], sigmas))
    solver, discretization, schedule, scaling, steps = words
    sampler = Ablation(solver, discretization, schedule, scaling, precondition=denoiser.precondition)  # pyright: ignore[reportArgumentType] - words of the names
    sigmas = sampler.sigmas(int(steps))
    return last(sampler(denoise, latents * sigmas[0], sigmas))


@pytest.mark.parametrize("name", NAMES)
def test_trajectories(name):
    denoiser, _ = convert(GOLDEN / f"{name}.pkl")
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {k: torch.from_numpy(file[k]) for k in file.files}
    label = arrays["labels"].long() if denoiser.num_classes else None
    denoise = partial(denoiser.eval(), label=label)
    recorded = [k for k in arrays if k.startswith(("heun", "ablation"))]
    assert recorded
    for key in recorded:
        found = trajectory(denoiser, key, denoise, arrays["latents"].double())
        error = (found - arrays[key]).abs().max() / arrays[key].abs().max()
        assert error < 1e-4, f"{key}: {error:.2g}"


def test_gdd_generator():
    generator, provenance = convert(GOLDEN / "gdd-generator.pkl")
    with np.load(GOLDEN / "gdd-generator.npz") as file:
        arrays = {k: torch.from_numpy(file[k]) for k in file.files}
    assert generator.levels == (80.0,)
    assert "inherit" in provenance["license"]
    with torch.no_grad():
        torch.testing.assert_close(generator(80 * arrays["z"], 80.0), arrays["one_step"], rtol=1e-5, atol=1e-5)
        denoised = generator(arrays["x"], arrays["sigma"])
    torch.testing.assert_close(denoised, arrays["denoised"], rtol=1e-5, atol=1e-5)

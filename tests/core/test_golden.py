"""Trajectories of the reference implementations on imported networks: agreement to 1e-4, every recorded sampler."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.cli import main
from fewstep.core.denoiser import Denoiser
from fewstep.core.noise import SeededNoise
from fewstep.io.card import Card
from fewstep.io.convert import convert
from fewstep.io.model_folder import save
from fewstep.sample import generate, make_plan, run
from fewstep.samplers import Ablation, heun, last
from tests import GOLDEN

OTHERS = ("gdd", "ncvsd", "sida", "snap")
NAMES = sorted(p.stem for p in GOLDEN.glob("*.pkl") if not p.stem.startswith(OTHERS))


def trajectory(denoiser: Denoiser, name: str, denoise: partial[Tensor], latents: Tensor) -> Tensor:
    """The sampler that an array of the reference is called after, from unit noise."""
    kind, *words = name.split("_")
    if kind == "heun":
        options = {"sigma_min": 0.01, "sigma_max": 50.0, "rho": 5.0} if "rho5" in words else {}
        sigmas = denoiser.sigmas(int(words[0]), **options)
        return last(heun(denoise, latents * sigmas[0], sigmas))
    solver, discretization, schedule, scaling, steps = words
    sampler = Ablation(solver, discretization, schedule, scaling, precondition=denoiser.precondition)  # pyright: ignore[reportArgumentType] - words of the names
    sigmas = sampler.sigmas(int(steps))
    return last(sampler(denoise, latents * sigmas[0], sigmas))


@pytest.mark.parametrize("name", NAMES)
def test_trajectories(name):
    denoiser, _ = convert(GOLDEN / f"{name}.pkl", kind="teacher")
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
    assert "inherit" in provenance.license
    with torch.no_grad():
        torch.testing.assert_close(generator(80 * arrays["z"], 80.0), arrays["one_step"], rtol=1e-5, atol=1e-5)
        denoised = generator(arrays["x"], arrays["sigma"])
    torch.testing.assert_close(denoised, arrays["denoised"], rtol=1e-5, atol=1e-5)


CHURN = {"S_churn": 30.0, "S_min": 0.05, "S_max": 50.0, "S_noise": 1.003}


def published_sampler(denoiser: Denoiser, seed: int, n: int, churn: dict[str, float], edm2: bool) -> Tensor:
    """One image (C, H, W) of EDM's generator (Karras et al., 2022, Algorithm 2) or of EDM2's, written out step by step."""
    stream = torch.Generator().manual_seed(seed)
    latent = torch.randn(denoiser.shape, generator=stream)
    label = torch.randint(denoiser.num_classes, (1,), generator=stream) if denoiser.num_classes else None
    low, high = 0.002, 80.0
    if not edm2:
        low, high = max(low, denoiser.sigma_min), min(high, denoiser.sigma_max)
    ends = high ** (1 / 7), low ** (1 / 7)
    t = [(ends[0] + i / (n - 1) * (ends[1] - ends[0])) ** 7 for i in range(n)]

    def rounded(level: float) -> float:
        return level if edm2 else denoiser.precondition.round(torch.tensor(level, dtype=torch.float64)).item()

    def slope(x: Tensor, level: float) -> Tensor:
        return (x - denoiser(x[None], torch.tensor(level, dtype=torch.float64), label)[0]) / level

    t = [*map(rounded, t), 0.0]
    x = latent.double() * t[0]
    for i in range(n):
        inside = churn["S_min"] <= t[i] <= churn["S_max"]
        gamma = min(churn["S_churn"] / n, 2**0.5 - 1) if inside else 0.0
        raised = rounded(t[i] + gamma * t[i])
        if not edm2:
            eps = torch.randn(x.shape, generator=stream, dtype=torch.float64)
        elif gamma > 0:
            eps = torch.randn(x.shape, generator=stream).double()
        else:
            eps = torch.zeros_like(x)
        x = x + (raised**2 - t[i] ** 2) ** 0.5 * churn["S_noise"] * eps
        d = slope(x, raised)
        ahead = x + (t[i + 1] - raised) * d
        x = ahead if i == n - 1 else x + (t[i + 1] - raised) * (d + slope(ahead, t[i + 1])) / 2
    return x


# The first three values of the images of seeds 3 and 7, computed once by EDM's and EDM2's own generators.
GENERATED = {
    "edm2-cond": [[-0.47860906, -0.34452701, -0.08524072], [-0.16817810, -0.10013823, -0.28376466]],
    "edm-ddpmpp-cond": [[1.31989253, -0.21623671, -1.96008098], [-0.98274499, 0.86030066, -0.13164687]],
    "iddpm-adm-cond": [[-61.7317238, 63.3722534, -154.994186], [-161.870087, 161.495315, 97.1106949]],
}


@torch.no_grad()
@pytest.mark.parametrize("name", [*GENERATED, "edm2-uncond", "ve-ncsnpp-uncond"])
def test_a_seed_gives_the_image_of_the_published_generator(name):
    """Latents, class and noise of a seed, drawn where, in the order and in the precision of EDM or EDM2."""
    denoiser, _ = convert(GOLDEN / f"{name}.pkl", kind="teacher")
    denoiser.eval()
    seeds = [3, 7]
    expected = torch.stack([published_sampler(denoiser, seed, 12, CHURN, name.startswith("edm2")) for seed in seeds])
    noise = SeededNoise(seeds)
    z = noise.draw(denoiser.shape, torch.float32)
    label = noise.classes(denoiser.num_classes) if denoiser.num_classes else None
    plan = make_plan(denoiser, 12, sampler="churn", **CHURN)
    offered = denoiser.sampler_options(label) | {"noise": partial(noise, dtype=denoiser.sampling.noise_dtype)}
    found = run(plan, denoiser.bind(label, noise), z, **offered)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-6
    if name in GENERATED:
        error = found[:, 0, 0, :3] - torch.tensor(GENERATED[name]).double()
        assert error.abs().max() / expected.abs().max() < 2e-6


@torch.no_grad()
@pytest.mark.parametrize(("name", "steps"), [("edm2-cond", 32), ("edm-ddpmpp-cond", 18)])
def test_models_are_sampled_as_their_authors_do(name, steps, tmp_path):
    """The command line's images, pixel by pixel: the number of steps by default, and churn by its published options."""
    denoiser, _ = convert(GOLDEN / f"{name}.pkl", kind="teacher")
    denoiser.eval()
    save(denoiser, tmp_path / "model", Card())
    options = [f"--{option}={value:g}" for option, value in CHURN.items()]
    path = tmp_path / "images.npz"
    assert main(["sample", str(tmp_path / "model"), "--seeds=16-17", "--npz", str(path), *options]) == 0
    expected = [published_sampler(denoiser, seed, steps, CHURN, name.startswith("edm2")) for seed in (16, 17)]
    pixels = (torch.stack(expected) * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    with np.load(path) as file:
        assert (np.abs(file["arr_0"].astype(int) - pixels.numpy()) <= 1).all()
        assert (file["arr_0"] == pixels.numpy()).mean() > 0.999
    assert len(denoiser.plan().sigmas) == steps + 1
    plain = published_sampler(denoiser, 16, steps, CHURN | {"S_churn": 0.0}, name.startswith("edm2"))
    (image,) = generate(denoiser, [16])
    made = (plain * 127.5 + 128).clip(0, 255).to(torch.uint8).permute(1, 2, 0)
    assert (image == made.numpy()).mean() > 0.999


@torch.no_grad()
@pytest.mark.parametrize("level", [80.0, 2.5])
def test_a_seed_gives_the_image_of_the_published_one_step_generators(level):
    """D(level z, level) of SiD and GDD, z in float32 and then a class from the stream of the seed."""
    for name in ("gdd-generator", "edm-ddpmpp-cond"):  # SiD saves a network of its teacher's class
        generator, _ = convert(GOLDEN / f"{name}.pkl", levels=(level,))
        generator.eval()
        made = list(generate(generator, [4, 9]))
        for seed, image in zip((4, 9), made, strict=True):
            stream = torch.Generator().manual_seed(seed)
            z = torch.randn(1, *generator.shape, generator=stream)
            classes = generator.num_classes
            label = torch.randint(classes, (1,), generator=stream) if classes else None
            expected = (generator(level * z, level, label)[0] * 127.5 + 128).clip(0, 255).int().numpy()
            assert np.abs(image.transpose(2, 0, 1) - expected).max() <= 1
            assert (image.transpose(2, 0, 1) == expected).mean() > 0.99

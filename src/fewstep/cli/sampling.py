"""`fewstep sample`, and the options that say how a model makes images, which `eval` takes too; EDM's names where they exist."""

from __future__ import annotations

import dataclasses
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from fewstep.cli.arguments import Device, explained, parse_seeds
from fewstep.runtime import outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from fewstep.core.denoiser import Denoiser
    from fewstep.core.guidance import Guidance
    from fewstep.core.plan import Plan, Sampler


@explained
@dataclass(frozen=True)
class Sampling:
    """How a model makes images.

    Attributes:
        sampler: euler, heun, churn, dpmpp_2m, dpmpp_2m_sde, ancestral, euler_maruyama, stochastic_heun, taylor2, ito_taylor,
            second_order_sde, multistep, posterior, or mine.py:function. If unset: for a few-step generator its own sampler, for
            other models heun (churn with --S-churn).
        steps: number of sampling steps. If unset: for a few-step generator its own, 32 for EDM2's networks, 18 for others.
        levels: noise levels to use, largest first, such as 2.5,0.8; replaces --steps, --sigma-min, --sigma-max and --rho.
        ts: NCVSD's noise levels by index, ending with 39, such as 10,22,39 for two steps; replaces --levels.
        sigma_min: lowest noise level. If unset: 0.002, or the lowest that the network accepts if that is higher.
        sigma_max: highest noise level. If unset: 80, or the highest that the network accepts if that is lower.
        rho: exponent of the noise schedule (EDM Eq. 5).
        S_churn: stochasticity: amount of noise added per step (EDM Algorithm 2).
        S_min: lowest noise level at which noise is added.
        S_max: highest noise level at which noise is added. For second_order_sde, steps at or above it are of second order.
        S_noise: standard deviation of the added noise.
        solver: EDM ablation sampler only: ODE solver.
        disc: EDM ablation sampler only: discretization of time.
        schedule: EDM ablation sampler only: noise schedule sigma(t).
        scaling: EDM ablation sampler only: signal scaling s(t).
        kappa: ito_taylor only: stochasticity; 0 is the probability-flow ODE, 1 the reverse SDE.
        randn_like: ito_taylor and second_order_sde only: ddb draws the exact pair of noises, db the simplified one.
        guidance: guidance scale; 1 means no guidance.
        guide: model folder of the weaker model that guides (autoguidance). If unset: the model itself without a class
            (classifier-free guidance).
        guidance_min: lowest noise level with guidance.
        guidance_max: highest noise level with guidance.
        dtype: precision of the network. auto is bfloat16 where the hardware supports it, else float32.
        vae: for a latent model: folder of its VAE (diffusers' AutoencoderKL) or its name on the hub. If unset: the VAE that the
            model names.
        tf32: allow TF32 on GPUs: faster float32, with factors rounded to 10 bits.
        compile: compile the blocks of the network (torch.compile): slower start, then faster on GPUs.
    """

    sampler: str | None = None
    steps: int | None = None
    levels: str | None = None
    ts: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    rho: float = 7.0
    S_churn: float = 0.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0
    solver: Literal["euler", "heun"] | None = None
    disc: Literal["vp", "ve", "iddpm", "edm"] | None = None
    schedule: Literal["vp", "ve", "linear"] | None = None
    scaling: Literal["vp", "none"] | None = None
    kappa: float | None = None
    randn_like: Literal["db", "ddb"] | None = None
    guidance: float = 1.0
    guide: Path | None = None
    guidance_min: float = 0.0
    guidance_max: float = math.inf
    dtype: Literal["float32", "auto", "bfloat16", "float16"] = "float32"
    vae: str | None = None
    tf32: bool = False
    compile: bool = False

    def load(self, path: Path) -> Denoiser:
        """The model on this process's device, in the precision asked for, compiled if asked for."""

        from fewstep.io.model_folder import load
        from fewstep.nets.execution import compile_blocks
        from fewstep.runtime.distributed import device

        denoiser = load(path, device=device(), dtype=self.dtype, vae=self.vae)
        if self.compile:
            compile_blocks(denoiser)
        return denoiser

    def plan(self, denoiser: Denoiser) -> Plan:
        """The plan for one model.

        Raises:
            ValueError: an option does not fit the model, or would have no effect.
        """
        from fewstep.sample import make_plan

        options = self.options()  # first, as it names the flag of a NaN
        return make_plan(denoiser, self.steps, sampler=self.chosen_sampler(), guidance=self.guided(), **options)

    def options(self) -> dict[str, Any]:
        """The options for `generate` that differ from their defaults."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and math.isnan(value):
                raise ValueError(f"--{field.name.replace('_', '-')} must be a number; got nan")
        names = ("sigma_min", "sigma_max", "rho", "S_churn", "S_min", "S_max", "S_noise", "kappa", "randn_like")
        options = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(Sampling, name)}
        if self.levels is not None:
            options["levels"] = levels(self.levels)
        if self.ts is not None:
            options["ts"] = indices(self.ts)
        if "randn_like" in options and self.sampler == "ito_taylor":  # which calls it otherwise
            options["noise_pair"] = {"db": "simplified", "ddb": "exact"}[options.pop("randn_like")]
        return options

    def chosen_sampler(self) -> str | Sampler | None:
        """The sampler by name, a function in a file, or EDM's general one."""
        choices: dict[str, Any] = {
            "solver": self.solver,
            "discretization": self.disc,
            "schedule": self.schedule,
            "scaling": self.scaling,
        }
        chosen = {name: value for name, value in choices.items() if value is not None}
        if chosen:
            if self.sampler is not None or self.levels is not None:
                raise ValueError(
                    "--solver, --disc, --schedule and --scaling select EDM's general sampler; leave out --sampler and --levels"
                )
            from fewstep.samplers import Ablation

            return Ablation(**chosen)
        file, _, name = (self.sampler or "").rpartition(":")
        if not file:
            return self.sampler
        from fewstep.runtime.user_code import load_file

        return load_file(Path(file), name)

    def guided(self) -> Guidance | None:
        """The guidance, None for none."""
        interval = (self.guidance_min, self.guidance_max)
        if self.guidance == 1:
            if self.guide is not None or interval != (0.0, math.inf):
                raise ValueError(
                    "--guide, --guidance-min and --guidance-max have no effect without --guidance SCALE, such as 1.5"
                )
            return None
        if not 0 <= interval[0] < interval[1]:
            raise ValueError(
                f"guidance needs 0 <= --guidance-min < --guidance-max; got {interval[0]} and {interval[1]}"
            )
        from fewstep.core.guidance import Guidance

        guide = None if self.guide is None else dataclasses.replace(self, vae=None).load(self.guide)
        return Guidance(self.guidance, guide, interval)


def sample(
    model: Positional[Path],
    *,
    seeds: str = "0-63",
    out: Path | None = None,
    grid: Path | None = None,
    npz: Path | None = None,
    subdirs: bool = False,
    label: Annotated[str | None, arg(name="class")] = None,
    batch: int | None = None,
    overwrite: bool = False,
    sampling: OmitArgPrefixes[Sampling] = Sampling(),
    device: Device = None,
) -> None:
    """Generate one image per seed, and write them as PNG files, a grid, an array, or all of these.

    Args:
        model: model or run folder, or hf://owner/name.
        seeds: seeds, such as 0-63 or 1,2,5-10; each gives one image.
        out: folder, .tar or .zip file for one PNG per seed (npy (C, H, W) for images that are neither grey nor RGB). A folder
            must be new, or hold only numbered images.
        grid: PNG file with all images side by side, or their channels if they are neither grey nor RGB.
        npz: npz file with all images in one array, arr_0 (N, H, W, C).
        subdirs: one subfolder of --out per 1,000 seeds.
        label: class of all images: its index, or its name if the model knows it. If unset: drawn from each seed.
        batch: images at a time; does not affect the images. If unset: 64, on GPUs as many as fit.
        overwrite: replace existing files.
        sampling: How images are generated.
    """
    if out is None and grid is None and npz is None:
        raise ValueError("no output: give --out FOLDER, --grid FILE.png, --npz FILE.npz, or several of them")
    chosen = parse_seeds(seeds)
    for option, path, suffix in (("--grid", grid, ".png"), ("--npz", npz, ".npz")):
        if path is not None and path.suffix.lower() != suffix:
            raise ValueError(
                f"{option} needs a file name that ends in {suffix}, such as images{suffix}; got {str(path)!r}"
            )
        if path is not None:
            outputs.file(path, overwrite=overwrite)
    if out is not None and out.suffix.lower() in (".tar", ".zip"):
        outputs.file(out, overwrite=overwrite)
    elif out is not None:
        outputs.image_folder(out, (f"{seed:06d}" for seed in chosen), overwrite=overwrite)
    if batch is not None and batch < 1:
        raise ValueError(f"--batch must be at least 1; got {batch}")

    import numpy as np

    from fewstep.data.grid import grid as make_grid
    from fewstep.data.grid import save_png
    from fewstep.data.writer import image_files
    from fewstep.runtime.distributed import process_group, rank, share, use
    from fewstep.runtime.files import new_file
    from fewstep.sample import gather_images, generate

    use(device)
    with process_group():
        network = sampling.load(model)
        plan = sampling.plan(network)
        made = generate(network, chosen, label=label, plan=plan, batch_size=batch, tf32=sampling.tf32, progress=True)
        kept: list[NDArray[np.uint8]] = []
        with image_files(out) if out is not None else nullcontext() as add:
            for seed, image in zip(share(chosen), made, strict=True):
                if add is not None:
                    add(f"{seed - seed % 1000:06d}/{seed:06d}" if subdirs else f"{seed:06d}", image)
                if grid is not None or npz is not None:
                    kept.append(image)
        images = gather_images(kept, len(chosen)) if grid is not None or npz is not None else []
        if grid is not None and rank() == 0:
            save_png(make_grid(np.stack(images)), grid)
            print(f"{grid}: {len(images):,} images")
        if npz is not None and rank() == 0:
            with new_file(npz) as partial, partial.open("wb") as file:
                np.savez(file, arr_0=np.stack(images))
            print(f"{npz}: {len(images):,} images")


def indices(text: str) -> list[int]:
    """Indices of noise levels such as "10,22,39"."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f'--ts needs indices of noise levels, such as "10,22,39"; got {text!r}') from error


def levels(text: str) -> list[float]:
    """Noise levels such as "2.5,0.8"."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f'noise levels are numbers, largest first, such as "2.5,0.8"; got {text!r}') from error

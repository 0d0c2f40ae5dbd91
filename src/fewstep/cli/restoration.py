"""`fewstep restore`: inverse problems with a model, simulated or given, with many samples of the posterior."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg


def restore(
    model: Positional[Path],
    images: Positional[str],
    *,
    task: str,
    out: Path,
    given: bool = False,
    samples: Annotated[int, arg(aliases=["--runs"])] = 4,
    first: int | None = None,
    seed: int = 0,
    sigma_y: float = 0.05,
    solver: Literal["pnp_gd", "dps", "daps", "diffpir"] = "pnp_gd",
    preset: Literal["published", "balanced"] = "published",
    beta: float | None = None,
    rho: float | None = None,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    ema_sigma: float | None = None,
    ema_decay: float | None = None,
    nfe: int = 49,
    prior_steps: int = 3,
    weight: float | None = None,
    mask: Path | None = None,
    kernel: Path | None = None,
    factor: float | None = None,
    ncvsd_shift: bool = False,
    label: Annotated[str | None, arg(name="class")] = None,
    vae: str | None = None,
    batch: int = 32,
) -> None:
    """Restore images: simulate their measurements, or take given ones, and draw samples of the posterior.

    Args:
        model: model or run folder: an NCVSD student, or a teacher.
        images: what is measured: any source of data pack, such as a folder, zip or npz, or digits; with
            --given the measurements.
        task: box_inpainting, random_inpainting, gaussian_deblur, motion_deblur (or NCVSD's names, gaussian_deblur_circ,
            motion_deblur_circ), super_resolution, phase_retrieval, colorization, quantization, jpeg, or mine.py:operator.
        out: folder for samples, mean, deviation, measurements, sheets and metrics.json; an earlier restoration is replaced.
        given: the images are a folder of measurements, NAME.npy (c, h, w) as this command writes them; without npy files
            NAME.png, black for -1 and white for 1, as NCVSD's code writes them.
        samples: draws for each image.
        first: restore only the first so many images.
        seed: of all noise.
        sigma_y: standard deviation of the measurement's noise, where images are in [-1, 1].
        solver: pnp_gd, or dps, daps, diffpir for a teacher.
        preset: of pnp_gd: published (NCVSD's) or balanced (less bias; for tasks without a published one).
        beta: of pnp_gd: 2 sigma^2 of the noise that the measurement is assumed to have. Default: the preset's.
        rho: of pnp_gd's published levels: exponent of the ramp. Default: the preset's.
        sigma_min: of pnp_gd: lowest noise level. Default: the preset's.
        sigma_max: of pnp_gd: first noise level. Default: the preset's.
        ema_sigma: of pnp_gd: average the estimates below this noise level. Default: the preset's.
        ema_decay: of pnp_gd: weight of the previous average; 0 for no averaging. Default: the preset's.
        nfe: network evaluations for each sample, at most.
        prior_steps: evaluations for one draw (pnp_gd) or estimate (daps) by a teacher.
        weight: the step of dps (the authors' code's; twice that of the paper's text), the trust in the denoiser of diffpir
            (a quarter of its code's lambda).
        mask: image or npy file for the inpainting tasks: black (or 0) is missing.
        kernel: npy file (h, w) for the deblurring tasks.
        factor: of super_resolution.
        ncvsd_shift: the circular blurs also move the image by one pixel, up and left, as NCVSD's code does at even sizes:
            for measurements made by it.
        label: class of all images, or data (those of the data set), or none; a model with classes needs one of them.
        vae: for a model of latents, the folder of its VAE (diffusers' AutoencoderKL) or the name on the hub; the one that
            the model names if left out.
        batch: samples at a time; it does not change them.
    """
    changes = {"beta": beta, "rho": rho, "sigma_min": sigma_min, "sigma_max": sigma_max}
    changes |= {"ema_sigma": ema_sigma, "ema_decay": ema_decay}

    from fewstep.inverse import restore as restore_images
    from fewstep.runtime.distributed import process_group, rank

    with process_group():
        found = restore_images(
            model,
            images,
            task,
            out=out,
            measured=given,
            samples=samples,
            first=first,
            seed=seed,
            sigma_y=sigma_y,
            solver=solver,
            mask=mask,
            kernel=kernel,
            factor=factor,
            ncvsd_shift=ncvsd_shift,
            label=label,  # pyright: ignore[reportArgumentType] - numbers arrive as words
            vae=vae,
            batch_size=batch,
            preset=preset,
            nfe=nfe,
            prior_steps=prior_steps,
            weight=weight,
            **changes,
        )
        if rank() == 0:
            print(table(found.metrics), end="")
            print(f"{out}: {found.metrics['n']} images, {samples} samples each; to look at: {out / 'sheet.png'}")


def table(metrics: dict[str, Any]) -> str:
    """The metrics as a table for a reader, and below it what could not be measured."""
    from fewstep.metrics.protocol import table as markdown_table

    rows = [
        [name, k, f"{v:.4g}"] for name, of in metrics["figures"].items() for k, v in of.items() if k != "convention"
    ]
    notes = "".join(f"{name}: {note}\n" for name, note in metrics["notes"].items())
    return (markdown_table(["measure", "of", "value"], rows) if rows else "") + notes

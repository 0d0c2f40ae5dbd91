"""`fewstep restore`: inverse problems with a model, simulated or given, with many samples of the posterior."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from fewstep.cli.arguments import Device


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
    device: Device = None,
) -> None:
    """Restore images: simulate measurements, or read given ones, and draw samples from the posterior.

    Args:
        model: model or run folder: an NCVSD student, or a teacher.
        images: images to measure: any source that data pack reads, such as a folder, zip, npz or digits. With --given: the
            measurements.
        task: box_inpainting, random_inpainting, gaussian_deblur, motion_deblur (or NCVSD's names, gaussian_deblur_circ,
            motion_deblur_circ), super_resolution, phase_retrieval, colorization, quantization, jpeg, or mine.py:operator.
        out: folder for samples, mean, deviation, measurements, sheets and metrics.json; an earlier restoration is replaced.
        given: the images are a folder of measurements, NAME.npy (c, h, w) as this command writes them; without npy files
            NAME.png, black for -1 and white for 1, as NCVSD's code writes them.
        samples: posterior samples per image.
        first: restore only the first N images.
        seed: seed of all noise.
        sigma_y: standard deviation of the measurement noise, for images in [-1, 1].
        solver: pnp_gd, or dps, daps, diffpir for a teacher.
        preset: pnp_gd only: published (NCVSD's) or balanced (less bias; for tasks without a published one).
        beta: pnp_gd only: 2 sigma^2 of the assumed measurement noise. If unset: the preset's.
        rho: pnp_gd with the published levels only: exponent of the noise schedule. If unset: the preset's.
        sigma_min: pnp_gd only: lowest noise level. If unset: the preset's.
        sigma_max: pnp_gd only: first noise level. If unset: the preset's.
        ema_sigma: pnp_gd only: average the estimates below this noise level. If unset: the preset's.
        ema_decay: pnp_gd only: weight of the previous average; 0 turns averaging off. If unset: the preset's.
        nfe: maximum number of network evaluations per sample.
        prior_steps: network evaluations per draw (pnp_gd) or estimate (daps) with a teacher.
        weight: dps: step size, as in the authors' code (twice that of the paper's text); diffpir: weight of the denoiser (a
            quarter of lambda in its code).
        mask: image or npy file for the inpainting tasks: black (or 0) is missing.
        kernel: npy file (h, w) for the deblurring tasks.
        factor: super_resolution only: downsampling factor.
        ncvsd_shift: shift the image up and left by one pixel in circular blurs, as NCVSD's code does at even sizes; for
            measurements that it made.
        label: class of all images, by index or name, or data (those of the data set), or none; a model with classes needs one
            of them.
        vae: for a latent model: folder of its VAE (diffusers' AutoencoderKL) or its name on the hub. If unset: the VAE that
            the model names.
        batch: samples at a time; does not affect them.
    """
    changes = {"beta": beta, "rho": rho, "sigma_min": sigma_min, "sigma_max": sigma_max}
    changes |= {"ema_sigma": ema_sigma, "ema_decay": ema_decay}

    from fewstep.inverse import restore as restore_images
    from fewstep.runtime.distributed import process_group, rank, use

    use(device)
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
            label=label,
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
            print(f"{out}: {found.metrics['n']} images, {samples} samples each; preview: {out / 'sheet.png'}")


def table(metrics: dict[str, Any]) -> str:
    """The metrics as a table for a reader, and below it what could not be measured."""
    from fewstep.metrics.protocol import table as markdown_table

    rows = [
        [name, k, f"{v:.4g}"] for name, of in metrics["metrics"].items() for k, v in of.items() if k != "convention"
    ]
    notes = "".join(f"{name}: {note}\n" for name, note in metrics["notes"].items())
    return (markdown_table(["measure", "of", "value"], rows) if rows else "") + notes

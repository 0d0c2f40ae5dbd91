"""`fewstep restore`: inverse problems with a model, simulated or given, with many samples of the posterior."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from fewstep.runtime import outputs

if TYPE_CHECKING:
    from fewstep.core.denoiser import Denoiser
    from fewstep.inverse import Operator


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
    """Restore images: measure them and invert, or invert given measurements; every sample is one draw of the posterior.

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
        first: only so many images, the first ones.
        seed: of all noise.
        sigma_y: deviation of the measurement's noise, where images are in [-1, 1].
        solver: pnp_gd, or dps, daps, diffpir for a teacher.
        preset: of pnp_gd: published (NCVSD's) or balanced (less bias; for tasks without a published one).
        beta: of pnp_gd: 2 sigma^2 of the noise that the measurement is taken to have. Default: the preset's.
        rho: of pnp_gd's published levels: exponent of the ramp. Default: the preset's.
        sigma_min: of pnp_gd: lowest noise level. Default: the preset's.
        sigma_max: of pnp_gd: first noise level. Default: the preset's.
        ema_sigma: of pnp_gd: average the estimates below this noise level. Default: the preset's.
        ema_decay: of pnp_gd: share of the former average; 0 for none. Default: the preset's.
        nfe: evaluations of the network for each sample, at most.
        prior_steps: evaluations for one draw (pnp_gd) or estimate (daps) by a teacher.
        weight: the step of dps (the authors' code's; twice that of the paper's text), the trust in the denoiser of diffpir
            (a quarter of its code's lambda).
        mask: image or npy file for the inpainting tasks: black (or 0) is missing.
        kernel: npy file (h, w) for the deblurring tasks.
        factor: of super_resolution.
        ncvsd_shift: the circular blurs also move the image by one pixel, up and left, as NCVSD's code does at even sizes:
            for measurements made by it.
        label: class of all images, or data (those of the data set), or none; a model with classes needs one of them.
        vae: for a model of latents, the folder of its VAE (diffusers' AutoencoderKL) or the name on the hub; what the model
            names if left out.
        batch: samples at a time; it does not change them.
    """
    if samples < 1 or batch < 1 or nfe < 1 or prior_steps < 1:
        raise ValueError(
            f"--samples, --batch, --nfe and --prior-steps must be at least 1; got {samples}, {batch}, {nfe}, {prior_steps}"
        )
    if first is not None and first < 1:
        raise ValueError(f"--first must be at least 1; got {first}")
    outputs.folder(out, apart=[model, mask, kernel], outside=[images])
    if seed < 0:
        raise ValueError(f"--seed must not be negative; got {seed}")
    if weight is not None and not 0 < weight < float("inf"):
        raise ValueError(f"--weight must be positive and finite; got {weight}")
    changes = {
        "beta": beta,
        "rho": rho,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "ema_below": ema_sigma,
        "ema_decay": ema_decay,
    }
    typed = ["ema_sigma" if name == "ema_below" else name for name, value in changes.items() if value is not None]
    if typed and solver != "pnp_gd":
        raise ValueError(f"{flags(typed)}: of pnp_gd, no effect on {solver}; leave it out")
    if rho is not None and preset == "balanced":
        raise ValueError("--rho has no effect on the preset balanced; leave it out, or take --preset published")
    if not sigma_y > 0:
        raise ValueError(
            f"--sigma-y must be positive; got {sigma_y}. For exact measurements take a small one, such as 0.001"
        )

    from dataclasses import replace

    from fewstep.inverse.restorations import pixel_shape, replacing, restore_all, write_summary
    from fewstep.inverse.restore import Solver, named_preset
    from fewstep.io.model_folder import card, find_model_folder, load
    from fewstep.runtime.distributed import barrier, device, process_group, rank
    from fewstep.runtime.files import sha256
    from fewstep.runtime.progress import Progress

    with process_group():
        denoiser = load(model, device=device(), vae=vae)
        denoiser.codec.prepare(device())
        operator = build(task, pixel_shape(denoiser), mask, kernel, factor, ncvsd_shift=ncvsd_shift)
        options = solver_options(solver, weight)
        settings = {name: value for name, value in changes.items() if value is not None}
        chosen = (
            Solver(solver, replace(named_preset(preset, task), **settings), nfe, prior_steps, options)
            if solver == "pnp_gd"
            else (Solver(solver, evaluations=nfe, prior_steps=prior_steps, options=options))
        )
        chosen.check(denoiser)
        job = read_job(images, denoiser, operator, task, given=given, num=first, label=label)
        job = job(sigma_y=sigma_y, samples=samples, seed=seed, batch_size=batch)
        total = len(range(rank(), len(job.names), world())) * samples
        protocol = {
            "task": task,
            "model": card(model).name or model.name,
            "weights": sha256(find_model_folder(model) / "model.safetensors"),
            "images": images,
            "measurement": "given" if given else "simulated",
            "sigma_y": sigma_y,
            "seed": seed,
            "class": label or "none",
        }
        barrier()  # every rank has read what it restores
        with replacing(out) as place:
            with Progress("restore", total=total, unit="samples") as progress:
                result = restore_all(denoiser, job, chosen, place, protocol=protocol, progress=progress.update)
            if rank() == 0:
                write_summary(result, job, place)
        if rank() == 0:
            print(table(result), end="")
            columns = "measurement, samples" + (", mean, deviation" if samples > 1 else "")
            print(f"{out}: {len(job.names)} images, {samples} samples each")
            print(f"{out / 'sheet.png'}, from left to right: {'' if given else 'truth, '}{columns}")


def world() -> int:
    from fewstep.runtime.distributed import world_size

    return world_size()


def flags(names: list[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


def build(
    task: str,
    shape: tuple[int, int, int],
    mask: Path | None,
    kernel: Path | None,
    factor: float | None,
    *,
    ncvsd_shift: bool = False,
) -> Operator:
    """The operator of a task, with the user's mask, kernel or factor; what has no use is refused."""
    import torch

    from fewstep import inverse
    from fewstep.inverse.adapters import operator_of
    from fewstep.inverse.restore import BLURS, TASKS
    from fewstep.runtime.own import load_file

    known = task if task in TASKS else ""  # a user's operator has a name of its own
    uses = {"mask": "inpainting", "kernel": "deblur", "factor": "super_resolution", "ncvsd_shift": "deblur"}
    for name, value in {"mask": mask, "kernel": kernel, "factor": factor, "ncvsd_shift": ncvsd_shift or None}.items():
        if value is not None and uses[name] not in known:
            raise ValueError(f"{flags([name])} has no effect on the task {task}; leave it out")
    shift = (-1, -1) if ncvsd_shift else (0, 0)
    if mask is not None:
        return inverse.Inpainting(torch.from_numpy(read_mask(mask)), shape)
    if kernel is not None:
        return inverse.CircularBlur(torch.from_numpy(read_array(kernel)).double(), shape, shift)
    if ncvsd_shift:
        return BLURS[task](shape, shift)
    if factor is not None:
        return inverse.super_resolution(shape, factor)
    if ".py:" in task:
        file, _, name = task.rpartition(":")
        return operator_of(load_file(Path(file), name), shape)
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}; there are {', '.join(TASKS)}, and mine.py:operator")
    return TASKS[task](shape)


def solver_options(solver: str, weight: float | None) -> dict[str, Any]:
    if weight is None:
        return {}
    names = {"dps": "weight", "diffpir": "trust"}
    if solver not in names:
        raise ValueError(f"--weight has no effect on {solver}; leave it out")
    return {names[solver]: weight}


def read_mask(path: Path) -> Any:
    """A mask (H, W), float32: 0 is missing. An npy file is taken as it is, (C, H, W) too; an image is cut at half of its
    range, which is 0 to 1 where it has no larger value.
    """
    import numpy as np

    if path.suffix == ".npy":
        return read_array(path).astype(np.float32)
    pixels = np.asarray(read_image(path).convert("L"))
    if not pixels.any():
        raise ValueError(f"{path}: every pixel of this mask is black, which means missing; invert it")
    white = 1 if pixels.max() == 1 else 255
    return (pixels > white / 2).astype(np.float32)


def read_image(path: Path) -> Any:
    """An image as grey or RGB of 8 bits; ValueError if that would lose anything, such as transparency."""
    from fewstep.data.convert import convert
    from fewstep.data.files import load_image
    from fewstep.runtime.files import regular

    loaded = load_image(regular(path).read_bytes(), str(path))
    try:
        return convert(loaded, "plain")[0]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_array(path: Path) -> Any:

    from fewstep.data.files import parse_array
    from fewstep.runtime.files import regular

    array = parse_array(regular(path).read_bytes(), str(path))
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: expected an npy file of real numbers; got {array.dtype}")
    return array.copy()  # that of the file's bytes is read-only


def read_job(
    images: str, denoiser: Denoiser, operator: Operator, task: str, *, given: bool, num: int | None, label: str | None
) -> Any:
    """A `Job` that lacks its numbers: names, truth or measurements, labels."""
    from functools import partial

    from fewstep.data import images as open_images
    from fewstep.inverse.restorations import Job, pixel_shape

    shape = pixel_shape(denoiser)
    truth, measurements, data = None, None, None
    if given:
        files = (sorted(Path(images).glob("*.npy")) or sorted(Path(images).glob("*.png")))[:num]
        if not files:
            raise ValueError(
                f"{images}: expected a folder of measurements NAME.npy, as fewstep restore writes them, or NAME.png"
            )
        names = [file.stem for file in files]
        measurements = [read_array(file) if file.suffix == ".npy" else read_pixels(file, operator) for file in files]
        check_measurements(operator, files, measurements)
    else:
        data = open_images(images)
        if tuple(data.shape) != shape:
            raise ValueError(
                f"the model restores images of shape {shape}, and {images} has {tuple(data.shape)} (C, H, W); "
                "fewstep data pack makes them so"
            )
        count = len(data) if num is None else min(num, len(data))
        truth = [data[i] for i in range(count)]
        names = [name.replace("/", "-").rpartition(".")[0] for name in (data.names or [])[:count]]
        if len(set(names)) < count:
            names = [f"{i:06d}" for i in range(count)]
    labels = choose_labels(denoiser, data, label, len(names))
    return partial(
        Job, task=task, operator=operator, names=names, truth=truth, measurements=measurements, labels=labels
    )


def read_pixels(path: Path, operator: Operator) -> Any:
    """The measurement (c, h, w) that an image shows, float32 in [-1, 1]."""
    import numpy as np

    from fewstep.inverse import PhaseRetrieval

    if isinstance(operator, PhaseRetrieval):
        raise ValueError(f"{path}: an image cannot hold the moduli of a Fourier transform; give NAME.npy")
    pixels = np.asarray(read_image(path), dtype=np.float32) / 127.5 - 1
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def check_measurements(operator: Operator, files: list[Path], measurements: list[Any]) -> None:
    """Refuse measurements that the operator cannot have made, by name, before anything is computed."""
    import numpy as np
    import torch

    with torch.no_grad():
        expected = tuple(operator.A(torch.zeros(1, *operator.shape)).shape[1:])
    for file, y in zip(files, measurements, strict=True):
        if y.shape != expected or not np.issubdtype(y.dtype, np.floating) or not np.isfinite(y).all():
            bad = int((~np.isfinite(y)).sum()) if np.issubdtype(y.dtype, np.floating) else 0
            raise ValueError(
                f"{file}: this task's measurements are finite floats of shape {expected}; got {y.dtype} {y.shape}"
                + (f" with {bad} NaN or infinite values" if bad else "")
            )


def choose_labels(denoiser: Denoiser, data: Any, label: str | None, n: int) -> list[int] | None:
    if not denoiser.num_classes:
        if label not in (None, "none"):
            raise ValueError("this model has no classes; leave --class out")
        return None
    if label is None:
        raise ValueError(
            f"this model has {denoiser.num_classes} classes: give --class NUMBER, or data (the labels of the data set), or "
            "none"
        )
    if label == "none":
        if not denoiser.knows_no_class:
            print(
                "fewstep: warning: --class none: this model was trained with classes alone (label_dropout 0), and its "
                "predictions without one are unreliable; give --class NUMBER or data",
                file=sys.stderr,
            )
        return None
    if label == "data":
        known = getattr(data, "labels", None)
        if known is None:
            raise ValueError("--class data needs a data set with labels; give a number, or none")
        chosen = [int(v) for v in known[:n]]
    elif label.isdecimal():
        chosen = [int(label)] * n
    else:
        raise ValueError(f"--class is a number, data or none; got {label!r}")
    if max(chosen) >= denoiser.num_classes:
        raise ValueError(f"labels of this model are 0 to {denoiser.num_classes - 1}; got {max(chosen)}")
    return chosen


def table(result: dict[str, Any]) -> str:
    """The figures as a table for a reader; what could not be measured, below it."""
    from fewstep.metrics.protocol import table as markdown_table

    rows = [[name, k, f"{v:.4g}"] for name, of in result["figures"].items() for k, v in of.items() if k != "convention"]
    notes = "".join(f"{name}: {note}\n" for name, note in result["notes"].items())
    return (markdown_table(["measure", "of", "value"], rows) if rows else "") + notes

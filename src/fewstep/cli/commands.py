"""`fewstep demo`, `sample` and `report`. What a command needs is imported when it runs, so that `--help` needs no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from fewstep.cli.arguments import parse_seeds
from fewstep.cli.sampling import Sampling
from fewstep.runtime import outputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def demo(
    *,
    out: Path = Path("runs/demo"),
    minutes: float = 5.0,
    all_methods: bool = False,
    fresh: bool = False,
    seed: int = 0,
) -> None:
    """The whole path on a laptop: teacher, one-step student, samples, measurements, restorations, report.

    Args:
        out: where everything is written; a second call continues or reuses what is there.
        minutes: about how long training of teacher and one student may take on two cores; more is better.
        all_methods: a student by every method of distillation, about three minutes each.
        fresh: start over.
        seed: of weights, data order and noise.
    """
    from fewstep.demo import demo as run_demo
    from fewstep.runtime.distributed import process_group

    outputs.folder(out)
    with process_group():
        run_demo(out, minutes=minutes, all_methods=all_methods, fresh=fresh, seed=seed)


def sample(
    model: Positional[Path],
    *,
    seeds: str = "0-63",
    out: Path | None = None,
    grid: Path | None = None,
    npz: Path | None = None,
    subdirs: bool = False,
    label: Annotated[int | None, arg(name="class")] = None,
    batch: int | None = None,
    overwrite: bool = False,
    sampling: OmitArgPrefixes[Sampling] = Sampling(),
) -> None:
    """Make images: one for each seed, as PNG files, as one grid, as one array, or all of these.

    Args:
        model: model or run folder.
        seeds: such as 0-63 or 1,2,5-10.
        out: folder for one PNG per seed, or one npy (C, H, W) where images are neither grey nor RGB: a new one, or one of
            numbered images alone.
        grid: PNG file for all images side by side; of images that are neither grey nor RGB, channel beside channel.
        npz: file for all images as one array, arr_0 (N, H, W, C).
        subdirs: a folder for every 1,000 seeds.
        label: class index for all images; drawn from the seed if left out.
        batch: images at a time; 64 if left out, on GPUs as many as fit. It does not change them.
        overwrite: replace existing files.
        sampling: how.
    """
    if out is None and grid is None and npz is None:
        raise ValueError("nowhere to write to: give --out FOLDER, --grid FILE.png, --npz FILE.npz, or several of them")
    chosen = parse_seeds(seeds)
    for option, path, suffix in (("--grid", grid, ".png"), ("--npz", npz, ".npz")):
        if path is not None and path.suffix.lower() != suffix:
            raise ValueError(
                f"{option} writes {suffix[1:].upper()}; name the file so, such as images{suffix}; got {str(path)!r}"
            )
        if path is not None:
            outputs.file(path, overwrite=overwrite)
    if out is not None:
        outputs.image_folder(out, (f"{seed:06d}" for seed in chosen), overwrite=overwrite)
    if batch is not None and batch < 1:
        raise ValueError(f"--batch must be at least 1; got {batch}")

    import numpy as np

    from fewstep.data.grid import grid as make_grid
    from fewstep.data.grid import save_image, save_png
    from fewstep.runtime.distributed import process_group, rank, world_size
    from fewstep.runtime.files import new_file
    from fewstep.sample import gathered, generate

    with process_group():
        network = sampling.load(model)
        plan, mine = sampling.plan(network), chosen[rank() :: world_size()]
        made = generate(network, chosen, label=label, plan=plan, batch_size=batch, tf32=sampling.tf32, progress=True)

        def written() -> Iterator[NDArray[np.uint8]]:
            for seed, image in zip(mine, made, strict=True):
                if out is not None:
                    folder = out / f"{seed - seed % 1000:06d}" if subdirs else out
                    save_image(image, folder / f"{seed:06d}")
                yield image

        if grid is None and npz is None:
            deque(written(), maxlen=0)
            return
        images = list(gathered(written(), len(chosen)))
        if grid is not None and rank() == 0:
            save_png(make_grid(np.stack(images)), grid)
            print(f"{grid}: {len(images):,} images")
        if npz is not None and rank() == 0:
            with new_file(npz) as partial, partial.open("wb") as file:
                np.savez(file, arr_0=np.stack(images))
            print(f"{npz}: {len(images):,} images")


def report(folder: Positional[Path]) -> None:
    """Write report.html, one self-contained page, from the runs and results in a folder.

    Args:
        folder: a run, or a folder of runs.
    """
    from fewstep.report.page import write_report

    print(write_report(folder))

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
    """Train, distil, sample, evaluate and restore on a laptop with the built-in digits, and write a report.

    Args:
        out: folder for everything; repeat the command to continue.
        minutes: training time of teacher and one student, about, on two CPU cores; longer gives better images.
        all_methods: distil with every method, about three minutes each.
        fresh: delete earlier results and start over.
        seed: seed of weights, data order and noise.
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
    """Generate one image per seed, and write them as PNG files, a grid, an array, or all of these.

    Args:
        model: model or run folder, or hf://owner/name.
        seeds: seeds, such as 0-63 or 1,2,5-10; each gives one image.
        out: folder for one PNG per seed (npy (C, H, W) for images that are neither grey nor RGB). The folder must be new, or
            hold only numbered images.
        grid: PNG file with all images side by side, or their channels if they are neither grey nor RGB.
        npz: npz file with all images in one array, arr_0 (N, H, W, C).
        subdirs: one subfolder of --out per 1,000 seeds.
        label: class index of all images. Default: drawn from each seed.
        batch: images at a time; does not affect the images. Default: 64, on GPUs as many as fit.
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
    """Write report.html, a self-contained page about the runs and results in a folder.

    Args:
        folder: run folder, or folder of runs.
    """
    from fewstep.report.page import write_report

    print(write_report(folder))

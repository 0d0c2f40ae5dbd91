"""Commands on model folders: `convert`, `export`, `ema`, `push` and `pull`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from fewstep.cli.arguments import next_step
from fewstep.cli.sampling import levels as parse_levels
from fewstep.runtime import outputs


def convert(
    source: Positional[str],
    out: Positional[Path],
    *,
    kind: Literal["teacher", "student"] | None = None,
    levels: str | None = None,
    network: str | None = None,
    vae: str | None = None,
    overwrite: bool = False,
) -> None:
    """Convert an upstream snapshot or training state (EDM, EDM2, STF, SiD, SiDA, GDD, NCVSD) to a model folder. Nothing in
    the file is executed.

    Args:
        source: path or http(s) address of the file.
        out: model folder to write.
        kind: kind of network, for files that do not record it, such as SiD's students of EDM.
        levels: for a student, the noise levels of its sampling steps, such as 2.5. If unset: those of its class.
        network: which network of the file to convert, such as ema, net, G_ema, G, fake_score. If unset: the EMA.
        vae: for a latent model: folder of its VAE (diffusers' AutoencoderKL) or its name on the hub, recorded in the model.
            If unset: the VAE that the file names.
        overwrite: replace an existing model folder.
    """
    from fewstep.core.codec import Pixels
    from fewstep.data.codec import with_vae
    from fewstep.io.convert import convert as read
    from fewstep.io.convert import fetch
    from fewstep.io.hub import FILES
    from fewstep.io.model_folder import save

    outputs.new_folder(out, FILES, apart=[source], outside=[source], overwrite=overwrite)
    path = Path(source) if Path(source).is_dir() else fetch(source)
    start = None if levels is None else tuple(level for level in parse_levels(levels) if level)
    address = source if "://" in source else None
    denoiser, origin = read(path, source=address, levels=start, kind=kind, network=network)
    if vae is not None:
        denoiser.codec = with_vae(denoiser.codec, vae)
    print(f"{origin.source}: {origin.bytes:,} bytes, sha256 {origin.sha256}")
    print(f"{origin.classes}, {sum(p.numel() for p in denoiser.parameters()):,} parameters")
    for note in origin.notes:
        print(f"  {note}")
    save(denoiser, out, origin.card(source))
    if denoiser.needs_observation:
        use = "a fake score, for training alone"
    else:
        starts = ", ".join(f"{level:g}" for level in denoiser.levels or ())
        print(f"a student, which generates from sigma = {starts}" if starts else "a denoiser of all noise levels")
        if not isinstance(denoiser.codec, Pixels) and find_spec("diffusers") is None:
            print('to decode its latents, install diffusers: pip install "fewstep[vae]"')
        use = next_step("sample", out, "--grid", "grid.png")
    print(f"License of the weights: {origin.license}")
    if warning := origin.license_warning:
        print(f"fewstep: warning: {warning}", file=sys.stderr)
    print(f"{out}: {use}")


def export(model: Positional[Path], out: Positional[Path], *, overwrite: bool = False) -> None:
    """Export the weights of a model under their upstream names, as one safetensors file, for other programs.

    Args:
        model: model or run folder.
        out: safetensors file to write.
        overwrite: replace an existing file.
    """
    from fewstep.io.export import check_suffix, export_weights
    from fewstep.io.model_folder import find_model_folder, load

    check_suffix(out)
    outputs.file(out, outside=[find_model_folder(model)], overwrite=overwrite)
    print(f"{out}: {len(export_weights(load(model), out))} tensors")


def ema(run: Positional[Path], *, std: str, nimg: int | None = None, out: Path | None = None) -> None:
    """Reconstruct EMA weights of any length after training (post-hoc EMA, EDM2) from snapshots of a run.

    Args:
        run: run folder trained with power-function averages, or a folder of EDM2's snapshot pickles.
        std: relative EMA lengths, such as 0.05,0.10.
        nimg: number of training images at which the EMA ends. If unset: the last snapshot.
        out: folder for the model folders. If unset: RUN/posthoc.
    """
    from fewstep.train.posthoc import reconstruct

    try:
        stds = [float(part) for part in std.split(",")]
    except ValueError as error:
        raise ValueError(f'--std needs numbers such as "0.05,0.10"; got {std!r}') from error
    for path in reconstruct(run, stds, nimg=nimg, out=out):
        print(path)


def push(
    model: Positional[Path],
    repository: Positional[str],
    *,
    license: str | None = None,
    metrics: tuple[Path, ...] = (),
    private: bool = False,
) -> None:
    """Upload a model to the Hugging Face hub, with its card. Needs the extra hub and a login (hf auth login).

    Args:
        model: model or run folder.
        repository: owner/name; created if it does not exist.
        license: license of the weights, such as Apache-2.0, if the card does not state one.
        metrics: results of this model to add to the card: JSON files that fewstep eval --json wrote.
        private: create a private repository.
    """
    from fewstep.io import sharing

    print(sharing.push(model, repository, license=license, metrics=metrics, private=private))


def pull(repository: Positional[str], out: Positional[Path], *, overwrite: bool = False) -> None:
    """Download a model from the Hugging Face hub as a model folder: weights, configuration and card only.

    Args:
        repository: owner/name, optionally with @ and a branch, tag or commit.
        out: folder to write.
        overwrite: replace an existing model folder.
    """
    from fewstep.io import hub, sharing
    from fewstep.io.model_folder import card

    outputs.new_folder(out, hub.FILES, overwrite=overwrite)
    sharing.pull(repository, out)
    print(f"{out}: license of the weights: {card(out).license}; {next_step('sample', out, '--grid', 'grid.png')}")

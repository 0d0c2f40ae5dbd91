"""Models to and from the Hugging Face hub, with checks of what is published: `push` and `pull`."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from fewstep.io import hub
from fewstep.io.card import UNSTATED, Card
from fewstep.io.model_folder import card, find_model_folder, load, read_config
from fewstep.metrics.protocol import read_results
from fewstep.runtime.files import new_folder, sha256


def push(
    model: str | Path,
    repository: str,
    *,
    license: str | None = None,
    metrics: Sequence[str | Path] = (),
    private: bool = False,
) -> str:
    """Send a model with its card to the Hugging Face hub, in one commit. Needs `fewstep[hub]` and `hf auth login`.

    Args:
        model: model folder, or run folder for its newest snapshot. It is loaded first, so nothing damaged is published.
        repository: owner/name; created if it does not exist.
        license: license of the weights, such as Apache-2.0; needed if the card does not state one, and only then.
        metrics: files of `fewstep eval --json` for exactly these weights, to add to the card.
        private: create the repository as a private one.

    Returns:
        The web address of the commit.

    Raises:
        ValueError: the model is damaged or names a VAE by a local folder, the license is missing or contradicts the card,
            results belong to other weights, or the hub refuses.

    Example:
        >>> push("runs/sid", "me/digits-sid", license="Apache-2.0", metrics=["fid.json"])
    """
    address = hub.parse(repository)
    folder = find_model_folder(model)
    config = read_config(folder)
    vae = str(config["codec"].get("vae", ""))
    if vae and (Path(vae).exists() or vae.count("/") != 1):
        raise ValueError(
            f"{folder} names its VAE by a folder of this machine, {vae!r}, which others do not have; convert the model "
            "again without --vae, and give --vae when you use it"
        )
    load(folder)
    about = with_license(card(folder), license)
    about = dataclasses.replace(about, metrics=with_results(about.metrics, metrics, folder / "model.safetensors"))
    config |= {"card": dataclasses.asdict(about)}
    files: dict[str, Path | bytes] = {
        "model.safetensors": folder / "model.safetensors",
        "config.json": (json.dumps(config, indent=2, allow_nan=False) + "\n").encode(),
        "README.md": about.markdown(config, str(address)).encode(),
    }
    return hub.upload(address, files, private=private)


def with_license(about: Card, license: str | None) -> Card:
    """The card with the license of its weights, which must be stated exactly once: in the card or by the caller."""
    if license is not None and about.license not in (UNSTATED, license):
        raise ValueError(f"the card states the license of the weights, {about.license}; leave --license out")
    if license is None and about.license == UNSTATED:
        raise ValueError("the card does not state the license of the weights; give it, such as --license Apache-2.0")
    return dataclasses.replace(about, license=license or about.license)


def with_results(metrics: list[dict], files: Sequence[str | Path], weights: Path) -> list[dict]:
    """Metrics of a card with the results in files, which must have been measured with these weights."""
    if not files:
        return metrics
    digest = sha256(weights)
    results = [(path, result) for path in files for result in read_results(Path(path))]
    if others := [path for path, result in results if result.protocol.get("weights") != digest]:
        raise ValueError(f"{others[0]} holds results of another model: its protocol does not name the weights {digest}")
    return metrics + [result.asdict() for _, result in results if result.asdict() not in metrics]


def pull(repository: str, folder: str | Path) -> Path:
    """Copy a model from the Hugging Face hub to a model folder, complete or not at all. Needs `fewstep[hub]`.

    Args:
        repository: owner/name, or owner/name@revision with a branch, tag or commit.
        folder: the folder to write; an older model in it is replaced.

    Returns:
        The folder.

    Raises:
        ValueError: the model cannot be fetched, is not one of fewstep, or is damaged; or the folder holds anything else.

    Example:
        >>> model = fs.load(pull("me/digits-sid@v1", "models/sid"))
    """
    folder = Path(folder)
    source = hub.fetch(hub.parse(repository))
    with new_folder(folder, hub.FILES) as partial:
        for name in hub.FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, partial / name)
        load(partial)
    return folder

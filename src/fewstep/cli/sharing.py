"""`fewstep push` and `fewstep pull`: models on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from fewstep.cli.arguments import next_step


def push(
    model: Positional[Path],
    repository: Positional[str],
    *,
    license: str | None = None,
    metrics: tuple[Path, ...] = (),
    private: bool = False,
) -> None:
    """Send a model to the Hugging Face hub, with its card; needs fewstep[hub] and a login (hf auth login).

    Args:
        model: model or run folder.
        repository: owner/name; made if it is not there.
        license: of the weights, such as Apache-2.0, where the card does not state one.
        metrics: results of this very model, as fewstep eval --json writes them, for the card.
        private: make the repository a private one.
    """
    import dataclasses
    import json

    from fewstep.io import hub
    from fewstep.io.card import UNSTATED
    from fewstep.io.model_folder import card, find_model_folder, load, read_config
    from fewstep.metrics.protocol import read_results
    from fewstep.runtime.files import sha256

    address = hub.parse(repository)
    folder = find_model_folder(model)
    vae = str(read_config(folder)["codec"].get("vae", ""))
    if vae and (Path(vae).exists() or vae.count("/") != 1):
        raise ValueError(
            f"{folder} names its VAE by a folder of this machine, {vae!r}, which nobody else has; write the folder anew "
            "without --vae, and name the VAE where the model is used"
        )
    load(folder)  # nothing that is damaged is published
    about = card(folder)
    if license is not None and about.license not in (UNSTATED, license):
        raise ValueError(f"the card says that the license of the weights is {about.license}; leave --license out")
    if license is None and about.license == UNSTATED:
        raise ValueError("the card does not state the license of the weights; give it, such as --license Apache-2.0")
    weights = sha256(folder / "model.safetensors")
    results = [(path, result) for path in metrics for result in read_results(path)]
    if others := [str(path) for path, result in results if result.protocol.get("weights") != weights]:
        raise ValueError(
            f"{others[0]} holds results of another model: its protocol does not have the weights {weights}"
        )
    figures = about.metrics + [r.asdict() for _, r in results if r.asdict() not in about.metrics]
    about = dataclasses.replace(about, license=license or about.license, metrics=figures)
    config = read_config(folder) | {"card": dataclasses.asdict(about)}
    files = {
        "model.safetensors": folder / "model.safetensors",
        "config.json": (json.dumps(config, indent=2, allow_nan=False) + "\n").encode(),
        "README.md": about.markdown(config, str(address)).encode(),
    }
    print(hub.push(address, files, private=private))


def pull(repository: Positional[str], out: Positional[Path]) -> None:
    """Get a model from the Hugging Face hub as a model folder: its weights, configuration and card, nothing else.

    Args:
        repository: owner/name, optionally with @ and a branch, tag or commit.
        out: folder to write.
    """
    from fewstep.io import hub
    from fewstep.io.model_folder import card, load
    from fewstep.runtime import outputs

    outputs.new_folder(out, hub.FILES)
    hub.pull(hub.parse(repository), out, load)
    next_one = next_step("sample", out, "--grid", "grid.png")
    print(f"{out}: license of the weights: {card(out).license}; {next_one}")

"""Models of this library as other programs read them: the weights under the names of the upstream networks."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fewstep.core.conditional import ConditionalDenoiser, GenerativeDenoiser
from fewstep.core.denoiser import Denoiser
from fewstep.core.precondition import IDDPM
from fewstep.distill.conditional import ConditionalDiscriminator
from fewstep.io.model_folder import contiguous
from fewstep.io.upstream_names import prefixes_of
from fewstep.runtime.files import new_file, write_tensors


def upstream_state_dict(model: Denoiser | ConditionalDiscriminator) -> dict[str, Tensor]:
    """The tensors of a model under the names, and in the order, of the upstream preconditioner's state dict.

    Args:
        model: a denoiser, a generator, or NCVSD's fake score or discriminator.

    Returns:
        The model's own tensors by upstream name. iDDPM's table of noise levels is among them, as `u`.

    Raises:
        ValueError: the model has a feature that the upstream format cannot hold.

    Example:
        >>> original.load_state_dict(upstream_state_dict(fs.load("models/cifar10")))
    """
    if isinstance(model, ConditionalDenoiser) and model.fused:
        raise ValueError("the upstream format cannot hold a fused fake score; share the model folder instead")
    if isinstance(model, GenerativeDenoiser) and model.means:
        raise ValueError(
            "the upstream format cannot hold a generator that starts about mean images; share the model folder instead"
        )
    table = {"u": model.precondition.table} if isinstance(model.precondition, IDDPM) else {}
    prefixes = prefixes_of(model)
    return table | {prefixes.theirs(name): tensor for name, tensor in model.state_dict().items()}


def export_weights(model: Denoiser, file: str | Path) -> dict[str, Tensor]:
    """Write the weights of a model under their upstream names, as one safetensors file.

    Args:
        model: the denoiser, as `fewstep.load` returns it.
        file: the file to write, complete or not at all; its name ends in .safetensors.

    Returns:
        The tensors that were written, by name.

    Raises:
        ValueError: the name of the file has another suffix, or the model has a feature that the upstream format cannot hold.

    Example:
        >>> export_weights(fs.load("models/cifar10"), "cifar10.safetensors")
    """
    file = Path(file)
    check_suffix(file)
    tensors = contiguous(upstream_state_dict(model))
    with new_file(file) as partial:
        write_tensors(partial, tensors, metadata={"format": "pt"})
    return tensors


def check_suffix(file: Path) -> None:
    """Raise ValueError for a file name that does not end in .safetensors."""
    if file.suffix != ".safetensors":
        raise ValueError(
            f"{file}: weights are exported as safetensors; name the file {file.with_suffix('.safetensors')}"
        )

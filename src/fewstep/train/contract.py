"""What a run asks of a `Method`, checked before anything is written."""

from __future__ import annotations

from fewstep.core.denoiser import Denoiser
from fewstep.core.method import Method, Phase


def check_method(method: Method) -> None:
    """Refuse a method whose phases or product are not as `Method` says.

    A product beside a teacher is taken for a generator, which must carry the noise levels that it is sampled from: without
    them it would be sampled as a teacher is, in many steps.
    """
    kind, modules = type(method).__name__, dict(method.named_modules())
    phases, product = getattr(method, "phases", None), getattr(method, "product", None)
    if not isinstance(phases, tuple) or not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise ValueError(f"{kind}.phases must be a tuple of Phase(player, loss), at least one; got {phases!r}")
    for phase in phases:
        if phase.player not in modules:
            raise ValueError(
                f"{kind}: the phase {phase.name} moves {phase.player!r}, which is no network of the method"
            )
    if not isinstance(product, str) or not isinstance(modules.get(product), Denoiser):
        known = [name for name, module in modules.items() if isinstance(module, Denoiser)]
        raise ValueError(
            f"{kind}.product must be the name of one of its denoisers ({', '.join(known) or 'it has none'}); got {product!r}"
        )
    moving = {phase.player for phase in phases}
    teachers = [n for n, m in method.named_children() if isinstance(m, Denoiser) and n not in moving and n != product]
    result = modules[product]
    assert isinstance(result, Denoiser)
    if teachers and result.levels is None and not method.every_level:
        raise ValueError(
            f"{kind}: the {product} has no noise levels to be sampled from. Set {product}.levels, such as (2.5,) for one step; "
            f"if it denoises at every level, as the {teachers[0]} does, set every_level = True on the method"
        )

"""What a misspelt name may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def suggestion(name: str, known: Iterable[str], otherwise: str, *, cutoff: float = 0.6) -> str:
    """The known names that are most like `name`, as a question; `otherwise` if none is.

    Example:
        >>> suggestion("sampel", ["sample", "eval"], "see --help")
        'did you mean sample?'
    """
    near = get_close_matches(name, [*known], n=3, cutoff=cutoff)
    if not near:
        return otherwise
    *others, last = near
    return f"did you mean {', '.join(others) + ' or ' if others else ''}{last}?"

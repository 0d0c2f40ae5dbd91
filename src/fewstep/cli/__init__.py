"""The command line: `fewstep COMMAND ...`. A command is a typed function; its signature is its options."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on standard error and exit code 2, a warning is one line."""
    from fewstep.cli.commands import run

    format_before, warnings.formatwarning = warnings.formatwarning, warning_line
    try:
        run(list(sys.argv[1:] if argv is None else argv))
    except (ValueError, OSError) as error:
        print(f"fewstep: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fewstep: interrupted", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = format_before
    return 0


def warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as a user reads it, without the place in our source."""
    return f"fewstep: warning: {message}\n"

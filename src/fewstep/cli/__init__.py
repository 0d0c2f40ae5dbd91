"""The command line: `fewstep COMMAND ...`. A command is a typed function; its signature is its options."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on standard error and exit code 2."""
    from fewstep.cli.commands import run

    try:
        run(list(sys.argv[1:] if argv is None else argv))
    except (ValueError, OSError) as error:
        print(f"fewstep: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fewstep: interrupted", file=sys.stderr)
        return 130
    return 0

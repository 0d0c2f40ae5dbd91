"""The command line: `fewstep COMMAND ...`. A command is a typed function; its signature is its options."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on standard error and exit code 2, a warning is one line.

    Of several ranks the one that fails says which it is and why, above its trace.
    """
    from fewstep.cli.commands import run

    words = list(sys.argv[1:] if argv is None else argv)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    name = f"fewstep: rank {os.environ['RANK']}" if several else "fewstep"
    format_before, warnings.formatwarning = warnings.formatwarning, warning_line
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminated)
    try:
        recorded(run)(words)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has read enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError, MemoryError) as error:
        print(f"{name}: error: {shown(as_typed(told(error), words))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fewstep: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if several:
            print(f"{name}: {type(error).__name__}: {shown(error)}", file=sys.stderr, flush=True)
        raise
    finally:
        warnings.formatwarning = format_before
    return 0


def terminated(number: int, frame: FrameType | None) -> NoReturn:
    """End as an exception does, so that temporary files and processes go; the second signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def told(error: ValueError | OSError | MemoryError) -> str:
    """What an error says; of one of the system the file, and what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error) or "there is not enough memory"


def as_typed(message: str, argv: Sequence[str]) -> str:
    """A message with its options spelled as they were typed: `--S_max` and `--S-max` are the same option."""
    typed = {word.replace("_", "-"): word for word in (w.partition("=")[0] for w in argv) if word.startswith("--")}
    return re.sub(r"--[A-Za-z][\w-]*", lambda found: typed.get(found[0].replace("_", "-"), found[0]), message)


def recorded(command: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """Under `torchrun`, the command with its exception left in a file from which torchrun names the first rank to fail."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return command
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(command)


def warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as a user reads it, without the place in our source."""
    return f"fewstep: warning: {shown(message)}\n"


def shown(message: object) -> str:
    """A message as a terminal may have it: only its own lines, those after the first set in, and no secrets of addresses."""
    from fewstep.foreign import public, visible

    return re.sub(r"\n(?! )", "\n  ", visible(public(message), keep="\n\t"))

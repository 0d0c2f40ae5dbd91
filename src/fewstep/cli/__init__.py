"""The command line: `fewstep COMMAND ...`. A command is a typed function; its signature is its options."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from fewstep.cli.messages import as_typed, describe, for_terminal, printable, warning_line
from fewstep.cli.streams import check_streams, discard, flush
from fewstep.runtime.threads import bound_spin


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    A user's mistake is one line on standard error and exit code 2; so is an error in a user's own Python file, with file and
    line. A warning is one line. `--debug`, in any place, shows the trace of every error. Of several ranks, the one that fails
    prints which it is and why.

    Args:
        argv: the words after `fewstep`; those of this process if left out.

    Returns:
        The exit code.

    Example:
        >>> main(["sample", "runs/student", "--grid", "grid.png"])
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    format_before, warnings.formatwarning = warnings.formatwarning, warning_line
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end_on_signal)
    bound_spin()
    name = "fewstep"
    try:
        check_streams()
        name = program_name()
        run(words)
        return 0
    except BrokenPipeError:  # the reader has stopped, as `head` does
        discard()
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        stop_bars()
        print("fewstep: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        stop_bars()
        message = describe(error)
        if debug:
            traceback.print_exc()
        if message is None:  # a bug of this library, or of what it uses
            if name != "fewstep":
                print(f"{name}: {type(error).__name__}: {for_terminal(error)}", file=sys.stderr, flush=True)
            raise
        print(f"{name}: error: {for_terminal(printable(as_typed(message, words), words))}", file=sys.stderr, flush=True)
        return 2
    finally:
        warnings.formatwarning = format_before


def run(words: list[str]) -> None:
    """Run the command and flush what it printed, also where the parser exits after its help."""
    from fewstep.cli import dispatch

    try:
        recorded(dispatch.run)(words)
    finally:
        flush()


def stop_bars() -> None:
    if "fewstep.runtime.progress" in sys.modules:
        sys.modules["fewstep.runtime.progress"].stop()


def program_name() -> str:
    """The name in front of an error: the program, and of several ranks which one."""
    from fewstep.runtime.launch import launched

    rank, world = launched()
    return f"fewstep: rank {rank}" if world > 1 else "fewstep"


def end_on_signal(number: int, frame: FrameType | None) -> NoReturn:
    """Exit by an exception, so that temporary files and processes are removed; a second signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def recorded(command: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
    """The command; under `torchrun` with its exception in a file, from which torchrun names the first rank to fail."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return command
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(command)

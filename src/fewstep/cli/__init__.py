"""The command line: `fewstep COMMAND ...`. A command is a typed function; its signature is its options."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from fewstep.runtime.threads import bound_spin


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; a user's mistake is one line on standard error and exit code 2, a warning is one line.

    An error in a user's own Python file is one line, too, with file and line; `--debug`, in any place, shows the trace of
    every error. Of several ranks the one that fails says which it is and why.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    format_before, warnings.formatwarning = warnings.formatwarning, warning_line
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, terminated)
    bound_spin()
    name = "fewstep"
    try:
        streams()
        name = speaker()
        run(words)
        return 0
    except BrokenPipeError:  # who reads has read enough, as `head`
        discard()
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        stop_bars()
        print("fewstep: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        stop_bars()
        said = told(error)
        if debug:
            traceback.print_exc()
        if said is None:  # a fault of this library, unless its cause is elsewhere
            if name != "fewstep":
                print(f"{name}: {type(error).__name__}: {shown(error)}", file=sys.stderr, flush=True)
            raise
        print(f"{name}: error: {shown(printable(as_typed(said, words), words))}", file=sys.stderr, flush=True)
        return 2
    finally:
        warnings.formatwarning = format_before


def run(words: list[str]) -> None:
    """The command, and what it printed to the end: also where the parser ends the process after its help."""
    from fewstep.cli import commands

    try:
        recorded(commands.run)(words)
    finally:
        flush()


def stop_bars() -> None:
    if "fewstep.runtime.progress" in sys.modules:
        sys.modules["fewstep.runtime.progress"].stop()


def streams() -> None:
    """Refuse a closed standard output; what is written to a closed standard error is lost.

    The next file that is opened would get the number of the closed one, and be written into.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # as long as the process
    if sys.stdout is None:
        raise ValueError("standard output is closed; to discard what is printed, redirect it: >/dev/null")


def flush() -> None:
    """Bring to its reader what was printed; a disk that is full is an error of standard output."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard()
        raise OSError(error.errno, error.strerror or "cannot be written", "standard output") from error


def discard() -> None:
    """Let what is left in the buffer of standard output go nowhere, so that the interpreter does not try again at its end."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # a notebook's, which is no file
    empty = os.open(os.devnull, os.O_WRONLY)
    os.dup2(empty, number)
    os.close(empty)


def speaker() -> str:
    """Who reports an error: the program, and of several ranks which one."""
    from fewstep.runtime.launch import launched

    rank, world = launched()
    return f"fewstep: rank {rank}" if world > 1 else "fewstep"


def terminated(number: int, frame: FrameType | None) -> NoReturn:
    """End as an exception does, so that temporary files and processes go; the second signal ends the process at once."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def told(error: Exception) -> str | None:
    """What an error says to a user, in one line where it is not a list; None for one that is no mistake of a user's.

    Of one of the system: the file, and what is wrong with it. Of a user's own file: the line, and the kind of the error.
    """
    from fewstep.runtime.memory import explained, lacks_memory
    from fewstep.runtime.own import place

    where, lacks = place(error), lacks_memory(error)
    loop = isinstance(error, RuntimeError) and str(error).startswith("Symlink loop")  # Path.resolve, up to Python 3.12
    if lacks and (type(error) is not MemoryError or not str(error)):
        said = f"{explained(error)}; a smaller batch (--batch, --micro-batch) or fewer steps need less"
    elif isinstance(error, FileExistsError) and error.filename is not None:
        said = f"{error.filename}: expected a folder, or a name that is free; something else lies there"
    elif isinstance(error, OSError) and error.filename is not None and error.strerror:
        said = f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    elif isinstance(error, OSError) and error.strerror:  # of what has no name, such as standard output
        said = f"{error.strerror[0].lower()}{error.strerror[1:]}"
    else:
        said = str(error)
    if where is not None:
        return f"{where}: {type(error).__name__}: {' '.join(said.split())} (--debug shows the whole trace)"
    return said or type(error).__name__ if lacks or loop or isinstance(error, (ValueError, OSError)) else None


def printable(message: str, words: Sequence[str]) -> str:
    """A message in which what the user typed is escaped where it would break the line, or command the terminal."""
    for word in words:
        value = word.partition("=")[2] if word.startswith("--") else word
        if not value.isprintable():
            message = message.replace(value, repr(value))
    return message


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
    from fewstep.runtime.foreign import public, visible

    return re.sub(r"\n(?! )", "\n  ", visible(public(message), keep="\n\t"))

"""Standard output and standard error where they are closed, full, or read by a program that stops."""

from __future__ import annotations

import os
import sys


def check_streams() -> None:
    """Raise ValueError if standard output is closed; discard what is written to a closed standard error.

    Otherwise the next file to be opened would get the number of the closed stream, and receive its text.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # as long as the process
    if sys.stdout is None:
        raise ValueError("standard output is closed; to discard what is printed, redirect it: >/dev/null")


def flush() -> None:
    """Write out what was printed. A full disk raises OSError that names standard output."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard()
        raise OSError(error.errno, error.strerror or "cannot be written", "standard output") from error


def discard() -> None:
    """Drop what is left in the buffer of standard output, so that the interpreter does not try again when it exits."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):
        return  # a notebook's, which is no file
    empty = os.open(os.devnull, os.O_WRONLY)
    os.dup2(empty, number)
    os.close(empty)

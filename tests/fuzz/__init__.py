"""Damaged files through everything that reads one: `python -m tests.fuzz --n 20000 --seed 0`, or `make fuzz`.

Each reader is given files of its kind, damaged. It may return, or raise ValueError, or OSError where the file system is at
fault; anything else, code that runs, a write outside of its folder, a process, a socket, a GiB of memory or twenty seconds
of computing is a failure, and the files that caused it are kept.

readers: the readers and the undamaged files. damage: what happens to them. watch: what a reader must not do.
"""

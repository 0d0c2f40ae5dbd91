"""Runs one benchmark: prints its figures as a table, and keeps them with machine and limits in a JSON file."""

from __future__ import annotations

import argparse
import ast
import sys
from importlib import import_module
from pathlib import Path

FOLDER = Path(__file__).parent
MACHINERY = ("__init__", "__main__", "convergence", "measure", "networks", "reference")


def known() -> dict[str, str]:
    """The benchmarks and the first lines of their descriptions; none of them is imported for it."""
    files = sorted(path for path in FOLDER.glob("*.py") if path.stem not in MACHINERY)
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
        for path in files
    }


def main(argv: list[str]) -> None:
    names = known()
    if not argv or argv[0] not in names:
        width = max(map(len, names))
        listed = "\n".join(f"  {name:{width}}  {line}" for name, line in names.items())
        print(f"usage: python -m benchmarks NAME [options] [--reference CHECKOUT] [--json OUT.json]\n\n{listed}")
        if argv and argv[0] not in ("-h", "--help"):
            raise SystemExit(f"there is no benchmark {argv[0]!r}")
        return
    # here, as the processes that decode images import this file
    from benchmarks.measure import about, write

    name, *rest = argv
    module = import_module(f"benchmarks.{name}")
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.arguments(parser)
    parser.add_argument("--json", type=Path, help="file for the figures, the machine and its limits")
    given = parser.parse_args(rest)
    record = about(name, argv)
    tables = []
    for table in module.run(given):
        print(table, flush=True)
        tables.append(table)
    if given.json is not None:
        write(given.json, record, tables)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The architecture: imports point to lower layers, and starting up is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import fewstep

ROOT = Path(fewstep.__file__).parent
LAYERS = [
    ("runtime",),
    ("core",),
    ("nets", "data", "samplers", "metrics"),
    ("distill", "inverse", "io", "train", "sample", "report"),
    ("recipes", "compare", "demo", "cli", "__main__"),
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def imports(path: Path) -> set[str]:
    """Parts of fewstep that a module imports, functions' own imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "fewstep" else [node.module]
        found |= {n.split(".")[1] for n in names if n.startswith("fewstep.")}
    return found


def parts() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for path in ROOT.rglob("*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if part != "__init__":
            graph.setdefault(part, set()).update(imports(path) - {part})
    return graph


def test_imports_point_down():
    graph = parts()
    assert set(graph) <= set(LEVEL), "a new part needs a place in the layers"
    up = [f"{a} imports {b}" for a, others in graph.items() for b in others if b in LEVEL and LEVEL[b] > LEVEL[a]]
    assert up == []


def test_algorithms_and_machinery_do_not_know_each_other():
    graph = parts()
    assert "distill" not in graph["train"]
    assert not {"train", "inverse", "sample"} & graph["io"]
    assert not {"core", "samplers"} & graph["metrics"]
    assert graph["core"] == {"runtime"}
    assert not {"data", "samplers", "metrics"} & graph["nets"]
    assert not {p for p, others in graph.items() if others & {"cli", "recipes"}} - {
        "cli",
        "compare",
        "demo",
        "__main__",
    }


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_does_not_import_torch():
    code = "import sys; from fewstep.cli import main; main(['--help']); print('torch' in sys.modules)"
    assert run(code).endswith("False\n")


def test_public_names_are_there():
    assert run("import sys, fewstep; print('torch' in sys.modules)") == "False\n"
    for name in dir(fewstep):
        assert getattr(fewstep, name) is not None


def test_no_module_hides_a_public_function():
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in ROOT.rglob("*.py")
        if not path.stem.startswith("__")
    )
    code = "print(*(n for n in dir(fewstep) if callable(getattr(fewstep, n))))"
    found = run(f"import fewstep, fewstep.{', fewstep.'.join(modules)}\n{code}").split()
    assert {"card", "generate", "load", "save", "evaluate", "images"} <= {*found}

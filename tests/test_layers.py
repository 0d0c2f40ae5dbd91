"""The architecture: imports point to lower layers, and starting up is quick."""

from __future__ import annotations

import ast
import re
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


ROOMS = ["nets", "metrics", "inverse", "samplers", "distill"]
PUBLIC = """
import sys
from importlib import import_module
import fewstep as fs

assert "torch" not in sys.modules
assert {name for package, _, name in names if package == "fewstep"} | {"__version__"} == {*fs.__all__} == {*dir(fs)}
for _ in range(2):
    for package, module, name in names:
        value = getattr(import_module(package), name)
        assert value is vars(import_module(module))[name], (package, name)
    for module in modules:
        import_module(module)
assert fs.__version__
"""


def table_of(room: str) -> Path:
    """The file that lists the public names of a room: the stub beside `__init__.py`, if they are imported on first use."""
    stub = ROOT / room / "__init__.pyi"
    return stub if stub.exists() else stub.with_suffix(".py")


def exported(path: Path) -> list[tuple[str, str, str]]:
    """The package of an `__init__` file, and module and name of each of its imports."""
    package = ".".join(path.parent.relative_to(ROOT.parent).parts)
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
    return [(package, str(node.module), name.name) for node in nodes for name in node.names]


def test_every_public_name_is_what_its_module_defines():
    """In a fresh process, and again when every module has been imported: no module hides a function of its name."""
    names = [row for path in (ROOT / "__init__.pyi", *map(table_of, ROOMS)) for row in exported(path)]
    paths = [path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py")]
    modules = sorted(".".join(path.parts) for path in paths if not path.stem.startswith("__"))
    run(f"names, modules = {names!r}, {modules!r}\n{PUBLIC}")


def test_every_module_of_a_room_is_in_the_architecture():
    page = (ROOT.parents[1] / "docs" / "architecture.md").read_text()
    listed: dict[str, set[str]] = {}
    for section in re.split(r"^### ", page, flags=re.MULTILINE)[1:]:
        room = re.match(r"`(\w+)`", section)
        if room:
            rows = re.findall(r"^\| (`.*?) \|", section.split("\n## ")[0], flags=re.MULTILINE)
            listed[room[1]] = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    assert {"core", "train", "distill"} <= set(listed)
    for room, names in listed.items():
        there = {p.stem for p in (ROOT / room).iterdir() if (p.suffix == ".py" and p.stem != "__init__")}
        there |= {p.name for p in (ROOT / room).iterdir() if p.is_dir() and p.name != "__pycache__"}
        assert names == there, room

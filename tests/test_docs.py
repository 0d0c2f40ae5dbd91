"""The documents are true: every name in them exists, every command in them is one."""

from __future__ import annotations

import re
import shlex
from importlib import import_module

import pytest

from fewstep.cli.commands import COMMANDS
from fewstep.recipes import names
from tests import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def resolve(name: str) -> object:
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            value: object = import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            value = getattr(value, part)
        return value
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_names_exist(page):
    for name in re.findall(r"`(fewstep(?:\.\w+)+)`", page.read_text()):
        assert resolve(name) is not None, name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page):
    known = names()
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for line in re.findall(r"^(?:\$ )?fewstep (.+)$", "\n".join(blocks), flags=re.MULTILINE):
        words = shlex.split(line, comments=True)
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in COMMANDS), None)
        assert name is not None, line
        if name in ("train", "distill") and not words[1].startswith("-") and ".py" not in words[1]:
            assert words[1] in known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_exist(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target

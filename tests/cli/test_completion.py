"""Completion of commands, recipes and options, by a shell that really completes."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from fewstep.cli import main

COMPLETE = """
complete_words() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _fewstep; (IFS=,; echo "${COMPREPLY[*]}"); }
"""


def test_bash_completes(tmp_path, capsys):
    assert main(["--print-completion", "bash"]) == 0
    (tmp_path / "fewstep.bash").write_text(capsys.readouterr().out)
    (tmp_path / "model").mkdir()
    expected = {
        "fewstep sam": "sample",
        "fewstep data pa": "pack",
        "fewstep data pack --re": "--resolution,--resize",
        "fewstep eval pai": "pairs",
        "fewstep sample mod": "",  # readline then completes the names of files
        "fewstep sample --out mod": "model",
        "fewstep distill digits : sid2": "sid2a",  # bash splits words at colons
        "fewstep train digits : teacher --fre": "--fresh",
        "fewstep sample model --dtype b": "bfloat16",
    }
    calls = "".join(f"complete_words {shlex.join(words.split())}\n" for words in expected)
    code = f"source fewstep.bash{COMPLETE}{calls}complete -p fewstep"
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    *found, registered = done.stdout.splitlines()
    assert (dict(zip(expected, found, strict=True)), done.stderr) == (expected, "")
    assert registered == "complete -o bashdefault -o default -F _fewstep fewstep"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell, capsys):
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_tyro_fewstep" in script and "--overwrite" in script and "digits:teacher" in script


@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"]])
def test_shells_without_a_script(words, capsys):
    assert main(["--print-completion", *words]) == 2
    assert "--print-completion needs a shell: bash, zsh, fish; got" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shell", "path", "where"),
    [
        ("bash", ".local/share/bash-completion/completions/fewstep", "if the package bash-completion is installed"),
        ("zsh", ".zfunc/_fewstep", "if .zshrc has: fpath+=("),
        ("fish", ".config/fish/completions/fewstep.fish", "new shells complete fewstep"),
    ],
)
def test_the_script_is_written_where_the_shell_of_the_user_looks(shell, path, where, tmp_path, monkeypatch, capsys):
    for name in ("XDG_DATA_HOME", "BASH_COMPLETION_USER_DIR", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    monkeypatch.setattr("fewstep.cli.completion.script", lambda words: f"script of {words}")
    assert main(["--install-completion"]) == 0
    assert (tmp_path / path).read_text() == f"script of {[shell]}"
    assert (out := capsys.readouterr().out).startswith(f"{tmp_path / path}: ") and where in out
    monkeypatch.setenv("SHELL", "/bin/sh")
    assert main(["--install-completion"]) == 2
    assert "takes a shell: bash, zsh, fish; got none, and $SHELL is /bin/sh" in capsys.readouterr().err
    assert main(["--install-completion", shell]) == 0

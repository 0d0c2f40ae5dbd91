"""Shell completion of commands and their options, by tyro: `fewstep --install-completion`, or `--print-completion bash`."""

from __future__ import annotations

import inspect
import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Union

import tyro
from tyro.conf import OmitSubcommandPrefixes, subcommand

from fewstep import recipes
from fewstep.cli.dispatch import COMMANDS, signature
from fewstep.cli.parsing import OPTIONAL, settings_function
from fewstep.cli.training import Options
from fewstep.runtime.files import new_file

SHELLS = ("bash", "zsh", "fish")

BASH = r"""
# bash splits words at colons, as in digits:teacher; tyro's function gets them whole, and names of files are completed
# where it knows nothing, as for a model folder.
_fewstep() {
  local i last words=()
  for ((i = 0; i <= COMP_CWORD; i++)); do
    if ((i > 1)) && [[ ${COMP_WORDS[i]} == : || ${COMP_WORDS[i - 1]} == : ]]; then
      words[${#words[@]} - 1]+=${COMP_WORDS[i]}
    else
      words+=("${COMP_WORDS[i]}")
    fi
  done
  local COMP_WORDS=("${words[@]}") COMP_CWORD=$((${#words[@]} - 1))
  last=${words[COMP_CWORD]}
  _tyro_fewstep "$@"
  if ((${#COMPREPLY[@]} == 1)) && [[ -z ${COMPREPLY[0]} ]]; then COMPREPLY=(); fi
  if [[ $last == *:* ]]; then COMPREPLY=("${COMPREPLY[@]#"${last%:*}:"}"); fi
}
complete -o bashdefault -o default -F _fewstep fewstep
"""


def script(words: Sequence[str]) -> str:
    """The completion script for the shell that `words` names. Raises ValueError for another one, or for none."""
    if len(words) != 1 or words[0] not in SHELLS:
        raise ValueError(f"--print-completion needs a shell: {', '.join(SHELLS)}; got {' '.join(words) or 'none'}")
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            tyro.cli(
                whole_program(), prog="fewstep", args=["--tyro-write-completion", words[0], "-"], registry=OPTIONAL
            )
    except SystemExit:  # as tyro ends after it has printed
        pass
    return printed.getvalue() + (BASH if words[0] == "bash" else "")


def install(words: Sequence[str]) -> str:
    """Write the completion script where the shell that `words` names, else the user's, looks for it.

    Returns:
        What was written, and where it works.

    Raises:
        ValueError: there is no script for the shell, or $SHELL names none.
    """
    shell = Path(os.environ.get("SHELL", "")).name
    chosen = list(words) or [shell]
    if len(chosen) != 1 or chosen[0] not in SHELLS:
        found = " ".join(words) or f"none, and $SHELL is {os.environ.get('SHELL') or 'unset'}"
        raise ValueError(f"--install-completion takes a shell: {', '.join(SHELLS)}; got {found}")
    home = Path.home()
    if chosen == ["bash"]:
        data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share") / "bash-completion"
        path = Path(os.environ.get("BASH_COMPLETION_USER_DIR") or data) / "completions" / "fewstep"
        where = "new shells complete fewstep, if the package bash-completion is installed"
    elif chosen == ["fish"]:
        path = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "fish" / "completions" / "fewstep.fish"
        where = "new shells complete fewstep"
    else:
        path = Path(os.environ.get("ZDOTDIR") or home) / ".zfunc" / "_fewstep"
        where = f"new shells complete fewstep, if .zshrc has: fpath+=({path.parent}); autoload -Uz compinit; compinit"
    text = script(chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return f"{path}: {where}"


def whole_program() -> Any:
    """All commands as one type of tyro; those of two words are subcommands of their first."""
    tree: dict[str, Callable[..., Any]] = {}
    for first in dict.fromkeys(name.split()[0] for name in COMMANDS):
        inner = {name.split()[1]: signature(name) for name in COMMANDS if name.startswith(f"{first} ")}
        if first in ("train", "distill"):
            inner = recipe_commands(first)
        elif first in COMMANDS and not inner:
            tree[first] = signature(first)
            continue
        tree[first] = group(signature(first) if first == "eval" else None, inner)
    return alternatives(tree)


def recipe_commands(command: str) -> dict[str, Callable[..., Any]]:
    """The recipes of `train` or `distill`, with their options."""
    settings = {name: recipes.get(name) for name in recipes.names()}
    return {
        name: settings_function(recipe, Options())
        for name, recipe in settings.items()
        if hasattr(recipe, "teacher") == (command == "distill")
    }


def alternatives(functions: Mapping[str, Callable[..., Any]]) -> Any:
    """A type that is one of several commands."""
    types = [Annotated[Any, subcommand(name=name, constructor=function)] for name, function in functions.items()]
    return OmitSubcommandPrefixes[Union[tuple(types)]]  # noqa: UP007  # of a list of types


def group(own: Callable[..., Any] | None, inner: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """A command that has commands within it, beside its own options if it has any."""

    def command(**_: Any) -> None:
        """Never called: completion reads its signature."""

    parameters = list(inspect.signature(own).parameters.values()) if own is not None else []
    nested = inspect.Parameter("command", inspect.Parameter.KEYWORD_ONLY)
    command.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess] - a dynamic signature
        [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters), nested]
    )
    command.__annotations__ = {**(own.__annotations__ if own is not None else {}), "command": alternatives(inner)}
    command.__annotations__.pop("return", None)
    command.__doc__ = own.__doc__ if own is not None else ""
    return command

"""Tab completion: ``fedjax-lora completion bash`` prints a script for the shell."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import tyro

from fedjax_lora.core.errors import InputError, unknown

SHELLS = ("bash", "zsh")

_SCRIPT = """_fedjax_lora() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=
  case "$before" in
{values}
  esac
  if [ -z "$words" ] && [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  elif [ -z "$words" ]; then
    case "${{COMP_WORDS[1]}}" in
{options}
    esac
    case "$word" in -*) ;; *) words= ;; esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _fedjax_lora fedjax-lora"""

_ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"


def script(shell: str, options: Mapping[str, type | None], values: Mapping[str, str]) -> str:
    """Return the script that completes ``fedjax-lora``.

    Args:
      shell: one of `SHELLS`.
      options: for each command the dataclass of its options, if it has any.
      values: words, separated by blanks, that can follow a word such as ``--method``.

    Raises:
      InputError: an unknown shell.
    """
    if shell not in SHELLS:
        raise unknown("shell", shell, SHELLS)
    cases = lambda found: "\n".join(f'    {name}) words="{words}" ;;' for name, words in found)  # noqa: E731
    text = _SCRIPT.format(
        commands=" ".join(options),
        values=cases(values.items()),
        options=cases((name, " ".join(_options(record))) for name, record in options.items()),
    )
    return _ZSH * (shell == "zsh") + text


def _options(record: type | None) -> Iterator[str]:
    """Yield the command-line options of a dataclass, those of nested ones without their prefix."""
    if record is None:
        return
    hints = typing.get_type_hints(record, include_extras=True)
    for field in dataclasses.fields(record):
        inner, markers = _unwrap(hints[field.name])
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from _options(inner)
        elif tyro.conf.Positional not in markers:
            names = [m.name for m in markers if getattr(m, "name", None)]
            yield "--" + (names[0] if names else field.name).replace("_", "-")


def _unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split an annotated type into the type and its markers."""
    if typing.get_origin(hint) is Annotated:
        return hint.__origin__, hint.__metadata__
    return hint, ()


def check_shell(words: Sequence[str]) -> str:
    """Return the shell that the words of a command name.

    Raises:
      InputError: not one word.
    """
    if len(words) != 1:
        raise InputError(
            f"fedjax-lora completion takes the name of a shell, {' or '.join(SHELLS)}; for example "
            "source <(fedjax-lora completion bash)."
        )
    return words[0]

"""`cahqp completion`: completion of commands and options in bash and zsh."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from cahqp.cli.commands import COMMANDS, Command, load_object
from cahqp.cli.training import COMMON
from cahqp.errors import option

_GLOBAL = ("--help", "--quiet", "--verbose")

_SCRIPT = """# Completion of cahqp: source <(cahqp completion {shell})
{setup}
_cahqp() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" words=""
  case "$command" in
{cases}
  esac
  [ "$COMP_CWORD" = 1 ] && words="{commands}"
  if [ -n "$words" ] && {{ [[ "$word" == -* ]] || [ "$COMP_CWORD" -le 2 ]; }}; then
    COMPREPLY=($(compgen -W "$words" -- "$word"))
  fi
  [ "${{#COMPREPLY[@]}}" = 0 ] && COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _cahqp cahqp
"""


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """Print a script that completes commands, options and files.

    Attributes:
        shell: Shell that reads the script: bash or zsh.
    """

    shell: Literal["bash", "zsh"]


def completion(options: CompletionOptions) -> None:
    """Print the script."""
    setup = "autoload -U +X bashcompinit && bashcompinit" if options.shell == "zsh" else ""
    groups = {name.split()[0] for name in COMMANDS if " " in name}
    patterns = [(f"{name} *" if " " not in name else name, _options(command)) for name, command in COMMANDS.items()]
    patterns += [
        (f"{group} *", [name.split()[1] for name in COMMANDS if name.startswith(f"{group} ")]) for group in groups
    ]
    # The pattern of two words is tried first.
    patterns.sort(key=lambda entry: "*" in entry[0])
    cases = [f'    {name.replace(" ", chr(92) + " ")}) words="{" ".join(words)}" ;;' for name, words in patterns]
    commands = " ".join(dict.fromkeys(name.split()[0] for name in COMMANDS))
    print(_SCRIPT.format(shell=options.shell, setup=setup, cases="\n".join(cases), commands=commands), end="")


def _options(command: Command) -> list[str]:
    if command.options is None:
        names = [entry[0].split()[0] for entries in COMMON.values() for entry in entries]
        return [*names, "--help-all", *_GLOBAL]
    return ["--config", *(option(field.name) for field in dataclasses.fields(load_object(command.options))), *_GLOBAL]

"""Completion scripts for shells, made from the parser itself, so they never disagree with it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import attrs

__all__ = ["completion"]

_FILES = {"file", "script", "listen"}
_VALUES = {
    "backend": ("auto", "kctl", "sock_diag", "emulated", "unix:", "replay:"),
    "provider": ("tcp", "udp", "quic", "connection", "udp_subflow", "route", "interface"),
}


@attrs.frozen
class _Option:
    flags: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]
    is_file: bool


@attrs.frozen
class _Command:
    name: str
    help: str
    options: tuple[_Option, ...]
    file: bool


def _options(parser: argparse.ArgumentParser) -> Iterator[_Option]:
    for action in parser._actions:  # noqa: SLF001  # argparse has no public way to list them
        if not action.option_strings or action.help == argparse.SUPPRESS:
            continue
        choices = tuple(map(str, action.choices)) if action.choices else _VALUES.get(action.dest, ())
        # %-references of a default would need the formatter; a completion needs no default.
        text = (action.help or "").split(" (default")[0]
        yield _Option(tuple(action.option_strings), text, action.nargs != 0, choices, action.dest in _FILES)


def _commands(parser: argparse.ArgumentParser) -> list[_Command]:
    for action in parser._actions:  # noqa: SLF001  # as above
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # as above
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001  # as above
            return [_command(name, helps.get(name, ""), sub) for name, sub in action.choices.items()]
    return []


def _command(name: str, text: str, parser: argparse.ArgumentParser) -> _Command:
    positional = any(not a.option_strings and a.dest in _FILES for a in parser._actions)  # noqa: SLF001  # as above
    return _Command(name, text, tuple(_options(parser)), positional)


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script to be sourced (bash), put into ``fpath`` (zsh) or into fish's ``completions``."""
    makers = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    return makers[shell](_commands(parser), list(_options(parser)))


def _bash(commands: list[_Command], common: list[_Option]) -> str:
    values, words, files = [], [], []
    for command in commands:
        flags = " ".join(flag for option in command.options for flag in option.flags)
        words.append(f'        {command.name}) words="{flags}" ;;')
        if command.file:
            files.append(command.name)
        for option in command.options:
            pattern = "|".join(f"{command.name}:{flag}" for flag in option.flags)
            if option.choices:
                values.append(f'        {pattern}) _nstat_async_reply "{" ".join(option.choices)}"; return ;;')
            elif option.is_file:
                values.append(f'        {pattern}) COMPREPLY=($(compgen -f -- "$current")); return ;;')
            elif option.takes_value:
                values.append(f"        {pattern}) return ;;")
    top = " ".join([*(command.name for command in commands), *(flag for o in common for flag in o.flags)])
    return _BASH.format(
        top=top, values="\n".join(values), words="\n".join(words), files="|".join(files) or "-", shells="bash zsh fish"
    )


_BASH = """\
# bash completion for nstat-async
_nstat_async_reply() {{
    # "unix:/path" is one word to us and several to readline
    COMPREPLY=($(compgen -W "$1" -- "$current"))
    if declare -F __ltrim_colon_completions >/dev/null; then __ltrim_colon_completions "$current"; fi
}}
_nstat_async() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" command="" words="" word
    COMPREPLY=()
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$word" in -*) ;; *) command="$word"; break ;; esac
    done
    if [[ "$previous" == --print-completion ]]; then _nstat_async_reply "{shells}"; return; fi
    if [[ -z "$command" ]]; then _nstat_async_reply "{top}"; return; fi
    case "$command:$previous" in
{values}
    esac
    case "$command" in
{words}
    esac
    if [[ "$current" == -* ]]; then _nstat_async_reply "$words"; return; fi
    case "$command" in
        {files}) COMPREPLY=($(compgen -f -- "$current")) ;;
    esac
}}
complete -o filenames -F _nstat_async nstat-async
"""


def _zsh_text(text: str) -> str:
    for char in "\\'[]:":
        text = text.replace(char, "'\\''" if char == "'" else f"\\{char}")
    return text


def _zsh_option(option: _Option) -> str:
    value = ""
    if option.takes_value:
        words = " ".join(word.replace(":", "\\:") for word in option.choices)
        action = f"({words})" if words else ("_files" if option.is_file else "")
        value = f":value:{action}"
    return " ".join(f"'{flag}[{_zsh_text(option.help)}]{value}'" for flag in option.flags)


def _zsh(commands: list[_Command], common: list[_Option]) -> str:
    names = "\n".join(f"        '{command.name}:{_zsh_text(command.help)}'" for command in commands)
    cases = []
    for command in commands:
        specs = [_zsh_option(option) for option in command.options]
        if command.file:
            specs.append("'1:file:_files'")
        cases.append(f"        {command.name}) _arguments {' '.join(specs)} ;;")
    options = " ".join(_zsh_option(option) for option in common)
    return _ZSH.format(names=names, cases="\n".join(cases), options=options)


_ZSH = """\
#compdef nstat-async
_nstat_async() {{
    local state line
    local -a commands
    commands=(
{names}
    )
    _arguments -C {options} '1:command:->command' '*::argument:->argument'
    case "$state" in
        command) _describe command commands ;;
        argument) case "$line[1]" in
{cases}
        esac ;;
    esac
}}
if [[ "$funcstack[1]" == _nstat_async ]]; then _nstat_async "$@"; else compdef _nstat_async nstat-async; fi
"""


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish_option(option: _Option, condition: str) -> str:
    parts = ["complete -c nstat-async", condition]
    parts += [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags]
    if option.choices:
        parts.append(f"-x -a {_fish_quote(' '.join(option.choices))}")
    elif option.takes_value:
        parts.append("-r -F" if option.is_file else "-x")
    parts.append(f"-d {_fish_quote(option.help)}")
    return " ".join(part for part in parts if part)


def _fish(commands: list[_Command], common: list[_Option]) -> str:
    lines = ["# fish completion for nstat-async", "complete -c nstat-async -f"]
    lines += [_fish_option(option, "-n __fish_use_subcommand") for option in common]
    for command in commands:
        lines.append(
            f"complete -c nstat-async -n __fish_use_subcommand -a {command.name} -d {_fish_quote(command.help)}"
        )
        condition = f"-n '__fish_seen_subcommand_from {command.name}'"
        lines += [_fish_option(option, condition) for option in command.options]
        if command.file:
            lines.append(f"complete -c nstat-async {condition} -F")
    return "\n".join(lines) + "\n"

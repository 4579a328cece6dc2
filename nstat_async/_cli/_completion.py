"""Completion scripts for shells, which shtab makes from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from .._errors import NstatError
from .._model import Provider
from ..aggregate import GroupBy
from ..backends._registry import ROWS

_FILES = {"file", "script", "listen", "unix_socket"}
_VALUES = {
    "by": GroupBy.names(),
    "backend": tuple(row.name for row in ROWS if row.takes is None),
    "provider": tuple(provider.value for provider in Provider if provider is not Provider.UNKNOWN),
}


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:  # noqa: SLF001  # argparse has no public way to list them
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001  # as above
            for sub in action.choices.values():
                yield from _actions(sub)


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script, which is to be sourced (bash), or put into ``fpath`` (zsh) or into fish's ``completions``.

    Args:
        parser: The parser of the whole command line; it cannot be used afterwards.
        shell: ``"bash"``, ``"zsh"`` or ``"fish"``.
    """
    try:
        import shtab  # noqa: PLC0415  # needs the extra
    except ModuleNotFoundError as error:
        raise NstatError("--print-completion needs shtab: pip install 'nstat-async[cli]'") from error
    for action in _actions(parser):
        if action.dest in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # shtab's own, argparse has none
        elif action.dest in _VALUES and action.choices is None:
            action.choices = _VALUES[action.dest]
    return f"{shtab.complete(parser, shell).rstrip()}\n"

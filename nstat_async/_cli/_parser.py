"""A parser that says a mistake in two lines: what is wrong, perhaps what was meant, and where help is."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

_USAGE = 2
_PARAMETERS = {
    "record_to": "file",
    "flow_filter": "filter",
    "providers": "provider",
    "path": "listen",
    "servers": "url",
    "credentials": "creds",
    "spool_bytes": "spool_size",
}
"""Parameters of the library whose options have other names."""
_CHOICE = re.compile(r"'([^']*)' is (?:none|not one) of ([^;]+)$")
"""How everybody says that a word is none of those that are known."""


def did_you_mean(word: object, known: Collection[str]) -> str:
    """``; did you mean 'watch'?``, or nothing."""
    text = str(word)
    bare = text.strip("-")
    close = [each for each in known if bare and each.startswith(text)]
    # Few slips hit the first letter, and without that most words are near something that has nothing to do with them.
    near = {each.strip("-"): each for each in known if each.strip("-")[:1] == bare[:1]}
    close += [near[each] for each in difflib.get_close_matches(bare, list(near), 1)]
    return f"; did you mean {close[0]!r}?" if close else ""


class Parser(argparse.ArgumentParser):
    """`argparse` with short answers."""

    needs: Mapping[str, tuple[str, ...]] = {}
    """Options that mean something only beside one of others."""
    apart: Mapping[str, tuple[str, ...]] = {}
    """Options that mean nothing beside one of others."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and leave with status 2."""
        choice = _CHOICE.search(message)
        hint = did_you_mean(choice[1], choice[2].split(", ")) if choice else ""
        usage = self.format_usage().strip()
        self.exit(_USAGE, f"{self.prog}: error: {message}{hint}\n{usage}     ({self.prog} --help says more)\n")

    def misused(self, text: str) -> NoReturn:
        """Say what the library found wrong: it names a parameter, people know an option."""
        name, colon, rest = text.partition(": ")
        wanted = [_PARAMETERS.get(name, name), "backend"] if name in _PARAMETERS else [name]
        options = {each.dest: each for each in self._actions}
        action = next((options[each] for each in wanted if each in options), None) if colon else None
        self.error(text if action is None else str(argparse.ArgumentError(action, rest)))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As `argparse` does; a subcommand's unknown arguments are its own mistake, not that of the whole command."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings if action.dest != "help"]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(unknown[0], options)}")
        self._check_company(found)
        return found, unknown

    def _check_company(self, found: argparse.Namespace) -> None:
        """See that no option is given that would do nothing: whoever wrote it believes that it does something."""

        def given(option: str) -> bool:
            action = self._option_string_actions[option]
            return bool(getattr(found, action.dest) != action.default)

        for option, others in self.needs.items():
            if given(option) and not any(map(given, others)):
                self.error(f"argument {option}: only with {' or '.join(others)}")
        for option, others in self.apart.items():
            for other in filter(given, others if given(option) else ()):
                self.error(f"argument {option}: not with {other}")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help goes out whole, also where standard output does not block."""
        from ._output import Output, say  # noqa: PLC0415  # needed by help and mistakes alone

        if message and file is sys.stdout is not None:
            Output().lines(message.splitlines())
        elif message:
            say(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is not None and value not in choices:
            raise argparse.ArgumentError(action, f"{value!r} is none of {', '.join(map(str, choices))}")

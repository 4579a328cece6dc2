"""A parser that reports a mistake in two lines: what is wrong (perhaps with a suggestion), and where to find help."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Mapping
from typing import Any, NoReturn

from ._output import in_one_line

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
_CHOICE = re.compile(r"'([^']*)' is not one of ([^;]+)$")
"""The form of all messages about an unknown word."""


def did_you_mean(word: object, known: Collection[str]) -> str:
    """``; did you mean 'watch'?``, or nothing."""
    text = str(word)
    bare = text.strip("-")
    close = [each for each in known if bare and each.startswith(text)]
    # Typing errors rarely change the first letter, and without this rule most words resemble an unrelated one.
    near = {each.strip("-"): each for each in known if each.strip("-")[:1] == bare[:1]}
    close += [near[each] for each in difflib.get_close_matches(bare, list(near), 1)]
    return f"; did you mean {close[0]!r}?" if close else ""


class Parser(argparse.ArgumentParser):
    """`argparse` with short error messages."""

    needs: Mapping[str, tuple[str, ...]] = {}
    """Options that need one of certain other options."""
    apart: Mapping[str, tuple[str, ...]] = {}
    """Options that do nothing together with certain other options."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, and exit with status 2."""
        choice = _CHOICE.search(message)
        hint = did_you_mean(choice[1], choice[2].split(", ")) if choice else ""
        usage = self.format_usage().strip()
        self.exit(
            _USAGE, f"{self.prog}: error: {in_one_line(message)}{hint}\n{usage}     ({self.prog} --help says more)\n"
        )

    def misused(self, text: str) -> NoReturn:
        """Report a mistake that the library found: its parameter becomes the name of an option."""
        name, colon, rest = text.partition(": ")
        wanted = [_PARAMETERS.get(name, name), "backend"] if name in _PARAMETERS else [name]
        options = {each.dest: each for each in self._actions}
        action = next((options[each] for each in wanted if each in options), None) if colon else None
        self.error(text if action is None else str(argparse.ArgumentError(action, rest)))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in `argparse`, but a subcommand reports its unknown arguments itself."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings if action.dest != "help"]
            self.error(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(unknown[0], options)}")
        self._check_combinations(found)
        return found, unknown

    def _check_combinations(self, found: argparse.Namespace) -> None:
        """Refuse options that would do nothing, because their user expects an effect."""

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
        """Print help completely, even if standard output is non-blocking."""
        from ._output import Output, say  # noqa: PLC0415  # needed by help and mistakes alone

        if message and file is sys.stdout is not None:
            Output().lines(message.splitlines())
        elif message:
            say(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = action.choices
        if choices is not None and value not in choices:
            raise argparse.ArgumentError(action, f"{value!r} is not one of {', '.join(map(str, choices))}")

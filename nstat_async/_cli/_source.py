"""What the common options mean: which backend, which flows, how often."""

from __future__ import annotations

import argparse
import errno
import sys
from typing import Any

import attrs

from .. import backends
from .._contract import Backend
from .._errors import BackendUnavailableError, UnavailableReason, UsageError
from .._model import Provider
from .._options import DEFAULT_PROVIDERS
from ..filters import Filter, by_provider, check_reach, from_items, unknown_users
from ._output import complain


def backend_of(arguments: argparse.Namespace) -> Backend:
    """The backend that ``--backend`` (with ``--kernel``, ``--netns`` and ``--since``) names."""
    namespaces = [_namespace(text) for text in arguments.netns or ()]
    backend = backends.named(arguments.backend, kernel=arguments.kernel, netns=namespaces)
    since = getattr(arguments, "since", None)
    if since is None:
        return backend
    if not isinstance(backend, backends.Fleet):
        raise UsageError(
            f"since: backend {backend.name} has no past; a fleet has (fleet:URL), and `replay` plays recordings"
        )
    return attrs.evolve(backend, since=since)


def missing(command: str, error: ImportError) -> BackendUnavailableError:
    """The error about a missing package of a command."""
    text = str(error)
    what = text.partition(" needs ")[2]  # without the module's name, which means nothing to users of the command
    return BackendUnavailableError(command, UnavailableReason.DEPENDENCY, f"{command} needs {what}" if what else text)


def check_input(path: str | None) -> None:
    """Check that there is a standard input, if ``-`` means it."""
    if path == "-" and sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed")


def _namespace(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdigit() else text


def filter_of(arguments: argparse.Namespace) -> Filter | None:
    """The filter of ``--pid``, ``--process``, ``--no-loopback`` and ``--filter``: a flow must pass each that is given."""
    items = [("pid", str(pid)) for pid in arguments.pid or ()]
    items += [("process", name) for name in arguments.process or ()]
    items += [("~loopback", "")] * arguments.no_loopback
    result = from_items(items)
    for each in arguments.filter or ():
        result = each if result is None else result & each
    return result


def is_recorded(arguments: argparse.Namespace) -> bool:
    """True when the events come from a recording."""
    return arguments.command == "replay" or str(arguments.backend).startswith("replay:")


def _check_filter(chosen: Filter, arguments: argparse.Namespace, backend: Backend) -> None:
    """Refuse conditions that no flow can meet here, and say which users this machine does not know.

    Raises:
        UsageError: No flow of this command has what is asked for.
    """
    keys = {key for key, _ in chosen.conditions}
    if "outcome" in keys and arguments.command == "snapshot":
        raise UsageError(
            "filter: outcome: the flows of a snapshot have not ended; `watch` and `processes` see the ends"
        )
    if "namespace" in keys and isinstance(backend, backends.SockDiag) and backend.netns == (None,):
        raise UsageError("filter: namespace: only this network namespace is watched, which has no name; see --netns")
    check_reach(chosen, backend.name, arguments.provider or DEFAULT_PROVIDERS)
    if isinstance(backend, (backends.SockDiag, backends.Kctl)):  # other users than this machine's have other names
        for name in unknown_users(chosen):
            complain(f"filter: no user of this machine is named {name!r}")


def monitor_options(arguments: argparse.Namespace, backend: Backend | None = None) -> dict[str, Any]:
    """The keywords of `Monitor` for the common options; options that are not given keep their default.

    Args:
        arguments: Those of the command.
        backend: Where the flows come from; `None`: a recording.

    Raises:
        UsageError: The filter is about what flows of this backend never have.
    """
    names = ("interval", "ebpf", "extras", "every_update")
    options: dict[str, Any] = {name: value for name in names if (value := getattr(arguments, name, None))}
    pulse = getattr(arguments, "pulse", None)
    if pulse is not None:
        options["pulse"] = pulse or None  # 0 is off
    condition = filter_of(arguments)
    if condition is not None and backend is not None:
        _check_filter(condition, arguments, backend)
    recorded = is_recorded(arguments)
    if recorded and arguments.provider:  # a recording has all its flows: filter them
        chosen = by_provider(*arguments.provider)
        condition = chosen if condition is None else condition & chosen
    if recorded or arguments.provider:
        options["providers"] = frozenset(arguments.provider or Provider)
    if condition is not None:
        options["flow_filter"] = condition
        if condition.needs_extras:
            options["extras"] = True  # otherwise the filter would never match, which looks like silence
    return options

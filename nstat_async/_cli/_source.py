"""What the common options mean: which backend, which flows, how often."""

from __future__ import annotations

import argparse
import errno
import sys
from typing import Any

from .. import backends
from .._contract import Backend
from .._model import Provider
from ..filters import Filter, by_provider, from_items, parse

__all__ = ["backend_of", "check_input", "every_provider", "filter_of", "monitor_options"]


def backend_of(arguments: argparse.Namespace) -> Backend:
    """The backend that ``--backend`` (with ``--kernel`` and ``--netns``) names.

    Raises:
        UsageError: Options contradict each other, or one is missing.
        BackendUnavailableError: It cannot be had on this machine.
    """
    namespaces = [_namespace(text) for text in arguments.netns or ()]
    return backends.named(arguments.backend, kernel=arguments.kernel, netns=namespaces)


def check_input(path: str) -> None:
    """See that there is a standard input where ``-`` stands for it.

    Raises:
        OSError: It was closed before the program began.
    """
    if path == "-" and sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed")


def _namespace(text: str) -> str | int:
    return int(text) if text.isascii() and text.isdigit() else text


def filter_of(arguments: argparse.Namespace) -> Filter | None:
    """The filter of ``--pid``, ``--process``, ``--no-loopback`` and ``--filter``: a flow must pass each that is given.

    Raises:
        UsageError: ``--filter`` says something unknown.
    """
    items = [("pid", str(pid)) for pid in arguments.pid or ()]
    items += [("process", name) for name in arguments.process or ()]
    items += [("~loopback", "")] * arguments.no_loopback
    result = from_items(items)
    for text in arguments.filter or ():
        each = parse(text)
        result = each if result is None else result & each
    return result


def every_provider() -> frozenset[Provider]:
    """All kinds of flows: what a recording shows when nothing else is asked for."""
    return frozenset(Provider)


def monitor_options(arguments: argparse.Namespace, *, recorded: bool = False) -> dict[str, Any]:
    """The keywords of `Monitor` that the common options stand for; what was not given keeps its default.

    Args:
        arguments: The parsed options.
        recorded: True: the events come from a recording, which may hold more providers
            than a monitor asks for by default.
    """
    options: dict[str, Any] = {}
    condition = filter_of(arguments)
    if arguments.provider:
        options["providers"] = frozenset(arguments.provider)
        if recorded:  # whoever recorded asked for what there is; leave the rest out
            chosen = by_provider(*arguments.provider)
            condition = chosen if condition is None else condition & chosen
    elif recorded:
        options["providers"] = every_provider()
    if condition is not None:
        options["flow_filter"] = condition
    if arguments.interval is not None:
        options["interval"] = arguments.interval
    if getattr(arguments, "ebpf", None):
        options["ebpf"] = arguments.ebpf
    if getattr(arguments, "extras", False):
        options["extras"] = True
    if getattr(arguments, "every_update", False):
        options["every_update"] = True
    return options

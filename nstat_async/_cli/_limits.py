"""Says on standard error, in one line, what a command cannot see here, so that a blind monitor does not look idle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from .._escape import escape
from .._events import HostState, silent_hosts
from .._model import Capabilities, Provider, Visibility
from ._output import complain


class _Able(Protocol):
    """A monitor or a snapshot."""

    @property
    def capabilities(self) -> Capabilities: ...


_NAMED = 3
"""Most silent machines that are named."""
_FEW = {
    Visibility.OWN: "{} of this user only",
    Visibility.SOME: "{} of some users only",
    Visibility.NONE: "no {}",
}


def unseen(able: Capabilities) -> list[str]:
    """What is seen of this machine only in part, as far as that is known."""
    seen = [(able.flows, "flows"), (able.processes, "processes")]
    parts = [_FEW[whose].format(what) for whose, what in seen if whose in _FEW]
    if able.backend == "sock_diag" and not able.final_counts:
        parts.append("no ends of flows")
    if able.namespaces_limit is not None:
        parts.append("not all network namespaces in full")
    return parts


def limits_text(able: Capabilities) -> str | None:
    """What is not seen, and what would help; `None` if nothing is missing, as far as known."""
    parts = unseen(able)
    if not parts:
        return None
    reasons = [each for each in (able.processes_limit, able.namespaces_limit) if each is not None]
    return f"sees {', '.join(parts)}: {'; '.join(reasons) or 'nstat-async doctor says why'}"


def silence_text(hosts: Mapping[str, HostState]) -> str | None:
    """Which machines of a fleet are silent; `None` if none is."""
    silent = silent_hosts(hosts)
    if not silent:
        return None
    names = ", ".join(map(escape, silent[:_NAMED])) + (", …" if len(silent) > _NAMED else "")
    return f"{len(silent)} of {len(hosts)} machines {'is' if len(silent) == 1 else 'are'} silent: {names}"


def refusal_texts(refused: Mapping[Provider, str]) -> list[str]:
    """Which kinds of flows are not counted, and why."""
    return [f"no {provider.value} flows: {escape(why) or 'refused'}" for provider, why in refused.items()]


class Limits:
    """Says once what is not seen, as soon as that is known, e.g. after the first search for processes."""

    def __init__(self, *, recorded: bool) -> None:
        self._due = not recorded
        """False for a recording, and after it was said."""

    def say(self, watcher: _Able) -> None:
        """Say it, unless it was said, nothing is missing, or nothing was answered yet: that may be no kernel at all."""
        able = watcher.capabilities if self._due else None  # else each batch would pay for finding out
        text = limits_text(able) if able is not None and able.providers else None
        if text is not None:
            self._due = False
            complain(text)

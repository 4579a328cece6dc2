"""What a command cannot see here, in one line on standard error: a monitor that sees little must not look idle."""

from __future__ import annotations

from .._model import Capabilities, Visibility
from ._output import complain

__all__ = ["limits_text", "say_limits", "unseen"]

_FEW = {
    Visibility.OWN: "{} of this user only",
    Visibility.SOME: "{} of some users only",
    Visibility.NONE: "no {}",
}


def unseen(able: Capabilities) -> list[str]:
    """What of this machine is seen in part only, as far as that is known."""
    seen = [(able.flows, "flows"), (able.processes, "processes")]
    parts = [_FEW[whose].format(what) for whose, what in seen if whose in _FEW]
    if able.backend == "sock_diag" and not able.final_counts:
        parts.append("no ends of flows")
    if able.namespaces_limit is not None:
        parts.append("some network namespaces only")
    return parts


def limits_text(able: Capabilities) -> str | None:
    """What is not seen, and what would help; `None` if nothing is known to be missing."""
    parts = unseen(able)
    if not parts:
        return None
    reasons = [each for each in (able.processes_limit, able.namespaces_limit) if each is not None]
    return f"sees {', '.join(parts)}: {'; '.join(reasons) or 'nstat-async doctor says why'}"


def say_limits(able: Capabilities, *, recorded: bool) -> None:
    """Say it; of a recording whoever made it knows."""
    text = None if recorded else limits_text(able)
    if text is not None:
        complain(text)

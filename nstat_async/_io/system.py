"""Which operating system this is: the one place that asks."""

from __future__ import annotations

import sys

from .._errors import BackendUnavailableError, UnavailableReason

DARWIN = "darwin"
LINUX = "linux"


def system() -> str:
    """Name of this operating system, as Python has it."""
    return sys.platform


def is_here(platform: str) -> bool:
    """True if this is that operating system."""
    return system().startswith(platform)


def require(platform: str, backend: str, what: str) -> None:
    """See that this is that operating system.

    Raises:
        BackendUnavailableError: It is another one; `what` says what is missing here.
    """
    if not is_here(platform):
        raise BackendUnavailableError(backend, UnavailableReason.PLATFORM, f"this is {system()}; {what}")

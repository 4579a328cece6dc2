"""Tells which operating system this is; no other module asks."""

from __future__ import annotations

import sys

from .._errors import BackendUnavailableError, UnavailableReason

DARWIN = "darwin"
LINUX = "linux"


def system() -> str:
    """Name of this operating system, as Python calls it."""
    return sys.platform


def is_here(platform: str) -> bool:
    """True if this operating system is `platform`."""
    return system().startswith(platform)


def require(platform: str, backend: str, what: str) -> None:
    """Check that this operating system is `platform`.

    Raises:
        BackendUnavailableError: It is another one; `what` tells what is missing here.
    """
    if not is_here(platform):
        raise BackendUnavailableError(backend, UnavailableReason.PLATFORM, f"this is {system()}; {what}")

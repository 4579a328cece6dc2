"""What the errors of netlink sockets mean, and what helps."""

from __future__ import annotations

from .._errnos import MORE_FILES, error_text
from .._errors import BackendUnavailableError, UnavailableReason

_FORBIDDEN = "a seccomp filter (of a container or a service) or a security module forbids it"
_FAMILY = "AF_NETLINK is not allowed here: add it to RestrictAddressFamilies= of the service, or allow it in the seccomp filter"
_REMEDIES = {
    1: (UnavailableReason.PERMISSION, _FORBIDDEN),
    13: (UnavailableReason.PERMISSION, _FORBIDDEN),
    12: (UnavailableReason.RESOURCE, "the kernel has no memory for it"),
    23: (UnavailableReason.RESOURCE, "the whole system has no more (fs.file-max)"),
    24: (UnavailableReason.RESOURCE, MORE_FILES),
    105: (UnavailableReason.RESOURCE, "the kernel has no memory for it"),
    93: (
        UnavailableReason.MISSING,
        "this kernel, or what stands in for one (gVisor), has no sock_diag (CONFIG_INET_DIAG)",
    ),
    97: (UnavailableReason.PERMISSION, _FAMILY),
}


def is_refusal(number: int) -> bool:
    """True for an error that will come again: something forbids the socket, or the kernel does not have it."""
    reason, _ = _REMEDIES.get(number, (None, ""))
    return reason in {UnavailableReason.PERMISSION, UnavailableReason.MISSING}


def refusal_text(number: int) -> str:
    """An error of one netlink socket in words, with its remedy where one is known; other sockets work."""
    reason, remedy = _REMEDIES.get(number, (UnavailableReason.MISSING, ""))
    return error_text(number) if reason is UnavailableReason.MISSING else f"{error_text(number)}; {remedy}"


def unavailable(number: int) -> BackendUnavailableError:
    """The error of a backend whose netlink socket fails."""
    reason, remedy = _REMEDIES.get(
        number, (UnavailableReason.MISSING, "the kernel may have no sock_diag (CONFIG_INET_DIAG)")
    )
    return BackendUnavailableError("sock_diag", reason, f"its netlink socket failed: {error_text(number)}; {remedy}")

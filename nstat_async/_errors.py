"""The errors of the library.

One tree:

- `NstatError`
    - `UsageError` -- the caller asked for something that cannot work (also a `ValueError`)
        - `MonitorClosedError` -- reading from a monitor that was closed
        - `ConcurrentReadError` -- two tasks read one subscription at once
    - `ProtocolError` -- bytes broke the rules of their format
        - `RecordingError` -- the bytes of a recording broke its rules
    - `RequestError` -- the kernel refused a request
    - `BackendUnavailableError` -- a kernel interface cannot be opened here
    - `IncompleteSnapshotError` -- `snapshot` could not see everything; it has what was seen
    - `StreamEndedError` -- nothing waits and nothing will come

A `UsageError` is the caller's fault, a `ProtocolError` or `RequestError` is the other
side's answer, a `BackendUnavailableError` comes from the machine. Every error has its
facts as attributes; the text is made of them.
"""

from __future__ import annotations

import enum

from ._model import Counts, Flow


class NstatError(Exception):
    """Base of everything this library raises on purpose."""

    recorded = False
    """True if this error ended a recorded run: it is what the replay ends with, too, and nothing is wrong with the recording."""


class UsageError(NstatError, ValueError):
    """An argument or a call cannot work, whatever the kernel does."""


class MonitorClosedError(UsageError):
    """The monitor (or subscription) was closed before this read."""


class ConcurrentReadError(UsageError):
    """A second task read from a subscription that another task is reading."""


class ProtocolError(NstatError):
    """Bytes break the rules of their format.

    Args:
        reason: What is wrong, for a person.
        offset: Where in `raw` the trouble begins, in bytes.
        raw: The bytes concerned (a datagram, a message, a record).
    """

    def __init__(self, reason: str, *, offset: int = 0, raw: bytes = b"") -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset
        self.raw = raw

    def __str__(self) -> str:
        return f"{self.reason} (at byte {self.offset} of {len(self.raw)})"


class RecordingError(ProtocolError):
    """The file is not a recording, or has a format version that is not known."""

    path: str | None = None
    """The file; `None` if it has no name."""

    def __str__(self) -> str:
        return self.reason if self.path is None else f"{self.path}: {self.reason}"


class RequestError(NstatError):
    """The kernel refused a request.

    Args:
        operation: What was asked, e.g. ``"ADD_ALL_SRCS tcp"``.
        errno: The kernel's error number. A Darwin kernel has Darwin's numbers,
            whatever the host is: compare with
            `nstat_async.ntstat.DarwinErrno`.
        detail: What it means, for a person.
    """

    def __init__(self, operation: str, errno: int, detail: str = "") -> None:
        super().__init__(operation, errno, detail)
        self.operation = operation
        self.errno = errno
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.operation}: {self.detail or f'the kernel answered error {self.errno}'}"


class UnavailableReason(enum.Enum):
    """Why a kernel interface cannot be opened on this machine."""

    PLATFORM = "platform"
    """This operating system has no such interface."""
    PERMISSION = "permission"
    """The interface exists, but this process may not use it."""
    MISSING = "missing"
    """The operating system is right, but the interface is missing."""
    KERNEL = "kernel"
    """The kernel's version is unknown, too old, or was not given."""
    RESOURCE = "resource"
    """The machine ran out of descriptors or memory while opening."""
    DEPENDENCY = "dependency"
    """An optional package is needed and not installed."""


class BackendUnavailableError(NstatError):
    """A backend cannot be opened here.

    Args:
        backend: The backend's name, e.g. ``"kctl"``.
        reason: The kind of obstacle.
        detail: What happened and what to do, for a person.
    """

    def __init__(self, backend: str, reason: UnavailableReason, detail: str) -> None:
        super().__init__(backend, reason, detail)
        self.backend = backend
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"backend {self.backend!r} is unavailable ({self.reason.value}): {self.detail}"


class IncompleteSnapshotError(NstatError):
    """Something is known to be missing in a `nstat_async.snapshot`.

    Args:
        flows: The flows that were seen, with their counts.
        detail: What is missing and why, for a person.
    """

    def __init__(self, flows: tuple[tuple[Flow, Counts | None], ...], detail: str) -> None:
        super().__init__(flows, detail)
        self.flows = flows
        self.detail = detail

    def __str__(self) -> str:
        return f"the snapshot is incomplete, {len(self.flows)} flows are known: {self.detail}"


class StreamEndedError(NstatError):
    """Nothing waits and nothing more will come: a recording is over, or the kernel's side ended."""

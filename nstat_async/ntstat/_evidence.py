"""Look-ups: what a session asks of its transport, and the answers.

- Flows with known values, which prove a layout on a living kernel: the transport
  opens them (real sockets on loopback, or an emulated kernel's) and keeps them open
  until the session asks it to close them.
- Paths of executables, which ntstat does not have.
- The kernel's own counts of its failures.
- The interfaces' counters.
"""

from __future__ import annotations

import attrs

from .._model import Endpoint, Provider, TcpState


@attrs.frozen(kw_only=True)
class KnownFlow:
    """A flow all of whose values are known beforehand."""

    provider: Provider
    """`Provider.TCP` or `Provider.UDP`, in the kernel."""
    local: Endpoint
    """Its own end."""
    remote: Endpoint
    """The other end."""
    state: TcpState | None
    """TCP state; `None` for UDP."""
    rx_bytes: int
    """Payload received so far."""
    tx_bytes: int
    """Payload sent so far."""


@attrs.frozen(kw_only=True)
class Evidence:
    """The known flows that are open now, all of one process."""

    flows: tuple[KnownFlow, ...]
    """Each flow with its values."""
    pid: int
    """Pid of the process."""
    uid: int
    """User of the process."""
    interface_index: int | None
    """Index of the loopback interface; `None` if it is not known."""
    unique_pid: int | None = None
    """Unique id of the process; `None` if it is not known."""
    uuid: bytes | None = None
    """UUID of the executable; `None` if it is not known."""


@attrs.frozen
class OpenEvidence:
    """Look-up: open known flows; answered by `Evidence`, or `None` if that is not possible."""


@attrs.frozen
class CloseEvidence:
    """Look-up: close the known flows; answered by `None`."""


@attrs.frozen
class FindPaths:
    """Look-up: the executables of these processes; answered by `PathsFound`."""

    pids: tuple[int, ...]
    """Their pids."""


@attrs.frozen
class PathsFound:
    """The executables of processes."""

    pids: tuple[int, ...]
    """The pids of the request."""
    paths: tuple[str | None, ...]
    """Paths in the order of `pids`; `None` for a process that is gone, or may not be seen."""


@attrs.frozen
class ReadLedger:
    """Look-up: the kernel's counts of its failures; answered by `Ledger`, or `None` if they may not be read."""


@attrs.frozen
class LedgerRow:
    """The kernel's counts for one control socket (``nstat_metrics``)."""

    client: int
    """The kernel's number of the socket; later ones have higher numbers."""
    refused: int
    """Sources that the kernel did not make, for lack of memory or of room for the announcement."""
    failed_goodbyes: int
    """Sources whose final report was refused."""


@attrs.frozen
class Ledger:
    """The kernel's counts for the control sockets of one monitor, and for the whole machine."""

    clients: tuple[LedgerRow, ...]
    """Empty if they are not counted (before macOS 26), or may not be read (by anyone but root)."""
    announcements: int | None = None
    """Announcements to any client that found no room (``net.stats.stats``, since xnu-3247); `None`: not known."""


@attrs.frozen
class ReadInterfaces:
    """Look-up: the interfaces' counters and names; answered by `InterfacesRead`, or `None` if they may not be read."""


@attrs.frozen
class InterfacesRead:
    """The interfaces' counters and names."""

    interfaces: tuple[tuple[int, int, int], ...]
    """Index, wire bytes received and wire bytes sent of each interface except loopback."""
    names: tuple[tuple[int, str], ...] = ()
    """Index and name of each interface; empty if they are not known."""

"""Look-ups: what a session asks of its transport, and the answers.

- Flows of known values, by which a layout is proven on a living kernel: the transport
  opens them (real sockets on loopback, or an emulated kernel's) and keeps them open
  until it is asked to let go.
- Paths of executables, which ntstat does not have.
- The kernel's own count of what it did not do.
- What the interfaces carried.
"""

from __future__ import annotations

import attrs

from .._model import Endpoint, Provider, TcpState


@attrs.frozen(kw_only=True)
class KnownFlow:
    """One flow whose every value is known beforehand."""

    provider: Provider
    """`Provider.TCP` or `Provider.UDP`, in the kernel."""
    local: Endpoint
    remote: Endpoint
    state: TcpState | None
    rx_bytes: int
    """Payload received so far."""
    tx_bytes: int
    """Payload sent so far."""


@attrs.frozen(kw_only=True)
class Evidence:
    """Flows that are open now, all of one process."""

    flows: tuple[KnownFlow, ...]
    pid: int
    uid: int
    interface_index: int | None
    """Index of the loopback interface, if it is known."""
    unique_pid: int | None = None
    """The process' unique id, if it is known."""
    uuid: bytes | None = None
    """UUID of its executable, if it is known."""


@attrs.frozen
class OpenEvidence:
    """Look-up: open known flows; answered by `Evidence`, or `None` where that cannot be done."""


@attrs.frozen
class CloseEvidence:
    """Look-up: close them again; answered by `None`."""


@attrs.frozen
class FindPaths:
    """Look-up: the executables of these processes; answered by `PathsFound`."""

    pids: tuple[int, ...]


@attrs.frozen
class PathsFound:
    """The executables of processes."""

    pids: tuple[int, ...]
    paths: tuple[str | None, ...]
    """In the order of `pids`; `None` for a process that is gone or may not be seen."""


@attrs.frozen
class ReadLedger:
    """Look-up: the kernel's counts of what it did not do; answered by `Ledger`, or `None` where they may not be read."""


@attrs.frozen
class LedgerRow:
    """What the kernel counts for one control socket (``nstat_metrics``)."""

    client: int
    """The kernel's number of the socket; later ones have higher numbers."""
    refused: int
    """Sources that were not made: no memory, or the announcement found no room."""
    failed_goodbyes: int
    """Ends of which the final report was refused."""


@attrs.frozen
class Ledger:
    """The kernel's counts for the control sockets of one monitor, and for all of the machine."""

    clients: tuple[LedgerRow, ...]
    """Empty where they are not counted (before macOS 26) or may not be read (only root may)."""
    announcements: int | None = None
    """Announcements that found no room, whoever was to get them (``net.stats.stats``, since xnu-3247); `None`: not known."""


@attrs.frozen
class ReadInterfaces:
    """Look-up: what the interfaces counted; answered by `InterfacesRead`, or `None` where it may not be read."""


@attrs.frozen
class InterfacesRead:
    """What interfaces carried since each of them is there."""

    interfaces: tuple[tuple[int, int, int], ...]
    """Index, wire bytes received and sent, of each but loopback."""

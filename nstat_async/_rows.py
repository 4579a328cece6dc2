"""The values of tables: one row, and what kinds of rows there are.

They stand beside the values of flows, because everything that shows, stores or writes a
row (JSON, SQLite, the command line) is made from the same table of fields.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable

import attrs

from ._coverage import Coverage
from ._model import MediumCounts, Process
from ._workload import workload_of


class RowKind(enum.Enum):
    """What a row stands for."""

    GROUP = "group"
    """One process, or one value of whatever the table groups by."""
    UNKNOWN = "unknown"
    """Flows for which the platform did not report the key (e.g. no owner)."""
    OTHER = "other"
    """What was folded together to keep the table, or the list shown, short."""
    LOST = "lost"
    """Closed flows that an overflowing buffer gave up: their sum is known, their owners are not."""
    TOTAL = "total"
    """The sum of a table."""
    UNATTRIBUTED = "unattributed"
    """Wire bytes of interfaces that are no flow's payload (`unattributed_row`): in no sum of a table."""


_LABELS = {
    RowKind.UNKNOWN: "(owner unknown)",
    RowKind.OTHER: "(others, finished)",
    RowKind.LOST: "(closed flows, owner lost)",
    RowKind.TOTAL: "(all)",
    RowKind.UNATTRIBUTED: "(unattributed, wire)",
}


@attrs.frozen(kw_only=True)
class Row:
    """One line of a table. `TrafficTable` says what its bytes and packets count."""

    kind: RowKind
    """What it stands for."""
    key: Hashable = None
    """What the table groups by; for a process ``(pid, unique_pid)``. `None` unless `kind` is ``GROUP``."""
    source: str | None = None
    """Name of the machine or recording that the row came from: in a fleet, or after `TrafficTable.merge`."""
    process: Process | None = None
    """The process, in a table of processes."""
    text: str | None = None
    """What a person calls the key, where that is known and differs: the name of a user."""
    flows: int = 0
    """Flows seen, each counted once: in the row where it was last."""
    open_flows: int = 0
    """Those that are still open."""
    uncounted_flows: int = 0
    """Those of `flows` whose bytes the platform never reported (Linux UDP)."""
    rx_bytes: int = 0
    """Bytes received."""
    tx_bytes: int = 0
    """Bytes sent."""
    rx_packets: int = 0
    """Packets received."""
    tx_packets: int = 0
    """Packets sent."""
    rx_rate: float | None = None
    """Bytes received per second over the window; `None` until two moments were seen, and where nothing is counted."""
    tx_rate: float | None = None
    """Bytes sent per second; `None` as for `rx_rate`."""
    first_seen: float | None = None
    """Time of the first event, seconds since the epoch."""
    last_seen: float | None = None
    """Time of the last event, seconds since the epoch."""
    cgroup: str | None = None
    """Linux: path of the process's cgroup, in a table of processes: that of its first socket of which it is known."""
    container: str | None = None
    """Linux: as `Flow.container`, of that cgroup."""
    pod: str | None = None
    """Linux: as `Flow.pod`, of that cgroup."""
    media: tuple[tuple[str, MediumCounts], ...] = ()
    """macOS 26 with ``extras``: bytes and packets by medium, as `Counts.media` has them for flows. Of kernel sockets all media
    and loopback together are the row's total; what flows in user space sent over loopback is in none."""
    serial: int = attrs.field(default=0, repr=False, eq=False)
    """Distinguishes a row from a later one with the same key."""

    @property
    def pid(self) -> int | None:
        """Process id; `None` in rows that are no process."""
        return None if self.process is None else self.process.pid

    @property
    def unique_pid(self) -> int | None:
        """`Process.unique_pid`; `None` in rows that are no process, or where it is not known."""
        return None if self.process is None else self.process.unique_pid

    @property
    def name(self) -> str | None:
        """Name of the process, what a person calls the key, or the key as text; `None` when neither is known.

        Names are chosen by the processes: escape before printing.
        """
        if self.process is not None:
            return self.process.name
        if self.text is not None:
            return self.text
        key = self.key.value if isinstance(self.key, enum.Enum) else self.key
        return None if key is None else str(key)

    @property
    def unit(self) -> str | None:
        """Linux: as `Flow.unit`, of that cgroup."""
        return None if self.cgroup is None else workload_of(self.cgroup).unit

    @property
    def label(self) -> str:
        """What to call the row: its name, ``"?"``, or in parentheses what it stands for. Escape before printing."""
        return _LABELS.get(self.kind) or self.name or "?"

    @property
    def bytes(self) -> int:
        """Received and sent together."""
        return self.rx_bytes + self.tx_bytes

    @property
    def rate(self) -> float | None:
        """Both directions together, bytes per second."""
        return None if self.rx_rate is None or self.tx_rate is None else self.rx_rate + self.tx_rate

    @property
    def is_counted(self) -> bool:
        """False when no flow of the row ever reported bytes: its zeros then mean "unknown"."""
        return not self.flows or self.flows > self.uncounted_flows or bool(self.bytes)


def unattributed_row(coverage: Coverage | None) -> Row | None:
    """What no flow explains, as a row to show beneath a table; `None` while nothing is known of it.

    Args:
        coverage: That of `Monitor.statistics`. It counts from the monitor's start, wherever the table began.
    """
    if coverage is None:
        return None
    rx_bytes, tx_bytes = coverage.unattributed_rx_bytes, coverage.unattributed_tx_bytes
    return Row(kind=RowKind.UNATTRIBUTED, rx_bytes=rx_bytes, tx_bytes=tx_bytes)

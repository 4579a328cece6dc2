"""The values of tables: a row, and the kinds of rows.

They are next to the values of flows, because JSON, SQLite and the command line
write both by the same table of fields.
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
    """Flows whose key the platform did not report (e.g. no owner)."""
    OTHER = "other"
    """The sum of rows that were folded to keep the table, or the shown list, short."""
    LOST = "lost"
    """Closed flows that an overflowing buffer gave up: their sum is known, their owners are not."""
    TOTAL = "total"
    """The sum of a table."""
    UNATTRIBUTED = "unattributed"
    """Wire bytes of interfaces that are not payload of a flow (`unattributed_row`); no sum of a table has them."""


_LABELS = {
    RowKind.UNKNOWN: "(owner unknown)",
    RowKind.OTHER: "(others, finished)",
    RowKind.LOST: "(closed flows, owner lost)",
    RowKind.TOTAL: "(all)",
    RowKind.UNATTRIBUTED: "(unattributed, wire)",
}


@attrs.frozen(kw_only=True)
class Row:
    """One row of a table. `TrafficTable` says what bytes and packets count."""

    kind: RowKind
    """What the row stands for."""
    key: Hashable = None
    """What the table groups by; for a process ``(pid, unique_pid)``. `None` unless `kind` is ``GROUP``."""
    source: str | None = None
    """Name of the machine or recording that the row is from, in a fleet or after `TrafficTable.merge`."""
    process: Process | None = None
    """The process, in a table of processes."""
    text: str | None = None
    """Name of the key for people, if there is one: the name of a user."""
    flows: int = 0
    """Number of flows; each counts once, in its last row."""
    open_flows: int = 0
    """How many of `flows` are still open."""
    uncounted_flows: int = 0
    """How many of `flows` never had bytes reported by the platform (Linux UDP)."""
    rx_bytes: int = 0
    """Bytes received."""
    tx_bytes: int = 0
    """Bytes sent."""
    rx_packets: int = 0
    """Packets received."""
    tx_packets: int = 0
    """Packets sent."""
    rx_rate: float | None = None
    """Bytes received per second over the window; `None` until there are two moments, and if nothing is counted."""
    tx_rate: float | None = None
    """Bytes sent per second; `None` as for `rx_rate`."""
    first_seen: float | None = None
    """Time of the first event, seconds since the epoch."""
    last_seen: float | None = None
    """Time of the last event, seconds since the epoch."""
    cgroup: str | None = None
    """Linux, in a table of processes: path of the process's cgroup, taken from its first socket with a known cgroup."""
    container: str | None = None
    """Linux: `Flow.container` of that cgroup."""
    pod: str | None = None
    """Linux: `Flow.pod` of that cgroup."""
    media: tuple[tuple[str, MediumCounts], ...] = ()
    """macOS 26 with ``extras``: bytes and packets by medium, as in `Counts.media`. For kernel sockets all media and loopback
    add up to the row's total; no medium has what flows in user space sent over loopback."""
    serial: int = attrs.field(default=0, repr=False, eq=False)
    """Tells a row from a later one with the same key."""

    @property
    def pid(self) -> int | None:
        """Process id; `None` if the row is not a process."""
        return None if self.process is None else self.process.pid

    @property
    def unique_pid(self) -> int | None:
        """`Process.unique_pid`; `None` if the row is not a process, or the id is not known."""
        return None if self.process is None else self.process.unique_pid

    @property
    def name(self) -> str | None:
        """Name of the process, name of the key for people, or the key as text; `None` if none is known.

        Processes choose their names: escape them before printing.
        """
        if self.process is not None:
            return self.process.name
        if self.text is not None:
            return self.text
        key = self.key.value if isinstance(self.key, enum.Enum) else self.key
        return None if key is None else str(key)

    @property
    def unit(self) -> str | None:
        """Linux: `Flow.unit` of that cgroup."""
        return None if self.cgroup is None else workload_of(self.cgroup).unit

    @property
    def label(self) -> str:
        """What to call the row: its name, ``"?"``, or its kind in parentheses. Escape before printing."""
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
        """False if no flow of the row had bytes reported: its zeros then mean "unknown"."""
        return not self.flows or self.flows > self.uncounted_flows or bool(self.bytes)


def unattributed_row(coverage: Coverage | None) -> Row | None:
    """The traffic that no flow explains, as a row to show below a table; `None` while that is not known.

    Args:
        coverage: From `Monitor.statistics`. It counts from the monitor's start, whenever the table began.
    """
    if coverage is None:
        return None
    rx_bytes, tx_bytes = coverage.unattributed_rx_bytes, coverage.unattributed_tx_bytes
    return Row(kind=RowKind.UNATTRIBUTED, rx_bytes=rx_bytes, tx_bytes=tx_bytes)

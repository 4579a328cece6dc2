"""The columns of `top`: which columns fit into a width, and what each line shows in them.

Texts are on the left and numbers on the right, so that the numbers of flows are below those of their row. The most
important columns get their place first; if there is room, flows show more fields below the curves.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from ..._escape import escape
from ..._model import Direction, Endpoint, Flow, Process, TcpState
from ...aggregate import Row, RowKind
from .._cells import UNKNOWN, bytes_text, interface_text, is_listener, media_text
from .._table import cell_width, fit, shortened
from .._views import View
from ._graph import curve_text
from ._model import FlowLine, HeadingLine, Line, RestLine, RowLine

Cell = tuple[str, str]
"""Text and role: ``""``, ``"rx"``, ``"tx"``, ``"dim"``, ``"name"``, ``"curve"``, ``"heading"``."""

_MARKER, _NAME, _RATE, _PID, _FLOWS, _TOTAL = 2, 16, 9, 8, 7, 9
_CURVE, _USER, _UNIT, _COMMAND, _MEDIA = 15, 11, 21, 20, 38
_MOST_NAME, _WIDE_NAME, _MOST_COMMAND, _USUAL_CURVE = 26, 44, 60, 43
_LONG_NAMES = {"connection": 52, "remote address": 40, "remote network": 40, "container": 29, "unit": 29}
"""Kinds of rows whose names matter more than a curve, and how many columns the name gets."""
_STATES = {
    TcpState.CLOSED: "closed", TcpState.LISTEN: "listen", TcpState.SYN_SENT: "syn-sent", TcpState.SYN_RECEIVED: "syn-recv",
    TcpState.ESTABLISHED: "estab", TcpState.CLOSE_WAIT: "closewait", TcpState.FIN_WAIT_1: "finwait1",
    TcpState.CLOSING: "closing", TcpState.LAST_ACK: "last-ack", TcpState.FIN_WAIT_2: "finwait2",
    TcpState.TIME_WAIT: "timewait",
}  # fmt: skip
"""Each is short enough that it is never cut."""


@attrs.frozen
class _Extra:
    """One more field of a flow, shown if there is room."""

    heading: str
    width: int
    text: Callable[[FlowLine, float | None], str]
    needs: str = ""
    """The field that at least one row must have."""


def _state(line: FlowLine, _now: float | None) -> str:
    return "" if line.flow.state is None else _STATES[line.flow.state]


def _age(line: FlowLine, now: float | None) -> str:
    """The age of the flow; with ``>`` if only the time of its first report is known."""
    started = line.flow.started
    if now is None:
        return UNKNOWN
    mark = ">" if started is None and line.was_there else ""
    age = max(0.0, now - (line.seen_since if started is None else started))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if age >= size:
            return f"{mark}{int(age / size)}{unit}"
    return f"{mark}{int(age)}s"


def _rtt(line: FlowLine, _now: float | None) -> str:
    micros = None if line.event.counts is None else line.event.counts.avg_rtt_us
    if micros is None:
        return UNKNOWN if _is_connection(line.flow) else ""
    return f"{micros / 1000:.{0 if micros >= 9950 else 1}f}ms"


def _sent_again(line: FlowLine, _now: float | None) -> str:
    again = None if line.event.counts is None else line.event.counts.tx_retransmitted_bytes
    return bytes_text(again) if again is not None or _is_connection(line.flow) else ""


def _media(line: FlowLine, _now: float | None) -> str:
    return "" if line.event.counts is None else media_text(line.event.counts.media)


def _is_connection(flow: Flow) -> bool:
    """True for a flow that can have round trips and retransmissions."""
    return flow.state is not None and not is_listener(flow)


_EXTRAS = (
    _Extra("STATE", 9, _state),
    _Extra("AGE", 4, _age),
    _Extra("RTT", 7, _rtt),
    _Extra("RESENT", 8, _sent_again),
    _Extra("VIA", 10, lambda line, _now: interface_text(line.flow.interface)),
    _Extra("MEDIA", 38, _media, needs="media"),
)


@attrs.frozen
class _Column:
    heading: str
    width: int
    sort: str
    """Key of `SORT_KEYS`."""
    cell: Callable[[RowLine], Cell]
    right: bool = True


@attrs.define
class Layout:
    """The columns for one width."""

    width: int
    view: View = attrs.field(factory=View)
    ascii_only: bool = False
    commands: bool = False
    """True: the command line is shown instead of the name."""
    known: frozenset[str] = frozenset({"user", "unit", "command"})
    """The fields that at least one row has: a column without a value is not shown."""
    left: list[_Column] = attrs.field(factory=list, init=False)
    """The texts of a row and its number of flows; flows show their ends in this place."""
    numbers: int = attrs.field(default=2, init=False)
    """Columns of numbers: two rates, and perhaps one or two totals."""
    curve: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        free = self.width - _MARKER - _NAME - 2 * _RATE

        def take(width: int) -> int:
            nonlocal free
            taken = width if free >= width else 0
            free -= taken
            return taken

        of_processes = self.view.is_of_processes
        pid = take(_PID) if of_processes else 0
        flows = take(_FLOWS)
        totals = [take(_TOTAL)]
        wanted = _MOST_COMMAND if self.commands else _LONG_NAMES.get(self.view.group_by.name, _NAME)
        name = _NAME + take(min(free, wanted - _NAME))
        self.curve = take(_CURVE)
        user = take(_USER) if of_processes and "user" in self.known else 0
        totals.append(take(_TOTAL) if self.curve else 0)
        unit = take(_UNIT) if of_processes and "unit" in self.known else 0
        media = take(_MEDIA) if "media" in self.known else 0
        name += take(max(0, min(free // 2, _MOST_NAME - name)))
        self.curve += take(max(0, min(free, _USUAL_CURVE - self.curve))) if self.curve else 0
        command = 0
        if of_processes and "command" in self.known and not self.commands and free >= _COMMAND:
            command = take(min(free, _MOST_COMMAND))
        name += take(max(0, min(free, _WIDE_NAME - name)))
        self.curve += take(free) if self.curve else 0
        name += max(0, free)
        self.numbers = 2 + sum(map(bool, totals))
        columns = [
            _Column("PID", pid, "pid", self._pid),
            _Column(self.view.heading, name, "name", self._name, right=False),
            _Column("USER", user, "user", self._user, right=False),
            _Column("UNIT", unit, "unit", self._unit, right=False),
            _Column("COMMAND", command, "name", self._command, right=False),
            _Column("MEDIA", media, "traffic", lambda line: (media_text(line.row.media), "dim"), right=False),
            _Column("FLOWS", flows, "flows", lambda line: (str(line.row.open_flows), "")),
        ]
        self.left = [column for column in columns if column.width]

    def _fit(self, text: str, width: int, *, right: bool = False) -> str:
        return fit(text, width, right=right, ascii_only=self.ascii_only)

    # -- headings ---------------------------------------------------------------------------

    def headings(self) -> list[tuple[str, int, str, bool]]:
        """Of each column: text, width, key to sort by, and True if it is aligned to the right."""
        found = [("", _MARKER, "", False)]
        found += [(each.heading, each.width, each.sort, each.right) for each in self.left]
        found += [("RX/S", _RATE, "rx-rate", True), ("TX/S", _RATE, "tx-rate", True)]
        totals = {3: [("TOTAL", _TOTAL, "traffic", True)], 4: [("RX", _TOTAL, "rx", True), ("TX", _TOTAL, "tx", True)]}
        found += totals.get(self.numbers, [])
        return [*found, ("HISTORY (log)", self.curve, "rate", False)] if self.curve else found

    def heading(self, sort: str, *, reverse: bool) -> str:
        """The line of headings; an arrow marks the column of the order."""
        arrow = ("^" if reverse else "v") if self.ascii_only else ("▴" if reverse else "▾")
        marked = {"rate": {"rx-rate", "tx-rate"}, "traffic": {"rx", "tx", "traffic"}}.get(sort, {sort})
        parts: list[str] = []
        for text, width, key, right in self.headings():
            inner = self._fit(arrow + text if key in marked and text else text, width - 1, right=right)
            parts.append(" " + inner if len(parts) > len(self.left) else inner + " ")
        return self._fit("".join(parts), self.width)

    def sort_at(self, x: int) -> str:
        """The key of the column at a place of the line of headings; empty for none."""
        for _, width, key, _ in self.headings():
            if x < width:
                return key
            x -= width
        return ""

    # -- lines ------------------------------------------------------------------------------

    def cells(self, line: Line, now: float | None) -> list[Cell]:
        """The cells of a line; `now` is the time of the look, for ages."""
        if isinstance(line, RowLine):
            return self._row(line)
        if isinstance(line, FlowLine):
            return self._flow(line, now)
        return self._heading_of_flows() if isinstance(line, HeadingLine) else self._ended(line)

    @property
    def _left_width(self) -> int:
        return sum(column.width for column in self.left)

    def _row(self, line: RowLine) -> list[Cell]:
        row = line.row
        opened, closed = ("v ", "> ") if self.ascii_only else ("▾ ", "▸ ")
        cells: list[Cell] = [("  " if not row.open_flows else opened if line.expanded else closed, "")]
        for column in self.left:
            text, role = column.cell(line)
            if row.source is not None and not column.right:  # its end is the machine
                text = shortened(text, column.width - 1, ascii_only=self.ascii_only)
            shown = self._fit(text, column.width - 1, right=column.right)
            cells.append((shown + " ", role))
        cells += self._amounts(row)
        if self.curve:
            cells.append((" " + curve_text(line.curve, self.curve - 1, ascii_only=self.ascii_only), "curve"))
        return cells

    def _amounts(self, row: Row) -> list[Cell]:
        known = row.is_counted
        cells = [(row.rx_rate, "rx"), (row.tx_rate, "tx")]
        if self.numbers == 3:
            cells.append((row.bytes if known else None, ""))
        elif self.numbers == 4:
            cells += [(row.rx_bytes if known else None, "rx"), (row.tx_bytes if known else None, "tx")]
        return [(self._fit(bytes_text(value), _RATE, right=True), role if value else "dim") for value, role in cells]

    def _flow(self, line: FlowLine, now: float | None) -> list[Cell]:
        share = line.share
        row = Row(
            kind=RowKind.GROUP,
            flows=1,
            uncounted_flows=0 if share.is_counted else 1,
            rx_bytes=share.rx_bytes,
            tx_bytes=share.tx_bytes,
            rx_rate=line.rx_rate,
            tx_rate=line.tx_rate,
        )
        width = self._left_width
        cells: list[Cell] = [("    ", ""), (self._fit(self._ends(line.flow, width - 3), width - 2), "dim")]
        cells += self._amounts(row)
        extras = [self._fit(extra.text(line, now), extra.width) for extra in self._extras()]
        if self.curve:
            cells.append((self._fit("".join(f" {text}" for text in extras), self.curve), "dim"))
        return cells

    def _extras(self) -> list[_Extra]:
        """The additional fields of a flow that fit below the curve."""
        found, left = [], self.curve
        for extra in _EXTRAS:
            if extra.needs and extra.needs not in self.known:
                continue
            left -= extra.width + 1
            if left < 0:
                break
            found.append(extra)
        return found

    def _heading_of_flows(self) -> list[Cell]:
        width = self._left_width
        arrow = "->" if self.ascii_only else "→"
        text = f"FLOW  LOCAL {arrow} REMOTE" if width >= 24 else f"FLOW {arrow} REMOTE"
        numbers = "".join(
            self._fit(text, width, right=True)
            for text, width, _, right in self.headings()[len(self.left) + 1 :]
            if right
        )
        extras = "".join(f" {self._fit(extra.heading, extra.width)}" for extra in self._extras())
        return [
            ("    ", ""),
            (self._fit(text, width - 2), "heading"),
            (numbers, "heading"),
            (self._fit(extras, self.curve), "heading"),
        ]

    def _ended(self, line: RestLine) -> list[Cell]:
        width, count = self._left_width, line.row.flows
        text = f"({count} that ended)" if count > 0 else "(flows that were here before)"
        return [("    ", ""), (self._fit(text, width - 2), "dim"), *self._amounts(line.row), (" " * self.curve, "")]

    def _ends(self, flow: Flow, width: int) -> str:
        """Both ends of a flow, as much as fits; the remote end is kept longest."""
        kind = f"{flow.provider.value} "
        if is_listener(flow):
            return f"{kind}@ {_end(flow.local)}"
        arrow = self._arrow(flow.direction)
        remote = _end(flow.remote)
        if flow.remote is not None and self.view.names is not None:
            name = self.view.names.name(flow.remote.address)
            remote = remote if name is None else f"{escape(name)}:{flow.remote.port}"
        port = "" if flow.local is None else f":{flow.local.port}"
        for there in (f"{remote}{_peer(flow)}", remote):
            for text in (f"{kind}{_end(flow.local)} {arrow} {there}", f"{kind}{port} {arrow} {there}"):
                if cell_width(text) <= width:
                    return text
        return shortened(f"{kind}{arrow} {remote}", width, ascii_only=self.ascii_only)

    def _arrow(self, direction: Direction | None) -> str:
        if direction is None:
            return "--" if self.ascii_only else "↔"
        inward = direction is Direction.INBOUND
        return ("<-" if inward else "->") if self.ascii_only else ("←" if inward else "→")

    # -- cells of a row ---------------------------------------------------------------------

    @staticmethod
    def _pid(line: RowLine) -> Cell:
        return ("" if line.row.pid is None else str(line.row.pid), "dim")

    def _name(self, line: RowLine) -> Cell:
        text = self.view.label(line.row)
        if self.commands and line.row.process is not None:
            text = command_text(line.row.process) or text
        return (text, "name" if line.row.open_flows else "dim")

    def _user(self, line: RowLine) -> Cell:
        return (self.view.user(line.row), "dim")

    def _unit(self, line: RowLine) -> Cell:
        return (self.view.unit(line.row), "dim")

    @staticmethod
    def _command(line: RowLine) -> Cell:
        return ("" if line.row.process is None else command_text(line.row.process), "dim")


def _peer(flow: Flow) -> str:
    """In a fleet: program and machine at the other end; empty where they are not known."""
    peer = flow.peer
    if peer is None:
        return ""
    name = None if peer.process is None else peer.process.name
    return f" {escape(name or UNKNOWN)}" + ("" if peer.host is None else f" @{escape(peer.host)}")


def _end(end: Endpoint | None) -> str:
    return "*" if end is None else str(end)


def command_text(process: Process) -> str:
    """The command line of a process, else the path of its program; empty when neither is known."""
    return escape(process.command_line or process.path or "")

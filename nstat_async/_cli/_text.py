"""Events as lines for people.

One line per event: a sign (``+`` added, ``-`` removed, ``#`` updated, ``!`` a gap or
a refusal), ``@`` for listeners, the time, the protocol, both addresses, the process,
then bytes and packets and the kind of the interface::

    + 12:03:59.123   tcp    10.0.0.5:50312 > 192.0.2.1:443    pid:811 (curl)  rx 0 B (0)  tx 0 B (0)  wifi

A column is as wide as its widest cell so far: the lines align, although the next cells are not known yet. An update whose line
looks like the one before says what changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .._escape import escape
from .._events import (
    AnyEvent,
    AuxiliaryFailed,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    HostState,
    HostUpdated,
    InterfaceUpdated,
    PollCompleted,
    ProviderRefused,
    RouteUpdated,
    SystemInfo,
    Unrecognized,
    four_of,
)
from .._model import Flow, Outcome, Provider
from ._cells import (
    amount_text,
    changes_of,
    host_text,
    is_listener,
    moment_text,
    name_text,
    place_text,
    process_text,
    provider_text,
    traffic_texts,
)
from ._narrow import narrow_line
from ._table import cell_width

_REMEMBERED = 50_000
_WIDTHS = {"local": 15, "remote": 15, "process": 14}
"""Columns of a flow's line, and their widths at the start."""
_WIDEST = 47
"""No column becomes wider than this: an IPv6 address with its port fits."""
_GREEN, _RED, _YELLOW, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[0m"
_NOTHING = "unchanged"
_COLOURS = {"+": _GREEN, "-": _RED, "!": _YELLOW, "#": ""}


def failed(event: FlowRemoved) -> bool:
    """True for a TCP connection that was not established, or received nothing and is not known to have ended in order."""
    if event.flow.provider is not Provider.TCP or is_listener(event.flow) or event.flow.remote is None:
        return False
    if event.outcome in {Outcome.REFUSED, Outcome.FAILED}:
        return True
    if event.outcome in {Outcome.CLOSED_HERE, Outcome.CLOSED_THERE}:
        return False
    if event.counts is None or not event.final:
        return False
    return event.counts.rx_bytes == 0 and not event.counts.rx_packets


@attrs.define(eq=False)
class _Known:
    """A flow as it was shown last."""

    flow: Flow
    cells: tuple[str, str, str, str]
    """The protocol, both ends, the process."""
    place: str
    mark: str
    """``@`` for a listener."""
    text: str
    """The cells, as wide as their columns."""
    widened: int
    """How often columns had become wider when the cells were made."""
    rx: str = ""
    tx: str = ""


@attrs.define(eq=False)
class TextFormatter:
    """Turns events into lines; the module's docstring says which."""

    colour: bool = False
    """True: signs are coloured."""
    utc: bool = False
    """True: times are UTC instead of local."""
    every: bool = False
    """True: an update that changes nothing has a line, too."""
    columns: Callable[[], int | None] | None = None
    """How wide the line of a flow may be now; `None`: any width."""
    _flows: dict[str, _Known] = attrs.field(factory=dict, init=False)
    _widths: dict[str, int] = attrs.field(factory=lambda: dict(_WIDTHS), init=False)
    """The widest cell of each column so far."""
    _widened: int = attrs.field(default=0, init=False)
    """How often a column became wider."""
    _rx_width: int = attrs.field(default=10, init=False)
    _tx_width: int = attrs.field(default=10, init=False)
    _longest: int = attrs.field(default=0, init=False)
    """Columns of the longest line so far, where they matter."""
    _moment: tuple[float, str] = attrs.field(default=(math.nan, ""), init=False)
    """The time of the last line: all reports of a poll have the same."""

    def __call__(self, event: AnyEvent) -> str | None:
        """The line; `None` where there is nothing new: for a poll without trouble, or an update whose line would be the same."""
        if isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved)):
            return self._of_flow(event)
        if isinstance(event, PollCompleted) and event.complete:
            return None
        # A subclass of an event is shown as its base.
        sign, parts = next(_OTHERS[kind](event) for kind in type(event).__mro__ if kind in _OTHERS)
        return f"{self._sign(sign)} {self.clock(event.time)}   {_joined((*parts, host_text(event.host)))}"

    def clock(self, seconds: float) -> str:
        """Time of day to the millisecond."""
        if seconds != self._moment[0]:
            self._moment = (seconds, moment_text(seconds, utc=self.utc))
        return self._moment[1]

    def cell(self, column: str, text: str) -> str:
        """`text`, padded to the width that its column has now."""
        width = cell_width(text)
        if width > self._widths.get(column, 0) and width <= _WIDEST:
            self._widths[column] = width
            self._widened += 1
        return text + " " * (self._widths.get(column, 0) - width)  # none where it is wider

    def _sign(self, sign: str) -> str:
        colour = _COLOURS[sign] if self.colour else ""
        return f"{colour}{sign}{_PLAIN}" if colour else sign

    def _of_flow(self, event: FlowAdded | FlowUpdated | FlowRemoved) -> str | None:
        known = before = self._flows.get(event.flow.id)
        if known is None or known.flow is not event.flow or known.widened != self._widened:
            known = self._know(event.flow)
        # Written out, without calls, because it is done for each report: plain numbers are as wide as they are long.
        rx_bytes, tx_bytes, rx_packets, tx_packets = four_of(event)
        rx, tx = amount_text("rx", rx_bytes, rx_packets), amount_text("tx", tx_bytes, tx_packets)
        if len(rx) > self._rx_width:  # noqa: PLR1730  # as above
            self._rx_width = len(rx)
        if len(tx) > self._tx_width:  # noqa: PLR1730  # as above
            self._tx_width = len(tx)
        sign, rest = "+", known.place
        if isinstance(event, FlowUpdated):  # most events are
            sign = "#"
            if before is not None and (known is not before or (rx == before.rx and tx == before.tx)):
                notes = self._news(event, before, known, is_same=rx == before.rx and tx == before.tx)
                if notes == _NOTHING and not self.every:
                    return None
                rest = _joined((rest, notes))
        elif isinstance(event, FlowRemoved):
            sign, rest = self._sign("-"), _joined((rest, *self._end(event)))
            del self._flows[event.flow.id]
        else:
            sign = self._sign("+")
        known.rx, known.tx = rx, tx
        traffic = f"{rx.ljust(self._rx_width)}  {tx.ljust(self._tx_width)}"
        line = f"{sign} {self.clock(event.time)} {known.mark} {known.text}  {traffic}  {rest}".rstrip()
        return line if self.columns is None else self._fitted(line, sign, known, rest)

    def _know(self, flow: Flow) -> _Known:
        local, remote = self.cell("local", str(flow.local or "*")), str(flow.remote or "*")
        if flow.namespace is not None:
            remote += f"  netns:{escape(flow.namespace)}"
        process, kind = process_text(flow.process), provider_text(flow)
        text = f"{kind:<6} {local} > {self.cell('remote', remote)}  {self.cell('process', process)}"
        if len(self._flows) >= _REMEMBERED:
            self._flows.clear()
        cells, mark = (kind, local.rstrip(), remote, process), "@" if is_listener(flow) else " "
        known = self._flows[flow.id] = _Known(flow, cells, place_text(flow), mark, text, self._widened)
        return known

    @staticmethod
    def _news(event: FlowUpdated, before: _Known, known: _Known, *, is_same: bool) -> str:
        """The changes that the other cells do not show; `_NOTHING` when nothing changed."""
        old, new = before.flow.state, event.flow.state
        if new is not None and new is not old:
            return new.value
        if not is_same or (before.cells, before.place, before.mark) != (known.cells, known.place, known.mark):
            return ""
        changes = changes_of(before.flow, event.flow)
        if event.previous is not None:
            changes += changes_of(event.previous, event.counts)
        return "  ".join(changes) or _NOTHING

    def _end(self, event: FlowRemoved) -> list[str]:
        parts = []
        if failed(event):
            parts.append(f"{_RED}FAILED{_PLAIN}" if self.colour else "FAILED")
        if event.outcome is not None:
            parts.append(event.outcome.value.replace("_", " "))
        if event.uncertainty is not None:
            parts.append(f"[±{event.uncertainty}]")
        elif not event.final:
            parts.append(f"[{event.reason.value}]")
        return parts

    def _fitted(self, line: str, sign: str, known: _Known, rest: str) -> str:
        """The line, or, as soon as one was too long for the terminal, a shorter one."""
        room = self.columns() if self.columns is not None else None
        self._longest = max(self._longest, cell_width(line))
        if room is None or self._longest <= room:
            return line
        kind, local, remote, process = known.cells
        owner = known.flow.process
        if owner is not None and owner.name:
            process = f"{owner.pid} {name_text(owner, short=True)}"  # the name begins six columns earlier
        time = self._moment[1][:-4]
        cells = [time, kind, f"{local} >", remote, process, *(text.partition(" (")[0] for text in (known.rx, known.tx))]
        widths = [min(_WIDEST, cell_width(self.cell(f"narrow {at}", text))) for at, text in enumerate(cells)]
        notes = rest.removeprefix(known.place).strip()
        return f"{sign}{known.mark} {narrow_line(cells, widths, notes, known.place, room - 3)}"


def _joined(parts: Iterable[str]) -> str:
    return "  ".join(part for part in parts if part)


_Shown = tuple[str, tuple[str, ...]]
"""A sign, and the parts of the text."""


def _interface(event: InterfaceUpdated) -> _Shown:
    name = escape(event.interface.name) if event.interface.name else f"if{event.interface.index}"
    return "#", (f"interface {name}", escape(event.description or ""), *traffic_texts(event.counts))


def _route(event: RouteUpdated) -> _Shown:
    to = "*" if event.destination is None else event.destination.address
    via = "" if event.gateway is None else f" via {event.gateway.address}"
    return "-" if event.removed else "#", ("route", f"{to}{via}", *traffic_texts(event.counts))


def _lost(event: EventsLost) -> _Shown:
    count = "some" if event.count is None else str(event.count)
    traffic = () if event.counts is None else traffic_texts(event.counts)
    return "!", (f"lost: {count} ({event.cause.value})", *traffic, escape(event.detail or ""))


def _host(event: HostUpdated) -> _Shown:
    offset = event.clock_offset
    clock = (
        ""
        if offset is None or abs(offset) < 1
        else f"its clock is {abs(offset):.1f} s {'ahead' if offset > 0 else 'behind'}"
    )
    labels = " ".join(f"{escape(name)}={escape(text)}" for name, text in event.labels)
    sign = "+" if event.state is HostState.PRESENT else "!" if event.state is HostState.SILENT else "-"
    state = f"{'has' if event.state is HostState.LEFT else 'is'} {event.state.value}"
    return sign, (f"machine {state}", labels, clock, escape(event.detail or ""))


_OTHERS: dict[type, Callable[[Any], _Shown]] = {
    PollCompleted: lambda event: ("!", (f"incomplete poll, {event.flows} flows known",)),
    EventsLost: _lost,
    ProviderRefused: lambda event: (
        "!",
        (f"provider {event.provider.value} refused: {escape(event.detail) or f'error {event.errno}'}",),
    ),
    AuxiliaryFailed: lambda event: ("!", (f"{event.auxiliary.value} failed: {escape(event.detail)}",)),
    InterfaceUpdated: _interface,
    RouteUpdated: _route,
    SystemInfo: lambda event: ("#", (f"system information, {len(event.values)} values",)),
    HostUpdated: _host,
    Unrecognized: lambda event: ("!", (f"unrecognized message {event.number} of {len(event.data)} bytes",)),
}
"""How each event that is not about a flow is shown."""

"""Events as lines for people.

One line per event: a sign (``+`` added, ``-`` removed, ``#`` updated, ``!`` a gap or
a refusal), ``@`` for listeners, the time, the protocol, both addresses, the process,
then bytes and packets and the kind of the interface::

    + 12:03:59.123   tcp    10.0.0.5:50312 > 192.0.2.1:443    pid:811 (curl)  rx 0 B (0)  tx 0 B (0)  wifi

Columns are as wide as the widest cell so far, so that lines stand below each other without knowing what comes.
"""

from __future__ import annotations

import math
import re
import time
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
)
from .._model import Counts, Direction, Flow, Interface, MediumCounts, Outcome, Peer, Process, Provider, TcpState
from ..filters import SHORT_ID
from ._table import cell_width

__all__ = [
    "UNKNOWN",
    "TextFormatter",
    "bytes_text",
    "interface_text",
    "is_listener",
    "media_text",
    "name_text",
    "place_text",
    "process_text",
    "provider_text",
    "rate_text",
    "short_id",
    "traffic_texts",
]

_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")
UNKNOWN = "?"
"""What stands for an unknown value, everywhere; an empty cell is a value that does not apply."""
_REMEMBERED = 50_000
_WIDTHS = {"local": 15, "remote": 15, "process": 14}
"""Columns of a flow's line, and how wide they are at first."""
_WIDEST = 47
"""No column becomes wider: an IPv6 address with its port fits."""
_LONG_ID_LENGTH = 64
_LONG_ID = re.compile(rf"[0-9a-f]{{{_LONG_ID_LENGTH}}}")
_GREEN, _RED, _YELLOW, _DIM, _PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[2m", "\x1b[0m"
_COLOURS = {"+": _GREEN, "-": _RED, "!": _YELLOW, "#": ""}


def bytes_text(number: float | None) -> str:
    """A number of bytes with a unit of the SI, as networks are measured: ``512 B``, ``1.5 kB``; ``?`` when unknown."""
    if number is None:
        return UNKNOWN
    if number < 999.5:
        return f"{number:.0f} B"
    if number < 99_950:  # what most of them are, without the loop
        return f"{number / 1000:.1f} kB"
    value = float(number)
    for unit in _UNITS:
        value /= 1000
        if value < 999.5 or unit == _UNITS[-1]:
            break
    return f"{value:.{0 if value >= 99.95 else 1}f} {unit}"


def rate_text(number: float | None) -> str:
    """Bytes per second; ``?`` when unknown."""
    return UNKNOWN if number is None else f"{bytes_text(number)}/s"


def process_text(process: Process | None) -> str:
    """``pid:N (name)``, or ``pid:N (name: title)``, escaped; ``pid:?`` when the owner is unknown."""
    if process is None:
        return "pid:?"
    return f"pid:{process.pid} ({name_text(process)})" if process.name else f"pid:{process.pid}"


def name_text(process: Process) -> str:
    """The name of a process, escaped; of a script, or of a program that calls itself something else, with its title."""
    name, title = process.name or UNKNOWN, process.title
    says_more = title is not None and not name.startswith(title)
    return escape(f"{name}: {title}" if says_more else name)


def place_text(flow: Flow) -> str:
    """Where a flow is: its interface, ``container:NAME`` or ``unit:NAME``; in a fleet its machine and other end. Escaped."""
    parts = [interface_text(flow.interface)]
    if flow.container is not None:
        parts.append(f"container:{escape(short_id(flow.container))}")
    elif flow.unit is not None:
        parts.append(f"unit:{escape(short_id(flow.unit))}")
    parts += [host_text(flow.host), peer_text(flow.peer)]
    return "  ".join(part for part in parts if part)


def short_id(text: str) -> str:
    """A text with the ids of containers cut short, as their engines show them; within a name they end with an ellipsis."""
    if len(text) < _LONG_ID_LENGTH:
        return text
    return text[:SHORT_ID] if _LONG_ID.fullmatch(text) else _LONG_ID.sub(lambda match: f"{match[0][:SHORT_ID]}…", text)


def interface_text(interface: Interface | None) -> str:
    """Kind of an interface, else its name or number; empty for none."""
    if interface is None:
        return ""
    if interface.kind is not None:
        return interface.kind.value
    return escape(interface.name) if interface.name else f"if{interface.index}"


def traffic_texts(counts: Counts | None) -> tuple[str, str]:
    """Bytes and packets, received and sent."""
    if counts is None:
        return f"rx {UNKNOWN}", f"tx {UNKNOWN}"
    rx_packets = "" if counts.rx_packets is None else f" ({counts.rx_packets})"
    tx_packets = "" if counts.tx_packets is None else f" ({counts.tx_packets})"
    return f"rx {bytes_text(counts.rx_bytes)}{rx_packets}", f"tx {bytes_text(counts.tx_bytes)}{tx_packets}"


def media_text(media: Iterable[tuple[str, MediumCounts]]) -> str:
    """Bytes by medium, those with most first; empty where no report says so."""
    amounts = [(counts.rx_bytes + counts.tx_bytes, name) for name, counts in media if name != "total"]
    return "  ".join(f"{escape(name)} {bytes_text(amount)}" for amount, name in sorted(amounts, reverse=True) if amount)


def is_listener(flow: Flow) -> bool:
    """True for a socket that waits for connections."""
    return flow.direction is Direction.LISTENER or flow.state is TcpState.LISTEN


def provider_text(flow: Flow) -> str:
    """The protocol; with a star where it runs in the process."""
    star = "*" if flow.userland and flow.provider in {Provider.TCP, Provider.UDP} else ""
    return f"{flow.provider.value}{star}"


def host_text(host: str | None) -> str:
    """The machine of a fleet; empty for this one."""
    return "" if host is None else f"host:{escape(host)}"


def peer_text(peer: Peer | None) -> str:
    """Machine and process at the other end; empty where they are not known."""
    return "" if peer is None else f"peer:{escape(peer.host or UNKNOWN)} {process_text(peer.process)}"


def failed(event: FlowRemoved) -> bool:
    """True for TCP that is known to have ended without receiving anything, or not to have been established; listeners apart."""
    if event.flow.provider is not Provider.TCP or is_listener(event.flow):
        return False
    if event.outcome in {Outcome.REFUSED, Outcome.FAILED}:
        return True
    if event.counts is None or not event.final:
        return False
    return event.counts.rx_bytes == 0 and not event.counts.rx_packets


@attrs.define(eq=False)
class TextFormatter:
    """Turns events into lines; see the module."""

    colour: bool = False
    """True: signs are coloured."""
    utc: bool = False
    """True: times are UTC instead of local."""
    _flows: dict[str, tuple[Flow, str, str, str]] = attrs.field(factory=dict, init=False)
    """Of each flow as it is: its columns, its place, and the mark of a listener."""
    _rx_width: int = attrs.field(default=10, init=False)
    _tx_width: int = attrs.field(default=10, init=False)
    _widths: dict[str, int] = attrs.field(factory=lambda: dict(_WIDTHS), init=False)
    """The widest cell of each column so far."""
    _second: int | None = attrs.field(default=None, init=False)
    _second_text: str = attrs.field(default="", init=False)
    _moment: tuple[float, str] = attrs.field(default=(math.nan, ""), init=False)
    """The time of the last line: all reports of a poll have the same."""

    def __call__(self, event: AnyEvent) -> str | None:
        """The line; `None` for polls without trouble, which say nothing new."""
        if isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved)):
            return self._of_flow(event)
        if isinstance(event, PollCompleted) and event.complete:
            return None
        # A subclass of an event is shown as its base.
        sign, parts = next(_OTHERS[kind](event) for kind in type(event).__mro__ if kind in _OTHERS)
        return self._line(sign, event.time, (*parts, host_text(event.host)))

    def clock(self, seconds: float) -> str:
        """Time of day to the millisecond."""
        if seconds == self._moment[0]:
            return self._moment[1]
        milliseconds = round(seconds * 1000)
        second, rest = divmod(milliseconds, 1000)
        if second != self._second:
            self._second = second
            try:
                parts = time.gmtime(second) if self.utc else time.localtime(second)
                self._second_text = time.strftime("%H:%M:%S", parts)
            except (OverflowError, OSError, ValueError):  # beyond the C library's calendar
                self._second_text = str(second)
        text = f"{self._second_text}.{rest:03d}"
        self._moment = (seconds, text)
        return text

    def _flow(self, flow: Flow) -> tuple[Flow, str, str, str]:
        known = self._flows.get(flow.id)
        if known is not None and known[0] is flow:
            return known
        local, remote = self.cell("local", str(flow.local or "*")), str(flow.remote or "*")
        if flow.namespace is not None:
            remote += f"  netns:{escape(flow.namespace)}"
        process = self.cell("process", process_text(flow.process))
        text = f"{provider_text(flow):<6} {local} > {self.cell('remote', remote)}  {process}"
        if len(self._flows) >= _REMEMBERED:
            self._flows.clear()
        known = self._flows[flow.id] = (flow, text, place_text(flow), "@" if is_listener(flow) else " ")
        return known

    def cell(self, column: str, text: str) -> str:
        """`text`, as wide as its column is by now."""
        width = cell_width(text)
        if width > self._widths.get(column, 0) and width <= _WIDEST:
            self._widths[column] = width
            self._flows.clear()  # they have the old width
        return text + " " * (self._widths.get(column, 0) - width)  # none where it is wider

    def _line(self, sign: str, seconds: float, parts: Iterable[str], mark: str = " ") -> str:
        colour = _COLOURS[sign] if self.colour else ""
        end = _PLAIN if colour else ""
        line = f"{colour}{sign}{end} {self.clock(seconds)} {mark} {'  '.join(part for part in parts if part)}"
        return line.rstrip()

    def _of_flow(self, event: FlowAdded | FlowUpdated | FlowRemoved) -> str:
        _, text, place, mark = self._flow(event.flow)
        rx, tx = traffic_texts(event.counts)
        # Written out, because it is done for each report: plain numbers are as wide as they are long.
        self._rx_width = max(self._rx_width, len(rx))
        self._tx_width = max(self._tx_width, len(tx))
        text = f"{text}  {rx:<{self._rx_width}}  {tx:<{self._tx_width}}"
        if isinstance(event, FlowUpdated):  # most events are
            return f"# {self.clock(event.time)} {mark} {text}  {place}".rstrip()
        parts = [text, place]
        sign = "+"
        if isinstance(event, FlowRemoved):
            sign = "-"
            if failed(event):
                parts.append(f"{_RED}FAILED{_PLAIN}" if self.colour else "FAILED")
            if event.outcome is not None:
                parts.append(event.outcome.value.replace("_", " "))
            if event.uncertainty is not None:
                parts.append(f"[±{event.uncertainty}]")
            elif not event.final:
                parts.append(f"[{event.reason.value}]")
            self._flows.pop(event.flow.id, None)
        return self._line(sign, event.time, parts, mark)


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
"""Events that are not of a flow."""

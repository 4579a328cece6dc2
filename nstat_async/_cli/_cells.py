"""Single values as text for people: amounts, times, processes, places. Names from outside are escaped."""

from __future__ import annotations

import enum
import functools
import math
import re
import time
from collections.abc import Iterable
from typing import Any

from .._escape import escape
from .._fields import MEDIA, TABLE, Field
from .._model import Counts, Direction, Flow, Interface, MediumCounts, Peer, Process, Provider, TcpState
from ..filters import SHORT_ID

_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB")
UNKNOWN = "?"
"""The text of an unknown value; an empty cell means that a value does not apply."""
_LONG_ID_LENGTH = 64
_LONG_ID = re.compile(rf"[0-9a-f]{{{_LONG_ID_LENGTH}}}")


def bytes_text(number: float | None) -> str:
    """A number of bytes with an SI unit, as usual for networks: ``512 B``, ``1.5 kB``; ``?`` if unknown."""
    if number is None:
        return UNKNOWN
    if number < 999.5:
        return f"{number:.0f} B"
    if number < 999_500:  # the usual case, without the loop
        return f"{number / 1000:.1f} kB" if number < 99_950 else f"{number / 1000:.0f} kB"
    value = float(number)
    for unit in _UNITS:
        value /= 1000
        if value < 999.5 or unit == _UNITS[-1]:
            break
    if value >= 999_999.5:  # no kernel counts so far: a machine of a fleet said so, and may not widen every line
        return f"{value:.0e} {unit}"
    return f"{value:.{0 if value >= 99.95 else 1}f} {unit}"


def rate_text(number: float | None) -> str:
    """Bytes per second; ``?`` if unknown."""
    return UNKNOWN if number is None else f"{bytes_text(number)}/s"


def process_text(process: Process | None) -> str:
    """``pid:N (name)``, or ``pid:N (name: title)``, escaped; ``pid:?`` if the owner is unknown."""
    if process is None:
        return "pid:?"
    return f"pid:{process.pid} ({name_text(process)})" if process.name else f"pid:{process.pid}"


def name_text(process: Process, *, short: bool = False) -> str:
    """The name of a process, escaped; followed by its title if that differs, as for scripts. `short`: the title alone."""
    name, title = process.name or UNKNOWN, process.title
    if title is None or name.startswith(title):
        return escape(name)
    return escape(title if short else f"{name}: {title}")


def place_text(flow: Flow) -> str:
    """Where a flow is, escaped: its interface, ``container:NAME`` or ``unit:NAME``; in a fleet its machine and other end."""
    parts = [interface_text(flow.interface)]
    if flow.container is not None:
        parts.append(f"container:{escape(short_id(flow.container))}")
    elif flow.unit is not None:
        parts.append(f"unit:{escape(short_id(flow.unit))}")
    parts += [host_text(flow.host), peer_text(flow.peer)]
    return "  ".join(part for part in parts if part)


def short_id(text: str) -> str:
    """A text with container ids shortened, as their engines show them; inside a name they end with an ellipsis."""
    if len(text) < _LONG_ID_LENGTH:
        return text
    return text[:SHORT_ID] if _LONG_ID.fullmatch(text) else _LONG_ID.sub(lambda match: f"{match[0][:SHORT_ID]}…", text)


def interface_text(interface: Interface | None) -> str:
    """Kind of an interface, or its name or number if the kind is unknown; empty without an interface."""
    if interface is None:
        return ""
    if interface.kind is not None:
        return interface.kind.value
    return escape(interface.name) if interface.name else f"if{interface.index}"


def traffic_texts(counts: Counts | None) -> tuple[str, str]:
    """Bytes and packets, received and sent."""
    if counts is None:
        return f"rx {UNKNOWN}", f"tx {UNKNOWN}"
    return amount_text("rx", counts.rx_bytes, counts.rx_packets), amount_text("tx", counts.tx_bytes, counts.tx_packets)


def amount_text(direction: str, size: int | None, packets: int | None) -> str:
    """Bytes and packets of one direction: ``rx 1.5 kB (3)``."""
    return f"{direction} {bytes_text(size)}" if packets is None else f"{direction} {bytes_text(size)} ({packets})"


def media_text(media: Iterable[tuple[str, MediumCounts]]) -> str:
    """Bytes by medium, most first; empty if no report has them."""
    amounts = [(counts.rx_bytes + counts.tx_bytes, name) for name, counts in media if name != "total"]
    return "  ".join(f"{escape(name)} {bytes_text(amount)}" for amount, name in sorted(amounts, reverse=True) if amount)


def is_listener(flow: Flow) -> bool:
    """True for a socket that waits for connections."""
    return flow.direction is Direction.LISTENER or flow.state is TcpState.LISTEN


def provider_text(flow: Flow) -> str:
    """The protocol, with a star if it runs in user space."""
    star = "*" if flow.userland and flow.provider in {Provider.TCP, Provider.UDP} else ""
    return f"{flow.provider.value}{star}"


def host_text(host: str | None) -> str:
    """The machine of a fleet; empty for this one."""
    return "" if host is None else f"host:{escape(host)}"


def peer_text(peer: Peer | None) -> str:
    """Machine and process at the other end; empty if they are not known."""
    return "" if peer is None else f"peer:{escape(peer.host or UNKNOWN)} {process_text(peer.process)}"


@functools.lru_cache(64)
def clock_text(seconds: float, form: str, *, utc: bool = False) -> str:
    """A time in a format of `time.strftime`; the number itself if it is beyond the C library's calendar."""
    try:
        return time.strftime(form, time.gmtime(seconds) if utc else time.localtime(seconds))
    except (OverflowError, OSError, ValueError):
        return str(seconds)


def moment_text(seconds: float, *, utc: bool = False) -> str:
    """Time of day to the millisecond."""
    shown = round(seconds, 3)
    second = math.floor(shown)
    return f"{clock_text(second, '%H:%M:%S', utc=utc)}.{round((shown - second) * 1000):03d}"


def cell_text(field: Field, value: Any, *, utc: bool = False) -> str:
    """The text of a field's value for people, escaped."""
    if value is None:
        return UNKNOWN
    if field.unit == "bytes":
        return bytes_text(value)
    if field.unit == "bytes per second":
        return rate_text(value)
    if field.unit == "seconds since the epoch":
        return moment_text(value, utc=utc)
    if isinstance(value, Process):
        return process_text(value)
    if isinstance(value, Interface):
        return interface_text(value)
    if field.kind is MEDIA:
        return media_text(value)
    if isinstance(value, Counts):
        return "  ".join(traffic_texts(value))
    return escape(short_id(str(value.value if isinstance(value, enum.Enum) else value)))


def changes_of(before: Any, after: Any) -> list[str]:
    """The names in JSON of the fields that differ between two records."""
    return [
        f"{field.key} {cell_text(field, value)}"
        for field in TABLE.of(type(after)).fields
        if not field.derived and (value := field.value_of(after)) != field.value_of(before)
    ]

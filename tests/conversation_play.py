"""Playing a recorded conversation through passive sessions, with what each step meant.

`expected` derives from the bytes alone, by the independent reader, what a follower can
know about each source: that is what the events are held against.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import attrs
import conversations
from ntstat_reader import Reader

from nstat_async import AnyEvent, FlowAdded, FlowRemoved, FlowUpdated
from nstat_async.ntstat import Mode, Session

ADDED, REMOVED, DESC, COUNTS, UPDATE, EXTENDED = 10001, 10002, 10003, 10004, 10006, 10007
DETAILS, EXTENDED_DETAILS = 10008, 10009
COUNTING = {COUNTS, UPDATE, EXTENDED, DETAILS, EXTENDED_DETAILS}
"""Messages with counters."""
DESCRIBING = {DESC, UPDATE, EXTENDED, DETAILS, EXTENDED_DETAILS}
"""Messages with a descriptor."""
FLOW_PROVIDERS = {"TCP", "TCP_KERNEL", "TCP_USERLAND", "UDP", "UDP_KERNEL", "UDP_USERLAND", "QUIC_USERLAND"} | {
    "CONN_USERLAND",
    "UDP_SUBFLOW",
}
FLOW_EVENTS = (FlowAdded, FlowUpdated, FlowRemoved)


@attrs.define
class Seen:
    """What the bytes say about one source."""

    provider: str | None = None
    reports: int = 0
    last_counts: dict[str, Any] | None = None
    closing: bool = False
    """The final counters came."""
    goodbye: int = 0
    """Kernels without a closing flag: 1 after unasked counters, 2 after the description behind them."""
    removed: int | None = None
    """Header flags of SRC_REMOVED."""


@attrs.frozen
class Step:
    """One line of a conversation and what came of it."""

    line: dict[str, Any]
    client: int
    socket: int
    """Counts the control sockets that this client opened."""
    messages: list[tuple[int, int, int, dict[str, Any]]]
    """(type, flags, reference, all fields) of a datagram from the kernel."""
    events: list[AnyEvent]


def seconds(line: dict[str, Any]) -> float:
    """A line's time."""
    return line["t"] / 1e9 if isinstance(line["t"], int) else line["t"]


def parse(theirs: Reader, data: bytes) -> list[tuple[int, int, int, dict[str, Any]]]:
    """The messages of a datagram, read independently."""
    found = []
    for begin, end in theirs.messages(data):
        kind = struct.unpack_from("<I", data, begin + 8)[0]
        name = theirs.facts["message_structs"][theirs.by_type[kind]]
        fields = theirs.read(name, data, begin)
        fields["_context"] = struct.unpack_from("<Q", data, begin)[0]
        flags = fields.get("hdr.flags", 0)
        provider = fields.get("provider")
        if kind in DESCRIBING and provider in theirs.descriptors:
            at = begin + theirs.size(name)
            if end - at >= theirs.size(theirs.descriptors[provider]):
                fields["_descriptor"] = theirs.read(theirs.descriptors[provider], data, at)
        found.append((kind, flags, fields.get("srcref", 0), fields))
    return found


def counts_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The counters inside a message's fields, by their names without ``nstat_``."""
    found = {k.removeprefix("counts.nstat_"): v for k, v in fields.items() if k.startswith("counts.")}
    details = {k.removeprefix("detailed_counts.nstat_"): v for k, v in fields.items() if k.startswith("detailed_c")}
    for direction in ("rx", "tx") if details else ():
        media = {
            "cell": ("cellular",),
            "wifi": ("wifi_infra", "wifi_non_infra"),
            "wired": ("wired",),
        }
        for unit in ("packets", "bytes"):
            found[direction + unit] = details[f"media_stats.ms_total.ts_{direction}{unit}"]
        for name, parts in media.items():
            key = f"{name}_{direction}bytes"
            found[key] = sum(details[f"media_stats.ms_{part}.ts_{direction}bytes"] for part in parts)
    return {**found, **{k: v for k, v in details.items() if not k.startswith("media_stats.")}}


def play(name: str, **options: Any) -> tuple[dict[int, Session], Iterator[Step]]:
    """The sessions, and the steps that drive them."""
    kernel = conversations.kernel(name)
    theirs = Reader.of(kernel)
    lines = conversations.load(name)[1]
    sessions = {c: Session(kernel, client=c, mode=Mode.FOLLOWING, **options) for c in conversations.clients(name)}

    def steps() -> Iterator[Step]:
        connected: set[int] = set()
        sockets = dict.fromkeys(sessions, 0)
        for line in lines:
            client = line.get("c", 0)
            if line["dir"] == "note":
                # What only whoever recorded it could know: the client has another socket.
                if line["text"].startswith("control socket connected"):
                    sockets[client] = sockets.get(client, 0) + 1
                    if client in connected:
                        break  # two sockets at once under one number: nobody could tell them apart
                    connected.add(client)
                elif line["text"].startswith("control socket closed"):
                    connected.discard(client)
                continue
            data, session = bytes.fromhex(line["hex"]), sessions[client]
            if line["dir"] == "to_kernel":
                session.observe_request(data, seconds(line))
                yield Step(line, client, sockets[client], [], session.take_events())
            else:
                session.receive_datagram(data, seconds(line))
                yield Step(line, client, sockets[client], parse(theirs, data), session.take_events())
        for client, session in sessions.items():
            session.finish(seconds(lines[-1]) if lines else 0.0)
            last = seconds(lines[-1]) if lines else 0.0
            yield Step({"i": -1, "dir": "end", "t": last}, client, sockets[client], [], session.take_events())

    return sessions, steps()


def note(theirs: Reader, seen: dict[int, Seen], step: Step) -> None:
    """Keep the books of what the bytes say."""
    names = {number: name for name, (number, _) in theirs.facts["providers"].items()}
    for kind, flags, ref, fields in step.messages:
        if kind not in {ADDED, REMOVED} | DESCRIBING | COUNTING:
            continue
        if kind == REMOVED and ref not in seen:
            continue  # came and went unreported
        entry = seen.setdefault(ref, Seen())
        if kind == ADDED and entry.removed is not None:
            entry = seen[ref] = Seen()
        if kind == REMOVED:
            entry.removed = flags
            continue
        entry.reports += kind != ADDED
        if "provider" in fields:
            entry.provider = names[fields["provider"]]
        if kind in COUNTING:
            entry.last_counts = counts_of(fields)
            entry.closing |= bool(flags & 4)
        if kind == COUNTS and theirs.number < 5 and not fields["_context"]:
            entry.goodbye = 1
        if kind == DESC and entry.goodbye == 1:
            entry.goodbye = 2


def reference(event: AnyEvent) -> int:
    """The source reference inside a flow's id."""
    return int(event.flow.id.split(".")[1])


def socket_of(event: AnyEvent) -> int:
    """Which of the client's control sockets a flow's id belongs to."""
    return int(event.flow.id.split(".")[0].partition("r")[2] or 1)

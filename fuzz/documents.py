"""What is made of JSON that others wrote: lines of events, and the messages of a fleet."""

from __future__ import annotations

import contextlib
import functools
import json
import zlib
from typing import Any

from choices import NUMBERS, Choices, flows_of
from lives import Lives

import nstat_async as n
from nstat_async import ProtocolError
from nstat_async.fleet import Delivery, Facts, Header, Incoming
from nstat_async.fleet._messages import encode
from nstat_async.json import JsonFormatter, JsonReader, dumps, loads

HOSTS = ("a", "b", "c")
RUNS = ("0000000a", "0000000b")


@functools.cache
def _flow(number: int) -> n.Flow:
    local, remote = n.Endpoint.parse("192.0.2.1", 1000 + number), n.Endpoint.parse("2001:db8::1", 443)
    process = n.Process(100 + number, "curl", unique_pid=number)
    return n.Flow(
        f"c{number}", n.Provider.TCP, None, local, remote, process, n.Interface(4, "en0"), n.TcpState.ESTABLISHED
    )


def _events(number: int) -> list[n.AnyEvent]:
    flow, count = _flow(number), n.Counts(rx_bytes=10, tx_bytes=5, rx_packets=1, tx_packets=1)
    return [
        n.FlowAdded(1.0, flow, count, preexisting=bool(number % 2)),
        n.FlowUpdated(2.0, flow, count, n.Counts(rx_bytes=1), n.Details(mss=1460, congestion_control="cubic")),
        n.FlowRemoved(3.0, flow, count, final=True, reason=n.RemovalReason.CLOSED),
    ]


OTHERS = [
    n.PollCompleted(1.0, 2, complete=True),
    n.EventsLost(1.0, n.LossCause.TRANSPORT, 3, None, "why"),
    n.InterfaceUpdated(1.0, n.Interface(4, "en0"), n.Counts(rx_bytes=1), None, None),
    n.HostUpdated(1.0, n.HostState.PRESENT, "machine", host="a", labels=(("site", "x"),)),
    n.SystemInfo(1.0, ((1, 2), (3, "x"))),
    n.Unrecognized(1.0, 7, b"ab"),
]
LINES = [[(json.loads(dumps(event)), dumps(event)) for event in _events(number)] for number in range(6)]
FURTHER = [(json.loads(dumps(event)), dumps(event)) for event in OTHERS]


def _line(choices: Choices) -> str:
    """A line, often with something else in one place."""
    tree, text = choices.pick(choices.pick(LINES)) if choices.byte() % 4 else choices.pick(FURTHER)
    if choices.byte() % 4:
        return text
    for _ in range(1 + choices.byte() % 2):
        tree = choices.spoiled(tree)
    return json.dumps(tree)


def lines(data: bytes) -> int:
    """Lines of events, read or refused: what was read is written so that it reads the same."""
    choices, many = Choices(data), 0
    reader, formatter = JsonReader(), JsonFormatter()
    while not choices.over:
        many += 1
        tree, text = choices.pick(choices.pick(LINES)) if choices.byte() % 4 else choices.pick(FURTHER)
        for _ in range(1 + choices.byte() % 3):
            tree = choices.spoiled(tree)
        text = json.dumps(tree)
        if choices.rarely():
            text = text[: choices.byte()] + choices.pick(("", "}", "\x00", "NaN", "[" * 3_000))
        try:
            event = loads(text)
        except ProtocolError:
            with contextlib.suppress(ProtocolError):
                reader(text)
            continue
        assert _same(reader(text), event)
        assert _same(loads(dumps(event)), event)
        formatter(event)
    return many


def _same(one: Any, other: Any) -> bool:
    """Equal, or neither is equal to itself."""
    return bool(one == other) or repr(one) == repr(other)


class _Fleet:
    """Machines that publish, a stream between that loses and repeats, and a reader."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.core = Incoming()
        self.lives = Lives(returning=True)
        self.now, self.position, self.inputs = 100.0, 0, 0
        self.numbers: dict[tuple[str, str], int] = {}
        self.core.begin(self.now)

    def step(self) -> None:
        """A message, or time."""
        choices = self.choices
        what = choices.byte() % 16
        if what == 15:
            self.now += choices.pick((0.1, 2.0, 40.0, 4000.0))
            self.core.handle_deadline(self.now, self.now)
        elif what == 14:
            self.core.caught_up = not self.core.caught_up
        else:
            self.position += 1
            self.inputs += 1
            host, message = self.message()
            subject = f"nstat.{host}.{choices.pick(('events', 'state'))}"
            sent = choices.pick((None, self.now, self.now - 100.0))
            self.core.receive(Delivery(subject, message, self.position, self.now, sent), self.now)
        for events in self.core.take_events():
            self.lives.check(events)

    def message(self) -> tuple[str, bytes]:
        """Whose, and its bytes: mostly the next one of its run, whole."""
        choices = self.choices
        host, run = choices.pick(HOSTS), RUNS[choices.rarely()]
        number = self.numbers.get((host, run), 0)
        if choices.rarely():
            number = max(0, number + choices.byte() % 8 - 3)
        self.numbers[host, run] = number + 1
        part = None if number and choices.byte() % 8 else choices.byte() % 2
        header = Header(
            incarnation=run, seq=number, next=10.0, part=part, more=part is not None and choices.rarely(),
            last=choices.rarely() and choices.rarely(), facts=Facts(machine_id=host) if part == 0 else None,
        )  # fmt: skip
        data = encode(header, [_line(choices) for _ in range(choices.byte() % 6)], compress=bool(number % 2))
        if choices.rarely():
            data = self.broken(data)
        return host, data

    def broken(self, data: bytes) -> bytes:
        """A message with another header, cut, or expanded to nonsense."""
        choices, what = self.choices, self.choices.byte() % 4
        if what == 0 and data[:1] == b"{":
            head, _, rest = data.partition(b"\n")
            return json.dumps(choices.spoiled(json.loads(head))).encode() + b"\n" + rest
        if what == 1:
            return data[: choices.byte()]
        if what == 2:
            return zlib.compress(data + bytes([choices.byte()]) * (choices.pick(NUMBERS) % 70_000))
        return choices.pick((b"", b"{", b"\n\n", b"{}\n", data * 2))


def envelopes(data: bytes) -> int:
    """The messages of three machines: whatever they say, flows are added, updated and removed in order."""
    choices = Choices(data)
    fleet = _Fleet(choices)
    while not choices.over:
        fleet.step()
    assert set(flows_of(fleet.core)) == fleet.lives.open
    return fleet.inputs

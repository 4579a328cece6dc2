"""Targets that know the structures: every input is a kernel that speaks well, and then does something odd.

The bytes are read as choices. Where the C code is built, each target plays to a core with it and to
one without: whatever comes, the two do the same.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import struct
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "sockdiag")]

from ntstat_wire import NEWEST_OF_LAYOUT, Wire, address
from sockdiag_fakes import FakeKernel, FakeSocket
from virtual import VirtualMonitor

from nstat_async import FlowEvent, MonitorOptions, NstatError
from nstat_async._compiled import speedups
from nstat_async._contract import CloseChannel, Lookup, LookupFailed, Mode, OpenChannel, Send
from nstat_async._io.follow import Follower
from nstat_async._io.player import Player, protocol_of
from nstat_async._io.record import RecordedCore
from nstat_async._io.rerun import rerun_of
from nstat_async.ntstat import Session as DarwinSession
from nstat_async.ntstat import _decoder
from nstat_async.recording import JsonLinesWriter, Recording, copy, open_recording
from nstat_async.sockdiag import Session as LinuxSession
from nstat_async.sockdiag import TcpInfo, _rows, _scan
from nstat_async.testing import EmulatedKernel

T = TypeVar("T")
STEPS = 40
KERNELS = [Wire(version) for version in NEWEST_OF_LAYOUT.values()]
REFERENCES = (1, 2, 3, 4, 5, 6, 0, 1 << 32, (1 << 64) - 1, (1 << 64) - 2)
NUMBERS = (0, 1, 255, 1 << 16, (1 << 31) - 1, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1)
TREES = (None, True, -1, 0, 1.5, 1 << 64, 10**400, "", "x" * 300, "\ud800", [], {}, [[]], {"": None}, [1, "a", None])


class Choices:
    """Bytes, read as choices; behind their end every choice is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def over(self) -> bool:
        """True when all bytes are used."""
        return self._at >= len(self._data)

    def byte(self) -> int:
        """One byte."""
        at = self._at
        self._at = at + 1
        return self._data[at] if at < len(self._data) else 0

    def pick(self, options: Sequence[T]) -> T:
        """One of these."""
        return options[self.byte() % len(options)]

    def rarely(self) -> bool:
        """True once in sixteen."""
        return self.byte() % 16 == 15


def is_thorough(flags: int) -> bool:
    """Whether an input is played to the Python code as well, and everything is looked at: a quarter of them."""
    return flags < 64


def _flows(core: Any) -> dict[str, Any]:
    return {flow.id: (flow, counts) for flow, counts in core.flows()}


def _told(events: list[Any]) -> list[Any]:
    """Events with all that is made of them when somebody looks."""
    return [(event, event.details if isinstance(event, FlowEvent) else None) for event in events]


@contextlib.contextmanager
def _without(*modules: Any) -> Iterator[None]:
    """Cores that are made meanwhile do without the C code."""
    for module in modules:
        module.speedups = None
    try:
        yield
    finally:
        for module in modules:
            module.speedups = speedups


# --- Darwin ----------------------------------------------------------------------


def _open(core: Any, channel: int, now: float) -> None:
    core.channel_opened(channel, now, immediate=True, receive_buffer=1 << 16)


@functools.cache
def _descriptor(wire: Wire, provider: int, pid: int, remote: str | None) -> bytes:
    fields: dict[str, Any] = {"local": address("192.0.2.1", 1000), "remote": address(remote, 443), "pid": pid}
    if "state" in wire.layout["nstat_tcp_descriptor"] and provider == wire.tcp:
        fields["state"] = 4
    return wire.descriptor(provider, **fields)


class _Darwin:
    """A session, or two, on one kernel that answers as the choices say."""

    def __init__(self, choices: Choices) -> None:
        from targets import Lives  # noqa: PLC0415  # which registers what is here

        self.choices = choices
        self.wire = choices.pick(KERNELS)
        flags = choices.byte()
        following, thorough = bool(flags & 1), is_thorough(flags)
        options = MonitorOptions(every_update=bool(flags & 2), extras=bool(flags & 4) and not following)
        mode = Mode.FOLLOWING if following else Mode.DRIVING
        make = partial(DarwinSession, self.wire.kernel, options=options, mode=mode)
        self.core, self.pure = make(), make() if thorough else None
        self.lives, self.now = Lives(look=thorough), 1_000.0
        self.channels: list[int] = []
        self.contexts = [0]
        self.tokens: list[int] = []
        self.counters: dict[int, list[int]] = {}
        wide = self.wire.layout["nstat_msg_src_counts"].by_name["srcref"].size == 8
        self.references = REFERENCES if wide else tuple(ref & 0xFFFFFFFF for ref in REFERENCES)
        self.both(lambda core: core.start(self.now))

    def both(self, act: Any) -> None:
        """Do this to both, and see that they do the same."""
        act(self.core)
        events, commands = self.core.take_events(), self.core.commands()
        if self.pure is not None:
            with _without(_decoder):
                act(self.pure)
                assert _told(events) == _told(self.pure.take_events()), "the C code reports something else"
                assert commands == self.pure.commands()
        self.lives.check(events)
        self._carry_out(commands)

    def _carry_out(self, commands: list[Any]) -> None:
        for command in commands:
            if isinstance(command, Send):
                self.contexts.append(struct.unpack_from("<Q", command.data)[0])
            elif isinstance(command, OpenChannel):
                self.channels.append(command.channel)
                opened = partial(_open, channel=command.channel, now=self.now)
                self.both(opened)
            elif isinstance(command, CloseChannel):
                self.channels = [channel for channel in self.channels if channel != command.channel]
            elif isinstance(command, Lookup):
                self.tokens.append(command.token)

    def step(self) -> None:
        """Whatever comes next."""
        choices, now = self.choices, self.now
        channel = choices.pick(self.channels) if self.channels else 0
        what = choices.byte() % 16
        if what < 10:
            datagrams = [self.datagram() for _ in range(1 + choices.byte() % 3)]
            self.both(lambda core: core.receive_datagrams(datagrams, now, channel))
        elif what == 10:
            self.both(lambda core: core.channel_drained(channel, now))
        elif what == 11:
            self.both(lambda core: core.request_poll(now))
        elif what == 12:
            errno = choices.pick((55, 12, 35, 6))
            self.both(lambda core: core.channel_failed(channel, errno, now))
        elif what == 13 and self.tokens:
            token = choices.pick(self.tokens)
            self.both(lambda core: core.lookup_done(token, LookupFailed("no"), now))
        elif what == 14 and choices.rarely():
            self.both(lambda core: core.channel_closed(channel, now))
        else:
            self.now += choices.pick((0.01, 1.0, 5.0))
            due = self.core.next_deadline()
            if due is not None and due <= self.now:
                self.both(lambda core: core.handle_deadline(self.now))

    def datagram(self) -> bytes:
        """A datagram of some messages, whole or cut."""
        many = 1 + self.choices.byte() % 5 if self.wire.layout.has_lengths else 1
        data = b"".join(self.message() for _ in range(many))
        return data[: -self.choices.byte() or None] if self.choices.rarely() else data

    def message(self) -> bytes:
        """One message, mostly a report that a poll asked for."""
        choices, wire = self.choices, self.wire
        ref, context = choices.pick(self.references), choices.pick(self.contexts) if choices.rarely() else 0
        flags = choices.pick((0, 1, 2, 4, 8, 16, 32)) if choices.rarely() else 0
        what = choices.byte() % 16
        if what == 0:
            return wire.added(ref, choices.pick((2, 3, 4, 5, 99)), context=context)
        if what == 1:
            return wire.removed(ref, flags)
        if what == 2:
            return wire.success(choices.pick(self.contexts), flags)
        if what == 3:
            return wire.error(choices.pick(self.contexts), choices.pick((2, 5, 12, 55)))
        provider = wire.udp if choices.rarely() else wire.tcp
        if what == 4:
            return wire.described(ref, self.descriptor(provider), provider=provider, context=context, flags=flags)
        if what < 8 or not wire.kernel.has_updates:
            return wire.counted(ref, self.counts(ref), context=context, flags=flags)
        return wire.updated(
            ref, self.counts(ref), self.descriptor(provider), provider=provider, context=context, flags=flags
        )

    def counts(self, ref: int) -> bytes:
        """Counters that stay, grow, or are anything."""
        rx, tx = self.counters.setdefault(ref, [0, 0])
        if self.choices.rarely():
            rx, tx = self.choices.pick(NUMBERS), self.choices.pick(NUMBERS)
            return self.wire.counts(
                rx, tx, rxpackets=rx, txpackets=tx, txretransmit=self.choices.pick(NUMBERS) & 0xFFFFFFFF
            )
        growth = self.choices.pick((0, 0, 1, 1000))
        self.counters[ref] = [rx + growth, tx + growth]
        return self.wire.counts(rx + growth, tx + growth)

    def descriptor(self, provider: int) -> bytes:
        """A descriptor, mostly the same, sometimes longer or shorter."""
        pid, remote = 42, "198.51.100.1"
        if self.choices.rarely():
            pid, remote = self.choices.pick((0, 42, 43)), self.choices.pick((None, "::1", "198.51.100.2"))
        data = _descriptor(self.wire, provider, pid, remote)
        if self.choices.rarely():
            data = self.choices.pick((data + bytes(8), data[:-4], data[: len(data) // 2], data + bytes(48)))
        return data


def reports(data: bytes) -> None:
    """A Darwin kernel that reports plain things and odd ones."""
    choices = Choices(data)
    machine = _Darwin(choices)
    for _ in range(STEPS):
        if choices.over or machine.core.failure is not None:
            break
        machine.step()
    flows = _flows(machine.core)
    assert set(flows) == machine.lives.open
    if machine.pure is not None:
        assert flows == _flows(machine.pure)
        assert machine.core.statistics() == machine.pure.statistics()


# --- Linux -----------------------------------------------------------------------


class _Odd(FakeKernel):
    """A kernel that sometimes loses, repeats, cuts or refuses what it was asked for."""

    def __init__(self, choices: Choices, **options: Any) -> None:
        super().__init__(**options)
        self.odd = choices
        self.cookies: dict[int, int] = {}
        """The socket at each of six places."""

    def feed(self, data: bytes, channel: int) -> None:
        what = self.odd.byte() % 64
        if what == 63:
            return
        if what == 62 and channel % 4 != 1:  # no notification comes twice
            super().feed(data, channel)
        elif what == 61:
            data = data[: len(data) // 2]
        elif what == 60:
            self.session.channel_failed(channel, self.odd.pick((105, 12, 11, 5)), self.now)
        super().feed(data, channel)


def _change(kernel: _Odd, choices: Choices) -> None:
    """Something happens to a socket."""
    place = choices.byte() % 6
    cookie = kernel.cookies.get(place, 0)
    sock = kernel.sockets.get(cookie)
    if sock is None:
        cookie = kernel.cookies[place] = max(kernel.cookies.values(), default=0) + 1  # a kernel gives none twice
        protocol, family = choices.pick((6, 6, 17)), choices.pick((2, 10))
        wide = b"\0" * 10 + b"\xff\xff" if family == 10 else b""
        kernel.sockets[cookie] = FakeSocket(
            cookie,
            local=wide + bytes((127, 0, 0, 1)),
            local_port=choices.pick((0, 80, 40000)),
            remote=wide + bytes((127, 0, 0, choices.byte() % 3)),
            remote_port=choices.pick((0, 443, 80)),
            family=family,
            protocol=protocol,
            state=7 if protocol == 17 else choices.pick((1, 2, 8, 10)),
            inode=choices.byte() % 4,
            info_length=choices.pick((280, 280, 192, 100)),
        )
        return
    what = choices.byte() % 8
    if what <= 2:
        for field in (TcpInfo.BYTES_RECEIVED, TcpInfo.BYTES_ACKED, TcpInfo.DATA_SEGS_IN):
            top = (1 << 32) - 1 if field is TcpInfo.DATA_SEGS_IN else (1 << 64) - 1
            number = choices.pick(NUMBERS) if choices.rarely() else sock.info.get(field, 0) + choices.byte()
            sock.info[field] = number & top
    elif what == 3:
        # No TIME_WAIT, no SYN_RECV: these are other objects, which no socket comes back from.
        sock.state = choices.pick((1, 1, 4, 5, 4, 7, 8, 9, 10, 11)) if sock.protocol == 6 else 7
    elif what == 4:
        sock.inode = choices.byte() % 4
        kernel.owners[sock.inode] = 100 + choices.byte() % 3
    elif what == 5:
        sock.remote_port, sock.local_port = choices.pick((0, 443, 444)), choices.pick((0, 80, 81))
    elif what == 6:
        kernel.close(cookie, tell=not choices.rarely())
    else:
        sock.extra = {15: choices.pick((b"", b"\x01", b"\x01\0\0\0"))}


def dumps(data: bytes) -> None:
    """A Linux kernel whose sockets live, and which answers mostly."""
    from targets import Lives  # noqa: PLC0415  # as above

    flags = data[0] if data else 0
    played = partial(_play_dumps, data[1:], every_update=bool(flags & 2), extras=bool(flags & 4))
    if not is_thorough(flags):
        played(Lives(look=False))
        return
    made = played(Lives())
    with _without(_rows, _scan):
        assert made == played(Lives()), "the C code reports something else"


def _play_dumps(data: bytes, lives: Any, **options: Any) -> tuple[Any, ...]:
    """A kernel's life as the choices say, and what came of it."""
    choices = Choices(data)
    kernel = _Odd(choices, **options)
    session = kernel.session
    kernel.start()
    for _ in range(STEPS):
        if choices.over or session.failure is not None:
            break
        _step(kernel, choices)
        kernel.run()
    kernel.wait(1.0)
    lives.check(kernel.events)
    known = _flows(session)
    assert session.failure is not None or set(known) == lives.open
    return kernel.events if not lives.look else _told(kernel.events), known, session.statistics()


def _step(kernel: _Odd, choices: Choices) -> None:
    what = choices.byte() % 8
    if what <= 3:
        _change(kernel, choices)
    elif what <= 5:
        kernel.session.request_poll(kernel.now)
    elif what == 6:
        kernel.now += choices.pick((0.01, 1.0, 3.0))
        due = kernel.session.next_deadline()
        if due is not None and due <= kernel.now:
            kernel.session.handle_deadline(kernel.now)
    else:
        kernel.hold_lookups = choices.rarely()
        held, kernel.held = kernel.held, []
        for command in held:
            kernel.answer(command)


# --- recordings --------------------------------------------------------------------


def _lines(file: io.BytesIO) -> list[dict[str, Any]]:
    """A recording as JSON Lines, taken apart."""
    file.seek(0)
    text = io.BytesIO()
    with open_recording(file) as source, JsonLinesWriter(text, source.info) as writer:
        copy(source, writer)
        writer.flush()
        return [json.loads(line) for line in text.getvalue().splitlines()]


def linux_life(kernel: FakeKernel) -> FakeKernel:
    """Three sockets, of which one moves bytes and one ends."""
    for number in (1, 2, 3):
        kernel.sockets[number] = FakeSocket(number, local_port=4000 + number, inode=number)
        kernel.owners[number] = 100 + number
    kernel.start()
    kernel.sockets[1].info[TcpInfo.BYTES_RECEIVED] = 1000
    kernel.wait(1.0)
    kernel.close(2)
    kernel.wait(1.0)
    return kernel


def _linux_run() -> list[dict[str, Any]]:
    file, options = io.BytesIO(), MonitorOptions()
    core = RecordedCore(LinuxSession(options, kernel="6.18.0"), Recording(file), options, now=100.0, epoch_offset=1e9)
    linux_life(FakeKernel(core))
    core.close()
    return _lines(file)


def _darwin_run() -> list[dict[str, Any]]:
    file, kernel = io.BytesIO(), EmulatedKernel("xnu-11417.121.6")
    made: list[RecordedCore] = []

    def record(session: Any, options: MonitorOptions) -> RecordedCore:
        made.append(RecordedCore(session, Recording(file), options, now=float(kernel.now), epoch_offset=1e9))
        return made[0]

    monitor = VirtualMonitor(kernel, wrap=record)
    flow = kernel.open_tcp(pid=501, name="curl", remote="192.0.2.7:443")
    flow.transfer(rx=1000, tx=200)
    monitor.run(2.5)
    flow.close()
    monitor.run(1.0)
    made[0].close()
    return _lines(file)


def _recorded() -> list[list[dict[str, Any]]]:
    """The lines of some whole recordings: of this version, which are run again, and of the first, which are followed."""
    old = sorted((ROOT / "tests" / "vectors" / "recordings").glob("*.jsonl"))
    followed = [[json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in old]
    return [_linux_run(), _darwin_run(), *followed]


def _with_text(line: Any) -> tuple[Any, str]:
    """A line of a recording, as a tree and as text."""
    return line, json.dumps(line) + "\n"


RECORDED = [[_with_text(line) for line in lines] for lines in _recorded()]


def _spoil(value: Any, choices: Choices) -> Any:
    """The same tree with something else at one place."""
    if isinstance(value, dict) and value and not choices.rarely():
        name = choices.pick(sorted(value))
        changed = dict(value)
        if choices.rarely():
            del changed[name]
        elif choices.rarely():
            changed["unknown"] = choices.pick(TREES)
        else:
            changed[name] = _spoil(value[name], choices)
        return changed
    if isinstance(value, list) and value and not choices.rarely():
        at = choices.byte() % len(value)
        return [*value[:at], _spoil(value[at], choices), *value[at + 1 :]]
    if isinstance(value, str) and value and choices.byte() % 2:
        at = choices.byte() % len(value)
        return value[:at] + choices.pick("0fz") + value[at + 1 :]
    return choices.pick(TREES)


def records(data: bytes) -> None:
    """A recording, a few of whose values are something else: read and played, or said to be damaged."""
    choices = Choices(data)
    lines = list(choices.pick(RECORDED))
    while not choices.over:
        at = choices.byte() % len(lines)
        if choices.rarely():
            lines.insert(choices.byte() % len(lines), lines[at])
        else:
            lines[at] = _with_text(_spoil(lines[at][0], choices))
    text = "".join(text for _, text in lines)
    with contextlib.suppress(NstatError):
        _play(text.encode("utf-8", "surrogatepass"))


def _play(text: bytes) -> None:
    options = MonitorOptions()
    with open_recording(io.BytesIO(text)) as file:
        protocol = protocol_of(file.info.protocol)
        if protocol is not None:
            player: Player = rerun_of(file.info, protocol, options) or Follower(file.info, protocol, options, None)
            player.play(file)
            player.finish()
            _told(player.take_events())

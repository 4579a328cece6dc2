"""What a fuzzer may do to the protocol code, and what must hold whatever it does.

Each target takes bytes and returns nothing. It raises only when a promise is broken:
an error that is not documented, a flow told twice, a request with context 0, a
deadline that does not move, a table that grows without a source behind it.

The same functions run under atheris (``fuzz/run.py``) and, with random bytes and
mutated recordings, in the tests.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator

import darwin
import documents
import linux
import recordings
from lives import Lives
from ntstat_wire import NEWER, NEWEST_OF_LAYOUT

from nstat_async import MonitorOptions, ProtocolError, Provider, UsageError, sockdiag
from nstat_async._contract import CloseChannel, Lookup, LookupFailed, Mode, OpenChannel, Send
from nstat_async.ntstat import Kernel, Session, decode_message, split
from nstat_async.recording import open_recording

KERNELS = tuple(map(Kernel.parse, (*NEWEST_OF_LAYOUT.values(), NEWER)))
"""One kernel a layout, and one that is newer than all."""

MAX_STEPS = 2_000
_HEADER = 16


def pieces(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Cut bytes into (operation, argument): one byte, two bytes of length, the argument."""
    at = 0
    for _ in range(MAX_STEPS):
        if at + 3 > len(data):
            return
        length = int.from_bytes(data[at + 1 : at + 3], "little")
        yield data[at], data[at + 3 : at + 3 + length]
        at += 3 + length


def join(steps: Iterable[tuple[int, bytes]]) -> bytes:
    """The inverse of `pieces`, to make seeds."""
    return b"".join(bytes([op]) + len(data).to_bytes(2, "little") + data for op, data in steps)


def framer(data: bytes) -> None:
    """Messages lie in order inside their datagram, and what is left over is told."""
    if not data:
        return
    has_lengths, data = bool(data[0] & 1), data[1:]
    frames, defect = split(data, has_lengths=has_lengths)
    at = 0
    for _, _, _, begin, end in frames:
        assert begin == at
        assert end >= begin + _HEADER
        at = end
    assert at <= len(data)
    assert (at == len(data) and bool(data)) or defect is not None
    if defect is not None:
        assert (defect.begin, defect.end) == (at, len(data))


def messages(data: bytes) -> None:
    """Every message is read or refused with `ProtocolError`, and what was read can be written."""
    if not data:
        return
    kernel, data = KERNELS[data[0] % len(KERNELS)], data[1:]
    frames, _ = split(data, has_lengths=kernel.layout.has_lengths)
    for frame in frames:
        try:
            message = decode_message(kernel, data, frame)
        except ProtocolError:
            continue
        again = message.encode(kernel.layout)
        assert len(again) >= _HEADER
        found, _ = split(again, has_lengths=kernel.layout.has_lengths)
        if len(again) <= 0xFFFF and not getattr(message, "items", ()):
            assert decode_message(kernel, again, found[0]) == message


def passive(data: bytes) -> None:
    """A recorded conversation of any content gives events that make sense, and errors only when asked to."""
    if len(data) < 2:
        return
    kernel, flags = KERNELS[data[0] % len(KERNELS)], data[1]
    strict = bool(flags & 1)
    options = MonitorOptions(strict=strict, every_update=bool(flags & 2))
    session = Session(kernel, options=options, mode=Mode.FOLLOWING)
    lives, now, fed = Lives(), 1_000.0, 0
    for operation, argument in pieces(data[2:]):
        now += operation / 256
        if operation % 3 == 0:
            session.observe_request(argument, now)
        else:
            fed += len(argument)
            try:
                session.receive_datagram(argument, now)
            except ProtocolError:
                assert strict
        lives.check(session.take_events())
    session.finish(now)
    lives.check(session.take_events())
    assert {flow.id for flow, _ in session.flows()} == lives.open
    _check_size(session._current.table, fed)  # noqa: SLF001


def _check_size(table, fed: int) -> None:  # noqa: ANN001  # a private class
    """What is kept is paid for by bytes that came, or bounded."""
    assert len(table.sources) <= fed // _HEADER + 1
    assert len(table.references.missing) <= 65_536
    readers = table.readers
    for kept, bound in ((readers._readers, 1_025), (readers._bare, 64), (readers._surprises, 300)):  # noqa: SLF001
        assert len(kept) <= bound


def session(data: bytes) -> None:
    """A kernel that answers anything cannot make the active session loop, crash or speak nonsense."""
    if len(data) < 2:
        return
    kernel, flags = KERNELS[data[0] % len(KERNELS)], data[1]
    options = MonitorOptions(
        providers=list(Provider)[:-1] if flags & 1 else {Provider.TCP, Provider.UDP},
        discovery="announce" if flags & 2 else "poll",
        interval=None if flags & 4 else 1.0,
        extras=bool(flags & 8),
        every_update=bool(flags & 16),
    )
    core = Session(kernel, options=options, interfaces={4: "en0"})
    driver = _Driver(core, immediate=bool(flags & 32))
    core.start(driver.now)
    driver.carry_out()
    for operation, argument in pieces(data[2:]):
        driver.step(operation, argument)
        if core.failure is not None:
            break
    driver.lives.check(core.take_events())
    assert {flow.id for flow, _ in core.flows()} == driver.lives.open


class _Driver:
    """Does what a pump does, as the fuzzer says."""

    def __init__(self, core: Session, *, immediate: bool) -> None:
        self.core = core
        self.immediate = immediate
        self.now = 1_000.0
        self.channels: list[int] = []
        self.lives = Lives()
        self.contexts: set[tuple[int, bytes]] = set()

    def step(self, operation: int, argument: bytes) -> None:
        core, kind = self.core, operation % 8
        channel = self.channels[operation // 8 % len(self.channels)] if self.channels else 0
        if kind <= 2:
            core.receive_datagram(argument, self.now, channel)
        elif kind == 3:
            core.channel_drained(channel, self.now)
        elif kind == 4:
            self.now += operation / 64
            self._pass_time()
        elif kind == 5:
            core.request_poll(self.now)
        elif kind == 6:
            core.channel_failed(channel, argument[0] if argument else 55, self.now)
        elif operation > 200:
            core.channel_closed(channel, self.now)
        self.carry_out()
        self.lives.check(core.take_events())

    def _pass_time(self) -> None:
        core = self.core
        for _ in range(100):
            deadline = core.next_deadline()
            if deadline is None or deadline > self.now:
                return
            core.handle_deadline(self.now)
            self.carry_out()
        raise AssertionError(f"the deadline {core.next_deadline()} does not move beyond {self.now}")

    def carry_out(self) -> None:
        for _ in range(100):
            commands = self.core.commands()
            if not commands:
                return
            for command in commands:
                if isinstance(command, Send):
                    context = command.data[:8]
                    assert any(context), "a request with context 0"
                elif isinstance(command, OpenChannel):
                    assert command.channel not in self.channels
                    self.channels.append(command.channel)
                    self.core.channel_opened(command.channel, self.now, immediate=self.immediate, receive_buffer=65_536)
                elif isinstance(command, CloseChannel):
                    self.channels = [c for c in self.channels if c != command.channel]
        raise AssertionError("commands call forth commands without end")


def recording(data: bytes) -> None:
    """Any file is read to its end or refused with a documented error."""
    try:
        file = open_recording(io.BytesIO(data), kernel="xnu-11417.121.6")
    except UsageError:
        return
    except ProtocolError:  # RecordingError is one
        return
    count = 0
    with file:
        try:
            for record in file:
                count += 1
                assert len(record.data) <= len(data)
        except ProtocolError:
            pass
    assert count <= len(data) + 16


def netlink(data: bytes) -> None:
    """Whatever a Linux kernel says, or a recorded client asked it, gives events that make sense."""
    if not data:
        return
    mode = Mode.FOLLOWING if data[0] & 1 else Mode.DRIVING
    core, lives, now = sockdiag.Session(MonitorOptions(interval=1.0), mode=mode), Lives(), 1_000.0
    core.start(now)
    for operation, argument in pieces(data[1:]):
        now += operation / 64
        channel = operation % 5
        if mode is Mode.FOLLOWING and operation & 64:
            core.observe_request(argument, now, channel)
        elif operation & 128:
            core.channel_failed(channel, operation, now)
            core.channel_drained(channel, now)
        else:
            core.receive_datagrams([argument], now, channel)
        _rest(core, now)
        lives.check(core.take_events())
    for _ in range(4):  # what waits for an owner, or a proof of its end, waits no longer
        now += 1.0
        core.handle_deadline(now)
        _rest(core, now)
    lives.check(core.take_events())
    assert {flow.id for flow, _ in core.flows()} == lives.open


def _rest(core: sockdiag.Session, now: float) -> None:
    """Carry out what a core of Linux asks for; no look-up finds anything."""
    for _ in range(MAX_STEPS):
        commands, due = core.commands(), core.next_deadline()
        for command in commands:
            if isinstance(command, OpenChannel):
                core.channel_opened(command.channel, now, immediate=True, receive_buffer=None)
            elif isinstance(command, Lookup):
                core.lookup_done(command.token, LookupFailed("fuzz"), now)
        if due is not None and due <= now:
            core.handle_deadline(now)
        elif not commands:
            return
    raise AssertionError("commands call forth commands without end")


STRUCTURED: dict[str, Callable[[bytes], int]] = {
    "reports": darwin.reports,
    "dumps": linux.dumps,
    "evidence": linux.evidence,
    "records": recordings.records,
    "binary": recordings.binary,
    "envelopes": documents.envelopes,
    "lines": documents.lines,
}
"""Those that take choices, and return how many datagrams, changed records, messages or lines they made of them."""
TARGETS: dict[str, Callable[[bytes], int | None]] = {
    "framer": framer,
    "messages": messages,
    "passive": passive,
    "session": session,
    "recording": recording,
    "netlink": netlink,
    **STRUCTURED,
}
"""By the names that ``fuzz/run.py`` takes."""

"""A feed whose kernel is a recording.

Each recorded client is followed by a passive session of its own. Records are read
in batches; between two batches the consumer gets its turn, and while its buffer is
full the file waits: nothing is lost or coalesced in a replay.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, Protocol, Union

import anyio
import anyio.lowlevel
import anyio.to_thread

from .._contract import Mode, Sink
from .._errors import RecordingError, UsageError
from .._events import AnyEvent, EventsLost, LossCause
from .._model import Capabilities, Counts, Flow
from .._options import MonitorOptions
from ..ntstat import Kernel, PassiveSession
from ..recording import Record, RecordingFile, RecordingInfo, RecordKind, open_recording

__all__ = ["ReplayFeed"]

BATCH = 256
"""Most records read between two turns of the loop."""
SLICE = 32
"""Records played before their events are handed over."""
EVENTS_A_TURN = 100
"""Events handed over before the consumer gets its turn: read soon, they die young, which the
garbage collector rewards with a fifth of the whole time."""
MAX_CLIENTS = 4096
"""Clients that a recording may have; more are garbage."""

Source = Union[str, "os.PathLike[str]", BinaryIO]


class _Follower(Protocol):
    """A session that follows a recording."""

    def feed(self, record: Record, now: float) -> None: ...

    def take_events(self) -> list[AnyEvent]: ...

    def finish(self, now: float) -> None: ...

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]: ...

    def statistics(self) -> dict[str, int]: ...

    @property
    def capabilities(self) -> Capabilities: ...


class _DarwinFollower:
    """The clients of a recorded Darwin kernel."""

    def __init__(self, info: RecordingInfo, options: MonitorOptions, timebase: tuple[int, int] | None) -> None:
        if info.kernel is None:
            raise RecordingError("the recording does not say which kernel it is from; give the kernel")
        text = info.extra.get("xnu", info.kernel)
        self._kernel = Kernel.parse(text if isinstance(text, str) and info.kernel in text else info.kernel)
        self._timebase = timebase or info.timebase or _guess_timebase(self._kernel.text)
        self._interfaces = dict(info.interfaces)
        self._options = options
        self._sessions: dict[int, PassiveSession] = {}
        self._refused = False
        self._events: list[AnyEvent] = []

    def _session(self, client: int) -> PassiveSession | None:
        session = self._sessions.get(client)
        if session is None:
            if len(self._sessions) >= MAX_CLIENTS:
                return None
            session = self._sessions[client] = PassiveSession(
                self._kernel,
                timebase=self._timebase,
                interfaces=self._interfaces,
                options=self._options,
                client=client,
            )
        return session

    def feed(self, record: Record, now: float) -> None:
        if record.kind is RecordKind.FROM_KERNEL:
            session = self._session(record.client)
            if session is not None:
                session.receive_datagram(record.data, now)
                self._events += session.take_events()
            elif not self._refused:
                self._refused = True
                detail = f"more than {MAX_CLIENTS} clients; the others are left out"
                self._events.append(EventsLost(now, LossCause.RECORDING, None, detail=detail))
        elif record.kind is RecordKind.TO_KERNEL:
            session = self._session(record.client)
            if session is not None:
                session.observe_request(record.data, now)
                self._events += session.take_events()

    def take_events(self) -> list[AnyEvent]:
        events, self._events = self._events, []
        return events

    def finish(self, now: float) -> None:
        for session in self._sessions.values():
            session.finish(now)
            self._events += session.take_events()

    def flows(self) -> Iterator[tuple[Flow, Counts | None]]:
        for session in self._sessions.values():
            yield from session.flows()

    def statistics(self) -> dict[str, int]:
        total: dict[str, int] = {"clients": len(self._sessions)}
        for session in self._sessions.values():
            for name, value in session.statistics().items():
                total[name] = total.get(name, 0) + value
        return total

    @property
    def capabilities(self) -> Capabilities:
        session = next(iter(self._sessions.values()), None)
        if session is None:
            session = PassiveSession(self._kernel, timebase=self._timebase, options=self._options)
        return session.capabilities


class _LinuxFollower:
    """The netlink conversation of a recorded monitor."""

    def __init__(self, info: RecordingInfo, options: MonitorOptions) -> None:
        from ..sockdiag import Session, answer_from_json  # noqa: PLC0415

        self._session = Session(options=options, kernel=info.kernel, mode=Mode.FOLLOWING)
        self._answer_from_json = answer_from_json
        self._started = False

    def feed(self, record: Record, now: float) -> None:
        if not self._started:
            self._started = True
            self._session.start(now)
        if record.kind is RecordKind.FROM_KERNEL:
            self._session.receive_datagram(record.data, now, record.client)
        elif record.kind is RecordKind.TO_KERNEL:
            self._session.observe_request(record.data, now, record.client)
        elif record.kind is RecordKind.ANSWER:
            value: Any = record.value
            try:
                token, answer = int(value["token"]), self._answer_from_json(value["answer"])
            except (KeyError, TypeError, ValueError):
                return
            self._session.lookup_done(token, answer, now)

    def take_events(self) -> list[AnyEvent]:
        return self._session.take_events()

    def finish(self, now: float) -> None:
        self._session.finish(now)

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        return self._session.flows()

    def statistics(self) -> dict[str, int]:
        return self._session.statistics()

    @property
    def capabilities(self) -> Capabilities:
        return self._session.capabilities


def _guess_timebase(kernel: str) -> tuple[int, int]:
    """Apple silicon counts 24 MHz ticks; its kernels say so in their name."""
    return (125, 3) if "ARM64" in kernel.upper() else (1, 1)


class ReplayFeed:
    """Plays a recording.

    Args:
        source: The recording: a path, ``"-"`` for standard input, or an open binary file.
        options: The monitor's; ``interval`` and ``receive_buffer`` do not matter.
        kernel: The kernel's version, for recordings that do not carry it.
        speed: 1 plays as recorded, 10 ten times as fast, `None` as fast as possible.
        timebase: The kernel's timebase, for recordings that do not carry it.

    Raises:
        RecordingError: It is no recording, or its kernel is not known.
        UsageError: It cannot be opened, or its kernel is too old.
    """

    can_wait = True

    def __init__(
        self,
        source: Source,
        options: MonitorOptions,
        *,
        kernel: str | None = None,
        speed: float | None = None,
        timebase: tuple[int, int] | None = None,
    ) -> None:
        try:
            path = os.fspath(source) if isinstance(source, os.PathLike) else source
            self._file: RecordingFile = open_recording(path, kernel=kernel)
        except OSError as error:
            raise UsageError(f"recording {source!s}: {error.strerror or error}") from error
        self._speed = speed
        self._closed = False
        self._records = 0
        self._regular = _is_regular(source)
        info = self._file.info
        self._started = (info.started_ns or 0) / 1e9
        self._follower: _Follower
        if info.protocol == "sock_diag":
            self._follower = _LinuxFollower(info, options)
        elif info.protocol in {None, "ntstat"}:
            self._follower = _DarwinFollower(info, options, timebase)
        else:
            raise RecordingError(f"the recording is of a protocol {info.protocol!r} that this version does not know")
        self._now = self._started
        self._damage: list[AnyEvent] = []
        self._iterator = iter(self._file.records_batch(BATCH))

    @property
    def capabilities(self) -> Capabilities:
        """What the recorded kernel can tell."""
        return self._follower.capabilities

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The flows at the point that the replay has reached."""
        return self._follower.flows()

    async def subscribed(self) -> None:
        """A recording misses nothing."""

    def request_poll(self) -> None:
        """A recording cannot be asked: `None`."""

    def close(self) -> None:
        """Stop and close the file."""
        if not self._closed:
            self._closed = True
            self._file.close()

    def statistics(self) -> dict[str, int]:
        """Counters of the sessions, and records read."""
        return {**self._follower.statistics(), "records": self._records}

    async def run(self, sink: Sink) -> None:
        """Play to the end."""
        begun: float | None = None
        first = 0
        try:
            while not self._closed:
                batch = await self._next_batch()
                if batch is None:
                    break
                if self._speed is None:
                    await self._play_fast(batch, sink)
                else:
                    for record in batch:
                        if begun is None:
                            begun, first = time.monotonic(), record.time_ns
                        due = begun + (record.time_ns - first) / 1e9 / self._speed
                        await anyio.sleep(max(0.0, due - time.monotonic()))
                        if self._stopped():
                            return
                        self._play((record,))
                        sink.deliver(self._take_events())
                await anyio.lowlevel.checkpoint()
                await sink.room()
            if not self._closed:
                self._follower.finish(self._now)
                sink.deliver(self._take_events())
        finally:
            self.close()

    async def _play_fast(self, batch: list[Record], sink: Sink) -> None:
        delivered = 0
        for at in range(0, len(batch), SLICE):
            self._play(batch[at : at + SLICE])
            events = self._take_events()
            sink.deliver(events)
            delivered += len(events)
            if delivered >= EVENTS_A_TURN:
                delivered = 0
                await anyio.lowlevel.checkpoint()
                await sink.room()
                if self._closed:
                    return

    def _stopped(self) -> bool:
        return self._closed

    async def _next_batch(self) -> list[Record] | None:
        if self._regular:
            return next(self._iterator, None)
        # A pipe may have nothing yet: wait for it outside the loop.
        return await anyio.to_thread.run_sync(next, self._iterator, None, abandon_on_cancel=True)

    def _play(self, records: Iterable[Record]) -> None:
        feed = self._follower.feed
        for record in records:
            self._records += 1
            if record.kind is RecordKind.DAMAGE:
                self._damage.append(EventsLost(self._now, LossCause.RECORDING, 1, detail=record.text))
                continue
            self._now = now = self._started + record.time_ns / 1e9
            feed(record, now)

    def _take_events(self) -> list[AnyEvent]:
        events = self._follower.take_events()
        if self._damage:
            events += self._damage
            self._damage.clear()
        return events


def _is_regular(source: object) -> bool:
    """True for a file whose reading never waits for anybody."""
    try:
        if isinstance(source, (str, os.PathLike)):
            return source != "-" and stat.S_ISREG(os.stat(source).st_mode)  # noqa: PTH116  # a path of any kind
        fileno = getattr(source, "fileno", None)
        return fileno is None or stat.S_ISREG(os.fstat(fileno()).st_mode)
    except (OSError, ValueError):
        return True

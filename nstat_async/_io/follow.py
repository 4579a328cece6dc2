"""Following a recorded client: for recordings that cannot be run again.

They are other clients', or of another version, or begin in the middle. The sessions send
nothing; from the recorded requests they learn what the answers mean. What a recording of
before wrote otherwise is read here and nowhere else.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from .._errors import NstatError, ProtocolError, RecordingError
from .._events import AnyEvent, EventsLost, LossCause
from .._model import Capabilities, Counts, Flow
from .._options import MonitorOptions
from ..ntstat import Kernel, PassiveSession
from ..recording import Record, RecordingInfo, RecordKind, steps
from .protocols import Protocol

__all__ = ["Follower", "follower_of"]

MAX_CLIENTS = 4096
"""Clients that a recording may have; more are garbage."""


class Follower:
    """What following has in common on both systems: time, damage, and values by name."""

    failure: NstatError | None = None

    def __init__(self, info: RecordingInfo, protocol: Protocol) -> None:
        self._values = protocol.values
        self._started = (info.started_ns or 0) / 1e9
        self._now = self._started
        self._events: list[AnyEvent] = []

    def play(self, records: Iterable[Record]) -> None:
        """Take in records.

        Raises:
            ProtocolError: Only with the option ``strict``.
        """
        started = self._started
        for record in records:
            if record.kind is RecordKind.DAMAGE:
                self.lose(1, record.text)
                continue
            self._now = now = started + record.time_ns / 1e9
            self.feed(record, now)

    def feed(self, record: Record, now: float) -> None:
        """Take in one record."""
        raise NotImplementedError

    def drain(self) -> list[AnyEvent]:
        """The events of the sessions since the last call."""
        return []

    def lose(self, count: int | None, detail: str | None) -> None:
        """Report damage, in its place among the events."""
        self._events += self.drain()
        self._events.append(EventsLost(self._now, LossCause.RECORDING, count, detail=detail))

    def read(self, record: Record) -> Any:
        """The step or the answer (with its token) of a record; `None` and a loss if it is damaged."""
        try:
            if record.kind is RecordKind.STEP:
                return steps.read_step(record.value)
            return _token(record.value), self._values.read(_named(record.value.get("answer")))
        except ProtocolError as error:
            self.lose(1, f"record {record.index}: {error.reason}")
            return None

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""
        events, self._events = self._events, []
        events += self.drain()
        return events


class _DarwinFollower(Follower):
    """The clients of a recorded Darwin kernel."""

    def __init__(
        self, info: RecordingInfo, protocol: Protocol, options: MonitorOptions, timebase: tuple[int, int] | None
    ) -> None:
        super().__init__(info, protocol)
        if info.kernel is None:
            raise RecordingError("the recording does not say which kernel it is from; give the kernel")
        text = info.extra.get("xnu", info.kernel)
        self._kernel = Kernel.parse(text if isinstance(text, str) and info.kernel in text else info.kernel)
        self._timebase = timebase or info.timebase or _guess_timebase(self._kernel.text)
        self._interfaces = dict(info.interfaces)
        self._options = options
        self._sessions: dict[int, PassiveSession] = {}
        self._refused = False

    def _session(self, client: int) -> PassiveSession:
        return PassiveSession(
            self._kernel,
            timebase=self._timebase,
            interfaces=self._interfaces,
            options=self._options,
            client=client,
        )

    def feed(self, record: Record, now: float) -> None:
        """Give a datagram to the session of its client."""
        kind, client = record.kind, record.client
        received = kind is RecordKind.FROM_KERNEL
        if not received and kind is not RecordKind.TO_KERNEL:
            return
        session = self._sessions.get(client)
        if session is None:
            if len(self._sessions) >= MAX_CLIENTS:
                if received and not self._refused:
                    self._refused = True
                    self.lose(None, f"more than {MAX_CLIENTS} clients; the others are left out")
                return
            session = self._sessions[client] = self._session(client)
        if received:
            session.receive_datagram(record.data, now)
        else:
            session.observe_request(record.data, now)
        self._events += session.take_events()

    def finish(self) -> None:
        """The recording ends here."""
        for session in self._sessions.values():
            session.finish(self._now)
            self._events += session.take_events()

    def flows(self) -> Iterator[tuple[Flow, Counts | None]]:
        """The open flows of all clients."""
        return itertools.chain.from_iterable(session.flows() for session in self._sessions.values())

    def statistics(self) -> dict[str, int]:
        """Counters, summed over the clients."""
        total: dict[str, int] = {"clients": len(self._sessions)}
        for session in self._sessions.values():
            for name, value in session.statistics().items():
                total[name] = total.get(name, 0) + value
        return total

    @property
    def capabilities(self) -> Capabilities:
        """What the recorded kernel can tell."""
        session = next(iter(self._sessions.values()), None)
        return (session or self._session(0)).capabilities


class _LinuxFollower(Follower):
    """The netlink conversation of a recorded monitor."""

    def __init__(self, info: RecordingInfo, protocol: Protocol, options: MonitorOptions) -> None:
        from ..sockdiag import Session  # noqa: PLC0415  # recordings of Linux only

        super().__init__(info, protocol)
        self._session = Session(options=options, kernel=info.kernel, passive=True)
        self._channels: dict[int, int] = {}
        """Numbers by which the session knows a channel, where the recording says what it was opened for."""
        self._started_session = False
        self.drain = self._session.take_events  # type: ignore[method-assign]
        self.flows = self._session.flows
        self.statistics = self._session.statistics

    def feed(self, record: Record, now: float) -> None:
        """Give a record to the session."""
        session, kind = self._session, record.kind
        if not self._started_session:
            self._started_session = True
            session.start(now)
        channel = self._channels.get(record.client, record.client)
        if kind is RecordKind.FROM_KERNEL:
            session.receive_datagram(record.data, now, channel)
        elif kind is RecordKind.TO_KERNEL:
            session.observe_request(record.data, now, channel)
        elif kind is RecordKind.ANSWER:
            answer = self.read(record)
            if answer is not None:
                session.lookup_done(answer[0], answer[1], now)
        elif kind is RecordKind.STEP:
            step = self.read(record)
            if isinstance(step, steps.OpenChannel):
                self._note_purpose(record.client, step.purpose)

    def _note_purpose(self, channel: int, data: Any) -> None:
        roles = steps.ROLES_BY_NUMBER
        try:
            purpose = self._values.read(data)
            self._channels[channel] = purpose.namespace * len(roles) + roles.index(purpose.role.value)
        except (ProtocolError, AttributeError, ValueError):
            return  # a purpose of another version: the number has to do

    def finish(self) -> None:
        """The recording ends here."""
        self._session.finish(self._now)

    @property
    def capabilities(self) -> Capabilities:
        """What the recorded kernel can tell."""
        return self._session.capabilities


def follower_of(
    info: RecordingInfo, protocol: Protocol, options: MonitorOptions, timebase: tuple[int, int] | None
) -> _DarwinFollower | _LinuxFollower:
    """What follows the clients of a recording.

    Raises:
        RecordingError: Its kernel is not known.
        UsageError: Its kernel is too old.
    """
    if protocol.name == "ntstat":
        return _DarwinFollower(info, protocol, options, timebase)
    return _LinuxFollower(info, protocol, options)


def _guess_timebase(kernel: str) -> tuple[int, int]:
    """Apple silicon counts 24 MHz ticks; its kernels say so in their name."""
    return (125, 3) if "ARM64" in kernel.upper() else (1, 1)


# --- look-ups as they were written before values had names ---------------------------

_OLD_ANSWERS = {"owners": "OwnersAnswer", "link_kinds": "LinkKindsAnswer"}
_OLD_PROCESS = ("pid", "start_ticks", "name", "path")


def _token(value: Any) -> int:
    token = value.get("token") if isinstance(value, dict) else None
    if type(token) is not int:
        raise ProtocolError("an answer to nothing")
    return token


def _named(answer: Any) -> Any:
    """An answer by name."""
    if not isinstance(answer, dict) or "lookup" not in answer:
        return answer
    old, named = answer["lookup"], dict(answer)
    named["type"] = _OLD_ANSWERS.get(old) if isinstance(old, str) else None
    processes = answer.get("processes")
    if isinstance(processes, list):
        named["processes"] = [dict(zip(_OLD_PROCESS, p, strict=False)) for p in processes if isinstance(p, list)]
    return named

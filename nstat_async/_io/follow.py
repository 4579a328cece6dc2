"""Following a recorded client: for recordings that cannot be run again.

They are other clients', or of another version, or begin in the middle. The sessions send
nothing; from the recorded requests they learn what the answers mean. What a recording of
before wrote otherwise is read here and nowhere else.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from .._errors import ProtocolError, RecordingError
from .._model import Capabilities, Counts, Flow
from .._options import MonitorOptions
from .._values import from_json
from ..ntstat import Kernel, Mode, Session
from ..recording import Record, RecordingInfo, RecordKind, steps
from ..sockdiag._setup import Purpose, channel_of
from .player import Player
from .protocols import Protocol

__all__ = ["follower_of"]

MAX_CLIENTS = 4096
"""Clients that a recording may have; more are garbage."""


class Follower(Player):
    """What following has in common on both systems: the recorded wall clock is the only one."""

    def __init__(self, info: RecordingInfo, protocol: Protocol) -> None:
        super().__init__(protocol)
        self._started = self.now = (info.started_ns or 0) / 1e9

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
            self.now = now = started + record.time_ns / 1e9
            self.feed(record, now)

    def feed(self, record: Record, now: float) -> None:
        """Take in one record."""
        raise NotImplementedError


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
        self._sessions: dict[int, Session] = {}
        self._refused = False

    def _session(self, client: int) -> Session:
        return Session(
            self._kernel,
            timebase=self._timebase,
            interfaces=self._interfaces,
            options=self._options,
            backend="replay",
            mode=Mode.FOLLOWING,
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
        self.events += session.take_events()

    def finish(self) -> None:
        """The recording ends here."""
        for session in self._sessions.values():
            session.finish(self.now)
            self.events += session.take_events()

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
        from ..sockdiag import Session, Setup  # noqa: PLC0415  # recordings of Linux only

        super().__init__(info, protocol)
        setup = Setup(kernel=info.kernel)
        with contextlib.suppress(ProtocolError):  # none in recordings of before, or one of another version
            setup = from_json(Setup, from_json(steps.Run, info.run).setup)
        self._session = Session(options, namespaces=setup.namespaces, kernel=setup.kernel, mode=Mode.FOLLOWING)
        self._channels: dict[int, int] = {}
        """Numbers by which the session knows a channel, where the recording says what it was opened for."""
        self._started_session = False
        self.drain = self._session.take_events
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
        elif kind is RecordKind.ANSWER or kind is RecordKind.STEP:
            self.read(record)

    def answered(self, token: int, answer: Any) -> None:
        """Give an answer to the session."""
        self._session.lookup_done(token, answer, self.now)

    def step(self, step: steps.Step, channel: int) -> None:
        """Learn what a channel is for."""
        if isinstance(step, steps.OpenChannel):
            self._note_purpose(channel, step.purpose)

    def _note_purpose(self, channel: int, data: Any) -> None:
        try:
            purpose = self.values.read(data)
        except ProtocolError:
            return  # a purpose of another version: the number has to do
        if isinstance(purpose, get_args(Purpose)):
            self._channels[channel] = channel_of(purpose)

    def finish(self) -> None:
        """The recording ends here."""
        self._session.finish(self.now)

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

"""A feed whose kernel is a recording.

A complete recording is run again (`rerun`), any other is followed (`follow`). Records
are read in batches. The consumer gets a turn between two batches, and the file is not read
while the consumer's buffer is full: a replay loses and coalesces nothing.
"""

from __future__ import annotations

import functools
import os
import select
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Union, cast

import anyio
import anyio.lowlevel
import anyio.to_thread

from .._contract import Sink
from .._errors import ProtocolError, RecordingError, UsageError
from .._model import Capabilities, Counts, Flow
from .._options import MonitorOptions
from ..recording import Record, RecordingFile, open_recording
from ..recording._file import naming
from .follow import Follower
from .pipes import ReadPipe, may_wait
from .player import Player, protocol_of
from .rerun import rerun_of

BATCH = 256
"""Most records that are read between two turns of the loop."""
SLICE = 64
"""Records that are played before their events are delivered."""
EVENTS_PER_TURN = 100
"""Events that are delivered before the consumer gets a turn: if they are read soon, the garbage
collector frees them early, which saves a fifth of the time."""

Source = Union[str, os.PathLike[str], BinaryIO]


class ReplayFeed:
    """Plays a recording.

    Args:
        source: The recording: a path, ``"-"`` for standard input, or an open binary file;
            or several, which are parts of one recording, in order.
        options: The monitor's options. Those of the kernel's conversation have no effect.
        kernel: The kernel's version, for recordings that do not carry it.
        speed: 1 plays as recorded, 10 ten times as fast, `None` as fast as possible.
        timebase: The kernel's timebase, for recordings that do not carry it.

    Raises:
        RecordingError: It is not a recording, its kernel is not known, or parts do not belong together.
        UsageError: It cannot be opened, or its kernel is too old.
    """

    can_wait = True

    def __init__(
        self,
        source: Source | Sequence[Source],
        options: MonitorOptions,
        *,
        kernel: str | None = None,
        speed: float | None = None,
        timebase: tuple[int, int] | None = None,
    ) -> None:
        sources: Sequence[Source] = source if isinstance(source, (list, tuple)) else (source,)
        if not sources:
            raise UsageError("recording: no file is given")
        self._kernel = kernel
        self._file = _open(sources[0], kernel)
        self._later = sources[1:]
        self._speed = speed
        self._begun: float | None = None
        """The time on this machine's clock that is time zero of the recording, for a replay with a speed."""
        self._closed = False
        self._records = 0
        self._waits = any(map(may_wait, sources))
        try:
            with naming(sources[0]):
                self._player = self._player_of(options, timebase, by_hand=kernel is not None or timebase is not None)
        except BaseException:
            self._file.close()
            raise
        self._strict = options.strict
        self._iterator = self._batches()

    def _player_of(self, options: MonitorOptions, timebase: tuple[int, int] | None, *, by_hand: bool) -> Player:
        """Make the player that runs the recording again, or follows it if that is not possible."""
        info = self._file.info
        protocol = protocol_of(info.protocol)
        if protocol is None:
            raise RecordingError(f"the recording is of a protocol {info.protocol!r} that this version does not know")
        rerun = None if by_hand or info.run is None else rerun_of(info, protocol, options)
        return rerun or Follower(info, protocol, options, timebase)

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the recorded kernel."""
        return self._player.capabilities

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The flows at the point that the replay has reached."""
        return self._player.flows()

    async def subscribed(self) -> None:
        """Return at once: a recording has no subscription to wait for."""

    def request_poll(self) -> None:
        """Do nothing and return `None`: a recording cannot be asked."""

    def close(self) -> None:
        """Stop and close the file."""
        if not self._closed:
            self._closed = True
            self._file.close()

    def statistics(self) -> dict[str, int]:
        """Counters of the sessions, and the number of records read."""
        return {**self._player.statistics(), "records": self._records}

    async def run(self, sink: Sink) -> None:
        """Play to the end.

        Raises:
            ProtocolError: Only with the option ``strict``.
            NstatError: The recorded run ended with this error, after the same events.
        """
        play = self._play_fast if self._speed is None else self._play_paced
        try:
            while not self._closed:
                batch = await self._next_batch()
                if batch is None:
                    break
                self._records += len(batch)
                await play(batch, sink)
                await anyio.lowlevel.checkpoint()
                await sink.room()
            if not self._closed:
                self._player.finish()
                self._deliver(sink)
                failure = self._player.end_of_run
                if failure is not None:
                    failure.recorded = True
                    raise failure
        finally:
            self.close()

    async def _play_fast(self, batch: list[Record], sink: Sink) -> None:
        delivered = 0
        for at in range(0, len(batch), SLICE):
            self._player.play(batch[at : at + SLICE])
            delivered += self._deliver(sink)
            if delivered >= EVENTS_PER_TURN:
                delivered = 0
                await anyio.lowlevel.checkpoint()
                await sink.room()
                if self._closed:
                    return

    async def _play_paced(self, batch: list[Record], sink: Sink) -> None:
        assert self._speed is not None  # `run` checked it
        for record in batch:
            if self._begun is None:
                self._begun = time.monotonic() - record.time_ns / 1e9 / self._speed
            due = self._begun + record.time_ns / 1e9 / self._speed
            await anyio.sleep(max(0.0, due - time.monotonic()))
            if self._closed:
                return
            self._player.play((record,))
            self._deliver(sink)

    def _deliver(self, sink: Sink) -> int:
        events = self._player.take_events()
        sink.deliver(events)
        failure = self._player.failure
        if self._strict and isinstance(failure, ProtocolError):
            raise failure
        return len(events)

    async def _next_batch(self) -> list[Record] | None:
        if not self._waits:
            return next(self._iterator, None)
        # A pipe may have nothing yet: a worker thread waits for it, and closing the pipe ends that.
        return await anyio.to_thread.run_sync(next, self._iterator, None, abandon_on_cancel=True)

    def _batches(self) -> Iterator[list[Record]]:
        """The records of the file, and of the parts after it."""
        yield from self._file.records_batch(BATCH)
        for source in self._later:
            before, number = _part_of(self._file)
            self._file.close()
            if self._closed:
                return
            self._file = _open(source, self._kernel)
            recording, part = _part_of(self._file)
            if (recording, part) != (before, number + 1):
                is_other = recording != before or not number  # only parts have numbers
                with naming(source):
                    raise RecordingError(
                        "of another recording than the file before it: replay it by itself, with its later parts"
                        if is_other
                        else f"not the part that follows part {number}"
                    )
            yield from self._file.records_batch(BATCH)


async def open_outside(source: Source | Sequence[Source], options: MonitorOptions, **more: Any) -> ReplayFeed:
    """Make a `ReplayFeed`; a worker thread waits for its beginning if necessary, and cancellation ends the waiting."""
    sources: Sequence[Source] = source if isinstance(source, (list, tuple)) else (source,)
    if not any(map(may_wait, sources)):
        return ReplayFeed(source, options, **more)
    with naming(sources[0]):
        first = _patient(sources[0])
    make = functools.partial(ReplayFeed, (first, *sources[1:]), options, **more)
    try:
        return await anyio.to_thread.run_sync(make, abandon_on_cancel=True)
    except BaseException:
        if isinstance(first, ReadPipe):
            first.close()
        raise


def _open(source: Source, kernel: str | None) -> RecordingFile:
    with naming(source):
        file = _patient(source)
        try:
            if isinstance(file, ReadPipe):
                return RecordingFile(cast("BinaryIO", file), kernel=kernel, growing=False, owned=True)
            return open_recording(file, kernel=kernel)
        except OSError as error:
            raise RecordingError(str(error.strerror or error)) from error


def _patient(source: Source) -> str | BinaryIO:
    """A path as text, or a file; a `ReadPipe`, which can be closed while it waits, if a writer may have to be waited for."""
    path = os.fspath(source) if isinstance(source, os.PathLike) else source
    file = sys.stdin.buffer if path == "-" else path
    if isinstance(file, ReadPipe) or not may_wait(file) or not hasattr(select, "poll"):
        return path
    try:
        return cast("BinaryIO", ReadPipe(file))
    except OSError as error:
        raise RecordingError(str(error.strerror or error)) from error


def _part_of(file: RecordingFile) -> tuple[tuple[Any, Any], int]:
    """The recording that a file is a part of, and the part's number."""
    run = file.info.run or {}
    part = run.get("part")
    return (run.get("zero_ns"), file.info.started_ns), part if type(part) is int else 0

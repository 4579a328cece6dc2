"""Records a run: a core that writes down its inputs and its commands.

`RecordedCore` stands between the pump and a core. It forwards everything, and the core does not
notice it. Time is written in nanoseconds, and the core gets the written time: `now` rounded to a
nanosecond (the clock is not finer), different for each input, and the wall clock in steps of a
millisecond. So the same input can be given again, and datagrams with one time are one batch. A mark
on a batch's last record says that the channel was empty after it.

The records of one turn of the pump are written at its end, with one write.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

from .. import __version__
from .._contract import CloseChannel, Command, Core, Lookup, OpenChannel, Send, Transport
from .._errors import NstatError, UsageError
from .._events import AnyEvent, Auxiliary, AuxiliaryFailed
from .._options import STEERING, MonitorOptions
from .._values import Vocabulary, to_json
from ..recording import DRAINED, NEXT, NO_EXTRA, Record, Recording, RecordingInfo, RecordKind, steps
from .recorder import Recorder

_log = logging.getLogger("nstat_async.record")

CLOCK_STEP = 0.001
"""The wall clock is written again when it has moved this many seconds against the monotonic clock."""
_new = tuple.__new__  # takes a third of the time of `Record`
MOST_PENDING = 256
"""Most records that wait to be written."""


def recorded(core: Core, transport: Transport, options: MonitorOptions) -> tuple[RecordedCore, Transport]:
    """A core and its transport, recorded to the options' `record_to`.

    Raises:
        UsageError: The file cannot be written, or is not a recording.
    """
    now = time.monotonic()
    try:
        assert options.record_to is not None  # the caller checked it
        proxy = RecordedCore(core, options.record_to, options, now=now, epoch_offset=time.time() - now)
    except BaseException:
        transport.close()  # it may have opened a socket in advance
        raise
    return proxy, _RecordedTransport(transport, proxy)


class RecordedCore:
    """A `Core`, recorded from its start to `close`.

    Args:
        core: The core; it must not have been started.
        recording: The recording to write.
        options: The monitor's options.
        now: The time, monotonic seconds: the recording's zero.
        epoch_offset: Add it to `now` for seconds since the epoch.

    Raises:
        UsageError: As `recorded`.
    """

    def __init__(
        self, core: Core, recording: Recording, options: MonitorOptions, *, now: float, epoch_offset: float
    ) -> None:
        setup = getattr(core, "setup", None)
        if setup is None:
            raise UsageError("record_to: this core does not say what it was made of (Core.setup)")
        self._core = core
        self._options = options
        self._pending: list[Record] = []
        self._failed: list[AnyEvent] = []
        self._failures = 0
        self._zero = round(now * 1e9)
        self._time = -1  # of the last input, since `_zero`, nanoseconds
        self._offset = self._first_offset = core.epoch_offset = epoch_offset
        self._channels: dict[int, list[Record]] = {}
        self._lasting: dict[type, Record] = {}
        """Answers that hold for the rest of the run."""
        self._recorder: Recorder | None = Recorder(recording, self._info)
        self._ended: Recorder | None = None
        """The closed recorder, while a pipe's reader may not have all of it yet."""
        self._size = 0
        """Bytes that were written; set when the recording has ended."""

    # --- writing -------------------------------------------------------------------

    def _info(self, part: int) -> RecordingInfo:
        """The facts at the beginning of a part: the core's arguments, and what is known by now."""
        setup = self._core.setup
        run = steps.Run(
            library=__version__,
            setup=to_json(setup),
            options=to_json(self._options, only=STEERING),
            zero_ns=self._zero,
            epoch_offset=self._offset,
            part=part,
        )
        return RecordingInfo(
            protocol=setup.protocol,
            kernel=setup.kernel,
            timebase=getattr(setup, "timebase", None),
            layout=self._core.capabilities.layout,
            started_ns=self._zero + round(self._first_offset * 1e9),
            interfaces=dict(getattr(setup, "interfaces", ())),
            tool=f"nstat_async {__version__}",
            run=to_json(run),
        )

    def _moment(self, now: float) -> float:
        """The time of an input, both for the recording and for the core; it is later than the time of the input before."""
        self._time = max(round(now * 1e9) - self._zero, self._time + 1)
        return (self._time + self._zero) / 1e9

    def _add(self, record: Record) -> None:
        if self._recorder is not None:
            self._pending.append(record)
            if len(self._pending) >= MOST_PENDING:
                self._flush()

    def _write(self, step: steps.Step, channel: int = 0) -> Record:
        record = Record(NEXT, RecordKind.STEP, self._time, channel, value=steps.write_step(step))
        self._add(record)
        return record

    def _give(self, step: steps.Step, now: float, channel: int = 0) -> Any:
        """Write an input, and give it to the core."""
        moment = self._moment(now)
        record = self._write(step, channel)
        if isinstance(step, steps.ChannelOpened):
            self._channels.setdefault(channel, []).append(record)
        elif isinstance(step, steps.ChannelClosed):
            self._channels.pop(channel, None)
        return steps.give(step, self._core, channel, moment)

    def _flush(self) -> None:
        records, self._pending = self._pending, []
        if self._recorder is None or not records:
            return
        try:
            self._recorder.write(records, self._known)
        except Exception as error:  # noqa: BLE001  # whatever the file does, e.g. of a library, the monitor goes on
            self._give_up(error)

    def _known(self) -> Iterator[Record]:
        """The records at the beginning of a later part, so that it can be followed on its own."""
        for records in (self._lasting.values(), *self._channels.values()):
            for record in records:
                yield record._replace(time_ns=self._time, value={**record.value, "repeated": True})

    def _give_up(self, error: Exception) -> None:
        """End the recording because of an error; the recorded run continues."""
        self._report(error)
        self.close()
        self._ended = None

    def _report(self, error: Exception) -> None:
        _log.debug("the recording ends here: %s", error)
        self._failures += 1
        what = getattr(error, "strerror", None) or str(error) or type(error).__name__
        detail = f"the recording ends here: {what}"
        time = (self._time + self._zero) / 1e9 + self._offset
        self._failed.append(AuxiliaryFailed(time, Auxiliary.RECORDER, detail))

    def close(self) -> None:
        """End the recording, without waiting for a pipe's reader. Idempotent."""
        self._flush()
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            self._size = recorder.size
            self._ended = recorder
            try:
                recorder.close()
            except OSError as error:
                self._report(error)

    @property
    def is_writing(self) -> bool:
        """True while a pipe's reader does not have the whole recording."""
        return self._ended is not None and self._ended.is_writing

    def check(self) -> None:
        """Call after `close`: give up, and report, what a pipe's reader does not have."""
        ended, self._ended = self._ended, None
        if ended is not None:
            try:
                ended.check()
            except OSError as error:
                self._report(error)

    # --- Core: in ------------------------------------------------------------------

    @property
    def epoch_offset(self) -> float:
        return self._offset

    @epoch_offset.setter
    def epoch_offset(self, value: float) -> None:
        if abs(value - self._offset) >= CLOCK_STEP:
            self._offset = self._core.epoch_offset = value
            self._write(steps.ClockSet(value))

    def start(self, now: float) -> None:
        self._give(steps.Started(), now)

    def receive_datagrams(self, datagrams: Sequence[bytes], now: float, channel: int) -> None:
        moment = self._moment(now)
        for data in datagrams:
            self._add(_new(Record, (NEXT, RecordKind.FROM_KERNEL, self._time, channel, data, None, NO_EXTRA, None)))
        self._core.receive_datagrams(datagrams, moment, channel)

    def channel_drained(self, channel: int, now: float) -> None:
        last = self._pending[-1] if self._pending else None
        if (
            last is None
            or last.time_ns != self._time
            or last.client != channel
            or last.kind is not RecordKind.FROM_KERNEL
            or last.extra
        ):
            self._give(steps.ChannelDrained(), now, channel)
            return
        self._pending[-1] = _new(Record, (NEXT, last.kind, self._time, channel, last.data, None, DRAINED, None))
        self._core.channel_drained(channel, (self._time + self._zero) / 1e9)

    def channel_opened(self, channel: int, now: float, *, immediate: bool, receive_buffer: int | None) -> None:
        self._give(steps.ChannelOpened(immediate, receive_buffer), now, channel)

    def channel_failed(self, channel: int, errno: int, now: float) -> None:
        self._give(steps.ChannelFailed(errno), now, channel)

    def channel_closed(self, channel: int, now: float) -> None:
        self._give(steps.ChannelClosed(), now, channel)

    def lookup_done(self, token: int, answer: Any, now: float) -> None:
        moment = self._moment(now)
        try:
            value = {"token": token, "answer": Vocabulary.write(answer)}
            record = Record(NEXT, RecordKind.ANSWER, self._time, value=value)
            self._add(record)
            if getattr(answer, "lasts", False):
                self._lasting[type(answer)] = record
        except NstatError as error:
            self._give_up(error)
        self._core.lookup_done(token, answer, moment)

    def handle_deadline(self, now: float) -> None:
        self._give(steps.DeadlineReached(), now)

    def request_poll(self, now: float) -> int:
        serial: int = self._give(steps.PollRequested(), now)
        return serial

    # --- Core: out -----------------------------------------------------------------

    def commands(self) -> list[Command]:
        commands = self._core.commands()
        for command in commands:
            try:
                self._write_command(command)
            except NstatError as error:
                self._give_up(error)
        return commands

    def _write_command(self, command: Command) -> None:
        if isinstance(command, Send):
            self._add(Record(NEXT, RecordKind.TO_KERNEL, self._time, command.channel, command.data))
        elif isinstance(command, OpenChannel):
            record = self._write(steps.OpenChannel(Vocabulary.write(command.purpose)), command.channel)
            self._channels[command.channel] = [record]
        elif isinstance(command, CloseChannel):
            self._write(steps.CloseChannel(), command.channel)
            self._channels.pop(command.channel, None)
        elif isinstance(command, Lookup):
            self._write(steps.Lookup(command.token, Vocabulary.write(command.request)))

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call, and the failures of the recording."""
        self._flush()
        events = self._core.take_events()
        if self._failed:
            events += self._failed
            self._failed.clear()
        return events

    def __getattr__(self, name: str) -> Any:
        """The attributes that only read the core's state: `failure`, `capabilities`, `flows`, `next_deadline` and others."""
        return getattr(self._core, name)

    def statistics(self) -> dict[str, int]:
        size = self._size if self._recorder is None else self._recorder.size
        return {**self._core.statistics(), "recorded_bytes": size, "failed_recorder": self._failures}


class _RecordedTransport:
    """A transport that ends the recording when it is closed, because the pump closes the transport last."""

    def __init__(self, transport: Transport, core: RecordedCore) -> None:
        self._core = core
        self._transport = transport
        self.open = transport.open
        self.lookup = transport.lookup

    def close(self) -> None:
        self._transport.close()
        self._core.close()

"""Follows a recorded client: for recordings that cannot be run again.

Such a recording is another client's, or of another version, or begins in the middle. The sessions send
nothing; they learn from the recorded requests what the answers mean. Only this module reads
the differences of recordings of older versions.
"""

from __future__ import annotations

import contextlib
from typing import Any

import attrs

from .._contract import Mode
from .._errors import ProtocolError, RecordingError
from .._model import Capabilities
from .._options import MonitorOptions
from .._values import from_json
from ..recording import Record, RecordingInfo, steps
from .player import Player

MAX_CLIENTS = 4096
"""Most clients of a recording; if there are more, it is damaged."""


class Follower(Player):
    """Follows the clients of a recording. The only clock is the recorded wall clock.

    Args:
        info: The recording's facts.
        protocol: Its protocol's package.
        options: The monitor's options.
        timebase: The kernel's timebase, if it is given by hand.

    Raises:
        RecordingError: Its kernel is not known.
        UsageError: Its kernel is too old.
    """

    def __init__(
        self, info: RecordingInfo, protocol: Any, options: MonitorOptions, timebase: tuple[int, int] | None
    ) -> None:
        super().__init__(protocol)
        self._options = options
        self._run: steps.Run | None = None
        setup = None
        with contextlib.suppress(ProtocolError):  # older recordings have none, and it may be one of another version
            self._run = from_json(steps.Run, info.run)
            setup = from_json(protocol.Setup, self._run.setup)
        # Each client of a Darwin kernel is a subscription, those of Linux are the channels of one.
        self._clients_apart = protocol.Setup.protocol == "ntstat"
        self._setup = _darwin_setup(info, setup, protocol, timebase) if self._clients_apart else setup
        self._setup = self._setup or protocol.Setup(kernel=info.kernel)
        run = self._run
        self._started = self.now = (info.started_ns or 0) / 1e9 if run is None else run.zero_ns / 1e9 + run.epoch_offset
        self._offset = 0.0
        self._channels: dict[int, int] = {}
        """The session's numbers of channels, if the recording tells their purposes."""
        self._refused = False
        self._first: Any = self._make(0)  # so that a recording that cannot be followed is refused at once

    def _make(self, client: int) -> Any:
        session = self.protocol.Session
        return session.from_setup(self._setup, self._options, mode=Mode.FOLLOWING, client=client)

    def _core(self, client: int) -> Any:
        """The core that follows a client; `None`: there are too many."""
        number = client if self._clients_apart else 0
        core = self.cores.get(number)
        if core is None and len(self.cores) < MAX_CLIENTS:
            core = self.cores[number] = self._make(number) if number else self._first
            core.epoch_offset = self._offset
            core.start(self.now)
        return core

    def play(self, records: Any) -> None:
        """Take in records. Each has its time, so none waits for later ones."""
        super().play(records)
        self.hand_over()

    def moment(self, record: Record) -> bool:
        self.last = record.time_ns
        self.now = self._started + record.time_ns / 1e9
        return True

    def received(self, datagrams: list[bytes]) -> None:
        core = self._core(self.channel)
        if core is not None:
            core.receive_datagrams(datagrams, self.now, self._channels.get(self.channel, self.channel))
            self.events += core.take_events()
        elif not self._refused:
            self._refused = True
            self.lose(None, f"more than {MAX_CLIENTS} clients; the others are left out")

    def sent(self, data: bytes, channel: int) -> None:
        """Let the core of the client learn from its request."""
        core = self._core(channel)
        if core is not None:
            core.observe_request(data, self.now, self._channels.get(channel, channel))
            self.events += core.take_events()

    def step(self, step: steps.Step, channel: int) -> None:
        """Learn a channel's purpose, its losses, what was asked of the host, and the wall clock."""
        if isinstance(step, steps.OpenChannel):
            with contextlib.suppress(ProtocolError):  # a purpose of another version: only the number is known
                purpose = self.protocol.RECORDED.read(step.purpose)
                self._channels[channel] = getattr(purpose, "channel", channel)
        elif isinstance(step, steps.Lookup) and not self._clients_apart:
            with contextlib.suppress(ProtocolError):  # as above: its answer tells what it can by itself
                self._core(0).observe_lookup(self.protocol.RECORDED.read(step.request))
        elif isinstance(step, steps.ClockSet) and self._run is not None:
            self._offset = step.epoch_offset - self._run.epoch_offset
            for core in self.cores.values():
                core.epoch_offset = self._offset
        elif isinstance(step, (steps.ChannelFailed, steps.ChannelDrained)):
            core = self._core(channel)
            if core is not None:
                steps.give(step, core, self._channels.get(channel, channel), self.now)
                self.events += core.take_events()

    def answered(self, token: int, answer: Any, *, repeated: bool) -> None:
        """Give an answer to the core; if there are several, it does not tell to which. A later part's core knows nothing yet."""
        if not self._clients_apart and not (repeated and self.cores):
            self._core(0).lookup_done(token, self.protocol.RECORDED.read(_named(answer)), self.now)

    def finish(self) -> None:
        """End: the recording has no more records."""
        super().finish()
        for core in self.cores.values():
            core.finish(self.now)
            self.events += core.take_events()

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the recorded kernel."""
        return super().capabilities if self.cores else attrs.evolve(self._first.capabilities, backend="replay")


def _darwin_setup(info: RecordingInfo, setup: Any, protocol: Any, timebase: tuple[int, int] | None) -> Any:
    """The setup of the recorded core, with the facts of the recording or of the caller."""
    if info.kernel is None:
        raise RecordingError(
            "the recording does not say which kernel it is from: it ends within its first record, or that is damaged; "
            "if other records are whole, give the kernel (command line: --kernel)"
        )
    text = info.extra.get("xnu", info.kernel)
    kernel = text if isinstance(text, str) and info.kernel in text else info.kernel
    # Apple silicon counts 24 MHz ticks; its kernels say so in their name.
    timebase = timebase or info.timebase or ((125, 3) if "ARM64" in kernel.upper() else (1, 1))
    return attrs.evolve(
        setup or protocol.Setup(kernel=kernel),
        kernel=kernel,
        timebase=timebase,
        interfaces=tuple(info.interfaces.items()),
        backend="replay",
    )


# --- look-ups as they were written before values had names ---------------------------

_OLD_ANSWERS = {"owners": "OwnersAnswer", "link_kinds": "LinkKindsAnswer"}
_OLD_PROCESS = ("pid", "start_ticks", "name", "path")


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

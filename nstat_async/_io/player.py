"""The common base of both ways to play a recording: it makes records the input of cores.

A complete recording is run again (`rerun`), any other is followed (`follow`).
Datagrams of one channel with one time came in one batch, and are given to a core as one batch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from .._errors import NstatError, ProtocolError
from .._events import AnyEvent, EventsLost, LossCause
from .._model import Capabilities, Counts, Flow
from ..recording import DRAINED, Record, RecordKind, steps

MOST_IN_BATCH = 256
"""Most datagrams that are given to a core at once; no channel reads so many."""
_DRAINED = steps.ChannelDrained()


def protocol_of(name: str | None) -> Any:
    """The package of a protocol, with its `Session`, `Setup` and `RECORDED` values; `None` if it is not known."""
    if name == "sock_diag":
        from .. import sockdiag  # noqa: PLC0415  # a machine needs one of them

        return sockdiag
    from .. import ntstat  # noqa: PLC0415  # as above

    return ntstat if name in {None, "ntstat"} else None


class Player:
    """Plays records of a protocol, given its package."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.now = 0.0
        self.cores: dict[int, Any] = {}
        """The cores by client, or one core for all clients."""
        self.events: list[AnyEvent] = []
        self.batch: list[bytes] = []
        """Datagrams of `channel` that are not yet given to its core."""
        self.channel = 0
        self.last = -(1 << 64)
        """Time of the last record."""

    def play(self, records: Iterable[Record]) -> None:
        """Take in records.

        Raises:
            ProtocolError: Only with the option ``strict``.
        """
        batch, received = self.batch, RecordKind.FROM_KERNEL  # to find it in its class takes a tenth of the time
        last, channel = self.last, self.channel  # while there is a batch
        for record in records:
            _, kind, time_ns, client, data, text, extra, _ = record
            if kind is received:
                if not batch or time_ns != last or client != channel or len(batch) >= MOST_IN_BATCH:
                    self.hand_over()
                    if not self.moment(record):
                        continue
                    self.channel = channel = client
                    last = time_ns
                batch.append(data)
                if extra is DRAINED:
                    self.hand_over()
                    self.step(_DRAINED, client)
                continue
            self.hand_over()
            if kind is RecordKind.DAMAGE:
                self.lose(1, text)
            elif kind is not RecordKind.META and self.moment(record) and kind is not RecordKind.NOTE:
                self._play_one(record)

    def _play_one(self, record: Record) -> None:
        """Play a record that is no received datagram; report an impossible one as damage."""
        try:
            if record.kind is RecordKind.TO_KERNEL:
                self.sent(record.data, record.client)
            elif record.kind is RecordKind.STEP:
                self.step(steps.read_step(record.value), record.client)
            else:
                token = record.value.get("token") if isinstance(record.value, dict) else None
                if type(token) is not int:
                    raise ProtocolError("an answer without a question")  # noqa: TRY301  # it is the file's mistake
                self.answered(token, record.value.get("answer"), repeated=record.value.get("repeated") is True)
        except ProtocolError as error:
            self.lose(1, f"record {record.index}: {error.reason}")

    def hand_over(self) -> None:
        """Give the datagrams that were gathered to their core."""
        if self.batch:
            datagrams = self.batch.copy()
            self.batch.clear()
            self.received(datagrams)

    # --- what each of the two ways does for itself --------------------------------------

    def moment(self, record: Record) -> bool:
        """Let time pass until this record; false if it cannot be played."""
        raise NotImplementedError

    def received(self, datagrams: list[bytes]) -> None:
        """Datagrams of `channel` were received in one batch."""
        raise NotImplementedError

    def sent(self, data: bytes, channel: int) -> None:
        """A datagram was sent."""
        raise NotImplementedError

    def step(self, step: steps.Step, channel: int) -> None:
        """Take in another input, or a command."""
        raise NotImplementedError

    def answered(self, token: int, answer: Any, *, repeated: bool) -> None:
        """Take in the answer to a look-up, by name; `repeated`: it was given in an earlier part."""
        raise NotImplementedError

    def finish(self) -> None:
        """End: the recording has no more records."""
        self.hand_over()

    # --- out -------------------------------------------------------------------------

    def collect(self) -> None:
        """Take the events of the cores, in order."""
        for core in self.cores.values():
            self.events += core.take_events()

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""
        self.collect()
        events, self.events = self.events, []
        return events

    def lose(self, count: int | None, detail: str | None) -> None:
        """Report damage, in its place among the events."""
        self.collect()
        offset = next((core.epoch_offset for core in self.cores.values()), 0.0)
        self.events.append(EventsLost(self.now + offset, LossCause.RECORDING, count, detail=detail))

    @property
    def failure(self) -> NstatError | None:
        """The error that ended a core."""
        return next((core.failure for core in self.cores.values() if core.failure is not None), None)

    @property
    def end_of_run(self) -> NstatError | None:
        """The error with which the recorded run ended; `None` if it was stopped, or its end is not known."""
        return None

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the recorded kernel."""
        capabilities: Capabilities = next(iter(self.cores.values())).capabilities
        return attrs.evolve(capabilities, backend="replay")

    def flows(self) -> Iterator[tuple[Flow, Counts | None]]:
        """The open flows."""
        return itertools.chain.from_iterable(core.flows() for core in self.cores.values())

    def statistics(self) -> dict[str, int]:
        """Counters, summed over the clients."""
        total = Counter(clients=len(self.cores))
        for core in self.cores.values():
            total.update(core.statistics())
        return dict(total)

"""Evidence of beginnings without privilege: new sockets, reported soon after the kernel counted them.

The kernel counts opened and accepted connections, and datagram sockets. Reading these numbers costs three small files,
and tells *that* something is new. Only then the host dumps the sockets and searches the processes, newest first. It does
both together, because a flow may live for milliseconds only, and reports what it found.

A report may come after the removal of a socket in it. So a removed socket without a process waits a moment for a
report (`ProgramEvidence.join`), and a socket that was removed is not taken in again.
"""

from __future__ import annotations

import json

import attrs

from .._errors import ProtocolError
from .._values import from_json, to_text
from ._book import Book
from ._dumps import DumpSource
from ._entry import Entry
from ._host_requests import OwnersAnswer
from ._messages import ATTRIBUTES_AT
from ._output import Output
from ._owners import OwnerSource
from ._program_evidence import ProgramEvidence
from ._purposes import PulsePurpose
from ._refusals import refusal_text
from ._rows import Pieces, RowFormats, is_remains
from ._source import Source

OWNERS_PATIENCE = 0.25
"""Seconds for which a new flow waits for its process, if the short search for the report did not find it."""
ANNOUNCED_AT_ONCE = 256
"""Most flows that one report announces."""


class _Report(bytes):
    """A datagram that was encoded here, with its report, because decoding it would take as long as the rest of the work."""

    report: PulseReport


@attrs.frozen
class PulseReport:
    """A datagram of a pulse, as JSON: the sockets that are new since the look before, and their owners."""

    sockets: tuple[tuple[int, bytes], ...] = ()
    """Protocol of each socket, and its message as a dump has it."""
    owners: OwnersAnswer = OwnersAnswer()  # noqa: RUF009  # it is frozen
    """The owners that a short search found."""

    def encode(self) -> bytes:
        """The datagram."""
        data = _Report(to_text(self).encode())
        data.report = self
        return data

    @classmethod
    def decode(cls, data: bytes) -> PulseReport:
        """The report of a datagram.

        Raises:
            ProtocolError: It cannot be decoded.
        """
        if isinstance(data, _Report):
            return data.report
        try:
            return from_json(cls, json.loads(data))
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"not a report of a pulse: {error}", raw=data) from error


class PulseSource(Source):
    """Takes in the reports of one namespace.

    Args:
        output: The time, and where events and commands go.
        book: Where sockets go.
        owners: The processes that are known.
        evidence: Has the removed sockets that wait for a report.
        formats: How messages are cut.
        dumps: Has the requests by which this kernel dumps its sockets.
        pause: Seconds between two looks at the counters; `None`: no pulse.
        polled: Polls follow each other by themselves.
    """

    def __init__(
        self,
        output: Output,
        book: Book,
        owners: OwnerSource,
        evidence: ProgramEvidence,
        formats: RowFormats,
        dumps: DumpSource,
        pause: float | None,
        *,
        polled: bool = True,
    ) -> None:
        super().__init__(output, PulsePurpose(book.number))
        self._book = book
        self._owners = owners
        self._evidence = evidence
        self._formats = formats
        self._dumps = dumps
        self._pause = pause
        self._polled = polled
        self._asked = False
        self._begun = False
        """True after the first report."""
        self._until: float | None = None
        """When flows without a process stop waiting; `None`: none waits."""

    def flush(self) -> None:
        """Open the channel after the first poll, unless eBPF programs report new sockets."""
        if self._pause is None or self._asked or self.output.first_poll or self.output.following:
            return
        if not self._evidence.live:
            self._asked = True
            self.purpose = PulsePurpose(self._book.number, self._pause, *self._dumps.requests_for_new())
            self.open()

    def opened(self, receive_buffer: int | None) -> None:
        super().opened(receive_buffer)
        self._evidence.pulsing = True

    def failed(self, errno: int) -> None:
        self.is_open = self._evidence.pulsing = False
        self.output.note(f"nothing looks for short flows between polls: {refusal_text(errno)}")

    # -- reports

    def receive(self, data: bytes) -> None:
        report = PulseReport.decode(data)
        if not (
            self._polled or self._begun
        ):  # nothing else finds sockets made between the first poll and the first look
            self.output.repair_wanted = True
        self._begun = True
        self.output.count("pulses")
        self._evidence.pulsing = True
        self._settle_ended(report, [self._take_in(protocol, message) for protocol, message in report.sockets])
        self._owners.learn(report.owners)
        self._book.announce_next(ANNOUNCED_AT_ONCE, searched=False)
        if self._book.unannounced and self._until is None:
            self._until = self.output.now + OWNERS_PATIENCE

    def _take_in(self, protocol: int, message: bytes) -> tuple[Entry, Pieces] | None:
        """Take in a socket; returns it if it was removed meanwhile, and waits for its process."""
        if len(message) < ATTRIBUTES_AT:
            raise ProtocolError("a socket in a report of a pulse is too short", raw=message)
        pieces, form = self._formats.cut(message)
        entry = self._evidence.known(self._book, pieces[2])
        if entry is None:
            if not (self._evidence.is_past(pieces[2]) or is_remains(message)):
                self._book.apply_row(None, protocol, pieces, message, form)
        elif entry.over:
            self._book.learn_cgroup_by_row(entry, message, form)
            self._book.complete_ends(entry, pieces[1])
            return entry, pieces
        elif not entry.user[1]:
            self._book.learn_holder(entry, pieces)
        return None

    def _settle_ended(self, report: PulseReport, ended: list[tuple[Entry, Pieces] | None]) -> None:
        """Report the removed sockets whose process is in the report: they waited for nothing else."""
        pids = dict(report.owners.owners)
        facts = {process.pid: process for process in report.owners.processes}
        for entry, pieces in filter(None, ended):
            uid, inode = Entry.user_of(pieces)
            known = facts.get(pids.get(inode, 0))
            if known is not None:
                entry.owner = self._owners.processes.of(known, uid)
                self._evidence.give_up(entry.cookie)

    def deadline(self) -> float | None:
        return self._until

    def expire(self) -> None:
        """Announce flows without a process: it will come as an update."""
        self._until = None
        self._book.announce_next(ANNOUNCED_AT_ONCE, searched=True)
        if self._book.unannounced:
            self._until = self.output.now

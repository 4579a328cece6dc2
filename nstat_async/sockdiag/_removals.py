"""Evidence of ends: the kernel's notifications of destroyed sockets, with their last counters.

`Endings` settles what they leave open.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from .._events import LossCause, RemovalReason
from .._model import Outcome
from ..ebpf import Ended
from ._book import Book
from ._constants import AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, DiagAttribute, DiagGroup, SocketState
from ._endings import Endings
from ._entry import Entry
from ._finals import LastWords, has_remote_port, is_unused, last_words, least_age, was_disconnected
from ._messages import ATTRIBUTES_AT, HEADER, find_attribute, iterate_messages
from ._outcomes import QUICK, is_attempt, outcome_of_attempt
from ._output import Output
from ._program_evidence import ProgramEvidence
from ._purposes import ChannelPurpose, Role
from ._refusals import is_refusal, refusal_text
from ._reports import is_multipath, socket_report
from ._rows import Pieces, RowFormats, info_of
from ._source import Source

MOST_REPAIRS = 3
"""Most polls outside the interval that follow one which repaired nothing."""
LONGEST_READING = 30.0
"""Seconds in which a busy loop reads a whole buffer of notifications: 64 MiB have some 100,000."""

_GROUPS = {
    (AF_INET, IPPROTO_TCP): DiagGroup.TCP4_DESTROY,
    (AF_INET6, IPPROTO_TCP): DiagGroup.TCP6_DESTROY,
    (AF_INET, IPPROTO_UDP): DiagGroup.UDP4_DESTROY,
    (AF_INET6, IPPROTO_UDP): DiagGroup.UDP6_DESTROY,
}


class RemovalSource(Source):
    """Takes in the notifications of one namespace."""

    def __init__(
        self,
        output: Output,
        book: Book,
        endings: Endings,
        evidence: ProgramEvidence,
        formats: RowFormats,
        protocols: Iterable[int],
    ) -> None:
        wanted = frozenset(protocols)
        groups = tuple(int(group) for (_, protocol), group in _GROUPS.items() if protocol in wanted)
        super().__init__(output, ChannelPurpose(book.number, Role.REMOVALS, groups))
        self.receive_buffer: int | None = None
        """Granted size in bytes, if known."""
        self.missing = False
        """True if the kernel refused to report destroyed sockets."""
        self._book = book
        self._endings = endings
        self._evidence = evidence
        self._formats = formats
        self._protocols = wanted
        self._since: float | None = None
        """When the channel was opened first."""
        self._lossy = False
        """Notifications were lost, and no dump has repaired that yet."""
        self._congested = False
        """Notifications from before the last loss may be unread."""
        self._congested_at = 0.0
        self._repairing = False
        self._repairs = 0
        """How many polls were to repair the last loss, and did not."""

    # -- what is missing

    @property
    def reliable(self) -> bool:
        """True unless notifications are missing: a socket that is absent from dumps will then have a removal."""
        return self.is_open and not self._lossy

    @property
    def behind(self) -> bool:
        """True while unread notifications may report the ends that seem lost; not for ever, if the queue is never empty."""
        return self._congested and self.output.now < self._congested_at + LONGEST_READING

    def doubt(self, *, unread: bool | None = None) -> None:
        """Notifications may have been lost, and the next poll has to repair that; if some are `unread`, when these are read."""
        self._lossy, self._repairing, self._repairs = True, False, 0
        self._endings.doubt()
        if not self._congested and (self._endings.waiting.behind if unread is None else unread):
            self._congested, self._congested_at = True, self.output.now

    def begin_poll(self) -> None:
        """A poll begins, which can repair earlier losses."""
        self._repairing = not self._congested

    def end_poll(self, *, proven: bool) -> None:
        """A poll ended; `proven`: each known socket was in it, or proved to be gone.

        If some were neither, another poll is requested, a few times, because none may come by itself.
        """
        if self._repairing and proven:
            self._lossy = False
        elif self._repairing and self._lossy and self._repairs < MOST_REPAIRS:
            self._repairs += 1
            self.output.repair_wanted = True

    def opened(self, receive_buffer: int | None) -> None:
        super().opened(receive_buffer)
        self.receive_buffer = receive_buffer
        self._since = self.output.now if self._since is None else self._since

    def failed(self, errno: int) -> None:
        """The kernel could not queue notifications; how many, it does not say.

        It goes on dropping them without a report until the queue is empty (``NETLINK_S_CONGESTED``), so the repair
        begins at `drained`.
        """
        if not self.is_open or is_refusal(errno):
            self.output.note(
                f"destroyed sockets are not reported, so flows between two polls are missed: {refusal_text(errno)}"
            )
            self.missing = True
            self._evidence.removals_left(self._book, some=False)
            self.close()
            return
        self.doubt(unread=True)
        self.output.count("overruns")
        detail = "notifications of destroyed sockets were lost; the next dump repairs the state"
        self.output.lose(LossCause.KERNEL_BUFFER, detail)

    def drained(self) -> None:
        """The queue is empty: a dump can repair a loss now, and ends know that the removal they wait for is not in it."""
        self._endings.waiting.behind = False
        self._evidence.removals_left(self._book, some=False)
        self._endings.read_at = self.output.now
        if self._congested:
            self._congested = False
            self.output.repair_wanted = True

    # -- what is there

    def receive(self, data: bytes) -> None:
        self._endings.waiting.behind = not self.output.following
        self._evidence.removals_left(self._book, some=not self.output.following)
        if len(data) >= ATTRIBUTES_AT and HEADER.unpack_from(data)[0] == len(data):  # as the kernel sends them
            self._take_in(data)
            return
        for frame in iterate_messages(data):
            if frame.length >= ATTRIBUTES_AT:
                self._take_in(data[frame.offset : frame.end])
            else:
                self.output.reject("notification of a destroyed socket is too short")

    def _take_in(self, message: bytes) -> None:
        book = self._book
        self.output.count("goodbyes")
        protocol = _protocol_of(message)
        if protocol not in self._protocols:
            return
        pieces, form = self._formats.cut(message)
        info = info_of(message, form, pieces)
        entry = book.entries.get(pieces[2])
        known = entry is not None
        if self._evidence.note_removal(pieces[2], pieces[1], known=known):
            return
        if entry is None:
            entry, unseen = self._gone_entry(message, protocol, pieces, info), True
        else:
            unseen = book.begin_other_connection(entry, pieces)
        if entry is None:
            return
        book.coverage.grew(entry, b"" if unseen else entry.last[4], pieces[4])
        if unseen and info[1]:  # nothing else told the direction of this connection
            book.learn_direction(entry, message, info, aborted=was_disconnected(message, *info))
        if known:
            book.complete_ends(entry, pieces[1])
            book.drop(entry)
        book.begin_end(entry)
        self._join(entry, message, info)

    def _gone_entry(self, message: bytes, protocol: int, pieces: Pieces, info: tuple[int, int]) -> Entry | None:
        """An entry for a socket that becomes known by its removal; `None` if there is nothing to report of it.

        At the start that may be an old connection, which the first dump would have had: it says so if that is certain.
        """
        if is_unused(message):
            self.output.count("unused_sockets")
            return None
        entry = self._book.gone_entry(protocol, pieces)
        if entry is not None:
            self.output.count("short_lived")
            entry.preexisting = self._since is not None and least_age(message, *info) > self.output.now - self._since
        return entry

    def _join(self, entry: Entry, message: bytes, info: tuple[int, int]) -> None:
        """End a flow, together with the eBPF record of the end if there may be one."""
        words = last_words(message, *info) if info[1] else None
        settle = partial(self._settle, entry, message, info, words, self.output.now)
        if entry.state == SocketState.LISTEN or is_unused(message):
            settle(None)
        else:
            self._endings.other_came(entry)
            established = words is not None and not (words.cleared or is_attempt(words))
            self._evidence.join(self._book, entry, settle, established=established)

    def _settle(
        self,
        entry: Entry,
        message: bytes,
        info: tuple[int, int],
        words: LastWords | None,
        came: float,
        ended: Ended | None,
    ) -> None:
        """End a flow; with an eBPF record of the end nothing is open."""
        record = ended if ended is not None and ended.final else None
        cleared = words is not None and words.cleared and not has_remote_port(message)
        if record is not None and (words is None or cleared):
            outcome = None if entry.protocol != IPPROTO_TCP else self._outcome_of_cleared(entry, message, record)
            self._evidence.finish(self._book, entry, record, (message, *info), outcome)
        elif words is None and entry.totals is not None:
            self._book.end_unknown(entry, "counted by eBPF programs, and the last counts did not come")
        elif words is None or entry.state == SocketState.LISTEN:
            self._finish(entry, message, info, None)
        elif cleared and was_disconnected(message, *info):
            self._endings.cleared(entry, words)
            self._end_cleared(entry)
        elif cleared:
            self._finish(entry, message, info, self._outcome_of_cleared(entry, message, None))
        else:
            self._endings.settle(entry, message, info, words, came, record)

    def _end_cleared(self, entry: Entry) -> None:
        """End a connection whose counters the kernel cleared."""
        if is_multipath(entry) or self._book.accepted_by_multipath(entry):
            self._book.end_unknown(entry, "a subflow of Multipath TCP, whose counters the kernel clears at its end")
        else:
            why = "aborted, or a subflow of Multipath TCP: the kernel clears the counters"
            self._book.end_unknown(entry, why, Outcome.RESET_HERE)

    def _outcome_of_cleared(self, entry: Entry, message: bytes, record: Ended | None) -> Outcome | None:
        """How a connection ended whose counters are cleared: an attempt failed, unless a record says it was established."""
        if record is not None and record.established:
            return Outcome.RESET_HERE
        if not any(message[HEADER.size + 24 : HEADER.size + 40]):
            return None
        last = entry.report
        repeated = last_words(*last.raw).repeated if last is not None and last.raw[2] else 0
        if record is not None:
            repeated = max(repeated, record.totals.retransmitted_segments or 0)
        quick = self.output.now - self.output.poll_began < QUICK
        return outcome_of_attempt(None, repeated, quick=quick or record is not None)

    def _finish(self, entry: Entry, message: bytes, info: tuple[int, int], outcome: Outcome | None) -> None:
        """End a flow with counts that are final."""
        report = socket_report(message, *info, 0)
        if entry.report is None:
            entry.report = report
        self._book.end(entry, report, final=True, reason=RemovalReason.CLOSED, outcome=outcome)

    def flush(self) -> None:
        self._endings.flush()

    def deadline(self) -> float | None:
        return self._endings.waiting.deadline()

    def expire(self) -> None:
        """The other ends of connections on this machine did not come in time."""
        self._endings.expire()


def _protocol_of(message: bytes) -> int:
    """The protocol of a destroyed socket; 0 when the message does not say."""
    found = find_attribute(message, ATTRIBUTES_AT, len(message), DiagAttribute.PROTOCOL)
    return message[found[0]] if found and found[1] else 0

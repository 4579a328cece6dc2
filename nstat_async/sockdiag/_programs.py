"""The eBPF programs of the machine: their two channels, and what is asked of them.

The ring delivers records. The maps answer requests: each poll asks what was lost and what UDP sockets count, and now
and then which sockets processes have open. Without programs, or after they failed, sock_diag works alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from errno import ENOBUFS, EPERM
from typing import Any

from .._errnos import error_text
from .._errors import BackendUnavailableError, UnavailableReason
from .._events import LossCause, ProviderRefused
from .._model import Provider
from .._options import Ebpf
from ..ebpf import (
    Answer,
    Ledger,
    LossMeter,
    MapsPurpose,
    Operation,
    OwnerRow,
    RingPurpose,
    SocketType,
    Statistics,
    Tier,
    decode_answer,
    encode_adoption,
    encode_request,
    tells,
)
from ._book import Book
from ._constants import PACKET
from ._entry import Entry
from ._host_requests import AttachAnswer, AttachRequest
from ._output import Output
from ._owners import OwnerSource
from ._program_evidence import ProgramEvidence
from ._remotes import Remotes
from ._source import Source

WALK_SECONDS = 60.0
"""Seconds between two walks over all descriptors and all counts."""
MOST_LOOKED_AT = 64
"""Most sockets whose counts are read one by one: that many reads cost as much as a walk over the whole map."""
LISTS_TO_JUDGE = 2
"""Complete lists of counts in a row that prove which sockets are gone; see `Ledger`."""
PATIENCE = 1.0
"""Seconds after which a poll goes on without the rest of an answer; the maps answer at once."""
_NANOSECONDS = 1_000_000_000
_MOST_SECONDS = 1 << 33


class RingSource(Source):
    """The channel of the records."""

    def __init__(self, output: Output, programs: Programs) -> None:
        super().__init__(output, RingPurpose())
        self._programs = programs
        self._overrun = False
        """The ring was full, and is not read empty yet."""

    def receive(self, data: bytes) -> None:
        self._programs.take_records(data)

    def drained(self) -> None:
        self._programs.records_read()
        if self._overrun:  # a poll asks what was lost, and none may come by itself
            self._overrun = False
            self._programs.doubt()

    def failed(self, errno: int) -> None:
        if errno == ENOBUFS and self.is_open:
            self._overrun = True
        else:
            self._programs.fail(f"the ring of eBPF records failed: {error_text(errno)}")


class MapsSource(Source):
    """The channel of the maps."""

    def __init__(self, output: Output, programs: Programs) -> None:
        super().__init__(output, MapsPurpose())
        self.expected = 0
        """Number of answers that are not complete yet."""
        self._programs = programs
        self._progress = 0.0

    def ask(self, operation: Operation, cookies: tuple[int, ...] = ()) -> None:
        """Send a request to the maps."""
        if self.output.following:
            return
        self.expected += 1
        self._progress = self.output.now
        self.send(encode_request(operation, cookies))

    def receive(self, data: bytes) -> None:
        self._progress = self.output.now
        answer = decode_answer(data)
        self.expected -= answer.last
        self._programs.take_answer(answer)

    def failed(self, errno: int) -> None:
        self.expected = 0
        self._programs.forget_asked()
        self.output.count("ebpf_failures")
        self.output.note(f"maps of the eBPF programs failed ({error_text(errno)}): counts of UDP may be missing")

    def deadline(self) -> float | None:
        return self._progress + PATIENCE if self.expected > 0 else None

    def expire(self) -> None:
        self.expected = 0


class Programs:
    """The eBPF programs, as the session knows them.

    Args:
        output: Where events and commands go.
        books: The books, by number of their network namespace.
        owners: The processes that are known.
        evidence: Weighs the evidence of the programs into the books.
        mode: Whether programs are wanted.
        remotes: Whether the remotes of unconnected UDP sockets are wanted.
    """

    def __init__(
        self,
        output: Output,
        books: list[Book],
        owners: OwnerSource,
        evidence: ProgramEvidence,
        mode: Ebpf,
        *,
        remotes: bool,
    ) -> None:
        self.ring, self.maps = RingSource(output, self), MapsSource(output, self)
        self.sources: tuple[Source, ...] = (self.ring, self.maps)
        self.settled = True
        """True when it is known whether there are programs, and their channels are open."""
        self.mode = mode
        self._failure: str | None = None
        self._output = output
        self._books = books
        self._owners = owners
        self._evidence = evidence
        self.walked: Callable[[Answer], None] = lambda _answer: None
        """Called with each part of a walk over all descriptors."""
        self.doubted: Callable[[], None] = lambda: None
        """Called when removals may be missing whose loss seemed repaired: see `doubt`."""
        self.remotes = Remotes(output, evidence.books)
        self._remotes_wanted = remotes
        self._ledger = Ledger(packets=False, births=False)
        self._meter = LossMeter()
        self._walk_due = 0.0
        self._lists = 0
        """How many of the next polls ask for the complete list of counts."""
        self._walked: list[OwnerRow] = []
        self._taking: list[int] = []
        """Removed sockets whose last counts are still to be asked for."""
        self._taken: deque[list[int]] = deque()
        """Removed sockets whose last counts are asked for, a list for each answer."""
        self._unread = False
        """True while the ring has records that were not read yet."""

    @property
    def attached(self) -> AttachAnswer:
        """What was attached, or why nothing was."""
        return self._evidence.attached

    @property
    def tier(self) -> Tier:
        """How much the programs tell now."""
        return self.attached.tier if self._evidence.live else Tier.NONE

    @property
    def reason(self) -> str | None:
        """Why the programs do not tell everything; `None` if they do, or are not wanted."""
        return self._failure or self.attached.detail or None

    @property
    def tells_remotes(self) -> bool:
        """True if the remotes of unconnected UDP sockets are counted."""
        return self._remotes_wanted and tells(self.tier).udp_packets

    # -- beginning and end

    def start(self, done: Callable[[], None]) -> None:
        """Ask for the programs to be attached, if they are wanted; `done` is called afterwards."""
        if self.mode is Ebpf.OFF:
            self._refuse_remotes()
            done()
            return

        def attached(answer: Any) -> None:
            self.take(answer)
            done()

        self.settled = False
        self._output.ask(AttachRequest(remotes=self._remotes_wanted), attached)

    def take(self, answer: Any) -> None:
        """Take in what was attached."""
        self.settled = True
        if not isinstance(answer, AttachAnswer):
            answer = AttachAnswer(reason=UnavailableReason.RESOURCE, detail=getattr(answer, "reason", "no answer"))
        evidence = self._evidence
        evidence.attached = answer
        self._refuse_remotes()
        if answer.tier is Tier.NONE:
            if self.mode is Ebpf.REQUIRE:
                reason = answer.reason or UnavailableReason.MISSING
                self._output.failure = BackendUnavailableError("ebpf", reason, answer.detail)
            return
        evidence.start()
        self._ledger = Ledger(
            packets=tells(answer.tier).udp_packets,
            births=answer.births,
            processes=answer.processes_trusted,
            ignore=answer.own_cookies,
        )
        evidence.counted, evidence.gone = self._counts_to_come, self._ledger.forget
        pairs = zip(answer.namespaces, self._books, strict=False)
        evidence.books.update((cookie, book) for cookie, book in pairs if cookie is not None)
        if self._remotes_wanted:
            self.remotes.watch()
        for source in self.sources:
            source.open()

    def _refuse_remotes(self) -> None:
        """Say why there are no remotes of UDP sockets, if there are none."""
        if self._remotes_wanted and not tells(self.attached.tier).udp_packets:
            self._remotes_wanted = False
            needs = "which are off" if self.mode is Ebpf.OFF else "which need CAP_NET_ADMIN and cgroup2 for it"
            detail = f"remotes of UDP sockets are counted by eBPF programs, {needs}"
            self._output.events.append(ProviderRefused(self._output.time, Provider.UDP_SUBFLOW, EPERM, detail))

    def fail(self, why: str) -> None:
        """Go on without the programs: no further record will come."""
        if self._evidence.live:
            self._failure = why
            self._output.note(f"eBPF is not used any more: {why}")
            self._output.lose(LossCause.KERNEL_BUFFER, why)
            self._evidence.stop()
            self.doubt()

    # -- records

    def take_records(self, data: bytes) -> None:
        """Take in a datagram of the ring.

        Raises:
            ProtocolError: It cannot be decoded.
        """
        self._unread = True
        self._note_what_may_come()
        self._ledger.receive(data)
        self._weigh()

    def records_read(self) -> None:
        """The ring is empty: all records were taken in."""
        self._unread = False
        self._evidence.records_read()
        self._note_what_may_come()

    def _note_what_may_come(self) -> None:
        """Removals wait longer while the records of their ends may be unread, or their last counts not be answered."""
        unread = self._unread or bool(self._taking or self._taken)
        self._evidence.removed.behind = unread and not self._output.following

    def _weigh(self) -> None:
        self._evidence.take(self._ledger.take_evidence())
        drops = self._ledger.take_drops()
        if drops:
            self.maps.send(encode_request(Operation.DROP, drops))

    def _counts_to_come(self, entry: Entry) -> bool:
        """True if the last counts of a removed datagram socket are still to come."""
        abilities = tells(self.tier)
        if abilities.udp_bytes and (entry.protocol == PACKET or not abilities.udp_end):
            self._taking.append(entry.cookie)
            self._note_what_may_come()
        return abilities.udp_bytes

    # -- polls

    def begin_poll(self) -> None:
        """Ask whether anything moved or was lost, and now and then for everything."""
        if not self._evidence.live:
            return
        self.maps.ask(Operation.STATISTICS)
        # The first walk ends before the first dump: a second one names the owners that /proc does not show.
        unnamed = self._output.poll == 2 and self._owners.unresolved > 0
        if self._output.now >= self._walk_due or self._evidence.missing or unnamed:
            self._evidence.missing = False
            self._walk_due = self._output.now + WALK_SECONDS
            self._lists = max(self._lists, 1)
            if self.attached.owners:
                self.maps.ask(Operation.OWNERS)

    def _ask_counts(self, *, moved: bool) -> None:
        """Ask for the counts of sockets, if any moved, or a complete list is due."""
        if not tells(self.tier).udp_bytes:
            return
        self._ask_flows(moved=moved)
        if self._remotes_wanted and (self.remotes.watch() or moved):
            self.remotes.begin()
            self.maps.ask(Operation.PEERS)

    def _ask_flows(self, *, moved: bool) -> None:
        sockets = self._ledger.sockets
        if self._lists:
            self._lists -= 1
            self.maps.ask(Operation.FLOWS)
        elif moved and len(sockets) > MOST_LOOKED_AT:
            self.maps.ask(Operation.FLOWS)
        elif moved and sockets:
            self.maps.ask(Operation.LOOK, tuple(sockets))

    @property
    def gathered(self) -> bool:
        """True when all answers are complete."""
        return self.maps.expected <= 0

    def settle(self) -> None:
        """The books have everything that this poll asked for: finish the remotes."""
        keys = self.remotes.settle()
        if keys:
            self.maps.send(encode_request(Operation.DISMISS, body=b"".join(keys)))

    def flush(self) -> None:
        """Ask for what became necessary between polls."""
        if self._taking:
            taking, self._taking = self._taking, []
            if not self._output.following:
                self.maps.ask(Operation.TAKE, tuple(taking))
                self._taken.append(taking)
        self._owners.processes.ask_names()

    def forget_asked(self) -> None:
        """No answer will come to what was asked for."""
        self._taken.clear()
        self._note_what_may_come()

    def take_answer(self, answer: Answer) -> None:
        """Take in a part of an answer of the maps."""
        if answer.errno:
            self._output.count("ebpf_failures")
        if answer.statistics is not None:
            self._judge_losses(answer.statistics)
            self._ask_counts(moved=answer.statistics.moved != 0)
        if answer.operation is Operation.PEERS:
            self.remotes.take(answer)
        self._ledger.answer(answer)
        if answer.operation is Operation.OWNERS:
            self._evidence.walks += answer.last and not answer.errno
            self.walked(answer)
        self._weigh()
        if answer.operation is Operation.OWNERS:
            self._adopt(answer)
        if answer.operation is Operation.TAKE and answer.last and self._taken:
            for cookie in self._taken.popleft():
                self._evidence.give_up(cookie)  # the map has no counts of it
            self._note_what_may_come()

    def doubt(self) -> None:
        """Records were lost: a poll has to prove which sockets are gone.

        The record of a beginning may have waited in the ring while the removal of its socket was lost, and a poll repaired
        that. If the record of the end is lost, too, nothing else reports it.
        """
        self._output.repair_wanted = True
        self.doubted()

    def _judge_losses(self, statistics: Statistics) -> None:
        """Report what was lost, and have it repaired."""
        repairs: set[Operation] = set()
        for loss in self._meter.update(statistics):
            self._output.lose(LossCause.KERNEL_BUFFER, f"eBPF: {loss.kind.value}", loss.number)
            if loss.needs_dump:
                self.doubt()
            repairs |= loss.repairs
        if Operation.FLOWS in repairs:
            self._lists = LISTS_TO_JUDGE
        if Operation.OWNERS in repairs and self.attached.owners:
            self.maps.ask(Operation.OWNERS)

    def _adopt(self, answer: Answer) -> None:
        """Have datagram sockets counted that are older than the programs, or than the watch of their namespace."""
        counted = self._ledger.sockets
        self._walked += [
            row
            for row in answer.rows
            if isinstance(row, OwnerRow) and row.type != SocketType.STREAM and row.cookie not in counted
        ]
        if answer.last:
            walked = [row for row in self._walked if row.net_cookie in self._evidence.books]
            self._walked = []
            if walked and tells(self.tier).udp_bytes:
                # A recording may claim any time; the kernel's has 64 bits.
                seconds = min(max(0.0, self._output.now + self.attached.boot_offset), _MOST_SECONDS)
                now = round(seconds * _NANOSECONDS)
                self.maps.send(encode_adoption(walked, now))
                self._lists = max(self._lists, 1)  # that of this poll may have been read before: only a list shows them

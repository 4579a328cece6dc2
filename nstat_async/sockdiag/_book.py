"""The book of evidence: what the sources say about the sockets of one network namespace, weighed into events.

The book has an entry for each socket, by cookie, whatever its protocol and family: a socket that changes its family
(``IPV6_ADDRFORM``) keeps its entry. A socket may have several connections, one after the other; each is a flow.

| source | what it says | what it is worth |
|---|---|---|
| dump | the socket exists, with counters, state, addresses | newer facts replace older ones; a total that fell means another connection |
| removal | the socket ended, with its last counters | final, unless the kernel cleared the counters |
| tables of ``/proc/net`` | a raw, ICMP or packet socket exists | as a dump; absence ends the flow, because nothing else reports the end |
| absence and look-up | no dump has the socket; it does not exist | closed until a removal comes; ended only if removals were lost |
| owners | which process holds the inode | the newest answer, unless another process was seen using the socket |
| eBPF records | beginning, user, end, exact counts | replaces everything else |
| eBPF maps | the counts of a UDP socket | no other source has them |
| cgroups | the cgroup that the socket was made in | the kernel's number never changes |
| addresses | which interface has the address | a known interface replaces another; "unknown" replaces none |
| state, sequence numbers, listeners | who began the connection | `Weight` |
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial

import attrs

from .._events import FlowRemoved, LossCause, RemovalReason, flow_updated
from .._making import flow_added
from .._model import Attribution, Direction, Flow, Outcome, Process
from ._cgroups import CgroupSource, cgroup_of
from ._constants import DUMPED, IPPROTO_TCP, IPPROTO_UDP, SocketState
from ._coverage import CoverageMeter
from ._direction import ListenerTable, direction_by_listener, weigh_direction
from ._entry import Entry, Others, Owner, Weight
from ._finals import is_behind_fin
from ._first_rows import entry_maker, first_rows
from ._flows import announce, build_flow, prefix_of, with_outcome
from ._links import LinkTable
from ._outcomes import outcome_by_record
from ._output import Output
from ._owners import OwnerSource
from ._reports import SocketReport, counted_report, is_multipath, report_of, socket_report
from ._rows import (
    Change,
    Pieces,
    RowFormat,
    counters_changed,
    ends_completed,
    identity_differs,
    info_of,
    is_fin_alone,
    is_remains,
    same_connection,
)
from ._setup import NetworkNamespace
from ._waiting import Memory

PASSED_AT_ONCE = 4096
"""Sockets in the queues that one step may skip because they are announced already: a fifth of a millisecond."""
_MOST_ENDED = 65_536
_NOBODY = bytes(8)
"""The user and inode of a row that has neither."""
_RESTARTED = Change.RESTARTED
_LISTEN, _HIDDEN = SocketState.LISTEN, Attribution.HIDDEN
_PROVEN = Weight.SEQUENCE
"""From this weight on no further evidence of the direction is looked for."""


class Book:
    """The sockets of one network namespace."""

    def __init__(
        self,
        output: Output,
        number: int,
        namespace: NetworkNamespace,
        links: LinkTable,
        owners: OwnerSource,
        cgroups: CgroupSource,
        *,
        every_update: bool,
        extras: bool,
        dumped: bool,
    ) -> None:
        self.number = number
        self.entries: dict[int, Entry] = {}
        """By cookie."""
        self.others: dict[int, Entry] = {}
        """The sockets among them that no dump has: neither TCP nor UDP."""
        self.ended: dict[int, Entry] | None = None
        """UDP sockets that ended, kept for `Remotes`; `None`: it does not need them."""
        self.dumped = dumped
        """False where the namespace is not entered, so that it has neither dumps nor removals."""
        self.reported = 0
        """How many sockets of the book the dumps of this poll had."""
        self._dumping = False
        self._departed: set[int] = set()
        """Cookies that were removed during the dumps under way."""
        self._given_up: Memory[int, tuple[int, tuple[bytes, ...]]] = Memory(_MOST_ENDED)
        """By cookie, connections that ended without a removal: their number in the socket, and the identities up to it."""
        self._ending: Memory[Entry, float] = Memory(_MOST_ENDED)
        """Sockets whose end was read and is not reported yet, the oldest first, with the time when it was read."""
        self.ready: deque[Entry] = deque()
        """New sockets that can be announced."""
        self.waiting: deque[Entry] = deque()
        """New sockets that wait for their process; some may be announced by now."""
        self.listeners = ListenerTable()
        self.coverage = CoverageMeter(output, number, links)
        """Adds up the traffic of the flows."""
        self._output = output
        self._owners = owners
        self._cgroups = cgroups
        self._links = links
        self._links_version = links.version
        self._make_entry = entry_maker()
        self._new: list[Entry] = []
        """Sockets that the latest rows had for the first time: `enter_new` does the rest for all of them together."""
        self._first_rows = first_rows()
        self._reference = weakref.ref(self)
        self._announced = False
        """True once a flow was announced."""
        self._every = every_update
        self._extras = extras
        self._label = namespace.label

    def begin_poll(self) -> None:
        """A poll begins."""
        self.reported = 0
        self._dumping = True

    def end_dumps(self) -> None:
        """The dumps of a poll are over."""
        self._dumping = False
        self._departed.clear()

    def give_up(self, entry: Entry) -> None:
        """End a connection that is not there any more: the socket is gone, or has another connection that no dump had yet."""
        self.remember(entry)
        self.drop(entry)
        self.end(entry, entry.report, final=False, reason=RemovalReason.GONE)

    def remember(self, entry: Entry) -> None:
        """Note a connection that ended while its socket may live on: the socket's next connection gets the next number."""
        self._given_up.add(entry.cookie, (entry.connection, (*entry.before, entry.identity)))

    # -- evidence of dumps

    def apply_row(self, entry: Entry | None, protocol: int, pieces: Pieces, message: bytes, form: RowFormat) -> None:
        """Take in a single row, such as a look-up's answer, that is new or differs from the last one of its socket."""
        self.take_row(entry, protocol, pieces, message, form)
        self.enter_new()

    def take_row(self, entry: Entry | None, protocol: int, pieces: Pieces, message: bytes, form: RowFormat) -> None:
        """Take in one of many rows: `enter_new` has to follow the last one."""
        if is_remains(message):
            if entry is None:
                self.reported -= 1
            else:
                entry.seen = self._output.poll
        elif entry is not None:
            self._compare(entry, pieces, message, form)
        elif pieces[2] in self._departed:  # this part of the dump was written before the socket was removed
            self.reported -= 1
        else:
            self._take_in(protocol, pieces, message, form)

    def _take_in(self, protocol: int, pieces: Pieces, message: bytes, form: RowFormat) -> None:
        """Make the entry of a socket that was not known."""
        output, listening = self._output, self.listeners.by_port
        reading = output.now - output.poll_began
        entry = self._make_entry(self._reference, protocol, pieces, message, form, output.poll, reading, listening)
        self._enter(entry)
        entry.preexisting = output.first_poll
        if not entry.preexisting:
            self.coverage.grew(entry, b"", pieces[4])
        if protocol == IPPROTO_TCP:
            if entry.state == _LISTEN:
                self.listeners.add(entry.cookie, pieces[1])
            if not entry.weight:
                self.learn_direction(entry, message, info_of(message, form, pieces))
        self._new.append(entry)

    @property
    def row_taker(self) -> Callable[..., None]:
        """`take_row`, or in the first poll, where nearly all sockets are new, a function that calls it for the others."""
        output = self._output
        if not output.first_poll or self._departed or self._given_up:
            return self.take_row
        about = self._reference, self.entries, self.listeners.by_port, self._new, self.take_row
        return partial(self._first_rows, about, output.poll, output.now - output.poll_began)

    def enter_new(self) -> None:
        """Have the owners and cgroups of the new sockets looked up; they are announced afterwards."""
        new = self._new
        if new:
            for number in dict.fromkeys([entry.cgroup for entry in new]):
                self._cgroups.want(number)
            self._owners.want_all(new)
            self.waiting.extend(new)
            new.clear()

    def _compare(self, entry: Entry, pieces: Pieces, message: bytes, form: RowFormat) -> None:
        """Compare a row with the last one of its socket, and take over what changed."""
        before, entry.seen = entry.last, self._output.poll
        changed, counters = identity_differs(before, pieces), counters_changed(before, pieces)
        if changed and entry.before and entry.begun == entry.seen and _is_of_the_past(entry, pieces[1]):
            return  # this part of the dump was written before a record said that the socket has another connection
        if entry.protocol == IPPROTO_TCP and (
            counters is _RESTARTED or (changed and not same_connection(before[1], pieces[1]))
        ):
            self._dissolve(entry)
        elif counters:
            self.coverage.grew(entry, before[4], pieces[4])
        entry.set_last(pieces)
        returned, entry.absences = entry.absences > 1, 0
        if changed and before[3][4:8] != pieces[3][4:8]:
            self._owners.forget(entry, int.from_bytes(before[3][4:8], sys.byteorder))
            self._owners.want(entry)
            if not (before[4] or any(before[3][4:8])):  # a record said everything but the inode
                changed = before[1][1] != pieces[1][1] or before[1][4:] != pieces[1][4:]
        if not (changed or returned or counters or self._every or entry.report is None):
            return
        self.learn_cgroup_by_row(entry, message, form)
        previous = entry.report
        fin = is_fin_alone(before[4], pieces[4])
        weighed = self.take_over(entry, message, info_of(message, form, pieces), fin=fin)
        if entry.flow is not None:
            self.update(entry, previous, rebuilt=changed or returned or weighed)
        elif entry.connection > 1:
            self.ready.append(entry)

    def learn_cgroup_by_row(self, entry: Entry, message: bytes, form: RowFormat) -> None:
        """Learn from a row which cgroup a socket was made in."""
        if not entry.cgroup:
            self._cgroups.assign(entry, cgroup_of(message, form))

    def new_entry(self, protocol: int, pieces: Pieces) -> Entry:
        """Open an entry for a socket that was not known."""
        poll = self._output.poll
        return self._enter(Entry(self._reference, protocol, pieces, poll, poll))

    def _enter(self, entry: Entry) -> Entry:
        cookie = entry.last[2]
        self.entries[cookie] = entry
        entry.over = False
        if self._given_up:
            ended, entry.before = self._given_up.pop(cookie) or (0, ())
            entry.connection += ended
            entry.begun = entry.seen
        if entry.protocol not in DUMPED:
            self.others[cookie] = entry
        return entry

    def gone_entry(self, protocol: int, pieces: Pieces) -> Entry | None:
        """An entry, outside the book, of a socket that becomes known by its removal; `None` if its end was reported before."""
        if self._dumping:
            self._departed.add(pieces[2])
        connection, before = self._given_up.pop(pieces[2]) or (0, ())
        if before and (protocol != IPPROTO_TCP or same_connection(before[-1], pieces[1])):
            return None
        poll = self._output.poll
        return Entry(self._reference, protocol, pieces, poll, poll, connection=1 + connection)

    def take_over(self, entry: Entry, message: bytes, info: tuple[int, int], *, fin: bool = False) -> bool:
        """Take over what a message of a living socket says; True if the direction became known, or surer.

        The state of a row may be older than its counters: with `fin` the counters have the peer's FIN, whatever the state.
        """
        state, output = entry.last[1][1], self._output
        entry.state, entry.changed, entry.reading = state, output.poll, output.now - output.poll_began
        if entry.totals is None:
            fin = fin or (entry.protocol == IPPROTO_TCP and is_behind_fin(message, *info))
            entry.report = socket_report(message, *info, int(fin))
        else:
            entry.report = counted_report(message, *info, entry.totals)
        if entry.protocol != IPPROTO_TCP:
            return False
        if state == _LISTEN:
            self.listeners.add(entry.cookie, entry.last[1])
        return entry.weight < _PROVEN and self.learn_direction(entry, message, info)

    def learn_direction(self, entry: Entry, message: bytes, info: tuple[int, int], *, aborted: bool = False) -> bool:
        """Weigh what a message says about the direction; True if that outweighs what was known.

        `aborted`: it is the removal of a connection whose counters and peer the kernel forgot.
        """
        if aborted:
            direction, weight = direction_by_listener(entry.last[1], self.listeners)
        else:
            direction, weight = weigh_direction(entry.last[1], message, info, self.listeners)
        if weight <= entry.weight:
            return False
        entry.direction, entry.weight = direction, weight
        return True

    def _dissolve(self, entry: Entry) -> None:
        """The socket has another connection: the previous one ended unseen, and the kernel cleared its counters."""
        self._output.count("reconnected")
        if self._stop_listening(entry):
            self.end(entry, entry.report, final=False, reason=RemovalReason.GONE)
        elif entry.ended is not None and entry.report is not None:
            report = counted_report(*entry.report.raw, entry.ended.totals)
            outcome = outcome_by_record(entry.ended, None)
            self.end(entry, report, final=True, reason=RemovalReason.CLOSED, outcome=outcome)
        else:
            self.end_unknown(entry, "dissolved, which clears the kernel's counters", Outcome.RESET_HERE)
        entry.begin_connection()
        entry.begun = self._output.poll

    def begin_other_connection(self, entry: Entry, pieces: Pieces) -> bool:
        """Begin another connection if a removal is not of the known one, which then ended unseen; True if so."""
        if entry.protocol != IPPROTO_TCP or same_connection(entry.last[1], pieces[1]):
            return False
        self._dissolve(entry)
        self._owners.forget(entry, entry.user[1])
        entry.set_last(pieces)
        return True

    def complete_ends(self, entry: Entry, identity: bytes) -> None:
        """Take over the ports and addresses that are missing, from another identity of the same connection.

        A record of its beginning has no local port yet; the kernel clears some of them in the removal of an aborted one.
        """
        head, before, *rest = entry.last
        after = ends_completed(before, identity)
        if entry.protocol == IPPROTO_TCP and after != before:
            entry.set_last((head, after, *rest))
            if entry.flow is not None:
                entry.flow = self._build(entry)

    # -- evidence of absence

    def mark_closed(self, entry: Entry, state: SocketState) -> None:
        """Mark a socket that is closed, while a process still holds its descriptor."""
        self._stop_listening(entry)
        entry.forget_last()  # it may listen again, with the same row as before
        if entry.protocol == IPPROTO_TCP and entry.flow is not None:
            entry.state = state
            self.update(entry, entry.report, rebuilt=True)

    def drop(self, entry: Entry) -> None:
        """Take a socket out of the book, without an event: `end` reports it."""
        if self._dumping:
            self._departed.add(entry.cookie)
        if self.entries.get(entry.cookie) is entry:
            del self.entries[entry.cookie]
            entry.over = True
            entry.forget_last()
            self.others.pop(entry.cookie, None)
        self._stop_listening(entry)
        self._owners.forget(entry, entry.user[1])
        self._cgroups.forget(entry)

    def _stop_listening(self, entry: Entry) -> bool:
        if entry.last[1][1] != _LISTEN:
            return False
        alone = entry.process if self._owners.is_alone(entry) else None
        self.listeners.leave(entry.cookie, entry.last[1], alone, self._output.now)
        return True

    # -- evidence of owners and addresses

    def learn_owner(self, entry: Entry, owner: Owner, place: int | None) -> None:
        """Take over the owner, or the reason why none is known.

        A reason replaces no process, and a holder does not replace another process that was seen using the socket.
        """
        before = entry.owner
        if entry.over or (before is not None and isinstance(before, Process) and not isinstance(owner, Process)):
            return
        if entry.used_by is not None and isinstance(owner, Process) and owner.key != entry.used_by:
            return
        entry.place = place
        if owner is _HIDDEN and entry.is_inferred:
            owner = Attribution.INFERRED
        if before is not None and before == owner:
            return
        entry.owner = owner
        if entry.flow is not None:
            self.update(entry, entry.report, rebuilt=True)
        else:
            self.ready.append(entry)

    def learn_holder(self, entry: Entry, pieces: Pieces) -> None:
        """Take over the inode of a socket that had none: it was accepted."""
        head, identity, cookie, rest, counters = entry.last
        if len(rest) >= len(_NOBODY):
            entry.set_last((head, identity, cookie, pieces[3][: len(_NOBODY)] + rest[len(_NOBODY) :], counters))
            self._owners.want(entry)

    def learn_cgroup(self, entry: Entry) -> None:
        """The names of the socket's cgroup became known."""
        if entry.flow is not None and not entry.over:
            self.update(entry, entry.report, rebuilt=True)

    def infer_cgroup(self, entry: Entry, number: int) -> None:
        """Assign a socket to the cgroup that all visible processes of its namespace are in; `Attribution.INFERRED` says so."""
        self._cgroups.assign(entry, number)
        if entry.owner is Attribution.HIDDEN:
            entry.owner = Attribution.INFERRED
        self.learn_cgroup(entry)

    def locate(self) -> None:
        """Update the flows whose interface changed, if interfaces or addresses changed."""
        if self._links_version == self._links.version:
            return
        self._links_version = self._links.version
        if self._announced:
            self._output.do(self._relocate())

    def _relocate(self) -> Iterator[None]:
        for entry in list(self.entries.values()):
            yield
            flow = entry.flow
            if flow is None or flow.local is None or entry.over:
                continue
            interface = self._links.interface_by_row(entry.last[1])
            if interface is not None and interface != flow.interface:
                self.update(entry, entry.report, rebuilt=True)

    def learn_others(self, entry: Entry, owner: Process, others: Others) -> None:
        """Several processes hold a socket: the oldest of them, `owner`, owns it."""
        if entry.over:
            return
        changed, entry.others = entry.others != others, others
        if entry.process is None or entry.process.key != owner.key:
            self.learn_owner(entry, owner, None)
        elif changed and entry.flow is not None:
            self.update(entry, entry.report, rebuilt=True)

    def _infer_owner(self, entry: Entry) -> Owner:
        """The owner of a connection that ended before anyone could look: the only process that listened there, if it was accepted."""
        accepted = entry.direction is Direction.INBOUND
        listening = [self.entries.get(cookie) for cookie in self.listeners.of(entry.identity)] if accepted else []
        owners = {each.process if each is not None and self._owners.is_alone(each) else None for each in listening}
        if accepted:
            owners |= self.listeners.owners_before(entry.identity, self._output.now)
        owner = owners.pop() if len(owners) == 1 else None
        if owner is None:
            return Attribution.INFERRED if entry.is_inferred else Attribution.GONE
        return attrs.evolve(owner, attribution=Attribution.INFERRED)

    # -- outcomes

    def _build(self, entry: Entry) -> Flow:
        return build_flow(entry, self._links, self._cgroups, self._label, listed=self._extras)

    def announce(self, entry: Entry) -> Flow:
        """Report a flow for the first time."""
        self._announced = True
        flow, report, output = self._build(entry), entry.report, self._output
        entry.flow = flow
        now = output.now + output.epoch_offset
        output.events.append(flow_added(now, flow, report, entry.preexisting, report))
        return flow

    @property
    def unannounced(self) -> bool:
        """True while new flows wait to be announced; may stay true for a while after many were announced out of turn."""
        waiting = self.waiting
        for _ in range(PASSED_AT_ONCE):
            if not waiting or (waiting[0].flow is None and not waiting[0].over):
                break
            waiting.popleft()
        return bool(self.ready or waiting)

    def announce_next(self, number: int, *, searched: bool) -> int:
        """Announce flows that need not wait any longer, and return how many.

        Args:
            number: The most to announce.
            searched: The search for processes is over: flows without one need not wait either.
        """
        done = passed = 0
        for queue in (self.ready, self.waiting) if searched else (self.ready,):
            while queue and done < number and passed < PASSED_AT_ONCE:
                some = [queue.popleft() for _ in range(min(len(queue), number - done))]
                announced = self._announce_all(some)
                done += announced
                passed += len(some) - announced
        return done

    def _announce_all(self, entries: list[Entry]) -> int:
        """Announce these sockets, unless they are announced or gone; returns how many were."""
        output, label = self._output, self._label
        self._announced = True
        return announce(
            entries,
            prefix_of(self.number, label),
            label,
            self._cgroups.known,
            self._links.remembered(),
            output.now + output.epoch_offset,
            output.events,
            self.announce,
        )

    def begin_end(self, entry: Entry) -> None:
        """The end of a socket's connection was read; `end` reports it, maybe later."""
        if entry not in self._ending:
            self._ending.add(entry, self._output.now)

    def settled(self, until: float) -> bool:
        """True if every end that was read by this time is reported."""
        came = self._ending.oldest()
        return came is None or came > until

    def update(self, entry: Entry, previous: SocketReport | None, *, rebuilt: bool) -> None:
        """Report that an announced flow changed; `rebuilt`: in more than its counts."""
        if rebuilt:
            entry.flow = self._build(entry)
        flow, report, output = entry.flow, entry.report, self._output
        if flow is not None and report is not None:
            output.events.append(flow_updated(output.now + output.epoch_offset, flow, report_of(report, previous)))

    def end(
        self,
        entry: Entry,
        report: SocketReport | None,
        *,
        final: bool,
        reason: RemovalReason,
        uncertainty: int | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        """Report the end of a flow, after its announcement if that is still due."""
        self._ending.pop(entry)
        if entry.owner is None or entry.owner is Attribution.HIDDEN:
            entry.owner = self._infer_owner(entry)
            if entry.flow is not None:
                entry.flow = self._build(entry)
        flow = entry.flow or self.announce(entry)
        if outcome is not None:
            flow = with_outcome(flow, outcome)
        self._output.events.append(FlowRemoved(self._output.time, flow, report, final, reason, report, uncertainty))
        if self.ended is not None and entry.protocol == IPPROTO_UDP and len(self.ended) < _MOST_ENDED:
            self.ended[entry.cookie] = entry

    def end_unknown(self, entry: Entry, why: str, outcome: Outcome | None = None) -> None:
        """Report the end of a flow whose last counts are not known, e.g. cleared by the kernel: it keeps the last known ones."""
        flow = entry.flow or self.announce(entry)
        self._output.lose(LossCause.FINAL_COUNTS, f"{flow}: {why}", 1)
        self.end(entry, entry.report, final=False, reason=RemovalReason.DROPPED, outcome=outcome)

    def accepted_by_multipath(self, entry: Entry) -> bool:
        """True if a known listener of Multipath TCP may have accepted this connection."""
        listeners = (self.entries.get(cookie) for cookie in self.listeners.of(entry.identity))
        return any(listener is not None and is_multipath(listener) for listener in listeners)


def _is_of_the_past(entry: Entry, identity: bytes) -> bool:
    """True if this identity is that of an earlier connection of the socket."""
    ends = identity[4:8]
    if entry.protocol != IPPROTO_TCP or ends == entry.identity[4:8] or not (any(ends[:2]) and any(ends[2:])):
        return False
    return any(before[4:8] == ends and before[24:40] == identity[24:40] for before in entry.before)

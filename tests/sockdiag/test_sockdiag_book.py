"""The book of evidence: what a socket is, which connection it has, who holds it, and what outweighs what."""

from __future__ import annotations

import errno
import gc
import weakref

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sockdiag_fakes import LOOPBACK, PEER, FakeKernel, FakeSocket, flow_events, kinds, removals, traffic

from examples import examples
from nstat_async._contract import LookupFailed
from nstat_async._events import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, LossCause, PollCompleted, RemovalReason
from nstat_async._model import Attribution, Direction, InterfaceKind, TcpState, Visibility
from nstat_async._options import MonitorOptions
from nstat_async.sockdiag import (
    AddressMessage,
    LinkKindsRequest,
    LinkMessage,
    OwnersAnswer,
    ProcessFacts,
    RouteMessage,
    Session,
    SocketState,
    TcpInfo,
)
from nstat_async.sockdiag._messages import encode_done

MAPPED = bytes(10) + b"\xff\xff" + LOOPBACK


def searches(kernel: FakeKernel) -> int:
    """Requests that look for an owner; others only check known ones."""
    return sum(bool(request.inodes) for request in kernel.owner_requests)


# -- sockets without a book


def test_a_session_that_nobody_has_is_collected_and_whoever_still_asks_its_sockets_gets_no_answer():
    """Sockets know their book weakly: with the C code the collector does not look at them."""
    kernel = FakeKernel(interval=None)
    kernel.sockets[1] = FakeSocket(1, inode=5)
    kernel.start()
    (entry,) = kernel.session._entries()
    book = weakref.ref(entry.book)
    assert not entry.over
    del kernel
    gc.collect()
    assert book() is None
    for learn, rest in (("owner", (Attribution.HIDDEN, None)), ("cgroup", ()), ("others", (None, None))):
        assert getattr(entry.book, f"learn_{learn}")(entry, *rest) is None
    assert entry.book.number == 0


# -- a socket and its connections


@pytest.mark.parametrize("where", ["elsewhere", "the same peer"])
def test_another_connection_of_a_socket_is_another_flow(kernel, where):
    """A socket that disconnects and connects again between two polls: the first flow ends with its last counts, a second begins."""
    kernel.sockets[1] = sock = FakeSocket(1, inode=77, info=traffic(5, 1000))
    kernel.owners[77] = 42
    kernel.start()
    sock.info = traffic(0, 10)
    if where == "elsewhere":
        sock.local_port, sock.remote_port, sock.info = 40001, 81, traffic(9, 5000)
    lost, removed, added, done = kernel.wait(1.0)
    assert (lost.cause, removed.reason, removed.final) == (LossCause.FINAL_COUNTS, RemovalReason.DROPPED, False)
    assert (removed.flow.id, removed.counts.tx_bytes, removed.flow.remote.port) == ("c1", 1000, 80)
    assert isinstance(added, FlowAdded)
    assert not added.preexisting
    assert (added.flow.id, added.flow.remote.port) == ("c1.2", sock.remote_port)
    assert added.counts.tx_bytes == (5000 if where == "elsewhere" else 10)
    assert added.flow.process.pid == 42
    assert done.flows == 1
    assert kernel.session.statistics()["reconnected"] == 1
    kernel.close(1)
    (removed,) = kernel.run()
    assert (attrs.evolve(removed.flow, outcome=None), removed.final) == (added.flow, True)


def test_another_connection_known_only_by_its_end(kernel):
    """The removal is of a connection that no dump had: the known one ended before, the other is added and removed."""
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic(5, 1000))
    kernel.start()
    assert kernel.session.statistics()["unresolved_owners"] == 1
    kernel.feed(FakeSocket(1, remote_port=81, info=traffic(0, 7, fin_sent=1)).message(final=True), 1)
    lost, first, added, second = kernel.run()
    assert isinstance(lost, EventsLost)
    assert (first.flow.id, first.counts.tx_bytes, first.final) == ("c1", 1000, False)
    assert (added.flow.id, second.flow.id, second.counts.tx_bytes, second.final) == ("c1.2", "c1.2", 7, True)
    assert (added.flow.direction, added.flow.remote.port) == (Direction.OUTBOUND, 81)
    assert kernel.session.statistics()["unresolved_owners"] == 0


def test_the_end_of_an_unseen_connection_has_nothing_of_the_one_before(kernel):
    """That one was half-closed by its peer: a byte of this one is no FIN."""
    kernel.sockets[1] = FakeSocket(1, state=SocketState.CLOSE_WAIT, info=traffic(5, 10, fin=1))
    kernel.start()
    kernel.feed(FakeSocket(1, remote_port=81, info=traffic(7, 7)).message(final=True), 1)
    second = removals(kernel.run() + kernel.wait(10.0))[-1]
    assert (second.flow.id, second.counts.rx_bytes) == ("c1.2", 7)


def test_a_row_of_before_a_socket_connected_again_is_no_third_connection(kernel):
    """One dump may have both: it is written while sockets live."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    kernel.remains = [kernel.sockets[1]]
    kernel.sockets[1] = FakeSocket(1, local_port=40001, remote_port=81, info=traffic(0, 7))
    removed, added = flow_events(kernel.wait(1.0))
    assert (removed.flow.id, added.flow.id, added.flow.remote.port) == ("c1", "c1.2", 81)


def test_a_failed_attempt_is_no_other_connection(kernel):
    """The kernel forgets the port of a refused peer: the flow that was seen connecting ends, once."""
    kernel.sockets[1] = FakeSocket(1, state=SocketState.SYN_SENT)
    kernel.start()
    kernel.feed(FakeSocket(1, remote_port=0, unacked=3).message(final=True), 1)
    assert kinds(kernel.run()) == ["FlowRemoved"]


def test_a_listener_that_connects_is_another_flow(kernel):
    """It listens no longer: its flow ends without a loss, and it accepts nothing from then on."""
    kernel.sockets[1] = sock = FakeSocket(1, b"\0" * 4, 80, b"\0" * 4, 0, state=SocketState.LISTEN)
    kernel.start()
    sock.state, sock.local, sock.remote, sock.remote_port = SocketState.ESTABLISHED, LOOPBACK, LOOPBACK, 90
    sock.info = traffic(0, 5)
    removed, added, _ = kernel.wait(1.0)
    assert (removed.flow.direction, removed.reason, removed.final) == (Direction.LISTENER, RemovalReason.GONE, False)
    assert (added.flow.id, added.flow.direction) == ("c1.2", Direction.OUTBOUND)


@pytest.mark.parametrize("protocol", [6, 17])
def test_a_socket_that_changes_its_family_stays_one_flow(kernel, protocol):
    """IPV6_ADDRFORM moves a socket to the other dump: one flow, one end, no ghost, however often."""
    kernel.start()
    for cookie in range(1, 201):
        sock = FakeSocket(cookie, MAPPED, 40000, MAPPED, 80, family=10, protocol=protocol, info=traffic(5, 10))
        kernel.sockets[cookie] = sock
        kernel.poll()
        sock.family, sock.local, sock.remote = 2, LOOPBACK, LOOPBACK
        sock.info = traffic(5, 20)
        kernel.poll()
        kernel.close(cookie)
        kernel.run()
    events = flow_events(kernel.events)
    assert [e.flow.id for e in events if isinstance(e, FlowAdded)] == [f"c{n:x}" for n in range(1, 201)]
    removed = removals(events)
    assert len(removed) == 200
    assert all(e.final for e in removed)
    assert list(kernel.session.flows()) == []


@pytest.mark.parametrize("when", ["in one poll", "in two"])
def test_what_was_taken_for_gone_and_is_there_again_is_another_flow(kernel, when):
    """Removals were lost, no dump and no look-up had the socket; the next dump has it, and says so at once."""
    kernel.sockets[1] = sock = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    for expected in ("c1", "c1.2") if when == "in two" else ("c1",):
        del kernel.sockets[1]
        kernel.lose_removals()
        (removed,) = flow_events(kernel.wait(1.0))
        assert (removed.flow.id, removed.reason, removed.final) == (expected, RemovalReason.GONE, False)
        kernel.sockets[1] = sock
        (added,) = flow_events(kernel.wait(1.0))
    assert (type(added), added.flow.id) == (FlowAdded, f"c1.{2 if when == 'in one poll' else 3}")


def test_a_known_socket_that_ends_during_the_dump_that_has_it_ends_once(kernel):
    """Its row was written before its removal and is read behind it."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.sockets[2] = FakeSocket(2, local_port=2, info=traffic())
    kernel.start()
    kernel.during_dump = lambda: kernel.close(1)
    events = kernel.wait(1.0)
    assert kinds(events) == ["FlowRemoved", "PollCompleted"]
    assert events[-1].flows == 1


def test_rows_that_say_nothing_of_a_known_socket_hide_no_absence(kernel):
    """Neither what is left of a stranger nor what ended during the dump stands for a socket that is missing."""
    for cookie in (1, 2):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, info=traffic())
    kernel.start()
    kernel.sockets.pop(1)
    kernel.during_dump = lambda: kernel.close(2)
    assert kinds(kernel.wait(1.0)) == ["FlowRemoved", "PollCompleted"]
    kernel.remains.append(FakeSocket(9, local_port=9, state=SocketState.FIN_WAIT2, timer=3))
    (closed,) = flow_events(kernel.wait(1.0))
    assert (closed.flow.id, closed.flow.state) == ("c1", TcpState.CLOSED)


def test_a_datagram_socket_that_dumps_lack_is_not_closed(kernel):
    """It has no state; its removal ends it."""
    kernel.sockets[1] = sock = FakeSocket(1, protocol=17)
    kernel.start()
    del kernel.sockets[1]
    assert [event for _ in range(3) for event in flow_events(kernel.wait(1.0))] == []
    kernel.feed(sock.message(final=True), 1)
    assert kinds(kernel.run()) == ["FlowRemoved"]


def test_what_is_left_of_a_socket_keeps_it_until_its_removal(kernel):
    """Another one that is missing is looked into, this one is not."""
    for cookie in (1, 2):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, info=traffic())
    kernel.start()
    kernel.sockets.clear()
    kernel.remains.append(FakeSocket(1, local_port=1, state=SocketState.FIN_WAIT2, timer=3))
    assert [event.flow.id for _ in range(3) for event in flow_events(kernel.wait(1.0))] == ["c2"]


def test_a_listener_that_was_shut_down_accepts_nothing_until_it_listens_again(kernel):
    """Its row is as it was then, and it is no longer closed."""
    kernel.sockets[1] = sock = FakeSocket(1, b"\0" * 4, 80, b"\0" * 4, 0, state=SocketState.LISTEN)
    kernel.start()
    ambiguous = traffic(0, 10, active=0, fin_sent=1)

    def accepted(cookie):
        kernel.feed(FakeSocket(cookie, LOOPBACK, 80, PEER, cookie, info=ambiguous).message(final=True), 1)
        return flow_events(kernel.run())[0].flow.direction

    assert accepted(5) is Direction.INBOUND
    del kernel.sockets[1]
    kernel.wait(1.0)
    (update,) = flow_events(kernel.wait(1.0))
    assert (update.flow.state, accepted(6)) == (TcpState.CLOSED, None)
    kernel.sockets[1] = sock
    (update,) = flow_events(kernel.wait(1.0))
    assert (update.flow.state, accepted(7)) == (TcpState.LISTEN, Direction.INBOUND)


def test_growing_says_nothing_new_of_who_began(kernel):
    """A direction that a listener gives stays, and the flow is the same object with every update."""
    kernel.sockets[1] = FakeSocket(1, b"\0" * 4, 80, b"\0" * 4, 0, state=SocketState.LISTEN)
    moving = {**traffic(0, 5, active=0), 144: 0}
    kernel.sockets[2] = sock = FakeSocket(2, local_port=80, remote_port=90, unacked=1, info=moving)
    added = kernel.start()[1]
    sock.info = {**sock.info, TcpInfo.BYTES_RECEIVED: 9}
    (updated,) = flow_events(kernel.wait(1.0))
    assert updated.flow.direction is Direction.INBOUND
    assert updated.flow is added.flow


def test_with_every_update_a_socket_without_counts_keeps_its_flow_object():
    kernel = FakeKernel(every_update=True)
    kernel.sockets[1] = FakeSocket(1, protocol=17)
    flow = kernel.start()[0].flow
    (updated,) = flow_events(kernel.wait(1.0))
    assert updated.flow is flow


# -- owners


def test_a_change_of_state_is_no_new_search(kernel):
    """Whoever held it holds it still."""
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.owners[77] = 42
    kernel.start()
    kernel.sockets[1].state = SocketState.FIN_WAIT1
    assert kinds(kernel.wait(1.0)) == ["FlowUpdated", "PollCompleted"]
    assert searches(kernel) == 1


def test_a_socket_that_has_another_inode_says_so(kernel):
    kernel.sockets[1] = FakeSocket(1, protocol=17, inode=77)
    kernel.start()
    kernel.sockets[1].inode = 78
    updated = flow_events(kernel.wait(1.0))[0]
    assert (updated.details.inode, updated.delta.rx_bytes) == (78, None)


def test_what_ended_is_sought_no_longer(kernel):
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.start()
    assert kernel.session.statistics()["unresolved_owners"] == 1
    kernel.close(1)
    kernel.run()
    assert kernel.session.statistics()["unresolved_owners"] == 0


def test_every_socket_of_one_inode_gets_its_owner(kernel):
    """The subflows of an MPTCP connection have its inode: all of them belong to its process, early and late ones."""
    for cookie in (1, 2, 3):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, inode=77, info=traffic())
    kernel.owners[77] = 42
    kernel.start()
    kernel.sockets[4] = FakeSocket(4, local_port=4, inode=77, info=traffic())
    kernel.wait(1.0)
    added = [e.flow for e in kernel.events if isinstance(e, FlowAdded)]
    assert [flow.process.pid for flow in added] == [42] * 4


def test_one_of_several_sockets_of_an_inode_ends(kernel):
    """The others are still looked for."""
    kernel.start()
    kernel.hold_lookups = True
    for cookie in (1, 2):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, inode=77, info=traffic())
    kernel.wait(1.0)
    kernel.close(1)
    kernel.owners[77] = 42
    kernel.answer(kernel.held.pop())
    added = {e.flow.id: e.flow.process for e in kernel.run() if isinstance(e, FlowAdded)}
    assert added["c2"].pid == 42


def test_sockets_that_nobody_holds_any_more_are_not_looked_for(kernel):
    """Orphans have inode 0: what was unresolved about them is forgotten, and their owner stays who it was."""
    for cookie in range(1, 6):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, inode=70 + cookie, info=traffic())
    kernel.owners[75] = 42
    kernel.start()
    assert kernel.session.statistics()["unresolved_owners"] == 4
    for sock in kernel.sockets.values():
        sock.inode, sock.state = 0, SocketState.FIN_WAIT1
    kernel.wait(1.0)
    assert kernel.session.statistics()["unresolved_owners"] == 0
    before = searches(kernel)
    kernel.wait(2.0)
    assert searches(kernel) == before
    assert [f.process.pid for f, _ in kernel.session.flows() if f.process] == [42]


def test_a_socket_that_was_handed_over_is_updated_at_the_next_poll(kernel):
    """``SCM_RIGHTS``, ``fork`` and ``close``: the former owner lives on; the flow stays, and what begins later is right."""
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.owners = {77: 42, 78: 42}
    kernel.start()
    kernel.owners[77] = 43
    kernel.sockets[2] = FakeSocket(2, local_port=2, inode=78, info=traffic())
    update, added = flow_events(kernel.wait(1.0))
    if isinstance(update, FlowAdded):
        update, added = added, update
    assert (update.flow.id, update.flow.process.pid, added.flow.process.pid) == ("c1", 43, 42)


def test_a_socket_whose_process_was_seen_using_it_is_checked_as_well(kernel):
    """A record names the process and no descriptor: it is found once, and a socket that was handed over is noticed."""
    for cookie, inode in ((1, 77), (2, 78)):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, inode=inode, info=traffic())
        kernel.owners[inode] = 42
    kernel.start()
    entries = kernel.session._namespaces[0].book.entries
    for entry in entries.values():
        entry.place, entry.used_by = None, (42, 7042)
    kernel.owners[77] = 43
    (update,) = flow_events(kernel.wait(1.0))
    assert (update.flow.id, update.flow.process.pid) == ("c1", 43)
    assert [entry.place for entry in entries.values()] == [3, 3]


def test_a_socket_that_moved_to_another_descriptor_is_no_update(kernel):
    """``dup2`` within a process changes nobody's owner."""
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.owners[77] = 42
    kernel.start()
    kernel.descriptors[77] = 9
    assert flow_events(kernel.wait(1.0)) == []
    assert searches(kernel) == 2
    kernel.wait(1.0)
    assert searches(kernel) == 2, "the new place is known"


def test_a_socket_on_its_way_between_processes_keeps_its_owner(kernel):
    """A descriptor in a message is nobody's: the last owner known stands, and the next one is found."""
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.owners[77] = 42
    kernel.start()
    del kernel.owners[77]
    kernel.owners[1] = 42  # it lives
    assert flow_events(kernel.wait(1.0)) == []
    kernel.owners[77] = 43
    updates = flow_events([*kernel.wait(1.0), *kernel.wait(1.0)])
    assert [(update.flow.id, update.flow.process.pid) for update in updates] == [("c1", 43)]


def test_a_process_that_runs_another_program(kernel):
    """``execve``: sockets that it had are updated, those that it opens have the new name from the start."""
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.owners = {77: 42, 78: 42}
    kernel.start()
    kernel.programs[42] = ProcessFacts(42, 7042, "other", "/bin/other", "title")
    (update,) = flow_events(kernel.wait(1.0))
    kernel.sockets[2] = FakeSocket(2, local_port=2, inode=78, info=traffic())
    (added,) = flow_events(kernel.wait(1.0))
    for flow in (update.flow, added.flow):
        assert (flow.process.pid, flow.process.name, flow.process.path, flow.process.title) == (
            42, "other", "/bin/other", "title",
        )  # fmt: skip
    assert added.flow.process is kernel.session._namespaces[0].book.entries[1].flow.process


def test_many_sockets_are_checked_in_turn(kernel):
    """A poll checks so many at most, and some polls check all."""
    for cookie in range(1, 1500):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, inode=cookie, info=traffic())
        kernel.owners[cookie] = 42
    kernel.per_datagram = 80
    kernel.start()
    del kernel.owner_requests[:]
    for _ in range(4):
        kernel.wait(1.0)
    held = [place[0] for request in kernel.owner_requests for place in request.held]
    assert max(len(request.held) for request in kernel.owner_requests) <= 513
    assert set(held) == set(range(1, 1500))


@pytest.mark.parametrize(
    ("processes", "refused", "first", "later"),
    [
        (Visibility.ALL, 0, None, Attribution.KERNEL),
        (Visibility.ALL, 3, Attribution.HIDDEN, Attribution.HIDDEN),
        (Visibility.OWN, 0, Attribution.HIDDEN, Attribution.HIDDEN),
    ],
)
def test_why_a_socket_has_no_process(processes, refused, first, later):
    """What nobody has is the kernel's where everybody was looked at, twice; else its owner is hidden; that is no silence."""
    kernel = FakeKernel(Session(MonitorOptions(interval=1.0), processes=processes))
    kernel.refused_processes = refused
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    added = flow_events(kernel.start())[0].flow
    assert (added.process, added.attribution) == (None, first)
    kernel.wait(1.0)
    ((flow, _),) = kernel.session.flows()
    assert (flow.id, flow.attribution) == (added.id, later)
    assert (flow.process and flow.process.pid) == (0 if later is Attribution.KERNEL else None)
    kernel.owners[77] = 42
    for _ in range(4):
        kernel.wait(1.0)
    ((flow, _),) = kernel.session.flows()
    assert (flow.process.pid, flow.attribution) == (42, None)


def test_a_socket_that_no_dump_has_any_more_is_not_the_kernels():
    """It was closed behind the first dump, and a busy loop has not read its removal when the second search is over."""
    kernel = FakeKernel(Session(MonitorOptions(interval=1.0), processes=Visibility.ALL))
    for cookie in (1, 2):
        kernel.sockets[cookie] = FakeSocket(cookie, inode=70 + cookie, info=traffic())
    kernel.start()
    del kernel.sockets[2]
    kernel.wait(1.0)
    assert [flow.attribution for flow, _ in kernel.session.flows()] == [Attribution.KERNEL, None]


def test_a_udp_socket_of_the_kernel_is_known_after_one_look():
    """Whoever takes a snapshot sees whose it is."""
    kernel = FakeKernel(Session(MonitorOptions(), processes=Visibility.ALL))
    kernel.sockets[1] = FakeSocket(1, b"\0" * 4, 4789, b"\0" * 4, 0, protocol=17, inode=77, state=SocketState.CLOSE)
    flow = kernel.start()[0].flow
    assert (flow.process.pid, flow.process.name, flow.attribution) == (0, "kernel", Attribution.KERNEL)


def test_what_ended_before_anyone_looked_is_gone(kernel):
    """A flow between two polls has no process, and says why; so does one that ended while it was looked for."""
    kernel.start()
    kernel.feed(FakeSocket(5, info=traffic(0, 10, fin_sent=0)).message(final=True), 1)
    (short, _) = flow_events(kernel.run())
    assert (short.flow.process, short.flow.attribution) == (None, Attribution.GONE)
    kernel.session._polls._owners._sees_all = True
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    assert flow_events(kernel.wait(1.0))[0].flow.attribution is None
    kernel.close(1)
    (removed,) = flow_events(kernel.run())
    assert (removed.flow.id, removed.flow.attribution) == ("c1", Attribution.GONE)


def test_a_search_that_fails_is_said_and_made_again(kernel):
    """Flows come without processes and a note says why; when it works again, they are found and the note goes."""
    kernel.start()
    kernel.hold_lookups = True
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.owners[77] = 42
    kernel.wait(1.0)
    kernel.session.lookup_done(kernel.held.pop().token, LookupFailed("no thread"), kernel.now)
    assert kinds(kernel.run()) == ["FlowAdded", "PollCompleted"]
    assert "processes are unknown: no thread" in kernel.session.capabilities.notes
    kernel.hold_lookups = False
    assert [e.flow.process.pid for e in flow_events(kernel.wait(1.0))] == [42]
    assert "no thread" not in str(kernel.session.capabilities.notes)


def test_flows_are_announced_as_their_processes_are_found(kernel):
    """What a first piece of the search found does not wait for the rest of it."""
    kernel.start()
    kernel.hold_lookups = True
    for cookie in (1, 2):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, inode=cookie, info=traffic())
    kernel.wait(1.0)
    request = kernel.held.pop()
    piece = OwnersAnswer(((2, 42),), (ProcessFacts(42, 7, "p", None),), 40)
    kernel.session.lookup_done(request.token, piece, kernel.now)
    (added,) = kernel.run()
    assert (added.flow.id, added.flow.process.pid) == ("c2", 42)
    kernel.answer(kernel.held.pop())
    assert kinds(kernel.run()) == ["FlowAdded", "PollCompleted"]


def test_a_poll_is_over_when_all_are_announced_though_the_search_goes_on(kernel):
    kernel.start()
    kernel.hold_lookups = True
    kernel.sockets[1] = FakeSocket(1, inode=1, info=traffic())
    kernel.wait(1.0)
    piece = OwnersAnswer(((1, 42),), (ProcessFacts(42, 7, "p", None),), 40)
    kernel.session.lookup_done(kernel.held.pop().token, piece, kernel.now)
    assert kinds(kernel.run()) == ["FlowAdded", "PollCompleted"]


def test_an_answer_is_that_of_its_own_question_and_comes_once(kernel):
    """What has another number, or was answered already, says nothing about what is being asked."""
    kernel.start()
    kernel.hold_lookups = True
    kernel.sockets[1] = FakeSocket(1, inode=1, info=traffic())
    kernel.wait(1.0)
    request = kernel.held.pop()
    odd = OwnersAnswer(((1, 13),), (ProcessFacts(13, 7, "stranger", None),), None)
    kernel.session.lookup_done(request.token + 1000, odd, kernel.now)
    assert kernel.run() == []
    kernel.session.lookup_done(
        request.token, OwnersAnswer(((1, 42),), (ProcessFacts(42, 7, "p", None),), None), kernel.now
    )
    added, _ = kernel.run()
    assert added.flow.process.pid == 42
    kernel.sockets[2] = FakeSocket(2, inode=2, info=traffic(), local_port=2)
    kernel.wait(1.0)
    kernel.session.lookup_done(request.token, odd, kernel.now)
    assert kernel.run() == []


# -- addresses


def test_a_renamed_interface_is_an_update(kernel):
    """Flows show the new name after the next poll, and what the host said of the device stays."""
    kernel.sockets[1] = FakeSocket(1, bytes([192, 0, 2, 2]), remote=PEER, info=traffic())
    kernel.sockets[9] = FakeSocket(9, b"\0" * 4, 80, b"\0" * 4, 0, state=SocketState.LISTEN)
    kernel.start()
    kernel.feed(LinkMessage(2, 1, "lan7").encode(RouteMessage.NEWLINK), 2)
    kernel.sockets[2] = FakeSocket(2, bytes([192, 0, 2, 2]), 2, remote=PEER, info=traffic())
    updated, added, _ = kernel.wait(1.0)
    assert isinstance(updated, FlowUpdated)
    assert (added.flow.id, added.flow.interface.name) == ("c2", "lan7")
    assert (updated.flow.interface.name, updated.flow.interface.kind) == ("lan7", InterfaceKind.WIFI)
    assert updated.delta.rx_bytes == 0
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]


def test_an_address_on_two_interfaces(kernel):
    """The first one has it until it has it no more; then the other one."""
    address = bytes([192, 0, 2, 2])
    kernel.sockets[1] = FakeSocket(1, address, remote=PEER, info=traffic())
    kernel.start()
    kernel.feed(AddressMessage(2, 3, address).encode(RouteMessage.NEWADDR), 2)
    kernel.feed(AddressMessage(2, 3, address).encode(RouteMessage.DELADDR), 2)
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]
    kernel.feed(AddressMessage(2, 3, address).encode(RouteMessage.NEWADDR), 2)
    kernel.feed(AddressMessage(2, 2, address).encode(RouteMessage.DELADDR), 2)
    updated, _ = kernel.wait(1.0)
    assert updated.flow.interface.name == "wg0"


def test_a_new_list_replaces_the_old_one(kernel):
    """After an overrun everything is listed anew: an address whose end was missed is no longer there."""
    kernel.start()
    kernel.addresses.pop()
    kernel.session.channel_failed(2, errno.ENOBUFS, kernel.now)
    kernel.run()
    kernel.sockets[1] = FakeSocket(1, bytes([192, 0, 2, 2]), remote=PEER, info=traffic())
    kernel.sockets[2] = FakeSocket(2, bytes([127, 1, 2, 3]), info=traffic())
    kernel.wait(1.0)
    interfaces = {e.flow.id: e.flow.interface for e in kernel.events if isinstance(e, FlowAdded)}
    assert interfaces["c1"] is None
    assert interfaces["c2"].name == "lo", "a loopback interface has the whole prefix of its address"


def test_an_address_that_goes_takes_no_knowledge_with_it(kernel):
    """The flow used this interface; that nothing is known now is no reason to forget it."""
    kernel.sockets[1] = FakeSocket(1, bytes([192, 0, 2, 2]), remote=PEER, info=traffic())
    kernel.start()
    kernel.feed(AddressMessage(2, 2, bytes([192, 0, 2, 2])).encode(RouteMessage.DELADDR), 2)
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]


def test_a_new_device_is_asked_for_once_and_a_damaged_message_takes_no_other_along(kernel):
    kernel.hold_lookups = True
    kernel.start()
    damaged = b"\x10\0\0\0\x10" + bytes(11)
    kernel.feed(encode_done(0) + damaged + LinkMessage(4, 1, "eth1").encode(RouteMessage.NEWLINK), 2)
    kernel.feed(LinkMessage(3, 65534, "wg1", "wireguard").encode(RouteMessage.NEWLINK), 2)
    (lost,) = kernel.run()
    assert lost.cause is LossCause.PROTOCOL
    asked = [each.request.names for each in kernel.held if isinstance(each.request, LinkKindsRequest)]
    assert asked == [("eth0",), ("eth0", "eth1")]


def test_without_rtnetlink_polls_begin_at_once(kernel):
    kernel.missing_channels = {2}
    assert kinds(kernel.start()) == ["PollCompleted"]


# -- what outweighs what


def test_a_syn_outweighs_a_listener(kernel):
    """A connection made from a port on which somebody listens, too, is outbound; its other end is inbound."""
    kernel.sockets[1] = FakeSocket(1, b"\0" * 4, 80, b"\0" * 4, 0, state=SocketState.LISTEN)
    kernel.sockets[2] = FakeSocket(2, local_port=80, remote_port=90, info=traffic(0, 5, active=1))
    kernel.sockets[3] = FakeSocket(3, local_port=80, remote_port=91, info=traffic(0, 5, active=0))
    kernel.start()
    directions = {e.flow.id: e.flow.direction for e in kernel.events if isinstance(e, FlowAdded)}
    assert directions == {"c1": Direction.LISTENER, "c2": Direction.OUTBOUND, "c3": Direction.INBOUND}


def test_what_may_be_a_byte_on_its_way_outweighs_no_listener(kernel):
    """While something is unacknowledged the numbers may be of two moments; once they are not, they tell."""
    kernel.sockets[1] = FakeSocket(1, b"\0" * 4, 80, b"\0" * 4, 0, state=SocketState.LISTEN)
    moving = {**traffic(0, 5, active=0), 144: 0}
    kernel.sockets[2] = FakeSocket(2, local_port=80, remote_port=90, unacked=1, info=moving)
    kernel.start()
    assert kernel.events[1].flow.direction is Direction.INBOUND
    kernel.sockets[2].unacked, kernel.sockets[2].info = 0, traffic(0, 50, active=1)
    updated, _ = kernel.wait(1.0)
    assert updated.flow.direction is Direction.OUTBOUND


def test_a_row_told_twice_hides_no_absence_where_removals_were_lost(kernel):
    """Counting is quick and may be fooled by a duplicate; a repair is not."""
    for cookie in (1, 2):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, info=traffic())
    kernel.start()
    kernel.close(2, tell=False)
    kernel.remains.append(kernel.sockets[1])
    kernel.lose_removals()
    kernel.wait(0.3)
    assert [e.flow.id for e in removals(kernel.events)] == ["c2"]


def test_a_loss_behind_its_own_row_is_repaired_by_the_next_poll(kernel):
    """A socket that a dump had and whose removal was lost during that dump is found out by the one after it."""
    kernel.sockets[1] = FakeSocket(1, info=traffic())
    kernel.start()

    def lose() -> None:
        kernel.close(1, tell=False)
        kernel.lose_removals()

    kernel.during_dump = lose
    kernel.wait(1.0)
    assert len(list(kernel.session.flows())) == 1
    kernel.wait(0.3)
    assert [e.flow.id for e in removals(kernel.events)] == ["c1"]


def test_silence_is_no_proof_of_absence(connected):
    """Where look-ups are not answered a flow stays for two polls without it; then it is taken for gone."""
    connected.close(1, tell=False)
    connected.silent.add(3)
    for gone in (False, False, True):
        connected.lose_removals()
        connected.wait(1.0)
        connected.wait(1.5)
        assert bool(removals(connected.events)) is gone
    assert connected.events[-1].complete


def test_a_kernel_without_the_dump_of_both_families(kernel):
    """It is asked for each family by itself from then on; nothing is refused."""
    kernel.sockets[1] = FakeSocket(1, info=traffic())
    kernel.sockets[2] = FakeSocket(2, MAPPED, 7, MAPPED, 8, family=10, info=traffic())
    kernel.refused = {(0, 6): errno.EINVAL}
    assert kinds(kernel.start()) == ["FlowAdded", "FlowAdded", "PollCompleted"]
    requests = sum(item[0] == "to" and item[2] == 0 for item in kernel.record)
    kernel.wait(1.0)
    assert sum(item[0] == "to" and item[2] == 0 for item in kernel.record) - requests == 4


# -- the life of every flow

cookies = st.integers(1, 6)
step = st.one_of(
    st.tuples(st.just("open"), cookies, st.sampled_from([6, 17]), st.integers(0, 3)),
    st.tuples(st.just("grow"), cookies, st.integers(1, 1 << 40)),
    st.tuples(st.just("reconnect"), cookies, st.integers(80, 82)),
    st.tuples(st.just("family"), cookies),
    st.tuples(st.just("state"), cookies, st.sampled_from(list(SocketState))),
    st.tuples(st.just("inode"), cookies, st.integers(0, 3)),
    st.tuples(st.just("close"), cookies, st.booleans()),
    st.tuples(st.just("during"), cookies),
    st.tuples(st.just("overrun")),
    st.tuples(st.just("wait"), st.sampled_from([0.1, 0.3, 1.0, 2.5])),
)


class World:
    """Carries out a script on a kernel and watches the life of each flow."""

    def __init__(self) -> None:
        self.kernel = FakeKernel(interval=1.0)
        self.kernel.owners = {1: 41, 2: 42}
        self.used = 0
        self.live: dict[int, int] = {}
        self.kernel.start()

    def socket(self, number: int) -> FakeSocket | None:
        return self.kernel.sockets.get(self.live.get(number, 0))

    def open(self, number: int, protocol: int, inode: int) -> None:
        if self.socket(number) is None:
            self.used += 1
            self.live[number] = self.used
            self.kernel.sockets[self.used] = FakeSocket(
                self.used, local_port=4000 + number, protocol=protocol, inode=inode, info=traffic(1, 1)
            )

    def close(self, number: int, tell: bool) -> None:
        if self.socket(number) is not None:
            self.kernel.close(self.live.pop(number), tell=tell)
            if not tell:
                self.overrun()

    def overrun(self) -> None:
        self.kernel.session.channel_failed(1, errno.ENOBUFS, self.kernel.now)
        self.kernel.session.channel_drained(1, self.kernel.now)

    def during(self, number: int) -> None:
        self.kernel.during_dump = lambda: self.close(number, tell=True)

    def wait(self, seconds: float) -> None:
        self.kernel.wait(seconds)

    def do(self, name: str, *arguments: int) -> None:
        if name in {"open", "close", "overrun", "during", "wait"}:
            getattr(self, name)(*arguments)
        elif (sock := self.socket(arguments[0])) is not None:
            self.change(sock, name, *arguments[1:])

    def change(self, sock: FakeSocket, name: str, value: int = 0) -> None:
        if name == "grow":
            sock.info = traffic(value, value)
        elif name == "reconnect":
            sock.remote_port, sock.info = value, traffic(0, 1)
        elif name == "family":
            sock.family, sock.local, sock.remote = (
                (2, LOOPBACK, LOOPBACK) if sock.family == 10 else (10, MAPPED, MAPPED)
            )
        elif sock.protocol == 6 or name == "inode":
            setattr(sock, name, value)


@settings(deadline=None, max_examples=examples(150), suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(step, max_size=40))
def test_every_flow_lives_once(script):
    """Whatever sockets do: each flow is added once, updated only then, removed once, and none is left of what is gone."""
    world = World()
    for action in script:
        world.do(*action)
        world.kernel.run()
    world.kernel.during_dump = None
    for sock in world.kernel.sockets.values():
        if sock.protocol == 6:
            sock.state = SocketState.ESTABLISHED
    for _ in range(5):
        world.kernel.wait(1.5)
    live, ended = set(), set()
    for event in flow_events(world.kernel.events):
        name = event.flow.id
        assert name not in ended
        if isinstance(event, FlowAdded):
            assert name not in live
            live.add(name)
        else:
            assert name in live
            if isinstance(event, FlowRemoved):
                live.remove(name)
                ended.add(name)
    assert {flow.id.partition(".")[0] for flow, _ in world.kernel.session.flows()} == {
        f"c{cookie:x}" for cookie in world.kernel.sockets
    }
    assert live == {flow.id for flow, _ in world.kernel.session.flows()}
    polls = [e.serial for e in world.kernel.events if isinstance(e, PollCompleted)]
    assert polls == sorted(set(polls))


@pytest.mark.parametrize("during", [False, True])
def test_a_row_that_is_as_it_was_after_its_socket_was_dropped_is_of_another_flow(kernel, during):
    """With the C code and without: a row is known by its socket, not by being where it was; nor has it ended for good."""
    kernel.sockets[1] = sock = FakeSocket(1, info=traffic(5, 1000))
    kernel.start()
    kernel.wait(1.0)
    if during:
        kernel.during_dump = lambda: kernel.close(1)
        kernel.wait(1.0)
    else:
        kernel.close(1)
        kernel.run()
    assert kinds(flow_events(kernel.events)) == ["FlowAdded", "FlowRemoved"]
    kernel.sockets[1] = sock
    assert kinds(flow_events([*kernel.wait(1.0), *kernel.wait(1.0)])) == ["FlowAdded"]

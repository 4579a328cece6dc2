"""Owners of sockets in the book: found, handed over, lost, and why a socket has none."""

from __future__ import annotations

import errno

import pytest
from sockdiag_fakes import FakeKernel, FakeSocket, flow_events, kinds, traffic

from nstat_async._contract import LookupFailed
from nstat_async._events import FlowAdded
from nstat_async._model import Attribution, Visibility
from nstat_async._options import MonitorOptions
from nstat_async.sockdiag import OwnersAnswer, ProcessFacts, Session, SocketState


def searches(kernel: FakeKernel) -> int:
    """Requests that look for an owner; others only check known ones."""
    return sum(bool(request.inodes) for request in kernel.owner_requests)


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


@pytest.mark.parametrize("overrun", [False, True])
def test_a_socket_that_no_dump_has_any_more_is_not_the_kernels(overrun):
    """It was closed behind the first dump, and a busy loop has not read its removal when the second search is over."""
    kernel = FakeKernel(Session(MonitorOptions(interval=1.0), processes=Visibility.ALL))
    for cookie in (1, 2):
        kernel.sockets[cookie] = FakeSocket(cookie, inode=70 + cookie, info=traffic())
    kernel.start()
    del kernel.sockets[2]
    if overrun:
        kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
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

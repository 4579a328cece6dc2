"""The book of evidence: what a socket is, which connection it has, and what outweighs what."""

from __future__ import annotations

import errno
import gc
import weakref

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sockdiag_fakes import LOOPBACK, PEER, FakeKernel, FakeSocket, flow_events, kinds, removals, traffic
from sockdiag_world import MAPPED, World

from examples import examples
from nstat_async._events import EventsLost, FlowAdded, FlowRemoved, LossCause, PollCompleted, RemovalReason
from nstat_async._model import Attribution, Direction, TcpState
from nstat_async.sockdiag import SocketState, TcpInfo

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
    connected.lose_removals()
    connected.wait(0.2)
    for gone in (False, False, True):
        connected.wait(1.0)  # the look-up is given up, and the next poll begins
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
    assert world.kernel.session.settled(world.kernel.now)
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

"""Endings: what final counts are proven, and how a connection ended; on the living kernel, too."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import socket
import subprocess
import sys
import time

import attrs
import pytest
from endings_world import RESET, Namespace, live, make, one_namespace, truth_at, two_namespaces
from sockdiag_fakes import LOOPBACK, FakeKernel, FakeSocket, LiveDriver, flow_events

from nstat_async._events import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, LossCause
from nstat_async._model import Direction, Outcome
from nstat_async._options import MonitorOptions
from nstat_async.sockdiag import SocketState, TcpInfo, iterate_messages
from nstat_async.sockdiag._endings import MEMORY, PEER_PATIENCE
from nstat_async.sockdiag._sightings import PULSE_PATIENCE
from nstat_async.sockdiag._waiting import MOST_BEHIND

living = pytest.mark.skipif(
    not sys.platform.startswith("linux") or (hasattr(os, "geteuid") and os.geteuid() != 0),
    reason="network namespaces need Linux and root",
)


def drive(namespace: Namespace, ebpf: str = "off") -> LiveDriver:
    from nstat_async.backends import SockDiag

    return LiveDriver(*SockDiag(namespace.path).parts(MonitorOptions(interval=None, ebpf=ebpf, providers="tcp")))


# -- final counts against the truth


def play(chosen, number, world):
    """Play so many connections in a world beside a session: for each watched end its truth and its events."""
    with world() as (here, there, address):
        listener = there.run(socket.create_server, (address, 0))
        there_port = listener.getsockname()[1]
        with drive(here) as driver:
            driver.poll()
            connections = []
            for place in range(number):
                to = (address, there_port, address if here is there else "0.0.0.0", 20_000 + place)
                connections.append(make(chosen, here, listener, to))
                live(chosen, connections[-1], driver.poll)
                while chosen.random() < 0.9 and driver.turn():  # now and then the loop is held meanwhile
                    pass
            watched = [
                (connection, name, end, truth)
                for connection in connections
                for name, end, truth in truth_at(connection)
                if here is there or name == "client"
            ]

            def events_of(connection, name):
                pair = (connection.client.port, there_port)
                here_port, peer = pair if name == "client" else pair[::-1]
                return [
                    event
                    for event in driver.events
                    if isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved))
                    and event.flow.local.port == here_port
                    and event.flow.remote is not None
                    and event.flow.remote.port == peer
                ]

            open_ends = [(c, name) for c, name, end, _ in watched if not end.aborted]

            def all_ended():
                ended = {
                    (event.flow.local.port, event.flow.remote.port)
                    for event in driver.events
                    if isinstance(event, FlowRemoved) and event.flow.remote is not None
                }
                pairs = [(c.client.port, there_port)[:: 1 if name == "client" else -1] for c, name in open_ends]
                return all(pair in ended for pair in pairs)

            driver.until(all_ended)
            listener.close()
            return [(*each, events_of(*each[:2])) for each in watched]


@living
@pytest.mark.privileged
@pytest.mark.parametrize(("world", "number"), [(one_namespace, 150), (two_namespaces, 100)], ids=["local", "remote"])
def test_final_counts_are_the_truth_or_say_by_how_much_they_may_be_off(world, number):
    """Random connections that end in random ways: `final` is exact, uncertain counts are off by one byte at most, none is
    below what was reported; where both ends are here, whatever ends after the other end, or soon before it, is proven."""
    seed = random.randrange(1 << 32)
    played = play(random.Random(seed), number, world)
    ended = {(id(c), name): event.time for c, name, _, _, events in played for event in events[-1:]}
    proven = 0
    for connection, name, end, truth, events in played:
        story = (seed, name, connection.steps, events)
        removals = [event for event in events if isinstance(event, FlowRemoved)]
        if end.aborted:
            continue
        assert len(removals) == 1, story
        gone = removals[0]
        off = gone.counts.rx_bytes - truth
        assert gone.uncertainty == (None if gone.final else 1), story
        assert abs(off) <= (0 if gone.final else 1), story
        reported = [event.counts.rx_bytes for event in events]
        assert reported == sorted(reported), story
        proven += gone.final
        if world is one_namespace and not (connection.client.aborted or connection.server.aborted):
            other = ended[id(connection), "server" if name == "client" else "client"]
            assert gone.final or not 0 <= gone.time - other < 1, story
    assert proven > len(played) / 4


def two_ends(sent=100):
    """Both ends of a connection of this machine, which its client closed first; the server got so many bytes."""
    server = FakeSocket(
        7,
        local_port=80,
        remote=b"\x7f\0\0\2",
        remote_port=40000,
        info={TcpInfo.BYTES_RECEIVED: sent + 1, TcpInfo.BYTES_ACKED: 1, TcpInfo.DATA_SEGS_IN: 1, TcpInfo.SEGS_IN: 4},
    )
    client = FakeSocket(
        8,
        local=b"\x7f\0\0\2",
        remote=LOOPBACK,
        info={TcpInfo.BYTES_SENT: sent, TcpInfo.BYTES_ACKED: sent + 2, TcpInfo.BYTES_RECEIVED: 1, TcpInfo.SEGS_IN: 3},
    )
    return server, client


def test_while_notifications_wait_to_be_read_no_end_is_given_up():
    """A loop that was held for seconds has the other end's last words, and reads them late: both counts are exact."""
    kernel = FakeKernel(interval=None)
    kernel.start()
    server, client = two_ends()
    kernel.feed(server.message(final=True), 1)
    kernel.run()
    kernel.now += 2.0
    kernel.session.handle_deadline(kernel.now)  # the channel was not read to its end since
    kernel.run()
    assert not [event for event in kernel.events if isinstance(event, FlowRemoved)]
    kernel.feed(client.message(final=True), 1)
    kernel.run()
    removed = [event for event in kernel.events if isinstance(event, FlowRemoved)]
    counts = {(event.flow.local.port, event.counts.rx_bytes, event.counts.tx_bytes) for event in removed}
    assert counts == {(80, 100, 0), (40000, 0, 100)}
    assert all(event.final for event in removed)


@pytest.mark.parametrize("late", [True, False])
def test_a_connection_that_has_the_same_ends_now_proves_nothing_of_the_one_before(late):
    """Ends in TIME_WAIT are used again after a second: who reads a notification later than that finds another connection.

    Its client sent 100 bytes and no FIN, or more than the server of the one before ever got.
    """
    kernel = FakeKernel(interval=None)
    kernel.start()
    kernel.session.channel_drained(1, kernel.now)
    server, client = two_ends()
    another = attrs.evolve(client, cookie=9, info={TcpInfo.BYTES_SENT: 5000 if late else 100, TcpInfo.SEGS_IN: 2})
    kernel.sockets[9] = another
    kernel.now += 3.0 if late else 0.0
    kernel.feed(server.message(final=True), 1)
    kernel.run()
    assert not [event for event in kernel.events if isinstance(event, FlowRemoved)]
    kernel.feed(client.message(final=True), 1)
    kernel.run()
    ended = [event for event in kernel.events if isinstance(event, FlowRemoved) and event.flow.local.port == 80]
    assert [(event.counts.rx_bytes, event.final) for event in ended] == [(100, True)]


def test_an_end_whose_other_end_never_comes_is_reported_in_any_case():
    """Once the channel is empty, and after some seconds also where it never is."""
    for read in (True, False):
        kernel = FakeKernel(interval=None)
        kernel.start()
        kernel.feed(two_ends()[0].message(final=True), 1)
        kernel.run()
        kernel.now += 0.3 if read else 0.3 + MOST_BEHIND
        if read:
            kernel.session.channel_drained(1, kernel.now)
        kernel.session.handle_deadline(kernel.now)
        kernel.run()
        (removed,) = [event for event in kernel.events if isinstance(event, FlowRemoved)]
        assert (removed.final, removed.uncertainty) == (False, 1)


def last_words(port=20_000, *, unread=0, unacked=0, sent=10, extra=2, quiet=0, received=778, **info):
    """The end of a connection with another machine: 10 bytes sent with a SYN and a FIN, 777 and perhaps a FIN received."""
    fields = {
        TcpInfo.BYTES_SENT: sent,
        TcpInfo.BYTES_ACKED: sent + extra - unacked,
        TcpInfo.DATA_SEGS_OUT: 1,
        TcpInfo.BYTES_RECEIVED: received,
        TcpInfo.DATA_SEGS_IN: 1,
        TcpInfo.SEGS_IN: 4,
        TcpInfo.LAST_ACK_RECV: quiet,
        **{TcpInfo[name]: value for name, value in info.items()},
    }
    return FakeSocket(port, local_port=port, unread=unread, unacked=unacked, info=fields)


def time_wait(of, age):
    """What is left of a socket that was closed first, for so many milliseconds."""
    return attrs.evolve(of, state=SocketState.TIME_WAIT, timer=3, expires=60_000 - age, info={})


def end_of(sock, *remains):
    kernel = FakeKernel(interval=None)
    kernel.start()
    kernel.remains.extend(remains)
    kernel.feed(sock.message(final=True), 1)
    kernel.session.channel_drained(1, kernel.now)
    kernel.run()
    (removed,) = [event for event in kernel.events if isinstance(event, FlowRemoved)]
    return removed.counts.rx_bytes, removed.final, removed.uncertainty, removed.outcome


HERE, THERE = Outcome.CLOSED_HERE, Outcome.CLOSED_THERE


@pytest.mark.parametrize(
    ("sock", "age", "expected"),
    [
        (last_words(), 1, (777, False, 1, HERE)),  # half-closed for a millisecond
        (last_words(quiet=300), 301, (777, False, 1, HERE)),
        (last_words(received=777, quiet=300), 100, (777, False, 1, HERE)),  # its FIN came behind the last segment
        (last_words(unread=1), 100, (777, True, None, HERE)),
        (last_words(), None, (777, False, 1, THERE)),
        (last_words(received=777, quiet=300), None, (777, False, 1, None)),  # reset, or shut down and held
        (last_words(received=0, DATA_SEGS_IN=0, quiet=300), None, (0, True, None, Outcome.RESET)),
        (last_words(received=0, DATA_SEGS_IN=0), None, (0, True, None, Outcome.RESET)),
        (last_words(received=777, unread=5), None, (777, False, 1, Outcome.RESET)),
        (
            last_words(received=777, unacked=1, quiet=300),
            None,
            (777, False, 1, Outcome.RESET_THERE),
        ),  # no answer to its FIN
        (last_words(received=777, unacked=1), None, (777, False, 1, Outcome.RESET)),  # that, or data for nobody
        (last_words(received=0, DATA_SEGS_IN=0, unacked=1), None, (0, True, None, Outcome.RESET_THERE)),
        (last_words(received=778, unacked=1, unread=1), None, (777, False, 1, Outcome.RESET)),
        (last_words(extra=1, DELIVERED=2, received=777), None, (777, False, 1, Outcome.RESET_THERE)),  # a SYN, no FIN
        (last_words(extra=1, DELIVERED=3), None, (777, False, 1, THERE)),  # a FIN, beside what was accepted
        (last_words(extra=1, DELIVERED=9), None, (778, False, 1, None)),
        (last_words(extra=1, DELIVERED=3, TOTAL_RETRANS=1), None, (778, False, 1, None)),
        (last_words(extra=1, DELIVERED=9), 1, (777, False, 1, HERE)),
    ],
)
def test_what_no_dump_had_ended_as_likely_as_its_last_words_say(sock, age, expected):
    """Received bytes, whether they are final or by how much they may be off, and the outcome; `None` where nothing is likelier."""
    assert end_of(sock, *([] if age is None else [time_wait(sock, age)])) == expected


def test_an_end_that_waited_for_a_pulse_is_as_old_as_its_last_words():
    """What is left of it has aged meanwhile: it does not tell of a FIN that came behind the last segment."""
    kernel = FakeKernel(interval=1.0)
    kernel.has_pulse = True
    kernel.start()
    kernel.beat()
    sock = last_words()
    kernel.feed(sock.message(final=True), 1)
    assert not flow_events(kernel.run())
    kernel.remains.append(time_wait(sock, 1 + int(1000 * PULSE_PATIENCE)))
    _, removed = flow_events(kernel.wait(PULSE_PATIENCE))
    assert (removed.counts.rx_bytes, removed.uncertainty, removed.outcome) == (777, 1, HERE)


@pytest.mark.parametrize("pauses", [(0.03, 0.03), (1.0,)], ids=["in time", "held"])
def test_an_end_is_waited_for_whose_last_words_are_here_and_wait_for_a_pulse(pauses):
    """Though the patience with it is over meanwhile: both are exact, also where the loop is held."""
    kernel = FakeKernel(interval=1.0)
    kernel.has_pulse = True
    kernel.start()
    kernel.beat()
    server, client = two_ends()
    kernel.feed(server.message(final=True), 1)
    assert not flow_events(kernel.wait(PULSE_PATIENCE))
    assert not flow_events(kernel.wait(PEER_PATIENCE - 0.01))
    kernel.feed(client.message(final=True), 1)
    for pause in pauses:
        kernel.wait(pause)
    removed = [event for event in kernel.events if isinstance(event, FlowRemoved)]
    assert sorted((event.flow.local.port, event.counts.rx_bytes, event.final) for event in removed) == [
        (80, 100, True),
        (40000, 0, True),
    ]


@pytest.mark.parametrize("quiet", [300, 0])
def test_what_was_seen_closed_here_and_left_nothing_was_reset(quiet):
    """An end in order would have left something; by whom is not known: what is left answers what still comes so, too."""
    kernel = FakeKernel(interval=None)
    kernel.sockets[20_000] = last_words(received=500)
    kernel.sockets[20_000].state = SocketState.FIN_WAIT2
    kernel.start()
    kernel.sockets[20_000].info = last_words(received=777, DATA_SEGS_IN=2, quiet=quiet).info
    kernel.close(20_000)
    kernel.run()
    removed = kernel.events[-1]
    assert (removed.counts.rx_bytes, removed.uncertainty, removed.outcome) == (777, 1, Outcome.RESET)


# -- both ends are on this machine


class Ends(FakeKernel):
    """A connection of this machine, of which the client closed first; `known`: a dump had both of its ends."""

    def __init__(self, *, known: bool = False, **server_info: int) -> None:
        super().__init__(interval=None)
        self.server, self.client = two_ends()
        self.server.info[TcpInfo.DELIVERED] = 2  # the answer to a SYN, and a FIN
        for sock in (self.server, self.client) if known else ():
            fins = dict.fromkeys((TcpInfo.BYTES_RECEIVED, TcpInfo.BYTES_ACKED), 1)
            before = {name: value - fins.get(name, 0) for name, value in sock.info.items()}
            self.sockets[sock.cookie] = attrs.evolve(sock, info=before)
        self.start()
        self.sockets.clear()
        self.server.info.update({TcpInfo[name]: value for name, value in server_info.items()})

    def removed(self, *socks: FakeSocket) -> dict[int, tuple[int, bool, Outcome | None]]:
        """These sockets are destroyed, and all of that is read at once; by local port: received, final, outcome."""
        begin = len(self.events)
        for sock in socks:
            self.feed(sock.message(final=True), 1)
        self.session.channel_drained(1, self.now)
        self.run()
        return self.since(begin)

    def since(self, begin: int) -> dict[int, tuple[int, bool, Outcome | None]]:
        ended = [event for event in self.events[begin:] if isinstance(event, FlowRemoved)]
        assert len({event.flow.id for event in ended}) == len(ended)
        return {
            event.flow.local.port: (event.counts and event.counts.rx_bytes, event.final, event.flow.outcome)
            for event in ended
        }

    @property
    def questions(self) -> int:
        return sum(
            len(list(iterate_messages(data))) for what, _, channel, data in self.record if (what, channel) == ("to", 3)
        )


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("known", [True, False])
def test_who_closed_first_left_something_of_its_end_and_one_question_tells(order, first, known):
    """Of an end that no dump had it has a cookie of its own, else the end's."""
    ends = Ends(known=known)
    closer = getattr(ends, first)
    ends.remains.append(attrs.evolve(time_wait(closer, 1), cookie=closer.cookie if known else 99))
    server, client = (THERE, HERE) if first == "client" else (HERE, THERE)
    before = ends.questions
    assert ends.removed(*(ends.server, ends.client)[::order]) == {80: (100, True, server), 40000: (0, True, client)}
    assert ends.questions == before + 1
    ended = [event for event in ends.events if isinstance(event, FlowRemoved)]
    assert {event.flow.local.port: event.flow.direction for event in ended} == {
        80: Direction.INBOUND,
        40000: Direction.OUTBOUND,
    }
    added = {event.flow.id: event.counts for event in ends.events if isinstance(event, FlowAdded)}
    assert known or added == {event.flow.id: event.counts for event in ended}


def test_what_another_connection_left_under_the_same_ends_says_nothing():
    ends = Ends(known=True)
    ends.remains.append(attrs.evolve(time_wait(ends.server, 1), cookie=99))
    assert ends.removed(ends.server, ends.client) == {80: (100, True, THERE), 40000: (0, True, HERE)}


def test_two_ends_of_which_nobody_knows_what_is_left_end_as_well():
    ends = Ends()
    ends.silent.add(3)
    assert ends.removed(ends.server, ends.client) == {}
    begin = len(ends.events)
    ends.wait(1.0)
    assert {port: count[:2] for port, count in ends.since(begin).items()} == {80: (100, True), 40000: (0, True)}


def test_of_two_ends_of_which_one_got_no_fin_each_is_asked_for():
    ends = Ends()
    ends.client.info[TcpInfo.BYTES_RECEIVED] = 0
    ended = ends.removed(ends.server, ends.client)
    assert {port: count[:2] for port, count in ended.items()} == {80: (100, True), 40000: (0, True)}
    assert ends.questions == 2


@pytest.mark.parametrize(("later", "expected"), [(0.0, True), (MEMORY, True), (MEMORY + 0.1, False)])
def test_an_end_that_was_reported_is_remembered_for_the_other_one_for_a_while(later, expected):
    ends = Ends()
    assert list(ends.removed(ends.client)) == [40000]
    ends.now += later
    ends.session.channel_drained(1, ends.now)
    ended = ends.removed(ends.server)
    assert ended == ({80: (100, True, THERE)} if expected else {})


@pytest.mark.parametrize(
    ("state", "sent", "received"),
    [
        (SocketState.FIN_WAIT2, 100, 100),
        (SocketState.FIN_WAIT2, 101, 101),  # all of this is payload, and its FIN is still to come
        (SocketState.ESTABLISHED, 101, 101),
        (SocketState.ESTABLISHED, 100, None),  # no FIN was sent: it cannot be the other end
        (SocketState.CLOSE_WAIT, 100, None),
        (SocketState.FIN_WAIT2, 99, None),  # nor can who sent less
    ],
)
def test_the_other_end_may_live_on_and_says_what_it_sent(state, sent, received):
    """By its counts, which are asked for; whoever cannot be it says nothing, and the end waits."""
    ends = Ends()
    ends.sockets[8] = attrs.evolve(ends.client, state=state, info={**ends.client.info, TcpInfo.BYTES_SENT: sent})
    begin = len(ends.events)
    ended = ends.removed(ends.server)
    assert {port: count[:2] for port, count in ended.items()} == ({} if received is None else {80: (received, True)})
    ends.wait(0.3)
    assert list(ends.since(begin)) == [80]


ANSWERED = {TcpInfo.BYTES_RECEIVED: 51, TcpInfo.DATA_SEGS_IN: 1}
"""Of a client that got 50 bytes and a FIN."""


@pytest.mark.parametrize("by", ["living", "patience"])
def test_an_end_that_waited_is_remembered_for_the_other_one(by):
    """Whether that was seen alive or not: its own end is settled at once."""
    ends = Ends(BYTES_SENT=50, BYTES_ACKED=51)
    ends.client.info.update(ANSWERED)
    if by == "living":
        ends.sockets[8] = attrs.evolve(ends.client, state=SocketState.FIN_WAIT2)
    assert bool(ends.removed(ends.server)) is (by == "living")
    ends.sockets.clear()
    ends.wait(0.3)
    assert {port: count[:2] for port, count in ends.removed(ends.client).items()} == {40000: (50, True)}


@pytest.mark.parametrize(
    ("state", "outcome"), [(SocketState.LAST_ACK, THERE), (SocketState.FIN_WAIT2, Outcome.RESET_THERE)]
)
def test_the_other_end_that_lives_on_says_whether_this_one_closed_in_order(state, outcome):
    """Where the end itself does not tell a FIN from a SYN."""
    ends = Ends(DELIVERED=9)
    ends.sockets[8] = attrs.evolve(ends.client, state=state)
    assert ends.removed(ends.server) == {80: (100, True, outcome)}


@pytest.mark.parametrize(("received", "closed"), [(1, True), (0, False)])
def test_the_other_end_that_ended_says_whether_this_one_closed_in_order(received, closed):
    """It got its FIN, or not."""
    ends = Ends(DELIVERED=9)
    ends.client.info[TcpInfo.BYTES_RECEIVED] = received
    ends.removed(ends.server)
    ended = [event.flow for event in ends.events if isinstance(event, FlowRemoved)]
    begin = len(ends.events)
    ends.removed(ends.client)
    received_bytes, final, outcome = ends.since(begin)[80]
    assert ended == []
    assert (received_bytes, final, outcome in {HERE, THERE}) == (100, True, closed)


@pytest.mark.parametrize(("unread", "outcome"), [(2, Outcome.RESET), (1, Outcome.RESET_HERE)])
def test_of_two_ends_with_something_unread_either_may_have_reset_the_other(unread, outcome):
    ends = Ends(DELIVERED=1)
    ends.server.unread, ends.client.unread = 5, unread
    ends.removed(ends.server)
    begin = len(ends.events)
    ends.removed(ends.client)
    assert ends.since(begin)[80] == (100, True, outcome)


@pytest.mark.parametrize(
    ("unread", "orderly", "waits"), [(0, False, False), (1, False, True), (5, False, True), (5, True, False)]
)
def test_an_end_that_left_something_unread_waits_for_who_may_have_reset_it(unread, orderly, waits):
    """Though its own count is proven by a dump; it stays so, whatever comes."""
    for comes in (True, False):
        ends = Ends()
        info = {**ends.server.info, TcpInfo.BYTES_ACKED: 0}
        ends.sockets[7] = attrs.evolve(ends.server, state=SocketState.CLOSE_WAIT, info=info)
        ends.poll()
        ends.sockets.clear()
        begin = len(ends.events)
        final = attrs.evolve(ends.server, unread=unread, info={**info, TcpInfo.BYTES_ACKED: int(orderly)})
        assert bool(ends.removed(final)) is not waits
        if comes:
            ends.removed(aborted(ends))
        ends.wait(0.3)
        received, proven, outcome = ends.since(begin)[80]
        assert (received, proven) == (100, True)
        if waits:
            assert outcome is (Outcome.RESET_HERE if unread > 1 and not comes else Outcome.RESET_THERE)


@pytest.mark.parametrize("delivered", [9, 2])
def test_an_end_that_nobody_settles_has_no_fin_and_was_reset(delivered):
    """Even if it was likely before the other end was waited for."""
    ends = Ends(DELIVERED=delivered)
    assert ends.removed(ends.server) == {}
    ends.wait(0.3)
    assert ends.since(0) == {80: (101, False, Outcome.RESET_THERE)}


def test_what_was_reset_left_nothing_to_ask_for():
    """Nor is anything open where a dump saw the FIN."""
    for state in (SocketState.ESTABLISHED, SocketState.CLOSE_WAIT):
        kernel = FakeKernel(interval=None)
        kernel.sockets[20_000] = attrs.evolve(last_words(received=500), state=state)
        kernel.start()
        kernel.sockets[20_000] = last_words(received=777, unacked=state == SocketState.ESTABLISHED, DATA_SEGS_IN=2)
        kernel.close(20_000)
        kernel.run()
        assert isinstance(kernel.events[-1], FlowRemoved)
        assert not [item for item in kernel.record if item[0] == "to" and item[2] == 3]


def test_remains_of_what_no_dump_had_have_a_cookie_of_their_own():
    sock = last_words(unread=1)
    assert end_of(sock, attrs.evolve(time_wait(sock, 100), cookie=99)) == (777, True, None, HERE)


def test_remains_that_are_found_before_anything_was_read_prove_nothing():
    """They may be another connection's."""
    kernel = FakeKernel(interval=None)
    kernel.start()
    sock = last_words(unread=1)
    kernel.remains.append(time_wait(sock, 100))
    kernel.feed(sock.message(final=True), 1)
    kernel.run()
    assert (kernel.events[-1].final, kernel.events[-1].uncertainty) == (False, 1)


def aborted(ends: Ends) -> FakeSocket:
    """The client with what the kernel leaves of its counters after ``SO_LINGER`` with time 0."""
    return attrs.evolve(ends.client, remote_port=0, unacked=65_000, info={})


@pytest.mark.parametrize("order", ["before", "after", "together"])
@pytest.mark.parametrize("known", [True, False])
def test_who_aborts_resets_the_other_end(order, known):
    """No FIN is among what that received; of an end that no dump had nothing but its port is left."""
    ends = Ends(known=known, BYTES_RECEIVED=100, DELIVERED=1)
    ends.server.unread = 5
    begin = len(ends.events)
    socks = [aborted(ends), ends.server] if order == "before" else [ends.server, aborted(ends)]
    for batch in [socks] if order == "together" else [[sock] for sock in socks]:
        ends.removed(*batch)
    if not known:
        assert 80 not in ends.since(begin)
        ends.wait(0.3)
    assert ends.since(begin)[80] == (100, False, Outcome.RESET_THERE)


@pytest.mark.parametrize(("late", "expected"), [(0.9, True), (1.0, False), (3.0, False)])
def test_what_is_left_may_be_of_another_connection_where_notifications_are_read_late(late, expected):
    """Ends in TIME_WAIT are used again after a second; of what a dump had the cookie is known."""
    for known in (False, True):
        kernel = FakeKernel(interval=None)
        sock = last_words(unread=1)
        if known:
            kernel.sockets[sock.cookie] = last_words(unread=1, received=500, DATA_SEGS_IN=2)
        kernel.start()
        kernel.sockets.clear()
        kernel.session.channel_drained(1, kernel.now)
        kernel.now += late
        kernel.remains.append(time_wait(sock, 100))
        kernel.feed(sock.message(final=True), 1)
        kernel.run()
        assert kernel.events[-1].final is (known or expected)


@pytest.mark.parametrize(("age", "counted"), [(480, 1), (479, 0), (520, 1), (521, 0)])
def test_remains_as_old_as_the_last_segment_are_likely_its_fins_whenever_they_are_found(age, counted):
    """The answer comes half a second later."""
    kernel = FakeKernel(interval=None)
    kernel.start()
    sock = last_words()
    kernel.remains.append(time_wait(sock, age))
    kernel.silent.add(3)
    kernel.session.channel_drained(1, kernel.now)
    kernel.feed(sock.message(final=True), 1)
    kernel.run()
    kernel.now += 0.5
    kernel._lookups(kernel.record[-1][3], 3)
    kernel.run()
    assert (kernel.events[-1].counts.rx_bytes, kernel.events[-1].uncertainty) == (778 - counted, 1)


# -- how a connection ended

WAYS = {
    "client closes": (Outcome.CLOSED_HERE, Outcome.CLOSED_THERE),
    "server closes": (Outcome.CLOSED_THERE, Outcome.CLOSED_HERE),
    "half-closed by the client": (Outcome.CLOSED_HERE, Outcome.CLOSED_THERE),
    "client leaves something unread": (Outcome.RESET_HERE, Outcome.RESET_THERE),
    "server leaves something unread": (Outcome.RESET_THERE, Outcome.RESET_HERE),
    "client aborts": (Outcome.RESET_HERE, Outcome.RESET_THERE),
    "server aborts": (Outcome.RESET_THERE, Outcome.RESET_HERE),
    "client aborts beside unread data": (Outcome.RESET_HERE, Outcome.RESET_THERE),
    "server aborts what the client half-closed": (Outcome.RESET_THERE, Outcome.RESET_HERE),
}
ABORTED = {way: 0 if way.startswith("client") else 1 for way in WAYS if "aborts" in way}
"""Which end the kernel clears: no removal tells of it, if no dump had it."""


def end_connection(way, client, server):
    client.sendall(b"question")
    server.recv(100)
    server.sendall(b"answer")
    if way != "client leaves something unread":
        client.recv(100)
    mine, other = (client, server) if way.startswith("client") else (server, client)
    if way == "half-closed by the client":
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.close()
        assert client.recv(1) == b""
        client.close()
    elif way.endswith("closes"):
        mine.close()
        assert other.recv(1) == b""
        other.close()
    elif "aborts" in way:
        if way.endswith("half-closed"):
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
        if way.endswith("unread data"):
            mine.sendall(b"more")
            time.sleep(0.001)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        mine.close()
        select.select([other], [], [], 10)
        other.close()
    else:
        if mine is server:
            client.sendall(b"more")
        mine.close()
        select.select([other], [], [], 10)
        other.close()


@living
@pytest.mark.privileged
@pytest.mark.parametrize(
    ("polled", "ebpf"), [(True, "off"), (False, "off"), (False, "auto")], ids=["polled", "between polls", "eBPF"]
)
def test_how_a_connection_ended(polled, ebpf):
    """Who closed, who reset: each end of each says so, as far as its last words are not cleared without anyone having seen it."""
    with one_namespace() as (here, _, address):
        listener = here.run(socket.create_server, (address, 0))
        there_port = listener.getsockname()[1]
        with drive(here, ebpf=ebpf) as driver:
            driver.poll()
            if ebpf == "auto" and driver.core.capabilities.ebpf == "none":
                pytest.skip("no eBPF here")
            ports = {}
            for way in WAYS:
                client = here.run(socket.create_connection, listener.getsockname())
                server, _ = listener.accept()
                ports[way] = client.getsockname()[1]
                if polled:
                    driver.poll()
                end_connection(way, client, server)
            for way, (there, back) in WAYS.items():
                if polled or ebpf == "auto" or ABORTED.get(way) != 0:
                    (gone,) = driver.until(lambda p=ports[way]: driver.removed(p, there_port))
                    assert (way, gone.outcome) == (way, there)
                if polled or ebpf == "auto" or ABORTED.get(way) != 1:
                    (gone,) = driver.until(lambda p=ports[way]: driver.removed(there_port, p))
                    assert (way, gone.outcome) == (way, back)
        listener.close()


@living
@pytest.mark.privileged
def test_how_an_attempt_failed():
    """Refused and given up in vain, by calls that wait and calls that don't; and one whose program lost patience."""
    with one_namespace() as (here, _, address), drive(here) as driver:
        here.ip("link add dark type veth peer name hole", "addr add 10.99.0.1/24 dev dark")
        here.ip("link set dark up", "link set hole up")
        here.ip("neigh add 10.99.0.9 lladdr 02:00:00:00:00:09 dev dark")
        driver.poll()
        socks = {name: here.run(socket.socket) for name in ("refused", "refused later", "silent", "impatient")}
        for place, sock in enumerate(socks.values()):
            sock.bind(("0.0.0.0", 21_000 + place))
        with pytest.raises(ConnectionRefusedError):
            socks["refused"].connect((address, 9))
        socks["refused"].close()
        driver.until(lambda: driver.removed(21_000))
        socks["refused later"].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            socks["refused later"].connect((address, 9))
        for name in ("silent", "impatient"):
            socks[name].setblocking(False)
            with contextlib.suppress(BlockingIOError):
                socks[name].connect(("10.99.0.9", 9))
        socks["impatient"].close()
        repeated = lambda: socks["silent"].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[100]  # noqa: E731
        driver.until(repeated)
        for sock in socks.values():
            sock.close()
        expected = [Outcome.REFUSED, Outcome.REFUSED, Outcome.TIMED_OUT, Outcome.FAILED]
        for place, outcome in enumerate(expected):
            (gone,) = driver.until(lambda p=21_000 + place: driver.removed(p))
            assert (place, gone.outcome, gone.final) == (place, outcome, True)


@living
@pytest.mark.privileged
def test_a_listener_has_nothing_to_lose():
    """A socket that was dissolved, bound and made to listen ends as a listener: exactly, and without a loss of its own."""
    with one_namespace() as (here, _, address), drive(here) as driver:
        first = here.run(socket.create_server, (address, 0))
        sock = here.run(socket.create_connection, first.getsockname())
        served, _ = first.accept()
        sock.send(b"x" * 100)
        driver.poll()
        assert ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16) == 0  # AF_UNSPEC
        driver.poll()
        sock.bind((address, 0))
        sock.listen()
        port = sock.getsockname()[1]
        driver.poll()
        lost = [event for event in driver.events if isinstance(event, EventsLost)]
        sock.close()
        (gone,) = driver.until(lambda: [e for e in driver.removed(port) if e.flow.remote is None])
        assert (gone.final, gone.uncertainty, gone.outcome) == (True, None, None)
        assert [event for event in driver.events if isinstance(event, EventsLost)] == lost
        for each in (served, first):
            each.close()


@living
@pytest.mark.privileged
def test_multipath_subflows_are_named_as_what_they_are():
    """The kernel clears a subflow's counters at its end: the loss says that, not that the program aborted it."""
    with one_namespace() as (here, _, address), drive(here) as driver:
        try:
            listener = here.run(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262)
        except OSError:
            pytest.skip("this kernel has no Multipath TCP")
        listener.bind((address, 0))
        listener.listen()
        driver.poll()
        client = here.run(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        client.sendall(bytes(5000))
        driver.poll()
        for sock in (client, server, listener):
            sock.close()
        ended = []
        while len(ended) < 2:
            driver.until(lambda: driver.turn() or True)
            ended = [e for e in driver.events if isinstance(e, FlowRemoved) and e.flow.remote]
        assert Outcome.RESET_HERE not in {event.outcome for event in ended}
        details = [e.detail for e in driver.events if isinstance(e, EventsLost) and e.cause is LossCause.FINAL_COUNTS]
        assert all("Multipath TCP" in detail for detail in details)
        for event in driver.events:
            if isinstance(event, FlowRemoved) and event.flow.remote is not None:
                assert event.flow.remote.port


@living
@pytest.mark.privileged
@pytest.mark.parametrize("ebpf", ["off", "auto"])
def test_a_subflow_that_a_thread_of_the_kernel_opens_is_its_holders(ebpf):
    """It is the worker of the path manager that connects, for whoever has the Multipath TCP socket."""
    with one_namespace() as (here, _, address), drive(here, ebpf=ebpf) as driver:
        try:
            here.ip("mptcp limits set subflow 2 add_addr_accepted 2", "mptcp endpoint add 127.0.0.2 dev lo subflow")
        except subprocess.CalledProcessError:
            pytest.skip("this kernel has no Multipath TCP")
        driver.poll()
        listener = here.run(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262)
        listener.bind((address, 0))
        listener.listen()
        client = here.run(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        client.sendall(bytes(5000))
        server.recv(5000)

        def owners():
            driver.poll()
            flows = {flow.id: flow for flow, _ in driver.core.flows() if flow.remote is not None}
            subflows = [flow for flow in flows.values() if "127.0.0.2" in f"{flow.local}{flow.remote}"]
            return len(subflows) == 2 and {flow.process and flow.process.pid for flow in flows.values()} == {
                os.getpid()
            }

        driver.until(owners)
        added = [e for e in driver.events if isinstance(e, (FlowAdded, FlowUpdated)) and e.flow.process is not None]
        assert {event.flow.process.pid for event in added} == {os.getpid()}
        for sock in (client, server, listener):
            sock.close()

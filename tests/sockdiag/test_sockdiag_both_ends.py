"""Connections of which this machine has both ends: each says how the other one ended."""

from __future__ import annotations

import errno

import attrs
import pytest
from endings_fakes import HERE, THERE, last_words, time_wait, two_ends
from sockdiag_fakes import FakeKernel, FakeSocket

from nstat_async._events import FlowAdded, FlowRemoved
from nstat_async._model import Direction, Outcome
from nstat_async.sockdiag import SocketState, TcpInfo, _endings, iterate_messages
from nstat_async.sockdiag._endings import FORGETFUL, MEMORY, REUSED_AFTER


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
def test_who_closed_first_left_something_of_its_end_and_a_question_tells(order, first, known):
    """Of an end that no dump had it has a cookie of its own, else the end's.

    The other end is asked for only if the first one, which mostly closed first, left nothing.
    """
    ends = Ends(known=known)
    closer = getattr(ends, first)
    ends.remains.append(attrs.evolve(time_wait(closer, 1), cookie=closer.cookie if known else 99))
    server, client = (THERE, HERE) if first == "client" else (HERE, THERE)
    before = ends.questions
    assert ends.removed(*(ends.server, ends.client)[::order]) == {80: (100, True, server), 40000: (0, True, client)}
    assert ends.questions == before + 1 + ((first == "client") is (order == 1))
    ended = [event for event in ends.events if isinstance(event, FlowRemoved)]
    assert {event.flow.local.port: event.flow.direction for event in ended} == {
        80: Direction.INBOUND,
        40000: Direction.OUTBOUND,
    }
    added = {event.flow.id: event.counts for event in ends.events if isinstance(event, FlowAdded)}
    assert known or added == {event.flow.id: event.counts for event in ended}


def test_what_another_connection_left_under_the_same_ends_says_nothing():
    ends = Ends(known=True)
    ends.remains += [attrs.evolve(time_wait(ends.server, 1), cookie=99), time_wait(ends.client, 1)]
    assert ends.removed(ends.server, ends.client) == {80: (100, True, THERE), 40000: (0, True, HERE)}


@pytest.mark.parametrize("known", [True, False])
def test_two_ends_of_which_neither_left_anything_do_not_say_who_closed_first(known):
    """The kernel keeps no more connections in TIME_WAIT than ``tcp_max_tw_buckets``."""
    ends = Ends(known=known)
    assert ends.removed(ends.server, ends.client) == {80: (100, True, None), 40000: (0, True, None)}


@pytest.mark.parametrize(("later", "outcome"), [(0.0, None), (FORGETFUL - 0.1, None), (FORGETFUL, THERE)])
def test_while_nothing_is_kept_in_time_wait_its_absence_says_nothing_of_other_connections(later, outcome):
    ends = Ends()
    ends.removed(ends.server, ends.client)
    ends.now += later
    ends.session.channel_drained(1, ends.now)
    assert ends.removed(last_words()) == {20_000: (777, False, outcome)}


def test_an_end_that_waits_for_the_rest_of_the_notifications_is_reported_when_its_namespace_goes():
    ends = Ends(known=True)
    begin = len(ends.events)
    ends.feed(ends.server.message(final=True), 1)
    assert ends.since(begin) == {}
    ends.session._drop_namespace(0)
    ends.run()
    assert {port: end[0] for port, end in ends.since(begin).items()} == {80: 100, 40000: 0}


def test_two_ends_of_which_nobody_knows_what_is_left_end_as_well():
    ends = Ends()
    ends.silent.add(3)
    assert ends.removed(ends.server, ends.client) == {}
    begin = len(ends.events)
    ends.wait(1.0)
    assert ends.since(begin) == {80: (100, True, None), 40000: (0, True, None)}


def test_of_two_ends_the_second_closed_first_if_the_first_left_nothing_and_its_own_remains_are_not_told():
    ends = Ends()
    answer, asked = ends._lookups, []

    def answer_the_first(data, channel):
        asked.append(data)
        if len(asked) == 1:
            answer(data, channel)

    ends._lookups = answer_the_first
    assert ends.removed(ends.server, ends.client) == {}
    begin = len(ends.events)
    ends.wait(1.0)
    assert ends.since(begin) == {80: (100, True, THERE), 40000: (0, True, HERE)}
    assert len(asked) == 2


def test_what_is_left_after_so_long_that_it_may_be_of_another_connection_says_nothing():
    """Removals are read late, and it is asked for what is left before all of them are read."""
    ends = Ends()
    ends.remains.append(attrs.evolve(time_wait(ends.client, 1), cookie=99))
    ends.now += REUSED_AFTER
    for sock in (ends.client, ends.server):
        ends.feed(sock.message(final=True), 1)
        ends.run()
    assert ends.since(0) == {80: (100, True, THERE), 40000: (0, True, None)}


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


def shorter(sock: FakeSocket, received: int) -> FakeSocket:
    """The server's end of a later connection between the same ends, on which less came."""
    return attrs.evolve(sock, cookie=9, info={**sock.info, TcpInfo.BYTES_RECEIVED: received, TcpInfo.DELIVERED: 1})


def test_an_end_of_an_earlier_connection_proves_nothing_of_one_that_the_other_end_aborted():
    """An abort leaves both ends free at once, and its removal does not name the peer: the one before it is no evidence."""
    ends = Ends()
    assert ends.removed(ends.client)[40000][:2] == (0, True)
    ends.removed(aborted(ends), shorter(ends.server, 50))
    begin = len(ends.events)
    ends.wait(0.3)
    assert ends.since(begin) == {80: (50, False, Outcome.RESET_THERE)}


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_an_end_whose_other_one_was_aborted_is_not_settled_with_that_of_the_next_connection(together, closed):
    """Whether it had closed itself or not."""
    ends = Ends()
    ends.removed(aborted(ends))
    reset, later = shorter(ends.server, 50), attrs.evolve(ends.client, cookie=10)
    reset.info[TcpInfo.DELIVERED] = 1 + closed
    begin = len(ends.events)
    for batch in [[reset, later]] if together else [[reset], [later]]:
        ends.removed(*batch)
    ends.wait(0.3)
    assert ends.since(begin)[80] == (50, False, Outcome.RESET_THERE)


def test_an_abort_whose_ends_are_known_is_the_other_end_whatever_was_aborted_before():
    ends = Ends(known=True)
    ends.removed(attrs.evolve(aborted(ends), cookie=11))
    ends.removed(aborted(ends))
    reset = attrs.evolve(ends.server, unread=5, info={**ends.server.info, TcpInfo.BYTES_RECEIVED: 100})
    assert ends.removed(reset) == {80: (100, False, Outcome.RESET_THERE)}


def test_after_an_abort_the_other_end_of_a_later_connection_is_known_by_its_counts():
    ends = Ends()
    counts = {TcpInfo.DATA_SEGS_OUT: 1, TcpInfo.BYTES_SENT: 49, TcpInfo.BYTES_ACKED: 51}
    later = attrs.evolve(ends.client, cookie=10, info={**ends.client.info, **counts})
    ends.removed(aborted(ends))
    assert ends.removed(later, shorter(ends.server, 50))[80][:2] == (49, True)


def test_an_end_whose_other_one_may_be_forgotten_is_what_it_looks_like(monkeypatch):
    """Of a flood of ends only so many are remembered: then it proves nothing that the other one did not come."""
    monkeypatch.setattr(_endings, "MOST_REMEMBERED", 1)
    ends = Ends()
    assert list(ends.removed(attrs.evolve(ends.client, cookie=9, local_port=40001))) == [40001]
    begin = len(ends.events)
    ends.removed(ends.server)
    ends.wait(0.3)
    assert ends.since(begin) == {80: (100, False, THERE)}


@pytest.mark.parametrize("sent", [49, 60])
def test_after_an_abort_a_living_end_is_the_other_one_only_if_its_counts_are_equal(sent):
    """Else it is that of the next connection."""
    ends = Ends()
    ends.removed(aborted(ends))
    counts = {TcpInfo.DATA_SEGS_OUT: 1, TcpInfo.BYTES_SENT: sent}
    ends.sockets[8] = attrs.evolve(ends.client, state=SocketState.FIN_WAIT2, info={**ends.client.info, **counts})
    begin = len(ends.events)
    ends.removed(shorter(ends.server, 50))
    ends.wait(0.3)
    assert ends.since(begin)[80][:2] == ((49, True) if sent == 49 else (50, False))


@pytest.mark.parametrize("end", ["client", "server"])
def test_an_abort_whose_ends_are_known_is_settled_with_the_end_that_was_reported_before(end):
    """Neither is evidence about the next connection between the two."""
    ends = Ends(known=True)
    assert ends.removed(ends.client)[40000][:2] == (0, True)
    ends.removed(attrs.evolve(ends.server, remote_port=0, unacked=65_000, info={}))
    answered = attrs.evolve(ends.client, cookie=10, info={**ends.client.info, **ANSWERED})
    assert ends.removed(answered if end == "client" else shorter(ends.server, 50)) == {}
    begin = len(ends.events)
    ends.wait(0.3)
    assert [proven for _, proven, _ in ends.since(begin).values()] == [False]


@pytest.mark.parametrize("was_aborted", [True, False])
def test_an_end_that_was_given_up_is_remembered_unless_the_other_one_was_aborted(was_aborted):
    ends = Ends(BYTES_SENT=50, BYTES_ACKED=51, BYTES_RECEIVED=100, DELIVERED=1)
    ends.removed(ends.server, *([aborted(ends)] if was_aborted else []))
    ends.wait(0.3)
    ends.wait(MEMORY - 0.1)  # the abort is forgotten; the end would not be
    begin = len(ends.events)
    ends.removed(attrs.evolve(ends.client, cookie=10, info={**ends.client.info, **ANSWERED}))
    assert ends.since(begin) == ({} if was_aborted else {40000: (50, True, THERE)})


def test_aborts_of_a_server_leave_the_ends_of_its_other_connections_their_proofs():
    """They have its port in common, which tells nothing of the client's end."""
    ends = Ends()
    ends.sockets[1] = FakeSocket(1, local_port=80, remote=bytes(4), remote_port=0, state=SocketState.LISTEN)
    ends.poll()
    ends.removed(attrs.evolve(ends.server, cookie=11, remote_port=0, unacked=65_000, info={}))
    ends.client.info[TcpInfo.BYTES_SENT] = 130  # and a reset took what the server did not receive
    assert ends.removed(ends.client, ends.server)[80][:2] == (101, True)


@pytest.mark.parametrize(("later", "expected"), [(0.0, {}), (MEMORY, {80: (50, True)})])
def test_after_a_loss_of_removals_two_ends_are_a_pair_only_if_their_counts_are_equal(later, expected):
    """The other end's removal may be lost, and what is remembered may be that of the connection before."""
    ends = Ends()
    ends.session.channel_failed(1, errno.ENOBUFS, ends.now)
    ends.session.channel_drained(1, ends.now)
    ends.wait(later)
    ends.removed(ends.client)
    ended = ends.removed(shorter(ends.server, 50))
    assert {port: count[:2] for port, count in ended.items()} == expected

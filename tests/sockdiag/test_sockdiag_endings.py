"""Final counts: what remains, last words and a late reader prove of them."""

from __future__ import annotations

import attrs
import pytest
from endings_fakes import HERE, THERE, last_words, time_wait, two_ends
from sockdiag_fakes import LOOPBACK, PEER, FakeKernel, FakeSocket, flow_events, removals

from nstat_async._events import FlowRemoved
from nstat_async._model import Outcome
from nstat_async.sockdiag import AddressMessage, SocketState, TcpInfo, _endings
from nstat_async.sockdiag._endings import PEER_PATIENCE
from nstat_async.sockdiag._program_evidence import PULSE_PATIENCE
from nstat_async.sockdiag._waiting import MOST_BEHIND

OWN, OTHER = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])


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


@pytest.mark.parametrize("ends", [{}, {"local": OWN, "remote": OWN}], ids=["loopback", "one address"])
def test_ends_that_come_before_interfaces_are_known_are_exact_too(ends):
    """Right after a start, and without rtnetlink: what connects to its own address is on this machine."""
    kernel = FakeKernel(interval=None)
    kernel.links, kernel.addresses = [], []
    kernel.start()
    for end in two_ends():
        kernel.feed(attrs.evolve(end, **ends).message(final=True), 1)
    kernel.run()
    removed = [event for event in kernel.events if isinstance(event, FlowRemoved)]
    assert [(event.counts.rx_bytes, event.final) for event in removed] == [(100, True), (0, True)]


@pytest.mark.parametrize("answered", [True, False])
def test_ends_that_may_be_this_machines_wait_until_its_addresses_are_known_or_will_not_be(answered):
    kernel = FakeKernel(interval=None)
    kernel.addresses.append(AddressMessage(2, 2, OWN))
    route, held = kernel._route, []
    kernel._route = lambda *asked: held.append(asked)
    kernel.start()
    for end, addresses in zip(two_ends(), ((OWN, OTHER), (OTHER, OWN)), strict=True):
        kernel.feed(attrs.evolve(end, local=addresses[0], remote=addresses[1]).message(final=True), 1)
    kernel.run()
    assert not [event for event in kernel.events if isinstance(event, FlowRemoved)]
    if answered:
        kernel._route = route
        for asked in held:
            route(*asked)
        kernel.run()
    else:
        kernel.wait(1.1)
    removed = [event for event in kernel.events if isinstance(event, FlowRemoved)]
    assert [event.final for event in removed] == [answered, True], "a FIN without data is known by itself"
    assert not answered or [event.counts.rx_bytes for event in removed] == [100, 0]


def test_only_so_many_ends_wait_for_the_addresses(monkeypatch):
    """One more is reported as if its other end were on another machine."""
    monkeypatch.setattr(_endings, "MOST_REMEMBERED", 1)
    kernel = FakeKernel(interval=None)
    kernel.silent.add(2)
    kernel.start()
    for port in (20_000, 20_001):
        kernel.feed(last_words(port).message(final=True), 1)
    assert [event.flow.local.port for event in removals(kernel.run())] == [20_001]
    assert [event.flow.local.port for event in removals(kernel.wait(1.1))] == [20_000]


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


@pytest.mark.parametrize("twice", [0, 1], ids=["server", "client"])
def test_two_connections_with_the_same_ends_that_end_in_one_turn_are_both_reported(twice):
    kernel = FakeKernel(interval=None)
    kernel.start()
    ends = two_ends()
    for cookie in (7, 8):
        kernel.feed(attrs.evolve(ends[twice], cookie=cookie).message(final=True), 1)
    kernel.feed(attrs.evolve(ends[not twice], cookie=9).message(final=True), 1)
    kernel.run()
    removed = [*removals(kernel.events), *removals(kernel.wait(PEER_PATIENCE))]
    assert sorted(event.flow.id for event in removed) == ["c7", "c8", "c9"]


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


def end_of(sock, *remains):
    kernel = FakeKernel(interval=None)
    kernel.start()
    kernel.remains.extend(remains)
    kernel.feed(sock.message(final=True), 1)
    kernel.session.channel_drained(1, kernel.now)
    kernel.run()
    (removed,) = [event for event in kernel.events if isinstance(event, FlowRemoved)]
    return removed.counts.rx_bytes, removed.final, removed.uncertainty, removed.outcome


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


@pytest.mark.parametrize(
    ("answers", "repeated", "outcome"),
    [(1, 0, Outcome.REFUSED), (0, 1, Outcome.TIMED_OUT), (0, 0, Outcome.FAILED)],
)
@pytest.mark.parametrize("remote", [PEER, LOOPBACK], ids=["far", "here"])
def test_an_attempt_that_is_given_up_leaves_nothing_to_ask_for(answers, repeated, outcome, remote):
    """Its SYN is not acknowledged."""
    kernel = FakeKernel(interval=None)
    counters = {TcpInfo.SEGS_IN: answers, TcpInfo.SEGS_OUT: 1 + repeated, TcpInfo.TOTAL_RETRANS: repeated}
    info = {**counters, TcpInfo.UNACKED: 1, TcpInfo.DELIVERED: 0}
    kernel.sockets[9] = FakeSocket(9, remote=remote, state=SocketState.SYN_SENT, unacked=1, info=info)
    kernel.start()
    kernel.close(9)
    (removed,) = removals(kernel.run())
    assert (removed.final, removed.counts.rx_bytes, removed.flow.outcome) == (True, 0, outcome)
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

"""What once went wrong between a session and a kernel's answers, message by message.

A control socket of the emulated kernel is served by hand here, so that it is known what is read when.
"""

from __future__ import annotations

import pytest
from virtual import VirtualMonitor

from nstat_async import Counts, EventsLost, FlowAdded, FlowRemoved, LossCause, MonitorOptions, PollCompleted
from nstat_async.ntstat import CloseChannel, OpenChannel, Send, Session
from nstat_async.testing import EmulatedKernel

REMOTE = "192.0.2.2"


class ByHand:
    """A session on control sockets that are read when a test says so."""

    def __init__(
        self, name="xnu-11417.121.6", *, buffer=1 << 20, bridge=False, after_send=lambda sent: None, **options
    ):
        self.kernel = EmulatedKernel(name, receive_space=buffer)
        self.session = Session(name, options=MonitorOptions(providers="tcp", **options))
        self.sockets, self.sent, self.buffer, self.after_send = {}, {}, buffer, after_send
        self.now = 1.0
        self.bridge = bridge
        """The size of the buffer is not known, and answers may come late."""

    def carry_out(self):
        for command in self.session.commands():
            if isinstance(command, OpenChannel):
                self.sockets[command.channel] = self.kernel.connect()
                buffer = None if self.bridge else self.buffer
                self.session.channel_opened(command.channel, self.now, immediate=not self.bridge, receive_buffer=buffer)
            elif isinstance(command, CloseChannel):
                self.sockets.pop(command.channel).close()
            elif isinstance(command, Send) and command.channel in self.sockets:
                self.sockets[command.channel].send(command.data)
                self.sent.setdefault(command.channel, []).append(command.data)
                self.after_send(self.sent)

    def settle(self, order=None):
        for _ in range(400):
            self.carry_out()
            for channel in order or list(self.sockets):
                while channel in self.sockets and self.sockets[channel].readable:
                    self.session.receive_datagram(self.sockets[channel].receive(), self.now, channel)
                if channel in self.sockets:
                    self.session.channel_drained(channel, self.now)

    def lose_an_announcement(self):
        self.kernel.faults.lose_announcements = 1.0
        self.kernel.open_tcp(remote=(REMOTE, 443))
        self.kernel.faults.lose_announcements = 0.0
        self.kernel.open_tcp(remote=("192.0.2.3", 443))
        self.settle()

    def about(self, remote):
        return [e for e in self.session.take_events() if remote in str(getattr(e, "flow", ""))]


def singles(sent):
    """Questions about one source."""
    return [data for data in sent if data[8:10] == b"\xef\x03" and data[16:24] != b"\xff" * 8]


@pytest.mark.parametrize("requests", range(1, 10))
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_flow_that_ends_while_a_second_socket_takes_over_is_reported_once(requests, order):
    flows = []
    talk = ByHand(discovery="announce", after_send=lambda sent: len(sent.get(1, ())) >= requests and flows[0].close())
    flows.append(talk.kernel.open_tcp(remote=("192.0.2.1", 443), rx=5000, tx=700))
    talk.session.start(talk.now)
    talk.settle()
    talk.lose_an_announcement()
    talk.now = 6.5
    talk.session.handle_deadline(talk.now)
    for _ in range(5):
        talk.settle(order)
    assert list(talk.sockets) == [1]
    flows[0].close()
    talk.settle()
    told = talk.about("192.0.2.1:443")
    assert [type(event) for event in told] == [FlowAdded, FlowRemoved]
    assert (told[1].final, told[1].counts.rx_bytes, told[1].counts.tx_bytes) == (True, 5000, 700)


def test_what_waits_unread_in_the_first_socket_is_read_before_the_second_takes_over():
    talk = ByHand(discovery="announce")
    talk.session.start(talk.now)
    talk.settle()
    talk.lose_an_announcement()
    for port in range(50):
        talk.kernel.open_tcp(remote=("192.0.2.9", port + 1), rx=1000).close()
    talk.now = 6.5
    talk.session.handle_deadline(talk.now)
    talk.settle([1])
    talk.settle()
    assert list(talk.sockets) == [1]
    ends = [event for event in talk.about("192.0.2.9:") if isinstance(event, FlowRemoved)]
    assert len(ends) == 50
    assert all(end.final and end.counts.rx_bytes == 1000 for end in ends)


def test_a_goodbye_that_comes_before_the_answer_to_a_question_is_no_loss():
    talk = ByHand()
    talk.kernel.open_tcp(remote=("192.0.2.1", 1))
    talk.session.start(talk.now)
    talk.settle()
    flows = [talk.kernel.open_tcp(remote=(REMOTE, port), rx=1000) for port in range(1, 30)]
    talk.session.take_events()
    talk.session.request_poll(2.0)
    talk.carry_out()
    client, records = talk.sockets[0], []
    while client.readable:
        records.append(client.receive())
    for record in (records[0], records[-1]):  # the batches between did not fit
        talk.session.receive_datagram(record, 2.0)
    flows[0].close()
    talk.settle()
    events = talk.session.take_events()
    assert [type(e) for e in events if isinstance(e, FlowRemoved)] == [FlowRemoved]
    assert {e.cause.value for e in events if isinstance(e, EventsLost)} == {"batch"}


@pytest.mark.parametrize("known_before", [False, True])
def test_a_source_that_cannot_be_read_is_seldom_asked_for_and_leaves_polls_complete(known_before):
    talk = ByHand(interval=None)
    flows = [talk.kernel.open_tcp(remote=(REMOTE, n + 1), userland=True, rx=7) for n in range(20)]
    for flow in flows:
        flow.unreadable = not known_before
    talk.kernel.open_tcp(remote=("192.0.2.9", 443))
    talk.session.start(talk.now)
    talk.settle()
    for flow in flows:
        flow.unreadable = True
    asked, polls = [], 40
    for _ in range(polls):
        before = len(singles(talk.sent[0]))
        talk.session.request_poll(talk.now)
        talk.settle()
        asked.append(len(singles(talk.sent[0])) - before)
    completed = [event for event in talk.session.take_events() if isinstance(event, PollCompleted)]
    assert all(event.complete for event in completed)
    assert sum(1 for count in asked if count >= 20) <= 7
    for flow in flows:
        flow.unreadable = False
    talk.session.request_poll(talk.now)
    talk.settle()
    known = [counts.rx_bytes for flow, counts in talk.session.flows() if flow.userland]
    assert known == [7] * 20, "a poll has them as soon as they can be read"


@pytest.mark.parametrize(
    "name", ["xnu-2422.115.4", "xnu-2782.40.9", "xnu-3248.60.10", "xnu-10063.141.1", "xnu-12377.121.6"]
)
def test_with_a_small_buffer_every_flow_is_known_and_counted_at_each_poll(name):
    talk = ByHand(name, buffer=8192, interval=None)
    flows = [talk.kernel.open_tcp(remote=(REMOTE, n + 1), rx=10) for n in range(130)]
    talk.session.start(talk.now)
    for _ in range(6):
        talk.settle()
        talk.now += 10.0
        talk.session.handle_deadline(talk.now)
        for flow in flows:
            flow.transfer(rx=10)
        talk.session.request_poll(talk.now)
        talk.settle()
        counted = {flow.remote.port: counts.rx_bytes for flow, counts in talk.session.flows()}
        assert counted == dict.fromkeys(range(1, 131), flows[0].rx_bytes)
    if talk.kernel.release.resumes_polls:
        assert not singles(talk.sent[0])[300:], "in portions, not one by one"
    assert any("receive buffer is small" in note for note in talk.session.capabilities.notes)


@pytest.mark.parametrize("name", ["xnu-2782.40.9", "xnu-3248.60.10", "xnu-4570.71.2", "xnu-10063.141.1"])
def test_with_a_small_buffer_a_socket_that_died_unnoticed_goes_and_stays_away(name):
    """Polls for counters keep the kernel's own minute-timer from looking, and a dead socket has counters, but no description."""
    kernel = EmulatedKernel(name)
    flows = [kernel.open_tcp(100 + n, f"p{n}", remote=(REMOTE, 443)) for n in range(3)]
    monitor = VirtualMonitor(kernel, receive_buffer=8192, interval=1.0)
    monitor.run(3.0)
    flows[1].mark_gone()
    monitor.run(20.0)
    picture = monitor.picture
    assert [event.flow.process.name for event in picture.removed] == ["p1"]
    assert sorted(flow.process.name for flow, _ in picture.flows.values()) == ["p0", "p2"]
    assert picture.lost(LossCause.FINAL_COUNTS) == 1
    assert picture.last_poll.complete


@pytest.mark.parametrize("name", ["xnu-1699.32.7", "xnu-2050.48.11", "xnu-2422.115.4", "xnu-2782.40.9"])
def test_over_a_bridge_too_a_poll_that_left_no_room_for_its_success_is_completed_one_by_one(name):
    kernel = EmulatedKernel(name)
    flows = [kernel.open_tcp(100 + n, f"p{n}", remote=(REMOTE, 443)) for n in range(200)]
    kernel.faults.reply_delay = 0.02
    monitor = VirtualMonitor(kernel, receive_buffer=16_384, interval=5.0)
    monitor.run(9.0)
    for flow in flows:
        flow.transfer(rx=7)
    before = monitor.picture.complete_polls
    monitor.run(15.0)
    assert monitor.picture.complete_polls >= before + 2
    assert [counts.rx_bytes for _, counts in monitor.session.flows()] == [7] * 200


def test_counters_by_medium_do_not_come_and_go():
    talk = ByHand("xnu-12377.121.6", buffer=8192, extras=True, interval=None)
    flows = [talk.kernel.open_tcp(remote=(REMOTE, n + 1), rx=9, tx=9) for n in range(200)]
    talk.session.start(talk.now)
    talk.settle()
    had = set()
    for _ in range(8):
        for flow in flows:
            flow.transfer(1, 1)
        talk.session.request_poll(talk.now)
        talk.settle()
        counts = [
            event.counts for event in talk.session.take_events() if isinstance(getattr(event, "counts", None), Counts)
        ]
        had |= {bool(each.media) for each in counts}
    assert had == {True}


@pytest.mark.parametrize("bridge", [False, True])
@pytest.mark.parametrize("name", ["xnu-2050.48.11", "xnu-2422.115.4", "xnu-2782.40.9"])
def test_a_list_of_flows_that_was_cut_short_is_said(name, bridge):
    """The kernel stops at the first announcement that does not fit, and still says SUCCESS."""
    talk = ByHand(name, buffer=8192, bridge=bridge, interval=None)
    for n in range(200):
        talk.kernel.open_tcp(remote=(REMOTE, n + 1))
    talk.session.start(talk.now)
    for _ in range(4):
        talk.settle()
        talk.now += 1.0
        talk.session.handle_deadline(talk.now)
    assert "announcement" in {e.cause.value for e in talk.session.take_events() if isinstance(e, EventsLost)}


def test_over_a_bridge_a_long_list_is_looked_at_on_a_second_socket_and_is_no_loss_where_it_was_whole():
    talk = ByHand("xnu-11417.121.6", bridge=True, discovery="announce", interval=None)
    for n in range(400):
        talk.kernel.open_tcp(remote=(REMOTE, n + 1))
    talk.session.start(talk.now)
    for _ in range(20):
        talk.settle()
        talk.now += 1.0
        talk.session.handle_deadline(talk.now)
    assert list(talk.sockets) == [0]
    assert talk.session.statistics()["audits"] == 1
    assert not [e for e in talk.session.take_events() if isinstance(e, EventsLost)]


def test_routes_and_interfaces_are_no_flows_of_a_poll():
    kernel = EmulatedKernel("xnu-11417.121.6", privileged=True)
    kernel.add_route("203.0.113.9")
    kernel.open_tcp(remote=("198.51.100.7", 443))
    monitor = VirtualMonitor(kernel, providers=("tcp", "route", "interface"))
    monitor.run(1.0)
    assert monitor.picture.events["InterfaceUpdated"]
    assert monitor.picture.last_poll.flows == 1


def test_a_flow_that_came_and_went_while_the_first_socket_was_polled_is_not_missed_by_it():
    """The second socket is read first: it has heard the end of a flow of which the first one's word is on its way."""
    talk = ByHand("xnu-7195.141.2", interval=None)
    talk.kernel.open_tcp(remote=(REMOTE, 1))
    talk.session.start(talk.now)
    talk.settle()
    before = len(talk.sent[0])

    def after_send(sent):
        if len(sent[0]) == before + 1 and not passing:
            passing.append(talk.kernel.open_tcp(remote=(REMOTE, 2), rx=7))
            passing[0].close()

    passing, talk.after_send = [], after_send
    talk.now += 70.0
    talk.session.handle_deadline(talk.now)
    talk.settle(order=[1, 0])
    assert passing
    assert talk.session.statistics()["audits"] == 1
    events = talk.session.take_events()
    assert [event.counts.rx_bytes for event in events if isinstance(event, FlowRemoved)] == [7]
    assert not [event for event in events if isinstance(event, EventsLost)]

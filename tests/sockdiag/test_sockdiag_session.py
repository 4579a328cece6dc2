"""The core against a kernel made of a dictionary: every rule of the picture it keeps."""

from __future__ import annotations

import copy
import errno
import pickle

import attrs
import pytest
from sockdiag_fakes import LOOPBACK, PEER, FakeKernel, FakeSocket, flow_events, follow, kinds

from nstat_async import _errors, _model
from nstat_async._contract import Mode
from nstat_async._events import (
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    PollCompleted,
    ProviderRefused,
    RemovalReason,
)
from nstat_async._model import Direction, InterfaceKind, Outcome, Provider, TcpState, Visibility
from nstat_async._options import MonitorOptions
from nstat_async.aggregate import History, HistoryWriter, ProcessTable
from nstat_async.sockdiag import (
    AddressMessage,
    CgroupFacts,
    DiagAttribute,
    DiagRequest,
    LinkMessage,
    NetworkNamespace,
    OpenChannel,
    RouteMessage,
    Session,
    SocketState,
    TcpInfo,
    _rows,
    _scan,
    iterate_messages,
)
from nstat_async.sockdiag._constants import DiagGroup
from nstat_async.sockdiag._dumps import MAX_FAILURES
from nstat_async.sockdiag._polls import ANNOUNCED_AT_ONCE, OWNERS_PATIENCE


def traffic(rx: int = 0, tx: int = 0, *, fin: int = 0, active: int = 1, fin_sent: int = 0) -> dict[int, int]:
    """``tcp_info`` fields as the kernel counts them: SYN and FIN are bytes acknowledged, a FIN is a byte received."""
    return {
        TcpInfo.BYTES_RECEIVED: rx + fin,
        TcpInfo.BYTES_SENT: tx,
        TcpInfo.BYTES_ACKED: tx + active + fin_sent,
        TcpInfo.SEGS_IN: 1 + rx,
        TcpInfo.SEGS_OUT: 1 + tx,
        TcpInfo.DATA_SEGS_IN: (rx + 999) // 1000,
        TcpInfo.DATA_SEGS_OUT: (tx + 999) // 1000,
        TcpInfo.RTT: 250,
        TcpInfo.RTTVAR: 30,
        TcpInfo.MIN_RTT: 200,
        TcpInfo.LAST_ACK_RECV: 500,
    }


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel(interval=1.0)


def test_a_fin_that_comes_while_a_row_is_written_is_no_payload(kernel):
    """Its first state was read before, its counters behind it: else the end could not be exact any more."""
    kernel.sockets[1] = FakeSocket(1, info={**traffic(100, fin=1), TcpInfo.STATE: SocketState.CLOSE_WAIT})
    assert kernel.start()[0].counts.rx_bytes == 100


def test_a_byte_without_a_segment_of_data_is_a_fin_whatever_the_state_of_its_row(kernel):
    """Its state was read before the FIN came: the flow has no byte too many, then or at its end."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(100))
    kernel.sockets[2] = FakeSocket(2, info=traffic(fin=1))
    assert [event.counts.rx_bytes for event in flow_events(kernel.start())] == [100, 0]
    kernel.sockets[1].info = traffic(100, 5, fin=1)
    updated, _ = kernel.wait(1.0)
    assert (updated.counts.rx_bytes, updated.counts.tx_bytes) == (100, 5)
    kernel.close(1)
    (removed,) = kernel.run()
    assert (removed.counts.rx_bytes, removed.final) == (100, True)


def test_first_poll_adds_what_was_there_before(kernel):
    """Flows of the first complete dump are preexisting, have their process and interface, and a poll says so."""
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic(5, 10))
    kernel.owners[77] = 42
    added, done = kernel.start()
    assert isinstance(added, FlowAdded)
    assert added.preexisting
    assert added.time == 1100.0
    flow = added.flow
    assert flow.id == "c1"
    assert flow.provider is Provider.TCP
    assert flow.userland is False
    assert (str(flow.local), str(flow.remote)) == ("127.0.0.1:40000", "198.51.100.9:80")
    assert flow.process == _model.Process(
        42, "p42", 7042, uid=1000, path="/bin/p42", user="ada", attribution=_model.Attribution.OBSERVED
    )
    assert flow.interface.kind is InterfaceKind.LOOPBACK
    assert flow.state is TcpState.ESTABLISHED
    assert flow.direction is Direction.OUTBOUND
    assert flow.namespace is None
    assert (added.counts.rx_bytes, added.counts.tx_bytes) == (5, 10)
    assert isinstance(done, PollCompleted)
    assert (done.flows, done.complete) == (1, True)


def test_later_flows_are_new(kernel):
    """What a later poll finds was not there before."""
    kernel.start()
    kernel.sockets[2] = FakeSocket(2)
    (added,) = flow_events(kernel.wait(1.0))
    assert isinstance(added, FlowAdded)
    assert not added.preexisting


def test_an_update_only_for_change(kernel):
    """Idle sockets are silent; traffic gives one update with both totals and the same flow object."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]
    kernel.sockets[1].info = traffic(1005, 10)
    updated, _ = kernel.wait(1.0)
    assert isinstance(updated, FlowUpdated)
    assert (updated.time, updated.delta.rx_bytes) == (1102.0, 1000)
    assert updated.delta.tx_bytes == 0
    assert updated.flow is kernel.events[0].flow


def test_a_keepalive_is_no_change(kernel):
    """Segments without data, timers and their expiry make no update."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    sock = kernel.sockets[1]
    sock.info = {**sock.info, TcpInfo.SEGS_IN: 99, TcpInfo.SEGS_OUT: 98}
    sock.timer, sock.expires = 2, 5000
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]


def test_every_update_reports_each_dump():
    """With every_update an idle socket is reported each time."""
    kernel = FakeKernel(every_update=True)
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    assert kinds(kernel.wait(1.0)) == ["FlowUpdated", "PollCompleted"]


def test_a_state_change_rebuilds_the_flow(kernel):
    """The flow's value follows its state, its id and endpoints stay."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    before = kernel.events[0].flow
    kernel.sockets[1].state = SocketState.CLOSE_WAIT
    kernel.sockets[1].info = traffic(5, 10, fin=1)
    updated, _ = kernel.wait(1.0)
    assert updated.flow.state is TcpState.CLOSE_WAIT
    assert updated.flow.id == before.id
    assert updated.flow.local is before.local
    assert updated.counts.rx_bytes == 5
    assert updated.flow.direction is Direction.OUTBOUND


def test_an_end_whose_fin_a_row_had_reported_as_a_byte_is_inexact_and_still_an_end_in_order(kernel):
    """The FIN came between the states and the counters of a row: the count stays, the outcome is of the FIN."""
    just = {TcpInfo.LAST_ACK_RECV: 0}
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic(100, fin=1) | just)
    kernel.start()
    kernel.sockets[1].info = traffic(100, fin=1, fin_sent=1) | just
    kernel.sockets[1].unread = 1
    kernel.close(1)
    (removed,) = kernel.run()
    assert (removed.counts.rx_bytes, removed.final, removed.uncertainty) == (101, False, 1)
    assert removed.flow.outcome is Outcome.CLOSED_THERE


def test_goodbye_has_the_final_counts(kernel):
    """A destroyed socket is removed at once, by cookie, with its very last counts and the process known before."""
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic(5, 10))
    kernel.owners[77] = 42
    kernel.start()
    kernel.sockets[1].info = traffic(5, 3000, fin_sent=1)
    kernel.remains.append(FakeSocket(1, state=SocketState.FIN_WAIT2, timer=3))
    kernel.close(1)
    (removed,) = kernel.run()
    assert isinstance(removed, FlowRemoved)
    assert (removed.final, removed.reason) == (True, RemovalReason.CLOSED)
    assert (removed.counts.rx_bytes, removed.counts.tx_bytes) == (5, 3000)
    assert removed.flow.process.pid == 42
    assert list(kernel.session.flows()) == []


def test_a_flow_between_two_polls_is_added_and_removed(kernel):
    """A socket known only by its goodbye is added, then removed, without a process."""
    kernel.start()
    kernel.feed(FakeSocket(5, info=traffic(0, 1234, fin_sent=1)).message(final=True), 1)
    added, removed = kernel.run()
    assert (added.preexisting, added.flow.process) == (False, None)
    assert removed.flow == attrs.evolve(added.flow, outcome=Outcome.RESET)  # nothing is left: by whom is not known
    assert (removed.counts.tx_bytes, removed.final) == (1234, True)
    assert kernel.session.statistics()["short_lived"] == 1


def test_a_socket_never_used_is_no_flow(kernel):
    """Made and closed without port or peer: counted, not reported."""
    kernel.start()
    kernel.feed(FakeSocket(5, b"\0" * 4, 0, b"\0" * 4, 0).message(final=True), 1)
    assert kernel.run() == []
    assert kernel.session.statistics()["unused_sockets"] == 1


def test_a_goodbye_overtaken_by_its_dump(kernel):
    """A dump written before a socket's goodbye, and read after it, does not bring the socket back."""
    kernel.start()
    kernel.sockets[1] = FakeSocket(1, info=traffic(0, 10, fin_sent=1))
    kernel.during_dump = lambda: kernel.close(1)
    events = kernel.wait(1.0)
    assert kinds(events) == ["FlowAdded", "FlowRemoved", "PollCompleted"]
    assert events[-1].flows == 0
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]


def test_closed_and_held_is_not_removed(kernel):
    """A socket in no dump while its descriptor stays open becomes CLOSED, and ends by its goodbye with final counts."""
    kernel.sockets[1] = sock = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    kernel.sockets.pop(1)
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]
    updated, _ = kernel.wait(1.0)
    assert updated.flow.state is TcpState.CLOSED
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]
    sock.info = traffic(5, 20)
    kernel.feed(sock.message(final=True), 1)
    (removed,) = kernel.run()
    assert (removed.counts.tx_bytes, removed.final) == (20, True)


def test_absence_is_confirmed_before_it_counts(kernel):
    """A socket that a dump missed and a look-up finds stays, and is not asked for again."""
    kernel.sockets[1] = sock = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    sock.state = SocketState.CLOSE  # not among the dumped states
    kernel.wait(1.0)
    events = kernel.wait(1.0)
    assert [type(e) for e in events] == [FlowUpdated, PollCompleted]
    assert events[0].flow.state is TcpState.CLOSED
    assert len(list(kernel.session.flows())) == 1


def test_what_a_dump_missed_is_not_gone_even_where_removals_were_lost(kernel):
    """The look-up that finds it says what became of it."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    kernel.sockets[1].state, kernel.sockets[1].info = SocketState.CLOSE, traffic(5, 20)
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    kernel.session.channel_drained(1, kernel.now)
    (updated,) = flow_events(kernel.wait(0.3))
    assert (type(updated), updated.counts.tx_bytes) == (FlowUpdated, 20)


def test_a_thousand_lost_removals_are_looked_into_in_steps(kernel):
    """None of them is forgotten, and the poll is over when the last one was."""
    for cookie in range(1, 1001):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, info=traffic())
    kernel.per_datagram = 100
    kernel.start()
    kernel.sockets.clear()
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    kernel.session.channel_drained(1, kernel.now)
    events = kernel.wait(0.3)
    assert kinds(events[-1001:]) == ["FlowRemoved"] * 1000 + ["PollCompleted"]
    assert kernel.session.statistics()["gone"] == 1000


def test_an_overrun_is_told_and_repaired(kernel):
    """After a lost goodbye a loss is in the stream, a poll comes at once, and vanished flows go, confirmed, not final."""
    for cookie in (1, 2, 3):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=40000 + cookie, info=traffic(5, 10))
    kernel.start()
    kernel.now += 0.5
    kernel.close(2, tell=False)
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    (lost,) = kernel.run()
    kernel.session.channel_drained(1, kernel.now)
    removed, done = kernel.run()
    assert isinstance(lost, EventsLost)
    assert (lost.cause, lost.count) == (LossCause.KERNEL_BUFFER, None)
    assert (removed.reason, removed.final) == (RemovalReason.GONE, False)
    assert removed.counts.tx_bytes == 10
    assert (done.flows, done.complete) == (2, True)
    kernel.sockets.pop(3)
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"], "repaired: absence is explained by goodbyes again"


@pytest.mark.parametrize(("peer", "ids"), [(80, ["c1"]), (443, ["c1", "c1.2"])], ids=["known", "another"])
def test_a_removal_that_comes_when_its_socket_was_given_up_is_of_a_connection_that_nobody_reported(kernel, peer, ids):
    """After an overrun a look-up may find a socket gone before its removal is read: no flow ends twice."""
    sock = kernel.sockets[1] = FakeSocket(1, remote_port=80, info=traffic(5, 10))
    kernel.start()
    kernel.close(1, tell=False)
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    kernel.session.channel_drained(1, kernel.now)
    kernel.wait(0.3)
    sock.remote_port = peer
    kernel.feed(sock.message(final=True), 1)
    kernel.run()
    for kind in (FlowAdded, FlowRemoved):
        assert [event.flow.id for event in kernel.events if isinstance(event, kind)] == ids


@pytest.mark.parametrize("compiled", [True, False])
def test_a_longer_row_at_the_end_of_a_datagram_is_no_row_like_those_before_it(compiled, monkeypatch):
    """Cut as these are it may look like what is known of its socket."""
    if not compiled:
        for module in (_rows, _scan):
            monkeypatch.setattr(module, "speedups", None)
    kernel = FakeKernel()
    kernel.sockets[1] = FakeSocket(1, local_port=1, info=traffic(), info_length=192)
    kernel.sockets[2] = FakeSocket(2, local_port=2, info=traffic(), info_length=280)
    kernel.start()
    (poll,) = kernel.wait(1.0)
    assert (poll.flows, poll.complete) == (2, True)


def test_an_overrun_during_a_poll_is_repaired_by_the_next(kernel):
    """A dump that began before the loss cannot repair it."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    kernel.close(1, tell=False)

    def lose():
        kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
        kernel.session.channel_drained(1, kernel.now)

    kernel.sockets[9] = FakeSocket(9, local_port=9, info=traffic())
    kernel.during_dump = lose
    kernel.wait(1.0)
    kernel.wait(0.3)
    assert sum(isinstance(e, PollCompleted) for e in kernel.events) == 3
    assert [e.flow.id for e in kernel.events if isinstance(e, FlowRemoved)] == ["c1"]


def test_a_poll_that_is_not_complete_repairs_nothing(kernel):
    """What its dumps lack is looked into by the next one, still as if removals were missing."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    kernel.session.channel_drained(1, kernel.now)
    kernel.during_dump = lambda: kernel.session.channel_failed(0, errno.ENOBUFS, kernel.now)
    done = kernel.wait(0.3)[-1]
    assert (type(done), done.complete) == (PollCompleted, False)
    kernel.close(1, tell=False)
    kernel.wait(1.0)
    assert [e.flow.id for e in kernel.events if isinstance(e, FlowRemoved)] == ["c1"]


def test_no_repair_before_the_queue_is_empty(kernel):
    """A full queue drops silently until it was read empty: a dump before that repairs nothing."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    kernel.wait(1.0)
    kernel.close(1, tell=False)
    kernel.session.channel_drained(1, kernel.now)
    kernel.wait(0.3)
    assert [e.flow.id for e in kernel.events if isinstance(e, FlowRemoved)] == ["c1"]


def test_an_aborted_socket_keeps_its_last_known_counts(kernel):
    """The kernel clears the counters of an aborted socket: the loss is told, the last counts stand and are not final."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    for cookie in (1, 2):
        wiped = FakeSocket(cookie, remote_port=0, unacked=65000)
        kernel.feed(wiped.message(final=True), 1)
    lost, removed, *short = kernel.run()
    assert (lost.cause, lost.count) == (LossCause.FINAL_COUNTS, 1)
    assert "aborted" in lost.detail
    assert removed.flow.outcome is Outcome.RESET_HERE
    assert (removed.reason, removed.final) == (RemovalReason.DROPPED, False)
    assert (removed.counts.rx_bytes, str(removed.flow.remote)) == (5, "198.51.100.9:80")
    assert kinds(short) == ["FlowAdded", "EventsLost", "FlowRemoved"]
    assert (short[0].counts, short[2].counts) == (None, None)


@pytest.mark.parametrize("marked", [1, 5])
def test_a_subflow_of_multipath_tcp_is_not_said_to_be_aborted(kernel, marked):
    """By its own upper layer, or its listener's."""
    extra = {DiagAttribute.ULP_INFO: b"\x0a\0\1\0mptcp\0\0\0"}
    kernel.sockets[1] = FakeSocket(1, b"\0" * 4, 80, b"\0" * 4, 0, state=SocketState.LISTEN)
    kernel.sockets[5] = FakeSocket(5, local_port=80, remote_port=90, info=traffic(5, 10))
    kernel.sockets[marked].extra = extra
    kernel.start()
    kernel.feed(FakeSocket(5, local_port=80, remote_port=0, unacked=65000).message(final=True), 1)
    lost, removed = kernel.run()
    assert "a subflow of Multipath TCP, whose" in lost.detail
    assert removed.flow.outcome is None


def test_without_goodbyes_absence_removes():
    """Where the kernel does not tell of destroyed sockets, a flow goes when its absence is confirmed."""
    kernel = FakeKernel()
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    carry_out = kernel._carry_out

    def refuse(command):
        if isinstance(command, OpenChannel) and command.channel == 1:
            kernel.session.channel_failed(1, errno.ENOENT, kernel.now)
        else:
            carry_out(command)

    kernel._carry_out = refuse
    kernel.start()
    assert not kernel.session.capabilities.final_counts
    kernel.sockets.clear()
    removed, _ = kernel.wait(1.0)
    assert (removed.reason, removed.final) == (RemovalReason.GONE, False)


def test_another_socket_under_the_same_addresses_does_not_stand_for_one_that_went(kernel):
    """What a look-up finds is compared by its cookie."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    kernel.sockets.clear()
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    kernel.session.channel_drained(1, kernel.now)

    def answer(data, channel):
        for frame in iterate_messages(data):
            kernel.feed(FakeSocket(2, info=traffic(5, 10)).message(frame.sequence), channel)

    kernel._lookups = answer
    events = [*kernel.run(), *kernel.wait(1.0)]
    (removed,) = [event for event in events if isinstance(event, FlowRemoved)]
    assert (removed.flow.id, removed.reason) == ("c1", RemovalReason.GONE)


def test_new_flows_wait_for_their_process_but_not_for_long(kernel):
    """A search that does not end delays an addition by its patience; the process then comes as an update."""
    kernel.start()
    kernel.hold_lookups = True
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic(5, 10))
    kernel.owners[77] = 42
    assert kernel.wait(1.0) == []
    added, _ = kernel.wait(0.3)
    assert added.flow.process is None
    kernel.answer(kernel.held.pop())
    (updated,) = kernel.run()
    assert updated.flow.process.pid == 42
    assert updated.delta.rx_bytes == 0


def test_a_flow_that_ends_while_waiting_for_its_process(kernel):
    """It is added and removed at its removal, once each, and the poll waits for nobody any longer."""
    kernel.start()
    kernel.hold_lookups = True
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic(0, 10, fin_sent=1))
    kernel.wait(1.0)
    kernel.close(1)
    assert kinds(kernel.run()) == ["PollCompleted", "FlowAdded", "FlowRemoved"]
    assert kernel.wait(0.3) == []


def test_many_flows_are_announced_in_steps(kernel):
    """No single step announces more than its share, and all are announced before the poll is complete."""
    kernel.per_datagram = 80
    for cookie in range(1, 3 * ANNOUNCED_AT_ONCE):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, info=traffic())
    session, steps = kernel.session, []
    polls, announce = session._polls, session._polls._announce

    def counted():
        before = len(session._output.events)
        announce()
        steps.append(len(session._output.events) - before)

    polls._announce = counted
    events = kernel.start()
    assert len(events) == 3 * ANNOUNCED_AT_ONCE
    assert isinstance(events[-1], PollCompleted)
    assert max(steps) == ANNOUNCED_AT_ONCE


def test_a_flow_is_in_every_respect_what_its_constructor_makes(kernel):
    """Flow and ends are made in a shorter way: frozen, equal, hashable, copied and pickled as any."""
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.owners[77] = 42
    flow = kernel.start()[0].flow
    names = [field.name for field in attrs.fields(_model.Flow)]
    plain = _model.Flow(*(getattr(flow, name) for name in names))
    ends = [_model.Endpoint(end.packed, end.port, end.scope_id) for end in (flow.local, flow.remote)]
    for made, built in ((flow, plain), (flow.local, ends[0]), (flow.remote, ends[1])):
        for each in (made, copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made)), attrs.evolve(made)):
            assert type(each) is type(built)
            assert (each, hash(each), repr(each)) == (built, hash(built), repr(built))
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(made, attrs.fields(type(made))[0].name, None)


def test_owner_of_a_passed_descriptor(kernel):
    """When the owner ends and the socket lives on, its new owner is found."""
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.owners[77] = 42
    kernel.start()
    kernel.owners[77] = 43
    for _ in range(7):
        kernel.wait(1.0)
    assert [e.flow.process.pid for e in kernel.events if isinstance(e, FlowUpdated)] == [43]


def test_accepting_gives_a_connection_its_owner(kernel):
    """A connection in a backlog has no inode; once accepted its process is found."""
    kernel.sockets[1] = FakeSocket(1, info=traffic())
    kernel.owners[77] = 42
    kernel.start()
    assert kernel.events[0].flow.process is None
    kernel.sockets[1].inode = 77
    kernel.wait(1.0)
    assert [e.flow.process and e.flow.process.pid for e in kernel.events if isinstance(e, FlowUpdated)] == [None, 42]


def test_an_owner_that_is_never_found_is_sought_ever_more_rarely(kernel):
    """Unknown inodes do not cost a search each poll."""
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.start()
    for _ in range(30):
        kernel.wait(1.0)
    searches = [item for item in kernel.record if item[0] == "answer" and hasattr(item[3], "owners")]
    assert len(searches) == 5  # polls 1, 2, 4, 8, 16
    assert kernel.session.statistics()["unresolved_owners"] == 1


def test_a_counter_of_32_bits_that_wraps_is_growth_in_every_total(kernel, tmp_path):
    """Segments are counted in 32 bits, bytes in 64: tables, history and metrics have what came, and one flow."""
    prometheus, otel = (pytest.importorskip(f"nstat_async.integrations.{name}") for name in ("prometheus", "otel"))
    metrics = pytest.importorskip("opentelemetry.sdk.metrics")
    reader = metrics.export.InMemoryMetricReader()
    provider = metrics.MeterProvider([reader], shutdown_on_exit=False)
    table, collector = ProcessTable(), prometheus.TrafficCollector()
    exporter, writer = otel.TrafficMetrics(provider.get_meter("test")), HistoryWriter(tmp_path / "history")
    total = 6_200_000_000_000
    kernel.sockets[1] = FakeSocket(1, inode=77)
    kernel.owners[77] = 42
    for step, segments in enumerate((2**32 - 500, 500, 1500)):
        kernel.sockets[1].info = {TcpInfo.BYTES_RECEIVED: total + 1_448_000 * step, TcpInfo.DATA_SEGS_IN: segments}
        events = kernel.wait(1.0) if step else kernel.start()
        for consumer in (table, collector, exporter, writer):
            consumer.feed_many(events)
    (row,) = table.rows()
    assert (row.rx_bytes, row.rx_packets, row.flows) == (2_896_000, 2000, 1)
    assert row.rx_rate == pytest.approx(1_448_000)
    writer.close()
    with History(tmp_path / "history") as history:
        (used,) = history.usage()
    assert (used.rx_bytes, used.rx_packets) == (2_896_000, 2000)
    scraped = {sample.name: sample.value for metric in collector.collect() for sample in metric.samples}
    assert scraped["nstat_process_receive_bytes_total"] == scraped["nstat_receive_bytes_total"] == 2_896_000
    assert scraped["nstat_flows_total"] == 1
    exported = {
        (metric.name, *point.attributes.values()): point.value
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }
    provider.shutdown()
    assert exported["process.network.io", "p42", "receive"] == 2_896_000
    assert exported["nstat.process.packets", "p42", "receive"] == 2000


def test_udp_is_known_and_not_counted(kernel):
    """UDP flows have no counters, neither zero nor any, and no state; connecting one is an update."""
    kernel.sockets[1] = FakeSocket(1, b"\0" * 4, 53, b"\0" * 4, 0, protocol=17, state=SocketState.CLOSE)
    added, _ = kernel.start()
    assert added.flow.provider is Provider.UDP
    assert (added.flow.remote, added.flow.state, added.flow.direction) == (None, None, None)
    assert (added.counts.rx_bytes, added.counts.tx_packets) == (None, None)
    sock = kernel.sockets[1]
    sock.local, sock.remote, sock.remote_port, sock.state = LOOPBACK, LOOPBACK, 5353, SocketState.ESTABLISHED
    updated, _ = kernel.wait(1.0)
    assert str(updated.flow.remote) == "127.0.0.1:5353"
    assert updated.delta.rx_bytes is None
    kernel.close(1)
    (removed,) = kernel.run()
    assert removed.counts.rx_bytes is None


def test_accepted_connections_are_inbound_by_their_listener(kernel):
    """Where sequence numbers do not tell, a known listener does; without one it stays unknown."""
    listener = FakeSocket(1, b"\0" * 4, 80, b"\0" * 4, 0, state=SocketState.LISTEN)
    kernel.sockets[1] = listener
    kernel.start()
    assert kernel.events[0].flow.direction is Direction.LISTENER
    ambiguous = traffic(0, 10, active=0, fin_sent=1)
    for cookie, port in ((5, 80), (6, 81)):
        kernel.feed(FakeSocket(cookie, LOOPBACK, port, PEER, 40000, info=ambiguous).message(final=True), 1)
    directions = {e.flow.local.port: e.flow.direction for e in kernel.run() if isinstance(e, FlowAdded)}
    assert directions == {80: Direction.INBOUND, 81: None}
    kernel.feed(FakeSocket(8, LOOPBACK, 80, PEER, 40000, protocol=17).message(final=True), 1)
    assert [e.flow.direction for e in kernel.run()] == [None, None], "it listens for TCP"
    kernel.close(1)
    assert kinds(kernel.run()) == ["FlowRemoved"]
    kernel.feed(FakeSocket(7, LOOPBACK, 80, PEER, 40000, info=ambiguous).message(final=True), 1)
    assert [e.flow.direction for e in kernel.run() if isinstance(e, FlowAdded)] == [None]


def test_between_two_states_nothing_is_proved(kernel):
    """When the message and its tcp_info tell different states, sequence numbers are no evidence of who began."""
    kernel.sockets[1] = FakeSocket(
        1, info={**traffic(0, 10, active=0, fin_sent=1), TcpInfo.STATE: SocketState.LAST_ACK}
    )
    kernel.start()
    assert kernel.events[0].flow.direction is None
    kernel.sockets[1].state = SocketState.LAST_ACK
    kernel.wait(1.0)
    assert kernel.events[-2].flow.direction is Direction.INBOUND


def test_a_refused_provider_is_told_once_and_the_others_go_on(kernel):
    """Without udp_diag UDP is refused by name; TCP works."""
    kernel.refused = {(2, 17): errno.ENOENT, (10, 17): errno.ENOENT}
    kernel.sockets[1] = FakeSocket(1, info=traffic())
    events = kernel.start()
    assert kinds(events) == ["ProviderRefused", "FlowAdded", "PollCompleted"]
    assert events[0].provider is Provider.UDP
    assert kernel.session.capabilities.providers == {Provider.TCP}
    assert not any(isinstance(e, ProviderRefused) for e in kernel.wait(1.0))


def test_a_kernel_without_inet_diag_fails_by_name(kernel):
    """When every dump is refused the session ends with the reason."""
    kernel.refused = {(family, protocol): errno.ENOENT for family in (2, 10) for protocol in (6, 17)}
    kernel.start()
    kernel.wait(1.0)
    assert isinstance(kernel.session.failure, _errors.BackendUnavailableError)


def test_failures_with_complete_polls_between_them_end_nothing(kernel):
    """Only many in a row do: each poll that works is a new beginning."""
    kernel.sockets[1] = FakeSocket(1, info=traffic())
    kernel.start()
    for _ in range(MAX_FAILURES + 2):
        kernel.during_dump = lambda: kernel.session.channel_failed(kernel.record[-1][2], errno.ENOBUFS, kernel.now)
        assert not polls(kernel.wait(1.0))[-1].complete
        assert polls(kernel.wait(1.0))[-1].complete
        assert kernel.session.failure is None


def polls(events):
    return [event for event in events if isinstance(event, PollCompleted)]


def test_a_dump_that_never_ends_is_given_up(kernel):
    """The poll is incomplete and says so, the channel is replaced, and the next poll works."""
    kernel.sockets[1] = FakeSocket(1, info=traffic())
    kernel.start()
    kernel.silent.add(0)
    kernel.wait(1.0)
    kernel.silent.clear()
    (done,) = kernel.wait(2.5)
    assert not done.complete
    kernel.wait(1.0)
    assert kernel.events[-1].complete
    assert len(list(kernel.session.flows())) == 1
    assert kernel.session.statistics()["reopened"] == 1


def test_dump_socket_errors_end_the_session_only_when_they_last(kernel):
    """A failed receive costs a poll; many in a row are a failure."""
    kernel.start()
    for _ in range(8):
        kernel.session.channel_failed(0, errno.ENOMEM, kernel.now)
        kernel.silent.add(0)
        kernel.wait(1.0)
    assert isinstance(kernel.session.failure, _errors.BackendUnavailableError)


def test_interfaces_follow_their_addresses(kernel):
    """The interface is that of the local address, changes included; the host tells Wi-Fi from cable."""
    kernel.sockets[1] = FakeSocket(1, bytes([192, 0, 2, 2]), remote=PEER, info=traffic())
    kernel.sockets[2] = FakeSocket(2, bytes([10, 9, 0, 1]), remote=PEER, info=traffic())
    kernel.start()
    by_id = {e.flow.id: e.flow.interface for e in flow_events(kernel.events)}
    assert (by_id["c1"].name, by_id["c1"].kind) == ("eth0", InterfaceKind.WIFI)
    assert by_id["c2"] is None
    kernel.feed(AddressMessage(2, 3, bytes([10, 9, 0, 1])).encode(RouteMessage.NEWADDR), 2)
    kernel.feed(LinkMessage(4, 1, "eth1").encode(RouteMessage.NEWLINK), 2)
    kernel.sockets[2].state = SocketState.CLOSE_WAIT
    updated, _ = kernel.wait(1.0)
    assert (updated.flow.interface.name, updated.flow.interface.kind) == ("wg0", InterfaceKind.VPN)


@pytest.mark.parametrize(
    ("provider", "counted", "groups"),
    [
        (Provider.TCP, True, (DiagGroup.TCP4_DESTROY, DiagGroup.TCP6_DESTROY)),
        (Provider.UDP, False, (DiagGroup.UDP4_DESTROY, DiagGroup.UDP6_DESTROY)),
    ],
)
def test_what_is_counted_is_what_is_asked_for(provider, counted, groups):
    """Without eBPF nobody counts UDP; channels are opened in an order in which nothing falls between them."""
    kernel = FakeKernel(providers={provider})
    kernel.session.start(kernel.now)
    opened = [each for each in kernel.session.commands() if isinstance(each, OpenChannel)]
    assert [each.channel for each in opened] == [1, 2, 3, 0]
    assert opened[0].purpose.groups == groups
    able = kernel.session.capabilities
    assert (able.tcp_counts, able.udp_counts) == (counted, False)


@pytest.mark.parametrize(
    ("setup", "refused", "expected", "limit"),
    [
        (Visibility.ALL, 0, Visibility.ALL, None),
        (Visibility.ALL, 1, Visibility.SOME, "1 process may not be looked at"),
        (Visibility.ALL, 2, Visibility.SOME, "2 processes may not be looked at"),
        (Visibility.OWN, 2, Visibility.OWN, "hidden"),
        (Visibility.OWN, 0, Visibility.OWN, "hidden"),
    ],
)
def test_whose_processes_are_seen_is_what_a_search_met(setup, refused, expected, limit):
    """What was known before a search stands, but for processes that it may not look at; and one poll is all that is asked for."""
    text = None if setup is Visibility.ALL else "hidden"
    kernel = FakeKernel(Session(MonitorOptions(interval=None, providers="tcp"), processes=setup, limit=text))
    kernel.refused_processes = refused
    kernel.sockets[1] = FakeSocket(1, inode=77)
    kernel.start()
    able = kernel.session.capabilities
    assert (able.processes, able.processes_limit) == (expected, limit)
    assert (limit in able.notes) is (limit is not None)
    assert not any("UDP" in note for note in able.notes)
    assert kinds(kernel.wait(9.0)) == []


def test_polls_do_not_wait_for_interfaces_forever(kernel):
    """Without rtnetlink's answer the first poll begins after its patience."""
    kernel.silent.add(2)
    assert kernel.start() == []
    assert kinds(kernel.wait(1.5)) == ["PollCompleted"]


@pytest.mark.parametrize("data", [b"\0", b"\0" * 20, b"\xff" * 40, b"\x14\0\0\0\x14\0\2\0" + bytes(12)])
@pytest.mark.parametrize("channel", [0, 1, 2, 3, 7])
def test_broken_bytes_cost_themselves(kernel, data, channel):
    """Nothing raises; what is broken is a loss in the stream, and polling goes on."""
    kernel.sockets[1] = FakeSocket(1, info=traffic())
    kernel.start()
    kernel.feed(data, channel)
    assert all(isinstance(e, EventsLost) and e.cause is LossCause.PROTOCOL for e in kernel.run())
    assert kernel.wait(1.0)[-1].complete
    assert kernel.session.statistics()["namespaces"] == 1


def test_strict_turns_broken_bytes_into_a_failure():
    """strict=True is for tests: the first undecodable datagram ends the session."""
    kernel = FakeKernel(strict=True)
    kernel.start()
    kernel.feed(b"\xff" * 40, 1)
    assert isinstance(kernel.session.failure, _errors.ProtocolError)


def test_no_interval_polls_once_and_on_demand():
    """interval=None: the first picture, goodbyes, and what is asked for."""
    kernel = FakeKernel(interval=None)
    kernel.start()
    assert kernel.session.next_deadline() is None
    kernel.sockets[1] = FakeSocket(1, info=traffic())
    assert kinds(kernel.poll()) == ["FlowAdded", "PollCompleted"]


def test_missed_intervals_are_skipped(kernel):
    """A late poll is not made up for by several."""
    kernel.start()
    kernel.wait(10.5)
    kernel.wait(0.1)
    assert sum(isinstance(e, PollCompleted) for e in kernel.events) == 2


def test_providers_choose_the_dumps():
    """Only what was asked for is dumped and subscribed; nothing that Linux has is a usage error."""
    kernel = FakeKernel(providers="tcp")
    kernel.start()
    requests = [item[3] for item in kernel.record if item[0] == "to" and item[2] == 0]
    assert [DiagRequest.decode(data, next(iterate_messages(data))).protocol for data in requests] == [6]
    with pytest.raises(_errors.UsageError, match="tcp, udp"):
        Session(MonitorOptions(providers={Provider.QUIC}))


def test_several_namespaces_share_one_stream():
    """Flows of another namespace say so, ids differ, and the poll is complete when all are."""
    session = Session(MonitorOptions(), namespaces=(NetworkNamespace(), NetworkNamespace("blue")))
    kernel = FakeKernel(session)
    kernel.sockets[1] = FakeSocket(1, info=traffic())
    added = [e.flow for e in kernel.start() if isinstance(e, FlowAdded)]
    assert {(flow.id, flow.namespace) for flow in added} == {("c1", None), ("n1:c1", "blue")}
    assert sum(isinstance(e, PollCompleted) for e in kernel.events) == 1


def test_a_recording_gives_the_same_events():
    """A passive session that is fed a conversation says what the session that had it said."""
    kernel = FakeKernel(interval=1.0)
    for cookie in range(1, 40):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, inode=1000 + cookie, info=traffic(5, 10))
        kernel.owners[1000 + cookie] = 42
    kernel.start()
    kernel.sockets[3].info = traffic(500, 10)
    kernel.sockets[41] = FakeSocket(41, local_port=41, inode=5, info=traffic())
    kernel.wait(1.0)
    kernel.sockets[4].info = traffic(5, 3000, fin_sent=1)
    kernel.close(4)
    kernel.run()
    kernel.sockets.pop(5)
    kernel.wait(1.0)
    kernel.wait(1.0)
    events = play(kernel, Session(mode=Mode.FOLLOWING))
    assert kinds(flow_events(events)) == kinds(flow_events(kernel.events))
    assert [e.flow for e in flow_events(events)] == [e.flow for e in flow_events(kernel.events)]
    assert [e.counts for e in flow_events(events)] == [e.counts for e in flow_events(kernel.events)]
    assert sum(isinstance(e, PollCompleted) for e in events) == 4


def play(kernel: FakeKernel, passive: Session, *, until: int | None = None) -> list:
    """What a core says that follows this kernel's recorded client, up to so many records."""
    passive.epoch_offset = 1000.0
    passive.start(100.0)
    return follow(kernel.record[:until], passive, kernel.now)


def test_a_recorded_client_of_two_namespaces_is_followed_in_both():
    """With the kinds of their interfaces, and what their flows explain of their traffic; they come as they are met."""
    kernel = FakeKernel(
        Session(MonitorOptions(interval=1.0), namespaces=(NetworkNamespace(), NetworkNamespace("1"))),
    )
    kernel.traffic = (("eth0", 5000, 6000),), (0, 0)
    kernel.sockets[1] = FakeSocket(1, bytes([192, 0, 2, 2]), inode=77, info=traffic(5, 10), cgroup=9)
    kernel.cgroups[9] = CgroupFacts(9, "/system.slice/a.service")
    kernel.owners[77] = 42
    kernel.start()
    kernel.sockets[1].info = traffic(500, 1000)
    kernel.traffic = (("eth0", 9000, 8000),), (3, 4)
    kernel.wait(6.0)
    passive = Session(mode=Mode.FOLLOWING)
    events = play(kernel, passive)
    assert [event.flow for event in flow_events(events)] == [event.flow for event in flow_events(kernel.events)]
    assert {event.flow.interface.kind for event in flow_events(events)} == {InterfaceKind.WIFI}
    assert {event.flow.cgroup for event in flow_events(events)} == {"/system.slice/a.service"}
    figures = {name: value for name, value in kernel.session.statistics().items() if name.startswith("coverage")}
    assert figures["coverage_rx_bytes"] == 8000
    assert figures.items() <= passive.statistics().items()


def test_a_recording_that_ends_within_a_poll_ends_it():
    """What its client still waited for does not come: what is known is announced, and the poll is not complete."""
    kernel = FakeKernel(interval=1.0)
    kernel.sockets[1] = FakeSocket(1, inode=77, cgroup=9, info=traffic())
    kernel.hold_lookups = True
    kernel.start()
    dump = next(n for n, (what, _, channel, _) in enumerate(kernel.record) if (what, channel) == ("from", 0)) + 1
    events = play(kernel, Session(mode=Mode.FOLLOWING), until=dump)
    assert [(type(event), event.serial) for event in polls(events)] == [(PollCompleted, 1)]
    assert not polls(events)[0].complete
    assert kinds(play(kernel, Session(mode=Mode.FOLLOWING))) == ["FlowAdded", "PollCompleted"]


def test_a_poll_that_is_asked_for_during_another_is_the_next_and_the_last(kernel):
    """Whoever asks gets to know what is there now, not what was there when that poll began."""
    kernel = FakeKernel(interval=None)
    kernel.start()
    kernel.hold_lookups = True
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    assert kernel.session.request_poll(kernel.now) == 2
    kernel.run()
    assert kernel.session.request_poll(kernel.now) == 3
    kernel.hold_lookups = False
    for held in kernel.held:
        kernel.answer(held)
    for _ in range(9):
        kernel.wait(1.0)
    assert [event.serial for event in polls(kernel.events)] == [1, 2, 3]


@pytest.mark.parametrize("place", [{"cgroup": 9}, {"inode": 77}])
def test_a_new_flow_waits_for_its_cgroup_as_long_as_for_its_process(kernel, place):
    kernel.start()
    kernel.hold_lookups = True
    kernel.sockets[1] = FakeSocket(1, info=traffic(), **place)
    assert kernel.wait(1.0) == []
    assert kernel.wait(OWNERS_PATIENCE - 0.01) == []
    assert kinds(kernel.wait(0.01)) == ["FlowAdded", "PollCompleted"]


def test_a_channel_that_is_closed_has_failed(kernel):
    kernel.start()
    kernel.session.channel_closed(0, kernel.now)
    kernel.session.channel_closed(1, kernel.now)
    kernel.run()
    figures = kernel.session.statistics()
    assert (figures["reopened"], figures["overruns"]) == (1, 1)


def test_notifications_that_say_too_little_are_losses_or_nobodys():
    """One without attributes does not even say of which protocol it is."""
    kernel = FakeKernel(providers=("tcp", "icmp"))
    kernel.start()
    assert kernel.session.capabilities.receive_buffer == 1 << 20
    whole = FakeSocket(5, info=traffic(0, 10, fin_sent=1)).message(final=True)
    bare = (88).to_bytes(4, "little") + whole[4:88]
    kernel.feed(bare + bare + whole, 1)
    assert kinds(kernel.run()) == ["FlowAdded", "FlowRemoved"]
    assert kernel.session.statistics()["goodbyes"] == 3
    short = (84).to_bytes(4, "little") + whole[4:84]
    kernel.feed(short + FakeSocket(6, local_port=6).message(final=True), 1)
    (lost, *rest) = kernel.run()
    assert (type(lost), lost.detail) == (EventsLost, "notification of a destroyed socket is too short")
    assert [event.flow.id for event in flow_events(rest)] == ["c6", "c6"]


def test_a_notification_that_ends_within_its_protocol_is_nobodys(kernel):
    """One that ends behind it is of a socket without counts."""
    kernel.start()
    whole = FakeSocket(5, protocol=17).message(final=True)
    for size in (92, 93):
        kernel.feed(size.to_bytes(4, "little") + whole[4:size], 1)
    added, removed = kernel.run()
    assert (added.flow.id, added.flow.provider) == ("c5", Provider.UDP)
    assert added.counts == removed.counts is not None


@pytest.mark.parametrize(
    ("known", "repeated", "after", "remote", "outcome"),
    [
        (True, 0, 0.5, PEER, Outcome.REFUSED),
        (True, 0, 0.5, b"\x0a\0\0\0", Outcome.REFUSED),
        (True, 0, 1.0, PEER, Outcome.FAILED),  # it may have timed out meanwhile
        (True, 2, 0.5, PEER, Outcome.TIMED_OUT),
        (False, 0, 0.5, PEER, Outcome.REFUSED),
        (False, 0, 1.0, PEER, Outcome.FAILED),
        (False, 0, 0.5, b"\0" * 4, None),  # it never tried
    ],
)
def test_how_an_attempt_ended_that_the_kernel_forgot(known, repeated, after, remote, outcome):
    """Who closes early refuses; whoever was asked again did not answer; that is what was known before."""
    kernel = FakeKernel(interval=None)
    sock = FakeSocket(5, remote=remote, state=SocketState.SYN_SENT, info={TcpInfo.TOTAL_RETRANS: repeated})
    if known:
        kernel.sockets[5] = sock
    kernel.start()
    kernel.now += after
    end = bytearray(attrs.evolve(sock, remote_port=0, unacked=3, info={}).message(final=True))
    end[56] = 2  # bound to an interface
    kernel.feed(bytes(end), 1)
    kernel.run()
    removed = kernel.events[-1]
    assert (removed.flow.outcome, removed.final) == (outcome, True)


def test_where_a_kernel_counts_no_segments_an_end_is_not_taken_for_an_aborted_one(kernel):
    """Its port is there: so are its counts, with a FIN or without."""
    kernel.start()
    sock = FakeSocket(5, remote_port=0x5000, info_length=136, info=traffic(100, 5, fin_sent=1))
    kernel.feed(sock.message(final=True), 1)
    kernel.run()
    removed = kernel.events[-1]
    assert (removed.final, removed.uncertainty) == (False, 1)


def test_after_a_loss_there_is_one_poll_as_soon_as_may_be(kernel):
    """Not sooner than a while after the last one began, nor later than the next begins anyway; and no more than one."""
    for interval, later, due in (
        (None, 0.0, 0.2),
        (None, 5.0, 5.0),
        (1.0, 0.0, 0.2),
        (1.0, 0.9, 0.9),
        (0.1, 0.05, 0.1),
    ):
        kernel = FakeKernel(interval=interval)
        kernel.start()
        began = kernel.now
        kernel.now += later
        kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
        kernel.session.channel_drained(1, kernel.now)
        if due > later:
            assert kernel.session.next_deadline() == began + due
        assert len(polls(kernel.run())) == (due <= later)
        kernel.wait(0.3)
        if interval is None:
            assert polls(kernel.wait(9.0)) == []


def test_absences_of_many_that_nobody_is_asked_about_are_looked_into_in_steps(kernel):
    for cookie in range(1, 600):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, info=traffic())
    kernel.per_datagram = 100
    kernel.start()
    kernel.sockets.clear()
    assert kinds(kernel.wait(1.0)) == ["PollCompleted"]


@pytest.mark.parametrize(("took", "pause"), [(1.0, 1.0), (1.5, 0.5), (1.75, 0.25)])
def test_a_begin_that_falls_into_a_poll_or_on_its_end_is_missed(kernel, took, pause):
    """Time for something else is left before the next."""
    kernel.start()
    kernel.silent.add(0)
    kernel.wait(1.0)
    kernel.now += took
    kernel.session.channel_failed(0, errno.ENOBUFS, kernel.now)
    assert kinds(kernel.run()) == ["PollCompleted"]
    assert kernel.session.next_deadline() == kernel.now + pause


def test_events_have_the_time_of_what_brought_them(kernel):
    """An answer, a channel's failure, somebody's request."""
    kernel.start()
    kernel.hold_lookups = True
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.owners[77] = 42
    kernel.wait(1.0)
    kernel.now += 0.2
    kernel.answer(kernel.held.pop())
    assert [event.time for event in kernel.run()] == [1101.2, 1101.2]
    kernel.now += 0.2
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    assert [event.time for event in kernel.session.take_events()] == [pytest.approx(1101.4)]
    kernel.now += 0.2
    kernel.hold_lookups = False
    assert kernel.poll()[-1].time == pytest.approx(1101.6)


def test_closed_namespaces_need_programs():
    kernel = FakeKernel(Session(MonitorOptions(), all_namespaces=True, closed=True))
    kernel.start()
    assert isinstance(kernel.session.failure, _errors.BackendUnavailableError)
    assert "needs CAP_SYS_ADMIN, or eBPF programs" in str(kernel.session.failure)

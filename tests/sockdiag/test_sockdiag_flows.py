"""A flow while it lives: it is added, updated when something changed, and its values are those of its socket."""

from __future__ import annotations

import copy
import pickle

import attrs
import pytest
from sockdiag_fakes import LOOPBACK, PEER, FakeKernel, FakeSocket, flow_events, kinds, traffic

from nstat_async import _model
from nstat_async._events import FlowAdded, FlowUpdated, PollCompleted
from nstat_async._model import Direction, InterfaceKind, Provider, TcpState
from nstat_async.aggregate import History, HistoryWriter, ProcessTable
from nstat_async.sockdiag import AddressMessage, LinkMessage, RouteMessage, SocketState, TcpInfo, _rows, _scan


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


def test_an_update_only_for_change(connected):
    """Idle sockets are silent; traffic gives one update with both totals and the same flow object."""
    assert kinds(connected.wait(1.0)) == ["PollCompleted"]
    connected.sockets[1].info = traffic(1005, 10)
    updated, _ = connected.wait(1.0)
    assert isinstance(updated, FlowUpdated)
    assert (updated.time, updated.delta.rx_bytes) == (1102.0, 1000)
    assert updated.delta.tx_bytes == 0
    assert updated.flow is connected.events[0].flow


def test_a_keepalive_is_no_change(connected):
    """Segments without data, timers and their expiry make no update."""
    sock = connected.sockets[1]
    sock.info |= {TcpInfo.SEGS_IN: 99, TcpInfo.SEGS_OUT: 98}
    sock.timer, sock.expires = 2, 5000
    assert kinds(connected.wait(1.0)) == ["PollCompleted"]


def test_every_update_reports_each_dump():
    """With every_update an idle socket is reported each time."""
    kernel = FakeKernel(every_update=True)
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    assert kinds(kernel.wait(1.0)) == ["FlowUpdated", "PollCompleted"]


def test_a_state_change_rebuilds_the_flow(connected):
    """The flow's value follows its state, its id and endpoints stay."""
    before = connected.events[0].flow
    connected.sockets[1].state = SocketState.CLOSE_WAIT
    connected.sockets[1].info = traffic(5, 10, fin=1)
    updated, _ = connected.wait(1.0)
    assert updated.flow.state is TcpState.CLOSE_WAIT
    assert updated.flow.id == before.id
    assert updated.flow.local is before.local
    assert updated.counts.rx_bytes == 5
    assert updated.flow.direction is Direction.OUTBOUND


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

"""A passive session that follows a recorded client reports what the session that had the conversation reported."""

from __future__ import annotations

from ebpf_records import encode, record
from programs_fakes import GRANTED, PORTS, RING, attrs_of
from sockdiag_fakes import FakeKernel, FakeSocket, flow_events, follow, kinds, polls, traffic

from nstat_async._contract import Mode
from nstat_async._events import LossCause, PollCompleted
from nstat_async._model import Attribution, InterfaceKind, Process, Visibility
from nstat_async._options import MonitorOptions
from nstat_async.ebpf import Kind
from nstat_async.sockdiag import CgroupFacts, NetworkNamespace, OwnersAnswer, ProcessesAnswer, ProcessFacts, Session


def play(kernel: FakeKernel, passive: Session, *, until: int | None = None) -> list:
    """What a core says that follows this kernel's recorded client, up to so many records."""
    passive.epoch_offset = 1000.0
    passive.start(100.0)
    return follow(kernel.record[:until], passive, kernel.now)


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
    assert len(polls(events)) == 4


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


def test_an_answer_that_comes_in_a_later_poll_names_the_processes_of_the_earlier_one_too():
    kernel = FakeKernel(interval=1.0)
    kernel.owners |= {77: 42, 78: 42}
    kernel.sockets[1] = FakeSocket(1, local_port=1, inode=77, info=traffic())
    kernel.start()
    kernel.sockets[2] = FakeSocket(2, local_port=2, inode=78, info=traffic())
    kernel.wait(1.0)
    passive = Session(mode=Mode.FOLLOWING)
    late = [each for each in kernel.record if isinstance(each[3], OwnersAnswer)]
    early = [each for each in kernel.record if each not in late]
    kernel.record = [(what, 100.0, channel, item) for what, _, channel, item in (*early, *late)]
    events = play(kernel, passive)
    assert [flow.process is None for flow, _ in passive.flows()] == [False, False]
    assert [event.serial for event in polls(events)] == [1, 2]
    assert passive.statistics()["sought_owners"] == 0, "nothing is sought any more: the recording is over"


def test_a_recording_that_ends_before_it_tells_the_names_of_processes_ends_too():
    """Their flows are announced with what the records of eBPF programs told."""
    kernel = FakeKernel(interval=1.0)
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.start()
    passive = Session(MonitorOptions(), kernel="6.18.0", mode=Mode.FOLLOWING)
    passive.epoch_offset = 1000.0
    passive.start(100.0)
    passive.lookup_done(0, GRANTED, 100.0)
    passive.receive_datagram(encode(attrs_of(record(Kind.OPENED, 9, pid=5, **PORTS))), 100.0, RING)
    events = follow(kernel.record, passive, kernel.now)
    assert {flow.process and (flow.process.name, flow.process.path) for flow, _ in passive.flows()} >= {("curl", None)}
    assert [event.serial for event in polls(events)] == [1]


def test_a_recorded_look_up_that_is_broken_is_a_loss():
    passive = Session(mode=Mode.FOLLOWING)
    passive.start(100.0)
    passive.observe_request(b"\xff" * 40, 100.0, 3)
    (lost,) = passive.take_events()
    assert (lost.cause, passive.failure) == (LossCause.PROTOCOL, None)


def test_records_are_followed_and_what_the_client_was_told_of_their_processes():
    passive = Session(MonitorOptions(), kernel="6.18.0", mode=Mode.FOLLOWING)
    passive.lookup_done(0, GRANTED, 100.0)
    passive.receive_datagram(encode(attrs_of(record(Kind.OPENED, 9, pid=5, **PORTS))), 100.1, RING)
    (added,) = flow_events(passive.take_events())
    assert (added.flow.process.name, added.flow.process.path) == ("curl", None)
    assert passive.commands() == []
    passive.lookup_done(0, ProcessesAnswer((ProcessFacts(5, 5, "curl", "/bin/curl"),)), 100.2)
    (updated,) = flow_events(passive.take_events())
    assert updated.flow.process.path == "/bin/curl"


def test_an_owner_that_an_earlier_part_found_is_unknown_in_a_later_one_and_not_the_kernel():
    """The recorded client knew it, and searched no more; of what it did search for in vain the follower concludes the same."""
    kernel = FakeKernel(Session(MonitorOptions(interval=1.0), processes=Visibility.ALL))
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.owners[77] = 42
    kernel.start()
    part = len(kernel.record)
    kernel.sockets[2] = FakeSocket(2, local_port=2, inode=88, info=traffic())  # nobody's
    for _ in range(4):
        kernel.wait(1.0)
    passive = Session(processes=Visibility.ALL, mode=Mode.FOLLOWING)
    passive.start(100.0)
    follow(kernel.record[part:], passive, kernel.now)
    found = {flow.local.port: (flow.process, flow.attribution) for flow, _ in passive.flows()}
    assert found == {FakeSocket(1).local_port: (None, None), 2: (Process(0, "kernel"), Attribution.KERNEL)}

"""The core with network namespaces that cannot be entered: their flows come from the tables of ``/proc/PID/net``."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from programs_fakes import GRANTED, Programs
from replaying import assert_same, replayed
from sockdiag_fakes import FakeSocket, flow_events, kinds

from nstat_async import Attribution, Direction, FlowAdded, FlowRemoved, FlowUpdated, TcpState
from nstat_async._contract import LookupFailed
from nstat_async._events import RemovalReason
from nstat_async._options import Ebpf
from nstat_async.sockdiag import (
    CgroupFacts,
    FoundNamespace,
    NamespacesAnswer,
    NamespacesRequest,
    NetworkNamespace,
    SocketState,
    SocketTablesAnswer,
    SocketTablesRequest,
    TableRow,
)
from nstat_async.sockdiag._outside import TAKEN_AT_ONCE

LOOPBACK, FAR = b"\x7f\0\0\1", bytes([198, 51, 100, 9])
ROW = TableRow("tcp", 77, 1000, LOOPBACK, FAR, 80, 4000, state=SocketState.ESTABLISHED)
LISTENER = TableRow("tcp", 70, 1000, bytes(4), bytes(4), 80, state=SocketState.LISTEN)
OUTBOUND = TableRow("tcp", 78, 1000, LOOPBACK, FAR, 5000, 443, state=SocketState.SYN_SENT)
DATAGRAMS = TableRow("udp6", 79, 1000, bytes(16), bytes(16), 53)
BOX = FoundNamespace(3, NetworkNamespace("pid:9"), entered=False)
NOTE = "1 network namespaces are watched from outside, by the tables in /proc/PID/net: these have neither bytes nor round trips"


class Box(Programs):
    """A machine with a namespace that nobody may enter."""

    def __init__(self, mode: Ebpf = Ebpf.OFF, **options: Any) -> None:
        super().__init__(mode=mode, everywhere=True, **options)
        self.there: list[TableRow] = []
        """What its tables have."""
        self.answers: list[Any] = []
        """Answers for the next questions for them, in place of that."""
        self.table_requests: list[SocketTablesRequest] = []
        self.spaces = NamespacesAnswer((BOX,), outside=1, whole=True)
        self.refused_processes = 1

    def answer(self, command: Any) -> None:
        request = command.request
        if isinstance(request, NamespacesRequest):
            self.namespace_requests.append(request)
            answer = self.spaces if request.outside else NamespacesAnswer(whole=True)
            self.spaces = attrs.evolve(self.spaces, found=(), gone=()) if request.outside else self.spaces
            self.session.lookup_done(command.token, answer, self.now)
        elif isinstance(request, SocketTablesRequest) and request.namespace == BOX.number:
            self.table_requests.append(request)
            answer = self.answers.pop(0) if self.answers else SocketTablesAnswer(BOX.number, tuple(self.there))
            self.session.lookup_done(command.token, answer, self.now)
        else:
            super().answer(command)

    def run(self) -> list[Any]:
        """A recording's clock is some nanoseconds ahead."""
        events = super().run()
        while (due := self.session.next_deadline()) is not None and due < self.now + 0.001:
            self.now = due
            events += super().run()
        return events

    def told(self) -> list[Any]:
        """Events of its flows in one more poll."""
        return [event for event in flow_events(self.poll()) if event.flow.namespace]

    def assert_replays(self) -> None:
        self.recorded.close()
        self.file.seek(0)
        assert_same(replayed(self.file), self.events)


@pytest.fixture
def box() -> Box:
    return Box()


def begun(box: Box, *there: TableRow) -> dict[int, Any]:
    """Its first poll is over: the flows that it found, by inode."""
    box.there = list(there)
    added = [event for event in flow_events(box.start()) if event.flow.namespace]
    return {entry.user[1]: event for event in added for entry in entries(box) if entry.flow == event.flow}


def entries(box: Box) -> list[Any]:
    (space,) = [each for each in box.session._namespaces if each.number == BOX.number]
    return list(space.book.entries.values())


def test_its_flows_come_without_bytes_and_with_what_a_table_tells(box):
    box.owners = {70: 5, 77: 5, 79: 6}
    found = begun(box, LISTENER, ROW, OUTBOUND, DATAGRAMS)
    assert {inode: e.flow.direction for inode, e in found.items()} == {
        70: Direction.LISTENER,
        77: Direction.INBOUND,
        78: Direction.OUTBOUND,
        79: None,
    }
    flow = found[77].flow
    assert (str(flow.local), str(flow.remote), flow.state) == (
        "127.0.0.1:80",
        "198.51.100.9:4000",
        TcpState.ESTABLISHED,
    )
    assert (flow.namespace, flow.id.split(":")[0], flow.interface) == ("pid:9", "n3", None)
    assert (str(found[79].flow.local), found[79].flow.state) == ("[::]:53", None)
    assert {inode: e.flow.process and e.flow.process.pid for inode, e in found.items()} == {
        70: 5,
        77: 5,
        78: None,
        79: 6,
    }
    assert found[78].flow.attribution is Attribution.HIDDEN
    assert flow.process.uid == 1000
    assert all(
        (e.counts.tx_bytes, e.counts.rx_packets, e.counts.avg_rtt_us, e.preexisting) == (None, None, None, True)
        for e in found.values()
    )
    assert len({e.flow.id for e in found.values()}) == 4
    assert box.told() == [], "nothing changed"
    assert {provider.value for provider in box.session.capabilities.providers} >= {"tcp", "udp"}
    box.assert_replays()


def test_a_change_of_state_is_an_update_and_the_flow_stays_the_same(box):
    found = begun(box, OUTBOUND)
    box.there = [attrs.evolve(OUTBOUND, state=SocketState.ESTABLISHED)]
    (updated,) = box.told()
    assert isinstance(updated, FlowUpdated)
    assert (updated.flow.id, updated.flow.state) == (found[78].flow.id, TcpState.ESTABLISHED)
    assert updated.flow.direction is Direction.OUTBOUND
    assert updated.counts.tx_bytes is None


def test_what_two_whole_readings_do_not_have_is_gone_and_its_bytes_are_unknown(box):
    """A table is read in pieces, between which one may be left out."""
    found = begun(box, LISTENER, ROW, DATAGRAMS)
    box.there = [LISTENER]
    assert box.told() == []
    box.there = [LISTENER, ROW]
    assert [type(event) for event in box.told()] == [FlowRemoved]
    box.there = [LISTENER]
    assert box.told() == [], "it was left out in one, and one before the last"
    (removed,) = box.told()
    assert isinstance(removed, FlowRemoved)
    assert (removed.flow.id, removed.final, removed.reason) == (found[77].flow.id, False, RemovalReason.GONE)
    assert (removed.counts.tx_bytes, removed.counts.rx_bytes, removed.flow.outcome) == (None, None, None)
    assert not [event for event in kinds(box.events) if event == "EventsLost"], "nothing was lost that was known"
    assert box.told() == []
    box.assert_replays()


@pytest.mark.parametrize(
    "answer",
    [
        SocketTablesAnswer(3, unread=True),
        SocketTablesAnswer(3, cut=True),
        SocketTablesAnswer(3, missing=("tcp",)),
        LookupFailed("no thread"),
    ],
)
def test_a_reading_that_is_not_whole_ends_no_flow_and_holds_up_no_poll(box, answer):
    begun(box, ROW)
    box.answers = [answer] * 3
    for _ in range(3):
        assert "PollCompleted" in kinds(box.poll())
    assert not [event for event in box.events if isinstance(event, FlowRemoved)]
    assert any("too long to be read whole" in note for note in box.session.capabilities.notes) is (
        getattr(answer, "cut", False)
    )


def test_what_cannot_be_read_at_first_is_there_as_soon_as_it_can(box):
    box.answers = [SocketTablesAnswer(3, unread=True)]
    assert begun(box, ROW) == {}
    assert [type(event) for event in box.told()] == [FlowAdded]


def test_it_is_asked_again_when_that_is_paid_for(box):
    box.answers = [SocketTablesAnswer(3, (ROW,), more=True, pause=2.5), SocketTablesAnswer(3, (LISTENER,))]
    assert len(begun(box)) == 2
    asked = len(box.table_requests)
    for _ in range(2):
        box.now += 1.0
        assert "PollCompleted" in kinds(box.poll())
    assert len(box.table_requests) == asked
    assert not [event for event in box.events if isinstance(event, FlowRemoved)]
    box.now += 0.6
    box.poll()
    assert len(box.table_requests) == asked + 1


def test_many_rows_come_in_pieces_and_are_taken_in_by_turns(box):
    many = [attrs.evolve(ROW, inode=1000 + number, remote_port=number) for number in range(5 * TAKEN_AT_ONCE + 1)]
    third = len(many) // 3
    pieces = [many[:third], many[third : 2 * third], many[2 * third :]]
    box.answers = [SocketTablesAnswer(3, tuple(piece), more=piece is not pieces[-1]) for piece in pieces]
    box.start()
    assert len([event for event in flow_events(box.events) if event.flow.namespace]) == len(many)
    assert [request.rest for request in box.table_requests] == [False, True, True]
    box.answers = [SocketTablesAnswer(3, tuple(many[third:]), more=True), LookupFailed("no thread")] * 2
    assert (box.told(), box.told()) == ([], []), "half a reading proves nothing"
    box.there = many[:third]
    assert box.told() == []
    assert len(box.told()) == len(many) - third
    box.assert_replays()


def test_the_same_socket_with_another_peer_is_another_flow(box):
    first = begun(box, ROW)[77].flow
    box.there = [attrs.evolve(ROW, remote_port=4001)]
    (added,) = box.told()
    assert isinstance(added, FlowAdded)
    assert added.flow.id != first.id
    (removed,) = box.told()
    assert removed.flow.id == first.id


@pytest.mark.parametrize("row", [LISTENER, DATAGRAMS])
def test_a_socket_that_was_gone_and_is_back_is_another_flow(box, row):
    """It was shut down, or dissolved, and listens again, or is bound again, at the same port."""
    ids = [event.flow.id for event in begun(box, row).values()]
    for number in (2, 3):
        box.there = []
        assert [*map(type, (*box.told(), *box.told()))] == [FlowRemoved]
        box.there = [row]
        ids += [event.flow.id for event in box.told()]
        assert ids[-1] == f"{ids[0]}.{number}"
    box.assert_replays()


def test_a_socket_that_changes_its_family_stays_the_same_flow(box):
    """``IPV6_ADDRFORM``."""
    mapped = bytes(10) + b"\xff\xff"
    six = attrs.evolve(ROW, table="tcp6", local=mapped + ROW.local, remote=mapped + ROW.remote)
    (flow,) = [event.flow for event in begun(box, six).values()]
    assert str(flow.remote) == "198.51.100.9:4000"
    box.there = [ROW]
    assert not [event for event in (*box.told(), *box.told()) if not isinstance(event, FlowUpdated)]


def test_subflows_of_multipath_tcp_have_one_inode_and_are_two_flows_of_one_process(box):
    box.owners = {77: 5}
    box.there = [ROW, attrs.evolve(ROW, local=bytes([192, 0, 2, 2]))]
    added = [event for event in flow_events(box.start()) if event.flow.namespace]
    assert len({event.flow.id for event in added}) == 2
    assert [event.flow.process.pid for event in added] == [5, 5]


@pytest.mark.parametrize(
    "row",
    [attrs.evolve(ROW, state=SocketState.TIME_WAIT), attrs.evolve(ROW, inode=0), attrs.evolve(ROW, table="nonsense")],
)
def test_what_is_no_socket_is_no_flow(box, row):
    assert begun(box, row) == {}


@pytest.mark.parametrize("value", [-1, 1 << 40])
def test_numbers_that_fit_no_message_do_not_end_anything(box, value):
    """A recording may have anything."""
    box.there = [attrs.evolve(ROW, inode=value, uid=value, port=value, device=value, state=value, local=bytes(99))]
    assert "PollCompleted" in kinds(box.start())


def test_lines_that_were_skipped_are_counted(box):
    box.answers = [SocketTablesAnswer(3, malformed=2)] * 2
    box.start()
    box.poll()
    assert box.session.statistics()["malformed_table_lines"] == 4


def test_where_all_processes_are_of_one_container_a_flow_without_an_owner_is_inferred_to_be_its(box):
    cgroup = "/system.slice/docker-" + "a" * 64 + ".scope"
    box.cgroups = {500: CgroupFacts(500, cgroup, "shop")}
    box.spaces = attrs.evolve(box.spaces, cgroups=((3, 500),))
    box.owners = {78: 5}
    found = begun(box, ROW, OUTBOUND)
    hidden, known = found[77].flow, found[78].flow
    assert (hidden.process, hidden.attribution, hidden.container, hidden.cgroup) == (
        None,
        Attribution.INFERRED,
        "shop",
        cgroup,
    )
    assert (known.process.pid, known.attribution, known.container) == (5, None, "shop")
    box.spaces = attrs.evolve(box.spaces, cgroups=())
    box.poll()
    box.there = [ROW, OUTBOUND, LISTENER]
    (added,) = box.told()
    assert (added.flow.attribution, added.flow.container) == (Attribution.HIDDEN, None), "there are several now"
    box.assert_replays()


def test_a_flow_that_is_known_before_its_container_gets_it_by_an_update(box):
    box.cgroups = {500: CgroupFacts(500, "/box", None)}
    begun(box, ROW)
    box.spaces = attrs.evolve(box.spaces, cgroups=((3, 500),))
    box.poll()
    box.poll()
    last = [event for event in flow_events(box.events) if event.flow.namespace][-1]
    assert isinstance(last, FlowUpdated)
    assert (last.flow.cgroup, last.flow.attribution) == ("/box", Attribution.INFERRED)
    box.there = []
    box.poll()
    (removed,) = box.told()
    assert (removed.flow.cgroup, removed.flow.attribution) == ("/box", Attribution.INFERRED)


def test_a_namespace_that_ends_ends_its_flows(box):
    found = begun(box, ROW, LISTENER)
    box.spaces = attrs.evolve(box.spaces, gone=(3,), outside=0)
    removed = [event for event in box.told() if isinstance(event, FlowRemoved)]
    assert {event.flow.id for event in removed} == {event.flow.id for event in found.values()}
    assert {(event.reason, event.final) for event in removed} == {(RemovalReason.GONE, False)}
    assert box.session.statistics()["namespaces"] == 1
    box.poll()
    assert box.namespace_requests[-1].released == (3,)
    assert NOTE not in " ".join(box.session.capabilities.notes)
    box.assert_replays()


def test_what_it_cannot_tell_is_said_once(box):
    begun(box, ROW)
    for _ in range(3):
        box.poll()
    able = box.session.capabilities
    assert " ".join(able.notes).count("watched from outside") == 1
    assert NOTE in able.namespaces_limit


def test_processes_that_proc_hides_are_said_to_be_hidden(box):
    box.spaces = NamespacesAnswer(whole=True, veiled=True)
    box.start()
    assert "/proc hides them (hidepid=)" in box.session.capabilities.namespaces_limit


def test_without_programs_tables_are_known_before_the_first_poll_whenever_that_is_known():
    box = Box(Ebpf.AUTO)
    box.granted = attrs.evolve(GRANTED, tier=type(GRANTED.tier).NONE, owners=False)
    box.sockets[1] = FakeSocket(1)
    box.hold_lookups = True
    box.there = [ROW]
    box.start()
    while box.held:  # the first look is over before it is known that there are no programs
        held, box.held = box.held, []
        for command in sorted(held, key=lambda each: type(each.request).__name__, reverse=True):
            box.answer(command)
            assert box.session.subscribed or not [event for event in box.events if kinds([event]) == ["PollCompleted"]]
        box.run()
    assert [request.outside for request in box.namespace_requests] == [False, True, True]
    assert {event.flow.namespace for event in flow_events(box.events)} == {None, "pid:9"}
    assert {event.preexisting for event in flow_events(box.events)} == {True}


def test_where_programs_tell_of_such_namespaces_no_table_is_read():
    """They know a socket by its cookie, a table by its inode: it would be there twice."""
    box = Box(Ebpf.AUTO)
    box.start()
    box.poll()
    assert not any(request.outside for request in box.namespace_requests)
    assert box.table_requests == []


def test_a_look_that_fails_holds_up_no_first_poll():
    box = Box()
    box.hold_lookups = True
    box.start()
    held, box.held, box.hold_lookups = box.held, [], False
    for command in held:
        box.session.lookup_done(command.token, LookupFailed("no thread"), box.now)
    assert "PollCompleted" in kinds(box.run())

"""Network namespaces that cannot be entered, by the tables of ``/proc/PID/net``: their text, the core, the living kernel."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nursery import MOUNTS, NETWORK, PROCESSES
from programs_fakes import GRANTED, Programs
from replaying import assert_same, replayed
from sockdiag_fakes import FakeSocket, flow_events, kinds

from nstat_async import Attribution, Direction, FlowAdded, FlowRemoved, FlowUpdated, TcpState
from nstat_async._contract import LookupFailed
from nstat_async._events import RemovalReason
from nstat_async._io import outside as io_outside
from nstat_async._io import proctables as io_proctables
from nstat_async._io.outside import Outside
from nstat_async._io.proctables import parse_table, read_table, read_tables
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

# -- the text of a table

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line_of(row: TableRow, more: str = "1 00000000c0ffee00 20 4 30 10 -1") -> str:
    """As ``get_tcp4_sock`` and its like write it."""
    ends = []
    for address, port in ((row.local, row.port), (row.remote, row.remote_port)):
        words = (int.from_bytes(address[at : at + 4], sys.byteorder) for at in range(0, len(address), 4))
        ends.append("".join(f"{word:08X}" for word in words) + f":{port:04X}")
    return f"   0: {ends[0]} {ends[1]} {row.state:02X} 00000000:00000000 00:00000000 00000000 {row.uid:5d}        0 {row.inode} {more}\n"


PORTS = st.integers(0, 0xFFFF)
STATES = st.sampled_from([int(state) for state in SocketState])


def rows(name: str, size: int) -> st.SearchStrategy[TableRow]:
    addresses = st.binary(min_size=size, max_size=size)
    numbers = st.integers(1, 0xFFFFFFFF)
    return st.builds(TableRow, st.just(name), numbers, numbers, addresses, addresses, PORTS, PORTS, st.just(0), STATES)


@given(
    st.sampled_from([("tcp", 4), ("udp", 4), ("raw", 4), ("tcp6", 16), ("udp6", 16)]).flatmap(
        lambda kind: st.tuples(st.just(kind[0]), st.lists(rows(*kind), max_size=5))
    )
)
def test_a_table_is_read_as_it_is_written(written: tuple[str, list[TableRow]]):
    name, of = written
    reading = parse_table(name, HEAD + "".join(map(line_of, of)))
    assert (reading.rows, reading.malformed, reading.cut) == (of, 0, False)


@given(st.lists(st.text(max_size=150)), st.sampled_from(["tcp", "udp6", "packet"]))
def test_lines_that_make_no_sense_are_skipped_and_counted(lines: list[str], name: str):
    good = "c0ffee00 3 10 88CC 2 1 0 1000 77\n" if name == "packet" else line_of(ROW)
    lines = [each for line in lines for each in line.splitlines() or [line] if each.strip()]
    reading = parse_table(name, HEAD + good + "".join(f"{line}\n" for line in lines))
    assert reading.rows[0].inode == 77
    assert len(reading.rows) - 1 + reading.malformed <= len(lines)


@pytest.mark.parametrize("word", ["0100007F:zz", "100007F:15B3", "0100007G:15B3", "-100007F:15B3", "nothing"])
def test_an_end_that_is_none_makes_a_malformed_line(word):
    reading = parse_table("tcp", HEAD + line_of(ROW).replace("0100007F:0050", word) + line_of(ROW))
    assert (len(reading.rows), reading.malformed) == (1, 1)


def test_what_is_no_socket_of_a_process_has_no_row():
    """Connections that wait to be accepted, and what is left of others."""
    assert parse_table("tcp", HEAD + line_of(attrs.evolve(ROW, inode=0, state=SocketState.TIME_WAIT))).rows == []


def test_of_a_long_table_the_beginning_is_read_and_that_is_said(tmp_path):
    (tmp_path / "tcp").write_text(HEAD + line_of(ROW) * 9)
    whole = read_table(str(tmp_path), "tcp")
    assert (len(whole.rows), whole.cut) == (9, False)
    cut = read_table(str(tmp_path), "tcp", len(HEAD) + 3 * len(line_of(ROW)) + 7)
    assert (len(cut.rows), cut.malformed, cut.cut) == (3, 0, True)
    most = read_table(str(tmp_path), "tcp", len(HEAD) + 9 * len(line_of(ROW)))
    assert (len(most.rows), most.cut) == (9, False)
    frames = "sk RefCnt Type Proto Iface R Rmem User Inode\n" + "c0ffee00 3 10 88CC 2 1 0 1000 13\n" * 2
    (tmp_path / "packet").write_text(frames)
    assert [row.inode for row in read_table(str(tmp_path), "packet", len(frames) - 3).rows] == [13]


def test_tables_are_read_one_after_the_other_with_what_is_wrong_in_each(tmp_path, monkeypatch):
    packets = "sk RefCnt Type Proto Iface R Rmem User Inode\nc0ffee00 3 10 88CC 2 1 0 1000 13\n"
    for name, text in (("tcp", HEAD + "x\n" + line_of(ROW)), ("packet", packets + "y\ny\n"), ("udp", HEAD)):
        (tmp_path / name).write_text(text)
    answer = read_tables(str(tmp_path), SocketTablesRequest(5, ("tcp", "packet", "udp")))
    frames = TableRow("packet", 13, 1000, port=0x88CC, device=2)
    assert answer == SocketTablesAnswer(5, (ROW, frames), malformed=3)
    monkeypatch.setattr(io_proctables, "MOST_BYTES", 9)
    assert read_tables(str(tmp_path), SocketTablesRequest(5, ("tcp", "udp"))).cut


@pytest.mark.parametrize(
    ("counted", "read"), [("TCP: inuse 0 orphan 0\n", 0), ("TCP: inuse 1 orphan 0\n", 1), ("?\n", 1)]
)
def test_a_table_of_which_the_kernel_counts_no_socket_is_not_read(tmp_path, counted, read):
    (tmp_path / "tcp").write_text(HEAD + line_of(ROW))
    (tmp_path / "sockstat").write_text("sockets: used 9\n" + counted)
    answer = read_tables(str(tmp_path), SocketTablesRequest(5, ("tcp", "udp")))
    assert (answer.namespace, len(answer.rows), answer.missing) == (5, read, ("udp",))


# -- the core

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


# -- which namespaces there are


def met(outside: Outside, *processes: tuple[int, int], entered: frozenset[int | None] = frozenset()) -> Any:
    """A round that meets these processes in these namespaces; what came and went."""
    outside.begin_round()
    for pid, network in processes:
        outside.meet(pid, network, f"pid:{pid}")
    return outside.end_round(entered, 10)


@pytest.fixture
def outside(monkeypatch) -> Outside:
    monkeypatch.setattr(
        io_outside, "cgroup_of_process", lambda pid, _: {1: 50, 2: 50, 3: 51, 4: None, 5: 0}.get(pid, 60)
    )
    return Outside()


def test_a_namespace_is_found_by_its_processes_and_has_the_name_of_the_first(outside):
    found, gone = met(outside, (1, 100), (2, 100), (7, 200), (8, 300), entered=frozenset({300}))
    assert [(each.number, each.identity.label, each.entered) for each in found] == [
        (10, "pid:1", False),
        (11, "pid:7", False),
    ]
    assert (gone, outside.networks, len(outside)) == ([], {100, 200}, 2)
    assert met(outside, (1, 100), (7, 200)) == ([], [])


def test_one_that_two_rounds_do_not_meet_is_gone_and_so_is_one_that_was_entered(outside):
    met(outside, (1, 100), (7, 200))
    assert met(outside, (7, 200)) == ([], [])
    assert met(outside, (1, 100), (7, 200)) == ([], [])
    assert met(outside, (7, 200)) == ([], [])
    assert met(outside, (7, 200)) == ([], [10])
    assert met(outside, (7, 200), entered=frozenset({200})) == ([], [11])
    assert len(outside) == 0


def test_a_number_that_the_kernel_gave_to_another_namespace_is_another_namespace(outside):
    """It gives the lowest that is free; no process of the one before is in it."""
    met(outside, (1, 100))
    found, gone = met(outside, (9, 100))
    assert ([each.identity.label for each in found], gone) == (["pid:9"], [10])


@pytest.mark.parametrize(
    ("processes", "cgroups"),
    [((1, 2), ((10, 50),)), ((1, 3), ()), ((1, 4), ((10, 50),)), ((1, 5), ()), ((5,), ()), ((4,), ())],
)
def test_the_cgroup_of_a_namespace_is_that_of_all_its_processes_or_none(outside, processes, cgroups):
    met(outside, *((pid, 100) for pid in processes))
    assert outside.cgroups == cgroups


def test_what_becomes_of_one_says_nothing_of_the_others(outside):
    met(outside, (1, 100), (2, 200), (3, 300))
    assert met(outside, (1, 100), (3, 300)) == ([], [])
    assert met(outside, (1, 100), (3, 300)) == ([], [11])


def test_the_first_processes_of_one_are_remembered_and_no_more(outside):
    pids = range(1, io_outside.PIDS + 3)
    met(outside, *((pid, 100) for pid in pids))
    assert outside._spaces[10].pids == tuple(pids)[: io_outside.PIDS]


def test_they_are_bounded(outside, monkeypatch):
    monkeypatch.setattr(io_outside, "MOST", 2)
    assert (outside.beyond, outside.cgroups) == (0, ())
    met(outside, (1, 100))
    assert outside.beyond == 0
    outside.release(10)
    found, _ = met(outside, (1, 100), (2, 200), (3, 300))
    assert (len(found), outside.beyond) == (2, 1)
    outside.release(10)
    found, _ = met(outside, (1, 100), (2, 200), (3, 300))
    assert (len(found), outside.beyond) == (1, 1)


def test_a_reading_is_told_in_pieces_with_the_pause_that_pays_for_it(outside, monkeypatch):
    clock = {"cpu": 5.0}
    monkeypatch.setattr(io_outside.time, "thread_time", lambda: clock["cpu"])
    monkeypatch.setattr(io_outside, "network_at", {"/proc/1/net": 100, "/proc/7/net": 200}.get)

    def read(_net, request):
        clock["cpu"] += 0.05
        return SocketTablesAnswer(request.namespace, (ROW,) * 5000)

    monkeypatch.setattr(io_outside, "read_tables", read)
    met(outside, (1, 100), (7, 200))
    request = SocketTablesRequest(10, ("tcp",))
    first = outside.tables(request)
    assert (len(first.rows), first.more) == (io_outside.AT_ONCE, True)
    assert first.pause == pytest.approx(4.0), (
        "50 ms, and 50 ms for the rows, are 5 % of two seconds; there are two of them"
    )
    rest = [outside.tables(attrs.evolve(request, rest=True)) for _ in range(2)]
    assert [(len(each.rows), each.more, each.pause) for each in rest] == [(2048, True, 0.0), (904, False, 0.0)]
    assert outside.tables(attrs.evolve(request, namespace=12)).unread, "nobody knows it"
    assert outside.tables(request).more
    monkeypatch.setattr(io_outside, "network_at", lambda _net: None)
    answer = outside.tables(request)
    assert (answer.unread, answer.rows, answer.more) == (True, (), False), "what was left is of before"


def test_a_process_that_went_elsewhere_meanwhile_shows_nothing(outside, monkeypatch):
    """What was read may be another namespace's: the next process is asked."""
    places = iter([100, 999, None, 100, 100])
    monkeypatch.setattr(io_outside, "network_at", lambda _net: next(places))
    monkeypatch.setattr(
        io_outside,
        "read_tables",
        lambda net, request: SocketTablesAnswer(request.namespace, (attrs.evolve(ROW, table=net),)),
    )
    met(outside, (1, 100), (2, 100), (3, 100))
    assert [row.table for row in outside.tables(SocketTablesRequest(10, ("tcp",))).rows] == ["/proc/3/net"]


def test_what_no_process_shows_is_not_read(outside, monkeypatch):
    monkeypatch.setattr(io_outside, "network_at", lambda _net: None)
    met(outside, (1, 100))
    assert outside.tables(SocketTablesRequest(10, ("tcp",))).unread


@pytest.mark.parametrize(
    ("number", "table_cut", "told", "cut"), [(3, False, 3, False), (4, False, 3, True), (2, True, 2, True)]
)
def test_so_many_sockets_of_a_namespace_are_told_and_no_more(outside, monkeypatch, number, table_cut, told, cut):
    monkeypatch.setattr(io_outside, "MOST_ROWS", 3)
    monkeypatch.setattr(io_outside, "network_at", lambda _net: 100)
    monkeypatch.setattr(
        io_outside,
        "read_tables",
        lambda _net, request: SocketTablesAnswer(request.namespace, (ROW,) * number, cut=table_cut),
    )
    met(outside, (1, 100))
    answer = outside.tables(SocketTablesRequest(10, ("tcp",)))
    assert (len(answer.rows), answer.cut, answer.more) == (told, cut, False)


# -- the living kernel

BEGIN = """
import codecs, ctypes, fcntl, json, os, socket, struct, subprocess, sys, time
import nstat_async._io.outside
from nstat_async._options import MonitorOptions
from nstat_async.backends import SockDiag
from nstat_async._events import FlowAdded, FlowRemoved, PollCompleted
from sockdiag_fakes import LiveDriver
codecs.lookup("ascii")  # whoever has no privilege cannot import it
LIBC = ctypes.CDLL(None, use_errno=True)
nstat_async._io.outside.SHARE = 100  # each poll reads anew
def powerless():
    "As root without capabilities."
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert LIBC.prctl(4, 1, 0, 0, 0) == 0 and LIBC.capset(header, nothing) == 0
    assert LIBC.prctl(4, 1, 0, 0, 0) == 0  # dumpable again
def ordinary():
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
def container(drop):
    "A process in a network namespace of its own, which does as it is told: its pid, its port, and how to tell it."
    there, here = os.pipe(); told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(tell)
        assert LIBC.unshare(0x40000000) == 0
        with socket.socket() as any_socket:
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x49))
        drop()
        LIBC.prctl(4, 1, 0, 0, 0)
        listener = socket.create_server(("127.0.0.1", 0)); held = []
        os.write(here, b"%d " % listener.getsockname()[1])
        while (word := os.read(told, 1)):
            if word == b"o":
                held = [socket.create_connection(listener.getsockname()), listener.accept()[0]]
                os.write(here, b"%d " % held[0].getsockname()[1])
            else:
                [each.close() for each in held]
        os._exit(0)
    def port():
        text = b""
        while not text.endswith(b" "):
            text += os.read(there, 1)
        return int(text)
    os.close(told)
    return pid, port, tell
def watch():
    options = MonitorOptions(interval=0.02, ebpf="off", pulse=None, providers=("tcp", "udp"))
    return LiveDriver(*SockDiag("all").parts(options))
def flow(live, local, remote=None):
    "The flow with these ports, as it was told last."
    for event in reversed(live.events):
        f = getattr(event, "flow", None)
        if f is not None and f.namespace and f.local.port == local and (f.remote.port if f.remote else None) == remote:
            return event
"""

LIFE = """
powers = {"user": ordinary, "root": powerless}
pid, port, tell = container(powers[TARGET])
listening = port()
powers[WATCHER]()
with watch() as live:
    live.until(lambda: flow(live, listening) and (flow(live, listening).flow.process or flow(live, listening).flow.attribution))
    first = flow(live, listening).flow
    os.write(tell, b"o"); client = port()
    def both():
        ends = flow(live, listening, client), flow(live, client, listening)
        return all(e and (e.flow.process or e.flow.attribution) for e in ends) and ends
    server_end, client_end = live.until(both)
    notes = live.core.capabilities.notes
    os.write(tell, b"c")
    live.until(lambda: isinstance(flow(live, client, listening), FlowRemoved))
    removed = flow(live, client, listening)
    os.close(tell)
    live.until(lambda: isinstance(flow(live, listening), FlowRemoved))
    print(json.dumps({
        "pids": [e and e.process and e.process.pid for e in (first, server_end.flow, client_end.flow)], "pid": pid,
        "why": first.attribution and first.attribution.value, "uid": first.process and first.process.uid,
        "direction": [first.direction.value, server_end.flow.direction.value, client_end.flow.direction and client_end.flow.direction.value],
        "bytes": [removed.counts.tx_bytes, removed.final, removed.reason.value],
        "label": first.namespace, "flows": len({e.flow.id for e in live.events if isinstance(e, FlowAdded) and e.flow.namespace}),
        "notes": sum("watched from outside" in note for note in notes),
        "processes": live.core.capabilities.processes.value,
    }))
"""

privileged = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")


@pytest.fixture
def inside(nursery):
    """What a program prints that runs in network, mount and pid namespaces of its own."""

    def run(script: str, **names: Any) -> Any:
        given_names = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        status, out, err = nursery.run(BEGIN + given_names + script, NETWORK | MOUNTS | PROCESSES)
        assert status == 0, err
        return json.loads(out)

    return run


@pytest.mark.linux
@privileged
@pytest.mark.parametrize(
    ("watcher", "target", "named"),
    [("root", "root", True), ("user", "user", True), ("user", "root", False)],
)
def test_flows_of_a_container_come_change_and_go_for_whoever_has_no_privilege(inside, watcher, target, named):
    told = inside(LIFE, WATCHER=watcher, TARGET=target)
    assert told["pids"] == [told["pid"] if named else None] * 3
    assert told["why"] == (None if named else "hidden")
    assert told["direction"] == ["listener", "inbound", None]
    assert told["bytes"] == [None, False, "gone"]
    assert told["label"] == f"pid:{told['pid']}"
    assert told["flows"] == 3, "each once"
    assert told["notes"] == 1
    assert told["processes"] != "all"


HIDING = """
pid, port, tell = container(lambda: None)
listening = port()
subprocess.run(["mount", "-t", "proc", "-o", OPTIONS, "proc", "/proc"], check=True)
ordinary()
with watch() as live:
    live.poll()
    print(json.dumps([flow(live, listening) is None, live.core.capabilities.namespaces_limit]))
"""


@pytest.mark.linux
@privileged
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("hidepid=2", "/proc hides them (hidepid=)"),
        ("hidepid=1", "processes cannot be seen: that needs CAP_SYS_PTRACE"),
    ],
)
def test_where_proc_hides_others_nothing_is_seen_of_them_and_that_is_said(inside, options, words):
    unseen, limit = inside(HIDING, OPTIONS=options)
    assert unseen
    assert words in limit


CGROUP = """
from nstat_async._io.cgroups import hierarchy_here
hierarchy, name = hierarchy_here(), "docker-" + os.urandom(32).hex() + ".scope"
top = f"{hierarchy.directory if hierarchy else '/nowhere'}/{name}"
try:
    os.mkdir(top)
except OSError as error:
    print(json.dumps([error.strerror])); sys.exit()
def join():
    with open(f"{top}/cgroup.procs", "w") as file:
        file.write("0")
pid, port, tell = container(join)
listening, caller = port(), os.fork()
if not caller:
    ordinary()
    with watch() as live:
        live.until(lambda: flow(live, listening) and flow(live, listening).flow.attribution)
        told = flow(live, listening).flow
        print(json.dumps([name, told.attribution.value, told.process, told.cgroup, told.container]), flush=True)
    os._exit(0)
os.waitpid(caller, 0); os.close(tell); os.waitpid(pid, 0); os.rmdir(top)
"""


@pytest.mark.linux
@privileged
def test_an_ordinary_user_knows_whose_container_it_is(inside):
    name, *told = inside(CGROUP)
    if not told:
        pytest.skip(f"no cgroup can be made here: {name}")
    assert told == ["inferred", None, f"/{name}", name.removeprefix("docker-").removesuffix(".scope")]


REPLAY = """
import asyncio, io
from nstat_async import Monitor
from nstat_async.backends import Replay
pid, port, tell = container(lambda: None)
listening = port()
powerless()
path = "/proc/self/fd/%d" % os.memfd_create("recording")
def story(events):
    return [(type(e).__name__, e.flow.id, e.flow.namespace, str(e.flow.state), str(e.flow.remote)) for e in events if isinstance(e, (FlowAdded, FlowRemoved))]
async def run():
    told = []
    async with Monitor(netns="all", interval=0.02, ebpf="off", pulse=None, providers="tcp", record_to=path, overflow="all") as monitor:
        async for event in monitor:
            told.append(event)
            if isinstance(event, FlowAdded) and event.flow.local.port == listening and event.flow.remote is None:
                os.write(tell, b"o"); client = port(); break
        async for event in monitor:
            told.append(event)
            if isinstance(event, FlowAdded) and event.flow.local.port == client:
                os.write(tell, b"c"); break
        async for event in monitor:
            told.append(event)
            if isinstance(event, FlowRemoved) and event.flow.local.port == client:
                os.close(tell); break
        async for event in monitor:
            told.append(event)
            if isinstance(event, FlowRemoved) and event.flow.local.port == listening and event.flow.remote is None:
                return story(told)
async def again():
    async with Monitor(backend=Replay(path), overflow="all") as monitor:
        return story([event async for event in monitor])
told = asyncio.run(run())
print(json.dumps([told, asyncio.run(again())[:len(told)]]))
"""


@pytest.mark.linux
@privileged
def test_a_replay_is_the_run(inside):
    run, replay = inside(REPLAY)
    assert len(run) >= 6
    assert replay == run


@pytest.mark.linux
@privileged
def test_to_enter_is_preferred(inside):
    """Root has the bytes, and nothing twice."""
    told = inside("""
pid, port, tell = container(lambda: None)
listening = port()
with watch() as live:
    live.until(lambda: flow(live, listening))
    live.poll(); live.poll()
    ids = {e.flow.id for e in live.events if isinstance(e, FlowAdded) and e.flow.local.port == listening}
    print(json.dumps([len(ids), live.core.capabilities.namespaces_limit, len(live.transport._finder.outside)]))
""")
    assert told == [1, None, 0]

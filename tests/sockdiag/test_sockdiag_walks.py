"""Polls that ask for what moved in place of a dump of all: they report the same, and dump whenever that is not sure."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from ebpf_records import encode, record
from programs_fakes import GRANTED, NETWORK, RING, Programs
from replaying import assert_same, replayed
from sockdiag_fakes import FakeSocket, flow_events

from nstat_async import FlowAdded, FlowRemoved, FlowUpdated, PollCompleted, TcpState
from nstat_async._contract import Lookup, LookupFailed
from nstat_async.ebpf import CHANGED, Kind, decode_changed
from nstat_async.sockdiag import ChangedAnswer, ChangedRequest, DiagRequest, TcpInfo, iterate_messages
from nstat_async.sockdiag import _lookups as lookups
from nstat_async.sockdiag import _walks as walks
from nstat_async.sockdiag._constants import SocketState

SOCKETS = 6
LISTENING = 1 << SocketState.LISTEN


def row(cookie: int, sock: FakeSocket | None = None, *, namespace: int = NETWORK, number: int = 0) -> bytes:
    """A row of a walk; without a socket where it begins or ends."""
    sock = sock or FakeSocket(0, b"", 0, b"", 0)
    port = sock.remote_port.to_bytes(2, "big")
    return CHANGED.pack(cookie, namespace, sock.local, sock.remote, 0, number, sock.local_port, port, sock.family, 1)


class Walking(Programs):
    """Its programs tell what moved."""

    def __init__(self, **options: Any) -> None:
        super().__init__(attrs.evolve(GRANTED, changes=True), **options)
        self.moved: set[int] = set()
        self.spoil: Callable[[bytes], Any] = ChangedAnswer
        """What becomes of the rows of a walk."""
        self.mark: Callable[[bytes], Any] = ChangedAnswer
        """The same of the first one; `None`: it is not answered."""
        self.marks = 0
        for cookie in range(1, SOCKETS + 1):
            self.sockets[cookie] = FakeSocket(cookie, local_port=40000 + cookie, inode=cookie)

    def answer(self, command: Lookup) -> None:
        request = command.request
        if not isinstance(request, ChangedRequest):
            super().answer(command)
            return
        self.marks += request.mark
        moved, self.moved = sorted(self.moved), set()
        rows = b"".join(row(cookie, self.sockets[cookie]) for cookie in moved)
        whole = row(0) if request.mark else row(0) + rows + row(0, namespace=0, number=len(self.sockets))
        answer = self.mark(whole) if request.mark else self.spoil(whole)
        if answer is None:
            return
        self.session.lookup_done(command.token, answer, self.now)

    def send(self, cookie: int, *, told: bool = True) -> None:
        """A socket sends ten bytes more."""
        info = self.sockets[cookie].info
        for field in (TcpInfo.BYTES_SENT, TcpInfo.BYTES_ACKED):
            info[field] = info.get(field, 0) + 10
        info[TcpInfo.DATA_SEGS_OUT] = info.get(TcpInfo.DATA_SEGS_OUT, 0) + 1
        if told:
            self.moved.add(cookie)

    def dumped(self, act: Callable[[], Any]) -> list[int]:
        """The states of TCP that are dumped meanwhile."""
        begin = len(self.record)
        act()
        sent = [data for what, _, channel, data in self.record[begin:] if (what, channel) == ("to", 0)]
        requests = [DiagRequest.decode(data, frame) for data in sent for frame in iterate_messages(data)]
        return [request.states for request in requests if request.protocol == 6]


@pytest.fixture
def unmarked(monkeypatch):
    """One that was polled once."""
    monkeypatch.setattr(walks, "LEAST", SOCKETS)
    monkeypatch.setattr(walks, "SHARE", 1)
    kernel = Walking()
    kernel.start()
    assert kernel.marks == 0
    return kernel


@pytest.fixture
def kernel(unmarked):
    """It was polled until walks are made: what moved before the first one is known by a dump that began behind it."""
    kernel = unmarked
    for _ in range(2):
        assert LISTENING not in kernel.dumped(kernel.poll)
        assert kernel.marks == 1
    assert kernel.dumped(kernel.poll) == [LISTENING]
    kernel.events.clear()
    return kernel


def sent(kernel: Walking) -> dict[str, int]:
    """By flow: what is known to be sent."""
    return {flow.id: counts.tx_bytes for flow, counts in kernel.session.flows()}


def test_what_moved_is_updated_and_the_others_are_neither_dumped_nor_judged(kernel):
    kernel.send(2)
    assert kernel.dumped(kernel.poll) == [LISTENING]
    assert [(type(e), e.flow.id, e.counts.tx_bytes) for e in flow_events(kernel.events)] == [(FlowUpdated, "c2", 10)]
    (poll,) = [e for e in kernel.events if isinstance(e, PollCompleted)]
    assert (poll.complete, poll.flows) == (True, SOCKETS)
    for _ in range(5):
        kernel.poll()
    assert len(flow_events(kernel.events)) == 1
    assert kernel.session.statistics()["walks"] == 7


def test_one_walk_at_a_time_begins_to_watch_and_another_where_it_failed(unmarked):
    one = row(1, unmarked.sockets[1])
    for mark, marks in (
        (lambda _: LookupFailed("no thread"), 2),
        (lambda rows: ChangedAnswer(rows + 2 * one), 4),
        (lambda _: None, 5),
    ):
        unmarked.mark = mark
        for _ in range(2):
            assert LISTENING not in unmarked.dumped(unmarked.poll)
        assert unmarked.marks == marks


def test_few_are_asked_for_at_once_and_all_in_the_end(kernel, monkeypatch):
    monkeypatch.setattr(walks, "AT_ONCE", 2)
    for cookie in (1, 2, 3, 5):
        kernel.send(cookie)
    kernel.silent.add(3)
    kernel.poll()
    asked = [data for what, _, channel, data in kernel.record if (what, channel) == ("to", 3)]
    assert sum(1 for data in asked for _ in iterate_messages(data)) == 2
    kernel.wait(1.5)
    kernel.silent.clear()
    kernel.poll()
    assert sum(sent(kernel).values()) == 40
    for cookie in (1, 2, 3, 5):
        kernel.send(cookie)
    while kernel.dumped(kernel.poll) != [LISTENING]:
        pass
    assert sum(sent(kernel).values()) == 80


def test_sockets_of_version_6_are_asked_for_too(kernel):
    ends = {"local": b"\xfd" + bytes(14) + b"\1", "remote": b"\xfd" + bytes(14) + b"\2"}
    kernel.sockets[7] = FakeSocket(7, family=10, local_port=7, inode=7, **ends)
    kernel.moved.add(7)
    assert kernel.dumped(kernel.poll) == [LISTENING]
    assert [event.flow.id for event in flow_events(kernel.events)[:1]] == ["c7"]


def test_a_damaged_answer_is_said(kernel):
    kernel.spoil = lambda rows: ChangedAnswer(rows[:-1])
    kernel.poll()
    assert kernel.session.statistics()["malformed"] == 1


def test_a_connection_that_no_record_told_of_is_added(kernel):
    kernel.sockets[9] = FakeSocket(9, local_port=50000, inode=9)
    kernel.moved.add(9)
    assert kernel.dumped(kernel.poll) == [LISTENING]
    added = flow_events(kernel.events)[0]
    assert (type(added), added.flow.id, added.preexisting) == (FlowAdded, "c9", False)


def test_what_moved_and_ended_before_it_was_asked_for_ends_by_its_removal(kernel):
    kernel.send(2)
    gone = kernel.sockets[2]
    kernel.spoil = lambda rows: [ChangedAnswer(rows), kernel.sockets.pop(2)][0]
    kernel.poll()
    assert not flow_events(kernel.events)
    kernel.feed(gone.message(final=True), 1)
    kernel.feed(encode(record(Kind.CLOSED, 2, tx_bytes=10)._replace(net_cookie=NETWORK)), RING)
    kernel.wait(1.0)
    (removed,) = flow_events(kernel.events)
    assert (type(removed), removed.counts.tx_bytes) == (FlowRemoved, 10)


def test_every_tenth_poll_dumps_everything_and_has_what_nobody_told(kernel):
    kernel.send(3, told=False)
    states = [kernel.dumped(kernel.poll) for _ in range(2 * walks.PROOF)]
    whole = [number for number, each in enumerate(states) if each != [LISTENING]]
    assert [later - earlier for earlier, later in itertools.pairwise(whole)] == [walks.PROOF]
    assert sent(kernel)["c3"] == 10


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: ChangedAnswer(errno=errno.EPERM),
        lambda _: ChangedAnswer(),
        lambda _: LookupFailed("no thread"),
        lambda rows: ChangedAnswer(rows[: -CHANGED.size]),
        lambda rows: ChangedAnswer(rows[:-1]),
        lambda rows: ChangedAnswer(rows[CHANGED.size :]),
        lambda rows: ChangedAnswer(row(0, namespace=NETWORK + 1) + rows[CHANGED.size :]),
    ],
)
def test_a_walk_that_says_nothing_sure_is_followed_by_the_dump_in_the_same_poll(kernel, spoil):
    kernel.send(2)
    kernel.send(3, told=False)
    kernel.spoil = spoil
    assert len(kernel.dumped(kernel.poll)) == 2
    assert (sent(kernel)["c2"], sent(kernel)["c3"]) == (10, 10)
    assert [e for e in kernel.events if isinstance(e, PollCompleted)][-1].complete


@pytest.mark.parametrize("late", [False, True])
def test_a_dump_behind_a_walk_is_of_tcp_alone_and_judges_absences(kernel, late):
    """Also where all other dumps of the poll were over when the walk was answered."""
    kernel.spoil = lambda _: ChangedAnswer()
    del kernel.sockets[4]
    for _ in range(2):
        kernel.events.clear()
        asked = len(kernel.record)
        kernel.hold_lookups = late
        kernel.poll()
        for held in kernel.held:
            kernel.answer(held)
        kernel.held.clear()
        kernel.hold_lookups = False
        kernel.run()
        requests = [data for what, _, channel, data in kernel.record[asked:] if (what, channel) == ("to", 0)]
        assert len(requests) == 4
        assert kernel.events[-1].complete
    assert [(e.flow.id, e.flow.state) for e in flow_events(kernel.events)] == [("c4", TcpState.CLOSED)]


def test_if_many_moved_all_are_dumped(kernel, monkeypatch):
    monkeypatch.setattr(walks, "SHARE", 3)
    for cookie in (1, 2, 3):
        kernel.send(cookie)
    assert len(kernel.dumped(kernel.poll)) == 2
    assert sum(sent(kernel).values()) == 30
    kernel.send(1)
    assert kernel.dumped(kernel.poll) == [LISTENING]
    assert sent(kernel)["c1"] == 20


def test_one_that_is_refused_is_the_last_and_said(kernel):
    kernel.spoil = lambda _: ChangedAnswer(errno=errno.EPERM)
    kernel.poll()
    assert any("does not tell which sockets had traffic" in note for note in kernel.session.capabilities.notes)
    assert all(LISTENING not in kernel.dumped(kernel.poll) for _ in range(3))


def test_after_a_loss_everything_is_dumped(kernel):
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    kernel.session.channel_drained(1, kernel.now)
    assert LISTENING not in kernel.dumped(lambda: kernel.wait(1.0))
    assert kernel.dumped(kernel.poll) == [LISTENING]


def test_a_look_up_without_an_answer_makes_the_poll_incomplete_and_the_next_one_a_dump(kernel):
    kernel.send(2)
    kernel.silent.add(3)
    kernel.poll()
    kernel.wait(1.5)
    assert not [e for e in kernel.events if isinstance(e, PollCompleted)][-1].complete
    kernel.silent.clear()
    assert LISTENING not in kernel.dumped(kernel.poll)
    assert sent(kernel)["c2"] == 10


def test_where_no_more_look_ups_may_wait_a_walk_is_given_up(kernel, monkeypatch):
    monkeypatch.setattr(lookups, "MOST_WAITING", 0)
    walk = kernel.session._namespaces[0].walks
    walk._moved = decode_changed(row(1, kernel.sockets[1]) * 2000)
    walk._ask()
    assert walk.done
    assert not kernel.session._namespaces[0].dumps.complete


@pytest.mark.parametrize("options", [{"every_update": True}, {"extras": True}, {"providers": "udp"}])
def test_who_wants_every_row_gets_dumps(monkeypatch, options):
    monkeypatch.setattr(walks, "LEAST", 0)
    kernel = Walking(**options)
    kernel.start()
    assert all(LISTENING not in kernel.dumped(kernel.poll) for _ in range(4))


def test_few_sockets_are_dumped():
    kernel = Walking()
    kernel.start()
    assert all(LISTENING not in kernel.dumped(kernel.poll) for _ in range(4))


def test_a_replay_is_the_run(kernel):
    for cookie in (1, 2, 3):
        kernel.send(cookie)
        kernel.poll()
    kernel.sockets[9] = FakeSocket(9, local_port=50000, inode=9)
    kernel.moved.add(9)
    kernel.poll()
    kernel.recorded.close()
    kernel.file.seek(0)
    again = replayed(kernel.file)
    assert_same(again[-len(kernel.events) :], kernel.events)
    assert [e for e in again if isinstance(e, FlowUpdated)]


def test_a_recorded_client_that_walks_is_followed_where_its_recording_cannot_be_run_again(kernel, monkeypatch):
    for cookie in (1, 2):
        kernel.send(cookie)
        kernel.poll()
    kernel.recorded.close()
    kernel.file.seek(0)
    monkeypatch.setattr("nstat_async._io.replay.rerun_of", lambda *_: None)
    again = replayed(kernel.file)
    assert [(e.flow.id, e.delta.tx_bytes) for e in again if isinstance(e, FlowUpdated)] == [("c1", 10), ("c2", 10)]

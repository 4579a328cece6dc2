"""What eBPF programs tell of namespaces that were not found yet, or may not be entered."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from ebpf_records import encode, record
from programs_fakes import PORTS, PROVIDERS, RING, Programs, attrs_of, closed, connect, owner_row, removal, started
from replaying import assert_same, replayed
from sockdiag_fakes import flow_events, kinds, removals

from nstat_async import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, PollCompleted, RemovalReason, TcpState
from nstat_async._model import Direction
from nstat_async.ebpf import Kind, SocketType
from nstat_async.sockdiag import FoundNamespace, NamespacesAnswer, NetworkNamespace, _program_namespaces
from nstat_async.sockdiag._constants import SocketState
from nstat_async.sockdiag._namespaces import MOST_LOOKS
from nstat_async.sockdiag._program_evidence import HELD_SECONDS, MOST_HELD, REMOVAL_PATIENCE

BLUE = FoundNamespace(1, NetworkNamespace("blue", device=4, inode=11), 99)


def record_of_blue(kernel: Programs, *records: Any) -> list[Any]:
    kernel.feed(encode(*(attrs_of(each)._replace(net_cookie=99) for each in records)), RING)
    return kernel.run()


def beginning(cookie: int = 9) -> tuple[Any, Any]:
    opened = record(Kind.OPENED, cookie, pid=5, remote_port=80 << 8)
    return opened, record(Kind.ESTABLISHED, cookie, pid=5, **PORTS)


def test_what_was_seen_in_a_namespace_before_it_was_found_counts():
    kernel = Programs(everywhere=True)
    kernel.start()
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    event = flow_events(record_of_blue(kernel, *beginning()))[0]
    assert isinstance(event, FlowAdded)
    assert (event.flow.namespace, event.flow.process.pid, event.flow.direction) == ("blue", 5, Direction.OUTBOUND)
    kernel.recorded.close()
    kernel.file.seek(0)
    assert_same(replayed(kernel.file), kernel.events)


def test_a_flow_that_ended_before_its_namespace_was_found_is_told():
    kernel = started(everywhere=True)
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    record_of_blue(kernel, *beginning(), closed())
    kernel.wait(1.0)
    events = [e for e in flow_events(kernel.events) if not isinstance(e, FlowUpdated)]
    assert kinds(events) == ["FlowAdded", "FlowRemoved"]
    assert events[-1].flow.process.pid == 5
    assert (events[-1].counts.tx_bytes, events[-1].final) == (70, True)


def test_what_is_old_or_of_another_namespace_is_not_taken():
    kernel = started(everywhere=True)
    kernel.came_and_went = [*[NamespacesAnswer()] * MOST_LOOKS, NamespacesAnswer((BLUE,))]
    record_of_blue(kernel, *beginning())
    kernel.wait(HELD_SECONDS + 0.5)
    kernel.feed(encode(attrs_of(record(Kind.OPENED, 10, pid=6, remote_port=80 << 8))._replace(net_cookie=98)), RING)
    kernel.run()
    assert not flow_events(kernel.events)
    assert BLUE.cookie in kernel.session._evidence.books


def test_an_attempt_that_began_long_before_its_namespace_was_found_ends_by_its_record():
    kernel = started(everywhere=True)
    record_of_blue(kernel, beginning()[0])
    kernel.wait(HELD_SECONDS + 0.5)
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    kernel.sockets[9] = attrs.evolve(removal(), state=SocketState.SYN_SENT, info={})
    kernel.poll()
    kernel.poll()
    record_of_blue(kernel, closed()._replace(old=SocketState.SYN_SENT))
    kernel.wait(2 * REMOVAL_PATIENCE)
    assert [(e.flow.id, e.final) for e in removals(kernel.events)] == [("n1:c9", True)]
    assert not [e for e in kernel.events if isinstance(e, EventsLost)]


def strange(kernel: Programs, *answers: NamespacesAnswer) -> None:
    kernel.came_and_went = [*answers, NamespacesAnswer(whole=True), NamespacesAnswer(whole=True)]


def test_a_namespace_that_two_whole_rounds_do_not_find_is_watched_from_outside():
    kernel = Programs(everywhere=True)
    kernel.start()
    strange(kernel, NamespacesAnswer())
    record_of_blue(kernel, *beginning())
    added = flow_events(kernel.events)[0]
    assert (added.flow.namespace, added.flow.process.pid, added.counts.tx_bytes) == ("net:99", 5, None)
    record_of_blue(kernel, closed())
    kernel.wait(1.0)
    removed = flow_events(kernel.events)[-1]
    assert (removed.flow.id, removed.counts.tx_bytes, removed.final) == (added.flow.id, 70, True)
    assert not [e for e in kernel.events if isinstance(e, PollCompleted) and not e.complete]
    kernel.recorded.close()
    kernel.file.seek(0)
    assert_same(replayed(kernel.file), kernel.events)


def test_one_that_may_not_be_entered_is_watched_at_once_under_its_name_and_told():
    kernel = started(everywhere=True)
    kernel.came_and_went = [NamespacesAnswer(closed=1, names=((4026, "blue"),))]
    opened, established = beginning()
    record_of_blue(kernel, opened._replace(netns=4026), established._replace(netns=4026))
    assert flow_events(kernel.events)[0].flow.namespace == "blue"
    assert any("1 network namespaces cannot be entered" in note for note in kernel.session.capabilities.notes)


def test_a_walk_does_not_bring_back_a_connection_that_is_over_and_whose_descriptor_is_open():
    """A raw socket is never more than closed; it may be one of TCP's protocol."""
    kernel = Programs(everywhere=True, providers=PROVIDERS)
    kernel.start()
    strange(kernel, NamespacesAnswer())
    record_of_blue(kernel, *beginning(), closed())
    kernel.wait(1.0)
    sock = owner_row(record(Kind.CLOSED, 9, pid=5, **PORTS), 71)
    raw = sock._replace(cookie=7, type=SocketType.RAW)
    kernel.held_sockets = [each._replace(net_cookie=99, new=SocketState.CLOSE) for each in (sock, raw)]
    for _ in range(3):
        kernel.wait(61.0)
        kernel.poll()
    assert [e.flow.id for e in kernel.events if isinstance(e, FlowAdded)] == ["n1048576:c9", "n1048576:c7"]
    assert [e.flow.id for e in kernel.events if isinstance(e, FlowRemoved)] == ["n1048576:c9"]


@pytest.mark.parametrize("gone", [False, True])
def test_a_walk_tells_of_what_was_there_and_two_of_what_is_there_no_more(gone):
    """Whether or not their processes are there by now."""
    kernel = started(everywhere=True)
    kernel.processes_are_gone = gone
    strange(kernel)
    sockets = (
        record(Kind.OPENED, 1, pid=7, local_port=9, remote_port=80 << 8),
        record(Kind.OPENED, 2, pid=7, local_port=9, remote=bytes(16)),
    )
    states = (SocketState.ESTABLISHED, SocketState.LISTEN)
    held = [owner_row(each, 71)._replace(net_cookie=99, new=state) for each, state in zip(sockets, states, strict=True)]
    kernel.held_sockets = held
    kernel.wait(61.0)
    kernel.poll()
    kernel.wait(1.0)
    added = [e for e in flow_events(kernel.events) if isinstance(e, FlowAdded)]
    assert [(e.flow.state, e.preexisting, e.flow.process.pid) for e in added] == [
        (TcpState.ESTABLISHED, True, 7),
        (TcpState.LISTEN, True, 7),
    ]
    kernel.held_sockets = held[1:]
    for _ in range(2):
        assert not [e for e in kernel.events if isinstance(e, FlowRemoved)]
        kernel.wait(61.0)
        kernel.poll()
    (removed,) = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert (removed.flow.id, removed.reason, removed.final) == (added[0].flow.id, RemovalReason.GONE, False)
    for kernel.held_sockets in ([], held[1:], []):
        kernel.wait(61.0)
        kernel.poll()
    assert [e for e in kernel.events if isinstance(e, FlowRemoved)] == [removed], "not twice in a row"


def test_a_namespace_that_is_found_after_all_is_entered_and_its_flows_begin_anew():
    kernel = started(everywhere=True)
    strange(kernel)
    record_of_blue(kernel, *beginning())
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    kernel.poll()
    removed = flow_events(kernel.events)[-1]
    assert isinstance(removed, FlowRemoved)
    assert (removed.reason, removed.final) == (RemovalReason.GONE, False)
    assert kernel.session._evidence.books[BLUE.cookie].dumped


def test_an_end_that_waits_while_its_namespace_is_let_go_is_reported_once_and_exactly():
    kernel = started(everywhere=True)
    strange(kernel)
    record_of_blue(kernel, *beginning(), closed())
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    kernel.poll()
    kernel.wait(1.0)
    (removed,) = [e for e in kernel.events if isinstance(e, FlowRemoved)]
    assert (removed.counts.tx_bytes, removed.final) == (70, True)


def gone_while_a_removal_waits():
    """A namespace came, a socket in it was removed, and it went before that was read."""
    kernel = started(everywhere=True)
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    record_of_blue(kernel, *beginning())
    kernel.feed(removal().message(final=True), 4 + 1)
    kernel.run()
    kernel.came_and_went = [NamespacesAnswer(gone=(1,))]
    kernel.poll()
    return kernel


def test_a_removal_that_waits_while_its_namespace_is_let_go_ends_the_flow():
    """Nobody answers what would be asked in it."""
    kernel = gone_while_a_removal_waits()
    kernel.wait(5.0)
    assert [type(e) for e in flow_events(kernel.events)].count(FlowRemoved) == 1


def test_unread_removals_of_a_namespace_that_is_gone_hold_up_no_end_of_another():
    kernel = gone_while_a_removal_waits()
    connect(kernel, 8)
    kernel.ring(closed(8))
    kernel.now += 2 * REMOVAL_PATIENCE
    kernel.session.handle_deadline(kernel.now)
    kernel.run()
    assert [event.flow.id for event in removals(kernel.events)] == ["n1:c9", "c8"]


def test_namespaces_that_are_watched_from_outside_are_bounded_and_let_go_when_they_are_empty(monkeypatch):
    """Then there is room for others."""
    monkeypatch.setattr(_program_namespaces, "MAX_NAMESPACES", most := 3)
    kernel = started(everywhere=True)
    for cookie in range(most + 2):
        strange(kernel)
        kernel.feed(
            encode(*(attrs_of(each)._replace(net_cookie=1000 + cookie) for each in beginning(cookie + 1))), RING
        )
        kernel.run()
    assert kernel.session.statistics()["namespaces"] == 1 + most
    assert {flow.namespace for flow, _ in kernel.session.flows()} == {f"net:{1000 + cookie}" for cookie in range(most)}
    for cookie in range(most):
        kernel.feed(encode(attrs_of(closed(cookie + 1))._replace(net_cookie=1000 + cookie)), RING)
    kernel.wait(1.0)
    watched = []
    for _ in range(2):
        kernel.came_and_went = []
        kernel.poll()
        watched.append(kernel.session.statistics()["namespaces"])
    assert watched == [1, 1 + 2]
    assert {flow.namespace for flow, _ in kernel.session.flows()} == {f"net:{1000 + most}", f"net:{1001 + most}"}


def test_of_namespaces_that_are_watched_from_outside_one_that_is_empty_takes_no_other_along():
    kernel = started(everywhere=True)
    for cookie in (1, 2):
        strange(kernel)
        kernel.feed(encode(*(attrs_of(each)._replace(net_cookie=1000 + cookie) for each in beginning(cookie))), RING)
        kernel.run()
    kernel.feed(encode(attrs_of(closed(1))._replace(net_cookie=1001)), RING)
    kernel.wait(1.0)
    for _ in range(3):
        kernel.came_and_went = []
        kernel.poll()
    assert [flow.namespace for flow, _ in kernel.session.flows()] == ["net:1002"]


def test_what_is_held_of_unknown_namespaces_is_bounded():
    kernel = started(everywhere=True)
    for cookie in range(MOST_HELD):
        record_of_blue(kernel, *beginning(cookie + 1))
    assert len(kernel.session._evidence._held) == MOST_HELD


def test_nothing_is_held_where_other_namespaces_are_not_wanted():
    kernel = started()
    record_of_blue(kernel, *beginning())
    assert not kernel.session._evidence._held

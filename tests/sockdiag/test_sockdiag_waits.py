"""What a new flow and its poll wait for before they are reported, and for how long; when its process is sought again."""

from __future__ import annotations

import pytest
from sockdiag_fakes import FakeSocket, kinds, traffic

from nstat_async._events import FlowUpdated, PollCompleted
from nstat_async.sockdiag._polls import ANNOUNCED_AT_ONCE, OWNERS_PATIENCE


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


@pytest.mark.parametrize("place", [{"cgroup": 9}, {"inode": 77}])
def test_a_new_flow_waits_for_its_cgroup_as_long_as_for_its_process(kernel, place):
    kernel.start()
    kernel.hold_lookups = True
    kernel.sockets[1] = FakeSocket(1, info=traffic(), **place)
    assert kernel.wait(1.0) == []
    assert kernel.wait(OWNERS_PATIENCE - 0.01) == []
    assert kinds(kernel.wait(0.01)) == ["FlowAdded", "PollCompleted"]


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
    kernel.open_many(3 * ANNOUNCED_AT_ONCE - 1)
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

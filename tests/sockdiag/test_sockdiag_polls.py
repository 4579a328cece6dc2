"""When polls begin and end: intervals, polls that are asked for, dumps that fail or are refused."""

from __future__ import annotations

import errno

import pytest
from sockdiag_fakes import FakeKernel, FakeSocket, kinds, polls, traffic

from nstat_async import _errors
from nstat_async._contract import LookupFailed
from nstat_async._events import ProviderRefused
from nstat_async._model import Attribution, Provider, Visibility
from nstat_async._options import MonitorOptions
from nstat_async.sockdiag import Session
from nstat_async.sockdiag._polls import ASKED_OWNERS_PATIENCE, FIRST_OWNERS_PATIENCE


def test_no_interval_polls_once_and_on_demand():
    """interval=None: the first picture, removals, and what is asked for."""
    kernel = FakeKernel(interval=None)
    kernel.start()
    assert kernel.session.next_deadline() is None
    kernel.sockets[1] = FakeSocket(1, info=traffic())
    assert kinds(kernel.poll()) == ["FlowAdded", "PollCompleted"]


def test_the_next_interval_begins_with_the_poll_that_somebody_asked_for(kernel):
    kernel.start()
    kernel.now += 0.5
    kernel.poll()
    assert kernel.session.next_deadline() == kernel.now + 1.0


def test_missed_intervals_are_skipped(kernel):
    """A late poll is not made up for by several."""
    kernel.start()
    kernel.wait(10.5)
    kernel.wait(0.1)
    assert len(polls(kernel.events)) == 2


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


def test_polls_do_not_wait_for_interfaces_forever(kernel):
    """Without rtnetlink's answer the first poll begins after its patience."""
    kernel.silent.add(2)
    assert kernel.start() == []
    assert kinds(kernel.wait(1.5)) == ["PollCompleted"]


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


@pytest.mark.parametrize(("interval", "patience"), [(1.0, FIRST_OWNERS_PATIENCE), (None, ASKED_OWNERS_PATIENCE)])
def test_a_look_without_a_next_one_waits_longer_for_processes(interval, patience):
    """A machine may be that busy; then it is said of how many sockets nothing is known."""
    kernel = FakeKernel(interval=interval)
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.hold_lookups = True
    kernel.start()
    kernel.wait(patience - 0.1)
    assert not polls(kernel.events)
    figures = kernel.session.statistics()
    assert (figures["undecided_owners"], figures["sought_owners"]) == (1, 1)
    kernel.wait(0.2)
    assert len(polls(kernel.events)) == 1
    kernel.hold_lookups = False
    kernel.refused_processes = None
    kernel.answer(kernel.held.pop())
    assert kernel.session.statistics()["sought_owners"] == 0


def test_a_further_look_waits_until_it_is_decided_whose_the_sockets_are():
    """The first look cannot tell the kernel's own socket from one on its way between processes; the second one is to tell."""
    kernel = FakeKernel(Session(MonitorOptions(interval=None), processes=Visibility.ALL))
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.start()
    assert (len(polls(kernel.events)), kernel.session.statistics()["undecided_owners"]) == (1, 1)
    kernel.hold_lookups = True
    kernel.poll()
    assert len(polls(kernel.events)) == 1
    kernel.hold_lookups = False
    kernel.answer(kernel.held.pop())
    kernel.run()
    assert len(polls(kernel.events)) == 2
    figures = kernel.session.statistics()
    assert (figures["undecided_owners"], figures["sought_owners"]) == (0, 0)
    assert [flow.attribution for flow, _ in kernel.session.flows()] == [Attribution.KERNEL]


@pytest.mark.parametrize(
    ("interval", "visible", "waits"),
    [(1.0, Visibility.ALL, False), (None, Visibility.OWN, False), (None, Visibility.ALL, True)],
    ids=["another poll follows", "the reason is known", "too long"],
)
def test_a_poll_does_not_wait_for_a_search_for_nothing_or_for_too_long(interval, visible, waits):
    kernel = FakeKernel(Session(MonitorOptions(interval=interval), processes=visible))
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.start()
    kernel.hold_lookups = True
    kernel.poll()
    assert kernel.held
    assert len(polls(kernel.events)) == (1 if waits else 2)
    kernel.wait(ASKED_OWNERS_PATIENCE if waits else 0.0)
    assert len(polls(kernel.events)) == 2


def test_where_nobody_can_look_nothing_is_undecided():
    kernel = FakeKernel(interval=None)
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.hold_lookups = True
    kernel.start()
    kernel.session.lookup_done(kernel.held.pop().token, LookupFailed("no thread"), kernel.now)
    figures = kernel.session.statistics()
    assert (figures["undecided_owners"], figures["sought_owners"]) == (0, 0)

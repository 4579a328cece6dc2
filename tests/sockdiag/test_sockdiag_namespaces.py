"""All network namespaces of a machine, as they come and go."""

from __future__ import annotations

import errno
import sys

import attrs
import pytest
from programs_fakes import Programs
from sockdiag_fakes import FakeKernel, FakeSocket, flow_events

from nstat_async import Monitor
from nstat_async._cli._limits import limits_text
from nstat_async._contract import CloseChannel, LookupFailed, OpenChannel
from nstat_async._errors import UsageError
from nstat_async._events import FlowAdded, FlowRemoved, PollCompleted, RemovalReason
from nstat_async._options import MonitorOptions
from nstat_async.backends import SockDiag, named
from nstat_async.ebpf import MapsPurpose, RingPurpose
from nstat_async.sockdiag import (
    ChannelPurpose,
    FoundNamespace,
    NamespacesAnswer,
    NamespacesRequest,
    NetworkNamespace,
    PulsePurpose,
    Role,
    Session,
    TcpInfo,
    _namespaces,
    _session,
)
from nstat_async.sockdiag._namespaces import MOST_LOOKS
from nstat_async.sockdiag._purposes import place_of_channel

BLUE = FoundNamespace(1, NetworkNamespace("blue", device=4, inode=11), 77)


def everywhere() -> FakeKernel:
    return FakeKernel(Session(MonitorOptions(interval=1.0), kernel="6.18.0", all_namespaces=True))


@pytest.fixture
def kernel():
    kernel = everywhere()
    kernel.sockets[1] = FakeSocket(1)
    return kernel


def of_others(events):
    return [(type(e).__name__, e.flow.id, e.flow.namespace) for e in flow_events(events) if e.flow.namespace]


# -- the core


def test_those_that_are_there_are_known_before_the_first_poll(kernel):
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    events = kernel.start()
    assert of_others(events) == [("FlowAdded", "n1:c1", "blue")]
    assert all(e.preexisting for e in events if isinstance(e, FlowAdded))
    assert sum(isinstance(e, PollCompleted) for e in events) == 1


def test_the_first_poll_waits_for_the_first_look_and_not_for_its_success(kernel):
    kernel.hold_lookups = True
    assert kernel.start() == []
    command = kernel.held[0]
    assert isinstance(command.request, NamespacesRequest)
    kernel.hold_lookups = False
    kernel.session.lookup_done(command.token, LookupFailed("no thread"), kernel.now)
    assert any(isinstance(e, PollCompleted) for e in kernel.run())


def test_a_namespace_that_came_is_polled_soon_with_a_book_of_its_own(kernel):
    kernel.came_and_went = [NamespacesAnswer(), NamespacesAnswer((BLUE,))]
    assert of_others(kernel.start()) == []
    assert of_others(kernel.wait(0.25)) == [("FlowAdded", "n1:c1", "blue")]
    assert kernel.session.statistics()["namespaces"] == 2
    (added,) = (e for e in kernel.events if isinstance(e, FlowAdded) and e.flow.namespace)
    assert not added.preexisting
    assert all(e.complete for e in kernel.events if isinstance(e, PollCompleted)), "those that lacked it, too"


def test_a_namespace_that_went_ends_its_flows_and_its_channels(kernel):
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    kernel.start()
    kernel.wait(0.25)
    kernel.came_and_went = [NamespacesAnswer(gone=(1,))]
    closed = []
    carry_out = kernel._carry_out
    kernel._carry_out = lambda command: (closed.append(command), carry_out(command))
    events = kernel.wait(1.0)
    (removed,) = (e for e in events if isinstance(e, FlowRemoved))
    assert (removed.flow.id, removed.reason, removed.final) == ("n1:c1", RemovalReason.GONE, False)
    assert {each.channel for each in closed if isinstance(each, CloseChannel)} == {4, 5, 6, 7}
    kernel.wait(1.0)
    assert kernel.namespace_requests[-1] == NamespacesRequest(released=(1,), outside=True)
    assert kernel.session.statistics()["namespaces"] == 1
    assert kernel.session.statistics()["reports"] > 2


def test_subscribed_is_who_knows_all_namespaces_and_has_their_channels(kernel):
    kernel.hold_lookups = True
    kernel.start()
    assert not kernel.session.subscribed
    kernel.hold_lookups = False
    kernel.answer(kernel.held.pop(0))
    kernel.run()
    assert kernel.session.subscribed is True
    alone = FakeKernel(interval=None)
    alone.session.start(alone.now)
    assert alone.session.subscribed is True, "one namespace is known from the beginning"
    assert alone.session.epoch_offset == 1000.0


def test_a_namespace_that_is_found_before_it_is_known_whether_there_are_programs_is_opened_with_the_others():
    kernel = Programs(everywhere=True)
    kernel.hold_lookups, opened, carry_out = True, [], kernel._carry_out
    kernel._carry_out = lambda command: (opened.append(command), carry_out(command))
    kernel.start()
    kernel.held.sort(key=lambda command: not isinstance(command.request, NamespacesRequest))
    kernel.came_and_went, kernel.hold_lookups = [NamespacesAnswer((BLUE,))], False
    for command in kernel.held:
        assert not [each for each in opened if isinstance(each, OpenChannel)]
        kernel.answer(command)
        kernel.run()
    channels = [each.channel for each in opened if isinstance(each, OpenChannel)]
    assert {*range(8)} <= {*channels}
    assert len(channels) == len({*channels})


def test_a_namespace_has_the_number_that_its_finder_gave_it_and_leaves_its_figures_behind(kernel):
    """Its rows stay counted; what comes from its channels afterwards is nobody's."""
    kernel.came_and_went = [NamespacesAnswer((attrs.evolve(BLUE, number=5),))]
    kernel.traffic = (("eth0", 5000, 6000),), (0, 0)
    assert of_others(kernel.start()) == [("FlowAdded", "n5:c1", "blue")]
    kernel.traffic = (("eth0", 9000, 8000),), (0, 0)
    kernel.wait(6.0)
    before = kernel.session.statistics()["reports"]
    kernel.came_and_went = [NamespacesAnswer(gone=(5,))]
    kernel.sockets.clear()
    kernel.wait(1.0)
    kernel.wait(1.0)
    assert kernel.session.statistics()["namespaces"] == 1
    assert kernel.session.statistics()["reports"] >= before
    assert kernel.session.statistics()["coverage_rx_bytes"] == 2 * 4000
    before = kernel.session.statistics()["stray_datagrams"]
    kernel.feed(FakeSocket(9).message(final=True), 21)
    assert not flow_events(kernel.run())
    assert kernel.session.statistics()["stray_datagrams"] == before + 1


def test_so_many_namespaces_are_watched_at_once_and_no_more(kernel, monkeypatch):
    monkeypatch.setattr(_session, "MAX_NAMESPACES", 4)
    kernel.sockets.clear()
    found = [FoundNamespace(n, NetworkNamespace(str(n), device=4, inode=n), 1000 + n) for n in range(1, 9)]
    kernel.came_and_went = [NamespacesAnswer(tuple(found))]
    kernel.start()
    assert kernel.session.statistics()["namespaces"] == 4


def test_what_waits_for_an_answer_of_a_namespace_that_went_is_reported(kernel):
    """The end of a connection whose remains were asked for; and nobody is searched for any more."""
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    kernel.sockets[1].inode = 77
    kernel.start()
    kernel.wait(0.25)
    assert kernel.session.statistics()["unresolved_owners"] == 1
    kernel.wait(0.25)
    kernel.silent.add(7)
    kernel.came_and_went = [NamespacesAnswer(gone=(1,))]
    info = {TcpInfo.BYTES_SENT: 10, TcpInfo.BYTES_ACKED: 12, TcpInfo.BYTES_RECEIVED: 5, TcpInfo.DATA_SEGS_IN: 1}
    kernel.feed(FakeSocket(2, info={**info, TcpInfo.SEGS_IN: 3}).message(final=True), 5)
    assert not of_others(kernel.run())
    kernel.sockets.clear()
    ended = [e for e in kernel.wait(0.75) if isinstance(e, FlowRemoved)]  # an answer would be given up after a second
    assert {(e.flow.id, e.reason) for e in ended} >= {("n1:c1", RemovalReason.GONE), ("n1:c2", RemovalReason.CLOSED)}
    kernel.feed(FakeSocket(1).message(final=True), 1)
    kernel.run()
    assert kernel.session.statistics()["unresolved_owners"] == 0


def test_an_end_that_waits_for_the_addresses_of_a_namespace_that_went_is_reported():
    """Nobody knows whether the other end is there, too, and nobody will tell."""
    kernel = FakeKernel(Session(MonitorOptions(interval=0.5), kernel="6.18.0", all_namespaces=True))
    kernel.came_and_went = [NamespacesAnswer(), NamespacesAnswer((BLUE,)), NamespacesAnswer(gone=(1,))]
    kernel.silent.add(6)
    kernel.start()
    kernel.wait(0.25)
    info = {TcpInfo.BYTES_SENT: 10, TcpInfo.BYTES_ACKED: 12, TcpInfo.BYTES_RECEIVED: 5, TcpInfo.DATA_SEGS_IN: 1}
    kernel.feed(FakeSocket(2, info={**info, TcpInfo.SEGS_IN: 3}).message(final=True), 5)
    assert not of_others(kernel.run())
    ended = [e for e in kernel.wait(0.5) if isinstance(e, FlowRemoved)]  # an answer would be given up after a second
    assert [(e.flow.id, e.reason, e.counts.tx_bytes) for e in ended] == [("n1:c2", RemovalReason.CLOSED, 10)]


def test_a_namespace_that_is_found_twice_is_one_and_one_made_anew_is_another(kernel):
    kernel.came_and_went = [NamespacesAnswer((BLUE, BLUE)), NamespacesAnswer((BLUE,)), NamespacesAnswer(gone=(1, 1, 9))]
    kernel.start()
    for _ in range(4):
        kernel.wait(1.0)
    anew = FoundNamespace(2, NetworkNamespace("blue", device=4, inode=11))
    kernel.came_and_went = [NamespacesAnswer((anew,))]
    kernel.wait(1.0)
    kernel.wait(1.0)
    assert of_others(kernel.events) == [
        ("FlowAdded", "n1:c1", "blue"),
        ("FlowRemoved", "n1:c1", "blue"),
        ("FlowAdded", "n2:c1", "blue"),
    ]


@pytest.mark.parametrize("failing", range(4, 8))
def test_a_namespace_whose_channel_fails_costs_the_monitor_nothing(kernel, failing):
    carry_out = kernel._carry_out

    def refuse(command):
        if isinstance(command, OpenChannel) and command.channel == failing:
            kernel.session.channel_failed(failing, errno.EMFILE, kernel.now)
        else:
            carry_out(command)

    kernel._carry_out = refuse
    kernel.came_and_went = [NamespacesAnswer((BLUE,))]
    kernel.start()
    for _ in range(3):
        kernel.wait(1.0)
    assert kernel.session.failure is None
    assert kernel.session.capabilities.notes
    polls = [e for e in kernel.events if isinstance(e, PollCompleted)]
    assert all(poll.complete for poll in polls)
    if failing == 4:  # without dumps there is nothing to watch
        assert any("a network namespace cannot be watched" in note for note in kernel.session.capabilities.notes)
        assert kernel.session.statistics()["namespaces"] == 1
        assert NamespacesRequest(released=(1,), outside=True) in kernel.namespace_requests


def test_a_look_that_fails_is_made_again_and_one_at_a_time(kernel):
    kernel.hold_lookups = True
    kernel.start()
    for _ in range(3):
        held, kernel.held = kernel.held, []
        for command in held:
            kernel.session.lookup_done(command.token, LookupFailed("no thread"), kernel.now)
        kernel.wait(5.0)
    kernel.wait(5.0)
    assert sum(isinstance(command.request, NamespacesRequest) for command in kernel.held) == 1


def test_what_is_not_watched_is_said(kernel):
    kernel.came_and_went = [NamespacesAnswer(closed=2, beyond=3, hidden=4, most=9, by_descriptors=True)] * 2
    kernel.start()
    notes = " ".join(kernel.session.capabilities.notes)
    assert "2 network namespaces cannot be entered: that needs CAP_SYS_ADMIN" in notes
    assert "3 network namespaces are not watched: the limit of open files (ulimit -n, LimitNOFILE=) allows 9" in notes
    assert "namespaces of 4 processes cannot be seen: that needs CAP_SYS_PTRACE, and no security module" in notes
    line = limits_text(kernel.session.capabilities)
    assert line.startswith("sees not all network namespaces in full: 2 network namespaces cannot be entered")


def test_channels_of_many_namespaces_after_each_other_have_numbers_of_their_own():
    numbers = [0, 1, 16_383, 16_384, 40_000, 131_072, 1 << 24]
    purposes = [ChannelPurpose(number, role) for number in numbers for role in Role]
    channels = [purpose.channel for purpose in purposes]
    assert [place_of_channel(channel) for channel in channels] == [(each.namespace, each.role) for each in purposes]
    others = [RingPurpose.channel, MapsPurpose.channel, *(PulsePurpose(number).channel for number in numbers)]
    assert len({*channels, *others}) == len(channels) + len(others)
    assert max(channels) < 1 << 31


def test_without_all_nobody_looks():
    kernel = FakeKernel(interval=None)
    kernel.start()
    assert not kernel.namespace_requests


def test_records_of_a_namespace_that_came_are_known_by_its_cookie(kernel):
    kernel.came_and_went = [NamespacesAnswer((BLUE,)), NamespacesAnswer(), NamespacesAnswer(gone=(1,))]
    kernel.start()
    assert kernel.session._evidence.books[77].number == 1
    kernel.wait(1.0)
    kernel.wait(1.0)
    assert 77 not in kernel.session._evidence.books


def test_a_record_of_an_unknown_namespace_has_looks_at_once_until_two_rounds_have_not_found_it(kernel):
    kernel.start()
    looks = len(kernel.namespace_requests)
    kernel.came_and_went = [NamespacesAnswer(), *[NamespacesAnswer(whole=True)] * 2]
    for _ in range(3):
        assert kernel.session._evidence.met_unwatched(99, 0)
    kernel.run()
    assert len(kernel.namespace_requests) == looks + 3
    kernel.session._evidence.met_unwatched(100, 0)
    kernel.session._evidence.met_unwatched(101, 0)  # while the look is under way
    kernel.run()
    assert len(kernel.namespace_requests) <= looks + 3 + MOST_LOOKS + 1


def test_a_namespace_that_a_record_named_and_a_look_found_is_not_looked_for_again(kernel):
    kernel.start()
    looks = len(kernel.namespace_requests)
    kernel.came_and_went = [NamespacesAnswer((BLUE,), whole=True)]
    kernel.session._evidence.met_unwatched(77, 11)
    kernel.run()
    assert len(kernel.namespace_requests) == looks + 1


def test_of_namespaces_that_records_named_the_last_are_remembered_with_the_inode_that_any_of_them_had(
    kernel, monkeypatch
):
    """One of a known inode is watched from outside after one look."""
    monkeypatch.setattr(_namespaces, "REMEMBERED", 2)
    kernel.start()
    kernel.came_and_went = [NamespacesAnswer(names=((5, "red"), (6, "green"), (7, "white")))]
    for record in ((95, 5), (96, 6), (97, 0), (97, 7), (96, 0)):
        kernel.session._evidence.met_unwatched(*record)
    kernel.run()
    assert {95, 96, 97} & kernel.session._evidence.books.keys() == {96, 97}


def test_a_monitor_takes_namespaces_with_the_name_of_a_backend():
    assert Monitor(backend="sock_diag", netns="all")._backend == SockDiag("all")
    assert Monitor(netns=("blue", 7))._backend == SockDiag(("blue", 7))
    with pytest.raises(UsageError, match="give it to the backend itself"):
        Monitor(backend=SockDiag(), netns="all")
    with pytest.raises(UsageError, match="has no network namespaces"):
        Monitor(backend="emulated", netns="all")


def test_all_stands_alone():
    assert SockDiag("all").netns == ("all",)
    assert named("auto" if sys.platform == "linux" else "sock_diag", netns="all").netns == ("all",)
    with pytest.raises(UsageError, match="'all' cannot be combined"):
        SockDiag(("all", "blue"))

"""All network namespaces of a machine, as they come and go."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import attrs
import pytest
from own_namespace import own_namespace
from programs_fakes import Programs
from sockdiag_fakes import FakeKernel, FakeSocket, LiveDriver, flow_events

from nstat_async import Monitor
from nstat_async._cli._limits import limits_text
from nstat_async._contract import CloseChannel, LookupFailed, OpenChannel
from nstat_async._errors import BackendUnavailableError, UnavailableReason, UsageError
from nstat_async._events import FlowAdded, FlowRemoved, FlowUpdated, PollCompleted, RemovalReason
from nstat_async._options import MonitorOptions
from nstat_async.backends import Replay, SockDiag, named
from nstat_async.ebpf import MapsPurpose, RingPurpose
from nstat_async.sockdiag import (
    AttachRequest,
    ChannelPurpose,
    FoundNamespace,
    NamespacesAnswer,
    NamespacesRequest,
    NetworkNamespace,
    PulsePurpose,
    Role,
    Session,
    SocketTablesRequest,
    TcpInfo,
    TrafficRequest,
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


# -- the living kernel

if not sys.platform.startswith("linux"):
    pytest.skip("the rest needs Linux", allow_module_level=True)

from nstat_async._io.linux import network_of_this_thread  # for Linux
from nstat_async._io.namespaces import (
    MOST,
    NamespaceFinder,
    Watched,
    label_of,
    open_namespaces,
    room,
)
from nstat_async._io.netlink import NetlinkTransport


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/run/netns/blue", "blue"),
        ("/var/run/netns/blue", "blue"),
        ("/run/docker/netns/1a2b", "/run/docker/netns/1a2b"),
        ("/proc/77/ns/net", "pid:77"),
    ],
)
def test_a_label_is_what_netns_takes(path, label):
    assert label_of(path) == label


@pytest.mark.parametrize(("limit", "most"), [(64, 1), (1024, 89), (1 << 20, 256), (-1, 256)])
def test_there_is_room_for_as_many_as_there_are_descriptors(monkeypatch, limit, most):
    monkeypatch.setattr("resource.getrlimit", lambda _: (limit, limit))
    assert room() == most


def test_what_comes_after_the_end_is_closed():
    watched = Watched()
    watched.close()
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY)
    assert not watched.add(0, descriptor)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


def can_unshare() -> bool:
    try:
        done = subprocess.run(["unshare", "-n", "ip", "link"], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    return os.geteuid() == 0 and done.returncode == 0


privileged = pytest.mark.skipif(not can_unshare(), reason="needs root and network namespaces")
LISTEN = """
import fcntl, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x49))  # SIOCSIFFLAGS: up; by no other process, whose pid might be met
listener = socket.create_server(("127.0.0.1", 0)); print(listener.getsockname()[1], flush=True); sys.stdin.read()
"""


@contextmanager
def listening(*enter: str):
    """A process in a namespace, and the port it listens on."""
    command = [*enter, sys.executable, "-c", LISTEN]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.pid, int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait()


@contextmanager
def name_of_a_namespace():
    name = f"nstat-{os.getpid()}-{random.randrange(1 << 30)}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        pytest.skip("no namespace can be named here")
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def everything():
    core, transport = SockDiag("all").parts(MonitorOptions(interval=0.05, ebpf="off", pulse=None, providers="tcp"))
    with LiveDriver(core, transport) as driver:
        driver.until(lambda: any(isinstance(e, PollCompleted) for e in driver.events))
        yield driver


def added(driver, port, namespace=None):
    """Listeners at this port in other namespaces (of one label)."""
    return [
        e for e in driver.added(port)
        if e.flow.namespace is not None and e.flow.remote is None and namespace in {None, e.flow.namespace}
    ]  # fmt: skip


def owner(driver, flow):
    """Who has a flow; where the search for its process took longer than its first poll, an update tells."""
    flows = (e.flow for e in driver.events if isinstance(e, (FlowAdded, FlowUpdated)))
    return next((each.process for each in flows if each.id == flow.id and each.process is not None), None)


def is_removed(driver, flow):
    return any(isinstance(e, FlowRemoved) and e.flow.id == flow.id for e in driver.events)


@pytest.mark.linux
@privileged
def test_what_is_no_network_namespace_is_said_to_be_none(tmp_path):
    """A file, a folder, a pipe that nobody writes to, and a namespace of another kind; what is not there is not there."""
    os.mkfifo(tmp_path / "pipe")
    for path in ("/etc/passwd", str(tmp_path), str(tmp_path / "pipe"), "/proc/self/ns/mnt"):
        with pytest.raises(
            BackendUnavailableError, match=f": {path} is not a network namespace: name one of"
        ) as caught:
            SockDiag(path).parts(MonitorOptions())
        assert caught.value.reason is UnavailableReason.MISSING
    for absent in ("/nonexistent", "no-such-name", 999_999_999):
        with pytest.raises(BackendUnavailableError, match=f"network namespace (pid:)?{absent}.*: No such file"):
            SockDiag(absent).parts(MonitorOptions())


@pytest.mark.linux
@privileged
def test_a_container_comes_and_goes(everything):
    with listening("unshare", "-n") as (pid, port):
        (event,) = everything.until(lambda: added(everything, port, f"pid:{pid}"))
        assert everything.until(lambda: owner(everything, event.flow)).pid == pid
        number = int(event.flow.id.split(":")[0][1:])
        assert number in everything.transport._watched.descriptors
    everything.until(lambda: is_removed(everything, event.flow))
    everything.until(lambda: number not in everything.transport._watched.descriptors)
    assert not any(f"{number * 4 + role}" in map(str, everything.channels) for role in range(4))


@pytest.mark.linux
@privileged
def test_a_name_that_is_deleted_and_made_anew_is_another_namespace(everything):
    with name_of_a_namespace() as name:
        enter = ("ip", "netns", "exec", name)
        with listening(*enter) as (_, port):
            (first,) = everything.until(lambda: added(everything, port, name))
        subprocess.run(["ip", "netns", "del", name], check=True)
        subprocess.run(["ip", "netns", "add", name], check=True)
        with listening(*enter) as (_, port):
            second = everything.until(
                lambda: [
                    e for e in added(everything, port, name) if e.flow.id.split(":")[0] != first.flow.id.split(":")[0]
                ]
            )
        assert len(second) == 1
        everything.until(lambda: is_removed(everything, first.flow))
        everything.until(lambda: is_removed(everything, second[0].flow))


@pytest.mark.linux
@privileged
def test_a_namespace_with_a_name_and_processes_is_one_and_has_its_name(everything):
    with name_of_a_namespace() as name, listening("ip", "netns", "exec", name) as (pid, port):
        found = everything.until(lambda: added(everything, port))
        everything.poll()
        assert [e.flow.namespace for e in added(everything, port)] == [name]
        assert everything.until(lambda: owner(everything, found[0].flow)).pid == pid
        identities, watched = open_namespaces((name, pid, f"/proc/{pid}/ns/net"))
        watched.close()
        assert [each.label for each in identities] == [name]


@pytest.mark.linux
@privileged
def test_the_number_of_namespaces_is_bounded_and_what_is_beyond_is_watched_when_there_is_room(monkeypatch):
    monkeypatch.setattr("nstat_async._io.namespaces.BUDGET", 60.0)  # each look is a whole round, however many processes
    with listening("unshare", "-n") as (one, _), listening("unshare", "-n") as (other, _):
        watched = Watched()
        finder = NamespaceFinder(watched, most=2)
        try:
            finder.begin()
            answer = finder.answer(NamespacesRequest())
            assert [each.number for each in answer.found] == [1]
            assert len(watched.descriptors) == 2
            assert answer.beyond >= 1
            again = finder.answer(NamespacesRequest(released=(1,)))
            assert [each.number for each in again.found] == [2]
            assert {one, other}  # they live until here
        finally:
            watched.close()


@pytest.mark.linux
@privileged
def test_the_first_answer_has_also_those_beyond_the_limit_from_outside(monkeypatch):
    """A snapshot gets no second one."""
    monkeypatch.setattr("nstat_async._io.namespaces._mounted", list)
    with listening("unshare", "-n") as (one, _), listening("unshare", "-n") as (other, _):
        monkeypatch.setattr("nstat_async._io.namespaces.all_pids", lambda: sorted((one, other), reverse=True))
        watched = Watched()
        finder = NamespaceFinder(watched, most=2)
        try:
            finder.begin()
            answer = finder.answer(NamespacesRequest(outside=True))
            assert [each.entered for each in answer.found] == [True, False]
            assert {each.identity.label for each in answer.found} == {f"pid:{one}", f"pid:{other}"}
            assert (answer.beyond, answer.outside) == (0, 1)
            again = finder.answer(NamespacesRequest(outside=True))
            assert (again.found, again.gone) == ((), ())
        finally:
            watched.close()


@pytest.mark.linux
@privileged
@pytest.mark.parametrize("where", ["_io.namespaces.os.open", "_io.namespaces.in_namespace"])
def test_without_descriptors_those_are_what_is_missing(monkeypatch, where):
    """However many the limit allows, others may have them; with some more it goes on."""
    monkeypatch.setattr("nstat_async._io.namespaces.BUDGET", 60.0)
    watched = Watched()
    with listening("unshare", "-n") as (pid, _):
        try:
            finder = NamespaceFinder(watched)
            finder.begin()
            with monkeypatch.context() as without:
                without.setattr(f"nstat_async.{where}", no_descriptors)
                answer = finder.answer(NamespacesRequest())
                with pytest.raises(BackendUnavailableError, match="netns all: Too many open files; raise the limit"):
                    NamespaceFinder(watched).begin()
            assert (answer.found, answer.most, answer.by_descriptors) == ((), 1, True)
            assert answer.beyond >= 1
            again = finder.answer(NamespacesRequest())
            assert pid in [int(each.identity.label[4:]) for each in again.found if each.identity.label[:4] == "pid:"]
            assert (again.beyond, again.by_descriptors) == (0, room() < MOST)
        finally:
            watched.close()


@pytest.mark.linux
@privileged
def test_what_cannot_be_entered_is_watched_from_outside_if_that_is_asked_for(monkeypatch):
    """A namespace that has a name has it, too; one without a process shows nothing."""
    monkeypatch.setattr("nstat_async._io.namespaces.BUDGET", 60.0)
    monkeypatch.setattr("nstat_async._io.namespaces.in_namespace", may_not)
    watched = Watched()
    with (
        name_of_a_namespace() as name,
        name_of_a_namespace() as empty,
        listening("unshare", "-n") as (pid, _),
        listening("ip", "netns", "exec", name),
    ):
        try:
            finder = NamespaceFinder(watched)
            finder.begin()
            inside = finder.answer(NamespacesRequest())
            assert (finder.closed, inside.found, inside.outside) == (True, (), 0)
            answer = finder.answer(NamespacesRequest(outside=True))
            labels = [each.identity.label for each in answer.found if not each.entered]
            assert {f"pid:{pid}", name} <= {*labels}
            assert empty not in labels
            assert inside.closed - answer.closed >= 2
            assert answer.closed >= 1
            assert answer.outside == len(labels) == len({each.number for each in answer.found})
            again = finder.answer(NamespacesRequest(outside=True))
            assert not {f"pid:{pid}", name} & {each.identity.label for each in again.found}
        finally:
            watched.close()


@pytest.mark.linux
def test_a_round_that_is_not_whole_changes_no_count_of_what_is_not_watched(monkeypatch):
    links = {1: None, 2: "net:[22]", 3: "net:[33]"}

    def readlink(path):
        if (link := links[int(path.split("/")[2])]) is None:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return link

    finder = NamespaceFinder(Watched())
    monkeypatch.setattr("nstat_async._io.namespaces.in_namespace", may_not)
    finder.begin()
    monkeypatch.setattr("nstat_async._io.namespaces._mounted", list)
    monkeypatch.setattr("nstat_async._io.namespaces.all_pids", lambda: [3, 2, 1])
    monkeypatch.setattr("nstat_async._io.namespaces.os.readlink", readlink)
    monkeypatch.setattr(NamespaceFinder, "_open", lambda finder, inode, _path: finder._closed.add(inode))
    monkeypatch.setattr(NamespaceFinder, "_is_shown", lambda _finder, pid, _label: pid == 3)
    counts = []
    for budget in (60.0, 60.0, -1.0, 60.0):  # the first answer has no limit
        monkeypatch.setattr("nstat_async._io.namespaces.BUDGET", budget)
        answer = finder.answer(NamespacesRequest(outside=True))
        counts.append((answer.whole, answer.closed, answer.hidden))
    assert counts == [(True, 1, 1), (True, 1, 1), (False, 1, 1), (True, 1, 1)]


def may_not(*_arguments):
    raise OSError(errno.EPERM, "Operation not permitted")


def no_descriptors(*_arguments):
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.linux
@privileged
def test_a_long_round_is_made_in_pieces_and_only_two_whole_ones_prove_an_absence(monkeypatch):
    with listening("unshare", "-n") as (pid, _):
        watched = Watched()
        finder = NamespaceFinder(watched)
        finder.begin()
        found = finder.answer(NamespacesRequest()).found
        number = next(each.number for each in found if each.identity.label == f"pid:{pid}")
    try:
        monkeypatch.setattr("nstat_async._io.namespaces.BUDGET", -1.0)
        for _ in range(3):
            assert number not in finder.answer(NamespacesRequest()).gone  # each is cut at once
        monkeypatch.setattr("nstat_async._io.namespaces.BUDGET", 60.0)
        finder.answer(NamespacesRequest())  # ends the round that was begun
        gone = [number in finder.answer(NamespacesRequest()).gone for _ in range(2)]
        assert gone[-1]
    finally:
        watched.close()


@pytest.mark.linux
@pytest.mark.parametrize("netns", ["all", [os.getpid(), "/proc/self/ns/net"]])
def test_without_a_thread_that_could_enter_it_is_refused_and_nothing_is_left_open(monkeypatch, netns):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr("nstat_async._io.namespaces.namespaces_equal", lambda _path: False)
    with pytest.raises(BackendUnavailableError, match="can't start new thread; raise the limit") as caught:
        NamespaceFinder(Watched()).begin() if netns == "all" else open_namespaces(tuple(netns))
    assert caught.value.reason is UnavailableReason.RESOURCE
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.linux
@pytest.mark.parametrize(
    ("step", "number", "netns", "remedy"),
    [
        ("in_namespace", errno.EPERM, "/proc/self/ns/net", "Operation not permitted; entering it needs CAP_SYS_ADMIN"),
        ("namespaces_equal", errno.EACCES, 1, "Permission denied; that needs CAP_SYS_PTRACE"),
        ("namespaces_equal", errno.EACCES, "/root/blue", "/root/blue: Permission denied$"),
    ],
)
def test_a_namespace_that_may_not_be_entered_or_seen_is_refused_with_the_remedy(
    monkeypatch, step, number, netns, remedy
):
    def refuse(*_arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("nstat_async._io.namespaces.namespaces_equal", lambda _path: False)
    monkeypatch.setattr(f"nstat_async._io.namespaces.{step}", refuse)
    with pytest.raises(BackendUnavailableError, match=remedy) as caught:
        open_namespaces((netns,))
    assert caught.value.reason is UnavailableReason.PERMISSION


@pytest.mark.linux
def test_without_proc_it_is_refused(monkeypatch):
    monkeypatch.setattr("nstat_async._io.namespaces._OWN", "/nowhere/ns/net")
    with pytest.raises(BackendUnavailableError, match="netns all needs /proc"):
        NamespaceFinder(Watched()).begin()


@pytest.mark.linux
@privileged
def test_nothing_is_left_open():
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    before, threads = descriptors(), set(threading.enumerate())
    with listening("unshare", "-n"):
        core, transport = SockDiag("all").parts(MonitorOptions(interval=None, ebpf="off", pulse=None))
        with LiveDriver(core, transport) as driver:
            driver.poll()
            assert descriptors() > before + 8
    assert descriptors() == before
    assert set(threading.enumerate()) <= threads


@pytest.mark.linux
@privileged
def test_a_channel_of_a_namespace_that_went_answers_nothing():
    _, transport = SockDiag("all").parts(MonitorOptions(interval=None, ebpf="off", pulse=None))
    try:
        with pytest.raises(OSError, match="went"):
            transport.open(ChannelPurpose(999, Role.DUMPS))
    finally:
        transport.close()


@pytest.mark.linux
@privileged
def test_a_recording_of_all_namespaces_replays_as_the_run(tmp_path):
    """What came and went, with its labels and ids, is in the recording."""
    path = tmp_path / "all.nstat"

    async def watch():
        told = []
        options = {
            "interval": 0.05,
            "ebpf": "off",
            "pulse": None,
            "providers": "tcp",
            "record_to": path,
            "overflow": "all",
        }
        async with Monitor(netns="all", **options) as monitor:
            await monitor.poll_now()
            with listening("unshare", "-n") as (_, port):
                async for event in monitor:
                    told.append(event)
                    if isinstance(event, FlowAdded) and event.flow.namespace and event.flow.local.port == port:
                        break
            async for each in monitor:
                told.append(each)
                if isinstance(each, FlowRemoved) and each.flow.id == event.flow.id:
                    break
        return story(told)

    async def again():
        async with Monitor(backend=Replay(path), overflow="all") as monitor:
            return story([event async for event in monitor])

    def story(events):
        return [(type(e), e.flow) for e in events if isinstance(e, (FlowAdded, FlowRemoved))]

    told = asyncio.run(watch())
    assert asyncio.run(again())[: len(told)] == told


@pytest.mark.linux
@privileged
def test_what_a_thread_in_another_namespace_reads_of_ours_is_ours_or_an_error():
    """Threads of a pool stay where they began, or another library takes them elsewhere (``setns(2)``)."""
    tables, traffic = SocketTablesRequest(0, ("raw",)), TrafficRequest(0)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(os.getpid).result()  # it begins here
        with own_namespace(), socket.socket(socket.AF_INET, socket.SOCK_RAW, 253), closing(NetlinkTransport()) as ours:
            assert len(pool.submit(ours.lookup, tables).result().rows) == 1
            assert [name for name, *_ in pool.submit(ours.lookup, traffic).result().interfaces] == ["lo"]
            assert ours.networks == {network_of_this_thread()} != {pool.submit(network_of_this_thread).result()}
            with own_namespace():  # the monitor's own thread went elsewhere
                for request in (tables, traffic):
                    with pytest.raises(OSError, match="another network namespace"):
                        ours.lookup(request)
                for purpose in (
                    ChannelPurpose(0, Role.DUMPS),
                    PulsePurpose(0, 0.02),
                ):  # as after a poll without an answer
                    with pytest.raises(BackendUnavailableError, match="another network namespace"):
                        ours.open(purpose)
                assert "another network namespace" in ours.lookup(AttachRequest()).detail
            ours.open(ChannelPurpose(0, Role.DUMPS)).close()


@pytest.mark.linux
@privileged
def test_this_namespace_is_that_of_the_thread_that_asks_and_not_of_the_first_one():
    def labels():
        with own_namespace():
            first, mine = f"/proc/{os.getpid()}/ns/net", f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
            identities, watched = open_namespaces((mine, first))
            watched.close()
            return [each.label for each in identities] == [None, first]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(labels).result()

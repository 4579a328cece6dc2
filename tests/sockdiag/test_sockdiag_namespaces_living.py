"""Network namespaces of the living kernel: which there are, who may enter them, and what is left of them."""

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

import pytest
from own_namespace import own_namespace
from sockdiag_fakes import LiveDriver

from nstat_async import Monitor
from nstat_async._errors import BackendUnavailableError, UnavailableReason
from nstat_async._events import FlowAdded, FlowRemoved, FlowUpdated, PollCompleted
from nstat_async._options import MonitorOptions
from nstat_async.backends import Replay, SockDiag
from nstat_async.sockdiag import (
    AttachRequest,
    ChannelPurpose,
    NamespacesRequest,
    PulsePurpose,
    Role,
    SocketTablesRequest,
    TrafficRequest,
)

if not sys.platform.startswith("linux"):
    pytest.skip("the rest needs Linux", allow_module_level=True)

from nstat_async._io.linux import network_of_this_thread  # for Linux
from nstat_async._io.namespaces import (
    NamespaceFinder,
    Watched,
    label_of,
    open_namespaces,
    room,
)
from nstat_async._io.netlink import NetlinkTransport
from nstat_async.sockdiag._setup import MAX_NAMESPACES


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
            assert (again.beyond, again.by_descriptors) == (0, room() < MAX_NAMESPACES)
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
        ("namespaces_equal", errno.EACCES, "/srv/blue", "/srv/blue: Permission denied$"),
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
    monkeypatch.setattr("nstat_async._io.namespaces.OWN_NAMESPACE", "/nowhere/ns/net")
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

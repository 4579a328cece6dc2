"""Cgroups of sockets: their numbers in a row, their paths by a look-up, what flows say of them."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from sockdiag_fakes import FakeKernel, FakeSocket, LiveDriver, flow_events, kinds

from nstat_async._contract import LookupFailed
from nstat_async._events import FlowAdded, FlowUpdated
from nstat_async._io import cgroups as finding
from nstat_async._io.cgroups import CgroupFinder, Hierarchy, find_hierarchy
from nstat_async._io.containers import LARGEST, names_of
from nstat_async._options import MonitorOptions
from nstat_async.sockdiag import CgroupFacts, CgroupsAnswer, CgroupsRequest, DiagAttribute, _cgroups, _polls

ID = "ab" * 32
NGINX = CgroupFacts(7001, "/system.slice/nginx.service")
BOX = CgroupFacts(7002, f"/docker/{ID}", "web")
POD = CgroupFacts(7003, f"/kubepods/pod{'12' * 16}/{ID}", "app", "prod/app-0")


@pytest.fixture
def kernel():
    kernel = FakeKernel(interval=None)
    kernel.cgroups = {each.number: each for each in (NGINX, BOX, POD)}
    return kernel


def open_socket(kernel, cookie, cgroup, **more):
    kernel.sockets[cookie] = FakeSocket(cookie, local_port=4000 + cookie, cgroup=cgroup, **more)
    return kernel.sockets[cookie]


def flow_of(kernel, cookie):
    return next(flow for flow, _ in kernel.session.flows() if flow.local.port == 4000 + cookie)


# -- the core


def test_a_flow_is_added_with_its_unit_or_container_though_nobody_holds_it(kernel):
    for cookie, cgroup, protocol in ((1, 7001, 6), (2, 7002, 6), (3, 7003, 17)):
        open_socket(kernel, cookie, cgroup, protocol=protocol)
    events = flow_events(kernel.start())
    assert kinds(events) == ["FlowAdded"] * 3
    assert [(f.unit, f.container, f.pod) for f in (flow_of(kernel, cookie) for cookie in (1, 2, 3))] == [
        ("nginx.service", None, None),
        (None, "web", None),
        (None, "app", "prod/app-0"),
    ]
    assert all(event.flow.process is None for event in events)


def test_a_flow_that_is_over_is_told_no_more_when_its_cgroup_is_found(kernel):
    kernel.start()
    kernel.hold_lookups = True
    open_socket(kernel, 1, 7001)
    kernel.poll()
    kernel.close(1)
    kernel.run()
    for held in kernel.held:
        kernel.answer(held)
    assert kinds(flow_events(kernel.run())) == []
    assert kinds(flow_events(kernel.events)) == ["FlowAdded", "FlowRemoved"]


def test_a_flow_that_is_over_waits_for_no_name_however_long_the_look_up_takes(kernel):
    kernel.start()
    kernel.hold_lookups = True
    for cookie in (1, 2):
        open_socket(kernel, cookie, 7001)
        kernel.poll()
        kernel.wait(_polls.ASKED_OWNERS_PATIENCE)
        (waiting,) = kernel.session._cgroups._without.values()
        assert len(waiting) == 1
        kernel.close(cookie)
        kernel.run()
        assert not waiting


def test_each_cgroup_is_looked_up_once(kernel):
    for cookie in range(1, 30):
        open_socket(kernel, cookie, 7001 + cookie % 2)
    kernel.start()
    open_socket(kernel, 40, 7001)
    kernel.poll()
    assert flow_of(kernel, 40).unit == "nginx.service"
    assert kernel.cgroup_requests == [CgroupsRequest((7002, 7001))]


def test_a_cgroup_that_is_gone_is_unknown_and_not_asked_for_again(kernel):
    open_socket(kernel, 1, 9)
    kernel.start()
    kernel.poll()
    assert flow_of(kernel, 1).cgroup is None
    assert len(kernel.cgroup_requests) == 1


def test_what_was_known_stays_known_when_too_many_are_remembered(kernel, monkeypatch):
    monkeypatch.setattr(_cgroups, "REMEMBERED", 1)
    open_socket(kernel, 1, 7001)
    open_socket(kernel, 9, 7002)
    kernel.start()
    assert kernel.cgroup_requests == [CgroupsRequest((7001,))], "nor do more wait"
    kernel.close(9)
    open_socket(kernel, 2, 7002)
    kernel.poll()
    kernel.sockets[1].state = 8
    assert kinds(flow_events(kernel.poll())) == ["FlowUpdated"]
    assert flow_of(kernel, 1).unit == "nginx.service"
    open_socket(kernel, 3, 7001)
    kernel.poll()
    assert kernel.cgroup_requests[-1] == CgroupsRequest((7001,)), "only so many are remembered"


def test_an_answer_that_comes_late_is_an_update(kernel):
    kernel.hold_lookups = True
    open_socket(kernel, 1, 7001)
    kernel.start()
    events = flow_events(kernel.wait(_polls.ASKED_OWNERS_PATIENCE))
    assert kinds(events) == ["FlowAdded"]
    assert events[0].flow.cgroup is None
    kernel.hold_lookups = False
    for command in kernel.held:
        kernel.answer(command)
    (update,) = flow_events(kernel.run())
    assert isinstance(update, FlowUpdated)
    assert update.flow.unit == "nginx.service"
    assert update.delta.rx_bytes == 0


def test_an_answer_that_comes_before_a_second_connection_is_announced_is_no_update(kernel):
    """A poll finds that the socket connected again, and the flow of that waits for the answer, too."""
    kernel.hold_lookups = True
    sock = open_socket(kernel, 1, 7001)
    kernel.start()
    kernel.wait(3.0)
    sock.remote_port = 81
    kernel.poll()
    (command,) = [each for each in kernel.held if isinstance(each.request, CgroupsRequest)]
    kernel.answer(command)
    kernel.run()
    kernel.wait(3.0)
    assert kinds(flow_events(kernel.events)) == ["FlowAdded", "FlowRemoved", "FlowAdded"]


def test_the_rest_of_a_long_walk_is_asked_for_by_the_next_poll(kernel):
    kernel.start()
    kernel.unwalked = {7001}
    del kernel.cgroups[7001]
    open_socket(kernel, 1, 7001)
    open_socket(kernel, 2, 7002)
    kernel.poll()
    assert (flow_of(kernel, 1).cgroup, flow_of(kernel, 2).container) == (None, "web")
    kernel.cgroups[7001], kernel.unwalked = NGINX, set()
    kernel.poll()
    assert flow_of(kernel, 1).unit == "nginx.service"


def test_the_first_poll_asks_for_the_rest_at_once_so_many_times(monkeypatch):
    monkeypatch.setattr(_cgroups, "FIRST_PIECES", 2)
    kernel = FakeKernel(interval=None)
    kernel.unwalked = {7001}
    open_socket(kernel, 1, 7001)
    kernel.start()
    assert len(kernel.cgroup_requests) == 1 + 2
    kernel.poll()
    assert len(kernel.cgroup_requests) == 1 + 2 + 1


def test_a_look_up_that_fails_is_made_again_later_for_what_ended_too_as_its_cgroup_may_have_more(kernel):
    kernel.hold_lookups = True
    open_socket(kernel, 1, 7001)
    open_socket(kernel, 2, 7002)
    kernel.start()
    for command in kernel.held:
        kernel.session.lookup_done(command.token, LookupFailed("no thread"), kernel.now)
    kernel.run()
    kernel.hold_lookups = False
    kernel.close(2)
    for pause in (0.0, _cgroups.PAUSE - 0.5):
        kernel.wait(pause)
        kernel.poll()
        assert flow_of(kernel, 1).cgroup is None
    kernel.wait(0.5)
    kernel.poll()
    assert flow_of(kernel, 1).unit == "nginx.service"
    assert kernel.cgroup_requests == [CgroupsRequest((7001, 7002))]


@pytest.mark.parametrize("value", [b"", b"\1", b"\1\0\0\0", bytes(8), bytes(16)])
def test_a_row_whose_number_is_none_has_no_cgroup(kernel, value):
    open_socket(kernel, 1, 0, extra={DiagAttribute.CGROUP_ID: value})
    kernel.start()
    assert flow_of(kernel, 1).cgroup is None
    assert not kernel.cgroup_requests


def test_rows_of_one_length_may_have_it_in_different_places(kernel):
    mark = {DiagAttribute.MARK: bytes(4)}
    open_socket(kernel, 1, 7001, extra=mark)
    row = open_socket(kernel, 2, 0, extra={DiagAttribute.CGROUP_ID: struct.pack("=Q", 7002), **mark})
    assert len(row.message()) == len(kernel.sockets[1].message())
    kernel.start()
    assert (flow_of(kernel, 1).unit, flow_of(kernel, 2).container) == ("nginx.service", "web")


# -- where it is mounted


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        ("", None),
        ("25 1 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None),
        ("30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw", Hierarchy("/sys/fs/cgroup", "/")),
        ("30 1 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup rw", Hierarchy("/sys/fs/cgroup/unified", "/")),
        (r"30 1 0:26 / /a\040b\134 rw - cgroup2 c rw", Hierarchy("/a b\\", "/")),
        (f"30 1 0:26 /docker/{ID} /sys/fs/cgroup ro - cgroup2 c rw", Hierarchy("/sys/fs/cgroup", f"/docker/{ID}")),
        ("30 1 0:26 /../.. /c rw - cgroup2 c rw\n31 1 0:26 / /d rw - cgroup2 c rw", Hierarchy("/d", "/")),
        ("30 1 0:26 - cgroup2 c rw", None),
        ("30 1 0:26 / /x rw - xfs cgroup2 rw", None),
    ],
)
def test_where_the_hierarchy_is_mounted(mounts, found):
    assert find_hierarchy(mounts.encode()) == found


def test_a_path_has_the_root_of_the_mount_before_it():
    assert Hierarchy("/c", "/").path_of("") == "/"
    assert Hierarchy("/c", "/").path_of("/a") == "/a"
    assert Hierarchy("/c", "/../..").path_of("/a") == "/../../a"
    assert Hierarchy("/c", f"/docker/{ID}").path_of("") == f"/docker/{ID}"


@pytest.mark.parametrize("mounts", [None, b"30 1 0:26 / /no-such-directory rw - cgroup2 c rw\n"])
def test_without_cgroup_v2_nothing_is_known(monkeypatch, tmp_path, mounts):
    path = tmp_path / "mountinfo"
    if mounts is not None:
        path.write_bytes(mounts)
    monkeypatch.setattr(finding, "MOUNTS", str(path))
    finder = CgroupFinder()
    assert finder.answer(CgroupsRequest((1, 2))) == CgroupsAnswer(gone=(1, 2))
    assert finder.answer(CgroupsRequest((2, 3))) == CgroupsAnswer(gone=(2, 3))


# -- names of containers


def write(path: Path, value) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


TASK = f"run/containerd/io.containerd.runtime.v2.task/k8s.io/{ID}/config.json"
BUNDLE = f"run/containers/storage/overlay-containers/{ID}/userdata/config.json"
DOCKER = f"var/lib/docker/containers/{ID}/config.v2.json"
CRI = {
    "io.kubernetes.cri.container-name": "app",
    "io.kubernetes.cri.sandbox-name": "app-0",
    "io.kubernetes.cri.sandbox-namespace": "prod",
}
CRIO = {
    "io.kubernetes.container.name": "app",
    "io.kubernetes.pod.name": "app-0",
    "io.kubernetes.pod.namespace": "prod",
}


@pytest.mark.parametrize(
    ("path", "content", "names"),
    [
        (TASK, {"annotations": CRI}, ("app", "prod/app-0")),
        (TASK.replace("k8s.io", "default"), {"annotations": {"nerdctl/name": "web"}}, ("web", None)),
        (TASK, {"annotations": {"io.kubernetes.cri.sandbox-name": "app-0"}}, (None, "app-0")),
        (BUNDLE, {"annotations": CRIO}, ("app", "prod/app-0")),
        (DOCKER, {"Name": "/web"}, ("web", None)),
        (DOCKER, {"Name": "/"}, (None, None)),
        (DOCKER, {"Name": 7}, (None, None)),
        (TASK, {"annotations": {"nerdctl/name": ["x"]}}, (None, None)),
        (TASK, {"annotations": []}, (None, None)),
        (TASK, [], (None, None)),
        (TASK, "{", (None, None)),
        (TASK, "[" * 100_000, (None, None)),
        (TASK, '"' + "x" * (LARGEST + 1) + '"', (None, None)),
    ],
)
def test_a_name_is_where_the_engine_wrote_it(tmp_path, path, content, names):
    write(tmp_path / path, content)
    assert names_of(ID, str(tmp_path)) == names


def test_only_the_id_of_an_engine_is_looked_for(tmp_path):
    write(tmp_path / "etc/config.json", {"annotations": CRI})
    for container in ("web", "../../../../../etc", ID[:-1], ""):
        assert names_of(container, str(tmp_path)) == (None, None)


# -- the living kernel


@contextmanager
def own_cgroup(*names: str):
    """A directory of cgroup v2 made for the test, with others in it."""
    hierarchy = find_hierarchy(Path("/proc/self/mountinfo").read_bytes()) if sys.platform == "linux" else None
    top = Path(hierarchy.directory if hierarchy else "/", f"nstat-test-{os.getpid()}-{random.randrange(1 << 30)}")
    try:
        top.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error.strerror}")
    made = [top]
    try:
        for name in names:
            made.append(top / name)
            made[-1].mkdir(parents=True)
        yield top
    finally:
        for directory in sorted(top.rglob("*/"), key=lambda path: -len(path.parts)):
            directory.rmdir()
        top.rmdir()


HOLD = """
import os, socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
listener = socket.create_server(("127.0.0.1", 0)); udp = socket.socket(type=socket.SOCK_DGRAM); udp.bind(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname()); server, _ = listener.accept()
print(*(each.getsockname()[1] for each in (listener, udp, client)), flush=True); sys.stdin.read()
"""


@contextmanager
def holding(directory: Path):
    """A process in a cgroup, with four sockets."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield [int(word) for word in process.stdout.readline().split()]
        finally:
            process.stdin.close()
            process.wait()


@pytest.mark.linux
def test_every_socket_of_the_living_kernel_says_where_it_was_made():
    from nstat_async.backends import SockDiag  # for Linux

    box = f"docker-{ID}.scope"
    with own_cgroup(f"system.slice/{box}") as top, holding(top / "system.slice" / box) as ports:
        core, transport = SockDiag().parts(MonitorOptions(interval=None, ebpf="off"))
        with LiveDriver(core, transport) as driver:
            driver.until(lambda: [e for e in driver.events if type(e).__name__ == "PollCompleted"])
            added = [e.flow for e in driver.events if isinstance(e, FlowAdded)]
    listening, datagrams, client = ports
    ends = {(listening, None), (listening, client), (client, listening), (datagrams, None)}
    flows = [flow for flow in added if (flow.local.port, flow.remote and flow.remote.port) in ends]
    assert len(flows) == 4
    assert {flow.container for flow in flows} == {ID}
    assert {flow.cgroup for flow in flows} == {f"/{top.name}/system.slice/{box}"}


@pytest.fixture(params=["by number", "by walking"])
def finder(request):
    made = CgroupFinder(budget=60.0)
    made._by_handle = request.param == "by number"
    return made


def number_of(directory: Path) -> int:
    return directory.stat().st_ino


@pytest.mark.linux
def test_a_cgroup_is_found_by_its_number_while_it_is_there(finder):
    with own_cgroup("a/b", "ä\u202e\x1b[31m", "gone") as top:
        gone = number_of(top / "gone")
        assert finder.answer(CgroupsRequest((gone,))).found[0].path == f"/{top.name}/gone"
        (top / "gone").rmdir()
        wanted = {
            number_of(path): f"/{path.relative_to(top.parent)}" for path in (top / "a/b", top / "ä\u202e\x1b[31m")
        }
        answer = finder.answer(CgroupsRequest((*wanted, gone, 1 << 62)))
    assert {each.number: each.path for each in answer.found} == wanted
    assert set(answer.gone) == {gone, 1 << 62}
    assert answer.complete


@pytest.mark.linux
def test_a_name_that_is_no_text_is_shown_escaped():
    with own_cgroup() as top:
        odd = os.fsencode(top) + b"/\xff"
        os.mkdir(odd)  # a path of bytes
        (found,) = CgroupFinder().answer(CgroupsRequest((os.stat(odd).st_ino,))).found  # as above
    assert found.path == f"/{top.name}/\\xff"


@pytest.mark.linux
def test_a_long_walk_is_made_in_pieces_and_proves_what_is_not_there():
    finder = CgroupFinder(budget=0.0)
    finder._by_handle = False
    with own_cgroup(*(f"{number}/x" for number in range(8))) as top:
        wanted = CgroupsRequest((number_of(top / "3/x"), 1 << 62))
        first = finder.answer(wanted)
        assert (first.found, first.gone, first.complete) == ((), (), False)
        later = CgroupsRequest((*wanted.numbers, 1 << 61))
        finder._budget = 60.0
        second = finder.answer(later)
        assert [each.path for each in second.found] == [f"/{top.name}/3/x"]
        assert (second.gone, second.complete) == ((1 << 62,), False)  # the last one was not sought from the start
        assert finder.answer(CgroupsRequest((1 << 61,))).gone == (1 << 61,)


@pytest.mark.linux
@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_a_user_without_any_privilege_finds_it_too(nursery):
    with own_cgroup("a") as top:
        _, out, err = nursery.run(f"""
import os
from nstat_async._io.cgroups import *
os.setgroups([]); os.setuid(65534)
print(CgroupFinder(60).answer(CgroupsRequest(({number_of(top / "a")},))))
""")
    if "Permission denied" in err:
        pytest.skip("the tree is closed to other users")
    assert f"path='/{top.name}/a'" in out, err


@pytest.mark.linux
def test_sockets_are_found_from_a_cgroup_namespace_by_their_path_there():
    program = (
        "import sys, os; from nstat_async._io.cgroups import *\n"
        "print(CgroupFinder(60).answer(CgroupsRequest((int(sys.argv[1]), int(sys.argv[2])))).found)"
    )
    with own_cgroup("in/here", "out") as top:
        enter = f'echo $$ > {top}/in/cgroup.procs && exec unshare -C -m sh -c \'umount {top.parent} 2>&1; mount -t cgroup2 none {top.parent} && exec "$0" "$@"\' "$@"'
        numbers = [str(number_of(top / name)) for name in ("in/here", "in")]
        out = subprocess.run(
            ["sh", "-c", enter, "sh", sys.executable, "-c", program, *numbers],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if out.returncode:
        pytest.skip(f"no cgroup namespace can be made here: {out.stderr}")
    assert "path='/here'" in out.stdout
    assert "path='/'" in out.stdout


def test_a_flow_that_only_a_pulse_saw_has_its_unit_though_it_was_removed_before():
    """What is not known of its cgroup then is known for the next one."""
    kernel = FakeKernel(interval=1.0)
    kernel.has_pulse, kernel.cgroups = True, {7001: NGINX}
    kernel.start()
    units = []
    for cookie in (1, 2):
        sock = open_socket(kernel, cookie, 7001, inode=cookie)
        kernel.owners[cookie] = 42
        kernel.close(cookie)
        kernel.run()
        units += [event.flow.unit for event in flow_events(kernel.beat(late=(sock,)))]
    assert units == [None, None, "nginx.service", "nginx.service"]

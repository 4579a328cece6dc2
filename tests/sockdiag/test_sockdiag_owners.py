"""Owners on the living kernel: whoever holds a socket now, wherever a process may keep it, and what can be seen."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys

import pytest
from nursery import MOUNTS, PROCESSES
from sockdiag_living import drive, listen, pair, port, privileged

from nstat_async._events import FlowUpdated
from nstat_async._io import tables
from nstat_async._model import Attribution, Visibility
from nstat_async.sockdiag import ANYWHERE, OwnersRequest

pytestmark = [
    pytest.mark.linux,
    pytest.mark.usefixtures("patience"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
]


@contextlib.contextmanager
def child(script: str, *arguments: str, prefix=(), pass_fds=()):
    """A Python process that runs until its standard input ends; it has printed a line."""
    command = [*prefix, sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=pass_fds)
    try:
        process.line = process.stdout.readline().strip()
        yield process
    finally:
        process.kill()
        process.communicate()


def flow_at(live, local: int, remote: int | None = None):
    """The open flow with this local port."""
    found = [
        flow
        for flow, _ in live.core.flows()
        if flow.local.port == local and (None if flow.remote is None else flow.remote.port) == remote
    ]
    return found[0] if found else None


def until_owner(live, pid: int, local: int, remote: int | None = None):
    """Poll until this process is the owner; the flow."""

    def owned():
        live.poll()
        flow = flow_at(live, local, remote)
        return flow if flow is not None and flow.process is not None and flow.process.pid == pid else None

    return live.until(owned)


RECEIVER = """
import socket, sys
inbox = socket.socket(fileno=int(sys.argv[1]))
print("ready", flush=True)
_, descriptors, *_ = socket.recv_fds(inbox, 1, 1)
sys.stdin.read()
"""


def test_a_descriptor_that_is_handed_over_takes_its_flow_along():
    """The flow stays the same one, and is updated; who handed it over lives on."""
    outbox, inbox = socket.socketpair()
    listener = listen()
    client, server = pair(listener)
    ends = port(listener), port(client)
    with outbox, inbox, child(RECEIVER, str(inbox.fileno()), pass_fds=[inbox.fileno()]) as other, drive() as live:
        live.poll()
        before = flow_at(live, *ends)
        assert before.process.pid == os.getpid()
        socket.send_fds(outbox, [b"x"], [server.fileno()])
        server.close()
        after = until_owner(live, other.pid, *ends)
        assert after.id == before.id
        assert [e for e in live.updated(ends[0]) if e.flow is after], "said by an update"
        assert not live.removed(ends[0])
    client.close()
    listener.close()


LEAVER = """
import ctypes, os, signal, socket, sys
how, family = sys.argv[1], socket.AF_INET6 if "6" in sys.argv[2] else socket.AF_INET
kind = socket.SOCK_DGRAM if "udp" in sys.argv[2] else socket.SOCK_STREAM
left = socket.socket(family, kind); left.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
if kind == socket.SOCK_STREAM: left.listen()
child = 0
if how == "fork":
    child = os.fork()
    if not child:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL); signal.pause()  # PR_SET_PDEATHSIG
print(left.getsockname()[1], left.fileno(), child, flush=True)
sys.stdin.readline()
if how == "unix":
    outbox = socket.socket(socket.AF_UNIX); outbox.connect("\\0" + sys.argv[3])
    socket.send_fds(outbox, [b"x"], [left.fileno()])
left.close()
print(flush=True); sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["tcp4", "udp6"])
@pytest.mark.parametrize("how", ["fork", "pidfd", "unix"])
def test_whoever_holds_a_socket_when_its_owner_closed_it_is_the_owner(how, kind):
    """A child, who took it (``pidfd_getfd``), who was sent it (an abstract address); on its way it is the sender's."""
    with contextlib.ExitStack() as stack, drive() as live:
        name = f"nst-{os.getpid()}-{how}-{kind}"
        inbox = stack.enter_context(socket.socket(socket.AF_UNIX))
        inbox.bind(f"\0{name}")
        inbox.listen()
        process = stack.enter_context(child(LEAVER, how, kind, name))
        here, descriptor, offspring = map(int, process.line.split())
        before = until_owner(live, process.pid, here)
        holder = offspring or os.getpid()
        if how == "pidfd":
            taken = ctypes.CDLL(None).syscall(438, os.pidfd_open(process.pid), descriptor, 0)  # pidfd_getfd
            if taken < 0:
                pytest.skip("this kernel, or the privileges, lack pidfd_getfd")
            stack.callback(os.close, taken)
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        if how == "unix":
            for _ in range(3):
                live.poll()
            assert flow_at(live, here).process.pid == process.pid
            with inbox.accept()[0] as connection:
                _, descriptors, *_ = socket.recv_fds(connection, 1, 1)
            stack.callback(os.close, descriptors[0])
        assert until_owner(live, holder, here).id == before.id
        assert not live.removed(here)


LAUNCHER = """
import os, socket, sys
listener = socket.create_server(("127.0.0.1", 0)); listener.set_inheritable(True)
print(listener.getsockname()[1], flush=True)
sys.stdin.readline()
code = 'import socket, sys; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()'
os.environ["PYTHONHOME"] = sys.base_prefix
os.execv(sys.argv[1], ["worker", "-S", "-c", code])
"""


def test_a_program_that_is_replaced_gives_its_name_to_old_and_new_sockets(tmp_path):
    """``execve``: name and path are those of the program that runs now."""
    worker = tmp_path / "worker"
    shutil.copy(os.path.realpath(sys.executable), worker)
    with child(LAUNCHER, str(worker)) as process, drive() as live:
        live.poll()
        old = flow_at(live, int(process.line))
        assert old.process.name == os.path.basename(os.path.realpath(sys.executable))
        process.stdin.write("\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            pytest.skip("a copy of this interpreter does not run")

        def renamed():
            live.poll()
            flow = flow_at(live, old.local.port)
            return flow if flow.process.path == str(worker) else None

        flow = live.until(renamed)
        assert (flow.id, flow.process.pid, flow.process.name) == (old.id, process.pid, "worker")
        assert flow_at(live, int(line)).process is flow.process
        assert any(isinstance(e, FlowUpdated) and e.flow is flow for e in live.events)


THREADS = """
import ctypes, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
def work():
    if sys.argv[1] == "own table" and libc.unshare(0x400):  # CLONE_FILES
        sys.exit("unshare")
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    threading.Event().wait()
thread = threading.Thread(target=work)
thread.start()
if sys.argv[1] == "first one ended":
    libc.pthread_exit(None)
thread.join()
"""

RING = """
import ctypes, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
ring = libc.syscall(425, 8, (ctypes.c_char * 120)())  # io_uring_setup
listener = socket.create_server(("127.0.0.1", 0))
here = listener.getsockname()[1]
number = ctypes.c_int(listener.fileno())
if ring < 0 or libc.syscall(427, ring, 2, ctypes.byref(number), 1):  # io_uring_register, IORING_REGISTER_FILES
    here = 0
listener.close()
print(here, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["own table", "first one ended", "io_uring"])
def test_sockets_in_rare_places_have_their_process(how):
    """A thread with descriptors of its own, a process whose first thread ended, a registered file without a descriptor."""
    with child(RING if how == "io_uring" else THREADS, how) as process, drive() as live:
        if process.line in {"", "0"}:
            pytest.skip("not on this kernel")
        flow = until_owner(live, process.pid, int(process.line))
        assert flow.process.name == os.path.basename(os.path.realpath(sys.executable))
        assert flow.process.path == os.path.realpath(sys.executable)
        for _ in range(3):
            live.poll()
        assert flow_at(live, int(process.line)) is flow, "a check finds it where it is"


def test_a_socket_is_met_anywhere_in_its_process_or_lost():
    """Of which the process alone is known, its descriptor is found; in another process it is lost."""
    from nstat_async._io.procfs import ProcessScanner

    with socket.socket() as own, child("import sys; print(flush=True); sys.stdin.read()") as other:
        inode, descriptor = os.fstat(own.fileno()).st_ino, own.fileno()
        held = ((inode, os.getpid(), ANYWHERE),)
        answer = ProcessScanner().answer(OwnersRequest(frozenset(), held=held))
        assert (answer.met, answer.lost) == (((inode, descriptor),), ())
        answer = ProcessScanner().answer(OwnersRequest(frozenset(), held=((inode, other.pid, ANYWHERE),)))
        assert (answer.met, answer.lost) == ((), (inode,))


def test_a_zombie_owns_nothing():
    """A process that ended and was not waited for is gone, though its pid is there."""
    from nstat_async._io.processes import ProcessReader, start_ticks

    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    process.stdout.read()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert os.path.exists(f"/proc/{process.pid}")
    assert start_ticks(process.pid) is None
    assert ProcessReader().facts(process.pid).name is None
    process.wait()
    process.stdout.close()


@pytest.mark.linux
@pytest.mark.parametrize("inode_at", [tables._inode_at, tables.inode_at], ids=["Python", "as built"])
def test_what_a_descriptor_leads_to_is_a_socket_something_else_or_not_there(inode_at):
    with socket.socket() as sock, open("/proc/self/stat", "rb") as file:
        descriptor = sock.fileno()
        assert inode_at(os.getpid(), descriptor) == os.fstat(descriptor).st_ino
        assert inode_at(os.getpid(), file.fileno()) == 0
    assert inode_at(os.getpid(), descriptor) is None
    assert inode_at(1 << 40, 0) is None


@pytest.mark.linux
@pytest.mark.parametrize("size_of", [tables._size_of, tables.size_of], ids=["Python", "as built"])
def test_a_process_has_a_number_of_descriptors_or_is_gone(size_of):
    """Before Linux 6.2 it is 0."""
    before = size_of(os.getpid())
    with socket.socket():
        assert size_of(os.getpid()) == (before + 1 if before else 0)
    assert size_of(1 << 40) is None


TAKERS = {"Python": tables._take_links, "as built": tables.take_links}
SOCKETS = """
import os, socket, sys
sockets = [socket.socket() for _ in range(150)]
for place in map(int, sys.argv[1:]):
    sockets[place].close()
if sys.argv[1:] == ["0"]:
    os.dup2(sockets[1].fileno(), 1000)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module", params=["", "70", "148 149", "0"])
def table(request):
    """The process of a table of descriptors, of which some were closed."""
    with child(SOCKETS, *request.param.split()) as process:
        yield process.pid


@pytest.mark.parametrize("take", TAKERS.values(), ids=TAKERS)
@pytest.mark.parametrize("most", [1, 64, 1000])
def test_every_descriptor_of_a_table_is_read_once_with_gaps_and_without(take, most, table):
    directory = f"/proc/{table}/fd"
    there = {int(number): tables.inode_of(os.readlink(f"{directory}/{number}")) for number in os.listdir(directory)}
    found, waiting = [], None
    while waiting is None or waiting:
        part, waiting = take(table, waiting, most)
        assert len(part) <= most
        found += part
    assert {number: inode for inode, number in found} == there
    assert len(found) == len(there) > 140


@pytest.mark.parametrize("size", [0, 3])
def test_a_listing_that_does_not_begin_where_it_was_to_is_taken_whole(monkeypatch, tmp_path, size):
    """Before Linux 6.2 a table has no size; what a directory elsewhere says of its own means something else."""
    for number in range(5):
        (tmp_path / str(number)).touch()
    monkeypatch.setattr(os, "fstat", lambda _file: os.stat_result((0,) * 6 + (size, 0, 0, 0)))
    monkeypatch.setattr(os, "lseek", lambda *_arguments: 0)
    directory = os.open(tmp_path, os.O_RDONLY)
    assert sorted(tables._numbers(directory)) == list("01234")
    os.close(directory)


def test_no_process_keeps_the_search_from_others(monkeypatch):
    """Each has its turn: a socket of a child is found before the many descriptors of its parent are through."""
    from nstat_async._io import walk
    from nstat_async._io.linux import network_of_this_thread

    monkeypatch.setattr(walk, "PARTS", 1)
    monkeypatch.setattr(walk, "AT_ONCE", 64)
    near = frozenset({network_of_this_thread()})
    with contextlib.ExitStack() as stack:
        own = {os.fstat(stack.enter_context(socket.socket()).fileno()).st_ino for _ in range(100)}
        mine, theirs = stack.enter_context(socket.socket()), socket.socket()
        inode = os.fstat(theirs.fileno()).st_ino
        script = "import sys; print(flush=True); sys.stdin.read()"
        process = stack.enter_context(child(script, pass_fds=[theirs.fileno()]))
        theirs.close()
        found = [place for place in walk.Walk([os.getpid()], walk.Walk((), None, near), near) if place[0]]
        order = [place[0] for place in found]
        assert {place[0]: place[1] for place in found}[inode] == process.pid
        assert order.index(inode) < max(order.index(each) for each in own)
        assert os.fstat(mine.fileno()).st_ino in order


def test_processes_in_other_network_namespaces_are_searched_last():
    """A socket that was handed to one is found all the same; what is known of a process is not asked again."""
    from nstat_async._io import walk

    script = "import sys; print(flush=True); sys.stdin.read()"
    with socket.socket() as own, child(script, pass_fds=[own.fileno()]) as process:
        inode = os.fstat(own.fileno()).st_ino
        first = walk.Walk((), None, frozenset())
        first.near = {pid: pid == os.getpid() for pid in first.pids}
        for before in (first, walk.Walk((), first, frozenset())):
            holders = [pid for found, pid, _, _ in before if found == inode]
            assert holders[0] == os.getpid()
            assert process.pid in holders
        assert not walk.Walk((), first, frozenset({1})).near, "another one is watched"


def test_what_is_added_to_a_search_under_way_is_found_before_its_end():
    """New sockets do not wait for a long search."""
    from nstat_async._io.procfs import ProcessScanner

    scanner = ProcessScanner(budget=0.0)
    with socket.socket() as own:
        first = scanner.answer(OwnersRequest(frozenset({1})))
        assert first.below is not None
        inode, answers, found = os.fstat(own.fileno()).st_ino, 0, ()
        request = OwnersRequest(frozenset({inode}), (os.getpid(),), first.below)
        while not found:
            answer = scanner.answer(request)
            found, answers = answer.owners, answers + 1
            request = OwnersRequest(frozenset(), (), answer.below)
        assert found == ((inode, os.getpid()),)
        descriptors = len(os.listdir("/proc/self/fd"))
        assert answers <= descriptors // 16 + 2
        assert answer.below is not None, "the rest goes on"


KERNEL_SOCKET = """
ip link set lo up && ip link add nst0 type vxlan id 9 dstport 4789 local 127.0.0.1 && ip link set nst0 up || echo none
ip link add nst1 type vxlan id 10 dstport 4790 local ::1 remote ::2 dev lo && ip link set nst1 up
ip link add nst2 type wireguard && ip link set nst2 up
exec "$0" -c 'import sys; print(flush=True); sys.stdin.read()'
"""


@pytest.mark.privileged
@privileged
def test_a_socket_of_the_kernel_is_told_from_a_hidden_one():
    """Sockets of VXLAN (and WireGuard) belong to no process: their owner is the kernel, where all processes can be looked at."""
    command = ["unshare", "-n", "sh", "-c", KERNEL_SOCKET, sys.executable]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout.readline() == "none\n":
            pytest.skip("this kernel has no vxlan")
        with drive(process.pid) as live:
            if live.core.capabilities.processes is not Visibility.ALL:
                pytest.skip("not all processes can be seen from here")
            live.poll()
            kernels = [flow for flow, _ in live.core.flows()]
            assert {4789, 4790} <= {flow.local.port for flow in kernels}
            for flow in kernels:  # nobody else is here
                assert flow.attribution is Attribution.KERNEL
                assert (flow.process.pid, flow.process.name) == (0, "kernel")
    finally:
        process.kill()
        process.communicate()


INSIDE = """
import ctypes, os, sys
from sockdiag_fakes import LiveDriver
from nstat_async.backends import SockDiag
from nstat_async._options import MonitorOptions
if KIND == "user":
    os.setgid(65534); os.setuid(65534)
    if ctypes.CDLL(None).unshare(0x10000000): print("none"); sys.exit()
with LiveDriver(*SockDiag().parts(MonitorOptions(interval=None))) as live:
    live.poll()
    (foreign,) = live.added(PORT)
    told = live.core.capabilities
    print(told.processes.value, foreign.flow.process, foreign.flow.attribution.value, sum("cannot be named" in n for n in told.notes))
"""


@pytest.mark.privileged
@privileged
@pytest.mark.parametrize(("kind", "whose"), [("user", "own"), ("pid", "some")])
def test_in_a_namespace_of_ones_own_capabilities_claim_nothing(nursery, kind, whose):
    """All capability bits in a user namespace, all processes of a pid namespace: what can be seen is tried out."""
    with listen() as listener:
        program = f"KIND, PORT = {kind!r}, {port(listener)}\n{INSIDE}"
        _, out, err = nursery.run(program, MOUNTS | PROCESSES if kind == "pid" else 0)
    if out == "none\n":
        pytest.skip("no user namespaces for users")
    assert out == f"{whose} None hidden 1\n", err

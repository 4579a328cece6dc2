"""The pulse on the living kernel: who holds what is new, without a poll and without privilege."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import subprocess
import sys
import threading
import time
import types

import anyio
import pytest
from test_sockdiag_living import drive, inside, listen, pair, port, privileged
from test_sockdiag_owners import child

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)

from nstat_async import Endpoint, FlowAdded, FlowRemoved, FlowUpdated, Monitor, PollCompleted
from nstat_async._io import budget, counters, crowds, glance, pulse
from nstat_async._io import likely as likely_module
from nstat_async._io.likely import LikelyHolders
from nstat_async._io.processes import ProcessReader
from nstat_async._io.walk import TURN
from nstat_async.backends import Replay, SockDiag
from nstat_async.sockdiag import DiagRequest, PulsePurpose, PulseReport
from nstat_async.sockdiag._constants import TCP_DUMP_STATES

pytestmark = pytest.mark.linux

CLIENT = """
import socket, sys
if sys.argv[1] == "udp":
    s = socket.socket(type=socket.SOCK_DGRAM); s.bind(("127.0.0.1", 0))
else:
    s = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(s.getsockname()[1], flush=True)
sys.stdin.read()
"""


def beating(netns=None, **options):
    """A monitor that polls until the pulse is there, and then only feels it."""
    live = drive(netns, pulse=0.005, **options)
    live.until(lambda: any(channel >= 1 << 17 for channel in live.channels))
    live.until(lambda: sum(isinstance(event, PollCompleted) for event in live.events) == 2)
    return live


def owner_of(live, *ends: int):
    """The process of the open flow with these ports, once it is known."""

    def owned():
        for flow, _ in live.core.flows():
            ports = [flow.local.port] if flow.remote is None else [flow.local.port, flow.remote.port]
            if ports == list(ends) and flow.process is not None:
                return flow.process
        return None

    return live.until(owned)


def test_both_ends_of_a_connection_have_their_processes_between_polls():
    """The one that another process opened, and the one that we accepted."""
    with listen() as listener, beating() as live, child(CLIENT, str(port(listener))) as client:
        there = int(client.line)
        opener = owner_of(live, there, port(listener))
        assert (opener.pid, opener.path) == (client.pid, os.path.realpath(sys.executable))
        accepted, _ = listener.accept()
        with accepted:
            assert owner_of(live, port(listener), there).pid == os.getpid()
        assert live.core.statistics()["polls"] == 2


def test_a_datagram_socket_has_its_process_between_polls():
    with beating() as live, child(CLIENT, "udp") as client:
        assert owner_of(live, int(client.line)).pid == client.pid
        assert live.added(int(client.line))[0].flow.provider.value == "udp"


@pytest.mark.privileged
@privileged
def test_each_network_namespace_has_a_pulse_of_its_own():
    """Its counters are those of its own ``/proc/net``."""
    process = inside()
    process.stdout.readline()
    with beating((None, process.pid)) as live:
        live.until(lambda: sum(channel >= 1 << 17 for channel in live.channels) == 2)
        command = ["nsenter", f"--net=/proc/{process.pid}/ns/net"]
        with child(CLIENT, "udp", prefix=command) as client:
            assert owner_of(live, int(client.line)).pid == client.pid
            assert live.added(int(client.line))[0].flow.namespace == f"pid:{process.pid}"
    process.communicate("\n")


def test_a_search_that_had_no_time_goes_on(monkeypatch):
    """What it did not come to is new once more, until it is found."""
    monkeypatch.setattr(pulse, "LONGEST_SEARCH", 0.0)
    with listen() as listener, beating() as live, child(CLIENT, str(port(listener))) as client:
        live.until(lambda: live.core.statistics().get("pulses", 0) > 1)
        monkeypatch.setattr(pulse, "LONGEST_SEARCH", 60.0)
        live.transport._pulse._budget.left = 1000.0
        assert owner_of(live, int(client.line), port(listener)).pid == client.pid


def test_nothing_is_left_of_a_pulse():
    """No descriptor and no thread."""
    before = len(os.listdir("/proc/self/fd"))
    with beating():
        assert any(thread.name == "nstat-async-pulse" for thread in threading.enumerate())
    assert not any(thread.name == "nstat-async-pulse" for thread in threading.enumerate())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_replay_of_a_pulse_is_the_run(tmp_path, loop):
    """Reports are recorded as they came; on every loop."""
    path, seen = tmp_path / "beats.nstat", []
    options = {"interval": None, "ebpf": "off", "pulse": 0.005, "record_to": path}

    async def run():
        async with Monitor(backend=SockDiag(), **options) as monitor:
            client = None
            async for event in monitor:
                seen.append(event)
                if client is None and monitor.statistics().feed["polls"] and isinstance(event, PollCompleted):
                    client, server = pair(listener)
                mine = client is not None and getattr(getattr(event, "flow", None), "local", None)
                if mine and event.flow.local.port == port(client) and event.flow.process is not None:
                    break
            client.close()
            server.close()

    async def play():
        async with Monitor(backend=Replay(path)) as replay:
            return [event async for event in replay]

    with listen() as listener:
        anyio.run(run, backend=loop)
    again = anyio.run(play, backend=loop)
    kinds = (FlowAdded, FlowUpdated, FlowRemoved)
    flows = [event for event in seen if isinstance(event, kinds)]
    assert [event for event in again if isinstance(event, kinds)][: len(flows)] == flows
    assert flows[-1].flow.process.pid == os.getpid()


# -- the parts


@pytest.fixture
def bell():
    descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    yield descriptor
    os.close(descriptor)


codes = pytest.mark.parametrize(
    "await_counters",
    list(dict.fromkeys([counters.await_counters, counters._await_counters])),
    ids=lambda code: type(code).__name__,
)


@contextlib.contextmanager
def counted():
    found = counters.Counters()
    try:
        yield found
    finally:
        found.close()


@codes
def test_the_counters_move_with_connections_and_datagram_sockets(await_counters, bell):
    """Whatever was read before, each is reported once."""
    with counted() as found:
        before, moved = found.connections, 0
        with listen() as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            ends = pair(listener)
            while moved != counters.CONNECTIONS | counters.DATAGRAMS:  # others close theirs meanwhile
                await_counters(bell, (found.numbers,), 0.0, 1000, 1)
                moved |= found.take_moved()
                with socket.socket(type=socket.SOCK_DGRAM) as another:
                    another.bind(("127.0.0.1", 0))
                    await_counters(bell, (found.numbers,), 0.0, 1, 1)
                    moved |= found.take_moved()
            for end in ends:
                end.close()
        assert found.connections >= before + 2


SNMP = "Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens\nTcp: 1 200 120000 -1 {} {} 3\nUdp: 1\n"
SOCKSTAT = "sockets: used 9\nTCP: inuse {} orphan 0 tw {} alloc 4 mem 0\nUDP: inuse {} mem 2\nRAW: inuse 0\n"
SOCKSTAT6 = "TCP6: inuse {}\nUDP6: inuse {}\nRAW6: inuse 0\n"


class Files:
    """What the kernel says, as files that a test writes."""

    def __init__(self, directory):
        self.numbers = counters.array("q", [-1, -1, -1, *bytes(9)])
        self._paths = [directory / name for name in ("snmp", "sockstat", "sockstat6")]
        self.say((0, 0), (0, 0, 0), (0, 0))
        for place, path in enumerate(self._paths):
            self.numbers[place] = os.open(path, os.O_RDONLY)

    def say(self, opened=None, four=None, six=None):
        for path, text, values in zip(self._paths, (SNMP, SOCKSTAT, SOCKSTAT6), (opened, four, six), strict=True):
            if values is not None:
                path.write_text("Ip: 1 2\n" * (path.name == "snmp") + text.format(*values))

    def write(self, number, text):
        self._paths[number].write_text(text)

    def moved(self):
        moved, self.numbers[11] = self.numbers[11], 0
        return moved


@pytest.fixture
def files(tmp_path):
    found = Files(tmp_path)
    yield found
    for descriptor in found.numbers[:3]:
        os.close(descriptor)


@codes
def test_what_the_kernel_counts_is_told_apart(await_counters, files, bell):
    """Connections by their own count, where the numbers of sockets changed; datagram sockets where there are more."""

    def after(**said):
        files.say(**said)
        await_counters(bell, (files.numbers,), 0.0, 1, 1000)
        return files.moved()

    await_counters(bell, (files.numbers,), 0.0, 1, 1000)
    assert after(opened=(3, 4), four=(2, 0, 0)) == counters.CONNECTIONS
    assert files.numbers[3] == 7
    assert after(four=(1, 0, 0)) == 0  # one was closed
    assert after(opened=(4, 4)) == 0  # it is not asked for
    assert after(four=(1, 1, 0)) == counters.CONNECTIONS
    assert after(opened=(4, 5), six=(1, 0)) == counters.CONNECTIONS
    assert after(four=(1, 1, 1)) == after(six=(1, 1)) == counters.DATAGRAMS
    assert after(four=(1, 1, 0)) == 0
    assert after(opened=(5, 5), four=(1, 1, 1)) == counters.CONNECTIONS | counters.DATAGRAMS
    files.say(opened=(6, 6))
    await_counters(bell, (files.numbers,), 0.0, 9, 8)
    assert files.moved() == counters.CONNECTIONS  # one reading of eight is thorough


@codes
def test_who_waits_for_counters_is_woken_by_the_bell(await_counters, files, bell):
    os.eventfd_write(bell, 1)
    await_counters(bell, (files.numbers,), 3600.0, 1000, 8)
    assert files.numbers[10] == 0


@codes
@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, ""),
        (0, "Tcp: names\nTcp: 1 2 3\n"),
        (0, "Tcp: 1 2 3 4 5 6 7"),
        (1, ""),
        (1, "sockets: used x " * 3),
        (2, "TCP6:"),
    ],
)
def test_a_kernel_without_these_counters_is_an_error(await_counters, files, bell, number, text):
    files.write(number, text)
    with pytest.raises(OSError) as caught:
        await_counters(bell, (files.numbers,), 0.0, 1, 1)
    assert caught.value.errno == errno.ENODATA


@codes
def test_a_file_that_is_closed_is_an_error(await_counters, bell):
    with counted() as found:
        pass
    with pytest.raises(OSError) as caught:
        await_counters(bell, (found.numbers,), 0.0, 1, 1)
    assert caught.value.errno == errno.EBADF


def test_a_budget_is_kept_whatever_looks_cost():
    """A look may cost more than is left; the time after it pays."""
    granted = budget.Budget(0.02, 100.0)
    now, spent = 100.0, 0.0
    for cost in [0.001, 0.3, 0.001, 0.05] * 50:
        now += max(0.02, granted.rest())
        granted.spend(cost, now)
        spent += cost
    assert spent <= 0.02 * (now - 100.0) + 0.02 * budget.SAVED + 0.3
    assert granted.left <= 0.02 * budget.SAVED


def test_what_is_saved_has_an_end():
    granted = budget.Budget(0.02, 100.0)
    granted.spend(0.0, 10_000.0)
    assert granted.left == pytest.approx(0.02 * budget.SAVED)


def test_a_shorter_pause_is_granted_more_and_not_without_end():
    with beating() as live:
        assert live.transport._pulse._budget.share == pytest.approx(budget.SHARE * 4)
    assert budget.SHARE * pulse.USUAL_PAUSE / 0.0001 > pulse.MOST_SHARE


def test_what_is_done_with_reports_is_charged(monkeypatch):
    """Between two reads the reader's thread works on what it got."""
    clock = iter([10.0, 10.0 + 2**-12])
    charged = []
    channel = pulse.PulseChannel(PulsePurpose(0), lambda _watch: None, charged.append)
    monkeypatch.setattr(pulse.time, "thread_time", lambda: next(clock))
    try:
        channel._put(PulseReport())
        batch = []
        assert channel.read_into(batch, 8)
        assert PulseReport.decode(batch[0]) == PulseReport()
        assert not channel.read_into([], 8)
        assert not channel.read_into([], 8)
        assert charged == [(channel.glance, 2**-12)]
    finally:
        channel.close()
        channel.glance.close()


def test_a_search_begins_with_young_processes_and_ends_with_all():
    recent: dict[int, None] = {}
    with (
        socket.socket() as own,
        child("import socket, sys; s = socket.socket(); print(flush=True); sys.stdin.read()") as new,
    ):
        likely = LikelyHolders(recent)
        inode = os.fstat(own.fileno()).st_ino
        assert new.pid in holders(likely.ends())
        assert os.getpid() in holders(likely.far(), inode)
        likely.add([(0, new.pid, new.pid, 3), (inode, os.getpid(), os.getpid(), own.fileno())])
        assert list(recent) == [new.pid, os.getpid()]
        assert os.getpid() in holders(likely.ends(), inode)


def test_a_process_that_ended_and_was_not_reaped_is_looked_at_no_more():
    """A zombie has no descriptors; hundreds of them would cost each look as many tables."""
    zombie = os.fork()
    if not zombie:
        os._exit(0)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    try:
        recent = {zombie: None}
        likely = LikelyHolders(recent)
        assert zombie in {place[1] for place in likely.ends()}
        list(likely.hot())
        assert not recent
        assert zombie not in {place[1] for places in (likely.ends(), likely.hot(), likely.near()) for place in places}
    finally:
        os.waitpid(zombie, 0)


def holders(places, inode: int = 0) -> set[int]:
    """The processes that have this socket, or any."""
    return {place[1] for place in places if (place[0] == inode if inode else place[0])}


def test_what_a_process_opened_behind_a_dump_is_looked_for_behind_the_next_one():
    """Its number of descriptors is new at two looks: the first one of them may be without the socket in the dump."""
    likely = LikelyHolders({})
    assert [likely._has_changed(7, size) for size in (3, 3, 3, 4, 4, 4)] == [True, True, False, True, True, False]


def test_where_the_kernel_says_no_number_of_descriptors_all_tables_are_searched(monkeypatch):
    """Before Linux 6.2; since then those that did not change have nothing new."""
    likely = LikelyHolders({})
    list(likely.far())
    with socket.socket() as own:
        assert holders(likely.far(), inode_of(own)) == {os.getpid()}
        monkeypatch.setattr(likely_module, "size_of", lambda _pid: 0)
        assert holders(LikelyHolders({}).far(), inode_of(own)) == {os.getpid()}


def test_a_process_with_thousands_of_descriptors_keeps_no_other_waiting():
    """Its turn is with all others: to list them alone takes milliseconds."""
    recent = {os.getpid(): None}
    likely = LikelyHolders(recent)
    with socket.socket() as own, pytest.MonkeyPatch.context() as patch:
        patch.setattr(likely_module, "size_of", lambda _pid: TURN + 1)
        assert not holders(likely.ends()) | holders(likely.hot()) | holders(likely.near())
        assert holders(likely.far(), os.fstat(own.fileno()).st_ino)


def test_a_number_is_that_of_a_process_of_a_thread_or_of_nobody(monkeypatch):
    """Also where the kernel has no descriptors of processes (``pidfd_open(2)``, Linux 5.3)."""
    ready, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (ready.set(), end.wait()))
    thread.start()
    ready.wait()
    numbers = (os.getpid(), thread.native_id, 1 << 30)
    try:
        assert [likely_module._is_process(number) for number in numbers] == [True, False, None]
        monkeypatch.delattr(os, "pidfd_open")
        assert [likely_module._is_process(number) for number in numbers] == [True, False, None]
    finally:
        end.set()
        thread.join()


@pytest.fixture
def look():
    """What is seen at a glance of TCP over IPv4, here."""
    request = DiagRequest(socket.AF_INET, socket.IPPROTO_TCP, states=TCP_DUMP_STATES & ~(1 << 10)).encode()
    found = glance.Glance(PulsePurpose(0, 0.02, (request,)), lambda _report: None)
    found.begin()
    yield found
    found.close()


def seen(look: glance.Glance, **how: bool) -> list[tuple[int, bytes]]:
    """New sockets, as soon as connections were counted."""
    while not look._opened:
        feel(look)
    return look.look(time.monotonic(), **how)


def feel(look: glance.Glance) -> None:
    """Read the counters."""
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    counters.await_counters(bell, (look.counters.numbers,), 0.0, 1, 1)
    os.close(bell)
    look.notice(time.monotonic())


def inodes(found: list[tuple[int, bytes]]) -> set[int]:
    return {glance.SOCKET.unpack_from(message, glance.COOKIE_AT)[2] for _, message in found}


def inode_of(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@pytest.mark.parametrize(
    "lengths", [(124, 124), (124, 96, 124, 124), (96, 124), (90, 124, 96, 96, 91), (124, 248, 124)]
)
def test_messages_of_all_lengths_are_taken_apart(look, lengths):
    """What is left of a socket has fewer attributes; the last message of a datagram may come without its padding."""
    messages = [
        glance.struct.pack("=IH54xQ", length, 20, cookie).ljust(length, b"\1") for cookie, length in enumerate(lengths)
    ]
    data = b"".join(message.ljust(len(message) + 3 & ~3, b"\0") for message in messages)
    parts = iter([data[: len(data) - (-lengths[-1] % 4)], glance.struct.pack("=IH14x", 20, 3)])
    real, look._socket = look._socket, types.SimpleNamespace(recv=lambda _size: next(parts))
    present: set[int] = set()
    try:
        assert list(look._strangers({0}, present, [])) == messages[1:]
        assert present == set(range(len(lengths)))
    finally:
        look._socket = real


def test_a_closed_socket_is_searched_for_no_longer(look):
    """Between a dump and the search it may be closed: no process has it any more."""
    with listen() as listener:
        client, server = pair(listener)
        both = {inode_of(client), inode_of(server)}
        new = seen(look)
        assert look.still_held(new, both) == both
        closed = {inode_of(client)}
        client.close()
        assert look.still_held(new, both) == both - closed
        server.close()


def test_a_look_can_leave_out_crowds(look, monkeypatch):
    """Of those one that is whole tells; what is left out is no news when it comes, and what was told is none again."""
    monkeypatch.setattr(glance, "CROWD", 8)
    monkeypatch.setattr(crowds, "CROWD", 8)
    monkeypatch.setattr(crowds, "_SAMPLE", 1)
    monkeypatch.setattr(look._successors, "find", lambda *_: ([], 0))
    with listen() as crowded, listen() as quiet, contextlib.ExitStack() as open_:

        def connect(listener):
            ends = [open_.enter_context(end) for end in pair(listener)]
            return {inode_of(end) for end in ends}

        many = set().union(*(connect(crowded) for _ in range(20)))
        assert many <= inodes(seen(look))
        assert port(crowded) in look.crowds
        left_out, told = connect(crowded), connect(quiet)
        found = inodes(seen(look, whole=False))
        assert told <= found
        assert not left_out & found
        more = connect(quiet)
        found = inodes(seen(look))
        assert left_out | more <= found
        assert not (told | many) & found


def test_connections_to_one_server_are_found_by_their_ports(look):
    """Those of the next ports are looked up; both ends, and whatever became of them: a dump is not needed."""
    with listen() as listener, contextlib.ExitStack() as open_:

        def connect():
            return [open_.enter_context(end) for end in pair(listener)]

        both = [*connect(), *connect()]
        assert {inode_of(end) for end in both} <= inodes(seen(look))
        for _ in range(3):
            more = [*connect(), *connect()]
            found = inodes([(6, row) for row in look._successors.find(4, set(), 0.0)[0]])
            assert found == {inode_of(end) for end in more}


def test_what_is_found_by_its_port_is_new_once(look):
    with listen() as listener, contextlib.ExitStack() as open_:
        ends = [open_.enter_context(end) for end in pair(listener)]
        look._successors.find = lambda *_: ([row_of(look, end) for end in ends], 2)
        look._opened = 2
        assert {inode_of(end) for end in ends} == inodes(look._look_for_connections(0.0, whole=True))
        look._opened = 2
        assert look._look_for_connections(0.0, whole=True) == []


def test_for_those_that_are_missing_there_are_fewer_dumps_the_less_these_have(look, monkeypatch):
    """Flows that are over already were counted, and are found by nothing; what a dump finds makes the next one come soon again."""
    dumps, rows = [], [[], [], [(6, b"")], []]
    monkeypatch.setattr(look, "_look", lambda _protocol, **_how: dumps.append(now) or rows.pop(0))
    monkeypatch.setattr(look, "_take_in", lambda _rows: [])
    monkeypatch.setattr(look._successors, "find", lambda *_: ([b"one"], 1))
    for now in (1.0, 1.03, 1.041, 1.1, 1.13):
        look._opened = 2
        look._look_for_connections(now, whole=True)
    assert dumps == [1.0, 1.041, 1.13]
    monkeypatch.setattr(look._successors, "find", lambda *_: ([], 0))
    look._opened, now = 1, 1.131
    look._look_for_connections(now, whole=True)
    assert dumps[-1] == 1.131  # none was found by its port: another server, perhaps


def row_of(look: glance.Glance, end: socket.socket) -> bytes:
    """The message of a socket."""
    ends = b"".join(each[1].to_bytes(2, "big") for each in (end.getsockname(), end.getpeername()))
    addresses = b"".join(socket.inet_aton(each[0]).ljust(16, b"\0") for each in (end.getsockname(), end.getpeername()))
    request = DiagRequest(socket.AF_INET, 6, socket_id=ends + addresses + bytes(4) + b"\xff" * 8, dump=False)
    (row,) = look._ask([request.encode()])
    return row


def test_a_connection_that_waits_to_be_accepted_is_asked_for_again(look):
    """One by one, until a process has it."""
    with listen() as listener, socket.create_connection(listener.getsockname()) as client:
        while port(client) not in {int.from_bytes(row[22:24], "big") for row in look._unheld.values()}:
            feel(look)
            look.look(time.monotonic())
        server, _ = listener.accept()
        with server:
            assert inode_of(server) in inodes(look._look_for_connections(0.0, whole=True))


def test_a_process_that_opens_one_socket_after_another_is_asked_for_the_last_descriptor():
    """Before its table is read; of a process that is gone nothing is kept."""
    recent: dict[int, None] = {}
    likely = LikelyHolders(recent)
    first = socket.socket()
    place = os.getpid(), first.fileno()
    list(likely.ends())  # no process is new any more
    likely.add([(inode_of(first), place[0], place[0], place[1]), (1, 1 << 30, 1 << 30, 3)])
    first.close()
    with socket.socket() as second:
        assert second.fileno() == place[1]
        assert next(found for found in likely.ends() if found[0]) == (inode_of(second), place[0], *place)
    assert list(recent) == [os.getpid()]


def test_a_server_is_asked_for_the_descriptors_of_its_last_connections():
    """It has some at once, and each at the lowest descriptor that is free."""
    likely, pid = LikelyHolders({}), os.getpid()
    before = [socket.socket() for _ in range(3)]
    likely.add([(inode_of(each), pid, pid, each.fileno()) for each in before])
    for each in before:
        each.close()
    with contextlib.ExitStack() as open_:
        after = [open_.enter_context(socket.socket()) for _ in range(3)]
        assert {(inode_of(each), pid, pid, each.fileno()) for each in after} <= set(likely.ends())


def test_a_young_process_is_asked_for_the_descriptor_of_the_one_before():
    """Workers of one program have their sockets at the same place, whatever was open when they were forked."""
    program = (
        "import os, socket, sys; s = socket.socket(); os.dup2(0, 200); print(s.fileno(), flush=True); sys.stdin.read()"
    )
    with child(program) as first, child(program) as second:
        descriptor = int(first.line)
        assert int(second.line) == descriptor
        likely = LikelyHolders({})
        assert second.pid not in holders(likely.ends())  # its last descriptor is none
        likely.add([(1, first.pid, first.pid, descriptor)])
        assert {first.pid, second.pid} <= holders(likely.ends())


def test_a_kernel_that_leaves_out_nothing_is_looked_at_whole(look, monkeypatch):
    """Before Linux 5.9 it refuses the request."""
    look.crowds = (1,)
    monkeypatch.setattr(glance, "without_crowds", lambda request, _ports: crowds.without_crowds(request, [1])[:-4])
    with listen() as listener:
        for whole in (False, True):
            ends = pair(listener)
            assert {inode_of(end) for end in ends} <= inodes(seen(look, whole=whole))
            assert look.crowds == ()
            for end in ends:
                end.close()


def test_dumps_take_their_own_share(monkeypatch):
    """While it is spent there are none of all sockets."""
    beat, looks = pulse.Pulse({}, ProcessReader()), []
    crowd = types.SimpleNamespace(dumped=0.0, whole_takes=0.0, look=lambda _now, whole: looks.append(whole) or [])
    beat._look(crowd, 0.0)
    beat._wide.left = beat._budget.left = -1.0
    beat._look(crowd, 0.0)
    assert looks == [True, False]


def test_what_searches_through_all_take_is_granted_anew(monkeypatch):
    """Once their share is spent, too: else there would be none any more, and crowds would never be looked at."""
    monkeypatch.setattr(pulse, "LONGEST_WAIT", 0.0)
    with beating() as live:
        wide = live.transport._pulse._wide
        wide.left = -0.0001
        live.until(lambda: wide.left > 0.0)


def test_of_thousands_at_once_those_of_likely_processes_are_reported():
    sockets = [(6, bytes(glance.COOKIE_AT) + glance.SOCKET.pack(inode, 0, inode)) for inode in range(3000)]
    urgent = pulse._most_urgent(sockets, {2999, 5})
    assert [glance.SOCKET.unpack_from(message, glance.COOKIE_AT)[2] for _, message in urgent[:2]] == [5, 2999]
    assert len(urgent) == pulse.MOST_NEW


def test_threads_are_no_processes():
    """Their numbers are given away as those of processes are; their descriptors are the process's."""
    ready, end = threading.Event(), threading.Event()
    numbers = []

    def work():
        numbers.append(threading.get_native_id())
        ready.set()
        end.wait()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    likely = LikelyHolders({})
    likely._see_newest()
    end.set()
    thread.join()
    assert likely._numbers[numbers[0]] is False
    assert numbers[0] not in likely._young


def test_without_a_thread_there_is_no_pulse(monkeypatch):
    """It is said, and nothing is left open."""

    def refuse(_self):
        raise RuntimeError("can't start new thread")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="can't start new thread") as caught:
        pulse.Pulse({}, ProcessReader()).open(PulsePurpose(0))
    assert caught.value.errno == errno.EAGAIN
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_descriptors_are_few_others_have_them(monkeypatch):
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (glance.SPARE_DESCRIPTORS, glance.SPARE_DESCRIPTORS))
    with pytest.raises(OSError, match="Too many open files"):
        pulse.Pulse({}, ProcessReader()).open(PulsePurpose(0))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("failure", "note"),
    [(OSError(errno.ENOBUFS, "no room"), "No buffer space available"), (KeyError(1), "Input/output")],
)
def test_looks_that_go_on_failing_end_the_pulse_and_nothing_else(monkeypatch, failure, note):
    """One that fails once, whatever it was, ends nothing."""

    def fail(self, now):
        failed.append(now)
        if always or len(failed) == 1:
            raise failure
        return notice(self, now)

    notice, failed, always = glance.Glance.notice, [], False
    monkeypatch.setattr(pulse, "LONGEST_WAIT", 0.0)
    with beating() as live:
        monkeypatch.setattr(glance.Glance, "notice", fail)
        live.until(lambda: len(failed) > 2 * pulse.MOST_FAILURES)
        assert not any("short flows" in each for each in live.core.capabilities.notes)
        always = True
        live.until(lambda: any(note in each for each in live.core.capabilities.notes))
        assert live.poll().complete


@pytest.mark.privileged
@privileged
@pytest.mark.parametrize("whose", ["own", "root's"])
def test_who_may_look_has_the_owners_of_short_flows(whose):
    """An ordinary user those of its own processes, with two capabilities those of others as well, whatever its uid is."""
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", f'ip link set lo up && exec "{sys.executable}" -c "$0" "{whose}"', NOT_ROOT],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "found\n", done.stderr


NOT_ROOT = f"""
import os, sys
sys.path[:0] = {[os.getcwd(), os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]!r}
"127.0.0.1".encode("idna")
import ctypes, struct
import nstat_async._io.netlink
import test_sockdiag_pulse_living as tests
libc, (begin, beginning), (end, ending) = ctypes.CDLL(None), os.pipe(), os.pipe()
def client():
    pid = os.fork()
    if not pid:
        os.close(beginning), os.close(ending)
        os.read(begin, 1)
        connection = tests.socket.create_connection(listener.getsockname())
        os.read(end, 1)
        os._exit(0)
    return pid
with tests.listen() as listener:
    roots = sys.argv[1] == "root's" and client()
    libc.prctl(8, 1)  # PR_SET_KEEPCAPS
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    rights = 1 << 2 | 1 << 19 if roots else 0  # CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE
    if libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", rights, rights, 0, 0, 0, 0)):
        sys.exit("capset")
    libc.prctl(4, 1)  # PR_SET_DUMPABLE: what is forked from here may be looked at, as any process of this user
    pid = roots or client()
    with tests.beating() as live:
        os.write(beginning, b"!")
        (owner,) = live.until(lambda: [f.process for f, _ in live.core.flows() if f.remote == tests.there(listener) and f.process])
        print("found" if owner.pid == pid else owner)
        os.close(ending)
        os.waitpid(pid, 0)
"""


def there(listener: socket.socket) -> Endpoint:
    return Endpoint(bytes([127, 0, 0, 1]), port(listener))

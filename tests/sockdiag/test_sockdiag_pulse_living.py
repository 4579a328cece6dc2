"""The pulse on the living kernel: who holds what is new, without a poll and without privilege."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
import threading
import types

import anyio
import pytest
from nursery import NETWORK
from sockdiag_living import drive, inside, listen, pair, port, privileged
from test_sockdiag_owners import child

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)

from nstat_async import Endpoint, FlowAdded, FlowRemoved, FlowUpdated, Monitor, PollCompleted
from nstat_async._io import budget, glance, linux, pulse
from nstat_async._io.processes import ProcessReader
from nstat_async.backends import Replay, SockDiag
from nstat_async.sockdiag import PulsePurpose, PulseReport

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
                flow = getattr(event, "flow", None)
                if client is None or flow is None or flow.remote is None or flow.process is None:
                    continue
                if (flow.local.port, flow.remote.port) == (port(client), port(listener)):
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
    monkeypatch.setattr(resource, "getrlimit", lambda _: (linux.SPARE_DESCRIPTORS, linux.SPARE_DESCRIPTORS))
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
def test_who_may_look_has_the_owners_of_short_flows(nursery, whose):
    """An ordinary user those of its own processes, with two capabilities those of others as well, whatever its uid is."""
    _, out, err = nursery.run(f"WHOSE = {whose!r}\n{NOT_ROOT}", NETWORK)
    assert out == "found\n", err


NOT_ROOT = """
import ctypes, os, socket, struct, sys
from sockdiag_fakes import LiveDriver
from nstat_async import PollCompleted
from nstat_async._options import MonitorOptions
from nstat_async.backends import SockDiag
libc, (begin, beginning), (end, ending) = ctypes.CDLL(None), os.pipe(), os.pipe()
def client():
    pid = os.fork()
    if not pid:
        os.close(beginning), os.close(ending)
        os.read(begin, 1)
        connection = socket.create_connection(listener.getsockname())
        os.read(end, 1)
        os._exit(0)
    return pid
with socket.create_server(("127.0.0.1", 0)) as listener:
    roots = WHOSE == "root's" and client()
    libc.prctl(8, 1)  # PR_SET_KEEPCAPS
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    rights = 1 << 2 | 1 << 19 if roots else 0  # CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE
    if libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", rights, rights, 0, 0, 0, 0)):
        sys.exit("capset")
    libc.prctl(4, 1)  # PR_SET_DUMPABLE: what is forked from here may be looked at, as any process of this user
    pid = roots or client()
    with LiveDriver(*SockDiag().parts(MonitorOptions(interval=None, ebpf="off", pulse=0.005))) as live:
        live.until(lambda: any(channel >= 1 << 17 for channel in live.channels))
        live.until(lambda: sum(isinstance(event, PollCompleted) for event in live.events) == 2)
        os.write(beginning, b"!")
        here = listener.getsockname()[1]
        (owner,) = live.until(lambda: [f.process for f, _ in live.core.flows() if f.remote and f.remote.port == here and f.process])
        print("found" if owner.pid == pid else owner)
        os.close(ending)
        os.waitpid(pid, 0)
"""


def there(listener: socket.socket) -> Endpoint:
    return Endpoint(bytes([127, 0, 0, 1]), port(listener))

"""Network namespaces that cannot be entered, on the living kernel."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from nursery import MOUNTS, NETWORK, PROCESSES

BEGIN = """
import codecs, ctypes, fcntl, json, os, socket, struct, subprocess, sys, time
import nstat_async._io.outside
from nstat_async._options import MonitorOptions
from nstat_async.backends import SockDiag
from nstat_async._events import FlowAdded, FlowRemoved, PollCompleted
from sockdiag_fakes import LiveDriver
codecs.lookup("ascii")  # whoever has no privilege cannot import it
LIBC = ctypes.CDLL(None, use_errno=True)
nstat_async._io.outside.SHARE = 100  # each poll reads anew
def powerless():
    "As root without capabilities."
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert LIBC.prctl(4, 1, 0, 0, 0) == 0 and LIBC.capset(header, nothing) == 0
    assert LIBC.prctl(4, 1, 0, 0, 0) == 0  # dumpable again
def ordinary():
    os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
def container(drop):
    "A process in a network namespace of its own, which does as it is told: its pid, its port, and how to tell it."
    there, here = os.pipe(); told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(tell)
        assert LIBC.unshare(0x40000000) == 0
        with socket.socket() as any_socket:
            fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 0x49))
        drop()
        LIBC.prctl(4, 1, 0, 0, 0)
        listener = socket.create_server(("127.0.0.1", 0)); held = []
        os.write(here, b"%d " % listener.getsockname()[1])
        while (word := os.read(told, 1)):
            if word == b"o":
                held = [socket.create_connection(listener.getsockname()), listener.accept()[0]]
                os.write(here, b"%d " % held[0].getsockname()[1])
            else:
                [each.close() for each in held]
        os._exit(0)
    def port():
        text = b""
        while not text.endswith(b" "):
            text += os.read(there, 1)
        return int(text)
    os.close(told)
    return pid, port, tell
def watch():
    options = MonitorOptions(interval=0.02, ebpf="off", pulse=None, providers=("tcp", "udp"))
    return LiveDriver(*SockDiag("all").parts(options))
def flow(live, local, remote=None):
    "The flow with these ports, as it was told last."
    for event in reversed(live.events):
        f = getattr(event, "flow", None)
        if f is not None and f.namespace and f.local.port == local and (f.remote.port if f.remote else None) == remote:
            return event
"""

LIFE = """
powers = {"user": ordinary, "root": powerless}
pid, port, tell = container(powers[TARGET])
listening = port()
powers[WATCHER]()
with watch() as live:
    live.until(lambda: flow(live, listening) and (flow(live, listening).flow.process or flow(live, listening).flow.attribution))
    first = flow(live, listening).flow
    os.write(tell, b"o"); client = port()
    def both():
        ends = flow(live, listening, client), flow(live, client, listening)
        return all(e and (e.flow.process or e.flow.attribution) for e in ends) and ends
    server_end, client_end = live.until(both)
    notes = live.core.capabilities.notes
    os.write(tell, b"c")
    live.until(lambda: isinstance(flow(live, client, listening), FlowRemoved))
    removed = flow(live, client, listening)
    os.close(tell)
    live.until(lambda: isinstance(flow(live, listening), FlowRemoved))
    print(json.dumps({
        "pids": [e and e.process and e.process.pid for e in (first, server_end.flow, client_end.flow)], "pid": pid,
        "why": first.attribution and first.attribution.value, "uid": first.process and first.process.uid,
        "direction": [first.direction.value, server_end.flow.direction.value, client_end.flow.direction and client_end.flow.direction.value],
        "bytes": [removed.counts.tx_bytes, removed.final, removed.reason.value],
        "label": first.namespace, "flows": len({e.flow.id for e in live.events if isinstance(e, FlowAdded) and e.flow.namespace}),
        "notes": sum("watched from outside" in note for note in notes),
        "processes": live.core.capabilities.processes.value,
    }))
"""

privileged = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")


@pytest.fixture
def inside(nursery):
    """What a program prints that runs in network, mount and pid namespaces of its own."""

    def run(script: str, **names: Any) -> Any:
        given_names = "".join(f"{name} = {value!r}\n" for name, value in names.items())
        status, out, err = nursery.run(BEGIN + given_names + script, NETWORK | MOUNTS | PROCESSES)
        assert status == 0, err
        return json.loads(out)

    return run


@pytest.mark.linux
@privileged
@pytest.mark.parametrize(
    ("watcher", "target", "named"),
    [("root", "root", True), ("user", "user", True), ("user", "root", False)],
)
def test_flows_of_a_container_come_change_and_go_for_whoever_has_no_privilege(inside, watcher, target, named):
    told = inside(LIFE, WATCHER=watcher, TARGET=target)
    assert told["pids"] == [told["pid"] if named else None] * 3
    assert told["why"] == (None if named else "hidden")
    assert told["direction"] == ["listener", "inbound", None]
    assert told["bytes"] == [None, False, "gone"]
    assert told["label"] == f"pid:{told['pid']}"
    assert told["flows"] == 3, "each once"
    assert told["notes"] == 1
    assert told["processes"] != "all"


HIDING = """
pid, port, tell = container(lambda: None)
listening = port()
subprocess.run(["mount", "-t", "proc", "-o", OPTIONS, "proc", "/proc"], check=True)
ordinary()
with watch() as live:
    live.poll()
    print(json.dumps([flow(live, listening) is None, live.core.capabilities.namespaces_limit]))
"""


@pytest.mark.linux
@privileged
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("hidepid=2", "/proc hides them (hidepid=)"),
        ("hidepid=1", "processes cannot be seen: that needs CAP_SYS_PTRACE"),
    ],
)
def test_where_proc_hides_others_nothing_is_seen_of_them_and_that_is_said(inside, options, words):
    unseen, limit = inside(HIDING, OPTIONS=options)
    assert unseen
    assert words in limit


CGROUP = """
from nstat_async._io.cgroups import hierarchy_here
hierarchy, name = hierarchy_here(), "docker-" + os.urandom(32).hex() + ".scope"
top = f"{hierarchy.directory if hierarchy else '/nowhere'}/{name}"
try:
    os.mkdir(top)
except OSError as error:
    print(json.dumps([error.strerror])); sys.exit()
def join():
    with open(f"{top}/cgroup.procs", "w") as file:
        file.write("0")
pid, port, tell = container(join)
listening, caller = port(), os.fork()
if not caller:
    ordinary()
    with watch() as live:
        live.until(lambda: flow(live, listening) and flow(live, listening).flow.attribution)
        told = flow(live, listening).flow
        print(json.dumps([name, told.attribution.value, told.process, told.cgroup, told.container]), flush=True)
    os._exit(0)
os.waitpid(caller, 0); os.close(tell); os.waitpid(pid, 0); os.rmdir(top)
"""


@pytest.mark.linux
@privileged
def test_an_ordinary_user_knows_whose_container_it_is(inside):
    name, *told = inside(CGROUP)
    if not told:
        pytest.skip(f"no cgroup can be made here: {name}")
    assert told == ["inferred", None, f"/{name}", name.removeprefix("docker-").removesuffix(".scope")]


REPLAY = """
import asyncio, io
from nstat_async import Monitor
from nstat_async.backends import Replay
pid, port, tell = container(lambda: None)
listening = port()
powerless()
path = "/proc/self/fd/%d" % os.memfd_create("recording")
def story(events):
    return [(type(e).__name__, e.flow.id, e.flow.namespace, str(e.flow.state), str(e.flow.remote)) for e in events if isinstance(e, (FlowAdded, FlowRemoved))]
async def run():
    told = []
    async with Monitor(netns="all", interval=0.02, ebpf="off", pulse=None, providers="tcp", record_to=path, overflow="all") as monitor:
        async for event in monitor:
            told.append(event)
            if isinstance(event, FlowAdded) and event.flow.local.port == listening and event.flow.remote is None:
                os.write(tell, b"o"); client = port(); break
        async for event in monitor:
            told.append(event)
            if isinstance(event, FlowAdded) and event.flow.local.port == client:
                os.write(tell, b"c"); break
        async for event in monitor:
            told.append(event)
            if isinstance(event, FlowRemoved) and event.flow.local.port == client:
                os.close(tell); break
        async for event in monitor:
            told.append(event)
            if isinstance(event, FlowRemoved) and event.flow.local.port == listening and event.flow.remote is None:
                return story(told)
async def again():
    async with Monitor(backend=Replay(path), overflow="all") as monitor:
        return story([event async for event in monitor])
told = asyncio.run(run())
print(json.dumps([told, asyncio.run(again())[:len(told)]]))
"""


@pytest.mark.linux
@privileged
def test_a_replay_is_the_run(inside):
    run, replay = inside(REPLAY)
    assert len(run) >= 6
    assert replay == run


@pytest.mark.linux
@privileged
def test_to_enter_is_preferred(inside):
    """Root has the bytes, and nothing twice."""
    told = inside("""
pid, port, tell = container(lambda: None)
listening = port()
with watch() as live:
    live.until(lambda: flow(live, listening))
    live.poll(); live.poll()
    ids = {e.flow.id for e in live.events if isinstance(e, FlowAdded) and e.flow.local.port == listening}
    print(json.dumps([len(ids), live.core.capabilities.namespaces_limit, len(live.transport._finder.outside)]))
""")
    assert told == [1, None, 0]

"""The living kernel through `Monitor`: what the programs add to sock_diag, and what is left without them."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest
from ebpf_living import (
    ALL,
    LIMIT,
    NotReportedError,
    again,
    counts_calls,
    needs_calls,
    own_namespace,
    program_ids,
    wait_until_gone,
)

from nstat_async import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, Monitor, PollCompleted, Visibility
from nstat_async import json as flow_json
from nstat_async._errors import BackendUnavailableError, UnavailableReason
from nstat_async._io import bpf, bpfmaps, netlink
from nstat_async._io.bpfload import EbpfSettings
from nstat_async._io.netlink import NetlinkTransport
from nstat_async._io.ring import Ring
from nstat_async._model import Direction, Provider
from nstat_async.backends import Replay
from nstat_async.ebpf import RING_STEP, Tier
from nstat_async.sockdiag import AttachRequest

pytestmark = [pytest.mark.privileged, pytest.mark.linux, pytest.mark.timeout(300)]


class Seen:
    """A monitor, and everything that it said."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.events = []

    async def keep(self) -> None:
        async for event in self.monitor:
            self.events.append(event)

    async def until(self, condition: Callable[[], object]) -> object:
        end = time.monotonic() + LIMIT
        while not (value := condition()):
            if time.monotonic() > end:
                raise NotReportedError(f"not within {LIMIT} s; {len(self.events)} events")
            await asyncio.sleep(0.005)
        return value

    def of(self, kind: type, port: int) -> list:
        return [
            e for e in self.events if isinstance(e, kind) and e.flow.local is not None and e.flow.local.port == port
        ]


def monitored(work, **options) -> Seen:
    """Run a coroutine function beside an open monitor; what the monitor said."""

    async def run() -> Seen:
        async with Monitor(**{"providers": ("tcp", "udp"), "ebpf": "require", **options}) as monitor:
            seen = Seen(monitor)
            keeper = asyncio.ensure_future(seen.keep())
            try:
                await work(seen)
            finally:
                keeper.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await keeper
            return seen

    return asyncio.run(run())


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    return sock


def port(sock: socket.socket) -> int:
    return sock.getsockname()[1]


def connection() -> tuple[socket.socket, socket.socket, socket.socket]:
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(8)
    client = socket.create_connection(server.getsockname())
    return client, server.accept()[0], server


def own(event) -> bool:
    return event.flow.process is not None and event.flow.process.pid == os.getpid()


# --- short processes -------------------------------------------------------------------------


def short_processes(traffic: str, count: int) -> dict[int, tuple[int, int, int | None]]:
    """Processes that connect to themselves and are gone: by port their pid, bytes and datagrams."""
    truth, running = {}, []
    for index in range(count):
        for job in (("tcp", 10000 + index, 1000 + index), ("udp", 20000 + index, 100 + index, 1 + index % 7)):
            running.append(process := subprocess.Popen([traffic, *map(str, job)]))
            datagrams = job[3] if len(job) > 3 else None
            truth[job[1]] = process.pid, job[2] * (datagrams or 1), datagrams
        while len(running) > 8:
            assert running.pop(0).wait() == 0
    assert [process.wait() for process in running] == [0] * len(running)
    return truth


def ends(events, truth) -> dict[tuple[int, bool], FlowRemoved]:
    """The ends of the flows of these processes, by port and whether they sent; none twice."""
    found = {}
    for event in events:
        if isinstance(event, FlowRemoved):
            local, remote = event.flow.local.port, event.flow.remote and event.flow.remote.port
            sends = remote in truth
            key = (remote if sends else local), sends
            if key[0] in truth and (event.flow.provider.value == "udp" or remote):
                assert key not in found, event
                found[key] = event
    return found


def check_short_processes(events, truth, *, packets: bool) -> None:
    found = ends(events, truth)
    added = {e.flow.id for e in events if isinstance(e, FlowAdded)}
    assert len(found) == 2 * len(truth)
    for (number, sends), event in found.items():
        pid, size, datagrams = truth[number]
        assert event.flow.id in added
        if event.flow.process is None:
            raise NotReportedError(event)
        assert (event.flow.process.pid, event.flow.process.name) == (pid, "traffic")
        assert event.final
        assert (event.counts.tx_bytes, event.counts.rx_bytes) == ((size, 0) if sends else (0, size))
        if datagrams is not None and packets:
            assert (event.counts.tx_packets, event.counts.rx_packets) == ((datagrams, 0) if sends else (0, datagrams))
        if datagrams is None:
            assert event.flow.direction is (Direction.OUTBOUND if sends else Direction.INBOUND)


@again
def test_every_short_process_has_its_flows(namespace, traffic):
    """200 processes with one connection and 200 with datagrams, gone at once: bytes, pid and name exact, each end once."""
    truth = {}

    async def work(seen: Seen) -> None:
        truth.update(await asyncio.to_thread(short_processes, traffic, 200))
        await seen.until(lambda: len(ends(seen.events, truth)) == 4 * 200)

    seen = monitored(work, interval=0.5, overflow="all")
    check_short_processes(seen.events, truth, packets=True)
    assert not [e for e in seen.events if isinstance(e, EventsLost)]


class Watcher:
    """``nstat-async watch --json`` in a process of its own, with exactly these capabilities."""

    def __init__(self, *capabilities: str, ebpf: str = "require", netns: str | None = None) -> None:
        wanted = ",".join(f"+{name}" for name in capabilities)
        caps = f"-all,{wanted}" if wanted else "-all"
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={caps}"]
        command += [f"--ambient-caps={caps}", sys.executable, "-m", "nstat_async", "watch", "--json", "--ebpf", ebpf]
        command += ["--interval", "0.3", *(["--netns", netns] if netns else [])]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.events: list = []
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.events.append(flow_json.loads(line))

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT
        while not condition():
            if time.monotonic() > end:
                raise NotReportedError(len(self.events))
            if self.process.poll() is not None:
                pytest.fail(self.process.stderr.read())
            time.sleep(0.01)

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)  # SIGINT is ignored where these tests run in the background
        self.process.wait(LIMIT)
        self.thread.join()
        self.process.stdout.close()
        self.process.stderr.close()


@pytest.mark.slow
@needs_calls
@again
@pytest.mark.parametrize("capabilities", [("bpf", "perfmon"), ("bpf", "perfmon", "net_admin")])
def test_two_capabilities_are_enough(namespace, traffic, capabilities):
    """A user without any other privilege sees the same; three capabilities count the packets of UDP, too."""
    with Watcher(*capabilities) as watcher:
        watcher.until(lambda: any(isinstance(e, PollCompleted) for e in watcher.events))
        truth = short_processes(traffic, 40)
        watcher.until(lambda: len(ends(watcher.events, truth)) == 4 * 40)
        check_short_processes(watcher.events, truth, packets="net_admin" in capabilities)


@pytest.mark.slow
@pytest.mark.parametrize("capabilities", [(), ("bpf",), ("perfmon",), ("bpf", "net_admin")])
def test_less_than_that_is_as_without_programs(namespace, traffic, capabilities):
    """Flows and their bytes are there; UDP is not counted."""
    with Watcher(*capabilities, ebpf="auto") as watcher:
        watcher.until(lambda: any(isinstance(e, PollCompleted) for e in watcher.events))
        truth = short_processes(traffic, 4)
        watcher.until(lambda: len(ends(watcher.events, truth)) == 4 * 4)
        for (number, _), event in ends(watcher.events, truth).items():
            size = truth[number][1] if event.flow.provider.value == "tcp" else None
            assert (event.counts.rx_bytes or event.counts.tx_bytes) == size


@pytest.mark.slow
@again
def test_namespaces_that_may_not_be_entered_are_seen_from_outside(namespace):
    """Without CAP_SYS_ADMIN: of another namespace what was there before, what begins, and its exact ends."""
    with Watcher("bpf", "perfmon", "net_admin", netns="all") as watcher, own_namespace():

        def of(kind: type) -> dict[int, list]:
            events = [e for e in watcher.events if isinstance(e, kind) and e.flow.namespace == label]
            return {place: [e for e in events if e.flow.local.port == place] for place in ports}

        label = f"net:[{os.stat('/proc/thread-self/ns/net').st_ino}]"
        client, inbound, server = connection()
        sock = udp()
        ports = port(client), port(inbound), port(sock)
        watcher.until(lambda: all(of(FlowAdded).values()))
        client.sendall(bytes(70))
        sock.sendto(bytes(5), sock.getsockname())
        sock.recv(9)
        for each in (client, inbound, server, sock):
            each.close()
        watcher.until(lambda: all(of(FlowRemoved).values()))
        removed = {place: events[-1] for place, events in of(FlowRemoved).items()}
    client_end, server_end, datagrams = (removed[place] for place in ports)
    assert (client_end.counts.tx_bytes, client_end.final, server_end.counts.rx_bytes, server_end.final) == (
        70,
        True,
        70,
        True,
    )
    assert datagrams.counts.tx_bytes == (6 if datagrams.final else 5)
    assert all(own(event) for event in removed.values())


def test_required_and_refused(namespace):
    """The error is typed and says what is missing."""
    with Watcher(ebpf="require") as watcher:
        assert watcher.process.wait(LIMIT) == 1
        text = watcher.process.stderr.read()
    assert "CAP_BPF and CAP_PERFMON" in text


def test_a_thread_that_stayed_in_another_namespace_attaches_nothing_and_says_so(namespace):
    """Programs for its namespace would see no flow of the monitor's, whose processes were unknown without a word."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(os.getpid).result()  # it begins here
        with own_namespace(), contextlib.closing(NetlinkTransport()) as transport:
            answer = pool.submit(transport.lookup, AttachRequest()).result()
            assert answer.tier is Tier.NONE
            assert "another network namespace" in answer.detail
            assert transport.lookup(AttachRequest()).tier is ALL


# --- lives of flows ----------------------------------------------------------------------------


@again
def test_a_connection_is_announced_at_once_and_ends_once(namespace):
    """Without any poll: both ends with process, direction and exact counts, whoever closes first."""

    async def work(seen: Seen) -> None:
        client, inbound, server = connection()
        ports.extend((port(client), port(inbound)))
        client.sendall(bytes(70))
        assert len(inbound.recv(100)) == 70
        await seen.until(lambda: all(any(e.flow.remote for e in seen.of(FlowAdded, number)) for number in ports))
        for sock in (client, inbound, server):
            sock.close()
        await seen.until(lambda: all(any(e.flow.remote for e in seen.of(FlowRemoved, number)) for number in ports))

    ports: list[int] = []
    seen = monitored(work, interval=None)
    for number, direction, totals in zip(
        ports, (Direction.OUTBOUND, Direction.INBOUND), ((70, 0), (0, 70)), strict=True
    ):
        (added,) = [e for e in seen.of(FlowAdded, number) if e.flow.remote]
        (removed,) = [e for e in seen.of(FlowRemoved, number) if e.flow.remote]
        if not own(added):
            raise NotReportedError(added)
        assert added.flow.direction is direction
        assert removed.final
        assert (removed.counts.tx_bytes, removed.counts.rx_bytes) == totals


@again
def test_a_socket_with_two_connections_is_two_flows(namespace):
    async def work(seen: Seen) -> None:
        servers = [socket.socket() for _ in range(2)]
        client = socket.socket()
        for size, server in enumerate(servers, 1):
            server.bind(("127.0.0.1", 0))
            server.listen(8)
            client.connect(server.getsockname())
            client.sendall(bytes(size))
            remotes.append(port(server))
            with contextlib.suppress(OSError):
                dissolve(client)
        client.close()
        await seen.until(lambda: len([e for e in seen.events if outbound(e, FlowRemoved)]) == 2)
        for server in servers:
            server.close()

    def outbound(event, kind) -> bool:
        return isinstance(event, kind) and event.flow.remote is not None and event.flow.remote.port in remotes

    remotes: list[int] = []
    seen = monitored(work, interval=None)
    removed = [e for e in seen.events if outbound(e, FlowRemoved)]
    assert [e.counts.tx_bytes for e in removed] == [1, 2]
    assert len({e.flow.id for e in removed}) == 2
    assert [e.flow.id for e in seen.events if outbound(e, FlowAdded)] == [e.flow.id for e in removed]


def dissolve(sock: socket.socket) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    unspecified = struct.pack("=H14x", 0)
    libc.connect(sock.fileno(), unspecified, len(unspecified))


@needs_calls
@again
def test_udp_is_counted_at_each_poll_and_to_the_end(namespace):
    """Deltas add up to the final counts, which are exact."""

    async def work(seen: Seen) -> None:
        one, other = udp(), udp()
        ports.extend((port(one), port(other)))
        for size in (100, 1000):
            one.sendto(bytes(size), other.getsockname())
            other.recv(2000)
            await seen.monitor.poll_now()
        one.sendto(bytes(10), other.getsockname())
        other.recv(2000)
        one.close()
        other.close()
        await seen.until(lambda: all(seen.of(FlowRemoved, number) for number in ports))

    ports: list[int] = []
    seen = monitored(work, interval=None)
    assert seen.monitor.options.ebpf.value == "require"
    for number, name in zip(ports, ("tx", "rx"), strict=True):
        (added,) = seen.of(FlowAdded, number)
        assert own(added)
        updates = seen.of(FlowUpdated, number)
        growth = [getattr(e.delta, f"{name}_bytes") for e in updates]
        assert [size for size in growth if size] == [100, 1000]
        assert [getattr(e.delta, f"{name}_packets") for e in updates if getattr(e.delta, f"{name}_bytes")] == [1, 1]
        (removed,) = seen.of(FlowRemoved, number)
        assert removed.final
        assert getattr(removed.counts, f"{name}_bytes") == 1110
        assert getattr(removed.counts, f"{name}_packets") == 3


@needs_calls
@again
def test_a_socket_that_was_there_before_is_counted_from_now_on(namespace):
    """What went through it before is unknown, never 0; its last counts are not final."""
    with udp() as old:
        old.sendto(bytes(50), old.getsockname())
        number = port(old)

        async def work(seen: Seen) -> None:
            await seen.monitor.poll_now()
            old.sendto(bytes(7), old.getsockname())
            await seen.monitor.poll_now()
            await seen.until(lambda: seen.of(FlowUpdated, number))
            old.close()
            await seen.until(lambda: seen.of(FlowRemoved, number))

        seen = monitored(work, interval=None)
    (added,) = seen.of(FlowAdded, number)
    assert added.preexisting
    assert added.counts.tx_bytes is None
    assert sum(e.delta.tx_bytes or 0 for e in seen.of(FlowUpdated, number)) == 7
    assert not seen.of(FlowRemoved, number)[0].final


HANDING = """
import socket, sys
channel = socket.socket(fileno=int(sys.argv[1]))
sock = socket.socket(type=getattr(socket, sys.argv[3]))
sock.connect(("127.0.0.1", int(sys.argv[2])))
sock.send(b"mine")
channel.recv(1)
socket.send_fds(channel, [b"yours"], [sock.fileno()])
sock.close()
channel.recv(1)
"""


@again
@pytest.mark.parametrize("kind", ["SOCK_STREAM", pytest.param("SOCK_DGRAM", marks=needs_calls)])
def test_a_socket_that_is_handed_over_is_its_new_process_s(namespace, kind):
    """Its first process was seen using it, and closes its own descriptor: one update names the process that has it."""

    async def work(seen: Seen) -> None:
        server = socket.socket(type=getattr(socket, kind))
        server.bind(("127.0.0.1", 0))
        if kind == "SOCK_STREAM":
            server.listen()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", HANDING, str(theirs.fileno()), str(port(server)), kind]
        with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as child:
            await seen.until(lambda: owners(seen, port(server))[-1:] == [child.pid])
            ours.send(b"!")
            _, (descriptor,), _, _ = await asyncio.to_thread(socket.recv_fds, ours, 9, 1)
            await seen.until(lambda: owners(seen, port(server))[-1:] == [os.getpid()])
            ours.send(b"!")
            pids.append(child.pid)
            history.extend(owners(seen, port(server)))
        os.close(descriptor)
        for sock in (server, ours, theirs):
            sock.close()

    def owners(seen: Seen, remote: int) -> list[int]:
        flows = [e.flow for e in seen.events if isinstance(e, (FlowAdded, FlowUpdated))]
        owned = [f.process.pid for f in flows if f.remote is not None and f.remote.port == remote and f.process]
        return list(dict.fromkeys(owned))

    pids: list[int] = []
    history: list[int] = []
    monitored(work, interval=0.1)
    assert history == [*pids, os.getpid()]


@needs_calls
@pytest.mark.parametrize("mode", ["require", "off"])
def test_raw_icmp_and_packet_sockets(namespace, mode):
    """They are there with their owner; with the programs at once, with bytes and, but for packet sockets, their end."""
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
    told = mode == "require"

    async def work(seen: Seen) -> None:
        sockets = [
            socket.socket(socket.AF_INET, socket.SOCK_RAW, 89),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP),
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88CC)),
        ]
        sockets[0].sendto(bytes(30), ("127.0.0.1", 0))
        sockets[1].sendto(b"\x08" + bytes(11), ("127.0.0.1", 0))
        sockets[1].recv(100)
        sockets[2].sendto(bytes(60), ("lo", 0x88CC))
        await seen.until(lambda: len({e.flow.id for e in seen.events if isinstance(e, FlowAdded)}) == 3)
        if told:
            known = {(12, 12, None), (60, 0, 0x88CC)}
            await seen.until(lambda: {(*totals(e), e.flow.protocol) for e in updates(seen)} >= known)
        for sock in sockets:
            sock.close()
        await seen.until(lambda: sum(isinstance(e, FlowRemoved) for e in seen.events) == 3)

    seen = monitored(work, interval=0.1, overflow="all", ebpf=mode, providers=("raw", "icmp", "packet"))
    removed = {e.flow.provider.value: e for e in seen.events if isinstance(e, FlowRemoved)}
    assert {e.flow.process.pid for e in removed.values()} == {os.getpid()}
    assert (removed["raw"].flow.protocol, removed["packet"].flow.protocol) == (89, 0x88CC)
    bytes_sent = {name: e.counts.tx_bytes for name, e in removed.items()}
    assert bytes_sent == ({"raw": 30, "icmp": 12, "packet": 60} if told else dict.fromkeys(removed))
    assert [removed[name].final for name in ("raw", "icmp", "packet")] == [told, told, False]


def totals(event) -> tuple[int, int]:
    return event.counts.tx_bytes, event.counts.rx_bytes


def updates(seen: Seen) -> list[FlowUpdated]:
    return [event for event in seen.events if isinstance(event, FlowUpdated)]


# --- losses --------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """The programs with little room."""

    def settings(**sizes):
        monkeypatch.setattr(netlink, "EbpfSettings", lambda **given: EbpfSettings(**given, **sizes))

    return settings


@again
def test_a_full_ring_is_said_exactly_and_repaired(namespace, small):
    """The loop is held while more happens than the ring has room for: the loss is counted, and every flow ends once."""
    small(ring=1 << 12)

    async def work(seen: Seen) -> None:
        for _ in range(60):
            client, inbound, server = connection()
            ports.add(port(client))
            keep.append(inbound)
            client.sendall(b"x" * 5)
            client.close()
            server.close()
        await seen.monitor.poll_now()
        for inbound in keep:
            inbound.close()
        await seen.until(lambda: ports <= {e.flow.local.port for e in seen.events if isinstance(e, FlowRemoved)})
        await seen.monitor.poll_now()

    ports: set[int] = set()
    keep: list[socket.socket] = []
    seen = monitored(work, interval=None)
    lost = [e for e in seen.events if isinstance(e, EventsLost)]
    assert lost
    assert all(e.count for e in lost)
    assert "ring full" in lost[0].detail
    ids = [e.flow.id for e in seen.events if isinstance(e, FlowRemoved)]
    assert len(ids) == len(set(ids))
    sizes = [e.counts.tx_bytes for e in seen.events if isinstance(e, FlowRemoved) and e.flow.local.port in ports]
    assert sizes == [5] * 60


@again
def test_skipped_programs_are_said_and_repaired(namespace, monkeypatch):
    """Every third record is never written, as where an interrupt came at the wrong time, and the kernel counts that.

    sock_diag has what is missing: each connection is reported, and ends once, with its bytes.
    """
    lost = []
    read = Ring.read

    def some(ring, *arguments, keep=False) -> bytes:
        data = read(ring, *arguments, keep=keep)
        if keep:
            return data
        records = [data[at : at + RING_STEP] for at in range(0, len(data), RING_STEP)]
        lost.extend(records[2::3])
        return b"".join(record for number, record in enumerate(records) if number % 3 != 2)

    async def work(seen: Seen) -> None:
        monkeypatch.setattr(Ring, "read", some)
        for _ in range(40):
            client, inbound, server = connection()
            ports.add(port(client))
            client.sendall(b"x" * 5)
            inbound.recv(5)
            for sock in (client, inbound, server):
                sock.close()
        await seen.until(lambda: ports <= ended(seen))
        with udp() as sock:
            while sum(e.count for e in seen.events if isinstance(e, EventsLost) and "states" in e.detail) < len(lost):
                # What is skipped is skipped while another one is counted, and is looked at when there is more of that.
                sock.sendto(b"x", sock.getsockname())
                await seen.monitor.poll_now()
                await asyncio.sleep(0.01)

    def ended(seen: Seen) -> set[int]:
        return {e.flow.local.port for e in seen.events if isinstance(e, FlowRemoved)}

    monkeypatch.setattr(bpfmaps, "recursion_misses", lambda _program: len(lost))
    ports: set[int] = set()
    seen = monitored(work, interval=None)
    said = [e for e in seen.events if isinstance(e, EventsLost)]
    assert said
    assert all("states skipped" in e.detail or "transfers skipped" in e.detail for e in said)
    assert sum(e.count for e in said if "states" in e.detail) == len(lost) > 0
    removed = [e for e in seen.events if isinstance(e, FlowRemoved) and e.flow.local.port in ports]
    assert [e.counts.tx_bytes for e in removed] == [5] * 40


@again
@pytest.mark.parametrize("room", [16, 1024])
def test_remotes_of_an_unconnected_socket(namespace, small, room):
    """A flow for each, as long as there is room, and one for all others: together exactly what the socket had."""
    small(most_peers=room)

    async def work(seen: Seen) -> None:
        server = udp()
        local = port(server)
        for _ in range(3):
            for number in range(100):
                server.sendto(bytes(10 + number), (f"127.0.1.{number + 1}", 9))
            await seen.monitor.poll_now()
        server.close()
        await seen.until(lambda: [e for e in seen.of(FlowRemoved, local) if e.flow.provider is Provider.UDP])
        await seen.monitor.poll_now()
        await seen.until(lambda: len(remotes(seen.events, FlowRemoved)) == len(remotes(seen.events, FlowAdded)) > 0)

    def remotes(events, kind: type) -> list:
        return [e for e in events if isinstance(e, kind) and e.flow.provider is Provider.UDP_SUBFLOW]

    seen = monitored(work, interval=None, overflow="all", providers=("udp", "udp_subflow"))
    (whole,) = [e for e in seen.events if isinstance(e, FlowRemoved) and e.flow.provider is Provider.UDP]
    parts = remotes(seen.events, FlowRemoved)
    assert whole.counts.tx_bytes == 3 * sum(range(10, 110)) == sum(e.counts.tx_bytes for e in parts)
    assert {e.flow.process.pid for e in parts} == {os.getpid()}
    assert ("/other" in "".join(e.flow.id for e in parts)) == (room == 16)
    if room > 16:
        assert len(parts) == 100
        assert all(e.final for e in parts)


@needs_calls
@again
def test_a_full_map_is_said_and_sock_diag_has_the_flows(namespace, small):
    small(flows=8)

    async def work(seen: Seen) -> None:
        socks = [udp() for _ in range(24)]
        for sock in socks:
            sock.sendto(bytes(9), sock.getsockname())
        ports.update(map(port, socks))
        await seen.monitor.poll_now()
        await seen.monitor.poll_now()
        for sock in socks:
            sock.close()
        await seen.until(lambda: ports <= {e.flow.local.port for e in seen.events if isinstance(e, FlowRemoved)})

    ports: set[int] = set()
    seen = monitored(work, interval=None)
    assert [e for e in seen.events if isinstance(e, EventsLost) and "map full" in e.detail and e.count]
    removed = [e for e in seen.events if isinstance(e, FlowRemoved) and e.flow.local.port in ports]
    assert len(removed) == 24
    sizes = [e.counts.tx_bytes for e in removed]
    assert set(sizes) == {9, None}
    assert all(e.final for e in removed if e.counts.tx_bytes)


# --- what is left --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_monitor_leaves_nothing(namespace):
    """All is held by descriptors: SIGKILL detaches and frees the programs."""
    with Watcher("bpf", "perfmon", "net_admin") as watcher:
        watcher.until(lambda: any(isinstance(e, PollCompleted) for e in watcher.events))
        ids = program_ids(watcher.process.pid)
        assert len(ids) == (10 if counts_calls() else 8)
        watcher.process.kill()
    wait_until_gone(ids)


@pytest.mark.parametrize("loop", ["trio", "uvloop"])
@again
def test_on_other_event_loops(namespace, loop):
    """A ring wakes them, too."""
    ports: list[int] = []

    async def work() -> list:
        events = []
        async with Monitor(ebpf="require", interval=None, providers=("tcp", "udp")) as monitor:
            client, inbound, server = connection()
            ports.append(port(client))
            client.sendall(b"abc")
            for sock in (client, inbound, server):
                sock.close()
            with anyio.move_on_after(LIMIT):
                async for event in monitor:
                    events.append(event)
                    if isinstance(event, FlowRemoved) and event.flow.local.port == ports[0]:
                        break
        return events

    options = {"use_uvloop": True} if loop == "uvloop" else {}
    pytest.importorskip(loop)
    events = anyio.run(work, backend="trio" if loop == "trio" else "asyncio", backend_options=options)
    if not events or not own(events[-1]):
        raise NotReportedError(events)
    assert events[-1].counts.tx_bytes == 3


def test_without_programs_everything_is_as_before(namespace):
    """``ebpf="off"``: no tier, no counts of UDP, and nothing asked of the kernel."""

    async def work(seen: Seen) -> None:
        await seen.monitor.poll_now()
        capabilities.append(seen.monitor.capabilities)

    capabilities: list = []
    monitored(work, ebpf="off", interval=None)
    assert capabilities[0].ebpf is None
    assert not capabilities[0].udp_counts
    assert any("no byte counters of UDP" in note for note in capabilities[0].notes)


def test_what_it_can_tell(namespace):
    async def work(seen: Seen) -> None:
        capabilities.append(seen.monitor.capabilities)

    capabilities: list = []
    monitored(work, interval=None)
    assert capabilities[0].ebpf == ALL.value
    assert capabilities[0].udp_counts
    assert capabilities[0].processes is Visibility.ALL
    assert not any("has no process" in note for note in capabilities[0].notes)


STEPS = ("Loader.load", "MappedRing", "SharedCounters", "EbpfSource.open")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_whatever_is_refused_sock_diag_goes_on(namespace, monkeypatch, step):
    """At each step the kernel may say no: the monitor says why and shows connections all the same."""
    from nstat_async._io import bpfload, ebpf

    def refuse(*_: object, **__: object) -> None:
        if step == "Loader.load":
            raise BackendUnavailableError("ebpf", UnavailableReason.KERNEL, "no")
        raise OSError(1, "no")

    holder, name = {
        "Loader.load": (bpfload.Loader, "load"),
        "MappedRing": (ebpf, "MappedRing"),
        "SharedCounters": (ebpf, "SharedCounters"),
        "EbpfSource.open": (ebpf.EbpfSource, "open"),
    }[step]
    monkeypatch.setattr(holder, name, refuse)

    async def work(seen: Seen) -> None:
        client, inbound, server = connection()
        number = port(client)
        client.sendall(bytes(3))
        for sock in (client, inbound, server):
            sock.close()
        await seen.until(lambda: seen.of(FlowRemoved, number))
        assert seen.of(FlowRemoved, number)[0].counts.tx_bytes == 3
        capabilities.append(seen.monitor.capabilities)

    capabilities: list = []
    monitored(work, ebpf="auto", interval=0.1)
    assert capabilities[0].ebpf == "none"
    assert capabilities[0].ebpf_reason


class Refusing:
    """The system call bpf(2), of which some calls are refused.

    Args:
        call: The call itself.
        refused: Numbers of the calls that are, counted from 0.
        number: With which error.
    """

    def __init__(self, call: Callable[..., int], refused: range, number: int) -> None:
        self.calls = 0
        self._call = call
        self._refused = refused
        self._number = number

    def __call__(self, *arguments: object) -> int:
        self.calls += 1
        if self.calls - 1 not in self._refused:
            return self._call(*arguments)
        ctypes.set_errno(self._number)
        return -1


@pytest.mark.long
@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOMEM])
@pytest.mark.parametrize("alone", [True, False])
def test_every_call_refused_leaves_a_working_monitor(namespace, monkeypatch, number, alone):
    """One call after the other, alone or with all that follow: each connection is seen, with its bytes, and nothing is left open."""

    async def work(seen: Seen) -> None:
        with udp() as sock:
            sock.sendto(b"x", sock.getsockname())
            await seen.monitor.poll_now()
        client, inbound, server = connection()
        place = port(client)
        client.sendall(bytes(3))
        for each in (client, inbound, server):
            each.close()
        await seen.until(lambda: seen.of(FlowRemoved, place))
        (removed,) = seen.of(FlowRemoved, place)
        assert (removed.counts.tx_bytes, removed.final) == (3, True), step
        tiers.append((seen.monitor.capabilities.ebpf, seen.monitor.capabilities.ebpf_reason))

    tiers, step, system_call = [], 0, bpf._system_call()
    monitored(work, ebpf="off", interval=None)  # what is made once and kept
    tiers.clear()
    before = len(os.listdir("/proc/self/fd"))
    while True:
        refusing = Refusing(system_call, range(step, step + 1 if alone else sys.maxsize), number)
        monkeypatch.setattr(bpf, "_system_call", lambda refusing=refusing: refusing)
        monitored(work, ebpf="auto", interval=None)
        end = time.monotonic() + LIMIT
        while len(os.listdir("/proc/self/fd")) != before:  # a look at /proc may still be under way
            assert time.monotonic() < end, step
            time.sleep(0.002)
        if refusing.calls <= step:
            break
        assert tiers[-1][0] == ALL.value or tiers[-1][1], step
        step += 1
    assert step > 20
    assert tiers[0][0] == "none"
    assert tiers[-1] == (ALL.value, None)


# --- recordings ----------------------------------------------------------------------------------


@needs_calls
def test_a_replay_is_the_run_without_any_privilege(namespace, traffic, tmp_path):
    """Ring and maps are in the recording, and so is what was granted: the same events follow, in order."""
    path = tmp_path / "run.nstat"

    async def work(seen: Seen) -> None:
        truth = await asyncio.to_thread(short_processes, traffic, 20)
        await seen.until(lambda: len(ends(seen.events, truth)) == 4 * 20)
        await seen.monitor.poll_now()

    seen = monitored(work, interval=0.2, overflow="all", record_to=path)

    async def replayed() -> list:
        async with Monitor(backend=Replay(path), overflow="all", ebpf="off", providers=("tcp", "udp")) as monitor:
            return [event async for event in monitor]

    again_seen = asyncio.run(replayed())
    assert again_seen[: len(seen.events)] == seen.events
    assert not [e for e in again_seen if isinstance(e, EventsLost)]


def test_what_was_there_before_comes_once_with_all_that_is_known_of_its_process(namespace):
    server, client = udp(), udp()
    client.connect(server.getsockname())

    async def work(seen: Seen) -> None:
        client.send(b"x")
        await seen.until(lambda: [e for e in seen.events if isinstance(e, PollCompleted)])

    ports = {port(server), port(client)}
    with server, client:
        events = monitored(work, interval=None, providers="udp").events
    (poll,) = [e for e in events if isinstance(e, PollCompleted)]
    begun = events[: events.index(poll)]
    assert {type(e) for e in begun} == {FlowAdded}
    assert {e.flow.local.port for e in begun} == ports
    for event in begun:
        process = event.flow.process
        assert (process.pid, process.user) == (os.getpid(), "root")
        assert process.path == os.readlink("/proc/self/exe")

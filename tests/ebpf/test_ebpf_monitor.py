"""The living kernel through `Monitor`: what the programs add to sock_diag."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from ebpf_living import ALL, LIMIT, NET, NotReportedError, again, needs_calls
from ebpf_monitored import Seen, check_short_processes, connection, ends, monitored, own, port, short_processes, udp

from examples import THOROUGH
from nstat_async import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, Monitor, PollCompleted, Visibility
from nstat_async._model import Direction
from nstat_async.backends import Replay

pytestmark = [pytest.mark.privileged, pytest.mark.linux, pytest.mark.timeout(NET)]


@again
def test_every_short_process_has_its_flows(namespace, traffic):
    """Processes with one connection and others with datagrams, gone at once: bytes, pid and name exact, each end once."""
    truth, count = {}, 200 if THOROUGH else 50

    async def work(seen: Seen) -> None:
        truth.update(await asyncio.to_thread(short_processes, traffic, count))
        await seen.until(lambda: len(ends(seen.events, truth)) == 4 * count)

    seen = monitored(work, interval=0.5, overflow="all")
    check_short_processes(seen.events, truth, packets=True)
    assert not [e for e in seen.events if isinstance(e, EventsLost)]


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
def test_what_was_never_used_has_its_process_too(namespace):
    """A listener that nobody connected to, and datagram sockets that were bound or connected, between two polls."""

    async def work(seen: Seen) -> None:
        bound, connected = udp(), socket.socket(type=socket.SOCK_DGRAM)
        connected.connect(("127.0.0.1", 9))
        for each in (socket.create_server(("127.0.0.1", 0)), bound, connected):
            ports.append(port(each))
            each.close()
        await seen.until(lambda: all(seen.of(FlowRemoved, number) for number in ports))

    ports: list[int] = []
    seen = monitored(work, interval=None)
    for number, is_listener in zip(ports, (True, False, False), strict=True):
        (added,), (removed,) = seen.of(FlowAdded, number), seen.of(FlowRemoved, number)
        assert own(added)
        assert own(removed)
        assert (removed.flow.direction is Direction.LISTENER) is is_listener
        assert (removed.counts.rx_bytes, removed.counts.tx_bytes, removed.final) == (0, 0, True)


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
    assert [(e.counts.tx_packets, e.counts.rx_packets) for e in removed] == [(1, 0), (1, 0)], "segments with data"
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
    seen = monitored(work, interval=None, overflow="all")  # as it happened, also where the reader comes late
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


def test_what_it_can_tell(namespace):
    async def work(seen: Seen) -> None:
        capabilities.append(seen.monitor.capabilities)

    capabilities: list = []
    monitored(work, interval=None)
    assert capabilities[0].ebpf == ALL.value
    assert capabilities[0].udp_counts
    assert capabilities[0].processes is Visibility.ALL
    assert not any("has no process" in note for note in capabilities[0].notes)


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

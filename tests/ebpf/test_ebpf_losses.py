"""The living kernel through `Monitor`: a ring and maps that are too small, and records that were never written."""

from __future__ import annotations

import os
import socket

import pytest
from ebpf_living import NET, again, needs_calls
from ebpf_monitored import Seen, connection, monitored, port, udp

from nstat_async import EventsLost, FlowAdded, FlowRemoved
from nstat_async._io import bpfmaps, netlink
from nstat_async._io.bpfload import EbpfSettings
from nstat_async._io.ring import Ring
from nstat_async._model import Provider
from nstat_async.ebpf import RING_STEP

pytestmark = [pytest.mark.privileged, pytest.mark.linux, pytest.mark.timeout(NET)]


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

            async def stir() -> None:
                # What is skipped is skipped while another one is counted, and is looked at when there is more of that.
                sock.sendto(b"x", sock.getsockname())
                await seen.monitor.poll_now()

            await seen.until(lambda: said(seen) == len(lost), stir)

    def said(seen: Seen) -> int:
        return sum(e.count for e in seen.events if isinstance(e, EventsLost) and "states" in e.detail)

    def ended(seen: Seen) -> set[int]:
        return {e.flow.local.port for e in seen.events if isinstance(e, FlowRemoved)}

    monkeypatch.setattr(bpfmaps, "recursion_misses", lambda _program: len(lost))
    ports: set[int] = set()
    seen = monitored(work, interval=None)
    losses = [e for e in seen.events if isinstance(e, EventsLost)]
    assert all("states skipped" in e.detail or "transfers skipped" in e.detail for e in losses)
    assert said(seen) > 0
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

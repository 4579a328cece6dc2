"""The living kernel: short processes, losses, other namespaces, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from ebpf_living import (
    ALL,
    HERE,
    NET,
    Watch,
    again,
    alive,
    cookie,
    counts_calls,
    descriptors,
    entries,
    listener,
    names,
    needs_calls,
    program_ids,
    udp,
    wait_until_gone,
)

from examples import THOROUGH
from nstat_async._io.bpfload import namespace_cookie
from nstat_async.ebpf import (
    Ended,
    Flag,
    HowKnown,
    LossKind,
    LossMeter,
    Operation,
    Seen,
    encode_adoption,
    ends_of,
    owner_of,
    remainder_of,
)

pytestmark = [pytest.mark.privileged, pytest.mark.linux, pytest.mark.timeout(NET)]


# --- short processes -----------------------------------------------------------------------


@again
def test_every_short_process_is_seen(namespace, traffic):
    """Processes with one connection and others with a few datagrams, gone at once: both ends of all, bytes and name exact."""
    with Watch() as watch:
        count = 200 if THOROUGH else 50
        truth = {}
        running = []
        for index in range(count):
            jobs = (("tcp", 10000 + index, 1000 + index), ("udp", 20000 + index, 100 + index, 1 + index % 7))
            for job in jobs:
                process = subprocess.Popen([traffic, *map(str, job)])
                truth[job[1]] = (
                    process.pid,
                    job[2] * (job[3] if len(job) > 3 else 1),
                    job[3] if len(job) > 3 else None,
                )
                running.append(process)
            while len(running) > 8:
                assert running.pop(0).wait() == 0
            watch.drain()
        assert [process.wait() for process in running] == [0] * len(running)
        watch.until(lambda: sum(isinstance(e, Ended) for e in watch.evidence) >= 4 * count)
        owners = {}
        seen = {}
        for evidence in watch.evidence:
            owner = owner_of(evidence.facts)
            number = evidence.facts.cookie
            if owner is not None:
                owners[number] = owner
            if isinstance(evidence, Ended):
                assert number not in seen
                seen[number] = evidence
        assert len(seen) == 4 * count
        directions = {"sender": 0, "receiver": 0}
        for number, ended in seen.items():
            ends = ends_of(ended.facts)
            port = ends.remote_port if ends.remote_port in truth else ends.local_port
            pid, size, datagrams = truth[port]
            owner = owners[number]
            assert (owner.pid, owner.name) == (pid, "traffic")
            if counts_calls():
                assert owner.how is HowKnown.CALL
            sends = ends.remote_port == port
            directions["sender" if sends else "receiver"] += 1
            assert ended.final
            assert (ended.totals.tx_bytes, ended.totals.rx_bytes) == ((size, 0) if sends else (0, size))
            if datagrams is not None:
                packets = (ended.totals.tx_packets, ended.totals.rx_packets)
                assert packets == ((datagrams, 0) if sends else (0, datagrams))
        assert directions == {"sender": 2 * count, "receiver": 2 * count}
        statistics = watch.statistics()
        assert (statistics.ring_full, statistics.map_full, statistics.foreign) == (0, 0, 0)
        assert statistics.submitted == watch.ledger.records
        assert entries(watch) == []
        assert len(watch.ledger) == 0


# --- nothing is left --------------------------------------------------------------------------


@again
def test_nothing_is_left_in_the_maps(namespace):
    """Connections that nobody accepts, datagram sockets, a process that is killed: no entry stays."""
    with Watch() as watch:
        server = listener()
        clients = [socket.create_connection(server.getsockname()) for _ in range(40)]
        sockets = [udp(bind=False) for _ in range(40)]
        for sock in sockets:
            sock.sendto(b"x", ("127.0.0.1", 9))
        pid = os.fork()
        if not pid:
            udp().sendto(b"x", ("127.0.0.1", 9))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        assert len(entries(watch)) >= 80
        for sock in (server, *clients, *sockets):
            sock.close()
        watch.until(lambda: not entries(watch) and not len(watch.ledger))
        assert watch.statistics().map_full == 0


def test_opening_and_closing_leaks_nothing(namespace):
    """Neither descriptors nor programs of ours are left."""
    with Watch():
        pass
    before, ids = descriptors(), set()
    for _ in range(2):
        with Watch() as watch:
            assert watch.source.tier is ALL
            assert descriptors() > before
            ids |= program_ids("self")
    assert descriptors() == before
    assert len(ids) == 2 * (10 if counts_calls() else 8)
    wait_until_gone(ids)


@pytest.mark.slow
def test_a_killed_reader_leaves_nothing(namespace):
    """All is held by descriptors: SIGKILL detaches and frees the programs."""
    code = (
        "import sys; from nstat_async._io.ebpf import EbpfSource\n"
        "source = EbpfSource.attach(); print('attached', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "attached\n"
    ids = program_ids(process.pid)
    assert len(ids) == (10 if counts_calls() else 8)
    assert alive(ids) == ids
    process.kill()
    process.communicate()
    wait_until_gone(ids)


# --- losses -------------------------------------------------------------------------------------


def test_a_full_ring_is_counted_exactly(namespace):
    """Every record is either read or counted as lost, which its channel says; afterwards the list of counts says what they said."""
    with Watch(ring=4096) as watch:
        watch.drain()
        before = watch.statistics()
        sockets = [udp() for _ in range(100)]
        for sock in sockets:
            sock.sendto(bytes(9), sock.getsockname())
        statistics = watch.statistics()
        lost = statistics.ring_full - before.ring_full
        assert lost + statistics.submitted - before.submitted == 100
        assert lost > 0
        losses = LossMeter().update(statistics)
        assert [(loss.kind, loss.number) for loss in losses] == [(LossKind.RING_FULL, statistics.ring_full)]
        with pytest.raises(OSError, match="full"):
            watch.drain()
        watch.drain()
        for operation in losses[0].repairs:
            watch.ask(operation)
        seen = {e.facts.cookie for e in watch.evidence if isinstance(e, Seen)}
        assert seen >= {cookie(sock) for sock in sockets}
        for sock in sockets:
            sock.close()
        with pytest.raises(OSError, match="full"):
            watch.drain()
        watch.drain()
        for _ in range(4):  # ends that were lost: two lists without a socket prove that it is gone
            watch.ask(Operation.FLOWS)
        ends = [e for e in watch.evidence if isinstance(e, Ended)]
        assert {e.facts.cookie for e in ends} == seen
        assert len(ends) == len(seen)
        assert any(not e.final for e in ends)
        assert all(e.totals.rx_bytes == 9 for e in ends)


def test_a_full_map_is_counted_and_nobody_who_was_in_it_is_lost(namespace):
    """The sockets that found room are counted exactly; those that did not are said."""
    with Watch(flows=8) as watch:
        sockets = [udp() for _ in range(20)]
        for sock in sockets:
            sock.sendto(bytes(9), sock.getsockname())
            sock.recv(10)
        rows = watch.rows(Operation.FLOWS)
        assert 0 < len(rows) <= 8
        assert all((row.tx_payload, row.rx_payload) == (9, 9) for row in rows)
        assert watch.statistics().map_full >= 20 - len(rows)
        for sock in sockets:
            sock.close()


# --- what else there is -----------------------------------------------------------------------------


def test_peers_and_remainder(namespace):
    """Remote addresses of an unconnected socket, bounded; what is not in the list is the exact remainder."""
    with Watch(peers=True, most_peers=256) as watch:
        sock = udp(bind=False)
        for index in range(1000):
            sock.sendto(bytes(10), (f"127.2.{index // 256}.{index % 256}", 9))
        (row,) = [row for row in watch.rows(Operation.FLOWS) if row.cookie == cookie(sock)]
        peers = [peer for peer in watch.rows(Operation.PEERS) if peer.cookie == cookie(sock)]
        assert (row.tx_packets, row.tx_payload) == (1000, 10000)
        assert 0 < len(peers) <= 1000
        kept = sum(peer.tx_packets for peer in peers)
        assert 0 < kept <= 1000
        assert remainder_of(row.counters, peers)[:4] == (0, 10000 - 10 * kept, 0, 1000 - kept)
        assert all(peer.tx_bytes == 10 and peer.port == socket.htons(9) for peer in peers)
        sock.close()


def test_other_namespaces(namespace):
    """By default only this one is seen; with every namespace each record names its own."""
    script = (
        "import socket, struct; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('127.0.0.1', 0))\n"
        "s.sendto(bytes(123), s.getsockname()); s.recv(999)\n"
        "print(*(struct.unpack('=Q', s.getsockopt(1, option, 8))[0] for option in (57, 71)))"
    )
    with Watch() as one, Watch(every_namespace=True) as every:
        output = subprocess.run(
            ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$0" -c "$1"', sys.executable, script],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        number, namespace_of_it = map(int, output.split())
        ended = every.ended(number)
        assert ended.facts.net_cookie == namespace_of_it != namespace_cookie()
        assert (ended.totals.tx_bytes, ended.totals.rx_bytes, ended.totals.rx_packets) == (123, 123, 1)
        one.drain()
        assert one.of(number) == []
        assert all(row.cookie != number for row in one.rows(Operation.FLOWS))


def test_sockets_that_were_there_before(namespace):
    """The walk over descriptors tells owner and inode; an adopted socket is counted from then on, and not called whole."""
    sockets = [udp() for _ in range(300)]
    with Watch() as watch:
        rows = {row.cookie: row for row in watch.rows(Operation.OWNERS) if row.pid == os.getpid()}
        for sock in sockets:
            row = rows[cookie(sock)]
            assert (row.inode, row.fd, row.local_port) == (
                os.fstat(sock.fileno()).st_ino,
                sock.fileno(),
                sock.getsockname()[1],
            )
            assert owner_of(row).how is HowKnown.DESCRIPTOR
        watch.maps.send(encode_adoption(rows.values(), 1))
        sockets[0].sendto(bytes(50), sockets[1].getsockname())
        counted = {row.cookie: row for row in watch.rows(Operation.FLOWS)}
        assert len(counted) == 300
        assert counted[cookie(sockets[0])].tx_payload == 50
        assert counted[cookie(sockets[1])].rx_payload == 50
        assert not counted[cookie(sockets[0])].flags & Flag.COUNTED_FROM_BIRTH
        seen = watch.until(lambda: [e for e in watch.of(cookie(sockets[0])) if isinstance(e, Seen)])
        assert seen[0].began is False
        assert names(watch.of(cookie(sockets[0]))).count("Seen") == 1
        for sock in sockets:
            sock.close()


@pytest.mark.benchmark
@needs_calls
def test_the_benchmark_runs(namespace):
    """Shortened: nothing is lost, every end is seen, and its figures are numbers."""
    path = HERE.parents[1] / "benchmarks" / "linux_ebpf.py"
    if not path.exists():
        pytest.skip("needs the source tree")
    command = [sys.executable, str(path), "--seconds", "0.02", "--rounds", "1", "--json"]
    results = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    connections, datagrams = results["reader"]
    assert (connections["ends"], datagrams["ends"]) == (400, 2)
    assert (connections["lost"], datagrams["lost"]) == (0, 0)
    assert connections["records"] == 1203  # with the listener, and two of the source itself, when it was calibrated
    assert all(row["ratio"] > 0 for row in results["overhead"])
    assert len(results["overhead"]) == 6

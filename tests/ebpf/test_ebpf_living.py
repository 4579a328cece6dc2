"""The living kernel: short processes, life cycles, losses, leaks, and what it refuses."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
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
    kernel,
    needs_calls,
    program_ids,
    wait_until_gone,
)

from nstat_async._errors import BackendUnavailableError, UnavailableReason
from nstat_async._io.bpf import recursion_misses
from nstat_async._io.bpfload import namespace_cookie
from nstat_async._io.ebpf import EbpfSettings, EbpfSource
from nstat_async.ebpf import (
    Ended,
    Established,
    Flag,
    HowKnown,
    Kind,
    LossKind,
    LossMeter,
    Operation,
    OwnerSeen,
    Seen,
    Tier,
    decode_changed,
    encode_adoption,
    ends_of,
    owner_of,
    remainder_of,
)

pytestmark = [pytest.mark.privileged, pytest.mark.linux, pytest.mark.timeout(NET)]

WITHOUT_CGROUP = (Tier.CALLS if counts_calls() else Tier.TCP).value


@pytest.fixture
def watch(namespace):
    with Watch() as watch:
        yield watch


def udp(bind=True):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if bind:
        sock.bind(("127.0.0.1", 0))
    return sock


def listener():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    return sock


def accepted(server):
    client = socket.create_connection(server.getsockname()[:2])
    return client, server.accept()[0]


def exchange(client, server, up, down):
    for sender, receiver, size in ((client, server, up), (server, client, down)):
        sender.sendall(bytes(size))
        left = size
        while left:
            left -= len(receiver.recv(left))


def names(evidence):
    return [type(e).__name__ for e in evidence]


def entries(watch):
    return [row for row in watch.rows(Operation.FLOWS) if row.cookie not in watch.source.own_cookies]


# --- short processes -----------------------------------------------------------------------


@again
def test_every_short_process_is_seen(namespace, traffic):
    """200 processes with one connection and 200 with a few datagrams, gone at once: both ends of all, bytes and name exact."""
    with Watch() as watch:
        count = 200
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


# --- TCP -----------------------------------------------------------------------------------


@again
def test_what_a_thread_of_the_kernel_connects_is_not_its(watch):
    """A worker connects the further subflows of Multipath TCP, for whoever has the connection: no record has it as a process."""
    for command in ("limits set subflow 2 add_addr_accepted 2", "endpoint add 127.0.0.2 dev lo subflow"):
        if subprocess.run(["ip", "mptcp", *command.split()], capture_output=True, check=False).returncode:
            pytest.skip("needs Multipath TCP")
    server, client = (socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) for _ in range(2))
    server.bind(("127.0.0.1", 0))
    server.listen()
    client.connect(server.getsockname())
    inbound, _ = server.accept()
    exchange(client, inbound, 100, 100)
    watch.until(lambda: [e for e in watch.evidence if ends_of(e.facts).local == bytes([127, 0, 0, 2])])
    for sock in (client, inbound, server):
        sock.close()
    watch.until(lambda: sum(isinstance(e, Ended) for e in watch.evidence) >= 4)
    assert {owner.pid for e in watch.evidence if (owner := owner_of(e.facts)) is not None} == {os.getpid()}


@again
def test_a_connection_from_its_beginning_to_its_end(watch):
    """Both sides: begun, established, owners, and final counts without the FIN that TCP counts as a byte."""
    server = listener()
    client, inbound = accepted(server)
    exchange(client, inbound, 1000, 70000)
    numbers = cookie(client), cookie(inbound)
    client.close()
    assert inbound.recv(1) == b""
    inbound.close()
    out, into = watch.ended(numbers[0]), watch.ended(numbers[1])
    assert names(watch.of(numbers[0])) == ["Seen", "Established", "Ended"]
    assert names(watch.of(numbers[1])) == ["Seen", "OwnerSeen", "Ended"]
    assert (out.totals.tx_bytes, out.totals.rx_bytes) == (1000, 70000)
    assert (into.totals.tx_bytes, into.totals.rx_bytes) == (70000, 1000)
    assert out.final
    assert out.established
    opened, established, _ = watch.of(numbers[0])
    assert (opened.outbound, opened.began) == (True, True)
    assert owner_of(opened.facts).pid == os.getpid()
    assert ends_of(established.facts).remote == socket.inet_aton("127.0.0.1")
    assert ends_of(established.facts).remote_port == server.getsockname()[1]
    assert (watch.of(numbers[1])[0].outbound, watch.of(numbers[1])[0].began) == (False, True)
    assert opened.facts.net_cookie == namespace_cookie()
    server.close()


@pytest.mark.parametrize("first", ["client", "server"])
@again
def test_the_fin_is_known_whoever_closes_first(watch, first):
    """Received bytes are exact with and without a received FIN."""
    server = listener()
    client, inbound = accepted(server)
    exchange(client, inbound, 70, 7)
    numbers = cookie(client), cookie(inbound)
    one, other = (client, inbound) if first == "client" else (inbound, client)
    one.close()
    assert other.recv(1) == b""
    other.close()
    assert [watch.ended(number).totals.rx_bytes for number in numbers] == [7, 70]
    server.close()


@again
def test_a_connection_that_is_reset(watch):
    """Closed with data that nobody read: both sides end, once each."""
    server = listener()
    client, inbound = accepted(server)
    numbers = cookie(client), cookie(inbound)
    client.sendall(bytes(300))
    inbound.close()
    client.close()
    assert [watch.ended(number).totals.tx_bytes for number in numbers] == [300, 0]
    assert owner_of(watch.of(numbers[1])[1].facts).how is HowKnown.CLOSER
    assert [names(watch.of(number)).count("Ended") for number in numbers] == [1, 1]
    server.close()


@again
def test_a_connection_that_is_refused(watch):
    """It was never established, and its process is known."""
    gone = listener()
    address = gone.getsockname()
    gone.close()
    client = socket.socket()
    number = cookie(client)
    with pytest.raises(ConnectionRefusedError):
        client.connect(address)
    client.close()
    ended = watch.ended(number)
    assert not ended.established
    assert owner_of(watch.of(number)[0].facts).pid == os.getpid()


@again
def test_one_socket_with_two_connections(watch):
    """Disconnected and connected again: two beginnings and two ends of one cookie, each with its own counts."""
    server = listener()
    client, inbound = accepted(server)
    number = cookie(client)
    exchange(client, inbound, 11, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(client.fileno(), struct.pack("=H14s", socket.AF_UNSPEC, b""), 16) == 0
    client.connect(server.getsockname())
    again = server.accept()[0]
    exchange(client, again, 22, 0)
    client.close()
    watch.until(lambda: names(watch.of(number)).count("Ended") == 2)
    assert names(watch.of(number)) == ["Seen", "Established", "Ended"] * 2
    assert [e.totals.tx_bytes for e in watch.of(number) if isinstance(e, Ended)] == [11, 22]
    for sock in (inbound, again, server):
        sock.close()


@again
def test_a_socket_connected_to_itself(watch):
    """Both sides at once: one connection, outbound."""
    client = socket.socket()
    client.bind(("127.0.0.1", 0))
    number = cookie(client)
    client.connect(client.getsockname())
    client.send(b"xx")
    assert client.recv(9) == b"xx"
    client.close()
    watch.ended(number)
    assert names(watch.of(number)) == ["Seen", "Established", "Ended"]


@needs_calls
@again
def test_an_accepted_connection_belongs_to_whom_uses_it(watch):
    """Accepted here, used by a child: the child is its process."""
    server = listener()
    client, inbound = accepted(server)
    number = cookie(inbound)
    pid = os.fork()
    if not pid:
        inbound.recv(1000)
        os._exit(0)
    inbound.close()
    client.send(b"x")
    os.waitpid(pid, 0)
    seen = watch.until(lambda: next((e for e in watch.of(number) if isinstance(e, OwnerSeen)), None))
    assert owner_of(seen.facts).pid == pid
    client.close()
    server.close()


@again
def test_a_version_4_client_of_a_version_6_listener(watch):
    """Both ends are seen, each with the family of its socket."""
    server = socket.socket(socket.AF_INET6)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", 0))
    server.listen()
    client = socket.create_connection(("127.0.0.1", server.getsockname()[1]))
    inbound = server.accept()[0]
    numbers = cookie(client), cookie(inbound)
    for sock in (client, inbound, server):
        sock.close()
    assert [watch.ended(number).facts.family for number in numbers] == [socket.AF_INET, socket.AF_INET6]
    assert ends_of(watch.ended(numbers[1]).facts).remote == bytes(10) + b"\xff\xff\x7f\0\0\1"


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


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_opening_and_closing_leaks_nothing(namespace):
    """Neither descriptors nor programs of ours are left."""
    with Watch():
        pass
    before, ids = descriptors(), set()
    for _ in range(4):
        with Watch() as watch:
            assert watch.source.tier is ALL
            assert descriptors() > before
            ids |= program_ids("self")
    assert descriptors() == before
    assert len(ids) == 4 * (10 if counts_calls() else 8)
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


def test_skipped_programs_are_counted_as_the_kernel_says(watch):
    """recursion_misses of bpf_prog_info is that of fdinfo."""
    for descriptor in watch.source._loaded.programs.values():
        with open(f"/proc/self/fdinfo/{descriptor}") as file:
            text = file.read()
        assert recursion_misses(descriptor) == int(text.split("recursion_misses:")[1].split()[0])


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


@needs_calls
def test_packet_sockets(watch):
    """Bytes and owner of a packet socket; its entry stays until it is dropped, for no hook sees its end."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.bind(("lo", 0))
    number = cookie(sock)
    sock.send(bytes(64))
    seen = watch.until(lambda: watch.of(number))
    assert isinstance(seen[0], Seen)
    assert owner_of(seen[0].facts).pid == os.getpid()
    assert seen[0].facts.family == socket.AF_PACKET
    (row,) = [row for row in watch.rows(Operation.FLOWS) if row.cookie == number]
    assert (row.tx_bytes, row.tx_calls) == (64, 1)
    assert number in {row.cookie for row in watch.rows(Operation.OWNERS)}
    sock.close()
    assert number not in {row.cookie for row in watch.rows(Operation.OWNERS)}
    watch.ask(Operation.DROP, [number])
    assert number not in {row.cookie for row in watch.rows(Operation.FLOWS)}


@needs_calls
def test_first_use_is_pushed_in_order(watch):
    """FIRST_IO comes once, before RELEASED, also where two processes use a socket."""
    sock = udp()
    number = cookie(sock)
    pid = os.fork()
    if not pid:
        sock.sendto(b"x", sock.getsockname())
        os._exit(0)
    os.waitpid(pid, 0)
    sock.sendto(b"y", sock.getsockname())
    sock.close()
    watch.ended(number)
    records = [record for record in watch.records if record.cookie == number]
    assert [record.kind for record in records] == [Kind.FIRST_IO, Kind.RELEASED]
    assert [record.pid for record in records] == [pid, pid]
    assert records[1].last_pid == os.getpid()


# --- what is granted ----------------------------------------------------------------------------------

REPORT = """
import json, sys
from nstat_async._errors import BackendUnavailableError
from nstat_async._io.ebpf import EbpfSource
try:
    with EbpfSource.attach() as source:
        print(json.dumps([source.tier.value, source.processes_trusted, {r.what: r.reason.value for r in source.refusals}]))
except BackendUnavailableError as error:
    print(json.dumps(["none", False, {error.backend: error.reason.value}]))
"""


def report(*prefix):
    output = subprocess.run([*prefix, sys.executable, "-c", REPORT], capture_output=True, text=True, check=True).stdout
    return json.loads(output)


def with_capabilities(*names):
    wanted = ",".join(f"+{name}" for name in names)
    bounds = f"--inh-caps=-all,{wanted}" if names else "--inh-caps=-all"
    ambient = [f"--ambient-caps=-all,{wanted}"] if names else ["--ambient-caps=-all"]
    return report("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", bounds, *ambient)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capabilities", "tier"),
    [
        ((), "none"),
        (("bpf",), "none"),
        (("perfmon",), "none"),
        (("bpf", "net_admin"), "none"),
        (("bpf", "perfmon"), WITHOUT_CGROUP),
        (("bpf", "perfmon", "net_admin"), ALL.value),
        (
            ("sys_admin",),
            ALL.value if kernel() >= (6, 9) else WITHOUT_CGROUP,
        ),  # before, packets want CAP_NET_ADMIN itself
    ],
    ids=lambda value: "+".join(value) or "no capability" if isinstance(value, tuple) else value,
)
def test_capabilities_one_by_one(namespace, capabilities, tier):
    """An ordinary user with exactly these: the tier, the reason of what is missing, and its own process recognised."""
    granted, trusted, refusals = with_capabilities(*capabilities)
    assert granted == tier
    assert trusted == (tier != "none")
    if tier != ALL.value:
        assert "permission" in refusals.values()


def test_a_delegated_bpffs(namespace):
    """Without any privilege, in a user namespace: a BPF token of a bpffs that root delegated grants everything."""
    if kernel() < (6, 9):
        pytest.skip("BPF tokens came with Linux 6.9")
    output = subprocess.run(
        [sys.executable, str(HERE / "delegated.py")], capture_output=True, text=True, check=True
    ).stdout
    tier, trusted, saw_records, refusals = json.loads(output)
    assert (tier, trusted, saw_records) == (Tier.ALL.value, True, True), refusals


def test_a_pid_namespace_is_noticed(namespace):
    """There the records' pids are not this namespace's: they are not to be trusted."""
    tier, trusted, _ = report("unshare", "--pid", "--fork", "--mount-proc")
    assert (tier, trusted) == (ALL.value, False)


def test_a_time_namespace_is_noticed(namespace):
    """There the start of a process is another than the records say."""
    command = ["unshare", "--time", "--boottime", "1000000", "--fork"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs time namespaces")
    tier, trusted, _ = report(*command)
    assert (tier, trusted) == (ALL.value, False)


@needs_calls
def test_without_cgroup2(namespace):
    """Counts by calls are left; the reason is said."""
    with EbpfSource.attach(EbpfSettings(cgroup=None)) as source:
        assert source.tier is Tier.CALLS
        assert source.refusals[0].what == "cgroup2"
        assert source.refusals[0].reason is UnavailableReason.MISSING


@needs_calls
@pytest.mark.parametrize(
    ("without", "tier"),
    [
        ({"sent"}, Tier.PACKETS),
        ({"received", "released"}, Tier.TCP),
        ({"egress"}, Tier.CALLS),
        ({"created"}, Tier.CALLS),
        ({"owners"}, Tier.ALL),
        ({"tcp_state_again"}, Tier.ALL),
    ],
    ids=lambda value: value.value if isinstance(value, Tier) else " ".join(sorted(value)),
)
@again
def test_what_older_kernels_lack(namespace, without, tier):
    """A program that is missing takes those along that make no sense without it; the rest works."""
    with Watch(without=frozenset(without)) as watch:
        assert watch.source.tier is tier
        assert not watch.source.programs & without
        assert watch.source.processes_trusted or tier is Tier.TCP
        server = listener()
        client, inbound = accepted(server)
        exchange(client, inbound, 70, 7)
        sock = udp()
        sock.sendto(bytes(40), sock.getsockname())
        sock.recv(100)
        numbers = cookie(client), cookie(inbound), cookie(sock)
        for one in (client, inbound, server, sock):
            one.close()
        assert [watch.ended(number).totals.tx_bytes for number in numbers[:2]] == [70, 7]
        if tier is not Tier.TCP:
            owner = watch.until(
                lambda: next((owner_of(e.facts) for e in watch.of(numbers[1]) if owner_of(e.facts)), None)
            )
            assert owner.pid == os.getpid()
        if "released" in watch.source.programs:
            ended = watch.ended(numbers[2])
            packets = 1 if "egress" in watch.source.programs else None
            assert ended.totals[:4] == (40, 40, packets, packets)
            assert owner_of(ended.facts).pid == os.getpid()


@needs_calls
def test_counts_are_taken_where_no_program_sees_the_end(namespace):
    """Without CAP_NET_ADMIN somebody else reports the end of a socket; then its entry is taken, once."""
    with Watch(cgroup=None) as watch:
        sock = udp()
        number = cookie(sock)
        sock.sendto(bytes(40), sock.getsockname())
        sock.close()
        (row,) = watch.rows(Operation.TAKE, [number])
        assert row.tx_bytes == 40
        assert watch.ended(number).final
        assert watch.rows(Operation.TAKE, [number]) == []
        assert entries(watch) == []


def test_a_map_that_is_refused(namespace):
    """One that is larger than memory: a typed reason, and no descriptor left."""
    before = descriptors()
    with pytest.raises(BackendUnavailableError) as caught:
        EbpfSource.attach(EbpfSettings(flows=1 << 31))
    assert caught.value.reason is UnavailableReason.RESOURCE
    assert descriptors() == before


def walk(watch: Watch):
    """The sockets that a walk tells of, and how many it met."""
    head, *rows, tail = decode_changed(watch.source.changed(mark=False))
    assert (head.cookie, head.net_cookie, tail.cookie) == (0, watch.source.namespace, 0)
    return rows, tail.number


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_walk_tells_of_the_sockets_in_which_something_moved(watch, family):
    """Which they are, and of no other; what moves in one direction moves in both sockets."""
    with socket.create_server(("127.0.0.1" if family == socket.AF_INET else "::1", 0), family=family) as server:
        pairs = [accepted(server) for _ in range(5)]
        assert len(decode_changed(watch.source.changed(mark=True))) == 1
        watch.until(lambda: not walk(watch)[0])  # no acknowledgement is on its way any more
        client, inbound = pairs[2]
        client.sendall(b"x")
        assert inbound.recv(9) == b"x"
        rows, number = walk(watch)
        assert {row.cookie: row.local_port for row in rows} == {
            cookie(s): s.getsockname()[1] for s in (client, inbound)
        }
        assert {row.family for row in rows} == {family}
        assert {row.local[: 4 if family == socket.AF_INET else 16] for row in rows} == {
            socket.inet_pton(family, client.getsockname()[0])
        }
        assert {int.from_bytes(row.remote_port, "big") for row in rows} == {
            s.getpeername()[1] for s in (client, inbound)
        }
        assert number == 10
        client.shutdown(socket.SHUT_WR)
        assert {row.cookie for row in walk(watch)[0]} == {cookie(client), cookie(inbound)}
        for each in (*pairs[0], *pairs[1], *pairs[2], *pairs[3], *pairs[4]):
            each.close()


def test_an_established_record_comes_before_any_io(watch):
    """Established says both ends."""
    server = listener()
    client, inbound = accepted(server)
    seen = watch.until(lambda: [e for e in watch.of(cookie(client)) if isinstance(e, Established)])
    ends = ends_of(seen[0].facts)
    assert (ends.local_port, ends.remote_port) == (client.getsockname()[1], server.getsockname()[1])
    for sock in (client, inbound, server):
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

"""The living kernel: what the records tell of a socket from its beginning to its end."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess

import pytest
from ebpf_living import (
    NET,
    Watch,
    accepted,
    again,
    cookie,
    exchange,
    listener,
    living,
    names,
    needs_calls,
    udp,
)

from nstat_async._io.bpf import recursion_misses
from nstat_async._io.bpfload import namespace_cookie
from nstat_async.ebpf import (
    Ended,
    Established,
    HowKnown,
    Kind,
    Operation,
    OwnerSeen,
    Seen,
    decode_changed,
    ends_of,
    owner_of,
)

pytestmark = [pytest.mark.privileged, pytest.mark.linux, pytest.mark.timeout(NET)]


@pytest.fixture(scope="module")
def attached():
    """One source for them all: the kernel takes longer to check the programs than most of these tests."""
    with living(), Watch() as watch:
        yield watch


@pytest.fixture
def watch(attached):
    """The source, which has told nothing yet: each test asks for the sockets that it made itself."""
    attached.forget()
    return attached


@pytest.fixture
def alone(namespace):
    """A source of a namespace where no other test was."""
    with Watch() as watch:
        yield watch


@again
def test_what_a_thread_of_the_kernel_connects_is_not_its(alone):
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
    alone.until(lambda: [e for e in alone.evidence if ends_of(e.facts).local == bytes([127, 0, 0, 2])])
    for sock in (client, inbound, server):
        sock.close()
    alone.until(lambda: sum(isinstance(e, Ended) for e in alone.evidence) >= 4)
    assert {owner.pid for e in alone.evidence if (owner := owner_of(e.facts)) is not None} == {os.getpid()}


@again
def test_a_connection_from_its_beginning_to_its_end(watch):
    """Both sides: begun, established, owners, and final counts without the FIN that TCP counts as a byte."""
    server = listener()
    client, inbound = accepted(server)
    exchange(client, inbound, 1000, 70000)
    numbers, ports = (cookie(client), cookie(inbound)), (client.getsockname()[1], inbound.getsockname()[1])
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
    closed = {record.cookie: record.local_port for record in watch.records if record.kind == Kind.CLOSED}
    assert tuple(closed[number] for number in numbers) == ports
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
    assert ends_of(ended.facts).local_port is not None
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


def test_skipped_programs_are_counted_as_the_kernel_says(watch):
    """recursion_misses of bpf_prog_info is that of fdinfo."""
    for descriptor in watch.source._loaded.programs.values():
        with open(f"/proc/self/fdinfo/{descriptor}") as file:
            text = file.read()
        assert recursion_misses(descriptor) == int(text.split("recursion_misses:")[1].split()[0])


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


def walk(watch: Watch):
    """The sockets that a walk tells of, and how many it met."""
    head, *rows, tail = decode_changed(watch.source.changed(mark=False))
    assert (head.cookie, head.net_cookie, tail.cookie) == (0, watch.source.namespace, 0)
    return rows, tail.number


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_walk_tells_of_the_sockets_in_which_something_moved(alone, family):
    """Which they are, and of no other; what moves in one direction moves in both sockets."""
    with socket.create_server(("127.0.0.1" if family == socket.AF_INET else "::1", 0), family=family) as server:
        pairs = [accepted(server) for _ in range(5)]
        assert len(decode_changed(alone.source.changed(mark=True))) == 1
        alone.until(lambda: not walk(alone)[0])  # no acknowledgement is on its way any more
        client, inbound = pairs[2]
        client.sendall(b"x")
        assert inbound.recv(9) == b"x"
        rows, number = walk(alone)
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
        assert {row.cookie for row in walk(alone)[0]} == {cookie(client), cookie(inbound)}
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

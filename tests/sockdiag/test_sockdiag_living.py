"""The living kernel: flows that the tests open themselves, on loopback."""

from __future__ import annotations

import os
import resource
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from channels import read_one
from sockdiag_fakes import follow
from sockdiag_living import dissolve, drive, exchange, listen, pair, port, totals

from nstat_async._contract import Mode
from nstat_async._events import EventsLost, FlowRemoved, LossCause, RemovalReason
from nstat_async._model import Direction, InterfaceKind, Outcome, TcpState, Visibility

if not sys.platform.startswith("linux"):
    pytest.skip("the living kernel is Linux'", allow_module_level=True)

from nstat_async.sockdiag import DiagMessage, Session, iterate_messages
from nstat_async.sockdiag._lookups import lookup_request
from nstat_async.sockdiag._messages import error_number

pytestmark = [pytest.mark.linux, pytest.mark.usefixtures("patience")]


@pytest.mark.parametrize(
    ("family", "address", "target"),
    [
        (socket.AF_INET, "127.0.0.1", None),
        (socket.AF_INET6, "::1", None),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
    ids=["v4", "v6", "v4-mapped"],
)
def test_a_polled_connection_has_both_ends_its_process_exact_bytes_and_a_final_removal(live, family, address, target):
    """Both ends and the listener have addresses, direction, process, interface, exact bytes, and a final removal."""
    listener = listen(family, address)
    client, server = pair(listener, target and (target, port(listener)))
    exchange(client, server, 1000, 70000)
    live.poll()
    (out,) = live.added(port(client))
    inbound, listening = sorted(live.added(port(listener)), key=lambda e: e.flow.direction is Direction.LISTENER)
    assert out.flow.direction is Direction.OUTBOUND
    assert inbound.flow.direction is Direction.INBOUND
    assert listening.flow.state is TcpState.LISTEN
    assert listening.flow.remote is None
    assert totals(out) == (70000, 1000)
    assert totals(inbound) == (1000, 70000)
    assert out.counts.rx_packets >= 1
    assert 0 < out.counts.avg_rtt_us < 1_000_000
    for event in (out, inbound, listening):
        assert event.flow.process.pid == os.getpid()
        assert event.flow.process.uid == os.getuid()
        assert event.flow.process.name == os.path.basename(os.readlink("/proc/self/exe"))
        assert not event.preexisting
    for event in (out, inbound):
        assert event.flow.interface.kind is InterfaceKind.LOOPBACK
        assert event.flow.interface.name == "lo"
        assert len(event.flow.local.packed) == (16 if family == socket.AF_INET6 and target is None else 4)
    assert str(out.flow.remote) == str(inbound.flow.local)
    exchange(client, server, 5, 7)
    client.close()
    server.close()
    listener.close()
    (gone,) = live.until(lambda: live.removed(port_of(out)))
    live.until(lambda: len(live.removed(port_of(inbound))) == 2)
    assert (gone.final, gone.reason, totals(gone)) == (True, RemovalReason.CLOSED, (70007, 1005))
    assert all(totals(e) in {(1005, 70007), (0, 0)} for e in live.removed(port_of(inbound)))


def port_of(event) -> int:
    return event.flow.local.port


@pytest.mark.parametrize("extras", [False, True])
def test_details_are_what_the_kernel_says_of_the_socket(extras):
    """Linux-only samples are those that getsockopt(TCP_INFO) and the socket itself tell; buffer sizes are an extra."""
    with drive(extras=extras) as live:
        check_details(live, extras)


def check_details(live, extras):
    listener = listen()
    client, server = pair(listener)
    exchange(client, server, 3000, 3000)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    live.poll()
    details = live.added(port(client))[0].details
    info = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
    (mss, pmtu, rtt, cwnd) = (struct.unpack_from("=I", info, at)[0] for at in (16, 60, 68, 80))
    assert details.congestion_control == "reno"
    assert details.inode == os.fstat(client.fileno()).st_ino
    assert details.mss == mss
    assert details.path_mtu == pmtu
    assert details.congestion_window == mss * cwnd
    sizes = tuple(client.getsockopt(socket.SOL_SOCKET, option) for option in (socket.SO_RCVBUF, socket.SO_SNDBUF))
    assert (details.receive_buffer_size, details.send_buffer_size) == (sizes if extras else (None, None))
    assert live.added(port(client))[0].counts.avg_rtt_us == rtt
    assert details.retransmits == 0
    for sock in (client, server, listener):
        sock.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["v4", "v6"])
def test_datagram_sockets_are_flows_without_counters_and_connecting_one_is_an_update(live, family):
    """UDP sockets, connected and not, are flows without counters; connecting one is an update."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    one, two = (socket.socket(family, socket.SOCK_DGRAM) for _ in range(2))
    one.bind((host, 0))
    two.bind((host, 0))
    two.connect(one.getsockname())
    live.poll()
    here, there = port(one), port(two)
    (open_,), (connected,) = live.added(here), live.added(there)
    assert open_.flow.remote is None
    assert connected.flow.remote == open_.flow.local
    assert connected.counts.rx_bytes is None
    assert connected.flow.process.pid == os.getpid()
    assert connected.details.receive_buffer_size == two.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    one.connect(two.getsockname())
    live.poll()
    assert live.updated(here)[-1].flow.remote == connected.flow.local
    one.close()
    two.close()
    live.until(lambda: live.removed(here) and live.removed(there))
    short = socket.socket(family, socket.SOCK_DGRAM)
    short.sendto(b"x", (host, 9))
    here = port(short)
    short.close()
    live.until(lambda: live.removed(here))


@pytest.mark.parametrize("polled", [False, True], ids=["at once", "after polls"])
def test_a_socket_that_connects_again_is_two_flows(live, polled):
    """Two connections of one socket are two flows: the first with what was known of it, the second with its own counts."""
    listener, other = listen(), listen()
    client, server = pair(listener)
    here = port(client)
    exchange(client, server, 1000, 20)
    live.poll()
    dissolve(client)
    for _ in range(2 if polled else 0):
        live.poll()
    client.connect(other.getsockname())
    again, _ = other.accept()
    exchange(client, again, 5000, 7)
    there = port(client)
    live.poll()
    (first,), (second,) = live.removed(here), live.added(there)
    assert (totals(first), first.final) == ((20, 1000), False)
    assert (totals(second), second.preexisting) == ((7, 5000), False)
    assert first.flow.id != second.flow.id
    assert second.flow.process.pid == os.getpid()
    assert [e.cause for e in live.events if isinstance(e, EventsLost)] == [LossCause.FINAL_COUNTS]
    client.close()
    (gone,) = live.until(lambda: live.removed(there, port(other)))  # others use the port before and after
    assert (gone.flow.id, totals(gone), gone.final) == (second.flow.id, (7, 5000), True)
    for sock in (server, again, listener, other):
        sock.close()


def test_a_socket_that_changes_its_family_stays_one_flow(live):
    """IPV6_ADDRFORM makes an IPv4 socket of a v4-mapped one: the flow lives on, and ends once."""
    listener = listen()
    client = socket.socket(socket.AF_INET6)
    client.connect(("::ffff:127.0.0.1", port(listener)))
    server, _ = listener.accept()
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.connect(("::ffff:127.0.0.1", 9))
    ports = [port(client), port(datagrams)]
    live.poll()
    for sock in (client, datagrams):
        sock.setsockopt(socket.IPPROTO_IPV6, 1, socket.AF_INET)
    exchange(client, server, 50, 60)
    for _ in range(3):
        live.poll()
    added = [e.flow for here in ports for e in live.added(here) if e.flow.process and e.flow.process.pid == os.getpid()]
    assert len(added) == 2
    client.close()
    datagrams.close()
    for flow in added:
        ends = live.until(lambda flow=flow: [e for e in live.removed(flow.local.port) if e.flow.id == flow.id])
        assert [e.final for e in ends] == [True]
    for _ in range(3):
        live.poll()
    assert not {flow.id for flow, _ in live.core.flows()} & {flow.id for flow in added}
    server.close()
    listener.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_an_exact_lookup_finds_the_socket(live, kind):
    """The living kernel answers a look-up by addresses and cookie with that socket, and with nothing once it is gone."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            sock.listen()
        here = port(sock)
        live.poll()
        (added,) = live.added(here)
        request = lookup_request(added.raw_details.message, 6 if kind == socket.SOCK_STREAM else 17)
        live.channels[3].send(request.encode())
        data = read_one(live.channels[3])
        found = DiagMessage.decode(data, next(iterate_messages(data)))
        assert f"c{found.cookie:x}" == added.flow.id
    live.channels[3].send(request.encode())
    data = read_one(live.channels[3])
    assert error_number(data, next(iterate_messages(data))) > 0


def descriptors_allowed():
    """As many open files as this user may have; 1,024 is a usual limit without privilege."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


def test_of_hundreds_of_sockets_at_once_each_is_seen_with_its_process_and_removed(live):
    """Six hundred sockets are all seen, with their process, and all removed, with nothing lost."""
    count = min(300, (descriptors_allowed() - 100) // 2)
    listener = listen()
    there = port(listener)
    sockets = [sock for _ in range(count) for sock in pair(listener)]
    clients = {port(sock) for sock in sockets[::2]}
    live.poll()
    seen = {port_of(e): e for e in live.events if type(e).__name__ == "FlowAdded"}
    assert clients <= seen.keys()
    assert all(seen[p].flow.process.pid == os.getpid() for p in clients)
    assert len(live.added(there)) == count + 1
    for sock in sockets:
        sock.close()
    live.until(lambda: clients <= {port_of(e) for e in live.events if isinstance(e, FlowRemoved)})
    live.until(lambda: len(live.removed(there)) == count)
    assert not losses(live.events, port(listener))
    listener.close()


def test_while_connections_come_and_go_a_stable_one_stays_and_every_short_one_is_exact_or_says_that_it_is_not(live):
    """While connections come and go, a stable one is added once, never removed, and every short one is exact, or says that it is not."""
    listener = listen()
    stable, accepted = pair(listener)
    stop, ports = threading.Event(), []

    def churn() -> None:
        while not stop.is_set() and len(ports) < 1000:
            client, server = pair(listener)
            ports.append((port(client), client))
            client.sendall(b"x" * 100)
            server.recv(100)
            client.close()
            server.close()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(15):
            live.poll()
    finally:
        stop.set()
        thread.join()
    live.poll()
    live.until(lambda: len(live.removed(port(listener))) == len(ports))
    here = port(stable)
    assert len([e for e in live.added(here) if e.flow.remote.port == port(listener)]) == 1
    assert live.removed(here, port(listener)) == []
    assert not losses(live.events, port(listener))
    ended = [e for e in live.events if isinstance(e, FlowRemoved) and e.flow.remote and port_of(e) == port(listener)]
    assert len(ended) == len(ports)
    # A FIN that comes while the kernel writes a row is reported as a byte: the end stays there, and says that it may be one less.
    assert {(totals(e), e.final, e.uncertainty) for e in ended} - {((101, 0), False, 1)} == {((100, 0), True, None)}
    assert {e.flow.outcome for e in ended} <= {Outcome.CLOSED_HERE, Outcome.CLOSED_THERE}
    assert len({e.flow.id for e in ended}) == len(ended)
    for sock in (stable, accepted, listener):
        sock.close()


def losses(events, here: int):
    """What was lost, but for the final counts of other programs' connections: this namespace is not only ours."""
    lost = [e for e in events if isinstance(e, EventsLost)]
    return [e for e in lost if e.cause is not LossCause.FINAL_COUNTS or f":{here}" in (e.detail or "")]


def mine(event, here: int) -> bool:
    return not hasattr(event, "flow") or port_of(event) == here


def dropped(inode: int) -> int:
    """How many messages the kernel could not queue for a netlink socket."""
    with open("/proc/thread-self/net/netlink") as lines:
        rows = [line.split() for line in lines]
    return next(int(row[8]) for row in rows if row[9] == str(inode))


def test_lost_removals_are_reported_and_repaired_by_a_dump(apart):
    """With a tiny buffer and nobody reading, goodbyes are lost, none of others: said so, repaired by a dump, and then all is well."""
    with drive(receive_buffer=4096) as live:
        live.poll()
        listener = listen()
        sockets = [sock for _ in range(100) for sock in pair(listener)]
        here = port(listener)
        live.poll()
        assert len(live.added(here)) == 101
        for sock in sockets:
            sock.close()
        inode = os.fstat(live.channels[1].fileno()).st_ino
        while dropped(inode) < 10:  # notifications are written by a work queue, some time after the end
            time.sleep(0.001)
        live.until(lambda: any(isinstance(e, EventsLost) for e in live.events))
        live.until(lambda: len(live.removed(here)) == 100)
        (lost,) = {e.cause for e in live.events if isinstance(e, EventsLost)}
        assert lost is LossCause.KERNEL_BUFFER
        reasons = {e.reason: e.final for e in live.removed(here)}
        assert reasons[RemovalReason.GONE] is False
        before = len(live.events)

        def all_is_well() -> bool:
            """A poll without a loss; other programs' sockets may end meanwhile and fill the tiny buffer again."""
            polled = len(live.events)
            live.poll()
            return not losses(live.events[polled:], here)

        live.until(all_is_well)
        assert not any(isinstance(e, FlowRemoved) for e in live.events[before:] if mine(e, here))
        listener.close()


CHILD = """
import socket, sys
a, b = socket.socket(), None
a.connect(("127.0.0.1", int(sys.argv[1])))
a.send(b"x" * 100)
print(a.getsockname()[1], flush=True)
sys.stdin.readline()
"""


def child(there: int, *, setup: list[str] | None = None) -> subprocess.Popen[str]:
    command = [*(setup or []), sys.executable, "-c", CHILD, str(there)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_flow_of_a_process_that_exits_keeps_naming_it(live):
    """Its flow is removed with final counts and keeps naming it."""
    listener = listen()
    process = child(port(listener))
    here = int(process.stdout.readline())
    live.poll()
    assert live.added(here)[0].flow.process.pid == process.pid
    process.communicate("\n")
    listener.accept()[0].close()
    (gone,) = live.until(lambda: live.removed(here))
    assert gone.flow.process.pid == process.pid
    assert gone.counts.tx_bytes == 100
    listener.close()


def test_capabilities_say_what_is_open(live):
    """What is open says so."""
    told = live.core.capabilities
    assert told.final_counts
    assert told.short_lived
    assert not told.udp_counts
    assert told.kernel == os.uname().release
    assert told.receive_buffer > 4096
    assert told.flows is Visibility.ALL
    assert told.processes in {Visibility.ALL, Visibility.SOME, Visibility.OWN}


def test_who_follows_a_recorded_conversation_sees_the_same_flows_and_final_counts(live):
    """A passive session that is fed with a living kernel's conversation reports the same flows with the same final counts."""
    listener = listen()
    client, server = pair(listener)
    exchange(client, server, 11, 22)
    live.poll()
    here = port(client)
    client.close()
    server.close()
    live.until(lambda: live.removed(here))
    live.poll()
    passive = Session(mode=Mode.FOLLOWING)
    passive.start(0.0)
    events = follow(live.record, passive, live.record[-1][1])
    ours = [e for e in events if hasattr(e, "flow") and e.flow.local.port == here]
    assert [type(e).__name__ for e in ours] == ["FlowAdded", "FlowRemoved"]
    assert [e.flow for e in ours] == [live.added(here)[0].flow, live.removed(here)[0].flow]
    assert totals(ours[1]) == (22, 11)
    listener.close()

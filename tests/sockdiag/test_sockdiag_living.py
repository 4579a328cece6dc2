"""The living kernel: flows that the tests open themselves, on loopback."""

from __future__ import annotations

import ctypes
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
from own_namespace import apart_if_allowed
from sockdiag_fakes import LiveDriver, follow

from nstat_async._contract import Mode
from nstat_async._errors import BackendUnavailableError, UnavailableReason
from nstat_async._events import EventsLost, FlowRemoved, LossCause, PollCompleted, RemovalReason
from nstat_async._model import Direction, InterfaceKind, Outcome, TcpState, Visibility
from nstat_async._options import MonitorOptions

if not sys.platform.startswith("linux"):
    pytest.skip("the living kernel is Linux'", allow_module_level=True)

from nstat_async.backends import SockDiag
from nstat_async.sockdiag import DiagMessage, Session, iterate_messages
from nstat_async.sockdiag._lookups import lookup_request
from nstat_async.sockdiag._messages import error_number

pytestmark = pytest.mark.linux

RESET = struct.pack("ii", 1, 0)


def drive(netns=None, **options) -> LiveDriver:
    return LiveDriver(
        *SockDiag(netns).parts(MonitorOptions(**{"interval": None, "ebpf": "off", "pulse": None, **options}))
    )


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """On a machine with other work a search for processes may take its time: new flows wait for it."""
    monkeypatch.setattr("nstat_async.sockdiag._polls.OWNERS_PATIENCE", 60.0)
    monkeypatch.setattr("nstat_async.sockdiag._polls.FIRST_OWNERS_PATIENCE", 60.0)


@pytest.fixture
def apart():
    """As root nobody else's connections are there."""
    with apart_if_allowed():
        yield


@pytest.fixture
def live(apart):
    with drive() as driver:
        driver.until(lambda: any(isinstance(e, PollCompleted) for e in driver.events))
        yield driver


def listen(family: int = socket.AF_INET, address: str = "127.0.0.1") -> socket.socket:
    listener = socket.socket(family)
    listener.bind((address, 0))
    listener.listen(128)
    return listener


def pair(listener: socket.socket, target: tuple | None = None) -> tuple[socket.socket, socket.socket]:
    client = socket.create_connection(target or listener.getsockname()[:2])
    server, _ = listener.accept()
    return client, server


def port(sock: socket.socket) -> int:
    return sock.getsockname()[1]


def exchange(client: socket.socket, server: socket.socket, up: int, down: int) -> None:
    """Send `up` bytes one way and `down` the other, and read all of them."""
    for sender, receiver, size in ((client, server, up), (server, client, down)):
        sender.sendall(bytes(size))
        left = size
        while left:
            left -= len(receiver.recv(left))


def totals(event) -> tuple[int | None, int | None]:
    return event.counts.rx_bytes, event.counts.tx_bytes


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


def closings(way: str, client: socket.socket, server: socket.socket) -> None:
    if way == "server first":
        server.close()
        assert client.recv(1) == b""
        client.close()
    elif way == "client first":
        client.close()
        assert server.recv(1) == b""
        server.close()
    elif way == "both at once":
        client.close()
        server.close()
    elif way == "half-closed":
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        time.sleep(0.08)  # longer than a notification takes: the remains must be older than it
        server.close()
        assert client.recv(1) == b""
        time.sleep(0.08)
        client.close()
    else:
        server.send(b"!?!")  # unread at close: the kernel resets
        client.close()
        with pytest.raises(ConnectionResetError):
            server.recv(1)
        server.close()


@pytest.mark.parametrize("polled", [True, False], ids=["polled", "between polls"])
@pytest.mark.parametrize("way", ["server first", "client first", "both at once", "half-closed", "reset"])
def test_final_bytes_are_exact_however_it_ends(live, way, polled):
    """No phantom byte of a SYN or FIN is in the last counts of either end, polled before or not."""
    listener = listen()
    client, server = pair(listener)
    here, there = port(client), port(listener)
    exchange(client, server, 123, 4567)
    if polled:
        live.poll()
    closings(way, client, server)
    (out,) = live.until(lambda: live.removed(here, there))
    (back,) = live.until(lambda: live.removed(there, here))
    down = 4570 if way == "reset" else 4567
    assert totals(out) == (down, 123)
    assert totals(back) == (123, down)
    assert out.final
    assert back.final
    assert (out.flow.process is not None) is polled
    listener.close()


@pytest.mark.parametrize("polled", [True, False], ids=["polled", "between polls"])
def test_a_client_that_was_reset_has_no_fin_among_its_bytes(live, polled):
    """A client that received data and then a reset has no FIN among its bytes."""
    listener = listen()
    client, server = pair(listener)
    here = port(client)
    exchange(client, server, 123, 4567)
    if polled:
        live.poll()
    client.send(b"!?!")
    server.close()  # with something unread: a reset
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()
    (gone,) = live.until(lambda: live.removed(here))
    assert totals(gone) == (4567, 126)
    listener.close()


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_server_whose_listener_was_never_seen_has_exact_bytes_and_no_wrong_direction(live, first):
    """Listener, both ends, all between two polls: final bytes are exact and the directions are not wrong."""
    listener = listen()
    client, server = pair(listener)
    here, there = port(client), port(listener)
    listener.close()
    exchange(client, server, 123, 4567)
    one, other = (client, server) if first == "client" else (server, client)
    one.close()
    assert other.recv(1) == b""
    other.close()
    (out,) = live.until(lambda: live.removed(here))
    (back,) = live.until(lambda: [e for e in live.removed(there) if e.flow.remote])
    assert (totals(out), totals(back)) == ((4567, 123), (123, 4567))
    assert out.flow.direction is Direction.OUTBOUND
    assert back.flow.direction is Direction.INBOUND


def test_each_end_shows_its_state_while_half_closed_and_the_fin_is_not_payload(live):
    """Each end shows its state while half-closed; the byte of the FIN is not payload."""
    listener = listen()
    client, server = pair(listener)
    exchange(client, server, 10, 20)
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    live.poll()
    while "FIN_WAIT_2" not in [e.flow.state.name for e in (*live.added(port(client)), *live.updated(port(client)))]:
        live.poll()  # until the other side's delayed acknowledgement came
    (waiting,) = [e for e in live.added(port(listener)) if e.flow.remote]
    assert waiting.flow.state is TcpState.CLOSE_WAIT
    assert totals(waiting) == (10, 20)
    assert waiting.flow.direction is Direction.INBOUND
    here = port(client)
    for sock in (server, client, listener):
        sock.close()
    (gone,) = live.until(lambda: live.removed(here))
    assert totals(gone) == (20, 10)


def test_a_reset_connection_whose_descriptor_is_open_is_closed_until_that_is_closed(live):
    """A connection reset by its peer, with the descriptor still open, becomes CLOSED and is removed when closed."""
    listener = listen()
    client, server = pair(listener)
    here = port(client)
    exchange(client, server, 10, 20)
    live.poll()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    server.close()
    for _ in range(2):
        live.poll()
    assert live.updated(here)[-1].flow.state is TcpState.CLOSED
    assert live.removed(here) == []
    client.close()
    (gone,) = live.until(lambda: live.removed(here))
    assert totals(gone) == (20, 10)
    listener.close()


def test_the_last_known_counts_of_an_aborted_connection_stand_and_are_not_final(live):
    """An abort clears the kernel's counters: the last known ones stand, are not final, and the gap is reported."""
    listener = listen()
    client, server = pair(listener)
    here = port(client)
    exchange(client, server, 10, 20)
    live.poll()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    (gone,) = live.until(lambda: live.removed(here))
    assert (totals(gone), gone.final, gone.reason) == ((20, 10), False, RemovalReason.DROPPED)
    assert [e.cause for e in live.events if isinstance(e, EventsLost)] == [LossCause.FINAL_COUNTS]
    server.close()
    (told,) = live.until(lambda: [e for e in live.removed(port(listener)) if e.flow.remote])
    assert totals(told) == (10, 20)
    listener.close()


def test_a_refused_attempt_is_added_and_removed_without_the_port(live):
    """A refused attempt is added and removed; the kernel keeps the address and forgets the port."""
    with listen() as listener:
        closed = port(listener)
    client = socket.socket()
    client.bind(("127.0.0.1", 0))
    here = port(client)
    with pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", closed))
    client.close()
    (gone,) = live.until(lambda: live.removed(here))
    assert len(live.added(here)) == 1
    assert (gone.flow.remote.address, gone.flow.direction) == ("127.0.0.1", Direction.OUTBOUND)
    assert totals(gone) == (0, 0)


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


def dissolve(sock: socket.socket) -> None:
    """``connect(AF_UNSPEC)``: the connection ends, the socket stays."""
    assert ctypes.CDLL(None).connect(sock.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16) == 0


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


def test_a_namespace_that_does_not_exist_is_an_error_with_its_path():
    """Opening fails with the reason and the path."""
    with pytest.raises(BackendUnavailableError, match="no-such-namespace") as caught:
        SockDiag("no-such-namespace").parts(MonitorOptions())
    assert caught.value.reason is UnavailableReason.MISSING


def test_the_own_namespace_has_no_label_by_whichever_name():
    """A path to the own namespace is the own namespace: no label, no privilege."""
    with drive(("/proc/self/ns/net",)) as live:
        live.poll()
        assert {e.flow.namespace for e in live.events if hasattr(e, "flow")} <= {None}


def test_the_own_namespace_named_twice_is_watched_once(live):
    """Two names of one namespace are one namespace: every flow comes once."""
    with drive((os.getpid(), "/proc/self/ns/net", None)) as twice, listen() as listener:
        twice.poll()
        assert len(twice.added(port(listener))) == 1
        assert len(twice.channels) == 4


# -- privileged: namespaces and users


def can_unshare() -> bool:
    return subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode == 0


privileged = pytest.mark.skipif(os.geteuid() != 0 or not can_unshare(), reason="needs root and network namespaces")

INSIDE = """
import socket, sys
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen()
c = socket.create_connection(l.getsockname()); a, _ = l.accept()
c.sendall(b"x" * 12345)
n = 0
while n < 12345: n += len(a.recv(65536))
print(c.getsockname()[1], flush=True)
sys.stdin.readline()
c.close(); a.close(); l.close()
"""


def inside() -> subprocess.Popen[str]:
    """A process with a connection in a network namespace of its own."""
    script = 'ip link set lo up && exec "$0" -c "$1"'
    return subprocess.Popen(
        ["unshare", "-n", "sh", "-c", script, sys.executable, INSIDE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.privileged
@privileged
def test_flows_of_another_namespace_say_so_and_end_with_it():
    """Several namespaces at once; the foreign flows say so, and end properly when their namespace vanishes."""
    process = inside()
    here = int(process.stdout.readline())
    listener = listen()
    with drive((None, process.pid)) as live:
        live.poll()
        (added,) = live.added(here)
        assert added.flow.namespace == f"pid:{process.pid}"
        assert added.flow.id.startswith("n1:")
        assert added.flow.process.pid == process.pid
        assert added.flow.interface.kind is InterfaceKind.LOOPBACK
        assert live.added(port(listener))[0].flow.namespace is None
        process.communicate("\n")
        (gone,) = live.until(lambda: live.removed(here))
        assert (gone.counts.tx_bytes, gone.final) == (12345, True)
        assert live.poll().complete
    listener.close()


@pytest.mark.privileged
@privileged
def test_another_namespace_named_twice_has_the_first_name():
    """What a namespace is, its device and inode say; the first name is shown, and no descriptor is left."""
    process = inside()
    here = int(process.stdout.readline())
    before = len(os.listdir("/proc/self/fd"))
    with drive((process.pid, f"/proc/{process.pid}/ns/net")) as live:
        live.poll()
        (added,) = live.added(here)
        assert added.flow.namespace == f"pid:{process.pid}"
        assert len(live.channels) == 4
    assert len(os.listdir("/proc/self/fd")) == before
    process.communicate("\n")


@pytest.mark.privileged
@privileged
def test_a_user_without_capabilities_sees_all_flows_and_the_processes_of_its_own(nursery):
    """A user without any capability sees all flows with exact final bytes, and the processes of the own user only."""
    program = """
import os, socket
from sockdiag_fakes import LiveDriver
from nstat_async.backends import SockDiag
from nstat_async._options import MonitorOptions
os.setgid(65534); os.setuid(65534)
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen()
c = socket.create_connection(l.getsockname()); a, _ = l.accept()
with LiveDriver(*SockDiag().parts(MonitorOptions(interval=None))) as live:
    live.poll()
    (own,) = live.added(c.getsockname()[1])
    (foreign,) = live.added(PORT)
    assert own.flow.process.pid == os.getpid(), own
    assert own.flow.process.uid == 65534
    assert foreign.flow.process is None, foreign
    assert live.core.capabilities.processes.value == "own"
    assert live.core.capabilities.final_counts
    here = c.getsockname()[1]
    c.sendall(b"x" * 99); a.recv(99); c.close(); a.close()
    (gone,) = live.until(lambda: live.removed(here))
    assert gone.counts.tx_bytes == 99 and gone.final
print("as expected")
"""
    with listen() as listener:
        _, out, err = nursery.run(f"PORT = {port(listener)}\n{program}")
    assert out == "as expected\n", err

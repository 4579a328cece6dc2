"""Kinds of I/O on datagram sockets against truth: what went in, what the kernel's programs counted."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess

import pytest
from ebpf_living import LIMIT, NET, Watch, compiled, cookie, counts_calls, living

pytestmark = [pytest.mark.privileged, pytest.mark.linux, pytest.mark.timeout(NET)]

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
UDP_SEGMENT, UDP_GRO = 103, 104
ERRQUEUE = 0x2000
NOTHING = (0, 0)


@pytest.fixture(scope="module")
def watch():
    with living(), Watch() as watch:
        yield watch


class Truth:
    """What each socket did: (bytes, datagrams) by calls and by packets, as (tx calls, rx calls, tx packets, rx packets)."""

    def __init__(self) -> None:
        self.of: dict[int, tuple] = {}
        self.open: list[socket.socket] = []

    def udp(self, family=socket.AF_INET, bind=None):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        self.open.append(sock)
        if bind:
            sock.bind((bind, 0))
        return sock

    def pair(self, family=socket.AF_INET):
        receiver = self.udp(family, LOOPBACK[family])
        sender = self.udp(family)
        sender.connect(receiver.getsockname()[:2])
        receiver.settimeout(LIMIT)
        return receiver, sender

    def expect(self, sock, sent=(0, 0), read=(0, 0), left=None, arrived=None):
        """`left` and `arrived` are the packets' truth where it is another than that of the calls."""
        self.of[cookie(sock)] = (sent, read, sent if left is None else left, read if arrived is None else arrived)

    def close(self) -> None:
        for sock in self.open:
            sock.close()


def connected(truth, family=socket.AF_INET):
    receiver, sender = truth.pair(family)
    for _ in range(7):
        sender.send(bytes(100))
        receiver.recv(2000)
    truth.expect(sender, sent=(700, 7))
    truth.expect(receiver, read=(700, 7))


def connected_v6(truth):
    connected(truth, socket.AF_INET6)


def unconnected(truth):
    one, other = truth.udp(bind="127.0.0.1"), truth.udp()
    for _ in range(5):
        other.sendto(bytes(50), one.getsockname())
        _, address = one.recvfrom(1000)
        one.sendto(bytes(20), address)
        other.recv(100)
    truth.expect(other, sent=(250, 5), read=(100, 5))
    truth.expect(one, sent=(100, 5), read=(250, 5))


def mapped(truth):
    receiver, sender = truth.udp(bind="127.0.0.1"), truth.udp(socket.AF_INET6)
    sender.connect(("::ffff:127.0.0.1", receiver.getsockname()[1]))
    for _ in range(3):
        sender.send(bytes(30))
        receiver.recv(99)
    truth.expect(sender, sent=(90, 3))
    truth.expect(receiver, read=(90, 3))


def peeked(truth):
    receiver, sender = truth.pair()
    for _ in range(3):
        sender.send(bytes(100))
        receiver.recv(1000, socket.MSG_PEEK)
        receiver.recv(1000, socket.MSG_PEEK | socket.MSG_TRUNC)
        receiver.recv(1000)
    truth.expect(sender, sent=(300, 3))
    truth.expect(receiver, read=(300, 3))


def empty(truth):
    receiver, sender = truth.pair()
    for _ in range(4):
        sender.send(b"")
        receiver.recv(10)
    truth.expect(sender, sent=(0, 4))
    truth.expect(receiver, read=(0, 4))


def short_reads(truth):
    receiver, sender = truth.pair()
    for _ in range(4):
        sender.send(bytes(1000))
        receiver.recv(10)
    truth.expect(sender, sent=(4000, 4))
    truth.expect(receiver, read=(40, 4), arrived=(4000, 4))


def truncated(truth):
    receiver, sender = truth.pair()
    for _ in range(4):
        sender.send(bytes(1000))
        receiver.recv(10, socket.MSG_TRUNC)
    truth.expect(sender, sent=(4000, 4))
    truth.expect(receiver, read=(4000, 4))


def never_read(truth):
    receiver, sender = truth.pair()
    for _ in range(4):
        sender.send(bytes(1000))
    receiver.recv(2000)
    truth.expect(sender, sent=(4000, 4))
    truth.expect(receiver, read=(1000, 1), arrived=(4000, 4))


def overflowed(truth):
    receiver, sender = truth.pair()
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for _ in range(50):
        sender.send(bytes(1000))
    receiver.setblocking(False)
    read = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            receiver.recv(2000)
            read += 1
    truth.expect(sender, sent=(50000, 50))
    truth.expect(receiver, read=(1000 * read, read), arrived=(50000, 50))


def _closed_port(truth):
    gone = truth.udp(bind="127.0.0.1")
    address = gone.getsockname()
    gone.close()
    return address


def error_queue(truth):
    sender = truth.udp()
    sender.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    sender.connect(_closed_port(truth))
    sender.send(bytes(77))
    data = sender.recvmsg(1000, 1000, ERRQUEUE)[0]
    assert len(data) == 77
    truth.expect(sender, sent=(77, 1))


def refused_by_the_other_side(truth):
    sender = truth.udp()
    sender.connect(_closed_port(truth))
    sender.send(bytes(5))
    with pytest.raises(ConnectionRefusedError):
        sender.send(bytes(5))
    truth.expect(sender, sent=(5, 1))


def unreachable(truth):
    sender = truth.udp()
    with pytest.raises(OSError, match="Network is unreachable"):
        sender.sendto(bytes(5), ("192.0.2.1", 9))
    sender.sendto(bytes(6), _closed_port(truth))
    truth.expect(sender, sent=(6, 1))


def segmented(truth):
    receiver, sender = truth.pair()
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
    for _ in range(3):
        sender.send(bytes(10500))
    for _ in range(33):
        receiver.recv(65536)
    truth.expect(sender, sent=(31500, 3), left=(31500, 33))
    truth.expect(receiver, read=(31500, 33))


def coalesced(truth):
    receiver, sender = truth.pair()
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
    for _ in range(3):
        sender.send(bytes(10500))
    reads = got = 0
    while got < 31500:
        got += len(receiver.recv(65536))
        reads += 1
    truth.expect(sender, sent=(31500, 3), left=(31500, 33))
    truth.expect(receiver, read=(31500, reads), arrived=(31500, 33))


def fragmented(truth, family=socket.AF_INET):
    receiver, sender = truth.pair(family)
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for _ in range(3):
        sender.send(bytes(60000))
        receiver.recv(65536)
    truth.expect(sender, sent=(180000, 3))
    truth.expect(receiver, read=(180000, 3))


def fragmented_in_a_small_mtu(truth):
    subprocess.run(["ip", "link", "set", "lo", "mtu", "1500"], check=True)
    try:
        fragmented(truth)
        fragmented(truth, socket.AF_INET6)
    finally:
        subprocess.run(["ip", "link", "set", "lo", "mtu", "65536"], check=True)


def corked(truth):
    receiver, sender = truth.pair()
    for _ in range(3):
        sender.send(bytes(100), socket.MSG_MORE)
        sender.send(bytes(100), socket.MSG_MORE)
        sender.send(bytes(100))
        receiver.recv(1000)
    truth.expect(sender, sent=(900, 9), left=(900, 3))
    truth.expect(receiver, read=(900, 3))


def written(truth):
    receiver, sender = truth.pair()
    for _ in range(3):
        os.write(sender.fileno(), bytes(100))
        os.read(receiver.fileno(), 1000)
        os.writev(sender.fileno(), [bytes(10), bytes(20)])
        os.readv(receiver.fileno(), [bytearray(7), bytearray(100)])
        sender.sendmsg([bytes(5), bytes(6)])
        receiver.recvmsg(100)
    truth.expect(sender, sent=(423, 9))
    truth.expect(receiver, read=(423, 9))


def spliced(truth):
    receiver, sender = truth.pair()
    out, into = os.pipe()
    for _ in range(3):
        os.write(into, bytes(500))
        splice(out, sender.fileno(), 500)
        splice(receiver.fileno(), into, 1000)
        assert len(os.read(out, 1000)) == 500
    os.close(out)
    os.close(into)
    truth.expect(sender, sent=(1500, 3))
    truth.expect(receiver, read=(1500, 3))


def splice(source, target, size):
    if not hasattr(os, "splice"):
        pytest.skip("os.splice came with Python 3.10 on newer C libraries")
    assert os.splice(source, target, size) > 0


def sent_from_a_file(truth):
    receiver, sender = truth.pair()
    file = os.memfd_create("x")
    os.write(file, bytes(700))
    for _ in range(3):
        os.sendfile(sender.fileno(), file, 0, 700)
        receiver.recv(1000)
    os.close(file)
    truth.expect(sender, sent=(2100, 3))
    truth.expect(receiver, read=(2100, 3))


def multicast(truth):
    members = []
    membership = socket.inet_aton("239.1.2.3") + socket.inet_aton("127.0.0.1")
    for _ in range(2):
        member = truth.udp()
        member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        member.bind(("239.1.2.3", 40404))
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        members.append(member)
    sender = truth.udp()
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    for _ in range(4):
        sender.sendto(bytes(60), ("239.1.2.3", 40404))
        for member in members:
            member.recv(100)
    truth.expect(sender, sent=(240, 4))
    for member in members:
        truth.expect(member, read=(240, 4))


def shared_by_fork(truth):
    receiver, sender = truth.pair()
    sender.send(bytes(10))
    pid = os.fork()
    if not pid:
        for _ in range(3):
            sender.send(bytes(10))
        os._exit(0)
    os.waitpid(pid, 0)
    for _ in range(4):
        receiver.recv(100)
    truth.expect(sender, sent=(40, 4))
    truth.expect(receiver, read=(40, 4))


def reconnected(truth):
    first, sender = truth.pair()
    second = truth.udp(bind="127.0.0.1")
    sender.send(bytes(10))
    sender.connect(second.getsockname())
    sender.send(bytes(20))
    first.recv(99)
    second.recv(99)
    truth.expect(sender, sent=(30, 2))
    truth.expect(first, read=(10, 1))
    truth.expect(second, read=(20, 1))


def extension_headers(truth):
    """IPv6 destination options in front of the datagram are no payload."""
    receiver, sender = truth.pair(socket.AF_INET6)
    options = bytes([0, 0, 1, 4, 0, 0, 0, 0])  # eight bytes in all, and six of them padding
    sender.setsockopt(socket.IPPROTO_IPV6, 59, options)  # IPV6_DSTOPTS
    for _ in range(3):
        sender.send(bytes(100))
        receiver.recv(1000)
    truth.expect(sender, sent=(300, 3))
    truth.expect(receiver, read=(300, 3))


NOT_UDP = NOTHING


def raw(truth):
    one, other = (socket.socket(socket.AF_INET, socket.SOCK_RAW, 253) for _ in range(2))
    truth.open += [one, other]
    other.sendto(bytes(40), ("127.0.0.1", 0))
    assert len(one.recv(100)) == len(other.recv(100)) == 60  # with the header
    truth.expect(other, sent=(40, 1), read=(60, 1), left=NOT_UDP, arrived=NOT_UDP)
    truth.expect(one, read=(60, 1), arrived=NOT_UDP)


def raw_of_protocol_tcp(truth):
    """A raw socket for TCP is a raw socket."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    truth.open.append(sock)
    sock.sendto(bytes(20), ("127.0.0.1", 0))
    truth.expect(sock, sent=(20, 1), left=NOT_UDP)


def ping(truth):
    with open("/proc/sys/net/ipv4/ping_group_range", "w") as file:
        file.write("0 2147483647")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    truth.open.append(sock)
    sock.sendto(b"\x08\0\0\0\0\0\0\1" + bytes(24), ("127.0.0.1", 0))
    read = len(sock.recv(100))
    truth.expect(sock, sent=(32, 1), read=(read, 1), left=NOT_UDP, arrived=NOT_UDP)


CASES = [
    connected, connected_v6, unconnected, mapped, peeked, empty, short_reads, truncated, never_read, overflowed,
    error_queue, refused_by_the_other_side, unreachable, segmented, coalesced, fragmented, fragmented_in_a_small_mtu,
    corked, written, spliced, sent_from_a_file, multicast, shared_by_fork, reconnected, extension_headers, raw,
    raw_of_protocol_tcp, ping,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_counts_are_exact(watch, case):
    """Bytes and calls by the length hooks, bytes and packets by the packet hooks, and the process."""
    truth = Truth()
    try:
        case(truth)
    finally:
        truth.close()
    for number, expected in truth.of.items():
        ended = watch.ended(number)
        record = ended.facts
        counted = (
            (record.tx_bytes, record.tx_calls),
            (record.rx_bytes, record.rx_calls),
            (record.tx_payload, record.tx_packets),
            (record.rx_payload, record.rx_packets),
        )
        assert counted == (expected if counts_calls() else (NOTHING, NOTHING, *expected[2:]))
        assert record.pid == os.getpid()
        assert ended.final


def check_program(watch, command, names):
    """Lines of a program: [NAME] COOKIE TX_BYTES TX_DATAGRAMS RX_BYTES RX_DATAGRAMS."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate()
    assert process.returncode == 0
    lines = [line.split() for line in output.splitlines()]
    assert lines
    for line in lines:
        number, *expected = map(int, line[names:])
        record = watch.ended(number).facts
        calls = [record.tx_bytes, record.tx_calls, record.rx_bytes, record.rx_calls]
        assert calls == (expected if counts_calls() else [0] * 4), line
        assert [record.tx_payload, record.tx_packets, record.rx_payload, record.rx_packets] == expected, line
        assert record.pid == process.pid, line


def test_many_messages_in_one_call(watch, tmp_path):
    """sendmmsg and recvmmsg count each message."""
    check_program(watch, [compiled("traffic", tmp_path), "mmsg"], 0)


def test_io_uring(watch, tmp_path):
    """Also from worker threads, a polling kernel thread and without copying: exact, and of the right process."""
    check_program(watch, [compiled("uring", tmp_path, "-luring")], 1)

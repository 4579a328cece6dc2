"""The traffic of ``accuracy.py``: programs that move known bytes, and say afterwards which and whose.

``python _traffic.py NAME [short]`` makes the traffic of one scenario and prints a line of JSON for each flow: protocol,
ports, the process that holds it, bytes sent and received. ``python _traffic.py serve`` is the other end of it all, in
the other network namespace; a program's own header says what it should do.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import selectors
import socket
import struct
import sys
import tempfile
import termios
import threading
import time

HERE, THERE, THERE6, GROUP = "10.9.0.1", "10.9.0.2", "fd09::2", "239.9.0.1"
MPTCP, UDP, DIAL, REUSED = 7001, 7002, 7003, 7100
FIRST = 7200
"""Each scenario has a port of its own from here on, so that a port which the system uses again is no riddle."""
HEADER = struct.Struct(">III")
"""Bytes that will follow, bytes wanted back, milliseconds to wait before anything is read."""
LIVES = (1, 5, 20, 50, 200, 1000)
_MPTCP = 262
SHORT = sys.argv[2:] == ["short"]


# --- the other end ----------------------------------------------------------------


def _answer(sock):
    with sock, contextlib.suppress(OSError):
        head = _receive(sock, HEADER.size)
        if len(head) < HEADER.size:
            return
        coming, wanted, pause = HEADER.unpack(head)
        time.sleep(pause / 1000)
        _receive(sock, coming)
        sock.sendall(bytes(wanted))
        while sock.recv(65536):
            pass


def _dial(sock):
    """Connect back to a port, so many times, and send so many bytes on each connection."""
    with sock:
        port, count, size = HEADER.unpack(_receive(sock, HEADER.size))
        for _ in range(count):
            with socket.create_connection((HERE, port)) as out:
                out.sendall(bytes(size))
                out.shutdown(socket.SHUT_WR)
                out.recv(1)
        sock.sendall(b"!")


def _accept(listener, work):
    while True:
        threading.Thread(target=work, args=(listener.accept()[0],), daemon=True).start()


def _echo(sock):
    while True:
        data, peer = sock.recvfrom(65536)
        sock.sendto(data, peer)


def serve():
    tcp = [
        socket.create_server(("::", FIRST + number), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        for number in range(len(SCENARIOS))
    ]
    dial = socket.create_server((THERE, DIAL), backlog=64)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((THERE, UDP))
    work = [*((_accept, listener, _answer) for listener in tcp), (_accept, dial, _dial), (_echo, udp)]
    with contextlib.suppress(OSError):
        mptcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP)
        mptcp.bind((THERE, MPTCP))
        mptcp.listen(64)
        work.append((_accept, mptcp, _answer))
    for function, *arguments in work:
        threading.Thread(target=function, args=arguments, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


# --- what the programs have in common -----------------------------------------------


def _receive(sock, size):
    data = bytearray()
    while len(data) < size and (piece := sock.recv(min(65536, size - len(data)))):
        data += piece
    return bytes(data)


def _pid():
    """This process as the namespace sees it in which ``/proc`` was mounted: a container's own number is another."""
    return int(os.readlink("/proc/self"))


def say(sock, tx, rx, *, proto="tcp", pid=None):
    """One line of truth."""
    remote = 0
    with contextlib.suppress(OSError):
        remote = sock.getpeername()[1]
    truth = {"proto": proto, "local": sock.getsockname()[1], "remote": remote, "pid": pid or _pid(), "tx": tx, "rx": rx}
    os.write(1, json.dumps(truth).encode() + b"\n")


def own_port():
    """Where this scenario connects to."""
    return FIRST + list(SCENARIOS).index(sys.argv[1])


def connect(address=THERE, port=None, protocol=0):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    sock.connect((address, port or own_port()))
    return sock


def talk(sock, sent, received, pause=0):
    """Send and receive so many bytes beside the header's; what was moved."""
    sock.sendall(HEADER.pack(sent, received, pause) + bytes(sent))
    return HEADER.size + sent, len(_receive(sock, received))


def children(count, work, pause=0.0):
    """Fork so many processes that do `work` with their number; wait for them."""
    pids = []
    for number in range(count):
        pid = os.fork()
        if not pid:
            try:
                work(number)
            finally:
                os._exit(0)
        pids.append(pid)
        time.sleep(pause)
    for pid in pids:
        os.waitpid(pid, 0)


def once(sent=5_000, received=20_000, life=2.0, **where):
    """A connection of known size that lives so long."""
    begin = time.monotonic()
    with connect(**where) as sock:
        moved = talk(sock, sent, received)
        time.sleep(max(0.0, begin + life - time.monotonic()))
        say(sock, *moved)


# --- the scenarios ---------------------------------------------------------------------


def life(milliseconds):
    """Processes with one connection each, one after another; the process ends with it."""
    children(4 if SHORT else 20, lambda _: once(life=milliseconds / 1000), pause=0.07)


def bursts():
    """Eight processes at once, each with 25 connections of 20 ms, one after another."""

    def work(_):
        for _ in range(3 if SHORT else 25):
            once(life=0.02)

    children(8, work)


def small():
    """Fifty connections of one process, some bytes each."""
    socks = [connect() for _ in range(50)]
    for sock in socks:
        moved = talk(sock, 88, 100)
        say(sock, *moved)
    time.sleep(1.5)


@contextlib.contextmanager
def _file(size):
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        yield file


def sendfile(size=5_000_000):
    """A file sent by ``sendfile``."""
    with _file(size) as file, connect() as sock:
        sock.sendall(HEADER.pack(size, 1, 0))
        done = 0
        while done < size:
            done += os.sendfile(sock.fileno(), file.fileno(), done, size - done)
        say(sock, HEADER.size + done, len(_receive(sock, 1)))
        time.sleep(1.5)


def splice(size=5_000_000):
    """A file sent through a pipe by ``splice``."""
    move = ctypes.CDLL(None, use_errno=True).splice
    move.restype = ctypes.c_ssize_t
    out, into = os.pipe()
    with _file(size) as file, connect() as sock:
        sock.sendall(HEADER.pack(size, 1, 0))
        done = 0
        while done < size:
            there = move(file.fileno(), None, into, None, ctypes.c_size_t(min(65536, size - done)), 0)
            while there:
                gone = move(out, None, sock.fileno(), None, ctypes.c_size_t(there), 0)
                there, done = there - gone, done + gone
        say(sock, HEADER.size + done, len(_receive(sock, 1)))
        time.sleep(1.5)


def io_uring(size=50_000):
    """Connected and sent by io_uring: the process makes no system call on the socket for it."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    setup = ctypes.create_string_buffer(120)
    ring = syscall(425, 8, setup)
    if ring < 0:
        sys.exit(3)
    entries = struct.unpack_from("<I", setup, 4)[0]
    offsets = struct.unpack_from("<10I", setup, 40)  # head, tail, ring_mask, ring_entries, flags, dropped, array, …
    completions = struct.unpack_from("<10I", setup, 80)  # head, tail, ring_mask, ring_entries, overflow, cqes, …
    queue = mmap.mmap(ring, offsets[6] + entries * 4, offset=0)
    answers = mmap.mmap(ring, completions[5] + 2 * entries * 16, offset=0x8000000)
    submissions = mmap.mmap(ring, entries * 64, offset=0x10000000)

    def do(opcode, descriptor, address, length, offset=0):
        tail = struct.unpack_from("<I", queue, offsets[1])[0]
        at = tail & (entries - 1)
        struct.pack_into("<BBHiQQI28x", submissions, at * 64, opcode, 0, 0, descriptor, offset, address, length)
        struct.pack_into("<I", queue, offsets[6] + at * 4, at)
        struct.pack_into("<I", queue, offsets[1], tail + 1)
        syscall(426, ring, 1, 1, 1, None, 0)
        head = struct.unpack_from("<I", answers, completions[0])[0]
        place = completions[5] + (head & (2 * entries - 1)) * 16
        struct.pack_into("<I", answers, completions[0], head + 1)
        return struct.unpack_from("<Qi", answers, place)[1]

    with socket.socket() as sock:
        to = ctypes.create_string_buffer(
            struct.pack("=H", socket.AF_INET) + struct.pack(">H4s8x", own_port(), socket.inet_aton(THERE))
        )
        if do(16, sock.fileno(), ctypes.addressof(to), 0, 16):
            sys.exit(3)
        data = ctypes.create_string_buffer(HEADER.pack(size, 1, 0) + bytes(size), HEADER.size + size)
        done = 0
        while done < HEADER.size + size:
            done += do(26, sock.fileno(), ctypes.addressof(data) + done, HEADER.size + size - done)
        say(sock, done, len(_receive(sock, 1)))
        time.sleep(1.5)


def ipv6():
    """Ten processes, a connection over IPv6 each."""
    children(4 if SHORT else 10, lambda _: once(address=THERE6))


def loopback(address="127.0.0.1", protocol=0):
    """Both ends on this machine, in two processes."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]

        def work(number):
            if number:
                once(address=address, port=port, protocol=protocol)
                return
            with listener.accept()[0] as sock:
                sent, wanted, _ = HEADER.unpack(_receive(sock, HEADER.size))
                _receive(sock, sent)
                sock.sendall(bytes(wanted))
                sock.recv(1)
                say(sock, wanted, HEADER.size + sent)

        children(2, work)


def _multipath():
    """Leave, and say so, where this kernel has no MPTCP."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP).close()
    except OSError:
        sys.exit(3)
    return _MPTCP


def mptcp():
    """Multipath TCP, one subflow each, two megabytes sent."""
    protocol = _multipath()
    children(4 if SHORT else 10, lambda _: once(sent=2_000_000, port=MPTCP, protocol=protocol))


def _dialled(port, count, size):
    """Ask the other end to connect to us; the socket that tells when it is done."""
    sock = socket.create_connection((THERE, DIAL))
    sock.sendall(HEADER.pack(port, count, size))
    return sock


def reuseport(count=20, size=30_000):
    """Four workers with SO_REUSEPORT sockets that were made before the fork accept connections from outside."""
    listeners = [_reusable(REUSED) for _ in range(4)]
    control = _dialled(REUSED, count, size)

    def work(number):
        for other in listeners:
            if other is not listeners[number]:
                other.close()
        listener, chosen = listeners[number], selectors.DefaultSelector()
        chosen.register(listener, selectors.EVENT_READ)
        chosen.register(control, selectors.EVENT_READ)
        while not any(key.fileobj is control for key, _ in chosen.select()):
            with listener.accept()[0] as sock:
                received = len(_receive(sock, size))
                time.sleep(0.1)
                say(sock, 0, received)

    children(4, work)


def _reusable(port):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((HERE, port))
    sock.listen(64)
    sock.setblocking(True)
    return sock


def handed():
    """A process connects, sends half, hands the descriptor to another and lives on; the other sends the rest."""
    near, far = socket.socketpair()

    def work(number):
        if not number:
            with connect() as sock:
                talk(sock, 10_000, 10_000)
                time.sleep(1.5)
                near.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()]))])
            time.sleep(3)
            return
        _, control, *_ = far.recvmsg(1, socket.CMSG_SPACE(4))
        with socket.socket(fileno=array.array("i", control[0][2])[0]) as sock:
            sock.sendall(bytes(5_000))
            time.sleep(2.5)
            say(sock, HEADER.size + 15_000, 10_000)

    children(2, work)


def outlived():
    """The process is gone, its connection still sends."""

    def work(_):
        sock = connect()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
        moved = talk(sock, 100_000, 0, pause=1500)
        time.sleep(1.2)
        say(sock, *moved)

    children(4 if SHORT else 10, work)


def _datagrams(sock, to, count=20, size=500):
    for _ in range(count):
        sock.sendto(bytes(size), to) if to else sock.send(bytes(size))
        sock.recv(65536)
        time.sleep(0.08)
    return count * size, count * size


def udp_connected():
    """UDP, connected."""

    def work(_):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((THERE, UDP))
            say(sock, *_datagrams(sock, None), proto="udp")

    children(4 if SHORT else 10, work)


def udp_unconnected():
    """UDP, not connected."""

    def work(_):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((HERE, 0))
            say(sock, *_datagrams(sock, (THERE, UDP)), proto="udp")

    children(4 if SHORT else 10, work)


def multicast():
    """A member of a group that hears itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((GROUP, 0))
        join = socket.inet_aton(GROUP) + socket.inet_aton(HERE)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, join)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(HERE))
        say(sock, *_datagrams(sock, sock.getsockname()), proto="udp")


def halfclose():
    """Clients that shut their side down, read to the end and close."""

    def work(_):
        with connect() as sock:
            say(sock, *talk(sock, 5_000, 20_000))
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)

    children(5 if SHORT else 20, work, pause=0.05)


def reset():
    """Closed with data that nobody read: the kernel resets the connection."""

    def work(_):
        with connect() as sock:
            sock.sendall(HEADER.pack(5_000, 20_000, 0) + bytes(5_000))
            there = array.array("i", [0])
            while there[0] < 20_000:
                time.sleep(0.01)
                fcntl.ioctl(sock, termios.FIONREAD, there)
            say(sock, HEADER.size + 5_000, 20_000)

    children(5 if SHORT else 20, work, pause=0.05)


def busy():
    """Fifty processes with a connection of 1.5 s each, beside thousands that idle."""
    children(5 if SHORT else 50, lambda _: once(life=1.5))


SCENARIOS = {
    **{f"life {ms} ms": (lambda ms=ms: life(ms)) for ms in LIVES},
    "parallel bursts": bursts, "50 small connections": small, "sendfile": sendfile, "splice": splice, "io_uring": io_uring,
    "IPv6": ipv6, "loopback, both ends": loopback, "container, pids its own": ipv6, "container, network its own": loopback,
    "MPTCP": mptcp, "MPTCP, both ends": lambda: loopback(protocol=_multipath()), "REUSEPORT workers": reuseport, "SCM_RIGHTS": handed, "outlives its process": outlived,
    "UDP connected": udp_connected, "UDP unconnected": udp_unconnected, "UDP multicast": multicast,
    "half-close": halfclose, "reset, unread data": reset, "50 busy beside 20,000 idle": busy,
}  # fmt: skip
"""Name to the function that makes the traffic."""

if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        SCENARIOS[sys.argv[1]]()

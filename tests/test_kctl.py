"""Opening the kernel control: what is asked of the system, and what each refusal means."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from types import SimpleNamespace

import pytest
from channels import read_one

from nstat_async import BackendUnavailableError, UnavailableReason
from nstat_async._io import darwin, kctl
from nstat_async._io.channel import SocketChannel
from nstat_async._options import MonitorOptions
from nstat_async.backends import Kctl
from nstat_async.ntstat import InterfacesRead, Ledger, LedgerRow, ReadInterfaces, ReadLedger

CONTROL_ID = 7


class FakeSocket:
    """A system socket that notes what is done to it and refuses what it is told to."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.calls: list[tuple[object, ...]] = []
        self.closed = False
        self.size = 8192

    def fileno(self) -> int:
        return 99

    def connect(self, address: tuple[int, int]) -> None:
        self.calls.append(("connect", address))
        self.system.fail("connect")

    def setsockopt(self, _level: int, option: int, value: int) -> None:
        assert option == socket.SO_RCVBUF
        self.calls.append(("SO_RCVBUF", value))
        if value > self.system.largest:
            raise OSError(errno.ENOBUFS, "too large")
        self.size = min(value, self.system.clamp)

    def getsockopt(self, _level: int, _option: int) -> int:
        self.system.fail("read back")
        return self.size

    def setblocking(self, flag: bool) -> None:
        self.calls.append(("blocking", flag))

    def recv(self, size: int) -> bytes:
        return bytes(size)

    def close(self) -> None:
        self.closed = True


class System:
    """A Darwin system whose calls fail where a test wants it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refusals: dict[str, int] = {}
        self.largest = self.clamp = 8 << 20
        self.made: list[FakeSocket] = []
        self.asked: list[tuple[int, bytes]] = []
        fake = SimpleNamespace(
            socket=self.socket, SOCK_DGRAM=socket.SOCK_DGRAM, SOL_SOCKET=socket.SOL_SOCKET, SO_RCVBUF=socket.SO_RCVBUF
        )
        monkeypatch.setattr(kctl, "socket", fake)
        monkeypatch.setattr("nstat_async._io.system.system", lambda: "darwin")
        monkeypatch.setattr("fcntl.ioctl", self.ioctl)

    def fail(self, step: str) -> None:
        if step in self.refusals:
            raise OSError(self.refusals[step], "refused")

    def socket(self, family: int, kind: int, protocol: int) -> FakeSocket:
        assert (family, kind, protocol) == (32, socket.SOCK_DGRAM, 2)
        self.fail("create")
        self.made.append(FakeSocket(self))
        return self.made[-1]

    def ioctl(self, _descriptor: int, request: int, argument: bytearray) -> int:
        self.asked.append((request, bytes(argument)))
        self.fail("look up")
        argument[:4] = struct.pack("=I", CONTROL_ID)
        return 0


@pytest.fixture
def system(monkeypatch):
    return System(monkeypatch)


def test_the_control_is_looked_up_by_name_and_connected_by_the_id_of_this_boot(system):
    channel = kctl.open_control(None)
    ((request, info),) = system.asked
    assert request == 0xC0644E03
    assert len(info) == 100
    assert info[4:].split(b"\0")[0] == b"com.apple.network.statistics"
    assert ("connect", (CONTROL_ID, 0)) in system.made[0].calls
    assert channel.immediate
    assert ("blocking", False) in system.made[0].calls


def test_the_receive_buffer_is_set_after_connect_which_would_reset_it(system):
    kctl.open_control(None)
    names = [call[0] for call in system.made[0].calls]
    assert names.index("connect") < names.index("SO_RCVBUF")


def test_the_receive_buffer_steps_down_to_what_is_granted_and_the_clamped_size_is_told(system):
    system.largest, system.clamp = 1 << 20, 900_000
    channel = kctl.open_control(None)
    assert [call[1] for call in system.made[0].calls if call[0] == "SO_RCVBUF"] == [4 << 20, 2 << 20, 1 << 20]
    assert channel.receive_buffer == 900_000


def test_a_receive_buffer_that_was_asked_for_is_the_only_one_tried(system):
    assert kctl.open_control(8192).receive_buffer == 8192
    assert [call[1] for call in system.made[0].calls if call[0] == "SO_RCVBUF"] == [8192]


def test_a_refused_receive_buffer_leaves_what_the_kernel_gave(system):
    system.largest = 0
    assert kctl.open_control(None).receive_buffer == 8192


def test_a_receive_buffer_that_cannot_be_read_back_is_unknown(system):
    system.refusals["read back"] = errno.EINVAL
    assert kctl.open_control(None).receive_buffer is None


@pytest.mark.parametrize("step", ["create", "look up", "connect"])
@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EPERM, UnavailableReason.PERMISSION),
        (errno.EACCES, UnavailableReason.PERMISSION),
        (errno.ENOENT, UnavailableReason.MISSING),
        (errno.EMFILE, UnavailableReason.RESOURCE),
        (errno.ENFILE, UnavailableReason.RESOURCE),
        (errno.ENOMEM, UnavailableReason.RESOURCE),
        (errno.ENOBUFS, UnavailableReason.RESOURCE),
        (errno.EBUSY, UnavailableReason.MISSING),
    ],
)
def test_a_refusal_says_which_step_failed_and_what_kind_of_obstacle_it_is(system, step, number, reason):
    system.refusals[step] = number
    with pytest.raises(BackendUnavailableError) as caught:
        kctl.open_control(None)
    error = caught.value
    assert (error.backend, error.reason) == ("kctl", reason)
    assert {"create": "system socket", "look up": "com.apple.network.statistics", "connect": "connect"}[
        step
    ] in error.detail
    assert isinstance(error.__cause__, OSError)
    assert all(made.closed for made in system.made), "a socket was left open"


def test_a_sandbox_is_named_where_permission_is_denied(system):
    system.refusals["connect"] = errno.EPERM
    with pytest.raises(BackendUnavailableError, match="sandbox"):
        kctl.open_control(None)


@pytest.mark.skipif(sys.platform == "darwin", reason="there is one on macOS")
def test_another_system_has_no_control_and_the_error_names_the_system():
    for opening in (lambda: kctl.open_control(None), lambda: Kctl().open(MonitorOptions())):
        with pytest.raises(BackendUnavailableError, match=sys.platform) as caught:
            opening()
        assert caught.value.reason is UnavailableReason.PLATFORM


def test_an_interrupted_opening_leaves_no_socket(system, monkeypatch):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeSocket, "connect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        kctl.open_control(None)
    assert system.made[0].closed


def test_the_first_channel_is_the_one_that_opening_made_and_later_ones_are_new(system):
    transport = kctl.KctlTransport(MonitorOptions())
    transport.prepare()
    first, second = transport.open(None), transport.open(None)
    assert first is not second
    assert len(system.made) == 2


def test_a_channel_that_nobody_took_is_closed_with_the_transport(system):
    transport = kctl.KctlTransport(MonitorOptions())
    transport.prepare()
    transport.close()
    transport.close()
    assert system.made[0].closed


def test_the_interfaces_counters_come_with_their_names(monkeypatch):
    transport = kctl.KctlTransport(MonitorOptions())
    monkeypatch.setattr(kctl, "interface_names", lambda: {1: "lo0", 33: "utun7"})
    for messages, answer in ((None, None), (b"", InterfacesRead((), ((1, "lo0"), (33, "utun7"))))):
        monkeypatch.setattr(kctl, "interface_messages", lambda found=messages: found)
        assert transport.lookup(ReadInterfaces()) == answer


@pytest.mark.parametrize("text", ["", "Linux 6.1", "xnu-1504.15.3"])
def test_a_kernel_that_is_not_understood_is_told_and_leaves_no_socket(system, monkeypatch, text):
    monkeypatch.setattr("nstat_async._io.darwin.kernel_text", lambda: text)
    with pytest.raises(BackendUnavailableError) as caught:
        Kctl().open(MonitorOptions())
    assert caught.value.reason is UnavailableReason.KERNEL
    assert all(made.closed for made in system.made)


# --- a channel, on real sockets ---------------------------------------------


@pytest.fixture
def pair():
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        yield near, far


def test_a_channel_keeps_datagrams_apart_and_says_when_there_is_none(pair):
    near, far = pair
    channel = SocketChannel(near, immediate=True, receive_buffer=1)
    with pytest.raises(BlockingIOError):
        read_one(channel)
    far.send(b"one")
    far.send(b"two" * 1000)
    assert read_one(channel) == b"one"
    assert read_one(channel) == b"two" * 1000
    channel.send(b"three")
    assert far.recv(100) == b"three"
    assert channel.fileno() == near.fileno()


def test_a_record_of_64_kib_is_taken_whole(pair):
    near, far = pair
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    channel = SocketChannel(near, immediate=True, receive_buffer=None)
    far.send(bytes(65_536))
    assert len(read_one(channel)) == 65_536


def test_an_empty_read_is_the_end_only_where_the_socket_has_ends(pair):
    near, far = pair
    far.send(b"")
    far.send(b"")
    assert read_one(SocketChannel(near, immediate=True, receive_buffer=None)) == b""
    with pytest.raises(EOFError):
        read_one(SocketChannel(near, immediate=True, receive_buffer=None, ends=True))


class FakeLibrary:
    """A C library whose kernel counts for these control sockets: number to (pid, refused, failed goodbyes)."""

    def __init__(self, clients, *, errno=0):
        self.clients, self.errno = clients, errno

    def sysctlbyname(self, name, buffer, size, request, length):
        if name == b"net.stats.stats":
            return -1
        assert (name, length) == (b"net.stats.metrics", 8)
        version, wanted = struct.unpack("<II", request)
        assert version == 2
        found = [client for client in self.clients if client <= wanted]
        if self.errno or not found:
            return -1
        client = max(found)
        pid, refused, failed = self.clients[client]
        info = bytearray(276)
        struct.pack_into("<Ii", info, 0, client, pid)
        struct.pack_into("<3I", info, 16 + 136, 0, refused, 0)
        struct.pack_into("<I", info, 16 + 164, failed)
        buffer[:276] = bytes(info)
        size._obj.value = 276
        return 0


def test_the_kernels_count_of_losses_is_read_by_the_number_of_a_control_socket(monkeypatch):
    library = FakeLibrary({3: (1, 9, 9), 7: (42, 5, 6), 8: (2, 7, 7), 9: (3, 0, 0)})
    monkeypatch.setattr(darwin, "_libc", lambda: library)
    assert darwin.client_metrics(7) == (7, 42, 5, 6)
    assert darwin.newest_client(42) == 7, "below those of others, whose numbers follow each other"
    assert darwin.newest_client(1) == 3
    assert darwin.newest_client(43) is None
    library.errno = 13
    assert darwin.client_metrics(7) is None
    monkeypatch.setattr(darwin, "_libc", lambda: None)
    assert darwin.newest_client(42) is None


def test_a_kernel_whose_numbers_do_not_fall_is_asked_no_longer(monkeypatch):
    asked = []
    monkeypatch.setattr(darwin, "client_metrics", lambda number: asked.append(number) or (0xFFFFFFFF, 1, 0, 0))
    assert darwin.newest_client(42) is None
    assert len(asked) == 2


def test_refused_announcements_of_the_machine_are_the_seventh_number_of_its_statistics(monkeypatch):
    class Statistics:
        failed = 0

        def sysctlbyname(self, name, buffer, size, _new, _new_size):
            assert name == b"net.stats.stats"
            buffer[:64] = struct.pack("<16I", *range(100, 116))
            return self.failed

    library = Statistics()
    monkeypatch.setattr(darwin, "_libc", lambda: library)
    assert darwin.refused_announcements() == 106
    library.failed = -1
    assert darwin.refused_announcements() is None
    monkeypatch.setattr(darwin, "_libc", lambda: None)
    assert darwin.refused_announcements() is None


class Facts:
    """A C library that knows one process, and ticks of 125/3 ns."""

    def proc_pidpath(self, pid, buffer, size):
        assert size == 4096
        buffer[:5] = b"/bin/"
        return 5 if pid == 1 else 0

    def proc_pidinfo(self, pid, flavor, _argument, info, size):
        assert flavor == 17
        info._obj.unique_pid, info._obj.uuid[:] = 77, bytes(range(16))
        return size if pid == 1 else 0

    def mach_timebase_info(self, info):
        info._obj.numer, info._obj.denom = 125, 3
        return 0


def test_facts_of_processes_and_of_the_clock_are_asked_of_the_system(monkeypatch):
    monkeypatch.setattr(darwin, "_libc", Facts)
    assert (darwin.process_path(1), darwin.process_path(2)) == ("/bin/", None)
    assert darwin.process_identity(1) == (77, bytes(range(16)))
    assert darwin.process_identity(2) == (None, None)
    assert darwin.timebase() == (125, 3)


def test_what_cannot_be_asked_is_none(monkeypatch):
    monkeypatch.setattr(darwin, "_libc", lambda: None)
    assert darwin.process_identity(1) == (None, None)
    assert darwin.process_path(1) is darwin.sysctl_text("kern.uuid") is darwin.interface_messages() is None


def test_a_monitor_reads_the_kernels_counts_of_its_own_sockets_and_not_of_others_in_its_process(system, monkeypatch):
    """Two that start at once must not take each other's."""
    counts, pid = {3: (1, 9, 9)}, os.getpid()
    monkeypatch.setattr(darwin, "_libc", lambda: FakeLibrary(counts))
    monkeypatch.setattr(FakeSocket, "connect", lambda *_: counts.update({max(counts) + 1: (pid, len(counts), 0)}))
    first, second = (kctl.KctlTransport(MonitorOptions()) for _ in range(2))
    for transport in (first, second, first):
        transport.open(None)
    assert system.made
    assert first.lookup(ReadLedger()) == Ledger((LedgerRow(4, 1, 0), LedgerRow(6, 3, 0)))
    assert second.lookup(ReadLedger()) == Ledger((LedgerRow(5, 2, 0),))
    del counts[6]
    assert first.lookup(ReadLedger()) == Ledger((LedgerRow(4, 1, 0),))

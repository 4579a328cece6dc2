"""The kernel's counters of connections and sockets, in ``/proc/net``: how they are read, and waited for."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys

import pytest
from sockdiag_living import listen, pair

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)

from nstat_async._io import counters

pytestmark = pytest.mark.linux


@pytest.fixture
def bell():
    descriptor = os.eventfd(0, os.EFD_NONBLOCK)
    yield descriptor
    os.close(descriptor)


codes = pytest.mark.parametrize(
    "await_counters",
    list(dict.fromkeys([counters.await_counters, counters._await_counters])),
    ids=lambda code: type(code).__name__,
)


@contextlib.contextmanager
def counted():
    found = counters.Counters()
    try:
        yield found
    finally:
        found.close()


@codes
def test_the_counters_move_with_connections_and_datagram_sockets(await_counters, bell):
    """Whatever was read before, each is reported once."""
    with counted() as found:
        before, moved = found.connections, 0
        with listen() as listener, socket.socket(type=socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            ends = pair(listener)
            while moved != counters.CONNECTIONS | counters.DATAGRAMS:  # others close theirs meanwhile
                await_counters(bell, (found.numbers,), 0.0, 1000, 1)
                moved |= found.take_moved()
                with socket.socket(type=socket.SOCK_DGRAM) as another:
                    another.bind(("127.0.0.1", 0))
                    await_counters(bell, (found.numbers,), 0.0, 1, 1)
                    moved |= found.take_moved()
            for end in ends:
                end.close()
        assert found.connections >= before + 2


SNMP = "Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens\nTcp: 1 200 120000 -1 {} {} 3\nUdp: 1\n"
SOCKSTAT = "sockets: used 9\nTCP: inuse {} orphan 0 tw {} alloc 4 mem 0\nUDP: inuse {} mem 2\nRAW: inuse 0\n"
SOCKSTAT6 = "TCP6: inuse {}\nUDP6: inuse {}\nRAW6: inuse 0\n"


class Files:
    """What the kernel says, as files that a test writes."""

    def __init__(self, directory):
        self.numbers = counters.array("q", [-1, -1, -1, *bytes(9)])
        self._paths = [directory / name for name in ("snmp", "sockstat", "sockstat6")]
        self.say((0, 0), (0, 0, 0), (0, 0))
        for place, path in enumerate(self._paths):
            self.numbers[place] = os.open(path, os.O_RDONLY)

    def say(self, opened=None, four=None, six=None):
        for path, text, values in zip(self._paths, (SNMP, SOCKSTAT, SOCKSTAT6), (opened, four, six), strict=True):
            if values is not None:
                path.write_text("Ip: 1 2\n" * (path.name == "snmp") + text.format(*values))

    def write(self, number, text):
        self._paths[number].write_text(text)

    def moved(self):
        moved, self.numbers[11] = self.numbers[11], 0
        return moved


@pytest.fixture
def files(tmp_path):
    found = Files(tmp_path)
    yield found
    for descriptor in found.numbers[:3]:
        os.close(descriptor)


@codes
def test_what_the_kernel_counts_is_told_apart(await_counters, files, bell):
    """Connections by their own count, where the numbers of sockets changed; datagram sockets where there are more."""

    def after(**said):
        files.say(**said)
        await_counters(bell, (files.numbers,), 0.0, 1, 1000)
        return files.moved()

    await_counters(bell, (files.numbers,), 0.0, 1, 1000)
    assert after(opened=(3, 4), four=(2, 0, 0)) == counters.CONNECTIONS
    assert files.numbers[3] == 7
    assert after(four=(1, 0, 0)) == 0  # one was closed
    assert after(opened=(4, 4)) == 0  # it is not asked for
    assert after(four=(1, 1, 0)) == counters.CONNECTIONS
    assert after(opened=(4, 5), six=(1, 0)) == counters.CONNECTIONS
    assert after(four=(1, 1, 1)) == after(six=(1, 1)) == counters.DATAGRAMS
    assert after(four=(1, 1, 0)) == 0
    assert after(opened=(5, 5), four=(1, 1, 1)) == counters.CONNECTIONS | counters.DATAGRAMS
    files.say(opened=(6, 6))
    await_counters(bell, (files.numbers,), 0.0, 9, 8)
    assert files.moved() == counters.CONNECTIONS  # one reading of eight is thorough


@codes
def test_who_waits_for_counters_is_woken_by_the_bell(await_counters, files, bell):
    os.eventfd_write(bell, 1)
    await_counters(bell, (files.numbers,), 3600.0, 1000, 8)
    assert files.numbers[10] == 0


@codes
@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, ""),
        (0, "Tcp: names\nTcp: 1 2 3\n"),
        (0, "Tcp: 1 2 3 4 5 6 7"),
        (1, ""),
        (1, "sockets: used x " * 3),
        (2, "TCP6:"),
    ],
)
def test_a_kernel_without_these_counters_is_an_error(await_counters, files, bell, number, text):
    files.write(number, text)
    with pytest.raises(OSError) as caught:
        await_counters(bell, (files.numbers,), 0.0, 1, 1)
    assert caught.value.errno == errno.ENODATA


@codes
def test_a_file_that_is_closed_is_an_error(await_counters, bell):
    with counted() as found:
        pass
    with pytest.raises(OSError) as caught:
        await_counters(bell, (found.numbers,), 0.0, 1, 1)
    assert caught.value.errno == errno.EBADF

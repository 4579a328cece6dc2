"""A look for new sockets, on the living kernel."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
import time
import types

import pytest
from own_namespace import apart_if_allowed
from sockdiag_living import listen, pair, port

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)

from nstat_async._io import counters, crowds, glance
from nstat_async._io.successors import STEPS
from nstat_async.sockdiag import DiagRequest, PulsePurpose
from nstat_async.sockdiag._constants import TCP_DUMP_STATES

pytestmark = pytest.mark.linux


@pytest.fixture
def look():
    """What is seen at a glance of TCP over IPv4, where nobody else's connections take the next ports."""
    request = DiagRequest(socket.AF_INET, socket.IPPROTO_TCP, states=TCP_DUMP_STATES & ~(1 << 10)).encode()
    with apart_if_allowed():
        found = glance.Glance(PulsePurpose(0, 0.02, (request,)), lambda _report: None)
        found.begin()
        yield found
        found.close()


def seen(look: glance.Glance, **how: bool) -> list[tuple[int, bytes]]:
    """New sockets, as soon as connections were counted."""
    while not look._opened:
        feel(look)
    return look.look(time.monotonic(), **how)


def feel(look: glance.Glance) -> None:
    """Read the counters."""
    bell = os.eventfd(0, os.EFD_NONBLOCK)
    counters.await_counters(bell, (look.counters.numbers,), 0.0, 1, 1)
    os.close(bell)
    look.notice(time.monotonic())


def inodes(found: list[tuple[int, bytes]]) -> set[int]:
    return {glance.SOCKET.unpack_from(message, glance.COOKIE_AT)[2] for _, message in found}


def inode_of(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@pytest.mark.parametrize(
    "lengths", [(124, 124), (124, 96, 124, 124), (96, 124), (90, 124, 96, 96, 91), (124, 248, 124)]
)
def test_messages_of_all_lengths_are_taken_apart(look, lengths):
    """What is left of a socket has fewer attributes; the last message of a datagram may come without its padding."""
    messages = [
        glance.struct.pack("=IH54xQ", length, 20, cookie).ljust(length, b"\1") for cookie, length in enumerate(lengths)
    ]
    data = b"".join(message.ljust(len(message) + 3 & ~3, b"\0") for message in messages)
    parts = iter([data[: len(data) - (-lengths[-1] % 4)], glance.struct.pack("=IH14x", 20, 3)])
    real, look._socket = look._socket, types.SimpleNamespace(recv=lambda _size: next(parts))
    present: set[int] = set()
    try:
        assert list(look._unknown({0}, present, [])) == messages[1:]
        assert present == set(range(len(lengths)))
    finally:
        look._socket = real


def test_a_closed_socket_is_searched_for_no_longer(look):
    """Between a dump and the search it may be closed: no process has it any more."""
    with listen() as listener:
        client, server = pair(listener)
        both = {inode_of(client), inode_of(server)}
        new = seen(look)
        assert look.still_held(new, both) == both
        closed = {inode_of(client)}
        client.close()
        assert look.still_held(new, both) == both - closed
        server.close()


def test_a_look_can_leave_out_crowds(look, monkeypatch):
    """Of those one that is whole tells; what is left out is no news when it comes, and what was told is none again."""
    monkeypatch.setattr(glance, "CROWD", 8)
    monkeypatch.setattr(crowds, "CROWD", 8)
    monkeypatch.setattr(crowds, "_SAMPLE", 1)
    monkeypatch.setattr(look._successors, "find", lambda *_: ([], 0))
    with listen() as crowded, listen() as quiet, contextlib.ExitStack() as open_:

        def connect(listener):
            ends = [open_.enter_context(end) for end in pair(listener)]
            return {inode_of(end) for end in ends}

        many = set().union(*(connect(crowded) for _ in range(20)))
        assert many <= inodes(seen(look))
        assert port(crowded) in look.crowds
        left_out, told = connect(crowded), connect(quiet)
        found = inodes(seen(look, whole=False))
        assert told <= found
        assert not left_out & found
        more = connect(quiet)
        found = inodes(seen(look))
        assert left_out | more <= found
        assert not (told | many) & found


def test_connections_to_one_server_are_found_by_their_ports(look):
    """Those of the next ports are looked up; both ends, and whatever became of them: a dump is not needed.

    Now and then the kernel begins again with the lowest port; then this begins again, too.
    """
    while not _are_found_by_their_ports(look):
        pass


def _are_found_by_their_ports(look) -> bool:
    with listen() as listener, contextlib.ExitStack() as open_:

        def connect():
            return [open_.enter_context(end) for end in pair(listener)]

        both = [*connect(), *connect()]
        assert {inode_of(end) for end in both} <= inodes(seen(look))
        for _ in range(3):
            before, both = both, [*connect(), *connect()]
            ports = [port(client) for client in (*before[::2], *both[::2])]
            if not all(after - earlier in STEPS for earlier, after in itertools.pairwise(ports)):
                feel(look)
                seen(look)  # so that none of these is news later
                return False
            found = inodes([(6, row) for row in look._successors.find(4, set(), 0.0)[0]])
            assert found == {inode_of(end) for end in both}
    return True


def test_what_is_found_by_its_port_is_new_once(look):
    with listen() as listener, contextlib.ExitStack() as open_:
        ends = [open_.enter_context(end) for end in pair(listener)]
        look._successors.find = lambda *_: ([row_of(look, end) for end in ends], 2)
        look._opened = 2
        assert {inode_of(end) for end in ends} == inodes(look._look_for_connections(0.0, whole=True))
        look._opened = 2
        assert look._look_for_connections(0.0, whole=True) == []


def test_for_those_that_are_missing_there_are_fewer_dumps_the_less_these_have(look, monkeypatch):
    """Flows that are over already were counted, and are found by nothing; what a dump finds makes the next one come soon again."""
    dumps, rows = [], [[], [], [(6, b"")], []]
    monkeypatch.setattr(look, "_look", lambda _protocol, **_how: dumps.append(now) or rows.pop(0))
    monkeypatch.setattr(look, "_take_in", lambda _rows: [])
    monkeypatch.setattr(look._successors, "find", lambda *_: ([b"one"], 1))
    for now in (1.0, 1.03, 1.041, 1.1, 1.13):
        look._opened = 2
        look._look_for_connections(now, whole=True)
    assert dumps == [1.0, 1.041, 1.13]
    monkeypatch.setattr(look._successors, "find", lambda *_: ([], 0))
    look._opened, now = 1, 1.131
    look._look_for_connections(now, whole=True)
    assert dumps[-1] == 1.131  # none was found by its port: another server, perhaps


def row_of(look: glance.Glance, end: socket.socket) -> bytes:
    """The message of a socket."""
    ends = b"".join(each[1].to_bytes(2, "big") for each in (end.getsockname(), end.getpeername()))
    addresses = b"".join(socket.inet_aton(each[0]).ljust(16, b"\0") for each in (end.getsockname(), end.getpeername()))
    request = DiagRequest(socket.AF_INET, 6, socket_id=ends + addresses + bytes(4) + b"\xff" * 8, dump=False)
    (row,) = look._ask([request.encode()])
    return row


def test_a_connection_that_waits_to_be_accepted_is_asked_for_again(look):
    """One by one, until a process has it."""
    with listen() as listener, socket.create_connection(listener.getsockname()) as client:
        while port(client) not in {int.from_bytes(row[22:24], "big") for row in look._unheld.values()}:
            feel(look)
            look.look(time.monotonic())
        server, _ = listener.accept()
        with server:
            assert inode_of(server) in inodes(look._look_for_connections(0.0, whole=True))


def test_a_kernel_that_leaves_out_nothing_is_looked_at_whole(look, monkeypatch):
    """Before Linux 5.9 it refuses the request."""
    look.crowds = (1,)
    monkeypatch.setattr(glance, "without_crowds", lambda request, _ports: crowds.without_crowds(request, [1])[:-4])
    with listen() as listener:
        for whole in (False, True):
            ends = pair(listener)
            assert {inode_of(end) for end in ends} <= inodes(seen(look, whole=whole))
            assert look.crowds == ()
            for end in ends:
                end.close()

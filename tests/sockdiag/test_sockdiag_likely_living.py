"""The search for new sockets in likely processes, on the living ``/proc``."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading

import pytest
from test_sockdiag_glance_living import inode_of
from test_sockdiag_owners import child

if not sys.platform.startswith("linux"):
    pytest.skip("reads /proc", allow_module_level=True)

from nstat_async._io import likely as likely_module
from nstat_async._io.likely import LikelyHolders
from nstat_async._io.walk import TURN

pytestmark = pytest.mark.linux


@pytest.fixture(autouse=True)
def _busy(monkeypatch):
    """A machine that is busy with others takes longer than a process is young, and starts many of its own."""
    monkeypatch.setattr(likely_module, "YOUTH", float("inf"))
    monkeypatch.setattr(likely_module, "NEWEST", 8192)


def test_a_search_begins_with_young_processes_and_ends_with_all():
    recent: dict[int, None] = {}
    with (
        socket.socket() as own,
        child("import socket, sys; s = socket.socket(); print(flush=True); sys.stdin.read()") as new,
    ):
        likely = LikelyHolders(recent)
        inode = os.fstat(own.fileno()).st_ino
        assert new.pid in holders(likely.ends())
        assert os.getpid() in holders(likely.far(), inode)
        likely.add([(0, new.pid, new.pid, 3), (inode, os.getpid(), os.getpid(), own.fileno())])
        assert list(recent) == [new.pid, os.getpid()]
        assert os.getpid() in holders(likely.ends(), inode)


def test_a_process_that_ended_and_was_not_reaped_is_looked_at_no_more():
    """A zombie has no descriptors; hundreds of them would cost each look as many tables."""
    zombie = os.fork()
    if not zombie:
        os._exit(0)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)
    try:
        recent = {zombie: None}
        likely = LikelyHolders(recent)
        assert zombie in {place[1] for place in likely.ends()}
        list(likely.hot())
        assert not recent
        assert zombie not in {place[1] for places in (likely.ends(), likely.hot(), likely.near()) for place in places}
    finally:
        os.waitpid(zombie, 0)


def holders(places, inode: int = 0) -> set[int]:
    """The processes that have this socket, or any."""
    return {place[1] for place in places if (place[0] == inode if inode else place[0])}


def test_what_a_process_opened_behind_a_dump_is_looked_for_behind_the_next_one():
    """Its number of descriptors is new at two looks: the first one of them may be without the socket in the dump."""
    likely = LikelyHolders({})
    assert [likely._has_changed(7, size) for size in (3, 3, 3, 4, 4, 4)] == [True, True, False, True, True, False]


def test_where_the_kernel_says_no_number_of_descriptors_all_tables_are_searched(monkeypatch):
    """Before Linux 6.2; since then those that did not change have nothing new."""
    likely = LikelyHolders({})
    list(likely.far())
    with socket.socket() as own:
        assert holders(likely.far(), inode_of(own)) == {os.getpid()}
        monkeypatch.setattr(likely_module, "size_of", lambda _pid: 0)
        assert holders(LikelyHolders({}).far(), inode_of(own)) == {os.getpid()}


def test_a_process_with_thousands_of_descriptors_keeps_no_other_waiting():
    """Its turn is with all others: to list them alone takes milliseconds."""
    recent = {os.getpid(): None}
    likely = LikelyHolders(recent)
    with socket.socket() as own, pytest.MonkeyPatch.context() as patch:
        patch.setattr(likely_module, "size_of", lambda _pid: TURN + 1)
        assert not holders(likely.ends()) | holders(likely.hot()) | holders(likely.near())
        assert holders(likely.far(), os.fstat(own.fileno()).st_ino)


def test_a_number_is_that_of_a_process_of_a_thread_or_of_nobody(monkeypatch):
    """Also where the kernel has no descriptors of processes (``pidfd_open(2)``, Linux 5.3)."""
    ready, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: (ready.set(), end.wait()))
    thread.start()
    ready.wait()
    numbers = (os.getpid(), thread.native_id, 1 << 30)
    try:
        assert [likely_module._is_process(number) for number in numbers] == [True, False, None]
        monkeypatch.delattr(os, "pidfd_open")
        assert [likely_module._is_process(number) for number in numbers] == [True, False, None]
    finally:
        end.set()
        thread.join()


def test_a_process_that_opens_one_socket_after_another_is_asked_for_the_last_descriptor():
    """Before its table is read; of a process that is gone nothing is kept."""
    recent: dict[int, None] = {}
    likely = LikelyHolders(recent)
    first = socket.socket()
    place = os.getpid(), first.fileno()
    list(likely.ends())  # no process is new any more
    likely.add([(inode_of(first), place[0], place[0], place[1]), (1, 1 << 30, 1 << 30, 3)])
    first.close()
    with socket.socket() as second:
        assert second.fileno() == place[1]
        assert next(found for found in likely.ends() if found[0]) == (inode_of(second), place[0], *place)
    assert list(recent) == [os.getpid()]


def test_a_server_is_asked_for_the_descriptors_of_its_last_connections():
    """It has some at once, and each at the lowest descriptor that is free."""
    likely, pid = LikelyHolders({}), os.getpid()
    before = [socket.socket() for _ in range(3)]
    likely.add([(inode_of(each), pid, pid, each.fileno()) for each in before])
    for each in before:
        each.close()
    with contextlib.ExitStack() as open_:
        after = [open_.enter_context(socket.socket()) for _ in range(3)]
        assert {(inode_of(each), pid, pid, each.fileno()) for each in after} <= set(likely.ends())


def test_a_young_process_is_asked_for_the_descriptor_of_the_one_before():
    """Workers of one program have their sockets at the same place, whatever was open when they were forked."""
    program = (
        "import os, socket, sys; s = socket.socket(); os.dup2(0, 200); print(s.fileno(), flush=True); sys.stdin.read()"
    )
    with child(program) as first, child(program) as second:
        descriptor = int(first.line)
        assert int(second.line) == descriptor
        likely = LikelyHolders({})
        assert second.pid not in holders(likely.ends())  # its last descriptor is none
        likely.add([(1, first.pid, first.pid, descriptor)])
        assert {first.pid, second.pid} <= holders(likely.ends())


def test_threads_are_no_processes():
    """Their numbers are given away as those of processes are; their descriptors are the process's."""
    ready, end = threading.Event(), threading.Event()
    numbers = []

    def work():
        numbers.append(threading.get_native_id())
        ready.set()
        end.wait()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    likely = LikelyHolders({})
    likely._see_newest()
    end.set()
    thread.join()
    assert likely._numbers[numbers[0]] is False
    assert numbers[0] not in likely._young

"""What this machine says of its processes, devices and namespaces."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import attrs
import pytest

from nstat_async._model import InterfaceKind
from nstat_async.sockdiag import OwnersRequest

linux = [pytest.mark.linux, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]


@pytest.fixture
def scanner():
    pytest.importorskip("nstat_async._io.procfs")
    from nstat_async._io.procfs import ProcessScanner

    return ProcessScanner


def found_by(scanner, inodes, **request) -> tuple[dict[int, int], int]:
    """The whole search, and how many answers it took."""
    answer = scanner.answer(OwnersRequest(frozenset(inodes), **request))
    owners, rounds = dict(answer.owners), 1
    while answer.below is not None:
        answer = scanner.answer(OwnersRequest(frozenset(inodes), (), answer.below))
        owners.update(answer.owners)
        rounds += 1
    return owners, rounds


class TestProcesses:
    pytestmark = linux

    def test_owners_are_found(self, scanner):
        """Own and a child's sockets, with names, paths and start times; unknown inodes are not."""
        with socket.socket() as own:
            inode = os.fstat(own.fileno()).st_ino
            owners, _ = found_by(scanner(), {inode, 1})
            assert owners == {inode: os.getpid()}
            answer = scanner(budget=60.0).answer(OwnersRequest(frozenset({inode}), (os.getpid(),)))
        (facts,) = answer.processes
        assert facts.path == os.readlink("/proc/self/exe")
        assert facts.name == os.path.basename(facts.path)
        assert facts.start_ticks > 0

    def test_a_search_is_cut_into_pieces(self, scanner):
        """Without time each answer goes one step on, and all steps together find everything."""
        with socket.socket() as own:
            inode = os.fstat(own.fileno()).st_ino
            owners, rounds = found_by(scanner(budget=0.0), {inode})
        assert owners == {inode: os.getpid()}
        assert rounds > 1

    def test_a_reused_pid_is_another_process(self, scanner, monkeypatch):
        """Facts are read anew with each answer: the same pid with another start is another process."""
        from nstat_async._io import processes

        with socket.socket() as own:
            inode = os.fstat(own.fileno()).st_ino
            one = scanner(budget=60.0)
            first = one.answer(OwnersRequest(frozenset({inode}), (os.getpid(),))).processes[0]
            stat = attrs.evolve(processes._stat(os.getpid()), start_ticks=12345)
            monkeypatch.setattr(processes, "_stat", lambda pid: stat)
            second = one.answer(OwnersRequest(frozenset({inode}), (os.getpid(),))).processes[0]
        assert (first.pid, second.start_ticks) == (second.pid, 12345)
        assert first.start_ticks != 12345

    def test_ended_processes_are_told(self, scanner):
        """A pid that is gone, or has another start, is gone; a living one is not."""
        from nstat_async._io.processes import start_ticks

        child = subprocess.Popen([sys.executable, "-c", ""])
        key = (child.pid, start_ticks(child.pid))
        child.wait()
        own = (os.getpid(), start_ticks(os.getpid()))
        answer = scanner().answer(OwnersRequest(frozenset(), verify=(key, own, (own[0], 1))))
        assert answer.gone == (key, (own[0], 1))

    def test_a_name_with_parentheses(self, tmp_path):
        """The start time is found behind whatever a process calls itself."""
        from nstat_async._io.processes import ProcessReader, start_ticks

        script = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'a) b ( c 1 2'); print(flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            assert abs(start_ticks(child.pid) - start_ticks(os.getpid())) < 100 * 3600 * 24
            assert ProcessReader().facts(child.pid).name == os.path.basename(os.path.realpath(sys.executable))
            child.communicate()

    def test_devices_of_this_machine(self):
        """An unknown device is unknown, and a name with a slash is none."""
        from nstat_async._io.linux import device_kind

        assert device_kind("no-such-device") is None
        assert device_kind("../../etc") is None
        assert device_kind("lo") is InterfaceKind.WIRED or device_kind("lo") is None

    def test_namespace_paths(self):
        """A pid, a path and a name each have their file."""
        from nstat_async._io.linux import namespace_path

        assert namespace_path(42) == "/proc/42/ns/net"
        assert namespace_path("/some/where") == "/some/where"
        assert namespace_path("blue") == "/run/netns/blue"

"""What this machine says of its processes, devices and namespaces."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import attrs
import pytest

from nstat_async._io import processes
from nstat_async._io.processes import KEPT, MOST_KEPT, ProcessReader, RecentFacts
from nstat_async._model import InterfaceKind
from nstat_async.sockdiag import OwnersRequest, ProcessFacts

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

    def test_ended_processes_are_reported(self, scanner):
        """A pid that is gone, or has another start, is gone; a living one is not."""
        from nstat_async._io.processes import start_ticks

        child = subprocess.Popen([sys.executable, "-c", ""])
        key = (child.pid, start_ticks(child.pid))
        child.wait()
        own = (os.getpid(), start_ticks(os.getpid()))
        answer = scanner().answer(OwnersRequest(frozenset(), verify=(key, own, (own[0], 1))))
        assert answer.gone == (key, (own[0], 1))

    def test_the_start_time_is_found_behind_any_name(self, tmp_path):
        """The start time is found behind whatever a process calls itself."""
        from nstat_async._io.processes import ProcessReader, start_ticks

        script = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'a) b ( c 1 2'); print(flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            assert abs(start_ticks(child.pid) - start_ticks(os.getpid())) < 100 * 3600 * 24
            assert ProcessReader().facts(child.pid).name == os.path.basename(os.path.realpath(sys.executable))
            child.communicate()

    def test_an_unknown_device_has_no_kind(self):
        """An unknown device is unknown, and a name with a slash is none."""
        from nstat_async._io.linux import device_kind

        assert device_kind("no-such-device") is None
        assert device_kind("../../etc") is None
        assert device_kind("lo") is InterfaceKind.WIRED or device_kind("lo") is None

    def test_a_pid_a_path_and_a_name_of_a_namespace_each_have_their_file(self):
        """A pid, a path and a name each have their file."""
        from nstat_async._io.linux import namespace_path

        assert namespace_path(42) == "/proc/42/ns/net"
        assert namespace_path("/some/where") == "/some/where"
        assert namespace_path("blue") == "/run/netns/blue"


# -- facts for who asks again and again


class Facts:
    """It stands in for `ProcessReader`: the file that each process runs is the test's."""

    def __init__(self, monkeypatch) -> None:
        self.paths: dict[int, str | None] = {}
        self.read: list[int] = []
        monkeypatch.setattr(processes, "_path", lambda pid: self.paths.get(pid, "/bin/sh"))

    def facts(self, pid: int) -> ProcessFacts:
        self.read.append(pid)
        return ProcessFacts(pid, 1, "name", self.paths.get(pid, "/bin/sh"))


def test_facts_stay_for_a_moment_while_the_same_file_runs(monkeypatch):
    reader = Facts(monkeypatch)
    recent = RecentFacts(reader)
    first = recent.facts(7, 100.0)
    assert recent.facts(7, 100.0 + KEPT / 2) is first
    assert reader.read == [7]
    reader.paths[7] = "/bin/other"
    assert recent.facts(7, 100.0 + KEPT / 2).path == "/bin/other", "it runs another program"
    recent.facts(7, 100.0 + 1.5 * KEPT)
    assert reader.read == [7, 7, 7], "and after a while its number may be another process'"


def test_of_a_process_that_is_gone_or_not_ours_to_see_nothing_is_kept(monkeypatch):
    reader = Facts(monkeypatch)
    recent = RecentFacts(reader)
    reader.paths[7] = None
    assert [recent.facts(7, 100.0).path for _ in range(2)] == [None, None]
    assert reader.read == [7, 7]
    reader.paths[7] = "/bin/sh"
    assert recent.facts(7, 100.0).path == "/bin/sh"
    reader.paths[7] = None
    assert recent.facts(7, 100.0).path is None


def test_facts_of_so_many_are_kept(monkeypatch):
    reader = Facts(monkeypatch)
    recent = RecentFacts(reader)
    for pid in range(1, MOST_KEPT + 2):
        recent.facts(pid, 100.0)
    reader.read.clear()
    for pid in (MOST_KEPT + 1, 2, 1):
        recent.facts(pid, 100.0)
    assert reader.read == [1]


def test_of_many_those_are_kept_that_were_read_last(monkeypatch):
    reader = Facts(monkeypatch)
    recent = RecentFacts(reader)
    for pid in range(1, MOST_KEPT + 1):
        recent.facts(pid, 100.0)
    recent.facts(1, 100.0 + KEPT)
    recent.facts(MOST_KEPT + 1, 100.0 + KEPT)
    reader.read.clear()
    recent.facts(1, 100.0 + KEPT)
    assert reader.read == []


def test_a_process_that_changed_its_program_is_read_anew():
    """On the living kernel; a script of another program is another file, too."""
    recent = RecentFacts(ProcessReader())
    child = subprocess.Popen(
        [sys.executable, "-c", "import os; os.read(0, 1); os.execv('/bin/cat', ['cat'])"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with child:
        before = recent.facts(child.pid, 0.0)
        assert recent.facts(child.pid, 0.0) is before
        child.stdin.write(b"!hello\n")
        child.stdin.flush()
        assert child.stdout.read(6) == b"hello\n"
        after = recent.facts(child.pid, 0.0)
        assert (before.name.startswith("python"), after.name) == (True, os.path.basename(os.path.realpath("/bin/cat")))
        assert after.start_ticks == before.start_ticks
        child.stdin.close()
    assert recent.facts(child.pid, 0.0).name is None

"""Who else holds a socket: a look at all tables of a machine of the test's, whose clock is work."""

from __future__ import annotations

import math
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nstat_async._io import census as module
from nstat_async._io.census import GLANCE, MOST_HOLDERS, READ_AGAIN, Census

pytestmark = pytest.mark.linux


class Machine:
    """Processes with their tables, inodes by descriptor; whatever is asked takes a second."""

    def __init__(self, monkeypatch) -> None:
        self.tables: dict[int, dict[int, int]] = {7: {0: 0}}
        self.starts: dict[int, int] = {}
        self.closed: set[int] = set()
        """Processes that are not ours to see."""
        self.now, self.sized = 0.0, True
        self.read: list[int] = []
        """Processes whose tables were read."""
        for name in ("size_of", "links", "holds", "all_pids", "start_ticks"):
            monkeypatch.setattr(module, name, getattr(self, name))
        monkeypatch.setattr(module, "time", types.SimpleNamespace(thread_time=lambda: self.now))
        monkeypatch.setattr(module, "os", types.SimpleNamespace(getpid=lambda: 7))

    def fork(self, pid: int, *inodes: int, started: int | None = None) -> int:
        self.tables[pid] = dict(enumerate(inodes))
        self.starts[pid] = pid if started is None else started
        return pid

    def all_pids(self):
        return sorted(self.tables, reverse=True)

    def size_of(self, pid):
        self.now += 1
        return None if pid not in self.tables else len(self.tables[pid]) if self.sized else 0

    def links(self, pid):
        self.read.append(pid)
        if pid in self.closed:
            raise PermissionError
        for number, inode in self.tables[pid].items():
            self.now += 1
            yield inode, number

    def holds(self, inode, pid, descriptor):
        self.now += 1
        return self.tables.get(pid, {}).get(descriptor) == inode

    def start_ticks(self, pid):
        return self.starts.get(pid)


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def shared(census: Census, machine: Machine) -> dict[int, tuple[int, tuple[int, ...]]]:
    """What a round finds, and clears what was read before."""
    machine.read.clear()
    found = census.go_on(math.inf)
    assert found is not None
    return {inode: (number, holders) for inode, number, holders in found}


def test_sockets_with_several_holders_are_reported_the_oldest_first_and_init_last(machine):
    """One whose start cannot be read counts as old; what is no socket has no holders."""
    for pid, started in ((10, 300), (11, 100), (12, 1), (1, 0)):
        machine.fork(pid, 0, 55, -1, started=started)
    machine.fork(13, 0, 55, -1, 66)
    del machine.starts[13]
    assert shared(Census(), machine) == {55: (5, (13, 12, 11, 10, 1))}


def test_of_those_that_started_together_the_lowest_number_is_the_first_and_some_are_named(machine):
    """All are counted. Inodes are from 1 on."""
    for pid in range(20, 21 + MOST_HOLDERS):
        machine.fork(pid, 1, started=5)
    assert shared(Census(), machine) == {1: (MOST_HOLDERS + 1, tuple(range(20, 20 + MOST_HOLDERS)))}


def test_a_table_is_read_again_when_its_size_changed_or_after_a_while(machine):
    machine.fork(10, 55, 77)
    machine.fork(11, 0, 0)
    census = Census()
    assert shared(census, machine) == {}
    assert sorted(machine.read) == [7, 10, 11]
    machine.tables[11][1] = 55
    for _ in range(READ_AGAIN):
        assert shared(census, machine) == {}
        assert machine.read == []
    assert shared(census, machine) == {55: (2, (10, 11))}
    assert sorted(machine.read) == [7, 10, 11]
    machine.tables[7][1] = 77
    assert shared(census, machine) == {55: (2, (10, 11)), 77: (2, (7, 10))}
    assert machine.read == [7]


def test_where_the_kernel_does_not_say_how_many_descriptors_there_are_all_tables_are_read(machine):
    machine.sized = False
    machine.fork(10, 55)
    census = Census()
    for _ in range(3):
        shared(census, machine)
        assert machine.read == [10, 7]


def test_what_was_closed_while_something_else_was_opened_has_one_holder_less(machine):
    """The table is read again in the next round."""
    machine.fork(10, 55, 0)
    machine.fork(11, 55, 0)
    machine.fork(12, 55, 0)
    census = Census()
    assert shared(census, machine) == {55: (3, (10, 11, 12))}
    machine.tables[11][0] = 66
    assert shared(census, machine) == {55: (2, (10, 12))}
    assert (census.place_of(55, 11), census.place_of(55, 12), census.place_of(66, 12)) == (None, 0, None)
    assert shared(census, machine) == {55: (2, (10, 12))}
    assert machine.read == [11]
    machine.tables[12][0] = 66
    assert shared(census, machine) == {}
    assert shared(census, machine) == {66: (2, (11, 12))}


def test_processes_that_are_gone_or_not_ours_to_see_are_passed_over(machine, monkeypatch):
    machine.fork(10, 55)
    machine.fork(11, 55)
    machine.fork(12, 55)
    machine.closed.add(12)
    monkeypatch.setattr(module, "all_pids", lambda: [99, 12, 11, 10])
    census = Census()
    assert shared(census, machine) == {55: (2, (10, 11))}
    del machine.tables[11]
    assert shared(census, machine) == {}
    assert census.place_of(55, 11) is None


def test_a_round_is_interrupted_at_each_process_and_within_a_large_table_and_goes_on_there(machine):
    machine.fork(10, 55, *range(1000, 1000 + 3 * GLANCE))
    machine.fork(11, 55)
    census, longest, found = Census(), 0.0, None
    assert census.go_on(machine.now) is None
    assert machine.now == 1, "no time, no work"
    while found is None:
        before = machine.now
        found = census.go_on(machine.now + 0.5)
        longest = max(longest, machine.now - before)
    assert found == ((55, 2, (10, 11)),)
    assert longest == 1 + GLANCE
    assert machine.read == [11, 10, 7]


def test_holders_come_and_go_one_after_another(machine):
    """Also the one that was found first."""
    census = Census()
    for pids in ((10,), (10, 11), (11,), (11, 12), (), (12,), (12, 10)):
        machine.tables = {7: {0: 0}}
        for pid in pids:
            machine.fork(pid, 55, *range(pid))
        expected = {55: (2, tuple(sorted(pids)))} if len(pids) > 1 else {}
        assert shared(census, machine).get(55) == expected.get(55)


def test_what_is_shared_is_checked_one_by_one(machine):
    inodes = range(100, 140)
    machine.fork(10, *inodes)
    machine.fork(11, *inodes)
    census = Census()
    shared(census, machine)
    steps, found = 0, None
    while found is None:
        found, steps = census.go_on(machine.now + 0.5), steps + 1
    assert len(found) == len(inodes)
    assert steps > len(inodes)


def test_where_there_are_too_many_sockets_none_is_reported_and_nothing_is_remembered(machine, monkeypatch):
    """Each round begins at its beginning."""
    monkeypatch.setattr(module, "MOST_SOCKETS", 6)
    machine.fork(10, *range(100, 105), 1)
    machine.fork(11, 1)
    census = Census()
    assert shared(census, machine) == {1: (2, (10, 11))}
    assert census.place_of(1, 11) == 0
    machine.fork(12, 2)
    assert census.go_on(machine.now + 100) is None
    assert machine.read.count(11) > 2
    assert census.place_of(1, 11) is None


def test_of_what_is_shared_so_many_are_reported(machine, monkeypatch):
    monkeypatch.setattr(module, "MOST_SHARED", 3)
    machine.fork(10, *range(100, 110))
    machine.fork(11, *range(100, 110))
    assert len(shared(Census(), machine)) == 3


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.dictionaries(st.integers(10, 12), st.none() | st.just("closed") | st.frozensets(st.integers(1, 4))),
        max_size=6,
    )
)
def test_after_any_changes_a_round_finds_what_a_first_one_would(machine, changes):
    """Here each round reads all tables; a process comes, goes, is hidden, or has other sockets."""
    machine.sized = False
    machine.tables, machine.starts, machine.closed = {7: {0: 0}}, {}, set()
    census = Census()
    for change in changes:
        for pid, inodes in change.items():
            machine.closed.discard(pid)
            machine.tables.pop(pid, None)
            if inodes == "closed":
                machine.fork(pid, 5)
                machine.closed.add(pid)
            elif inodes is not None:
                machine.fork(pid, *inodes)
        assert shared(census, machine) == shared(Census(), machine)

"""Where new sockets are looked for first: processes and their descriptors on a machine of the test's."""

from __future__ import annotations

import errno
import os
import types
from itertools import islice

import pytest

from nstat_async._io import likely as module
from nstat_async._io.likely import (
    FIRST,
    HOT,
    MOST_PLACES,
    MOST_RECENT,
    NEWEST,
    WAITING,
    LikelyHolders,
    remember_holders,
)
from nstat_async._io.walk import TURN

pytestmark = pytest.mark.linux


class Machine:
    """Processes with their tables: inodes by descriptor, 0 for what is no socket."""

    def __init__(self, monkeypatch, last: int = 1000) -> None:
        self.tables: dict[int, dict[int, int]] = {1: {0: 0}}
        self.last, self.now, self.sized = last, 100.0, True
        self.asked: list[int] = []
        """Numbers of which it was asked whether they are processes."""
        for name in ("size_of", "inode_at", "links", "all_pids", "read_file"):
            monkeypatch.setattr(module, name, getattr(self, name))
        monkeypatch.setattr(module, "_is_process", self.is_process)
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(module, "os", types.SimpleNamespace(getpid=lambda: 1))

    def fork(self, pid: int, *inodes: int) -> int:
        """A process with these at its descriptors."""
        self.tables[pid] = dict(enumerate(inodes))
        self.last = max(self.last, pid)
        return pid

    def size_of(self, pid):
        return None if pid not in self.tables else len(self.tables[pid]) if self.sized else 0

    def inode_at(self, pid, descriptor):
        return self.tables.get(pid, {}).get(descriptor)

    def links(self, pid, _first):
        return ((inode, number) for number, inode in reversed(self.tables.get(pid, {}).items()))

    def all_pids(self):
        return sorted(self.tables, reverse=True)

    def read_file(self, path):
        assert path == "/proc/loadavg"
        return f"0.5 0.4 0.3 2/345 {self.last}".encode()

    def is_process(self, number):
        self.asked.append(number)
        return True if number in self.tables else None


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_young_processes_are_asked_for_their_last_descriptor_and_for_that_of_the_one_before(machine):
    """The newest first, with a look at the clock before each; those that opened nothing since are not asked."""
    likely = LikelyHolders({})
    older, newer = machine.fork(990, 0, 0, 0, 77), machine.fork(995, 0, 88, 0)
    first = [(0, newer, newer, 0), (0, newer, newer, 0), (0, newer, newer, 2)]
    first += [(0, older, older, 0), (0, older, older, 0), (77, older, older, 3)]
    assert list(likely.ends()) == first
    likely.add([(88, newer, newer, 1), (77, older, 991, 9)])
    assert list(likely._recent) == [newer, older], "a thread's own table says nothing of the next process"
    third = machine.fork(1001, 0, 99)
    places = [(88, newer, newer, 1)]  # it held the last one
    again = [(0, pid, pid, d) for pid, d in ((newer, 0), (newer, 2))]
    assert list(likely.ends()) == [
        *places, (0, third, third, 0), (99, third, third, 1), again[0], (88, newer, newer, 1), again[1],
        (0, older, older, 0), (0, older, older, 1), (77, older, older, 3),
    ]  # fmt: skip
    assert [pid for _, pid, _, _ in likely.ends()] == [newer, third, third, newer, older], "nothing is new"
    machine.now += 1.1
    assert list(likely.ends()) == places, "none is young any more"


def test_a_young_process_that_closed_one_socket_and_opened_the_next_is_asked_for_it(machine):
    """It has as many descriptors as before. Its first sockets were not found, so that nothing is known of its places."""
    likely = LikelyHolders({})
    short, busy, silent = machine.fork(989, 0, 0), machine.fork(990, 0, 0, 70), machine.fork(991, 0, 0, 80)
    for inode in range(71, 75):
        list(likely.ends())
        list(likely.hot())
        machine.tables[busy][2] = inode
    assert busy not in {pid for _, pid, _, _ in likely.hot()}, "nothing is known of usual descriptors"
    likely.add([(80, silent, silent, 2)])
    list(likely.ends())
    asked = list(islice(likely.hot(), 2))
    assert asked == [(74, busy, busy, 2), (0, short, short, 2)], "whose places are known was asked before"
    machine.now += 1.1
    list(likely.ends())
    assert busy not in {pid for _, pid, _, _ in likely.hot()}, "it is not young any more"


def test_a_process_that_is_no_longer_young_says_nothing_of_the_next_one(machine):
    likely = LikelyHolders({})
    machine.fork(990, 0, 77)
    list(likely.ends())
    machine.now += 1.5
    list(likely.ends())
    likely.add([(77, 990, 990, 1)])
    new = machine.fork(1001, 0, 5, 0)
    assert (5, new, new, 1) not in list(likely.ends())


def test_the_last_numbers_that_were_given_away_are_asked_for_once_and_those_that_nobody_has_twice(machine):
    machine.last = 1000
    machine.fork(1000, 0)
    likely = LikelyHolders({})
    list(likely.ends())
    assert machine.asked == list(range(1000 - NEWEST + 1, 1001))
    machine.asked.clear()
    list(likely.ends())
    assert machine.asked == list(range(1000 - WAITING, 1000)), "it may be given away and not be there yet"
    machine.asked.clear()
    machine.fork(1003, 0)
    list(likely.ends())
    assert machine.asked == [1001, 1002, 1003]
    machine.asked.clear()
    machine.fork(1001, 0, 5)
    assert (5, 1001, 1001, 1) in list(likely.ends())
    assert machine.asked == [1001, 1002]
    machine.asked.clear()
    machine.last = 50
    list(likely.ends())
    assert machine.asked == list(range(1, 51)), "numbers begin anew"
    assert likely._numbers.keys() == set(range(1, 51))


def test_without_the_last_number_nothing_is_new(machine, monkeypatch):
    likely = LikelyHolders({})
    machine.fork(1000, 0, 5)

    def fail(_path):
        raise OSError(errno.EMFILE, "no descriptors")

    for read in (fail, lambda _path: b"", lambda _path: b"x"):
        monkeypatch.setattr(module, "read_file", read)
        assert list(likely.ends()) == []
    assert machine.asked == []


def test_what_is_remembered_of_numbers_and_sizes_is_bounded(machine, monkeypatch):
    monkeypatch.setattr(module, "MAX_REMEMBERED", NEWEST + 2)
    likely = LikelyHolders({})
    list(likely.ends())
    for machine.last in range(1001, 1001 + NEWEST):
        list(likely.ends())
        assert len(likely._numbers) <= NEWEST + 3
    for pid in range(1, NEWEST + 9):
        likely._has_changed(pid, 3)
        assert len(likely._sizes) <= NEWEST + 4


def test_the_hottest_tables_are_listed_and_those_of_young_processes_that_changed(machine):
    """Their newest descriptors, whether their number is new or not; the rest of each comes with the others."""
    hot = machine.fork(500, *range(1, FIRST + 3))
    machine.last = 1000
    young = machine.fork(1000, 0, 66)
    likely = LikelyHolders({hot: None})
    list(likely.ends())
    last = [(inode, hot, hot, inode - 1) for inode in range(FIRST + 2, 0, -1)]
    changed = [(66, young, young, 1), (0, young, young, 0)]
    for _ in range(4):
        found = list(likely.hot())
        assert found[: FIRST + 1] == [(0, hot, hot, 0), *last[:FIRST]]
        assert found[FIRST + 1 :] == changed
        assert list(likely.near()) == last[FIRST:]
        machine.tables[young][len(machine.tables[young])] = 0
        list(likely.ends())
        changed = [(0, young, young, len(machine.tables[young]) - 1), *changed]


def test_near_are_the_other_holders_and_the_newest_that_changed(machine):
    """Each gives some before any gives more."""
    others = [machine.fork(100 + n, 0, 10 + n) for n in range(2)]
    hottest = [machine.fork(200 + n, 0, 30 + n) for n in range(HOT)]
    likely = LikelyHolders({})
    likely.add([(10, others[0], others[0], 1)])
    remember_holders(likely._recent, [others[1], *hottest])
    edge, big = machine.fork(1001 - NEWEST + 1, 0, 50), machine.fork(980, *range(1, FIRST + 3))
    machine.fork(1001 - NEWEST, 0, 51)  # too old
    machine.last = 1000
    list(likely.ends())
    young = machine.fork(1001, 0, 52)
    machine.now += 2.0
    list(likely.ends())  # the others are no longer young
    assert young in likely._young
    list(likely.hot())
    near = list(likely.near())
    assert near[0] == (10, others[0], others[0], 1), "at its place"
    table = [(10 + n, others[n], others[n], 1) for n in (1, 0)]
    expected = [part for each in table for part in ((0, *each[1:3], 0), each, (0, *each[1:3], 0))]
    expected += [(0, big, big, 0), *((n, big, big, n - 1) for n in range(FIRST + 2, 2, -1))]
    assert near[1 : 1 + len(expected)] == expected
    table = [(0, edge, edge, 0), (50, edge, edge, 1), (0, edge, edge, 0)]
    assert near[1 + len(expected) :] == [*table, (2, big, big, 1), (1, big, big, 0)]
    assert [found for found in likely.near() if found[0] and found[1] != others[0]] == [
        (11, others[1], others[1], 1)
    ], "the second look at a number that is new; those that did not change have nothing"


def test_the_first_process_of_all_may_be_among_the_newest(machine):
    machine.last = 5
    machine.fork(1, 0, 7)
    likely = LikelyHolders({})
    list(likely.ends())
    machine.now += 2.0
    list(likely.ends())
    assert (7, 1, 1, 1) in list(likely.near())


def test_a_table_that_is_too_long_has_its_turn_with_all_others(machine):
    most, more = machine.fork(500, *[7] * TURN), machine.fork(501, *[8] * (TURN + 1))
    machine.last = 1000
    likely = LikelyHolders({most: None, more: None})
    assert {found[1] for found in likely.hot() if found[0]} == {most}
    far = list(likely.far())
    assert [found[0] for found in far].count(8) == TURN
    assert [found for found in far if not found[0]][:3] == [(0, pid, pid, 0) for pid in (more, most, 1)], (
        "a look at the clock each"
    )
    assert {found[0] for found in likely.far()} == {0, 8}, "the other one was looked at twice"
    assert not [found for found in likely.far() if found[0]], "no number of descriptors is new"


def test_a_search_of_all_goes_on_where_the_last_one_was_cut_off(machine):
    """So an old process has its turn, however many new ones there are; a search that was not cut off begins with those."""
    for pid in range(100, 110):
        machine.fork(pid, 7)
    machine.last = 1000
    likely = LikelyHolders({})

    def seen(most=None):
        return [pid for inode, pid, *_ in islice(likely.far(), most) if not inode and pid > 1]

    assert seen(6) == [109, 108, 107]
    machine.fork(110, 7)
    assert seen(6) == [107, 106, 105]
    assert seen() == [105, 104, 103, 102, 101, 100, 110, 109, 108, 107, 106]
    likely.start_over()
    assert seen(2) == [110]


def test_where_the_kernel_says_no_number_all_tables_are_walked_over(machine, monkeypatch):
    machine.sized = False
    monkeypatch.setattr(module, "Walk", lambda *how: [how])
    pid = machine.fork(990, 0, 5)
    likely = LikelyHolders({pid: None})
    assert list(likely.far())[-1] == ((), None, frozenset())
    list(likely.ends())
    assert (5, pid, pid, 1) in list(likely.hot())
    assert list(islice(likely.near(), 3)) == []


def test_what_is_gone_is_forgotten(machine):
    """A holder whose sockets are closed keeps its last place; one that ended, or is a zombie, is looked at no more."""
    pids = [machine.fork(100 + n, 0, 10 + n) for n in range(3)]
    machine.last = 1000
    likely = LikelyHolders({})
    likely.add([(10 + n, pid, pid, place) for n, pid in enumerate(pids) for place in (0, 1)])
    del machine.tables[pids[0]]
    machine.tables[pids[1]] = {0: 0}
    found = [each for each in likely.ends() if each[1] in pids]
    assert [each for each in found if each[0]] == [(12, pids[2], pids[2], 1)]
    assert {pid: list(places) for pid, places in likely._places.items()} == {pids[1]: [1], pids[2]: [0, 1]}
    assert list(likely._recent) == pids[1:]
    machine.tables[pids[2]] = {}
    list(likely.hot())
    assert (list(likely._places), list(likely._recent)) == ([pids[1]], [pids[1]])


def test_a_young_process_that_ended_is_forgotten(machine):
    likely = LikelyHolders({})
    machine.fork(999, 0, 5)
    list(likely.ends())
    del machine.tables[999]
    assert [found[1] for found in likely.ends()] == [999]
    assert list(likely.ends()) == []
    assert not likely._numbers[999]


def test_places_and_holders_are_the_last_ones(machine):
    likely = LikelyHolders({})
    pid = machine.fork(100, *range(1, 20))
    machine.last = 1000
    likely.add((n, pid, pid, n) for n in (*range(MOST_PLACES + 1), 2))
    assert [found[3] for found in likely.ends()] == [1, *range(3, MOST_PLACES + 1), 2]
    recent: dict[int, None] = {}
    remember_holders(recent, [*range(MOST_RECENT + 2), 5, 3, 5])
    assert (len(recent), list(recent)[-2:], next(iter(recent))) == (MOST_RECENT, [3, 5], 2)
    kept = []
    for number in range(2 * MOST_RECENT + 1):
        likely.add([(1, 2000 + number, 2000 + number, 3)])
        kept.append(len(likely._places))
    assert (max(kept), kept[-1]) == (2 * MOST_RECENT, MOST_RECENT + 1)


@pytest.mark.parametrize(
    ("error", "expected"), [(errno.ESRCH, None), (errno.EINVAL, False), (errno.ENOENT, False), (errno.EMFILE, True)]
)
def test_what_the_kernel_says_of_a_number(monkeypatch, error, expected):
    """Where it says nothing, as without descriptors, its status does."""

    def fail(_number):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "pidfd_open", fail, raising=False)
    assert module._is_process(os.getpid()) is expected

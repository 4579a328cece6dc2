"""Which network namespaces cannot be entered, and how their tables are read: processes and tables are the test's."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from nstat_async._io import outside as io_outside
from nstat_async._io.outside import Outside
from nstat_async.sockdiag import (
    SocketTablesAnswer,
    SocketTablesRequest,
    TableRow,
)

ROW = TableRow("tcp", 77, 1000)


def met(outside: Outside, *processes: tuple[int, int], entered: frozenset[int | None] = frozenset()) -> Any:
    """A round that meets these processes in these namespaces; what came and went."""
    outside.begin_round()
    for pid, network in processes:
        outside.meet(pid, network, f"pid:{pid}")
    return outside.end_round(entered, 10)


@pytest.fixture
def outside(monkeypatch) -> Outside:
    monkeypatch.setattr(
        io_outside, "cgroup_of_process", lambda pid, _: {1: 50, 2: 50, 3: 51, 4: None, 5: 0}.get(pid, 60)
    )
    return Outside()


def test_a_namespace_is_found_by_its_processes_and_has_the_name_of_the_first(outside):
    found, gone = met(outside, (1, 100), (2, 100), (7, 200), (8, 300), entered=frozenset({300}))
    assert [(each.number, each.identity.label, each.entered) for each in found] == [
        (10, "pid:1", False),
        (11, "pid:7", False),
    ]
    assert (gone, outside.networks, len(outside)) == ([], {100, 200}, 2)
    assert met(outside, (1, 100), (7, 200)) == ([], [])


def test_one_that_two_rounds_do_not_meet_is_gone_and_so_is_one_that_was_entered(outside):
    met(outside, (1, 100), (7, 200))
    assert met(outside, (7, 200)) == ([], [])
    assert met(outside, (1, 100), (7, 200)) == ([], [])
    assert met(outside, (7, 200)) == ([], [])
    assert met(outside, (7, 200)) == ([], [10])
    assert met(outside, (7, 200), entered=frozenset({200})) == ([], [11])
    assert len(outside) == 0


def test_a_number_that_the_kernel_gave_to_another_namespace_is_another_namespace(outside):
    """It gives the lowest that is free; no process of the one before is in it."""
    met(outside, (1, 100))
    found, gone = met(outside, (9, 100))
    assert ([each.identity.label for each in found], gone) == (["pid:9"], [10])


@pytest.mark.parametrize(
    ("processes", "cgroups"),
    [((1, 2), ((10, 50),)), ((1, 3), ()), ((1, 4), ((10, 50),)), ((1, 5), ()), ((5,), ()), ((4,), ())],
)
def test_the_cgroup_of_a_namespace_is_that_of_all_its_processes_or_none(outside, processes, cgroups):
    met(outside, *((pid, 100) for pid in processes))
    assert outside.cgroups == cgroups


def test_what_becomes_of_one_says_nothing_of_the_others(outside):
    met(outside, (1, 100), (2, 200), (3, 300))
    assert met(outside, (1, 100), (3, 300)) == ([], [])
    assert met(outside, (1, 100), (3, 300)) == ([], [11])


def test_the_first_processes_of_one_are_remembered_and_no_more(outside):
    pids = range(1, io_outside.PIDS + 3)
    met(outside, *((pid, 100) for pid in pids))
    assert outside._spaces[10].pids == tuple(pids)[: io_outside.PIDS]


def test_so_many_namespaces_are_watched_from_outside_and_no_more(outside, monkeypatch):
    monkeypatch.setattr(io_outside, "MAX_NAMESPACES", 2)
    assert (outside.beyond, outside.cgroups) == (0, ())
    met(outside, (1, 100))
    assert outside.beyond == 0
    outside.release(10)
    found, _ = met(outside, (1, 100), (2, 200), (3, 300))
    assert (len(found), outside.beyond) == (2, 1)
    outside.release(10)
    found, _ = met(outside, (1, 100), (2, 200), (3, 300))
    assert (len(found), outside.beyond) == (1, 1)


def test_a_reading_is_told_in_pieces_with_the_pause_that_pays_for_it(outside, monkeypatch):
    clock = {"cpu": 5.0}
    monkeypatch.setattr(io_outside.time, "thread_time", lambda: clock["cpu"])
    monkeypatch.setattr(io_outside, "network_at", {"/proc/1/net": 100, "/proc/7/net": 200}.get)

    def read(_net, request):
        clock["cpu"] += 0.05
        return SocketTablesAnswer(request.namespace, (ROW,) * 5000)

    monkeypatch.setattr(io_outside, "read_tables", read)
    met(outside, (1, 100), (7, 200))
    request = SocketTablesRequest(10, ("tcp",))
    first = outside.tables(request)
    assert (len(first.rows), first.more) == (io_outside.AT_ONCE, True)
    assert first.pause == pytest.approx(4.0), (
        "50 ms, and 50 ms for the rows, are 5 % of two seconds; there are two of them"
    )
    rest = [outside.tables(attrs.evolve(request, rest=True)) for _ in range(2)]
    assert [(len(each.rows), each.more, each.pause) for each in rest] == [(2048, True, 0.0), (904, False, 0.0)]
    assert outside.tables(attrs.evolve(request, namespace=12)).unread, "nobody knows it"
    assert outside.tables(request).more
    monkeypatch.setattr(io_outside, "network_at", lambda _net: None)
    answer = outside.tables(request)
    assert (answer.unread, answer.rows, answer.more) == (True, (), False), "what was left is of before"


def test_a_process_that_went_elsewhere_meanwhile_shows_nothing(outside, monkeypatch):
    """What was read may be another namespace's: the next process is asked."""
    places = iter([100, 999, None, 100, 100])
    monkeypatch.setattr(io_outside, "network_at", lambda _net: next(places))
    monkeypatch.setattr(
        io_outside,
        "read_tables",
        lambda net, request: SocketTablesAnswer(request.namespace, (attrs.evolve(ROW, table=net),)),
    )
    met(outside, (1, 100), (2, 100), (3, 100))
    assert [row.table for row in outside.tables(SocketTablesRequest(10, ("tcp",))).rows] == ["/proc/3/net"]


def test_what_no_process_shows_is_not_read(outside, monkeypatch):
    monkeypatch.setattr(io_outside, "network_at", lambda _net: None)
    met(outside, (1, 100))
    assert outside.tables(SocketTablesRequest(10, ("tcp",))).unread


@pytest.mark.parametrize(
    ("number", "table_cut", "told", "cut"), [(3, False, 3, False), (4, False, 3, True), (2, True, 2, True)]
)
def test_so_many_sockets_of_a_namespace_are_told_and_no_more(outside, monkeypatch, number, table_cut, told, cut):
    monkeypatch.setattr(io_outside, "MOST_ROWS", 3)
    monkeypatch.setattr(io_outside, "network_at", lambda _net: 100)
    monkeypatch.setattr(
        io_outside,
        "read_tables",
        lambda _net, request: SocketTablesAnswer(request.namespace, (ROW,) * number, cut=table_cut),
    )
    met(outside, (1, 100))
    answer = outside.tables(SocketTablesRequest(10, ("tcp",)))
    assert (len(answer.rows), answer.cut, answer.more) == (told, cut, False)

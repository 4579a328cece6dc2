"""What a pulse reports: which new sockets it searches for, where, and until when."""

from __future__ import annotations

import types

import pytest
from sockdiag_fakes import FakeSocket

from nstat_async._io import pulse, reach
from nstat_async._io.processes import ProcessReader

pytestmark = pytest.mark.linux


class Holders:
    """Where new sockets are looked for: what each part of the search finds, by its name; inode 0 is another descriptor."""

    def __init__(self, **parts) -> None:
        self.parts, self.begun, self.added = parts, [], []

    def __getattr__(self, name):
        def found():
            self.begun.append(name)
            for inode in self.parts.get(name, ()):
                yield inode, 4242, 4243, 3

        return found

    def add(self, places) -> None:
        self.added += places

    def start_over(self) -> None:
        self.begun.append("start over")


def new(*numbers: int, uid: int = 1000) -> list[tuple[int, bytes]]:
    return [(6, FakeSocket(number, inode=number, uid=uid).message()) for number in numbers]


def report_of(beat: pulse.Pulse, sockets, *, held=None, **parts):
    """The report about these sockets, what is to be looked for again, and which parts of the search were begun."""
    beat._likely = Holders(**parts)
    asked = []

    def still_held(sockets, inodes):
        asked.append(set(inodes))
        return set(inodes) if held is None else set(inodes) & held

    report, missed = beat._report_of(types.SimpleNamespace(still_held=still_held), sockets)
    return report, missed, beat._likely.begun, asked


@pytest.fixture
def beat(monkeypatch):
    monkeypatch.setattr(pulse.os, "geteuid", lambda: 0)
    return pulse.Pulse({}, ProcessReader())


def test_a_search_goes_on_until_all_are_found(beat):
    for parts, begun in (
        ({"ends": (0, 1, 2)}, ["ends"]),
        ({"ends": (1,), "hot": (0, 2)}, ["ends", "hot"]),
        ({"hot": (1,), "near": (2,)}, ["ends", "hot", "near"]),
        ({"far": (1, 7, 2)}, ["ends", "hot", "near", "far", "start over"]),
        ({}, ["ends", "hot", "near", "far", "start over"]),
    ):
        report, missed, searched, asked = report_of(beat, new(1, 2), **parts)
        assert (searched, missed) == (begun, set())
        assert [inode for inode, _ in report.owners.owners] == ([1, 2] if parts else [])
        assert len(report.sockets) == 2
        assert len(asked) == len(begun) - 1 - ("start over" in begun)
    assert beat._likely.added == []


def test_what_was_closed_meanwhile_is_looked_for_no_longer(beat):
    _, missed, searched, asked = report_of(beat, new(1, 2), held={2}, hot=(2,))
    assert (searched, asked, missed) == (["ends", "hot"], [{1, 2}], set())


def test_sockets_of_others_are_looked_for_where_somebody_of_theirs_lets_us_look(beat, monkeypatch):
    """As it is measured, and now and then a search tries it: a socket's user need not be that of the process that has it."""
    monkeypatch.setattr(pulse.os, "geteuid", lambda: 1000)
    clock = types.SimpleNamespace(now=5.0)
    monkeypatch.setattr(pulse, "time", types.SimpleNamespace(monotonic=lambda: clock.now, thread_time=lambda: 0.0))
    measured = []
    beat._reach = reach.Reach(lambda uid: measured.append(uid) or uid == 1002)
    sockets = [*new(1), *new(2, uid=1001), *new(3, uid=1002)]

    def searched(later=0.0, **parts):
        clock.now += later
        report, _, _, asked = report_of(beat, sockets, **parts)
        assert len(report.sockets) == 3
        return asked[0] if asked else set()

    assert [searched(), searched()] == [{1, 2, 3}, {1, 3}], "nobody of 1001 let us look"
    assert [searched(reach.FIRST_PAUSE), searched()] == [{1, 2, 3}, {1, 3}], "it is tried again"
    assert searched(reach.FIRST_PAUSE) == {1, 3}, "ever more rarely"
    assert measured == [1001, 1002, 1001]
    assert searched(reach.FIRST_PAUSE, ends=(2,)) == {1, 3}, "2 was found at the first places already"
    assert searched() == {1, 2, 3}, "so a process of somebody else has it, which lets us look"
    for _ in range(12):
        clock.now += reach.LONGEST_PAUSE
        searched()
    assert searched(reach.LONGEST_PAUSE / 2) == {1, 3}
    assert searched(reach.LONGEST_PAUSE / 2) == {1, 2, 3}, "no pause is longer"


def test_of_very_many_processes_some_are_tried_out(monkeypatch):
    asked, met = [], []
    monkeypatch.setattr(reach, "all_pids", lambda: list(range(9999, 0, -1)))
    monkeypatch.setattr(reach, "may_look_at", lambda pid: bool(asked.append(pid)))
    monkeypatch.setattr(reach, "user_of", lambda pid: met.append(pid) or 7)
    assert not reach.sees_processes_of(7)
    assert (asked, len(met)) == (list(range(9999, 9999 - reach.TRIED, -1)), reach.MOST_PIDS)


def test_very_many_users_are_not_all_remembered(monkeypatch):
    monkeypatch.setattr(reach, "MOST_USERS", 2)
    seen = []
    far = reach.Reach(lambda uid: seen.append(uid) or False)
    assert [far.covers(uid, 0.0) for uid in (1, 2, 1, 2, 3, 3, 1)] == [True, True, False, False, True, False, True]
    assert seen == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("euid", "users", "refuses", "gone", "can"),
    [
        (1000, {5: 0, 6: 0}, {5, 6}, {}, False),  # as it is for an ordinary user
        (1000, {5: 0, 6: 0}, {5}, {}, True),  # one process is in a sandbox of its own
        (1000, {5: 0, 6: 0}, {5}, {6}, False),
        (1000, {5: 33, 6: 1000}, {}, {}, True),  # none is left of that user: as others are
        (1000, {5: 33, 6: 1000}, {5}, {}, False),
        (1000, {6: 1000}, {}, {}, False),  # hidepid=
        (0, {6: 0}, {}, {}, True),
        (0, {5: 65534}, {5}, {}, False),  # root of a user namespace
    ],
)  # fmt: skip
def test_whose_descriptors_are_shown_is_tried_out(monkeypatch, euid, users, refuses, gone, can):
    asked: list = []
    monkeypatch.setattr(reach, "all_pids", lambda: sorted(users, reverse=True))
    monkeypatch.setattr(reach.os, "geteuid", lambda: euid)
    monkeypatch.setattr(reach, "may_look_at", lambda pid: asked.append(pid) or pid not in refuses)
    monkeypatch.setattr(reach, "user_of", lambda pid: None if pid in gone and pid in asked else users[pid])
    assert reach.sees_processes_of(65534 if euid == 0 else 0) is can


def test_what_there_was_no_time_for_is_looked_for_again(beat, monkeypatch):
    """The clock is looked at now and then."""
    clock = types.SimpleNamespace(now=0.0)

    def thread_time():
        clock.now += 0.001
        return clock.now

    monkeypatch.setattr(pulse, "time", types.SimpleNamespace(monotonic=lambda: 0.0, thread_time=thread_time))
    others = (0,) * (pulse.GLANCE * 20)
    _, missed, searched, _ = report_of(beat, new(1, 2), ends=(1,), hot=others, near=(2,))
    assert (missed, searched) == ({2}, ["ends", "hot"])
    _, missed, searched, _ = report_of(beat, new(1, 2), ends=others)
    assert (missed, searched) == ({1, 2}, ["ends"])
    beat._wide.left = 0.0
    _, missed, searched, _ = report_of(beat, new(1), far=(1,))
    assert (missed, searched) == ({1}, ["ends", "hot", "near"]), "nothing is left for a search through all"
    beat._wide.left = left = 0.0025
    _, missed, searched, _ = report_of(beat, new(1), far=others)
    assert (missed, searched) == ({1}, ["ends", "hot", "near", "far"])
    assert beat._wide.left < left - 0.002, "what it takes is taken from that"


def test_of_very_many_some_are_reported_and_all_that_was_found_is(beat):
    most = pulse.MOST_NEW
    many = new(*range(1, most + 3))
    report, missed, searched, _ = report_of(beat, many, ends=(most + 2, most + 1))
    assert len(report.sockets) == most
    assert [inode for inode, _ in report.owners.owners] == [most + 2, most + 1]
    assert [row for _, row in report.sockets[:2]] == [row for _, row in many[-2:]]
    assert (missed, searched) == (set(), ["ends", "hot", "near", "far", "start over"])
    report, _, searched, _ = report_of(beat, many[:-2], ends=range(1, most + 1))
    assert (len(report.owners.owners), searched) == (most, ["ends"])
    assert report_of(beat, many[:-2], ends=(most,))[0].sockets == tuple(many[:-2]), (
        "so many are all reported, in their order"
    )
    found: list = []
    assert pulse._take(set(range(1, most + 3)), ((n, 1, 1, 3) for n in range(1, most + 3)), found) is False
    assert len(found) == most, "no more at once"


def test_who_holds_what_was_found_is_told_with_it(beat, monkeypatch):
    monkeypatch.setattr(pulse, "user_names", lambda users: tuple((uid, f"u{uid}") for uid in sorted(users)))
    report, *_ = report_of(beat, [*new(1, 2), *new(3, uid=7)], ends=(1, 3))
    answer = report.owners
    assert (answer.owners, answer.places) == (((1, 4242), (3, 4242)), ((4243, 3), (4243, 3)))
    assert [facts.pid for facts in answer.processes] == [4242]
    assert answer.users == ((7, "u7"), (1000, "u1000"))
    assert [place[0] for place in beat._likely.added] == [1, 3]

"""How a pulse spends what it may: on a machine whose clocks, costs and flows are the test's."""

from __future__ import annotations

import math
import types

import pytest

from nstat_async._io import budget, pulse
from nstat_async._io.processes import ProcessReader
from nstat_async.sockdiag import PulsePurpose, PulseReport

pytestmark = pytest.mark.linux

READING, LOOK, FLOW, REPORT = 40e-6, 350e-6, 50e-6, 200e-6
"""Seconds of CPU: to wake and read the counters, for a look, for each flow in it, and for the event loop."""


class Machine:
    """A network namespace in which flows begin at these times; it stands in for `Glance`, the clocks, and the wait for counters."""

    crowds = ()

    def __init__(self, monkeypatch, *flows):
        """Each of the flows is its beginning and its life, seconds."""
        self.now = self.cpu = 0.0
        self.looks = []
        self.seen = set()
        self.flows = sorted(flow for some in flows for flow in some)
        self.purpose, self.counters = PulsePurpose(0, 0.02), types.SimpleNamespace(numbers=None, readings=0)
        self.look_at = self.active_until = 0.0
        self._due, self._noticed, self._first = math.inf, 0, 0
        monkeypatch.setattr(
            pulse, "time", types.SimpleNamespace(monotonic=lambda: self.now, thread_time=lambda: self.cpu)
        )
        monkeypatch.setattr(pulse, "await_counters", self.wait)
        self.budget = budget.Budget(budget.SHARE, 0.0)
        self.pulse = pulse.Pulse({}, ProcessReader())
        self.pulse._glances = [self]
        self.pulse._divide()
        monkeypatch.setattr(self.pulse, "_report_of", lambda *_: (PulseReport(), set()))

    def work(self, seconds):
        self.now += seconds
        self.cpu += seconds

    def begun(self):
        while self._first < len(self.flows) and self.flows[self._first][0] <= self.now:
            self._first += 1
        return self._first

    def wait(self, _bell, _watched, pause, times, _thorough):
        for _ in range(times):
            self.now += pause
            self.work(READING)
            self.counters.readings += 1
            if self.begun() > self._noticed:
                return

    def notice(self, now):
        moved, self._noticed = self.begun() > self._noticed, self._first
        self._due = now if moved else self._due
        return moved

    def next_look(self):
        return max(self.look_at, self._due)

    def look(self, now):
        self.looks.append(now)
        self._due = math.inf
        flows = range(self.begun())[-200:]
        new = [number for number in flows if number not in self.seen and now < sum(self.flows[number])]
        self.seen.update(new)
        self.work(LOOK + FLOW * len(new))
        return new

    def look_again(self, *_):
        pass

    def report(self, _report):
        self.cpu += REPORT
        self.pulse._charged.append((self, REPORT))

    def run(self, until):
        """Seconds of CPU that it took."""
        before = self.cpu
        while self.now < until:
            began = self.cpu
            self.pulse._wait()
            self.pulse._look_where_due()
            self.pulse._pay(self.cpu - began - sum(seconds for _, seconds in list(self.pulse._charged)))
        return self.cpu - before

    def share_seen(self, flows):
        asked = set(flows)
        wanted = {number for number, flow in enumerate(self.flows) if flow in asked}
        return len(wanted & self.seen) / len(wanted)


def flows(rate, life, begin, end):
    return [(begin + number / rate, life) for number in range(int((end - begin) * rate))]


def test_every_flow_of_50_ms_has_a_look_at_50_a_second_within_the_budget(monkeypatch):
    """Many flows a look: the budget says how often, and what was saved pays for the beginning."""
    many = flows(50, 0.05, 1, 31)
    machine = Machine(monkeypatch, many)
    machine.run(1)
    saved = machine.pulse._budget.left
    assert machine.run(31) <= 30 * budget.SHARE + saved + 0.01
    assert machine.share_seen(many) >= 0.98
    assert len(machine.looks) < len(many)


def test_a_look_rests_for_what_it_cost_and_longer_the_less_is_saved(monkeypatch):
    """With nothing saved for as long as it takes to earn that."""
    machine = Machine(monkeypatch)
    rests = []
    for share in (1.0, 0.5, 0.0):
        machine.pulse._budget.left = machine.budget.left = share * machine.budget.most
        machine.pulse._rest_after(machine, 0.001)
        rests.append(machine.look_at)
    assert rests == pytest.approx([0.001, 0.002, 0.001 / budget.SHARE], rel=0.02)


@pytest.mark.parametrize("rate", [1000, 10_000])
def test_a_thousand_a_second_cost_no_more_and_are_still_looked_at(monkeypatch, rate):
    """Looks are rarer, the more each of them has to do."""
    many = flows(rate, 0.05, 0, 10)
    machine = Machine(monkeypatch, many)
    saved = machine.pulse._budget.left
    assert machine.run(10) <= 10 * budget.SHARE + saved + 0.1
    last = [now for now in machine.looks if now > 5]
    assert 5 <= len(last) <= 5 * 20


def test_a_burst_after_a_sustained_rate_still_has_looks(monkeypatch):
    """What came before took no more than it earned, so that looks go on as before; one has many flows."""
    before, burst = flows(50, 0.05, 1, 30), flows(400, 0.02, 30, 30.5)
    machine = Machine(monkeypatch, before, burst)
    machine.run(30)
    machine.run(31)
    assert sum(30 <= now <= 30.5 for now in machine.looks) >= 5
    assert machine.share_seen(burst) >= 0.2


def test_a_burst_after_silence_is_seen_whole(monkeypatch):
    burst = flows(400, 0.02, 30, 30.5)
    machine = Machine(monkeypatch, burst)
    machine.run(31)
    assert machine.share_seen(burst) >= 0.99


def test_silence_costs_a_fifth_of_a_percent(monkeypatch):
    """The counters are read as often as it is wanted, and nothing else is done."""
    machine = Machine(monkeypatch)
    assert machine.run(60) == pytest.approx(60 / 0.02 * READING, rel=0.02)
    assert not machine.looks


def test_short_flows_that_come_one_by_one_are_seen(monkeypatch):
    """While something happens the counters are read more often than each 20 ms, as far as that is granted."""
    few = [(begin + number * 0.0007, life) for number, (begin, life) in enumerate(flows(16, 0.01, 1, 31))]
    machine = Machine(monkeypatch, few)
    machine.run(31)
    assert machine.share_seen(few) >= 0.9


def test_the_counters_of_busy_namespaces_are_read_more_often_and_all_others_as_before(monkeypatch):
    busy, quiet = machines = Machine(monkeypatch), Machine(monkeypatch)
    beat, read = quiet.pulse, []
    beat._glances = list(machines)

    def note(watched, pause, times):
        read.extend([tuple(watched)] * times)
        quiet.work(pause * times)

    monkeypatch.setattr(beat, "_read", note)
    busy.active_until = 0.2
    while quiet.now < 0.2:
        beat._wait()
    assert set(read) == {(busy,), (busy, quiet)}
    assert read.count((busy, quiet)) == pytest.approx(0.2 / 0.02, abs=2)
    assert len(read) > 6 * read.count((busy, quiet))

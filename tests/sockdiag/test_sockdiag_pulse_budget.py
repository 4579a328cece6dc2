"""How a pulse spends what it may: on a machine whose clocks, costs and flows are the test's."""

from __future__ import annotations

import errno
import math
import os
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

    dumped = whole_takes = 0.0
    several = False

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

    def look(self, now, *, whole):
        self.looks.append(now)
        self._due = math.inf
        flows = range(self.begun())[-200:]
        new = [number for number in flows if number not in self.seen and now < sum(self.flows[number])]
        self.seen.update(new)
        self.work(LOOK + FLOW * len(new))
        return new

    def look_again(self, *_):
        pass

    def expect(self, at):
        self._due = min(self._due, at)

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
    machine.pulse._budget.left, machine.dumped = machine.pulse._budget.most, 0.009
    machine.pulse._rest_after(machine, 0.01)
    assert machine.look_at == pytest.approx(0.001, rel=0.02), "looks that need no dump go on"
    machine.pulse._budget.left = machine.budget.left = machine.dumped = 0.0
    machine.pulse._rest_after(machine, 5.0)
    assert machine.look_at == pytest.approx(pulse.LONGEST_SILENCE)


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


def test_a_burst_behind_short_flows_that_came_one_by_one_is_seen(monkeypatch):
    """To look out for these takes only what is saved beyond what a burst needs."""
    single = [(begin + number * 0.0007, 0.02) for number, (begin, _) in enumerate(flows(12, 0.02, 1, 11))]
    burst = flows(400, 0.02, 11.5, 12)
    machine = Machine(monkeypatch, single, burst)
    machine.run(11.5)
    assert machine.share_seen(single) >= 0.95
    assert machine.pulse._budget.left > budget.RESERVED * machine.pulse._budget.most
    machine.run(13)
    assert machine.share_seen(burst) >= 0.98


def test_where_several_come_at_once_the_next_look_does_not_wait_for_a_count_and_not_before_a_rest(monkeypatch):
    machine = Machine(monkeypatch, [(0.0, 9.0), (0.0, 9.0)])
    beat = machine.pulse
    beat._budget.left = machine.budget.left = machine.budget.most
    machine._due = 0.0
    beat._look_where_due()
    assert machine.next_look() == machine.look_at == pytest.approx(machine.now + pulse.SHORTEST_REST)
    for looks, come in (2, 1), (3, 0):  # one look without several is no end of them
        machine.flows += [(machine.look_at, 9.0)] * come
        machine.now = machine.look_at
        beat._look_where_due()
        assert len(machine.looks) == looks
        if come:
            assert machine.next_look() == machine.look_at >= machine.now + pulse.SHORTEST_REST
    assert (machine._due, machine.look_at < machine.now + pulse.SHORTEST_REST) == (math.inf, True), "no more came"


def test_one_slow_reading_of_the_counters_does_not_make_the_next_ones_rare(monkeypatch):
    """Three times as long as usual, as where another process had the processor's caches."""
    machine = Machine(monkeypatch)
    machine.run(5)
    usual = machine.pulse._pause()
    monkeypatch.setitem(globals(), "READING", 3 * READING)
    machine.pulse._read([machine], usual, 1)
    assert machine.pulse._pause() == usual
    machine.run(15)
    assert machine.pulse._pause() == pytest.approx(4 * READING / budget.SHARE), "but if all are slow"


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
    beat._budget.left = beat._budget.most

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


# -- what is granted


def beat_of(*pauses: float) -> pulse.Pulse:
    """A pulse of namespaces that are looked at after these pauses, without its thread."""
    made = pulse.Pulse({}, ProcessReader())
    made._glances = [
        types.SimpleNamespace(purpose=PulsePurpose(0, pause), budget=budget.Budget(budget.SHARE, 0.0))
        for pause in pauses
    ]
    made._divide()
    return made


@pytest.mark.parametrize(
    ("pauses", "share"),
    [
        ((), budget.SHARE),
        ((0.02,), budget.SHARE),
        ((1.0,), budget.SHARE),
        ((0.005,), 4 * budget.SHARE),
        ((0.0001,), pulse.MOST_SHARE),
        ((0.02, 0.02), 2 * budget.SHARE),  # each connection has two ends
        ((0.02, 0.01, 1.0), 4 * budget.SHARE),
    ],
)
def test_who_wants_shorter_pauses_grants_more_and_each_namespace_has_its_part(pauses, share):
    beat = beat_of(*pauses)
    assert beat._budget.share == pytest.approx(share)
    assert beat._wide.share == pytest.approx(share * pulse.WIDE_SHARE)
    assert [each.budget.share for each in beat._glances] == pytest.approx([share / len(pauses) for _ in pauses])


def test_a_budget_earns_its_share_is_kept_for_a_while_and_rests_until_something_is_left():
    granted = budget.Budget(0.1, 50.0)
    assert granted.left == pytest.approx(0.1 * budget.SAVED / 2)
    assert granted.fullness == pytest.approx(0.5)
    granted.spend(0.2, 51.0)
    assert granted.left == pytest.approx(0.05 * budget.SAVED - 0.1)
    granted.spend(0.0, 51.0)
    assert granted.left == pytest.approx(0.05 * budget.SAVED - 0.1), "no time passed"
    assert granted.rest() == 0.0
    granted.spend(0.0, 1000.0)
    assert granted.surplus == pytest.approx(1.0)
    granted.left = budget.RESERVED * granted.most
    assert granted.surplus == pytest.approx(0.0)
    granted.left = (1 + budget.RESERVED) / 2 * granted.most
    assert granted.surplus == pytest.approx(0.5)
    granted.left = 0.0
    assert granted.surplus == 0.0
    granted.left = granted.most
    granted.spend(0.1 * budget.SAVED + 0.05, 1000.0)
    assert (granted.left, granted.fullness) == (pytest.approx(-0.05), 0.0)
    assert granted.rest() == pytest.approx(0.5)


def test_what_reports_cost_the_reader_is_paid_by_the_whole_and_by_its_namespace(monkeypatch):
    machine = Machine(monkeypatch)
    beat, before = machine.pulse, machine.pulse._budget.left
    own, wide = machine.budget.left, beat._wide.left
    beat._charged.extend([(machine, 0.001), (machine, 0.002)])
    beat._pay(0.004)
    assert before - beat._budget.left == pytest.approx(0.007)
    assert own - machine.budget.left == pytest.approx(0.003)
    assert beat._wide.left == wide
    machine.now += 1000.0
    beat._pay(0.0)
    assert beat._wide.left == pytest.approx(beat._wide.most), "its time passes, too"
    assert not beat._charged


# -- how long it waits


def readings(machine: Machine, monkeypatch) -> list[tuple[int, float, int]]:
    """How many namespaces are read, after which pause, how often at most."""
    read: list[tuple[int, float, int]] = []
    monkeypatch.setattr(
        machine.pulse, "_read", lambda watched, pause, times: read.append((len(watched), round(pause, 6), times))
    )
    return read


def test_how_long_it_waits_for_what(monkeypatch):
    machine = Machine(monkeypatch)
    machine.now = now = 5.0
    beat, read = machine.pulse, readings(machine, monkeypatch)
    beat._wait()
    assert read.pop() == (1, 0.02, 50), "nothing happens: for a second"
    machine._due = now + 0.005
    beat._wait()
    assert read.pop() == (1, 0.005, 1), "a look is due sooner"
    machine._due = now - 1.0
    beat._wait()
    assert read.pop() == (1, pulse.SHORTEST_PAUSE, 1)
    machine._due, machine.look_at = math.inf, now + 0.5
    beat._wait()
    assert read.pop() == (1, 0.5, 1), "it rests: nothing is read"
    machine.look_at, machine.active_until = 0.0, now + 0.125
    beat._wait()
    quick = 0.02 / (pulse.EAGER * beat._budget.surplus)
    assert read.pop() == (1, round(quick, 6), int(0.125 / quick)), "something happens"
    beat._budget.left = 0.0
    beat._wait()
    assert read.pop() == (1, 0.02, 6), "with nothing saved it is no more eager"
    beat._budget.left = -0.3 * beat._budget.share
    beat._wait()
    assert read.pop() == (1, 0.3, 6), "nor does it read at all until something is left"


def test_without_namespaces_it_waits(monkeypatch):
    machine = Machine(monkeypatch)
    read = readings(machine, monkeypatch)
    machine.pulse._glances = []
    machine.pulse._wait()
    assert read == [(0, pulse.LONGEST_WAIT, 1)]


def test_counters_that_cost_much_are_read_more_rarely(monkeypatch):
    """They take a quarter of what may be spent."""
    machine = Machine(monkeypatch)
    beat = machine.pulse
    assert beat._pause() == 0.02
    beat._reading = budget.SHARE * 0.02
    assert beat._pause() == pytest.approx(0.08)
    beat._glances = [machine, machine]
    assert beat._pause() == pytest.approx(0.16)


def test_what_a_reading_costs_is_measured_and_what_moved_is_something_that_happens(monkeypatch):
    machine = Machine(monkeypatch, [(0.03, 1.0)])
    beat = machine.pulse
    beat._read([machine], 0.02, 5)
    assert beat._reading == pytest.approx(READING * 2 / pulse.AVERAGED)
    assert machine.counters.readings == 2
    assert machine.active_until == pytest.approx(machine.now + pulse.EAGER_SECONDS)
    machine.active_until = 0.0
    beat._read([machine], 0.02, 9)
    assert machine.active_until == 0.0
    assert beat._reading == pytest.approx(READING)


def test_a_bell_that_rang_is_put_down(monkeypatch):
    machine = Machine(monkeypatch)
    beat = machine.pulse
    beat._bell = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        beat._ring()
        beat._read([], 0.02, 1)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(beat._bell)
        beat._read([], 0.02, 1)
    finally:
        beat._close_bell()
    beat._ring()
    assert beat._bell == -1


# -- looks and reports


def test_looks_are_made_where_they_are_due_and_what_they_find_is_reported(monkeypatch):
    machine = Machine(monkeypatch)
    beat, told = machine.pulse, []
    machine.report = told.append
    machine.look_again = lambda *what: told.append(what)
    monkeypatch.setattr(beat, "_report_of", lambda _glance, new: (PulseReport(), {len(new)}))
    beat._look_where_due()
    assert (machine.looks, told) == ([], [])
    machine._due = 0.0
    beat._look_where_due()
    assert (machine.looks, told) == ([0.0], []), "nothing is new"
    assert machine.look_at > LOOK
    machine.flows, machine._due, machine.look_at = [(0.0, 9.0)], machine.now, 0.0
    now = machine.now
    beat._look_where_due()
    assert told == [PulseReport(), ([0], {1}, now)]


def test_a_rest_is_as_long_as_the_least_that_may_be_spent_allows(monkeypatch):
    """Of what is saved by the namespace and by all together the larger part counts; at least the share that is earned."""
    machine = Machine(monkeypatch)
    beat = machine.pulse
    for own, whole, rest in ((0.5, 0.25, 2.0), (0.25, 0.5, 2.0), (0.0, 0.0, 1 / beat._budget.share)):
        machine.budget.left, beat._budget.left = own * machine.budget.most + 0.001, whole * beat._budget.most
        beat._rest_after(machine, 0.001)
        assert machine.look_at == pytest.approx(0.001 * rest)


def test_what_dumps_take_is_taken_from_their_own_share(monkeypatch):
    machine = Machine(monkeypatch)
    beat, looks = machine.pulse, []

    def look(_now, whole):
        looks.append(whole)
        return ["a row"]

    crowd, left = types.SimpleNamespace(dumped=0.001, whole_takes=0.0, look=look), beat._wide.left
    assert beat._look(crowd, 0.0) == ["a row"]
    assert left - beat._wide.left == pytest.approx(0.001)
    beat._wide.left = 0.0
    beat._budget.left = beat._budget.most
    beat._look(crowd, 0.0)
    beat._budget.left = budget.RESERVED * beat._budget.most
    beat._look(crowd, 0.0)
    assert (looks, beat._wide.left) == ([True, True, False], 0.0), "so much is saved, and then it is not"
    beat._wide.left, crowd.dumped = 0.001, 1.0
    beat._look(crowd, 0.0)
    assert beat._wide.rest() == pytest.approx(pulse.LONGEST_DEBT), "thousands came at once: not for minutes"


def test_a_dump_waits_until_what_the_last_one_took_is_there_and_is_paid(monkeypatch):
    machine = Machine(monkeypatch)
    beat, looks = machine.pulse, []
    crowd = types.SimpleNamespace(dumped=0.0, whole_takes=0.004, look=lambda _now, whole: looks.append(whole))
    beat._budget.left = 0.0
    for left, takes in ((0.005, 0.004), (0.003, 0.004), (0.6 * beat._wide.most, 99.0), (0.4 * beat._wide.most, 99.0)):
        beat._wide.left, crowd.whole_takes = left, takes
        beat._look(crowd, 0.0)
    assert looks == [True, False, True, False], "one that takes more than can be saved waits for half of that"
    looks.clear()
    beat._wide.left, beat._budget.left, beat._budget.owed = beat._wide.most, beat._budget.most, 0.001
    beat._look(crowd, 0.0)
    assert looks == [False]


def test_after_a_flood_looks_go_on_within_a_second_or_so_and_are_paid_all_the_same(monkeypatch):
    """What a dump of many thousands took is paid by instalments."""
    few = flows(2, 1.5, 2, 40)
    machine = Machine(monkeypatch, [(1.0, 60.0)], few)
    machine.run(1)
    machine.pulse._budget.left = 0.0
    machine.work(8 * budget.SHARE)
    machine.pulse._pay(8 * budget.SHARE)
    before = machine.cpu
    machine.run(3)
    assert [now for now in machine.looks if now < 2.5]
    machine.run(40)
    assert machine.share_seen(few) == 1.0
    assert machine.pulse._budget.owed == 0.0
    assert machine.cpu - before <= (machine.now - 1 - 8) * budget.SHARE + 0.01


def test_what_is_owed_is_bounded_and_paid_by_instalments():
    granted = budget.Budget(0.1, 50.0)
    granted.left = -0.5
    granted.defer(2.0)
    assert (granted.left, granted.owed) == (pytest.approx(-0.2), pytest.approx(0.3))
    granted.defer(2.0)
    assert (granted.left, granted.owed) == (pytest.approx(-0.2), pytest.approx(0.3)), (
        "that much may be spent in advance"
    )
    granted.spend(0.0, 51.0)
    assert granted.owed == pytest.approx(0.3 - budget.INSTALMENT * 0.1)
    assert granted.left == pytest.approx(-0.2 + (1 - budget.INSTALMENT) * 0.1)
    granted.spend(100.0, 51.0)
    granted.defer(2.0)
    assert granted.owed == pytest.approx(0.1 * budget.MOST_OWED)
    assert granted.rest() > 900, "more than that is not lent"
    granted.left, granted.owed = 0.0, 0.001
    granted.spend(0.0, 52.0)
    assert (granted.left, granted.owed) == (pytest.approx(0.099), 0.0), "no more is paid back than is owed"


# -- channels


class Look:
    """In place of a glance."""

    def __init__(self, purpose, report) -> None:
        self.purpose, self.report, self.unread, self.closed = purpose, report, 0, 0
        self.budget = budget.Budget(budget.SHARE, 0.0)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def channel(monkeypatch):
    monkeypatch.setattr(pulse, "Glance", Look)
    left, charged = [], []
    made = pulse.PulseChannel(PulsePurpose(0), left.append, charged.append)
    made.left = left
    yield made
    made.close()


def test_reports_are_read_in_order_and_errors_where_they_came(channel):
    reports = [PulseReport(((6, bytes([n])),)) for n in range(3)]
    for report in reports:
        channel.glance.report(report)
    channel.glance.report(OSError(errno.EIO, "looks failed"))
    assert channel.glance.unread == 4
    assert os.eventfd_read(channel.fileno()) == 4
    batch: list[bytes] = []
    assert channel.read_into(batch, 2) is True
    assert channel.glance.unread == 2
    with pytest.raises(OSError, match="looks failed"):
        channel.read_into(batch, 2)
    assert [PulseReport.decode(data) for data in batch] == reports
    assert channel.read_into([], 2) is False
    channel.glance.report(reports[0])
    assert channel.read_into([], 2) is True
    assert channel.read_into([], 2) is False
    with pytest.raises(BlockingIOError):
        os.eventfd_read(channel.fileno())


def test_what_a_reader_did_between_two_reports_is_not_charged_to_them(channel, monkeypatch):
    """It may have been kept from them by other work; the sum is bounded by what reports take."""
    cpu, charged = [5.0], []
    monkeypatch.setattr(pulse, "time", types.SimpleNamespace(thread_time=lambda: cpu[0]))
    channel._charge = charged.append
    sockets = tuple((6, bytes([n])) for n in range(3))
    for reports in (1, 2):
        for _ in range(reports):
            channel.glance.report(PulseReport(sockets))
        channel.read_into([], 2)
        cpu[0] += 0.0007
        channel.read_into([], 2)
        assert charged.pop() == (channel.glance, pytest.approx(0.0007))
        for _ in range(reports):
            channel.glance.report(PulseReport(sockets))
        channel.read_into([], 2)
        cpu[0] += 9.0
        channel.read_into([], 2)
        assert charged.pop()[1] == pytest.approx(reports * (pulse.MOST_CHARGED + 3 * pulse.MOST_CHARGED_EACH))


def test_a_channel_sends_nothing_and_is_closed_once(channel):
    assert (channel.immediate, channel.receive_buffer) == (False, None)
    with pytest.raises(OSError, match="not supported") as caught:
        channel.send(b"x")
    assert caught.value.errno == errno.EOPNOTSUPP
    channel.close()
    channel.close()
    channel.glance.report(PulseReport())
    assert channel.glance.unread == 0
    assert channel.left == [channel.glance]


def test_what_is_left_when_the_thread_ends_is_closed(monkeypatch):
    beat = pulse.Pulse({}, ProcessReader())
    open_, left = Look(None, None), Look(None, None)
    beat._glances, beat._left, beat._ended = [open_], [left], True
    beat._run()
    assert (open_.closed, left.closed) == (1, 1)


def test_looks_that_fail_so_often_in_a_row_are_the_end_and_said(monkeypatch):
    machine = Machine(monkeypatch)
    beat, told, waits = machine.pulse, [], []
    machine.report = told.append
    outcomes = iter(
        [KeyError(1)] * (pulse.MOST_FAILURES - 1) + [None] + [OSError(errno.EIO, "x")] * pulse.MOST_FAILURES
    )

    def wait():
        outcome = next(outcomes)
        if outcome is not None:
            raise outcome

    left = Look(None, None)
    beat._left, machine.cpu, before = [left], 7.0, beat._budget.left
    monkeypatch.setattr(beat, "_wait", wait)
    monkeypatch.setattr(pulse, "await_counters", lambda *what: waits.append(what[1:4]))
    beat._look_and_rest()
    assert next(outcomes, "all") == "all"
    assert waits == [((), pulse.USUAL_PAUSE, 1)] * (2 * pulse.MOST_FAILURES - 2), "a pause behind each"
    assert [error.errno for error in told] == [errno.EIO]
    assert left.closed == 1
    assert beat._budget.left == before, "they cost nothing on this clock"


def test_the_thread_ends_with_the_process_and_its_descriptor_with_the_program(monkeypatch):
    monkeypatch.setattr(pulse.Pulse, "_run", lambda _self: None)
    beat = pulse.Pulse({}, ProcessReader())
    beat._start()
    try:
        assert beat._thread.daemon
        assert not os.get_inheritable(beat._bell)
        assert not os.get_blocking(beat._bell)
    finally:
        beat.close()
    assert beat._bell == -1


def test_a_pulse_whose_looks_failed_opens_no_further_channel(monkeypatch):
    """And leaves nothing open of it."""
    looks = []
    monkeypatch.setattr(pulse, "Glance", lambda *what: looks.append(Look(*what)) or looks[-1])
    beat = pulse.Pulse({}, ProcessReader())
    beat._thread = types.SimpleNamespace(is_alive=lambda: False)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="looks failed before"):
        beat.open(PulsePurpose(0, 0.005))
    assert (beat._glances, [each.closed for each in looks]) == ([], [1])
    assert beat._budget.share == budget.SHARE, "it is granted for nobody"
    assert len(os.listdir("/proc/self/fd")) == before

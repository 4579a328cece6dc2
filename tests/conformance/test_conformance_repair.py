"""How each kind of loss is repaired, step by step, in virtual time.

The property tests in ``tests/property`` find combinations; what they found once stays here.
"""

from __future__ import annotations

from types import SimpleNamespace

import attrs
import pytest
from virtual import VirtualMonitor, compare, traffic

from nstat_async import EventsLost, Flow, FlowAdded, FlowRemoved, LossCause, Provider, RemovalReason
from nstat_async._options import DEFAULT_PROVIDERS
from nstat_async.ntstat import AddAllSources, Ledger, LedgerRow, ReadLedger
from nstat_async.ntstat._sockets import REOPEN_DELAYS
from nstat_async.ntstat._source import Source
from nstat_async.ntstat._takeover import Comparison, continue_flows
from nstat_async.testing import EmulatedKernel

pytestmark = pytest.mark.usefixtures("emulated")
KERNEL = "xnu-11417.121.6"
SUPPRESSING = ("xnu-3248.60.10", "xnu-4570.71.2", "xnu-8020.140.41", KERNEL)
REMOTE = ("198.51.100.7", 443)


def watched(name=KERNEL, flows=3, **options):
    kernel = EmulatedKernel(name)
    made = []
    for number in range(flows):
        made.append(kernel.open_tcp(501 + number, f"p{number}", remote=REMOTE, rx=100 * number, tx=number))
        kernel.advance(1e-6)  # no two sockets are made at the same tick
    monitor = VirtualMonitor(kernel, **{"interval": None, **options})
    monitor.run(0.5)
    return kernel, made, monitor


def agree(kernel, monitor):
    compare(kernel, monitor.picture.flows.values(), providers=DEFAULT_PROVIDERS)
    compare(kernel, monitor.session.flows(), providers=DEFAULT_PROVIDERS)


def causes(monitor):
    return [loss.cause for loss in monitor.picture.losses]


# --- polls --------------------------------------------------------------------


@pytest.mark.parametrize("name", SUPPRESSING)
def test_a_lost_batch_is_asked_for_again_in_the_same_poll(name):
    kernel, flows, monitor = watched(name, flows=20)
    for flow in flows:
        flow.transfer(1, 1)
    kernel.faults.lose_batches = 1.0
    monitor.poll()
    agree(kernel, monitor)
    (loss,) = monitor.picture.losses
    assert (loss.cause, loss.count) == (LossCause.BATCH, 20)
    assert monitor.picture.last_poll.complete


@pytest.mark.parametrize("name", SUPPRESSING)
@pytest.mark.parametrize("ended", [None, 20], ids=["", "though one has ended before"])
def test_a_first_poll_of_which_every_batch_is_lost_still_finds_every_flow(name, ended):
    kernel = EmulatedKernel(name)
    kernel.faults.lose_batches = 1.0
    flows = [kernel.open_tcp(501, f"p{number}", remote=REMOTE) for number in range(50)]
    kernel.faults.full = ended is not None
    monitor = VirtualMonitor(kernel, interval=None)
    if ended is not None:  # the first number that is heard of has others above it
        flows[ended].close()
        kernel.faults.full = False
        monitor.poll()
    monitor.run(0.5)
    agree(kernel, monitor)


def test_a_poll_that_finds_no_room_is_incomplete_and_the_next_one_makes_up_for_it():
    kernel, flows, monitor = watched(flows=20)
    kernel.faults.full = True
    flows[0].transfer(5, 5)
    monitor.poll()
    assert not monitor.picture.last_poll.complete
    assert not monitor.picture.removed, "no room is no sign of an end"
    kernel.faults.full = False
    monitor.poll()
    agree(kernel, monitor)


def test_a_question_that_found_no_room_is_asked_again_at_the_very_next_poll():
    kernel, flows, monitor = watched()
    kernel.faults.lose_goodbyes, kernel.faults.full = 1.0, True
    for _ in range(4):
        monitor.poll()  # questions without an answer
    flows[1].close()
    kernel.faults.full = False
    monitor.poll()
    agree(kernel, monitor)
    assert monitor.picture.removed[0].reason is RemovalReason.GONE


# --- goodbyes --------------------------------------------------------------------


@pytest.mark.parametrize("name", SUPPRESSING)
def test_a_flow_whose_goodbye_was_lost_is_gone_with_the_next_poll_and_without_final_counts(name):
    kernel, flows, monitor = watched(name)
    kernel.faults.lose_goodbyes = 1.0
    flows[1].transfer(5, 5)
    flows[1].close()
    monitor.poll()
    agree(kernel, monitor)
    (removed,) = monitor.picture.removed
    assert (removed.reason, removed.final, traffic(removed.counts)) == (RemovalReason.GONE, False, (100, 1, 1, 1))
    assert causes(monitor) == [LossCause.FINAL_COUNTS]


@pytest.mark.parametrize("name", ["xnu-8020.140.41", KERNEL])
def test_a_final_report_that_found_no_room_is_told_with_the_last_known_counts(name):
    kernel, flows, monitor = watched(name)
    kernel.faults.lose_final_reports = 1.0
    flows[1].transfer(5, 5)
    flows[1].close()
    monitor.turn()
    (removed,) = monitor.picture.removed
    assert (removed.reason, removed.final, traffic(removed.counts)) == (RemovalReason.DROPPED, False, (100, 1, 1, 1))
    assert causes(monitor) == [LossCause.FINAL_COUNTS]


@pytest.mark.parametrize("name", SUPPRESSING)
def test_a_flow_that_came_and_went_without_its_report_is_told_as_one_goodbye(name):
    kernel, _, monitor = watched(name)
    kernel.faults.lose_final_reports = 1.0
    kernel.open_tcp(9, "short", remote=REMOTE, rx=7).close()
    monitor.turn()
    (loss,) = monitor.picture.losses
    assert (loss.cause, loss.count) == (LossCause.GOODBYE, 1)


@pytest.mark.parametrize("name", SUPPRESSING[1:])
def test_a_flow_that_came_and_went_without_a_word_is_missed_by_its_number(name):
    kernel, _, monitor = watched(name)
    kernel.faults.lose_goodbyes = 1.0
    kernel.open_tcp(9, "short", remote=REMOTE, rx=7).close()
    kernel.open_tcp(10, "next", remote=REMOTE)
    monitor.poll()
    monitor.poll()
    (loss,) = monitor.picture.losses
    assert (loss.cause, loss.count) == (LossCause.GOODBYE, 1)


# --- announcements ------------------------------------------------------------------


def test_a_lost_announcement_is_told_when_a_later_number_comes_and_the_flow_is_found_on_a_second_socket():
    kernel, _, monitor = watched(discovery="announce")
    kernel.faults.lose_announcements = 1.0
    lost = [kernel.open_tcp(9, f"lost{n}", remote=REMOTE, rx=n) for n in range(2)]
    monitor.run(0.1)
    assert not monitor.picture.losses, "nothing tells yet"
    kernel.faults.lose_announcements = 0.0
    kernel.open_tcp(10, "next", remote=REMOTE)
    monitor.run(0.2)
    agree(kernel, monitor)
    first = monitor.picture.losses[0]
    assert (first.cause, first.count) == (LossCause.ANNOUNCEMENT, len(lost))
    assert len(kernel.clients) == 1


def test_a_subscription_whose_answer_was_lost_may_have_been_cut_short_and_is_checked_on_a_second_socket():
    kernel = EmulatedKernel(KERNEL)
    flows = [kernel.open_tcp(501, f"p{n}", remote=REMOTE) for n in range(5)]
    kernel.faults.mbufs = 3  # for three announcements of the five, and no SUCCESS
    monitor = VirtualMonitor(kernel, interval=None, discovery="announce")
    kernel.faults.mbufs = None
    monitor.run(10.0)
    agree(kernel, monitor)
    assert LossCause.ANNOUNCEMENT in causes(monitor)
    assert len(monitor.picture.flows) == len(flows)


def test_resynchronisations_for_ever_new_gaps_keep_a_distance():
    kernel, _, monitor = watched(discovery="announce", interval=1.0)
    kernel.faults.lose_announcements = 0.5
    for number in range(200):
        kernel.open_tcp(9, f"n{number}", remote=REMOTE)
        monitor.run(0.1)
    assert monitor.session.statistics()["resynchronisations"] <= 5


# --- the control goes away ----------------------------------------------------------------


def test_a_socket_that_changed_while_the_control_was_away_is_still_the_same_flow():
    kernel, flows, monitor = watched()
    bare = kernel.open_tcp(9, "bare")
    monitor.poll()
    before = set(monitor.picture.flows)
    kernel.end_controls()
    monitor.turn()
    bare.connect(REMOTE)
    flows[0].rename_process(77, "heir")
    flows[1].transfer(50, 5)
    flows[2].close()
    monitor.run(1.0)
    agree(kernel, monitor)
    assert set(monitor.picture.flows) < before
    assert len(monitor.picture.removed) == 1
    assert causes(monitor) == [LossCause.RESYNC, LossCause.FINAL_COUNTS]


def test_a_second_socket_that_finds_no_room_does_not_take_over_with_half_a_picture():
    kernel, _flows, monitor = watched(flows=20)
    before = set(monitor.picture.flows)
    kernel.faults.full = True
    kernel.end_controls()
    monitor.run(7.0)
    assert set(monitor.picture.flows) == before, "what was known stays until something better is known"
    kernel.faults.full = False
    monitor.run(3.0)
    agree(kernel, monitor)
    assert set(monitor.picture.flows) == before
    assert not monitor.picture.removed


def test_a_second_socket_of_which_every_batch_is_lost_still_continues_every_flow():
    kernel, _flows, monitor = watched(flows=50)
    before = set(monitor.picture.flows)
    kernel.faults.lose_batches = 1.0
    kernel.end_controls()
    monitor.run(1.0)
    agree(kernel, monitor)
    assert set(monitor.picture.flows) == before


def test_totals_go_on_across_a_counter_that_wrapped_on_the_way():
    kernel, flows, monitor = watched()
    flows[0].set(nstat_rxduplicatebytes=(1 << 32) - 10)
    monitor.poll()
    kernel.end_controls()
    monitor.turn()
    flows[0].set(nstat_rxduplicatebytes=20)  # 30 more, in 32 bits
    monitor.run(1.0)
    (counts,) = (counts for flow, counts in monitor.picture.flows.values() if flow.process.name == "p0")
    assert counts.rx_duplicate_bytes == (1 << 32) + 20


def test_a_control_is_tried_again_with_growing_pauses_and_then_given_up_with_an_error():
    kernel, _, monitor = watched()
    monitor.control_present = False
    kernel.end_controls()
    monitor.run(sum(REOPEN_DELAYS) - 0.1)
    assert monitor.session.failure is None
    monitor.run(0.2)
    assert "cannot be opened again" in str(monitor.session.failure)


def test_a_control_that_returns_after_a_while_is_used_and_may_go_away_again():
    kernel, flows, monitor = watched()
    for _ in range(5):
        monitor.control_present = False
        kernel.end_controls()
        monitor.run(1.0)
        flows[0].transfer(1, 1)
        monitor.control_present = True
        monitor.run(2.5)
        agree(kernel, monitor)
    assert monitor.session.failure is None
    assert len(monitor.picture.ids) == 3


def test_a_second_socket_that_is_lost_on_the_way_is_followed_by_another():
    kernel, _, monitor = watched(discovery="announce")
    kernel.faults.lose_announcements = 1.0
    kernel.open_tcp(9, "lost", remote=REMOTE)
    kernel.faults.lose_announcements = 0.0
    kernel.open_tcp(10, "next", remote=REMOTE)
    monitor.control_present = False
    monitor.run(1.0)
    assert len(monitor.picture.flows) == 4
    monitor.control_present = True
    monitor.run(6.0)
    agree(kernel, monitor)


def test_whoever_asks_for_a_poll_while_the_control_is_away_gets_the_first_one_after():
    kernel, _, monitor = watched()
    polls = monitor.picture.polls
    kernel.end_controls()
    monitor.turn()
    monitor.session.request_poll(kernel.now)
    monitor.run(1.0)
    assert monitor.picture.polls > polls


# --- order ----------------------------------------------------------------------------------


def test_the_loss_of_final_counts_is_told_right_after_the_removal_that_it_is_about():
    kernel, flows, _ = watched()
    events = []
    monitor = VirtualMonitor(kernel, interval=None, sink=events.extend)
    kernel.faults.lose_final_reports = 1.0
    flows[0].close()
    monitor.turn()
    assert [type(event) for event in events[-2:]] == [FlowRemoved, EventsLost]
    assert events[-2].flow.id in events[-1].detail
    assert [type(event) for event in events[:3]] == [FlowAdded] * 3


# --- two sockets are compared -----------------------------------------------------------------


def hog(kernel):
    """A younger client that wants announcements and does not read: its buffer is full soon."""
    client = kernel.connect()
    client.send(AddAllSources(context=1, provider=2).encode(kernel.layout))
    while client.refused == 0:
        kernel.open_tcp(9, "filler", remote=REMOTE).close()
    return client


@pytest.mark.parametrize("discovery", ["poll", "announce"])
@pytest.mark.parametrize(
    "name", ["xnu-2782.40.9", "xnu-3248.60.10", "xnu-3789.70.16", "xnu-7195.141.2", "xnu-10063.141.1"]
)
def test_a_client_that_starves_behind_a_younger_one_finds_out_and_becomes_the_youngest(name, discovery):
    kernel, _, monitor = watched(name, interval=1.0, discovery=discovery)
    hog(kernel)
    monitor.run(2.0)
    missed = [kernel.open_tcp(20 + n, f"missed{n}", remote=REMOTE, rx=n) for n in range(3)]
    kernel.open_tcp(30, "gone", remote=REMOTE).close()
    monitor.run(30.0)
    agree(kernel, monitor)
    announced = [loss for loss in monitor.picture.losses if loss.cause is LossCause.ANNOUNCEMENT]
    assert [loss.count for loss in announced] == [None], "what came and went unseen is not known"
    assert announced[0].detail.startswith(f"{len(missed)} flows were never announced")
    kernel.open_tcp(40, "later", remote=REMOTE)
    monitor.run(2.0)
    agree(kernel, monitor)
    assert len(kernel.clients) == 2


def test_a_starving_client_becomes_the_youngest_though_flows_have_other_numbers_in_a_list_than_when_they_were_new():
    """xnu-3789 announces user-land UDP that is new under the number of user-land TCP."""
    kernel, _, monitor = watched("xnu-3789.70.16", interval=1.0)
    for number in range(3):
        kernel.open_udp(40 + number, f"late{number}", remote=REMOTE, userland=True, rx=number)
    monitor.run(2.0)
    hog(kernel)
    kernel.open_tcp(20, "missed", remote=REMOTE)
    monitor.run(20.0)
    agree(kernel, monitor)
    assert not [event for event in monitor.picture.removed if event.flow.process.pid >= 40]


@pytest.mark.parametrize(
    ("name", "size"), [("xnu-1699.32.7", 100 * 84 + 10), ("xnu-2050.48.11", 100 * 84 + 10), ("xnu-2422.115.4", 8192)]
)
def test_a_poll_whose_end_found_no_room_is_complete_when_all_that_it_left_out_was_answered(name, size):
    """Reports of 84 bytes leave too few for the word of the end."""
    kernel, flows, monitor = watched(name, flows=150, interval=1.0, receive_buffer=size)
    for flow in flows:
        flow.transfer(1, 1)
    monitor.run(2.0)
    assert monitor.picture.last_poll.complete
    assert monitor.session.statistics()["replies_lost"]
    agree(kernel, monitor)


@pytest.mark.parametrize("name", ["xnu-1699.32.7", "xnu-2050.48.11"])
def test_sources_turn_out_to_be_gone_while_descriptions_are_asked_for_one_by_one(name):
    kernel, flows, monitor = watched(name, flows=100, interval=1.0)
    monitor.run(4.2)  # the next poll asks for all descriptions again
    kernel.faults.lose_goodbyes = 1.0
    for flow in flows[-15:-5]:  # asked for first
        flow.close()
    monitor.run(8.0)
    assert len(list(monitor.session.flows())) == 90
    agree(kernel, monitor)


@pytest.mark.parametrize("looks_before", [0, 1])
@pytest.mark.parametrize("discovery", ["poll", "announce"])
def test_who_wants_no_polls_finds_out_that_it_starves_too(discovery, looks_before):
    kernel, _, monitor = watched("xnu-7195.141.2", interval=None, discovery=discovery)
    monitor.run(65.0 * looks_before)
    hog(kernel)
    missed = kernel.open_tcp(20, "missed", remote=REMOTE, rx=7)
    monitor.run(70.0)
    assert monitor.session.statistics()["audits"] == 1 + looks_before
    assert LossCause.ANNOUNCEMENT in {loss.cause for loss in monitor.picture.losses}
    assert any(flow.process.pid == 20 for flow, _ in monitor.session.flows())
    assert missed.open
    agree(kernel, monitor)


@pytest.mark.parametrize(("name", "told"), [("xnu-2782.40.9", None), ("xnu-7195.141.2", 5), (KERNEL, None)])
def test_how_many_flows_a_starving_client_can_have_missed_is_a_statistic(name, told):
    """Those that came and went between two looks leave no other trace."""
    kernel, _, monitor = watched(name, interval=1.0, ledger=True)
    hog(kernel)
    monitor.run(11.0)
    before = monitor.session.statistics().get("kernel_refused_announcements")
    for _ in range(5):
        kernel.open_tcp(30, "gone", remote=REMOTE).close()
    monitor.run(11.0)
    after = monitor.session.statistics().get("kernel_refused_announcements")
    assert (None if after is None else after - before) == told


@pytest.mark.parametrize("name", ["xnu-10063.141.1", KERNEL])
def test_a_look_that_finds_nothing_leaves_everything_as_it_was(name):
    kernel, flows, monitor = watched(name, interval=1.0)
    every = {"xnu-10063.141.1": 15, KERNEL: 60}[name]
    monitor.picture.events.clear()
    for _ in range(3 * every):
        flows[0].transfer(1, 1)
        kernel.open_tcp(9, "short", remote=REMOTE).close()
        monitor.run(1.0)
    statistics = monitor.session.statistics()
    assert statistics["audits"] in {2, 3}
    assert statistics["resynchronisations"] == 0
    assert not monitor.picture.losses
    assert len(kernel.clients) == 1
    agree(kernel, monitor)


@pytest.mark.parametrize("takeovers", [0, 2])
def test_a_look_whose_own_list_is_cut_short_does_not_take_over(takeovers):
    """Without memory the kernel leaves sources out of the younger socket's list; those of the older one are alive."""
    kernel, _, monitor = watched("xnu-7195.141.2", flows=40, interval=1.0)
    for number in range(takeovers):
        kernel.faults.fail_allocations = 1.0
        kernel.open_tcp(10 + number, f"missed{number}", remote=REMOTE)
        kernel.faults.fail_allocations = 0.0
        monitor.run(40.0)
    assert len([loss for loss in monitor.picture.losses if loss.cause is LossCause.RESYNC]) == takeovers
    kernel.faults.fail_allocations = 1.0
    kernel.open_tcp(9, "unseen", remote=REMOTE)
    kernel.faults.fail_allocations = 0.5
    monitor.run(100.0)
    assert not monitor.picture.removed
    kernel.faults.fail_allocations = 0.0
    monitor.run(80.0)
    agree(kernel, monitor)
    assert not monitor.picture.removed


def test_a_look_at_a_second_socket_that_cannot_be_opened_is_tried_again_later_and_harms_nothing():
    kernel, _, monitor = watched("xnu-7195.141.2", interval=1.0)
    monitor.control_present = False
    monitor.run(100.0)
    assert monitor.session.failure is None
    assert monitor.session.statistics()["audits"] >= 3
    assert not monitor.picture.losses
    agree(kernel, monitor)


def test_while_the_second_socket_takes_over_the_first_may_go_away():
    for lost_after in range(1, 12):
        kernel, _, monitor = watched(discovery="announce", interval=1.0)
        kernel.faults.lose_announcements = 1.0
        kernel.open_tcp(9, "lost", remote=REMOTE)
        kernel.faults.lose_announcements = 0.0
        kernel.open_tcp(10, "next", remote=REMOTE)
        first = kernel.clients[-1]
        sent = []
        original = type(first).send

        def send(client, data, first=first, lost_after=lost_after, sent=sent, original=original):
            sent.append(data)
            original(client, data)
            if len(sent) == lost_after:
                first.end()

        type(first).send = send
        try:
            monitor.run(8.0)
        finally:
            type(first).send = original
        agree(kernel, monitor)
        assert len(kernel.clients) == 1


@pytest.mark.parametrize("name", ["xnu-2782.40.9", "xnu-3789.70.16"])
def test_sockets_that_look_alike_are_not_swapped_where_no_creation_time_tells_them_apart(name):
    kernel = EmulatedKernel(name)
    alike = [kernel.open_udp(9, "twin", rx=size, tx=size) for size in (10, 5000, 70)]
    monitor = VirtualMonitor(kernel, interval=None)
    monitor.run(0.5)
    before = {counts.rx_bytes: flow.id for flow, counts in monitor.session.flows()}
    kernel.end_controls()
    alike[1].transfer(rx=1)
    alike[0].close()
    monitor.run(2.0)
    after = {flow.id: counts.rx_bytes for flow, counts in monitor.session.flows()}
    assert after == {before[5000]: 5001, before[70]: 70}


# --- the kernel's own count ----------------------------------------------------------------------


def test_what_only_the_kernel_counts_as_lost_is_said_and_found_on_a_second_socket():
    kernel = EmulatedKernel("xnu-12377.121.6", privileged=True)
    monitor = VirtualMonitor(kernel, interval=1.0, ledger=True)
    monitor.run(2.0)
    kernel.faults.fail_allocations = 1.0  # uses no number: no gap will ever tell
    for number in range(3):
        kernel.open_tcp(20 + number, f"unseen{number}", remote=REMOTE, rx=5)
    kernel.faults.fail_allocations = 0.0
    monitor.run(25.0)
    losses = [loss for loss in monitor.picture.losses if loss.cause is LossCause.ANNOUNCEMENT]
    assert [loss.count for loss in losses] == [3]
    assert "net.stats.metrics" in losses[0].detail
    agree(kernel, monitor)
    assert monitor.session.statistics()["kernel_refused_sources"] == 0, "of the socket that speaks now"


def test_what_was_reported_as_lost_is_not_reported_again_for_the_kernels_count():
    kernel = EmulatedKernel("xnu-12377.121.6", privileged=True)
    flows = [kernel.open_tcp(20 + n, f"p{n}", remote=REMOTE, rx=5) for n in range(5)]
    monitor = VirtualMonitor(kernel, interval=1.0, ledger=True)
    monitor.run(2.0)
    kernel.faults.lose_final_reports = 1.0
    for flow in flows[:3]:
        flow.close()
    kernel.faults.lose_final_reports = 0.0
    monitor.run(30.0)
    assert causes(monitor) == [LossCause.FINAL_COUNTS] * 3
    assert monitor.session.statistics()["kernel_failed_goodbyes"] == 3


def test_of_two_monitors_that_begin_together_each_reads_the_kernels_count_of_its_own_socket():
    kernel = EmulatedKernel("xnu-12377.121.6", privileged=True)
    flows = [kernel.open_tcp(20 + n, f"p{n}", remote=REMOTE, rx=5) for n in range(3)]
    starved, other = (
        VirtualMonitor(kernel, interval=1.0, ledger=True, receive_buffer=size) for size in (8192, 1 << 20)
    )
    starved.run(2.0)
    other.run(0.0)
    next(iter(starved.channels.values())).failed_goodbyes = 3
    for flow in flows:
        flow.close()
    for _ in range(30):
        starved.run(1.0)
        other.run(0.0)
    assert starved.session.statistics()["kernel_failed_goodbyes"] == 3
    assert other.session.statistics()["kernel_failed_goodbyes"] == 0
    assert not other.picture.losses


def reconciled(*looks, name="xnu-12377.121.6"):
    """What is said when the kernel's counts are these, one after the other (the last from then on); when they were read."""
    kernel, times, looks = EmulatedKernel(name), [], list(looks)

    def lookup(request):
        assert isinstance(request, ReadLedger)
        times.append(kernel.now)
        return looks.pop(0) if len(looks) > 1 else looks[0]

    monitor = VirtualMonitor(kernel, interval=1.0, ledger=True, lookup=lookup)
    monitor.run(34.5)
    said = [(loss.cause, loss.count) for loss in monitor.picture.losses if loss.cause is not LossCause.RESYNC]
    return said, times, monitor.session.statistics()


def test_the_kernels_count_is_read_at_the_first_poll_after_ten_seconds_each():
    said, times, statistics = reconciled(Ledger((LedgerRow(3, 0, 0),)))
    assert [round(time - times[0]) for time in times] == [0, 10, 20, 30]
    assert times[0] <= 1000.1
    assert not said
    assert (statistics["kernel_refused_sources"], statistics["kernel_failed_goodbyes"]) == (0, 0)


def test_what_the_kernel_counts_as_lost_is_said_once_and_what_comes_to_it_again():
    counts = [Ledger((LedgerRow(3, 0, ends),)) for ends in (2, 2, 5)]
    assert reconciled(*counts)[0] == [(LossCause.GOODBYE, 2), (LossCause.GOODBYE, 3)]


def test_of_several_control_sockets_of_the_process_the_newest_counts_and_one_that_goes_away_was_anothers():
    rows = LedgerRow(3, 0, 1), LedgerRow(9, 0, 4), LedgerRow(4, 0, 2)
    assert reconciled(Ledger(rows))[0] == [(LossCause.GOODBYE, 4)]
    said, _, statistics = reconciled(Ledger(rows[1:2]), Ledger((rows[0], rows[2])))
    assert said == [(LossCause.GOODBYE, 4), (LossCause.GOODBYE, 2)]
    assert statistics["kernel_failed_goodbyes"] == 2


def test_what_the_machine_refused_before_the_first_look_is_no_part_of_the_statistic():
    said, times, statistics = reconciled(Ledger((), 7), Ledger((), None), Ledger((), 12), name="xnu-7195.141.2")
    assert statistics["kernel_refused_announcements"] == 5
    assert len(times) == 4
    assert not said
    assert "kernel_refused_announcements" not in reconciled(Ledger((LedgerRow(3, 0, 0),), 7))[2], "nobody starves there"


@pytest.mark.parametrize(("name", "privileged"), [("xnu-12377.121.6", False), (KERNEL, True)])
def test_where_the_kernels_count_may_not_be_read_nothing_is_said_of_it(name, privileged):
    kernel = EmulatedKernel(name, privileged=privileged)
    asked = []
    lookup = kernel.transport().lookup
    monitor = VirtualMonitor(kernel, interval=1.0, ledger=True, lookup=lambda r: asked.append(r) or lookup(r))
    monitor.run(40.0)
    assert len(asked) == (name != KERNEL)
    assert "kernel_refused_sources" not in monitor.session.statistics()
    assert not monitor.picture.losses


def test_a_flow_whose_counters_the_second_socket_was_not_told_keeps_those_that_were_reported():
    flow = Flow("1.7", Provider.UDP)
    before = Source(
        7, "1.7", None, 3, preexisting=False, flow=flow, raw=b"counters as sent", corrected=(5, 6), reported=True
    )
    after = Source(9, "2.9", None, 3, preexisting=True, flow=attrs.evolve(flow, id="2.9"))
    found = Comparison(both=[(before, after)], ended=[], outlived=[], fresh=[], passed=[], vanished=[])
    table = SimpleNamespace(remember_ends=lambda *, wanted: None)
    continue_flows(table, table, found)
    assert (after.id, after.flow, after.counters) == ("1.7", flow, (5, 6))

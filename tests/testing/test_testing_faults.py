"""What goes wrong on purpose goes wrong as on a real machine."""

import pytest
from ntstat_wire import NEWER
from talk import SUPPRESS, Talk, descriptor, names

from nstat_async import Provider
from nstat_async.testing import DARWIN_27_INSERTIONS, EmulatedKernel


def watched(**options):
    machine = EmulatedKernel(**options)
    talk = Talk(machine)
    talk.watch(Provider.TCP, userland=False)
    return machine, talk


def test_a_lost_announcement_uses_up_a_number_and_its_flow_is_never_told_of():
    machine, talk = watched()
    machine.faults.lose_announcements = 1.0
    lost = machine.open_tcp()
    machine.faults.lose_announcements = 0.0
    machine.open_tcp()
    assert [m.srcref for m in talk.read()] == [2]
    assert [m.srcref for m in talk.query() if m.name == "SRC_COUNTS"] == [2]
    lost.close()
    assert talk.read() == []


def test_a_lost_batch_is_followed_by_success():
    machine, talk = watched()
    machine.open_tcp()
    talk.read()
    machine.faults.lose_batches = 1.0
    assert names(talk.query()) == ["SUCCESS"]


def test_a_full_buffer_lets_only_critical_records_in():
    machine, talk = watched()
    flow = machine.open_tcp()
    talk.read()
    machine.faults.full = True
    assert names(talk.query(srcref=1, flags=0)) == ["ERROR"]
    flow.close()
    (removed,) = talk.read()
    assert (removed.name, removed.flags) == ("SRC_REMOVED", 8)


def test_a_lost_final_report_is_told_by_the_flag():
    machine, talk = watched()
    flow = machine.open_tcp()
    talk.read()
    machine.faults.lose_final_reports = 1.0
    flow.close()
    assert [(m.name, m.flags) for m in talk.read()] == [("SRC_REMOVED", 8)]


def test_a_lost_goodbye_leaves_no_trace():
    machine, talk = watched()
    flow = machine.open_tcp()
    talk.read()
    machine.faults.lose_goodbyes = 1.0
    flow.close()
    assert talk.read() == []
    assert talk.query(srcref=1, flags=0)[0].error == 2


def test_a_delayed_goodbye_comes_at_its_time():
    machine, talk = watched()
    flow = machine.open_tcp()
    talk.read()
    machine.faults.delay_goodbyes = 5.0
    flow.close()
    machine.advance(4.9)
    assert talk.read() == []
    machine.advance(0.1)
    assert names(talk.read())[-1] == "SRC_REMOVED"


def test_replies_over_a_slow_bridge_come_later_and_in_order():
    machine, talk = watched()
    machine.faults.reply_delay = 0.5
    machine.open_tcp()
    machine.faults.reply_delay = 0.0
    machine.open_tcp()
    assert talk.read() == []
    machine.advance(0.5)
    assert [m.srcref for m in talk.read()] == [1, 2]


def test_a_control_that_goes_away_is_read_to_its_end():
    machine, talk = watched()
    machine.open_tcp()
    machine.end_controls()
    assert talk.client.receive()
    with pytest.raises(EOFError):
        talk.client.receive()
    with pytest.raises(OSError):
        talk.client.send(bytes(16))


def test_injected_bytes_arrive_as_they_are():
    machine, talk = watched()
    machine.inject(b"\xff" * 100)
    assert talk.client.receive() == b"\xff" * 100


def test_a_newer_kernel_has_longer_descriptors_with_moved_fields():
    machine = EmulatedKernel(NEWER, insertions=DARWIN_27_INSERTIONS[0])
    plain = EmulatedKernel(NEWER)
    found = []
    for kernel in (plain, machine):
        talk = Talk(kernel)
        talk.watch(Provider.TCP, filter=SUPPRESS, userland=False)
        kernel.open_tcp(9, "app", remote=("198.51.100.7", 443))
        found.append(talk.update()[0].descriptor)
    before, after = found
    assert len(after) == len(before) + 16
    assert after[:292] + after[308:] == before
    assert descriptor(plain, talk.update()[0])["pid"] == 9


def test_a_jump_moves_timestamps_and_no_timer():
    machine, _ = watched()
    before = machine.ticks
    machine.jump_clock(3600)
    assert machine.ticks - before == 3600 * 10**9
    machine.jump_clock(-(10**6))
    assert machine.ticks == 0
    assert machine.next_timer() == pytest.approx(60)


def test_the_same_seed_loses_the_same():
    runs = []
    for _ in range(2):
        machine, talk = watched(seed=11)
        machine.faults.lose_announcements = 0.5
        for _ in range(50):
            machine.open_tcp()
        runs.append([m.srcref for m in talk.read()])
    assert runs[0] == runs[1]
    assert 0 < len(runs[0]) < 50

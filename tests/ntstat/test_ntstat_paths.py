"""Paths of executables: a look-up like any other, whose answer comes with an update."""

from __future__ import annotations

import pytest
from virtual import VirtualMonitor

from nstat_async import FlowAdded, FlowEvent, FlowRemoved, FlowUpdated, MonitorOptions
from nstat_async._io.kctl import KctlTransport
from nstat_async.ntstat import FindPaths, Kernel, Mode, PathsFound, Session, _translate
from nstat_async.ntstat._translate import Translator
from nstat_async.testing import EmulatedKernel

KERNEL = Kernel.parse("xnu-11417.121.6")


def owner(paths, pid=7, name=b"curl\0"):
    translator = Translator(KERNEL, asks_paths=True)
    fields = {"pid": pid, "upid": 70 + pid, "pname": name}
    before = translator.process(fields)
    assert before.path is None
    assert list(translator.unasked) == [pid]
    translator.merge_paths(PathsFound(tuple(paths), tuple(paths.values())))
    return translator.process(fields)


def test_a_process_is_reported_with_the_path_of_its_executable():
    assert owner({7: "/usr/bin/curl"}).path == "/usr/bin/curl"


def test_a_name_that_the_kernel_cut_still_finds_its_path():
    assert owner({7: "/Applications/X/com.example.longservice"}, name=b"com.example.long").path is not None


@pytest.mark.parametrize("paths", [{}, {7: None}, {7: "/usr/sbin/sshd"}], ids=["unasked", "gone", "given away"])
def test_a_pid_that_is_gone_or_was_given_away_has_no_path(paths):
    assert owner(paths).path is None


def test_where_nobody_can_answer_nothing_is_asked():
    translator = Translator(KERNEL)
    assert translator.process({"pid": 7, "upid": 77, "pname": b"curl"}).path is None
    assert not translator.unasked


def test_a_path_is_kept_while_its_flow_lives_though_thousands_of_other_processes_came(monkeypatch):
    """The process may have ended meanwhile, so nobody could find its path again."""
    monkeypatch.setattr(_translate, "_CACHED", 3)
    kernel = EmulatedKernel("xnu-11417.121.6")
    ask = Asked()
    monitor = monitored(kernel, ask)
    flow = kernel.open_tcp(501, "p501")
    monitor.poll()
    for pid in range(600, 604):
        kernel.open_udp(pid, f"p{pid}")
        monitor.poll()
    asked = len(ask.requests)
    monitor.collected.clear()
    flow.connect(("192.0.2.9", 443))
    monitor.poll()
    flow.close()
    monitor.run(1.0)
    told = [event.flow for event in monitor.collected if isinstance(event, FlowEvent) and event.flow.process.pid == 501]
    assert len(told) > 1
    assert {seen.process.path for seen in told} == {"/bin/p501"}
    assert len(ask.requests) == asked


class Asked:
    """Answers look-ups like a Mac, and keeps them."""

    def __init__(self):
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        return PathsFound(request.pids, tuple(f"/bin/p{pid}" if pid != 502 else None for pid in request.pids))


def monitored(kernel, answer):
    monitor = VirtualMonitor(kernel, lookup=answer)
    monitor.session.translator.asks_paths = True
    monitor.collected = []
    monitor.add_sink(monitor.collected.extend)
    return monitor


def test_a_flow_gets_its_path_with_an_update_and_each_process_is_asked_for_once():
    kernel, asked = EmulatedKernel("xnu-11417.121.6"), Asked()
    monitor = monitored(kernel, asked)
    flows = [kernel.open_tcp(pid, f"p{pid}", remote=("198.51.100.7", 443), rx=5) for pid in (501, 501, 502)]
    monitor.run(3.0)
    added = [e for e in monitor.collected if isinstance(e, FlowAdded)]
    assert [e.flow.process.path for e in added] == [None] * 3
    updates = [e for e in monitor.collected if isinstance(e, FlowUpdated)]
    assert [(e.flow.process.path, e.counts == e.previous) for e in updates] == [("/bin/p501", True)] * 2
    assert sorted(pid for request in asked.requests for pid in request.pids) == [501, 502]
    assert [flow.process.path for flow, _ in monitor.session.flows() if flow.process.pid == 501] == ["/bin/p501"] * 2
    for flow in flows:
        flow.transfer(rx=7)
        flow.close()
    monitor.run(3.0)
    removed = [e for e in monitor.collected if isinstance(e, FlowRemoved)]
    assert sorted(str(e.flow.process.path) for e in removed) == ["/bin/p501", "/bin/p501", "None"]
    assert len(asked.requests) == 1, "one question for all processes that are new"


def test_a_look_up_that_fails_is_no_end_of_look_ups():
    kernel, answers = EmulatedKernel("xnu-11417.121.6"), [None]
    asked = Asked()
    monitor = monitored(kernel, lambda request: answers.pop() if answers else asked(request))
    kernel.open_tcp(501, "p501", remote=("198.51.100.7", 443), rx=5)
    monitor.run(2.0)
    kernel.open_tcp(503, "p503", remote=("198.51.100.7", 443), rx=5)
    monitor.run(2.0)
    assert {flow.process.pid: flow.process.path for flow, _ in monitor.session.flows()} == {501: None, 503: "/bin/p503"}


def test_a_recorded_answer_is_taken_in_by_a_session_that_follows():
    from ntstat_wire import Wire

    wire = Wire(11)
    session = Session(wire.kernel, mode=Mode.FOLLOWING)
    session.receive_datagram(wire.updated(1, wire.counts(5, 5), wire.descriptor(2, pid=7, pname=b"curl")), 1.0)
    assert session.commands() == []
    session.lookup_done(3, PathsFound((7,), ("/usr/bin/curl",)), 2.0)
    added, updated = session.take_events()
    assert (added.flow.process.path, updated.flow.process.path) == (None, "/usr/bin/curl")


def test_the_kernel_control_s_transport_answers_for_every_process_that_is_asked_for():
    transport = KctlTransport(MonitorOptions())
    answer = transport.lookup(FindPaths((1, 2**31 - 7)))
    transport.close()
    assert answer.pids == (1, 2**31 - 7)
    assert answer.paths[1] is None

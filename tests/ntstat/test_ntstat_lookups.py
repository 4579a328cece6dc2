"""What a session has looked up: executables, the kernel's count of losses, flows of which the truth is known."""

from __future__ import annotations

import pytest
from ntstat_talk import Talk, subscribed
from ntstat_wire import NEWER, address

from nstat_async import Endpoint, EventsLost, FlowAdded, LossCause, Provider
from nstat_async._contract import LookupFailed
from nstat_async.ntstat import (
    AddSource,
    CloseEvidence,
    DarwinErrno,
    Evidence,
    FindPaths,
    InterfacesRead,
    KnownFlow,
    Ledger,
    LedgerRow,
    OpenEvidence,
    PathsFound,
    ReadInterfaces,
    ReadLedger,
)
from nstat_async.ntstat._ledger import READ_EVERY
from nstat_async.ntstat._session import PROOF_PATIENCE


def _two_processes(**facts) -> Talk:
    """A session on a wall clock, a poll each hour; its first poll reported flows of pids 1 and 2."""
    talk = Talk(12, facts=facts, interval=3600.0)
    talk.core.epoch_offset = 1e9
    talk.subscribe()
    data = talk.report(2, pid=2, upid=2) + talk.report(1, pid=1, upid=1)
    talk.answer(data, talk.wire.success(talk.open_poll[0].context))
    talk.events()
    talk.now += 7.0
    return talk


def test_executables_are_asked_for_one_question_at_a_time_and_reported_when_they_are_found():
    talk = _two_processes(paths=True)
    assert [lookup.request for lookup in talk.lookups] == [FindPaths((2,))]
    talk.found(PathsFound((2,), ("/bin/curl",)))
    (event,) = talk.events()
    assert (event.flow.process.path, event.time) == ("/bin/curl", talk.now + 1e9)
    assert [lookup.request for lookup in talk.lookups] == [FindPaths((1,))], "what came meanwhile"
    talk.found(LookupFailed("no"))
    talk.answer(talk.report(5, pid=5, upid=5))
    assert talk.lookups[0].request == FindPaths((5,)), "one that failed holds nobody up"


def test_both_control_sockets_hear_of_executables():
    talk = _two_processes(paths=True)
    talk.lookups.clear()
    (poll,) = talk.reopen()
    talk.answer(talk.report(11, local=address("192.0.2.1", 1001), pid=1, upid=1))
    talk.core.lookup_done(3, PathsFound((1,), ("/bin/curl",)), talk.now)
    talk.answer(talk.wire.success(poll.context))
    paths = {flow.process.path for flow, _ in talk.core.flows() if flow.process.pid == 1}
    assert paths == {"/bin/curl"}


def test_what_the_kernel_counts_as_lost_is_said_at_the_moment_of_its_answer_and_repaired():
    talk = _two_processes(ledger=True)
    assert talk.lookups[0].request == ReadLedger()
    talk.found(Ledger((LedgerRow(3, 2, 1),)))
    losses = talk.events()
    assert [(loss.cause, loss.count) for loss in losses] == [(LossCause.ANNOUNCEMENT, 2), (LossCause.GOODBYE, 1)]
    assert {loss.time for loss in losses} == {talk.now + 1e9}
    assert "net.stats.metrics" in losses[0].detail
    assert talk.core.next_deadline() == talk.now, "another control socket is opened at once"
    known = subscribed(12, facts={"ledger": True})
    known.answer(*(known.wire.error(question.context, DarwinErrno.ENOENT) for question in known.poll(3)))
    assert [(loss.cause, loss.count) for loss in known.events(EventsLost)] == [(LossCause.GOODBYE, 2)]
    known.found(Ledger((LedgerRow(3, 0, 2),)))
    assert known.events() == [], "which was said already"
    lost = _two_processes(ledger=True)
    lost.found(Ledger((LedgerRow(3, 0, 1),)))
    assert lost.core.next_deadline() > lost.now + 50, "no other one hears of what has ended"


@pytest.mark.parametrize(("counted", "more"), [(2, []), (3, [1])])
def test_of_announcements_that_the_kernel_counts_as_lost_those_are_said_that_no_gap_showed(counted, more):
    talk = Talk(12, discovery="announce", interval=3600.0, facts={"ledger": True})
    talk.open_poll = talk.grant(talk.answer(talk.wire.added(1), talk.wire.success(talk.asked()[0].context)))
    talk.answer(talk.wire.added(4))
    assert [(loss.cause, loss.count) for loss in talk.events(EventsLost)] == [(LossCause.ANNOUNCEMENT, 2)]
    talk.poll(1, 4)
    talk.events()
    talk.found(Ledger((LedgerRow(3, counted, 0),)))
    assert [loss.count for loss in talk.events(EventsLost)] == more


@pytest.mark.parametrize(("kernel", "is_read"), [(4, False), (5, True), (10, True), (11, False), (12, True)])
def test_the_count_is_read_where_a_kernel_keeps_one(kernel, is_read):
    talk = subscribed(kernel, facts={"ledger": True})
    (request,) = talk.open_poll
    for _ in range(3):
        (request,) = talk.answer(talk.wire.success(request.context)) or [None]
        if request is None:
            break
    assert [lookup.request for lookup in talk.lookups] == [ReadLedger()] * is_read
    for later in (0.0, READ_EVERY - 0.5, READ_EVERY) if is_read else ():
        talk.lookups.clear()
        talk.now = 100.0 + later
        talk.core.request_poll(talk.now)
        talk.answer(talk.wire.success(talk.asked()[0].context))
        assert len(talk.lookups) == (later == READ_EVERY)


def test_of_each_control_socket_the_kernel_counts_anew():
    talk = _two_processes(ledger=True)
    talk.found(Ledger((LedgerRow(3, 0, 1),)))
    talk.now += 20.0
    (poll,) = talk.reopen()
    talk.answer(talk.report(2), talk.report(1), talk.wire.success(poll.context))
    talk.events()
    talk.found(Ledger((LedgerRow(3, 0, 1), LedgerRow(4, 0, 1))))
    assert [(loss.cause, loss.count) for loss in talk.events()] == [(LossCause.GOODBYE, 1)]


def test_another_control_socket_s_flows_are_measured_at_once():
    talk = subscribed(12, facts={"coverage": True}, interval=3600.0)
    talk.poll(1)
    talk.due()
    assert [lookup.request for lookup in talk.lookups] == [ReadInterfaces()]
    talk.found(InterfacesRead(((4, 1, 1),)))
    (poll,) = talk.reopen()
    talk.answer(talk.report(1), talk.wire.success(poll.context))
    talk.due()
    assert [lookup.request for lookup in talk.lookups] == [ReadInterfaces()]


def test_another_control_socket_watches_the_interfaces_that_there_are_now():
    talk = Talk(11, facts={"coverage": True}, providers={Provider.TCP, Provider.INTERFACE}, interval=3600.0)
    talk.open_poll = talk.grant(talk.asked())
    (request,) = talk.open_poll
    talk.open_poll = talk.answer(talk.wire.added(1, provider=6, context=request.context))
    talk.poll()
    talk.due()
    talk.found(InterfacesRead((), ((5, "en1"), (7, "en7"))))
    requests = talk.reopen()
    indexes = []
    while isinstance(requests[0], AddSource):
        indexes.append(talk.wire.layout["nstat_ifnet_add_param"].decode(requests[0].param)["ifindex"])
        requests = talk.answer(talk.wire.added(len(indexes), provider=6, context=requests[0].context))
    assert indexes == [5, 7], "en0 is gone"


EVIDENCE = Evidence(
    pid=9, uid=0, interface_index=4,
    flows=(KnownFlow(
        provider=Provider.TCP, local=Endpoint.parse("192.0.2.1", 1003), remote=Endpoint.parse("192.0.2.9", 443),
        state=None, rx_bytes=1, tx_bytes=1,
    ),),
)  # fmt: skip


def test_a_proof_goes_on_at_once_and_its_flows_are_nobodys_until_they_are_closed():
    talk = _two_processes(verify=True)
    assert talk.lookups[0].request == OpenEvidence()
    (poll,) = talk.found(EVIDENCE)
    assert poll.srcref == talk.wire.layout.all_sources
    known = talk.report(3, pid=9, upid=9)
    for _ in range(3):
        (poll,) = talk.answer(known, talk.report(2, pid=2, upid=2), talk.report(1, pid=1, upid=1),
                              talk.wire.success(poll.context)) or [None]  # fmt: skip
        if talk.lookups:
            break
    assert talk.lookups[0].request == CloseEvidence()
    assert not talk.events(FlowAdded)
    talk.found(None)
    talk.answer(talk.wire.removed(3), talk.report(4, pid=9, upid=9, local=address("192.0.2.1", 1003)))
    assert [event.flow.process.pid for event in talk.events(FlowAdded)] == [9]


def test_while_a_layout_is_proven_reports_answer_questions_as_ever():
    talk = _two_processes(verify=True)
    (poll,) = talk.found(EVIDENCE)
    (question,) = talk.answer(talk.report(1, pid=1, upid=1), talk.wire.success(poll.context))
    assert question.srcref == 2
    descriptor = talk.wire.descriptor(2, pid=2, upid=2)
    talk.answer(talk.wire.updated(2, talk.wire.counts(5), descriptor, context=question.context))
    (loss,) = talk.events(EventsLost)
    assert (loss.cause, loss.count) == (LossCause.BATCH, 1)


def test_polls_wait_for_the_known_flows_of_a_proof_but_not_for_ever():
    talk = subscribed(12, facts={"verify": True}, interval=1.0)
    talk.poll()
    assert talk.lookups[0].request == OpenEvidence()
    assert talk.core.next_deadline() == talk.now + PROOF_PATIENCE


def test_known_flows_that_cannot_be_opened_cost_no_poll():
    talk = _two_processes(verify=True)
    assert talk.found(None) == []
    assert any("cannot be proven" in note for note in talk.core.capabilities.notes)


@pytest.mark.parametrize(("kernel", "proves"), [(12, False), (NEWER, True)])
def test_who_does_not_say_whether_to_prove_proves_what_is_newer_than_known(kernel, proves):
    talk = subscribed(kernel, facts={})
    talk.answer(talk.wire.success(talk.open_poll[0].context))
    assert [lookup.request for lookup in talk.lookups] == [OpenEvidence()] * proves

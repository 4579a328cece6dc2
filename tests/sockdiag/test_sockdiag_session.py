"""The session against a kernel made of a dictionary: what it opens, asks for and is able to, its namespaces, and broken bytes."""

from __future__ import annotations

import errno

import pytest
from sockdiag_fakes import FakeKernel, FakeSocket, flow_events, kinds, polls, traffic

from nstat_async import _errors
from nstat_async._events import EventsLost, FlowAdded, LossCause
from nstat_async._model import Provider, Visibility
from nstat_async._options import MonitorOptions
from nstat_async.sockdiag import DiagRequest, NetworkNamespace, OpenChannel, Session, iterate_messages
from nstat_async.sockdiag._constants import DiagGroup
from nstat_async.sockdiag._setup import UNNAMED


@pytest.mark.parametrize(
    ("provider", "counted", "groups"),
    [
        (Provider.TCP, True, (DiagGroup.TCP4_DESTROY, DiagGroup.TCP6_DESTROY)),
        (Provider.UDP, False, (DiagGroup.UDP4_DESTROY, DiagGroup.UDP6_DESTROY)),
    ],
)
def test_what_is_counted_is_what_is_asked_for(provider, counted, groups):
    """Without eBPF nobody counts UDP; channels are opened in an order in which nothing falls between them."""
    kernel = FakeKernel(providers={provider})
    kernel.session.start(kernel.now)
    opened = [each for each in kernel.session.commands() if isinstance(each, OpenChannel)]
    assert [each.channel for each in opened] == [1, 2, 3, 0]
    assert opened[0].purpose.groups == groups
    able = kernel.session.capabilities
    assert (able.tcp_counts, able.udp_counts) == (counted, False)


@pytest.mark.parametrize(
    ("setup", "partly", "refused", "expected", "limit"),
    [
        (Visibility.ALL, Visibility.SOME, 0, Visibility.ALL, None),
        (Visibility.ALL, Visibility.SOME, 1, Visibility.SOME, f"1 of the {UNNAMED}"),
        (Visibility.ALL, Visibility.OWN, 2, Visibility.OWN, f"2 of the {UNNAMED}"),
        (Visibility.OWN, Visibility.SOME, 2, Visibility.OWN, "hidden"),
        (Visibility.OWN, Visibility.SOME, 0, Visibility.OWN, "hidden"),
    ],
)
def test_whose_processes_are_seen_is_what_a_search_met(setup, partly, refused, expected, limit):
    """What was known before a search stands, but for processes that it may not look at; and one poll is all that is asked for."""
    text = None if setup is Visibility.ALL else "hidden"
    options = MonitorOptions(interval=None, providers="tcp")
    kernel = FakeKernel(Session(options, processes=setup, limit=text, refused=partly))
    kernel.refused_processes = refused
    kernel.sockets[1] = FakeSocket(1, inode=77)
    kernel.start()
    able = kernel.session.capabilities
    assert (able.processes, able.processes_limit) == (expected, limit)
    assert (limit in able.notes) is (limit is not None)
    assert not any("UDP" in note for note in able.notes)
    assert kinds(kernel.wait(9.0)) == []


def test_providers_choose_the_dumps():
    """Only what was asked for is dumped and subscribed; nothing that Linux has is a usage error."""
    kernel = FakeKernel(providers="tcp")
    kernel.start()
    requests = [item[3] for item in kernel.record if item[0] == "to" and item[2] == 0]
    assert [DiagRequest.decode(data, next(iterate_messages(data))).protocol for data in requests] == [6]
    with pytest.raises(_errors.UsageError, match="tcp, udp"):
        Session(MonitorOptions(providers={Provider.QUIC}))


def test_several_namespaces_share_one_stream():
    """Flows of another namespace say so, ids differ, and the poll is complete when all are."""
    session = Session(MonitorOptions(), namespaces=(NetworkNamespace(), NetworkNamespace("blue")))
    kernel = FakeKernel(session)
    kernel.sockets[1] = FakeSocket(1, info=traffic())
    added = [e.flow for e in kernel.start() if isinstance(e, FlowAdded)]
    assert {(flow.id, flow.namespace) for flow in added} == {("c1", None), ("n1:c1", "blue")}
    assert len(polls(kernel.events)) == 1


def test_where_no_other_namespace_can_be_entered_this_one_is_watched():
    kernel = FakeKernel(Session(MonitorOptions(), all_namespaces=True, closed=True))
    kernel.sockets[1] = FakeSocket(1)
    kernel.start()
    assert kernel.session.failure is None
    assert [event.flow.namespace for event in flow_events(kernel.events)] == [None]


def test_a_channel_that_is_closed_has_failed(kernel):
    kernel.start()
    kernel.session.channel_closed(0, kernel.now)
    kernel.session.channel_closed(1, kernel.now)
    kernel.run()
    figures = kernel.session.statistics()
    assert (figures["reopened"], figures["overruns"]) == (1, 1)


def test_events_have_the_time_of_what_brought_them(kernel):
    """An answer, a channel's failure, somebody's request."""
    kernel.start()
    kernel.hold_lookups = True
    kernel.sockets[1] = FakeSocket(1, inode=77, info=traffic())
    kernel.owners[77] = 42
    kernel.wait(1.0)
    kernel.now += 0.2
    kernel.answer(kernel.held.pop())
    assert [event.time for event in kernel.run()] == [1101.2, 1101.2]
    kernel.now += 0.2
    kernel.session.channel_failed(1, errno.ENOBUFS, kernel.now)
    assert [event.time for event in kernel.session.take_events()] == [pytest.approx(1101.4)]
    kernel.now += 0.2
    kernel.hold_lookups = False
    assert kernel.poll()[-1].time == pytest.approx(1101.6)


@pytest.mark.parametrize("data", [b"\0", b"\0" * 20, b"\xff" * 40, b"\x14\0\0\0\x14\0\2\0" + bytes(12)])
@pytest.mark.parametrize("channel", [0, 1, 2, 3, 7])
def test_broken_bytes_cost_themselves(kernel, data, channel):
    """Nothing raises; what is broken is a loss in the stream, and polling goes on."""
    kernel.sockets[1] = FakeSocket(1, info=traffic())
    kernel.start()
    kernel.feed(data, channel)
    assert all(isinstance(e, EventsLost) and e.cause is LossCause.PROTOCOL for e in kernel.run())
    assert kernel.wait(1.0)[-1].complete
    assert kernel.session.statistics()["namespaces"] == 1


def test_strict_turns_broken_bytes_into_a_failure():
    """strict=True is for tests: the first undecodable datagram ends the session."""
    kernel = FakeKernel(strict=True)
    kernel.start()
    kernel.feed(b"\xff" * 40, 1)
    assert isinstance(kernel.session.failure, _errors.ProtocolError)

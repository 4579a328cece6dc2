"""What a session asks for first: providers one after the other, by the release's own numbers and filters."""

from __future__ import annotations

import errno

import pytest
from ntstat_talk import TCP_UDP, Talk, subscribed
from ntstat_wire import address

from nstat_async import (
    BackendUnavailableError,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    PollCompleted,
    Provider,
    ProviderRefused,
    RemovalReason,
    RequestError,
    UsageError,
)
from nstat_async.ntstat import (
    AddAllSources,
    AddSource,
    DarwinErrno,
    GetDetails,
    GetSourceDescription,
    GetUpdate,
    QuerySource,
    Session,
    SubscribeSystemInfo,
)
from nstat_async.ntstat._subscription import DESCRIBE_DELAY


@pytest.mark.parametrize(
    ("kernel", "numbers", "bits"),
    [
        (1, [2, 3], 0),
        (4, [2, 3], 0),
        (5, [2, 3], 0x100000),
        (6, [2, 3, 4, 5], 0x100000),
        (7, [2, 3, 4, 5, 8], 0x100000),
        (11, [2, 3, 4, 5, 8], 0x100000),
        (12, [2, 3, 4, 5, 8], 0x100000),
    ],
)
def test_providers_are_subscribed_one_after_the_other_and_a_poll_follows(kernel, numbers, bits):
    talk = Talk(kernel, providers={Provider.TCP, Provider.UDP, Provider.QUIC})
    requests = talk.subscribe()
    assert [r.provider for r in requests] == numbers
    assert {r.filter for r in requests} == {bits}
    contexts = [r.context for r in requests]
    assert len(set(contexts)) == len(contexts)
    (first,) = talk.open_poll
    reference = talk.wire.layout.all_sources
    if kernel >= 5:
        assert first == GetUpdate(context=first.context, flags=3, srcref=reference)
    else:
        assert isinstance(first, QuerySource)
    assert talk.events() == []
    assert talk.core.capabilities.providers >= TCP_UDP


def test_announced_discovery_suppresses_nothing():
    assert {r.filter for r in Talk(11, discovery="announce").subscribe()} == {0}


@pytest.mark.parametrize(
    ("kernel", "bits"),
    [("xnu-8019.41.5", 1 << 28), ("xnu-8019.61.5", 1 << 41), ("xnu-8796.141.3", 1 << 41 | 1 << 45),
     ("xnu-11417.121.6", 1 << 41 | 1 << 45 | 1 << 46)],
)  # fmt: skip
def test_extras_ask_for_what_the_release_has(kernel, bits):
    talk = Talk(kernel, extras=True, providers={Provider.TCP})
    requests = talk.subscribe()
    assert {r.filter for r in requests} == {0x100000 | bits}
    assert isinstance(talk.open_poll[0], SubscribeSystemInfo)
    (poll,) = talk.drained()  # granted in silence
    assert isinstance(poll, GetUpdate)
    refused = subscribed(kernel, extras=True, providers={Provider.TCP})
    (poll,) = refused.answer(refused.wire.error(refused.open_poll[0].context, DarwinErrno.EPERM))
    assert isinstance(poll, GetUpdate)
    assert refused.events() == []


def test_extras_of_26_poll_for_details():
    talk = subscribed(12, extras=True, providers={Provider.TCP})
    assert isinstance(talk.drained()[0], GetDetails)


def test_interfaces_are_asked_for_by_index():
    talk = subscribed(11, providers={Provider.INTERFACE, Provider.TCP})
    (request,) = talk.open_poll
    assert isinstance(request, AddSource)
    assert talk.wire.layout["nstat_ifnet_add_param"].decode(request.param) == {"threshold": 1 << 20, "ifindex": 4}
    (poll,) = talk.answer(talk.wire.added(1, provider=6, context=request.context))
    assert isinstance(poll, GetUpdate)


def test_a_report_that_answers_nothing_grants_no_interface():
    talk = Talk(11, providers={Provider.INTERFACE})
    (request,) = talk.asked()
    assert (type(request), request.context) == (AddSource, 1)
    assert talk.answer(talk.report(1), talk.report(1, 2)) == []
    assert not talk.core.subscribed


def test_what_a_kernel_is_too_old_for_is_left_out_and_what_it_refuses_is_told():
    talk = Talk(11, providers={*TCP_UDP, Provider.QUIC, Provider.CONNECTION, Provider.UDP_SUBFLOW})
    requests = talk.asked()
    while requests and isinstance(requests[0], AddAllSources):
        (request,) = requests
        refusal = {3: 2, 5: 2, 8: 2, 9: 1, 10: 45}.get(request.provider)
        requests = talk.answer(
            talk.wire.error(request.context, refusal) if refusal else talk.wire.success(request.context)
        )
    assert isinstance(requests[0], GetUpdate)
    told = talk.events()
    assert [(type(e), e.provider, e.errno) for e in told] == [
        (ProviderRefused, Provider.CONNECTION, 1),
        (ProviderRefused, Provider.UDP_SUBFLOW, 45),
    ]
    assert "root" in told[0].detail
    assert talk.core.failure is None
    assert any("connection: refused" in note for note in talk.core.capabilities.notes)
    assert not any(note.startswith(("tcp:", "udp:")) for note in talk.core.capabilities.notes)
    old = subscribed(4, providers={Provider.TCP, Provider.QUIC, Provider.CONNECTION})
    assert [e.provider for e in old.events()] == [Provider.CONNECTION]


def test_when_every_provider_is_refused_the_subscription_fails():
    talk = Talk(11)
    requests = talk.asked()
    while requests and isinstance(requests[0], AddAllSources):
        requests = talk.answer(talk.wire.error(requests[0].context, DarwinErrno.EPERM))
    assert isinstance(talk.core.failure, RequestError)
    assert talk.core.failure.errno == 1
    assert "tcp, udp" in str(talk.core.failure)


def test_a_channel_that_cannot_be_opened_is_a_failure():
    talk = Talk(11)
    (command,) = talk.core.commands()
    talk.core.channel_failed(command.channel, errno.EMFILE, talk.now)
    assert isinstance(talk.core.failure, BackendUnavailableError)
    with pytest.raises(UsageError):
        Session("OS/2")


@pytest.mark.parametrize("granted", [True, False])
def test_what_is_announced_behind_the_list_was_not_there_before(granted):
    talk = Talk(discovery="announce", providers={Provider.TCP})
    requests = talk.asked()
    while isinstance(requests[0], AddAllSources):
        (request,) = requests
        answer = (
            talk.wire.success(request.context) if granted else talk.wire.error(request.context, DarwinErrno.EALREADY)
        )
        requests = talk.answer(talk.wire.added(request.context), answer)
    talk.answer(talk.wire.added(3), talk.report(1), talk.report(3))
    assert [event.preexisting for event in talk.events(FlowAdded)] == [True, False]


def test_where_nothing_is_announced_a_subscription_for_which_there_is_no_room_is_refused():
    talk = Talk(providers={Provider.TCP, Provider.UDP})
    (request,) = talk.asked()
    talk.grant(talk.answer(talk.wire.error(request.context, DarwinErrno.ENOBUFS)))
    assert [(type(event), event.provider) for event in talk.events()] == [(ProviderRefused, Provider.TCP)]


@pytest.mark.parametrize(
    ("fields", "described_anew"),
    [
        ({"remote": address(None), "state": 0}, True),
        ({"remote": address(None), "state": 1}, False),  # it listens
        ({}, False),
    ],
)
def test_what_was_described_before_it_had_a_peer_is_described_anew_by_the_next_poll(fields, described_anew):
    talk = subscribed(4)
    (request,) = talk.open_poll
    (request,) = talk.answer(talk.report(1, **fields), talk.wire.success(request.context))
    assert talk.answer(talk.report(1, **fields), talk.wire.success(request.context)) == []
    (request,) = talk.due()
    requests = talk.answer(talk.wire.success(request.context))
    assert (type(requests[0]), requests[0].srcref == talk.wire.layout.all_sources) == (
        (GetSourceDescription, True) if described_anew else (QuerySource, False)
    )


def test_who_subscribed_already_is_granted():
    talk = Talk(providers={Provider.TCP})
    (request,) = talk.asked()
    requests = talk.answer(talk.wire.error(request.context, DarwinErrno.EALREADY))
    assert talk.core.capabilities.providers == {Provider.TCP}
    assert isinstance(requests[0], AddAllSources)
    assert talk.events() == []


@pytest.mark.parametrize("kernel", [3, 4])
def test_10_9_and_10_10_are_asked_for_all_counters_and_all_descriptions(kernel):
    """Counters first, so that a flow has them from the beginning: an update would count what it moved earlier as new."""
    talk = Talk(kernel)
    (request,) = talk.asked()
    requests = talk.answer(talk.wire.added(1), talk.wire.success(request.context))
    (poll,) = talk.answer(talk.wire.success(requests[0].context))
    assert (type(poll), poll.srcref, poll.flags) == (QuerySource, 2**32 - 1, 0)
    counted = talk.wire.counted(1, talk.wire.counts(5, 5), context=poll.context)
    (query,) = talk.answer(counted, talk.wire.success(poll.context))
    assert type(query) is GetSourceDescription
    descriptor = talk.wire.descriptor(2, local=address("192.0.2.1", 5), remote=address("192.0.2.9", 443), state=4)
    described = talk.wire.described(1, descriptor, context=query.context)
    assert talk.answer(described, talk.wire.success(query.context)) == []
    added, polled = talk.events()
    assert (type(added), type(polled)) == (FlowAdded, PollCompleted)
    assert added.counts.rx_bytes == 5
    assert talk.later(DESCRIBE_DELAY + 0.01) == []  # what was announced is described by now
    (query,) = talk.due()
    assert type(query) is QuerySource  # known in full: counters are enough
    talk.answer(talk.wire.goodbye(1, talk.wire.counts(9, 9), descriptor), talk.wire.success(query.context))
    (removed,) = talk.events(FlowRemoved)
    assert (removed.final, removed.counts.rx_bytes) == (True, 9)


@pytest.mark.parametrize("kernel", [1, 2])
def test_10_7_and_10_8_are_asked_for_descriptions_one_by_one(kernel):
    talk = Talk(kernel)
    (request,) = talk.asked()
    requests = talk.answer(talk.wire.added(1), talk.wire.added(2), talk.wire.success(request.context))
    (query,) = talk.answer(talk.wire.success(requests[0].context))
    assert type(query) is QuerySource
    counted = [talk.wire.counted(r, talk.wire.counts(5, 5), context=query.context) for r in (2, 1)]
    questions = talk.answer(*counted, talk.wire.success(query.context))
    assert [(type(q), q.srcref) for q in questions] == [(GetSourceDescription, 1), (GetSourceDescription, 2)]
    descriptor = talk.wire.descriptor(2, local=address("192.0.2.1", 5), remote=address("192.0.2.9", 443), state=4)
    talk.answer(
        talk.wire.described(1, descriptor, context=questions[0].context),
        talk.wire.error(questions[1].context, DarwinErrno.ENOENT),
    )
    events = talk.events()
    assert len([e for e in events if isinstance(e, FlowAdded)]) == 2
    assert [e.reason for e in events if isinstance(e, FlowRemoved)] == [RemovalReason.GONE]
    assert isinstance(events[-1], PollCompleted)


@pytest.mark.parametrize("kernel", [5, 6, 7, 10, 11, 12])
def test_every_batching_release_polls_by_updates_from_the_start(kernel):
    """Up to 10.12 only the first GET_UPDATE makes goodbyes come as updates: it is asked at once."""
    talk = subscribed(kernel)
    talk.poll(1)
    talk.answer(talk.wire.goodbye(1, talk.wire.counts(9, 9), talk.wire.descriptor(2, state=0)))
    events = talk.events()
    assert [type(e) for e in events] == [FlowAdded, PollCompleted, FlowUpdated, FlowRemoved]
    assert events[-1].final

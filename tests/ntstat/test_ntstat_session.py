"""A session without the pump: one that follows a recorded client, and one with a single socket and its user's own I/O."""

from __future__ import annotations

import errno

import pytest
from ntstat_wire import Wire

from nstat_async import EventsLost, FlowAdded, LossCause, MonitorOptions, PollCompleted, Proof, Provider
from nstat_async.ntstat import (
    AddAllSources,
    DarwinErrno,
    GetUpdate,
    HeaderFlag,
    InterfacesRead,
    Mode,
    QuerySource,
    Session,
    SetFilter,
    _following,
    decode_message,
    request_frame,
)
from nstat_async.ntstat._setup import ProvenStruct


def test_following_too_flows_that_began_before_the_subscription_are_preexisting():
    wire = Wire(11)
    session = Session(wire.kernel, mode=Mode.FOLLOWING)
    session.epoch_offset = 1e9
    session.observe_request(AddAllSources(context=5, provider=2).encode(wire.layout), 11.0)
    assert (session.subscribed, session.capabilities.receive_buffer) == (False, None)
    session.receive_datagram(wire.success(5), 11.0)
    assert session.subscribed
    session.observe_request(GetUpdate(context=6, srcref=(1 << 64) - 1).encode(wire.layout), 12.0)
    session.receive_datagram(wire.success(6), 12.0)
    session.take_events()
    for ref, age in ((1, 10), (2, 5)):
        descriptor = wire.descriptor(2, start_timestamp=10**9, timestamp=(1 + age) * 10**9)
        session.receive_datagrams(wire.report(ref, wire.counts(5), descriptor), 20.0, 0)
    assert [event.preexisting for event in session.take_events()] == [True, False]


class Followed:
    """A session that follows, and what a client and its kernel say to each other."""

    def __init__(self, number: int = 11, bits: int = 0x100000) -> None:
        self.wire = Wire(number)
        self.everything = self.wire.layout.all_sources
        self.session = Session(self.wire.kernel, mode=Mode.FOLLOWING)
        self.subscribe(bits=bits)

    def subscribe(
        self, *listed: int, context: int = 5, provider: int = 2, bits: int = 0x100000, errno: int = 0
    ) -> None:
        self.asks(AddAllSources(context=context, provider=provider, filter=bits))
        for ref in listed:
            self.session.receive_datagram(self.wire.added(ref), 1.0)
        answer = self.wire.error(context, errno) if errno else self.wire.success(context)
        self.session.receive_datagram(answer, 1.0)

    def asks(self, request) -> None:
        self.session.observe_request(request.encode(self.wire.layout), 1.0)

    def hears(self, *refs: int) -> None:
        for ref in refs:
            self.session.receive_datagrams(
                self.wire.report(ref, self.wire.counts(ref), self.wire.descriptor(2)), 1.0, 0
            )

    def poll(self, *refs: int, context: int = 6, again: tuple[int, ...] = (), errno: int = 0) -> list:
        """A poll in one part or two, with these sources; how many it left out for the first time."""
        request = GetUpdate(context=context, srcref=self.everything)
        self.asks(request)
        self.hears(*refs)
        if again:
            part = self.wire.error(context, errno) if errno else self.wire.success(context, flags=2)
            self.session.receive_datagram(part, 1.0)
            self.hears(*again)
            self.asks(request)
        self.session.receive_datagram(self.wire.success(context), 1.0)
        events = self.session.take_events()
        self.complete = [event.complete for event in events if isinstance(event, PollCompleted)] == [True]
        return [event.count for event in events if isinstance(event, EventsLost)]


@pytest.mark.parametrize("errno", [0, DarwinErrno.ENOBUFS])
def test_a_poll_that_is_followed_left_out_what_was_below_the_highest_number_when_it_began(errno):
    followed = Followed()
    assert followed.poll(1, 3) == [1]
    assert followed.poll(1, context=7, again=(3, 6), errno=errno) == []
    assert followed.poll(1, 3, 6, context=8) == [2]
    assert followed.session.capabilities.providers == {Provider.TCP}


@pytest.mark.parametrize("filtered", [None, "subscription", "source"])
def test_where_the_client_has_a_filter_absence_proves_nothing(filtered):
    followed = Followed(10, 0x100004 if filtered == "subscription" else 0x100000)
    followed.poll(1, 2)
    if filtered == "source":
        followed.asks(SetFilter(context=9, srcref=2, filter=1))
    assert followed.poll(1, context=7) == [1] * (not filtered)
    assert followed.complete is bool(filtered)
    followed.asks(QuerySource(context=10, srcref=2))
    followed.session.receive_datagram(followed.wire.error(10, DarwinErrno.ENOENT), 1.0)
    assert len(list(followed.session.flows())) == (2 if filtered else 1)
    followed.session.take_events()
    followed.session.receive_datagram(followed.wire.removed(3, flags=HeaderFlag.CLOSED_AFTER_DROP), 1.0)
    assert len(followed.session.take_events()) == (filtered != "source"), "an end of which nothing else was heard"


@pytest.mark.parametrize(
    ("number", "bits", "filtered"), [(9, 1 << 28, False), (9, 1 << 29, True), (11, 1 << 32, True), (6, 1 << 32, False)]
)
def test_which_bits_of_a_subscription_hide_sources_is_the_release_s(number, bits, filtered):
    followed = Followed(number, 0x100000 | bits)
    assert followed.poll(1, 3) == [1] * (not filtered)


def test_what_was_agreed_on_one_control_socket_is_forgotten_on_the_next():
    followed = Followed(10)
    followed.asks(SetFilter(context=9, srcref=2, filter=1))
    assert followed.poll(1, 3) == []
    followed.subscribe(context=15)
    assert followed.poll(1, 3, context=16) == [1]
    assert followed.poll(1, context=17) == [1]
    followed.subscribe(context=25)
    assert followed.poll(1, 3, context=26) == [1]
    followed.asks(GetUpdate(context=27, srcref=followed.everything))
    assert followed.session.polling
    followed.subscribe(context=35)
    assert not followed.session.polling


@pytest.mark.parametrize("errno", [0, DarwinErrno.EALREADY])
def test_what_is_listed_while_a_subscription_is_followed_was_there_before(errno):
    followed = Followed(bits=0)
    followed.subscribe(1, bits=0, provider=4, context=15, errno=errno)
    followed.session.receive_datagram(followed.wire.added(2), 1.0)
    followed.hears(1, 2)
    added = [event.preexisting for event in followed.session.take_events() if isinstance(event, FlowAdded)]
    assert added == [True, False]


def test_what_is_followed_to_the_end_of_the_first_poll_was_there_before():
    followed = Followed()
    followed.asks(GetUpdate(context=6, srcref=followed.everything))
    followed.hears(1)
    followed.session.receive_datagram(followed.wire.success(6), 1.0)
    followed.hears(2)
    added = [event.preexisting for event in followed.session.take_events() if isinstance(event, FlowAdded)]
    assert added == [True, False]


@pytest.mark.parametrize(("most", "remembered"), [(2, False), (3, True)])
def test_a_bounded_number_of_requests_that_nobody_answers_is_remembered(monkeypatch, most, remembered):
    monkeypatch.setattr(_following, "MAX_CONTEXTS", most)
    wire = Wire(11)
    session = Session(wire.kernel, mode=Mode.FOLLOWING)
    for context, request in ((5, AddAllSources(context=5, provider=2)), (6, GetUpdate(context=6, srcref=1)),
                             (7, GetUpdate(context=7, srcref=2))):  # fmt: skip
        session.observe_request(request.encode(wire.layout), 1.0)
        assert session.polling is False, context
    session.receive_datagram(wire.success(5), 1.0)
    assert session.subscribed is remembered


def test_a_context_that_is_used_again_is_that_of_the_newest_request():
    wire = Wire(11)
    session = Session(wire.kernel, mode=Mode.FOLLOWING)
    for provider in (wire.tcp, wire.udp):
        session.observe_request(AddAllSources(context=5, provider=provider).encode(wire.layout), 1.0)
    session.receive_datagram(wire.success(5), 1.0)
    assert session.capabilities.providers == {Provider.UDP}
    session.observe_request(GetUpdate(context=6, srcref=wire.layout.all_sources).encode(wire.layout), 1.0)
    assert session.polling


def test_a_session_that_follows_asks_for_nothing_and_keeps_what_was_proven():
    wire = Wire(12)
    structs = (ProvenStruct("nstat_tcp_descriptor", 344, (("pid", 116),)),)
    facts = {"verify": True, "paths": True, "ledger": True, "coverage": True, "proven": structs}
    session = Session(wire.kernel, mode=Mode.FOLLOWING, **facts)
    session.epoch_offset = 1e9
    session.start(5.0)
    session.receive_datagrams(wire.report(1, wire.counts(5), wire.descriptor(2)), 5.0, 0)
    session.lookup_done(5, InterfacesRead(((4, 1, 1),)), 6.0)
    session.lookup_done(5, InterfacesRead(((4, 9, 9),)), 7.0)
    assert session.commands() == []
    assert "coverage_rx_bytes" not in session.statistics()
    assert (session.setup.proven, session.proof) == (structs, Proof.PROBED)
    assert Session(wire.kernel, **facts).setup.proven == ()
    session.take_events()
    session.channel_failed(0, errno.ENOENT, 7.0)
    session.channel_failed(0, errno.ENOBUFS, 8.0)
    assert [(event.cause, event.time) for event in session.take_events()] == [(LossCause.KERNEL_BUFFER, 1e9 + 8.0)]
    session.receive_datagram(wire.added(2), 9.0)
    session.finish(9.5)
    assert session.next_event().time == 1e9 + 9.5
    session.receive_datagram(wire.added(4), 10.0)
    session.observe_request(AddAllSources(context=5, provider=2).encode(wire.layout), 11.0)
    session.receive_datagram(wire.success(5), 11.0)
    session.observe_request(AddAllSources(context=6, provider=2).encode(wire.layout), 12.0)
    session.receive_datagram(wire.success(6), 12.5)
    assert {event.time for event in session.take_events()} == {1e9 + 12.5}


def test_one_who_has_one_socket_forgoes_the_second_and_is_told_what_is_lost():
    wire = Wire(11)
    session = Session(wire.kernel, options=MonitorOptions(providers={Provider.TCP}, discovery="announce"))
    session.start(50.0)
    losses = []
    for turn in range(50, 80):
        for data in session.data_to_send():
            message = decode_message(wire.kernel, data, request_frame(data, has_lengths=wire.layout.has_lengths))
            one = getattr(message, "srcref", wire.layout.all_sources) != wire.layout.all_sources
            answer = wire.error(message.context, DarwinErrno.ENOENT) if one else wire.success(message.context)
            session.receive_datagram(answer, turn)
        if turn == 60:
            session.receive_datagram(wire.added(1), turn)
            session.receive_datagram(wire.added(3), turn)
        if (due := session.next_deadline()) is not None and due <= turn:
            session.handle_deadline(turn)
        losses += [event.cause for event in session.take_events() if isinstance(event, EventsLost)]
    assert losses == [LossCause.ANNOUNCEMENT, LossCause.FINAL_COUNTS, LossCause.FINAL_COUNTS]
    assert session.failure is None
    assert session.capabilities.receive_buffer is None
    assert session.statistics()["polls"] > 12, "they go on"
    assert session.statistics()["resynchronisations"] > 1, "and so do the tries"


def test_one_socket_without_commands_is_enough_to_bring_one_s_own_io():
    wire = Wire(11)
    session = Session(wire.kernel, options=MonitorOptions(providers={Provider.TCP}))
    session.start(0.0)
    requests = [session.data_to_send()]
    assert len(requests[0]) == 1, "the socket counts as open"
    assert not session.polling
    refused = []
    for turn in range(10):
        for data in requests[-1]:
            message = decode_message(wire.kernel, data, request_frame(data, has_lengths=wire.layout.has_lengths))
            if isinstance(message, AddAllSources):
                answer = wire.success(message.context)
            elif not refused:
                refused.append(data)
                answer = wire.error(message.context, DarwinErrno.ENOBUFS)
            elif message.srcref == wire.layout.all_sources:
                assert session.polling
                answer = wire.updated(1, wire.counts(5), wire.descriptor(2)) + wire.success(message.context)
            else:
                answer = wire.error(message.context, DarwinErrno.ENOENT)
            session.receive_datagram(answer, turn / 10)
        requests.append(session.data_to_send())
    assert isinstance(session.next_event(), FlowAdded)
    assert isinstance(session.next_event(), PollCompleted)
    assert session.next_event() is None
    assert requests[-1] == []
    assert requests.count(refused) == 2, "asked for again at once, for nobody says that the socket is empty"

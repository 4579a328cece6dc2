"""The dumps of a poll: what is asked, what an end of a dump says, what is broken, and when one is given up."""

from __future__ import annotations

import errno
import struct
from typing import Any

import pytest
from sockdiag_fakes import FakeKernel, FakeSocket, flow_events, kinds

from nstat_async._contract import CloseChannel, Mode
from nstat_async._errors import BackendUnavailableError
from nstat_async._events import EventsLost, PollCompleted, ProviderRefused
from nstat_async._model import Provider
from nstat_async.sockdiag import DiagAttribute, DiagRequest, Session, SocketState, iterate_messages
from nstat_async.sockdiag._constants import TCP_DUMP_STATES, MessageFlag, MessageType
from nstat_async.sockdiag._dumps import MAX_FAILURES, PATIENCE, sequence_of, split_sequence
from nstat_async.sockdiag._messages import encode_done, encode_error, encode_message, extension_bits

COUNTERS = extension_bits(DiagAttribute.INFO, DiagAttribute.CONG)
MEMORY = extension_bits(DiagAttribute.SKMEMINFO)
ALL = 0xFFFFFFFF


class Dumping(FakeKernel):
    """Its dumps are answered by the test."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"interval": 1.0, **options})
        self.silent.add(0)

    @property
    def requests(self) -> list[DiagRequest]:
        """All that were asked for so far."""
        sent = [data for what, _, channel, data in self.record if (what, channel) == ("to", 0)]
        return [DiagRequest.decode(data, frame) for data in sent for frame in iterate_messages(data)]

    def reply(self, *parts: bytes) -> list[Any]:
        """These messages come in one datagram; the new events."""
        self.feed(b"".join(parts), 0)
        return self.run()

    def row(self, cookie: int = 1, **fields: Any) -> bytes:
        """A row of the dump under way."""
        last = self.requests[-1]
        return FakeSocket(cookie, local_port=cookie, protocol=last.protocol, **fields).message(last.sequence)

    def end(self, number: int = 0, flags: int = 0) -> bytes:
        """The end of the dump under way."""
        body = struct.pack("=i", -number)
        return encode_message(MessageType.DONE, body, sequence=self.requests[-1].sequence, flags=2 | flags)

    def finish(self) -> list[Any]:
        """All dumps end that are still to come; the new events."""
        events, before = [], 0
        while len(self.requests) > before:
            before = len(self.requests)
            events += self.reply(self.end())
        return events


@pytest.fixture
def kernel() -> Dumping:
    kernel = Dumping()
    kernel.start()
    return kernel


def fail(kernel: Dumping) -> list[Any]:
    """Something is lost on the way; the new events."""
    kernel.session.channel_failed(0, errno.ENOBUFS, kernel.now)
    return kernel.run()


def poll_of(events: list[Any]) -> PollCompleted:
    (poll,) = [event for event in events if isinstance(event, PollCompleted)]
    return poll


# -- what is asked


@pytest.mark.parametrize("extras", [False, True])
def test_a_poll_asks_for_tcp_of_both_families_at_once_and_then_for_udp(extras):
    """By sequence numbers in which a recording finds the poll, the dump, and whether it is the last."""
    kernel = Dumping(extras=extras)
    kernel.start()
    kernel.finish()
    kernel.wait(1.0)
    kernel.finish()
    tcp = COUNTERS | MEMORY if extras else COUNTERS
    assert [(r.family, r.protocol, r.extensions, r.states, r.sequence, r.dump) for r in kernel.requests] == [
        (family, protocol, extensions, states, poll << 3 | number, True)
        for poll in (1, 2)
        for family, protocol, extensions, states, number in (
            (0, 6, tcp, TCP_DUMP_STATES, 0),
            (2, 17, MEMORY, ALL, 2 << 1),
            (10, 17, MEMORY, ALL, 3 << 1 | 1),
        )
    ]


def test_sequence_numbers_are_of_32_bits_and_never_zero():
    for poll, kind, last in ((1, 0, False), (5, 2, True), (2**29 - 1, 3, True)):
        assert split_sequence(sequence_of(poll, kind, last=last)) == (poll, kind, last)
    assert sequence_of(2**29 - 1, 3, last=True) == 2**32 - 1
    assert sequence_of(2**29, 0, last=False) == sequence_of(1, 0, last=False) == 8
    assert sequence_of(2**29 + 7, 0, last=False) == 7 << 3


def test_a_kernel_that_does_not_dump_both_families_at_once_is_asked_for_each(kernel):
    """In the same poll, which is complete; and from then on."""
    kernel.reply(encode_error(errno.EINVAL, sequence=kernel.requests[-1].sequence))
    assert poll_of(kernel.finish()).complete
    kernel.wait(1.0)
    kernel.finish()
    dumps = ((6, 2), (6, 10), (17, 2), (17, 10))
    expected = [(*dump, poll << 3 | kind << 1 | (kind == 3)) for poll in (1, 2) for kind, dump in enumerate(dumps)]
    assert [(r.protocol, r.family, r.sequence) for r in kernel.requests[1:]] == expected


# -- the end of a dump


@pytest.mark.parametrize(
    ("answer", "complete", "refused"),
    [
        (lambda kernel: kernel.end(), True, False),
        (lambda kernel: encode_error(0, sequence=kernel.requests[-1].sequence), True, False),
        (lambda kernel: kernel.end(errno.ENOBUFS), False, False),
        (lambda kernel: kernel.end(flags=MessageFlag.DUMP_INTERRUPTED), False, False),
        (lambda kernel: encode_error(errno.EBUSY, sequence=kernel.requests[-1].sequence), False, False),
        (lambda kernel: kernel.end(errno.ENOENT), True, True),
        (lambda kernel: encode_error(errno.ENOENT, sequence=kernel.requests[-1].sequence), True, True),
    ],
    ids=["done", "acknowledged", "done without memory", "interrupted", "busy", "no such dump", "refused"],
)
def test_what_the_end_of_a_dump_says_of_the_poll(kernel, answer, complete, refused):
    """What is refused is not asked for again, and of one family no refusal of the protocol."""
    kernel.reply(kernel.end())
    assert kernel.requests[-1].family == 2
    kernel.reply(answer(kernel))
    events = kernel.finish()
    assert poll_of(events).complete is complete
    assert kinds(events) == ["PollCompleted"]
    assert kernel.session.capabilities.providers == {Provider.TCP, Provider.UDP}
    kernel.wait(1.0)
    assert poll_of(kernel.finish()).complete
    assert [r.family for r in kernel.requests[3:]] == ([0, 10] if refused else [0, 2, 10])


@pytest.mark.parametrize(
    ("number", "detail"),
    [
        (errno.ENOENT, "the kernel has no sock_diag for it"),
        (errno.EPERM, "the kernel refused the dump: Operation not permitted; a seccomp filter"),
    ],
)
def test_a_protocol_all_of_whose_dumps_are_refused_is_refused_once(kernel, number, detail):
    kernel.reply(kernel.end())
    kernel.reply(encode_error(number, sequence=kernel.requests[-1].sequence))
    events = kernel.reply(encode_error(number, sequence=kernel.requests[-1].sequence))
    (refused,) = [event for event in events if isinstance(event, ProviderRefused)]
    assert (refused.provider, refused.errno) == (Provider.UDP, number)
    assert refused.detail.startswith(detail)
    assert kernel.session.capabilities.providers == {Provider.TCP}
    kernel.wait(1.0)
    assert kinds(kernel.reply(kernel.end())) == ["PollCompleted"]
    assert kernel.session.failure is None


def test_what_a_dump_did_not_judge_is_not_missing(kernel):
    """A family that was refused, or interrupted by an error, says nothing of its sockets."""
    kernel.reply(kernel.end())
    kernel.reply(kernel.row(5), kernel.end())
    kernel.finish()
    for _ in range(3):
        kernel.wait(1.0)
        kernel.reply(kernel.end())
        kernel.reply(encode_error(errno.EBUSY, sequence=kernel.requests[-1].sequence))
        assert flow_events(kernel.finish()) == []
    lookups = [item for item in kernel.record if item[0] == "to" and item[2] == 3]
    assert lookups == []


# -- rows


def test_rows_are_counted_and_what_is_not_of_this_dump_is_stale(kernel):
    first = kernel.requests[-1].sequence
    row = kernel.row(1)
    kernel.reply(row, kernel.row(2), encode_done(first + 8), FakeSocket(3).message(first + 8), kernel.row(4))
    assert [event.flow.id for event in flow_events([*kernel.reply(kernel.end()), *kernel.finish()])] == [
        "c1",
        "c2",
        "c4",
    ]
    figures = kernel.session.statistics()
    assert (figures["reports"], figures["stale_messages"]) == (3, 2)
    kernel.reply(row, FakeSocket(3).message(1), FakeSocket(3).message(0))
    assert kernel.session.statistics()["stale_messages"] == 5
    assert kernel.session.statistics()["reports"] == 3


def test_nothing_behind_the_end_of_a_dump_is_of_it(kernel):
    kernel.reply(kernel.end(), kernel.row(1))
    assert flow_events(kernel.finish()) == []


BROKEN = {
    "ends inside a header": (lambda _row: bytes(12), "datagram ends inside a netlink header"),
    "shorter than a header": (lambda row: struct.pack("=I", 15) + row[4:], "netlink message of impossible length 15"),
    "longer than the datagram": (lambda row: struct.pack("=I", len(row) + 1) + row[4:], "impossible length"),
    "too short for a socket": (lambda row: struct.pack("=I", 84) + row[4:84], "inet_diag message is too short"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_a_loss_and_the_rows_before_it_count(kernel, name):
    make, reason = BROKEN[name]
    (lost,) = kernel.reply(kernel.row(1), make(kernel.row(2)))
    assert isinstance(lost, EventsLost)
    assert reason in lost.detail
    events = kernel.finish()
    assert [event.flow.id for event in flow_events(events)] == ["c1"]
    assert not poll_of(events).complete


def test_a_message_that_is_all_header_is_nothing(kernel):
    sequence = kernel.requests[-1].sequence
    noop = encode_message(MessageType.NOOP, b"", sequence=sequence)
    assert kernel.reply(noop, kernel.row(1), noop) == []
    events = kernel.finish()
    assert [event.flow.id for event in flow_events(events)] == ["c1"]
    assert poll_of(events).complete


# -- giving up


def test_a_dump_is_given_up_some_time_after_its_last_datagram(kernel):
    """The poll is incomplete, the channel another one, and what was asked for after it is not."""
    assert kernel.wait(PATIENCE - 0.1) == []
    kernel.reply(kernel.row(1))
    assert kernel.wait(PATIENCE - 0.1) == []
    asked = len(kernel.requests)
    kernel.session.handle_deadline(kernel.now + 0.1)
    kernel.now += 0.1
    closed = [command for command in kernel.session.commands() if isinstance(command, CloseChannel)]
    assert [command.channel for command in closed] == [0]
    events = kernel.run()
    assert not poll_of(events).complete
    assert len(kernel.requests) == asked
    assert kernel.session.statistics()["reopened"] == 1
    kernel.reply(kernel.row(2))
    figures = kernel.session.statistics()
    assert (figures["stale_messages"], figures["reports"]) == (1, 1), "what still comes of it is of no dump"


def test_before_the_first_poll_nothing_is_given_up_and_whatever_comes_is_of_no_dump():
    """A failure then costs the channel alone."""
    kernel = Dumping()
    kernel.silent.add(2)
    assert kernel.start() == []
    assert "reopened" not in kernel.session.statistics()
    for sequence in (0, 1):
        kernel.feed(FakeSocket(1).message(sequence), 0)
    fail(kernel)
    figures = kernel.session.statistics()
    assert (figures["stale_messages"], figures["reopened"], figures["reports"]) == (2, 1, 0)
    assert kernel.wait(1.5) == []
    assert poll_of(kernel.finish()).complete


def test_between_polls_nothing_is_given_up(kernel):
    kernel.finish()
    assert kernel.session.next_deadline() == kernel.now + 1.0


@pytest.mark.parametrize("finished", [0, 1])
def test_only_so_many_failures_in_a_row_end_the_session(kernel, finished):
    """Whether a poll came to its end before, or none."""
    for _ in range(finished):
        kernel.finish()
    for _ in range(MAX_FAILURES):
        kernel.wait(1.0)
        assert not poll_of(fail(kernel)).complete
    kernel.wait(1.0)
    assert len(kernel.requests) == 3 * finished + MAX_FAILURES + 1
    assert kernel.session.failure is None
    fail(kernel)
    assert isinstance(kernel.session.failure, BackendUnavailableError)


def test_a_poll_that_comes_to_its_end_forgets_failures(kernel):
    for _ in range(MAX_FAILURES + 2):
        fail(kernel)
        kernel.wait(1.0)
        kernel.finish()
        kernel.wait(1.0)
    assert kernel.session.failure is None


# -- following


class Followed:
    """A recorded client's dumps."""

    def __init__(self) -> None:
        self.session = Session(mode=Mode.FOLLOWING)
        self.session.start(0.0)

    def ask(self, family: int, protocol: int, states: int, sequence: int, now: float = 1.0) -> None:
        self.session.observe_request(DiagRequest(family, protocol, 0, states, sequence=sequence).encode(), now)

    def dump(self, family: int, protocol: int, states: int, sequence: int, *rows: FakeSocket) -> list[Any]:
        """A request and its whole answer; the new events."""
        self.ask(family, protocol, states, sequence)
        answer = b"".join(row.message(sequence) for row in rows) + encode_done(sequence)
        self.session.receive_datagram(answer, 1.0)
        return self.session.take_events()


SERVED, NAMED = FakeSocket(1, local_port=1), FakeSocket(2, protocol=17, local_port=2)


def test_a_recorded_client_says_what_is_dumped():
    """By the numbers of its requests: another one begins the next poll, and the last of a poll ends it."""
    client = Followed()
    events = client.dump(0, 6, TCP_DUMP_STATES, 8, SERVED) + client.dump(2, 17, ALL, 12, NAMED)
    events += client.dump(10, 17, ALL, 15)
    client.session.finish(2.0)
    events += client.session.take_events()
    assert {event.flow.id: event.flow.provider for event in flow_events(events)} == {
        "c1": Provider.TCP,
        "c2": Provider.UDP,
    }
    assert (poll_of(events).serial, poll_of(events).complete) == (1, True)


@pytest.mark.parametrize("lost", [False, True])
def test_dumps_of_listeners_alone_say_nothing_of_the_others_and_repair_nothing(lost):
    """What two polls of everything lack is asked for, what the first one lacks where removals were lost; the answer is awaited."""
    client = Followed()
    client.dump(0, 6, TCP_DUMP_STATES, 8, SERVED)
    client.dump(2, 17, ALL, 13, NAMED)
    if lost:
        client.session.channel_failed(1, errno.ENOBUFS, 1.0)
        client.session.channel_drained(1, 1.0)
        client.session.take_events()
    for poll in (2, 3, 4):
        events = client.dump(2, 6, 1 << SocketState.LISTEN, poll << 3) + client.dump(2, 17, ALL, poll << 3 | 5, NAMED)
        assert (poll_of(events).serial, flow_events(events)) == (poll, [])
    waited = []
    for poll in (5, 6):
        events = client.dump(0, 6, TCP_DUMP_STATES, poll << 3) + client.dump(2, 17, ALL, poll << 3 | 5, NAMED)
        waited.append(poll not in {event.serial for event in events if isinstance(event, PollCompleted)})
    assert waited == [lost, True]
    client.ask(2, 17, ALL, 7 << 3 | 5)
    assert poll_of(client.session.take_events()).serial == 6, "which ends with the next one at the latest"


def test_a_recorded_dump_is_given_up_some_time_after_it_was_asked_for():
    client = Followed()
    client.ask(0, 6, TCP_DUMP_STATES, 8, 10.0)
    client.ask(2, 17, ALL, 13, 11.5)
    client.session.handle_deadline(13.4)
    assert client.session.take_events() == []
    client.session.handle_deadline(13.5)
    assert not poll_of(client.session.take_events()).complete


def test_a_poll_goes_on_with_the_end_of_a_dump_and_not_with_each_datagram_of_it(monkeypatch):
    """Thousands of them come, and nothing else can be known before the last."""
    kernel = Dumping()
    kernel.start()
    steps = []
    monkeypatch.setattr(kernel.session._polls, "proceed", lambda: steps.append(len(kernel.requests)))
    kernel.feed(kernel.row(), 0)
    kernel.feed(kernel.row(2), 0)
    assert steps == []
    kernel.finish()
    assert steps[0] == len(kernel.requests), "behind the last dump"

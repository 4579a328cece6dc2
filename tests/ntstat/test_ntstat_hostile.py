"""Whatever arrives: only documented errors, no endless loop, no growth without bound."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import conversations
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ntstat_wire import NEWEST_OF_LAYOUT, Wire
from test_ntstat_messages import samples

from examples import THOROUGH, examples
from nstat_async import EventsLost, LossCause, MonitorOptions, PollCompleted, ProtocolError
from nstat_async.ntstat import (
    HeaderFlag,
    Kernel,
    MessageType,
    Mode,
    OpenChannel,
    Send,
    Session,
    SourceAdded,
    Success,
    _sources,
    split,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "fuzz"))

import targets

LAYOUTS = sorted(NEWEST_OF_LAYOUT)
_QUIET = settings(deadline=None, max_examples=examples(50), suppress_health_check=[HealthCheck.too_slow])


def _head(number: int) -> int:
    return [kernel.layout.number for kernel in targets.KERNELS].index(number)


def _cuts(size: int, turn: int) -> list[int]:
    """Where a message is cut: at each fourth byte of its head, and behind it at each 47th, others in each turn."""
    head = range(0 if THOROUGH else turn % 4, min(size, 32), 1 if THOROUGH else 4)
    return sorted({*head, *range(32 + turn * 4 % 47, size, 47), size - 1})


@pytest.mark.parametrize("number", LAYOUTS)
def test_every_message_cut_anywhere_costs_a_session_itself_and_no_more(number):
    """Each layout is cut at other bytes; most structures stand in more layouts than there are turns."""
    kernel = Kernel.parse(NEWEST_OF_LAYOUT[number])
    for message in samples(kernel):
        data = message.encode(kernel.layout)
        for cut in _cuts(len(data), LAYOUTS.index(number)):
            short = data[:cut]
            for patched in {short, short[:12] + struct.pack("<H", cut) + short[14:] if cut >= 16 else short}:
                session = Session(kernel, mode=Mode.FOLLOWING)
                session.receive_datagram(patched, 0.0)
                session.receive_datagram(data, 0.0)
                lives = targets.Lives()
                lives.check(session.take_events())
                strict = Session(kernel, options=MonitorOptions(strict=True), mode=Mode.FOLLOWING)
                try:
                    strict.receive_datagram(patched, 0.0)
                except ProtocolError as error:
                    assert error.raw == patched  # noqa: PT017  # most cuts raise, some are whole messages
                    assert 0 <= error.offset <= len(patched)  # noqa: PT017


def test_a_cut_datagram_gives_what_lay_before_the_cut():
    name = "control/xnu-11417.121.6/agg_tcp_kernel_101_GET_UPDATE"
    data = max(conversations.datagrams(name), key=len)
    frames, _ = split(data, has_lengths=True)
    whole = Session(conversations.kernel(name), mode=Mode.FOLLOWING)
    whole.receive_datagram(data, 0.0)
    expected = whole.take_events()
    for cut in range(0, len(data), 7):
        session = Session(conversations.kernel(name), mode=Mode.FOLLOWING)
        session.receive_datagram(data[:cut], 0.0)
        events = session.take_events()
        complete = sum(1 for f in frames if f[4] <= cut)
        assert events[:complete] == expected[:complete]
        assert all(isinstance(e, EventsLost) and e.cause is LossCause.PROTOCOL for e in events[complete:])


@pytest.mark.parametrize("target", targets.TARGETS)
@_QUIET
@given(data=st.data())
def test_random_bytes_break_no_promise(target, data):
    targets.TARGETS[target](data.draw(st.binary(max_size=300)))


CORPUS = sorted((Path(__file__).parents[2] / "fuzz" / "corpus").glob("*/*"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_a_fuzzer_found_breaks_no_promise_any_more(path):
    targets.TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("target", ["passive", "session"])
@_QUIET
@given(data=st.data())
def test_random_steps_with_plausible_headers_break_no_promise(target, data):
    number = data.draw(st.sampled_from(LAYOUTS))
    steps = data.draw(st.lists(st.tuples(st.integers(0, 255), _plausible()), max_size=12))
    flags = data.draw(st.integers(0, 255)) & (~1 if target == "passive" else 255)
    targets.TARGETS[target](bytes([_head(number), flags]) + targets.join(steps))


@st.composite
def _plausible(draw):
    """A datagram with headers that could be a kernel's."""
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from([0, 1, 1002, 1004, 1007, 1009, *range(10_001, 10_011), 77]))
        body = draw(st.binary(max_size=600)) + bytes(draw(st.sampled_from([0, 8, 128, 480])))
        # Small references and contexts, so that messages concern each other.
        body = draw(st.sampled_from([b"", struct.pack("<Q", draw(st.integers(0, 5)))])) + body
        context, flags = draw(st.integers(0, 6)), draw(st.sampled_from([0, 2, 4, 8]))
        length = (16 + len(body) + draw(st.sampled_from([0, 0, 0, 0, -3, 5]))) & 0xFFFF
        parts.append(struct.pack("<QIHH", context, kind, length, flags) + body)
    return b"".join(parts)


def _mutated(dice: random.Random, steps: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """A conversation with a few things wrong."""
    steps = list(steps)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(steps))
        operation, data = steps[at]
        what = dice.randrange(6)
        if what == 0:
            del steps[at]
        elif what == 1:
            steps.insert(dice.randrange(len(steps) + 1), steps[at])
        elif what == 2 and data:
            position = dice.randrange(len(data))
            steps[at] = operation, data[:position] + bytes([dice.randrange(256)]) + data[position + 1 :]
        elif what == 3:
            steps[at] = operation, data[: dice.randrange(len(data) + 1)]
        elif what == 4:
            steps[at] = operation, data + dice.randbytes(dice.randrange(40))
        elif len(steps) > 1:
            other = dice.randrange(len(steps))
            steps[at], steps[other] = steps[other], steps[at]
        if not steps:
            break
    return steps


@pytest.mark.parametrize("kernel", sorted({conversations.kernel(name) for name in conversations.names()}))
def test_mutated_conversations_break_no_promise(kernel):
    names = [n for n in conversations.names(f"*/{kernel}/*") if len(conversations.raw(n)) < 40_000]
    dice = random.Random(kernel)
    head = _head(Kernel.parse(kernel).layout.number)
    for name in names:
        lines = [line for line in conversations.load(name)[1] if line["dir"] != "note"]
        steps = [(0 if line["dir"] == "to_kernel" else 1, bytes.fromhex(line["hex"])) for line in lines]
        if not steps:
            continue
        for _ in range(4 if THOROUGH else 1):
            changed = _mutated(dice, steps)
            targets.passive(bytes([head, 0]) + targets.join(changed))
            answers = [(0 if op else dice.choice([3, 4, 132, 5, 6, 255]), data) for op, data in changed]
            targets.session(bytes([head, dice.randrange(256)]) + targets.join(answers))


def test_a_recording_cut_at_every_byte_or_changed_anywhere_breaks_no_promise():
    name = min(conversations.names(), key=lambda n: len(conversations.raw(n)))
    data = conversations.raw(name)
    dice = random.Random(1)
    for cut in range(len(data)):
        targets.recording(data[:cut])
    for _ in range(200):
        at = dice.randrange(len(data))
        targets.recording(data[:at] + dice.randbytes(dice.randrange(4)) + data[at + dice.randrange(4) :])


# --- numbers of a kernel that nobody should calculate with --------------------


def driven(kernel, answer, *, seconds=3.0, **options):
    """A session whose every request is answered like this, for a while; the events."""
    session = Session(kernel, options=MonitorOptions(**options))
    session.start(0.0)
    now, events = 0.0, []
    for _ in range(400):
        for command in session.commands():
            if isinstance(command, OpenChannel):
                session.channel_opened(command.channel, now, immediate=True, receive_buffer=1 << 20)
            elif isinstance(command, Send):
                session.receive_datagrams(answer(kernel, command.data), now, command.channel)
        session.channel_drained(0, now)
        events += session.take_events()
        now += seconds / 400
        if (deadline := session.next_deadline()) is not None and deadline <= now:
            session.handle_deadline(now)
    return session, events


def announcing(ref):
    """Answers that announce a source of this number to each request."""

    def answer(kernel, request):
        (context,) = struct.unpack_from("<Q", request)
        added = SourceAdded(srcref=ref, provider=2).encode(kernel.layout)
        return [added, Success(context=context).encode(kernel.layout)]

    return answer


@pytest.mark.parametrize("discovery", ["poll", "announce"])
@pytest.mark.parametrize("number", LAYOUTS)
@pytest.mark.parametrize("below", [0, 1, 2, 5])
def test_the_largest_reference_numbers_are_an_event_or_a_flow_and_never_an_error(number, below, discovery):
    kernel = Kernel.parse(NEWEST_OF_LAYOUT[number])
    ref = kernel.layout.all_sources - below
    session, events = driven(kernel, announcing(ref), interval=0.2, discovery=discovery)
    assert session.failure is None
    assert any(isinstance(event, PollCompleted) for event in events)
    losses = [event for event in events if isinstance(event, EventsLost)]
    assert all(loss.count is None or loss.count < 1 << 33 for loss in losses)
    if below == 0:
        assert any(loss.cause is LossCause.PROTOCOL and "which is not a source" in loss.detail for loss in losses)


def test_endless_references_cost_a_bounded_memory_that_is_said(monkeypatch):
    monkeypatch.setattr(_sources, "MAX_SOURCES", 100)
    kernel, told = Kernel.parse("xnu-11417.121.6"), iter(range(1, 1_000_000))

    def answer(kernel, request):
        (context,) = struct.unpack_from("<Q", request)
        added = [SourceAdded(srcref=next(told), provider=2).encode(kernel.layout) for _ in range(30)]
        return [b"".join(added), Success(context=context).encode(kernel.layout)]

    session, events = driven(kernel, answer, interval=0.1, seconds=1.0)
    assert session.statistics()["sources"] == 100
    said = [e for e in events if isinstance(e, EventsLost) and e.cause is LossCause.LIMIT]
    polls = sum(isinstance(e, PollCompleted) for e in events)
    assert 1 <= len(said) <= polls + 1, "once a poll, not once a source"
    assert "100 sources" in said[0].detail


def test_a_poll_that_the_kernel_continues_for_ever_is_given_up_and_said_to_be_incomplete():
    kernel = Kernel.parse("xnu-11417.121.6")

    def answer(kernel, request):
        context, kind = struct.unpack_from("<QI", request)
        flags = HeaderFlag.CONTINUATION if kind == MessageType.GET_UPDATE else 0
        return [Success(context=context, flags=flags).encode(kernel.layout)]

    _, events = driven(kernel, answer, seconds=400.0)
    polls = [event for event in events if isinstance(event, PollCompleted)]
    assert polls
    assert not any(poll.complete for poll in polls)


@pytest.mark.parametrize("ticks", [(0, 2**64 - 1), (2**64 - 1, 1), (1, 2**63)])
def test_a_creation_time_of_ages_ago_is_not_believed(ticks):
    start, stamp = ticks
    wire = Wire(11)
    session = Session(wire.kernel, mode=Mode.FOLLOWING, timebase=(125, 3))
    data = wire.descriptor(2, start_timestamp=start, timestamp=stamp)
    session.receive_datagram(wire.updated(1, wire.counts(1, 1), data), 1e9)
    (event,) = session.take_events()
    assert event.flow.started_ns is None


def test_nothing_is_sent_to_a_control_socket_that_is_gone_however_long_its_answers_stay_away():
    session = Session("xnu-11417.121.6")
    session.start(0.0)
    opened, sent, now = [], [], 0.0
    for _ in range(60):
        for command in session.commands():
            if isinstance(command, OpenChannel):
                opened.append(command.channel)
                if len(opened) == 1:
                    session.channel_opened(command.channel, now, immediate=False, receive_buffer=None)
            elif isinstance(command, Send):
                sent.append((command.channel, now))
        if now == 1.0:
            session.channel_closed(0, now)
        now += 0.25
        if (deadline := session.next_deadline()) is not None and deadline <= now:
            session.handle_deadline(now)
    assert sent, "it subscribed"
    assert [when for channel, when in sent if channel == 0 and when > 1.0] == []
    assert len(opened) > 1, "it opens another one"


# --- work per datagram -------------------------------------------------------------------------------


def steps_of(act):
    """Lines of the library's files that are run, the measure of work that no machine's load changes."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        name = frame.f_code.co_filename
        if "nstat_async" not in name or name[0] == "<":  # what attrs generates has a line for each field
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


NONSENSE = {
    "announcements that skip": lambda wire, n: wire.added(1 + n * 70_000),
    "announcements that skip by two": lambda wire, n: wire.added(2 * n + 2),
    "removals of nobody": lambda wire, n: wire.removed(900_000 + 3 * n),
    "counts of nobody": lambda wire, n: wire.counted(5_000 + 2 * n, wire.counts(1, 1)),
    "answers to nobody": lambda wire, n: wire.success(10_000 + n),
    "refusals to nobody": lambda wire, n: wire.error(10_000 + n, 2),
    "reports about all": lambda wire, n: wire.added(wire.layout.all_sources),
}


@pytest.mark.parametrize("number", [5, 6, 11, 12])
@pytest.mark.parametrize("kind", [1008, 1009, 10005, 10006, 10007, 10008, 10009, 10010])
def test_a_message_that_is_not_of_this_kernels_time_is_an_event(kind, number):
    wire = Wire(number)
    session, _ = driven(wire.kernel, announcing(1), seconds=0.5, interval=0.2)
    session.take_events()
    for size in (0, 128, 600):
        session.receive_datagrams([struct.pack("<QIHH", 0, kind, 16 + size, 0) + bytes(size)], 1.0, 0)
    assert session.failure is None
    assert session.take_events()


@pytest.mark.parametrize("discovery", ["poll", "announce"])
@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_costs_a_few_steps_for_each_message(kind, discovery):
    wire = Wire(11)
    session, _ = driven(wire.kernel, announcing(1), seconds=0.5, interval=0.2, discovery=discovery)
    make, sizes = NONSENSE[kind], []
    for batch in range(3):
        messages = [make(wire, 150 * batch + n) for n in range(150)]
        datagram = b"".join(messages)
        session.take_events()
        sizes.append(steps_of(lambda datagram=datagram: session.receive_datagrams([datagram], 1.0, 0)))
    assert max(sizes) <= 100 * len(messages) + 500, (kind, sizes)
    assert max(sizes[1:]) <= sizes[0] + 500, "no message costs more for those before it"


def test_the_end_of_a_poll_that_left_out_a_hundred_thousand_numbers_costs_a_few_steps():
    wire = Wire(11)
    last = []

    def answer(kernel, request):
        context, kind = struct.unpack_from("<QI", request)
        if kind == MessageType.GET_UPDATE and request[16:24] == b"\xff" * 8:
            last.append(context)
            return []
        return [Success(context=context).encode(kernel.layout)]

    session, _ = driven(wire.kernel, answer, seconds=0.3, interval=0.2)
    session.receive_datagrams([wire.updated(60_000, wire.counts(1, 1), wire.descriptor(2))], 0.3, 0)
    assert len(session._sockets.current.table.references.missing) == 59_999
    steps = steps_of(lambda: session.receive_datagrams([wire.success(last[-1])], 0.3, 0))
    assert steps < 5_000

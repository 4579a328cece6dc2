"""The messages of a fleet: whatever others write is an event, and a publisher writes no message that is too large."""

from __future__ import annotations

import json as standard
import zlib

import attrs
import pytest
from fleet_world import WALL, Machine, Reader, Stream, lived, taken
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async import (
    EventsLost,
    HostUpdated,
    LossCause,
    Peer,
    PollCompleted,
    ProtocolError,
    UsageError,
    json,
)
from nstat_async.fleet import Delivery, Facts, Header, Outgoing, decode, encode
from nstat_async.fleet._incoming import Incoming
from nstat_async.fleet._messages import LARGEST, LONGEST_LINE, MOST_LINES, parse_subject

# --- what others write ------------------------------------------------------------------------


def header(**fields):
    return standard.dumps({"v": 1, "incarnation": "0" * 8, "seq": 0, "next": 10.0, **fields}).encode()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header(), None),
        (header(next=0.5), None),
        (header(next=3600), None),
        (header(part=0), None),
        (header(v=2), "not a message of version 1"),
        (b"[1]", "neither JSON nor compressed"),
        (zlib.compress(b"[1]"), "not a message of version 1"),
        (header(seq=-1), "out of range"),
        (header(part=-1), "out of range"),
        (header(next=0), "out of range"),
        (header(next=3601), "out of range"),
        (header(incarnation="x" * 8), "not an incarnation"),
        (header() + b"\n" * MOST_LINES, None),
        (header() + b"\n" * (MOST_LINES + 1), f"more than {MOST_LINES} lines"),
        (header().ljust(LONGEST_LINE), None),
        (header().ljust(LONGEST_LINE + 1), f"header has more than {LONGEST_LINE} bytes"),
        ((header() + b"\n").ljust(LARGEST), None),
        ((header() + b"\n").ljust(LARGEST + 1), f"more than {LARGEST} bytes"),
    ],
)
def test_what_is_a_message_and_why_others_are_none(data, reason):
    if reason is None:
        assert decode(data)[0].incarnation == "0" * 8
    else:
        with pytest.raises(ProtocolError, match=reason):
            decode(data)


def test_a_header_says_only_what_is_so_and_long_messages_are_compressed():
    short = encode(Header(incarnation="0" * 8, seq=0, next=1.0), ["{}"])
    assert short == header(next=1.0).replace(b" ", b"") + b"\n{}"
    assert len(encode(Header(incarnation="0" * 8, seq=0, next=1.0), ["{}"] * 1000)) < 200


@pytest.mark.parametrize("subject", ["nstat.web$.events", "nstat..events", "nstat.web.event", "nstat.events"])
def test_a_subject_names_a_machine_or_is_refused(subject):
    assert parse_subject("nstat", subject) is None


@settings(max_examples=examples(200))
@given(
    st.binary(max_size=200), st.sampled_from(["nstat.web.events", "nstat.web.state", "nstat.web", "x", "nstat.a.b.c"])
)
def test_bytes_that_are_no_message_are_an_event_and_never_an_error(data, subject):
    core = Incoming()
    core.begin(WALL)
    taken(core)
    core.receive(Delivery(subject, data, 1, WALL), 0.0)
    assert [event.cause for event in taken(core)] == [LossCause.PROTOCOL]


_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_json = st.recursive(
    _values, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=9), each, max_size=4)
)


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_a_message_with_one_thing_wrong_is_an_event_or_harmless(data):
    """A header or a line of which one value is something else."""
    stream = Stream()
    lived(Machine("web"), stream, 2)
    core = Incoming()
    core.begin(WALL)
    for delivery in stream.deliveries:
        plain = delivery.data if delivery.data[:1] == b"{" else zlib.decompress(delivery.data)
        lines = [standard.loads(line) for line in plain.split(b"\n")]
        target = data.draw(st.sampled_from(lines))
        while isinstance(target, dict) and target:
            key = data.draw(st.sampled_from(sorted(target)))
            if not isinstance(target[key], dict) or data.draw(st.booleans()):
                target[key] = data.draw(_json)
                break
            target = target[key]
        broken = b"\n".join(standard.dumps(line).encode() for line in lines)
        core.receive(attrs.evolve(delivery, data=broken), 0.0)
        core.handle_deadline(1e6, WALL)
    for event in taken(core):
        json.dumps(event)


def test_a_small_message_that_claims_to_be_huge_is_refused_before_it_is_made():
    core = Incoming()
    core.begin(WALL)
    taken(core)
    core.receive(Delivery("nstat.web.events", zlib.compress(b" " * (8 << 20)), 1, WALL), 0.0)
    [event] = taken(core)
    assert f"more than {1 << 20}" in event.detail
    core.receive(Delivery("nstat.web.events", zlib.compress(b"{}" + b"\n" * 900_000), 2, WALL), 0.0)
    [event] = taken(core)
    assert f"more than {MOST_LINES} lines" in event.detail


ADDED = '{"v":1,"event":"flow_added","time":1,"flow":{"id":"1","provider":"tcp",%s},"counts":%s,"preexisting":false}'


@pytest.mark.parametrize(
    "line",
    [
        '{"v":1,"time":1,"pid":1,"name":"x","flows":1,"open_flows":1,"rx_bytes":1,"tx_bytes":1,"kind":"process"}',
        '{"v":1,"event":"flow_added","time":1,"flow":{"id":"1","provider":"tcp"},"counts":{"rx_bytes":-1},"preexisting":false}',
        '{"v":1,"event":"flow_added","time":1,"flow":{"id":"1","provider":"tcp"},"counts":{"rx_bytes":1e99},"preexisting":false}',
        '{"v":1,"event":"flow_added","time":1,"flow":{"id":"1","provider":"tcp"},"counts":{"rx_bytes":' + "9" * 4000
        + '},"preexisting":false}',
        '{"v":1,"event":"flow_removed","time":1,"flow":{"id":"7","provider":"tcp"},"counts":null,"final":false,"reason":"gone"}',
        ADDED % ('"process":{"pid":99999999999999999999}', "null"),
        ADDED % ('"state":null', '{"media":{"wifi":{"rx_bytes":-1,"tx_bytes":0,"rx_packets":0,"tx_packets":0}}}'),
        '{"v":1,"event":"events_lost","time":1,"cause":"limit","count":-1,"counts":null,"detail":null}',
        '{"v":1,"event":"host_updated","time":1,"host":"web","state":"left"}',
    ],
    ids=["a row", "below zero", "a fraction", "beyond 64 bits", "the end of what never began", "a process id beyond 64 bits",
         "a medium below zero", "a loss of less than nothing", "that it left"],
)  # fmt: skip
def test_a_line_that_no_machine_writes_is_a_loss_of_that_machine(line):
    core = Incoming()
    core.begin(WALL)
    first = Header(incarnation="0" * 8, seq=0, next=10.0, part=0, facts=Facts())
    core.receive(Delivery("nstat.web.state", encode(first, []), 1, WALL), 0.0)
    taken(core)
    core.receive(
        Delivery("nstat.web.events", encode(Header(incarnation="0" * 8, seq=1, next=10.0), [line]), 2, WALL), 0.0
    )
    [event] = taken(core)
    assert isinstance(event, EventsLost)
    assert (event.cause, event.host) == (LossCause.PROTOCOL, "web")


def test_a_machine_cannot_make_flows_of_another_one():
    """What a line says of a host is not believed: the subject says whose it is."""
    core = Incoming()
    core.begin(WALL)
    first = Header(incarnation="0" * 8, seq=0, next=10.0, part=0, facts=Facts())
    core.receive(Delivery("nstat.web.state", encode(first, []), 1, WALL), 0.0)
    line = '{"v":1,"event":"flow_added","time":1,"flow":{"id":"db/1/1","provider":"tcp","host":"db"},"counts":null,"preexisting":false}'
    core.receive(
        Delivery("nstat.web.events", encode(Header(incarnation="0" * 8, seq=1, next=10.0), [line]), 2, WALL), 0.0
    )
    added = taken(core)[-1]
    assert added.flow.host == "web"
    assert added.flow.id == "web/00000000/db/1/1"


def test_what_a_flow_says_of_another_flow_is_of_the_same_machine_and_run():
    stream, machine = Stream(), Machine("web")
    machine.take([machine.begin(), machine.begin(parent="c0", peer=Peer("db", None, "forged"))])
    for message in machine.messages():
        stream.add(message, machine)
    flows = {flow.id: flow for flow, _ in Reader().begin().read(stream.deliveries).core.flows()}
    child = flows["web/00000000/c1"]
    assert child.parent == "web/00000000/c0"
    assert child.peer is None


def test_machines_beyond_the_limit_are_left_out_and_it_is_said_once_for_each(monkeypatch):
    monkeypatch.setattr("nstat_async.fleet._incoming.MOST_HOSTS", 3)
    core = Incoming()
    core.begin(WALL)
    for number in range(5):
        data = encode(Header(incarnation="0" * 8, seq=0, next=10.0, part=0), [])
        for _ in range(2):
            core.receive(Delivery(f"nstat.h{number}.state", data, number, WALL), 0.0)
    limits = [event for event in taken(core) if isinstance(event, EventsLost)]
    assert [(event.cause, event.host) for event in limits] == [(LossCause.LIMIT, "h3"), (LossCause.LIMIT, "h4")]


def test_flows_beyond_the_limit_are_left_out_and_it_is_said_once(monkeypatch):
    monkeypatch.setattr("nstat_async.fleet._flows.MOST_FLOWS", 10)
    stream, machine = Stream(), Machine("web")
    machine.take([machine.begin() for _ in range(30)])
    lived(machine, stream, 5)
    reader = Reader().begin().read(stream.deliveries)
    assert [loss.cause for loss in reader.losses] == [LossCause.LIMIT]
    assert len(list(reader.core.flows())) <= 10


@pytest.mark.parametrize(("more", "count"), [((), 2), (("cache",), None)], ids=["some", "as many as are counted"])
@pytest.mark.parametrize("late", [False, True])
def test_who_joins_is_told_what_is_beyond_the_limits(monkeypatch, late, more, count):
    monkeypatch.setattr("nstat_async.fleet._incoming.MOST_HOSTS", 3)
    monkeypatch.setattr("nstat_async.fleet._flows.MOST_FLOWS", 10)
    stream, machine = Stream(), Machine("web")
    machine.take([machine.begin() for _ in range(30)])
    lived(machine, stream, 2)
    for name in ("one", "two", "db", "app", *more):
        lived(Machine(name), stream, 1)
    reader = Reader()
    if late:
        reader.read(stream.deliveries).begin()
        assert [(loss.cause, loss.host, loss.count) for loss in reader.losses] == [
            (LossCause.LIMIT, "web", None), (LossCause.LIMIT, None, count),
        ]  # fmt: skip
        assert not reader.of(PollCompleted)[-1].complete
    else:
        reader.begin().read(stream.deliveries)
        assert [loss.host for loss in reader.losses] == ["web", "db", "app", *more]


# --- the publisher ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a.b", "a b", "*", ">", "-a", "a" * 64, "ä", None, 7])
def test_a_name_that_is_no_word_of_a_subject_is_refused(name):
    with pytest.raises(UsageError, match="such as 'web1'"):
        Outgoing(name, "0" * 8)


def test_a_quiet_machine_is_heard_of_at_its_heartbeat_and_polls_alone_are_no_news():
    machine = Machine("web", heartbeat=10.0)
    assert len(machine.messages()) == 1  # the beginning
    heard = 0
    for _ in range(100):
        machine.step(0)
        heard += len(machine.messages())
    assert 8 <= heard <= 11


def test_a_poll_that_was_not_complete_is_news_at_its_place():
    machine = Machine("web", compress=False)
    machine.messages()
    missing = PollCompleted(WALL, 3, complete=False)
    machine.take([missing, machine.begin()])
    [message] = machine.messages()
    assert json.loads(message.data.split(b"\n")[1]) == missing


def test_the_state_of_many_idle_flows_is_published_rarely_and_that_of_busy_ones_each_minute():
    machine = Machine("web")
    machine.take([machine.begin() for _ in range(100)])

    def states(seconds, moves):
        found = 0
        for _ in range(seconds // 5):
            machine.time += 4
            machine.step(moves)
            found += sum(message.subject.endswith(".state") for message in machine.messages())
        return found

    assert states(70, 0) == 2  # the beginning, and the state after so many flows came
    assert states(500, 0) == 0
    assert states(200, 20) == 3


def test_no_message_is_larger_than_it_may_be_and_a_line_that_is_is_a_loss():
    machine = Machine("web", most_bytes=2000, compress=False)
    machine.take([machine.begin(rx=1) for _ in range(50)])
    huge = machine.begin(rx=1, namespace="x" * 5000)
    machine.take([huge])
    messages = machine.messages()
    assert all(len(message.data) < 2500 for message in messages)
    lost = [
        json.loads(line) for message in messages for line in message.data.split(b"\n")[1:] if b"events_lost" in line
    ]
    assert [loss.cause for loss in lost] == [LossCause.LIMIT]


@pytest.mark.parametrize("most_bytes", [12_000, 1 << 18])
def test_a_flow_that_is_too_long_for_a_line_is_missing_in_each_state_which_is_said(most_bytes):
    machine, stream = Machine("web", most_bytes=most_bytes), Stream()
    long = "".join(chr(0x4E00 + number) for number in range(5000))  # six bytes of JSON each
    machine.take([machine.begin(rx=1), machine.begin(rx=1, namespace=long), machine.begin(rx=1)])
    lived(machine, stream, 1)
    machine.time += 700
    lived(machine, stream, 1)
    at = max(at for at, each in enumerate(stream.deliveries) if each.subject == "nstat.web.state")
    assert all(len(each.data) < most_bytes for each in stream.deliveries)
    reader = Reader().read(stream.deliveries[at:]).begin()
    assert {flow.id.rpartition("/")[2] for flow, _ in reader.core.flows()} == set(machine.open) - {"c1"}
    assert [loss.host for loss in reader.losses] == ["web"]
    assert not reader.of(PollCompleted)[-1].complete
    live = Reader().begin().read(stream.deliveries[at:])
    assert LossCause.LIMIT in {loss.cause for loss in live.losses}
    assert {loss.time for loss in live.losses} == {stream.deliveries[-1].stored}


def test_labels_that_fit_make_a_header_that_readers_take():
    nats = pytest.importorskip("nstat_async.integrations.nats", exc_type=ImportError)
    for labels in (7, None, {"a": "\U0001f600" * 300}, {str(number): "" for number in range(400)}):
        with pytest.raises(UsageError, match="labels: "):
            nats.Publisher("nats://x", host="web", labels=labels)
    most = nats.Publisher("nats://x", host="web", labels={"a": "\U0001f600" * 240}).labels
    stream, machine = Stream(), Machine("web")
    machine.outgoing = Outgoing("web", "0" * 8, Facts(labels=most), compress=False)
    lived(machine, stream, 1)
    assert Reader().begin().read(stream.deliveries[:1]).of(HostUpdated)[-1].labels == most
    assert len(stream.deliveries[0].data) < 4096


def test_lines_are_public_json_and_a_message_can_be_read_without_the_library():
    machine = Machine("web", compress=False)
    machine.step()
    [first, second, *_] = machine.messages()
    assert b'"facts":{"machine_id":"web"' in first.data
    assert [json.loads(line) for line in second.data.split(b"\n")[1:]]

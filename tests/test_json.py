"""JSON of events and rows, in both directions."""

from __future__ import annotations

import json as standard
import re
import struct
import typing

import attrs
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

import nstat_async
from examples import examples
from nstat_async import (
    AnyEvent,
    Counts,
    Details,
    DomainInfo,
    Flow,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    Interface,
    InterfaceKind,
    MediumCounts,
    PollCompleted,
    Process,
    ProtocolError,
    Provider,
    RemovalReason,
    json,
)
from nstat_async._events import flow_updated
from nstat_async._fields import TABLE
from nstat_async._rows import Row, RowKind
from nstat_async.ntstat import Kernel
from nstat_async.ntstat._descriptors import DescriptorReader
from nstat_async.ntstat._translate import Translator

FLOW = Flow("x", Provider.CONNECTION, interface=Interface(None, kind=InterfaceKind.WIFI))


def _same(one: object, other: object) -> bool:
    return one == other and getattr(one, "details", None) == getattr(other, "details", None)


@settings(deadline=None, max_examples=examples(100))
@given(strategies.events)
def test_a_full_line_read_back_is_the_event(event):
    line = json.dumps(event)
    assert line.isascii()
    assert line.isprintable()
    assert _same(json.loads(line), event)
    assert type(json.loads(line.encode())) is type(event)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a\udcff", "a\ufffd"),
        ("\udcff\udcfe/\ud800", "\ufffd\ufffd/\ufffd"),
        ("\\udcff\n", "\\udcff\n"),
        ("\\\udcff", "\\\ufffd"),
        ("\U0001f600\udcff\U0001f600", "\U0001f600\ufffd\U0001f600"),
    ],
)
def test_what_is_no_unicode_in_a_name_is_a_replacement_character_that_every_reader_of_json_takes(name, read):
    event = FlowAdded(1.0, attrs.evolve(FLOW, process=Process(7, name, path=f"/{name}")), None, preexisting=False)
    for line in (json.dumps(event), json.JsonFormatter()(event)):
        process = standard.loads(line)["flow"]["process"]
        assert (process["name"], process["path"]) == (read, f"/{read}")
        assert line.isascii()


def test_every_character_of_unicode_is_read_as_it_was():
    """Also those next to the surrogates: U+D000 to U+D7FF are letters of Hangul, for the most part."""
    name = "".join(map(chr, (*range(1, 0xD800), *range(0xE000, 0x10100), 0x10FFFF)))
    event = FlowAdded(1.0, attrs.evolve(FLOW, process=Process(7, name)), None, preexisting=False)
    for line in (json.dumps(event), json.JsonFormatter()(event)):
        assert standard.loads(line)["flow"]["process"]["name"] == name


@settings(deadline=None, max_examples=examples(100))
@given(st.text(st.characters()))
def test_any_name_is_written_so_that_every_encoding_can_write_what_is_read(name):
    event = FlowAdded(0.0, Flow(name, Provider.TCP), None, preexisting=False)
    for line in (json.dumps(Process(1, name)), json.JsonFormatter()(event)):
        assert standard.dumps(standard.loads(line), ensure_ascii=False).encode()


@settings(deadline=None, max_examples=examples(100))
@given(strategies.rows(), strategies.times)
def test_a_row_read_back_is_the_row(row, time):
    assert json.loads(json.dumps(row, time=time)) == row


@settings(deadline=None, max_examples=examples(50))
@given(st.lists(strategies.events, max_size=3), st.booleans())
def test_the_formatter_writes_what_the_dictionary_has(events, full):
    formatter = json.JsonFormatter(full=full)
    for event in [*events, *events]:
        line = formatter(event)
        read = standard.loads(line, parse_constant=pytest.fail)
        wanted = json.to_dict(event, full=full)
        if wanted.get("flow", {}).get("started") is not None:  # to the microsecond in a line
            assert read["flow"].pop("started") == pytest.approx(wanted["flow"].pop("started"), abs=1e-6, rel=1e-15)
        assert read == wanted
        assert list(read) == list(wanted)
        assert line.isascii()
        assert line.isprintable()


@settings(deadline=None, max_examples=examples(100))
@given(strategies.flow_events)
def test_a_line_of_the_command_gives_the_same_delta(event):
    back = json.loads(json.JsonFormatter()(event))
    assert back.flow == event.flow
    assert back.counts == event.counts
    if isinstance(event, FlowUpdated):
        assert back.delta == event.delta


_translator = Translator(Kernel.parse("xnu-11417.121.6"), (1, 1), {})
_readers = [
    DescriptorReader(_translator, number, provider, userland=False, codec=None)
    for number, provider in ((2, Provider.TCP), (4, Provider.UDP), (9, Provider.UDP_SUBFLOW), (8, Provider.CONNECTION))
]
_few = st.integers(0, 3)
_numbers = st.sampled_from([0, 0, 1, 2, 99, 10**9, 2**32 - 1])
_raw = st.tuples(*[_numbers | st.just(2**64 - 1)] * 10, *[_numbers] * 8).map(lambda n: struct.pack("<10Q8I", *n))
_step = st.tuples(_few, _few, _few, st.sampled_from([1.5, 2.0, 1e22]), _raw, st.integers(0, 9))


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(_step, min_size=1, max_size=12), st.integers(1, 5), st.booleans())
def test_lines_of_a_kernels_own_counters_are_those_of_their_values(steps, at_once, compiled):
    """Whatever comes between two updates of a flow: other flows, another state, a reader, falling counters, numbers, no report."""
    events, last = [], {}
    for number, state, kind, time, raw, odd in steps:
        flow = last.get((number, state), Flow(str(number), Provider.TCP, userland=bool(state)))
        reader = _readers[kind if odd < 3 else 0]
        before = last.get(number, raw) if odd != 4 else None
        now = struct.unpack("<10Q8I", raw) if odd == 5 else raw
        if odd == 6:
            events.append(FlowUpdated(time, flow, Counts(rx_bytes=1), None))
        elif odd == 7:
            events.append(FlowRemoved(time, flow, None, final=True, reason=RemovalReason.CLOSED))
        else:
            events.append(flow_updated(time, flow, (reader, b"", 0, 0, 0, -1, now, before)))
        last[number, state], last[number] = flow, now
    formatter = json.JsonFormatter()
    if not compiled:
        formatter._take = None
    batches = [events[at : at + at_once] for at in range(0, len(events), at_once)]
    texts = [text for batch in batches for text in formatter.lines(batch)]
    assert "\n".join(texts) == "\n".join(json.dumps(event, full=False) for event in events)


@settings(deadline=None, max_examples=examples(60))
@given(strategies.events, st.booleans(), st.data())
def test_a_line_with_anything_in_one_place_is_read_or_refused(event, full, data):
    line = json.to_dict(event, full=full)
    parts = [line, *(part for part in line.values() if isinstance(part, dict) and part)]
    part = data.draw(st.sampled_from(parts))
    where = data.draw(st.sampled_from(sorted(part)))
    numbers = st.integers() | st.floats() | st.just(10**400)
    part[where] = data.draw(st.none() | st.booleans() | numbers | st.text() | st.lists(st.integers()) | st.just({}))
    try:
        back = json.loads(standard.dumps(line))
    except ProtocolError:
        return
    assert isinstance(back, (nstat_async.Event, Row))
    assert json.loads(json.dumps(back)) is not None


@pytest.mark.parametrize(
    "line",
    [
        "", "[]", "{}", "null", "NaN", '{"v":2,"event":"poll_completed"}', '{"v":1,"event":"new"}', '{"v":1,"event":7}',
        '{"v":1,"event":"poll_completed","time":NaN,"flows":1,"complete":true}',
        '{"v":1,"event":"poll_completed","time":1e999,"flows":1,"complete":true}',
        '{"v":1,"event":"poll_completed","time":1,"flows":null,"complete":true}',
        '{"v":1,"event":"poll_completed","time":1,"flows":1}', "[" * 100_000, b"\xff",
        '{"v":1,"event":"flow_added","time":1,"flow":{"id":"1","provider":"tcp","started":1e308}}',
        '{"v":1,"event":"flow_added","time":1,"flow":{"id":"1","provider":"tcp","started_ns":1%s}}' % ("0" * 400),
        '{"v":1,"event":"poll_completed","time":1,"flows":1%s,"complete":true}' % ("0" * 400),
        '{"v":1,"event":"events_lost","time":1,"cause":"overflow","counts":{"rx_bytes":-1%s}}' % ("0" * 400),
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused_and_the_error_has_the_line(line):
    with pytest.raises(ProtocolError) as caught:
        json.loads(line)
    raw = line if isinstance(line, bytes) else line.encode()
    assert raw.startswith(caught.value.raw)
    assert len(caught.value.raw) <= 200


def test_unknown_keys_are_skipped():
    line = {**json.to_dict(PollCompleted(1.0, 5, complete=True, serial=3)), "invented": {"a": 1}}
    assert json.loads(standard.dumps(line)) == PollCompleted(1.0, 5, complete=True, serial=3)


def test_an_unknown_index_of_an_interface_is_null():
    line = standard.loads(json.JsonFormatter()(FlowAdded(1.0, FLOW, None, preexisting=False)))
    assert line["flow"]["interface"] == {"index": None, "name": None, "kind": "wifi"}


def test_a_line_of_a_snapshot_is_a_flow_that_was_there():
    line = json.JsonFormatter().flow_line(FLOW, Counts(rx_bytes=1), 5.0)
    assert json.loads(line) == FlowAdded(5.0, FLOW, Counts(rx_bytes=1), preexisting=True)


def test_lines_of_the_first_version_are_read():
    line = (
        '{"v":1,"event":"flow_updated","time":1.5,"flow":{"id":"7","provider":"tcp","userland":null,"local":null,'
        '"remote":null,"process":{"pid":1,"name":"a"},"interface":null,"state":null,"direction":null,'
        '"started":1763865120.123456},"counts":{"rx_bytes":10,"tx_bytes":null},"delta":{"rx_bytes":4,"tx_bytes":null,'
        '"rx_packets":null,"tx_packets":null}}'
    )
    event = json.loads(line)
    assert event.flow.process == Process(1, "a")
    assert event.flow.started_ns == 1763865120_123456000
    assert event.previous == Counts(rx_bytes=6)


def test_the_public_fields_that_were_in_no_output_are_in_the_line():
    process = Process(1, effective_unique_pid=9, persona_id=1000)
    flow = Flow("1", Provider.TCP, process=process, interface=Interface(1, properties=5), traffic_class=200)
    details = Details(mss=1448, domain=DomainInfo(name="example.org"))
    counts = Counts(connect_attempts=1, media={"wifi_infra": MediumCounts(1, 2, 3, 4)})
    line = json.to_dict(FlowUpdated(1.0, flow, counts, None, details=details))
    assert line["flow"]["process"]["effective_unique_pid"] == 9
    assert line["flow"]["process"]["persona_id"] == 1000
    assert line["flow"]["traffic_class"] == 200
    assert line["flow"]["interface"]["properties"] == 5
    assert line["counts"]["connect_attempts"] == 1
    assert line["counts"]["media"]["wifi_infra"]["tx_packets"] == 4
    assert line["details"]["mss"] == 1448
    assert line["details"]["domain"]["name"] == "example.org"
    assert json.to_dict(PollCompleted(1.0, 2, complete=True, serial=7))["serial"] == 7


def test_a_row_without_counts_says_null_and_its_kind_is_in_the_contract_s_words():
    row = Row(kind=RowKind.GROUP, key=(5, None), process=Process(5, "ntpd"), flows=1, uncounted_flows=1)
    line = json.to_dict(row, time=2.0)
    assert list(line) == [
        "v", "time", "pid", "name", "flows", "open_flows", "rx_bytes", "tx_bytes", "rx_packets", "tx_packets",
        "rx_rate", "tx_rate", "unique_pid", "kind", "uncounted_flows", "source", "process",
    ]  # fmt: skip
    assert line["rx_bytes"] is None
    assert line["kind"] == "process"
    assert json.to_dict(Row(kind=RowKind.LOST))["kind"] == "lost"


def test_other_values_are_refused():
    for value in (object(), 5, None, "flow"):
        with pytest.raises(TypeError):
            json.dumps(value)
        with pytest.raises(TypeError):
            json.JsonFormatter()(value)


def test_every_public_field_stands_in_the_table():
    """Also every event: what has no row has no output."""
    assert set(typing.get_args(AnyEvent)) == {record.cls for record in TABLE.records if record.event is not None}
    forgotten = []
    for record in TABLE.records:
        if not attrs.has(record.cls):
            continue
        rows = {field.name for field in record.fields}
        hidden = {"serial"} if record.cls is Row else set()
        forgotten += [
            f"{record.cls.__name__}.{each.name}"
            for each in attrs.fields(record.cls)
            if each.name.lstrip("_") not in rows | hidden
        ]
    assert not forgotten


def test_a_subclass_of_an_event_is_written_as_its_base():
    class Mine(PollCompleted):
        pass

    assert json.JsonFormatter()(Mine(1.0, 2, complete=True)) == json.JsonFormatter()(
        PollCompleted(1.0, 2, complete=True)
    )


def test_details_in_which_nothing_is_known_are_an_empty_object():
    event = FlowAdded(1.0, Flow("1", Provider.TCP), None, False, Details())
    assert json.JsonFormatter(full=True)(event).endswith('"details":{}}')


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('"event":"flow_added","time":1', "flow_added has no flow, counts, preexisting"),
        ('"event":"poll_completed","time":"x","flows":1,"complete":true', 'time is "x", but must be: number'),
        ('"event":"host_updated","time":1,"state":"lefft"', 'state is "lefft", but must be: present, silent, left'),
        ('"event":"flow_added","time":1,"flow":{"process":{"name":5}}', "name is 5, but must be: text"),
        ('"event":"flow_added","time":1,"flow":[]', "[] is not an object with the keys of Flow"),
        ('"event":"flow_removed","time":1,"flow":{"id":"1"}', "Flow has no provider"),
        ('"event":"flow_added","time":1,"flow":{"id":"1","provider":"tcp","started":"x"}', "'x' is not a number"),
        ('"event":"flow_updated","time":1,"flow":FLOW,"counts":null,"previous":null', "flow_updated has no counts"),
        ('"event":"flow_updated","time":1,"flow":FLOW,"counts":{"rx_bytes":1}', "neither delta nor previous"),
        (
            '"event":"flow_updated","time":1,"flow":FLOW,"counts":{"rx_bytes":"a"}',
            'rx_bytes is "a", but must be: integer',
        ),
        (
            '"event":"flow_updated","time":1,"flow":FLOW,"counts":{"rx_bytes":1},"delta":5',
            "5 is not an object with the keys of Delta",
        ),
        ('"event":"unrecognized","time":1,"type_number":1,"raw":"' + "z" * 999 + '"', "…, but must be: bytes as hex"),
    ],
)
def test_what_is_wrong_in_a_line_is_said_by_the_names_of_its_keys(line, says):
    line = '{"v":1,' + line.replace("FLOW", '{"id":"1","provider":"tcp"}') + "}"
    for read in (nstat_async.json.loads, nstat_async.json.JsonReader()):
        with pytest.raises(ProtocolError, match=re.escape(says)) as caught:
            read(line)
        assert len(str(caught.value)) < 300

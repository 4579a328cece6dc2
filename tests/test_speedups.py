"""The optional C code: it does what the Python code does, refuses what it cannot read, and can be turned off.

That both do the same on whatever a kernel may say is played by the fuzz targets ``reports`` and ``dumps``
(``tests/ntstat/test_ntstat_hostile.py``).
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import os
import struct
import subprocess
import sys
from pathlib import Path

import anyio
import attrs
import conversations
import pytest
from first_rows import FIRST_ROWS
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async import Attribution, Flow, FlowEvent, FlowUpdated, Interface, Process, Provider
from nstat_async._compiled import REVISION, SPEEDUPS, speedups
from nstat_async._doctor import examine
from nstat_async._events import flow_updated
from nstat_async._writing import Kept
from nstat_async.ntstat import Mode, Session, _decoder
from nstat_async.ntstat._source import Source
from nstat_async.sockdiag import TcpInfo, _first_rows, _flows, _rows, _scan
from nstat_async.sockdiag._entry import NOBODY, Entry, Others
from nstat_async.sockdiag._rows import RowFormats

built = pytest.mark.skipif(speedups is None, reason=f"the C code is {SPEEDUPS}")
PLACES = ((10006, 10004), (16, 32, 112, 144, 152), (0, 8, 16, 24, 80))


def followed(name):
    """All that a recorded conversation gives: events with their details, and the statistics."""
    session = Session(conversations.kernel(name), mode=Mode.FOLLOWING)
    events = []
    for datagram in conversations.datagrams(name):
        session.receive_datagrams((datagram,) * 3, 0.0, 0)
        events += [(e, e.details if isinstance(e, FlowEvent) else None) for e in session.take_events()]
    return events, session.statistics()


def longest_of_each_kernel():
    longest = {}
    for name in conversations.names("control/*"):
        kernel = conversations.kernel(name)
        if len(conversations.raw(name)) > len(conversations.raw(longest.get(kernel, name))) or kernel not in longest:
            longest[kernel] = name
    return sorted(longest.values())


@built
@pytest.mark.parametrize("name", longest_of_each_kernel())
def test_recorded_conversations_give_the_same_with_it_and_without(name, monkeypatch):
    compiled = followed(name)
    monkeypatch.setattr(_decoder, "speedups", None)
    assert compiled == followed(name)


@built
@pytest.mark.parametrize(
    "places",
    [
        ((16, 32, 112, 143, 152), (0, 8, 16, 24, 80)),
        ((16, 32, 112, 144, 152), (0, 8, 16, 24, 101)),
        ((16, 32, 112, 144, 152), (0, 8, 16, 105, 80)),
        ((16, 32, 112, 144, 152), (-1, 8, 16, 24, 80)),
        ((137, 32, 112, 144, 152), (0, 8, 16, 24, 80)),
        ((16, 32, 112, 144, 100), (0, 8, 16, 24, 80)),
        ((0, 32, 112, 144, 152), (0, 8, 16, 24, 80)),
    ],
)
def test_fields_outside_their_structure_are_refused(places):
    with pytest.raises(ValueError, match="outside its structure"):
        speedups.Reports(PLACES[0], *places, Source, FlowUpdated)


@built
@pytest.mark.parametrize(
    "sizes", [(79, 80, 0, 80, 0), (100, 96, 0, 80, 0), (100, 100, 21, 80, 0), (100, 100, 8, 88, 13)]
)
def test_pieces_outside_their_message_are_refused(sizes):
    with pytest.raises(ValueError, match="outside its message"):
        speedups.Rows(*sizes)


@built
def test_wrong_arguments_are_errors_and_nothing_is_read():
    reports, rows = speedups.Reports(*PLACES, Source, FlowUpdated), speedups.Rows(100, 100, 8, 88, 12)
    for call in (
        reports.take,
        lambda: reports.take((), 0, [], 1, 0.0, 0, False, print),
        lambda: reports.take(None, 0, {}, 1, 0.0, 0, False, print),
        lambda: speedups.Reports(*PLACES, dict, FlowUpdated),
        lambda: speedups.Lines(FlowUpdated, dict, Kept),
        lambda: speedups.Lines(FlowUpdated, Flow, Kept).take((), 0, []),
        rows.scan,
        lambda: rows.scan([bytes(100)], 0, 0, {}, 1, False, print, 6, None, None),
        lambda: rows.scan((bytes(100),), None, 0, {}, 1, False, print, 6, None, None),
        lambda: rows.scan((bytes(100),), 0, 0, {0: object()}, 1, False, print, 6, None, None),
        lambda: rows.scan((bytes(100),), 0, 0, {}, 1, False, print, 6, None, object()),
    ):
        with pytest.raises((TypeError, AttributeError)):
            call()
    for offset in (-1, 93, 101):
        with pytest.raises(ValueError, match="no row"):
            rows.scan((bytes(100),), 0, offset, {}, 1, False, print, 6, None, None)
    for datagrams, index in (((), 0), ((bytes(100),), 1), ((bytes(100),), -1), ((bytearray(100),), 0)):
        with pytest.raises(ValueError, match="no such datagram"):
            rows.scan(datagrams, index, 0, {}, 1, False, print, 6, None, None)
    with pytest.raises(ValueError, match="no such datagram"):
        reports.take((), -1, {}, 1, 0.0, 0, False, print)
    assert reports.take((b"x", b""), 0, {}, 1, 0.0, 0, False, print) == (0, 0, 0, 0)
    assert reports.take((), 0, {}, 1, 0.0, 0, False, print) == (0, 0, 0, 0)
    assert rows.scan((bytes(99), bytes(99)), 0, 0, {}, 1, False, print, 6, None, None) == (0, 0, 0)
    assert rows.scan((bytes(100), bytearray(100)), 0, 0, {}, 1, False, print, 6, None, None) == (0, 100, 1)


@built
@pytest.mark.parametrize(
    ("program", "written"),
    [
        (b"", None),
        (struct.pack("<H", 16), ""),
        (struct.pack("<H", 15), None),
        (struct.pack("<H5H", 16, 0, 0, 0, 0, 1) + b"x", "x"),
        (struct.pack("<H5H", 16, 0, 0, 0, 0, 2) + b"x", None),
        (struct.pack("<H4H", 16, 0, 0, 0, 0), None),
        (struct.pack("<H5H", 16, 3, 8, 0, 0, 0), "9"),
        (struct.pack("<H5H", 16, 3, 9, 0, 0, 0), None),
        (struct.pack("<H5H", 16, 4, 12, 0, 0, 0), "0"),
        (struct.pack("<H5H", 16, 4, 13, 0, 0, 0), None),
        (struct.pack("<H5H", 16, 5, 0, 0, 0, 0), None),
        (struct.pack("<H5H", 16, 5, 0, 1, 13, 0), None),
        (struct.pack("<H5H", 16, 5, 0, 4, 8, 0), "1750"),
        (struct.pack("<H5H", 16, 6, 8, 0, 0, 0), "2"),
        (struct.pack("<H5H", 16, 7, 0, 0, 0, 0), None),
        (struct.pack("<H10H", 16, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0), "1.5TEXT"),
        (struct.pack("<H10H", 16, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0), None),
        (struct.pack("<H5H", 16, 2, 0, 0, 0, 0), None),
    ],
)
def test_a_program_of_a_line_is_followed_within_its_bounds(program, written):
    flow, reader, raw = Flow("f", Provider.TCP), object(), struct.pack("<2Q", 7, 9)
    event = flow_updated(1.5, flow, (reader, b"", 0, 0, 0, -1, raw, struct.pack("<2Q", 0, 7)))
    kept = {"f": Kept(flow, "TEXT", reader=reader, program=program)}
    take = speedups.Lines(FlowUpdated, Flow, Kept).take
    assert take([event], 0, kept) == (int(written is not None), written or "")
    assert take([event, 1], 1, kept) == (1, "")
    assert take([event], 0, {"f": kept}) == take([event], 0, {}) == (0, "")
    with pytest.raises(ValueError, match="no such event"):
        take([event], -1, kept)


@built
def test_an_error_of_whoever_gets_the_rows_comes_through():
    def fail(*_):
        raise LookupError("full")

    with pytest.raises(LookupError, match="full"):
        speedups.Rows(100, 100, 8, 88, 12).scan((bytes(100),), 0, 0, {}, 1, False, fail, 6, None, None)


def row_of(cookie, counters=b"c" * 12):
    return struct.pack("=Q8x44sQ12x8s12s", 100, b"i" * 44, cookie, b"r" * 8, counters).ljust(100, b"\0")


@attrs.define
class Form:
    """How the Python code cuts rows of 100 bytes, 12 of them counters."""

    rest: int = 8
    length = stride = 100

    @property
    def format(self):
        return struct.Struct(f"=Q8x44sQ12x{self.rest}s{20 - self.rest}s")

    @property
    def columns(self):
        return _rows.columns_of(100, [(80, 20), (16, 52), (0, 8)])


class Dumps:
    """A book whose scans have a memory."""

    def __init__(self, code):
        self.code, self.entries = code, {}
        self.memory = speedups.Memory() if code == "C" else _scan.Memory()
        self.cut(8)

    def cut(self, rest):
        """Rows have so many bytes behind the user, and the others are counters."""
        self.form = Form(rest)
        self.take = speedups.Rows(100, 100, rest, 80 + rest, 20 - rest).scan if self.code == "C" else _scan.scan

    def scan(self, *rows, poll, entries=None, begin=True):
        """Cookies of the rows that were not known, in a dump that begins or goes on."""
        applied = []

        def apply(entry, _protocol, pieces, _message, _form):
            applied.append(pieces[2])
            if entry is None:
                entry = self.entries[pieces[2]] = Entry(lambda: None, 6, pieces, 0, 0)
            entry.set_last(pieces)
            entry.seen = poll

        if begin:
            self.memory.begin()
        entries = self.entries if entries is None else entries
        datagrams = tuple(b"".join(rows[at : at + 12]) for at in range(0, len(rows), 12))
        if rows:
            end = len(datagrams) - 1, len(datagrams[-1]), len(rows)
            assert self.take(datagrams, 0, 0, entries, poll, False, apply, 6, self.form, self.memory) == end
        return applied


@pytest.fixture(params=[pytest.param("C", marks=built), "Python"])
def dumps(request):
    return Dumps(request.param)


def test_a_row_that_the_dump_before_had_is_known_without_a_look_at_the_book(dumps):
    rows = [row_of(cookie) for cookie in range(1, 30)]
    assert dumps.scan(*rows, poll=1) == list(range(1, 30))
    assert dumps.scan(*rows, poll=2, entries={}) == []
    assert {entry.last_seen for entry in dumps.entries.values()} == {2}
    assert dumps.scan(*rows[3:9], row_of(99), *rows[9:], poll=3) == [99], "some went, one came"
    assert dumps.entries[1].last_seen == dumps.entries[3].last_seen == 2
    assert dumps.scan(*rows[3:9], row_of(10, b"d" * 12), *rows[10:], poll=4) == [10], "one changed"
    assert dumps.scan(*rows[3:9], row_of(10, b"d" * 12), *rows[10:], poll=5, entries={}) == []


@pytest.mark.parametrize("came", [[], [99]], ids=["some went", "one went and one came"])
def test_behind_what_went_and_came_the_rows_are_known_again_without_a_look_at_the_book(dumps, came):
    rows = [row_of(cookie) for cookie in range(1, 41)]
    first = rows[:9] if came else rows[3:10]
    dumps.scan(*rows, poll=1)
    assert dumps.scan(*first, *map(row_of, came), poll=2) == came
    for part in (rows[10:20], rows[20:40]):
        assert dumps.scan(*part, poll=2, entries={}, begin=False) == []
    assert dumps.scan(*first, *map(row_of, came), *rows[10:], poll=3, entries={}) == []


def test_a_longer_row_that_is_where_it_was_does_not_begin_alike(dumps):
    """Its pieces are those of the dump before, and the row behind it is not where it would be behind a shorter one."""
    rows = [row_of(1), row_of(2), row_of(3)]
    dumps.scan(*rows, poll=1)
    dumps.memory.begin()
    data = b"".join([*rows[:2], struct.pack("=I", 104), rows[2][4:], bytes(4)])
    for datagrams, index in ((data,), 0), ((rows[0], data[100:]), 1):
        dumps.memory.begin()
        end = dumps.take(datagrams, 0, 0, dumps.entries, 2, False, pytest.fail, 6, dumps.form, dumps.memory)
        assert end == (index, len(datagrams[index]) - 104, 2)
    assert [entry.last_seen for entry in dumps.entries.values()] == [2, 2, 1]


def test_rows_of_another_answer_are_not_taken_for_those_behind(dumps):
    """A datagram that begins alike but for its sequence number is whoever reads the headers to judge."""
    row = row_of(1)
    other = row[:8] + b"\1" + row[9:]
    for datagrams in ((row, other), (row, row[:11]), (row, b"")):
        dumps.memory.begin()
        assert dumps.take(datagrams, 0, 0, {}, 1, False, lambda *_: None, 6, dumps.form, dumps.memory) == (0, 100, 1)


def test_a_row_of_a_socket_that_something_else_told_of_is_not_known(dumps):
    rows = [row_of(cookie) for cookie in range(1, 4)]
    dumps.scan(*rows, poll=1)
    dumps.entries[2].forget_last()  # as a book does with one that is dropped
    del dumps.entries[2]
    assert dumps.scan(*rows, poll=2) == [2]
    dumps.entries[3].set_last((0, b"", 3, b"", b""))
    assert dumps.scan(*rows, poll=3) == [3]


def test_a_memory_lets_go_of_what_two_dumps_did_not_have(dumps):
    rows = [row_of(cookie) for cookie in range(1, 300)]
    dumps.scan(*rows, poll=1)
    entry = dumps.entries[7]
    held = sys.getrefcount(entry)
    dumps.scan(poll=2)
    dumps.scan(poll=3)
    assert sys.getrefcount(entry) == held - 1
    gc.collect()
    assert dumps.scan(*rows, poll=4) == []


def test_a_memory_of_rows_that_often_change_has_the_last_ones(dumps):
    rows = [row_of(cookie) for cookie in range(1, 30)]
    dumps.scan(*rows, poll=1)
    for poll in range(2, 12):
        rows[3::2] = [row_of(cookie, bytes([poll]) * 12) for cookie in range(4, 30, 2)]
        assert dumps.scan(*rows, poll=poll) == list(range(4, 30, 2))
    assert dumps.scan(*rows, poll=12, entries={}) == []
    assert dumps.scan(*rows[::-1], poll=13) == []


def test_a_row_that_is_cut_in_another_way_by_now_is_not_known(dumps):
    """Formats are learned anew where there are very many; a row of the same length may have other pieces then."""
    rows = [row_of(cookie) for cookie in range(1, 4)]
    dumps.scan(*rows, poll=1)
    dumps.cut(20)
    assert dumps.scan(*rows, poll=2) == [1, 2, 3]
    assert dumps.scan(*rows, poll=3, entries={}) == []


class Value:
    """What a maker makes here."""

    __slots__ = ("first", "second", "third")


@built
def test_a_made_object_has_its_values_and_the_collector_does_not_look_at_it():
    rest = object()
    made = speedups.Maker(Value, ("second", "first", "third"), (rest,)).make([], 1)
    assert (made.first, made.second, made.third) == (1, [], rest)
    assert not gc.is_tracked(made)
    held = sys.getrefcount(rest)
    del made
    assert sys.getrefcount(rest) == held - 1


@built
@settings(max_examples=examples(600, 60))
@given(FIRST_ROWS, FIRST_ROWS, st.booleans())
def test_the_entry_of_a_first_row_is_the_same_to_both(row, cut_as, as_itself):
    """However it is built: also one that is cut as another one of its length would be."""
    message, formats = row.message(), RowFormats()
    form = formats.of((row if as_itself else cut_as).message().ljust(len(message), b"\0"), 0, len(message))
    pieces = form.format.unpack(message.ljust(form.stride, b"\0"))
    given = (object(), row.protocol, pieces, message, form, 7, 0.5, {(80).to_bytes(2, "big"): {}})
    python, compiled = (
        attrs.asdict(see(*given), recurse=False) for see in (_first_rows._make_entry, _first_rows.entry_maker())
    )
    for each in (python, compiled):
        each["report"] = each["report"]._values
    assert compiled == python


@built
@settings(max_examples=examples(400, 60))
@given(FIRST_ROWS, st.booleans(), st.sampled_from([0, 0, 3]), st.sampled_from([None, None, b"\0\0", b"\0\1", b"\1\0"]))
def test_a_row_of_a_first_dump_is_a_socket_or_the_books(row, known, timer, port):
    """What is plain goes into the tables as Python sees it; whatever is not goes to the book with all that there is."""
    message = bytearray(row.message())
    message[18] = timer
    message[20:22] = port or message[20:22]
    message, formats, keeper, left, new, entries = bytes(message), RowFormats(), object(), [], [], {}
    pieces, form = formats.cut(message)
    listening = {(80).to_bytes(2, "big"): {}}
    about = keeper, entries, listening, new, lambda *given: left.append(given)
    given = (new if known else None, row.protocol, pieces, message, form)
    _first_rows.first_rows()(about, 7, 0.5, *given)
    expected = _first_rows._make_entry(keeper, *given[1:], 7, 0.5, listening)
    dumped = known or _rows.is_remains(message) or row.protocol == 17
    plain = expected.weight and row.info_length >= 216 and row.cgroup and not (dumped or is_huge(row))
    if not plain:
        assert (left, new, entries) == ([given], [], {})
        return
    assert entries == {row.cookie: new[0]}
    python, compiled = (attrs.asdict(each, recurse=False) for each in (expected, *new))
    python |= {"over": False, "preexisting": True, "report": python["report"]._values}
    assert compiled | {"report": compiled["report"]._values} == python


def is_huge(row):
    """True if a sum of its counters could leave 64 bits."""
    return any(row.info.get(field, 0) >> 62 for field in (TcpInfo.BYTES_ACKED, TcpInfo.BYTES_SENT))


@built
@pytest.mark.parametrize(
    "about", [(), (object(), {}, {}, ()), (object(), [], {}, [], print), (object(), {}, {}, (), print)]
)
def test_rows_of_something_else_than_a_book_are_refused(about):
    with pytest.raises(TypeError, match="keeper, entries, listening, new, python"):
        _first_rows.first_rows()(about, 1, 0.5, None, 6, (), b"", None)
    with pytest.raises(TypeError, match="keeper, entries, listening, new, python"):
        _first_rows.first_rows()(about)


LOOPBACK_OF_V4, ELSEWHERE = bytes([127, 0, 0, 1]) + bytes(12), bytes([0xFE, 0x80]) + bytes(14)
KNOWN_OF = {(2, LOOPBACK_OF_V4 * 2 + bytes(4)): None, (10, bytes(36)): Interface(3)}
ENTRIES = st.builds(
    lambda family, ends, cgroup, **facts: Entry(
        object, 6, (1, bytes([family, 1, 0, 0, 0, 80, 1, 187]) + b"".join(ends) + bytes(4), 5, b"", b""), 1, 1, cgroup=cgroup, **facts
    ),
    st.sampled_from([2, 2, 10]),
    st.sampled_from([(LOOPBACK_OF_V4,) * 2, (bytes(16),) * 2, (ELSEWHERE, bytes(16)), (bytes(16), ELSEWHERE)]),
    st.sampled_from([1, 1, 2, 3]),
    flow=st.sampled_from([None, None, None, Flow("1", Provider.TCP)]),
    over=st.sampled_from([False, False, False, True]),
    owner=st.sampled_from([None, Process(7, "seven"), Attribution.KERNEL]),
    others=st.sampled_from([NOBODY, NOBODY, Others(2), Others()]),
    connection=st.integers(1, 2),
    preexisting=st.booleans(),
)  # fmt: skip


@settings(max_examples=examples(400, 60))
@given(st.lists(ENTRIES, max_size=4), st.sampled_from([None, "blue"]))
def test_a_flow_is_announced_once_with_all_that_is_known_or_by_the_book(entries, namespace):
    """By the C code as by the Python code: who is over, or announced, is not; where more is to be found out the book does it."""
    told = []
    for announce in (_flows._announce, _flows.announce):
        copies, events, left = [copy.copy(entry) for entry in entries], [], []
        places = {1: ("/a", None, "pod"), 2: None}
        asked = copies, "n3:", namespace, places, KNOWN_OF, 9.5, events, left.append
        assert announce(*asked) == len(events) + len(left)
        assert {id(event.flow) for event in events} <= {id(entry.flow) for entry in copies}
        told.append((events, [copies.index(entry) for entry in left], [entry.flow for entry in copies]))
        pairs = _flows.flows_of(copies)
        assert pairs == [(entry.flow, entry.report) for entry in copies if entry.flow is not None]
    assert told[0] == told[1]


@built
def test_what_is_announced_in_another_way_than_it_is_made_for_is_refused():
    maker = speedups.Maker(Value, ("first",), ())
    with pytest.raises(ValueError, match="makers of other values"):
        speedups.Announcer(Entry, maker, maker, NOBODY)
    with pytest.raises(TypeError):
        speedups.Announcer(Entry, Value(), maker, NOBODY)
    announcer = _flows.announce.__self__
    with pytest.raises(ValueError, match="made twice"):
        announcer.__init__(Entry, _flows.unread_flow.__self__, _flows.flow_added.__self__, NOBODY)
    for values in ((), ((), "", None, {}, {}, 1.0, [], print), ([], "", None, {}, {}, 1.0, (), print)):
        with pytest.raises(TypeError, match="entries, prefix"):
            announcer.announce(*values)
    with pytest.raises(TypeError, match="not one of the entries"):
        announcer.flows([Value()])
    with pytest.raises(ZeroDivisionError):
        announcer.announce([Value(), Value()], "", None, {}, {}, 1.0, [], lambda _: 1 / 0)


@built
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((Value, ("fourth",), ()), AttributeError),
        ((Value, ("__class__",), ()), TypeError),
        ((Value, (1,), ()), TypeError),
        ((Value, ["first"], ()), TypeError),
        ((Value(), ("first",), ()), TypeError),
        ((Value, ("first",), (1, 2)), ValueError),
    ],
)
def test_a_maker_of_what_is_no_slot_is_refused(arguments, error):
    with pytest.raises(error):
        speedups.Maker(*arguments)


@built
def test_a_maker_takes_as_many_values_as_it_was_made_for():
    maker = speedups.Maker(Value, ("first", "second"), (2,))
    for values in ((), (1, 2)):
        with pytest.raises(TypeError, match="takes 1 values"):
            maker.make(*values)
    with pytest.raises(ValueError, match="twice"):
        maker.__init__(Value, ("third",), ())
    assert maker.make(1).second == 2


@pytest.mark.parametrize(("value", "used"), [("1", False), ("0", None), ("", None)])
def test_a_variable_of_the_environment_turns_it_off(value, used):
    code = "from nstat_async._compiled import *; print(speedups is not None, SPEEDUPS)"
    environment = {**os.environ, "NSTAT_ASYNC_PURE": value, "PYTHONPATH": os.pathsep.join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    expected = speedups is not None if used is None and not os.environ.get("NSTAT_ASYNC_PURE") else used
    if expected is not None:
        assert answer.stdout.startswith(str(expected))
    assert ("NSTAT_ASYNC_PURE" in answer.stdout) == (used is False)


@built
@pytest.mark.parametrize("revision", [None, REVISION - 1, REVISION + 1])
def test_one_of_other_sources_is_not_used(monkeypatch, revision):
    """Beside sources that are edited in place it may be older than they are."""
    if revision is None:
        monkeypatch.delattr(speedups, "REVISION")
    else:
        monkeypatch.setattr(speedups, "REVISION", revision)
    fresh = importlib.util.module_from_spec(importlib.util.find_spec("nstat_async._compiled"))
    fresh.__spec__.loader.exec_module(fresh)
    assert fresh.speedups is None
    assert "other sources" in fresh.SPEEDUPS


def test_the_doctor_says_whether_it_is_in_use():
    (library,) = [found for found in anyio.run(examine).findings if found.name == "library"]
    assert library.data["speedups"] == SPEEDUPS
    assert library.detail.endswith(f"C code {SPEEDUPS}")


def test_every_use_of_it_has_its_reference_beside_it():
    root = Path(_decoder.__file__).parents[1]
    users = {path.name for path in root.rglob("*.py") if "import speedups" in path.read_text("utf-8")}
    also = {"_flows.py", "_first_rows.py", "counters.py", "glance.py", "json.py", "tables.py"}
    assert users == {"_decoder.py", "_descriptors.py", "_making.py", "_reports.py", "_rows.py", "_scan.py"} | also

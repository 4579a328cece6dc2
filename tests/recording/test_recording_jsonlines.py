"""JSON Lines conversations: the lines of other programs, and their mistakes."""

from __future__ import annotations

import io
import json

import conversations
import pytest

from nstat_async._errors import RecordingError
from nstat_async.recording import (
    MAX_LINE,
    JsonLinesWriter,
    RecordingReader,
    RecordingWriter,
    RecordKind,
    copy,
    open_recording,
)

HEADER = b'{"xnu": "xnu-3789.70.16 (macOS 10.12), not xnu-1.2", "arch": "lp64", "timebase": [125, 3]}\n'


def read(data, kernel=None, step=None):
    reader = RecordingReader(kernel=kernel)
    records = []
    for at in range(0, len(data), step or len(data) or 1):
        records += reader.feed(data[at : at + (step or len(data))])
    records += reader.close()
    return reader.info, records


def test_lines_become_records():
    """Float seconds and integer nanoseconds, clients, texts and unknown keys arrive as they were."""
    info, records = read(
        HEADER + b'{"i": 5, "dir": "note", "t": 1.5, "text": "hello", "flow": 2}\n'
        b'{"dir": "to_kernel", "t": 1000.008073236, "hex": "0102"}\r\n'
        b"\n"
        b'{"dir": "from_kernel", "t": 7, "c": 3, "hex": "FF", "trunc_from": 9}\n'
        b'{"dir": "from_kernel", "hex": ""}'
    )
    assert info.kernel == "xnu-3789.70.16"
    assert info.protocol == "ntstat"
    assert info.timebase == (125, 3)
    assert info.extra == {"xnu": "xnu-3789.70.16 (macOS 10.12), not xnu-1.2", "arch": "lp64"}
    note, sent, received, last = records
    assert (note.index, note.kind, note.time_ns, note.text, note.extra) == (
        5,
        RecordKind.NOTE,
        1_500_000_000,
        "hello",
        {"flow": 2},
    )
    assert (sent.index, sent.data, sent.time_ns) == (1, b"\1\2", 1_000_008_073_236)
    assert (received.client, received.time_ns, received.data, received.extra) == (3, 7, b"\xff", {"trunc_from": 9})
    assert (last.time_ns, last.data, last.client) == (7, b"", 0)


@pytest.mark.parametrize(
    "line",
    [
        b"{broken",
        b"[]",
        b"3",
        b"\xff\xfe{}",
        b'{"dir": "sideways", "t": 1}',
        b'{"t": 1}',
        b'{"dir": "to_kernel", "t": 1}',
        b'{"dir": "to_kernel", "t": 1, "hex": "0"}',
        b'{"dir": "to_kernel", "t": 1, "hex": "zz"}',
        b'{"dir": "to_kernel", "t": 1, "hex": 12}',
        b'{"dir": "to_kernel", "t": "soon", "hex": ""}',
        b'{"dir": "to_kernel", "t": NaN, "hex": ""}',
        b'{"dir": "to_kernel", "t": 1e999, "hex": ""}',
        b'{"dir": "to_kernel", "t": 99999999999999999999, "hex": ""}',
        b'{"dir": "to_kernel", "t": true, "hex": ""}',
        b'{"dir": "to_kernel", "t": 1, "c": -1, "hex": ""}',
        b'{"dir": "to_kernel", "t": 1, "c": "x", "hex": ""}',
        b'{"dir": ["note"], "t": 1}',
        b'{"dir": "meta", "t": 1, "info": 3}',
        b"[" * 100_000,
        b"1" * 5000,
        b'{"dir": "to_kernel", "t": 1, "hex": "' + b"00" * ((1 << 20) + 1) + b'"}',
        b" " * 10 + b'{"dir": "note", "text": "' + b"x" * MAX_LINE + b'"}',
    ],
    ids=lambda line: line[:45].decode("latin-1"),
)
def test_a_broken_line_is_one_damage_record(line):
    """It names its line, and the lines around it are read."""
    good = b'{"dir": "note", "t": 4, "text": "good"}\n'
    for step in (None, 65536):
        _, records = read(HEADER + good + line + b"\n" + good, step=step)
        assert [r.kind.value for r in records] == ["note", "damage", "note"]
        assert records[1].text.startswith("line 3: ")
        assert records[1].extra == {"offset": len(HEADER) + len(good), "length": len(line), "line": 3}
        assert [r.index for r in records] == [0, 1, 2]


def test_long_lines_cost_no_memory():
    """A line that never ends is dropped as it comes."""
    reader = RecordingReader()
    reader.feed(HEADER)
    for _ in range(40):
        reader.feed(b"x" * (1 << 20))
        assert len(reader._parser._partial) <= MAX_LINE
    assert [r.extra["length"] for r in reader.close()] == [40 << 20]


@pytest.mark.parametrize("data", [b'{"a": 1}\n', b'{"dir": "note", "text": ""}\n', b'{"xnu": "xnu-1', b'{"a"'])
def test_a_file_that_names_no_kernel_says_so(data):
    """Without a header that names a kernel the caller must name one."""
    with pytest.raises(RecordingError, match=r"kernel|line 1"):
        read(data)
    info, _ = read(data, kernel="xnu-7195.141.2")
    assert info.kernel == "xnu-7195.141.2"


def test_a_missing_header_costs_no_record_when_the_kernel_is_given():
    """The first line may then be a record, or broken."""
    assert read(b'{"dir": "note", "text": "a"}\n', kernel="xnu-1")[1][0].text == "a"
    assert [r.kind.value for r in read(b'{"dir"\n{"dir": "note"}', kernel="xnu-1")[1]] == ["damage", "note"]


@pytest.mark.parametrize(("value", "want"), [("125/3", (125, 3)), ({"numer": 1, "denom": 1}, (1, 1))])
def test_timebases_may_be_written_in_other_ways(value, want):
    """A fraction's text and Mach's own names are understood."""
    assert read(json.dumps({"xnu": "xnu-1", "timebase": value}).encode())[0].timebase == want


@pytest.mark.parametrize("value", [[1], [0, 1], [1, -1], "1/x", "²/3", [True, 1], {}, 7, "1/2/3"])
def test_facts_of_the_wrong_type_stay_visible(value):
    """They are unknown, and kept among the further keys."""
    info, _ = read(json.dumps({"xnu": "xnu-1", "timebase": value, "interfaces": [1], "tool": 3}).encode())
    assert info.timebase is None
    assert info.extra == {"timebase": value, "interfaces": [1], "tool": 3}


def test_white_space_and_a_byte_order_mark_may_stand_before_it():
    """An editor's habits do not make it another format."""
    for before in (b"\xef\xbb\xbf", b" \n\t", b"\r\n"):
        for step in (1, None):
            assert read(before + HEADER, step=step)[0].kernel == "xnu-3789.70.16"


@pytest.mark.parametrize("name", conversations.names("*/xnu-11417*/[bec]*") + conversations.names("*/xnu-2422*/*"))
def test_recorded_conversations_survive_both_formats(name):
    """Conversations with the real kernel code become the same records through both formats and back."""
    source = open_recording(io.BytesIO(conversations.raw(name)))
    info, records = source.info, list(source)
    header, lines = conversations.load(name)
    assert info.kernel == conversations.kernel(name)
    assert info.extra["scenario"] == header["scenario"]
    assert [r.index for r in records] == [line["i"] for line in lines]
    assert [r.data.hex() for r in records] == [line.get("hex", "") for line in lines]
    for writer in (RecordingWriter, JsonLinesWriter):
        file = io.BytesIO()
        copy(records, writer(file, info, flush=False))
        back = open_recording(io.BytesIO(file.getvalue()))
        assert list(back) == records
        assert back.info == info


@pytest.mark.parametrize("path", sorted(conversations.EXAMPLES.glob("*.jsonl")), ids=lambda p: p.name)
def test_the_shipped_examples_are_whole(path):
    """The examples for users have no damage and name a kernel."""
    with open_recording(path) as recording:
        assert recording.info.kernel.startswith("xnu-")
        assert {r.kind for r in recording} == {RecordKind.TO_KERNEL, RecordKind.FROM_KERNEL, RecordKind.NOTE}

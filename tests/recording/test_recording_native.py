"""The project's own format: what is written is read, and what is damaged is said."""

from __future__ import annotations

import io
import struct

import pytest

from nstat_async import _errors as errors
from nstat_async.recording import (
    MAX_DATAGRAM,
    JsonLinesWriter,
    Record,
    RecordingInfo,
    RecordingReader,
    RecordingWriter,
    RecordKind,
    copy,
    open_recording,
)

INFO = RecordingInfo(
    kernel="xnu-11417.121.6",
    timebase=(125, 3),
    layout="11417",
    started_ns=1_763_865_123_000_000_000,
    interfaces={1: "lo0", 14: "en0"},
    tool="test 1",
    extra={"host": "a mac", "future": [1, {"x": None}]},
)
HEADER = 16
HEAD = 20


def write(writer=RecordingWriter, info=INFO):
    file = io.BytesIO()
    with writer(file, info) as w:
        w.note("begin \N{SNOWMAN}", 0, extra={"flow": 3})
        w.to_kernel(b"\x01" * 56, 10)
        w.from_kernel(b"\x02" * 200, 20, 1, extra={"trunc_from": 900})
        w.answer({"pid": 4711, "names": ["a", None]}, 30, 2)
        w.update_info(RecordingInfo(interfaces={20: "utun3"}, timebase=(1, 1)), 35)
        w.from_kernel(b"", -40)
    return file.getvalue()


def read(data, step=None, kernel=None):
    reader = RecordingReader(kernel=kernel)
    records = []
    for at in range(0, len(data), step or len(data) or 1):
        records += reader.feed(data[at : at + (step or len(data))])
    records += reader.close()
    return reader, records


def kinds(records):
    return [r.kind.value for r in records]


@pytest.mark.parametrize("writer", [RecordingWriter, JsonLinesWriter])
def test_what_was_written_is_read(writer):
    """Every kind of record comes back with its number, time, client, bytes and further keys."""
    reader, records = read(write(writer))
    assert kinds(records) == ["note", "to_kernel", "from_kernel", "answer", "meta", "from_kernel"]
    note, sent, received, answer, meta, last = records
    assert (note.text, note.extra, note.data) == ("begin \N{SNOWMAN}", {"flow": 3}, b"")
    assert sent == Record(1, RecordKind.TO_KERNEL, 10, 0, b"\x01" * 56)
    assert received == Record(2, RecordKind.FROM_KERNEL, 20, 1, b"\x02" * 200, None, {"trunc_from": 900})
    assert (answer.value, answer.client, answer.time_ns) == ({"pid": 4711, "names": ["a", None]}, 2, 30)
    assert last == Record(4, RecordKind.FROM_KERNEL, -40)
    assert meta.index == last.index
    assert reader.format == ("nstat" if writer is RecordingWriter else "jsonl")


@pytest.mark.parametrize("writer", [RecordingWriter, JsonLinesWriter])
def test_facts_are_kept_and_updated(writer):
    """The facts begin as written, an update changes what it says and keeps the rest, unknown keys included."""
    with open_recording(io.BytesIO(write(writer))) as recording:
        assert recording.info.kernel == INFO.kernel
        meta = next(r for r in recording if r.kind is RecordKind.META)
    assert meta.value is recording.info
    info = recording.info
    assert (info.kernel, info.layout, info.started_ns, info.tool) == (INFO.kernel, "11417", INFO.started_ns, "test 1")
    assert info.timebase == (1, 1)
    assert info.interfaces == {1: "lo0", 14: "en0", 20: "utun3"}
    assert info.extra == INFO.extra


@pytest.mark.parametrize("step", [1, 2, 7, 19, 20, 21, 64])
def test_pieces_do_not_matter(step):
    """However the file is cut into pieces, the records are the same."""
    data = write()
    assert read(data, step)[1] == read(data)[1]


def test_every_truncation_loses_at_most_the_last_record():
    """A file cut anywhere gives every record that is whole, and one damage record if the cut is within one."""
    data = write()
    whole = read(data)[1]
    ends = [HEADER]
    while ends[-1] < len(data):
        ends.append(ends[-1] + HEAD + struct.unpack_from("<I", data, ends[-1] + 4)[0])
    assert len(ends) == len(whole) + 2  # the header's end, and the first facts
    for cut in range(HEADER, len(data) + 1):
        _, records = read(data[:cut])
        complete = max(0, sum(end <= cut for end in ends) - 2)
        assert records[:complete] == whole[:complete]
        assert kinds(records[complete:]) == ([] if cut in ends else ["damage"])
    for cut in range(HEADER):
        with pytest.raises(errors.RecordingError):
            read(data[:cut])


def test_garbage_between_records_is_one_damage_record():
    """Bytes that are no record are counted and located, and the records around them are read."""
    data = write()
    at = data.index(b"\x01" * 56) + 56
    for garbage in (b"\0" * 3000, b"\xd3\xa9" * 50, bytes(range(256)), b"\xd3"):
        for step in (None, 1, 2, 7, 64):  # a marker may be cut, too
            _, records = read(data[:at] + garbage + data[at:], step)
            assert kinds(records) == ["note", "to_kernel", "damage", "from_kernel", "answer", "meta", "from_kernel"]
            assert records[2].extra == {"offset": at, "length": len(garbage)}
            assert records[2].data == garbage[:64]
            assert [r.index for r in records] == [0, 1, 2, 3, 4, 5, 5]


def test_a_marker_cut_in_two_is_found():
    """The search for the next record keeps a last byte that may begin its marker."""
    data = write()
    at = data.index(b"\x01" * 56) + 56
    for length in range(60, 64):
        reader = RecordingReader()
        damaged = data[:at] + b"?" * length + data[at:]
        records = reader.feed(damaged[: at + length + 1]) + reader.feed(damaged[at + length + 1 :]) + reader.close()
        assert kinds(records) == ["note", "to_kernel", "damage", "from_kernel", "answer", "meta", "from_kernel"]


def test_a_length_that_was_damaged_hides_no_other_record_at_the_end():
    """A length within the limits that points beyond the end costs its own record only."""
    data = bytearray(write())
    at = data.index(b"\x01" * 56) - HEAD
    struct.pack_into("<I", data, at + 4, 900_000)
    for step in (None, 1, 100):
        _, records = read(bytes(data), step)
        assert kinds(records) == ["note", "damage", "from_kernel", "answer", "meta", "from_kernel"]
        assert records[1].extra == {"offset": at, "length": HEAD + 56}


@pytest.mark.parametrize(
    ("kind", "length"), [(1, MAX_DATAGRAM + 1), (2, 0xFFFFFFFF), (3, 1 << 30), (9, 1 << 30), (0, 0)]
)
def test_impossible_records_are_skipped_at_once(kind, length):
    """A length beyond its kind's limit is damage right away: nothing waits for bytes that never come."""
    reader = RecordingReader()
    data = write()
    head = struct.pack("<HBBIIq", 0xA9D3, kind, 0, length, 0, 0)
    records = reader.feed(data + head + data[HEADER:])
    assert kinds(records)[6:8] == ["damage", "meta"]
    assert len(records) == 6 + 1 + 1 + 6


def test_an_unknown_kind_is_shown():
    """A record of a kind that this version does not know is a damage record, and the next one goes on."""
    head = struct.pack("<HBBIIq", 0xA9D3, 77, 0, 3, 0, 5)
    _, records = read(write() + head + b"abc" + write()[HEADER:])
    assert kinds(records)[6:8] == ["damage", "meta"]
    assert "unknown kind 77" in records[6].text
    assert records[6].data == b"abc"


@pytest.mark.parametrize(
    ("kind", "flags", "payload"),
    [
        (4, 0, b"{broken"),
        (4, 0, b"\xff\xfe"),
        (4, 0, b"[" * 100_000),
        (4, 0, b"1" * 5000),
        (5, 0, b"[1]"),
        (1, 1, b"ab"),
        (1, 1, b"\xff\0\0\0{}"),
        (2, 1, b"\x02\0\0\0[]"),
        (3, 1, b"\x02\0\0\0{]"),
    ],
)
def test_broken_documents_are_damage(kind, flags, payload):
    """JSON that cannot be read makes one damage record."""
    head = struct.pack("<HBBIIq", 0xA9D3, kind, flags, len(payload), 0, 5)
    _, records = read(write() + head + payload + write()[HEADER:])
    assert kinds(records)[6:8] == ["damage", "meta"]
    assert len(records) == 14


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"\x89NSTAT\r\n\x03\0\x10\0\0\0\0\0", "version 3"),
        (b"\x89NSTAT\r\n\x01\0\x02\0\0\0\0\0", "claims 2"),
        (b"\x89NSTAT\r\n\x01\0\xff\xff\0\0\0\0", "claims 65535"),
        (b"\x89NSTAT\n\n\x01\0\x10\0\0\0\0\0", "neither a recording"),
        (b"PK\x03\x04", "neither a recording .* kernel must be given"),
        (b"", "empty"),
    ],
)
def test_what_is_no_recording_says_so(header, says):
    """A foreign file, a newer version and an empty file are refused by name."""
    with pytest.raises(errors.RecordingError, match=says):
        read(header)


def test_a_longer_header_of_a_later_revision_is_skipped():
    """The header says its own length, and what this version does not know in it is passed over."""
    data = write()
    longer = data[:10] + (40).to_bytes(2, "little") + data[12:16] + bytes(24) + data[16:]
    for step in (None, 1):
        assert read(longer, step)[1] == read(data)[1]


def test_a_recording_without_facts_is_readable():
    """A lost first record costs the facts, not the datagrams; the caller can name the kernel."""
    data = write()
    first = HEAD + struct.unpack_from("<I", data, HEADER + 4)[0]
    cut = data[:HEADER] + data[HEADER + first :]
    reader, records = read(cut, kernel="xnu-7195.141.2")
    assert kinds(records) == ["note", "to_kernel", "from_kernel", "answer", "meta", "from_kernel"]
    assert reader.info.kernel == "xnu-7195.141.2"
    assert open_recording(io.BytesIO(cut)).info.kernel is None


def test_the_callers_kernel_goes_before_the_files():
    """An explicit kernel wins, also after an update of the facts."""
    reader, _ = read(write(), kernel="Darwin Kernel Version 20.6.0: root:xnu-7195.141.2~5/RELEASE_X86_64")
    assert reader.info.kernel == "xnu-7195.141.2"
    with pytest.raises(errors.UsageError, match="kernel"):
        RecordingReader(kernel=" ")


def test_feeding_bytes_one_by_one_costs_linear_time():
    """The bytes of a long record are copied once, not once a piece."""
    file = io.BytesIO()
    RecordingWriter(file, INFO).from_kernel(bytes(MAX_DATAGRAM), 1)
    _, records = read(file.getvalue(), 16)
    assert [len(r.data) for r in records] == [MAX_DATAGRAM]


def test_memory_is_bounded_by_one_record():
    """However much garbage comes, at most a record's head is left in the reader."""
    reader = RecordingReader()
    reader.feed(write())
    for _ in range(5):
        assert reader.feed(b"\xd3\xa9\x01" * 20_000) == []
        assert len(reader._parser._buffer) < 64
    assert kinds(reader.close()) == ["damage"]


def test_writers_refuse_what_no_reader_takes():
    """Too long, out of range and not JSON are the caller's errors, and leave the file whole."""
    for writer in (RecordingWriter, JsonLinesWriter):
        file = io.BytesIO()
        w = writer(file, INFO)
        w.note("before", 1)
        for call in (
            lambda w=w: w.from_kernel(bytes(MAX_DATAGRAM + 1), 1),
            lambda w=w: w.from_kernel(b"", 1 << 63),
            lambda w=w: w.from_kernel(b"", 1, -1),
            lambda w=w: w.from_kernel(b"", 1, 1 << 32),
            lambda w=w: w.answer({"x": object()}, 1),
            lambda w=w: w.write_batch([Record(0, RecordKind.NOTE, 1, 0, b"", "in"), Record(0, RecordKind.DAMAGE, 0)]),
        ):
            with pytest.raises(errors.UsageError):
                call()
        w.note("after", 2)
        assert [r.text for r in read(file.getvalue())[1]] == ["before", "in", "after"]


def test_a_file_that_takes_parts_gets_everything():
    """An unbuffered file may write less than it was given; the writer goes on until all is there."""

    class Slow(io.RawIOBase):
        taken = b""

        def writable(self):
            return True

        def write(self, data):
            self.taken += bytes(data[:5])
            return min(5, len(data))

    file = Slow()
    RecordingWriter(file, INFO).note("all of it", 1)
    assert [r.text for r in read(file.taken)[1]] == ["all of it"]


def test_copies_keep_damage_visible():
    """`copy` writes damage, and what the format has no room for, as notes; numbers are kept."""
    data = write()
    at = data.index(b"\x01" * 56) + 56
    source = [*read(data[:at] + b"??" + data[at:])[1], Record(70, RecordKind.TO_KERNEL, 1, 0, bytes(MAX_DATAGRAM + 1))]
    for writer in (RecordingWriter, JsonLinesWriter):
        file = io.BytesIO()
        assert copy(source, writer(file, INFO)) == 8
        copied = read(file.getvalue())[1]
        assert [r.index for r in copied] == [r.index for r in source]
        assert copied[2].text.startswith("damage: bytes that do not begin a record (2 bytes at offset")
        assert copied[7].text.startswith("a record of kind to_kernel left out")

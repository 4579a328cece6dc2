"""Files, pipes, compression, growing files and the headerless format."""

from __future__ import annotations

import gzip
import io
import os
import struct
import sys
import threading

import forked
import pytest

from nstat_async import _errors as errors
from nstat_async.recording import (
    MAX_DATAGRAM,
    RecordingInfo,
    RecordingReader,
    RecordingWriter,
    RecordKind,
    open_recording,
)

INFO = RecordingInfo(kernel="xnu-7195.141.2")
KERNEL = "xnu-11417.121.6"


def native(count=3):
    file = io.BytesIO()
    w = RecordingWriter(file, INFO, flush=False)
    for i in range(count):
        w.from_kernel(bytes([i % 256]) * 100, i)
    return file.getvalue()


def headerless(*datagrams):
    return b"".join(struct.pack("<II", 5 + i, len(d)) + d for i, d in enumerate(datagrams))


def test_headerless_records_come_from_the_kernel():
    """Seconds become nanoseconds, every datagram is the kernel's, in pieces of any size."""
    data = headerless(b"abc", b"", b"x" * 300)
    for step in (1, 3, 400):
        reader = RecordingReader(kernel=KERNEL)
        records = [r for at in range(0, len(data), step) for r in reader.feed(data[at : at + step])]
        assert reader.close() == []
        assert [(r.index, r.kind, r.time_ns, r.data) for r in records] == [
            (0, RecordKind.FROM_KERNEL, 5_000_000_000, b"abc"),
            (1, RecordKind.FROM_KERNEL, 6_000_000_000, b""),
            (2, RecordKind.FROM_KERNEL, 7_000_000_000, b"x" * 300),
        ]
        assert (reader.format, reader.info.kernel) == ("bin", KERNEL)


@pytest.mark.parametrize("seconds", [0x7B, 0x7B7B7B7B, 0x0A0A0A0A, 0x088B1E, 0x89, 0xBBEF, 0x20])
def test_headerless_files_may_begin_with_any_seconds(seconds):
    """Seconds whose bytes look like another format's beginning are not taken for it."""
    data = struct.pack("<II", seconds, 2) + b"ab"
    with open_recording(io.BytesIO(data), kernel=KERNEL) as recording:
        assert [(r.time_ns, r.data) for r in recording] == [(seconds * 10**9, b"ab")]


def test_headerless_damage_ends_the_reading_visibly():
    """A length that cannot be true, and a cut, make one damage record with the number of bytes concerned."""
    good = headerless(b"abc")
    bad = struct.pack("<II", 9, MAX_DATAGRAM + 1) + bytes(5000)
    records = list(open_recording(io.BytesIO(good + bad), kernel=KERNEL))
    assert [r.kind.value for r in records] == ["from_kernel", "damage"]
    assert records[1].extra == {"offset": len(good), "length": len(bad)}
    for cut in range(1, len(good)):
        records = list(open_recording(io.BytesIO(good + good[:cut]), kernel=KERNEL))
        assert [r.kind.value for r in records] == ["from_kernel", "damage"]
        assert records[1].extra == {"offset": len(good), "length": cut}


def test_headerless_damage_costs_no_memory():
    """After a length that cannot be true, what follows is counted and not kept."""
    reader = RecordingReader(kernel=KERNEL)
    reader.feed(headerless(b"abc") + struct.pack("<II", 9, 1 << 30))
    for _ in range(5):
        assert reader.feed(bytes(1 << 20)) == []
        assert not reader._parser._buffer
    (record,) = reader.close()
    assert record.extra == {"offset": 11, "length": 8 + (5 << 20)}
    assert "nothing after it can be read" in record.text


def test_headerless_files_need_a_kernel():
    """Without one they are refused, and the error says what to give."""
    with pytest.raises(errors.RecordingError, match="its kernel must be given"):
        open_recording(io.BytesIO(headerless(b"abc")))


@pytest.mark.parametrize("compress", [False, True])
def test_paths_are_opened_and_closed(tmp_path, compress):
    """A path is opened, compressed or not, read to the end and closed with the block."""
    path = tmp_path / "a recording"
    path.write_bytes(gzip.compress(native()) if compress else native())
    for source in (path, str(path)):
        with open_recording(source) as recording:
            assert recording.info == INFO
            assert len(list(recording)) == 3
            assert list(recording) == []
        assert recording._file.closed


def test_a_closed_file_is_no_recording():
    file = io.BytesIO(b"x")
    file.close()
    with pytest.raises(errors.RecordingError, match="cannot be read: I/O operation on closed file"):
        open_recording(file)


def test_a_refused_path_is_closed(tmp_path):
    """Nothing stays open when the file is no recording."""
    path = tmp_path / "none"
    path.write_bytes(b"something else")
    with pytest.raises(errors.RecordingError):
        open_recording(path)
    with pytest.raises(FileNotFoundError):
        open_recording(tmp_path / "absent")


def test_an_open_file_stays_the_callers():
    """Closing the recording does not close a file that it did not open."""
    file = io.BytesIO(native())
    with open_recording(file):
        pass
    assert not file.closed


def test_wrong_arguments_are_named():
    """A text file, no file and a limit of nothing are the caller's errors."""
    for source in (io.StringIO("{}"), 3, None):
        with pytest.raises(errors.UsageError):
            open_recording(source)
    with pytest.raises(errors.UsageError, match="limit"):
        open_recording(io.BytesIO(native())).records_batch(0)


def test_batches_hold_every_record_once():
    """No batch is longer than asked or empty, and leaving in the middle loses nothing."""
    data = native(5000)
    for limit in (1, 7, 1024, 10_000):
        batches = list(open_recording(io.BytesIO(data)).records_batch(limit))
        assert all(0 < len(b) <= limit for b in batches)
        assert [r.index for b in batches for r in b] == list(range(5000))
    recording = open_recording(io.BytesIO(data))
    indexes = [next(iter(recording)).index for _ in range(10)]
    indexes += [r.index for r in next(recording.records_batch(100))]
    assert indexes + [r.index for r in recording] == list(range(5000))


def test_standard_input_is_read(tmp_path):
    """``-`` reads a pipe that cannot seek."""
    program = (
        "from nstat_async.recording import open_recording\n"
        "with open_recording('-') as r: print(r.info.kernel, sum(1 for _ in r))"
    )
    done = forked.run([sys.executable, "-c", program], input=gzip.compress(native(10)))
    assert (done.stdout.split(), done.stderr) == ([b"xnu-7195.141.2", b"10"], b"")


def test_a_pipe_gives_its_records_as_they_come():
    """A record can be read from a pipe whose writer goes on."""
    data = native(2)
    r, w = os.pipe()
    with open(r, "rb") as reading, open(w, "wb", buffering=0) as writing:
        writing.writelines(bytes([byte]) for byte in data[:5])
        feeder = threading.Thread(target=writing.write, args=(data[5:],))
        feeder.start()
        records = iter(open_recording(reading))
        assert next(records).index == 0
        assert next(records).index == 1
        feeder.join()
        writing.close()
        assert list(records) == []


@pytest.mark.parametrize("compress", [False, True])
def test_a_growing_file_is_read_as_far_as_it_is(tmp_path, compress):
    """Iterating ends where the file ends by now, goes on when it has grown, and calls no cut a damage."""
    data = native(4)
    data = gzip.compress(data) if compress else data
    path = tmp_path / "growing"
    with path.open("wb", buffering=0) as file:
        file.write(data[:110] if not compress else data[:-10])
        with open_recording(path, growing=True) as recording:
            seen = list(recording)
            for at in range(110 if not compress else len(data) - 10, len(data)):
                file.write(data[at : at + 1])
                seen += list(recording)
    assert [(r.index, r.kind) for r in seen] == [(i, RecordKind.FROM_KERNEL) for i in range(4)]


def test_a_growing_file_needs_a_beginning(tmp_path):
    """Before the header is there it cannot be opened, and the error says so."""
    for data in (b"", b"\x1f", native()[:20]):
        with pytest.raises(errors.RecordingError, match="the beginning of the recording is not there yet"):
            open_recording(io.BytesIO(data), growing=True)


def test_a_cut_compressed_file_gives_what_it_holds():
    """Every cut of a compressed file keeps the records before it and says that it was cut."""
    data = gzip.compress(native(100))
    whole = list(open_recording(io.BytesIO(native(100))))
    for cut in range(len(data)):
        try:
            records = list(open_recording(io.BytesIO(data[:cut])))
        except errors.RecordingError:
            assert cut < 250  # the first block's code table
            continue
        assert records[-1].kind is RecordKind.DAMAGE
        good = [r for r in records if r.kind is not RecordKind.DAMAGE]
        assert good == whole[: len(good)]


def test_compressed_files_may_have_members_and_padding():
    """Members are joined, zeros after them are padding, anything else is damage."""
    data = native(6)
    parts = gzip.compress(data[:100]) + gzip.compress(data[100:])
    assert len(list(open_recording(io.BytesIO(parts)))) == 6
    assert len(list(open_recording(io.BytesIO(parts + bytes(1000))))) == 6
    records = list(open_recording(io.BytesIO(parts + b"tail")))
    assert [r.kind.value for r in records[6:]] == ["damage"]
    assert "after the compressed data" in records[6].text


def test_broken_compression_is_damage_or_refused():
    """It never raises what zlib raises."""
    data = bytearray(gzip.compress(native(500)))
    for at in range(10, len(data), 3):
        broken = bytes(data[:at]) + bytes([data[at] ^ 0x55]) + bytes(data[at + 1 :])
        try:
            records = list(open_recording(io.BytesIO(broken)))
        except errors.RecordingError:
            continue
        assert records[-1].kind is RecordKind.DAMAGE


def test_a_compression_bomb_is_read_in_bounded_pieces():
    """A small file that grows a thousand times never gives more than one piece at a time."""
    bomb = gzip.compress(native(1) + bytes(16 << 20))
    assert len(bomb) < 25_000
    recording = open_recording(io.BytesIO(bomb))
    pieces = []
    feed = recording._reader.feed
    recording._reader.feed = lambda data: pieces.append(len(data)) or feed(data)
    assert [r.kind.value for r in recording] == ["from_kernel", "damage"]
    assert max(pieces) <= 64 * 1024
    assert sum(pieces) > 15 << 20
    with pytest.raises(errors.RecordingError, match="within gzip"):
        open_recording(io.BytesIO(gzip.compress(gzip.compress(native()))))

"""Properties of the recording formats, for any records and any bytes."""

from __future__ import annotations

import gzip
import io
import itertools
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async._errors import RecordingError
from nstat_async.recording import (
    JsonLinesWriter,
    Record,
    RecordingInfo,
    RecordingReader,
    RecordingWriter,
    RecordKind,
    open_recording,
)

TIMES = st.integers(-(1 << 63), (1 << 63) - 1)
CLIENTS = st.integers(0, (1 << 32) - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
TAKEN = {"i", "dir", "t", "c", "hex", "text", "value", "xnu", "info"}
EXTRAS = st.dictionaries(TEXTS.filter(lambda key: key not in TAKEN), JSON, max_size=2)
DATAGRAMS = st.sampled_from([RecordKind.TO_KERNEL, RecordKind.FROM_KERNEL])
RECORDS = st.one_of(
    st.builds(
        Record, st.just(0), DATAGRAMS, TIMES, CLIENTS, st.binary(max_size=80), st.none() | TEXTS, EXTRAS, st.none()
    ),
    st.builds(Record, st.just(0), st.just(RecordKind.NOTE), TIMES, CLIENTS, st.just(b""), TEXTS, EXTRAS, st.none()),
    st.builds(Record, st.just(0), st.just(RecordKind.ANSWER), TIMES, CLIENTS, st.just(b""), st.none(), EXTRAS, JSON),
)
INFOS = st.builds(
    RecordingInfo,
    protocol=st.sampled_from(["ntstat", "sock_diag"]),
    kernel=st.sampled_from(["xnu-11417.121.6", "6.8.0-45-generic", None]),
    timebase=st.none() | st.tuples(st.integers(1, 1000), st.integers(1, 1000)),
    layout=st.none() | TEXTS,
    started_ns=st.none() | st.integers(0, 1 << 62),
    interfaces=st.dictionaries(st.integers(0, (1 << 32) - 1), TEXTS, max_size=3),
    tool=st.none() | TEXTS,
)


def same(a: Record, b: Record) -> bool:
    """An answer's JSON text is the format's business."""
    if a.kind is RecordKind.ANSWER:
        return (a.index, a.kind, a.time_ns, a.client, a.extra, a.value) == (
            b.index,
            b.kind,
            b.time_ns,
            b.client,
            b.extra,
            b.value,
        )
    return a == b


def feed(data, cuts, kernel=None):
    reader = RecordingReader(kernel=kernel)
    records = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in itertools.pairwise(edges):
        records += reader.feed(data[start:stop])
    return records + reader.close(), reader.info


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(RECORDS, max_size=6), INFOS, st.lists(st.integers(0, 600), max_size=4), st.booleans())
def test_records_survive_writing_and_reading(records, info, cuts, native):
    """Any records, written in either format and read in any pieces, are the same records."""
    records = [Record(i, *r[1:]) for i, r in enumerate(records)]
    file = io.BytesIO()
    (RecordingWriter if native else JsonLinesWriter)(file, info).write_batch(records)
    back, info_back = feed(file.getvalue(), cuts)
    assert len(back) == len(records)
    assert all(same(a, b) for a, b in zip(back, records, strict=True))
    assert info_back == info


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(RECORDS, min_size=1, max_size=5), st.data())
def test_any_damage_of_a_recording_stays_within_it(records, data):
    """Bytes changed, removed or put in anywhere never raise anything but `RecordingError`, and pieces do not matter."""
    file = io.BytesIO()
    writer = data.draw(st.sampled_from([RecordingWriter, JsonLinesWriter]))
    writer(file, RecordingInfo(kernel="xnu-7195.141.2")).write_batch(records)
    raw = file.getvalue()
    start = data.draw(st.integers(0, len(raw)))
    stop = data.draw(st.integers(start, min(len(raw), start + 40)))
    raw = raw[:start] + data.draw(st.binary(max_size=40)) + raw[stop:]
    try:
        whole, _ = feed(raw, [])
    except RecordingError:
        return
    cut, _ = feed(raw, data.draw(st.lists(st.integers(0, len(raw)), max_size=5)))
    assert cut == whole


BEGINNINGS = [
    b"",
    b"\x89NSTAT\r\n\x01\0\x10\0\0\0\0\0",
    b'{"xnu":"xnu-1"}\n',
    b'{"xnu":"xnu-1"}\n{"dir":"note","t":',
    b"\x1f\x8b\x08",
    gzip.compress(b""),
]


@settings(deadline=None, max_examples=examples(150))
@given(st.sampled_from(BEGINNINGS), st.binary(max_size=300), st.sampled_from([None, "xnu-1"]))
def test_arbitrary_bytes_are_refused_or_shown(beginning, data, kernel):
    """Arbitrary bytes after any format's beginning raise `RecordingError` or become records."""
    try:
        with open_recording(io.BytesIO(beginning + data), kernel=kernel) as recording:
            records = list(recording)
    except RecordingError:
        return
    assert all(isinstance(record, Record) for record in records)
    assert isinstance(recording.info, RecordingInfo)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), min_size=1, max_size=6),
    st.integers(1, 200),
    st.binary(max_size=9),
)
def test_headerless_records_of_one_length_are_cut_out_together_as_one_by_one(runs, piece, rest):
    lengths = [length for times, length in runs for _ in range(times)]
    expected = [(number * 10**9, bytes([number % 256]) * length) for number, length in enumerate(lengths)]
    raw = b"".join(struct.pack("<II", time // 10**9, len(data)) + data for time, data in expected)
    reader = RecordingReader(kernel="xnu-1")
    raw += struct.pack("<II", 0, 1 << 31) + rest
    records = [record for at in range(0, len(raw), piece) for record in reader.feed(raw[at : at + piece])]
    records += reader.close()
    assert [(each.time_ns, each.data) for each in records[:-1]] == expected
    assert [each.index for each in records] == list(range(len(records)))
    assert records[-1].kind is RecordKind.DAMAGE

"""The decoder behind `messages` on bytes that nobody promised anything about."""

from __future__ import annotations

import conversations
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async._cli._decode import MessageDecoder
from nstat_async._cli._netlink import NetlinkDecoder
from nstat_async._escape import dump
from nstat_async.ntstat import Kernel
from nstat_async.recording import Record, RecordKind

KERNELS = ["1699", "2050", "2422", "2782", "3248", "3789", "4570", "7195", "8019.41.5", "8019.61.5", "10002", "12377"]
DECODERS = [MessageDecoder(Kernel.parse(f"xnu-{version}")) for version in KERNELS]
KINDS = st.sampled_from([RecordKind.FROM_KERNEL, RecordKind.TO_KERNEL])
TYPES = st.sampled_from([0, 1, *range(1001, 1010), *range(10001, 10010), 77])


@st.composite
def _datagrams(draw) -> bytes:
    """Messages with headers that mostly make sense, and any body."""
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        body = draw(st.binary(max_size=64)) + bytes(draw(st.integers(0, 600)))
        length = draw(st.one_of(st.just(16 + len(body)), st.integers(0, 65535)))
        head = draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little") + draw(TYPES).to_bytes(4, "little")
        parts.append(head + length.to_bytes(2, "little") + b"\0\0" + body)
    return b"".join(parts)


def _check(decoder, record: Record) -> list[dict]:
    lines = decoder.lines(record)
    for place, line in enumerate(lines):
        assert line["m"] == place
        assert dump(line).isprintable()
        if line["type"] == "MALFORMED":
            assert line["note"]
            assert line["raw"] is not None
    return lines


@settings(max_examples=examples(300), deadline=None)
@given(st.sampled_from(DECODERS), KINDS, _datagrams() | st.binary(max_size=200))
def test_any_bytes_become_lines_and_nothing_else(decoder, kind, data):
    """No layout, direction or content makes the decoder raise; each datagram shows at least one line."""
    assert _check(decoder, Record(0, kind, 0, 0, data)) != []


@settings(max_examples=examples(100), deadline=None)
@given(KINDS, st.integers(0, 3), st.binary(max_size=300))
def test_any_netlink_bytes_become_lines_and_nothing_else(kind, channel, data):
    _check(NetlinkDecoder(), Record(0, kind, 0, channel, data))


@pytest.mark.parametrize("kernel", ["2422", "3789", "7195", "11417"])
def test_every_message_cut_at_every_byte_is_malformed_or_a_shorter_message(kernel):
    """What is there after a cut was there before it: no field is made up from missing bytes."""
    decoder = MessageDecoder(Kernel.parse(f"xnu-{kernel}"))
    seen: dict[int, bytes] = {}
    for name in conversations.names(f"control/xnu-{kernel}*/*"):
        for data in conversations.datagrams(name):
            seen.setdefault(int.from_bytes(data[8:12], "little"), data)
    assert len(seen) >= 4
    for data in seen.values():
        (whole, *_) = _check(decoder, Record(0, RecordKind.FROM_KERNEL, 0, 0, data))
        end = min(len(data), whole["length"])
        for cut in range(end):
            (line, *_) = _check(decoder, Record(0, RecordKind.FROM_KERNEL, 0, 0, data[:cut]))
            if line["type"] != "MALFORMED":  # an old kernel's datagram has no length that a cut could break
                assert kernel == "2422"
                for part in ("counts", "descriptor"):
                    assert line[part] in (None, whole[part])

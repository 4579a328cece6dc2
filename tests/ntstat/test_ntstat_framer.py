"""Datagram to messages: the rules, one by one."""

from __future__ import annotations

import struct

import pytest

from nstat_async.ntstat import split


def message(length: int, size: int | None = None, *, kind: int = 10_004, context: int = 0, flags: int = 0) -> bytes:
    return struct.pack("<QIHH", context, kind, length, flags) + bytes((length if size is None else size) - 16)


def test_messages_back_to_back_are_found_by_their_lengths():
    data = message(24, context=7, flags=4) + message(16, kind=0) + message(144)
    frames, defect = split(data, has_lengths=True)
    assert frames == [(10_004, 7, 4, 0, 24), (0, 0, 0, 24, 40), (10_004, 0, 0, 40, 184)]
    assert defect is None


def test_before_10_11_a_datagram_is_one_message_and_bytes_12_to_15_are_anything():
    for garbage in (0, 5, 0xFFFF):
        frames, defect = split(message(garbage, 84, flags=0xFFFF), has_lengths=False)
        assert frames == [(10_004, 0, 0, 0, 84)]
        assert defect is None


def test_a_length_of_zero_at_the_beginning_is_an_old_kernel_s():
    assert split(message(0, 84), has_lengths=True) == ([(10_004, 0, 0, 0, 84)], None)
    frames, defect = split(message(16) + message(0, 20), has_lengths=True)
    assert len(frames) == 1
    assert defect.reason == "message length 0 is less than a header"


@pytest.mark.parametrize("has_lengths", [True, False])
@pytest.mark.parametrize("size", [0, 1, 15])
def test_fewer_bytes_than_a_header_are_a_defect(size, has_lengths):
    frames, defect = split(bytes(size), has_lengths=has_lengths)
    assert frames == []
    assert (defect.begin, defect.end, defect.harmless) == (0, size, False)
    assert defect.reason == "datagram shorter than a header"


def test_a_short_tail_is_told_and_harmless_and_a_broken_length_ends_the_datagram():
    frames, defect = split(message(24) + b"tail", has_lengths=True)
    assert len(frames) == 1
    assert (defect.begin, defect.end, defect.harmless) == (24, 28, True)
    assert defect.reason == "tail shorter than a header"
    for length, words in ((15, "less than a header"), (400, "400 with 40 bytes left")):
        frames, defect = split(message(24) + message(length, 24) + message(16), has_lengths=True)
        assert [f[4] for f in frames] == [24]
        assert words in defect.reason
        assert (defect.begin, defect.end, defect.harmless) == (24, 64, False)

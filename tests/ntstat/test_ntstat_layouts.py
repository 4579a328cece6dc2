"""The table of structures against the compiled headers, field by field."""

from __future__ import annotations

import re

import ntstat_reader as reader
import pytest

from nstat_async.ntstat import Kernel, MessageType, layout
from nstat_async.ntstat._messages import MESSAGE_CLASSES
from nstat_async.ntstat._tables import NEWEST, STRUCTS

_PADDING = re.compile(r"(^|\.)(pad\w*|__pad\w*|reserved\w*|__\w+)$")
_NESTED = {"SOCKADDR", "COUNTS", "DETAILED_COUNTS"}
_KINDS = {
    "U8": ("uint8", None),
    "U16": ("uint16", None),
    "U32": ("uint32", None),
    "U64": ("uint64", None),
    "I32": ("int32", None),
    "I64": ("int64", None),
    "F64": ("float64", None),
    "BOOL": ("bool", None),
    "UUID": ("uint8", 16),
}
# Where the library and the headers call the same bytes differently.
_OVERLAID = {"connstatus": "connstatus."}


def _named(structure, fields):
    """The fields that carry something (no padding, no header, no flexible tails), as the library calls them."""
    named = [f for f in fields if f[3] and not _PADDING.search(f[0]) and not f[0].startswith("hdr.")]
    return [[_short(f[0]), *f[1:]] for f in named] if structure == "nstat_detailed_counts" else named


def _short(name):
    """``nstat_media_stats.ms_total.ts_bitmap.start`` is ``media_stats.total.activity_bitmap.start`` here."""
    for theirs, ours in (("nstat_", ""), (".ms_", "."), (".ts_bitmap.", ".activity_bitmap."), (".ts_", ".")):
        name = name.replace(theirs, ours)
    return name


@pytest.mark.parametrize("file", reader.files())
def test_every_structure_has_the_compiled_sizes_offsets_and_types(file):
    facts = reader.vectors()["files"][file]
    ours = layout(int(facts["wire"][1:]))
    for name, compiled in facts["structs"].items():
        if name not in STRUCTS:
            continue
        codec = ours.find(name)
        assert codec is not None, f"{name} is missing"
        assert codec.size == compiled["size"], name
        covered: set[str] = set()
        rows = _named(name, compiled["fields"]) if name != "nstat_msg_hdr" else compiled["fields"]
        for field in codec.fields:
            where = f"{file} {name}.{field.name}"
            if field.kind in _NESTED or field.name in _OVERLAID:
                inside = [r for r in rows if r[0].startswith(_OVERLAID.get(field.name, field.name + "."))]
                assert inside, where
                assert min(r[2] for r in inside) == field.offset, where
                end = max(r[2] + r[3] for r in inside)
                assert end <= field.end, where
                assert end == field.end or field.kind == "SOCKADDR", where
                covered |= {r[0] for r in inside}
                continue
            row = next((r for r in rows if r[0] == field.name), None)
            assert row is not None, where
            assert (row[2], row[3]) == (field.offset, field.size), where
            if field.kind == "CHAR":
                assert row[1] in {"char", "uint8"}, where
                assert row[4] == field.size, where
            elif field.kind == "U64" and field.count == 2:
                assert (row[1], row[4]) == ("uint64", 2), where
            else:
                assert (row[1], row[4]) == _KINDS[field.kind], where
            covered.add(row[0])
        left = {r[0] for r in rows} - covered
        if name == "nstat_msg_hdr":
            left -= {"pad"}  # layouts 1 to 4: the bytes of the later length and flags
        assert not left, f"{file} {name}: no row for {sorted(left)}"


@pytest.mark.parametrize("file", reader.files())
def test_no_layout_has_a_structure_that_its_header_lacks(file):
    facts = reader.vectors()["files"][file]
    ours = layout(int(facts["wire"][1:]))
    # An interface's Bluetooth counters came in the middle of layout 11; nobody asks for them before.
    later = {"nstat_interface_counts"}
    extra = {name for name in STRUCTS if name in ours} - set(facts["structs"]) - later
    assert extra <= {"nstat_msg_query_src", "nstat_msg_rem_src"} - set(facts["structs"]), extra


@pytest.mark.parametrize("file", reader.files())
def test_quic_and_tcp_descriptors_are_one(file):
    structs = reader.vectors()["files"][file]["structs"]
    if "nstat_quic_descriptor" in structs:
        assert structs["nstat_quic_descriptor"] == structs["nstat_tcp_descriptor"]


@pytest.mark.parametrize("file", reader.files())
def test_message_numbers_structures_and_providers_are_the_headers(file):
    facts = reader.vectors()["files"][file]
    kernel = Kernel.parse(facts["tags"][0])
    for name, number in facts["types"].items():
        assert MessageType[name] == number
        ours = MESSAGE_CLASSES[number].STRUCT
        theirs = facts["message_structs"][name]
        assert (
            ours == theirs or facts["structs"].get(ours) == facts["structs"].get(theirs) or theirs.startswith(ours)
        ), name
    wanted = {}
    for name, (number, descriptor) in facts["providers"].items():
        if name != "SYSINFO":
            wanted[number] = descriptor.replace("quic", "tcp")
    assert {n: kernel.descriptor_name(n) for n in kernel.providers} == wanted
    for name, (number, _) in facts["providers"].items():
        if number in kernel.providers:
            provider, userland = kernel.providers[number]
            assert (userland is True) == ("USERLAND" in name)
            assert (
                name.split("_")[0].lower()
                in {provider.value, {"connection": "conn", "interface": "ifnet"}.get(provider.value, provider.value)}
                or provider.value == name.lower()
            )


@pytest.mark.parametrize("file", reader.files())
def test_message_lengths_follow_from_the_structures(file):
    facts = reader.vectors()["files"][file]
    ours = layout(int(facts["wire"][1:]))
    for name, length in facts["lengths"]["fixed"].items():
        assert ours[MESSAGE_CLASSES[MessageType[name]].STRUCT].size == length, name
    kernel = Kernel.parse(facts["tags"][0])
    numbers = {name: number for name, (number, _) in facts["providers"].items()}
    for provider, lengths in facts["lengths"]["by_provider"].items():
        descriptor = kernel.descriptor_name(numbers[provider])
        if descriptor is None:
            continue
        for message in ("SRC_DESC", "SRC_UPDATE"):
            if message in lengths:
                whole = ours[MESSAGE_CLASSES[MessageType[message]].STRUCT].size + ours[descriptor].size
                assert whole == lengths[message], (provider, message)


def test_the_newest_layout_adds_details_and_changes_nothing_else():
    """Facts of the public copy of xnu-12377's header."""
    old, new = layout(11), layout(NEWEST)
    added = {name for name in STRUCTS if name in new and name not in old}
    assert added == {"nstat_msg_src_details", "nstat_detailed_counts"}
    for name in STRUCTS:
        if name in old:
            assert old[name].fields == new[name].fields
            assert old[name].size == new[name].size
    details = new["nstat_msg_src_details"]
    assert {f.name: f.offset for f in details.fields} == {
        "srcref": 16, "event_flags": 24, "detailed_counts": 32, "provider": 480,
    }  # fmt: skip
    assert (details.size, details.by_name["detailed_counts"].size) == (488, 448)
    counts = new["nstat_detailed_counts"]
    assert counts.size == 448
    media = ["total", "cellular", "wifi_infra", "wifi_non_infra", "wired", "bluetooth", "alternate"]
    for index, medium in enumerate(media):
        at = f"media_stats.{medium}."
        offsets = [counts.by_name[at + n].offset for n in ("rxpackets", "rxbytes", "txpackets", "txbytes")]
        assert offsets == [56 * index + o for o in (0, 8, 16, 24)]
        assert counts.by_name[at + "activity_bitmap.start"].offset == 56 * index + 32
        bitmap = counts.by_name[at + "activity_bitmap.bitmap"]
        assert (bitmap.offset, bitmap.size, bitmap.count) == (56 * index + 40, 16, 2)
    rest = {f.name: (f.offset, f.kind) for f in counts.fields if not f.name.startswith("media_stats")}
    assert rest == {
        "rxduplicatebytes": (392, "U64"), "rxoutoforderbytes": (400, "U64"), "txretransmit": (408, "U64"),
        "min_rtt": (416, "U32"), "avg_rtt": (420, "U32"), "var_rtt": (424, "U32"),
        "xtra_flags": (428, "U32"), "xtra_uuid": (432, "UUID"),
    }  # fmt: skip
    assert MessageType.GET_DETAILS == 1009
    assert MessageType.SRC_DETAILS == 10008
    assert MessageType.SRC_EXTENDED_DETAILS == 10009


@pytest.mark.parametrize("number", range(1, NEWEST + 1))
def test_a_structure_survives_decode_and_encode(number):
    """Random bytes, decoded and encoded again, are the same in every byte that has a row."""
    import random

    ours = layout(number)
    dice = random.Random(number)
    for name in STRUCTS:
        codec = ours.find(name)
        if codec is None:
            continue
        data = dice.randbytes(codec.size)
        fields = codec.decode(data)
        again = codec.encode(fields)
        assert len(again) == codec.size
        for field in codec.fields:
            if field.kind != "F64":  # a signalling NaN may come back quiet
                assert again[field.offset : field.end] == data[field.offset : field.end], (name, field.name)
        # A prefix gives the fields that fit, with the same values, and never reads on.
        for cut in {0, 1, codec.size // 2, codec.size - 1}:
            part = codec.decode(data[:cut])
            assert set(part) == {f.name for f in codec.fields if f.end <= cut}
            assert all(part[n] == fields[n] or part[n] != part[n] for n in part)


def test_an_unknown_layout_and_an_unknown_structure_are_key_errors():
    with pytest.raises(KeyError):
        layout(0)
    with pytest.raises(KeyError):
        layout(NEWEST + 1)
    with pytest.raises(KeyError, match="W01 has no nstat_msg_src_update"):
        layout(1)["nstat_msg_src_update"]
    assert layout(7) is layout(7)

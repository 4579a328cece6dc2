"""Every message of every recorded conversation, against an independent reading and the truth."""

from __future__ import annotations

import ipaddress
import random
import socket
import struct

import conversations
import ntstat_reader
import pytest

from nstat_async import ProtocolError
from nstat_async.ntstat import (
    AddAllSources,
    AddSource,
    Error,
    ExtensionItem,
    GetDetails,
    GetSourceDescription,
    GetUpdate,
    Kernel,
    MessageType,
    QuerySource,
    RemoveSource,
    SetFilter,
    SourceAdded,
    SourceCounts,
    SourceDescription,
    SourceDetails,
    SourceExtendedUpdate,
    SourceRemoved,
    SourceUpdate,
    SubscribeSystemInfo,
    Success,
    SystemInfoCounts,
    UnknownMessage,
    decode_message,
    request_frame,
    split,
)
from nstat_async.ntstat._descriptors import domain_codec
from nstat_async.ntstat._messages import MESSAGE_CLASSES, split_items
from nstat_async.ntstat._translate import decode_endpoint, decode_sysinfo

EVERY_KERNEL = [*(f["tags"][-1] for f in ntstat_reader.vectors()["files"].values()), "xnu-12377.1.9"]
ONE_A_LAYOUT = {Kernel.parse(tag).layout.number: tag for tag in EVERY_KERNEL}


def _slot_text(slot: bytes) -> dict:
    """An address slot as the truth writes it."""
    family = slot[1]
    if family == 30:
        address = socket.inet_ntop(socket.AF_INET6, slot[8:24])
    elif family == 2:
        address = str(ipaddress.IPv4Address(slot[4:8]))
    else:
        return {"len": slot[0], "family": family}
    return {"len": slot[0], "family": family, "port": slot[2] << 8 | slot[3], "addr": address}


def _same(theirs, name, ours: dict, compiled: dict) -> None:
    """Each field that the library decoded is the field that the independent reader found."""
    for field, value in ours.items():
        if field in compiled:
            assert compiled[field] == value or isinstance(value, float), (name, field)  # may be no number
        elif field == "connstatus":
            bits = [compiled["connstatus." + n] for n in _PROBES]
            assert value & 0xF == sum(bit << i for i, bit in enumerate(bits)), (name, field)
        else:
            begin, end = theirs.span(name, field)
            parts = {k: v for k, v in compiled.items() if k.startswith(field + ".v6.")}
            assert parts, (name, field)
            assert end - begin == 28
            assert value[1] == compiled[field + ".v6.sin6_family"]
            assert value[2:4] == struct.pack("<H", compiled[field + ".v6.sin6_port"])
            assert value[4:8] == struct.pack("<I", compiled[field + ".v6.sin6_flowinfo"])
            assert value[8:24] == compiled[field + ".v6.sin6_addr"]
            assert value[24:28] == struct.pack("<I", compiled[field + ".v6.sin6_scope_id"])


_PROBES = ("probe_activated", "write_probe_failed", "read_probe_failed", "conn_probe_failed")


def _check_message(kernel: Kernel, theirs, data: bytes, begin: int, end: int, message) -> None:
    kind = struct.unpack_from("<I", data, begin + 8)[0]
    struct_name = theirs.facts["message_structs"][theirs.by_type[kind]]
    compiled = theirs.read(struct_name, data, begin)
    assert message.context == compiled["hdr.context"] if "hdr.context" in compiled else True
    layout = kernel.layout
    for field in message.FIELDS:
        if field in {"counts", "detailed_counts", "counts.nstat_sysinfo_len"} or field not in layout[message.STRUCT]:
            continue
        assert getattr(message, field) == compiled[field], (message.name, field)
    if isinstance(message, (SourceCounts, SourceUpdate)):
        at, stop = theirs.span(struct_name, "counts")
        assert message.counts == data[begin + at : begin + stop]
        inside = {k.removeprefix("counts."): v for k, v in compiled.items() if k.startswith("counts.")}
        assert layout["nstat_counts"].decode(message.counts) == inside
        assert layout["nstat_counts"].encode(inside) == message.counts
    if isinstance(message, SourceDetails):
        at, stop = theirs.span(struct_name, "detailed_counts")
        assert message.detailed_counts == data[begin + at : begin + stop]
        codec = layout["nstat_detailed_counts"]
        assert codec.encode(codec.decode(message.detailed_counts)) == message.detailed_counts
    if isinstance(message, (SourceDescription, SourceUpdate, SourceDetails)):
        name = theirs.descriptors[message.provider]
        at = theirs.size(struct_name)
        size = theirs.size(name)
        assert message.descriptor[:size] == data[begin + at : begin + at + size]
        codec = layout[kernel.descriptor_name(message.provider)]
        fields = codec.decode(message.descriptor)
        _same(theirs, name, fields, theirs.read(name, message.descriptor))
        again = codec.encode(fields)
        for field in codec.fields:
            assert again[field.offset : field.end] == message.descriptor[field.offset : field.end]
    if isinstance(message, Error):
        assert message.request == data[begin + theirs.size("nstat_msg_error") : end]
    if isinstance(message, SystemInfoCounts):
        assert message.size == compiled["counts.nstat_sysinfo_len"]
        at = begin + theirs.size(struct_name)
        assert message.entries == data[at:end]
        codec = layout["nstat_sysinfo_keyval"]
        for offset in range(0, len(message.entries) - codec.size + 1, codec.size):
            _same(
                theirs,
                "nstat_sysinfo_keyval",
                codec.decode(message.entries, offset),
                theirs.read("nstat_sysinfo_keyval", message.entries, offset),
            )


def _named_bytes(theirs, data: bytes, begin: int, end: int, message) -> list[int]:
    """Offsets within the message whose bytes mean something."""
    kind = struct.unpack_from("<I", data, begin + 8)[0]
    name = theirs.facts["message_structs"][theirs.by_type[kind]]
    named = []
    for field, _, offset, size, *_ in theirs.structs[name]["fields"]:
        if not any(word in field for word in ("pad", "reserved")):
            named.extend(range(offset, offset + size))
    return [*named, *range(theirs.size(name), end - begin)]


@pytest.mark.parametrize("name", conversations.names())
def test_replies_decode_as_an_independent_reader_reads_them_and_encode_to_the_same_bytes(name):
    kernel = Kernel.parse(conversations.kernel(name))
    theirs = ntstat_reader.Reader.of(kernel.text)
    for data in conversations.datagrams(name):
        frames, defect = split(data, has_lengths=kernel.layout.has_lengths)
        assert [(f[3], f[4]) for f in frames] == theirs.messages(data)
        cut = frames[-1][4] if frames else 0
        assert (defect is None) == (cut == len(data))  # only the deliberately truncated ones have one
        for frame in frames:
            message = decode_message(kernel, data, frame)
            _check_message(kernel, theirs, data, frame[3], frame[4], message)
            encoded = message.encode(kernel.layout)
            assert len(encoded) == frame[4] - frame[3]
            for offset in _named_bytes(theirs, data, frame[3], frame[4], message):
                assert encoded[offset] == data[frame[3] + offset], (message.name, offset)
            frames_again, _ = split(encoded, has_lengths=kernel.layout.has_lengths)
            assert decode_message(kernel, encoded, frames_again[0]) == message


@pytest.mark.parametrize("name", conversations.names())
def test_requests_decode_as_an_independent_reader_reads_them_and_encode_to_the_same_bytes(name):
    kernel = Kernel.parse(conversations.kernel(name))
    theirs = ntstat_reader.Reader.of(kernel.text)
    for line in conversations.load(name)[1]:
        if line["dir"] != "to_kernel":
            continue
        data = bytes.fromhex(line["hex"])
        frame = request_frame(data, has_lengths=kernel.layout.has_lengths)
        if frame is None:
            assert len(data) < 16
            continue
        try:
            message = decode_message(kernel, data, frame)
        except ProtocolError:
            kind = theirs.by_type.get(frame[0])
            too_short = kind is None or len(data) < theirs.size(theirs.facts["message_structs"][kind])
            assert too_short  # else it should have been read
            continue
        if frame[0] not in theirs.by_type:
            continue  # younger than this kernel, which refuses it
        _check_message(kernel, theirs, data, 0, len(data), message)
        declared = struct.unpack_from("<H", data, 12)[0]
        if declared == len(data) or not kernel.layout.has_lengths:
            encoded = message.encode(kernel.layout)
            wrong = [o for o in _named_bytes(theirs, data, 0, len(data), message) if encoded[o] != data[o]]
            assert not wrong, (message.name, wrong)


@pytest.mark.parametrize("name", conversations.names("control/*", with_truth=True))
def test_replies_are_what_the_release_s_own_compiler_decoded(name):
    truth = conversations.truth(name)
    if "decoded" not in truth:
        pytest.skip("this truth has no decoded messages")
    kernel = Kernel.parse(truth["xnu"])
    lines = {line["i"]: line for line in conversations.load(name)[1]}
    for entry in truth["decoded"]:
        data = bytes.fromhex(lines[entry["i"]]["hex"])
        frames, _ = split(data, has_lengths=kernel.layout.has_lengths)
        for frame, expected in zip(frames, entry["msgs"], strict=False):
            message = decode_message(kernel, data, frame)
            if "name" not in expected:
                continue
            assert message.name == expected["name"]
            assert frame[3] == expected["off"]
            assert message.context == expected["context"]
            if kernel.layout.has_lengths:
                assert (frame[4] - frame[3], message.flags) == (expected["length"], expected["flags"])
            for field in ("srcref", "provider", "event_flags", "error"):
                if field in expected:
                    assert getattr(message, field) == expected[field]
            if "request" in expected:
                assert message.request.hex() == expected["request"]
            if "counts" in expected:
                assert kernel.layout["nstat_counts"].decode(message.counts) == expected["counts"]
            if "desc" in expected:
                _check_description(kernel, message, expected["desc"])
            if "ext" in expected:
                _check_items(kernel, message, expected["ext"])
            if "keyvals" in expected:
                _check_system_information(kernel, message, expected["keyvals"])


def _check_description(kernel: Kernel, message, expected: dict) -> None:
    codec = kernel.layout[kernel.descriptor_name(message.provider)]
    fields = codec.decode(message.descriptor)
    for name, value in expected.items():
        if name.startswith("connstatus."):
            continue  # below
        ours = fields.get(name)
        if isinstance(value, dict):
            slot = _slot_text(ours)
            assert {k: value[k] for k in slot} == slot, name
        elif isinstance(ours, bytes):
            if codec.by_name[name].kind == "UUID":
                assert ours.hex() == value, name
            else:
                assert ours.split(b"\0", 1)[0].decode("utf-8", "replace") == value, name
        elif isinstance(ours, tuple):
            assert list(ours) == value, name
        elif ours is not None:
            assert ours == value, name
        else:
            assert any(word in name for word in ("reserved", "pad")), f"{name} is not decoded"
    if "connstatus" in fields:
        for bit, probe in enumerate(_PROBES):
            assert fields["connstatus"] >> bit & 1 == expected["connstatus." + probe]


def _check_items(kernel: Kernel, message, expected: list) -> None:
    assert [(i.type, i.length) for i in message.items] == [(e["type"], e["length"]) for e in expected]
    for item, entry in zip(message.items, expected, strict=True):
        if "domain" in entry:
            fields = domain_codec(kernel.layout, len(item.data)).decode(item.data)
            for name, value in entry["domain"].items():
                if isinstance(value, dict):
                    slot = _slot_text(fields[name])
                    assert {k: value[k] for k in slot} == slot
                elif isinstance(fields.get(name), bytes):
                    assert fields[name].split(b"\0", 1)[0].decode() == value
                elif name in fields:
                    assert fields[name] == value
        for name in ("data", "hex", "raw"):
            if name in entry:
                assert item.data.hex() == entry[name]


def _check_system_information(kernel: Kernel, message, expected: list) -> None:
    codec = kernel.layout["nstat_sysinfo_keyval"]
    found = [codec.decode(message.entries, at) for at in range(0, len(message.entries), codec.size)]
    assert len(found) == len(expected)
    for fields, (key, flags, value, size) in zip(found, expected, strict=True):
        assert (fields["nstat_sysinfo_key"], fields["nstat_sysinfo_flags"]) == (key, flags)
        assert fields.get("nstat_sysinfo_valsize", size) == size
        decoded = decode_sysinfo(fields)
        if isinstance(value, str):
            assert decoded == bytes.fromhex(value).split(b"\0", 1)[0].decode("utf-8", "replace")
        else:
            assert decoded == value


GOLDEN = [
    ("xnu-2422.115.4", AddAllSources(context=1, provider=2), "0100000000000000 ea030000 00000000 02000000"),
    (
        "xnu-3248.60.10",
        AddAllSources(context=1, provider=2, filter=0x100000),
        "0100000000000000 ea030000 1c00 0000 02000000 0000100000000000",
    ),
    (
        "xnu-3789.70.16",
        AddAllSources(context=1, provider=2),
        "0100000000000000 ea030000 3800 0000 02000000" + "00" * 36,
    ),
    (
        "xnu-11417.121.6",
        AddAllSources(context=1, provider=2, filter=0x100000),
        "0100000000000000 ea030000 3800 0000 0000100000000000 0000000000000000 02000000 00000000" + "00" * 16,
    ),
    (
        "xnu-3789.70.16",
        GetUpdate(context=0x11, flags=2, srcref=2**64 - 1),
        "1100000000000000 ef030000 1800 0200 ffffffffffffffff",
    ),
    (
        "xnu-11417.121.6",
        QuerySource(context=0x12, flags=2, srcref=2**64 - 1),
        "1200000000000000 ec030000 1800 0200 ffffffffffffffff",
    ),
    (
        "xnu-3248.60.10",
        GetUpdate(context=0x11, flags=3, srcref=2**32 - 1),
        "1100000000000000 ef030000 1400 0300 ffffffff",
    ),
    ("xnu-2050.48.11", GetSourceDescription(context=3, srcref=7), "0300000000000000 ed030000 00000000 07000000"),
    ("xnu-2050.48.11", QuerySource(context=3, srcref=2**32 - 1), "0300000000000000 ec030000 00000000 ffffffff"),
]


@pytest.mark.parametrize(("kernel", "message", "expected"), GOLDEN)
def test_requests_are_the_bytes_that_a_kernel_takes(kernel, message, expected):
    assert message.encode(Kernel.parse(kernel).layout).hex() == expected.replace(" ", "")


def samples(kernel: Kernel) -> list:
    """One message of every type that this kernel has, with every field set."""
    layout, dice = kernel.layout, random.Random(kernel.layout.number)

    def structure(name: str) -> bytes:
        return dice.randbytes(layout[name].size)

    ref = (1 << 8 * layout.reference_size) - 2
    provider = max(n for n in kernel.providers if kernel.descriptor_name(n) == "nstat_udp_descriptor")
    descriptor = structure("nstat_udp_descriptor")
    flags = 7 if layout.has_lengths else 0
    events = {"event_flags": 1 << 40} if layout.number >= 6 else {}
    items = (ExtensionItem(1, 13, dice.randbytes(13)), ExtensionItem(5, 16, dice.randbytes(16)))
    found = [
        Success(context=5, flags=flags),
        Error(context=6, error=55, request=b"x" * 20),
        AddSource(context=1, provider=1, param=structure("nstat_route_add_param")),
        AddAllSources(context=2, provider=provider),
        RemoveSource(context=3, srcref=ref),
        QuerySource(context=4, srcref=ref),
        GetSourceDescription(context=4, srcref=ref),
        SourceAdded(srcref=ref, provider=provider),
        SourceRemoved(srcref=ref, flags=flags),
        SourceDescription(srcref=ref, provider=provider, descriptor=descriptor, **events),
        SourceCounts(srcref=ref, counts=structure("nstat_counts"), **events),
        UnknownMessage(context=9, number=20_000, body=b"whatever it is"),
    ]
    if layout.number >= 3:
        found.append(SetFilter(context=4, srcref=ref, filter=1))
    if layout.number >= 4:
        entries = structure("nstat_sysinfo_keyval") + structure("nstat_sysinfo_keyval")
        found.append(SystemInfoCounts(srcref=0, size=len(entries), entries=entries))
    if layout.number >= 5:
        counts = structure("nstat_counts")
        found += [
            GetUpdate(context=4, srcref=ref, flags=3),
            SubscribeSystemInfo(context=4),
            SourceUpdate(srcref=ref, counts=counts, provider=provider, descriptor=descriptor, **events),
        ]
    if layout.number >= 9:
        found.append(
            SourceExtendedUpdate(
                srcref=ref, counts=structure("nstat_counts"), provider=provider, descriptor=descriptor, items=items
            )
        )
    if layout.number >= 12:
        from nstat_async.ntstat import SourceDetails, SourceExtendedDetails

        details = structure("nstat_detailed_counts")
        found += [
            GetDetails(context=4, srcref=ref),
            SourceDetails(srcref=ref, detailed_counts=details, provider=provider, descriptor=descriptor),
            SourceExtendedDetails(
                srcref=ref, detailed_counts=details, provider=provider, descriptor=descriptor, items=items
            ),
        ]
    return found


@pytest.mark.parametrize("number", sorted(ONE_A_LAYOUT))
def test_a_message_of_every_type_survives_encode_and_decode_and_costs_itself_when_cut_anywhere(number):
    kernel = Kernel.parse(ONE_A_LAYOUT[number])
    assert {type(m) for m in samples(kernel)} - {UnknownMessage} == {
        cls for cls in MESSAGE_CLASSES.values() if cls.STRUCT in kernel.layout and _is_of(kernel, cls)
    }
    for message in samples(kernel):
        data = message.encode(kernel.layout)
        frames, defect = split(data, has_lengths=kernel.layout.has_lengths)
        assert defect is None
        assert decode_message(kernel, data, frames[0]) == message
        minimum = kernel.layout[message.STRUCT].size
        for cut in range(len(data)):
            short = data[:cut]
            if cut >= 16 and kernel.layout.has_lengths:
                short = short[:12] + struct.pack("<H", cut) + short[14:]
            frames, defect = split(short, has_lengths=kernel.layout.has_lengths)
            if cut < 16:
                assert not frames
                assert defect is not None
                continue
            assert [(f[3], f[4]) for f in frames] == [(0, cut)]
            if cut < minimum:
                with pytest.raises(ProtocolError, match="shorter than its"):
                    decode_message(kernel, short, frames[0])
            else:
                decode_message(kernel, short, frames[0]).encode(kernel.layout)


def _is_of(kernel: Kernel, cls: type) -> bool:
    since = {"GetUpdate": 5, "SubscribeSystemInfo": 5, "SourceExtendedUpdate": 9, "GetDetails": 12}
    return kernel.layout.number >= since.get(cls.__name__, 1)


def test_items_are_found_by_their_padded_length_and_a_short_tail_is_kept():
    data = struct.pack("<II", 5, 3) + b"abc\0\0\0\0\0" + struct.pack("<II", 1, 8) + b"12345678" + b"tail"
    items, tail = split_items(data)
    assert [(i.type, i.length, i.data) for i in items] == [(5, 3, b"abc"), (1, 8, b"12345678")]
    assert tail == b"tail"
    items, tail = split_items(struct.pack("<II", 5, 0xFFFFFFFF) + b"short")
    assert [(i.length, i.data) for i in items] == [(0xFFFFFFFF, b"short")]
    assert tail == b""
    assert split_items(b"") == ((), b"")


def test_a_request_of_a_wrong_length_has_no_flags_as_for_the_kernel():
    new = Kernel.parse("xnu-11417.121.6")
    data = bytearray(GetUpdate(context=1, flags=3, srcref=2**64 - 1).encode(new.layout))
    assert request_frame(bytes(data), has_lengths=True)[2] == 3
    data[12] += 1
    assert request_frame(bytes(data), has_lengths=True)[2] == 0
    assert request_frame(b"short", has_lengths=True) is None


def test_addresses_are_told_by_their_family_and_scopes_move_out_of_them():
    v4 = bytes([16, 2, 0x1F, 0x90, 192, 0, 2, 7]) + bytes(20)
    assert str(decode_endpoint(v4)) == "192.0.2.7:8080"
    # The length byte is the client's business and may be anything (CPython leaves it 0).
    assert decode_endpoint(b"\0" + v4[1:]) == decode_endpoint(v4)
    linked = ipaddress.IPv6Address("fe80::1").packed
    embedded = linked[:2] + b"\0\4" + linked[4:]
    for packed, scope in ((linked, 4), (embedded, 0), (embedded, 4)):
        slot = bytes([28, 30, 0, 53, 0, 0, 0, 0]) + packed + struct.pack("<I", scope)
        endpoint = decode_endpoint(slot)
        assert (endpoint.address, endpoint.scope_id, endpoint.port) == ("fe80::1", 4, 53)
    mapped = bytes([28, 30, 0, 53, 0, 0, 0, 0]) + ipaddress.IPv6Address("::ffff:192.0.2.7").packed + bytes(4)
    assert str(decode_endpoint(mapped)) == "192.0.2.7:53"
    assert decode_endpoint(bytes(28)) is None
    assert decode_endpoint(bytes([28, 10]) + bytes(26)) is None  # Linux's AF_INET6 means nothing to Darwin
    unspecified = decode_endpoint(bytes([28, 30]) + bytes(26))
    assert (unspecified.is_unspecified, unspecified.scope_id) == (True, None)


def test_every_message_type_has_a_name_and_a_class():
    assert set(MESSAGE_CLASSES) == {member.value for member in MessageType}
    for number, cls in MESSAGE_CLASSES.items():
        assert cls().name == MessageType(number).name
    assert UnknownMessage(number=77).name == "UNKNOWN"

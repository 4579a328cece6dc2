"""`messages`: every field of every message, against the compiler's own reading of it."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any
from uuid import UUID

import conversations
import pytest
from support import run, run_json

from nstat_async.recording import RecordingInfo, RecordingWriter

KEYS = [
    "i", "m", "c", "dir", "type", "type_number", "context", "length", "flags", "srcref", "provider", "event_flags",
    "counts", "descriptor", "extensions", "error", "request", "note",
]  # fmt: skip
KERNEL = "xnu-11417.121.6"


def _plain(name: str) -> str:
    return ".".join(part.removeprefix("nstat_") for part in name.split("."))


def _same(shown: Any, true: Any) -> bool:
    """The value in a line against the value in the truth file (another program's notation)."""
    if isinstance(true, dict):  # a socket address
        family = {2: "inet", 30: "inet6"}.get(true["family"])
        if family is None:
            return shown["family"] is None and shown["address"] is None
        return (shown["family"], shown["address"], shown["port"]) == (family, true["addr"], true["port"]) and shown[
            "scope_id"
        ] == true.get("scope_id", 0)
    if isinstance(shown, str) and isinstance(true, str) and len(true) == 32 and shown.count("-") == 4:
        return shown == str(UUID(true))
    return shown == true


def _compare(shown: dict[str, Any] | None, true: dict[str, Any], where: str) -> None:
    assert shown is not None, where
    bits = ("probe_activated", "write_probe_failed", "read_probe_failed", "conn_probe_failed")
    if "connstatus." + bits[0] in true:  # a structure of bit fields is printed as its integer
        assert shown["connstatus"] & 15 == sum(true["connstatus." + bit] << place for place, bit in enumerate(bits))
        true = {name: value for name, value in true.items() if not name.startswith("connstatus.")}
    assert {_plain(name) for name in true} <= set(shown), where
    for name, value in true.items():
        assert _same(shown[_plain(name)], value), f"{where}: {name} {shown[_plain(name)]!r} {value!r}"


def _short(name: str) -> str:
    """The library's name of a counter of macOS 26."""
    if not name.startswith("ms_"):
        return name.removeprefix("nstat_")
    return "media_stats." + name[3:].replace(".ts_bitmap.", ".activity_bitmap.").replace(".ts_", ".")


def _compare_message(line: dict[str, Any], true: dict[str, Any], where: str) -> None:
    for theirs, ours in {"type": "type_number", "name": "type"}.items():
        assert line[ours] == true[theirs], where
    for key in ("context", "length", "flags", "srcref", "provider", "event_flags", "error"):
        assert line[key] == true.get(key), f"{where}: {key}"
    counted = {"counts", "detailed_counts", "sysinfo_len"} & set(true)
    assert (line["counts"] is not None) == bool(counted), where
    if "detailed_counts" in true:
        _compare(line["counts"], {_short(name): v for name, v in true["detailed_counts"].items()}, where)
    if "counts" in true:
        _compare(line["counts"], true["counts"], where)
    if "desc" in true:
        _compare(line["descriptor"], true["desc"], where)
    else:
        assert line["descriptor"] is None, where
    for shown, item in zip(line["extensions"], true.get("ext", []), strict=True):
        assert (shown["type"], shown["length"]) == (item["type"], item["length"]), where
        for nested in ("domain", "bluetooth"):
            if nested in item:
                _compare(shown, item[nested], where)
    if true.get("request") == "":
        assert line["request"] is None
    elif "request" in true:
        context, kind, length, flags = struct.unpack_from("<QIHH", bytes.fromhex(true["request"]))
        echo = line["request"]
        assert (echo["context"], echo["type_number"], echo["length"], echo["flags"]) == (context, kind, length, flags)
    for entry, (key, flags, value, size) in zip(line.get("sysinfo", []), true.get("keyvals", []), strict=True):
        assert (entry["sysinfo_key"], entry["sysinfo_flags"], entry["sysinfo_valsize"]) == (key, flags, size), where
        if flags == 1:
            assert entry["u.sysinfo_scalar"] == value, where
        elif flags == 4:
            assert entry["u.sysinfo_string"].encode() == bytes.fromhex(value).rstrip(b"\0"), where


@pytest.mark.parametrize("kernel", sorted({conversations.kernel(n) for n in conversations.names("control/*")}))
def test_every_field_is_what_the_compilers_layout_reads(kernel, tmp_path):
    """Each message of each conversation is printed once, with the values that the compiled header gives."""
    compared = 0
    for name in conversations.names(f"control/{kernel}/*", with_truth=True):
        truth = conversations.truth(name)
        if "decoded" not in truth:
            continue
        path = tmp_path / "c.jsonl"
        path.write_bytes(conversations.raw(name))
        lines = [line for line in run_json("messages", path) if line["dir"] == "from_kernel"]
        by_record: dict[int, list[dict[str, Any]]] = {}
        for line in lines:
            by_record.setdefault(line["i"], []).append(line)
        for record in truth["decoded"]:
            shown = by_record.pop(record["i"])
            assert [line["m"] for line in shown] == list(range(len(shown)))
            assert len(shown) == len(record["msgs"]), (name, record["i"])
            for line, true in zip(shown, record["msgs"], strict=True):
                _compare_message(line, true, f"{name} {record['i']}")
                compared += 1
        assert not by_record, name
    assert compared


def _write(tmp_path, lines, kernel=KERNEL):
    path = tmp_path / "m.jsonl"
    head = {"xnu": kernel}
    path.write_text("\n".join(json.dumps(line) for line in [head, *lines]))
    return path


def _datagram(hexes: str, direction: str = "from_kernel") -> dict[str, Any]:
    return {"dir": direction, "t": 1, "hex": hexes}


def _header(kind: int, length: int, context: int = 0, flags: int = 0) -> bytes:
    return struct.pack("<QIHH", context, kind, length, flags)


def _removed(reference: int) -> bytes:
    return _header(10002, 24) + struct.pack("<Q", reference)


def test_keys_are_there_in_the_promised_order(tmp_path):
    (line,) = run_json("messages", _write(tmp_path, [_datagram(_removed(7).hex())]))
    assert list(line) == KEYS
    assert (line["type"], line["srcref"], line["c"], line["i"]) == ("SRC_REMOVED", 7, 0, 0)


def test_every_message_of_a_datagram_has_its_place(tmp_path):
    lines = run_json("messages", _write(tmp_path, [_datagram((_removed(1) + _removed(2)).hex())]))
    assert [(line["i"], line["m"], line["srcref"]) for line in lines] == [(0, 0, 1), (0, 1, 2)]


def test_a_broken_length_costs_the_rest_of_its_datagram_and_no_more(tmp_path):
    broken = _removed(1) + _header(10002, 99) + b"\1\2\3"
    lines = run_json("messages", _write(tmp_path, [_datagram(broken.hex()), _datagram(_removed(2).hex())]))
    assert [line["type"] for line in lines] == ["SRC_REMOVED", "MALFORMED", "SRC_REMOVED"]
    malformed = lines[1]
    assert malformed["m"] == 1
    assert malformed["type_number"] == 10002
    assert "99" in malformed["note"]
    assert malformed["raw"] == broken[24:].hex()


def test_a_message_shorter_than_its_structure_is_malformed_and_the_next_one_is_read(tmp_path):
    data = _header(10006, 40) + b"\0" * 24 + _removed(2)
    lines = run_json("messages", _write(tmp_path, [_datagram(data.hex())]))
    assert [line["type"] for line in lines] == ["MALFORMED", "SRC_REMOVED"]
    assert "SRC_UPDATE of 40 bytes" in lines[0]["note"]


def test_a_short_descriptor_is_malformed_and_a_long_one_has_a_tail(tmp_path):
    body = struct.pack("<QQIi", 5, 0, 2, 0)
    short = _header(10003, 16 + 24 + 300) + body + b"\0" * 300
    long = _header(10003, 16 + 24 + 352) + body + b"\0" * 344 + b"\xaa" * 8
    first, second = run_json("messages", _write(tmp_path, [_datagram(short.hex()), _datagram(long.hex())]))
    assert first["type"] == "MALFORMED"
    assert "nstat_tcp_descriptor of 300 bytes" in first["note"]
    assert first["raw"] == short.hex()
    assert second["type"] == "SRC_DESC"
    assert second["descriptor"]["fallback_mode"] == 0
    assert second["tail"] == "aa" * 8
    assert "8 bytes behind" in second["note"]


def test_bytes_too_few_for_a_header_are_a_tail_of_the_last_message(tmp_path):
    (line,) = run_json("messages", _write(tmp_path, [_datagram(_removed(1).hex() + "0102")]))
    assert (line["type"], line["tail"]) == ("SRC_REMOVED", "0102")


def test_unknown_types_keep_their_number_and_bytes(tmp_path):
    data = _header(4242, 20, context=9) + b"abcd"
    (line,) = run_json("messages", _write(tmp_path, [_datagram(data.hex())]))
    assert (line["type"], line["type_number"], line["context"], line["raw"]) == ("UNKNOWN", 4242, 9, data.hex())


def test_unknown_providers_keep_their_bytes(tmp_path):
    data = _header(10003, 48) + struct.pack("<QQIi", 5, 0, 77, 0) + b"\1" * 8
    (line,) = run_json("messages", _write(tmp_path, [_datagram(data.hex())]))
    assert (line["type"], line["provider"], line["descriptor"], line["tail"]) == ("SRC_DESC", 77, None, "01" * 8)


def test_requests_are_decoded_by_the_kernels_names(tmp_path):
    add_all = struct.pack("<QIHHQQIi16s", 3, 1002, 56, 0, 0x100000, 0, 2, -1, bytes(range(16)))
    (line,) = run_json("messages", _write(tmp_path, [_datagram(add_all.hex(), "to_kernel")]))
    assert line["request"] == {
        "filter": 0x100000,
        "events": 0,
        "provider": 2,
        "target_pid": -1,
        "target_uuid": "00010203-0405-0607-0809-0a0b0c0d0e0f",
    }
    assert (line["dir"], line["type"], line["provider"], line["length"]) == ("to_kernel", "ADD_ALL_SRCS", 2, 56)


def test_the_parameter_of_a_named_source_is_shown_raw_and_decoded(tmp_path):
    param = bytes([16, 2, 0x01, 0xBB, 10, 0, 0, 1]) + bytes(20) + bytes(28)
    data = _header(1001, 24 + 56) + struct.pack("<II", 2, 0) + param
    (line,) = run_json("messages", _write(tmp_path, [_datagram(data.hex(), "to_kernel")]))
    assert line["request"]["param"] == param.hex()
    assert line["request"]["param.local"] == {"family": "inet", "address": "10.0.0.1", "port": 443, "scope_id": 0}
    assert line["request"]["param.remote"]["family"] is None


def test_a_request_whose_header_lies_about_its_length_is_still_one_request(tmp_path):
    """The kernel takes the datagram for the request and clears the flags; so does the reading."""
    data = _header(1004, 0, context=5, flags=2) + struct.pack("<Q", 2**64 - 1)
    (line,) = run_json("messages", _write(tmp_path, [_datagram(data.hex(), "to_kernel")]))
    assert (line["type"], line["length"], line["request"]) == ("QUERY_SRC", 0, {"srcref": 2**64 - 1})
    assert "24 bytes" in line["note"]


def test_requests_too_short_are_malformed(tmp_path):
    records = [_datagram("0102", "to_kernel"), _datagram(_header(1004, 18).hex() + "0000", "to_kernel")]
    lines = run_json("messages", _write(tmp_path, records))
    assert [line["type"] for line in lines] == ["MALFORMED", "MALFORMED"]
    assert lines[0]["raw"] == "0102"


def test_an_error_shows_the_request_that_it_answers(tmp_path):
    echo = struct.pack("<QIHHQQIi16s", 3, 1002, 56, 0, 1, 2, 99, 0, bytes(16))
    data = _header(1, 24 + 56, context=3) + struct.pack("<II", 2, 0) + echo
    (line,) = run_json("messages", _write(tmp_path, [_datagram(data.hex())]))
    assert (line["type"], line["error"]) == ("ERROR", 2)
    assert list(line["request"]) == [
        "type", "type_number", "context", "length", "flags", "filter", "events", "provider", "target_pid", "target_uuid",
    ]  # fmt: skip
    assert (line["request"]["type"], line["request"]["provider"]) == ("ADD_ALL_SRCS", 99)


def test_an_echo_that_cannot_be_decoded_is_kept_raw(tmp_path):
    cut = _header(1002, 56) + b"\0" * 4
    data = _header(1, 24 + len(cut)) + struct.pack("<II", 22, 0) + cut
    (line,) = run_json("messages", _write(tmp_path, [_datagram(data.hex())]))
    assert line["request"]["raw"] == cut.hex()
    assert line["request"]["type"] == "ADD_ALL_SRCS"


def test_details_of_macos_26_show_the_counts_of_each_medium(tmp_path):
    counts = struct.pack("<4Q", 1, 2, 3, 4) + bytes(448 - 32)
    data = _header(10008, 488 + 280) + struct.pack("<QQ", 5, 0) + counts + struct.pack("<II", 4, 0) + bytes(280)
    (line,) = run_json("messages", _write(tmp_path, [_datagram(data.hex())], "xnu-12377.1.9"))
    assert line["type"] == "SRC_DETAILS"
    assert line["counts"]["media_stats.total.txbytes"] == 4
    assert line["counts"]["media_stats.alternate.activity_bitmap.bitmap"] == [0, 0]
    assert line["descriptor"]["pid"] == 0


def test_names_are_escaped_and_every_line_is_one_line(tmp_path):
    """Control and direction characters of a process name reach no terminal."""
    name = "\x1b[2J\n\u202e\x7f".encode()
    descriptor = bytearray(344)
    descriptor[196 : 196 + len(name)] = name
    data = _header(10003, 40 + 344) + struct.pack("<QQIi", 5, 0, 2, 0) + bytes(descriptor)
    status, out, _ = run("messages", _write(tmp_path, [_datagram(data.hex())]))
    assert status == 0
    assert out.rstrip("\n").isprintable()
    assert json.loads(out)["descriptor"]["pname"] == name.decode()


def test_notes_are_no_messages_and_damage_is_visible(tmp_path):
    path = _write(tmp_path, [{"dir": "note", "t": 0, "text": "hello"}, _datagram(_removed(1).hex())])
    path.write_text(path.read_text() + '\n{"dir": "from_ker\n' + json.dumps(_datagram(_removed(2).hex())))
    lines = run_json("messages", path)
    assert [line["type"] for line in lines] == ["SRC_REMOVED", "MALFORMED", "SRC_REMOVED"]


def test_old_kernels_have_no_event_flags_and_no_header_flags(tmp_path):
    data = struct.pack("<QIIII", 1, 10004, 0xDEADBEEF, 3, 0)[:20] + bytes(96)
    (line,) = run_json("messages", _write(tmp_path, [_datagram(data.hex())], "xnu-2422.115.4"))
    assert (line["type"], line["length"], line["flags"], line["event_flags"]) == ("SRC_COUNTS", 116, 0, None)


def test_a_file_without_a_kernel_needs_one(tmp_path):
    path = tmp_path / "old.bin"
    path.write_bytes(struct.pack("<II", 5, 24) + _removed(9))
    status, out, err = run("messages", path)
    assert (status, out) == (1, "")
    assert "xnu-" in err
    assert err.count("\n") == 1
    (line,) = run_json("messages", path, "--kernel", KERNEL)
    assert line["srcref"] == 9


def test_a_recording_that_ends_before_it_names_its_kernel_needs_one(tmp_path):
    path = tmp_path / "torn.nstat"
    RecordingWriter(file := io.BytesIO(), RecordingInfo(kernel=KERNEL)).to_kernel(b"", 0)
    path.write_bytes(file.getvalue()[:30])
    status, out, err = run("messages", path)
    assert (status, out) == (1, "")
    assert "give it with --kernel" in err
    (line,) = run_json("messages", path, "--kernel", KERNEL)
    assert line["note"].startswith("the file ends within a record")


def test_a_kernel_that_is_none_is_a_usage_error(tmp_path):
    status, _, err = run("messages", _write(tmp_path, []), "--kernel", "vista")
    assert status == 2
    assert "vista" in err


def test_a_file_that_is_not_there_is_one_line_and_status_1(tmp_path):
    status, out, err = run("messages", tmp_path / "nothing")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "No such file" in err


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="there is no file that cannot be read")
def test_a_file_that_cannot_be_read_is_named(capfd):
    """A file whose first byte cannot be read, as on a broken disk."""
    from nstat_async._cli import main

    assert main(["messages", "/proc/self/mem"]) == 1
    assert capfd.readouterr().err == "nstat-async: error: /proc/self/mem: Input/output error\n"


LIVE = Path(__file__).parents[1] / "vectors" / "live" / "darwin-27.jsonl"
TRUE = {"pid": 28329, "upid": 8498810, "epid": 0, "eupid": 0, "pname": "curl", "state": 4, "ifindex": 14,
        "uuid": "5f8947b8-7a5d-34f6-aa86-8a620b17da3d", "euuid": "4c4c4410-5555-3144-a1ff-5d6d733a67f3",
        "vuuid": "00000000-0000-0000-0000-000000000000", "fuuid": "00000000-0000-0000-0000-000000000000",
        "persona_id": 0xFFFFFFFF, "uid": 501, "connstatus": 0, "ifnet_properties": 0x08011008,
        "fallback_mode": 0}  # fmt: skip
UNPROVEN = {"uuid", "euuid", "vuuid", "fuuid", "persona_id", "uid", "connstatus", "ifnet_properties", "fallback_mode"}


def test_of_a_newer_kernel_nothing_is_printed_that_is_not_proven():
    description, counts = run_json("messages", LIVE)
    shown = description["descriptor"]
    assert {name for name, value in shown.items() if value is None} == UNPROVEN
    assert {name: shown[name] for name in TRUE if name not in UNPROVEN} == {
        name: value for name, value in TRUE.items() if name not in UNPROVEN
    }
    assert shown["remote"]["address"] == "104.20.23.154"
    assert description["note"] == "the layout of xnu-13432.1.9 is not proven: 100 bytes were not decoded"
    assert len(description["tail"]) == 2 * 100
    assert (counts["counts"]["rxbytes"], counts["counts"]["txbytes"]) == (1547, 1272)


def test_of_a_newer_kernel_what_its_recorder_had_proven_is_printed(tmp_path):
    """The places are those that a proof finds on such a machine."""
    lines = LIVE.read_text().splitlines()
    places = {"pid": 116, "uuid": 260, "persona_id": 340, "uid": 344, "connstatus": 348, "ifnet_properties": 352,
              "fallback_mode": 356}  # fmt: skip
    proven = {"name": "nstat_tcp_descriptor", "length": 360, "offsets": [list(place) for place in places.items()]}
    setup = {"kernel": "xnu-13432.1.9", "proven": [proven]}
    run_of_it = {"library": "0", "setup": setup, "options": {}, "zero_ns": 0, "epoch_offset": 0.0}
    path = tmp_path / "proven.jsonl"
    path.write_text("\n".join([json.dumps({"xnu": "xnu-13432.1.9", "run": run_of_it}), *lines[1:]]))
    shown = run_json("messages", path)[0]["descriptor"]
    assert {name: value for name, value in shown.items() if value is not None} == {name: TRUE[name] for name in places}


def test_a_descriptor_of_a_newer_kernel_that_has_the_known_length_is_marked_as_assumed(tmp_path):
    lines = LIVE.read_text().splitlines()
    record = json.loads(lines[1])
    data = bytearray.fromhex(record["hex"])[: 40 + 344]
    struct.pack_into("<H", data, 12, len(data))
    path = tmp_path / "same.jsonl"
    path.write_text("\n".join([lines[0], json.dumps({**record, "hex": data.hex()})]))
    assert run_json("messages", path)[0]["note"] == "the layout of xnu-13432.1.9 is not proven: W12 is assumed"

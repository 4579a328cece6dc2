"""`messages` on a recording of a Linux conversation."""

from __future__ import annotations

import io
import struct

from support import run_json

from nstat_async.recording import NEXT, Record, RecordingInfo, RecordingWriter, RecordKind, steps
from nstat_async.sockdiag import PulseReport
from nstat_async.sockdiag._constants import DiagAttribute, RouteMessage
from nstat_async.sockdiag._messages import (
    AddressMessage,
    DiagMessage,
    DiagRequest,
    LinkMessage,
    encode_done,
    encode_error,
    socket_id,
)

INFO = bytes([1, 0, 2, 3, 4, 7, 0x77, 0]) + struct.pack("=I", 200_000) + bytes(108) + struct.pack("=QQ", 1000, 2000)
SOCKET = socket_id(bytes([10, 0, 0, 1]), 50000, bytes([192, 0, 2, 1]), 443, device=3, cookie=1 << 40 | 5)


def _lines(tmp_path, *records):
    file = io.BytesIO()
    with RecordingWriter(file, RecordingInfo(protocol="sock_diag", kernel="6.1.0")) as writer:
        for direction, data, *channel in records:
            getattr(writer, direction)(data, 0, *(channel or [0]))
        content = file.getvalue()
    path = tmp_path / "linux.nstat"
    path.write_bytes(file.getvalue() if not file.closed else content)
    return run_json("messages", path)


def test_a_dump_is_printed_by_the_kernels_names(tmp_path):
    attributes = {DiagAttribute.INFO: INFO, DiagAttribute.CONG: b"cubic\0", 99: b"\1\2"}
    message = DiagMessage(2, 1, SOCKET, uid=1000, inode=77, attributes=attributes, sequence=9)
    (line, done) = _lines(tmp_path, ("from_kernel", message.encode() + encode_done(9)))
    assert (line["type"], line["context"], line["m"]) == ("SOCK_DIAG_BY_FAMILY", 9, 0)
    assert line["descriptor"]["id.idiag_src"] == "10.0.0.1"
    assert line["descriptor"]["id.idiag_dport"] == 443
    assert line["descriptor"]["id.idiag_cookie"] == 1 << 40 | 5
    assert line["descriptor"]["idiag_inode"] == 77
    assert line["counts"]["tcpi_rto"] == 200_000
    assert [line["counts"][f"tcpi_{name}"] for name in ("state", "retransmits", "probes")] == [1, 2, 3]
    assert (line["counts"]["tcpi_bytes_acked"], line["counts"]["tcpi_bytes_received"]) == (1000, 2000)
    assert "tcpi_segs_out" not in line["counts"], "this kernel's tcp_info ends before it"
    assert [item["name"] for item in line["extensions"]] == ["INFO", "CONG", None]
    assert line["extensions"][2]["data"] == "0102"
    assert (done["type"], done["m"], done["error"]) == ("DONE", 1, 0)


def test_requests_errors_links_and_addresses(tmp_path):
    lines = _lines(
        tmp_path,
        ("to_kernel", DiagRequest(10, 6, 2, 0xFFF, SOCKET, sequence=4).encode()),
        ("from_kernel", encode_error(2, sequence=4)),
        ("from_kernel", LinkMessage(2, 1, "eth0", "veth").encode(RouteMessage.NEWLINK), 2),
        ("from_kernel", AddressMessage(2, 2, bytes([10, 0, 0, 1])).encode(RouteMessage.NEWADDR), 6),
    )
    assert [line["type"] for line in lines] == ["SOCK_DIAG_BY_FAMILY", "ERROR", "NEWLINK", "NEWADDR"]
    assert (lines[0]["dir"], lines[0]["request"]["sdiag_protocol"], lines[0]["request"]["idiag_states"]) == (
        "to_kernel",
        6,
        0xFFF,
    )
    assert lines[1]["error"] == 2
    assert lines[2]["descriptor"] == {"ifi_type": 1, "ifi_index": 2, "ifname": "eth0", "info_kind": "veth"}
    assert lines[3]["descriptor"]["address"] == "10.0.0.1"


def test_what_a_socket_is_for_is_what_the_recording_says(tmp_path):
    file = io.BytesIO()
    writer = RecordingWriter(file, RecordingInfo(protocol="sock_diag", kernel="6.1.0"))
    for channel, role in ((7, "routes"), (2, "dumps")):
        purpose = {"type": "ChannelPurpose", "namespace": 0, "role": role}
        step = steps.write_step(steps.OpenChannel(purpose))
        writer.write_batch([Record(NEXT, RecordKind.STEP, 0, channel, value=step)])
    for value in (None, 3, {"type": "OpenChannel", "purpose": ["routes"]}):
        writer.write_batch([Record(NEXT, RecordKind.STEP, 0, 7, value=value)])
    writer.from_kernel(AddressMessage(2, 2, bytes([10, 0, 0, 1])).encode(RouteMessage.NEWADDR), 0, 7)
    writer.from_kernel(DiagMessage(2, 1, SOCKET).encode(), 0, 2)
    (tmp_path / "linux.nstat").write_bytes(file.getvalue())
    lines = run_json("messages", tmp_path / "linux.nstat")
    assert [line["type"] for line in lines] == ["NEWADDR", "SOCK_DIAG_BY_FAMILY"]


def test_reports_of_new_sockets_are_their_messages(tmp_path):
    """And what eBPF programs say is shown as it is."""
    message = DiagMessage(2, 1, SOCKET, uid=1000, inode=77, attributes={DiagAttribute.INFO: INFO}, sequence=1)
    report = PulseReport(((6, message.encode()), (17, message.encode()))).encode()
    file = io.BytesIO()
    with RecordingWriter(file, RecordingInfo(protocol="sock_diag", kernel="6.18.0")) as writer:
        records = [
            Record(NEXT, RecordKind.STEP, 0, channel, value=steps.write_step(steps.OpenChannel({"type": purpose})))
            for channel, purpose in ((7, "PulsePurpose"), (8, "RingPurpose"))
        ]
        records += [
            Record(NEXT, RecordKind.FROM_KERNEL, 0, channel, data)
            for channel, data in ((7, report), (7, b"{}x"), (8, b"record"))
        ]
        writer.write_batch(records)
        content = file.getvalue()
    path = tmp_path / "beats.nstat"
    path.write_bytes(content)
    one, two, broken, programs = run_json("messages", path)
    assert [(line["m"], line["type"], line["descriptor"]["idiag_inode"]) for line in (one, two)] == [
        (0, "SOCK_DIAG_BY_FAMILY", 77),
        (1, "SOCK_DIAG_BY_FAMILY", 77),
    ]
    assert (broken["type"], broken["raw"]) == ("MALFORMED", b"{}x".hex())
    assert (programs["type"], programs["raw"]) == ("UNKNOWN", b"record".hex())


def test_broken_and_short_messages_are_malformed_and_the_next_record_is_read(tmp_path):
    whole = DiagMessage(2, 1, SOCKET).encode()
    short = struct.pack("=IHHII", 20, 20, 0, 1, 0) + bytes(4)
    lines = _lines(tmp_path, ("from_kernel", whole + b"\xff" * 20), ("from_kernel", short), ("from_kernel", whole))
    assert [line["type"] for line in lines] == ["SOCK_DIAG_BY_FAMILY", "MALFORMED", "MALFORMED", "SOCK_DIAG_BY_FAMILY"]
    assert lines[1]["raw"] == "ff" * 20
    assert lines[2]["raw"] == short.hex()

"""The tables of ``/proc/PID/net`` as text: what is read of them, and what is skipped."""

from __future__ import annotations

import sys

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nstat_async._io import proctables as io_proctables
from nstat_async._io.proctables import parse_table, read_table, read_tables
from nstat_async.sockdiag import (
    SocketState,
    SocketTablesAnswer,
    SocketTablesRequest,
    TableRow,
)

ROW = TableRow("tcp", 77, 1000, b"\x7f\0\0\1", bytes([198, 51, 100, 9]), 80, 4000, state=SocketState.ESTABLISHED)
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line_of(row: TableRow, more: str = "1 00000000c0ffee00 20 4 30 10 -1") -> str:
    """As ``get_tcp4_sock`` and its like write it."""
    ends = []
    for address, port in ((row.local, row.port), (row.remote, row.remote_port)):
        words = (int.from_bytes(address[at : at + 4], sys.byteorder) for at in range(0, len(address), 4))
        ends.append("".join(f"{word:08X}" for word in words) + f":{port:04X}")
    return f"   0: {ends[0]} {ends[1]} {row.state:02X} 00000000:00000000 00:00000000 00000000 {row.uid:5d}        0 {row.inode} {more}\n"


PORTS = st.integers(0, 0xFFFF)
STATES = st.sampled_from([int(state) for state in SocketState])


def rows(name: str, size: int) -> st.SearchStrategy[TableRow]:
    addresses = st.binary(min_size=size, max_size=size)
    numbers = st.integers(1, 0xFFFFFFFF)
    return st.builds(TableRow, st.just(name), numbers, numbers, addresses, addresses, PORTS, PORTS, st.just(0), STATES)


@given(
    st.sampled_from([("tcp", 4), ("udp", 4), ("raw", 4), ("tcp6", 16), ("udp6", 16)]).flatmap(
        lambda kind: st.tuples(st.just(kind[0]), st.lists(rows(*kind), max_size=5))
    )
)
def test_a_table_is_read_as_it_is_written(written: tuple[str, list[TableRow]]):
    name, of = written
    reading = parse_table(name, HEAD + "".join(map(line_of, of)))
    assert (reading.rows, reading.malformed, reading.cut) == (of, 0, False)


@given(st.lists(st.text(max_size=150)), st.sampled_from(["tcp", "udp6", "packet"]))
def test_lines_that_make_no_sense_are_skipped_and_counted(lines: list[str], name: str):
    good = "c0ffee00 3 10 88CC 2 1 0 1000 77\n" if name == "packet" else line_of(ROW)
    lines = [each for line in lines for each in line.splitlines() or [line] if each.strip()]
    reading = parse_table(name, HEAD + good + "".join(f"{line}\n" for line in lines))
    assert reading.rows[0].inode == 77
    assert len(reading.rows) - 1 + reading.malformed <= len(lines)


@pytest.mark.parametrize("word", ["0100007F:zz", "100007F:15B3", "0100007G:15B3", "-100007F:15B3", "nothing"])
def test_an_end_that_is_none_makes_a_malformed_line(word):
    reading = parse_table("tcp", HEAD + line_of(ROW).replace("0100007F:0050", word) + line_of(ROW))
    assert (len(reading.rows), reading.malformed) == (1, 1)


def test_what_is_no_socket_of_a_process_has_no_row():
    """Connections that wait to be accepted, and what is left of others."""
    assert parse_table("tcp", HEAD + line_of(attrs.evolve(ROW, inode=0, state=SocketState.TIME_WAIT))).rows == []


def test_of_a_long_table_the_beginning_is_read_and_that_is_said(tmp_path):
    (tmp_path / "tcp").write_text(HEAD + line_of(ROW) * 9)
    whole = read_table(str(tmp_path), "tcp")
    assert (len(whole.rows), whole.cut) == (9, False)
    cut = read_table(str(tmp_path), "tcp", len(HEAD) + 3 * len(line_of(ROW)) + 7)
    assert (len(cut.rows), cut.malformed, cut.cut) == (3, 0, True)
    most = read_table(str(tmp_path), "tcp", len(HEAD) + 9 * len(line_of(ROW)))
    assert (len(most.rows), most.cut) == (9, False)
    frames = "sk RefCnt Type Proto Iface R Rmem User Inode\n" + "c0ffee00 3 10 88CC 2 1 0 1000 13\n" * 2
    (tmp_path / "packet").write_text(frames)
    assert [row.inode for row in read_table(str(tmp_path), "packet", len(frames) - 3).rows] == [13]


def test_tables_are_read_one_after_the_other_with_what_is_wrong_in_each(tmp_path, monkeypatch):
    packets = "sk RefCnt Type Proto Iface R Rmem User Inode\nc0ffee00 3 10 88CC 2 1 0 1000 13\n"
    for name, text in (("tcp", HEAD + "x\n" + line_of(ROW)), ("packet", packets + "y\ny\n"), ("udp", HEAD)):
        (tmp_path / name).write_text(text)
    answer = read_tables(str(tmp_path), SocketTablesRequest(5, ("tcp", "packet", "udp")))
    frames = TableRow("packet", 13, 1000, port=0x88CC, device=2)
    assert answer == SocketTablesAnswer(5, (ROW, frames), malformed=3)
    monkeypatch.setattr(io_proctables, "MOST_BYTES", 9)
    assert read_tables(str(tmp_path), SocketTablesRequest(5, ("tcp", "udp"))).cut


@pytest.mark.parametrize(
    ("counted", "read"), [("TCP: inuse 0 orphan 0\n", 0), ("TCP: inuse 1 orphan 0\n", 1), ("?\n", 1)]
)
def test_a_table_of_which_the_kernel_counts_no_socket_is_not_read(tmp_path, counted, read):
    (tmp_path / "tcp").write_text(HEAD + line_of(ROW))
    (tmp_path / "sockstat").write_text("sockets: used 9\n" + counted)
    answer = read_tables(str(tmp_path), SocketTablesRequest(5, ("tcp", "udp")))
    assert (answer.namespace, len(answer.rows), answer.missing) == (5, read, ("udp",))

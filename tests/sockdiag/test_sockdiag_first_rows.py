"""First rows of connections, which Python takes in at once where nearly all sockets are new."""

from __future__ import annotations

import attrs
import pytest
from first_rows import CONNECTIONS, FIRST_ROWS
from hypothesis import given, settings
from hypothesis import strategies as st
from sockdiag_fakes import FakeSocket

from examples import examples
from nstat_async import Direction
from nstat_async.sockdiag import TcpInfo, _first_rows
from nstat_async.sockdiag._entry import Entry
from nstat_async.sockdiag._rows import RowFormats

OPENED, ACCEPTED = {TcpInfo.BYTES_ACKED: 1}, {TcpInfo.DELIVERED: 1}


def taken(message, form, pieces, *, protocol=6, known=None):
    """What `_take_plain` makes of a row where a listener has port 80; `None`: it hands all that it got to the book."""
    keeper, new, entries, left = object(), [], {}, []
    about = keeper, entries, {(80).to_bytes(2, "big"): {}}, new, lambda *given: left.append(given)
    _first_rows._take_plain(about, 7, 0.5, known, protocol, pieces, message, form)
    if left:
        assert (left, new, entries) == ([(known, protocol, pieces, message, form)], [], {})
        return None
    assert entries == {pieces[2]: new[0]}
    return new[0]


@pytest.mark.parametrize(
    ("row", "direction"),
    [
        (FakeSocket(1, cgroup=7, info=OPENED), Direction.OUTBOUND),
        (FakeSocket(1, cgroup=7, info=ACCEPTED), Direction.INBOUND),
        (FakeSocket(1, cgroup=7, info=ACCEPTED, local_port=80), Direction.INBOUND),
        (FakeSocket(1, cgroup=7, info=OPENED, info_length=216), Direction.OUTBOUND),
        (FakeSocket(1, cgroup=7, info=OPENED, info_length=212), None),
        (FakeSocket(1, cgroup=7, info=OPENED, local_port=80), None),  # or its FIN was acknowledged during the dump
        (FakeSocket(1, cgroup=7, info={TcpInfo.DELIVERED: 0}), None),  # it was made without a handshake
        (FakeSocket(1, cgroup=7, info=OPENED, state=8), None),
        (FakeSocket(1, info=OPENED), None),
    ],
)
def test_a_first_row_of_an_established_connection_that_says_who_opened_it_is_taken_at_once(row, direction):
    message = row.message()
    pieces, form = RowFormats().cut(message)
    assert (form.first is None) is (row.info_length < 216 or not row.cgroup)
    entry = taken(message, form, pieces)
    assert (entry and entry.direction) is direction


@settings(max_examples=examples(400, 60))
@given(
    CONNECTIONS.map(lambda row: attrs.evolve(row, state=1)) | FIRST_ROWS,
    st.none() | FIRST_ROWS,
    st.sampled_from([False, False, False, True]),
    st.sampled_from([0, 0, 0, 3]),
)
def test_an_established_connection_of_a_first_dump_is_taken_at_once(row, cut_as, known, timer):
    """As the book would see it; whatever else goes to the book with all that there is."""
    message = bytearray(row.message())
    message[18] = timer
    message = bytes(message)
    cut = message if cut_as is None else cut_as.message().ljust(len(message), b"\0")
    form = RowFormats().of(cut, 0, len(message))
    pieces = form.format.unpack(message.ljust(form.stride, b"\0"))
    entry = taken(message, form, pieces, protocol=row.protocol, known=Entry if known else None)
    seen = _first_rows._make_entry(None, row.protocol, pieces, message, form, 7, 0.5, {(80).to_bytes(2, "big"): {}})
    other = known or timer == 3 or row.protocol == 17 or row.state != 1 or row.info.get(TcpInfo.STATE, 1) != 1
    plain = not other and seen.weight and not seen.report.has_fin and row.info_length >= 216 and row.cgroup
    assert bool(entry) is bool(plain) or cut_as is not None
    if entry is not None:
        made, expected = (attrs.asdict(each, recurse=False) for each in (entry, seen))
        expected |= {"over": False, "preexisting": True, "keeper": entry.keeper, "report": seen.report._values}
        assert made | {"report": entry.report._values} == expected

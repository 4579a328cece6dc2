"""The parts of the core by themselves: tables, reports, last words, owners, links, look-ups."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from types import SimpleNamespace

import attrs
import pytest
from sockdiag_fakes import LOOPBACK, PEER, FakeSocket

from nstat_async._model import COUNTS_FIELDS, Counts, InterfaceKind
from nstat_async.sockdiag import (
    AddressMessage,
    DiagAttribute,
    DiagMessage,
    LinkKindsAnswer,
    LinkMessage,
    OwnersRequest,
    RouteMessage,
    SocketState,
    TcpInfo,
    iterate_messages,
)
from nstat_async.sockdiag._book import Book
from nstat_async.sockdiag._cgroups import CgroupSource
from nstat_async.sockdiag._dumps import DumpSource, sequence_of
from nstat_async.sockdiag._entry import Entry
from nstat_async.sockdiag._finals import (
    Remains,
    fin_by_dump,
    fin_by_peer,
    fin_by_remains,
    is_behind_fin,
    is_unused,
    last_words,
    remains_of,
    was_disconnected,
)
from nstat_async.sockdiag._links import LinkTable, kind_of_link
from nstat_async.sockdiag._lookups import MAX_OUTSTANDING, NO_ANSWER, LookupSource, lookup_request
from nstat_async.sockdiag._messages import ATTRIBUTES_AT, encode_done, find_attribute, socket_id
from nstat_async.sockdiag._output import Output
from nstat_async.sockdiag._owners import OwnerSource
from nstat_async.sockdiag._reports import socket_report
from nstat_async.sockdiag._rows import (
    Change,
    RowFormat,
    RowFormats,
    address_of,
    columns_of,
    counters_changed,
    encode_row,
    identity_differs,
    info_of,
    is_fin_alone,
    is_remains,
    same_connection,
)
from nstat_async.sockdiag._scan import Memory, are_alike, scan
from nstat_async.sockdiag._setup import NetworkNamespace
from nstat_async.sockdiag._waiting import AT_ONCE, MOST_BEHIND, Waiting
from nstat_async.sockdiag._waiting import Memory as LastOnes

# -- tables


class Scanned:
    """A dump source whose rows are kept as they come."""

    def __init__(self) -> None:
        self.output = Output()
        links = LinkTable()
        owners = OwnerSource(self.output, list)
        kinds = {"every_update": False, "extras": False, "dumped": True}
        self.book = Book(self.output, 0, NetworkNamespace(), links, owners, CgroupSource(self.output), **kinds)
        self.book.apply_row = self._apply
        options = {"extras": False, "every": False, "vital": True}
        self.dumps = DumpSource(self.output, self.book, RowFormats(), [6], **options)
        self.seen: list = []

    def _apply(self, entry, protocol, pieces, message, form):
        self.seen.append((entry is None, pieces[2], message))
        if entry is None:
            entry = self.book.new_entry(protocol, pieces)
        entry.last, entry.seen = pieces, self.output.poll

    def dump(self, *sockets: FakeSocket, cut=lambda data: data) -> list:
        """One dump of these sockets; what was new or differed, without the messages' sequence numbers."""
        self.output.poll += 1
        self.book.begin_poll()
        self.dumps.begin_poll(partial=False)
        sequence = sequence_of(self.output.poll, 0, last=True)
        self.seen.clear()
        self.dumps.receive(cut(b"".join(sock.message(sequence) for sock in sockets)))
        self.messages = [sock.message(sequence) for sock in sockets]
        self.dumps.receive(encode_done(sequence))
        return self.seen

    def unseen(self) -> list[int]:
        return [entry.cookie for entry in self.book.entries.values() if entry.seen != self.output.poll]


def info_position(message):
    return find_attribute(message, ATTRIBUTES_AT, len(message), DiagAttribute.INFO)


def test_messages_of_different_lengths_mix():
    """A datagram may hold sockets with and without attributes, in any order."""
    scan = Scanned()
    sockets = [FakeSocket(n, extra={DiagAttribute.MARK: b"\1\0\0\0"} if n % 3 else {}) for n in range(1, 20)]
    seen = scan.dump(*sockets)
    assert [cookie for _, cookie, _ in seen] == list(range(1, 20))
    assert [message for *_, message in seen] == scan.messages
    assert scan.dump(*reversed(sockets)) == []
    assert scan.unseen() == []
    assert scan.book.reported == scan.dumps.rows / 2 == 19


def test_a_longer_and_a_shorter_message_between_others_are_what_they_are():
    """Behind both of them the rest lies as if they were like it."""
    scan = Scanned()
    sockets = [FakeSocket(n) for n in range(1, 12)]
    sockets[5].extra = {DiagAttribute.MARK: b"\1\0\0\0"}
    sockets[6].info_length -= 8
    for expected in (list(range(1, 12)), []):
        assert [cookie for _, cookie, _ in scan.dump(*sockets)] == expected
    assert scan.unseen() == []


def test_only_what_changed_differs():
    """Of many sockets the one with another counter is found, and the one that is absent."""
    scan = Scanned()
    sockets = {n: FakeSocket(n) for n in range(1, 50)}
    scan.dump(*sockets.values())
    sockets[7].info = {TcpInfo.SEGS_IN: 1}
    del sockets[9]
    assert [(new, cookie) for new, cookie, _ in scan.dump(*sockets.values())] == [(False, 7)]
    assert scan.unseen() == [9]


def test_structures_of_one_length_are_told_apart():
    """Two messages of the same length with their parts in another order both give their counters."""
    one = FakeSocket(1, extra={DiagAttribute.MARK: b"\1\0\0\0"}, info={TcpInfo.BYTES_RECEIVED: 5})
    form = RowFormat.learn(one.message(1))
    assert form.info == info_position(one.message(1))[0]
    assert len(Scanned().dump(one)) == 1


def test_a_last_message_without_padding():
    """The end of a datagram may lack the padding of its last message."""

    def cut(data: bytes) -> bytes:
        message = bytearray(data + b"\x05\0\x0a\0\6")
        message[:4] = len(message).to_bytes(4, sys.byteorder)
        return bytes(message)

    scan = Scanned()
    assert len(scan.dump(FakeSocket(1), cut=cut)) == 1
    assert scan.dumps.complete


class Listed:
    """A socket with its row."""

    def __init__(self, number: int) -> None:
        self.last, self.seen = (number,), 0


class Remembered:
    """Dumps whose rows are compared with those of the dump before."""

    def __init__(self) -> None:
        self.memory, self.known, self.looks = Memory(), {}, 0
        self.socks = [FakeSocket(number) for number in range(400)]
        self.form = RowFormat.learn(self.socks[0].message(1))
        self.poll = 0

    def get(self, cookie):
        self.looks += 1
        return self.known.get(cookie)

    def dump(self, *parts):
        """Numbers of the sockets that are new or differ, and how many were looked at one by one."""
        self.poll, self.looks = self.poll + 1, 0
        applied = []

        def apply(_entry, _protocol, pieces, _message, _form):
            applied.append(pieces[2])
            entry = self.known.setdefault(pieces[2], Listed(pieces[2]))
            entry.last, entry.seen = pieces, self.poll

        self.memory.begin()
        datagrams = tuple(b"".join(self.socks[number].message(self.poll) for number in part) for part in parts)
        book = SimpleNamespace(get=self.get)
        end = scan(datagrams, 0, 0, book, self.poll, False, apply, 6, self.form, self.memory)
        assert end == (len(parts) - 1, len(datagrams[-1]), sum(map(len, parts)))
        assert {number for part in parts for number in part} == {
            n for n in self.known if self.known[n].seen == self.poll
        }
        return applied, self.looks - len(applied)  # a row that is applied is looked up before and behind


def test_rows_that_come_again_are_those_that_are_expected():
    """However datagrams are cut; behind what changed, went or came the rest is where it was."""
    dumps, every = Remembered(), list(range(200))
    assert dumps.dump(every[:5], every[5:9]) == ([*range(9)], 9)
    assert dumps.dump(every[:5], every[5:9]) == ([], 0)
    assert dumps.dump(every[:7], every[7:9]) == ([], 0)
    assert dumps.dump(every[:1], every[2:5], every[5:9]) == ([], 3), "one is gone"
    assert dumps.dump(every[:1], [20, *every[2:4]], every[4:9]) == ([20], 3), "one is new"
    assert dumps.dump(every[:1], [20, 30], every[3:9]) == ([30], 2), "a stranger took a place"
    assert dumps.dump(every) == ([*range(9, 20), *range(21, 30), *range(31, 200)], 199)
    assert dumps.dump([0, 65], every[66:]) == ([], 2), "many are gone"
    dumps.dump(every)
    assert dumps.dump(every) == ([], 0)
    assert dumps.dump([0], every[90:]) == ([], 110), "too many"
    assert dumps.dump([0], every[90:]) == ([], 0)


def test_one_of_many_rows_that_changed_costs_a_look_at_few():
    dumps, every = Remembered(), list(range(400))
    parts = [every[at : at + 80] for at in range(0, 400, 80)]
    dumps.dump(*parts)
    for changed in (0, 77, 170, 399):
        dumps.socks[changed].info = {TcpInfo.BYTES_RECEIVED: dumps.poll}
        applied, looks = dumps.dump(*parts)
        assert applied == [changed]
        assert looks <= 9
        assert dumps.dump(*parts) == ([], 0)
    dumps.known[50].last = (0, *dumps.known[50].last[1:])
    assert dumps.dump(*parts)[0] == [50], "something else told of it"


@pytest.mark.parametrize("every", [False, True])
def test_a_row_that_is_as_it_was_is_marked_and_any_other_applied(every):
    """A row of another head ends the run: what is behind it is cut by its own form."""
    socks = [FakeSocket(number) for number in range(1, 9)]
    data = b"".join(sock.message(1) for sock in socks)
    form = RowFormat.learn(data[: len(data) // 8])
    known = {number: Listed(number) for number in (2, 3)}
    for number in known:
        known[number].last = next(p for p in form.format.iter_unpack(data) if p[2] == number)
    known[3].last = (0, *known[3].last[1:])
    applied = []

    def apply(entry, protocol, pieces, message, given):
        applied.append(pieces[2])
        assert (entry, protocol, message, given) == (known.get(pieces[2]), 6, socks[pieces[2] - 1].message(1), form)

    other = FakeSocket(9).message(1)
    other = other[:6] + b"\0\0" + other[8:]
    memory = Memory()
    memory.begin()
    assert scan((data + other,), 0, 0, known, 7, every, apply, 6, form, memory) == (0, len(data), 8)
    assert applied == [number for number in range(1, 9) if every or number != 2]
    assert known[2].seen == (0 if every else 7)
    applied.clear()
    for number, sock in enumerate(socks, 1):
        known[number] = Listed(number)
        known[number].last = RowFormats().cut(sock.message(1))[0]
    for behind in (b"", b"", other):
        memory.begin()
        assert scan((data + behind,), 0, 0, known, 8, every, apply, 6, form, memory) == (0, len(data), 8)
    assert applied == [*range(1, 9)] * 3 * every
    applied.clear()
    known.clear()
    mixed = (socks[0].message(1) + other + data,)
    assert scan(mixed, 0, 0, {}, 7, every, apply, 6, form, memory) == (0, form.stride, 1)


def test_of_many_rows_at_once_each_byte_of_a_piece_is_compared_and_no_other_word():
    """Two words at once where both are wanted and every row has them at the same place."""
    pieces = (4, 7), (12, 4), (20, 2)
    assert columns_of(24, pieces) == (("Q", (slice(1, None, 3),)), ("I", tuple(slice(n, None, 6) for n in (1, 5))))
    assert columns_of(28, pieces) == (("I", tuple(slice(n, None, 7) for n in (1, 2, 3, 5))),)
    for stride in (24, 28):
        columns, rows = columns_of(stride, pieces), bytes(3 * stride)
        differing = set()
        for at in range(len(rows)):
            other = rows[:at] + b"\1" + rows[at + 1 :]
            if not are_alike(memoryview(rows), memoryview(other), columns):
                differing.add(at % stride)
        assert differing == {*range(4, 16), *range(20, 24)}
    form = RowFormat.learn(FakeSocket(1).message(1))
    wanted = [
        word
        for code, places in form.columns
        for each in places
        for word in ([each.start] if code == "I" else [2 * each.start, 2 * each.start + 1])
    ]
    head, ids, rest = [0, 1], range(4, 17), range(20, (form.info + 3) // 4)
    counters = range((form.info + TcpInfo.BYTES_ACKED) // 4, (form.info + TcpInfo.BYTES_ACKED + 40) // 4)
    assert sorted(wanted) == [*head, *ids, *rest, *counters]


# -- rows

MAPPED = bytes(10) + b"\xff\xff"


def cut(*, formats=None, **fields):
    """The pieces of a socket's row."""
    return (formats or RowFormats()).cut(FakeSocket(1, **fields).message(1))[0]


def connection(**fields):
    return cut(**fields)[1]


V6 = {"family": 10, "local": MAPPED + LOOPBACK, "remote": MAPPED + PEER}
LISTENING = {"state": SocketState.LISTEN, "local": bytes(4), "remote": bytes(4), "remote_port": 0}


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ({}, {}, True),
        ({}, {"state": SocketState.CLOSE_WAIT}, True),
        ({}, {"remote_port": 81}, False),
        ({}, {"remote_port": 80 + 256}, False),
        ({}, {"local_port": 40001}, False),
        ({}, {"local_port": 40000 + 256}, False),
        ({}, {"remote": PEER[:3] + b"\1"}, False),
        ({}, {"remote": b"\1" + PEER[1:]}, False),
        ({}, {"local": b"\x7f\0\0\2"}, True),  # nobody's evidence: an address of its own may be chosen later
        ({"local_port": 0}, {}, True),  # a record that saw it begin has no local port yet
        ({}, {"local_port": 0}, False),
        ({}, {"remote_port": 0}, True),  # the kernel forgets it when an attempt fails
        ({"remote_port": 0}, {}, True),
        ({"remote_port": 256}, {"remote_port": 512}, False),
        ({}, V6, True),  # IPV6_ADDRFORM
        (V6, {}, True),
        (V6, {**V6, "remote": bytes(15) + b"\1"}, False),
        (V6, {**V6, "remote": b"\x20" + bytes(15)}, False),
        (LISTENING, LISTENING, True),
        (LISTENING, {**LISTENING, "state": SocketState.CLOSE}, True),  # its removal says so
        (LISTENING, {**LISTENING, "state": SocketState.CLOSE, "local": LOOPBACK}, True),
        (LISTENING, {}, False),
        (LISTENING, {"remote_port": 0x5000}, False),
        ({"local_port": 256}, {"local_port": 512}, False),
        ({"local_port": 0, "remote_port": 0x5000}, {"remote_port": 0x5000}, True),
        ({}, LISTENING, False),
    ],
)
def test_two_rows_of_a_socket_may_be_of_one_connection_or_not(before, after, same):
    assert same_connection(connection(**before), connection(**after)) is same


def test_addresses_are_those_of_their_family():
    """A v4-mapped one is IPv4."""
    for fields, local, remote in (
        ({}, LOOPBACK, PEER),
        (V6, LOOPBACK, PEER),
        ({"family": 10, "local": bytes(15) + b"\1", "remote": b"\xff" * 16}, bytes(15) + b"\1", b"\xff" * 16),
    ):
        identity = connection(**fields)
        assert (address_of(identity, 8), address_of(identity, 24)) == (local, remote)


COUNTED = {
    TcpInfo.BYTES_ACKED: 1000, TcpInfo.BYTES_RECEIVED: 2000, TcpInfo.SEGS_OUT: 30, TcpInfo.SEGS_IN: 40, TcpInfo.MIN_RTT: 5,
    TcpInfo.DATA_SEGS_IN: 6, TcpInfo.DATA_SEGS_OUT: 7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, Change.NONE),
        (
            {TcpInfo.SEGS_OUT: 31, TcpInfo.SEGS_IN: 41, TcpInfo.NOTSENT_BYTES: 9, TcpInfo.RTT: 8},
            Change.NONE,
        ),  # a keep-alive
        ({TcpInfo.BYTES_ACKED: 1001}, Change.GROWN),
        ({TcpInfo.BYTES_ACKED: 1000 + (1 << 56)}, Change.GROWN),
        ({TcpInfo.BYTES_RECEIVED: 2001}, Change.GROWN),
        ({TcpInfo.BYTES_RECEIVED: 2000 + (1 << 56)}, Change.GROWN),
        ({TcpInfo.MIN_RTT: 4}, Change.GROWN),
        ({TcpInfo.DATA_SEGS_IN: 7}, Change.GROWN),
        ({TcpInfo.DATA_SEGS_OUT: 7 + (1 << 24)}, Change.GROWN),
        ({TcpInfo.BYTES_ACKED: 999}, Change.RESTARTED),
        ({TcpInfo.BYTES_RECEIVED: 1999}, Change.RESTARTED),
        ({TcpInfo.BYTES_ACKED: 2000, TcpInfo.BYTES_RECEIVED: 1999}, Change.RESTARTED),
    ],
)
def test_what_became_of_counters_between_two_rows(change, kind):
    assert counters_changed(cut(info=COUNTED), cut(info=COUNTED | change)) is kind
    assert counters_changed(cut(info_length=100), cut(info=COUNTED)) is Change.GROWN, "they came with a dump"
    assert counters_changed(cut(info_length=100), cut(info_length=100)) is Change.NONE


@pytest.mark.parametrize(
    ("change", "alone"),
    [
        ({TcpInfo.BYTES_RECEIVED: 2001}, True),
        (
            {TcpInfo.BYTES_RECEIVED: 2001, TcpInfo.BYTES_ACKED: 3000, TcpInfo.SEGS_IN: 99, TcpInfo.DATA_SEGS_OUT: 9},
            True,
        ),
        ({TcpInfo.BYTES_RECEIVED: 2001, TcpInfo.DATA_SEGS_IN: 7}, False),
        ({TcpInfo.BYTES_RECEIVED: 2002}, False),
        ({}, False),
    ],
)
def test_a_byte_without_a_segment_is_a_fin(change, alone):
    before = cut(info=COUNTED)[4]
    assert is_fin_alone(before, cut(info=COUNTED | change)[4]) is alone
    assert not is_fin_alone(b"", before)
    assert not is_fin_alone(before, b"")


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({}, False),
        ({"timer": 2, "expires": 5, "unread": 9, "unacked": 9}, False),
        ({"extra": {DiagAttribute.MARK: b"\1\0\0\0"}}, False),
        ({"state": SocketState.CLOSE_WAIT}, True),
        ({"local_port": 40256}, True),
        ({"local": b"\x7e\0\0\1"}, True),
        ({"remote": PEER[:3] + b"\1"}, True),
        ({"uid": 1001}, True),
        ({"inode": 1 << 24}, True),
        (V6, True),
    ],
)
def test_what_makes_another_flow_of_a_row(change, differs):
    assert identity_differs(cut(), cut(**change)) is differs
    bound = bytearray(FakeSocket(1).message(1))
    bound[16 + 40] = 2
    assert identity_differs(cut(), RowFormats().cut(bytes(bound))[0]), "it was bound to an interface"


@pytest.mark.parametrize(("family", "local", "remote"), [(2, LOOPBACK, PEER), (10, b"\1" * 16, b"\2" * 16)])
def test_what_another_source_tells_is_as_a_dump_would_have_it(family, local, remote):
    given = {"uid": 1000, "inode": 7, "device": 0}
    row = encode_row(family, 1, (b"\0\1", b"\0\2"), (local, remote), 99, **given)
    message = DiagMessage(family, 1, socket_id(local, 1, remote, 2, cookie=99), uid=1000, inode=7)
    assert row == message.encode()
    less = encode_row(family, 1, (b"\0\1", b"\0\2"), (local, remote), 99, uid=1000)
    assert less == row[:-4] + bytes(4), "nothing else is known of it"


def test_remains_and_connection_requests_are_no_sockets():
    for fields in ({"timer": 3}, {"state": SocketState.TIME_WAIT}, {"state": SocketState.SYN_RECV}):
        assert is_remains(FakeSocket(1, **fields).message(1))
    assert not is_remains(FakeSocket(1, timer=2).message(1))


def test_the_place_of_counters_is_that_of_this_very_message():
    """Another one of its length may have them elsewhere, or something else there."""
    formats = RowFormats()
    marked = FakeSocket(1, info=COUNTED, extra={DiagAttribute.MARK: b"\1\0\0\0"})
    message = marked.message(1)
    pieces, form = formats.cut(message)
    assert info_of(message, form, pieces) == (form.info, form.info_length) == (*info_position(message),)
    at, size = info_position(message)
    moved = message[: at - 12] + message[at - 4 : at + size] + message[at - 12 : at - 4] + message[at + size :]
    pieces, same = formats.cut(moved)
    assert same is form
    assert info_of(moved, form, pieces) == info_position(moved) == (at - 8, size)
    bare = FakeSocket(1, protocol=17).message(1)
    pieces, form = formats.cut(bare)
    assert (form.info, form.cgroup, info_of(bare, form, pieces)) == (0, 0, (0, 0))


def test_formats_are_learned_once_and_their_number_is_bounded(monkeypatch):
    learned = []
    learn = RowFormat.learn
    monkeypatch.setattr(RowFormat, "learn", lambda message: learned.append(len(message)) or learn(message))
    formats = RowFormats()

    def meet(number):
        message = FakeSocket(1, protocol=17, extra={DiagAttribute.MARK: bytes(4 * number)}).message(1)
        assert formats.of(b"before" + message, 6, len(message)).length == len(message)

    for number in [*range(256), *range(256)]:
        meet(number)
    assert len(learned) == 256
    meet(256)
    meet(0)
    assert len(learned) == 258


@pytest.mark.parametrize("length", [159, 160, 161, 280])
def test_counters_are_cut_out_where_they_are_whole(length):
    """A kernel before 4.6 has too few of them: the row has none."""
    pieces = cut(info=COUNTED, info_length=length, inode=7)
    assert Entry.user_of(pieces) == (1000, 7)
    assert len(pieces[4]) == (40 if length >= 160 else 0)
    assert pieces[4][:8] == ((1000).to_bytes(8, sys.byteorder) if length >= 160 else b"")


# -- reports


def report(fin: int = 0, length: int = 280, **fields: int):
    info = {TcpInfo[name]: value for name, value in fields.items()}
    message = FakeSocket(1, info=info, info_length=length).message(1)
    return socket_report(message, *info_position(message), fin)


def test_counts_are_translated_when_read():
    """Payload without retransmissions and FIN, microseconds, None without a sample."""
    counts = report(1, BYTES_SENT=1500, BYTES_RETRANS=500, BYTES_RECEIVED=11, RTT=300, RTTVAR=20, MIN_RTT=100)
    assert (counts.rx_bytes, counts.tx_bytes, counts.tx_retransmitted_bytes) == (10, 1000, 500)
    assert (counts.min_rtt_us, counts.avg_rtt_us, counts.var_rtt_us) == (100, 300, 20)
    fresh = report(RTTVAR=250000)
    assert (fresh.min_rtt_us, fresh.avg_rtt_us, fresh.var_rtt_us) == (None, None, None)
    assert fresh.rx_bytes == 0
    assert fresh.cell_rx_bytes is None
    assert set(counts.as_dict()) == set(COUNTS_FIELDS)


def test_counts_behave_like_counts():
    """Equal to plain ones of the same values, hashable, immutable, picklable."""
    counts = report(BYTES_SENT=5, RTT=3)
    plain = Counts(**dict(counts.items()))
    assert counts == plain
    assert hash(counts) == hash(plain)
    assert pickle.loads(pickle.dumps(counts)) == counts
    assert plain.since(counts).tx_bytes == 0
    with pytest.raises(AttributeError):
        counts.tx_bytes = 1


def test_details_say_none_for_what_is_not_there():
    """No sample, no limit, no attribute: None."""
    details = report(PACING_RATE=2**64 - 1, SND_MSS=1000, SND_CWND=10, DELIVERY_RATE=0).details()
    assert (details.pacing_rate, details.delivery_rate, details.mark, details.cgroup_id) == (None, None, None, None)
    assert details.congestion_window == 10_000
    assert details.congestion_control == "cubic"
    extra = {DiagAttribute.MARK: b"\7\0\0\0", DiagAttribute.CGROUP_ID: b"\1" + bytes(7)}
    message = FakeSocket(1, extra=extra, unacked=100, info={TcpInfo.NOTSENT_BYTES: 40}).message(1)
    details = socket_report(message, *info_position(message), 0).details()
    assert (details.mark, details.cgroup_id, details.unacked_bytes) == (7, 1, 60)


# -- last words


def ended(
    entry_state=SocketState.ESTABLISHED,
    *,
    before=None,
    repeated=False,
    reading=0.0,
    unread=0,
    rx=100,
    segments=1,
    tx=50,
    **info,
):
    """A socket's last message, as the entry of what was known before, and the words."""
    fields = {
        TcpInfo.BYTES_RECEIVED: rx,
        TcpInfo.DATA_SEGS_IN: segments,
        TcpInfo.BYTES_SENT: tx,
        TcpInfo.BYTES_ACKED: tx + 2,
        TcpInfo.SEGS_IN: 5,
        **{TcpInfo[name]: value for name, value in info.items()},
    }
    message = FakeSocket(1, unread=unread, info=fields).message(final=True)
    entry = Entry(None, 6, (0, bytes([2, entry_state]) + bytes(42), 1, b"", b""), 7, 6 if repeated else 7, entry_state)
    entry.reading = reading
    if before is not None:
        row = FakeSocket(1, info={**fields, **before}).message()
        entry.report = socket_report(row, *info_position(row), int(is_behind_fin(row, *info_position(row))))
    return entry, last_words(message, *info_position(message))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"segments": 0, "rx": 1}, (1, True)),
        ({"rx": 0}, (0, True)),
        ({"entry_state": SocketState.CLOSE_WAIT}, (1, True)),
        ({"entry_state": SocketState.LAST_ACK}, (1, True)),
        ({"entry_state": SocketState.TIME_WAIT}, (1, True)),
        ({"entry_state": SocketState.FIN_WAIT2}, None),
        ({}, None),
        ({"before": {TcpInfo.BYTES_RECEIVED: 99}}, (1, True)),
        ({"before": {}}, None),  # that row may have been written while the FIN came
        ({"before": {}, "repeated": True}, (0, True)),
        ({"before": {TcpInfo.LAST_ACK_RECV: 500}}, (0, True)),
        ({"before": {TcpInfo.LAST_ACK_RECV: 500}, "reading": 0.47}, (0, True)),
        ({"before": {TcpInfo.LAST_ACK_RECV: 500}, "reading": 0.6}, None),  # it may have come while that row was written
        (
            {"before": {TcpInfo.STATE: SocketState.CLOSE_WAIT}},
            (1, True),
        ),  # came between its first state and its counters
        ({"before": {TcpInfo.BYTES_RECEIVED: 98}}, None),
        ({"before": {TcpInfo.BYTES_RECEIVED: 99, TcpInfo.DATA_SEGS_IN: 2}}, None),
    ],
)
def test_what_dumps_prove_of_a_fin(facts, expected):
    """The table of evidence, one case a row; None asks for more."""
    assert fin_by_dump(*ended(**facts)) == expected


@pytest.mark.parametrize(
    ("sent", "expected"), [(99, (1, True)), (100, (0, True)), (5000, (0, True)), (98, None)], ids=str
)
def test_the_other_end_proves_a_fin(sent, expected):
    """100 bytes came: one more than the other end sent is its FIN; two more, and it is another end."""
    _, words = ended()
    peer = ended(tx=sent)[1]._replace(received=51)
    assert fin_by_peer(words, peer) == expected
    assert fin_by_peer(words, peer._replace(received=52)) is None, "it has more than was sent: it is another end"
    assert fin_by_peer(words, peer._replace(segments_in=0, segments_out=0)) is None


@pytest.mark.parametrize(
    ("facts", "remains", "age", "expected"),
    [
        ({}, Remains.FIN_WAIT2, 0, (0, True)),
        ({"unread": 1}, Remains.TIME_WAIT, 10, (1, True)),
        ({"unread": 7}, Remains.TIME_WAIT, 10, (1, True)),
        ({"LAST_ACK_RECV": 0}, Remains.TIME_WAIT, 30, (1, False)),  # half-closed for a millisecond
        ({"LAST_ACK_RECV": 200}, Remains.TIME_WAIT, 210, (1, False)),
        ({"LAST_ACK_RECV": 0}, Remains.TIME_WAIT, 9, (0, False)),  # the FIN came behind the last segment
        ({"LAST_ACK_RECV": 200}, Remains.TIME_WAIT, 10, (0, False)),
        ({"LAST_ACK_RECV": 200}, Remains.TIME_WAIT, 500, (1, False)),  # read late
        ({"LAST_ACK_RECV": 20}, Remains.TIME_WAIT, 500, (0, False)),
        ({}, Remains.NOTHING, 0, (1, False)),
        ({"here": True}, Remains.NOTHING, 0, (0, False)),
        ({"LAST_ACK_RECV": 20}, Remains.NOTHING, 0, (1, False)),
        ({"LAST_ACK_RECV": 21}, Remains.NOTHING, 0, (0, False)),
        ({"unread": 1}, Remains.NOTHING, 0, (1, False)),
        ({"unread": 2}, Remains.NOTHING, 0, (0, False)),
        ({}, Remains.UNKNOWN, 0, (1, False)),
    ],
)
def test_the_remains_prove_a_fin_or_make_it_likely(facts, remains, age, expected):
    """The last words came 30 ms ago: remains are as old as the last segment, younger, or so old that they were read late."""
    here = facts.pop("here", False)
    found = FakeSocket(1, state=SocketState.TIME_WAIT, timer=3, expires=60_000 - age).message()
    assert fin_by_remains(ended(**facts)[1], remains, found, since_ms=30.0, here=here) == expected


def test_remains_are_a_sockets_own():
    """A dumped socket's have its cookie; what no dump had may have another one."""
    message = FakeSocket(1).message(final=True)
    own, other = (FakeSocket(n, state=SocketState.TIME_WAIT, timer=3).message() for n in (1, 2))
    waiting = FakeSocket(1, state=SocketState.FIN_WAIT2, timer=3).message()
    assert remains_of(message, own, known=True) is remains_of(message, other, known=False) is Remains.TIME_WAIT
    assert remains_of(message, waiting, known=True) is Remains.FIN_WAIT2
    for found in (other, None, FakeSocket(1, state=SocketState.LISTEN).message()):
        assert remains_of(message, found, known=True) is Remains.NOTHING


def test_unused_and_disconnected():
    """A socket without port and peer was never used; without port and counters, yet with a peer's window, aborted."""
    assert is_unused(FakeSocket(1, b"\0" * 4, 0, b"\0" * 4, 0).message(final=True))
    assert not is_unused(FakeSocket(1, LOOPBACK, 5, b"\0" * 4, 0).message(final=True))
    aborted = FakeSocket(1, remote_port=0, unacked=65000).message(final=True)
    refused = FakeSocket(1, remote_port=0, unacked=3).message(final=True)
    assert was_disconnected(aborted, *info_position(aborted))
    assert not was_disconnected(refused, *info_position(refused))


# -- look-ups


def test_lookups_are_batched_and_bounded():
    """Never more answers outstanding than the buffer holds; all are asked in the end, and each is answered once."""
    output = Output()
    queue, answers = LookupSource(output, 0), []
    messages = [FakeSocket(n, local_port=n).message() for n in range(1, 400)]
    for message in messages:
        queue.ask(lookup_request(message, 6), lambda found, m=message: answers.append((m, found)))
    rounds = 0
    while queue.deadline() is not None:
        queue.flush()
        frames = [(send.data, frame) for send in output.commands for frame in iterate_messages(send.data)]
        output.commands.clear()
        assert 0 < len(frames) <= MAX_OUTSTANDING
        rounds += 1
        for _, frame in frames:
            queue.receive(FakeSocket(1).message(frame.sequence))
    assert rounds == 4
    assert [message for message, _ in answers] == messages


def test_lookups_that_are_not_answered_are_given_up():
    """After their patience each is told so, once, and counted: silence is no proof of absence."""
    output = Output()
    queue, answers = LookupSource(output, 0), []
    request = lookup_request(FakeSocket(1).message(), 6)
    output.now = 5.0
    queue.ask(request, answers.append)
    queue.ask(request, answers.append)
    queue.flush()
    assert queue.deadline() == 6.0
    queue.expire()
    assert answers == [NO_ANSWER, NO_ANSWER]
    assert queue.deadline() is None
    assert queue.unanswered == 1


# -- what waits


def test_what_waits_is_due_after_its_patience_the_oldest_first_and_those_that_are_too_many_at_once():
    waiting = Waiting(2.0, 3, slack=0.5)
    for now, key in enumerate("abca"):  # who waits anew waits from then on
        waiting.add(key, key.upper(), float(now))
    assert waiting.items() == [("b", "B"), ("c", "C"), ("a", "A")]
    assert (len(waiting), "b" in waiting, waiting.get("b"), waiting.get("d")) == (3, True, "B", None)
    assert waiting.deadline() == 3.5
    assert list(waiting.due(2.9)) == []
    assert list(waiting.due(3.0)) == [("b", "B")]
    waiting.behind = True
    assert waiting.deadline() == 4.5 + MOST_BEHIND
    assert list(waiting.due(3.9 + MOST_BEHIND)) == []
    assert waiting.pop("c") == "C"
    for key in "defg":
        waiting.add(key, key.upper(), 9.0)
    assert waiting.deadline() == 0.0
    assert list(waiting.due(0.0)) == [("a", "A"), ("d", "D")]
    assert [key for key, _ in waiting.take_all()] == ["e", "f", "g"]
    assert (waiting.pop("c"), waiting.deadline(), list(waiting.due(99.0))) == (None, None, [])
    for key in range(AT_ONCE + 1):
        waiting.add(key, key, 0.0)
    assert len(list(waiting.due(99.0))) == AT_ONCE


def test_a_memory_has_the_last_ones():
    memory = LastOnes(2)
    for key, value in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        memory.add(key, value)
    assert (len(memory), "b" in memory) == (2, False)
    assert (memory.pop("a"), memory.pop("a"), memory.pop("c")) == (3, None, 4)


# -- links


@pytest.mark.parametrize(
    ("link", "kind"),
    [
        (LinkMessage(1, 772, "lo"), InterfaceKind.LOOPBACK),
        (LinkMessage(2, 1, "eth0"), None),
        (LinkMessage(3, 65534, "wg0", "wireguard"), InterfaceKind.VPN),
        (LinkMessage(3, 65534, "tun0", "tun"), InterfaceKind.VPN),
        (LinkMessage(4, 1, "docker0", "bridge"), InterfaceKind.BRIDGE),
        (LinkMessage(4, 1, "veth1", "veth"), InterfaceKind.BRIDGE),
        (LinkMessage(5, 1, "bond0", "bond"), InterfaceKind.WIRED),
        (LinkMessage(6, 519, "wwan0"), InterfaceKind.CELLULAR),
        (LinkMessage(7, 776, "sit0"), InterfaceKind.VPN),
        (LinkMessage(8, 1, "dummy0", "dummy"), InterfaceKind.OTHER),
        (LinkMessage(9, 4242, "odd0"), InterfaceKind.OTHER),
    ],
)
def test_kinds_of_links(link, kind):
    """Loopback, tunnels, bridges and cellular are told by rtnetlink; Ethernet hardware by the host."""
    assert kind_of_link(link) is kind


def test_the_link_table_follows_changes():
    """Addresses come and go, names and kinds follow, unknown indices are still indices."""
    table = LinkTable()

    def apply(kind, message):
        data = message.encode(kind)
        (frame,) = iterate_messages(data)
        table.apply(kind, data, frame)

    address = bytes([192, 0, 2, 1])
    apply(RouteMessage.NEWLINK, LinkMessage(2, 1, "eth0"))
    apply(RouteMessage.NEWADDR, AddressMessage(2, 2, address))
    assert table.unclassified() == ("eth0",)
    table.classify(LinkKindsAnswer(0, (("eth0", "wired"),)))
    apply(RouteMessage.NEWLINK, LinkMessage(2, 1, "eth0"))
    assert table.interface_of(address).kind is InterfaceKind.WIRED
    assert table.interface_of(address) is table.interface_of(b"\0" * 4, 2)
    assert table.interface_of(b"\0" * 4) is None
    assert table.interface_of(b"\0" * 4, 99).index == 99
    apply(RouteMessage.NEWLINK, LinkMessage(1, 772, "lo"))
    apply(RouteMessage.NEWADDR, AddressMessage(2, 1, LOOPBACK, 8))
    assert table.index_of(b"\x7f\1\2\3") == 1
    apply(RouteMessage.DELADDR, AddressMessage(2, 2, address))
    assert table.interface_of(address) is None
    apply(RouteMessage.DELLINK, LinkMessage(2, 1, "eth0"))
    assert table.interface_of(b"\0" * 4, 2).name is None


# -- the host


linux = [pytest.mark.linux, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]


@pytest.fixture
def scanner():
    pytest.importorskip("nstat_async._io.procfs")
    from nstat_async._io.procfs import ProcessScanner

    return ProcessScanner


def found_by(scanner, inodes, **request) -> tuple[dict[int, int], int]:
    """The whole search, and how many answers it took."""
    answer = scanner.answer(OwnersRequest(frozenset(inodes), **request))
    owners, rounds = dict(answer.owners), 1
    while answer.below is not None:
        answer = scanner.answer(OwnersRequest(frozenset(inodes), (), answer.below))
        owners.update(answer.owners)
        rounds += 1
    return owners, rounds


class TestProcesses:
    pytestmark = linux

    def test_owners_are_found(self, scanner):
        """Own and a child's sockets, with names, paths and start times; unknown inodes are not."""
        with socket.socket() as own:
            inode = os.fstat(own.fileno()).st_ino
            owners, _ = found_by(scanner(), {inode, 1})
            assert owners == {inode: os.getpid()}
            answer = scanner(budget=60.0).answer(OwnersRequest(frozenset({inode}), (os.getpid(),)))
        (facts,) = answer.processes
        assert facts.path == os.readlink("/proc/self/exe")
        assert facts.name == os.path.basename(facts.path)
        assert facts.start_ticks > 0

    def test_a_search_is_cut_into_pieces(self, scanner):
        """Without time each answer goes one step on, and all steps together find everything."""
        with socket.socket() as own:
            inode = os.fstat(own.fileno()).st_ino
            owners, rounds = found_by(scanner(budget=0.0), {inode})
        assert owners == {inode: os.getpid()}
        assert rounds > 1

    def test_a_reused_pid_is_another_process(self, scanner, monkeypatch):
        """Facts are read anew with each answer: the same pid with another start is another process."""
        from nstat_async._io import processes

        with socket.socket() as own:
            inode = os.fstat(own.fileno()).st_ino
            one = scanner(budget=60.0)
            first = one.answer(OwnersRequest(frozenset({inode}), (os.getpid(),))).processes[0]
            stat = attrs.evolve(processes._stat(os.getpid()), start_ticks=12345)
            monkeypatch.setattr(processes, "_stat", lambda pid: stat)
            second = one.answer(OwnersRequest(frozenset({inode}), (os.getpid(),))).processes[0]
        assert (first.pid, second.start_ticks) == (second.pid, 12345)
        assert first.start_ticks != 12345

    def test_ended_processes_are_told(self, scanner):
        """A pid that is gone, or has another start, is gone; a living one is not."""
        from nstat_async._io.processes import start_ticks

        child = subprocess.Popen([sys.executable, "-c", ""])
        key = (child.pid, start_ticks(child.pid))
        child.wait()
        own = (os.getpid(), start_ticks(os.getpid()))
        answer = scanner().answer(OwnersRequest(frozenset(), verify=(key, own, (own[0], 1))))
        assert answer.gone == (key, (own[0], 1))

    def test_a_name_with_parentheses(self, tmp_path):
        """The start time is found behind whatever a process calls itself."""
        from nstat_async._io.processes import ProcessReader, start_ticks

        script = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'a) b ( c 1 2'); print(flush=True); sys.stdin.read()"
        command = [sys.executable, "-c", script]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            assert abs(start_ticks(child.pid) - start_ticks(os.getpid())) < 100 * 3600 * 24
            assert ProcessReader().facts(child.pid).name == os.path.basename(os.path.realpath(sys.executable))
            child.communicate()

    def test_devices_of_this_machine(self):
        """An unknown device is unknown, and a name with a slash is none."""
        from nstat_async._io.linux import device_kind

        assert device_kind("no-such-device") is None
        assert device_kind("../../etc") is None
        assert device_kind("lo") is InterfaceKind.WIRED or device_kind("lo") is None

    def test_namespace_paths(self):
        """A pid, a path and a name each have their file."""
        from nstat_async._io.linux import namespace_path

        assert namespace_path(42) == "/proc/42/ns/net"
        assert namespace_path("/some/where") == "/some/where"
        assert namespace_path("blue") == "/run/netns/blue"

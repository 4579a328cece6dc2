"""A dump read against what is known: rows of any length, and which of them are new, changed or as they were."""

from __future__ import annotations

import ast
import errno
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from sockdiag_fakes import FakeSocket, info_position

from nstat_async._contract import Send
from nstat_async.sockdiag import DiagAttribute, TcpInfo, _scan
from nstat_async.sockdiag._book import Book
from nstat_async.sockdiag._cgroups import CgroupSource
from nstat_async.sockdiag._dumps import DumpSource, sequence_of
from nstat_async.sockdiag._entry import Entry, Shared
from nstat_async.sockdiag._links import LinkTable
from nstat_async.sockdiag._messages import encode_done
from nstat_async.sockdiag._output import Output
from nstat_async.sockdiag._owners import OwnerSource
from nstat_async.sockdiag._processes import Processes
from nstat_async.sockdiag._rows import RowFormat, RowFormats, columns_of
from nstat_async.sockdiag._scan import Memory, are_alike, columns_in, scan
from nstat_async.sockdiag._setup import NetworkNamespace


class Scanned:
    """A dump source whose rows are kept as they come."""

    def __init__(self, *, vital: bool = True) -> None:
        self.output = Output()
        links = LinkTable()
        owners = OwnerSource(self.output, Processes(self.output, list), sees_all=True)
        kinds = {"every_update": False, "extras": False, "dumped": True}
        self.book = Book(
            self.output, 0, NetworkNamespace(), links, owners, CgroupSource(self.output, asks=True), **kinds
        )
        self.book.take_row = self._apply
        options = {"extras": False, "every": False, "vital": vital}
        self.dumps = DumpSource(self.output, self.book, RowFormats(), [6], **options)
        self.seen: list = []

    def _apply(self, entry, protocol, pieces, message, form):
        self.seen.append((entry is None, pieces[2], message))
        if entry is None:
            entry = self.book.new_entry(protocol, pieces)
        entry.set_last(pieces)
        entry.seen = self.output.poll

    def begin(self) -> int:
        """A dump begins; its sequence number."""
        self.output.poll += 1
        self.book.begin_poll()
        self.dumps.begin_poll(partial=False)
        self.seen.clear()
        return sequence_of(self.output.poll, 0, last=True)

    def dump(self, *sockets: FakeSocket, cut=lambda data: data) -> list:
        """One dump of these sockets; what was new or differed, without the messages' sequence numbers."""
        sequence = self.begin()
        self.dumps.receive(cut(b"".join(sock.message(sequence) for sock in sockets)))
        self.messages = [sock.message(sequence) for sock in sockets]
        self.dumps.receive(encode_done(sequence))
        return self.seen

    def unseen(self) -> list[int]:
        return [entry.cookie for entry in self.book.entries.values() if entry.last_seen != self.output.poll]


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


@pytest.mark.parametrize("stray", [b"\0", bytes(15), b"\3" + bytes(15)])
def test_what_is_broken_in_a_datagram_takes_nothing_from_those_that_were_read_with_it(stray):
    scan = Scanned()
    sequence = scan.begin()
    one, other, longer = FakeSocket(1), FakeSocket(2), FakeSocket(3, extra={DiagAttribute.MARK: b"\1\0\0\0"})
    rows = [sock.message(sequence) for sock in (one, other, longer)]
    scan.dumps.receive_many([rows[0] + stray, rows[1], rows[2], encode_done(sequence)])
    assert [cookie for _, cookie, _ in scan.seen] == [1, 2, 3]
    assert (scan.dumps.done, scan.dumps.complete, len(scan.output.events)) == (True, False, 1)


@pytest.mark.parametrize("others", [(), (3,), (3, 4)])
def test_what_the_last_dumps_had_is_let_go_when_they_no_longer_have_it(others):
    """Whether the one before had all, some or none of the rows of the one before that."""
    scan = Scanned()
    sockets = [FakeSocket(n) for n in (1, 2, 3)]
    for dumped in (sockets, sockets, [FakeSocket(n) for n in others], []):
        scan.dump(*dumped)
    entry = scan.book.entries.pop(1)
    assert sys.getrefcount(entry) <= 2, "its name here, and the call"


def test_what_is_to_be_dumped_after_all_waits_for_the_dump_under_way():
    """A netlink socket serves one at a time."""
    scan = Scanned()
    sequence = scan.begin()
    scan.dumps.dump_all()
    assert [type(command) for command in scan.output.commands] == [Send]
    scan.dumps.receive(encode_done(sequence))
    assert [type(command) for command in scan.output.commands] == [Send, Send]


def test_a_namespace_that_cannot_be_dumped_any_more_has_had_its_part_of_the_poll():
    scan = Scanned(vital=False)
    scan.begin()
    scan.dumps.failed(errno.EPERM)
    assert (scan.dumps.done, scan.dumps.complete, scan.dumps.lost) == (True, False, True)


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


def listed(number: int) -> Entry:
    """A socket that no dump had yet."""
    return Entry(lambda: None, 6, (number,), 0, 0)


class Remembered:
    """Dumps whose rows are compared with those of the dump before."""

    def __init__(self) -> None:
        self.memory, self.known, self.looks = Memory(), {}, 0
        self.socks = [FakeSocket(number) for number in range(400)]
        self.form = RowFormat.learn(self.socks[0].message(1))
        self.poll = 0
        self.nobody = set()
        """Rows that are of no socket: the remains of one."""

    def get(self, cookie):
        self.looks += 1
        return self.known.get(cookie)

    def dump(self, *parts):
        """Numbers of the sockets that are new or differ, and how many were looked at one by one."""
        self.poll, self.looks = self.poll + 1, 0
        applied = []

        def apply(_entry, _protocol, pieces, _message, _form):
            applied.append(pieces[2])
            if pieces[2] in self.nobody:
                return
            entry = self.known.setdefault(pieces[2], listed(pieces[2]))
            entry.set_last(pieces)
            entry.seen = self.poll

        self.memory.begin()
        datagrams = tuple(b"".join(self.socks[number].message(self.poll) for number in part) for part in parts)
        book = SimpleNamespace(get=self.get)
        end = scan(datagrams, 0, 0, book, self.poll, False, apply, 6, self.form, self.memory)
        assert end == (len(parts) - 1, len(datagrams[-1]), sum(map(len, parts)))
        assert {number for part in parts for number in part if number not in self.nobody} == {
            n for n in self.known if self.known[n].last_seen == self.poll
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
    dumps.known[50].forget_last()
    assert dumps.dump(*parts)[0] == [50], "something else told of it"


def test_a_datagram_that_is_as_it_was_costs_no_look_at_its_sockets_and_no_datagram_is_kept():
    """What is said of all its sockets is said once, and only the numbers that are compared stay."""
    dumps, every = Remembered(), list(range(400))
    parts = [every[at : at + 80] for at in range(0, 400, 80)]
    dumps.dump(*parts)
    dumps.dump(*parts)
    for entry in dumps.known.values():
        entry.seen = -1
    assert dumps.dump(*parts) == ([], 0)
    assert {entry.seen for entry in dumps.known.values()} == {-1}
    assert {id(dumps.known[number].shared) for number in parts[1]} == {id(dumps.known[80].shared)}
    kept = [column for run in dumps.memory._now for column in run.columns]
    size = sum({"Q": 8, "I": 4}[code] * len(places) for code, places in dumps.form.columns)
    assert sum(column.nbytes for column in kept) == 400 * size < 400 * dumps.form.stride / 2
    assert all(len(column.obj) == column.nbytes for column in kept), "of nothing larger"
    assert not any(run.data for run in dumps.memory._now)


@pytest.mark.parametrize("number", [0, 79, 80, 399])
def test_what_something_else_said_of_one_socket_is_noticed_in_a_datagram_that_is_as_it_was(number):
    dumps, every = Remembered(), list(range(400))
    parts = [every[at : at + 80] for at in range(0, 400, 80)]
    for _ in range(3):
        dumps.dump(*parts)
    dumps.known[number].set_last((0, *dumps.known[number].last[1:]))
    assert dumps.dump(*parts)[0] == [number]
    dumps.known[number].set_last(dumps.known[number].last)
    assert dumps.dump(*parts) == ([], 0), "it said nothing new"
    assert dumps.dump(*parts) == ([], 0)


def test_a_row_of_no_socket_between_others_stands_for_none_of_them():
    dumps = Remembered()
    dumps.nobody = {1}
    for applied in ([0, 1, 2], [1], [1]):
        assert dumps.dump([0, 1, 2])[0] == applied
    assert dumps.dump([1, 2])[0] == [1]
    assert dumps.known[0].last_seen == 3


@pytest.mark.parametrize("stray", [b"\5", bytes(3), bytes(8), bytes(40)])
def test_behind_rows_that_are_as_they_were_there_may_be_something_else(stray):
    dumps = Remembered()
    data = b"".join(dumps.socks[number].message(1) for number in range(20))
    dumps.dump([*range(20)])
    for _ in range(2):
        dumps.memory.begin()
        given = (data + stray,), 0, 0, dumps.known, 2, False, pytest.fail, 6, dumps.form, dumps.memory
        assert scan(*given) == (0, len(data), 20)


def test_a_socket_that_a_dump_has_twice_is_compared_with_what_was_said_last():
    """It moved in the kernel's table while that was walked."""
    dumps, one, other = Remembered(), list(range(80)), list(range(79, 160))
    dumps.dump(one, other)
    dumps.socks[79].info = {TcpInfo.BYTES_RECEIVED: 1}
    moved = b"".join(dumps.socks[number].message(9) for number in other)
    dumps.socks[79].info = {}
    still = b"".join(dumps.socks[number].message(9) for number in one)
    for poll in range(2, 5):
        applied = []

        def apply(entry, _protocol, pieces, _message, _form, applied=applied, poll=poll):
            applied.append((pieces[2], pieces[4][8]))
            entry.set_last(pieces)
            entry.seen = poll

        dumps.memory.begin()
        scan((still, moved), 0, 0, dumps.known, poll, False, apply, 6, dumps.form, dumps.memory)
        assert applied == [(79, 0), (79, 1)][poll == 2 :]
        assert dumps.known[79].last[4][8] == 1


def test_only_an_entry_itself_takes_over_pieces():
    """Who set them directly would leave a datagram of rows to be passed over as if nothing had been said of them."""
    setters = [
        (path.name, ast.unparse(node))
        for path in Path(_scan.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "last" and isinstance(node.ctx, ast.Store)
    ]
    assert [(name, node) for name, node in setters if node != "self.last"] == []
    assert [name for name, _ in setters].count("_entry.py") == 1


def test_a_socket_was_last_seen_in_the_poll_that_had_its_datagram_or_that_said_so_of_it_alone():
    entry = listed(1)
    entry.seen = 3
    assert entry.last_seen == 3
    shared = Shared(5)
    entry.share(shared)
    assert entry.last_seen == 5
    entry.seen = 6
    assert entry.last_seen == 6
    entry.share(shared)
    assert shared.holds
    entry.share(Shared(7))
    assert (shared.holds, entry.last_seen) == (False, 7), "another datagram has it"
    entry.set_last((2,))
    assert (entry.shared.holds, entry.last_seen, entry.last) == (False, 7, (2,))


@pytest.mark.parametrize("every", [False, True])
def test_a_row_that_is_as_it_was_is_marked_and_any_other_applied(every):
    """A row of another head ends the run: what is behind it is cut by its own form."""
    socks = [FakeSocket(number) for number in range(1, 9)]
    data = b"".join(sock.message(1) for sock in socks)
    form = RowFormat.learn(data[: len(data) // 8])
    known = {number: listed(number) for number in (2, 3)}
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
    assert known[2].last_seen == (0 if every else 7)
    applied.clear()
    for number, sock in enumerate(socks, 1):
        known[number] = listed(number)
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
            if not are_alike(memoryview(rows), columns, columns_in(memoryview(other), columns)):
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

"""What a pulse sees of a network namespace at a glance: a kernel of a dictionary, with counters and a clock of the test's."""

from __future__ import annotations

import errno
import math
import os
import resource
import socket
import struct
import types

import pytest
from sockdiag_fakes import FakeSocket

from nstat_async._io import glance as module
from nstat_async._io.counters import CONNECTIONS, DATAGRAMS
from nstat_async._io.glance import LONGEST_WAIT, MOST_FOLLOWED, MOST_UNREAD, ONE_BY_ONE, Glance
from nstat_async.sockdiag import DiagRequest, PulsePurpose, SocketState, iterate_messages
from nstat_async.sockdiag._messages import encode_done, encode_error

pytestmark = pytest.mark.linux

PAUSE = 0.02
TCP, UDP = (DiagRequest(2, protocol).encode() for protocol in (6, 17))
TWICE = len(FakeSocket(1).message()) - 4
"""An attribute of so many bytes makes a row twice as long."""
OPEN, CLOSED_THERE, SYN_RECV = SocketState.ESTABLISHED, SocketState.CLOSE_WAIT, SocketState.SYN_RECV


def refusal(number: int, request: bytes) -> bytes:
    """With the whole request, as the kernel sends it."""
    data = encode_error(number, request) + request[16:]
    return struct.pack("=I", len(data)) + data[4:]


class Kernel:
    """It stands in for the netlink socket, too."""

    def __init__(self, monkeypatch) -> None:
        self.sockets: dict[int, FakeSocket] = {}
        self.dumps: list[object] = []
        """Protocols of the dumps so far; a dump without crowds is said so."""
        self.asked = self.most_asked = 0
        """Look-ups so far, and at once."""
        self.refuses_filters = self.fails = self.cuts = self.trims = False
        self._answers: list[bytes] = []
        self.meanwhile: list[int] = []
        """Ports of connections that are opened while a dump goes on."""
        self.connections = self._moved = 0
        self.numbers, self.readings, self.open = None, 0, 2
        monkeypatch.setattr(module, "Counters", lambda: self)
        monkeypatch.setattr(module, "exchange", self.exchange)
        monkeypatch.setattr(module, "follow_compiled", None)
        self.opened: list[tuple[int, ...]] = []
        """What kinds of sockets."""
        numbers = {"AF_NETLINK": 16, "SOCK_RAW": 3, "SOCK_CLOEXEC": 64, "SOCK_NONBLOCK": 128}
        monkeypatch.setattr(module, "socket", types.SimpleNamespace(socket=self.socket, **numbers))

    def socket(self, *kind: int) -> Kernel:
        self.opened.append(kind)
        return self

    def add(self, cookie: int, **fields) -> FakeSocket:
        sock = self.sockets[cookie] = FakeSocket(cookie, **{"local_port": cookie, "inode": 100 + cookie, **fields})
        return sock

    # -- counters

    def read(self) -> int:
        return self.connections

    def take_moved(self) -> int:
        moved, self._moved = self._moved, 0
        return moved

    def moved(self, look: Glance | None, now: float, connections: int = 0, datagrams: int = 0) -> None:
        """Something is opened; `None`: it is noticed later."""
        self.connections += connections
        self._moved |= CONNECTIONS * bool(connections) | DATAGRAMS * bool(datagrams)
        if look:
            look.notice(now)

    # -- a netlink socket

    def fileno(self) -> int:
        return 7

    def close(self) -> None:
        self.open -= 1

    def send(self, data: bytes) -> None:
        assert not self._answers, "all answers are read"
        frames = list(iterate_messages(data))
        for frame in frames:
            self._answer(DiagRequest.decode(data, frame), frame, data)
        self.most_asked = max(self.most_asked, len(frames))

    def _answer(self, request: DiagRequest, frame, data: bytes) -> None:
        found = [s for s in self.sockets.values() if s.protocol == request.protocol]
        if not request.dump:
            self.asked += 1
            wanted = request.socket_id[:40]
            if request.protocol == 17:  # ``udp_dump_one`` looks for the packet that would arrive
                wanted = wanted[2:4] + wanted[:2] + wanted[20:36] + wanted[4:20] + wanted[36:]
            found = [s.message() for s in found if s.id[:40] == wanted]
            self._answers.append(found[0] if found else refusal(errno.ENOENT, data))
            return
        filtered = len(data) > 72
        self.dumps.append((request.protocol, "filtered") if filtered else request.protocol)
        for port in self.meanwhile:
            found.append(self.add(port))
            self.moved(None, 0.0, 1)
        self.meanwhile = []
        if self.fails or (filtered and self.refuses_filters):
            self._answers.append(refusal(errno.EINVAL, data))
            return
        if filtered:
            found = [s for s in found if s.remote_port != 443]
        for at in range(0, len(found), 50):
            self._answers.append(b"".join(s.message() for s in found[at : at + 50]))
        if self.trims:  # the padding of the last message
            first, last = self._answers[-1][: -len(found[-1].message())], found[-1].message()
            self._answers[-1] = first + struct.pack("=I", len(last) - 1) + last[4:-1]
        if self.cuts:
            self._answers[-1] = self._answers[-1][:-30]
        self._answers.append(encode_done(0))

    def recv(self, _size: int) -> bytes:
        return self._answers.pop(0)

    def exchange(self, _file: int, requests: bytes, count: int) -> list[bytes]:
        self.send(requests)
        return [self.recv(0) for _ in range(count)]


@pytest.fixture
def kernel(monkeypatch):
    return Kernel(monkeypatch)


def glance(kernel: Kernel, *, udp: bool = True) -> Glance:
    made = Glance(PulsePurpose(0, PAUSE, (TCP,), (UDP,) if udp else ()), lambda _report: None)
    made.begin()
    kernel.dumps.clear()
    return made


def cookies(found) -> list[int]:
    return [module.cookie_of(message) for _, message in found]


def test_a_look_is_due_when_something_was_counted_and_finds_what_is_new(kernel):
    kernel.add(1)
    kernel.add(2, protocol=17)
    look = glance(kernel)
    assert (look.unread, look.crowds, look.look_at, look.next_look()) == (0, (), 0.0, math.inf)
    assert look.notice(1.0) is False
    kernel.add(3, remote_port=81)
    kernel.add(4, protocol=17)
    kernel.moved(look, 5.0, datagrams=1)
    assert look.next_look() == 5.0
    assert look.look(4.9) == []
    assert [(protocol, module.cookie_of(row)) for protocol, row in look.look(5.0)] == [(17, 4)]
    assert (kernel.dumps, look.next_look()) == ([17], math.inf)
    kernel.moved(look, 6.0, connections=1)
    assert [(protocol, module.cookie_of(row)) for protocol, row in look.look(6.0)] == [(6, 3)]
    assert (kernel.dumps, look.next_look()) == ([17, 6], math.inf)
    kernel.moved(look, 7.0, connections=1, datagrams=1)
    assert look.look(7.0) == []
    assert kernel.dumps == [17, 6, 6, 17]
    look.close()
    assert kernel.open == 0


def test_it_begins_with_what_is_there_and_has_a_budget_of_its_own(kernel):
    """Its socket waits for nothing, and is not inherited."""
    report = [].append
    look = Glance(PulsePurpose(0, PAUSE, (TCP,), (UDP,)), report)
    assert (look.begun, look.report, look.budget.share) == (False, report, module.SHARE)
    look.begin()
    assert look.begun is True
    assert kernel.opened == [(16, 3 | 64 | 128, 4)]


def test_before_it_began_no_look_is_due(kernel):
    """All sockets would be new."""
    look = Glance(PulsePurpose(0, PAUSE, (TCP,), ()), lambda _report: None)
    kernel.moved(look, 5.0, connections=1)
    assert look.next_look() == math.inf
    look.begin()
    kernel.moved(look, 6.0, connections=1)
    assert look.next_look() == 6.0


def test_a_look_waits_for_its_rest_and_for_who_reads_its_reports(kernel):
    look = glance(kernel)
    kernel.moved(look, 5.0, connections=1)
    look.look_at = 5.5
    assert look.next_look() == 5.5
    look.unread = MOST_UNREAD - 1
    assert look.next_look() == 5.5
    look.unread = MOST_UNREAD
    assert look.next_look() == math.inf


@pytest.mark.parametrize("state", [OPEN, CLOSED_THERE])
def test_a_connection_that_is_not_accepted_is_asked_for_ever_more_rarely_and_without_a_dump(kernel, state):
    look = glance(kernel)
    sock = kernel.add(1, inode=0, state=state)
    kernel.moved(look, 5.0, connections=1)
    waits, now = [], 5.0
    for _ in range(9):
        assert look.look(now) == []
        waits.append(look.next_look() - now)
        now = look.next_look()
    assert waits == pytest.approx([min(PAUSE * 2**n, LONGEST_WAIT) for n in range(9)])
    assert (kernel.dumps, kernel.asked) == ([6], 8)
    sock.inode = 7
    assert cookies(look.look(now)) == [1]
    assert look.next_look() == math.inf
    kernel.moved(look, now, connections=1)
    assert look.look(now) == [], "it is new once"
    kernel.add(2, inode=0)
    kernel.moved(look, now, connections=1)
    look.look(now)
    assert look.next_look() == pytest.approx(now + PAUSE), "another one begins anew"


def test_what_is_left_of_a_connection_is_nobodys(kernel):
    look = glance(kernel)
    kernel.add(1, inode=0, state=SYN_RECV)
    kernel.add(2, inode=0, protocol=17)
    kernel.moved(look, 5.0, connections=1, datagrams=1)
    assert cookies(look.look(5.0)) == [2], "datagrams wait for nobody"
    assert look.next_look() == math.inf


def test_a_connection_that_is_gone_before_it_is_accepted_is_nobodys(kernel):
    look = glance(kernel)
    kernel.add(1, inode=0)
    kernel.moved(look, 5.0, connections=1)
    look.look(5.0)
    del kernel.sockets[1]
    assert look.look(look.next_look()) == []
    assert look.next_look() == math.inf


def test_what_there_was_no_time_for_is_new_once_more(kernel):
    look = glance(kernel)
    kernel.add(1)
    kernel.add(2)
    kernel.add(3, protocol=17)
    kernel.moved(look, 5.0, connections=2, datagrams=1)
    new = look.look(5.0)
    assert sorted(cookies(new)) == [1, 2, 3]
    look.look_again(new, {101, 103}, 6.0)
    assert look.next_look() == pytest.approx(6.0 + 2 * PAUSE)
    kernel.dumps.clear()
    assert sorted(cookies(look.look(6.1))) == [1, 3]
    assert kernel.dumps == [17], "the connection was asked for by itself"
    kernel.moved(look, 7.0, connections=40)
    assert look.look(7.0) == []


def test_a_few_new_connections_are_asked_for_and_many_are_dumped(kernel):
    """Those that follow each other in their ports are found by these."""
    look = glance(kernel, udp=False)
    for port in (1000, 1002, 1004):
        kernel.add(port)
    kernel.moved(look, 5.0, connections=3)
    assert len(look.look(5.0)) == 3
    kernel.dumps.clear()
    for port in range(1006, 1006 + 2 * ONE_BY_ONE, 2):
        kernel.add(port)
    kernel.moved(look, 6.0, connections=ONE_BY_ONE)
    assert sorted(cookies(look.look(6.0))) == list(range(1006, 1006 + 2 * ONE_BY_ONE, 2))
    assert kernel.dumps == []
    for port in range(2000, 2001 + ONE_BY_ONE):
        kernel.add(port, inode=0)
    kernel.moved(look, 7.0, connections=ONE_BY_ONE + 1)
    assert look.look(7.0) == []
    assert kernel.dumps == [6]


def test_many_that_wait_to_be_accepted_are_asked_for_in_turn(kernel):
    """So many at once, and each of them once before any is asked for again: without a dump."""
    look = glance(kernel, udp=False)
    waiting = range(2000, 2000 + 2 * ONE_BY_ONE)
    for port in waiting:
        kernel.add(port, inode=0)
    kernel.moved(look, 7.0, connections=len(waiting))
    assert look.look(7.0) == []
    kernel.dumps.clear()
    for port in waiting:
        kernel.sockets[port].inode = port
    found = cookies(look.look(7.0 + PAUSE))
    assert (len(found), kernel.asked, kernel.most_asked) == (ONE_BY_ONE, ONE_BY_ONE, ONE_BY_ONE)
    found += cookies(look.look(7.0 + 3 * PAUSE))
    assert sorted(found) == list(waiting)
    assert (kernel.dumps, look.next_look()) == ([], math.inf)
    for port in waiting:
        kernel.add(1000 + port, inode=0)
    kernel.moved(look, 8.0, connections=len(waiting))
    look.look(8.0)
    kernel.sockets[1000 + waiting[-1]].inode = 1
    look.look(8.0 + PAUSE)
    assert cookies(look.look(8.0 + 3 * PAUSE)) == [1000 + waiting[-1]], (
        "those that still wait are asked for behind the others"
    )


def test_what_a_dump_does_not_have_waits_no_longer(kernel):
    look = glance(kernel, udp=False)
    kernel.add(1, inode=0)
    kernel.moved(look, 5.0, connections=1)
    look.look(5.0)
    del kernel.sockets[1]
    kernel.moved(look, 6.0, connections=MOST_FOLLOWED + 1)
    look.look(6.0)
    assert (kernel.asked, look.next_look()) == (0, math.inf)


def test_of_thousands_of_new_sockets_a_dump_gives_the_newest(kernel, monkeypatch):
    """The next poll finds the others: to take in all of them would leave nothing to spend on what comes then."""
    monkeypatch.setattr(module, "MOST_TAKEN", 3)
    look = glance(kernel)
    for number, inode in enumerate((50, 90, 10, 70, 80), 1):
        kernel.add(number, inode=inode)
        kernel.add(10 + number, inode=inode, protocol=17)
    kernel.moved(look, 5.0, connections=MOST_FOLLOWED + 1, datagrams=5)
    assert cookies(look.look(5.0)) == [2, 5, 4, 12, 15, 14]
    kernel.moved(look, 6.0, connections=MOST_FOLLOWED + 1, datagrams=1)
    assert look.look(6.0) == [], "the others are known, too"


def test_so_many_are_asked_for_by_their_ports(kernel, monkeypatch):
    monkeypatch.setattr(module, "MOST_FOLLOWED", 4)
    look = glance(kernel, udp=False)
    for port in (1000, 1002):
        kernel.add(port)
    kernel.moved(look, 5.0, connections=2)
    look.look(5.0)
    kernel.dumps.clear()
    for now, begin, number, dumps in ((6.0, 1004, 4, []), (7.0, 1012, 5, [6])):
        for port in range(begin, begin + 2 * number, 2):
            kernel.add(port)
        kernel.moved(look, now, connections=number)
        assert len(look.look(now)) == number
        assert kernel.dumps == dumps


def test_what_dumps_of_connections_take_is_measured(kernel, monkeypatch):
    look, cpu, send = glance(kernel), [100.0], kernel.send

    def send_for_a_second(data):
        cpu[0] += 1.0
        send(data)

    monkeypatch.setattr(module, "time", types.SimpleNamespace(thread_time=lambda: cpu[0]))
    monkeypatch.setattr(kernel, "send", send_for_a_second)
    kernel.moved(look, 5.0, connections=1, datagrams=1)
    look.look(5.0)
    assert look.dumped == 1.0
    kernel.moved(look, 6.0, datagrams=1)
    look.look(6.0)
    assert look.dumped == 0.0


def test_many_are_asked_for_in_parts(kernel):
    look = glance(kernel)
    rows = [(6, kernel.add(number).message()) for number in range(1, 2 * ONE_BY_ONE + 2)]
    del kernel.sockets[5]
    assert look.still_held(rows, {101, 105, 150}) == {101, 150}
    assert kernel.asked == 3
    assert look.still_held(rows, {*range(101, 200)}) == {100 + n for n in kernel.sockets}
    assert kernel.most_asked == ONE_BY_ONE


def test_datagram_sockets_are_asked_for_too(kernel):
    """Their rows have no attributes."""
    look = glance(kernel)
    rows = [(17, kernel.add(number, protocol=17).message()) for number in (1, 2)]
    assert {len(row) for _, row in rows} == {88}
    del kernel.sockets[2]
    assert look.still_held(rows, {101, 102}) == {101}


@pytest.mark.parametrize("lengths", [(0, 0, 0), (5, 0, 0), (0, 9, 0), (0, 0, 9), (1, 9, 17), (0, TWICE, 0)])
@pytest.mark.parametrize("trims", [False, True])
def test_rows_of_all_lengths_are_read_the_last_one_without_its_padding_too(kernel, lengths, trims):
    look = glance(kernel)
    kernel.trims = trims
    for number, length in enumerate(lengths, 1):
        kernel.add(number, extra={99: bytes(length)} if length else {})
    kernel.moved(look, 5.0, connections=40)
    found = look.look(5.0)
    assert cookies(found) == [1, 2, 3]
    whole = [sock.message() for sock in kernel.sockets.values()]
    assert [row[6:] for _, row in found[:2]] == [row[6:] for row in whole[:2]]
    assert found[2][1][6:] == whole[2][6 : -1 if trims else None]


def test_a_row_that_is_cut_off_is_none(kernel):
    look = glance(kernel)
    kernel.add(1)
    kernel.add(2)
    kernel.cuts = True
    kernel.moved(look, 5.0, connections=40)
    assert cookies(look.look(5.0)) == [1]


def test_connections_that_are_counted_and_not_there_have_ever_fewer_dumps(kernel):
    look = glance(kernel, udp=False)
    for port in (1000, 1002):
        kernel.add(port)
    kernel.moved(look, 5.0, connections=2)
    look.look(5.0)
    kernel.dumps.clear()
    kernel.add(1004)
    kernel.moved(look, 6.0, connections=2)
    assert cookies(look.look(6.0)) == [1004]
    assert (kernel.dumps, look.next_look()) == ([6], math.inf), "one of the two was over"
    kernel.add(1006)
    kernel.moved(look, 6.01, connections=2)
    assert cookies(look.look(6.01)) == [1006]
    assert kernel.dumps == [6], "the last dump had none of them"
    assert look.next_look() == pytest.approx(6.0 + 2 * PAUSE)
    other = kernel.add(9, remote_port=81)
    assert cookies(look.look(6.0 + 2 * PAUSE)) == [9]
    assert (kernel.dumps, look.next_look()) == ([6, 6], math.inf)
    kernel.moved(look, 6.05, connections=2)
    del kernel.sockets[other.cookie]
    assert look.look(6.05) == []
    assert kernel.dumps == [6, 6, 6], "none was found by its port: another server, perhaps"


def test_without_a_grant_nothing_is_dumped_and_later_it_is_tried_again(kernel):
    """What its port leads to is found all the same."""
    look = glance(kernel, udp=False)
    for port in (1000, 1002):
        kernel.add(port)
    kernel.moved(look, 5.0, connections=2)
    assert look.look(5.0, whole=False) == []
    assert (kernel.dumps, look.dumped, look.next_look()) == ([], 0.0, pytest.approx(5.0 + 2 * PAUSE))
    assert len(look.look(5.0 + 2 * PAUSE)) == 2
    assert look.dumped > 0
    kernel.add(1004)
    kernel.add(9, remote_port=81)
    kernel.moved(look, 6.0, connections=2)
    assert cookies(look.look(6.0, whole=False)) == [1004]
    assert (look.dumped, look.next_look()) == (0.0, pytest.approx(6.0 + 2 * PAUSE))
    assert cookies(look.look(6.0 + 2 * PAUSE)) == [9]


def test_what_a_dump_saw_before_it_was_counted_is_not_missing_afterwards(kernel):
    """Connections that were opened while it went on may be in it, or not: those that are not follow the others' ports."""
    look = glance(kernel, udp=False)
    kernel.meanwhile = [1004, 1006]
    for port in (1000, 1002):
        kernel.add(port)
    kernel.moved(look, 5.0, connections=2)
    assert len(look.look(5.0)) == 4
    kernel.dumps.clear()
    kernel.add(1008)
    kernel.moved(look, 6.0, connections=1)
    assert cookies(look.look(6.0)) == [1008]
    assert kernel.dumps == [], "all three were seen"
    kernel.add(1010)
    kernel.moved(look, 7.0, connections=2)
    assert cookies(look.look(7.0)) == [1010]
    assert kernel.dumps == [6], "that counts once"


def test_what_was_found_before_it_was_counted_is_not_missing_afterwards(kernel):
    look = glance(kernel, udp=False)
    for port in (1000, 1002):
        kernel.add(port)
    kernel.moved(look, 5.0, connections=2)
    look.look(5.0)
    kernel.dumps.clear()
    kernel.add(1004)
    kernel.add(1006)
    kernel.moved(look, 6.0, connections=1)
    assert len(look.look(6.0)) == 2
    kernel.add(1008)
    kernel.moved(look, 7.0, connections=2)
    assert cookies(look.look(7.0)) == [1008]
    assert kernel.dumps == []


def test_a_look_that_is_expected_is_made_without_a_new_count(kernel):
    look = glance(kernel)
    look.expect(5.0)
    look.expect(6.0)
    assert look.next_look() == 5.0
    assert look.look(5.0) == []
    assert (kernel.dumps, kernel.asked, look.next_look()) == ([], 0, math.inf)


def test_a_look_may_leave_out_crowds_where_the_kernel_can(kernel, monkeypatch):
    monkeypatch.setattr(module, "CROWD", 30)
    monkeypatch.setattr(module, "crowded_ports", lambda ports: (443,) if len(ports) >= 30 else ())
    look, many = glance(kernel, udp=False), MOST_FOLLOWED + 1
    for number in range(1, 31):
        kernel.add(number, remote_port=443)
    kernel.moved(look, 5.0, connections=many)
    assert len(look.look(5.0)) == 30
    assert look.crowds == (443,)
    kernel.add(50, remote_port=443)
    kernel.add(51)
    kernel.moved(look, 6.0, connections=many)
    assert cookies(look.look(6.0, whole=False)) == [51]
    assert kernel.dumps == [6, (6, "filtered")]
    kernel.moved(look, 7.0, connections=many)
    assert cookies(look.look(7.0)) == [50], "what was seen before is not new"
    kernel.refuses_filters = True
    kernel.add(52, remote_port=443)
    kernel.moved(look, 8.0, connections=many)
    assert cookies(look.look(8.0, whole=False)) == [52]
    assert (kernel.dumps[-2:], look.crowds) == ([(6, "filtered"), 6], ())
    kernel.moved(look, 9.0, connections=many)
    look.look(9.0)
    assert look.crowds == (), "it cannot, and is not asked again"


def test_what_is_opened_beside_a_crowd_is_found_after_many_of_the_crowd_were_left_out(kernel, monkeypatch):
    """Their ports follow the last one that is known: they would be taken for what was counted last."""
    monkeypatch.setattr(module, "CROWD", 30)
    monkeypatch.setattr(module, "crowded_ports", lambda ports: (443,) if len(ports) >= 30 else ())
    look, many = glance(kernel, udp=False), MOST_FOLLOWED + 1
    for port in range(1000, 1060, 2):
        kernel.add(port, remote_port=443)
    kernel.moved(look, 5.0, connections=many)
    assert len(look.look(5.0)) == 30
    for port in range(1060, 1060 + 2 * many, 2):
        kernel.add(port, remote_port=443)
    kernel.moved(look, 6.0, connections=many)
    assert look.look(6.0, whole=False) == []
    for port in (9000, 9002, 9004):
        kernel.add(port, remote_port=81)
    kernel.moved(look, 7.0, connections=3)
    assert cookies(look.look(7.0, whole=False)) == [9000, 9002, 9004]


def test_what_a_dump_of_all_connections_takes_is_remembered(kernel, monkeypatch):
    """And not what one takes that leaves out a crowd."""
    monkeypatch.setattr(module, "CROWD", 1)
    monkeypatch.setattr(module, "crowded_ports", lambda ports: (443,))
    cpu, send = [100.0, 2.0], kernel.send

    def work(data):
        cpu[0] += cpu[1]
        send(data)

    monkeypatch.setattr(module, "time", types.SimpleNamespace(thread_time=lambda: cpu[0], monotonic=lambda: 0.0))
    monkeypatch.setattr(kernel, "send", work)
    kernel.add(1, remote_port=443)
    look = glance(kernel, udp=False)
    assert look.whole_takes == 2.0
    cpu[1] = 1.0
    kernel.moved(look, 5.0, connections=MOST_FOLLOWED + 1)
    look.look(5.0, whole=False)
    assert (look.dumped, look.whole_takes) == (1.0, 2.0)


def test_of_fewer_sockets_than_a_crowd_none_is_looked_for(kernel):
    look = glance(kernel)
    for number in range(1, 60):
        kernel.add(number, remote_port=443)
    kernel.moved(look, 5.0, connections=59)
    look.look(5.0)
    assert look.crowds == ()


def test_a_dump_that_is_refused_is_an_error(kernel):
    look = glance(kernel)
    kernel.fails = True
    kernel.moved(look, 5.0, datagrams=1)
    with pytest.raises(OSError, match="Invalid argument") as caught:
        look.look(5.0)
    assert caught.value.errno == errno.EINVAL
    made = Glance(PulsePurpose(0, PAUSE, (TCP,), (UDP,)), lambda _report: None)
    with pytest.raises(OSError, match="Invalid argument"):
        made.begin()
    assert made.begun is False


@pytest.mark.parametrize(
    "exchange", list(dict.fromkeys([module.exchange, module._exchange])), ids=lambda code: type(code).__name__
)
def test_requests_and_answers_are_exchanged_in_their_order_and_a_failure_is_an_error(exchange):
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        here.setblocking(False)
        for answer in (b"one", bytes(1000), b"three"):
            there.send(answer)
        assert exchange(here.fileno(), b"requests", 2) == [b"one", bytes(1000)]
        assert there.recv(100) == b"requests"
        assert exchange(here.fileno(), b"none", 0) == []
        with pytest.raises(BlockingIOError):
            exchange(here.fileno(), b"more", 2)
        gone = here.detach()
        os.close(gone)
        with pytest.raises(OSError) as caught:
            exchange(gone, b"x", 1)
        assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize(("limit", "fits"), [(23, True), (22, False), (-1, True)])
def test_others_can_still_open_descriptors(kernel, monkeypatch, limit, fits):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    if fits:
        glance(kernel).close()
    else:
        with pytest.raises(OSError, match="Too many open files"):
            glance(kernel)
    assert kernel.open == 0

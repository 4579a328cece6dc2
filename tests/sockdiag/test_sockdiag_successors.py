"""Connections that are found by the ports that come next: among those of a kernel that is the test's."""

from __future__ import annotations

import socket
import sys

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("asks a Linux kernel", allow_module_level=True)

from nstat_async._io.successors import MOST_AT_ONCE, MOST_REMEMBERED, STEPS, Successors, cookie_of

ESTABLISHED, TIME_WAIT, LISTEN = 1, 6, 10
HERE, THERE = b"\x0a\0\0\x01", b"\x0a\0\0\x02"
SERVER = 443


class Kernel:
    """Its connections, by both ends."""

    def __init__(self):
        self.sockets = {}
        self.asked = 0
        self.successors = Successors(self.ask)

    def connect(self, port, *, there=HERE, server=SERVER, state=ESTABLISHED):
        """A connection from here; both ends, if the other one is here, too. Of one that is over there is one end."""
        client, accepted = (HERE, port, there, server), (there, server, HERE, port)
        self.sockets[client] = state
        if there == HERE and state != TIME_WAIT:
            self.sockets[accepted] = state
        return [self.message(end) for end in (client, accepted) if end in self.sockets]

    def message(self, end):
        local, port, remote, remote_port = end
        ports = port.to_bytes(2, "big") + remote_port.to_bytes(2, "big")
        state, cookie = self.sockets[end], abs(hash(end)) % (1 << 64)
        head = bytes(16) + bytes([socket.AF_INET, state, 0, 0])
        return (
            head
            + ports
            + local.ljust(16, b"\0")
            + remote.ljust(16, b"\0")
            + bytes(4)
            + cookie.to_bytes(8, sys.byteorder)
        )

    def ask(self, requests):
        self.asked += len(requests)
        ends = [
            (each[28:32], int.from_bytes(each[24:26], "big"), each[44:48], int.from_bytes(each[26:28], "big"))
            for each in requests
        ]
        return [self.message(end) for end in ends if end in self.sockets]

    def find(self, number, known=()):
        return self.successors.find(number, known)


@pytest.fixture
def kernel():
    """It has no connections yet."""
    return Kernel()


def learn(kernel, *ports, **where):
    for port in ports:
        for message in kernel.connect(port, **where):
            kernel.successors.learn(message)


def test_the_next_connection_to_a_server_is_found_wherever_the_kernel_put_it(kernel):
    learn(kernel, 2000, 2002, there=THERE)
    port = 2002
    for step in STEPS:
        port += step
        (new,) = kernel.connect(port, there=THERE)
        assert kernel.find(1) == ([new], 1)
    assert kernel.find(1) == ([], 0)


def test_both_ends_are_found_where_the_ones_between_are_over(kernel):
    """Of a connection that is over the end that closed first is left: it leads on to the next one, and counts as two."""
    learn(kernel, 2000, 2002)
    over = [message for port in range(2010, 2100, 10) for message in kernel.connect(port, state=TIME_WAIT)]
    new = kernel.connect(2102)
    found, counted = kernel.find(2 * len(over) + 2)
    assert set(found) == {*over, *new}
    assert counted == 2 * len(over) + 2
    learn(kernel, 2104)
    asked = kernel.asked
    assert set(kernel.find(4)[0]) == set()
    more = [*kernel.connect(2110), *kernel.connect(2120)]
    assert set(kernel.find(4)[0]) == set(more)
    assert kernel.asked - asked <= 40


@pytest.mark.parametrize("end", ["client", "server"])
def test_the_ends_that_are_left_of_what_is_over_are_gone_along(kernel, end):
    """Those of whoever closes first: among the others there are gaps, and what lies in one would be missing."""

    def connect_and_end(port):
        kernel.connect(port)
        client, accepted = (HERE, port, HERE, SERVER), (HERE, SERVER, HERE, port)
        del kernel.sockets[accepted if end == "client" else client]
        kernel.sockets[client if end == "client" else accepted] = TIME_WAIT

    learn(kernel, 2000, 2002)
    connect_and_end(2006)
    assert kernel.find(2)[1] == 2
    for port in range(2010, 2100, 12):
        kernel.connect(port)
        connect_and_end(port + 2)
        kernel.connect(port + 4)
        assert kernel.find(6)[1] == 6


def test_a_connection_with_another_machine_counts_once_in_whatever_state(kernel):
    learn(kernel, 2000, 2002, there=THERE)
    kernel.connect(2004, there=THERE, state=TIME_WAIT)
    assert kernel.find(1)[1] == 1


def test_what_is_known_is_not_found_and_not_counted(kernel):
    learn(kernel, 2000, 2002)
    new = kernel.connect(2004)
    assert kernel.find(2, {cookie_of(message) for message in new}) == ([], 0)


def test_where_many_are_missing_more_ports_are_asked_for_at_once(kernel):
    learn(kernel, 2000, 2002, there=THERE)
    new = [message for port in range(2010, 2180, 10) for message in kernel.connect(port, there=THERE)]
    questions, ask = [], kernel.ask
    kernel.successors._ask = lambda requests: questions.append(len(requests)) or ask(requests)
    assert kernel.find(len(new)) == (new, len(new))
    assert max(questions) == MOST_AT_ONCE
    assert len(questions) <= 6
    (last,) = kernel.connect(2172, there=THERE)
    questions.clear()
    assert kernel.find(1) == ([last], 1)
    assert questions == [len(STEPS)]


@pytest.mark.timeout(20)
def test_who_answers_with_ports_that_were_passed_is_no_reason_to_go_on(kernel):
    """A listener that was opened anew has an open end, as the port that is looked for: it would answer for ever."""
    for port in (2000, 0):
        kernel.sockets[HERE, SERVER, bytes(4), port] = LISTEN
        kernel.successors.learn(kernel.message((HERE, SERVER, bytes(4), port)))
        kernel.successors.learn(kernel.message((HERE, SERVER, bytes(4), port)))
    kernel.successors._ask = lambda requests: [kernel.message((HERE, SERVER, bytes(4), 0))] * len(requests)
    assert kernel.find(3) == ([], 0)


def test_a_listener_is_no_connection(kernel):
    """It answers for connections that are not there."""
    learn(kernel, 2000, 2002)
    (client, _) = kernel.connect(2004)
    del kernel.sockets[HERE, SERVER, HERE, 2004]
    listener = kernel.ask

    def ask(requests):
        kernel.sockets[bytes(4), SERVER, bytes(4), 0] = LISTEN
        answers = listener(requests)
        return [*answers, *[kernel.message((bytes(4), SERVER, bytes(4), 0))] * (len(requests) - len(answers))]

    kernel.successors._ask = ask
    assert kernel.find(2) == ([client], 1)


def test_a_server_may_be_forgotten_while_many_others_are_found(kernel):
    """Those of one server may be so many that another one is not remembered any more."""
    learn(kernel, 2000, 2002, there=THERE, server=80)
    learn(kernel, 2000, 2002, there=THERE)
    for number in range(MOST_REMEMBERED + 1):
        kernel.connect(2004 + 2 * number, there=THERE)
    assert kernel.find(1000)[1] == MOST_REMEMBERED + 1

"""Connections that are found by the ports that come next: among those of a kernel that is the test's."""

from __future__ import annotations

import contextlib
import socket
import sys

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("asks a Linux kernel", allow_module_level=True)

from nstat_async._io import glance
from nstat_async._io.successors import MOST_REMEMBERED, MOST_TRIED, NEAR, STEPS, Successors, cookie_of, follow
from nstat_async.sockdiag import DiagRequest

ESTABLISHED, TIME_WAIT, LISTEN = 1, 6, 10
HERE, THERE = b"\x0a\0\0\x01", b"\x0a\0\0\x02"
SERVER = 443


class Kernel:
    """Its connections, by both ends."""

    def __init__(self):
        self.sockets = {}
        self.ages = {}
        """How many seconds ago those in TIME_WAIT got there; 0 for others."""
        self.asked = 0
        self.successors = Successors(self.ask, self.follow)

    def connect(self, port, *, there=HERE, server=SERVER, state=ESTABLISHED, age=0.0):
        """A connection from here; both ends, if the other one is here, too. Of one that is over there is one end."""
        client, accepted = (HERE, port, there, server), (there, server, HERE, port)
        self.sockets[client], self.ages[client] = state, age
        if there == HERE and state != TIME_WAIT:
            self.sockets[accepted] = state
        return [self.message(end) for end in (client, accepted) if end in self.sockets]

    def message(self, end):
        local, port, remote, remote_port = end
        ports = port.to_bytes(2, "big") + remote_port.to_bytes(2, "big")
        state, cookie = self.sockets[end], self.cookie(end)
        head = bytes(16) + bytes([socket.AF_INET, state, 0, 0])
        return (
            head
            + ports
            + local.ljust(16, b"\0")
            + remote.ljust(16, b"\0")
            + bytes(4)
            + cookie.to_bytes(8, sys.byteorder)
            + int(1000 * (60 - self.ages.get(end, 0.0))).to_bytes(4, sys.byteorder)
        )

    @staticmethod
    def cookie(end):
        return abs(hash(end)) % (1 << 64)

    def ask(self, requests):
        self.asked += len(requests)
        answers = []
        for each in requests:
            assert each[17] == socket.IPPROTO_TCP
            ports = int.from_bytes(each[24:26], "big"), int.from_bytes(each[26:28], "big")
            end = each[28:32], ports[0], each[44:48], ports[1]
            cookies = (self.cookie(end).to_bytes(8, sys.byteorder), b"\xff" * 8)
            if end in self.sockets and each[64:72] in cookies:  # ``sock_diag_check_cookie``
                answers.append(self.message(end))
        return answers

    def follow(self, *what):
        return follow(self.successors._ask, *what)

    def find(self, number, known=(), since=1.0):
        return self.successors.find(number, known, since)


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


def test_what_was_over_before_the_last_look_is_none_of_what_was_counted_since_then(kernel):
    """The kernel gives new connections the ports of those in TIME_WAIT, so many of them may lie ahead."""
    learn(kernel, 2000, 2002)
    new = kernel.connect(2006)
    for port in (2004, *range(2008, 2100, 2)):
        kernel.connect(port, state=TIME_WAIT, age=1.5)
    found, counted = kernel.find(10, since=1.0)
    assert (set(found), counted) == (set(new), 2)
    more = kernel.connect(2008)
    found, counted = kernel.find(10, since=1.0)
    assert (set(found), counted) == (set(more), 2), "where it goes on is not deceived by them either"
    kernel.connect(2010, state=TIME_WAIT, age=0.5)
    found, counted = kernel.find(2, since=1.0)
    assert ([int.from_bytes(row[20:22], "big") for row in found], counted) == ([2010], 2)


@pytest.mark.parametrize(("age", "counted"), [(0.0, 1), (2.04, 1), (2.06, 0), (60.0, 0)])
def test_what_was_over_for_as_long_as_the_last_look_is_ago_counts(kernel, age, counted):
    """And for a moment longer: the kernel's timers have ticks."""
    learn(kernel, 2000, 2002, there=THERE)
    kernel.connect(2004, there=THERE, state=TIME_WAIT, age=age)
    assert kernel.find(1, since=2.0)[1] == counted


def test_before_the_first_look_all_that_is_over_counts(kernel):
    learn(kernel, 2000, 2002, there=THERE)
    kernel.connect(2004, there=THERE, state=TIME_WAIT, age=59.0)
    assert kernel.find(1, since=float("inf"))[1] == 1


def test_what_is_known_is_not_found_and_not_counted(kernel):
    learn(kernel, 2000, 2002)
    new = kernel.connect(2004)
    assert kernel.find(2, {cookie_of(message) for message in new}) == ([], 0)
    one, other = kernel.connect(2006)
    assert kernel.find(2, {cookie_of(one)}) == ([other], 1)


def test_the_highest_port_leads_on_in_whatever_order_a_dump_has_them(kernel):
    learn(kernel, 2000, 2020, 2002, there=THERE)
    (new,) = kernel.connect(2034, there=THERE)
    assert kernel.find(1) == ([new], 1)


def test_ports_that_begin_anew_lead_on_from_there(kernel):
    """The range of ports has an end, and the kernel leaps now and then."""
    learn(kernel, 2000, 2002, 50_000, 50_002, 2100, 2102, there=THERE)
    (new,) = kernel.connect(2104, there=THERE)
    assert kernel.find(1) == ([new], 1)


@pytest.mark.parametrize(("gap", "found"), [(NEAR, 1), (NEAR + 1, 0)])
def test_ports_lead_on_that_are_so_near_to_each_other(kernel, gap, found):
    learn(kernel, 2000, 2000 + gap, there=THERE)
    kernel.connect(2002 + gap, there=THERE)
    assert kernel.find(1)[1] == found


@pytest.mark.parametrize("server", [1, 80, 443])
def test_one_connection_leads_nowhere_whatever_number_the_port_of_its_server_has(kernel, server):
    """Whose ports are small would otherwise be near to none, and take the place of servers with many connections."""
    learn(kernel, 2000, there=THERE, server=server)
    assert (kernel.find(1), kernel.asked) == (([], 0), 0)


def test_behind_the_last_port_nothing_is_looked_for(kernel):
    learn(kernel, 65_530, 65_532, there=THERE)
    (last,) = kernel.connect(65_534, there=THERE)
    assert kernel.find(1) == ([last], 1)
    assert kernel.find(1) == ([], 0)


def test_the_servers_of_the_last_connections_are_looked_for_and_no_others(kernel):
    servers = range(8000, 8001 + MOST_TRIED)
    for number, server in enumerate(servers):
        port = 2000 + 200 * number
        learn(kernel, port, port + 2, there=THERE, server=server)
        kernel.connect(port + 4, there=THERE, server=server)
    found, _ = kernel.find(100)
    assert {int.from_bytes(row[22:24], "big") for row in found} == set(servers[1:])


@pytest.mark.parametrize(("others", "remembered"), [(MOST_REMEMBERED // 2 - 1, True), (MOST_REMEMBERED // 2, False)])
def test_so_many_connections_are_remembered(kernel, others, remembered):
    """Each has two ends that may be followed by others."""
    for number in range(1 + others):
        learn(kernel, 2000 + 200 * number, there=THERE, server=8000 + number)
    learn(kernel, 2002, there=THERE, server=8000)
    (new,) = kernel.connect(2004, there=THERE, server=8000)
    assert kernel.find(1) == (([new], 1) if remembered else ([], 0))


def test_the_other_ends_that_were_found_are_not_looked_for_again(kernel):
    learn(kernel, 2000, 2002)
    for port in range(2004, 2100, 2):
        kernel.connect(port)
        kernel.asked = 0
        assert kernel.find(2)[1] == 2
        assert kernel.asked == len(STEPS) + 1, "nor is a further one"
    kernel.asked = 0
    assert kernel.find(1) == ([], 0)
    assert kernel.asked == 2 * len(STEPS), "from each end once"


def test_as_many_ports_are_asked_for_as_lead_to_what_is_missing(kernel):
    """Eight at once, behind the last connection that exists, and none once all are found."""
    learn(kernel, 2000, 2002, there=THERE)
    new = [message for port in range(2010, 2180, 10) for message in kernel.connect(port, there=THERE)]
    questions, ask = [], kernel.ask
    kernel.successors._ask = lambda requests: questions.append(len(requests)) or ask(requests)
    assert kernel.find(len(new)) == (new, len(new))
    assert set(questions) == {len(STEPS)}
    assert len(questions) == len(new)
    (last,) = kernel.connect(2172, there=THERE)
    questions.clear()
    assert kernel.find(1) == ([last], 1)
    assert questions == [len(STEPS)]
    questions.clear()
    for port in range(2174, 2192, 2):
        kernel.connect(port, there=THERE)
    assert kernel.find(10)[1] == 9
    assert questions == [len(STEPS)] * 3, "the last one for nothing"


def test_connections_far_beyond_the_last_one_lead_on_from_there(kernel):
    learn(kernel, 2000, 2002, there=THERE)
    many = range(2004, 2004 + 2 * NEAR, 2)
    for port in many:
        kernel.connect(port, there=THERE)
    assert kernel.find(len(many))[1] == len(many)
    kernel.connect(many.stop, there=THERE)
    assert kernel.find(1)[1] == 1


def test_no_more_is_looked_for_than_other_servers_leave_open(kernel):
    for server, step in ((80, 16), (443, 2)):
        learn(kernel, 2000, 2002, there=THERE, server=server)
        for number in range(1, 6):
            kernel.connect(2002 + step * number, there=THERE, server=server)
    assert kernel.find(6)[1] == 6
    assert kernel.asked == 3 * len(STEPS), "five of the newer one, what is behind them, and one of the other"


def test_the_state_of_a_connection_is_none_of_what_the_next_one_has_in_common(kernel):
    learn(kernel, 2000, there=THERE)
    learn(kernel, 2002, there=THERE, state=TIME_WAIT)
    kernel.connect(2004, there=THERE)
    assert kernel.find(1)[1] == 1


@pytest.mark.parametrize("end", ["client", "server"])
def test_the_connections_of_some_servers_are_forgotten_and_those_of_others_are_not(kernel, end):
    for server in (80, 443, SERVER + 1):
        for port in (2000, 2002):
            client, accepted = (HERE, port, THERE, server), (HERE, server, THERE, port)
            kernel.sockets[client if end == "client" else accepted] = ESTABLISHED
            kernel.successors.learn(kernel.message(client if end == "client" else accepted))
        client, accepted = (HERE, 2004, THERE, server), (HERE, server, THERE, 2004)
        kernel.sockets[client if end == "client" else accepted] = ESTABLISHED
    kernel.successors.learn(
        kernel.message((HERE, 80, THERE, 2000)) if end == "server" else kernel.message((HERE, 2000, THERE, 80))
    )
    kernel.successors.forget((443, 2000))
    found, _ = kernel.find(9)
    at = 22 if end == "client" else 20
    assert {int.from_bytes(row[at : at + 2], "big") for row in found} == {80, SERVER + 1}


@contextlib.contextmanager
def connections(*ports):
    """Loopback connections from these ports to a server, the server's port, and a socket that asks for them."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.77.0.1", 0)))
        server = listener.getsockname()[1]
        for port in ports:
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(("127.77.0.2", port))
            client.connect(("127.77.0.1", server))
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        yield server, stack.enter_context(socket.socket(socket.AF_NETLINK, kind, glance.NETLINK_SOCK_DIAG))


def in_python(file, *what):
    def ask(requests):
        answers = glance._exchange(file, b"".join(requests), len(requests)) if requests else []
        return [answer for answer in answers if int.from_bytes(answer[4:6], sys.byteorder) != 2]

    return follow(ask, *what)


@pytest.mark.parametrize("follow_in", list(dict.fromkeys([glance.follow_compiled or in_python, in_python])))
@pytest.mark.parametrize("of_server", [False, True], ids=["client's end", "server's end"])
def test_the_living_kernel_is_asked_for_what_follows_a_port(follow_in, of_server):
    """Up to 16 higher each time, until enough are found; the listener, which answers for the others, is none of them."""
    ports = (20_000, 20_002, 20_004, 20_020, 20_036, 20_054)
    with connections(*ports) as (server, asking):
        ends = (socket.inet_aton("127.77.0.2"), socket.inet_aton("127.77.0.1"))
        identity, at = (0, server), 24
        if of_server:
            ends, identity, at = ends[::-1], (server, 0), 26
        identity = b"".join([*(port.to_bytes(2, "big") for port in identity), *(end.ljust(16, b"\0") for end in ends)])
        request = DiagRequest(socket.AF_INET, 6, socket_id=identity + bytes(4) + b"\xff" * 8, dump=False).encode()

        def following(port, number):
            rows = follow_in(asking.fileno(), request, at, port, number, 60_000)
            return [int.from_bytes(row[at - 4 : at - 2], "big") for row in rows]

        assert following(20_000, 1) == [20_002, 20_004], "what was asked for along with it"
        assert following(20_000, 3) == [20_002, 20_004, 20_020]
        assert following(20_000, 100) == [20_002, 20_004, 20_020, 20_036]
        assert following(20_004, 0) == []
        assert following(20_054, 5) == []
        assert following(65_534, 5) == []
        assert following(65_520, 5) == []


@pytest.mark.parametrize("follow_in", list(dict.fromkeys([glance.follow_compiled or in_python, in_python])))
def test_the_living_kernel_tells_how_long_a_connection_is_over(follow_in):
    """A connection in TIME_WAIT stays there for 60 s; one that does not stay for as long as wanted is passed."""
    with socket.create_server(("127.77.0.1", 0)) as listener, connections() as (_, asking):
        server = listener.getsockname()[1]
        for port in (20_102, 20_106):
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(("127.77.0.3", port))
                client.connect(("127.77.0.1", server))
                accepted, _ = listener.accept()
                client.shutdown(socket.SHUT_WR)
                assert accepted.recv(1) == b""
                accepted.close()
                assert client.recv(1) == b""
        ends = b"".join(socket.inet_aton(end).ljust(16, b"\0") for end in ("127.77.0.3", "127.77.0.1"))
        identity = bytes(2) + server.to_bytes(2, "big") + ends
        request = DiagRequest(socket.AF_INET, 6, socket_id=identity + bytes(4) + b"\xff" * 8, dump=False).encode()

        def following(least):
            rows = follow_in(asking.fileno(), request, 24, 20_100, 10, least)
            return [(int.from_bytes(row[20:22], "big"), row[17]) for row in rows]

        assert following(0) == [(20_102, TIME_WAIT), (20_106, TIME_WAIT)]
        assert following(60_001) == []


@pytest.mark.skipif(glance.follow_compiled is None, reason="the C code is not built")
def test_what_is_no_request_is_an_error_and_so_is_what_cannot_be_asked():
    with pytest.raises(ValueError, match="not a request"):
        glance.follow_compiled(0, bytes(200), 24, 1, 1, 0)
    with pytest.raises(ValueError, match="not a request"):
        glance.follow_compiled(0, bytes(72), 71, 1, 1, 0)
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        here.setblocking(False)
        with pytest.raises(BlockingIOError):
            glance.follow_compiled(here.fileno(), bytes(72), 24, 1, 1, 0)
        assert len(there.recv(1000)) == 72 * len(STEPS)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("listens", [HERE, bytes(4)])
def test_who_answers_with_ports_that_were_passed_is_no_reason_to_go_on(kernel, listens):
    """A listener that was opened anew has an open end, as the port that is looked for: it would answer for ever."""
    for port in (2000, 0):
        kernel.sockets[HERE, SERVER, bytes(4), port] = LISTEN
        kernel.successors.learn(kernel.message((HERE, SERVER, bytes(4), port)))
        kernel.successors.learn(kernel.message((HERE, SERVER, bytes(4), port)))
    kernel.sockets[listens, SERVER, bytes(4), 0] = LISTEN
    kernel.successors._ask = lambda requests: [kernel.message((listens, SERVER, bytes(4), 0))] * len(requests)
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

"""Whose a socket is that several processes hold, or that nobody was seen to hold; and what is known of its owner."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import subprocess
import sys
from types import SimpleNamespace

import attrs
import pytest
from sockdiag_fakes import FakeKernel, FakeSocket, flow_events

from nstat_async._events import FlowUpdated
from nstat_async._model import Attribution, Direction
from nstat_async.json import loads, to_dict
from nstat_async.sockdiag import OwnersAnswer, OwnersRequest, ProcessesAnswer, ProcessFacts, SocketState, TcpInfo
from nstat_async.sockdiag._direction import LEFT_SECONDS
from nstat_async.sockdiag._processes import RECENT_PIDS

LISTENER, ACCEPTED = 1, 2


def listening(cookie: int = LISTENER, **fields) -> FakeSocket:
    return FakeSocket(
        cookie,
        local=bytes(4),
        local_port=80,
        remote=bytes(4),
        remote_port=0,
        state=SocketState.LISTEN,
        inode=cookie,
        **fields,
    )


def accepted(cookie: int = ACCEPTED, **fields) -> FakeSocket:
    info = {TcpInfo.BYTES_SENT: 7, TcpInfo.BYTES_ACKED: 7, TcpInfo.DATA_SEGS_OUT: 1}
    return FakeSocket(cookie, local_port=80, remote_port=40_000, info=info, **fields)


def started(census=()) -> FakeKernel:
    kernel = FakeKernel(interval=1.0)
    kernel.census = census
    kernel.sockets[LISTENER] = listening()
    kernel.owners[LISTENER] = 42
    kernel.start()
    return kernel


@pytest.fixture
def kernel():
    return started()


def served(kernel: FakeKernel, **fields):
    """A connection that is accepted and closed between two polls; its removal."""
    kernel.sockets[ACCEPTED] = accepted(**fields)
    kernel.close(ACCEPTED)
    *_, removed = flow_events(kernel.run())
    return removed


# -- inferred


def test_a_short_accepted_flow_is_the_listeners(kernel):
    """Where exactly one process listens: known by a look at all tables."""
    removed = served(kernel)
    assert removed.flow.direction is Direction.INBOUND
    assert (removed.flow.process.pid, removed.flow.process.name) == (42, "p42")
    assert removed.flow.attribution is removed.flow.process.attribution is Attribution.INFERRED
    assert to_dict(removed)["flow"]["process"]["attribution"] == "inferred"
    assert kernel.events[-2].flow.attribution is Attribution.INFERRED, "it is added with it"


def test_a_listener_that_init_holds_too_is_the_other_ones():
    """As a service's that ``systemd`` listens for; the first look at all tables tells."""
    removed = served(started(((LISTENER, 2, (42, 1)),)))
    assert (removed.flow.process.pid, removed.flow.attribution) == (42, Attribution.INFERRED)


def test_a_listener_of_later_is_known_to_be_alone_by_the_second_look(kernel):
    """The first one may have begun before; the second one is asked for at once, by a look-up that nobody waits for."""
    kernel.wait(3.0)
    kernel.close(LISTENER)
    kernel.sockets[LISTENER] = attrs.evolve(listening(), cookie=9)
    asked, kernel.hold_lookups = len(kernel.owner_requests), True
    kernel.wait(1.0)
    kernel.answer(kernel.held.pop(0))
    removed = served(kernel)
    assert (removed.flow.process, removed.flow.attribution) == (None, Attribution.GONE)
    while kernel.held:
        kernel.answer(kernel.held.pop(0))
        kernel.run()
    assert served(kernel).flow.process.pid == 42
    assert [request.count for request in kernel.owner_requests[asked:]] == [False, True], "and no more than that"


def test_looks_without_an_end_are_asked_for_once_a_poll():
    """Where a look at all tables takes longer than it may."""
    kernel = started(None)
    kernel.wait(1.0)
    assert sum(request.count for request in kernel.owner_requests) == 2
    kernel.census = ()
    kernel.wait(1.0)
    assert sum(request.count for request in kernel.owner_requests) == 2, "the search had one: that proves it"


def test_a_single_look_proves_nothing_of_listeners():
    """No connection ends in it."""
    kernel = FakeKernel(interval=None)
    kernel.census = None
    kernel.sockets[LISTENER] = listening()
    kernel.owners[LISTENER] = 42
    kernel.start()
    assert not any(request.count for request in kernel.owner_requests)


def test_the_connections_of_a_listener_that_left_are_still_its_processs(kernel):
    """A program that ends closes its listener first, and a removal may have to wait: for a while the last owner stands."""
    kernel.close(LISTENER)
    assert served(kernel).flow.process.pid == 42
    kernel.wait(LEFT_SECONDS + 1)
    assert served(kernel).flow.attribution is Attribution.GONE, "somebody else may have listened meanwhile"


def test_another_process_that_listens_where_one_left_makes_it_uncertain(kernel):
    kernel.close(LISTENER)
    kernel.sockets[3] = listening(3)
    kernel.owners[3] = 43
    kernel.wait(1.0)
    assert served(kernel).flow.attribution is Attribution.GONE
    kernel.wait(LEFT_SECONDS)
    assert served(kernel).flow.process.pid == 43


def test_a_listener_that_left_before_it_was_known_to_be_alone_proves_nothing():
    kernel = started(None)
    kernel.close(LISTENER)
    assert served(kernel).flow.attribution is Attribution.GONE


def test_a_listener_that_left_has_no_connections_of_other_ports_or_addresses(kernel):
    kernel.close(LISTENER)
    assert served(kernel, local=b"\x0a\0\0\1").flow.process.pid == 42, "it listened on all addresses"
    kernel.sockets[3] = attrs.evolve(listening(3), local=b"\x7f\0\0\2", local_port=81)
    kernel.owners[3] = 43
    kernel.wait(1.0)
    kernel.close(3)
    kernel.sockets[ACCEPTED] = attrs.evolve(accepted(), local=b"\x7f\0\0\1", local_port=81)
    kernel.close(ACCEPTED)
    *_, removed = flow_events(kernel.run())
    assert removed.flow.attribution is Attribution.GONE


@pytest.mark.parametrize(
    ("others", "owner"),
    [
        (((LISTENER, 2, (42, 43)),), None),
        (((LISTENER, 2, (42, 1)),), 42),
        (None, None),
    ],
    ids=["another worker has it", "init keeps it for a service", "nobody looked"],
)
def test_nothing_is_inferred_where_several_may_accept(others, owner):
    kernel = started(others)
    for _ in range(3):
        kernel.wait(1.0)
    process = served(kernel).flow.process
    assert (process and process.pid) == owner


@pytest.mark.parametrize("pid", [42, 43])
def test_several_listeners_of_one_port_agree_or_not(kernel, pid):
    """SO_REUSEPORT: of one process it is still that one."""
    kernel.sockets[3] = listening(3)
    kernel.owners[3] = pid
    for _ in range(3):
        kernel.wait(1.0)
    process = served(kernel).flow.process
    assert (process and process.pid) == (42 if pid == 42 else None)


def test_the_listener_of_this_very_address_accepts(kernel):
    """One on all addresses is asked only where there is no other."""
    kernel.sockets[3] = attrs.evolve(listening(3), local=b"\x7f\0\0\1")
    kernel.owners[3] = 43
    for _ in range(3):
        kernel.wait(1.0)
    assert served(kernel).flow.process.pid == 43


def test_an_outbound_flow_is_nobodys(kernel):
    kernel.wait(1.0)
    kernel.sockets[5] = FakeSocket(5, info={TcpInfo.BYTES_SENT: 7, TcpInfo.BYTES_ACKED: 8, TcpInfo.DATA_SEGS_OUT: 1})
    kernel.close(5)
    *_, removed = flow_events(kernel.run())
    assert removed.flow.attribution is Attribution.GONE


# -- several holders


def test_of_several_holders_the_oldest_is_the_owner(kernel):
    """The flow is updated, keeps its id, and says how many others there are."""
    kernel.census = ((LISTENER, 3, (40, 42, 50)),)
    (updated,) = flow_events(kernel.wait(1.0))
    assert isinstance(updated, FlowUpdated)
    assert (updated.flow.process.pid, updated.flow.other_holders, updated.flow.holders) == (40, 2, ())
    kernel.owners[LISTENER] = 40
    kernel.shared.add((LISTENER, 40))
    assert flow_events(kernel.wait(1.0)) == [], "nothing new"
    kernel.census = ()
    (updated,) = flow_events(kernel.wait(1.0))
    assert (updated.flow.process.pid, updated.flow.other_holders) == (40, None)


def test_extras_list_the_others():
    kernel = FakeKernel(interval=1.0, extras=True)
    kernel.sockets[LISTENER] = listening()
    kernel.owners[LISTENER] = 42
    kernel.census = ((LISTENER, 40, (42, 43)),)
    kernel.start()
    ((flow, _),) = kernel.session.flows()
    assert (flow.other_holders, flow.holders) == (39, ((43, "p43"),))
    event = next(event for event in kernel.events if getattr(event, "flow", None) == flow)
    line = to_dict(event)
    assert line["flow"]["holders"] == [[43, "p43"]]
    import json

    assert loads(json.dumps(line)).flow == flow


def test_a_socket_that_comes_later_is_shared_too(kernel):
    """MPTCP: a subflow has the inode of its connection."""
    kernel.census = ((LISTENER, 2, (42, 43)),)
    kernel.wait(1.0)
    kernel.sockets[7] = FakeSocket(7, inode=LISTENER)
    events = flow_events(kernel.wait(1.0))
    assert {event.flow.id for event in events} == {"c7"}, "of the other one nothing is new"
    flows = {flow.id: flow for flow, _ in kernel.session.flows()}
    assert flows["c7"].other_holders == flows["c1"].other_holders == 1


# -- more of a process


def test_users_have_names_and_get_them_later(kernel):
    ((flow, _),) = kernel.session.flows()
    assert (flow.process.uid, flow.process.user) == (1000, "ada")
    assert [request.users for request in kernel.owner_requests] == [(1000,)], "asked once"
    kernel.sockets[5] = FakeSocket(5, inode=5, uid=7)
    kernel.owners[5] = 50
    kernel.wait(1.0)
    assert {flow.process.user for flow, _ in kernel.session.flows()} == {"ada", None}
    kernel.session._processes.take_names(ProcessesAnswer(users=((7, "bob"),)))
    assert {flow.process.user for flow, _ in kernel.session.flows()} == {"ada", "bob"}


def test_what_is_known_of_a_process_is_in_its_flow(kernel):
    facts = {"parent_pid": 3, "started_ns": 1_700_000_000_000_000_000, "command_line": "p42 --serve 'a b'"}
    kernel.programs[42] = ProcessFacts(42, 7042, "p42", "/bin/p42", "p42", **facts)
    (updated,) = flow_events(kernel.wait(1.0))
    process = updated.flow.process
    assert (process.parent_pid, process.started, process.command_line) == (3, 1.7e9, "p42 --serve 'a b'")
    line = to_dict(updated)["flow"]["process"]
    assert {name: line[name] for name in ("user", "parent_pid", "started", "cmdline", "attribution")} == {
        "user": "ada",
        "parent_pid": 3,
        "started": 1.7e9,
        "cmdline": "p42 --serve 'a b'",
        "attribution": "observed",
    }


def test_polls_that_follow_closely_on_each_other_do_not_each_check_who_still_holds_what(kernel):
    """At least a tenth of a second lies between two checks; what is new is searched for at once."""
    kernel.wait(1.0)
    before = len(kernel.owner_requests)
    for _ in range(3):
        kernel.now += 0.03
        kernel.poll()
    assert len(kernel.owner_requests) == before
    kernel.sockets[ACCEPTED] = accepted(inode=ACCEPTED)
    kernel.owners[ACCEPTED] = 42
    (added,) = flow_events(kernel.poll())
    assert added.flow.process.pid == 42
    kernel.now += 0.11
    kernel.poll()
    assert len(kernel.owner_requests) == before + 2
    assert kernel.owner_requests[-1].held


def test_every_process_is_checked_in_turn():
    kernel = FakeKernel(interval=1.0)
    for cookie in range(1, 151):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, inode=1000 + cookie)
        kernel.owners[1000 + cookie] = cookie
    kernel.start()
    checked = set()
    for _ in range(3):
        kernel.wait(1.0)
        checked |= {pid for pid, _ in kernel.owner_requests[-1].verify}
    assert checked == {*range(1, 151)}


def test_a_search_begins_with_the_processes_that_had_sockets_last():
    kernel = FakeKernel(interval=1.0)
    for cookie in range(1, 71):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, inode=1000 + cookie)
        kernel.owners[1000 + cookie] = cookie
    kernel.start()
    for cookie, owner in ((98, 10), (99, None)):
        kernel.sockets[cookie] = FakeSocket(cookie, local_port=cookie, inode=cookie)
        if owner:
            kernel.owners[cookie] = owner
        kernel.wait(1.0)
    last = [pid for pid in range(70, 70 - RECENT_PIDS, -1) if pid != 10]
    assert kernel.owner_requests[-1].recent == (10, *last)


def test_a_socket_that_only_a_thread_has_is_checked_in_that_thread():
    kernel = FakeKernel(interval=1.0)
    kernel.sockets[1] = FakeSocket(1, inode=77)
    kernel.hold_lookups = True
    kernel.start()
    (search,) = [command for command in kernel.held if isinstance(command.request, OwnersRequest)]
    facts = ProcessFacts(42, 7042, "p42", "/bin/p42")
    answer = OwnersAnswer(((77, 42),), (facts,), places=((43, 3),))
    kernel.session.lookup_done(search.token, answer, kernel.now)
    kernel.hold_lookups = False
    for command in kernel.held:
        if command is not search:
            kernel.answer(command)
    kernel.run()
    kernel.wait(1.0)
    assert ((77, 43, 3),) in [request.held for request in kernel.owner_requests]


# -- the living kernel

HOLDER = "import sys; print(flush=True); sys.stdin.read()"


def linux(test):
    skip = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
    return pytest.mark.linux(skip(test))


@contextlib.contextmanager
def holding(*sockets: socket.socket):
    """A child that has these sockets as well."""
    numbers = [sock.fileno() for sock in sockets]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=numbers
    )
    process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.communicate()


def inode_of(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


@linux
def test_a_parent_that_holds_it_too_is_the_owner():
    """Of a ``fork`` both have it; a search finds the newer process first."""
    from nstat_async._io.processes import ASKED_ONE_BY_ONE, Elders

    with socket.socket() as sock, holding(sock) as pid:
        place, elders = (inode_of(sock), pid, pid, sock.fileno()), Elders()
        for _ in range(ASKED_ONE_BY_ONE + 2):  # one by one, and then in a table
            assert elders.eldest(place) == (place[0], os.getpid(), os.getpid(), sock.fileno())
            assert elders.eldest((place[0] + 1, pid, pid, sock.fileno()))[1] == pid
            assert elders.eldest((place[0], pid, pid, 1 << 20))[1] == pid


@linux
def test_a_census_finds_all_holders_and_what_changed():
    from nstat_async._io.census import Census

    def shared():
        found = None
        while found is None:
            found = census.go_on(float("inf"))
        return {inode: (number, pids) for inode, number, pids in found}

    census = Census()
    with socket.socket() as sock, socket.socket() as other:
        with holding(sock, other) as pid:
            shared()
            found = shared()
            assert found[inode_of(sock)] == found[inode_of(other)] == (2, (os.getpid(), pid))
        found = shared()
        assert inode_of(sock) not in found
        with holding(sock) as pid:
            assert shared()[inode_of(sock)] == (2, (os.getpid(), pid))
            one = inode_of(other)
            other.close()
            with socket.socket() as third:  # as many descriptors as before
                found = shared()
                assert one not in found
                assert inode_of(third) not in found


@linux
def test_a_census_ends_when_its_time_is_over_and_goes_on():
    from nstat_async._io.census import Census

    census, looks = Census(), 0
    import time

    while census.go_on(time.thread_time() + 1e-4) is None:
        looks += 1
        assert looks < 100_000
    assert looks > 1


@linux
def test_too_many_sockets_are_not_counted(monkeypatch):
    from nstat_async._io import census

    monkeypatch.setattr(census, "MOST_SOCKETS", 0)
    import time

    with socket.socket():
        assert census.Census().go_on(time.thread_time() + 0.05) is None


@linux
def test_facts_of_this_process():
    from nstat_async._io.processes import ProcessReader

    facts = ProcessReader(command_lines=True).facts(os.getpid())
    assert facts.parent_pid == os.getppid()
    assert ProcessReader().facts(os.getpid()).command_line is None
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, "a b", "c"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        reader = ProcessReader(command_lines=True)
        theirs = reader.facts(child.pid)
        assert theirs.command_line.endswith(" 'a b' c")
        assert theirs.parent_pid == os.getpid()
        assert theirs.started_ns >= facts.started_ns
        assert reader.facts(child.pid) == theirs, "the same, whenever it is asked"
        child.communicate()


@linux
def test_a_scanner_tells_users_and_holders():
    from nstat_async._io.procfs import ProcessScanner

    scanner, uid = ProcessScanner(budget=60.0), os.getuid()
    with socket.socket() as sock, holding(sock) as pid:
        answer = OwnersAnswer()
        while answer.shared is None or inode_of(sock) not in {row[0] for row in answer.shared}:
            answer = scanner.answer(OwnersRequest(frozenset({inode_of(sock)}), users=(uid, 4_000_000_000)))
        assert answer.owners == ((inode_of(sock), os.getpid()),)
        assert answer.users == ((uid, pwd.getpwuid(uid).pw_name),)
        assert {os.getpid(), pid} <= {process.pid for process in answer.processes}


@linux
def test_holders_are_counted_about_once_a_second_or_when_that_is_asked_for(monkeypatch):
    """Polls that follow closely on each other do not count in each."""
    from nstat_async._io import procfs

    now, rounds = [100.0], []

    class Counting:
        def go_on(self, _until):
            rounds.append(now[0])
            return ()

    monkeypatch.setattr(procfs, "Census", Counting)
    monkeypatch.setattr(procfs, "time", SimpleNamespace(monotonic=lambda: now[0], thread_time=float))
    scanner = procfs.ProcessScanner()
    for now[0] in (100.0, 100.1, 100.8, 101.0, 101.1):
        scanner.answer(OwnersRequest(frozenset()))
    assert rounds == [100.0, 101.0]
    assert scanner.answer(OwnersRequest(frozenset(), count=True)).shared == ()

"""Endings on the living kernel: final counts against the truth, and how connections and attempts ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import socket
import subprocess
import time

import pytest
from endings_world import RESET, drive, live, living, make, one_namespace, truth_at, two_namespaces

from examples import THOROUGH
from nstat_async._events import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, LossCause
from nstat_async._model import Outcome


def play(chosen, number, world):
    """Play so many connections in a world beside a session: for each watched end its truth and its events."""
    with world() as (here, there, address):
        listener = there.run(socket.create_server, (address, 0))
        there_port = listener.getsockname()[1]
        with drive(here) as driver:
            driver.poll()
            connections = []
            for place in range(number):
                to = (address, there_port, address if here is there else "0.0.0.0", 20_000 + place)
                connections.append(make(chosen, here, listener, to))
                live(chosen, connections[-1], driver.poll)
                while chosen.random() < 0.9 and driver.turn():  # now and then the loop is held meanwhile
                    pass
            watched = [
                (connection, name, end, truth)
                for connection in connections
                for name, end, truth in truth_at(connection)
                if here is there or name == "client"
            ]

            def events_of(connection, name):
                pair = (connection.client.port, there_port)
                here_port, peer = pair if name == "client" else pair[::-1]
                return [
                    event
                    for event in driver.events
                    if isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved))
                    and event.flow.local.port == here_port
                    and event.flow.remote is not None
                    and event.flow.remote.port == peer
                ]

            open_ends = [(c, name) for c, name, end, _ in watched if not end.aborted]

            def all_ended():
                ended = {
                    (event.flow.local.port, event.flow.remote.port)
                    for event in driver.events
                    if isinstance(event, FlowRemoved) and event.flow.remote is not None
                }
                pairs = [(c.client.port, there_port)[:: 1 if name == "client" else -1] for c, name in open_ends]
                return all(pair in ended for pair in pairs)

            driver.until(all_ended)
            listener.close()
            return [(*each, events_of(*each[:2])) for each in watched]


@living
@pytest.mark.privileged
@pytest.mark.parametrize("world", [one_namespace, two_namespaces], ids=["local", "remote"])
def test_final_counts_are_the_truth_or_say_by_how_much_they_may_be_off(world):
    """Random connections that end in random ways: `final` is exact, uncertain counts are off by one byte at most, none is
    below what was reported; where both ends are here, whatever ends after the other end, or soon before it, is proven."""
    seed = random.randrange(1 << 32)
    played = play(random.Random(seed), 150 if THOROUGH else 50, world)
    ended = {(id(c), name): event.time for c, name, _, _, events in played for event in events[-1:]}
    proven = 0
    for connection, name, end, truth, events in played:
        story = (seed, name, connection.steps, events)
        removals = [event for event in events if isinstance(event, FlowRemoved)]
        if end.aborted:
            continue
        assert len(removals) == 1, story
        gone = removals[0]
        off = gone.counts.rx_bytes - truth
        assert gone.uncertainty == (None if gone.final else 1), story
        assert abs(off) <= (0 if gone.final else 1), story
        reported = [event.counts.rx_bytes for event in events]
        assert reported == sorted(reported), story
        proven += gone.final
        if world is one_namespace and not (connection.client.aborted or connection.server.aborted):
            other = ended[id(connection), "server" if name == "client" else "client"]
            assert gone.final or not 0 <= gone.time - other < 1, story
    assert proven > len(played) / 4


WAYS = {
    "client closes": (Outcome.CLOSED_HERE, Outcome.CLOSED_THERE),
    "server closes": (Outcome.CLOSED_THERE, Outcome.CLOSED_HERE),
    "half-closed by the client": (Outcome.CLOSED_HERE, Outcome.CLOSED_THERE),
    "client leaves something unread": (Outcome.RESET_HERE, Outcome.RESET_THERE),
    "server leaves something unread": (Outcome.RESET_THERE, Outcome.RESET_HERE),
    "client aborts": (Outcome.RESET_HERE, Outcome.RESET_THERE),
    "server aborts": (Outcome.RESET_THERE, Outcome.RESET_HERE),
    "client aborts beside unread data": (Outcome.RESET_HERE, Outcome.RESET_THERE),
    "server aborts what the client half-closed": (Outcome.RESET_THERE, Outcome.RESET_HERE),
}


ABORTED = {way: 0 if way.startswith("client") else 1 for way in WAYS if "aborts" in way}
"""Which end the kernel clears: no removal tells of it, if no dump had it."""


def end_connection(way, client, server):
    client.sendall(b"question")
    server.recv(100)
    server.sendall(b"answer")
    if way != "client leaves something unread":
        client.recv(100)
    mine, other = (client, server) if way.startswith("client") else (server, client)
    if way == "half-closed by the client":
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.close()
        assert client.recv(1) == b""
        client.close()
    elif way.endswith("closes"):
        mine.close()
        assert other.recv(1) == b""
        other.close()
    elif "aborts" in way:
        if way.endswith("half-closed"):
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
        if way.endswith("unread data"):
            mine.sendall(b"more")
            time.sleep(0.001)
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        mine.close()
        select.select([other], [], [], 10)
        other.close()
    else:
        if mine is server:
            client.sendall(b"more")
        mine.close()
        select.select([other], [], [], 10)
        other.close()


@living
@pytest.mark.privileged
@pytest.mark.parametrize(
    ("polled", "ebpf"), [(True, "off"), (False, "off"), (False, "auto")], ids=["polled", "between polls", "eBPF"]
)
def test_how_a_connection_ended(polled, ebpf):
    """Who closed, who reset: each end of each says so, as far as its last words are not cleared without anyone having seen it."""
    with one_namespace() as (here, _, address), here.run(socket.create_server, (address, 0)) as listener:
        there_port = listener.getsockname()[1]
        with drive(here, ebpf=ebpf) as driver:
            driver.poll()
            if ebpf == "auto" and driver.core.capabilities.ebpf == "none":
                pytest.skip("no eBPF here")
            ports = {}
            for way in WAYS:
                client = here.run(socket.create_connection, listener.getsockname())
                server, _ = listener.accept()
                ports[way] = client.getsockname()[1]
                if polled:
                    driver.poll()
                end_connection(way, client, server)
            for way, (there, back) in WAYS.items():
                if polled or ebpf == "auto" or ABORTED.get(way) != 0:
                    (gone,) = driver.until(lambda p=ports[way]: driver.removed(p, there_port))
                    assert (way, gone.outcome) == (way, there)
                if polled or ebpf == "auto" or ABORTED.get(way) != 1:
                    (gone,) = driver.until(lambda p=ports[way]: driver.removed(there_port, p))
                    assert (way, gone.outcome) == (way, back)


@living
@pytest.mark.privileged
def test_how_an_attempt_failed():
    """Refused and given up in vain, by calls that wait and calls that don't; and one whose program lost patience."""
    with one_namespace() as (here, _, address), drive(here) as driver:
        here.ip("link add dark type veth peer name hole", "addr add 10.99.0.1/24 dev dark")
        here.ip("link set dark up", "link set hole up")
        here.ip("neigh add 10.99.0.9 lladdr 02:00:00:00:00:09 dev dark")
        driver.poll()
        socks = {name: here.run(socket.socket) for name in ("refused", "refused later", "silent", "impatient")}
        for place, sock in enumerate(socks.values()):
            sock.bind(("0.0.0.0", 21_000 + place))
        with pytest.raises(ConnectionRefusedError):
            socks["refused"].connect((address, 9))
        socks["refused"].close()
        driver.until(lambda: driver.removed(21_000))
        socks["refused later"].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            socks["refused later"].connect((address, 9))
        for name in ("silent", "impatient"):
            socks[name].setblocking(False)
            with contextlib.suppress(BlockingIOError):
                socks[name].connect(("10.99.0.9", 9))
        socks["impatient"].close()
        repeated = lambda: socks["silent"].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)[100]  # noqa: E731
        driver.until(repeated)
        for sock in socks.values():
            sock.close()
        expected = [Outcome.REFUSED, Outcome.REFUSED, Outcome.TIMED_OUT, Outcome.FAILED]
        for place, outcome in enumerate(expected):
            (gone,) = driver.until(lambda p=21_000 + place: driver.removed(p))
            assert (place, gone.outcome, gone.final) == (place, outcome, True)


@living
@pytest.mark.privileged
def test_a_listener_has_nothing_to_lose():
    """A socket that was dissolved, bound and made to listen ends as a listener: exactly, and without a loss of its own."""
    with one_namespace() as (here, _, address), drive(here) as driver:
        first = here.run(socket.create_server, (address, 0))
        sock = here.run(socket.create_connection, first.getsockname())
        served, _ = first.accept()
        sock.send(b"x" * 100)
        driver.poll()
        assert ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16) == 0  # AF_UNSPEC
        driver.poll()
        sock.bind((address, 0))
        sock.listen()
        port = sock.getsockname()[1]
        driver.poll()
        lost = [event for event in driver.events if isinstance(event, EventsLost)]
        sock.close()
        (gone,) = driver.until(lambda: [e for e in driver.removed(port) if e.flow.remote is None])
        assert (gone.final, gone.uncertainty, gone.outcome) == (True, None, None)
        assert [event for event in driver.events if isinstance(event, EventsLost)] == lost
        for each in (served, first):
            each.close()


@living
@pytest.mark.privileged
def test_multipath_subflows_are_named_as_what_they_are():
    """The kernel clears a subflow's counters at its end: the loss says that, not that the program aborted it."""
    with one_namespace() as (here, _, address), drive(here) as driver:
        try:
            listener = here.run(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262)
        except OSError:
            pytest.skip("this kernel has no Multipath TCP")
        listener.bind((address, 0))
        listener.listen()
        driver.poll()
        client = here.run(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        client.sendall(bytes(5000))
        driver.poll()
        for sock in (client, server, listener):
            sock.close()
        ended = []
        while len(ended) < 2:
            driver.until(lambda: driver.turn() or True)
            ended = [e for e in driver.events if isinstance(e, FlowRemoved) and e.flow.remote]
        assert Outcome.RESET_HERE not in {event.outcome for event in ended}
        details = [e.detail for e in driver.events if isinstance(e, EventsLost) and e.cause is LossCause.FINAL_COUNTS]
        assert all("Multipath TCP" in detail for detail in details)
        for event in driver.events:
            if isinstance(event, FlowRemoved) and event.flow.remote is not None:
                assert event.flow.remote.port


@living
@pytest.mark.privileged
@pytest.mark.parametrize("ebpf", ["off", "auto"])
def test_a_subflow_that_a_thread_of_the_kernel_opens_is_its_holders(ebpf):
    """It is the worker of the path manager that connects, for whoever has the Multipath TCP socket."""
    with one_namespace() as (here, _, address), drive(here, ebpf=ebpf) as driver:
        try:
            here.ip("mptcp limits set subflow 2 add_addr_accepted 2", "mptcp endpoint add 127.0.0.2 dev lo subflow")
        except subprocess.CalledProcessError:
            pytest.skip("this kernel has no Multipath TCP")
        driver.poll()
        listener = here.run(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262)
        listener.bind((address, 0))
        listener.listen()
        client = here.run(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        client.sendall(bytes(5000))
        server.recv(5000)

        def owners():
            driver.poll()
            flows = {flow.id: flow for flow, _ in driver.core.flows() if flow.remote is not None}
            subflows = [flow for flow in flows.values() if "127.0.0.2" in f"{flow.local}{flow.remote}"]
            return len(subflows) == 2 and {flow.process and flow.process.pid for flow in flows.values()} == {
                os.getpid()
            }

        driver.until(owners)
        added = [e for e in driver.events if isinstance(e, (FlowAdded, FlowUpdated)) and e.flow.process is not None]
        assert {event.flow.process.pid for event in added} == {os.getpid()}
        for sock in (client, server, listener):
            sock.close()

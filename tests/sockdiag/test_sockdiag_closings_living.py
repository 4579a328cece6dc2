"""The living kernel: how connections end, with which bytes."""

from __future__ import annotations

import socket
import time

import pytest
from sockdiag_living import RESET, exchange, listen, pair, port, totals

from nstat_async._events import EventsLost, LossCause, RemovalReason
from nstat_async._model import Direction, TcpState

pytestmark = [pytest.mark.linux, pytest.mark.usefixtures("patience")]


def closings(way: str, client: socket.socket, server: socket.socket) -> None:
    if way == "server first":
        server.close()
        assert client.recv(1) == b""
        client.close()
    elif way == "client first":
        client.close()
        assert server.recv(1) == b""
        server.close()
    elif way == "both at once":
        client.close()
        server.close()
    elif way == "half-closed":
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        time.sleep(0.08)  # longer than a notification takes: the remains must be older than it
        server.close()
        assert client.recv(1) == b""
        time.sleep(0.08)
        client.close()
    else:
        server.send(b"!?!")  # unread at close: the kernel resets
        client.close()
        with pytest.raises(ConnectionResetError):
            server.recv(1)
        server.close()


@pytest.mark.parametrize("polled", [True, False], ids=["polled", "between polls"])
@pytest.mark.parametrize("way", ["server first", "client first", "both at once", "half-closed", "reset"])
def test_final_bytes_are_exact_however_it_ends(live, way, polled):
    """No phantom byte of a SYN or FIN is in the last counts of either end, polled before or not."""
    listener = listen()
    client, server = pair(listener)
    here, there = port(client), port(listener)
    exchange(client, server, 123, 4567)
    if polled:
        live.poll()
    closings(way, client, server)
    (out,) = live.until(lambda: live.removed(here, there))
    (back,) = live.until(lambda: live.removed(there, here))
    down = 4570 if way == "reset" else 4567
    assert totals(out) == (down, 123)
    assert totals(back) == (123, down)
    assert out.final
    assert back.final
    assert (out.flow.process is not None) is polled
    listener.close()


@pytest.mark.parametrize("polled", [True, False], ids=["polled", "between polls"])
def test_a_client_that_was_reset_has_no_fin_among_its_bytes(live, polled):
    """A client that received data and then a reset has no FIN among its bytes."""
    listener = listen()
    client, server = pair(listener)
    here = port(client)
    exchange(client, server, 123, 4567)
    if polled:
        live.poll()
    client.send(b"!?!")
    server.close()  # with something unread: a reset
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()
    (gone,) = live.until(lambda: live.removed(here))
    assert totals(gone) == (4567, 126)
    listener.close()


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_server_whose_listener_was_never_seen_has_exact_bytes_and_no_wrong_direction(live, first):
    """Listener, both ends, all between two polls: final bytes are exact and the directions are not wrong."""
    listener = listen()
    client, server = pair(listener)
    here, there = port(client), port(listener)
    listener.close()
    exchange(client, server, 123, 4567)
    one, other = (client, server) if first == "client" else (server, client)
    one.close()
    assert other.recv(1) == b""
    other.close()
    (out,) = live.until(lambda: live.removed(here))
    (back,) = live.until(lambda: [e for e in live.removed(there) if e.flow.remote])
    assert (totals(out), totals(back)) == ((4567, 123), (123, 4567))
    assert out.flow.direction is Direction.OUTBOUND
    assert back.flow.direction is Direction.INBOUND


def test_each_end_shows_its_state_while_half_closed_and_the_fin_is_not_payload(live):
    """Each end shows its state while half-closed; the byte of the FIN is not payload."""
    listener = listen()
    client, server = pair(listener)
    exchange(client, server, 10, 20)
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    live.poll()
    while "FIN_WAIT_2" not in [e.flow.state.name for e in (*live.added(port(client)), *live.updated(port(client)))]:
        live.poll()  # until the other side's delayed acknowledgement came
    (waiting,) = [e for e in live.added(port(listener)) if e.flow.remote]
    assert waiting.flow.state is TcpState.CLOSE_WAIT
    assert totals(waiting) == (10, 20)
    assert waiting.flow.direction is Direction.INBOUND
    here = port(client)
    for sock in (server, client, listener):
        sock.close()
    (gone,) = live.until(lambda: live.removed(here))
    assert totals(gone) == (20, 10)


def test_a_reset_connection_whose_descriptor_is_open_is_closed_until_that_is_closed(live):
    """A connection reset by its peer, with the descriptor still open, becomes CLOSED and is removed when closed."""
    listener = listen()
    client, server = pair(listener)
    here = port(client)
    exchange(client, server, 10, 20)
    live.poll()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    server.close()
    for _ in range(2):
        live.poll()
    assert live.updated(here)[-1].flow.state is TcpState.CLOSED
    assert live.removed(here) == []
    client.close()
    (gone,) = live.until(lambda: live.removed(here))
    assert totals(gone) == (20, 10)
    listener.close()


def test_the_last_known_counts_of_an_aborted_connection_stand_and_are_not_final(live):
    """An abort clears the kernel's counters: the last known ones stand, are not final, and the gap is reported."""
    listener = listen()
    client, server = pair(listener)
    here = port(client)
    exchange(client, server, 10, 20)
    live.poll()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    (gone,) = live.until(lambda: live.removed(here))
    assert (totals(gone), gone.final, gone.reason) == ((20, 10), False, RemovalReason.DROPPED)
    assert [e.cause for e in live.events if isinstance(e, EventsLost)] == [LossCause.FINAL_COUNTS]
    server.close()
    (told,) = live.until(lambda: [e for e in live.removed(port(listener)) if e.flow.remote])
    assert totals(told) == (10, 20)
    listener.close()


def test_a_refused_attempt_is_added_and_removed_without_the_port(live):
    """A refused attempt is added and removed; the kernel keeps the address and forgets the port."""
    with listen() as listener:
        closed = port(listener)
    client = socket.socket()
    client.bind(("127.0.0.1", 0))
    here = port(client)
    with pytest.raises(ConnectionRefusedError):
        client.connect(("127.0.0.1", closed))
    client.close()
    (gone,) = live.until(lambda: live.removed(here))
    assert len(live.added(here)) == 1
    assert (gone.flow.remote.address, gone.flow.direction) == ("127.0.0.1", Direction.OUTBOUND)
    assert totals(gone) == (0, 0)

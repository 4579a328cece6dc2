"""The open flows of a fleet: what is new of a flow shows, at both ends of a connection, and only there."""

from __future__ import annotations

import attrs
import pytest
from fleet_by_hand import message, read, reader, state
from fleet_world import WALL, count

from nstat_async import (
    Endpoint,
    Flow,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    Outcome,
    Process,
    Provider,
    RemovalReason,
    TcpState,
    json,
)
from nstat_async.fleet import _peers
from nstat_async.fleet._peers import Ends

CLIENT, SERVER, ELSEWHERE = (Endpoint.parse(f"192.0.2.{number}", 1000 * number) for number in (1, 2, 3))
HERE = Flow("c1", Provider.TCP, local=CLIENT, remote=SERVER, process=Process(7, "curl"), state=TcpState.ESTABLISHED)
THERE = Flow("c2", Provider.TCP, local=SERVER, remote=CLIENT, process=Process(8, "nginx"))
MINE, THEIRS = "web/00000001/c1", "db/00000001/c2"


def add(flow):
    return json.dumps(FlowAdded(WALL, flow, count(0), preexisting=False))


def update(flow, rx=5):
    return json.dumps(FlowUpdated(WALL, flow, count(rx), count(0)))


def remove(flow, **more):
    return json.dumps(FlowRemoved(WALL, flow, count(5), final=True, reason=RemovalReason.CLOSED, **more))


def pair(first=HERE, second=THERE):
    """A reader of two machines, each with one flow."""
    core, _ = reader(state(0, add(first)), state(0, add(second), host="db"))
    return core


def peers(core):
    return {flow.id: flow.peer and flow.peer.flow for flow, _ in core.flows()}


@pytest.mark.parametrize(
    "other", [{"local": attrs.evolve(CLIENT, port=0)}, {"remote": None}, {"remote": ELSEWHERE}, {"local": ELSEWHERE}]
)
def test_a_flow_that_gets_its_ends_later_is_found_by_them(other):
    core = pair(attrs.evolve(HERE, **other))
    assert peers(core) == {MINE: None, THEIRS: None}
    mine, theirs = read(core, message(1, update(HERE)))
    assert (mine.flow.id, theirs.flow.id, theirs.delta.rx_bytes) == (THEIRS, MINE, 5)
    assert peers(core) == {MINE: THEIRS, THEIRS: MINE}


def test_another_process_of_a_flow_shows_at_the_other_end_too():
    core = pair()
    events = read(core, message(1, update(attrs.evolve(HERE, process=Process(9, "wget")))))
    assert {event.flow.id: event.flow.process.name for event in events} == {MINE: "wget", THEIRS: "nginx"}
    assert {flow.id: flow.peer.process.name for flow, _ in core.flows()} == {MINE: "nginx", THEIRS: "wget"}


def test_what_else_is_new_of_a_flow_shows_at_its_own_end_and_its_peer_stays():
    core = pair()
    (event,) = read(core, message(1, update(attrs.evolve(HERE, state=TcpState.CLOSE_WAIT))))
    assert (event.flow.id, event.flow.state, event.flow.peer.flow) == (MINE, TcpState.CLOSE_WAIT, THEIRS)
    alone, _ = reader(state(0, add(HERE)))
    (event,) = read(alone, message(1, update(attrs.evolve(HERE, state=TcpState.CLOSE_WAIT))))
    assert (event.flow.state, event.flow.peer) == (TcpState.CLOSE_WAIT, None)


def test_a_removal_has_the_last_facts_of_its_flow():
    core = pair()
    (event,) = read(core, message(1, remove(attrs.evolve(HERE, outcome=Outcome.CLOSED_HERE))))
    assert (event.flow.outcome, event.flow.peer.flow) == (Outcome.CLOSED_HERE, THEIRS)
    assert peers(core) == {THEIRS: MINE}


# --- both ends -------------------------------------------------------------------------------


def test_a_flow_that_changes_its_ends_leaves_the_old_ones():
    ends = Ends()
    ends.put(attrs.evolve(HERE, local=ELSEWHERE))
    ends.put(THERE)
    assert ends.other("c2") is None
    for _ in range(2):
        ends.put(HERE)
        assert (ends.other("c1"), ends.other("c2")) == ("c2", "c1")
    ends.put(attrs.evolve(HERE, state=TcpState.CLOSE_WAIT))
    assert (ends.other("c1"), ends.other("c2")) == ("c2", "c1")
    ends.put(attrs.evolve(HERE, remote=None))
    assert (ends.other("c1"), ends.other("c2")) == (None, None)
    ends.put(HERE)
    ends.remove("c1")
    ends.remove("c1")
    assert ends.other("c2") is None
    ends.put(attrs.evolve(HERE, id="c3"))
    assert ends.other("c2") == "c3", "the first one is gone: there are not two"


@pytest.mark.parametrize(
    ("local", "remote", "where"),
    [("127.0.0.1", "192.0.2.9", "here"), ("192.0.2.9", "127.0.0.1", "here"), ("192.0.2.8", "192.0.2.9", "anywhere")],
)
def test_a_loopback_address_is_of_one_machine_at_either_end(local, remote, where):
    one, other = Endpoint.parse(local, 1), Endpoint.parse(remote, 2)
    ends = Ends()
    ends.put(attrs.evolve(HERE, local=one, remote=other, host="web"))
    ends.put(attrs.evolve(THERE, local=other, remote=one, host="db"))
    assert ends.other("c1") == (None if where == "here" else "c2")


def test_quic_is_udp_at_an_end_that_does_not_know_it():
    ends = Ends()
    ends.put(attrs.evolve(HERE, provider=Provider.QUIC))
    ends.put(attrs.evolve(THERE, provider=Provider.UDP))
    assert ends.other("c1") == "c2"
    ends.put(attrs.evolve(THERE, provider=Provider.TCP))
    assert ends.other("c1") is None


def test_an_end_is_remembered_for_a_moment_and_for_one_flow(monkeypatch):
    seconds = _peers._REMEMBERED_SECONDS
    for age, known in ((seconds - 1, True), (seconds + 1, False), (1 - seconds, True)):
        ends = Ends()
        ends.put(HERE)
        ends.end(HERE, 1000.0)
        ends.put(THERE)
        assert ends.other("c2") is None
        assert (ends.ended("c2", 1000.0 + age) is not None) is known
        assert ends.ended("c2", 1000.0) is None
    monkeypatch.setattr(_peers, "_REMEMBERED", 1)
    ends = Ends()
    for number in range(2):
        ends.put(flow := attrs.evolve(HERE, id=f"x{number}", local=attrs.evolve(CLIENT, port=number + 1)))
        ends.end(flow, 1000.0)
    for number, known in ((0, False), (1, True)):
        ends.put(attrs.evolve(THERE, remote=attrs.evolve(CLIENT, port=number + 1)))
        assert (ends.ended("c2", 1000.0) is not None) is known
    monkeypatch.setattr(_peers, "_MOST_AT_ONE_END", 2)
    ends = Ends()
    for number in range(4):
        ends.put(attrs.evolve(HERE, id=f"x{number}"))
    assert len(ends._keys) == 2

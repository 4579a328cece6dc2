"""Who talks to whom: each byte once, whichever end reports it, and in whatever order."""

from __future__ import annotations

import itertools

import attrs
from aggregate_events import added, counts, removed, updated
from hypothesis import given
from hypothesis import strategies as st

from nstat_async import Counts, Direction, Endpoint, Flow, Peer, Process, Provider
from nstat_async.aggregate import ConnectionTable, Party

CURL, HTTPD = Process(5, "curl"), Process(7, "httpd")
A, B = Endpoint.parse("192.0.2.1", 50_000), Endpoint.parse("192.0.2.2", 80)
CLIENT = Flow(
    "a/1", Provider.TCP, local=A, remote=B, process=CURL, host="a", direction=Direction.OUTBOUND,
    peer=Peer("b", HTTPD, "b/1"),
)  # fmt: skip
SERVER = Flow(
    "b/1", Provider.TCP, local=B, remote=A, process=HTTPD, host="b", direction=Direction.INBOUND,
    peer=Peer("a", CURL, "a/1"),
)  # fmt: skip


def told(*events):
    table = ConnectionTable()
    table.feed_many(events)
    return table


def test_a_byte_that_both_ends_report_counts_once_and_the_reading_that_is_further_is_taken():
    table = told(
        added(CLIENT, 1, counts(0, 0)),
        added(SERVER, 1, counts(0, 0)),
        updated(CLIENT, 2, counts(900, 100)),
        updated(SERVER, 2, counts(100, 1000)),
    )
    [talk] = table.talks()
    assert (talk.client, talk.server, talk.port) == (Party("a", "curl"), Party("b", "httpd"), 80)
    assert (talk.to_server, talk.to_client) == (100, 1000)
    assert (talk.connections, talk.open, talk.both_ends) == (1, 1, 1)
    assert table.total() == 1100


def test_an_end_outside_of_the_fleet_is_an_address():
    outside = Flow("a/2", Provider.TCP, local=A, remote=B, process=CURL, host="a", direction=Direction.OUTBOUND)
    [talk] = told(added(outside, 1, counts(10, 1)), removed(outside, 2, counts(30, 3))).talks()
    assert talk.server == Party(None, None, "192.0.2.2")
    assert (talk.to_server, talk.to_client, talk.open, talk.both_ends) == (3, 30, 0, 0)


def test_what_was_there_before_counts_from_its_first_report_on():
    table = told(added(CLIENT, 1, counts(500, 50), preexisting=True), updated(CLIENT, 2, counts(600, 60)))
    assert table.total() == 110


def test_what_was_there_before_its_first_counts_does_not_count_however_late_they_come():
    unknown = Counts()
    table = told(
        added(CLIENT, 1, unknown, preexisting=True), added(SERVER, 1, None, preexisting=True),
        updated(CLIENT, 2, counts(600, 60)), updated(SERVER, 2, counts(60, 600)), updated(CLIENT, 3, counts(607, 61)),
    )  # fmt: skip
    assert table.total() == 8


def test_a_table_that_begins_in_the_middle_counts_what_the_first_event_added():
    assert told(updated(CLIENT, 2, counts(600, 60), counts(500, 50))).total() == 110
    assert told(updated(CLIENT, 2, counts(600, 60))).total() == 0
    assert told(removed(CLIENT, 2, counts(600, 60))).total() == 0


def test_a_counter_that_is_unknown_for_once_stays_and_counters_that_restart_go_on():
    events = [
        added(CLIENT, 1, counts(600, 60)), updated(CLIENT, 2, Counts(tx_bytes=70)), updated(CLIENT, 3, counts(10, 5)),
        updated(CLIENT, 4, Counts()), removed(CLIENT, 5, None),
    ]  # fmt: skip
    assert [told(*events[:at]).total() for at in range(1, 6)] == [660, 670, 685, 685, 685]


def test_a_flow_that_goes_out_of_sight_and_comes_back_is_open_and_what_it_carried_meanwhile_does_not_count():
    events = [
        added(CLIENT, 1, counts(0, 0)), updated(CLIENT, 2, counts(100, 10)), removed(CLIENT, 3, counts(100, 10), final=False),
        added(CLIENT, 4, counts(150, 15), preexisting=True), updated(CLIENT, 5, counts(170, 17)),
    ]  # fmt: skip
    table = told(*events)
    [talk] = table.talks()
    assert (talk.connections, talk.open, talk.to_client, talk.to_server) == (1, 1, 120, 12)
    assert not table._over
    [talk] = told(*events, removed(CLIENT, 6, counts(175, 17))).talks()
    assert (talk.connections, talk.open, talk.to_client, talk.to_server) == (1, 0, 125, 12)
    older = [added(CLIENT, 0, None, preexisting=True), removed(CLIENT, 0, None), *events[3:]]
    assert told(*older).total() == 22


def test_without_a_fleet_a_byte_between_two_programs_of_this_machine_counts_once():
    client, server, away = (
        attrs.evolve(each, host=None, peer=None) for each in (CLIENT, SERVER, attrs.evolve(CLIENT, id="x", remote=A))
    )
    for one, other in ((client, server), (server, client)):
        table = told(added(one, 1, counts(0, 0)), added(other, 1, counts(0, 0)), added(away, 1, counts(0, 7)))
        both = {client.id: counts(900, 100), server.id: counts(100, 900)}
        table.feed_many(
            [updated(one, 2, both[one.id]), removed(one, 3, both[one.id]), removed(other, 4, both[other.id])]
        )
        talk, outside = table.talks()
        assert (talk.client, talk.server, talk.port) == (Party(None, "curl"), Party(None, "httpd"), 80)
        assert (talk.to_server, talk.to_client, talk.both_ends, talk.open) == (100, 900, 1, 0)
        assert outside.server == Party(None, None, "192.0.2.1")
        assert table.total() == 1007


def test_addresses_that_are_used_again_are_another_connection_of_this_machine(monkeypatch):
    for waiting in (0, 100):
        monkeypatch.setattr("nstat_async.aggregate._connections.WAITING", waiting)
        table = ConnectionTable()
        for number in range(3):
            ends = [attrs.evolve(each, id=f"{each.id}.{number}", host=None, peer=None) for each in (CLIENT, SERVER)]
            table.feed_many(added(each, 1, counts(0, 0)) for each in ends)
            table.feed_many(removed(each, 2, counts(5, 5)) for each in ends)
        assert (table.total(), [talk.both_ends for talk in table.talks()]) == (30, [3])


def test_who_began_it_is_what_one_end_says_and_by_the_ports_where_they_contradict():
    for ways in ((Direction.OUTBOUND, None), (None, Direction.INBOUND), (None, None), (Direction.OUTBOUND,) * 2):
        flows = [attrs.evolve(each, direction=way) for each, way in zip((CLIENT, SERVER), ways, strict=True)]
        for one, other in (flows, flows[::-1]):
            [talk] = told(added(one, 1, counts(3, 9)), added(other, 1, counts(9, 3))).talks()
            assert (talk.client.name, talk.port, talk.both_ends) == ("curl", 80, 1)
            assert talk.to_server == (9 if one.id == "a/1" else 3)


def test_pairs_beyond_the_limit_are_in_the_rest_and_nothing_is_missing(monkeypatch):
    monkeypatch.setattr("nstat_async.aggregate._connections.WAITING", 0)
    table = ConnectionTable(max_talks=10)
    for number in range(50):
        remote = Endpoint.parse("198.51.100.7", 1000 + number)
        each = Flow(f"f{number}", Provider.TCP, local=A, remote=remote, process=CURL, direction=Direction.OUTBOUND)
        table.feed_many([added(each, 1, counts(0, 0)), removed(each, 2, counts(number, 1))])
    assert len(table.talks()) <= 13
    assert table.total() == sum(range(50)) + 50


@given(st.data())
def test_in_any_order_of_reports_the_total_is_what_was_sent(data):
    sent = [data.draw(st.lists(st.integers(0, 1000), max_size=5)) for _ in range(2)]
    lines = []
    for flow, ways in ((CLIENT, sent), (SERVER, sent[::-1])):
        bare = Flow(
            flow.id, flow.provider, local=flow.local, remote=flow.remote, process=flow.process, host=flow.host,
            direction=flow.direction,
        )  # fmt: skip
        tx, rx = sum(ways[0]), sum(ways[1])
        seen = bare if data.draw(st.booleans()) else flow
        lines.append(
            [added(seen, 1, counts(0, 0)), updated(flow, 2, counts(rx // 2, tx // 2)), removed(flow, 3, counts(rx, tx))]
        )
    table = ConnectionTable()
    at = [0, 0]
    for which in data.draw(st.permutations([0, 0, 0, 1, 1, 1])):
        table.feed(lines[which][at[which]])
        at[which] += 1
    assert table.total() == sum(itertools.chain(*sent))
    assert table.talks()[0].both_ends == 1
    assert table.talks()[0].open == 0


def test_a_flow_that_was_disconnected_ends_like_any_other():
    """A resolver disconnects its UDP sockets, and a kernel may forget the other end of TCP before the last report."""
    for provider, total in ((Provider.UDP, 7), (Provider.TCP, 99)):
        flow = Flow("1", provider, local=A, remote=B, process=CURL, direction=Direction.OUTBOUND)
        alone = attrs.evolve(flow, remote=None)
        began = [added(flow, 1, counts(0, 0)), updated(flow, 2, counts(7, 0)), updated(alone, 3, counts(50, 0))]
        table = told(*began, removed(alone, 4, counts(99, 0)), removed(attrs.evolve(alone, id="2"), 4, counts(5, 5)))
        [talk] = table.talks()
        assert (talk.server.address, talk.to_client, talk.open) == ("192.0.2.2", total, 0)


def test_of_the_connections_that_are_over_the_latest_wait_for_their_other_end(monkeypatch):
    monkeypatch.setattr("nstat_async.aggregate._connections.WAITING", 1)
    first, second = CLIENT, attrs.evolve(CLIENT, id="a/2", local=attrs.evolve(A, port=50_002))
    table = ConnectionTable()
    for flow in (first, second):
        table.feed_many([added(flow, 1, counts(0, 0)), removed(flow, 2, counts(10, 1))])
    assert [end.flow for link in table._over.values() for end in link.ends] == [second]


def test_connections_that_are_over_take_no_memory_for_ever(monkeypatch):
    monkeypatch.setattr("nstat_async.aggregate._connections.WAITING", 10)
    table = ConnectionTable()
    for number in range(100):
        each = Flow(f"f{number}", Provider.TCP, local=A, remote=B, process=CURL, direction=Direction.OUTBOUND)
        table.feed_many([added(each, 1, counts(0, 0)), removed(each, 2, counts(5, 5))])
    assert len(table._ends) <= 10
    assert table.total() == 1000
    assert table.talks()[0].connections == 100

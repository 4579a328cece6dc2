"""Which sources of two control sockets are the same kernel socket."""

from __future__ import annotations

import pytest
from ntstat_wire import Wire, address

from nstat_async.ntstat import Mode, Session
from nstat_async.ntstat._takeover import pair


def sources(*flows: dict) -> list:
    """Of one control socket: all alike but for what is said of each; without `rx` nothing was counted yet."""
    wire = Wire(11)
    session = Session(wire.kernel, mode=Mode.FOLLOWING)
    for ref, flow in enumerate(flows, 1):
        fields = dict(flow)
        rx, number = fields.pop("rx", 0), fields.pop("provider", wire.tcp)
        port, remote = fields.pop("port", 5000), fields.pop("remote", "192.0.2.9")
        ends = {"local": address("192.0.2.1", port), "remote": address(remote, 443 if remote else 0)}
        descriptor = wire.descriptor(number, **{"start_timestamp": 77, **ends, **fields})
        if rx is None:
            session.receive_datagram(wire.described(ref, descriptor, provider=number), 1.0)
        else:
            session.receive_datagram(wire.updated(ref, wire.counts(rx, rx), descriptor, provider=number), 1.0)
    return list(session._follower.table.sources.values())


def paired(old: list[dict], new: list[dict]) -> set[tuple[int, int]]:
    """The pairs, by what stands at which place of the two lists."""
    pairs, fresh, left = pair(sources(*old), sources(*new))
    assert (len(fresh), len(left)) == (len(new) - len(pairs), len(old) - len(pairs))
    return {(one.ref, other.ref) for one, other in pairs}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((100, 200, 300), (250, 350, 150), {(1, 3), (2, 1), (3, 2)}),
        ((100, 120), (150, 350), {(1, 1), (2, 2)}),
        ((None, None, 100), (0, 0, 150), {(1, 1), (2, 2), (3, 3)}),
        ((100, 400), (250,), {(1, 1)}),
        ((100, 400), (50,), set()),
    ],
)
def test_of_what_looks_alike_each_goes_on_from_the_most_that_it_can_have_come_from(old, new, expected):
    assert paired([{"rx": rx} for rx in old], [{"rx": rx} for rx in new]) == expected


def test_of_what_looks_alike_open_goes_with_open_and_ended_with_ended():
    old, new = sources({"rx": 100}, {"rx": 120}), sources({"rx": 150}, {"rx": 130})
    pairs, _, _ = pair(old, new, {old[1], new[1]})
    assert {(one.ref, other.ref) for one, other in pairs} == {(1, 1), (2, 2)}


UDP, TCP, ELSEWHERE, OTHER = {"provider": 4}, {}, {"port": 6000}, {"remote": "192.0.2.7"}


@pytest.mark.parametrize("kind", [TCP, UDP])
@pytest.mark.parametrize(
    ("change", "udp", "tcp"),
    [
        ({}, True, True),
        ({"pid": 9, "upid": 9}, True, True),  # handed over
        (OTHER, True, False),  # TCP keeps its peer
        (ELSEWHERE, False, False),
        ({"start_timestamp": 78}, False, False),
    ],
)
def test_one_that_changed_in_a_way_that_a_socket_can_is_the_same(kind, change, udp, tcp):
    assert paired([kind], [{**kind, **change}]) == ({(1, 1)} if (udp if kind is UDP else tcp) else set())


def test_a_socket_that_was_connected_or_bound_since_is_the_same():
    assert paired([{"remote": None}], [{}]) == {(1, 1)}
    assert paired([{"remote": None, "port": 0, **UDP}], [UDP]) == {(1, 1)}


def test_those_of_one_moment_are_told_apart_by_their_ports_and_when_handed_over_by_both_ends():
    bound, connected = [{"remote": None, "port": port} for port in (1, 2)], [{"port": port} for port in (2, 1)]
    assert paired(bound, [*connected, {"local": address(None)}]) == {(1, 2), (2, 1)}
    handed_over = [{**flow, "pid": 9, "upid": 9} for flow in connected]
    assert paired(connected[::-1], [*handed_over, {"remote": None, "pid": 9, "upid": 9}]) == {(1, 2), (2, 1)}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            [{"port": 1}, {"port": 2}],
            [{"port": 3, "pid": 9, "upid": 9}, {"port": 4, "pid": 9, "upid": 9}],
        ),  # one moment
        (
            [{"remote": "192.0.2.1"}, {"remote": "192.0.2.2"}],
            [{"remote": "192.0.2.3"}, {"remote": "192.0.2.4"}],
        ),  # port
        ([{}, {}], [{"pid": 9, "upid": 9}, {"pid": 9, "upid": 9}]),  # addresses
    ],
)
def test_where_a_weaker_sign_fits_several_nobody_guesses(old, new):
    assert paired([{**flow, **UDP} for flow in old], [{**flow, **UDP} for flow in new]) == set()

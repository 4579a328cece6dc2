"""Remotes of unconnected UDP sockets: flows of their own, which never come to more than their socket's."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import attrs
import pytest
from ebpf_records import datagram_record, encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs_fakes import GRANTED, MAPS, NETWORK, RING, Programs, attrs_of, flow_row
from replaying import assert_same, replayed
from sockdiag_fakes import flow_events

from examples import examples
from nstat_async import FlowAdded, FlowRemoved, FlowUpdated, Provider, ProviderRefused, UsageError
from nstat_async._events import RemovalReason
from nstat_async._options import Ebpf
from nstat_async.aggregate import ProcessTable
from nstat_async.ebpf import Flag, Kind, Operation, Record, Tier, encode_answer
from nstat_async.sockdiag import FoundNamespace, NamespacesAnswer, NetworkNamespace

SOCKET = 5
BORN = datagram_record(Kind.FIRST_IO, SOCKET, pid=6, local_port=4000, flags=Flag.HAS_PROCESS | Flag.COUNTED_FROM_BIRTH)
ONE, OTHER = b"\xc0\0\2\1", b"\xc0\0\2\2"
PROVIDERS = ("udp", "udp_subflow")


def watched(granted: Any = GRANTED, **options: Any) -> Programs:
    kernel = Programs(granted=granted, **{"providers": PROVIDERS, **options})
    kernel.start()
    return kernel


def sends(kernel: Programs, total: int, **fields: int) -> None:
    kernel.flows[SOCKET] = flow_row(BORN, tx_payload=total, tx_packets=1, tx_bytes=total, tx_calls=1, **fields)


def released(total: int) -> Record:
    return BORN._replace(kind=Kind.RELEASED, tx_payload=total, tx_packets=1, tx_bytes=total, tx_calls=1)


def ends(kernel: Programs, total: int) -> list[Any]:
    kernel.flows.clear()
    return kernel.ring(released(total))


def remotes(events: list[Any], kind: type = object) -> list[Any]:
    return [e for e in flow_events(events) if e.flow.provider is Provider.UDP_SUBFLOW and isinstance(e, kind)]


def began() -> Programs:
    kernel = watched()
    kernel.ring(BORN)
    sends(kernel, 150)
    kernel.peer(SOCKET, ONE, tx_bytes=100, tx_packets=1)
    kernel.peer(SOCKET, OTHER, tx_bytes=50, tx_packets=1, rx_bytes=7, rx_packets=1)
    return kernel


def test_each_remote_is_a_flow_with_its_sockets_owner():
    kernel = began()
    one, other = remotes(kernel.poll())
    assert (str(one.flow.remote), str(other.flow.remote)) == ("192.0.2.1:53", "192.0.2.2:53")
    assert (one.counts.tx_bytes, other.counts.tx_bytes, other.counts.rx_bytes) == (100, 50, 7)
    assert one.flow.parent == other.flow.parent == "c5"
    assert one.flow.process.pid == 6
    assert not remotes(kernel.poll())
    assert {flow.id for flow, _ in kernel.session.flows()} == {"c5", "c5/1", "c5/2"}
    assert Provider.UDP_SUBFLOW in kernel.session.capabilities.providers
    kernel.peer(SOCKET, ONE, tx_bytes=130, tx_packets=2)
    sends(kernel, 180)
    (updated,) = remotes(kernel.poll())
    assert (type(updated), updated.delta.tx_bytes) == (FlowUpdated, 30)
    kernel.lost = kernel.lost._replace(moved=0)
    assert not remotes(kernel.poll()), "without a list nobody departs"


def test_a_socket_of_another_namespace_has_remotes_too():
    kernel = Programs(providers=PROVIDERS, everywhere=True)
    blue = FoundNamespace(1, NetworkNamespace("blue", device=4, inode=11), NETWORK + 1)
    kernel.came_and_went = [NamespacesAnswer((blue,))]
    kernel.start()
    kernel.feed(encode(attrs_of(BORN)._replace(net_cookie=NETWORK + 1)), RING)
    kernel.peer(SOCKET, ONE, tx_bytes=9, tx_packets=1)
    assert [event.flow.id for event in remotes(kernel.poll())] == ["n1:c5/1"]


def test_remotes_have_the_owner_that_is_found_later_and_begin_now_whatever_their_socket_did():
    kernel = watched()
    nobodys = BORN._replace(pid=0, flags=0)
    kernel.ring(nobodys)
    kernel.peer(99, ONE, tx_bytes=9, tx_packets=1)
    kernel.peer(SOCKET, ONE, tx_bytes=9, tx_packets=1)
    assert not remotes(kernel.poll()), "what waits for its owner has none yet, and an unknown socket has none at all"
    kernel.wait(0.3)
    added = remotes(kernel.poll(), FlowAdded)[0]
    assert (added.flow.process, added.preexisting) == (None, False)
    kernel.ring(BORN)
    updated = remotes(kernel.poll(), FlowUpdated)[0]
    assert (updated.flow.id, updated.flow.process.pid) == (added.flow.id, 6)


def test_who_made_room_is_a_part_of_the_others_from_then_on():
    """And is another flow when it comes again: no byte is counted twice."""
    kernel = began()
    kernel.poll()
    kernel.peers.clear()
    sends(kernel, 190)
    (left, gone, others) = remotes(kernel.poll())
    assert (left.reason, gone.reason, left.final) == (RemovalReason.DROPPED, RemovalReason.DROPPED, False)
    assert (others.flow.id, others.flow.remote, others.counts.tx_bytes) == ("c5/other", None, 40)
    kernel.peer(SOCKET, ONE, tx_bytes=5, tx_packets=1)
    sends(kernel, 195)
    (again,) = remotes(kernel.poll())
    assert (again.flow.id, again.counts.tx_bytes) == ("c5/3", 5)


def test_a_remote_that_made_room_and_came_again_between_two_polls():
    kernel = began()
    kernel.poll()
    kernel.peer(SOCKET, ONE, tx_bytes=5, tx_packets=1)
    sends(kernel, 175)
    events = remotes(kernel.poll())
    assert [type(event) for event in events] == [FlowRemoved, FlowAdded, FlowAdded]
    assert [event.counts.tx_bytes for event in events] == [100, 5, 20]


def test_they_end_after_their_socket_with_all_that_it_counted():
    kernel = began()
    kernel.poll()
    kernel.peer(SOCKET, ONE, tx_bytes=130, tx_packets=1)
    ends(kernel, 200)
    removed = remotes(kernel.poll(), FlowRemoved)
    assert [event.counts.tx_bytes for event in removed] == [130, 50, 20]
    assert all(event.final for event in removed)
    assert Operation.DISMISS in kernel.asked
    assert not kernel.peers
    assert not remotes(kernel.poll())


def test_remotes_of_a_socket_between_two_polls():
    kernel = watched()
    kernel.ring(BORN)
    kernel.peer(SOCKET, ONE, tx_bytes=9, tx_packets=1)
    ends(kernel, 9)
    added, removed = remotes(kernel.poll())
    assert (added.flow.id, removed.counts.tx_bytes, removed.final) == ("c5/1", 9, True)


def test_remotes_of_a_socket_that_ended_before_the_first_poll():
    kernel = Programs(providers=PROVIDERS)
    kernel.silent.add(2)  # polls wait for addresses
    kernel.start()
    kernel.ring(BORN)
    kernel.peer(SOCKET, ONE, tx_bytes=150, tx_packets=1)
    assert not remotes(ends(kernel, 150))
    added, removed = remotes(kernel.wait(1.1))
    assert (type(added), removed.counts.tx_bytes) == (FlowAdded, 150)


def test_an_end_that_came_after_the_list_was_asked_for_waits_for_the_next():
    kernel = began()
    kernel.poll()
    ends(kernel, 150)
    kernel.maps_are_silent = True
    kernel.poll()
    kernel.wait(1.1)
    assert not remotes(kernel.events, FlowRemoved)
    kernel.maps_are_silent = False
    assert len(remotes(kernel.poll(), FlowRemoved)) == 2


def test_a_socket_that_ends_while_the_list_is_made_has_its_last_counts_in_the_next(monkeypatch):
    """After which nobody asks any more until something moves."""
    kernel = began()
    kernel.poll()
    answer = kernel._answer_maps

    def end_first(operation, *request):
        if operation is Operation.PEERS:
            monkeypatch.undo()
            kernel.feed(encode(attrs_of(released(200))), RING)
        answer(operation, *request)

    monkeypatch.setattr(kernel, "_answer_maps", end_first)
    assert not remotes(kernel.poll(), FlowRemoved)
    kernel.flows.clear()
    kernel.peer(SOCKET, ONE, tx_bytes=150, tx_packets=2)
    kernel.lost = kernel.lost._replace(moved=0)
    assert [event.counts.tx_bytes for event in remotes(kernel.poll(), FlowRemoved)] == [150, 50]
    asked = len(kernel.asked)
    kernel.poll()
    assert Operation.PEERS not in kernel.asked[asked:]


def test_a_list_that_is_not_whole_says_nothing(monkeypatch):
    kernel = began()
    kernel.poll()
    for errno, last in ((12, True), (0, False)):
        failed = encode_answer(Operation.PEERS, b"", b"", last=last, errno=errno)
        with monkeypatch.context() as patched:
            patched.setattr(kernel, "_answer_maps", lambda operation, *_, data=failed: kernel.feed(data, MAPS))
            kernel.poll()
            kernel.wait(3.0)
        assert not remotes(kernel.events, FlowRemoved)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (b"\xfe\x80" + bytes(13) + b"\1", "[fe80::1%2]:4660"),
        (b"\x20\1\x0d\xb8" + bytes(11) + b"\1", "[2001:db8::1]:4660"),
        (ONE, "192.0.2.1:4660"),
    ],
)
def test_a_remote_has_its_port_and_if_its_address_is_of_a_link_its_scope(address, text):
    kernel = watched()
    kernel.ring(BORN)
    kernel.peer(SOCKET, address, ifindex=2, port=0x3412)
    (added,) = remotes(kernel.poll())
    assert str(added.flow.remote) == text


def test_nobody_who_did_not_ask_gets_them():
    kernel = watched(providers=("udp",))
    kernel.ring(BORN)
    sends(kernel, 10)
    kernel.poll()
    ends(kernel, 20)
    assert Operation.PEERS not in kernel.asked
    assert kernel.session._books[0].ended is None, "ends are not kept for them"
    assert Provider.UDP_SUBFLOW not in kernel.session.capabilities.providers


@pytest.mark.parametrize(
    ("granted", "mode", "why"),
    [(attrs.evolve(GRANTED, tier=Tier.CALLS), Ebpf.AUTO, "CAP_NET_ADMIN"), (GRANTED, Ebpf.OFF, "off")],
)
def test_without_the_programs_that_count_packets_they_are_refused(granted, mode, why):
    kernel = watched(granted, mode=mode)
    (refused,) = [event for event in kernel.events if isinstance(event, ProviderRefused)]
    assert refused.provider is Provider.UDP_SUBFLOW
    assert why in refused.detail
    kernel.ring(BORN)
    sends(kernel, 10)
    kernel.poll()
    assert Operation.PEERS not in kernel.asked
    assert Provider.UDP_SUBFLOW not in kernel.session.capabilities.providers
    assert Provider.UDP_SUBFLOW in watched().session.capabilities.providers


def test_they_come_with_udp_only():
    with pytest.raises(UsageError, match="udp_subflow together with udp"):
        Programs(providers=("udp_subflow",))
    kernel = Programs(providers=("tcp", "udp_subflow"))
    (refused,) = [event for event in kernel.start() if isinstance(event, ProviderRefused)]
    assert (refused.provider, refused.detail) == (
        Provider.UDP_SUBFLOW,
        "udp_subflow is reported only together with udp",
    )


step = st.one_of(
    st.tuples(st.just("peer"), st.sampled_from((ONE, OTHER, bytes([192, 0, 2, 3]))), st.integers(1, 50)),
    st.tuples(st.just("leave"), st.integers(0, 2)),
    st.tuples(st.just("unseen"), st.integers(1, 50)),
    st.tuples(st.just("poll")),
)


@settings(deadline=None, max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow])
@given(script=st.lists(step, max_size=25))
def test_all_parts_come_to_the_whole_and_the_replay_is_the_run(script):
    """Whatever makes room and comes again; totals count the socket alone."""
    kernel = watched(overflow="all")
    kernel.ring(BORN)
    total = 0
    for name, *rest in script:
        if name == "peer":
            key = next((k for k, row in kernel.peers.items() if row.address[:4] == rest[0]), None)
            before = kernel.peers[key].tx_bytes if key else 0
            kernel.peer(SOCKET, rest[0], tx_bytes=before + rest[1])
            total += rest[1]
        elif name == "leave":
            for key in list(kernel.peers)[rest[0] : rest[0] + 1]:
                del kernel.peers[key]
        elif name == "unseen":
            total += rest[0]
        else:
            sends(kernel, total)
            kernel.poll()
    ends(kernel, total)
    kernel.poll()
    sums: Counter[str] = Counter()
    known: dict[str, int] = {}
    table = ProcessTable()
    for event in kernel.events:
        table.feed(event)
        if isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved)) and event.flow.provider is Provider.UDP_SUBFLOW:
            assert event.counts.tx_bytes >= known.get(event.flow.id, 0)
            known[event.flow.id] = event.counts.tx_bytes
            if isinstance(event, FlowRemoved):
                sums["removed"] += event.counts.tx_bytes
    assert sums["removed"] == sum(known.values()) == (total if known else 0)
    assert sum(row.tx_bytes for row in table.rows()) == total
    kernel.recorded.close()
    kernel.file.seek(0)
    assert isinstance(kernel.file, io.BytesIO)
    assert_same(replayed(kernel.file), kernel.events)

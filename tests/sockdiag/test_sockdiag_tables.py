"""Raw, ICMP and packet sockets: from tables of ``/proc/net``, and joined with what eBPF programs know of them."""

from __future__ import annotations

import errno
from typing import Any

import attrs
import pytest
from ebpf_records import datagram_record
from programs_fakes import GRANTED, MAPS, Programs, flow_row, owner_row
from sockdiag_fakes import flow_events, kinds

from nstat_async import FlowAdded, FlowRemoved, FlowUpdated, ProviderRefused
from nstat_async._events import RemovalReason
from nstat_async._options import Ebpf
from nstat_async.ebpf import Flag, Kind, Operation, SocketType, encode_answer
from nstat_async.sockdiag import LinkMessage, RouteMessage, TableRow

RAW = TableRow("raw", 11, 1000, bytes(4), bytes(4), port=89)
PING = TableRow("icmp", 12, 1000, b"\x7f\0\0\1", b"\x7f\0\0\2", port=77)
FRAMES = TableRow("packet", 13, 0, port=0x88CC, device=2)
ROWS = [RAW, PING, FRAMES]


def watched(mode: Ebpf = Ebpf.OFF, **options: Any) -> Programs:
    kernel = Programs(mode=mode, providers=("raw", "icmp", "packet"), **options)
    kernel.owners = {row.inode: 5 for row in ROWS}
    return kernel


def by_provider(events: list[Any]) -> dict[str, Any]:
    return {event.flow.provider.value: event for event in flow_events(events)}


def test_they_are_there_with_their_owner_and_without_counts():
    kernel = watched()
    kernel.tables = ROWS
    added = by_provider(kernel.start())
    assert {name: event.flow.process.pid for name, event in added.items()} == dict.fromkeys(
        ("raw", "icmp", "packet"), 5
    )
    assert [added[name].flow.protocol for name in ("raw", "icmp", "packet")] == [89, None, 0x88CC]
    assert (str(added["icmp"].flow.local), str(added["icmp"].flow.remote)) == ("127.0.0.1:77", "127.0.0.2:0")
    assert (str(added["raw"].flow.local), added["raw"].flow.remote) == ("0.0.0.0:0", None)
    frames = added["packet"].flow
    assert (frames.local, frames.remote, frames.interface.name) == (None, None, "eth0")
    assert {event.counts.tx_bytes for event in added.values()} == {None}
    assert all(event.preexisting for event in added.values())
    assert added["raw"].flow.id == f"c{(1 << 63) + 11:x}", "which is no cookie that a kernel gives"
    assert kinds(kernel.poll()) == ["PollCompleted"]
    assert {provider.value for provider in kernel.session.capabilities.providers} == {"raw", "icmp", "packet"}


@pytest.mark.parametrize("others", [[PING], [PING, FRAMES]])
@pytest.mark.parametrize("first", [True, False])
def test_one_that_two_readings_do_not_have_is_gone(first, others):
    kernel = watched()
    kernel.tables = [RAW, *others] if first else [*others, RAW]
    kernel.start()
    kernel.tables = others
    assert flow_events(kernel.poll()) == []
    (removed,) = flow_events(kernel.poll())
    assert isinstance(removed, FlowRemoved)
    assert (removed.flow.protocol, removed.final, removed.reason) == (89, False, RemovalReason.GONE)
    assert flow_events(kernel.poll()) == [], "and ends once"


def test_one_that_a_reading_left_out_stays():
    kernel = watched()
    kernel.tables = [RAW]
    kernel.start()
    for rows in ([], [RAW], [], [RAW]):
        kernel.tables = rows
        assert flow_events(kernel.poll()) == []


def test_a_socket_that_connects_is_updated():
    kernel = watched()
    kernel.tables = [RAW]
    kernel.start()
    for port in (0, 5):
        kernel.tables = [attrs.evolve(RAW, remote=b"\xc0\0\2\1", remote_port=port)]
        (updated,) = flow_events(kernel.poll())
        assert isinstance(updated, FlowUpdated)
        assert str(updated.flow.remote) == f"192.0.2.1:{port}"


def test_a_renamed_interface_is_an_update_of_those_that_have_an_address():
    kernel = watched()
    kernel.tables = [FRAMES, PING]
    kernel.start()
    kernel.feed(LinkMessage(1, 772, "lo7").encode(RouteMessage.NEWLINK), 2)
    kernel.tables = [FRAMES, attrs.evolve(PING, inode=20, port=78), PING]
    updated, added = flow_events(kernel.poll())
    assert [(type(event), event.flow.interface.name) for event in (updated, added)] == [
        (FlowUpdated, "lo7"),
        (FlowAdded, "lo7"),
    ]


def test_a_kernel_without_the_tables_refuses_once():
    kernel = watched()
    kernel.missing_tables = {"icmp", "icmp6"}
    refused = [event for event in kernel.start() if isinstance(event, ProviderRefused)]
    assert [(event.provider.value, event.errno) for event in refused] == [("icmp", errno.ENOENT)]
    assert not [event for event in kernel.poll() if isinstance(event, ProviderRefused)]


def test_one_table_of_two_is_enough():
    kernel = watched()
    kernel.missing_tables = {"raw6"}
    assert not [event for event in kernel.start() if isinstance(event, ProviderRefused)]


def test_tables_that_cannot_be_read_hold_up_no_poll():
    kernel = watched()
    kernel.tables = [RAW]
    kernel.start()
    kernel.hold_lookups = True
    assert "PollCompleted" not in kinds(kernel.poll())
    (held,) = [command for command in kernel.held if "Tables" in type(command.request).__name__]
    kernel.session.lookup_done(held.token, None, kernel.now)
    assert "PollCompleted" in kinds(kernel.run())


@pytest.mark.parametrize("value", [-1, 1 << 40])
def test_numbers_that_fit_no_message_do_not_end_anything(value):
    """A recording may have anything."""
    kernel = watched()
    kernel.tables = [attrs.evolve(RAW, inode=value, uid=value, port=value, device=value, local=bytes(99))]
    assert "PollCompleted" in kinds(kernel.start())


def ping(cookie: int = 40, **fields: Any) -> Any:
    return datagram_record(Kind.FIRST_IO, cookie, pid=6, protocol=1, local_port=77, **fields)


def test_with_programs_they_have_bytes_and_end_at_once():
    kernel = watched(Ebpf.AUTO)
    kernel.start()
    born = ping(flags=Flag.HAS_PROCESS | Flag.COUNTED_FROM_BIRTH)
    (added,) = flow_events(kernel.ring(born))[:1]
    assert (added.flow.provider.value, added.flow.process.pid, added.counts.tx_bytes) == ("icmp", 6, 0)
    kernel.flows[40] = flow_row(born, tx_bytes=64, tx_calls=1, rx_bytes=64, rx_calls=1)
    (counted,) = flow_events(kernel.poll())
    assert (counted.counts.tx_bytes, counted.counts.rx_bytes) == (64, 64)
    released = born._replace(kind=Kind.RELEASED, tx_bytes=100, tx_calls=2, rx_bytes=64, rx_calls=1)
    (removed,) = flow_events(kernel.ring(released))
    assert (removed.flow.id, removed.final, removed.counts.tx_bytes) == (added.flow.id, True, 100)


def test_a_socket_in_table_record_and_walk_is_one_flow():
    """The table knows an inode, the record a cookie, the walk both."""
    kernel = watched(Ebpf.AUTO)
    kernel.start()
    (added, *_) = flow_events(kernel.ring(ping()))
    kernel.tables, kernel.held_sockets = [PING], [owner_row(ping(), PING.inode)]
    for _ in range(4):
        kernel.poll()
    assert [event.flow.id for event in kernel.events if isinstance(event, FlowAdded)] == [added.flow.id]


def test_a_socket_that_did_nothing_yet_is_found_by_a_walk():
    kernel = watched(Ebpf.AUTO)
    kernel.start()
    kernel.tables, kernel.held_sockets = [PING], [owner_row(ping(), PING.inode)]
    kernel.asked.clear()
    kernel.poll()
    assert Operation.OWNERS not in kernel.asked
    kernel.poll()
    assert Operation.OWNERS in kernel.asked
    assert [event.flow.id for event in kernel.events if isinstance(event, FlowAdded)] == ["c28"]


def test_a_socket_that_no_walk_finds_is_known_by_its_inode():
    kernel = watched(Ebpf.AUTO)
    kernel.start()
    kernel.tables = [PING]
    for _ in range(3):
        kernel.poll()
    (added,) = [event for event in kernel.events if isinstance(event, FlowAdded)]
    assert added.flow.process.pid == 5
    kernel.asked.clear()
    kernel.poll()
    assert Operation.OWNERS not in kernel.asked


def test_a_walk_that_failed_found_nothing_and_proves_nothing():
    kernel = watched(Ebpf.AUTO)
    kernel.start()
    kernel.tables = [PING]
    answer = kernel._answer_maps
    failed = encode_answer(Operation.OWNERS, b"", b"", last=True, errno=errno.ENOMEM)
    kernel._answer_maps = lambda operation, *rest: (
        kernel.feed(failed, MAPS) if operation is Operation.OWNERS else answer(operation, *rest)
    )
    for _ in range(4):
        kernel.poll()
    assert not flow_events(kernel.events)
    kernel._answer_maps = answer
    kernel.held_sockets = [owner_row(ping(), PING.inode)]
    kernel.poll()
    assert [event.flow.id for event in kernel.events if isinstance(event, FlowAdded)] == ["c28"], "it has its cookie"


def test_a_packet_socket_ends_by_its_absence_with_its_last_counts():
    """No hook sees its end: its counts are taken from the map."""
    kernel = watched(Ebpf.AUTO, granted=GRANTED)
    kernel.start()
    frames = datagram_record(Kind.FIRST_IO, 41, pid=6, family=17, protocol=0, type=SocketType.RAW)
    kernel.tables, kernel.held_sockets = [FRAMES], [owner_row(frames, FRAMES.inode)]
    kernel.ring(frames)
    kernel.poll()
    kernel.poll()
    assert Operation.OWNERS in kernel.asked
    kernel.tables, kernel.held_sockets = [], []
    kernel.flows[41] = flow_row(frames, tx_bytes=60, tx_calls=1)
    kernel.poll()
    kernel.poll()
    (removed,) = [event for event in kernel.events if isinstance(event, FlowRemoved)]
    assert (removed.flow.provider.value, removed.counts.tx_bytes) == ("packet", 60)
    assert removed.reason is RemovalReason.CLOSED


def test_a_raw_socket_of_udp_is_no_udp_socket():
    kernel = Programs(mode=Ebpf.AUTO)
    kernel.start()
    assert flow_events(kernel.ring(datagram_record(Kind.FIRST_IO, 42, pid=6, type=SocketType.RAW))) == []

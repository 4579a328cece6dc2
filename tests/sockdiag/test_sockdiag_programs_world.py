"""Whatever comes from eBPF programs, in any order: flows begin and end once."""

from __future__ import annotations

import random
from typing import Any

import attrs
import programs_lives
from ebpf_records import datagram_record, record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs_fakes import GRANTED, MAPS, PORTS, PROVIDERS, REMOTE, RING, Programs, flow_row, owner_row
from replaying import assert_same, replayed
from sockdiag_fakes import FakeSocket, flow_events

from examples import examples
from nstat_async import FlowAdded, FlowRemoved
from nstat_async.ebpf import Kind, SocketType, Tier
from nstat_async.sockdiag import TableRow

OTHERS = {
    "raw": {"protocol": 1, "type": SocketType.RAW},
    "icmp": {"protocol": 58, "family": 10, "local_port": 77},
    "packet": {"protocol": 0, "type": SocketType.RAW, "family": 17},
}
common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

action = st.one_of(
    st.tuples(
        st.just("record"),
        st.sampled_from(list(Kind)),
        st.integers(1, 4),
        st.booleans(),
        st.integers(0, 3),
        st.booleans(),
    ),
    st.tuples(st.just("other"), st.integers(1, 4), st.sampled_from(("raw", "icmp", "packet")), st.booleans()),
    st.tuples(st.just("table"), st.integers(1, 4), st.sampled_from(("raw", "icmp6", "packet"))),
    st.tuples(st.just("no table"), st.integers(1, 4)),
    st.tuples(st.just("removal"), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("row"), st.integers(1, 4), st.booleans()),
    st.tuples(st.just("counts"), st.integers(1, 4), st.integers(0, 1000)),
    st.tuples(st.just("lost"), st.integers(0, 2)),
    st.tuples(st.just("garbage"), st.sampled_from((RING, MAPS)), st.binary(max_size=300)),
    st.tuples(st.just("failed"), st.sampled_from((RING, MAPS))),
    st.tuples(st.just("silent"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from((0.01, 0.06, 0.3, 1.1))),
    st.tuples(st.just("poll")),
)


def act(kernel: Programs, name: str, *rest: Any) -> None:
    if name == "record":
        kind, cookie, tcp, pid, ported = rest
        make = record if tcp else datagram_record
        kernel.ring(make(kind, cookie, time=round(kernel.now * 1e9), pid=pid, **(PORTS if ported else {})))
    elif name == "other":
        sock = datagram_record(Kind.FIRST_IO, rest[0], pid=5, **OTHERS[rest[1]])
        kernel.ring(sock)
        if rest[2]:
            kernel.held_sockets.append(owner_row(sock, rest[0]))
    elif name == "table":
        kernel.tables.append(TableRow(rest[1], rest[0], 0, local=bytes(4), port=1))
    elif name == "no table":
        kernel.tables = [row for row in kernel.tables if row.inode != rest[0]]
    elif name == "removal":
        kernel.feed(FakeSocket(rest[0], remote=REMOTE, protocol=6 if rest[1] else 17).message(final=True), 1)
        kernel.sockets.pop(rest[0], None)
    elif name == "row":
        kernel.sockets[rest[0]] = FakeSocket(rest[0], remote=REMOTE, protocol=6 if rest[1] else 17, inode=rest[0])
    elif name == "counts":
        kernel.flows[rest[0]] = flow_row(datagram_record(Kind.FIRST_IO, rest[0], **PORTS), tx_bytes=rest[1])
    elif name == "lost":
        kernel.lost = kernel.lost._replace(ring_full=kernel.lost.ring_full + rest[0])
    elif name == "garbage":
        kernel.feed(rest[1], rest[0])
    elif name == "failed":
        kernel.recorded.channel_failed(rest[0], 5, kernel.now)
    elif name == "silent":
        kernel.maps_are_silent = rest[0]
    elif name == "wait":
        kernel.wait(rest[0])
    else:
        kernel.poll()
    kernel.run()


@settings(common, max_examples=examples(80))
@given(
    granted=st.sampled_from((GRANTED, attrs.evolve(GRANTED, tier=Tier.CALLS, births=False, owners=False))),
    script=st.lists(action, max_size=30),
)
def test_whatever_comes_flows_begin_and_end_once_and_the_replay_is_the_run(granted, script):
    kernel = Programs(granted=granted, providers=PROVIDERS)
    kernel.start()
    for step in script:
        act(kernel, *step)
    open_flows: set[str] = set()
    for event in flow_events(kernel.events):
        if isinstance(event, FlowAdded):
            assert event.flow.id not in open_flows
            open_flows.add(event.flow.id)
        else:
            assert event.flow.id in open_flows
        if isinstance(event, FlowRemoved):
            open_flows.discard(event.flow.id)
    kernel.recorded.close()
    kernel.file.seek(0)
    assert_same(replayed(kernel.file), kernel.events)


@settings(common, max_examples=examples(80))
@given(st.integers(0, 1 << 32))
def test_whatever_is_read_late_or_lost_no_flow_stays_when_its_socket_is_gone(seed):
    programs_lives.play(random.Random(seed))

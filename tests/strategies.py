"""Hypothesis strategies of values and events, for every test that needs any of them."""

from __future__ import annotations

import enum
from uuid import UUID

from hypothesis import strategies as st

import nstat_async as n
from nstat_async._events import Auxiliary, AuxiliaryFailed
from nstat_async._model import COUNTS_FIELDS
from nstat_async._rows import Row, RowKind

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
"""Without lone surrogates, for which JSON has U+FFFD."""
amounts = st.integers(0, 2**64) | st.integers(0, 10**40)
numbers = st.integers(-(2**70), 2**70)
moments = st.integers(1 - 2**64, 2**64 - 1)
times = st.floats(allow_nan=False, allow_infinity=False)
uuids = st.builds(UUID, int=st.integers(0, 2**128 - 1))
packed = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
endpoints = st.builds(n.Endpoint, packed, st.integers(0, 65535), st.none() | numbers)


def members(kind: type[enum.Enum]) -> st.SearchStrategy:
    return st.sampled_from(list(kind))


def maybe(strategy: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | strategy


processes = st.builds(
    n.Process, numbers, maybe(texts), maybe(numbers), maybe(numbers), maybe(numbers), maybe(uuids), maybe(uuids),
    maybe(numbers), maybe(numbers), maybe(texts),
)  # fmt: skip
interfaces = st.builds(n.Interface, maybe(numbers), maybe(texts), maybe(members(n.InterfaceKind)), maybe(numbers))
peers = st.builds(n.Peer, maybe(texts), maybe(processes), maybe(texts))
flows = st.builds(
    n.Flow, texts, members(n.Provider), maybe(st.booleans()), maybe(endpoints), maybe(endpoints), maybe(processes),
    maybe(interfaces), maybe(members(n.TcpState)), maybe(members(n.Direction)), maybe(moments), maybe(uuids),
    maybe(uuids), maybe(numbers), maybe(numbers), maybe(numbers), maybe(uuids), maybe(texts), host=maybe(texts), peer=maybe(peers),
)  # fmt: skip
mediums = st.builds(n.MediumCounts, amounts, amounts, amounts, amounts)
counts = st.builds(
    lambda media, values: n.Counts(media=media, **dict(zip(COUNTS_FIELDS, values, strict=True))),
    st.dictionaries(texts, mediums, max_size=2),
    st.tuples(*(maybe(amounts) for _ in COUNTS_FIELDS)),
)
domains = st.builds(
    n.DomainInfo, name=maybe(texts), owner=maybe(texts), tracker_context=maybe(texts), remote=maybe(endpoints),
    attributed_bundle_id=maybe(texts), is_tracker=st.booleans(), is_silent=st.booleans(),
)  # fmt: skip
_INTEGERS = [
    "congestion_window",
    "send_window",
    "unacked_bytes",
    "send_buffer_size",
    "send_buffer_used",
    "receive_buffer_size",
    "receive_buffer_used",
    "traffic_mgt_flags",
    "connection_status",
    "rx_transfer_size",
    "tx_transfer_size",
    "activity_started_s",
    "activity",
    "sampled_at_ns",
    "cgroup_id",
    "mark",
    "delivery_rate",
    "pacing_rate",
    "min_rtt_us",
    "retransmits",
    "lost",
    "mss",
    "path_mtu",
    "rto_us",
    "inode",
]
details = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(_INTEGERS, numbers),
        "congestion_control": texts, "domain": domains, "original_domain": domains, "bluetooth": mediums,
        "necp_parameters": st.binary(max_size=4), "undecoded": st.binary(max_size=4),
    },
).map(lambda fields: n.Details(**{k: v for k, v in fields.items() if v != b"" or k == "undecoded"}))  # fmt: skip
_some = maybe(counts)
flow_events = st.one_of(
    st.builds(n.FlowAdded, times, flows, _some, st.booleans(), maybe(details)),
    st.builds(n.FlowUpdated, times, flows, counts, _some, maybe(details)),
    st.builds(n.FlowRemoved, times, flows, _some, st.booleans(), members(n.RemovalReason), maybe(details)),
)
_pairs = st.dictionaries(texts, numbers, max_size=3).map(lambda found: tuple(found.items()))
_settings = st.lists(st.tuples(numbers, numbers | times | texts), max_size=3).map(tuple)
other_events = st.one_of(
    st.builds(n.PollCompleted, times, amounts, st.booleans(), maybe(amounts), host=maybe(texts)),
    st.builds(n.EventsLost, times, members(n.LossCause), maybe(amounts), _some, maybe(texts), host=maybe(texts)),
    st.builds(n.ProviderRefused, times, members(n.Provider), numbers, texts),
    st.builds(AuxiliaryFailed, times, members(Auxiliary), texts, host=maybe(texts)),
    st.builds(n.InterfaceUpdated, times, interfaces, counts, maybe(texts), maybe(numbers), _pairs),
    st.builds(
        n.RouteUpdated, times, texts, maybe(endpoints), maybe(endpoints), maybe(endpoints), maybe(interfaces), numbers,
        counts, st.booleans(),
    ),
    st.builds(n.SystemInfo, times, _settings, host=maybe(texts)),
    st.builds(n.Unrecognized, times, numbers, st.binary(max_size=8)),
    st.builds(
        n.HostUpdated, times, members(n.HostState), host=maybe(texts), machine_id=maybe(texts), boot_id=maybe(texts),
        labels=st.dictionaries(texts, texts, max_size=2).map(lambda found: tuple(found.items())),
        clock_offset=maybe(times), last_heard=maybe(times), detail=maybe(texts),
    ),
)  # fmt: skip
events = flow_events | other_events
_rates = maybe(st.floats(0, 1e18))


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Rows as tables make them: of a process, of another key, or of no group at all."""
    kind = draw(members(RowKind))
    process = draw(processes) if kind is RowKind.GROUP and draw(st.booleans()) else None
    key = None
    if kind is RowKind.GROUP:
        key = process.key if process is not None else draw(texts | numbers)
    seen = {"first_seen": draw(maybe(times)), "last_seen": draw(maybe(times)), "source": draw(maybe(texts))}
    flows_seen = draw(st.integers(1, 2**70))
    if draw(st.booleans()):  # nothing was ever counted
        return Row(kind=kind, key=key, process=process, flows=flows_seen, uncounted_flows=flows_seen, **seen)
    return Row(
        kind=kind, key=key, process=process, flows=flows_seen + 1, open_flows=draw(amounts), uncounted_flows=1,
        rx_bytes=draw(amounts), tx_bytes=draw(amounts), rx_packets=draw(amounts), tx_packets=draw(amounts),
        rx_rate=draw(_rates), tx_rate=draw(_rates), **seen,
    )  # fmt: skip

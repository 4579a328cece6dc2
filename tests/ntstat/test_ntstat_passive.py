"""Recorded conversations through passive sessions: lives, sums, finals, losses, truth."""

from __future__ import annotations

import collections

import attrs
import conversation_play as playing
import conversations
import pytest
from ntstat_reader import Reader

from nstat_async import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, LossCause, Provider, RemovalReason
from nstat_async.ntstat import Mode, Session

_FIELDS = {
    "rx_packets": "rxpackets",
    "rx_bytes": "rxbytes",
    "tx_packets": "txpackets",
    "tx_bytes": "txbytes",
    "cell_rx_bytes": "cell_rxbytes",
    "cell_tx_bytes": "cell_txbytes",
    "wifi_rx_bytes": "wifi_rxbytes",
    "wifi_tx_bytes": "wifi_txbytes",
    "wired_rx_bytes": "wired_rxbytes",
    "wired_tx_bytes": "wired_txbytes",
    "rx_duplicate_bytes": "rxduplicatebytes",
    "rx_out_of_order_bytes": "rxoutoforderbytes",
    "tx_retransmitted_bytes": "txretransmit",
    "connect_attempts": "connectattempts",
    "connect_successes": "connectsuccesses",
}
_TCP_ONLY = list(_FIELDS)[10:]


def _expected_counts(provider: Provider, raw: dict) -> dict:
    """Counters as the user sees them, from those on the wire."""
    values = {ours: raw.get(theirs) for ours, theirs in _FIELDS.items()}
    rtt = {"min_rtt_us": ("min_rtt", 32), "avg_rtt_us": ("avg_rtt", 32), "var_rtt_us": ("var_rtt", 16)}
    for ours, (theirs, scale) in rtt.items():
        value = raw.get(theirs)
        values[ours] = value * 1000 // scale if value and raw["avg_rtt"] else None
    known = set(values)
    if provider in {Provider.UDP, Provider.UDP_SUBFLOW}:
        known -= {*_TCP_ONLY, *rtt}
    if provider is Provider.UDP_SUBFLOW:
        known -= set(list(_FIELDS)[4:10])
    if provider is Provider.CONNECTION:
        known = set()
    return {k: v if k in known else None for k, v in values.items()}


@pytest.mark.parametrize("name", conversations.names())
def test_each_flow_lives_once_and_its_counters_add_up(name):
    theirs = Reader.of(conversations.kernel(name))
    _, steps = playing.play(name)
    seen: dict[tuple[int, int], dict[int, playing.Seen]] = collections.defaultdict(dict)
    lives: dict[str, list] = {}
    owners: dict[str, tuple[int, int, int]] = {}
    finals_lost = 0
    for step in steps:
        playing.note(theirs, seen[step.client, max(step.socket, 1)], step)
        for event in step.events:
            if isinstance(event, playing.FLOW_EVENTS):
                lives.setdefault(event.flow.id, []).append(event)
                owners.setdefault(event.flow.id, (step.client, playing.socket_of(event), playing.reference(event)))
            elif isinstance(event, EventsLost) and event.cause is LossCause.FINAL_COUNTS:
                finals_lost += event.count
    expected = {
        (*where, ref): entry
        for where, sources in seen.items()
        for ref, entry in sources.items()
        if entry.provider is None or entry.provider in playing.FLOW_PROVIDERS
    }
    assert sorted(owners.values()) == sorted(expected)
    not_final = 0
    for flow_id, events in lives.items():
        entry = expected[owners[flow_id]]
        first, *middle = events
        assert isinstance(first, FlowAdded)
        last = events[-1]
        if isinstance(last, FlowRemoved):
            middle = middle[:-1]
        assert all(isinstance(e, FlowUpdated) for e in middle)
        assert (entry.removed is not None) <= isinstance(last, FlowRemoved)
        if isinstance(last, FlowRemoved):
            final = entry.last_counts is not None and (entry.closing or entry.goodbye == 2)
            assert last.final == final, flow_id
            not_final += not last.final and last.reason is not RemovalReason.MONITOR
        _sums(first, middle, last)
        if entry.last_counts is None:
            assert last.counts is None
        elif not last.flow.userland:
            assert last.counts.as_dict() == _expected_counts(last.flow.provider, entry.last_counts), flow_id
    assert finals_lost == not_final


def _sums(first, middle, last) -> None:
    """Counters never fall, `previous` is the last event's, and the deltas add up to the last counters."""
    told = first.counts
    total = [first.counts.rx_bytes or 0, first.counts.tx_bytes or 0] if first.counts else [0, 0]
    for event in middle:
        assert event.previous == told
        for field, value in told.items() if told is not None else ():
            if field not in {"connect_attempts", "connect_successes"} and not field.endswith("_rtt_us"):
                assert getattr(event.counts, field) >= value, field
        total[0] += event.delta.rx_bytes or 0
        total[1] += event.delta.tx_bytes or 0
        told = event.counts
    if isinstance(last, FlowRemoved) and last.counts is not None:
        delta = last.counts.since(told)
        total[0] += delta.rx_bytes or 0
        total[1] += delta.tx_bytes or 0
        told = last.counts
    if told is not None:
        assert total == [told.rx_bytes or 0, told.tx_bytes or 0]


@pytest.mark.parametrize("name", conversations.names("control/*", with_truth=True))
def test_last_counters_and_facts_are_those_that_were_set(name):
    truth = conversations.truth(name)
    _, steps = playing.play(name)
    last: dict = {}
    reports: dict = collections.defaultdict(dict)
    for step in steps:
        for kind, _, ref, _ in step.messages:
            reports[step.client, ref][kind] = playing.seconds(step.line)
        for event in step.events:
            if isinstance(event, playing.FLOW_EVENTS):
                last[step.client, playing.reference(event)] = event
    checked = 0
    for client, sources in truth["sources"].items():
        for ref, source in sources.items():
            event = last.get((int(client), int(ref)))
            if event is None:
                continue  # never reported
            seen = reports[int(client), int(ref)]
            counted = max((seen[k] for k in playing.COUNTING if k in seen), default=-1)
            known = [h for h in source["history"] if h["t"] / 1e9 <= counted + 1e-9 and "counts" in h]
            if known and event.counts is not None and (not event.flow.userland or len(known) == 1):
                raw = {k.removeprefix("nstat_"): v for k, v in known[-1]["counts"].items()}
                expected = _expected_counts(event.flow.provider, raw)
                ours = event.counts.as_dict()
                different = {k for k in expected if ours[k] != expected[k]}
                # What the kernel computes from the connection's state at the moment of the report.
                different -= {"connect_attempts", "connect_successes"}
                different -= {k for k in different if ours[k] is None and k not in raw}
                assert not different, (ref, different, ours, expected)
                checked += 1
            described = max((seen[k] for k in playing.DESCRIBING if k in seen), default=-1)
            facts = [h["desc"] for h in source["history"] if "desc" in h and h["t"] / 1e9 <= described + 1e-9]
            if facts:
                _check_flow(event.flow, facts[-1])
                checked += 1
    assert checked or not truth["sources"] or not last


def _second_uuid(process, facts: dict):
    """The second UUID is an effective process', or, where that has no pid, the responsible process'."""
    responsible = facts["pid"] and not facts.get("epid") and not facts.get("eupid")
    return process.responsible_uuid if responsible else process.effective_uuid


def _check_flow(flow, facts: dict) -> None:
    process = flow.process
    if facts.get("pid"):
        assert process.pid == facts["pid"]
        assert process.unique_pid == (facts["upid"] or None)
        if "epid" in facts:
            assert process.effective_pid == (facts["epid"] or None)
            assert process.effective_unique_pid == (facts["eupid"] or None)
        assert process.name == (facts["pname"] or None)
    for ours, theirs in (
        (flow.uuid, facts.get("cuuid", facts.get("fuuid"))),
        (flow.vpn_uuid, facts.get("vuuid")),
        (flow.parent_uuid, facts.get("puuid")),
        (process and process.uuid, facts.get("uuid")),
        (process and _second_uuid(process, facts), facts.get("euuid")),
    ):
        if theirs is not None:
            assert (ours.hex if ours is not None else "0" * 32) == theirs
    if "uid" in facts:
        assert process.uid == facts["uid"]
    if facts.get("ifindex") and flow.provider is not Provider.CONNECTION:  # whose descriptor has no index
        assert flow.interface.index == facts["ifindex"]


@pytest.mark.parametrize("name", conversations.names("stack/*", with_truth=True))
def test_events_agree_with_the_kernel_s_own_structures_at_their_moment(name):
    snapshots = conversations.truth(name)["snapshots"]
    _, steps = playing.play(name)
    checked = 0
    for step in steps:
        current = [s for s in snapshots if s["before_i"] <= step.line["i"]]
        if not current:
            continue
        sources = current[-1]["sources"]
        kinds = {ref: (kind, flags) for kind, flags, ref, _ in step.messages}
        for event in step.events:
            if not isinstance(event, (FlowAdded, FlowUpdated)):
                continue
            ref = playing.reference(event)
            kind, flags = kinds.get(ref, (0, 4))
            facts = sources.get(str(ref))
            if facts is None or flags & 4:
                continue
            if kind in {playing.COUNTS, playing.UPDATE, playing.EXTENDED} and "counts" in facts:
                expected = _expected_counts(event.flow.provider, facts["counts"])
                ours = event.counts.as_dict()
                expected.pop("min_rtt_us")
                assert {k: ours[k] for k in expected} == expected, ref
                checked += 1
            if kind in {playing.DESC, playing.UPDATE, playing.EXTENDED} and "pid" in facts:
                _check_stack_flow(event.flow, facts)
                checked += 1
    assert checked or name.endswith(("a_no_sockets", "d_overflow_added", "h_idle")), "nothing was compared"


def _check_stack_flow(flow, facts: dict) -> None:
    for ours, address, port in (
        ()
        if flow.provider is Provider.CONNECTION
        else (
            (flow.local, facts["local_addr"], facts["local_port"]),
            (flow.remote, facts["remote_addr"], facts["remote_port"]),
        )
    ):
        if address in {"0.0.0.0", "::"} and not port:
            assert ours is None
        else:
            assert (ours.address, ours.port) == (address, port)
    assert flow.process.pid == facts["pid"]
    assert flow.process.unique_pid == facts["upid"]
    assert flow.process.effective_pid == facts["epid"]
    assert flow.process.name == facts["pname"]
    assert str(flow.process.uuid) == facts["uuid"]
    assert str(_second_uuid(flow.process, facts)) == facts["euuid"]
    if "ifindex" in facts:
        assert (flow.interface.index if flow.interface else 0) == facts["ifindex"]
    assert flow.traffic_class == facts.get("traffic_class", flow.traffic_class)
    if "start_timestamp" in facts:
        assert abs(flow.started_ns - facts["start_timestamp"]) < 1_000
    if "state_name" in facts:
        assert flow.state.name == facts["state_name"]


@pytest.mark.parametrize("name", [n for n in conversations.names() if "xnu-2422" not in n])
def test_how_messages_are_cut_into_datagrams_changes_no_event(name):
    """One message a datagram, or as many as fit: since 10.11 both are the same conversation."""
    kernel = conversations.kernel(name)
    theirs = Reader.of(kernel)
    sessions, steps = playing.play(name)
    expected: dict[int, list] = collections.defaultdict(list)
    for step in steps:
        expected[step.client] += step.events
    apart = {client: Session(kernel, client=client, mode=Mode.FOLLOWING) for client in sessions}
    found: dict[int, list] = collections.defaultdict(list)
    for step in playing.play(name)[1]:
        client = step.client
        if step.line["dir"] == "end":
            apart[client].finish(step.line["t"])
        elif step.line["dir"] == "to_kernel":
            apart[client].observe_request(bytes.fromhex(step.line["hex"]), playing.seconds(step.line))
        else:
            data, end = bytes.fromhex(step.line["hex"]), 0
            for begin, end in theirs.messages(data):
                apart[client].receive_datagram(data[begin:end], playing.seconds(step.line))
            if end < len(data):
                apart[client].receive_datagram(data[end:], playing.seconds(step.line))
        found[client] += apart[client].take_events()
    for client in sessions:
        # A cut record's rest has another text, and no other meaning.
        assert [_plain(e) for e in found[client]] == [_plain(e) for e in expected[client]]


def _plain(event):
    return attrs.evolve(event, detail=None) if isinstance(event, EventsLost) else event


def test_a_list_that_the_kernel_refused_to_finish_is_a_loss_of_unknown_size():
    """What was asked for once more is refused for another reason, and loses nothing; nor does a list without announcements."""
    _, steps = playing.play("control/xnu-10063.141.1/buffer_full_addall")
    losses = [
        (step.line["i"], event.cause, event.count)
        for step in steps
        for event in step.events
        if isinstance(event, EventsLost)
    ]
    partial = [at for at, cause, count in losses if cause is LossCause.ANNOUNCEMENT and count is None]
    assert partial == [495, 897]

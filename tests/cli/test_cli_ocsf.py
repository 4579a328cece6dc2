"""OCSF: every line has what the schema demands, and says what the event said."""

from __future__ import annotations

import json

import attrs
import pytest
import sample_events as sample
import strategies
from hypothesis import given
from hypothesis import strategies as st

from nstat_async import (
    Counts,
    Direction,
    Endpoint,
    EventsLost,
    Flow,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    Outcome,
    PollCompleted,
    Provider,
    RemovalReason,
    TcpState,
)
from nstat_async._cli._ocsf import OcsfFormatter

REQUIRED = {
    "": {"activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid"},
    "metadata": {"product", "version"},
    "connection_info": {"direction_id"},
    "device": {"type_id"},
}
"""What OCSF 1.8 requires of network activity and its objects."""
ONE_OF = {
    "": {"src_endpoint", "dst_endpoint"},
    "src_endpoint": {"ip", "uid", "name", "hostname", "instance_uid", "interface_uid", "interface_name"},
    "dst_endpoint": {"ip", "uid", "name", "hostname", "instance_uid", "interface_uid", "interface_name"},
    "product": {"name", "uid"},
    "actor": {"process", "user"},
    "process": {"pid", "uid", "cpid"},
    "user": {"account", "name", "uid"},
}
"""Of which at least one is there."""
INTEGERS = {
    "activity_id", "category_uid", "class_uid", "type_uid", "severity_id", "status_id", "time", "start_time", "end_time",
    "direction_id", "boundary_id", "protocol_num", "protocol_ver_id", "type_id", "port", "pid", "bytes", "bytes_in",
    "bytes_out", "bytes_missed", "packets", "packets_in", "packets_out",
}  # fmt: skip
TEXTS = {
    "ip", "hostname", "name", "interface_name", "uid", "protocol_name", "activity_name", "class_name", "version",
    "vendor_name", "message", "path", "cmd_line", "status_detail", "app_protocol_name",
}  # fmt: skip
ACTIVITIES = {1, 2, 3, 4, 5, 6, 7, 99}


def check(value: object, name: str = "") -> None:
    """Whether an object is one of the schema."""
    if name == "unmapped" or not isinstance(value, dict):
        return
    assert value.keys() >= REQUIRED.get(name, set())
    assert name not in ONE_OF or value.keys() & ONE_OF[name], (name, value)
    for key, item in value.items():
        assert item is not None
        if key in INTEGERS:
            assert type(item) is int
            assert abs(item) < 2**63
        elif key in TEXTS:
            assert type(item) is str
        check(item, key)


def parsed(line: str) -> dict:
    assert line.isascii()
    found = json.loads(line, parse_constant=pytest.fail)
    check(found)
    assert found["class_uid"] == 4001
    assert found["category_uid"] == 4
    assert found["activity_id"] in ACTIVITIES
    assert found["type_uid"] == 400100 + found["activity_id"]
    assert found["metadata"]["version"] == "1.8.0"
    return found


@given(strategies.events, st.none() | st.just("host"))
def test_every_event_is_valid_or_no_network_activity(event, host):
    line = OcsfFormatter(host)(event)
    assert line is not None or not isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved, EventsLost))
    if line is not None:
        parsed(line)


@given(strategies.flows, st.none() | strategies.counts, strategies.times)
def test_every_flow_of_a_snapshot_is_valid(flow, counts, time):
    parsed(OcsfFormatter()(FlowAdded(time, flow, counts, preexisting=True)))
    parsed(OcsfFormatter().flow_line(flow, counts, time))


@given(strategies.rows(), st.sampled_from(["process", "remote address", "user"]), strategies.times)
def test_every_row_is_valid(row, by, time):
    parsed(OcsfFormatter("host").row_line(row, by, time))


FLOW = Flow(
    "7",
    Provider.TCP,
    local=Endpoint.parse("10.0.0.1", 22),
    remote=Endpoint.parse("192.0.2.7", 50_000),
    state=TcpState.ESTABLISHED,
    direction=Direction.INBOUND,
)
COUNTS = Counts(rx_bytes=100, tx_bytes=900, rx_packets=2, tx_packets=3)


def _line(event) -> dict:
    return parsed(OcsfFormatter("host")(event))


def test_the_source_began_the_connection_and_bytes_go_out_of_it():
    line = _line(FlowUpdated(1.5, FLOW, COUNTS, Counts(rx_bytes=40, tx_bytes=800, rx_packets=1, tx_packets=2)))
    assert line["time"] == 1500
    assert (line["src_endpoint"]["ip"], line["dst_endpoint"]["ip"]) == ("192.0.2.7", "10.0.0.1")
    assert line["connection_info"]["direction_id"] == 1
    assert (line["traffic"]["bytes_out"], line["traffic"]["bytes_in"]) == (60, 100)
    assert (line["cumulative_traffic"]["bytes_out"], line["cumulative_traffic"]["bytes_in"]) == (100, 900)
    outbound = _line(FlowUpdated(1.5, attrs.evolve(FLOW, direction=Direction.OUTBOUND), COUNTS, None))
    assert (outbound["traffic"]["bytes_out"], outbound["traffic"]["bytes_in"]) == (900, 100)


@pytest.mark.parametrize(
    ("event", "activity"),
    [
        (FlowAdded(0.0, FLOW, COUNTS, preexisting=False), 1),
        (FlowAdded(0.0, FLOW, COUNTS, preexisting=True), 6),
        (FlowAdded(0.0, sample.LISTENER, None, preexisting=False), 7),
        (FlowRemoved(0.0, FLOW, COUNTS, final=True, reason=RemovalReason.CLOSED), 2),
        (FlowRemoved(0.0, FLOW, COUNTS, final=False, reason=RemovalReason.MONITOR), 6),
        (
            FlowRemoved(
                0.0, attrs.evolve(FLOW, state=TcpState.SYN_SENT), COUNTS, final=True, reason=RemovalReason.CLOSED
            ),
            4,
        ),
        (PollCompleted(0.0, 3, complete=False), 99),
    ],
)
def test_what_happened_is_the_activity(event, activity):
    assert _line(event)["activity_id"] == activity


@pytest.mark.parametrize("outcome", Outcome)
def test_how_a_connection_ended_is_the_activity_of_its_removal(outcome):
    flow = attrs.evolve(FLOW, outcome=outcome)
    line = _line(FlowRemoved(0.0, flow, COUNTS, final=True, reason=RemovalReason.CLOSED))
    kind = outcome.value.partition("_")[0]
    assert line["activity_id"] == {"closed": 2, "reset": 3, "timed": 4, "failed": 4, "refused": 5}[kind]
    assert outcome.value in line["status_detail"]
    assert ("status_id" in line) == (kind != "closed")


def test_what_the_schema_has_no_place_for_is_unmapped():
    flow = Flow(
        "2", Provider.UDP_SUBFLOW, cgroup="/system.slice/web.service", container="web", pod="shop/web", parent="1"
    )
    line = json.loads(OcsfFormatter("here").flow_line(flow, None, 1.0))
    assert line["unmapped"] == {
        "provider": "udp_subflow",
        "cgroup": "/system.slice/web.service",
        "unit": "web.service",
        "container": "web",
        "pod": "shop/web",
        "parent": "1",
    }


def test_lost_bytes_are_bytes_missed_and_unknown_ones_are_not_zero():
    known = _line(EventsLost(0.0, LossCause.OVERFLOW, 5, COUNTS, None))
    assert known["traffic"] == {"bytes_missed": 1000}
    assert known["unmapped"]["count"] == 5
    unknown = _line(EventsLost(0.0, LossCause.KERNEL_BUFFER, None, None, None))
    assert "traffic" not in unknown
    assert "some flows" in unknown["message"]


def test_a_complete_poll_says_nothing():
    assert OcsfFormatter()(PollCompleted(0.0, 3, complete=True)) is None

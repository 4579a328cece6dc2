"""Recordings that earlier versions wrote stay readable, and their look-ups may have more than was known then."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from replaying import replayed

from nstat_async import EventsLost, FlowAdded, FlowRemoved, FlowUpdated, LossCause

HERE = Path(__file__).parent.parent / "vectors" / "recordings"
KNOWN = {
    "darwin": [
        (FlowAdded, 443, "curl"),
        (FlowAdded, 53, "dig"),
        (FlowUpdated, 443, "curl"),
        (FlowRemoved, 443, "curl"),
    ],
    "linux": [
        (FlowAdded, 40001, "p11"),
        (FlowAdded, 40002, "p12"),
        (FlowAdded, 40003, "p13"),
        (FlowUpdated, 40001, "p11"),
        (FlowRemoved, 40002, "p12"),
    ],
}


def story(events, system):
    end = "remote" if system == "darwin" else "local"
    return [
        (type(event), getattr(event.flow, end).port, event.flow.process and event.flow.process.name)
        for event in events
        if isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved))
    ]


@pytest.mark.parametrize("system", KNOWN)
@pytest.mark.parametrize("suffix", ["nstat", "jsonl"])
def test_a_recording_of_version_1_gives_its_flows(system, suffix):
    events = replayed(HERE / f"v1-{system}.{suffix}")
    assert story(events, system) == KNOWN[system]
    assert not [event for event in events if isinstance(event, EventsLost)]


def lines():
    return [json.loads(line) for line in (HERE / "v1-linux.jsonl").read_text().splitlines()]


def played(records):
    return replayed(io.BytesIO("".join(json.dumps(record) + "\n" for record in records).encode()))


def test_a_look_up_of_a_later_version_is_read_as_far_as_it_is_known():
    """More in a process than was known is skipped, as is a field more."""
    records = lines()
    for record in records:
        if record.get("dir") == "answer" and record["value"]["answer"]["lookup"] == "owners":
            record["value"]["answer"]["units"] = ["nginx.service"]
            for process in record["value"]["answer"]["processes"]:
                process.append("container-id")
    assert story(played(records), "linux") == KNOWN["linux"]


@pytest.mark.parametrize(
    "answer",
    [
        {"lookup": "tarot"},
        {"lookup": ["owners"]},
        {"lookup": "owners", "owners": [[1, "x"]]},
        {"lookup": "owners", "owners": [[1, 10**400]]},
        {"lookup": "owners", "processes": [[[1], 2, 3, 4]]},
        {"lookup": "owners", "below": "x"},
        {"lookup": "owners", "gone": [[1, [2]]]},
        {"lookup": "link_kinds", "namespace": 10**30},
        {"lookup": "link_kinds", "namespace": float("inf")},
        {"lookup": "link_kinds", "namespace": 0, "kinds": 3},
        None,
    ],
)
def test_a_look_up_that_cannot_be_is_one_damaged_record_and_the_rest_plays(answer):
    records = lines()
    number = next(i for i, record in enumerate(records) if record.get("dir") == "answer")
    records.insert(number, {"dir": "answer", "t": records[number]["t"], "value": {"token": 1, "answer": answer}})
    records.insert(number, {"dir": "answer", "t": records[number]["t"], "value": answer})
    events = played(records)
    assert [type_ for type_, *_ in story(events, "linux")] == [type_ for type_, *_ in KNOWN["linux"]]
    losses = [event for event in events if isinstance(event, EventsLost)]
    assert {(loss.cause, loss.count) for loss in losses} == {(LossCause.RECORDING, 1)}
    assert len(losses) == 2 - (answer is None)

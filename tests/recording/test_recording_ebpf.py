"""Recordings of a monitor with eBPF programs: they need neither the programs nor a privilege to be played."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import forked
import pytest
from ebpf_records import datagram_record, record
from programs_fakes import Programs
from replaying import assert_same, replayed

from nstat_async import FlowRemoved, Provider
from nstat_async.ebpf import Flag, Kind
from nstat_async.recording import Recording

STORED = Path(__file__).parent.parent / "vectors" / "live" / "linux-ebpf.nstat"
AS_NOBODY = """
import os, sys
from nstat_async._cli import main
out = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
main(sys.argv[1:])  # what is imported late is there then: the other user may not look where it is
sys.stdout.flush()
os.dup2(out, 1)
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""
BORN = Flag.HAS_PROCESS | Flag.COUNTED_FROM_BIRTH


def command(*words: Any) -> list[dict[str, Any]]:
    """Lines of a command that an ordinary user runs."""
    argv = [sys.executable, "-c", AS_NOBODY, *map(str, words)]
    done = forked.run(argv, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.linux
def test_root_s_recording_replays_for_anybody():
    """Each flow with its process and its bytes, UDP too."""
    events = command("replay", STORED, "--json")
    ends = [event for event in events if event["event"] == "flow_removed"]
    removed = [e for e in ends if e["flow"]["remote"] or e["flow"]["provider"] == "udp"]  # no listener
    counts = Counter(
        (e["flow"]["provider"], e["counts"]["tx_bytes"], e["counts"]["rx_bytes"], e["final"]) for e in removed
    )
    assert counts == {("tcp", 100, 7, True): 3, ("tcp", 7, 100, True): 3, ("udp", 50, 50, True): 3}
    assert {e["flow"]["process"]["name"] for e in removed} <= {"python3", "python3.11"}
    assert not [event for event in events if event["event"] == "events_lost"]


@pytest.mark.linux
def test_messages_prints_records_and_maps():
    lines = command("messages", STORED)
    kinds = Counter(line["type"] for line in lines)
    assert kinds["MALFORMED"] == 0
    assert (kinds["OPENED"], kinds["ACCEPTED"], kinds["CLOSED"]) == (3, 3, 6)
    closed = next(line for line in lines if line["type"] == "CLOSED")
    assert (closed["descriptor"]["family"], closed["descriptor"]["local"]) == (2, "127.0.0.1")
    assert closed["counts"]["tx_bytes"] in {7, 100}
    released = [line for line in lines if line["type"] == "RELEASED" and line["descriptor"]["comm"] == "python3"]
    assert [line["counts"]["rx_payload"] for line in released] == [50] * 3
    asked = {line["type"] for line in lines if line["c"] == (1 << 16) + 1 and line["dir"] == "to_kernel"}
    assert asked >= {"STATISTICS"}


def test_each_part_of_a_recording_knows_the_programs(tmp_path):
    """What was granted is in each part: played alone, its flows have processes and bytes."""
    kernel = Programs(target=Recording(tmp_path / "day.nstat", max_bytes=3000))
    kernel.start()
    for number in range(1, 60):
        sock = datagram_record(Kind.FIRST_IO, 2 * number, pid=6, local_port=number, flags=BORN)
        opened = record(Kind.OPENED, 2 * number + 1, pid=7, remote_port=80 << 8)
        kernel.ring(
            sock,
            opened,
            opened._replace(kind=Kind.ESTABLISHED, old=2, new=1, local_port=number),
            sock._replace(kind=Kind.RELEASED, tx_bytes=30, tx_calls=1),
            opened._replace(kind=Kind.CLOSED, old=1, new=7, tx_bytes=70, rx_bytes=9, flags=0),
        )
        kernel.wait(0.1)
    kernel.recorded.close()
    parts = sorted(tmp_path.glob("day.*"))
    assert len(parts) > 4
    assert_same(replayed(parts), kernel.events)
    pids = set()
    for part in parts[1:]:
        removed = [event for event in replayed(part) if isinstance(event, FlowRemoved)]
        for event in removed:
            udp = event.flow.provider is Provider.UDP
            assert event.counts.tx_bytes == (30 if udp else 70)
            assert event.flow.process is None or event.flow.process.pid == (6 if udp else 7)
            pids.add(event.flow.process and event.flow.process.pid)
    assert pids >= {6, 7}

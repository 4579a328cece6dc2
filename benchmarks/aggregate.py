"""What aggregation costs: time per event beside the bare loop, memory per row.

Run: ``python benchmarks/aggregate.py [--json]``. Figures are of this machine at this
moment; compare ratios, and only with runs of the same day.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import tracemalloc
from types import SimpleNamespace

from nstat_async._events import FlowAdded, FlowUpdated, PollCompleted
from nstat_async._model import Counts, Endpoint, Flow, Process, Provider
from nstat_async.aggregate import GroupBy, ProcessTable, TrafficTable
from nstat_async.ntstat._counters import PACKED, PACKED_CLASSES, TcpCounts, make_counts

FLOWS_PER_PROCESS = 4


def make_flows(count):
    flows = []
    for number in range(count):
        pid = 100 + number // FLOWS_PER_PROCESS
        flows.append(
            Flow(
                str(number),
                Provider.TCP,
                local=Endpoint.parse("192.0.2.1", 1024 + number % 60000),
                remote=Endpoint.parse(f"198.51.{number // 250 % 250}.{1 + number % 250}", 443),
                process=Process(pid, f"process-{pid}", unique_pid=100_000 + pid),
            )
        )
    return flows


def make_events(flows, polls):
    """One update per flow and poll, a second apart, as a busy machine has them."""
    events = [FlowAdded(0.0, flow, None, preexisting=False) for flow in flows]
    previous = dict.fromkeys(flows)
    for poll in range(1, polls + 1):
        for number, flow in enumerate(flows):
            counts = Counts(
                rx_packets=poll * 3, rx_bytes=poll * (1000 + number), tx_packets=poll * 2, tx_bytes=poll * 400
            )
            events.append(FlowUpdated(float(poll), flow, counts, previous[flow]))
            previous[flow] = counts
        events.append(PollCompleted(float(poll), len(flows), complete=True))
    return events


def packed(events):
    """The same events with counters as a Darwin kernel's bytes, which are unpacked when they are read."""
    reader = SimpleNamespace(packed_class=PACKED_CLASSES[TcpCounts])
    result = []
    for event in events:
        if isinstance(event, FlowUpdated):
            values = [value or 0 for value in event.counts.as_dict().values()]
            counts = make_counts(reader, PACKED.pack(*values))
            event = FlowUpdated(event.time, event.flow, counts, event.previous)  # noqa: PLW2901
        result.append(event)
    return result


def best(function, events, rounds=5):
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        function(events)
        times.append(time.perf_counter() - begin)
    return min(times) / len(events) * 1e9


def bare(events):
    for _event in events:
        pass


def called(events):
    def feed(event):
        return event

    for event in events:
        feed(event)


def feeder(make):
    def run(events):
        make().feed_many(events)

    return run


def row_bytes(processes):
    """Memory of a table per process with one open flow each, in a window full of marks."""
    flows = make_flows(processes * FLOWS_PER_PROCESS)[::FLOWS_PER_PROCESS]
    events = make_events(flows, 10)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    table = ProcessTable()
    table.feed_many(events)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(table) == processes
    return used / processes


def look(function, rounds=20):
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times) * 1e3


def measure():
    events = make_events(make_flows(2000), 50)
    darwin = packed(events)
    table = ProcessTable()
    table.feed_many(make_events(make_flows(40_000), 3))
    return {
        "python": platform.python_version(),
        "events": len(events),
        "bare_loop_ns_per_event": best(bare, events),
        "call_of_nothing_ns_per_event": best(called, events),
        "process_table_ns_per_event": best(feeder(ProcessTable), events),
        "process_table_darwin_counts_ns_per_event": best(feeder(ProcessTable), darwin),
        "by_remote_network_ns_per_event": best(feeder(lambda: TrafficTable(GroupBy.remote_network())), events),
        "bytes_per_process_row_with_one_flow": row_bytes(2000),
        "top_10_of_10000_rows_ms": look(lambda: table.top(10, by="rate", other=False)),
        "top_10_and_other_of_10000_rows_ms": look(lambda: table.top(10, by="rate")),
        "total_of_10000_rows_ms": look(table.total),
        "rows_of_10000_rows_ms": look(table.rows, rounds=5),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    figures = measure()
    if parser.parse_args().json:
        json.dump(figures, sys.stdout)
        print()
        return
    for name, value in figures.items():
        print(f"{name:42} {value:,.1f}" if isinstance(value, float) else f"{name:42} {value}")


if __name__ == "__main__":
    main()

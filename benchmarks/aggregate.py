"""What aggregation costs: an event in a table beside the bare loop, a look at many rows, the memory of a row.

Run: ``python benchmarks/aggregate.py`` (half a minute).
"""

from __future__ import annotations

import tracemalloc

import _turns
from _kernels import PROCESSES, events_of_polls
from _turns import Done, Row, in_turn

from nstat_async import Counts, Endpoint, Flow, FlowAdded, FlowUpdated, PollCompleted, Process, Provider
from nstat_async.aggregate import GroupBy, ProcessTable, TrafficTable

FLOWS_PER_PROCESS = 4


def make_events(flows, polls, *, per_process=FLOWS_PER_PROCESS):
    """One update per flow and poll, a second apart, as a busy machine has them."""
    known = [_flow(number, 100 + number // per_process) for number in range(flows)]
    events, previous = [FlowAdded(0.0, flow, None, preexisting=False) for flow in known], dict.fromkeys(known)
    for poll in range(1, polls + 1):
        for number, flow in enumerate(known):
            sizes = {
                "rx_packets": poll * 3,
                "rx_bytes": poll * (1000 + number),
                "tx_packets": poll,
                "tx_bytes": poll * 400,
            }
            counts = Counts(**sizes)
            events.append(FlowUpdated(float(poll), flow, counts, previous[flow]))
            previous[flow] = counts
        events.append(PollCompleted(float(poll), flows, complete=True))
    return events


def _flow(number, pid):
    return Flow(
        str(number),
        Provider.TCP,
        local=Endpoint.parse("192.0.2.1", 1024 + number % 60000),
        remote=Endpoint.parse(f"198.51.{number // 250 % 250}.{1 + number % 250}", 443),
        process=Process(pid, f"process-{pid}", unique_pid=100_000 + pid),
    )


def called(events):
    def feed(event):
        return event

    for event in events:
        feed(event)
    return Done(len(events))


def fed(make, events):
    table = make()
    table.feed_many(events)
    return Done(len(events), counted=(len(table), table.total().rx_bytes))


def feeding(arguments):
    made = make_events(20 if arguments.short else 2000, 5 if arguments.short else 50)
    # As a Darwin kernel's core makes them: counters stay bytes until somebody reads them.
    darwin = [
        event
        for poll in events_of_polls(20 if arguments.short else 2000, 3 if arguments.short else 50)
        for event in poll
    ]
    for what, events in (("plain counts", made), ("counts of a Darwin kernel", darwin)):
        ways = {
            "a call of nothing": lambda events=events: called(events),
            "ProcessTable": lambda events=events: fed(ProcessTable, events),
            "by remote network": lambda events=events: fed(lambda: TrafficTable(GroupBy.remote_network()), events),
        }
        yield f"an event fed, {what}", in_turn(arguments.rounds, ways, floor="a call of nothing")


def looking(arguments):
    table = ProcessTable()
    table.feed_many(make_events(400 if arguments.short else 40_000, 3))
    names = [row.name for row in table.rows()]

    def look(function):
        def run():
            for _ in range(2 if arguments.short else 10):
                answer = function()
            return Done(2 if arguments.short else 10, counted=len(answer) if isinstance(answer, (list, tuple)) else 1)

        return run

    ways = {
        "sorted names": look(lambda: sorted(names)),
        "top(10) without other": look(lambda: table.top(10, by="rate", other=False)),
        "top(10)": look(lambda: table.top(10, by="rate")),
        "total()": look(table.total),
        "rows()": look(table.rows),
    }
    yield f"a look at {len(table):,} rows", in_turn(arguments.rounds, ways, floor="sorted names", unit="ms")


def remembering(arguments):
    processes = 2 * PROCESSES if arguments.short else 2000
    events = make_events(processes, 10, per_process=1)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    table = ProcessTable()
    table.feed_many(events)
    size = (tracemalloc.get_traced_memory()[0] - before) / processes
    tracemalloc.stop()
    yield "memory of a row with one open flow", [Row("ProcessTable", "bytes", [size], units=len(table))]


def measure(arguments):
    for part in (feeding, looking, remembering):
        yield from part(arguments)


if __name__ == "__main__":
    _turns.main(__file__, __doc__, measure)

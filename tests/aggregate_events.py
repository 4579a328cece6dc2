"""Events for the tests of consumers: short makers, and a model of what a table must say."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import attrs

from nstat_async import MonitorStatistics
from nstat_async._events import (
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    PollCompleted,
    RemovalReason,
)
from nstat_async._model import Capabilities, Counts, Endpoint, Flow, Interface, InterfaceKind, Process, Provider
from nstat_async._options import DEFAULT_PROVIDERS
from nstat_async.aggregate import ProcessTable

CURL = Process(42, "curl", unique_pid=4200, uid=501)
SSHD = Process(7, "sshd", unique_pid=700, uid=0)


def counts(rx=0, tx=0, rxp=None, txp=None):
    return Counts(
        rx_bytes=rx,
        tx_bytes=tx,
        rx_packets=rx // 100 if rxp is None else rxp,
        tx_packets=tx // 100 if txp is None else txp,
    )


def flow(name="1", process=CURL, provider=Provider.TCP, remote="198.51.100.7", port=443, **more):
    return Flow(
        str(name),
        provider,
        local=Endpoint.parse("192.0.2.1", 50000),
        remote=None if remote is None else Endpoint.parse(remote, port),
        process=process,
        interface=more.pop("interface", Interface(4, "en0", InterfaceKind.WIFI)),
        **more,
    )


def added(a_flow, time=0.0, total=None, preexisting=False):
    return FlowAdded(time, a_flow, total, preexisting)


def updated(a_flow, time, total, previous=None):
    return FlowUpdated(time, a_flow, total, previous)


def removed(a_flow, time, total=None, final=True, reason=RemovalReason.CLOSED):
    return FlowRemoved(time, a_flow, total, final and total is not None, reason)


def polled(time, flows=0, complete=True):
    return PollCompleted(time, flows, complete)


def lost(time, count, total=None, cause=LossCause.OVERFLOW):
    return EventsLost(time, cause, count, total)


FIELDS = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")


@attrs.define
class ModelFlow:
    preexisting: bool
    last: dict | None = None
    total: dict = attrs.field(factory=lambda: dict.fromkeys(FIELDS, 0))
    parts: int = 1


def model_totals(events, include_history=False, exclude=frozenset({Provider.UDP_SUBFLOW, Provider.CONNECTION})):
    """Sums over flows, computed the slow and plain way: one flow at a time."""
    flows: dict[str, ModelFlow] = {}
    done: list[ModelFlow] = []
    given_up = dict.fromkeys(FIELDS, 0)
    given_up_flows = 0
    for event in events:
        if isinstance(event, EventsLost):
            if event.cause is LossCause.OVERFLOW:
                given_up_flows += event.count or 0
                for name in FIELDS:
                    given_up[name] += (getattr(event.counts, name) or 0) if event.counts else 0
            continue
        if not isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved)) or event.flow.provider in exclude:
            continue
        known = flows.get(event.flow.id)
        if known is None:
            known = flows[event.flow.id] = ModelFlow(
                event.preexisting if isinstance(event, FlowAdded) else isinstance(event, FlowRemoved)
            )
            if isinstance(event, FlowUpdated) and event.previous is not None:
                values = {name: getattr(event.previous, name) for name in FIELDS}
                if any(value is not None for value in values.values()):
                    known.last = {name: value or 0 for name, value in values.items()}
        if event.counts is not None:
            values = {name: getattr(event.counts, name) for name in FIELDS}
            if any(value is not None for value in values.values()):
                _count(known, values, include_history)
        if isinstance(event, FlowRemoved):
            done.append(flows.pop(event.flow.id))
    everything = [*done, *flows.values()]
    totals = {name: sum(each.total[name] for each in everything) + given_up[name] for name in FIELDS}
    totals["flows"] = sum(each.parts for each in everything) + given_up_flows
    totals["open_flows"] = len(flows)
    return totals


def _count(known, values, include_history):
    first = known.last is None
    last = dict.fromkeys(FIELDS, 0) if first else dict(known.last)
    new = {name: last[name] if value is None else value for name, value in values.items()}
    had = [name for name in FIELDS if values[name] is not None and last[name]]
    lower = any(values.values()) and had and all(new[name] < last[name] for name in had)
    if lower and any(new[name] < last[name] / 2 for name in had):  # a new flow behind the id
        known.parts += 1
        last = dict.fromkeys(FIELDS, 0)
        new = {name: value or 0 for name, value in values.items()}
    for name in FIELDS:
        if new[name] < last[name]:
            if "packets" in name and any(values.values()) and last[name] < 2**32 and last[name] - new[name] > 2**31:
                last[name] -= 2**32  # wrapped
            else:
                new[name] = last[name]  # an odd reading
    if not (first and known.preexisting and not include_history):
        for name in FIELDS:
            known.total[name] += new[name] - last[name]
    known.last = new


class FakeSubscription:
    """A subscription as consumers see it: bounded by nothing, fed by `FakeMonitor.deliver`."""

    def __init__(self, monitor):
        self.monitor = monitor
        self.events = []
        self.changed = anyio.Event()
        self.entered = 0
        self.closed = False

    async def __aenter__(self):
        self.entered += 1
        self.monitor.subscriptions.append(self)
        return self

    async def __aexit__(self, *_error):
        await anyio.lowlevel.checkpoint()
        self.entered -= 1
        if self in self.monitor.subscriptions:
            self.monitor.subscriptions.remove(self)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.events:
            self.events = await self.receive_many()
        if not self.events:
            raise StopAsyncIteration
        return self.events.pop(0)

    async def receive_many(self):
        await anyio.lowlevel.checkpoint()
        while not self.events:
            if self.monitor.failure is not None:
                raise self.monitor.failure
            if self.monitor.ended or self.closed:
                return []
            self.changed = anyio.Event()
            await self.changed.wait()
        return self.receive_nowait()

    def receive_nowait(self):
        events, self.events = self.events, []
        return events

    def close(self):
        self.closed = True
        self.changed.set()

    def statistics(self):
        return {"pending": len(self.events)}


class FakeOptions(list):
    """The options of each subscription, with what is read of the monitor's own."""

    providers = DEFAULT_PROVIDERS
    extras = False


class FakeMonitor:
    """The part of a monitor that consumers use."""

    def __init__(self):
        self.subscriptions = []
        self.ended = False
        self.failure = None
        self.capabilities = Capabilities(backend="fake")
        self.flows = ()
        self.options = FakeOptions()
        self.figures = {}

    def statistics(self):
        return MonitorStatistics(feed=self.figures, buffers=())

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_error):
        self.end()

    def subscribe(self, **options):
        self.options.append(options)
        return FakeSubscription(self)

    def deliver(self, *events):
        for each in list(self.subscriptions):
            each.events.extend(events)
            each.changed.set()

    def end(self, failure=None):
        self.ended, self.failure = True, failure
        for each in list(self.subscriptions):
            each.changed.set()


async def until(condition):
    """Wait until something is true."""
    with anyio.fail_after(120):
        while not condition():
            await anyio.sleep(0.002)


def fed(*events, **options):
    """A table of processes that was fed with these events."""
    table = ProcessTable(**options)
    table.feed_many(events)
    return table

"""Messages of a fleet that are made by hand, one by one, and the core of a reader that gets them."""

from __future__ import annotations

from fleet_world import WALL, count, taken

from nstat_async import Endpoint, EventsLost, Flow, FlowAdded, Process, Provider, json
from nstat_async.fleet import Delivery, Header, Incoming, encode

RUN, LATER = "00000001", "00000002"
NOW = 100.0


def flow(number, name="curl"):
    remote = Endpoint.parse("198.51.100.7", 443)
    return Flow(f"c{number}", Provider.TCP, remote=remote, process=Process(7, name))


def added(number, rx=0, *, time=WALL, **more):
    return json.dumps(FlowAdded(time, flow(number, **more), count(rx), preexisting=False))


def message(seq, *lines, host="web", run=RUN, stored=WALL, sent=None, **header):
    data = encode(Header(**{"incarnation": run, "seq": seq, "next": 10.0, **header}), lines)
    subject = f"nstat.{host}.{'state' if header.get('part') == 0 else 'events'}"
    return Delivery(subject, data, seq + 1, stored, sent)


def state(seq, *lines, **more):
    return message(seq, *lines, part=0, **more)


def reader(*deliveries, **options):
    core = Incoming(**options)
    core.caught_up = True
    core.begin(WALL)
    return core, read(core, *deliveries)


def read(core, *deliveries, now=NOW):
    for delivery in deliveries:
        core.receive(delivery, now)
    return taken(core)


def losses(events):
    return [(event.cause, event.count, event.detail) for event in events if isinstance(event, EventsLost)]

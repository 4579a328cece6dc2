"""Report where programs connect to that they never connected to before.

    python new_destinations.py BASELINE.json [RECORDING]

While the baseline is new, destinations are only learned: for an hour of the events' own time, then alarms are raised.
The baseline is JSON, ``{"curl": ["198.51.100.0/24 443", …], …}``: read it, edit it, delete what should be reported again.
"""

import asyncio
import ipaddress
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import anyio

from nstat_async import Direction, Event, FlowEvent, Monitor, backends, filters
from nstat_async.backends import Backend

MOST = 1000  # destinations of a program: one that scans the network must not fill the disk


class Baseline:
    """What each program is known to connect to, kept in a file."""

    def __init__(self, path: Path, learn: float) -> None:
        self.path = path
        self.learn = 0.0 if path.exists() else learn
        try:
            found = json.loads(path.read_text()) if path.exists() else {}
            self.known = {program: set(places) for program, places in found.items()}
        except (ValueError, AttributeError, TypeError) as error:
            sys.exit(f"{path} is no baseline: {error}")
        self.began: float | None = None

    def is_new(self, event: Event) -> str | None:
        """What there is to say about an event; `None` for nothing new."""
        if not isinstance(event, FlowEvent) or event.flow.remote is None or event.flow.direction is Direction.INBOUND:
            return None
        program = event.flow.process.name if event.flow.process else None
        if not program:  # not known, or not yet: a later event of the flow will have it
            return None
        self.began = event.time if self.began is None else self.began
        address = event.flow.remote.ip_address
        network = ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False)
        place = f"{network} {event.flow.remote.port}"
        places = self.known.setdefault(program, set())
        if place in places or len(places) >= MOST:
            return None
        places.add(place)
        if event.time - self.began < self.learn:
            return None
        return f"{program!a} (pid {event.flow.process.pid}) connects to {event.flow.remote}: new"

    def save(self) -> None:
        """Replace the file as a whole: a crash leaves the old one."""
        text = json.dumps({program: sorted(places) for program, places in sorted(self.known.items())}, indent=1)
        beside = self.path.with_suffix(".new")
        beside.write_text(text + "\n")
        beside.replace(self.path)


async def main(
    path: Path, backend: Backend | None = None, learn: float = 3600.0, alarm: Callable[[str], object] = print
) -> None:
    baseline = Baseline(path, learn)
    outside = ~filters.loopback()
    try:
        async with Monitor(backend=backend, flow_filter=outside) as monitor:
            async for event in monitor:
                text = baseline.is_new(event)
                if text is not None:
                    alarm(text)
                    baseline.save()
    finally:
        baseline.save()


async def until_stopped() -> None:
    with anyio.CancelScope() as scope:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, scope.cancel)
        recording = backends.Replay(sys.argv[2]) if len(sys.argv) > 2 else None
        await main(Path(sys.argv[1]), recording)


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    anyio.run(until_stopped)

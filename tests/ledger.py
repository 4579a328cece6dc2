"""Releases by scenarios: how many flows were opened, missed, doubled, wrong, and of how many nobody was told.

``python tests/ledger.py [--flows 60000] [--release xnu-…] [--scenario NAME]`` prints the table; ``test_ledger.py`` has its
short form. Everything is emulated and in virtual time (``virtual.py``). A flow is *missed* if no event was about it (one
whose every description was lost ends without an owner, and is not), *doubled* if two flows of the library were one of the
kernel, *wrong* if its last counts are said to be final and are not the kernel's. What was missed, or ended without its final counts, without an `EventsLost` for it is *unannounced*.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

if __name__ == "__main__":  # as a command, beside its modules
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from virtual import Picture, VirtualMonitor, traffic

from nstat_async import LossCause, Provider
from nstat_async.ntstat import AddAllSources
from nstat_async.testing import EmulatedKernel

RELEASES = ("xnu-2422.115.4", "xnu-2782.40.9", "xnu-3248.60.10", "xnu-3789.70.16", "xnu-4570.71.2", "xnu-7195.141.2",
            "xnu-8796.141.3", "xnu-10063.141.1", "xnu-11417.121.6", "xnu-12377.121.6")  # fmt: skip
UNHEARD = (LossCause.ANNOUNCEMENT, LossCause.GOODBYE, LossCause.RESYNC)
"""Losses of flows that no event was about."""
LIFE = 3.0
"""Mean life of a flow, seconds."""
STEP = 0.05


@attrs.frozen
class Scenario:
    """What is special about a run."""

    options: dict[str, Any] = attrs.Factory(dict)
    """Of the monitor; as root, `ledger`: the kernel's own count of losses is read."""
    buffer: int = 1 << 20
    begin: Callable[[Any, VirtualMonitor], None] = lambda kernel, monitor: None
    """Called when the monitor is there."""
    every: Callable[[Any, int], None] = lambda kernel, step: None
    """Called after each step of the traffic."""


def _starve(kernel: Any, _monitor: VirtualMonitor) -> None:
    """A client that is younger wants announcements, and does not read."""
    client = kernel.connect()
    for provider in (Provider.TCP, Provider.UDP):
        number = kernel.provider_number(provider, userland=False)
        client.send(AddAllSources(context=1, provider=number).encode(kernel.layout))


def _fail(kernel: Any, _monitor: VirtualMonitor) -> None:
    kernel.faults.fail_allocations = 0.02


def _lose_announcements(kernel: Any, step: int) -> None:
    kernel.faults.lose_announcements = 0.3 if step % 200 < 100 else 0.0


def _end_controls(kernel: Any, step: int) -> None:
    if step % 150 == 149:
        kernel.end_controls()


SCENARIOS = {
    "poll": Scenario(),
    "announce": Scenario({"discovery": "announce"}),
    "poll, 8 KiB": Scenario(buffer=8192),
    "announce, 8 KiB": Scenario({"discovery": "announce"}, buffer=8192),
    "starved": Scenario(begin=_starve),
    "starved, announce": Scenario({"discovery": "announce"}, begin=_starve),
    "no memory": Scenario(begin=_fail),
    "no memory, root": Scenario({"ledger": True}, begin=_fail),
    "announcements lost": Scenario({"discovery": "announce"}, every=_lose_announcements),
    "control goes away": Scenario(every=_end_controls),
    "details": Scenario({"extras": True}),
}


@attrs.define
class Line:
    """One cell of the table."""

    opened: int
    missed: int
    doubled: int
    wrong: int
    unannounced: int

    @property
    def is_clean(self) -> bool:
        return not (self.doubled or self.wrong or self.unannounced)


def run(release: str, scenario: Scenario, flows: int, *, seed: int = 1) -> Line:
    """Open and close so many flows, and account for each."""
    kernel, draw = EmulatedKernel(release, seed=seed, privileged=True), random.Random(seed)
    interval = 1.0 if kernel.release.has_updates else 4.0  # ends are found late there: many thousand flows in each poll
    monitor = VirtualMonitor(kernel, receive_buffer=scenario.buffer, interval=interval, **scenario.options)
    monitor.run(1.2)
    scenario.begin(kernel, monitor)
    made, ends, step = [], [], 0
    kinds = [
        kind for kind in ((Provider.TCP, False), (Provider.UDP, False), (Provider.TCP, True)) if _has(kernel, *kind)
    ]
    burst, left_open = (20, 20) if flows > 1000 else (3, flows)  # of few flows, all that live may be in the next audit
    while len(made) < flows or len(ends) > left_open:
        for _ in range(min(burst, flows - len(made))):
            provider, userland = draw.choice(kinds)
            flow = kernel.open(
                provider, 500 + len(made), f"f{len(made)}", remote=("198.51.100.7", 443), userland=userland,
                rx=draw.randrange(5000), tx=draw.randrange(500),
            )  # fmt: skip
            made.append(flow)
            heapq.heappush(ends, (kernel.now + draw.expovariate(1 / LIFE), len(made), flow))
        while ends and ends[0][0] <= kernel.now:
            flow = heapq.heappop(ends)[-1]
            flow.transfer(draw.randrange(2000), draw.randrange(300))
            flow.close()
        scenario.every(kernel, step)
        monitor.run(STEP)
        step += 1
    _heal(kernel)
    monitor.run(100.0)  # old kernels find the end of a flow after a minute; an audit comes once a minute
    kernel.open_tcp(1, "last", remote=("198.51.100.7", 443))
    monitor.run(20.0)
    return _account(made, monitor.picture)


def _has(kernel: Any, provider: Provider, userland: bool) -> bool:
    return (provider, userland) in kernel.release.providers.values()


def _heal(kernel: Any) -> None:
    kernel.faults.lose_announcements = kernel.faults.fail_allocations = 0.0


def _account(made: list[Any], picture: Picture) -> Line:
    def name(flow: Any) -> str:
        return flow.process.name if flow.process is not None else ""

    removed = {name(event.flow): event for event in picture.removed}
    known = {name(flow): counts for flow, counts in picture.flows.values()}
    times = Counter([*map(name, (event.flow for event in picture.removed)), *known])
    nameless = times.pop("", 0)
    missed = wrong = without_final = 0
    for flow in made:
        said = flow.fields["pname"].decode()
        event = removed.get(said)
        if event is None and said not in known:
            missed += 1
        elif event is None or not event.final:
            without_final += not flow.open
            wrong += event is None and not flow.open  # the kernel has no such flow any more
        else:
            keys = ("rxbytes", "txbytes", "rxpackets", "txpackets")
            wrong += traffic(event.counts) != tuple(flow.counts.get(f"nstat_{key}", 0) for key in keys)
    unknown = min(missed, nameless)
    missed, without_final = missed - unknown, without_final + unknown
    unannounced = max(0, missed - picture.lost(*UNHEARD)) + max(0, without_final - picture.lost(LossCause.FINAL_COUNTS))
    return Line(len(made), missed, sum(1 for count in times.values() if count > 1), wrong, int(unannounced))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flows", type=int, default=2000, help="of each cell (default: 2000)")
    parser.add_argument("--release", action="append", help="these releases alone")
    parser.add_argument("--scenario", action="append", choices=[*SCENARIOS], help="these scenarios alone")
    arguments = parser.parse_args()
    print(f"{'release':<18}{'scenario':<20}{'opened':>8}{'missed':>8}{'doubled':>8}{'wrong':>8}{'unannounced':>12}")
    clean = True
    for release in arguments.release or RELEASES:
        for name in arguments.scenario or SCENARIOS:
            line = run(release, SCENARIOS[name], arguments.flows)
            clean &= line.is_clean
            cells = f"{line.opened:>8}{line.missed:>8}{line.doubled:>8}{line.wrong:>8}{line.unannounced:>12}"
            print(f"{release:<18}{name:<20}{cells}", flush=True)
    sys.exit(not clean)


if __name__ == "__main__":
    main()

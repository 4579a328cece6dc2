"""An hour of emulated time with churn: is memory flat, is anything lost or counted twice?

    python benchmarks/soak.py                 # 60 minutes, 100 flows a second, 5,000 open
    python benchmarks/soak.py --minutes 5 --trace

A session watches an emulated kernel on which flows come, carry traffic and go; time is the
kernel's own, so the hour takes as long as its work. Every event is folded into a picture
that checks the order of each flow's events and adds up its bytes; in the end picture and
totals must be the kernel's, to the byte. Exit status 1 if they are not.
"""

from __future__ import annotations

import argparse
import gc
import resource
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import attrs

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from virtual import Picture, VirtualMonitor, compare  # noqa: E402

import nstat_async  # noqa: E402
from nstat_async._options import DEFAULT_PROVIDERS  # noqa: E402
from nstat_async.testing import EmulatedKernel, Workload  # noqa: E402


class Ids:
    """Every id that was given out, one byte each, so that the check itself needs no memory to speak of."""

    def __init__(self) -> None:
        self._used: dict[str, bytearray] = {}

    def note(self, name: str) -> None:
        """An id was given out."""
        generation, _, number = name.partition(".")
        used, place = self._used.setdefault(generation, bytearray(1 << 20)), int(number)
        if place >= len(used):
            used.extend(bytes(place))
        assert not used[place], f"an id was used again: {name}"
        used[place] = 1


@attrs.frozen
class Sample:
    """The state at one moment of the run."""

    minute: float
    rss_kib: int
    """Resident set of this process, emulated kernel included."""
    traced_bytes: int
    """What the library's own code allocated and still holds (with ``--trace``)."""
    flows: int


@attrs.frozen
class Outcome:
    """What a run showed."""

    samples: tuple[Sample, ...]
    opened: int
    closed: int
    events: dict[str, int]
    losses: int
    moved: tuple[int, int]
    """Bytes received and sent by all flows since the subscription, as the library told."""
    true: tuple[int, int]
    """The same as the kernel knows."""
    problem: str | None
    seconds: float


def rss_kib() -> int:
    """Resident set size now; its peak where ``/proc`` is absent."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1)
    return pages * resource.getpagesize() // 1024


def traced() -> int:
    """Bytes that the library's modules allocated, those of the emulated kernel left out."""
    if not tracemalloc.is_tracing():
        return 0
    gc.collect()
    package = str(Path(nstat_async.__file__).parent)
    filters = [
        tracemalloc.Filter(inclusive=True, filename_pattern=f"{package}/*"),
        tracemalloc.Filter(inclusive=False, filename_pattern=f"{package}/testing/*"),
    ]
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(filters).traces)


def soak(
    *,
    minutes: float = 60.0,
    rate: float = 100.0,
    size: int = 5_000,
    interval: float = 1.0,
    kernel: str = "xnu-11417.121.6",
    seed: int = 1,
    samples: int = 12,
    show: Any = None,
) -> Outcome:
    """Run it.

    Args:
        minutes: Of emulated time.
        rate: New flows a second.
        size: Flows that are open.
        interval: Seconds between polls.
        kernel: The release.
        seed: Of the workload.
        samples: How often to look at memory.
        show: Called with each sample.
    """
    began = time.perf_counter()
    machine = EmulatedKernel(kernel, seed=seed)
    workload = Workload(machine, rate=rate, size=size, mean_life=size / rate, seed=seed)
    workload.start()
    machine.advance(2.0)
    before = (workload.rx_bytes, workload.tx_bytes)
    picture, ids = Picture(remember=False), Ids()

    def sink(events: list[Any]) -> None:
        picture.feed(events)
        for event in events:
            if type(event).__name__ == "FlowAdded":
                ids.note(event.flow.id)

    monitor = VirtualMonitor(machine, picture=picture, sink=sink, interval=interval)
    taken: list[Sample] = []
    problem = None
    try:
        for number in range(samples):
            monitor.run(minutes * 60 / samples)
            sample = Sample(minutes * (number + 1) / samples, rss_kib(), traced(), len(picture.flows))
            taken.append(sample)
            if show is not None:
                show(sample)
        workload.stop()
        monitor.poll()
        compare(machine, picture.flows.values(), providers=DEFAULT_PROVIDERS)
    except AssertionError as error:
        problem = str(error)
    true = (workload.rx_bytes - before[0], workload.tx_bytes - before[1])
    moved = (picture.moved[0], picture.moved[1])
    if problem is None and moved != true:
        problem = f"bytes differ: told {moved}, true {true}"
    if problem is None and picture.losses:
        problem = f"{len(picture.losses)} losses, the first: {picture.losses[0]}"
    return Outcome(
        tuple(taken),
        workload.opened,
        workload.closed,
        dict(picture.events),
        len(picture.losses),
        moved,
        true,
        problem,
        time.perf_counter() - began,
    )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="emulated time (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=100.0, help="new flows a second (default: %(default)s)")
    parser.add_argument("--open", type=int, default=5_000, help="flows that are open (default: %(default)s)")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between polls (default: %(default)s)")
    parser.add_argument("--kernel", default="xnu-11417.121.6")
    parser.add_argument("--trace", action="store_true", help="trace the library's allocations (several times slower)")
    arguments = parser.parse_args()
    if arguments.trace:
        tracemalloc.start()

    def show(sample: Sample) -> None:
        own = f"  library {sample.traced_bytes / 1024:9,.0f} KiB" if arguments.trace else ""
        print(f"minute {sample.minute:5.1f}  flows {sample.flows:6,}  RSS {sample.rss_kib:9,} KiB{own}", flush=True)

    outcome = soak(
        minutes=arguments.minutes,
        rate=arguments.rate,
        size=arguments.open,
        interval=arguments.interval,
        kernel=arguments.kernel,
        show=show,
    )
    print(f"flows opened {outcome.opened:,}, closed {outcome.closed:,}; events {sum(outcome.events.values()):,}")
    print("  " + ", ".join(f"{name} {count:,}" for name, count in sorted(outcome.events.items())))
    print(f"bytes told {outcome.moved[0]:,} / {outcome.moved[1]:,}, true {outcome.true[0]:,} / {outcome.true[1]:,}")
    print(f"took {outcome.seconds:.0f} s")
    print("nothing lost, nothing counted twice" if outcome.problem is None else f"PROBLEM: {outcome.problem}")
    return outcome.problem is not None


if __name__ == "__main__":
    sys.exit(main())

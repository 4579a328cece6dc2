"""A feed that delivers what a test says, and a run on either loop."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import anyio.lowlevel
import pytest

from nstat_async import Capabilities, Counts, Flow, FlowAdded, FlowUpdated, Monitor, PollCompleted, Provider

LOOPS = ["asyncio", "trio"]
GENEROUS = 120.0


def run(loop: str, main: Callable[[], Awaitable[None]]) -> None:
    """Run a test on one of the loops; asyncio in debug mode."""

    async def guarded() -> None:
        with anyio.fail_after(GENEROUS):
            await main()

    anyio.run(guarded, backend=loop, backend_options={"debug": True} if loop == "asyncio" else {})


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make two tests of an ``async def`` test: one on asyncio, one on trio."""

    def on_one(loop: str, **arguments) -> None:
        run(loop, functools.partial(test, **arguments))

    functools.update_wrapper(on_one, test)
    del on_one.__wrapped__  # for pytest the test is a plain function
    loop, *_ = inspect.signature(on_one).parameters.values()
    on_one.__signature__ = inspect.Signature([loop, *inspect.signature(test).parameters.values()])
    return pytest.mark.parametrize("loop", LOOPS)(on_one)


class Script:
    """A backend and its feed: delivers what the test says."""

    name = "script"
    can_wait = False

    def __init__(self, *, can_wait: bool = False, refuse: Exception | None = None) -> None:
        self.can_wait = can_wait
        self._refuse = refuse
        self.closed = 0
        self.polls = 0
        self.known: list[tuple[Flow, Counts | None]] = []
        self.failure: Exception | None = None
        self.capabilities = Capabilities(backend="script", kernel=None)

    def open(self, options):
        if self._refuse is not None:
            raise self._refuse
        self.options = options
        self.running, self.stop = anyio.Event(), anyio.Event()
        return self

    async def run(self, sink) -> None:
        self.sink = sink
        self.running.set()
        await self.stop.wait()
        if self.failure is not None:
            raise self.failure

    def flows(self):
        return list(self.known)

    async def subscribed(self) -> None:
        await anyio.lowlevel.checkpoint()

    def request_poll(self) -> int:
        self.polls += 1
        return self.polls

    def close(self) -> None:
        self.closed += 1
        self.stop.set()

    def statistics(self):
        return {"polls": self.polls}

    def fail(self, error: Exception) -> None:
        self.failure = error
        self.stop.set()

    def deliver(self, *events) -> None:
        self.sink.deliver(list(events))


@contextlib.asynccontextmanager
async def watching(script: Script | None = None, **options) -> AsyncIterator[tuple[Script, Monitor]]:
    """An open monitor of a script that runs."""
    script = script or Script()
    async with Monitor(backend=script, **options) as monitor:
        await script.running.wait()
        yield script, monitor


def flow(number: int = 1, **facts) -> Flow:
    return Flow(str(number), Provider.TCP, **facts)


def added(number: int, rx: int = 0, **facts) -> FlowAdded:
    return FlowAdded(float(number), flow(number, **facts), Counts(rx_bytes=rx), False)


def updated(number: int, rx: int, before: int) -> FlowUpdated:
    return FlowUpdated(float(rx), flow(number), Counts(rx_bytes=rx), Counts(rx_bytes=before))


POLLED = PollCompleted(0.0, 0, True, 1)

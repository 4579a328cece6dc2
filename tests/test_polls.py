"""`Monitor.poll_now` returns after a poll that began after it was called, on every kernel."""

from __future__ import annotations

import socket
import sys
import time

import anyio
import pytest
from scripted import Script, watching

from examples import examples
from nstat_async import FlowRemoved, Monitor, MonitorClosedError, PollCompleted, StreamEndedError
from nstat_async._subscription import Distributor
from nstat_async.testing import EmulatedKernel

LOOPS = ["asyncio", "trio"]
LINUX = [
    pytest.mark.linux,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks a living Linux kernel"),
]


class Emulated:
    """Opens flows on an emulated kernel."""

    def __init__(self, name, **options):
        self.kernel = EmulatedKernel(name, clock=time.monotonic)
        self.options = {"backend": self.kernel.backend(), **options}

    def open(self, number):
        flow = self.kernel.open_tcp(pid=1, name="a", local=("192.0.2.9", 1024 + number), remote=("192.0.2.1", 443))
        return 1024 + number, flow.close

    async def begin(self, monitor):
        """There is no pulse."""

    def report(self, ports):
        """This kernel reports at once."""

    def close(self):
        self.kernel.close()


class Living:
    """Opens connections on loopback."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.destroyed = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4)  # NETLINK_SOCK_DIAG
        self.destroyed.bind((0, 1))  # SKNLGRP_INET_TCP_DESTROY
        self.options = {"providers": "tcp"}

    def open(self, number):
        near = socket.create_connection(self.listener.getsockname())
        far, _ = self.listener.accept()

        def close():
            far.close()
            near.close()

        return near.getsockname()[1], close

    async def begin(self, monitor):
        """Wait until there is a pulse: ends wait for its reports."""
        while not monitor.statistics().feed.get("pulses"):
            await anyio.sleep(0.001)

    def report(self, ports):
        """Wait until the kernel has reported the ends of these ports, which may take long where processors are busy."""
        left = set(ports)
        while left:
            left.discard(int.from_bytes(self.destroyed.recv(1 << 16)[20:22], "big"))

    def close(self):
        self.destroyed.close()
        self.listener.close()


SYSTEMS = [
    pytest.param(lambda: Emulated("xnu-11417.121.6"), id="newest"),
    pytest.param(lambda: Emulated("xnu-4570.1.46"), id="counted"),
    pytest.param(lambda: Emulated("xnu-2422.115.4"), id="without updates"),
    pytest.param(lambda: Emulated("xnu-2050.24.15"), id="without a list of descriptions"),
    pytest.param(Living, id="linux", marks=LINUX),
]


def ports(monitor):
    return {flow.local.port for flow, _ in monitor.flows if flow.local is not None}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("make", SYSTEMS)
def test_what_is_open_when_it_is_called_is_known_when_it_returns_also_during_a_poll(make, loop):
    system = make()
    missing = []

    async def main():
        async with Monitor(interval=0.005, **system.options) as monitor, anyio.create_task_group() as tasks:

            async def ask(number):
                port, close = system.open(number)
                try:
                    await monitor.poll_now()
                    if port not in ports(monitor):
                        missing.append(number)
                finally:
                    close()

            for number in range(examples(80, 10)):
                # One on its own, or three at once of which two come while a poll is under way.
                for each in range(1 if number % 2 else 3):
                    tasks.start_soon(ask, 3 * number + each)
                await anyio.sleep(0.0003 * (number * 2 % 20))

    anyio.run(main, backend=loop)
    system.close()
    assert not missing


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("make", SYSTEMS)
def test_each_poll_is_reported_with_a_serial_that_grows(make, loop):
    system = make()

    async def main():
        async with Monitor(interval=None, **system.options) as monitor:
            stream = monitor.subscribe(overflow="all")
            for _ in range(5):
                await monitor.poll_now()
            return [event.serial for event in stream.receive_nowait() if isinstance(event, PollCompleted)]

    serials = anyio.run(main, backend=loop)
    system.close()
    assert len(serials) >= 5
    assert serials == sorted(set(serials))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("make", SYSTEMS)
def test_what_ended_when_it_is_called_with_ends_is_an_event_when_it_returns(make, loop):
    """Though the loop was blocked all the while, so that nothing of it was read."""
    system = make()
    opened, ended = set(), set()

    async def main():
        async with Monitor(interval=None, ebpf="off", **system.options) as monitor:
            await monitor.poll_now()
            await system.begin(monitor)
            stream = monitor.subscribe(overflow="all")
            for number in range(40):
                port, close = system.open(number)
                opened.add(port)
                close()
            system.report(opened)
            await monitor.poll_now(ends=True)
            ended.update(e.flow.local.port for e in stream.receive_nowait() if isinstance(e, FlowRemoved))

    anyio.run(main, backend=loop)
    system.close()
    assert len(opened) == 40
    assert opened <= ended


@pytest.mark.parametrize("loop", LOOPS)
def test_ends_are_waited_for_unless_a_consumer_that_blocks_has_no_room(loop):
    """It may be the caller, who cannot make room meanwhile."""

    class Settling(Script):
        asked = ()

        async def settled(self, *, ends):
            await anyio.lowlevel.checkpoint()
            self.asked += (ends,)

        def request_poll(self):
            self.deliver(PollCompleted(0.0, 0, True, super().request_poll()))
            return self.polls

    async def main():
        async with watching(Settling(), overflow="block", max_pending=3) as (feed, monitor):
            consumer = monitor.subscribe()
            await monitor.poll_now()
            await monitor.poll_now(ends=True)
            await monitor.poll_now(ends=True)
            assert feed.asked == (False, True)
            assert len(consumer.receive_nowait()) == 3
            await monitor.poll_now(ends=True)
            assert feed.asked == (False, True, True)

    anyio.run(main, backend=loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_call_that_is_given_up_leaves_nothing_that_waits(loop):
    system = Emulated("xnu-11417.121.6")

    async def main():
        async with Monitor(interval=None, **system.options) as monitor:
            for _ in range(20):
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await monitor.poll_now()
            assert monitor._distributor._poll_waiters == []
            await monitor.poll_now()

    anyio.run(main, backend=loop)
    system.close()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_feed_that_ends_after_an_older_poll_has_not_answered(loop):
    async def main():
        sink = Distributor()
        async with anyio.create_task_group() as tasks:

            async def wait(serial, error):
                with pytest.raises(error):
                    await sink.polled(lambda: serial)

            tasks.start_soon(wait, 5, StreamEndedError)
            await anyio.wait_all_tasks_blocked()
            sink.deliver([PollCompleted(0.0, 0, True, 4), PollCompleted(0.0, 0, True), PollCompleted(0.0, 0, True, 3)])
            await sink.polled(lambda: 4)
            await anyio.wait_all_tasks_blocked()
            sink.end(None)
        await sink.polled(lambda: 4)
        await wait(5, StreamEndedError)
        sink.close()
        await wait(5, MonitorClosedError)
        failed = Distributor()
        failed.end(RuntimeError("the kernel went away"))
        with pytest.raises(RuntimeError, match="the kernel went away"):
            await failed.polled(lambda: 1)

    anyio.run(main, backend=loop)

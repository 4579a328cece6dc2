"""Many flows, slow consumers, small buffers, lost controls: on real descriptors, against the emulated kernel."""

from __future__ import annotations

import errno

import anyio
import pytest
from ntstat_wire import NEWER
from virtual import Picture, compare
from worlds import EmulatedWorld

from examples import THOROUGH
from nstat_async import (
    BackendUnavailableError,
    EventsLost,
    FlowAdded,
    FlowRemoved,
    LossCause,
    Monitor,
    PollCompleted,
    Proof,
    RequestError,
)
from nstat_async.ntstat import _sockets
from nstat_async.testing import DARWIN_27_INSERTIONS, EmulatedKernel
from nstat_async.testing._transport import EmulatedTransport

pytestmark = pytest.mark.usefixtures("emulated")
LIMIT = 120.0
KERNEL = "xnu-11417.121.6"


def bounded(body):
    async def within():
        with anyio.fail_after(LIMIT):
            await body()

    return within


def populated(size, kernel=KERNEL, **options):
    made = EmulatedKernel(kernel, **options)
    flows = []
    for number in range(size):
        opener = made.open_udp if number % 3 == 2 else made.open_tcp
        flows.append(opener(1000 + number % 500, f"p{number}", remote=("198.51.100.7", 443), rx=number, tx=1))
    made.advance(1.0)
    return made, flows


def providers(monitor):
    return monitor.options.providers


class Reading:
    """A consumer that reads what waits after each poll, and nothing between."""

    def __init__(self, monitor, **options):
        self.monitor = monitor
        self.stream = monitor.subscribe(**options)
        self.picture = Picture()

    def read(self):
        self.picture.feed(self.stream.receive_nowait())

    async def poll(self):
        await self.monitor.poll_now()
        self.read()


@pytest.mark.parametrize("discovery", ["poll", "announce"])
@pytest.mark.parametrize("size", [10, 150])
def test_every_flow_is_told_from_begin_to_end_with_the_right_counts(run, size, discovery):
    kernel, flows = populated(size)

    async def body():
        async with Monitor(backend=kernel.backend(), interval=None, discovery=discovery) as monitor:
            reading = Reading(monitor)
            await reading.poll()
            compare(kernel, reading.picture.flows.values(), providers=providers(monitor))
            for flow in flows[::3]:
                flow.transfer(1000, 100)
            for flow in flows[1::10]:
                flow.close()
            for number in range(size // 10):
                kernel.open_quic(7, f"new{number}", rx=number)
            await anyio.sleep(0.11)  # descriptions are asked for a moment after an announcement
            await reading.poll()
            compare(kernel, reading.picture.flows.values(), providers=providers(monitor))
            assert len(reading.picture.removed) == len(flows[1::10])
            assert all(removed.final for removed in reading.picture.removed)
            assert not reading.picture.losses

    run(bounded(body))


@pytest.mark.slow
def test_twenty_thousand_flows_are_told_once_each():
    kernel, flows = populated(20_000)

    async def body():
        async with Monitor(backend=kernel.backend(), interval=None) as monitor:
            async for event in monitor:
                if isinstance(event, PollCompleted):
                    assert event.complete
                    assert event.flows == 20_000
                    break
            compare(kernel, monitor.flows, providers=providers(monitor))
            for flow in flows[::100]:
                flow.close()
            await monitor.poll_now()
            compare(kernel, monitor.flows, providers=providers(monitor))

    anyio.run(bounded(body))


@pytest.mark.parametrize("overflow", ["coalesce", "all", "block"])
def test_a_consumer_that_stops_reading_has_the_same_flows_and_totals_when_it_goes_on(run, overflow):
    kernel, flows = populated(100)

    async def body():
        options = {"interval": None, "overflow": overflow, "max_pending": 25}
        async with Monitor(backend=kernel.backend(), **options) as monitor:
            slow, quick = Picture(strict_previous=False), Picture()
            async with monitor.subscribe() as stream, monitor.subscribe(overflow="all") as other:
                for step in range(5):
                    for flow in flows[::2]:
                        if flow.open:
                            flow.transfer(10, 1)
                    flows[step].close()
                    short = kernel.open_tcp(9, f"short{step}", remote=("198.51.100.7", 443), rx=5)
                    if overflow != "block":
                        await monitor.poll_now()
                    short.close()
                if overflow == "block":
                    # Nobody reads: the kernel's side waits, and goes on with the first reads.
                    await anyio.sleep(0.02)
                while {flow.id for flow, _ in monitor.flows} != set(slow.flows) or slow.polls < 1 + (overflow == "all"):
                    slow.feed(await stream.receive_many())
                    quick.feed(other.receive_nowait() if len(other._buffer) else [])
                polled = anyio.Event()

                async def poll():
                    await monitor.poll_now()
                    polled.set()

                # How far a blocked kernel's side came before it had to wait is chance; behind this poll all is told.
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(poll)
                    while not polled.is_set() or len(stream._buffer) or len(other._buffer):
                        slow.feed(stream.receive_nowait())
                        quick.feed(other.receive_nowait())
                        await anyio.sleep(0.001)
                compare(kernel, slow.flows.values(), providers=providers(monitor))
                assert slow.moved == quick.moved
                assert {i: c.rx_bytes for i, (_, c) in slow.flows.items()} == {
                    i: c.rx_bytes for i, (_, c) in quick.flows.items()
                }

    run(bounded(body))


@pytest.mark.two_loops
@pytest.mark.parametrize("receive_buffer", [1024, 8192, 8 << 20, *([2048, 16_384] if THOROUGH else [])])
@pytest.mark.parametrize("discovery", ["poll", "announce"])
def test_hundreds_of_flows_are_found_with_the_smallest_and_the_largest_receive_buffer(run, discovery, receive_buffer):
    kernel, flows = populated(200)

    async def body():
        options = {"interval": None, "discovery": discovery, "receive_buffer": receive_buffer}
        async with Monitor(backend=kernel.backend(), **options) as monitor:
            reading = Reading(monitor)
            while len(reading.picture.flows) < len(flows):
                await reading.poll()
            compare(kernel, reading.picture.flows.values(), providers=providers(monitor))
            assert monitor.capabilities.receive_buffer == receive_buffer

    run(bounded(body))


def test_lost_announcements_are_told_and_a_second_control_socket_takes_over_without_a_double_or_a_hole(run):
    kernel, flows = populated(300)

    async def body():
        options = {"interval": None, "discovery": "announce", "receive_buffer": 8192}
        async with Monitor(backend=kernel.backend(), **options) as monitor:
            reading = Reading(monitor)
            while len(reading.picture.flows) < len(flows):
                await reading.poll()
            picture = reading.picture
            assert {loss.cause for loss in picture.losses} >= {LossCause.ANNOUNCEMENT, LossCause.RESYNC}
            assert len(picture.ids) == len(flows)
            assert not picture.removed
            assert monitor.statistics().feed["resynchronisations"] == 1
            flows[0].transfer(100, 0)
            await reading.poll()
            assert len(kernel.clients) == 1, "the first socket was closed"
            compare(kernel, picture.flows.values(), providers=providers(monitor))

    run(bounded(body))


def test_a_control_that_goes_away_is_opened_again_and_every_flow_goes_on(run, monkeypatch):
    monkeypatch.setattr(_sockets, "REOPEN_DELAYS", (0.005, 0.01))
    kernel, flows = populated(300)

    async def body():
        async with Monitor(backend=kernel.backend(), interval=None) as monitor:
            reading = Reading(monitor)
            await reading.poll()
            kernel.end_controls()
            await anyio.sleep(0)
            flows[0].transfer(1, 1)
            while LossCause.RESYNC not in {loss.cause for loss in reading.picture.losses}:
                reading.picture.feed(await reading.stream.receive_many())
            await reading.poll()
            assert len(reading.picture.ids) == len(flows)
            assert not reading.picture.removed
            compare(kernel, reading.picture.flows.values(), providers=providers(monitor))

    run(bounded(body))


def test_a_control_that_never_comes_back_ends_the_monitor_with_a_clear_error(run, monkeypatch):
    monkeypatch.setattr(_sockets, "REOPEN_DELAYS", (0.005, 0.01))
    kernel, _ = populated(3)

    def refuse(*_arguments):
        raise OSError(errno.ENOENT, "no such control")

    async def watch():
        async with Monitor(backend=kernel.backend(), interval=None) as monitor:
            async for event in monitor:
                if isinstance(event, PollCompleted):
                    monkeypatch.setattr(EmulatedTransport, "open", refuse)
                    kernel.end_controls()

    async def body():
        with pytest.raises(BackendUnavailableError, match="went away"):
            await watch()

    run(bounded(body))


def test_a_kernel_that_refuses_every_provider_ends_the_monitor_with_its_error_number(run):
    kernel = EmulatedKernel(KERNEL, privilege_check=True)

    async def watch():
        async with Monitor(backend=kernel.backend(), interval=None) as monitor:
            async for _ in monitor:
                pass

    async def body():
        with pytest.raises(RequestError) as caught:
            await watch()
        assert caught.value.errno == 1

    run(bounded(body))


def test_privileged_providers_are_refused_one_by_one_and_the_others_go_on(run):
    kernel, _ = populated(3)

    async def body():
        wanted = {"tcp", "udp", "connection", "udp_subflow"}
        async with Monitor(backend=kernel.backend(), interval=None, providers=wanted) as monitor:
            reading = Reading(monitor)
            await reading.poll()
            assert {(refused.provider.value, refused.errno) for refused in reading.picture.refused} == {
                ("connection", 1),
                ("udp_subflow", 1),
            }
            assert len(reading.picture.flows) == 3

    run(bounded(body))


def test_bytes_that_no_kernel_would_send_cost_an_event_and_nothing_else(run):
    kernel, flows = populated(20)

    async def body():
        async with Monitor(backend=kernel.backend(), interval=None) as monitor:
            reading = Reading(monitor)
            await reading.poll()
            for number in range(50):
                kernel.inject(kernel.random.randbytes(number))
            flows[0].transfer(1, 1)
            await reading.poll()
            assert {loss.cause for loss in reading.picture.losses} == {LossCause.PROTOCOL}
            compare(kernel, reading.picture.flows.values(), providers=providers(monitor))

    run(bounded(body))


@pytest.mark.parametrize("verify", [False, None])
def test_a_kernel_newer_than_known_is_followed_with_and_without_a_proof(run, verify):
    kernel, flows = populated(30, NEWER, insertions=DARWIN_27_INSERTIONS[0])

    async def body():
        async with Monitor(backend=kernel.backend(verify=verify), interval=None) as monitor:
            reading = Reading(monitor)
            await reading.poll()
            for _ in range(5):
                await reading.poll()
                await anyio.sleep(0.005)
            while any(flow.fields["pname"] == b"python3" for flow in kernel.flows()):  # known flows, closed by a thread
                await reading.poll()
            await reading.poll()  # if the last was closed behind the poll before
            assert monitor.capabilities.layout_proof is (Proof.UNKNOWN if verify is False else Proof.PROBED)
            compare(kernel, reading.picture.flows.values(), providers=providers(monitor))
            for flow in flows:
                flow.close()
            while any(
                flow.process.name.startswith("p") and flow.process.name != "python3" for flow, _ in monitor.flows
            ):
                await reading.poll()
            assert all(removed.final for removed in reading.picture.removed)

    run(bounded(body))


def test_every_event_of_a_short_life_comes_in_order_and_nothing_is_left_behind(run):
    world = EmulatedWorld()

    async def body():
        async with Monitor(backend=world.backend(), interval=0.01) as monitor:
            seen, opened = [], 0
            async for event in monitor:
                if isinstance(event, PollCompleted) and opened < 20:
                    link = world.tcp()
                    link.send(100)
                    link.close()
                    opened += 1
                if isinstance(event, (FlowAdded, FlowRemoved)):
                    seen.append((type(event), event.flow.id))
                assert not isinstance(event, EventsLost)
                if opened == 20 and len(seen) == 2 * 3 * 20:  # a listener and two ends each
                    break
            assert not monitor.flows

    run(bounded(body))

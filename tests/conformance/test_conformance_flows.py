"""What the library promises about a living kernel's flows.

Each body opens connections of its own on loopback and looks for them; whatever else the
machine does, it must not disturb.
"""

from __future__ import annotations

import anyio
import pytest
from virtual import Picture

from nstat_async import Direction, FlowAdded, FlowRemoved, FlowUpdated, Monitor, Proof, Provider, TcpState, snapshot

LIMIT = 120.0
"""Seconds after which a body has failed."""
SENT, ANSWERED = 12_345, 6_789


def ends(flow):
    return (flow.local, flow.remote)


def own(flows, link):
    """(near, far): what is known of the two ends of a link."""
    by_ends = {ends(flow): (flow, counts) for flow, counts in flows}
    return by_ends.get((link.near, link.far)), by_ends.get((link.far, link.near))


def totals(counts):
    return (counts.rx_bytes, counts.tx_bytes)


class Reader:
    """Follows a monitor's own stream without waiting, and checks its order on the way."""

    def __init__(self, monitor):
        self.monitor = monitor
        self.stream = monitor.subscribe()
        self.picture = Picture()
        self.events = []

    async def poll(self):
        await self.monitor.poll_now()
        events = self.stream.receive_nowait()
        self.picture.feed(events)
        self.events += events
        return events

    def of(self, link):
        """The events of a link's near end, by class name."""
        mine = {(link.near, link.far)}
        # A flow may be told before it has addresses: its id joins its events.
        ids = {e.flow.id for e in self.events if hasattr(e, "flow") and ends(e.flow) in mine}
        return [event for event in self.events if hasattr(event, "flow") and event.flow.id in ids]


async def gone(world, reader, link):
    """Poll until both ends of a link are removed."""
    while any(own(reader.picture.flows.values(), link)):
        await reader.poll()
        await world.wait()


def bounded(body):
    async def within():
        with anyio.fail_after(LIMIT):
            await body()

    return within


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_connection_that_was_there_before_is_told_with_its_bytes_and_its_owner(any_world, run, kind, family):
    link = getattr(any_world, kind)(family)
    link.send(SENT)
    link.answer(ANSWERED)

    async def body():
        async with Monitor(backend=any_world.backend(), interval=None) as monitor:
            reader = Reader(monitor)
            await reader.poll()
            near, far = own(reader.picture.flows.values(), link)
            assert totals(near[1]) == (ANSWERED, SENT)
            assert totals(far[1]) == (SENT, ANSWERED)
            for flow, _ in (near, far):
                assert flow.provider is Provider(kind)
                assert flow.process.pid == any_world.pid
                assert flow.is_loopback
                assert flow.state is (TcpState.ESTABLISHED if kind == "tcp" else None)
            (added,) = (e for e in reader.of(link) if isinstance(e, FlowAdded))
            assert added.preexisting
            assert own(monitor.flows, link) == (near, far)

    run(bounded(body))


@pytest.mark.parametrize("discovery", ["poll", "announce"])
def test_a_connection_appears_is_updated_and_goes_with_exact_counts(any_world, run, discovery):
    async def body():
        async with Monitor(backend=any_world.backend(), interval=None, discovery=discovery) as monitor:
            reader = Reader(monitor)
            await reader.poll()
            link = any_world.tcp()
            while not all(own(reader.picture.flows.values(), link)):
                await reader.poll()
                await any_world.wait()
            link.send(SENT)
            await reader.poll()
            link.answer(ANSWERED)
            await reader.poll()
            link.close()
            await gone(any_world, reader, link)
        events = reader.of(link)
        assert isinstance(events[0], FlowAdded)
        assert isinstance(events[-1], FlowRemoved)
        assert all(isinstance(event, FlowUpdated) for event in events[1:-1])
        assert not events[0].preexisting
        assert totals(events[-1].counts) == (ANSWERED, SENT)
        deltas = [event.delta for event in events[1:-1]]
        first = totals(events[0].counts) if events[0].counts is not None else (0, 0)
        assert first[0] + sum(d.rx_bytes for d in deltas) == ANSWERED
        assert first[1] + sum(d.tx_bytes for d in deltas) == SENT
        assert events[-1].final == monitor.capabilities.final_counts

    run(bounded(body))


@pytest.mark.parametrize("discovery", ["poll", "announce"])
def test_the_same_on_every_loop_while_polls_go_on_by_themselves(world, run, discovery):
    async def body():
        async with Monitor(backend=world.backend(), interval=0.02, discovery=discovery) as monitor:
            picture, link = Picture(), None
            async for event in monitor:
                picture.feed([event])
                if link is None:
                    if picture.polls:
                        link = world.tcp()
                    continue
                if not hasattr(event, "flow") or ends(event.flow) != (link.near, link.far):
                    continue
                if isinstance(event, FlowRemoved):
                    assert totals(event.counts) == (ANSWERED, SENT)
                    return
                step = totals(event.counts)
                if step == (0, 0):
                    link.send(SENT)
                elif step == (0, SENT):
                    link.answer(ANSWERED)
                elif step == (ANSWERED, SENT):
                    link.close()

    run(bounded(body))


def test_a_connection_that_lives_between_two_polls_is_told_with_all_its_bytes(world, run):
    async def body():
        async with Monitor(backend=world.backend(), interval=None) as monitor:
            reader = Reader(monitor)
            await reader.poll()
            link = world.tcp()
            link.send(SENT)
            link.answer(ANSWERED)
            link.close()
            while not any(isinstance(event, FlowRemoved) for event in reader.of(link)):
                await reader.poll()
                await world.wait()
        removed = reader.of(link)[-1]
        assert removed.final
        assert totals(removed.counts) == (ANSWERED, SENT)

    run(bounded(body))


def test_who_connected_is_outbound_who_accepted_inbound_and_a_listener_is_one(any_world, run):
    listener, link = any_world.listener(), any_world.tcp()

    async def body():
        async with Monitor(backend=any_world.backend(), interval=None) as monitor:
            reader = Reader(monitor)
            await reader.poll()
            (listening,) = (flow for flow, _ in reader.picture.flows.values() if flow.local == listener)
            assert listening.direction is Direction.LISTENER
            assert listening.state is TcpState.LISTEN
            near, far = own(reader.picture.flows.values(), link)
            assert near[0].direction is Direction.OUTBOUND
            # Before xnu-10002 only a listener that is still there tells of its children.
            expected = {Direction.INBOUND, Direction.OUTBOUND}
            tells = not any_world.emulated or any_world.kernel.release.version >= (10002,)
            assert far[0].direction in ({Direction.INBOUND} if tells else expected)

    run(bounded(body))


def test_several_monitors_have_the_same_picture(world, run):
    links = [world.tcp(), world.udp()]

    async def body():
        one = Monitor(backend=world.backend(), interval=None)
        two = Monitor(backend=world.backend(), interval=None, discovery="announce")
        async with one, two:
            for monitor in (one, two):
                await monitor.poll_now()
            links[0].send(SENT)
            for monitor in (one, two):
                await monitor.poll_now()
            for link in links:
                first, second = own(one.flows, link), own(two.flows, link)
                assert [(ends(f), totals(c)) for f, c in first] == [(ends(f), totals(c)) for f, c in second]

    run(bounded(body))


def test_a_snapshot_has_the_flows_of_this_moment(world, run):
    link = world.tcp()
    link.send(SENT)

    async def body():
        near, far = own(await snapshot(backend=world.backend()), link)
        assert totals(near[1]) == (0, SENT)
        assert totals(far[1]) == (SENT, 0)

    run(bounded(body))


def test_only_the_providers_that_were_asked_for_are_told(world, run):
    tcp, udp = world.tcp(), world.udp()

    async def body():
        async with Monitor(backend=world.backend(), interval=None, providers="udp") as monitor:
            await monitor.poll_now()
            assert own(monitor.flows, tcp) == (None, None)
            assert all(own(monitor.flows, udp))
            assert {flow.provider for flow, _ in monitor.flows} == {Provider.UDP}

    run(bounded(body))


@pytest.mark.parametrize("receive_buffer", [8192, 65_536, 4 << 20])
@pytest.mark.parametrize("discovery", ["poll", "announce"])
def test_a_hundred_connections_are_found_with_a_receive_buffer_of_any_size(world, run, discovery, receive_buffer):
    links = [world.tcp() for _ in range(50)]
    for number, link in enumerate(links):
        link.send(number + 1)

    async def body():
        options = {"interval": None, "discovery": discovery, "receive_buffer": receive_buffer}
        async with Monitor(backend=world.backend(), **options) as monitor:
            reader = Reader(monitor)
            await reader.poll()
            while not all(all(own(reader.picture.flows.values(), link)) for link in links):
                await reader.poll()
                await world.wait()
            for number, link in enumerate(links):
                near, far = own(reader.picture.flows.values(), link)
                assert totals(near[1]) == (0, number + 1)
                assert totals(far[1]) == (number + 1, 0)

    run(bounded(body))


def test_the_layout_is_proven_on_the_living_kernel(any_world, run):
    async def body():
        async with Monitor(backend=any_world.backend(verify=True), interval=None) as monitor:
            assumed = monitor.capabilities.layout_proof
            while monitor.capabilities.layout_proof is assumed:
                await monitor.poll_now()
                await any_world.wait()
            capabilities = monitor.capabilities
            assert capabilities.layout_proof in {Proof.VERIFIED, Proof.PROBED}, capabilities.notes

    run(bounded(body))

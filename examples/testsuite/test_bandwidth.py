"""A test suite for `bandwidth`, on any machine: the kernel is emulated.

Run it with ``pytest examples/testsuite``, in a clone after ``pip install -e '.[test]'``. The fixtures ``nstat_kernel`` and ``nstat_monitor``
come with the package; nothing is to be configured for them.
"""

from collections.abc import Callable

import pytest
from bandwidth import busiest

from nstat_async import FlowRemoved, Monitor
from nstat_async.testing import EmulatedKernel

MakeMonitor = Callable[..., Monitor]


@pytest.mark.asyncio
async def test_the_process_with_the_most_bytes_is_on_top(
    nstat_kernel: EmulatedKernel, nstat_monitor: MakeMonitor
) -> None:
    nstat_kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=10_000, tx=500)
    nstat_kernel.open_udp(88, "mDNSResponder", local=("0.0.0.0", 5353), rx=300)
    async with nstat_monitor() as monitor:
        ranking = await busiest(monitor)
    assert ranking.top() == "curl"
    assert ranking.bytes == {"curl": 10_500, "mDNSResponder": 300}


@pytest.mark.asyncio
@pytest.mark.nstat_kernel("xnu-7195.141.2")  # macOS 11
async def test_a_flow_that_lives_between_two_polls_is_counted_in_full(
    nstat_kernel: EmulatedKernel, nstat_monitor: MakeMonitor
) -> None:
    async with nstat_monitor() as monitor:
        await busiest(monitor, polls=1)
        flow = nstat_kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443))
        flow.transfer(rx=70_000)
        flow.close()
        ranking = await busiest(monitor)
    assert ranking.bytes["curl"] == 70_000


@pytest.mark.asyncio
async def test_a_loss_is_noticed(nstat_kernel: EmulatedKernel, nstat_monitor: MakeMonitor) -> None:
    """The last report of a closing flow does not fit the kernel's buffer: what then?"""
    flow = nstat_kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000)
    async with nstat_monitor() as monitor:
        await busiest(monitor, polls=1)
        nstat_kernel.faults.lose_final_reports = 1.0
        flow.transfer(rx=5000)
        flow.close()
        async for event in monitor:
            if isinstance(event, FlowRemoved):
                break
    assert not event.final, "the counts are those of the last poll"
    assert event.counts.rx_bytes == 1000


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_the_same_works_with_anyios_plugin_on_both_backends(
    nstat_kernel: EmulatedKernel,
    nstat_monitor: MakeMonitor,
    anyio_backend: str,  # noqa: ARG001  (anyio's plugin takes it)
) -> None:
    nstat_kernel.open_quic(7, "Safari", rx=1)
    async with nstat_monitor() as monitor:
        assert (await busiest(monitor, polls=1)).top() == "Safari"

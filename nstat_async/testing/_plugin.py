"""pytest plugin: an emulated kernel, and monitors on it, as fixtures.

Loaded by pytest's entry point ``nstat_async``. It imports pytest only; the emulated
kernel and the library come when a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nstat_async import Monitor
    from nstat_async.testing import EmulatedKernel


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "nstat_kernel(kernel='xnu-…', **options): arguments of EmulatedKernel for the fixture nstat_kernel",
    )


@pytest.fixture
def nstat_kernel(request: pytest.FixtureRequest) -> Iterator[EmulatedKernel]:
    """An emulated Darwin kernel without flows; the marker ``nstat_kernel`` has its arguments."""
    from nstat_async.testing import EmulatedKernel  # noqa: PLC0415  (other suites do not pay for it)

    marker = request.node.get_closest_marker("nstat_kernel")
    kernel = EmulatedKernel(*marker.args, **marker.kwargs) if marker is not None else EmulatedKernel()
    yield kernel
    kernel.close()


@pytest.fixture
def nstat_monitor(nstat_kernel: EmulatedKernel) -> Callable[..., Monitor]:
    """Makes monitors on the emulated kernel, with the options of `nstat_async.Monitor`.

    ``async with nstat_monitor(max_pending=10) as monitor:``. Without an interval it polls
    every 50 ms, so that tests do not wait.
    """
    from nstat_async import Monitor  # noqa: PLC0415

    def make(**options: Any) -> Monitor:
        options.setdefault("interval", 0.05)
        return Monitor(backend=nstat_kernel.backend(), **options)

    return make

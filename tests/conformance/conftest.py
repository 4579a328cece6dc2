"""The same bodies against the emulated kernel and, on a Mac with ``--real-kernel``, the real one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
import trio
from kernels import GENERATIONS
from worlds import EmulatedWorld, RealWorld

try:
    import uvloop
except ImportError:  # not on every platform
    uvloop = None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--real-kernel",
        action="store_true",
        help="run the conformance bodies on this Mac's kernel, not the emulated one",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "two_loops: asyncio and trio are enough for this one")


def on_asyncio(body: Callable[[], Any]) -> None:
    asyncio.run(body(), debug=True)


def on_uvloop(body: Callable[[], Any]) -> None:
    uvloop.run(body())


LOOPS = {"asyncio": on_asyncio, "uvloop": on_uvloop, "trio": trio.run}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every body on every loop; those that ask for `any_world` on every generation of kernels, on one loop."""
    real = metafunc.config.getoption("--real-kernel", default=False)
    loops = [pytest.param(run, id=name) for name, run in LOOPS.items() if name != "uvloop" or uvloop is not None]
    if "any_world" in metafunc.fixturenames:
        metafunc.parametrize("any_world", [None] if real else GENERATIONS, indirect=True)
        metafunc.parametrize("run", loops[:1])
    elif "run" in metafunc.fixturenames:
        few = metafunc.definition.get_closest_marker("two_loops") is not None
        metafunc.parametrize("run", [each for each in loops if not few or each.id != "uvloop"])


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Any:
    """Flows that the test opens, and the kernel that sees them."""
    with make_world(request.config, "xnu-11417.121.6") as made:
        yield made


@pytest.fixture
def any_world(request: pytest.FixtureRequest) -> Any:
    """The same on the kernels of every generation."""
    with make_world(request.config, request.param) as made:
        yield made


@pytest.fixture
def emulated(request: pytest.FixtureRequest) -> None:
    """For what only an emulated kernel can be made to do."""
    if request.config.getoption("--real-kernel", default=False):
        pytest.skip("needs the emulated kernel")


def make_world(config: pytest.Config, kernel: str) -> Any:
    if not config.getoption("--real-kernel", default=False):
        return EmulatedWorld(kernel)
    if sys.platform != "darwin":
        pytest.fail("--real-kernel needs a Mac")
    return RealWorld()

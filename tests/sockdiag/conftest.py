"""The kernel that most tests of this folder begin with, and what runs programs on the living one."""

from __future__ import annotations

import pytest
from nursery import Nursery
from own_namespace import apart_if_allowed
from sockdiag_fakes import FakeKernel, FakeSocket, traffic

from nstat_async import PollCompleted


@pytest.fixture(scope="session")
def nursery():
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def kernel() -> FakeKernel:
    """It is polled once a second, and has no socket yet."""
    return FakeKernel(interval=1.0)


@pytest.fixture
def connected(kernel: FakeKernel) -> FakeKernel:
    """Its first poll found one connection, which had traffic."""
    kernel.sockets[1] = FakeSocket(1, info=traffic(5, 10))
    kernel.start()
    return kernel


@pytest.fixture
def patience(monkeypatch):
    """On a machine with other work a search for processes may take its time: new flows wait for it."""
    monkeypatch.setattr("nstat_async.sockdiag._polls.OWNERS_PATIENCE", 60.0)
    monkeypatch.setattr("nstat_async.sockdiag._polls.FIRST_OWNERS_PATIENCE", 60.0)


@pytest.fixture
def apart():
    """As root nobody else's connections are there."""
    with apart_if_allowed():
        yield


@pytest.fixture
def live(apart):
    """A session with the living kernel, which was polled once."""
    from sockdiag_living import drive

    with drive() as driver:
        driver.until(lambda: any(isinstance(e, PollCompleted) for e in driver.events))
        yield driver

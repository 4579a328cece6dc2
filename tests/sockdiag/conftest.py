"""The kernel that most tests of this folder begin with, and what runs programs on the living one."""

from __future__ import annotations

import pytest
from nursery import Nursery
from sockdiag_fakes import FakeKernel, FakeSocket, traffic


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

"""Each test of the pump runs on asyncio and on trio."""

from __future__ import annotations

import pytest
from pump_parts import Pumping


@pytest.fixture(params=[("asyncio", {"debug": True}), "trio"], ids=["asyncio", "trio"])
def anyio_backend(request):
    """The loops, for the plugin of anyio."""
    return request.param


@pytest.fixture
async def it():
    """A pump between a note-book and wires that the test holds."""
    return Pumping()

"""What tests of replays share."""

from __future__ import annotations

import io
from typing import Any

import anyio
import pytest

from nstat_async import Monitor, RequestError
from nstat_async.backends import Replay
from nstat_async.testing import EmulatedKernel


def replayed(recording: Any, **options: Any) -> list[Any]:
    """All events of a replay."""

    async def main() -> list[Any]:
        async with Monitor(backend=Replay(recording), **options) as monitor:
            return [event async for event in monitor]

    return anyio.run(main)


def assert_same(replay: list[Any], run: list[Any]) -> None:
    """The same events; the first that differs is shown."""
    for number, (again, once) in enumerate(zip(replay, run, strict=False)):
        assert again == once, f"event {number}"
        assert getattr(again, "flow", None) == getattr(once, "flow", None)
    assert len(replay) == len(run)


def failed_run() -> bytes:
    """The recording of a run whose kernel refused everything that was asked for."""
    kernel, file = EmulatedKernel(), io.BytesIO()

    async def main() -> None:
        with pytest.raises(RequestError) as caught:
            async with Monitor(backend=kernel.backend(), providers="connection", record_to=file) as monitor:
                _ = [event async for event in monitor]
        assert not caught.value.recorded

    anyio.run(main)
    return file.getvalue()

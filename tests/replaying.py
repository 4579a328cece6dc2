"""What tests of replays share."""

from __future__ import annotations

from typing import Any

import anyio

from nstat_async import Monitor
from nstat_async.backends import Replay


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

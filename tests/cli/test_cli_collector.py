"""The command has the garbage collector look at everything rarely, and leaves it as it was."""

from __future__ import annotations

import gc

import anyio
import pytest

from nstat_async._cli._run import THRESHOLDS, run_until_stopped


@pytest.mark.parametrize("frozen", [True, False])
def test_a_command_collects_rarely_and_leaves_the_collector_as_it_was(frozen):
    """Also to whoever froze objects before, as `conftest.py` did."""
    if not frozen:
        gc.unfreeze()
    before, count, seen = gc.get_threshold(), gc.get_freeze_count(), []

    async def work(_scope: anyio.CancelScope) -> int:
        seen.append((gc.get_threshold(), gc.get_freeze_count() > 0))
        return 3

    try:
        assert run_until_stopped(work) == 3
        assert seen == [(THRESHOLDS, True)]
        assert gc.get_threshold() == before
        assert (gc.get_freeze_count() > 0) == (count > 0) == frozen
    finally:
        gc.freeze()

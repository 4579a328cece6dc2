"""The command has the garbage collector look at everything rarely, and leaves it as it was."""

from __future__ import annotations

import gc

import anyio

from nstat_async._cli._run import THRESHOLDS, run_until_stopped


def test_a_command_collects_rarely_and_leaves_the_collector_as_it_was():
    before, seen = gc.get_threshold(), []

    async def work(_scope: anyio.CancelScope) -> int:
        seen.append((gc.get_threshold(), gc.get_freeze_count() > 0))
        return 3

    assert run_until_stopped(work) == 3
    assert seen == [(THRESHOLDS, True)]
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0

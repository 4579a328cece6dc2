"""The command has the garbage collector look at everything rarely, and leaves it as it was."""

from __future__ import annotations

import gc

import anyio
import pytest

from nstat_async._cli import _run


@pytest.mark.parametrize("is_command", [True, False])
def test_a_command_collects_rarely_and_leaves_the_collector_as_it_was(is_command, monkeypatch):
    """What there was before is looked at no more where the process is the command's; else it is the caller's."""
    before, seen, frozen = gc.get_threshold(), [], []
    monkeypatch.setattr(_run, "IS_COMMAND", is_command)
    monkeypatch.setattr(_run.gc, "freeze", lambda: frozen.append(True))

    async def work(_scope: anyio.CancelScope) -> int:
        seen.append((gc.get_threshold(), bool(frozen)))
        return 3

    assert _run.run_until_stopped(work) == 3
    assert seen == [(_run.THRESHOLDS, is_command)]
    assert gc.get_threshold() == before

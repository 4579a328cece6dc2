"""The command `publish`: what it says at its end. What it sends is tested with real servers, in tests/fleet."""

from __future__ import annotations

import types

import pytest
from support import run

pytest.importorskip("nats")

from nstat_async.integrations.nats import Publisher


@pytest.mark.parametrize(
    ("options", "waiting", "status", "says"),
    [
        ([], 0, 0, None),
        ([], 1, 1, "error: the server does not have the last events, which are lost; --spool FILE keeps such events"),
        (["--spool", "s.db"], 3, 0, "s.db: 3 messages wait for the next run"),
        (["--spool", "s.db"], 0, 0, None),
    ],
)
def test_what_the_server_does_not_have_at_the_end_is_said(options, waiting, status, says, monkeypatch):
    async def stop(publisher, _monitor):
        publisher._outbox = types.SimpleNamespace(waiting=waiting)

    monkeypatch.setattr(Publisher, "run", stop)
    done, out, err = run("publish", "nats://127.0.0.1:1", "--backend", "emulated", *options)
    assert (done, out) == (status, "")
    assert err.splitlines()[1:] == ([] if says is None else [f"nstat-async: {says}"])

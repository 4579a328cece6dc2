"""The command `publish`: what it says at its end. What it sends is tested with real servers, in tests/fleet."""

from __future__ import annotations

import socket
import types

import anyio
import pytest
from support import run

pytest.importorskip("nats")

from nstat_async import Monitor
from nstat_async.integrations.nats import Publisher


@pytest.mark.parametrize(
    ("options", "waiting", "unsaved", "status", "says"),
    [
        ([], 0, 0, 0, None),
        (
            [],
            0,
            1,
            1,
            "error: the server does not have the last events, which are lost; --spool FILE keeps such events",
        ),
        (["--spool", "s.db"], 3, 0, 0, "s.db: 3 messages wait for the next run"),
        (["--spool", "s.db"], 0, 0, 0, None),
        (["--spool", "s.db"], 3, 1, 1, "s.db: 3 messages wait for the next run"),
    ],
)
def test_what_the_server_does_not_have_at_the_end_is_said(options, waiting, unsaved, status, says, monkeypatch):
    async def stop(publisher, _monitor):
        publisher._outbox = types.SimpleNamespace(waiting=waiting, unsaved=unsaved)

    monkeypatch.setattr(Publisher, "run", stop)
    done, out, err = run("publish", "nats://127.0.0.1:1", "--backend", "emulated", *options)
    assert (done, out) == (status, "")
    assert err.splitlines()[1:] == ([] if says is None else [f"nstat-async: {says}"])


@pytest.mark.asyncio
async def test_whoever_is_told_of_the_connection_may_fail_and_publishing_goes_on(caplog):
    said = []

    def tell(text):
        said.append(text)
        raise OSError("nobody to tell")

    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    publisher = Publisher(f"nats://127.0.0.1:{port}", report=tell)
    async with Monitor(backend="emulated") as monitor, anyio.create_task_group() as tasks:
        tasks.start_soon(publisher.run, monitor)
        while not publisher.statistics()["retries"]:
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert said
    assert publisher.statistics()["unsaved"] == 1
    assert "`report` failed, on: " in caplog.text

"""The example that reports new destinations of programs, on a recording."""

from __future__ import annotations

import importlib.util
import json
import pathlib

import anyio
import pytest

from nstat_async import Monitor, backends
from nstat_async.testing import EmulatedKernel

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "new_destinations.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("new_destinations", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recording(tmp_path) -> pathlib.Path:
    """curl talks to two networks, to one of them twice; to itself; sshd is called from outside."""
    kernel = EmulatedKernel()
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443))
    kernel.open_tcp(501, "curl", remote=("198.51.100.8", 443))
    kernel.open_tcp(501, "curl", remote=("203.0.113.9", 443))
    kernel.open_tcp(501, "curl", remote=("127.0.0.1", 8080), interface="lo0")
    path = tmp_path / "r.nstat"

    async def record() -> None:
        async with Monitor(backend=kernel.backend(), record_to=path) as monitor:
            await monitor.poll_now()

    anyio.run(record)
    return path


def alarms(example, path, recording, learn: float) -> list[str]:
    found: list[str] = []

    async def main() -> None:
        await example.main(path, backends.Replay(recording), learn=learn, alarm=found.append)

    anyio.run(main)
    return found


def test_it_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 100


def test_what_is_learned_is_no_alarm_and_what_is_new_is_one(example, recording, tmp_path):
    path = tmp_path / "baseline.json"
    assert alarms(example, path, recording, learn=3600.0) == []
    assert json.loads(path.read_text()) == {"curl": ["198.51.100.0/24 443", "203.0.113.0/24 443"]}
    path.write_text(json.dumps({"curl": ["203.0.113.0/24 443"]}))
    (alarm,) = alarms(example, path, recording, learn=3600.0)
    assert "'curl' (pid 501) connects to 198.51.100." in alarm
    assert alarms(example, path, recording, learn=3600.0) == []  # it was saved


def test_without_time_to_learn_everything_is_reported_once(example, recording, tmp_path):
    assert len(alarms(example, tmp_path / "b.json", recording, learn=0.0)) == 2

"""The soaks of ``benchmarks/soak.py`` and ``tests/soak.py``, shortened: they find what they look for, and churn is clean."""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc
from pathlib import Path

import pytest
import soak as worlds

from nstat_async.ntstat._sources import SourceTable


@pytest.fixture(scope="module")
def soak_module():
    path = Path(__file__).parent.parent / "benchmarks" / "soak.py"
    spec = importlib.util.spec_from_file_location("soak", path)
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.modules["soak"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path[:] = before
        del sys.modules["soak"]


@pytest.mark.slow
def test_with_hundreds_of_flows_that_come_and_go_nothing_is_lost_or_counted_twice_and_memory_stays_flat(soak_module):
    tracemalloc.start()
    try:
        outcome = soak_module.soak(minutes=0.2, rate=60.0, size=60, samples=3)
    finally:
        tracemalloc.stop()
    assert outcome.problem is None
    assert outcome.opened > 600
    assert outcome.moved == outcome.true
    # The first sample holds caches that fill once; hundreds of flows later nothing of theirs is left.
    first, last = outcome.samples[0], outcome.samples[-1]
    assert last.traced_bytes < first.traced_bytes + 64 * 1024, outcome.samples


def test_a_flow_that_is_forgotten_is_noticed(soak_module, monkeypatch):
    told = SourceTable._announce
    monkeypatch.setattr(
        SourceTable, "_announce", lambda self, source: None if source.ref == 100 and source.flow else told(self, source)
    )
    assert soak_module.soak(minutes=0.1, rate=20.0, size=60, samples=1).problem is not None


@pytest.mark.slow
def test_flows_that_stay_after_their_goodbye_are_noticed_as_memory_that_grows(soak_module, monkeypatch):
    kept = []
    taken = SourceTable.remove
    monkeypatch.setattr(
        SourceTable,
        "remove",
        lambda self, source, reason: (kept.append((source, bytes(200))), taken(self, source, reason)),
    )
    tracemalloc.start()
    try:
        outcome = soak_module.soak(minutes=0.1, rate=60.0, size=60, samples=2)
    finally:
        tracemalloc.stop()
    first, last = outcome.samples[0], outcome.samples[-1]
    assert last.traced_bytes > first.traced_bytes + 32 * 1024


@pytest.mark.slow
def test_random_worlds_of_both_systems_are_right():
    counted, wrong = worlds.soak(600, 7, limit=6)
    assert wrong is None
    assert (counted["darwin"], counted["linux"], counted["ebpf"]) == (2, 2, 2)


def test_a_world_whose_flow_moved_something_else_is_named(monkeypatch):
    grow = worlds.Accounted.grow

    def miscount(world, number, amount):
        grow(world, number, amount)
        world.got[2] += 1

    monkeypatch.setattr(worlds.Accounted, "grow", miscount)
    monkeypatch.setitem(worlds.WORLDS, "darwin", lambda dice: 0)
    lines = []
    _, wrong = worlds.soak(600, 1, limit=10, show=lines.append)
    assert wrong.startswith("linux/1/")
    assert lines[-1].startswith(wrong)

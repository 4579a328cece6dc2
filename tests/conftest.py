"""What holds for the whole suite: which tests run, with which examples, and what their processes share."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest


def share_bytecode() -> None:
    """Where the tree is to be kept clean, the many processes of the tests share what they compiled beside it."""
    if sys.dont_write_bytecode and sys.pycache_prefix is None:
        sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
        sys.dont_write_bytecode = False
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


share_bytecode()  # before any other import
gc.disable()  # nothing is left behind while tests are collected, and there is much to look through

from hypothesis import settings

from examples import examples

# The same examples in every run: a test that fails has been broken by the change at hand.
# HYPOTHESIS_PROFILE=thorough has more of them (examples.py), explore looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=examples(100))
settings.register_profile("thorough", derandomize=True, deadline=None, max_examples=examples(100))
settings.register_profile("explore", deadline=None, max_examples=examples(100))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

SLOW = ("browser", "nats", "benchmark", "slow")
"""Markers of what costs too much for every run: `.ci/run` runs it, and so does whoever names its file or folder."""


def pytest_configure(config: pytest.Config) -> None:
    """Choose the quick suite, unless the command line names files or markers."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    if not config.option.markexpr:
        config.option.markexpr = " and ".join(f"not {marker}" for marker in ("long", *(() if named else SLOW)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """What was imported and collected stays to the end: no test looks through it for what it left behind."""
    gc.collect()
    gc.freeze()
    gc.enable()

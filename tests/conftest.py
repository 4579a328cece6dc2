"""What holds for the whole suite: which tests run, with which examples, and what their processes share."""

from __future__ import annotations

import gc
import os
import random
import signal
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
os.environ["LANGUAGE"] = "C"  # what argparse says is in English anyway, and would be looked for in files, word by word
gc.disable()  # nothing is left behind while tests are collected, and there is much to look through

from _pytest.runner import runtestprotocol
from costs import Costs
from hypothesis import Phase, settings

from examples import examples

# The same examples in every run: a test that fails has been broken by the change at hand.
# HYPOTHESIS_PROFILE=thorough has more of them (examples.py), explore looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=examples(100))
settings.register_profile("thorough", derandomize=True, deadline=None, max_examples=examples(100))
settings.register_profile("explore", deadline=None, max_examples=examples(100))
settings.register_profile(  # tests/mutation.py: that an example fails is enough, whatever the smallest is
    "mutants", derandomize=True, deadline=None, max_examples=examples(100), phases=[Phase.explicit, Phase.generate],
    report_multiple_bugs=False,
)  # fmt: skip
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

SLOW = ("browser", "nats", "benchmark", "slow")
"""Markers of what costs too much for every run: `.ci/run` runs it, and so does whoever names its file or folder."""


# A shell's background job ignores it, and would hand that on to each command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """What a run may be asked for."""
    parser.addoption("--shuffle", metavar="SEED", help="run files and the tests of each in random order")
    parser.addoption("--costs", type=int, metavar="N", help="show the N tests that take the most processor time")


def pytest_configure(config: pytest.Config) -> None:
    """Choose the quick suite, unless the command line names files or markers."""
    if config.option.costs:
        config.pluginmanager.register(Costs(config.option.costs))
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    if not config.option.markexpr:
        config.option.markexpr = " and ".join(f"not {marker}" for marker in ("long", *(() if named else SLOW)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle, the same in all processes; a file's tests stay together, because what they share is made once."""
    if config.option.shuffle is not None:
        dice = random.Random(config.option.shuffle)
        places: dict[Path, float] = {}
        items.sort(key=lambda item: (places.setdefault(item.path, dice.random()), dice.random()))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """What was imported and collected stays to the end: no test looks through it for what it left behind."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # whoever counts on it calls gc.collect()
    gc.enable()


@pytest.hookimpl
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Of a test that passed, a worker of xdist sends two messages instead of five: each costs as much as many a test."""
    option = item.config.option
    if not hasattr(item.config, "workerinput") or any(
        (option.verbose > 0, option.costs, option.durations, option.xmlpath)
    ):
        return None
    for report in runtestprotocol(item, nextitem=nextitem, log=False):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True

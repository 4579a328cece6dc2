"""What each test costs, in processor time of its process and of those that it started: ``pytest --costs 40``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest


def _spent() -> float:
    return sum(os.times()[:4])


class Costs:
    """Measures the tests of a process, and shows what all processes measured.

    Args:
        shown: So many of the dearest tests and files.
    """

    def __init__(self, shown: int) -> None:
        self.shown = shown
        self.spent: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.before = _spent()  # what comes before the report of the teardown
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        report = yield
        before, self.before = self.before, _spent()
        report.spent = self.before - before  # xdist hands it to the process that prints
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.spent[report.nodeid] += report.spent

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        files: Counter[str] = Counter()
        for test, spent in self.spent.items():
            files[test.partition("::")[0]] += spent
        terminalreporter.section(f"{self.spent.total():.1f} s of processor time in {len(self.spent):,} tests")
        for name, spent in (*files.most_common(self.shown), *self.spent.most_common(self.shown)):
            terminalreporter.line(f"{spent:7.2f}  {name}")

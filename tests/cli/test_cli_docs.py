"""docs/command-line.md is true: its commands run, its JSON is what is printed, its options exist."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import sample_events as sample
from support import run

from nstat_async._cli._arguments import COMMANDS, build_parser
from nstat_async._cli._workload import read_script
from nstat_async.json import JsonFormatter

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "command-line.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


CONSOLE = [line.removeprefix("$ ") for block in _blocks("console") for line in block.splitlines()]


@pytest.mark.parametrize("command", CONSOLE)
def test_each_console_command_works(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command)
    assert program == "nstat-async"
    status, out, err = run(*arguments)
    # What a doctor finds depends on the machine; that it speaks does not.
    assert status == 0 or (arguments == ["doctor"] and status == 1)
    assert out
    assert err == ""


def test_event_lines_have_the_documented_keys():
    documented = {}
    for line in _blocks("json")[0].splitlines():
        shown = json.loads(line)
        documented[shown["event"]] = list(shown)
    for event in sample.EVENTS:
        printed = json.loads(JsonFormatter()(event))
        assert list(printed) == documented[printed["event"]]


def test_the_script_of_the_documentation_is_one(tmp_path):
    path = tmp_path / "script"
    path.write_text(_blocks("json")[1])
    assert [step.do for step in read_script(str(path))] == ["open", "transfer", "close"]


def test_every_option_that_is_named_exists_and_every_command_is_documented():
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    helps = "".join(run(command, "--help")[1] for command in COMMANDS) + build_parser().format_help()
    assert {option for option in options if option not in helps} == set()
    assert all(f"| `{command}" in TEXT for command in COMMANDS)

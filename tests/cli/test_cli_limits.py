"""What a command does not see is said once, as soon as it is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support import run

from nstat_async import Capabilities, Visibility
from nstat_async._cli._limits import Limits

ALL = Capabilities(backend="sock_diag", flows=Visibility.ALL, processes=Visibility.ALL, final_counts=True)
SOME = Capabilities(
    backend="sock_diag",
    flows=Visibility.ALL,
    processes=Visibility.SOME,
    processes_limit="1 process may not be looked at",
    final_counts=True,
)
SAID = "nstat-async: sees processes of some users only: 1 process may not be looked at\n"


def test_what_is_found_out_later_is_said_then_and_once(capsys):
    limits = Limits(recorded=False)
    for able in (ALL, SOME, SOME):
        limits.say(SimpleNamespace(capabilities=able))
    assert capsys.readouterr().err == SAID


def test_of_a_recording_nothing_is_said(capsys):
    Limits(recorded=True).say(SimpleNamespace(capabilities=SOME))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", [("watch",), ("processes",), ("processes", "--every", "0.1")])
def test_a_command_says_what_its_first_search_found_out(command, monkeypatch):
    known = iter([ALL])
    monkeypatch.setattr("nstat_async.Monitor.capabilities", property(lambda _: next(known, SOME)))
    status, _, err = run(*command, "--backend", "emulated", "--interval", "0.05", "--duration", "0.5")
    assert (status, err) == (0, SAID)

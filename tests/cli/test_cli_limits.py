"""What a command does not see is said once, as soon as it is known."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import attrs
import pytest
from support import run

from nstat_async import Capabilities, MonitorStatistics, Provider, Visibility, backends
from nstat_async._cli._arguments import build_parser
from nstat_async._cli._limits import Limits
from nstat_async._cli._source import monitor_options

TCP = frozenset({Provider.TCP})
ALL = Capabilities(
    backend="sock_diag", providers=TCP, flows=Visibility.ALL, processes=Visibility.ALL, final_counts=True
)
SOME = Capabilities(
    backend="sock_diag",
    providers=TCP,
    flows=Visibility.ALL,
    processes=Visibility.SOME,
    processes_limit="1 process may not be looked at",
    final_counts=True,
)
SAID = "nstat-async: sees processes of some users only: 1 process may not be looked at\n"


def test_what_is_found_out_later_is_said_then_and_once(capsys):
    limits = Limits(recorded=False)
    for able in (attrs.evolve(SOME, providers=frozenset()), ALL, SOME, SOME):  # who answered nothing may be no kernel
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


def test_processes_ends_with_what_no_flow_explains(monkeypatch):
    """In a row of its own, beneath the table: bytes that the interfaces carried and that are no payload of a flow."""
    figures = {"rx_bytes": 7_000, "tx_bytes": 3_000, "flow_rx_bytes": 5_000, "flow_tx_bytes": 3_500}
    statistics = MonitorStatistics(feed={f"coverage_{name}": value for name, value in figures.items()}, buffers=())
    monkeypatch.setattr("nstat_async.Monitor.statistics", lambda _: statistics)
    command = ("processes", "--backend", "emulated", "--interval", "0.05", "--duration", "0.2")
    *_, last = run(*command)[1].splitlines()
    assert " ".join(last.split()).startswith("(unattributed, wire) 0 0 2.0 kB 0 B")
    *_, last = run(*command, "--json")[1].splitlines()
    row = json.loads(last)
    assert (row["kind"], row["rx_bytes"], row["tx_bytes"]) == ("unattributed", 2_000, 0)


@pytest.mark.parametrize(
    "backend", [backends.SockDiag(), backends.Kctl(), backends.Emulated(), backends.Fleet("nats://x"), None]
)
def test_a_user_whom_this_machine_does_not_know_is_named_unless_it_may_be_another_machines(backend, capfd):
    arguments = build_parser("watch").parse_args(["watch", "--filter", "user=root,nosuch"])
    assert monitor_options(arguments, backend)["flow_filter"] is not None
    here = isinstance(backend, (backends.SockDiag, backends.Kctl))
    assert capfd.readouterr().err == here * "nstat-async: filter: no user of this machine is named 'nosuch'\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux knows command lines with extras only")
def test_a_filter_by_command_line_asks_for_command_lines():
    """Without them it would match nothing, which looks like silence."""
    script = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script, "a-marker-of-its-own"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        port = int(process.stdout.readline())
        _, out, _ = run("snapshot", "--json", "--filter", "cmdline=a-marker-of-its-own")
        process.stdin.close()
    assert [json.loads(line)["flow"]["local"]["port"] for line in out.splitlines()] == [port]


def test_a_time_may_have_a_unit_wherever_seconds_are_taken():
    arguments = build_parser("record").parse_args(
        ["record", "x", "--duration", "2h", "--rotate-every", "90", "--interval", "0.5s"]
    )
    assert (arguments.duration, arguments.rotate_every, arguments.interval) == (7200.0, 90.0, 0.5)

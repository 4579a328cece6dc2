"""The examples of this part run, on emulated kernels, recordings and (where marked) this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import anyio
import forked
import httpx
import pytest
from plain_http import PLAIN

from nstat_async import backends
from nstat_async.aggregate import ProcessTable
from nstat_async.testing import EmulatedKernel

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
RECORDING = EXAMPLES / "recordings" / "web-session.jsonl"
# A child process finds the package where this one did.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, *arguments):
    done = forked.run([sys.executable, EXAMPLES / f"{name}.py", *arguments], text=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", ["plain_asyncio", "with_trio"])
def test_examples_print_the_processes_of_a_recording(name):
    text = run(name, RECORDING)
    assert re.search(r"curl +60,000 in +3,480 out", text), text
    if name == "plain_asyncio":
        assert "+ tcp" in text
        assert "- tcp" in text


def test_the_opentelemetry_example_exports_at_the_end():
    pytest.importorskip("opentelemetry.sdk")
    (exported,) = re.findall(r"^\{.*?^\}", run("otel_metrics", RECORDING), re.DOTALL | re.MULTILINE)
    metrics = {
        metric["name"]: metric["data"]["data_points"]
        for metric in json.loads(exported)["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    }
    found = {(p["attributes"]["process.executable.name"], p["attributes"]["network.io.direction"]): p["value"]
             for p in metrics["process.network.io"]}  # fmt: skip
    assert found["curl", "receive"] == 60_000  # the first of the four was there before


def test_the_prometheus_example_can_be_scraped(capsys):
    pytest.importorskip("prometheus_client")
    kernel = EmulatedKernel()
    module = load("prometheus_exporter")

    async def main():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(module.main, kernel.backend(), 0)
            text = ""
            with anyio.fail_after(120):
                while not (match := re.search(r"http\S+", text)):
                    text += capsys.readouterr().out
                    await anyio.sleep(0.005)
                async with httpx.AsyncClient(**PLAIN) as client:
                    while "nstat_up 1.0" not in (await client.get(match[0])).text:
                        await anyio.sleep(0.01)
                    flow = kernel.open_tcp(pid=42, name="curl", remote=("2001:db8::1", 443))
                    flow.transfer(rx=1500)
                    flow.close()
                    wanted = 'nstat_process_receive_bytes_total{process="curl"} 1500.0'
                    while wanted not in (await client.get(match[0])).text:
                        await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()

    anyio.run(main)


def test_the_quota_example_raises_one_alarm_per_process():
    kernel = EmulatedKernel()
    module = load("quota_alert")
    alarms = []

    async def main():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(module.main, 1000, kernel.backend(), 0.05, alarms.append)
            with anyio.fail_after(120):
                while not kernel.clients:
                    await anyio.sleep(0.01)
                await anyio.sleep(0)
                flow = kernel.open_tcp(pid=42, name="greedy", remote=("2001:db8::1", 443))
                kernel.open_tcp(pid=43, name="modest", remote=("2001:db8::1", 443)).transfer(rx=1000)
                while not alarms:
                    flow.transfer(rx=1500)
                    await anyio.sleep(0.05)
                flow.transfer(rx=1500)
                await anyio.sleep(0.2)
            tasks.cancel_scope.cancel()

    anyio.run(main)
    (alarm,) = alarms
    assert re.fullmatch(r"pid 42 'greedy' moved [0-9,]+ bytes \(quota 1,000\)", alarm)


def test_the_server_example_serves_a_recording():
    with forked.Popen(
        [sys.executable, EXAMPLES / "sse_server.py", "--port", "0", RECORDING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as child:
        try:
            url = child.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")

            async def main():
                async with httpx.AsyncClient(base_url=url, **PLAIN) as client:
                    with anyio.fail_after(120):
                        while True:
                            seen = (await client.get("/processes")).json()
                            if any(row["name"] == "curl" for row in seen["processes"]):
                                return
                            await anyio.sleep(0.05)

            anyio.run(main)
        finally:
            child.send_signal(signal.SIGTERM)
            errors = child.communicate(timeout=120)[1]
        assert (child.returncode, errors) == (0, "")


COMMAND = """
import pathlib, socket, sys, threading, time
server = socket.create_server(("127.0.0.1", 0))
def send():
    peer, _ = server.accept()
    with peer:
        peer.sendall(bytes(1_000_000))
        peer.recv(1)
thread = threading.Thread(target=send)
thread.start()
with socket.create_connection(server.getsockname()) as client:
    left = 1_000_000
    while left:
        left -= len(client.recv(65536))
    while not pathlib.Path(sys.argv[1]).exists():
        time.sleep(0.01)
thread.join()
sys.exit(3)
"""


@pytest.mark.linux
@pytest.mark.skipif(sys.platform != "linux", reason="needs the living Linux kernel")
def test_the_subprocess_example_counts_a_command_exactly(tmp_path):
    """Its exit status, and each byte that it moved over loopback: it is both ends.

    The command keeps its connection open until its owner was found, however long this machine takes for it:
    Linux knows the owner of an open connection only.
    """
    module = load("subprocess_traffic")
    table = ProcessTable()
    module.ProcessTable = lambda: table
    done = tmp_path / "done"

    async def main():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(end_when_counted)
            return await module.traffic_of([sys.executable, "-c", COMMAND, str(done)], backends.SockDiag())

    async def end_when_counted():
        wanted = 1_000_000
        with anyio.move_on_after(120):
            while not any(row.pid and row.rx_bytes == row.tx_bytes == wanted for row in table.rows()):
                await anyio.sleep(0.01)
        done.touch()

    status, total = anyio.run(main)
    assert (status, total.rx_bytes, total.tx_bytes) == (3, 1_000_000, 1_000_000)


@pytest.mark.linux
@pytest.mark.skipif(sys.platform != "linux", reason="needs the living Linux kernel")
@pytest.mark.parametrize(("ending", "status"), [("kill -9 $$", 137), ("kill -TERM $$", 143), ("exit 3", 3)])
def test_the_subprocess_example_ends_with_the_status_of_its_command(ending, status, capsys):
    """As a shell says it: 128 and the number of the signal that ended it."""
    assert anyio.run(load("subprocess_traffic").main, ["sh", "-c", ending]) == status
    assert "received" in capsys.readouterr().err


def test_the_subprocess_example_says_that_there_is_no_such_command():
    with pytest.raises(SystemExit, match="there is no command no-such-command"):
        anyio.run(load("subprocess_traffic").main, ["no-such-command"])


def test_examples_are_short():
    for name in (
        "prometheus_exporter", "otel_metrics", "sse_server", "quota_alert", "subprocess_traffic", "plain_asyncio", "with_trio",
    ):  # fmt: skip
        assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) < 60


@pytest.mark.parametrize(
    "name", ["plain_asyncio", "with_trio", "prometheus_exporter", "otel_metrics", "quota_alert", "sse_server"]
)
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_example_ends_well_when_it_is_told_to(name):
    """Status 0, no traceback, and what it owes is written: SIGTERM is how services are stopped."""
    program = (
        "import runpy, sys\n"
        "from nstat_async import Monitor, backends\n"
        "from nstat_async.testing import EmulatedKernel\n"
        "kernel = EmulatedKernel()\n"
        "kernel.open_tcp(pid=42, name='curl', remote=('2001:db8::1', 443)).transfer(rx=1500)\n"
        "backends.auto = lambda *_, **__: kernel.backend()\n"
        "import threading, time\n"
        "from nstat_async import PollCompleted, _subscription\n"
        "polls, deliver = [], _subscription.Distributor.deliver\n"
        "def delivered(self, events):\n"
        "    deliver(self, events)\n"
        "    polls.extend(event for event in events if isinstance(event, PollCompleted))\n"
        "_subscription.Distributor.deliver = delivered\n"
        "def say():\n"  # what the first poll reported was taken in before the second one ended
        f"    while len(polls) < {2 if name == 'otel_metrics' else 1}: time.sleep(0.01)\n"
        "    print('WATCHING', flush=True)\n"
        "threading.Thread(target=say, daemon=True).start()\n"
        f"sys.argv = [{str(EXAMPLES / (name + '.py'))!r}, *{['--port', '0'] if name == 'sse_server' else []}]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    with forked.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as child:
        lines = iter(child.stdout.readline, "")
        assert any("WATCHING" in line for line in lines)
        child.send_signal(signal.SIGTERM)
        output, errors = child.communicate(timeout=120)
    assert (child.returncode, errors) == (0, "")
    if name == "otel_metrics":
        assert "process.network.io" in output

"""``serve``: the page, totals, events and metrics as a command."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import socket
import subprocess
import time

import forked
import httpx
import pytest
from plain_http import PLAIN
from support import PYTHON, run

from nstat_async.testing import EmulatedKernel, UnixServer


@pytest.fixture
def kernel(tmp_path):
    """Arguments that name a served kernel with one flow."""
    machine = EmulatedKernel(clock=time.monotonic)
    machine.open_tcp(501, "Safari", remote=("198.51.100.7", 443), rx=5000)
    path = str(tmp_path / "k.sock")
    server = UnixServer(machine, path)
    server.start()
    yield ["--backend", f"unix:{path}", "--kernel", machine.name, "--interval", "0.1"]
    server.close()


class _Served:
    """A running command, and its address."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        port = [] if "--unix-socket" in arguments else ["--port", "0"]
        command = [PYTHON, "-m", "nstat_async", "serve", *port, *arguments]
        self.process = forked.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment}
        )

    def __enter__(self) -> _Served:
        line = self.process.stderr.readline().decode()
        found = re.match(r"nstat-async: (\S+)", line)
        assert found, line + self.process.stderr.read().decode()
        self.address = found[1]
        return self

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, bytes]:
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out + err

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


METRICS = importlib.util.find_spec("prometheus_client") is not None


@pytest.mark.parametrize(("number", "metrics"), [(signal.SIGTERM, False), (signal.SIGINT, METRICS)])
def test_it_serves_page_totals_and_events_until_it_is_stopped_quietly(kernel, number, metrics):
    """And metrics, when they are asked for."""
    arguments = [*kernel, "--include-history", *["--metrics"] * metrics]
    with _Served(*arguments) as served, httpx.Client(base_url=served.address, **PLAIN) as client:
        assert "<!doctype html>" in client.get("/").text.lower()
        end = time.monotonic() + 120
        while not client.get("/processes").json()["processes"] and time.monotonic() < end:
            time.sleep(0.05)
        (row,) = client.get("/processes").json()["processes"]
        assert (row["name"], row["rx_bytes"]) == ("Safari", 5000)
        assert client.get("/metrics").status_code == (200 if metrics else 404)
        assert ("nstat_" in client.get("/metrics").text) is metrics
        with client.stream("GET", "/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: hello"
            assert served.stop(number) == (0, b"")
            assert any(line == "event: ended" for line in lines)


@pytest.mark.parametrize("way", ["option", "environment", "new"])
def test_a_token_opens_it(way, kernel):
    token = "a-token-of-more-than-sixteen"
    options = {
        "option": (["--token", token], {}),
        "environment": ([], {"NSTAT_TOKEN": token}),
        "new": (["--token", "new"], {}),
    }
    arguments, environment = options[way]
    with _Served(*kernel, *arguments, **environment) as served:
        address, _, secret = served.address.partition("?token=")
        assert way == "new" or secret == token
        assert httpx.get(f"{address}processes", **PLAIN).status_code == 401
        headers = {"Authorization": f"Bearer {secret}"}
        assert httpx.get(f"{address}processes", headers=headers, **PLAIN).status_code == 200


def test_a_unix_socket_is_for_its_user_only(kernel, tmp_path):
    path = tmp_path / "web.sock"
    with _Served(*kernel, "--unix-socket", str(path)) as served:
        assert served.address == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        transport = httpx.HTTPTransport(uds=str(path), verify=False)
        with httpx.Client(transport=transport, base_url="http://localhost", timeout=120) as client:
            assert client.get("/processes").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--host", "0.0.0.0"], 2, "give a token, or a Unix socket instead"),
        (["--token", "short"], 2, "at least 16"),
        (["--unix-socket", "/tmp/x", "--port", "80"], 2, "argument --port: not with --unix-socket"),
        (["--unix-socket", "/nonexistent/x"], 1, "/nonexistent/x: No such file or directory"),
        (["--host", "no.such.host.invalid"], 1, "cannot listen on no.such.host.invalid"),
    ],
)
def test_what_cannot_be_served_is_one_line_and_the_usage_where_that_is_wrong(arguments, status, says):
    found, out, err = run("serve", "--backend", "emulated", *arguments)
    assert (found, out) == (status, "")
    assert says in err
    assert err.count("\n") == (2 if status == 2 else 1)


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, _, err = run("serve", "--backend", "emulated", "--port", str(port))
    assert status == 1
    assert f"127.0.0.1:{port}: Address already in use" in err


def test_a_backend_that_cannot_be_opened_ends_it_with_status_1():
    status, _, err = run("serve", "--port", "0", "--backend", "unix:/nonexistent/k", "--kernel", "xnu-11417")
    assert status == 1
    assert "/nonexistent/k" in err

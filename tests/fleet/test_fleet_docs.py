"""The how-to of fleets: its commands from nothing to two machines, its programs, its permissions."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time

import anyio
import pytest
from fleet_living import BINARY, PATIENCE, Machine, Server, Watcher, free_port

from nstat_async import BackendUnavailableError, FlowAdded, HostUpdated, Monitor
from nstat_async.aggregate import ProcessTable
from nstat_async.backends import Fleet, NatsAccess

pytestmark = [pytest.mark.nats, pytest.mark.skipif(BINARY is None, reason="nats-server is not installed")]
PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "how-to" / "fleet.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = [(match[1], match[2]) for match in BLOCK.finditer(PAGE)]


def test_five_commands_lead_from_nothing_to_a_view_of_two_machines(tmp_path):
    """As they stand there, but for the port, the installation, and kernels that are emulated."""
    commands = [line for language, body in BLOCKS[:2] for line in body.splitlines() if language == "sh"]
    assert len(commands) == 5
    assert commands[0].startswith("pip install")
    port = free_port()
    environment = {**os.environ, "PATH": os.pathsep.join([str(pathlib.Path(BINARY).parent), os.environ["PATH"]])}
    running = []

    def start(command, *more, **how):
        words = shlex.split(command.rstrip(" &").replace("nats://192.0.2.1:4222", f"nats://127.0.0.1:{port}"))
        if words[0] == "nstat-async":
            words[:1] = [sys.executable, "-m", "nstat_async"]
        running.append(subprocess.Popen([*words, *more], env=environment, **how))
        return running[-1]

    try:
        start(commands[1], "-p", str(port), "-sd", str(tmp_path), stderr=subprocess.DEVNULL)
        for command in commands[2:4]:
            start(command, "--backend", "emulated", stderr=subprocess.DEVNULL)
        view = start(commands[4], "--json", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        seen, until = set(), time.monotonic() + PATIENCE
        for line in view.stdout:
            seen.add(json.loads(line).get("source"))
            if {"web1", "db1"} <= seen or time.monotonic() > until:
                break
        assert {"web1", "db1"} <= seen
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(PATIENCE)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


def test_the_programs_of_the_page_run(tmp_path):
    programs = "\n".join(body for language, body in BLOCKS if language == "python")
    with Server(tmp_path) as server:

        async def run():
            async with Machine("web1", server.url) as web, Machine("db1", server.url) as db:
                web.open(remote=("192.0.2.2", 5432), local=("192.0.2.1", 50_000))
                db.open(local=("192.0.2.2", 5432), remote=("192.0.2.1", 50_000))
                with anyio.fail_after(PATIENCE):
                    while not all(each.publisher.statistics()["events"] for each in (web, db)):
                        await anyio.sleep(0.02)
                source = programs.replace("nats://192.0.2.1:4222", server.url).replace("anyio.run(main)", "")
                names, out = {}, io.StringIO()
                exec(compile(source, "fleet.md", "exec"), names)
                with contextlib.redirect_stdout(out):
                    await names["main"]()
                return out.getvalue(), names

        output, names = asyncio.run(run())
    assert "web1 is present" in output
    assert "on web1 talks to pid:501 (curl) on db1" in output
    assert "2 flows are open now" in output
    assert names["publish_this_machine"]


@pytest.mark.asyncio
async def test_with_the_permissions_of_the_page_no_machine_writes_as_another_and_none_reads(tmp_path):
    recipe = next(body for language, body in BLOCKS if language == "text")
    words = {"$WEB1": "one", "$DB1": "two", "$FLEET": "three"}
    for name, word in words.items():
        recipe = recipe.replace(name, word)

    def access(user, word):
        return NatsAccess(user=user, password=word)

    with Server(tmp_path, config=recipe) as server:
        reader = Monitor(backend=Fleet(server.url, access=access("fleet", "three")))
        async with reader, Machine("web1", server.url, access=access("web1", "one")) as web:
            watcher = Watcher(reader, ProcessTable())
            web.open()
            await watcher.until(lambda: watcher.of(FlowAdded))
            # web1's words, db1's name: the server lets nothing through.
            async with Machine("db1", server.url, access=access("web1", "one")) as forged:
                forged.open()
                before = len(watcher.of(HostUpdated, host="web1"))
                web.move()
                with anyio.fail_after(PATIENCE):
                    while not forged.publisher.statistics()["retries"]:
                        await anyio.sleep(0.05)
                assert forged.publisher.statistics()["messages"] == 0
            assert not watcher.of(HostUpdated, host="db1")
            assert len(watcher.of(HostUpdated, host="web1")) == before
            monitor = Monitor(backend=Fleet(server.url, access=access("web1", "one")))
            with pytest.raises(BackendUnavailableError):
                async with monitor:
                    await monitor.__anext__()


@pytest.mark.asyncio
async def test_tls_is_checked_and_a_server_of_another_name_is_refused(tmp_path):
    subprocess.run(
        shlex.split(
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem "
            "-days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
        ),
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    config = f'tls {{ cert_file: "{tmp_path}/cert.pem", key_file: "{tmp_path}/key.pem" }}'
    with Server(tmp_path, config=config) as server:
        url = server.url.replace("nats://", "tls://")
        right = NatsAccess(ca=str(tmp_path / "cert.pem"))
        async with Machine("web", url, access=right) as web, Monitor(backend=Fleet(url, access=right)) as monitor:
            watcher = Watcher(monitor, ProcessTable())
            web.open()
            await watcher.until(lambda: watcher.of(FlowAdded))
        for wrong, where in ((NatsAccess(), url), (right, url.replace("127.0.0.1", "localhost"))):
            refused = Monitor(backend=Fleet(where, access=wrong))
            with pytest.raises(BackendUnavailableError, match=r"(?i)certificate"):
                async with refused:
                    await refused.__anext__()


def test_the_environment_lets_in_as_nats_own_tool_is_let_in():
    found = NatsAccess.from_environment(
        {"NATS_CREDS": "a", "NATS_TOKEN": "b", "NATS_CERT": "c", "NATS_CA": "", "HOME": "/"}
    )
    assert found == NatsAccess(credentials="a", token="b", certificate="c")

"""What the documentation shows for services: frameworks, units, containers, and the links of the README."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import types

import anyio
import httpx
import pytest
from test_docs import DOCS, PAGES, ROOT, Page, blocks, place

from nstat_async.integrations.server import serve_forever

_ = place  # a fixture
CAPABILITIES = {"BPF", "PERFMON", "NET_ADMIN", "DAC_READ_SEARCH", "SYS_PTRACE", "SYS_ADMIN"}


@pytest.fixture
def frameworks(place):
    """The names of the page about web frameworks."""
    for package in ("fastapi", "aiohttp", "django"):
        pytest.importorskip(package)
    page = Page(DOCS / "how-to" / "web-frameworks.md", place)
    for block in blocks(page.page):
        if block.language == "python":
            page.run(block)
    return page.names


def test_the_fastapi_application_answers_with_rows(frameworks):
    async def main():
        app = frameworks["app"]
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                with anyio.fail_after(120):
                    while not (rows := (await client.get("/traffic")).json()):
                        await anyio.sleep(0.02)
        return rows

    assert {"name", "rx_bytes", "rx_rate"} <= set(asyncio.run(main())[0])


def test_the_page_is_mounted_in_an_application(frameworks):
    async def main():
        site = frameworks["site"]
        async with site.router.lifespan_context(site):
            transport = httpx.ASGITransport(app=site)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return [
                    (await client.get(f"/network/{path}")).status_code for path in ("", "live", "live.js", "processes")
                ]

    assert asyncio.run(main()) == [200] * 4


def test_the_aiohttp_application_answers_with_rows(frameworks):
    from aiohttp.test_utils import TestClient, TestServer

    async def main():
        async with TestClient(TestServer(frameworks["application"])) as client:
            with anyio.fail_after(120):
                while not (text := await (await client.get("/traffic")).text()):
                    await anyio.sleep(0.02)
        return text

    assert "rx_bytes" in json.loads(asyncio.run(main()).splitlines()[0])


def test_the_django_view_asks_the_one_monitor_of_the_machine(frameworks, tmp_path):
    from nstat_async import Monitor

    path = str(tmp_path / "page.sock")
    frameworks["SOCKET"] = path
    ready, stop = threading.Event(), threading.Event()

    async def serve():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: serve_forever(Monitor, unix_socket=path, ready=lambda _: ready.set()))
            await anyio.to_thread.run_sync(stop.wait)
            tasks.cancel_scope.cancel()

    thread = threading.Thread(target=anyio.run, args=(serve,))
    thread.start()
    try:
        assert ready.wait(120)
        answer = json.loads(frameworks["traffic_view"](None).content)
    finally:
        stop.set()
        thread.join(60)
    assert answer["v"] == 1


# --- units and containers ------------------------------------------------------------------------


def block_of(page, language):
    (body,) = [block.body for block in blocks(DOCS / "how-to" / f"{page}.md") if block.language == language]
    return body


def words_of(name, text):
    (line,) = re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)
    return set(line.split())


def test_the_unit_names_the_capabilities_and_is_one(tmp_path):
    unit = block_of("deploy", "ini")
    assert words_of("AmbientCapabilities", unit) == words_of("CapabilityBoundingSet", unit)
    assert words_of("AmbientCapabilities", unit) <= {f"CAP_{name}" for name in CAPABILITIES}
    privileges = (DOCS / "how-to" / "privileges.md").read_text()
    assert all(name in privileges for name in words_of("AmbientCapabilities", unit))
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: the unit's syntax is not checked")
    path = tmp_path / "nstat.service"
    path.write_text(unit.replace("/opt/nstat/bin/nstat-async", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True, timeout=120)
    complaints = [line for line in done.stderr.splitlines() if "nstat.service" in line]
    assert complaints == []


FAMILIES = """
import socket, sys
found = set()
sys.addaudithook(lambda event, given: found.add(given[1]) if event == "socket.__new__" else None)
import anyio
from nstat_async import Monitor
from nstat_async.integrations.server import serve_forever
async def main():
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: serve_forever(lambda: Monitor(interval=0.1), port=0, ready=lambda _: tasks.cancel_scope.cancel()))
    async with Monitor(interval=0.1) as monitor:
        await monitor.poll_now()
anyio.run(main)
print(*sorted({socket.AddressFamily(number).name for number in found if number >= 0}))
"""


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.skipif(sys.platform != "linux", reason="needs the living Linux kernel")
def test_the_unit_allows_the_address_families_that_are_used():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", FAMILIES], capture_output=True, text=True, timeout=120, env=environment, check=True
    )
    assert "AF_NETLINK" in done.stdout
    assert set(done.stdout.split()) <= words_of("RestrictAddressFamilies", block_of("deploy", "ini"))


def test_the_daemon_set_watches_the_node_with_the_same_capabilities():
    yaml = pytest.importorskip("yaml")
    wanted = yaml.safe_load(block_of("deploy", "yaml"))
    pod = wanted["spec"]["template"]["spec"]
    assert (pod["hostNetwork"], pod["hostPID"]) == (True, True)
    (container,) = pod["containers"]
    granted = {f"CAP_{name}" for name in container["securityContext"]["capabilities"]["add"]}
    assert granted == words_of("AmbientCapabilities", block_of("deploy", "ini"))
    docker = block_of("deploy", "sh")
    assert {f"CAP_{name}" for name in re.findall(r"--cap-add (\w+)", docker)} == granted
    assert wanted["spec"]["selector"]["matchLabels"].items() <= wanted["spec"]["template"]["metadata"]["labels"].items()


# --- the first page ------------------------------------------------------------------------------


def build_hook(monkeypatch):
    """The module, without the builder that calls it."""
    plugins = {"builders.hooks.plugin": "BuildHookInterface", "metadata.plugin": "MetadataHookInterface"}
    for path, name in plugins.items():
        monkeypatch.setitem(sys.modules, f"hatchling.{path}.interface", types.SimpleNamespace(**{name: object}))
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TARGET = re.compile(r"(?<!\\)\]\(([^)\s]+)\)")


def test_no_page_claims_an_address_of_the_repository_and_a_package_has_the_one_that_it_was_built_with(monkeypatch):
    """The index of packages shows the README without the files beside it."""
    if not (ROOT / "hatch_build.py").exists():
        pytest.skip("not a checkout")
    text = (ROOT / "README.md").read_text()
    assert all((ROOT / target.partition("#")[0]).exists() for target in TARGET.findall(text))
    assert "urls]" not in (ROOT / "pyproject.toml").read_text()
    readme, urls = (getattr(build_hook(monkeypatch), name) for name in ("readme", "urls"))
    assert TARGET.findall(readme(text, None)) == []
    assert urls(None) == {}
    absolute = TARGET.findall(readme(text, "https://git.example/me/it"))
    assert len(absolute) == len(TARGET.findall(text))
    assert all(target.startswith("https://git.example/me/it/") for target in absolute)
    assert readme("![a picture](x.png) of [it](y.md)", None) == " of it"


def test_the_first_pages_have_an_install_line_code_and_a_picture():
    for page in (ROOT / "README.md", DOCS / "index.md"):
        first = page.read_text()[:3500]
        assert "pip install nstat-async" in first
        assert "async with Monitor() as monitor:" in first
        assert re.search(r"!\[[^\]]+\]\([^)]+\.(svg|png)\)", first)


def test_pictures_that_pages_show_are_there_and_say_what_they_show():
    for page in PAGES[1:]:
        for text, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text()):
            assert len(text) > 10, page
            assert (page.parent / target).exists(), f"{page}: {target}"

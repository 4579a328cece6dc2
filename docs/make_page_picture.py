"""Make docs/images/live-page.png: the live page on an emulated kernel, in a real Chromium.

    python docs/make_page_picture.py [FILE]

Needs Chromium and the extra ``server``.
"""

import base64
import random
import sys
import tempfile
from pathlib import Path

import anyio

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "integrations")]

from browser import browser  # noqa: E402

from nstat_async import Monitor  # noqa: E402
from nstat_async.integrations.server import serve_forever  # noqa: E402
from nstat_async.testing import EmulatedKernel  # noqa: E402

PROGRAMS = {
    "backupd": (1, 900_000), "firefox": (9, 60_000), "Music": (2, 160_000), "curl": (1, 500_000), "sshd": (2, 3_000),
    "postgres": (4, 20_000), "cloudd": (3, 8_000), "mDNSResponder": (2, 300), "softwareupdated": (1, 250_000),
}  # fmt: skip
SECONDS = 100


async def keep_busy(kernel: EmulatedKernel) -> None:
    """Traffic that goes up and down."""
    chance = random.Random(7)  # noqa: S311  # a picture
    flows = [
        (kernel.open_tcp(pid=400 + at, name=name, remote=(f"198.51.100.{10 * at + number + 1}", 443)), size, at)
        for at, (name, (many, size)) in enumerate(PROGRAMS.items())
        for number in range(many)
    ]
    for moment in range(10_000):
        for flow, size, at in flows:
            wave = 1 + ((moment + 17 * at) % 160) / 80
            if chance.random() < 0.5 * wave / 2:
                flow.transfer(rx=int(size * wave * chance.random()), tx=int(size / 12 * chance.random()))
        await anyio.sleep(0.25)


async def main(target: str) -> None:
    """Serve, look, and keep the picture."""
    kernel = EmulatedKernel()
    found: list[str] = []
    listening = anyio.Event()

    def ready(addresses: list[str]) -> None:
        found.extend(addresses)
        listening.set()

    def open_monitor() -> Monitor:
        return Monitor(backend=kernel.backend(), interval=1.0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_busy, kernel)
        tasks.start_soon(lambda: serve_forever(open_monitor, port=0, ready=ready))
        await listening.wait()
        with tempfile.TemporaryDirectory() as profile:
            async with browser(profile) as page:
                await page.screen(1100, 900)
                await page.call("Page.navigate", url=found[0])
                await anyio.sleep(SECONDS)
                await page.run(
                    "[...document.querySelectorAll('#rows tr')].find(r => r.textContent.includes('postgres')).click()"
                )
                await page.until("document.querySelectorAll('#rows li').length > 0")
                picture = await page.call("Page.captureScreenshot", format="png")
                await anyio.Path(target).write_bytes(base64.b64decode(picture["data"]))
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "docs" / "images" / "live-page.png"))

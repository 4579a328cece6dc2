"""A headless Chromium on a pipe, for tests that look at a page as a person's browser does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# The browser reads commands from descriptor 3 and writes answers to 4.
_START = "import os, sys; r, w = int(sys.argv[1]), int(sys.argv[2]); os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"


class Page:
    """One tab, driven by the DevTools protocol."""

    def __init__(self, reader, write):
        self._reader, self._write = reader, write
        self._numbers = itertools.count(1)
        self._session = None
        self.messages = []

    async def call(self, method, **params):
        number = next(self._numbers)
        request = {"id": number, "method": method, "params": params}
        if self._session:
            request["sessionId"] = self._session
        os.write(self._write, json.dumps(request).encode() + b"\0")
        while True:
            answer = json.loads((await asyncio.wait_for(self._reader.readuntil(b"\0"), 30))[:-1])
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.messages.append(answer)

    async def attach(self):
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        self._session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def run(self, script):
        """The value of an expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, script):
        """Wait until an expression is true in the page."""
        for _ in range(600):
            if await self.run(script):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"never became true: {script}")

    async def screenshot(self, path, width, height):
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        shot = await self.call("Page.captureScreenshot", format="png")
        with open(path, "wb") as file:
            file.write(base64.b64decode(shot["data"]))

    def complaints(self):
        """What the page wrote to its console, and what the browser refused it."""
        kinds = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        return [message["params"] for message in self.messages if message.get("method") in kinds]


@contextlib.asynccontextmanager
async def browser(profile):
    """A browser with an empty profile in the directory `profile`."""
    pipes = [os.pipe(), os.pipe()]
    # Away from 3 and 4, which the child fills one after the other.
    (command_read, command_write), (answer_read, answer_write) = [
        tuple(fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in pipe) for pipe in pipes
    ]
    for each in itertools.chain(*pipes):
        os.close(each)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _START,
            str(command_read),
            str(answer_write),
            CHROMIUM,
            *_FLAGS,
            f"--user-data-dir={profile}",
        ],
        pass_fds=(command_read, answer_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(command_read)
    os.close(answer_write)
    reader = asyncio.StreamReader(limit=2**26)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(answer_read, "rb")
    )
    try:
        page = Page(reader, command_write)
        await page.attach()
        yield page
    finally:
        os.close(command_write)
        process.terminate()
        await asyncio.to_thread(process.wait, 20)
        transport.close()

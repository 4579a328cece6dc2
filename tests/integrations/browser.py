"""A headless Chromium on a pipe, for tests that look at a page as a person's browser does."""

from __future__ import annotations

import asyncio
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


class Browser:
    """A running browser: its commands and answers, by number."""

    def __init__(self, reader, write):
        self._reader, self._write = reader, write
        self._numbers = itertools.count(1)
        self._answers = {}
        self.pages = {}
        self._task = asyncio.ensure_future(self._read())

    async def _read(self):
        while True:
            try:
                answer = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            except asyncio.IncompleteReadError:
                return
            if "id" in answer:
                self._answers.pop(answer["id"]).set_result(answer)
            elif answer.get("sessionId") in self.pages:
                self.pages[answer["sessionId"]].messages.append(answer)

    async def call(self, method, params, session=None):
        number = next(self._numbers)
        request = {"id": number, "method": method, "params": params}
        if session:
            request["sessionId"] = session
        self._answers[number] = asyncio.get_running_loop().create_future()
        os.write(self._write, json.dumps(request).encode() + b"\0")
        answer = await asyncio.wait_for(self._answers[number], 120)
        assert "error" not in answer, answer
        return answer["result"]

    async def new_page(self, url="about:blank", **screen):
        """A further tab."""
        target = (await self.call("Target.createTarget", {"url": "about:blank"}))["targetId"]
        session = (await self.call("Target.attachToTarget", {"targetId": target, "flatten": True}))["sessionId"]
        page = self.pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            await page.call(f"{domain}.enable")
        await page.call("Emulation.setFocusEmulationEnabled", enabled=True)  # as if each were in front
        if screen:
            await page.screen(**screen)
        if url != "about:blank":
            await page.call("Page.navigate", url=url)
        return page

    def close(self):
        self._task.cancel()


class Page:
    """One tab, driven by the DevTools protocol."""

    def __init__(self, browser, session):
        self.browser, self._session = browser, session
        self.messages = []

    async def call(self, method, **params):
        return await self.browser.call(method, params, self._session)

    async def run(self, script):
        """The value of an expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, script):
        """Wait until an expression is true in the page."""
        for _ in range(2400):
            if await self.run(script):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"never became true: {script}; {await self.run('document.body.innerText')}")

    async def press(self, key, **more):
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, **more)

    async def screen(self, width, height, scheme="light"):
        """The size of the window, and whether its user likes it dark."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

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
    running = Browser(reader, command_write)
    try:
        yield await running.new_page()
    finally:
        os.close(command_write)
        process.terminate()
        await asyncio.to_thread(process.wait, 20)
        running.close()
        transport.close()

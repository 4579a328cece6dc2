"""The live page in a real browser."""

from __future__ import annotations

import pytest
from aggregate_events import FakeMonitor, added, counts, flow, lost, polled, removed, until, updated
from browser import CHROMIUM, browser
from test_integrations_server import served

from nstat_async._model import Process

pytestmark = [pytest.mark.asyncio, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]

EVIL = "<img src=x onerror=document.title='hacked'>"
ROWS = "[...document.querySelectorAll('#rows tr')].map(r => [...r.cells].map(c => c.textContent))"
LINES = "[...document.querySelectorAll('#events li')].map(l => l.textContent)"


async def test_the_page_shows_processes_and_events_as_they_are(tmp_path):
    """Names are text, whatever is in them; losses are said; the end of the monitor is said."""
    monitor = FakeMonitor()
    async with served(monitor) as client, browser(tmp_path / "profile") as page:
        monitor.deliver(added(flow("a"), 1, counts(0)), added(flow("b", Process(9, EVIL)), 1, counts(0)))
        await page.call("Page.navigate", url=str(client.base_url))
        await page.until("document.querySelector('#state')?.textContent.startsWith('running')")
        await until(lambda: len(monitor.subscriptions) == 2)
        monitor.deliver(
            updated(flow("a"), 2, counts(5_000_000, 1000)), updated(flow("b", Process(9, EVIL)), 2, counts(10))
        )
        monitor.deliver(removed(flow("a"), 2, counts(5_000_000, 1000)), lost(2, 3, counts(7)), polled(2))
        await page.until(
            "document.querySelectorAll('#rows tr').length === 3 && document.querySelector('#lost').textContent"
        )
        assert await page.run(ROWS) == [
            ["curl", "42", "0", "5.00 MB/s", "1.00 kB/s", "5.00 MB", "1.00 kB"],
            [EVIL, "9", "1", "10 B/s", "0 B/s", "10 B", "0 B"],
            ["lost by overflow", "", "0", "7 B/s", "0 B/s", "7 B", "0 B"],
        ]
        lines = await page.run(LINES)
        assert len(lines) == 4
        assert "! lost: overflow (3)" in lines[0]
        assert "- tcp 192.0.2.1:50000 → 198.51.100.7:443 pid:42 (curl) ↓5.00 MB ↑1.00 kB" in lines[1]
        assert f"pid:9 ({EVIL})" in lines[2]
        assert await page.run("document.title") == "Network traffic by process"
        assert await page.run("document.querySelectorAll('img').length") == 0
        await page.run("document.querySelector('#filter').value = 'curl'")
        await page.until("document.querySelectorAll('#rows tr').length === 1")
        monitor.end()
        await page.until("document.querySelector('#state').textContent.startsWith('ended')")
        assert page.complaints() == []

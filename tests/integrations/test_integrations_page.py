"""The live page in a real browser."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

import pytest
from aggregate_events import FakeMonitor, added, counts, flow, lost, polled, removed, updated
from browser import CHROMIUM, browser
from test_integrations_serving import TOKEN, serving

from nstat_async._errors import NstatError
from nstat_async._model import Counts, MediumCounts, Process

pytestmark = [pytest.mark.browser, pytest.mark.asyncio, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]

EVIL = "<img src=x onerror=document.title='hacked'>"
ROWS = "[...document.querySelectorAll('#rows tr')].map(r => [...r.cells].map(c => c.textContent))"
NAMES = "[...document.querySelectorAll('#rows tr > td:first-child')].map(c => c.textContent)"
LINES = "[...document.querySelectorAll('#events li')].map(l => l.textContent)"
STATE = "document.querySelector('#state').textContent"
RUNNING = f"document.querySelector('#state') && {STATE}.startsWith('running')"


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def busy(*names, rx=1000):
    """Events after which processes of these names have received more and more."""
    flows = [flow(name, Process(at + 1, name)) for at, name in enumerate(names)]
    return [
        *(added(each, 1, counts(0)) for each in flows),
        *(updated(each, 2, counts(rx * (at + 1), 10)) for at, each in enumerate(flows)),
        polled(3),
    ]


@contextlib.asynccontextmanager
async def shown(tmp_path, monitor=None, **screen):
    """A served monitor, and the page of it."""
    monitor = monitor or FakeMonitor()
    async with serving(monitor) as (url,), browser(tmp_path / "profile") as page:
        if screen:
            await page.screen(**screen)
        await page.call("Page.navigate", url=url)
        await page.until(RUNNING)
        yield monitor, page, url


async def test_the_page_shows_processes_and_events_as_they_are(tmp_path):
    """Names are text, whatever is in them; losses are said; the end of the monitor is said."""
    nothing, by_loopback = (
        Counts(media={"loopback": MediumCounts(size, 0, 1, 0)}, **counts(size).as_dict()) for size in (0, 10)
    )
    async with shown(tmp_path) as (monitor, page, _):
        monitor.deliver(added(flow("a"), 1, counts(0)), added(flow("b", Process(9, EVIL)), 1, nothing))
        monitor.deliver(
            updated(flow("a"), 2, counts(5_000_000, 1000)), updated(flow("b", Process(9, EVIL)), 2, by_loopback)
        )
        monitor.deliver(removed(flow("a"), 2, counts(5_000_000, 1000)), lost(2, 3, counts(7)), polled(2))
        await page.until(
            "document.querySelectorAll('#rows tr').length === 3 && document.querySelector('#lost').textContent"
        )
        assert await page.run(ROWS) == [
            ["curl", "42", "0", "5.0 MB/s", "1.0 kB/s", "5.0 MB", "1.0 kB"],
            [EVIL, "9", "1", "10 B/s", "0 B/s", "10 B", "0 B"],
            ["lost by overflow", "", "0", "7 B/s", "0 B/s", "7 B", "0 B"],
        ]
        lines = await page.run(LINES)
        assert len(lines) == 6
        assert "! lost: overflow (3)" in lines[0]
        assert "- tcp 192.0.2.1:50000 → 198.51.100.7:443 pid:42 (curl) ↓5.0 MB ↑1.0 kB" in lines[1]
        assert f"pid:9 ({EVIL})" in lines[2]
        assert await page.run("document.querySelector('#lost').textContent") == "3 lost: overflow"
        assert await page.run("document.querySelector('#media').textContent") == "loopback ↓ 10 B ↑ 0 B"
        assert await page.run("document.title") == "Network traffic by process"
        assert await page.run("document.querySelectorAll('img').length") == 0
        monitor.end()
        await page.until(f"{STATE}.startsWith('ended')")
        assert page.complaints() == []


async def test_headings_sort_and_say_so(tmp_path):
    async with shown(tmp_path) as (monitor, page, _):
        monitor.deliver(*busy("beta", "alpha", "gamma"))
        await page.until("document.querySelectorAll('#rows tr').length === 3")
        assert await page.run(NAMES) == ["gamma", "alpha", "beta"]
        heading = "[...document.querySelectorAll('#headings th')].find(t => t.textContent === '{}')"
        for title, wanted, order in (
            ("Process", ["alpha", "beta", "gamma"], "ascending"),
            ("Process", ["gamma", "beta", "alpha"], "descending"),
            ("PID", ["beta", "alpha", "gamma"], "ascending"),
            ("Received", ["gamma", "alpha", "beta"], "descending"),
            ("Received", ["beta", "alpha", "gamma"], "ascending"),
        ):
            await page.run(f"{heading.format(title)}.querySelector('button').click()")
            await page.until(f"JSON.stringify({NAMES}) === JSON.stringify({wanted})")
            assert await page.run(f"{heading.format(title)}.getAttribute('aria-sort')") == order
            assert await page.run("document.querySelectorAll('[aria-sort]').length") == 1
        await page.call("Page.reload")
        await page.until(f"{RUNNING} && JSON.stringify({NAMES}) === JSON.stringify(['beta', 'alpha', 'gamma'])")


async def test_the_keyboard_reaches_the_flows_of_a_process_the_filter_and_the_pause(tmp_path):
    async with shown(tmp_path) as (monitor, page, _):
        monitor.deliver(*busy("curl", "ssh"))
        await page.until("document.querySelectorAll('#rows tr').length === 2")
        await page.run("document.querySelector('#rows button').focus()")
        await page.press("Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
        await page.until("document.querySelectorAll('#rows li').length === 1")
        assert await page.run("document.querySelector('#rows button').getAttribute('aria-expanded')") == "true"
        text = await page.run("document.querySelector('#rows li').textContent")
        assert text.startswith("tcp 192.0.2.1:50000 → 198.51.100.7:443")
        assert "↓ 2.0 kB ↑ 10 B" in text
        assert await page.run("document.activeElement.textContent") == "ssh", "the focus stays while rows are renewed"
        await page.press("/", text="/")
        assert await page.run("document.activeElement.id") == "filter"
        await page.call("Input.insertText", text="process=curl & ~ loopback & ~ port=1")
        await page.press("Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
        await page.until("document.querySelector('#since').textContent")
        await page.until(f"JSON.stringify({NAMES}) === JSON.stringify(['curl'])")
        await page.run("document.querySelector('#filter').blur()")
        await page.press("p", text="p")
        await page.until(f"{STATE} === 'paused'")
        assert await page.run("document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
        await page.press("p", text="p")
        await page.until(RUNNING)


async def test_a_filter_that_says_nothing_sensible_is_answered_beside_it(tmp_path):
    async with shown(tmp_path) as (monitor, page, _):
        monitor.deliver(*busy("curl"))
        await page.until("document.querySelectorAll('#rows tr').length === 1")
        set_filter = (
            "(f => {{ f.value = '{}'; f.dispatchEvent(new Event('change')); }})(document.querySelector('#filter'))"
        )
        await page.run(set_filter.format("colour=red"))
        await page.until("document.querySelector('#filter-error').textContent.includes('colour')")
        assert await page.run(f"{STATE}.startsWith('running')")
        await page.run(set_filter.format("ssh"))
        await page.until(
            "!document.querySelector('#filter-error').textContent && !document.querySelector('#empty').hidden"
        )
        await page.run(set_filter.format(""))
        await page.until("document.querySelectorAll('#rows tr').length === 1")


async def test_rows_by_another_key(tmp_path):
    async with shown(tmp_path) as (monitor, page, _):
        monitor.deliver(*busy("curl", "ssh"))
        await page.until("document.querySelectorAll('#rows tr').length === 2")
        await page.run(
            "(g => { g.value = 'remote-address'; g.dispatchEvent(new Event('change')); })(document.querySelector('#group'))"
        )
        await page.until(f"JSON.stringify({NAMES}) === JSON.stringify(['198.51.100.7'])")
        assert await page.run("document.querySelector('#headings th').textContent") == "Remote-address"


async def test_the_curve_goes_on_when_the_clock_is_set_back(tmp_path):
    """An event from a clock that is years ahead for a moment does not stop it either."""
    async with shown(tmp_path) as (monitor, page, _):
        for time in (1e9, 1e9 + 1, 1e9 - 28_800, 2e9, 1e9 - 28_799, 1e9 - 28_798):
            monitor.deliver(polled(time))
            await page.until(f"samples[0].at(-1) === {time}")
        assert await page.run("samples[0]") == [1e9 - 28_799, 1e9 - 28_798]
        assert await page.run("samples.every((each) => each.length === 2)")


async def test_eight_tabs_work_at_once(tmp_path):
    async with shown(tmp_path) as (monitor, page, url):
        pages = [page, *[await page.browser.new_page(url) for _ in range(7)]]
        monitor.deliver(*busy("curl", "ssh"))
        for each in pages:
            await each.until(f"{RUNNING} && document.querySelectorAll('#rows tr').length === 2")
            await each.until("document.querySelectorAll('#events li').length === 4")
        assert all(each.complaints() == [] for each in pages)


async def test_the_page_comes_back_after_anything(tmp_path):
    """The server goes, a proxy answers 502, 503 and nonsense, something hangs up, the server is there again."""
    port = free_port()

    async def refuse(answer):
        async def handle(reader, writer):
            with contextlib.suppress(ConnectionError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(answer)
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", port)
        async with server:
            await page.until(f"{STATE}.startsWith('disconnected') && {STATE} !== window.said")
            await page.run(f"window.said = {STATE}")
            assert await page.run("document.body.classList.contains('stale')")

    async with browser(tmp_path / "profile") as page:
        async with serving(first := FakeMonitor(), port=port) as (url,):
            await page.call("Page.navigate", url=url)
            await page.until(RUNNING)
            first.deliver(*busy("before"))
            await page.until(f"JSON.stringify({NAMES}) === JSON.stringify(['before'])")
        await page.until(f"{STATE}.startsWith('disconnected since')")
        await page.run(f"window.said = {STATE}")
        for answer in (
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n<html>502",
            b"",
        ):
            await refuse(answer)
        async with serving(again := FakeMonitor(), port=port):
            again.deliver(*busy("after"))
            await page.until(f"{RUNNING} && JSON.stringify({NAMES}) === JSON.stringify(['after'])")
            assert not await page.run("document.body.classList.contains('stale')")
            assert any("started again" in line for line in await page.run(LINES))
            again.deliver(added(flow("x", Process(77, "later")), 4, counts(5)))
            await page.until(f"{LINES}[0].includes('later')")


async def test_the_page_says_why_a_monitor_failed_also_when_the_server_is_gone(tmp_path):
    async with browser(tmp_path / "profile") as page:
        async with serving(monitor := FakeMonitor()) as (url,):
            await page.call("Page.navigate", url=url)
            await page.until(RUNNING)
            monitor.end(NstatError("the kernel went away"))
            await page.until(f"{STATE}.startsWith('failed: the kernel went away')")
        await page.until(f"{STATE}.startsWith('failed: the kernel went away · disconnected since')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_on_a_phone_nothing_scrolls_sideways(tmp_path, scheme):
    """With long names, addresses and an open row; dark where its user likes it dark."""
    monitor = FakeMonitor()
    async with shown(tmp_path, monitor, width=390, height=844, scheme=scheme) as (_, page, _url):
        name = "a-very-long-name-of-a-process-without-any-space-" * 3
        monitor.deliver(*busy(name, "ssh"))
        monitor.deliver(
            added(flow("v6", Process(5, name), remote="2001:db8:1234:5678:9abc:def0:1234:5678"), 2, counts(1))
        )
        await page.until("document.querySelectorAll('#rows tr').length === 3")
        await page.run("document.querySelector('#rows tr').click()")
        await page.until("document.querySelectorAll('#rows li').length === 1")
        assert await page.run("document.documentElement.scrollWidth") == 390
        too_wide = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > 390.5 && !e.closest('svg, .uplot, caption')).map(e => e.outerHTML.slice(0, 80))"
        assert await page.run(too_wide) == []
        colour = await page.run("getComputedStyle(document.querySelector('#rate-rx')).color")
        assert colour == {"light": "rgb(20, 105, 78)", "dark": "rgb(79, 209, 165)"}[scheme]


async def test_no_number_and_no_heading_is_cut_in_a_window_of_any_width(tmp_path):
    async with shown(tmp_path) as (monitor, page, _):
        monitor.deliver(*busy("curl", "ssh", rx=88_800))
        await page.until("document.querySelectorAll('#rows tr').length === 2")
        places = "#table th button, #table td:not(:first-child)"
        cut = f"[...document.querySelectorAll('{places}')].filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"
        for width in (360, 640, 760, 780, 800, 900, 1000, 1100):
            await page.screen(width, 800)
            assert await page.run(cut) == [], width


async def test_a_browser_with_the_token_sees_the_page(tmp_path):
    async with serving(FakeMonitor(), token=TOKEN) as (url,), browser(tmp_path / "profile") as page:
        await page.call("Page.navigate", url=f"{url}?token={TOKEN}")
        await page.until(RUNNING)
        assert "token" not in await page.run("location.href")


async def churn(monitor, page, seconds):
    """Flows and processes come and go; what the page holds does not grow with them."""
    size = "[document.querySelectorAll('*').length, shownRows.size]"
    serial = 0
    began = time.monotonic()
    sizes = []
    opened = [
        flow(f"s{number}", Process(number % 400, f"name{number % 400}"), port=number) for number in range(1, 3001)
    ]
    monitor.deliver(*(added(each, 1, counts(1)) for each in opened))
    while time.monotonic() - began < seconds or len(sizes) < 4:
        moment = 2 + len(sizes)
        for number in range(300):
            serial += 1
            opened.append(
                flow(f"c{serial}", Process(10_000 + serial % 5000, f"c{serial % 900}"), port=1 + serial % 60_000)
            )
            monitor.deliver(added(opened[-1], moment, counts(number)), removed(opened.pop(0), moment, counts(9_999)))
        monitor.deliver(polled(moment))
        await page.until(f"document.querySelector('#total-flows').textContent === '{3000 + serial} seen'")
        if seconds:
            await page.call("HeapProfiler.collectGarbage")
        heap = (await page.call("Runtime.getHeapUsage"))["usedSize"]
        sizes.append([*await page.run(size), heap])
    return sizes


async def test_three_thousand_flows_that_come_and_go_do_not_make_the_page_grow(tmp_path):
    async with shown(tmp_path) as (monitor, page, _):
        sizes = await churn(monitor, page, 0)
        assert await page.run("document.querySelectorAll('#rows tr').length") <= 102
        assert await page.run("document.querySelectorAll('#events li').length") == 200
        assert await page.run("document.querySelector('#total-open').textContent") == "3000"
        assert max(nodes for nodes, _, _ in sizes) < 2000


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_ten_minutes_of_churn_do_not_make_the_page_grow(tmp_path):
    async with shown(tmp_path) as (monitor, page, _):
        await page.call("HeapProfiler.enable")
        sizes = await churn(monitor, page, 600)
        quarter = len(sizes) // 4
        for at, what in enumerate(("elements", "rows", "bytes")):
            early = sorted(each[at] for each in sizes[quarter : 2 * quarter])[quarter // 2]
            late = sorted(each[at] for each in sizes[-quarter:])[quarter // 2]
            assert late <= 1.1 * early + 100, what

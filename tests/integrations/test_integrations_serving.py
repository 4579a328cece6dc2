"""Where the web service listens, whom it answers, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import subprocess
import sys
from functools import partial

import anyio
import forked
import httpx
import pytest
from aggregate_events import FakeMonitor, until
from plain_http import PLAIN

from nstat_async._errors import NstatError, UsageError
from nstat_async.integrations import _serving, server
from nstat_async.integrations.server import ListenError, create_app, serve_forever

TOKEN = "a-token-of-16-letters-or-more"


@contextlib.asynccontextmanager
async def serving(monitor=None, **options):
    """A server of the library's own, and where it listens."""
    found = []

    async def serve():
        with contextlib.suppress(NstatError):  # that of a monitor that failed
            await serve_forever(lambda: monitor or FakeMonitor(), **{"port": 0, "ready": found.extend, **options})

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await until(lambda: found)
        yield found
        tasks.cancel_scope.cancel()


def client_of(app, peer="127.0.0.1", url="http://127.0.0.1:8765", **options):
    transport = httpx.ASGITransport(app=app, client=(peer, 4711))
    return httpx.AsyncClient(transport=transport, base_url=url, **options)


@pytest.mark.asyncio
async def test_it_says_where_it_listens_and_answers_there():
    async with serving() as (address,), httpx.AsyncClient(**PLAIN) as client:
        assert (await client.get(address)).status_code == 200
        assert (await client.get(f"{address}metrics")).status_code == 200
    async with serving(metrics=False) as (address,), httpx.AsyncClient(**PLAIN) as client:
        assert (await client.get(f"{address}metrics")).status_code == 404


@pytest.mark.asyncio
async def test_a_name_with_several_addresses_has_one_port():
    async with serving(host="localhost") as addresses:
        assert len({address.rsplit(":", 1)[1] for address in addresses}) == 1


@pytest.mark.asyncio
async def test_open_streams_get_ended_when_the_server_stops():
    """And the server does not wait for a client that stays."""
    monitor = FakeMonitor()
    lines = []
    async with contextlib.AsyncExitStack() as stack:
        async with serving(monitor) as (address,):
            client = await stack.enter_async_context(httpx.AsyncClient(**PLAIN))
            response = await stack.enter_async_context(client.stream("GET", f"{address}events"))
            reader = response.aiter_lines()
            assert await anext(reader) == "event: hello"
        lines = [line async for line in reader]
    assert "event: ended" in lines
    assert monitor.ended


@pytest.mark.asyncio
async def test_a_server_whose_monitor_failed_says_so_for_a_while_and_ends_with_the_error(monkeypatch):
    monkeypatch.setattr(server, "FAILED_SECONDS", 0.01)
    monitor, found = FakeMonitor(), []

    async def fail():
        await until(lambda: found)
        monitor.end(NstatError("the kernel went away"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fail)
        with pytest.raises(NstatError, match="the kernel went away"):
            await serve_forever(lambda: monitor, port=0, ready=found.extend)
    assert monitor.ended


@pytest.mark.asyncio
async def test_whom_to_tell_the_addresses_may_fail_and_the_server_goes_on(caplog):
    found = []

    def tell(addresses):
        found.extend(addresses)
        raise OSError("nobody to tell")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(serve_forever, FakeMonitor, port=0, ready=tell))
        await until(lambda: found)
        async with httpx.AsyncClient(**PLAIN) as client:
            assert (await client.get(f"{found[0]}healthz")).status_code == 200
        tasks.cancel_scope.cancel()
    assert "`ready` failed" in caplog.text


@pytest.mark.asyncio
async def test_a_recorded_run_that_failed_stays_to_be_looked_at(monkeypatch):
    monkeypatch.setattr(server, "FAILED_SECONDS", 0.0)
    monitor, error = FakeMonitor(), NstatError("the kernel went away")
    error.recorded = True
    async with serving(monitor) as (address,), httpx.AsyncClient(**PLAIN) as client:
        monitor.end(error)
        while (await client.get(f"{address}healthz")).status_code != 503:
            await asyncio.sleep(0)
        for _ in range(3):
            assert "the kernel went away" in (await client.get(f"{address}processes")).json()["state"]


@pytest.mark.asyncio
async def test_health_is_answered_without_a_token_and_to_nobody_else_s_name():
    app = create_app(FakeMonitor, token=TOKEN, allowed_hosts=["box"])
    async with app.router.lifespan_context(app), client_of(app, "192.0.2.9", "http://box") as client:
        assert (await client.get("/processes")).status_code == 401
        assert (await client.get("/healthz")).text == "running\n"
        assert (await client.get("/healthz", headers={"Host": "evil.example"})).status_code == 421
        assert (await client.get("/healthz/x")).status_code == 401


@pytest.mark.asyncio
async def test_an_application_may_be_begun_in_one_task_and_ended_in_another():
    """As in a fixture of a test; and no scope is open while the caller's code runs."""
    monitor = FakeMonitor()
    app = create_app(lambda: monitor)
    lifespan = app.router.lifespan_context(app)
    await asyncio.create_task(lifespan.__aenter__())
    async with client_of(app) as client:
        assert (await client.get("/healthz")).text == "running\n"
        await asyncio.create_task(lifespan.__aexit__(None, None, None))
        assert (await client.get("/healthz")).text == "stopped\n"
    assert monitor.ended


@pytest.mark.asyncio
async def test_streams_end_when_somebody_cancels_all_tasks_of_the_loop():
    app = create_app(FakeMonitor)
    before = asyncio.all_tasks()
    async with app.router.lifespan_context(app), client_of(app) as client:
        (task,) = asyncio.all_tasks() - before
        task.cancel()
        assert "event: ended" in (await client.get("/events")).text
        assert (await client.get("/healthz")).text == "ended\n"


@pytest.mark.asyncio
async def test_a_unix_socket_is_for_its_user_alone_and_is_taken_away(tmp_path):
    path = tmp_path / "nstat.sock"
    async with serving(unix_socket=path) as (address,):
        assert address == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        transport = httpx.AsyncHTTPTransport(uds=str(path), verify=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://any.name", timeout=120) as client:
            assert (await client.get("/processes")).json()["state"] == "running"
        with pytest.raises(ListenError, match=r"nstat\.sock"):
            await serve_forever(FakeMonitor, unix_socket=path)
    assert not path.exists()


@pytest.mark.asyncio
async def test_a_socket_that_a_dead_server_left_is_replaced_and_a_file_is_not(tmp_path):
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serving(unix_socket=path):
        pass
    path.write_text("precious")
    with pytest.raises(ListenError):
        await serve_forever(FakeMonitor, unix_socket=path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /processes HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
        b"GET /processes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        b"\x16\x03\x01\x02\x00" + bytes(100),
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
    ids=["a wrong chunk", "a wrong length", "no HTTP", "a huge header"],
)
@pytest.mark.asyncio
async def test_who_breaks_the_rules_of_http_is_refused_and_fills_no_log(request_, caplog):
    async with serving() as (address,):
        stream = await anyio.connect_tcp("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))
        async with stream:
            with contextlib.suppress(anyio.BrokenResourceError):  # it did not want to read it all
                await stream.send(request_)
                answer = b""
                with contextlib.suppress(anyio.EndOfStream):
                    while True:
                        answer += await stream.receive()
                assert b"HTTP/1.1 400" in answer
        async with httpx.AsyncClient(**PLAIN) as client:
            assert (await client.get(address)).status_code == 200
    assert not caplog.records


@pytest.mark.asyncio
async def test_who_never_ends_a_request_is_let_go_and_an_open_stream_is_not(monkeypatch):
    monkeypatch.setattr(_serving, "PATIENCE_TICKS", 2)
    monitor = FakeMonitor()
    async with serving(monitor) as (address,), httpx.AsyncClient(**PLAIN) as client:
        port = int(address.rstrip("/").rpartition(":")[2])
        async with client.stream("GET", f"{address}events") as response:
            lines = response.aiter_lines()
            assert await anext(lines) == "event: hello"
            for beginning in (
                b"",
                b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ",
                b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET",
            ):
                async with await anyio.connect_tcp("127.0.0.1", port) as slow:
                    if beginning:
                        await slow.send(beginning)
                    with contextlib.suppress(anyio.EndOfStream):
                        while await slow.receive():
                            pass
            monitor.end()
            assert "event: ended" in [line async for line in lines]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
@pytest.mark.asyncio
async def test_beyond_loopback_it_needs_a_token(host):
    with pytest.raises(UsageError, match="token"):
        await serve_forever(FakeMonitor, host=host, port=0)


@pytest.mark.asyncio
async def test_where_it_cannot_listen_is_said():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}"):
            await serve_forever(FakeMonitor, port=port)
    for wrong in ({"host": "no name"}, {"port": 70_000}):
        with pytest.raises((ListenError, UsageError)):
            await serve_forever(FakeMonitor, **wrong)


@pytest.mark.asyncio
async def test_a_monitor_that_cannot_be_opened_is_the_error():
    class Broken(FakeMonitor):
        async def __aenter__(self):
            raise NstatError("no kernel here")

    with pytest.raises(NstatError, match="no kernel here"):
        await serve_forever(Broken, port=0)


@pytest.mark.asyncio
async def test_other_machines_are_answered_with_the_token_only():
    """Each path refuses without it: the page, its parts, streams and metrics."""
    app = create_app(FakeMonitor, token=TOKEN)
    async with client_of(app, peer="192.0.2.9", url="http://192.0.2.1:8765") as client:
        for path in ("/", "/live.js", "/events", "/processes", "/metrics", "/nothing"):
            assert (await client.get(path)).status_code == 401
            for wrong in (f"Bearer {TOKEN}x", "Bearer ", TOKEN, f"Basic {TOKEN}", "Bearer \xe9"):
                answer = await client.get(path, headers={"authorization": wrong.encode("latin-1")})
                assert answer.status_code == 401
        assert (await client.get("/processes", headers={"authorization": f"bearer {TOKEN}"})).status_code == 200
        assert (await client.get(f"/processes?token={TOKEN}")).status_code == 401


@pytest.mark.asyncio
async def test_a_browser_gets_the_token_once_by_the_address_of_the_page():
    app = create_app(FakeMonitor, token=TOKEN)
    async with client_of(app, peer="192.0.2.9", url="http://192.0.2.1:8765") as client:
        answer = await client.get(f"/?token={TOKEN}&x=1")
        assert (answer.status_code, answer.headers["location"]) == (303, "/?x=1")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert (await client.get("/processes")).status_code == 200
        assert (await client.get("/?token=wrong-token-of-16-letters")).status_code == 200  # by the cookie
    async with client_of(app) as stranger:
        assert (await stranger.get("/?token=wrong-token-of-16-letters")).status_code == 401
        assert (await stranger.get(f"/?token={TOKEN}&token={TOKEN}")).status_code == 401


@pytest.mark.asyncio
async def test_localhost_is_a_name_for_this_machine_only():
    """A request from outside that says localhost was led here; so was one that says a name of its own."""
    app = create_app(FakeMonitor, token=TOKEN)
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with client_of(app, peer="192.0.2.9", url="http://192.0.2.1:8765", headers=headers) as client:
        assert (await client.get("/processes")).status_code == 200  # the address that the request came to
        for host in ("localhost", "127.0.0.1:8765", "[::1]", "evil.example", "192.0.2.2"):
            assert (await client.get("/processes", headers={"host": host})).status_code == 421, host
    async with client_of(app, peer="::ffff:127.0.0.1", url="http://localhost", headers=headers) as client:
        assert (await client.get("/processes")).status_code == 200


@pytest.mark.asyncio
async def test_without_a_token_only_this_machine_is_answered():
    async with client_of(create_app(FakeMonitor, allowed_hosts=["*"]), peer="192.0.2.9") as client:
        assert (await client.get("/processes")).status_code == 403
    async with client_of(create_app(FakeMonitor, allowed_hosts=["*"], trust_peers=True), peer="192.0.2.9") as client:
        assert (await client.get("/processes")).status_code == 200


@pytest.mark.parametrize("token", ["", "short", "with spaces in its midst", "semi;colon;semi;colon", "é" * 20, 7])
@pytest.mark.asyncio
async def test_a_token_that_cannot_be_one_is_refused(token):
    with pytest.raises(UsageError, match="token"):
        create_app(FakeMonitor, token=token)


@pytest.mark.asyncio
async def test_an_error_in_a_request_is_logged_and_said(caplog, monkeypatch):
    app = create_app(FakeMonitor)

    def broken(*_arguments):
        raise OSError("surprise")

    monkeypatch.setattr(app.state.hub, "processes", broken)
    async with client_of(app) as client:
        assert (await client.get("/processes")).status_code == 500
    assert "surprise" in caplog.text


def test_a_signal_ends_it_quietly(tmp_path):
    """Status 0, nothing on standard error, with a stream open."""
    program = (
        "from nstat_async import Monitor; from nstat_async.integrations.server import serve;"
        "serve(lambda: Monitor(backend='emulated'), port=0, ready=lambda found: print(found[0], flush=True))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for number in (signal.SIGTERM, signal.SIGINT):
        with forked.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        ) as child:
            url = child.stdout.readline().strip()
            with httpx.stream("GET", f"{url}events", **PLAIN) as response:
                lines = response.iter_lines()
                assert next(lines) == "event: hello"
                child.send_signal(number)
                assert "event: ended" in list(lines)
            assert child.communicate(timeout=120) == ("", "")
            assert child.returncode == 0

"""Where Python has no AF_UNIX (Windows), the emulated kernel still works within the process."""

import inspect
import select
import socket
import subprocess
import sys

import anyio
import pytest
from channels import read_one

from nstat_async import BackendUnavailableError, FlowAdded, Monitor, UnavailableReason
from nstat_async.ntstat import AddAllSources
from nstat_async.testing import EmulatedKernel, UnixServer, serve_unix
from nstat_async.testing._signal import Signal


def tcp_pair():
    """What Python's `socket.socketpair` makes on Windows."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]


def take_away(monkeypatch):
    monkeypatch.setattr(socket, "socketpair", tcp_pair)
    for name in ("AF_UNIX", "SOCK_SEQPACKET"):
        monkeypatch.delattr(socket, name, raising=False)


@pytest.fixture
def no_unix(monkeypatch):
    take_away(monkeypatch)


@pytest.mark.usefixtures("no_unix")
def test_a_signal_is_readable_while_it_is_set():
    signal = Signal()
    for _ in range(2):
        signal.set()
        signal.set()
        assert select.select([signal], [], [], 10)[0]
        signal.clear()
        assert not select.select([signal], [], [], 0)[0]
    signal.close()
    signal.close()
    assert signal.fileno() == -1


@pytest.mark.usefixtures("no_unix")
def test_a_channel_answers_behind_a_loopback_pair():
    kernel = EmulatedKernel()
    channel = kernel.transport().open(None)
    kernel.open_tcp()
    channel.send(AddAllSources(provider=2, context=1).encode(kernel.release.layout))
    assert read_one(channel)[8:12] == (10001).to_bytes(4, "little")
    channel.close()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_monitor_sees_the_flows(backend, monkeypatch):
    kernel = EmulatedKernel()
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=7)

    async def body():
        take_away(monkeypatch)  # now: on this host the loop itself was made with a pair of AF_UNIX
        with anyio.fail_after(120):
            async with Monitor(backend=kernel.backend(), interval=0.02) as monitor:
                async for event in monitor:
                    if isinstance(event, FlowAdded):
                        assert event.counts.rx_bytes == 7
                        break

    anyio.run(body, backend=backend)


@pytest.mark.usefixtures("no_unix")
@pytest.mark.parametrize(
    "serve",
    [
        lambda kernel, path: kernel.serve_unix(path),
        serve_unix,
        lambda kernel, _path: kernel.serve_socketpair(),
        UnixServer,
    ],
)
def test_the_unix_server_says_that_it_cannot_be_had_and_what_works(serve, tmp_path):
    with pytest.raises(BackendUnavailableError, match=r"no AF_UNIX.*backend\(\)") as caught:
        serve(EmulatedKernel(), str(tmp_path / "k"))
    assert caught.value.reason is UnavailableReason.PLATFORM
    assert list(tmp_path.iterdir()) == []


def test_everything_imports_where_the_names_are_missing_from_the_beginning():
    code = (
        f"import _socket, socket\n{inspect.getsource(tcp_pair)}"
        """
socket.socketpair = tcp_pair
for module in (_socket, socket):
    for name in ("AF_UNIX", "SOCK_SEQPACKET"):
        if hasattr(module, name):
            delattr(module, name)
import nstat_async.testing as testing
for name in testing.__all__:
    getattr(testing, name)
kernel = testing.EmulatedKernel()
channel = kernel.transport().open(None)
kernel.backend()
channel.close()
print("ok")
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("ok\n", "")

"""The table of backends: names, values, errors that list the choices; and what is public of the contract."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import socket
import subprocess
import sys
import typing
from pathlib import Path

import anyio
import pytest

import nstat_async
from nstat_async import (
    BackendUnavailableError,
    FlowAdded,
    LossCause,
    Monitor,
    PollCompleted,
    UsageError,
    backends,
    snapshot,
)
from nstat_async._cli._arguments import build_parser
from nstat_async._options import MonitorOptions
from nstat_async.backends import Emulated, Kctl, Replay, SockDiag, UnixSocket, named
from nstat_async.backends._loading import load
from nstat_async.backends._registry import ROWS

CHOICES = "auto, kctl, sock_diag, emulated, unix:PATH, replay:FILE, fleet:URL"
WRONG = ["nope", "", "unix", "unix:", "replay:", "kctl:1", "emulated:", "SOCK_DIAG", "auto "]


@pytest.mark.parametrize(
    ("text", "arguments", "value"),
    [
        ("kctl", {}, Kctl()),
        ("sock_diag", {}, SockDiag()),
        ("sock_diag", {"netns": ["blue", 12]}, SockDiag(("blue", 12))),
        ("auto", {"netns": ["blue"]}, SockDiag("blue")),
        ("emulated", {}, Emulated()),
        ("emulated", {"kernel": "xnu-2422.115.4"}, Emulated("xnu-2422.115.4")),
        ("unix:/tmp/a:b", {"kernel": "xnu-11417"}, UnixSocket("/tmp/a:b", "xnu-11417")),
        ("replay:day.nstat", {}, Replay("day.nstat")),
        ("replay:day.nstat", {"kernel": "xnu-11417"}, Replay("day.nstat", kernel="xnu-11417")),
    ],
)
def test_a_name_is_the_value_that_it_names(text, arguments, value):
    assert named(text, **arguments) == value


@pytest.mark.parametrize("platform", ["darwin", "linux", "linux2"])
def test_auto_is_the_kernel_of_this_machine(monkeypatch, platform):
    monkeypatch.setattr("nstat_async._io.system.system", lambda: platform)
    assert named("auto") == backends.auto() == (Kctl() if platform == "darwin" else SockDiag())


def test_where_there_is_no_kernel_to_watch_starting_says_what_works_everywhere(monkeypatch):
    monkeypatch.setattr("nstat_async._io.system.system", lambda: "plan9")
    for monitor in (Monitor(), Monitor(backend="auto")):
        with pytest.raises(BackendUnavailableError, match=r"plan9.*EmulatedKernel.*Replay"):
            anyio.run(monitor.start)


@pytest.mark.parametrize("text", WRONG)
def test_the_command_line_the_monitor_and_a_snapshot_refuse_the_same_names_and_list_the_choices(text, capsys):
    with pytest.raises(UsageError, match=CHOICES):
        Monitor(backend=text)
    with pytest.raises(UsageError, match=CHOICES):
        anyio.run(lambda: snapshot(backend=text))
    with pytest.raises(SystemExit):
        build_parser().parse_args(["watch", "--backend", text])
    assert CHOICES in capsys.readouterr().err


@pytest.mark.parametrize("value", [5, b"kctl", object(), ["kctl"], SockDiag, print, True])
def test_what_is_no_backend_at_all_is_refused_where_the_monitor_is_made(value):
    with pytest.raises(UsageError, match=CHOICES):
        Monitor(backend=value)


def test_a_class_in_place_of_a_value_is_refused_with_a_hint():
    with pytest.raises(UsageError, match=r"make one: SockDiag\(\)"):
        Monitor(backend=SockDiag)


def test_a_path_without_a_kernel_says_how_to_give_one():
    with pytest.raises(UsageError, match=r"--kernel.*backends\.UnixSocket"):
        Monitor(backend="unix:/tmp/somewhere")


@pytest.mark.parametrize("backend", [Emulated(), Replay("x"), UnixSocket("/x", "xnu-11417.121.6")])
def test_where_there_are_no_programs_they_cannot_be_required(backend):
    monitor = Monitor(backend=backend, ebpf="require")
    with pytest.raises(UsageError, match=r"'require' is for .*sock_diag.* has no eBPF programs"):
        anyio.run(monitor.start)


@pytest.mark.parametrize("name", ["kctl", "emulated", "replay:x", "unix:x"])
def test_namespaces_belong_to_linux(name):
    with pytest.raises(UsageError, match="no network namespaces"):
        named(name, netns=["blue"])


def test_a_monitor_and_a_snapshot_take_a_name():
    async def main():
        async with Monitor(backend="emulated", interval=0.05) as monitor:
            assert monitor.capabilities.backend == "emulated"
            async for event in monitor:
                if isinstance(event, FlowAdded):
                    break
            await monitor.poll_now()
        return await snapshot(backend="emulated")

    assert anyio.run(main)


@pytest.mark.parametrize("speed", [0, -1])
def test_a_recording_cannot_be_played_at_no_speed(speed):
    with pytest.raises(UsageError, match="speed"):
        Replay("x", speed=speed)


def test_every_row_says_itself_what_it_is():
    assert ", ".join(row.text for row in ROWS) == CHOICES
    assert {row.name for row in ROWS if row.examine} == {row.name for row in ROWS if row.platform}
    for row in ROWS:
        if row.examine is not None:
            assert row.examine().name == row.name


# --- the contract -----------------------------------------------------------------------


def _callables(module):
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value) and value.__module__.startswith("nstat_async"):
            yield name, value
            for member, thing in inspect.getmembers(value):
                if not member.startswith("_") and inspect.isfunction(thing):
                    yield f"{name}.{member}", thing


@pytest.mark.parametrize("name", ["nstat_async", "nstat_async.backends"])
def test_the_types_of_everything_public_can_be_asked_for(name):
    failed = {}
    for label, value in _callables(importlib.import_module(name)):
        try:
            typing.get_type_hints(value)
        except NameError as error:
            failed[label] = str(error)
    assert not failed


def test_what_only_a_feed_calls_is_no_part_of_a_monitor():
    assert {name for name in dir(Monitor) if not name.startswith("_")} == {
        "aclose", "capabilities", "flows", "poll_now", "start", "statistics", "subscribe",
    }  # fmt: skip
    assert {name for name in dir(nstat_async.Subscription) if not name.startswith("_")} == {
        "aclose", "close", "receive_many", "receive_nowait", "statistics",
    }  # fmt: skip


def test_a_poll_without_a_serial_is_only_reported():
    """What a feed without polls delivers as `PollCompleted` has no number."""
    assert PollCompleted(0.0, 1, True).serial is None


# --- a backend of one's own, in examples/own_backend.py -----------------------------------


@pytest.fixture
def toy():
    path = Path(__file__).parents[1] / "examples" / "own_backend.py"
    spec = importlib.util.spec_from_file_location("own_backend", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_example_of_a_backend_runs(toy, loop, capsys):
    anyio.run(toy.main, backend=loop)
    assert capsys.readouterr().out == "curl received 2,500 bytes\n"


def test_the_example_s_core_keeps_the_contract_without_any_socket(toy):
    core = toy.ToyCore(None)
    core.start(0.0)
    assert core.commands() == [backends.OpenChannel(0, "toy")]
    core.channel_opened(0, 0.0, immediate=False, receive_buffer=None)
    assert core.commands() == [backends.Send(0, b"list")]
    assert core.request_poll(0.1) == 2, "what is under way began before"
    core.receive_datagrams(
        [b'{"flow": 1, "pid": 2, "name": "a", "rx": 1, "tx": 1}', b"nonsense", b'{"end": true}'], 0.2, 0
    )
    added, lost, polled = core.take_events()
    assert (added.preexisting, lost.cause, polled.serial, polled.complete) == (True, LossCause.PROTOCOL, 1, True)
    core.handle_deadline(core.next_deadline())
    assert core.commands() == [backends.Send(0, b"list")]
    core.handle_deadline(core.next_deadline())  # nobody answers
    assert [(event.serial, event.complete) for event in core.take_events()] == [(2, False)]


def test_the_example_s_kernel_that_is_not_there_is_an_error_at_the_first_read(toy):
    async def main():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
            nobody.bind(("127.0.0.1", 0))
            address = nobody.getsockname()
        async with Monitor(backend=toy.Toy(address)) as monitor:
            with pytest.raises(BackendUnavailableError):
                async for _ in monitor:
                    pass

    anyio.run(main)


def closed_file():
    file = io.BytesIO()
    file.close()
    return file


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SockDiag("x\0"), "netns: .* is neither a name, a path nor a pid"),
        (lambda: SockDiag(-1), "netns: -1 is neither"),
        (lambda: Kctl(verify="no"), "verify: 'no' is neither True nor False"),
        (lambda: Emulated(1), "kernel: 1 is not a version of a kernel such as 'xnu-"),
        (lambda: UnixSocket("/x", kernel=5), "kernel: 5 is not a version"),
        (lambda: UnixSocket("/x", kernel="y"), "kernel: no XNU version in 'y'"),
        (lambda: UnixSocket(5, "xnu-11417"), "path: 5 is not a path"),
        (lambda: UnixSocket("/x\0", "xnu-11417"), "path: .* is not a path"),
        (lambda: UnixSocket("/x", "xnu-11417", timebase=None), "timebase: None is not a pair"),
        (lambda: UnixSocket("/x", "xnu-11417", interfaces={1: "lo0"}), "interfaces: .* is not a tuple of pairs"),
        (lambda: Replay(None), "recording: None is neither a path nor a file that is open for reading"),
        (lambda: Replay([]), "recording: no file is given"),
        (lambda: Replay(["x", 5]), "recording: 5 is neither a path nor a file"),
        (lambda: Replay(io.StringIO()), "recording: .* is a text file; open it with mode 'rb'"),
        (lambda: Replay(closed_file()), "recording: .* is not open for reading"),
        (lambda: Replay("x", kernel="y"), "kernel: no XNU version in 'y'"),
        (lambda: Replay("x", speed="1"), "speed: '1' is not a positive number"),
        (lambda: Replay("x", timebase=5), "timebase: 5 is not a pair of positive whole numbers"),
        (lambda: Replay("x", timebase=(0, 0)), r"timebase: \(0, 0\) is not a pair"),
        (lambda: backends.named("sock_diag", kernel="xnu-11417"), "kernel: backend sock_diag asks this machine"),
        (lambda: backends.named("auto", kernel="xnu-11417"), "kernel: backend auto asks this machine"),
        (lambda: backends.named(5), "backend: 5 is not one of"),
        (lambda: backends.named("sock_diag", netns=1.5), r"netns: 1\.5 is neither"),
    ],
)
def test_what_cannot_work_is_refused_where_the_backend_is_made(make, text):
    with pytest.raises(UsageError, match=text):
        make()


FIRST_OPENING = """
import sys, threading
import anyio
from nstat_async import Monitor
held = []
class Log:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is threading.main_thread() and name.startswith("nstat_async"):
            held.append(name)
async def open_one():
    async with Monitor(ebpf="off", pulse=None, interval=None):
        pass
sys.meta_path.insert(0, Log())
anyio.run(open_one)
print(held, "nstat_async.sockdiag" in sys.modules)
"""


@pytest.mark.linux
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="opens this machine")
def test_the_first_monitor_imports_nothing_in_the_event_loops_thread():
    done = subprocess.run([sys.executable, "-c", FIRST_OPENING], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[] True\n", "")


@pytest.mark.anyio
async def test_where_no_thread_can_be_had_modules_are_imported_where_they_are_used(monkeypatch):
    async def refuse(_work):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("anyio.to_thread.run_sync", refuse)
    await load("nowhere")
    monkeypatch.undo()
    with pytest.raises(ImportError):
        await load("nowhere")


@pytest.mark.anyio
@pytest.mark.parametrize("backend", [Kctl(), SockDiag()], ids=["kctl", "sock_diag"])
async def test_another_systems_kernel_is_refused_before_anything_is_imported(backend, monkeypatch):
    monkeypatch.setattr("nstat_async._io.system.system", lambda: "plan9")
    monkeypatch.setattr(f"{type(backend).__module__}.load", None)
    with pytest.raises(BackendUnavailableError, match="this is plan9"):
        await backend.open_outside(MonitorOptions())

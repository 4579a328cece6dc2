"""A snapshot is complete, or says that it is not."""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import sys
import threading

import anyio
import attrs
import pytest

from nstat_async import (
    Capabilities,
    Ebpf,
    EventsLost,
    Flow,
    IncompleteSnapshotError,
    LossCause,
    PollCompleted,
    Provider,
    ProviderRefused,
    backends,
    snapshot,
)
from nstat_async._cli import main
from nstat_async.testing import EmulatedKernel


class Scripted:
    """A backend that answers each poll with the next batch of a script."""

    name = "scripted"
    can_wait = False
    capabilities = Capabilities(backend="scripted")

    def __init__(self, *batches, ends=False):
        self.batches, self.ends = list(batches), ends
        self.polls = 0

    def open(self, options):
        self.options = options
        self.wanted = anyio.Event()
        self.wanted.set()
        self.closed = False
        return self

    async def run(self, sink):
        while not self.closed:
            await self.wanted.wait()
            self.wanted = anyio.Event()
            if self.batches:
                sink.deliver(self.batches.pop(0))
            elif self.ends:
                return

    async def subscribed(self):
        pass

    def flows(self):
        return [(Flow("1", Provider.TCP), None)]

    def request_poll(self):
        self.polls += 1
        self.wanted.set()
        return self.polls

    def close(self):
        self.closed = True
        self.wanted.set()

    def statistics(self):
        return {}


PART, WHOLE = PollCompleted(1.0, 1, False), PollCompleted(1.0, 1, True)


def look(*batches, ends=False, **options):
    return anyio.run(functools.partial(snapshot, backend=Scripted(*batches, ends=ends), **options))


def test_a_poll_that_was_not_answered_in_full_is_made_again():
    assert len(look([PART], [PART], [WHOLE])) == 1


def test_what_never_becomes_complete_is_raised_with_what_there_is_and_why():
    lost = EventsLost(1.0, LossCause.BATCH, 5, detail="asked for again")
    why = r"1 flows are known: no poll was answered in full, of 4; batch: asked for again"
    with pytest.raises(IncompleteSnapshotError, match=why) as caught:
        look(*[[lost, PART]] * 100)
    assert [flow.id for flow, _ in caught.value.flows] == ["1"]


def test_when_its_time_is_over_it_asks_no_more(monkeypatch):
    monkeypatch.setattr("nstat_async._monitor.SNAPSHOT_SECONDS", -1.0)
    with pytest.raises(IncompleteSnapshotError, match="no poll was answered in full, of 1"):
        look([PART], [PART], [WHOLE])


def test_it_polls_by_itself_and_has_nothing_that_sees_what_comes():
    scripted = Scripted([WHOLE])
    anyio.run(lambda: snapshot(backend=scripted))
    options = scripted.options
    assert (options.interval, options.ebpf, options.pulse, options.extras) == (None, Ebpf.OFF, None, False)


def test_a_kernel_side_that_ends_first_is_incomplete():
    scripted = Scripted([], ends=True)

    async def main():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look_at)
            await anyio.wait_all_tasks_blocked()
            scripted.request_poll()

    async def look_at():
        with pytest.raises(IncompleteSnapshotError, match="ended before"):
            await snapshot(backend=scripted)

    anyio.run(main)


@pytest.mark.parametrize("cause", list(LossCause))
def test_a_gap_that_no_poll_closes_makes_it_incomplete_and_others_do_not(cause):
    events = [EventsLost(1.0, cause, None), WHOLE]
    if cause in {LossCause.ANNOUNCEMENT, LossCause.PROTOCOL, LossCause.RECORDING}:
        with pytest.raises(IncompleteSnapshotError, match=cause.value):
            look(events)
    else:
        assert len(look(events)) == 1


def test_a_refused_provider_is_missing_where_it_was_asked_for_by_name():
    events = [ProviderRefused(1.0, Provider.QUIC, 2, "not on this kernel"), WHOLE]
    assert len(look(events)) == 1
    assert len(look(events, providers={"tcp"})) == 1
    with pytest.raises(IncompleteSnapshotError, match="quic was refused: not on this kernel"):
        look(events, providers={"tcp", "quic"})


@attrs.frozen
class Small:
    """An emulated kernel with a receive buffer of this size."""

    kernel: EmulatedKernel
    size: int | None
    name = "emulated"

    def open(self, options):
        return self.kernel.backend().open(attrs.evolve(options, receive_buffer=self.size))


@pytest.mark.parametrize(
    ("name", "flows", "size"),
    [
        ("xnu-11417.121.6", 1_000, 8192),
        *(
            (name, 100, size)
            for name in ("xnu-2422.115.4", "xnu-4570.1.46", "xnu-11417.121.6")
            for size in (1024, 8192, 16384, None)
        ),
    ],
)
def test_of_many_flows_and_a_small_buffer_all_are_there_or_it_says_so(name, flows, size):
    kernel = EmulatedKernel(name)
    for number in range(flows):
        kernel.open_tcp(pid=number + 1, name="a", remote=("192.0.2.1", 443))
    try:
        assert len(anyio.run(lambda: snapshot(backend=Small(kernel, size)))) == flows
    except IncompleteSnapshotError as error:
        assert size is not None, "a comfortable buffer is enough"
        assert len(error.flows) <= flows  # noqa: PT017  # either is right


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET") or sys.platform == "darwin", reason="needs SOCK_SEQPACKET")
def test_a_kernel_that_never_answers_is_not_an_idle_machine(tmp_path, monkeypatch, capsys):
    path = str(tmp_path / "silent")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        kept = []
        accepting = threading.Thread(target=accept, args=(listener, kept), daemon=True)
        accepting.start()
        monkeypatch.setattr("nstat_async._io.pump.SUBSCRIBE_SECONDS", 0.02)
        backend = backends.UnixSocket(path, "xnu-11417.121.6")
        monkeypatch.setattr("nstat_async.backends.named", lambda *_, **__: backend)
        assert main(["snapshot", "--duration", "0.05"]) == 1
        out, err = capsys.readouterr()
        assert (out, err.splitlines()[-1]) == (
            "",
            "nstat-async: the snapshot is incomplete: no whole answer came within 0.05 s",
        )
        monkeypatch.setattr("nstat_async._cli._run.LAST_POLL", 0.05)
        assert main(["processes", "--duration", "0.05"]) == 0
        assert "the last poll took more than 0.05 s: totals may be behind" in capsys.readouterr().err
        monkeypatch.setattr("nstat_async._monitor.SNAPSHOT_SECONDS", 0.0)
        monkeypatch.setattr("nstat_async.ntstat._subscription.REPLY_TIMEOUT", 0.02)
        assert main(["snapshot", "--json"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "the snapshot is incomplete, 0 flows are known" in err
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        for connection in kept:
            connection.close()


@pytest.mark.skipif(not hasattr(socket, "SOCK_SEQPACKET") or sys.platform == "darwin", reason="needs SOCK_SEQPACKET")
def test_a_silent_kernel_is_not_asked_everything_before_the_snapshot_says_so(tmp_path, monkeypatch):
    """Each question would be waited for: more than 20 s."""
    path, kept = str(tmp_path / "silent"), []
    monkeypatch.setattr("nstat_async._io.pump.SUBSCRIBE_SECONDS", 0.0)
    monkeypatch.setattr("nstat_async._monitor.SNAPSHOT_SECONDS", 0.0)
    monkeypatch.setattr("nstat_async.ntstat._subscription.REPLY_TIMEOUT", 0.02)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        accepting = threading.Thread(target=accept, args=(listener, kept), daemon=True)
        accepting.start()
        with pytest.raises(
            IncompleteSnapshotError, match=r"within 0 s; silence: the kernel has not answered"
        ) as caught:
            anyio.run(lambda: snapshot(backend=backends.UnixSocket(path, "xnu-11417.121.6")))
        assert caught.value.flows == ()
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        requests = 0
        for asked in kept:  # a second control socket may look whether the first was told of everything
            with asked:
                while asked.recv(65536):
                    requests += 1
        assert 0 < requests < 6, "all questions are more"


def accept(listener, kept):
    """Take connections and say nothing."""
    with contextlib.suppress(OSError):
        while True:
            kept.append(listener.accept()[0])


def test_the_command_prints_what_there_is_and_says_that_more_is_missing(monkeypatch, capsys):
    scripted = Scripted(*[[PART]] * 100)
    monkeypatch.setattr("nstat_async.backends.named", lambda *_, **__: scripted)
    assert main(["snapshot", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["flow"]["id"] == "1"
    assert "incomplete" in err


@pytest.mark.parametrize("form", ["json", "csv", "ocsf"])
def test_a_snapshot_has_the_time_of_what_it_shows_of_a_recording_its_end(form, capsys):
    recording = "examples/recordings/web-session.jsonl"
    assert main(["replay", "--json", "--fields", "time", recording]) == 0
    end = json.loads(capsys.readouterr().out.splitlines()[-1])["time"]
    assert main(["snapshot", "--format", form, "--backend", f"replay:{recording}"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    time = float(line.partition(",")[0]) if form == "csv" else json.loads(line)["time"]
    assert time == (int(end * 1000) if form == "ocsf" else end)


class Searching(Scripted):
    """One whose feed still looks for processes: these figures after each poll."""

    def __init__(self, *figures):
        super().__init__([WHOLE], [WHOLE], [WHOLE])
        self.figures = list(figures)

    def statistics(self):
        return self.figures[self.polls]


def test_sockets_of_which_nothing_is_known_are_looked_for_once_more():
    """The kernel's own are known by the second look; whoever is gone by then is in no dump any more."""
    backend = Searching({"undecided_owners": 2}, {"undecided_owners": 1})
    assert len(anyio.run(functools.partial(snapshot, backend=backend))) == backend.polls == 1


def test_processes_that_were_not_found_in_time_are_missing():
    backend = Searching({"undecided_owners": 2, "sought_owners": 2}, {"undecided_owners": 2, "sought_owners": 2})
    with pytest.raises(IncompleteSnapshotError, match="the processes of 2 sockets were not found in time"):
        anyio.run(functools.partial(snapshot, backend=backend))

"""Recordings as a backend: what a passive session makes of them, through `Monitor`."""

from __future__ import annotations

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import conversation_play as playing
import conversations
import pytest
from replaying import failed_run

from nstat_async import (
    EventsLost,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    IncompleteSnapshotError,
    LossCause,
    Monitor,
    MonitorClosedError,
    PollCompleted,
    ProviderRefused,
    RecordingError,
    RequestError,
    UsageError,
    backends,
    snapshot,
)
from nstat_async._io import pipes
from nstat_async.recording import RecordingWriter, copy, open_recording

GENEROUS = 120.0
_FLOW_EVENTS = (FlowAdded, FlowUpdated, FlowRemoved)


def run(main, loop: str = "asyncio") -> None:
    async def guarded() -> None:
        with anyio.fail_after(GENEROUS):
            await main()

    anyio.run(guarded, backend=loop)


async def replayed(source, **options) -> list:
    speed = {name: options.pop(name) for name in ("kernel", "speed", "timebase") if name in options}
    async with Monitor(backend=backends.Replay(source, **speed), **options) as monitor:
        return [event async for event in monitor]


def story(events: list) -> list:
    """Events without their times, which a recording may count from another moment."""
    found = []
    for event in events:
        if isinstance(event, _FLOW_EVENTS):
            flow, final = event.flow, getattr(event, "final", None)
            found.append((type(event), flow.id, flow.local, flow.remote, flow.state, flow.process, event.counts, final))
        elif isinstance(event, EventsLost):
            found.append((EventsLost, event.cause, event.count))
        else:
            found.append((type(event), getattr(event, "complete", None)))
    return found


@pytest.mark.parametrize("name", conversations.names())
def test_a_replay_tells_what_a_passive_session_is_told(name):
    sessions, _ = playing.play(name)
    expected = []
    lines = [line for line in conversations.load(name)[1] if line["dir"] != "note"]
    for line in lines:
        session, data = sessions[line.get("c", 0)], bytes.fromhex(line["hex"])
        (session.observe_request if line["dir"] == "to_kernel" else session.receive_datagram)(
            data, playing.seconds(line)
        )
        expected += session.take_events()
    for session in sessions.values():
        session.finish(0.0)
        expected += session.take_events()

    async def main() -> None:
        events = await replayed(io.BytesIO(conversations.raw(name)))
        assert story(events) == story(expected)

    run(main)


def test_clients_of_one_recording_are_sessions_of_their_own():
    names = [n for n in conversations.names() if len(conversations.clients(n)) > 1]
    assert names

    async def main() -> None:
        for name in names:
            events = await replayed(io.BytesIO(conversations.raw(name)))
            prefixes = {e.flow.id.split(".")[0].split("r")[0] for e in events if isinstance(e, _FLOW_EVENTS)}
            assert prefixes <= {str(client + 1) for client in conversations.clients(name)}

    run(main)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("control/xnu-10063.141.1/buffer_full_adds", LossCause.ANNOUNCEMENT),
        ("control/xnu-10063.141.1/buffer_full_goodbye", LossCause.BATCH),
        ("stack/xnu-7195.141.2/d_30_default", LossCause.BATCH),
        ("stack/xnu-7195.141.2/d_overflow_added", LossCause.ANNOUNCEMENT),
    ],
)
def test_what_a_full_buffer_swallowed_is_told(name, cause):
    async def main() -> None:
        events = await replayed(io.BytesIO(conversations.raw(name)))
        losses = [e for e in events if isinstance(e, EventsLost)]
        assert cause in {e.cause for e in losses}
        assert all(e.count is None or e.count > 0 for e in losses)

    run(main)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_slow_reader_loses_nothing_of_a_recording(loop):
    raw = conversations.raw("control/xnu-11417.121.6/agg_tcp_kernel_101_GET_UPDATE")

    async def main() -> None:
        expected = story(await replayed(io.BytesIO(raw)))
        seen = []
        async with Monitor(backend=backends.Replay(io.BytesIO(raw)), max_pending=1) as monitor:
            async for event in monitor:
                await anyio.lowlevel.checkpoint()
                seen.append(event)  # as users write it
        assert story(seen) == expected

    run(main, loop)


def test_a_run_that_failed_fails_again_after_its_last_event():
    recording = io.BytesIO(failed_run())

    async def read(seen: list) -> None:
        async with Monitor(backend=backends.Replay(recording)) as monitor:
            seen.append(await monitor.__anext__())
            await monitor.__anext__()

    async def main() -> None:
        seen: list = []
        with pytest.raises(RequestError, match="refused every provider") as caught:
            await read(seen)
        assert caught.value.recorded
        assert [type(event) for event in seen] == [ProviderRefused]
        recording.seek(0)
        with pytest.raises(IncompleteSnapshotError, match=r"the recorded run failed: .* refused every provider"):
            await snapshot(backend=backends.Replay(recording))

    run(main)


def test_a_recording_that_breaks_off_tells_what_came_and_that_it_broke_off(tmp_path):
    name = "stack/xnu-11417.121.6/b_tcp_loopback"
    path, whole = tmp_path / "cut.nstat", io.BytesIO()
    with open_recording(io.BytesIO(conversations.raw(name))) as source:
        copy(source, RecordingWriter(whole, source.info))
    data = whole.getvalue()

    async def main() -> None:
        expected = story(await replayed(io.BytesIO(data)))
        flows = [entry for entry in expected if issubclass(entry[0], _FLOW_EVENTS)]
        before = -1
        for cut in range(len(data) // 2, len(data), max(1, len(data) // 60)):
            path.write_bytes(data[:cut])
            events = story(await replayed(path))
            told = [entry for entry in events if issubclass(entry[0], _FLOW_EVENTS)]
            # As far as it goes it is the same story; what was announced and not described follows at its end.
            agreed = next((i for i, (a, b) in enumerate(zip(told, flows, strict=False)) if a != b), len(told))
            assert agreed >= before
            before = agreed
            assert all(entry[0] is FlowAdded for entry in told[agreed:])
            losses = [entry for entry in events if entry[0] is EventsLost and entry[1] is LossCause.RECORDING]
            assert len(losses) <= 1

    run(main)


def test_a_pipe_is_read_as_it_grows():
    raw = conversations.raw("control/xnu-11417.121.6/tcp_kernel_suppress")
    reading, writing = os.pipe()

    async def main() -> None:
        expected = story(await replayed(io.BytesIO(raw)))
        lines = raw.splitlines(keepends=True)
        os.write(writing, b"".join(lines[:2]))
        seen = []
        with os.fdopen(reading, "rb", buffering=0) as source:
            async with Monitor(backend=backends.Replay(source)) as monitor, anyio.create_task_group() as tasks:

                async def grow() -> None:
                    for line in lines[2:]:
                        await anyio.to_thread.run_sync(os.write, writing, line)
                        await anyio.lowlevel.checkpoint()
                    os.close(writing)

                tasks.start_soon(grow)
                async for event in monitor:
                    seen.append(event)  # noqa: PERF401  # as users write it
        assert story(seen) == expected

    run(main)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize("begun", [b"", conversations.raw("control/xnu-11417.121.6/tcp_kernel_suppress")])
def test_the_writer_of_a_pipe_can_be_left_while_it_is_waited_for(loop: str, begun: bytes, tmp_path: Path):
    """In the moment before it opens the pipe, and where it says no more; other tasks run meanwhile."""
    os.mkfifo(tmp_path / "pipe")

    async def main() -> None:
        writing = None
        with anyio.move_on_after(0.2) as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(replayed, tmp_path / "pipe")
                if begun:
                    writing = await opened(tmp_path / "pipe")
                    os.write(writing, begun)
        assert scope.cancelled_caught
        if writing is not None:
            os.close(writing)

    async def opened(path: Path) -> int:
        while True:  # until it is read
            try:
                return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                await anyio.sleep(0.001)

    run(main, loop)


def test_a_monitor_closed_while_it_waits_for_the_writer_of_a_pipe_was_not_opened(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")

    async def main() -> None:
        monitor = Monitor(backend=backends.Replay(tmp_path / "pipe"))

        async def close() -> None:
            await monitor.aclose()
            writer = os.open(tmp_path / "pipe", os.O_WRONLY | os.O_NONBLOCK)
            os.write(writer, conversations.raw("control/xnu-11417.121.6/tcp_kernel_suppress"))
            os.close(writer)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(close)
            with pytest.raises(MonitorClosedError, match="while it was started"):
                await monitor.start()

    run(main)


def test_where_a_pipe_without_a_writer_looks_empty_it_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on macOS: a writer that came and went without a word stands for none."""
    monkeypatch.setattr(pipes.system, "system", lambda: "darwin")
    monkeypatch.setattr(pipes, "TICK", 0.001)
    os.mkfifo(tmp_path / "pipe")
    pipe = pipes.ReadPipe(tmp_path / "pipe")
    os.close(os.open(tmp_path / "pipe", os.O_WRONLY))
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(pipe.read, 100)
        with open(tmp_path / "pipe", "wb") as writer:
            writer.write(b"late")
        assert reading.result() == b"late"
    assert pipe.read(100) == b""
    pipe.close()


def test_the_pace_of_a_replay_is_that_of_its_records():
    raw = conversations.raw("control/xnu-11417.121.6/tcp_kernel_suppress")

    async def main() -> None:
        events = await replayed(io.BytesIO(raw), speed=1e6)
        assert story(events) == story(await replayed(io.BytesIO(raw)))
        slow = Monitor(backend=backends.Replay(io.BytesIO(raw), speed=1e-9))
        with anyio.move_on_after(0.05) as scope:  # it would take years, and can be left at once
            async with slow:
                async for _ in slow:
                    pass
        assert scope.cancelled_caught

    run(main)


def test_a_timebase_given_by_hand_makes_true_times():
    name = "control/xnu-11417.121.6/tcp_kernel_suppress"

    async def main() -> None:
        ages = []
        for timebase in ((1, 1), (125, 3)):
            events = await replayed(io.BytesIO(conversations.raw(name)), timebase=timebase)
            closed = [e for e in events if isinstance(e, FlowRemoved) and e.flow.started_ns is not None]
            ages.append(closed[0].time * 1e9 - closed[0].flow.started_ns)
        assert ages[0] > 0
        assert ages[1] > ages[0]

    run(main)


def test_the_end_of_a_recording_is_the_moment_of_its_snapshot():
    name = "stack/xnu-7195.141.2/c2_many_ifaces"

    async def main() -> None:
        events = await replayed(io.BytesIO(conversations.raw(name)))
        open_flows = {e.flow.id for e in events if isinstance(e, FlowAdded)}
        open_flows -= {e.flow.id for e in events if isinstance(e, FlowRemoved)}
        taken = await snapshot(backend=backends.Replay(io.BytesIO(conversations.raw(name))))
        assert {f.id for f, _ in taken} == open_flows

    run(main)


def test_statistics_and_capabilities_of_a_replay():
    name = "stack/xnu-11417.121.6/b_tcp_loopback"

    async def main() -> None:
        async with Monitor(backend=backends.Replay(io.BytesIO(conversations.raw(name)))) as monitor:
            polls = sum([isinstance(event, PollCompleted) async for event in monitor])
            figures = monitor.statistics().feed
            assert figures["clients"] == 1
            assert figures["datagrams"] == len(conversations.datagrams(name))
            assert figures["malformed"] == 0
            facts = monitor.capabilities
            assert (facts.backend, facts.layout, facts.final_counts) == ("replay", "W11", True)
            assert polls >= 0

    run(main)


def test_what_is_no_recording_is_refused_by_the_right_error(tmp_path):
    async def main() -> None:
        with pytest.raises(RecordingError, match="No such file"):
            await replayed(tmp_path / "nothing.nstat")
        with pytest.raises(RecordingError):
            await replayed(io.BytesIO(b"no recording at all\n" * 5))
        nameless = (
            json.dumps({"scenario": "x"}) + "\n" + json.dumps({"i": 0, "dir": "note", "t": 0, "text": "x"}) + "\n"
        )
        with pytest.raises(RecordingError, match="kernel"):
            await replayed(io.BytesIO(nameless.encode()))
        assert await replayed(io.BytesIO(nameless.encode()), kernel="xnu-11417.121.6") == []
        with pytest.raises(UsageError, match="speed: 0"):
            await replayed(io.BytesIO(nameless.encode()), speed=0)

    run(main)


def test_more_clients_than_anybody_has_are_garbage_and_told_once(monkeypatch):
    from nstat_async._io import follow

    monkeypatch.setattr(follow, "MAX_CLIENTS", 3)
    lines = [{"xnu": "xnu-11417.121.6"}]
    success = "11000000000000000000000010000000"
    lines += [{"i": n, "dir": "from_kernel", "t": n, "c": n, "hex": success} for n in range(10)]
    raw = "".join(json.dumps(line) + "\n" for line in lines)

    async def main() -> None:
        (loss,) = await replayed(io.BytesIO(raw.encode()))
        assert (loss.cause, loss.count) == (LossCause.RECORDING, None)
        assert "3 clients" in loss.detail

    run(main)

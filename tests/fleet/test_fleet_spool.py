"""What a publisher has not published outlives it: a file of bounded size, played when it begins anew."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from pathlib import Path

import anyio
import pytest
from fleet_living import BINARY, PATIENCE, Machine, Server, Watcher, free_port, truth

from nstat_async import EventsLost, FlowRemoved, HostState, HostUpdated, LossCause, Monitor, UsageError
from nstat_async._io.outbox import Outbox, Spool
from nstat_async.aggregate import ProcessTable
from nstat_async.backends import Fleet, StreamSettings
from nstat_async.fleet import Message

living = pytest.mark.skipif(BINARY is None, reason="nats-server is not installed")
SMALL = StreamSettings(max_bytes=64 << 20)


def message(number, size=100):
    return Message("nstat.web.events", f"web/0/{number}", os.urandom(size), number)


@pytest.fixture
def spool(tmp_path):
    """Makes spools of one file; what they say is in `said`."""
    made = []

    def make(most_bytes=1 << 20, subject="nstat.web."):
        made.append(Spool(tmp_path / "spool", most_bytes, subject, make.said.append))
        return made[-1]

    make.said = []
    yield make
    for each in made:
        each.close()


async def all_of(outbox):
    found = []
    while outbox.waiting:
        found.append(await outbox.first())
        await outbox.drop(found[-1])
    return found


@pytest.mark.asyncio
async def test_messages_are_found_again_in_their_order_whatever_ended_the_one_before(spool):
    messages = [message(number) for number in range(5)]
    first = spool()
    for each in messages:
        await first.put(each)
    assert await first.first() == messages[0]
    await first.drop(await first.first())
    first.close()
    second = spool()
    assert second.waiting == 4
    await second.put(message(5, 7))
    assert [each.id for each in await all_of(second)] == [f"web/0/{number}" for number in range(1, 6)]
    await second.put(messages[0])
    assert await second.first() == messages[0]


@pytest.mark.asyncio
async def test_a_full_file_holds_the_publisher_up_is_said_once_and_goes_on_when_there_is_room(spool, tmp_path):
    outbox = spool(most_bytes=1 << 20)
    put = 0
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:

            async def end():
                while not spool.said:
                    await anyio.sleep(0.001)
                tasks.cancel_scope.cancel()

            tasks.start_soon(end)
            while True:
                await outbox.put(message(put, 50_000))
                put += 1
    assert 15 < put < 21
    assert len(spool.said) == 1
    assert "is full" in spool.said[0]
    with anyio.move_on_after(0.05) as waited:
        await outbox.room()
    assert waited.cancelled_caught
    await outbox.drop(await outbox.first())
    await outbox.room()
    await outbox.put(message(put, 50_000))
    assert [each.events for each in await all_of(outbox)] == [*range(1, put + 1)]
    outbox.close()
    assert (tmp_path / "spool").stat().st_size <= 1 << 20


@pytest.mark.asyncio
async def test_a_file_that_fails_costs_what_was_in_it_and_publishing_goes_on_in_memory(spool):
    outbox = spool()
    await outbox.put(message(0))
    sent = await outbox.first()
    outbox._file.close()  # as if the disk were gone
    await outbox.put(message(1))
    await outbox.drop(sent)
    assert not outbox.lasts
    assert "going on without it, 1 messages of it are lost" in spool.said[0]
    assert [each.events for each in await all_of(outbox)] == [1]


@pytest.mark.asyncio
async def test_a_file_that_cannot_be_written_is_read_to_its_end_which_is_said_once(spool):
    outbox = spool()
    messages = [message(number) for number in range(4)]
    for each in messages[:3]:
        await outbox.put(each)
    outbox._file.execute("PRAGMA query_only = 1")  # as with a disk that became read-only
    found = []
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outbox.put, messages[3])
            for _ in messages:
                found.append(await outbox.first())
                await outbox.drop(found[-1])
    assert found == messages
    assert outbox.lasts
    assert len(spool.said) == 1
    assert "is not writable" in spool.said[0]
    outbox._file.execute("PRAGMA query_only = 0")
    await outbox.put(messages[0])
    assert await all_of(outbox) == messages[:1]
    assert len(spool.said) == 1


@pytest.mark.asyncio
async def test_a_file_is_written_again_when_others_made_room_although_the_server_is_absent(spool, monkeypatch):
    monkeypatch.setattr("nstat_async._io.outbox._AGAIN_SECONDS", 0.001)
    outbox = spool()
    messages = [message(number) for number in range(2)]
    await outbox.put(messages[0])
    outbox._file.execute("PRAGMA query_only = 1")
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outbox.put, messages[1])
            while not spool.said:
                await anyio.sleep(0.001)
            outbox._file.execute("PRAGMA query_only = 0")
    assert outbox.waiting == 2
    assert await all_of(outbox) == messages


@pytest.mark.asyncio
async def test_what_a_file_without_room_does_not_have_at_the_end_is_said_to_be_lost(spool):
    outbox = spool()
    outbox._file.execute("PRAGMA query_only = 1")
    await outbox.put(message(0))
    assert outbox.waiting == 1
    outbox.close()
    outbox.close()
    assert (outbox.waiting, outbox.unsaved) == (0, 1)
    assert ["not writable" in line for line in spool.said] == [True, False]
    assert "which are lost" in spool.said[1]


@pytest.mark.asyncio
async def test_a_message_that_waits_for_room_at_the_end_is_lost_and_the_others_are_kept(spool):
    outbox = spool()
    await outbox.put(message(0))
    outbox._file.execute("PRAGMA query_only = 1")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(outbox.put, message(1))
        while not outbox._full:
            await anyio.sleep(0)
        tasks.cancel_scope.cancel()
    outbox.close()
    assert (outbox.waiting, outbox.unsaved) == (1, 1)
    assert "which are lost" in spool.said[1]


@pytest.mark.asyncio
async def test_a_message_in_memory_is_lost_at_the_end():
    outbox = Outbox()
    await outbox.put(message(0))
    assert (outbox.waiting, outbox.unsaved) == (1, 0)
    outbox.close()
    assert (outbox.waiting, outbox.unsaved) == (0, 1)


@pytest.mark.parametrize(
    "damage", ["data = 7", "subject = 'nstat.web.e vents'", "id = 'web' || char(10)", "events = x'00'"]
)
@pytest.mark.asyncio
async def test_a_damaged_message_in_the_file_is_never_published(spool, damage):
    outbox = spool()
    await outbox.put(message(0))
    await outbox.put(message(1))
    outbox._file.execute(f"UPDATE message SET {damage} WHERE number = 2")
    await outbox.drop(await outbox.first())
    found = []

    async def read_on():
        found.append(await outbox.first())

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_on)
            while not spool.said and not found:
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
    assert not found
    assert "is damaged: going on without it, 1 messages of it are lost" in spool.said[0]


@pytest.mark.asyncio
async def test_a_file_that_has_no_room_for_anything_is_as_none(spool):
    outbox = spool()
    outbox._file.execute("PRAGMA max_page_count = 1")  # as a disk that others have filled
    await outbox.put(message(0, 100_000))
    assert (await outbox.first()).events == 0
    with anyio.move_on_after(0.05) as waited:
        await outbox.room()
    assert waited.cancelled_caught
    assert [each.events for each in await all_of(outbox)] == [0]
    assert len(spool.said) == 1
    assert "is full" in spool.said[0]
    outbox._file.execute("PRAGMA max_page_count = 1000")
    await outbox.room()
    await outbox.put(message(1, 100_000))
    assert [each.events for each in await all_of(outbox)] == [1]


@pytest.mark.asyncio
async def test_in_memory_one_message_waits():
    outbox = Outbox()
    await outbox.room()
    await outbox.put(message(0))
    with anyio.move_on_after(0.05) as waited:
        await outbox.room()
    assert waited.cancelled_caught
    assert [each.events for each in await all_of(outbox)] == [0]
    await outbox.emptied()


@pytest.mark.asyncio
async def test_a_file_of_another_machine_or_of_something_else_is_refused_by_name(spool, tmp_path):
    outbox = spool()
    await outbox.put(message(0))
    with pytest.raises(UsageError, match=r"spool: .*another publisher uses it"):
        spool()
    outbox.close()
    with pytest.raises(UsageError, match=r"messages of nstat\.web: publish them as that machine"):
        spool(subject="nstat.webb.")
    spool().close()
    for name, make in {
        "history": lambda path: sqlite3.connect(path).executescript("CREATE TABLE x (y)").connection.close(),
        "text": lambda path: path.write_text("no database, and long enough to be none\n" * 100),
        "folder": Path.mkdir,
    }.items():
        make(tmp_path / name)
        with pytest.raises(UsageError, match=f"spool: .*{name}: "):
            Spool(tmp_path / name, 1 << 20, "nstat.web.", print)


CHILD = """
import asyncio, json, sys
from fleet_living import Machine
from nstat_async import FlowRemoved

async def main(url, spool):
    async with Machine("web", url, spool=spool) as web:
        for pid in (501, 502):
            web.open(pid)
        for _ in range(3):
            web.move()
            await asyncio.sleep(0.15)
        web.close()
        ended = 0
        async for event in web.monitor:
            ended += isinstance(event, FlowRemoved)
            if ended == 2:
                break
        stored = web.publisher.statistics()["waiting"]
        while web.publisher.statistics()["waiting"] < stored + 2:
            await asyncio.sleep(0.02)
        print(json.dumps(dict(web.truth)), flush=True)
        await asyncio.sleep(600)

asyncio.run(main(*sys.argv[1:]))
"""


@living
@pytest.mark.asyncio
async def test_what_a_killed_publisher_had_written_its_next_run_publishes_and_nothing_counts_twice(tmp_path):
    server, spool = Server(tmp_path), str(tmp_path / "spool")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, server.url, spool, stdout=asyncio.subprocess.PIPE, env=environment
    )
    right = json.loads(await asyncio.wait_for(child.stdout.readline(), PATIENCE))
    child.kill()  # kill -9
    await child.communicate()
    with server:
        async with (
            Machine("web", server.url, spool=spool) as web,
            Monitor(backend=Fleet(server.url, stream=SMALL, since=0)) as monitor,
        ):
            watcher = Watcher(monitor, ProcessTable())
            await watcher.until(lambda: watcher.of(EventsLost))
            web.open(503)
            web.move()
            web.close()
            await watcher.until(watcher.ended(3))
    assert watcher.totals == {**{("web", int(pid)): total for pid, total in right.items()}, **truth(web)}
    assert [loss.cause for loss in watcher.of(EventsLost)] == [LossCause.RESYNC]
    assert len(watcher.of(FlowRemoved)) == 3
    assert web.publisher.statistics()["waiting"] == 0


@living
@pytest.mark.asyncio
async def test_a_publisher_that_stops_while_the_server_is_absent_loses_nothing(tmp_path):
    server, spool = Server(tmp_path), tmp_path / "spool"
    async with Machine("web", server.url, spool=spool) as first:
        first.open()
        first.move()
        with anyio.fail_after(PATIENCE):
            while not any(counts.rx_bytes for _, counts in first.monitor.flows):
                await anyio.sleep(0.02)
    with server:
        async with (
            Machine("web", server.url, spool=spool),
            Monitor(backend=Fleet(server.url, stream=SMALL, since=0), overflow="all") as monitor,
        ):
            watcher = Watcher(monitor, ProcessTable())
            await watcher.until(lambda: len(watcher.of(HostUpdated, state=HostState.PRESENT)) == 2)
    assert not watcher.of(EventsLost)
    assert watcher.totals == truth(first)
    assert [event.state for event in watcher.of(HostUpdated)] == [
        HostState.PRESENT, HostState.LEFT, HostState.PRESENT,
    ]  # fmt: skip


@living
@pytest.mark.asyncio
async def test_a_spool_that_cannot_be_used_is_an_error_before_anything_is_published(tmp_path):
    async with Machine("web", f"nats://127.0.0.1:{free_port()}", spool=tmp_path / "no" / "where") as web:
        with pytest.raises(UsageError, match=r"spool: .*no/where: No such file or directory"):
            await asyncio.wait_for(web._task, PATIENCE)
    for wrong in ({"spool": ""}, {"spool": 7}, {"spool_bytes": 0}, {"spool_bytes": 1000}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Machine("web", "nats://x", **wrong)

"""Look-ups, their threads, and how their failures are reported."""

from __future__ import annotations

import errno
import threading
import time

import anyio
import anyio.lowlevel
import pytest

from nstat_async import Auxiliary, AuxiliaryFailed
from nstat_async._contract import Lookup, LookupFailed, OpenChannel, Send
from nstat_async._errnos import MORE_FILES, no_thread_text

pytestmark = pytest.mark.anyio


async def test_look_ups_are_answered_from_another_thread_and_a_failed_one_with_its_reason(it):
    it.core.next = [OpenChannel(0, 0), Lookup(1, "who")]
    threads = []

    def answer(request):
        threads.append(threading.current_thread())
        if request == "fails":
            raise OSError(errno.ENOENT, "gone")
        return request + "!"

    def hear(*heard):
        if heard == ("answer", 1, "who!"):
            it.core.next = [Lookup(2, "fails")]

    it.wires.answer, it.core.on_hearing = answer, hear
    await it.until("answer", 2, LookupFailed("gone"))
    assert threading.main_thread() not in threads
    assert it.feed._unbegun == {}, "what began is not kept"


def reports(it):
    return [(event.auxiliary, event.detail) for event in it.plate.events if isinstance(event, AuxiliaryFailed)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        (ZeroDivisionError("a bug of the transport"), "a bug of the transport"),
        (MemoryError(), "MemoryError"),
        (OSError(errno.ENOENT, "No such file", "/proc/1"), "/proc/1: No such file"),
        (OSError(errno.EMFILE, "Too many open files", "/proc/1"), f"Too many open files; {MORE_FILES}"),
    ],
)
async def test_whatever_a_look_up_raises_the_core_hears_why_and_the_consumer_once_until_it_worked(it, error, reason):
    begin, outcomes = time.time(), ["fails", "fails", "works", "fails", "fails", "end"]
    it.core.next = [OpenChannel(0, 0), Lookup(0, "fails")]

    def answer(request):
        if request == "fails":
            raise error
        return request

    def hear(*heard):
        if heard[0] == "answer" and heard[1] + 1 < len(outcomes):
            it.core.next = [Lookup(heard[1] + 1, outcomes[heard[1] + 1])]

    it.wires.answer, it.core.on_hearing = answer, hear
    await it.until("answer", 5)
    answers = [heard[2] for heard in it.core.heard if heard[0] == "answer"]
    failed = LookupFailed(reason)
    assert answers == [failed, failed, "works", failed, failed, "end"]
    assert reports(it) == [(Auxiliary.LOOKUP, reason)] * 2
    assert begin - 1 < it.plate.events[0].time < time.time() + 1
    assert it.feed.statistics()["failed_lookup"] == 4


async def test_a_look_up_that_takes_long_holds_up_nobody_who_ends(it):
    begun, answered, over = threading.Event(), [], threading.Event()

    def answer(request):
        begun.set()
        answered.append(over.wait(60))

    it.wires.answer, it.core.next = answer, [OpenChannel(0, 0), Lookup(1, "who")]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.feed.run, it.plate)
        while not begun.is_set():
            await anyio.sleep(0.001)
        it.feed.close()
    assert not answered
    over.set()


async def test_look_ups_of_two_kinds_fail_and_recover_apart(it):
    asked = ["text", 1, "text", 1, "text", 1]
    it.core.next = [OpenChannel(0, 0), Lookup(0, asked[0])]

    def answer(request):
        return LookupFailed("not here") if request == 1 else request

    def hear(*heard):
        if heard[0] == "answer" and heard[1] + 1 < len(asked):
            it.core.next = [Lookup(heard[1] + 1, asked[heard[1] + 1])]
        elif heard[0] == "answer":
            it.core.next = [Send(0, b"last")]

    it.wires.answer, it.core.on_hearing = answer, hear
    await it.until("answer", 5)
    assert [heard[2] for heard in it.core.heard if heard[0] == "answer"][1] == LookupFailed("not here")
    assert len(reports(it)) == 1


async def test_a_thread_that_cannot_be_started_fails_the_look_up_and_nothing_else(it, monkeypatch):
    async def refused(ask, request, **_options):
        await anyio.lowlevel.checkpoint()
        if request == "works":
            return ask(request)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("anyio.to_thread.run_sync", refused)

    it.core.next = [OpenChannel(0, 0), Lookup(1, "who"), Lookup(2, "who")]

    @it.hearing
    def hear(*heard):
        if heard[0] == "answer" and heard[1] in {2, 3}:
            it.core.next = [Lookup(heard[1] + 1, "works" if heard[1] == 2 else "who")]
        elif heard[:2] == ("answer", 4):
            it.wires.far[0].send(b"goes on")

    await it.until("datagram", b"goes on", 0)
    why = no_thread_text(RuntimeError("can't start new thread"))
    assert ("answer", 1, LookupFailed(f"no worker thread: {why}")) in it.core.heard
    assert reports(it) == [(Auxiliary.THREAD, why)] * 2, "once until it worked"
    assert it.feed.statistics()["failed_thread"] == 3

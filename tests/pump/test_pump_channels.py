"""Opening, sending, reading, and the end of a channel."""

from __future__ import annotations

import errno
import functools
import gc
import threading
import time
import weakref
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import pytest
from pump_parts import LIMIT, Pumping

from nstat_async import BackendUnavailableError, UnavailableReason
from nstat_async._contract import CloseChannel, OpenChannel, Send
from nstat_async._io import pump

pytestmark = pytest.mark.anyio


async def test_after_a_send_the_channel_is_read_before_anything_is_waited_for(it):
    @it.hearing
    def hear(*heard):
        drained = it.core.heard.count(("drained", 0))
        if heard == ("drained", 0) and drained == 1:
            it.core.next = [Send(0, b"a question that nobody answers")]
        elif drained == 2:
            it.feed.close()

    with anyio.fail_after(LIMIT):
        await it.feed.run(it.plate)
    assert it.core.heard == [("start",), ("opened", 0, True, 4096), ("drained", 0), ("drained", 0)]


async def test_a_datagram_that_comes_later_wakes_the_pump(it):
    @it.hearing
    def hear(*heard):
        if heard == ("drained", 0) and ("datagram", b"late", 0) not in it.core.heard:
            threading.Timer(0.02, it.wires.far[0].send, (b"late",)).start()

    await it.until("datagram", b"late", 0)


async def test_a_channel_that_says_nothing_of_itself_is_waited_for(it):
    """Not every channel has a rest, or gives only answers."""

    def connect(purpose, connect=it.wires.open):
        channel = connect(purpose)
        del channel.answers_only, channel.rest
        return channel

    @it.hearing
    def hear(*heard):
        if heard == ("drained", 0) and ("datagram", b"late", 0) not in it.core.heard:
            threading.Timer(0.02, it.wires.far[0].send, (b"late",)).start()

    it.wires.open = connect
    await it.until("datagram", b"late", 0)


async def test_a_request_for_a_poll_reads_what_came_before_though_the_loop_did_not_say_so(it, monkeypatch):
    async def never(_channel):
        await anyio.sleep_forever()

    monkeypatch.setattr(pump.anyio, "wait_readable", never)

    @it.hearing
    def hear(*heard):
        if heard == ("drained", 0) and not it.core.polls:
            it.wires.far[0].send(b"before")
            it.feed.request_poll()

    await it.until("datagram", b"before", 0)


async def test_datagrams_are_dated_by_the_wall_clock_of_their_turn(it, monkeypatch):
    """Which somebody sets forward after the channel was opened."""
    wall, dates = [1_000.0], []
    clocks = {name: getattr(time, name) for name in ("monotonic", "perf_counter", "thread_time")}
    monkeypatch.setattr(pump, "time", SimpleNamespace(time=lambda: wall[0], **clocks))

    @it.hearing
    def hear(*heard):
        if heard[0] == "opened":
            wall[0] = 1e9
            it.wires.far[0].send(b"news")
        elif heard[0] == "datagram":
            dates.append(it.core.epoch_offset + time.monotonic())

    await it.until("datagram", b"news", 0)
    assert dates[0] > 1e8


async def test_who_gives_answers_only_is_read_after_each_send_and_never_said_to_be_empty(it):
    def connect(purpose, connect=it.wires.open):
        channel = connect(purpose)
        channel.answers_only = True
        it.core.next = [Send(0, b"a question")]
        it.wires.far[purpose].send(b"an answer")
        return channel

    @it.hearing
    def hear(*heard):
        if heard == ("datagram", b"an answer", 0):
            it.core.next = [Send(0, b"a question")]
            it.wires.far[0].send(b"another answer")

    it.wires.open = connect
    await it.until("datagram", b"another answer", 0)
    assert ("drained", 0) not in it.core.heard


async def test_a_channel_that_has_data_is_not_waited_for_again_before_it_was_read(it, monkeypatch):
    waits, wait_readable = [], anyio.wait_readable

    async def waited(channel):
        waits.append(channel)
        await wait_readable(channel)

    monkeypatch.setattr(pump.anyio, "wait_readable", waited)
    it.plate.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.until, "datagram", b"wait for room", 0)
        while not it.plate.room_asked:
            await anyio.lowlevel.checkpoint()
        it.wires.far[0].send(b"wait for room")
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert len(waits) == 1
        it.plate.gate.set()


@pytest.mark.parametrize("rest", [None, 5.0])
async def test_for_its_rest_nobody_waits_for_a_channel(it, monkeypatch, rest):
    rests, waits = [], []
    wait_readable = anyio.wait_readable

    async def sleep(seconds):
        rests.append(seconds)
        await anyio.lowlevel.checkpoint()

    async def waited(channel):
        waits.append(len(rests))
        await wait_readable(channel)

    def connect(purpose, connect=it.wires.open):
        channel = connect(purpose)
        del channel.rest
        if rest is not None:
            channel.rest = rest
        return channel

    it.wires.open = connect
    it.core.on_hearing = lambda *heard: heard[0] == "drained" and it.wires.far[0].send(b"news")
    monkeypatch.setattr(pump.anyio, "sleep", sleep)
    monkeypatch.setattr(pump.anyio, "wait_readable", waited)
    await it.until("datagram", b"news", 0)
    assert set(rests) == (set() if rest is None else {rest})
    assert waits[0] == (rest is not None)


async def test_an_opening_that_fails_is_told_with_the_hosts_error_number(it):
    it.wires.refusal = OSError(errno.EMFILE, "no descriptors")
    await it.until("failed", 0, errno.EMFILE)


async def test_an_opening_that_is_explained_ends_the_run_with_that_explanation(it):
    it.wires.refusal = BackendUnavailableError("kctl", UnavailableReason.PERMISSION, "a sandbox")

    @it.hearing
    def hear(*heard):
        if heard[0] == "failed":
            it.core.failure = BackendUnavailableError("kctl", UnavailableReason.MISSING, "some error")

    with pytest.raises(BackendUnavailableError, match="a sandbox"):
        await it.feed.run(it.plate)


async def test_a_send_that_fails_is_told_and_the_pump_goes_on(it):
    @it.hearing
    def hear(*heard):
        if heard[0] == "opened":
            it.core.next = [Send(7, b"to a channel that is not open"), Send(0, bytes(10_000_000))]
        if heard == ("failed", 0, errno.EMSGSIZE):
            it.wires.far[0].send(b"goes on")

    await it.until("datagram", b"goes on", 0)


async def test_an_error_without_a_number_is_the_number_0(it):
    it.wires.refusal = OSError("odd")
    await it.until("failed", 0, 0)
    it = Pumping()

    def connect(purpose, connect=it.wires.open):
        def send(data):
            raise OSError("odd")

        channel = connect(purpose)
        channel.send = send
        return channel

    it.core.next, it.wires.open = [OpenChannel(0, 0), Send(0, b"x")], connect
    await it.until("failed", 0, 0)


async def test_what_was_lost_before_it_could_be_read_is_reported_and_what_still_waits_is_read(it):
    errors = [OSError(errno.ENOBUFS, "no room"), OSError("odd")]

    def read_into(channel, batch, most):
        if errors:
            raise errors.pop(0)
        return type(channel).read_into(channel, batch, most)

    def connect(purpose, connect=it.wires.open):
        channel = connect(purpose)
        it.wires.far[purpose].send(b"still here")
        channel.read_into = functools.partial(read_into, channel)
        return channel

    it.wires.open = connect
    await it.until("datagram", b"still here", 0)
    assert it.core.heard[2:-1] == [("failed", 0, errno.ENOBUFS), ("failed", 0, 0)]


async def test_after_a_loss_the_channel_is_said_to_be_empty_though_nothing_waits_in_it(it):
    """A repair waits for that. The kernel may have had no memory for the only datagram: no other is there, or comes."""
    errors = []

    def read_into(channel, batch, most):
        if errors:
            raise errors.pop()
        return type(channel).read_into(channel, batch, most)

    def connect(purpose, connect=it.wires.open):
        channel = connect(purpose)
        channel.read_into = functools.partial(read_into, channel)
        return channel

    @it.hearing
    def hear(*heard):
        failed = ("failed", 0, errno.ENOBUFS) in it.core.heard
        if heard == ("drained", 0) and not failed:
            errors.append(OSError(errno.ENOBUFS, "no room"))
            it.core.deadline = 0.0  # a turn that reads all channels
        elif heard == ("deadline",):
            it.core.deadline = 0.0  # and another one
            if it.core.heard.count(heard) == 2:
                it.feed.close()

    it.wires.open = connect
    with anyio.fail_after(LIMIT):
        await it.feed.run(it.plate)
    assert ("drained", 0) in it.core.heard[it.core.heard.index(("failed", 0, errno.ENOBUFS)) :]


async def test_the_end_of_a_channel_is_told_once_and_the_others_go_on(it):
    it.core.next = [OpenChannel(0, 0), OpenChannel(1, 1)]

    @it.hearing
    def hear(*heard):
        if heard == ("drained", 1):
            it.wires.far[0].close()
        if heard == ("closed", 0):
            it.core.next = [Send(0, b"to nobody"), Send(1, b"and to somebody")]
            it.wires.far[1].send(b"still here")

    await it.until("datagram", b"still here", 1)
    assert it.core.heard.count(("closed", 0)) == 1
    assert not [heard for heard in it.core.heard if heard[0] == "failed"]


async def test_a_channel_that_the_core_closes_is_not_read_any_more(it):
    @it.hearing
    def hear(*heard):
        if heard[:2] == ("opened", 0):
            it.wires.far[0].send(b"never read")  # commands are carried out before anything is read

    it.core.next = [OpenChannel(0, 0), CloseChannel(0), OpenChannel(1, 1)]
    await it.until("drained", 1)
    assert not [heard for heard in it.core.heard if heard[0] in {"datagram", "closed"}]


async def test_of_a_channel_that_the_core_closes_nothing_is_left(it):
    channels = []

    def connect(purpose, connect=it.wires.open):
        channel = connect(purpose)
        channels.append(weakref.ref(channel))
        return channel

    it.wires.open = connect
    it.core.next = [OpenChannel(0, 0), CloseChannel(0)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.feed.run, it.plate)
        await anyio.wait_all_tasks_blocked()
        gc.collect()
        assert [channel() for channel in channels] == [None]
        it.feed.close()

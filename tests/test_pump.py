"""The pump: between a core's commands and the sockets, on every loop.

The core here is a note-book that says what it is told to; the sockets are real.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import socket
import threading
import time
import weakref
from types import SimpleNamespace

import anyio
import pytest
import trio

from nstat_async import (
    Auxiliary,
    AuxiliaryFailed,
    BackendUnavailableError,
    Capabilities,
    Monitor,
    PollCompleted,
    RequestError,
    UnavailableReason,
)
from nstat_async._contract import CloseChannel, Lookup, LookupFailed, OpenChannel, Send
from nstat_async._io import pump
from nstat_async._io.channel import SocketChannel
from nstat_async._io.pump import KernelFeed
from nstat_async._options import MonitorOptions
from nstat_async.testing import EmulatedKernel

LIMIT = 120.0


class NoteBook:
    """A core that writes down what it hears and answers from a script."""

    def __init__(self):
        self.heard = []
        self.epoch_offset = 0.0
        self.failure = None
        self.capabilities = Capabilities(backend="note-book")
        self.deadline = None
        self.polls = 0
        self.next = [OpenChannel(0, 0)]
        self.events = []
        self.on_datagram = lambda data, channel: None
        self.on_hearing = lambda *heard: None

    def _hear(self, *what):
        self.heard.append(what)
        self.on_hearing(*what)

    def start(self, now):
        self._hear("start")

    def receive_datagrams(self, datagrams, now, channel):
        for data in datagrams:
            self._hear("datagram", data, channel)
            self.on_datagram(data, channel)

    def channel_opened(self, channel, now, *, immediate, receive_buffer):
        self._hear("opened", channel, immediate, receive_buffer)

    def channel_drained(self, channel, now):
        self._hear("drained", channel)

    def channel_failed(self, channel, number, now):
        self._hear("failed", channel, number)

    def channel_closed(self, channel, now):
        self._hear("closed", channel)

    def lookup_done(self, token, answer, now):
        self._hear("answer", token, answer)

    def commands(self):
        commands, self.next = self.next, []
        return commands

    def take_events(self):
        events, self.events = self.events, []
        return events

    def next_deadline(self):
        return self.deadline

    def handle_deadline(self, now):
        self.deadline = None
        self._hear("deadline")

    subscribed = True

    def request_poll(self, now):
        self.polls += 1
        self._hear("poll")
        return self.polls

    def flows(self):
        return ()

    def statistics(self):
        return {}


class Wires:
    """Opens socket pairs; the test holds the far ends."""

    def __init__(self):
        self.far = {}
        self.refusal = None
        self.closed = 0
        self.answer = lambda request: request

    def open(self, purpose):
        if self.refusal is not None:
            raise self.refusal
        near, far = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET if hasattr(socket, "SOCK_SEQPACKET") else socket.SOCK_DGRAM
        )
        self.far[purpose] = far
        return SocketChannel(near, immediate=True, receive_buffer=4096, ends=True)

    def lookup(self, request):
        return self.answer(request)

    def close(self):
        self.closed += 1
        for far in self.far.values():
            far.close()


class Plate:
    """A sink that may make the feed wait."""

    def __init__(self):
        self.events = []
        self.room_asked = 0
        self.gate = None

    def deliver(self, events):
        self.events.extend(events)

    async def room(self):
        self.room_asked += 1
        if self.gate is not None:
            await self.gate.wait()


class Pumping:
    def __init__(self, **options):
        self.core, self.wires, self.plate = NoteBook(), Wires(), Plate()
        self.feed = KernelFeed(self.core, self.wires, options=MonitorOptions(**options))

    async def until(self, *heard):
        """Run the pump until the core has heard this."""
        self._at_hearing(heard)
        with anyio.fail_after(LIMIT):
            await self.feed.run(self.plate)

    def _at_hearing(self, wanted):
        earlier = self.core.on_hearing

        def hear(*heard):
            earlier(*heard)
            if heard[: len(wanted)] == wanted:
                self.feed.close()

        self.core.on_hearing = hear


def on_asyncio(body):
    asyncio.run(body(), debug=True)


@pytest.fixture(params=[on_asyncio, trio.run], ids=["asyncio", "trio"])
def run(request):
    return request.param


def test_after_a_send_the_channel_is_read_before_anything_is_waited_for(run):
    async def body():
        it = Pumping()

        def hear(*heard):
            drained = it.core.heard.count(("drained", 0))
            if heard == ("drained", 0) and drained == 1:
                it.core.next = [Send(0, b"a question that nobody answers")]
            elif drained == 2:
                it.feed.close()

        it.core.on_hearing = hear
        with anyio.fail_after(LIMIT):
            await it.feed.run(it.plate)
        assert it.core.heard == [("start",), ("opened", 0, True, 4096), ("drained", 0), ("drained", 0)]

    run(body)


def test_a_datagram_that_comes_later_wakes_the_pump(run):
    async def body():
        it = Pumping()

        def hear(*heard):
            if heard == ("drained", 0) and ("datagram", b"late", 0) not in it.core.heard:
                threading.Timer(0.02, it.wires.far[0].send, (b"late",)).start()

        it.core.on_hearing = hear
        await it.until("datagram", b"late", 0)

    run(body)


def test_the_end_of_a_channel_is_told_once_and_the_others_go_on(run):
    async def body():
        it = Pumping()
        it.core.next = [OpenChannel(0, 0), OpenChannel(1, 1)]

        def hear(*heard):
            if heard == ("drained", 1):
                it.wires.far[0].close()
            if heard == ("closed", 0):
                it.core.next = [Send(0, b"to nobody"), Send(1, b"and to somebody")]
                it.wires.far[1].send(b"still here")

        it.core.on_hearing = hear
        await it.until("datagram", b"still here", 1)
        assert it.core.heard.count(("closed", 0)) == 1
        assert not [heard for heard in it.core.heard if heard[0] == "failed"]

    run(body)


def test_a_channel_that_the_core_closes_is_not_read_any_more(run):
    async def body():
        it = Pumping()

        def hear(*heard):
            if heard[:2] == ("opened", 0):
                it.wires.far[0].send(b"never read")  # commands are carried out before anything is read

        it.core.on_hearing = hear
        it.core.next = [OpenChannel(0, 0), CloseChannel(0), OpenChannel(1, 1)]
        await it.until("drained", 1)
        assert not [heard for heard in it.core.heard if heard[0] in {"datagram", "closed"}]

    run(body)


def test_an_opening_that_fails_is_told_with_the_hosts_error_number(run):
    async def body():
        it = Pumping()
        it.wires.refusal = OSError(errno.EMFILE, "no descriptors")
        await it.until("failed", 0, errno.EMFILE)

    run(body)


def test_an_opening_that_is_explained_ends_the_run_with_that_explanation(run):
    async def body():
        it = Pumping()
        it.wires.refusal = BackendUnavailableError("kctl", UnavailableReason.PERMISSION, "a sandbox")

        def hear(*heard):
            if heard[0] == "failed":
                it.core.failure = BackendUnavailableError("kctl", UnavailableReason.MISSING, "some error")

        it.core.on_hearing = hear
        with pytest.raises(BackendUnavailableError, match="a sandbox"):
            await it.feed.run(it.plate)

    run(body)


def test_a_send_that_fails_is_told_and_the_pump_goes_on(run):
    async def body():
        it = Pumping()

        def hear(*heard):
            if heard[0] == "opened":
                it.core.next = [Send(7, b"to a channel that is not open"), Send(0, bytes(10_000_000))]
            if heard == ("failed", 0, errno.EMSGSIZE):
                it.wires.far[0].send(b"goes on")

        it.core.on_hearing = hear
        await it.until("datagram", b"goes on", 0)

    run(body)


def test_a_failed_core_ends_the_run_with_its_own_error_not_with_a_group(run):
    async def body():
        it = Pumping()

        def hear(*heard):
            if heard[0] == "opened":
                it.core.failure = RequestError("ADD_ALL_SRCS tcp", 1)
                it.core.events = [PollCompleted(0.0, 0, True)]

        it.core.on_hearing = hear
        with pytest.raises(RequestError):
            await it.feed.run(it.plate)
        assert len(it.plate.events) == 1, "what was known before the failure is delivered"
        assert it.wires.closed

    run(body)


def test_an_error_of_the_core_itself_comes_out_as_it_is(run):
    async def body():
        it = Pumping()

        def hear(*heard):
            if heard[0] == "opened":
                raise ZeroDivisionError

        it.core.on_hearing = hear
        with pytest.raises(ZeroDivisionError):
            await it.feed.run(it.plate)

    run(body)


def test_a_deadline_is_kept_and_a_request_from_outside_wakes(run):
    async def body():
        it = Pumping()

        def hear(*heard):
            if heard == ("drained", 0) and ("deadline",) not in it.core.heard:
                it.core.deadline = time.monotonic() + 0.02
            if heard == ("deadline",):
                it.feed.request_poll()

        it.core.on_hearing = hear
        await it.until("poll")
        assert it.core.heard[-2:] == [("deadline",), ("poll",)]

    run(body)


def test_look_ups_are_answered_from_another_thread_and_a_failed_one_with_its_reason(run):
    async def body():
        it = Pumping()
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

    run(body)


def test_a_kernel_that_never_stops_talking_leaves_other_tasks_their_turns(run, monkeypatch):
    monkeypatch.setattr(pump, "SLICE", 0.0005)

    async def body():
        it = Pumping()
        it.core.on_datagram = lambda data, channel: it.wires.far[0].send(data)
        turns = 0

        def hear(*heard):
            if heard[0] == "opened":
                for _ in range(pump.BATCH):
                    it.wires.far[0].send(b"again and again")

        it.core.on_hearing = hear

        async def other():
            nonlocal turns
            while turns < 20:
                turns += 1
                await anyio.lowlevel.checkpoint()
            it.feed.close()

        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other)
                await it.feed.run(it.plate)
        assert turns == 20
        assert len(it.core.heard) > 20

    run(body)


@pytest.mark.parametrize(("size", "most"), [(100, pump.BATCH), (32_768, 4), (200_000, 1)])
def test_of_large_datagrams_fewer_are_read_at_once(run, monkeypatch, size, most):
    """As many as fit into `BATCH_BYTES`: memory for more is taken from the system anew each time."""
    batches = []

    def read_into(_, batch, number):
        batches.append(number)
        batch += [bytes(size)] * number
        if len(batches) == 12:
            it.feed.close()
        return True

    async def body():
        nonlocal it
        it = Pumping()
        with anyio.fail_after(LIMIT):
            await it.feed.run(it.plate)

    it = None
    monkeypatch.setattr(SocketChannel, "read_into", read_into)
    monkeypatch.setattr(pump, "BATCH_SECONDS", 100.0)
    run(body)
    assert max(batches) == batches[-1] == most


@pytest.mark.parametrize(("has_news", "reads"), [(True, [64, 1, 1, 1]), (False, [1, 32, 16, 16])])
def test_a_slice_is_shared_among_channels(monkeypatch, has_news, reads):
    """The first ring may take all of it, another one half, channels equal parts of the rest; each has one batch at least."""
    clock, done = [100.0], [0, 0, 0, 0]
    monkeypatch.setattr(pump, "SLICE", 1.0)
    monkeypatch.setattr(pump, "time", SimpleNamespace(perf_counter=lambda: clock[0], monotonic=float, time=float))

    class Reader(SocketChannel):
        def read_into(self, batch, most):
            done[self.number] += 1
            if not self.number and not has_news:
                return False
            clock[0] += 1 / 64
            batch.append(b"and more")
            return True

    def connect(number):
        near, far = socket.socketpair()
        it.wires.far[number] = far
        channel = Reader(near, immediate=True, receive_buffer=None)
        channel.number, channel.rest = number, 1.0 if number < 2 else 0.0
        return channel

    async def body():
        nonlocal it
        it = Pumping()
        it.wires.open, it.core.next = connect, [OpenChannel(number, number) for number in (2, 0, 3, 1)]
        it.plate.room = room
        with anyio.fail_after(LIMIT):
            await it.feed.run(it.plate)

    async def room():
        await anyio.lowlevel.checkpoint()
        it.feed.close()

    it = None
    asyncio.run(body())
    assert done == reads
    assert it.feed.statistics()["longest_slice_us"] == int((clock[0] - 100.0) * 1e6)


@pytest.mark.parametrize("rest", [None, 5.0])
def test_for_its_rest_nobody_waits_for_a_channel(run, monkeypatch, rest):
    rests, waits = [], []
    wait_readable = anyio.wait_readable

    async def sleep(seconds):
        rests.append(seconds)
        await anyio.lowlevel.checkpoint()

    async def waited(channel):
        waits.append(len(rests))
        await wait_readable(channel)

    async def body():
        it = Pumping()

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

    run(body)


def test_a_channel_that_has_data_is_not_waited_for_again_before_it_was_read(run, monkeypatch):
    waits, wait_readable = [], anyio.wait_readable

    async def waited(channel):
        waits.append(channel)
        await wait_readable(channel)

    async def body():
        it = Pumping()
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

    run(body)


def test_of_a_channel_that_the_core_closes_nothing_is_left(run):
    async def body():
        it = Pumping()
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

    run(body)


def test_nobody_waits_longer_than_until_the_deadline(run, monkeypatch):
    delays = []

    def move_on_after(delay, **options):
        delays.append(delay)
        return move_on(delay, **options)

    async def body():
        it = Pumping()
        it.core.deadline = time.monotonic() + 0.02
        monkeypatch.setattr(pump.anyio, "move_on_after", move_on_after)
        await it.until("deadline")
        assert not delays or max(delays) <= 0.02

    move_on = anyio.move_on_after
    run(body)


def test_what_came_before_a_deadline_is_heard_before_it(run, monkeypatch):
    """Also by a loop that was held until then, so that nobody said the channel is readable."""
    monkeypatch.setattr(pump, "SLICE", LIMIT)  # however slow the machine is, one slice is enough

    async def body():
        it = Pumping()

        def hear(*heard):
            if heard == ("drained", 0) and ("datagram", b"in time", 0) not in it.core.heard:
                it.wires.far[0].send(b"in time")
                it.core.deadline = 0.0

        it.core.on_hearing = hear
        await it.until("deadline")
        assert it.core.heard[-2:] == [("drained", 0), ("deadline",)]
        assert ("datagram", b"in time", 0) in it.core.heard

    run(body)


def test_what_is_known_to_be_empty_is_read_once_more_at_a_deadline_and_not_reported_again(run):
    async def body():
        it = Pumping()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.feed.run, it.plate)
            await anyio.wait_all_tasks_blocked()
            before = it.feed.statistics()
            it.core.deadline = 0.0
            it.feed.wake()
            await anyio.wait_all_tasks_blocked()
            assert it.core.heard == [("start",), ("opened", 0, True, 4096), ("drained", 0), ("deadline",)]
            after = it.feed.statistics()
            assert (after["slices"], after["wakes"]) == (before["slices"] + 1, before["wakes"] + 1)
            it.feed.close()

    run(body)


def test_what_was_lost_before_it_could_be_read_is_reported_and_what_still_waits_is_read(run):
    async def body():
        it = Pumping()
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

    run(body)


def test_of_a_deadline_that_is_still_due_other_tasks_have_turns(run):
    """A core gives up what waits in slices: each is asked for at once, with a turn for the others between."""

    async def body():
        it = Pumping()
        turns = []

        def hear(*heard):
            if heard[0] in {"opened", "deadline"} and it.core.heard.count(("deadline",)) < 5:
                it.core.deadline = 0.0

        async def other():
            while True:
                turns.append(it.core.heard.count(("deadline",)))
                await anyio.lowlevel.checkpoint()

        it.core.on_hearing = hear
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(other)
                tasks.start_soon(it.feed.run, it.plate)
                while it.core.heard.count(("deadline",)) < 5:
                    await anyio.lowlevel.checkpoint()
                it.feed.close()
                tasks.cancel_scope.cancel()
        assert len(set(turns)) > 2, "all deadlines in one turn"
        assert it.feed.statistics()["slices"] >= 5

    run(body)


def test_a_sink_without_room_stops_the_reading_until_it_has_some(run):
    async def body():
        it = Pumping()
        it.plate.gate = anyio.Event()

        def hear(*heard):
            if heard == ("drained", 0) and it.core.heard.count(heard) == 1:
                it.wires.far[0].send(b"wait for room")

        it.core.on_hearing = hear
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(it.until, "datagram", b"wait for room", 0)
                while not it.plate.room_asked:
                    await anyio.sleep(0.001)
                await anyio.sleep(0.01)
                assert ("datagram", b"wait for room", 0) not in it.core.heard
                it.plate.gate.set()

    run(body)


def test_what_was_read_was_fed_and_delivered_when_a_cancellation_comes(run):
    async def body():
        it = Pumping()

        def take(data, channel):
            it.core.events.append(PollCompleted(float(len(it.core.heard)), 0, True))

        def hear(*heard):
            if heard[0] == "opened":
                for _ in range(5):
                    it.wires.far[0].send(b"x")

        it.core.on_datagram, it.core.on_hearing = take, hear
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(it.feed.run, it.plate)
            with anyio.fail_after(LIMIT):
                while len(it.plate.events) < 5:
                    await anyio.sleep(0)
            tasks.cancel_scope.cancel()
        assert len(it.plate.events) == [heard[0] for heard in it.core.heard].count("datagram") == 5
        assert it.wires.closed, "a cancelled pump releases its sockets"

    run(body)


def test_closing_twice_is_closing_once_and_closes_what_was_opened():
    it = Pumping()
    it.feed.close()
    it.feed.close()
    assert it.wires.closed >= 1


# --- what may fail beside the conversation ----------------------------------------------


def reports(it):
    return [(event.auxiliary, event.detail) for event in it.plate.events if isinstance(event, AuxiliaryFailed)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        (ZeroDivisionError("a bug of the transport"), "a bug of the transport"),
        (MemoryError(), "MemoryError"),
        (OSError(errno.ENOENT, "No such file", "/proc/1"), "/proc/1: No such file"),
        (OSError(errno.EMFILE, "Too many open files", "/proc/1"), "Too many open files"),
    ],
)
def test_whatever_a_look_up_raises_the_core_hears_why_and_the_consumer_once_until_it_worked(run, error, reason):
    async def body():
        it = Pumping()
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

    run(body)


def test_look_ups_of_two_kinds_fail_and_recover_apart(run):
    async def body():
        it = Pumping()
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

    run(body)


def test_a_thread_that_cannot_be_started_fails_the_look_up_and_nothing_else(run, monkeypatch):
    async def refused(ask, request, **_options):
        await anyio.lowlevel.checkpoint()
        if request == "works":
            return ask(request)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("anyio.to_thread.run_sync", refused)

    async def body():
        it = Pumping()
        it.core.next = [OpenChannel(0, 0), Lookup(1, "who"), Lookup(2, "who")]

        def hear(*heard):
            if heard[0] == "answer" and heard[1] in {2, 3}:
                it.core.next = [Lookup(heard[1] + 1, "works" if heard[1] == 2 else "who")]
            elif heard[:2] == ("answer", 4):
                it.wires.far[0].send(b"goes on")

        it.core.on_hearing = hear
        await it.until("datagram", b"goes on", 0)
        assert ("answer", 1, LookupFailed("no worker thread: can't start new thread")) in it.core.heard
        assert reports(it) == [(Auxiliary.THREAD, "can't start new thread")] * 2, "once until it worked"
        assert it.feed.statistics()["failed_thread"] == 3

    run(body)


def test_a_feed_that_is_closed_before_it_ran_lets_nobody_wait_for_its_subscription(run, monkeypatch):
    monkeypatch.setattr(pump, "SUBSCRIBE_SECONDS", 1e9)

    async def body():
        it = Pumping()
        it.feed.close()
        with anyio.fail_after(LIMIT):
            await it.feed.subscribed()

    run(body)


def test_a_turn_in_which_the_core_became_subscribed_ends_the_waiting_for_it(run, monkeypatch):
    monkeypatch.setattr(pump, "SUBSCRIBE_SECONDS", 1e9)

    async def body():
        it = Pumping()
        it.core.subscribed = False

        def hear(*heard):
            if heard[0] == "drained":
                it.core.subscribed = True

        it.core.on_hearing = hear
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(it.feed.run, it.plate)
                await it.feed.subscribed()
                assert it.core.subscribed
                tasks.cancel_scope.cancel()
        it.feed.close()

    run(body)


def test_events_follow_the_wall_clock_when_it_is_set(monkeypatch):
    wall, ahead = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: wall() + ahead[0])

    async def main():
        async with Monitor(backend=EmulatedKernel().backend(), interval=None) as monitor:
            stream, times = monitor.subscribe(), []
            before = wall()
            for ahead[0] in (0.0, 1e6):
                await monitor.poll_now()
                times.append(stream.receive_nowait()[-1].time)
            assert before - 1 < times[0] < wall() + 1
        assert 0.9e6 < times[1] - times[0] < 1.1e6

    anyio.run(main)


def test_a_feed_says_what_its_core_knows_and_its_figures_begin_at_zero():
    async def body():
        it = Pumping()
        it.core.flows = lambda: [("a flow", None)]
        it.core.statistics = lambda: {"wakes": 7, "of the core": 1}
        assert it.feed.capabilities is it.core.capabilities
        assert list(it.feed.flows()) == [("a flow", None)]
        figures = {f"failed_{auxiliary.value}": 0 for auxiliary in Auxiliary}
        figures |= {"of the core": 1, "wakes": 0, "slices": 0, "longest_slice_us": 0}
        assert it.feed.statistics() == figures
        it.core.on_hearing = lambda *heard: time.sleep(0.002)
        it.core.deadline = 0.0
        take, taken = it.core.take_events, []
        it.core.take_events = lambda: taken.append(1) or take()
        await it.until("deadline")
        figures = it.feed.statistics()
        assert figures["slices"] == len(taken)
        assert 2_000 <= figures["longest_slice_us"] < LIMIT * 1e6

    asyncio.run(body())


def test_a_pump_that_waits_for_nothing_is_woken_by_a_request_for_a_poll_and_ends_when_it_is_closed(run):
    async def body():
        it = Pumping()
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(it.feed.run, it.plate)
                await anyio.wait_all_tasks_blocked()
                waiting = it.feed.statistics()["wakes"]
                it.core.next = [Send(0, b"what a poll asks")]
                assert it.feed.request_poll() == 1
                await anyio.wait_all_tasks_blocked()
                assert it.wires.far[0].recv(100) == b"what a poll asks"
                assert it.feed.statistics()["wakes"] > waiting
                it.feed.close()  # and nobody cancels anything
        assert it.wires.closed >= 1

    run(body)


def test_who_always_has_work_waits_for_room_after_each_slice(run):
    async def body():
        class Busy(NoteBook):
            def next_deadline(self):
                return 0.0

        it = Pumping()
        busy = it.feed.core = Busy()
        busy.events = [PollCompleted(0.0, 0, True)]
        busy.on_hearing = lambda *heard: it.feed.close() if len(busy.heard) > 50 else None
        it.plate.gate = anyio.Event()
        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(it.feed.run, it.plate)
                while not it.plate.room_asked:
                    await anyio.sleep(0.001)
                heard = len(busy.heard)
                for _ in range(20):
                    await anyio.lowlevel.checkpoint()
                assert len(busy.heard) == heard < 50
                it.feed.close()
                it.plate.gate.set()

    run(body)


def test_an_error_without_a_number_is_the_number_0(run):
    async def body():
        it = Pumping()
        it.wires.refusal = OSError("odd")
        await it.until("failed", 0, 0)
        it = Pumping()
        it.core.next = [OpenChannel(0, 0), Send(0, b"x")]
        it.wires.open = lambda purpose, ends=it.wires.open: refusing(ends(purpose))
        await it.until("failed", 0, 0)

    def refusing(channel):
        def send(data):
            raise OSError("odd")

        channel.send = send
        return channel

    run(body)


@pytest.mark.parametrize(
    ("spent", "size", "after"),
    [
        (0.0, 0, 8),
        (0.45 * pump.BATCH_SECONDS, 0, 8),
        (pump.BATCH_SECONDS / 2, 0, 4),
        (pump.BATCH_SECONDS, pump.BATCH_BYTES, 4),
        (0.0, pump.BATCH_BYTES // 2, 8),
        (0.0, pump.BATCH_BYTES // 2 + 1, 4),
        (0.0, pump.BATCH_BYTES + 1, 2),
        (2 * pump.BATCH_SECONDS, 0, 2),
    ],
)
def test_how_many_datagrams_are_read_at_once_follows_from_what_the_last_ones_took(spent, size, after):
    async def body():
        near, far = socket.socketpair()
        with near, far:
            waiter = pump._Waiter(0, SocketChannel(near, immediate=True, receive_buffer=None), Pumping().feed)
            assert waiter.batch == 1
            waiter.adapt(spent, pump.BATCH_BYTES + 1)
            assert waiter.batch == 1, "one at least"
            waiter.batch = 4
            waiter.adapt(spent, size)
            assert waiter.batch == after
            for _ in range(9):
                waiter.adapt(0.0, 0)
            assert waiter.batch == pump.BATCH

    asyncio.run(body())

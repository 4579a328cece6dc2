"""A core that is a note-book and says what it is told to, on real sockets, for the tests of the pump."""

from __future__ import annotations

import socket

import anyio

from nstat_async import Capabilities
from nstat_async._contract import OpenChannel
from nstat_async._io.channel import SocketChannel
from nstat_async._io.pump import KernelFeed
from nstat_async._options import MonitorOptions

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

    def hearing(self, function):
        """Call this with what the core hears (a decorator)."""
        self.core.on_hearing = function
        return function

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

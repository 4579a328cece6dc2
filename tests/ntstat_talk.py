"""A session, and what a test says to it in the kernel's place."""

from __future__ import annotations

from ntstat_wire import Wire, address

from nstat_async import MonitorOptions, Provider
from nstat_async._contract import CloseChannel, Lookup, OpenChannel, Send
from nstat_async.ntstat import AddAllSources, DarwinErrno, GetDetails, GetUpdate, Session, decode_message, request_frame

TCP_UDP = {Provider.TCP, Provider.UDP}


class Talk:
    """A session, its clock and the other side of its sockets."""

    def __init__(
        self, kernel: str | int = 11, *, immediate: bool = True, receive_buffer=1 << 20, facts=None, **options
    ) -> None:
        self.wire = Wire(kernel)
        options = MonitorOptions(**{"providers": TCP_UDP, **options})
        self.core = Session(self.wire.kernel, options=options, **{"interfaces": {4: "en0"}, **(facts or {})})
        self.lookups: list[Lookup] | None = None if facts is None else []
        """Those that wait for an answer; `None`: each is answered by `None` at once."""
        self.now = 100.0
        self.immediate, self.receive_buffer = immediate, receive_buffer
        self.channels: list[int] = []
        self.closed: list[int] = []
        self.contexts: dict[int, list[int]] = {}
        self.last: dict[int, int] = {}
        self.probes = 0
        """Questions about numbers above all that were told; they are answered at once: there is none."""
        self.answers_probes = True
        self.core.start(self.now)

    def asked(self) -> list:
        """The requests since the last call; channels are opened and closed as wanted."""
        found = []
        while commands := self.core.commands():
            for command in commands:
                if isinstance(command, OpenChannel):
                    assert command.channel not in self.channels + self.closed
                    self.channels.append(command.channel)
                    self.core.channel_opened(
                        command.channel, self.now, immediate=self.immediate, receive_buffer=self.receive_buffer
                    )
                elif isinstance(command, CloseChannel):
                    self.channels.remove(command.channel)
                    self.closed.append(command.channel)
                elif isinstance(command, Lookup) and self.lookups is not None:
                    self.lookups.append(command)
                elif isinstance(command, Lookup):
                    self.core.lookup_done(command.token, None, self.now)  # no evidence to be had here
                else:
                    assert isinstance(command, Send)
                    frame = request_frame(command.data, has_lengths=self.wire.layout.has_lengths)
                    message = decode_message(self.wire.kernel, command.data, frame)
                    assert message.context != 0
                    if self.answers_probes and self._is_probe(command.channel, message):
                        self.probes += 1
                        refusal = self.wire.error(message.context, DarwinErrno.ENOENT)
                        self.core.receive_datagram(refusal, self.now, command.channel)
                        continue
                    self.last[command.channel] = message.context
                    found.append(message)
        return found

    def _is_probe(self, channel: int, message) -> bool:
        known = self.core._sockets.find(channel).table.sources
        return (
            type(message) in {GetUpdate, GetDetails}
            and max(known, default=0) < message.srcref < self.wire.layout.all_sources
        )

    def answer(self, *datagrams, channel: int | None = None) -> list:
        """Deliver, and say what is asked next."""
        for entry in datagrams:
            for datagram in entry if isinstance(entry, list) else [entry]:
                self.core.receive_datagram(datagram, self.now, self.channels[-1] if channel is None else channel)
        return self.asked()

    def found(self, answer) -> list:
        """Answer the oldest look-up, and say what is asked next."""
        self.core.lookup_done(self.lookups.pop(0).token, answer, self.now)
        return self.asked()

    def refuse(self, requests: list, number: int = DarwinErrno.ENOENT, *, channel: int | None = None) -> list:
        """Answer each of these requests with an error; what is asked next."""
        return self.answer(*(self.wire.error(request.context, number) for request in requests), channel=channel)

    def drained(self, channel: int | None = None) -> list:
        self.core.channel_drained(self.channels[-1] if channel is None else channel, self.now)
        return self.asked()

    def later(self, seconds: float) -> list:
        self.now += seconds
        deadline = self.core.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.core.handle_deadline(self.now)
        return self.asked()

    def due(self) -> list:
        """Let time pass to the next deadline."""
        deadline = self.core.next_deadline()
        assert deadline is not None
        return self.later(max(0.0, deadline - self.now) + 1e-6)

    def events(self, *kinds: type) -> list:
        return [e for e in self.core.take_events() if not kinds or isinstance(e, kinds)]

    def subscribe(self) -> list:
        """Grant everything; the requests of the first poll are left open."""
        granted: list = []
        self.open_poll = self.grant(self.asked(), granted)
        return granted

    def grant(self, requests: list, granted: list | None = None) -> list:
        """Grant one subscription after the other; the requests that follow."""
        while requests and isinstance(requests[0], AddAllSources):
            if granted is not None:
                granted += requests
            requests = self.answer(self.wire.success(requests[0].context))
        return requests

    def reopen(self) -> list:
        """The control goes away at once and is open again, on channel 1; the requests of its first poll."""
        self.core.channel_closed(0, self.now)
        return self.grant(self.due())

    def report(self, ref: int, rx: int = 1, **fields):
        fields = {"local": address("192.0.2.1", 1000 + ref), "remote": address("192.0.2.9", 443), "state": 4, **fields}
        return self.wire.report(ref, self.wire.counts(rx, rx), self.wire.descriptor(2, **fields), context=0)

    def poll(self, *refs: int, rx: int = 1) -> list:
        """Answer the open poll with these sources; the result is what is asked next."""
        (request,) = self.open_poll
        data = [datagram for ref in refs for datagram in self.report(ref, rx)]
        return self.answer(data, self.wire.success(request.context))

    def next_poll(self, *refs: int, rx: int = 1) -> list:
        self.open_poll = self.due()
        return self.poll(*refs, rx=rx)


def subscribed(*arguments, **options) -> Talk:
    """One to whom all was granted: its first poll is open."""
    talk = Talk(*arguments, **options)
    talk.subscribe()
    return talk

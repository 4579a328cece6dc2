"""A backend of your own, with public names only: a core, its transport, and a toy kernel to watch.

The toy kernel speaks JSON over UDP: ``list`` is answered by one datagram for each flow and one
that ends the list; a flow that ends is reported without being asked for.

Run: ``python examples/own_backend.py``
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import anyio
import attrs

from nstat_async import (
    AnyEvent,
    BackendUnavailableError,
    Capabilities,
    Counts,
    EventsLost,
    Flow,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    LossCause,
    Monitor,
    MonitorOptions,
    NstatError,
    PollCompleted,
    Process,
    Provider,
    RemovalReason,
    UnavailableReason,
)
from nstat_async.backends import Channel, Command, Feed, KernelFeed, OpenChannel, Send, SocketChannel

PATIENCE = 1.0
"""Seconds that an answer may take."""


@attrs.frozen
class ToySetup:
    """What the core was made of, for whoever records it."""

    protocol: ClassVar[str] = "toy"
    kernel: str = "toy-1"


class ToyCore:
    """The logic: datagrams and the time go in, events and commands come out. A `Core`."""

    def __init__(self, interval: float | None) -> None:
        self.setup = ToySetup()
        self.epoch_offset = 0.0
        self.failure: NstatError | None = None
        self.capabilities = Capabilities(backend="toy", final_counts=True)
        self.subscribed = False
        self._interval = interval
        self._flows: dict[int, tuple[Flow, Counts]] = {}
        self._commands: list[Command] = []
        self._events: list[AnyEvent] = []
        self._serial = 0
        self._seen: set[int] | None = None  # by the poll under way
        self._wanted = False  # one more poll, after the one under way
        self._deadline: float | None = None

    # --- in ---------------------------------------------------------------------

    def start(self, now: float) -> None:
        self._commands.append(OpenChannel(0, "toy"))  # the first poll begins when it is open

    def channel_opened(self, channel: int, now: float, *, immediate: bool, receive_buffer: int | None) -> None:
        self._poll(now)

    def receive_datagrams(self, datagrams: Sequence[bytes], now: float, channel: int) -> None:
        for data in datagrams:
            try:
                self._apply(json.loads(data), now)
            except (ValueError, KeyError, TypeError) as error:
                self._emit(EventsLost(self._time(now), LossCause.PROTOCOL, 1, detail=repr(error)))

    def channel_drained(self, channel: int, now: float) -> None:
        """Nothing: this kernel says when a list is complete."""

    def channel_failed(self, channel: int, errno: int, now: float) -> None:
        self.failure = BackendUnavailableError("toy", UnavailableReason.MISSING, f"no answer: error {errno}")

    def channel_closed(self, channel: int, now: float) -> None:
        self.channel_failed(channel, 0, now)

    def lookup_done(self, token: int, answer: Any, now: float) -> None:
        """Nothing is looked up."""

    def handle_deadline(self, now: float) -> None:
        if self._seen is not None:
            self._complete(now, complete=False)
        else:
            self._poll(now)

    def request_poll(self, now: float) -> int:
        if self._seen is not None:
            self._wanted = True  # part of what is under way is older than this call
        else:
            self._deadline = now
        return self._serial + 1

    # --- out --------------------------------------------------------------------

    def commands(self) -> list[Command]:
        commands, self._commands = self._commands, []
        return commands

    def take_events(self) -> list[AnyEvent]:
        events, self._events = self._events, []
        return events

    def next_deadline(self) -> float | None:
        return self._deadline

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        return list(self._flows.values())

    def statistics(self) -> dict[str, int]:
        return {"polls": self._serial}

    # --- meaning ------------------------------------------------------------------

    def _time(self, now: float) -> float:
        return now + self.epoch_offset

    def _emit(self, event: AnyEvent) -> None:
        self._events.append(event)

    def _poll(self, now: float) -> None:
        self._serial += 1
        self._seen, self._wanted = set(), False
        self._deadline = now + PATIENCE
        self._commands.append(Send(0, b"list"))

    def _apply(self, said: dict[str, Any], now: float) -> None:
        if said.get("end"):
            if self._seen is not None:
                for number in self._flows.keys() - self._seen:
                    self._remove(number, self._flows[number][1], now, final=False)
                self._complete(now, complete=True)
            return
        number, counts = int(said["flow"]), Counts(rx_bytes=int(said["rx"]), tx_bytes=int(said["tx"]))
        if said.get("over"):
            if number in self._flows:
                self._remove(number, counts, now, final=True)
        else:
            self._report(number, said, counts, now)

    def _report(self, number: int, said: dict[str, Any], counts: Counts, now: float) -> None:
        flow, previous = self._flows.get(number, (None, None))
        if flow is None:
            process = Process(int(said["pid"]), str(said["name"]))
            flow = Flow(str(number), Provider.TCP, process=process)
            self._emit(FlowAdded(self._time(now), flow, counts, preexisting=not self.subscribed))
        elif counts != previous:
            self._emit(FlowUpdated(self._time(now), flow, counts, previous))
        self._flows[number] = flow, counts
        if self._seen is not None:
            self._seen.add(number)

    def _remove(self, number: int, counts: Counts, now: float, *, final: bool) -> None:
        flow, _ = self._flows.pop(number)
        reason = RemovalReason.CLOSED if final else RemovalReason.GONE
        self._emit(FlowRemoved(self._time(now), flow, counts, final, reason))

    def _complete(self, now: float, *, complete: bool) -> None:
        self.subscribed = True
        self._seen = None
        self._emit(PollCompleted(self._time(now), len(self._flows), complete, self._serial))
        pause = 0.0 if self._wanted else self._interval
        self._deadline = None if pause is None else now + pause


class ToyTransport:
    """The sockets: opens what the core asks for. A `Transport`."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def open(self, purpose: Any) -> Channel:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            sock.connect(self._address)
        except BaseException:
            sock.close()
            raise
        return SocketChannel(sock, immediate=False, receive_buffer=None)

    def lookup(self, request: Any) -> Any:
        return None

    def close(self) -> None:
        """Nothing: the channels are closed by whoever opened them."""


class Toy:
    """The value that `Monitor(backend=…)` takes. A `Backend`."""

    name = "toy"

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address

    def open(self, options: MonitorOptions) -> Feed:
        core, transport = ToyCore(options.interval), ToyTransport(self._address)
        return KernelFeed(core, transport, options=options)


# --- a kernel to try it on ---------------------------------------------------------------


class ToyKernel:
    """Answers on a UDP socket, in a thread."""

    def __init__(self) -> None:
        self.flows: dict[int, dict[str, Any]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        self._clients: set[Any] = set()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def open(self, number: int, name: str, rx: int = 0, tx: int = 0) -> None:
        self.flows[number] = {"flow": number, "pid": number, "name": name, "rx": rx, "tx": tx}

    def end(self, number: int) -> None:
        said = json.dumps({**self.flows.pop(number), "over": True}).encode()
        for client in self._clients:
            self._socket.sendto(said, client)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stop:
            stop.sendto(b"stop", self.address)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while (got := self._socket.recvfrom(100))[0] != b"stop":
            self._clients.add(got[1])
            for said in (*list(self.flows.values()), {"end": True}):
                self._socket.sendto(json.dumps(said).encode(), got[1])


async def main() -> None:
    kernel = ToyKernel()
    kernel.open(7, "curl", rx=100)
    async with Monitor(backend=Toy(kernel.address), interval=0.1) as monitor:
        kernel.flows[7]["rx"] = 2_500
        await monitor.poll_now()
        kernel.end(7)
        async for event in monitor:
            if isinstance(event, FlowRemoved):
                assert event.flow.process is not None
                assert event.counts is not None
                print(f"{event.flow.process.name} received {event.counts.rx_bytes:,} bytes")
                break
    kernel.close()


if __name__ == "__main__":
    anyio.run(main)

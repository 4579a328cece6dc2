"""A Darwin kernel that speaks well, and then does something odd."""

from __future__ import annotations

import functools
import struct
from functools import partial
from typing import Any

from choices import NUMBERS, Choices, flows_of, is_thorough, looked_at, without_speedups
from lives import Lives
from ntstat_wire import NEWEST_OF_LAYOUT, Wire, address

from nstat_async import MonitorOptions
from nstat_async._contract import CloseChannel, Lookup, LookupFailed, Mode, OpenChannel, Send
from nstat_async.ntstat import (
    FindPaths,
    InterfacesRead,
    Ledger,
    LedgerRow,
    PathsFound,
    ReadInterfaces,
    ReadLedger,
    Session,
    _decoder,
)

KERNELS = [Wire(version) for version in NEWEST_OF_LAYOUT.values()]
REFERENCES = (1, 2, 3, 4, 5, 6, 0, 1 << 32, (1 << 64) - 1, (1 << 64) - 2)


def _open(core: Any, channel: int, now: float) -> None:
    core.channel_opened(channel, now, immediate=True, receive_buffer=1 << 16)


@functools.cache
def _descriptor(wire: Wire, provider: int, pid: int, remote: str | None) -> bytes:
    fields: dict[str, Any] = {"local": address("192.0.2.1", 1000), "remote": address(remote, 443), "pid": pid}
    if "state" in wire.layout["nstat_tcp_descriptor"] and provider == wire.tcp:
        fields["state"] = 4
    return wire.descriptor(provider, **fields)


class _Darwin:
    """A session, or two, on one kernel that answers as the choices say."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.wire = choices.pick(KERNELS)
        flags = choices.byte()
        following, thorough = bool(flags & 1), is_thorough(flags)
        options = MonitorOptions(every_update=bool(flags & 2), extras=bool(flags & 4) and not following)
        mode = Mode.FOLLOWING if following else Mode.DRIVING
        make = partial(Session, self.wire.kernel, options=options, mode=mode)
        self.core, self.pure = make(), make() if thorough else None
        self.lives, self.now, self.inputs = Lives(look=thorough), 1_000.0, 0
        self.channels: list[int] = []
        self.contexts = [0]
        self.lookups: list[Lookup] = []
        self.counters: dict[int, list[int]] = {}
        wide = self.wire.layout["nstat_msg_src_counts"].by_name["srcref"].size == 8
        self.references = REFERENCES if wide else tuple(ref & 0xFFFFFFFF for ref in REFERENCES)
        self.both(lambda core: core.start(self.now))

    def both(self, act: Any) -> None:
        """Do this to both, and see that they do the same."""
        act(self.core)
        events, commands = self.core.take_events(), self.core.commands()
        if self.pure is not None:
            with without_speedups(_decoder):
                act(self.pure)
                assert looked_at(events) == looked_at(self.pure.take_events()), "the C code reports something else"
                assert commands == self.pure.commands()
        self.lives.check(events)
        self._carry_out(commands)

    def _carry_out(self, commands: list[Any]) -> None:
        for command in commands:
            if isinstance(command, Send):
                self.contexts.append(struct.unpack_from("<Q", command.data)[0])
            elif isinstance(command, OpenChannel):
                self.channels.append(command.channel)
                opened = partial(_open, channel=command.channel, now=self.now)
                self.both(opened)
            elif isinstance(command, CloseChannel):
                self.channels = [channel for channel in self.channels if channel != command.channel]
            elif isinstance(command, Lookup):
                self.lookups.append(command)

    def step(self) -> None:
        """Whatever comes next."""
        choices, now = self.choices, self.now
        channel = choices.pick(self.channels) if self.channels else 0
        what = choices.byte() % 16
        if what < 10:
            datagrams = [self.datagram() for _ in range(1 + choices.byte() % 3)]
            self.both(lambda core: core.receive_datagrams(datagrams, now, channel))
        elif what == 10:
            self.both(lambda core: core.channel_drained(channel, now))
        elif what == 11:
            self.both(lambda core: core.request_poll(now))
        elif what == 12:
            errno = choices.pick((55, 12, 35, 6))
            self.both(lambda core: core.channel_failed(channel, errno, now))
        elif what == 13 and self.lookups:
            lookup = choices.pick(self.lookups)  # some are answered twice
            answer = self.answer(lookup.request)
            self.both(lambda core: core.lookup_done(lookup.token, answer, now))
        elif what == 14 and choices.rarely():
            self.both(lambda core: core.channel_closed(channel, now))
        else:
            self.now += choices.pick((0.01, 1.0, 5.0))
            due = self.core.next_deadline()
            if due is not None and due <= self.now:
                self.both(lambda core: core.handle_deadline(self.now))

    def answer(self, request: Any) -> Any:
        """What a look-up finds, or a recording says that it found."""
        choices = self.choices
        number = choices.pick(NUMBERS)
        if choices.rarely():
            return LookupFailed("no")
        if isinstance(request, FindPaths):
            pids = request.pids[: choices.byte()]
            return PathsFound(pids, tuple(choices.pick(("/bin/a", "", None)) for _ in pids))
        if isinstance(request, ReadLedger):
            return Ledger((LedgerRow(choices.byte() % 4, number, choices.byte()),), choices.pick((None, number)))
        if isinstance(request, ReadInterfaces):
            names = ((choices.byte() % 3, choices.pick(("en0", "utun1", "lo0"))),)
            return InterfacesRead(((choices.byte() % 3, number, choices.pick(NUMBERS)),), names)
        return None

    def datagram(self) -> bytes:
        """A datagram of some messages, whole or cut."""
        self.inputs += 1
        many = 1 + self.choices.byte() % 5 if self.wire.layout.has_lengths else 1
        data = b"".join(self.message() for _ in range(many))
        return data[: -self.choices.byte() or None] if self.choices.rarely() else data

    def message(self) -> bytes:
        """One message, mostly a report that a poll asked for."""
        choices, wire = self.choices, self.wire
        ref, context = choices.pick(self.references), choices.pick(self.contexts) if choices.rarely() else 0
        flags = choices.pick((0, 1, 2, 4, 8, 16, 32)) if choices.rarely() else 0
        what = choices.byte() % 16
        if what == 0:
            return wire.added(ref, choices.pick((2, 3, 4, 5, 99)), context=context)
        if what == 1:
            return wire.removed(ref, flags)
        if what == 2:
            return wire.success(choices.pick(self.contexts), flags)
        if what == 3:
            return wire.error(choices.pick(self.contexts), choices.pick((2, 5, 12, 55)))
        provider = wire.udp if choices.rarely() else wire.tcp
        if what == 4:
            return wire.described(ref, self.descriptor(provider), provider=provider, context=context, flags=flags)
        if what < 8 or not wire.kernel.has_updates:
            return wire.counted(ref, self.counts(ref), context=context, flags=flags)
        return wire.updated(
            ref, self.counts(ref), self.descriptor(provider), provider=provider, context=context, flags=flags
        )

    def counts(self, ref: int) -> bytes:
        """Counters that stay, grow, or are anything."""
        rx, tx = self.counters.setdefault(ref, [0, 0])
        if self.choices.rarely():
            rx, tx = self.choices.pick(NUMBERS), self.choices.pick(NUMBERS)
            return self.wire.counts(
                rx, tx, rxpackets=rx, txpackets=tx, txretransmit=self.choices.pick(NUMBERS) & 0xFFFFFFFF
            )
        growth = self.choices.pick((0, 0, 1, 1000))
        self.counters[ref] = [rx + growth, tx + growth]
        return self.wire.counts(rx + growth, tx + growth)

    def descriptor(self, provider: int) -> bytes:
        """A descriptor, mostly the same, sometimes longer or shorter."""
        pid, remote = 42, "198.51.100.1"
        if self.choices.rarely():
            pid, remote = self.choices.pick((0, 42, 43)), self.choices.pick((None, "::1", "198.51.100.2"))
        data = _descriptor(self.wire, provider, pid, remote)
        if self.choices.rarely():
            data = self.choices.pick((data + bytes(8), data[:-4], data[: len(data) // 2], data + bytes(48)))
        return data


def reports(data: bytes) -> int:
    """A Darwin kernel that reports plain things and odd ones."""
    choices = Choices(data)
    machine = _Darwin(choices)
    while not choices.over and machine.core.failure is None:
        machine.step()
    flows = flows_of(machine.core)
    assert set(flows) == machine.lives.open
    if machine.pure is not None:
        assert flows == flows_of(machine.pure)
        assert machine.core.statistics() == machine.pure.statistics()
    return machine.inputs

"""The Linux core: evidence of sockets in, events and commands out.

A poll gathers (every namespace dumps its sockets, absences are looked into), searches for the
processes of new sockets and announces them, and is complete:

    SETUP ──▶ GATHERING ──▶ ANNOUNCING ──▶ IDLE ──▶ GATHERING …

Whatever waits ends by itself or by its deadline. Removals, changes of addresses and owners are
taken in at any time. A new flow is announced when its process is found, or known not to be found
soon, so that `FlowAdded` has it; one that ends before is announced then.
"""

from __future__ import annotations

import enum
import errno as errors
from collections.abc import Callable, Iterable, Iterator, Sequence

from .._contract import Command, Mode
from .._errors import BackendUnavailableError, NstatError, ProtocolError, UnavailableReason, UsageError
from .._events import AnyEvent, PollCompleted
from .._model import Capabilities, Counts, Flow, Process, Provider, Visibility
from .._options import MonitorOptions
from ._constants import IPPROTO_TCP, IPPROTO_UDP
from ._dumps import KINDS, first_request, split_sequence
from ._entry import Entry
from ._links import LinkKindsAnswer
from ._namespace import Namespace
from ._output import Output
from ._owners import OwnersAnswer, OwnerSource
from ._purpose import NetworkNamespace, Role, place_of_channel
from ._schedule import Schedule
from ._setup import Setup
from ._source import Source

OWNERS_PATIENCE = 0.25
"""Seconds that new flows wait for their process."""
FIRST_OWNERS_PATIENCE = 3.0
"""The same in the first poll, which finds all sockets of the machine."""
ANNOUNCED_AT_ONCE = 256
"""Flows announced in one step, about 2 ms."""
MAX_NAMESPACES = 64
"""Namespaces that a followed recording may have."""

_PROTOCOLS = {Provider.TCP: IPPROTO_TCP, Provider.UDP: IPPROTO_UDP}


class _Stage(enum.Enum):
    SETUP = enum.auto()
    GATHERING = enum.auto()
    ANNOUNCING = enum.auto()
    IDLE = enum.auto()


class Session:
    """The logic of one sock_diag subscription: no sockets, no clock.

    Args:
        options: What to watch and how; `None` for the defaults.
        namespaces: The network namespaces. The transport knows them by their place here.
        kernel: The kernel's release, for `capabilities`.
        processes: Whose processes the transport can name.
        mode: `Mode.FOLLOWING`: nothing is sent, a recorded client's requests are observed.

    Raises:
        UsageError: None of the providers asked for exists on Linux.
    """

    def __init__(
        self,
        options: MonitorOptions | None = None,
        *,
        namespaces: Sequence[NetworkNamespace] = (NetworkNamespace(),),
        kernel: str | None = None,
        processes: Visibility = Visibility.UNKNOWN,
        mode: Mode = Mode.DRIVING,
    ) -> None:
        self._options = options or MonitorOptions()
        self.setup = Setup(kernel=kernel, namespaces=tuple(namespaces), processes=processes)
        """What it was made of, beside the options."""
        self._output = Output(mode)
        wanted = _PROTOCOLS if self._output.following else self._options.providers
        self._protocols = [number for provider, number in _PROTOCOLS.items() if provider in wanted]
        if not self._protocols:
            raise UsageError("providers: sock_diag has tcp and udp only")
        self._owners = OwnerSource(self._output, self._learn_owner, self._entries)
        self._schedule = Schedule(None if self._output.following else self._options.interval)
        self._stage = _Stage.IDLE if self._output.following else _Stage.SETUP
        self._patience_ends = 0.0
        self._namespaces: list[Namespace] = []
        self._sources: dict[int, Source] = {}
        """All sources of evidence, by channel."""
        for namespace in namespaces:
            self._add_namespace(namespace)

    @classmethod
    def from_setup(cls, setup: Setup, options: MonitorOptions) -> Session:
        """The session that has this `setup`.

        Raises:
            UsageError: None of the providers asked for exists on Linux.
        """
        return cls(options, namespaces=setup.namespaces, kernel=setup.kernel, processes=setup.processes)

    def _add_namespace(self, identity: NetworkNamespace) -> None:
        namespace = Namespace(
            self._output,
            len(self._namespaces),
            identity,
            self._owners,
            self._protocols,
            every_update=self._options.every_update,
            extras=self._options.extras,
        )
        self._namespaces.append(namespace)
        self._sources.update((source.channel, source) for source in namespace.sources)

    # -- the contract: state

    @property
    def epoch_offset(self) -> float:
        """Add it to ``now`` for seconds since the epoch."""
        return self._output.epoch_offset

    @epoch_offset.setter
    def epoch_offset(self, value: float) -> None:
        self._output.epoch_offset = value

    @property
    def failure(self) -> NstatError | None:
        """Why the subscription cannot go on, once it cannot."""
        output = self._output
        if output.failure is None and self._options.strict and output.malformed is not None:
            output.failure = ProtocolError(output.malformed)
        return output.failure

    @property
    def subscribed(self) -> bool:
        """True from the start: the channels join their multicast groups when they are opened."""
        return True

    @property
    def capabilities(self) -> Capabilities:
        """What is known by now about what this subscription can tell."""
        removals = [namespace.removals for namespace in self._namespaces]
        reported = all(source.is_open for source in removals)
        answered = {KINDS[index].protocol for ns in self._namespaces for index in ns.dumps.answered}
        return Capabilities(
            backend="sock_diag",
            kernel=self.setup.kernel,
            providers=frozenset(provider for provider, number in _PROTOCOLS.items() if number in answered),
            tcp_counts=IPPROTO_TCP in self._protocols,
            udp_counts=False,
            final_counts=reported,
            short_lived=reported,
            flows=Visibility.ALL,
            processes=self.setup.processes,
            receive_buffer=min((s.receive_buffer for s in removals if s.receive_buffer is not None), default=None),
            notes=(*self._remarks(), *self._output.notes),
        )

    def _remarks(self) -> Iterator[str]:
        if self._owners.failure is not None:
            yield f"processes are unknown: {self._owners.failure}"
        if Provider.UDP in self._options.providers:
            yield "the kernel keeps no byte counters of UDP sockets"
        if self.setup.processes is Visibility.OWN:
            yield "processes of other users cannot be named: that needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
        yield "a flow that began and ended between two polls has no process"

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The open flows that were reported as added, with their last counts."""
        for namespace in self._namespaces:
            yield from namespace.book.flows()

    def statistics(self) -> dict[str, int]:
        """Counters about the subscription itself, by name."""
        return {
            "polls": self._output.poll,
            "reports": sum(namespace.dumps.rows for namespace in self._namespaces),
            "flows": self._open_flows(),
            "unresolved_owners": self._owners.unresolved,
            "unanswered_lookups": sum(namespace.lookups.unanswered for namespace in self._namespaces),
            **self._output.counters,
        }

    def _open_flows(self) -> int:
        return sum(len(namespace.book) for namespace in self._namespaces)

    # -- the contract: input

    def start(self, now: float) -> None:
        """Begin to subscribe."""
        self._output.now = now
        if not self._output.following:
            for source in self._sources.values():
                source.open()

    def receive_datagrams(self, datagrams: Sequence[bytes], now: float, channel: int) -> None:
        """Take in datagrams of the kernel, in order."""
        self._turn(now)
        source = self._source(channel)
        if source is None:
            self._output.count("stray_datagrams", len(datagrams))
            return
        for data in datagrams:
            try:
                source.receive(data)
            except ProtocolError as error:
                self._output.reject(error.reason)
        self._proceed()

    def receive_datagram(self, data: bytes, now: float, channel: int = 0) -> None:
        """Take in one datagram of the kernel."""
        self.receive_datagrams((data,), now, channel)

    def channel_opened(self, channel: int, now: float, *, immediate: bool, receive_buffer: int | None) -> None:
        """A channel is open."""
        del immediate  # netlink always answers inside send
        self._tell(channel, now, lambda source: source.opened(receive_buffer))

    def channel_drained(self, channel: int, now: float) -> None:
        """Nothing is readable now."""
        self._tell(channel, now, lambda source: source.drained())

    def channel_failed(self, channel: int, errno: int, now: float) -> None:
        """Opening, sending or receiving failed."""
        self._tell(channel, now, lambda source: source.failed(errno))

    def _tell(self, channel: int, now: float, what: Callable[[Source], None]) -> None:
        self._turn(now)
        source = self._source(channel)
        if source is not None:
            what(source)
        self._proceed()

    def channel_closed(self, channel: int, now: float) -> None:
        """A netlink socket has no other side that could close it: taken as a failure."""
        self.channel_failed(channel, errors.EBADF, now)

    def lookup_done(self, token: int, answer: object, now: float) -> None:
        """The answer to a look-up, or what says that there is none."""
        self._turn(now)
        if not self._output.following:
            self._output.take_answer(token, answer)
        elif isinstance(answer, OwnersAnswer):
            self._owners.take(answer)
        elif isinstance(answer, LinkKindsAnswer) and 0 <= answer.namespace < len(self._namespaces):
            self._namespaces[answer.namespace].addresses.take_kinds(answer)
        self._proceed()

    def request_poll(self, now: float) -> int:
        """Ask for one poll of everything as soon as possible; the serial of the first that begins after this call."""
        self._turn(now)
        serial = self._output.poll + 1
        if self._stage is not _Stage.IDLE:
            self._schedule.want()
        elif not self._output.following:
            self._begin_poll(serial)
        return serial

    def _source(self, channel: int) -> Source | None:
        if self._output.following:
            number, _ = place_of_channel(channel)
            while len(self._namespaces) <= number < MAX_NAMESPACES:
                self._add_namespace(NetworkNamespace(str(len(self._namespaces))))
        return self._sources.get(channel)

    def _turn(self, now: float) -> None:
        """It is `now`; when a recording decides, its times are the only ones that deadlines see."""
        self._output.now = now
        if self._output.following:
            while (due := self.next_deadline()) is not None and due <= now:
                self._expire(now)

    def _learn_owner(self, entry: Entry, owner: Process) -> None:
        self._namespaces[entry.namespace].book.learn_owner(entry, owner)

    def _entries(self) -> Iterator[Entry]:
        for namespace in self._namespaces:
            yield from namespace.book.entries.values()

    # -- following a recording

    def observe_request(self, data: bytes, now: float, channel: int = 0) -> None:
        """Following: take in one datagram that the recorded client sent."""
        self._turn(now)
        source = self._source(channel)
        if source is None:
            return
        request = first_request(data) if source.purpose.role is Role.DUMPS else None
        if request is not None and request.dump:
            poll = split_sequence(request.sequence)[0]
            if self._stage is not _Stage.GATHERING or poll != self._output.poll:
                self._finish_poll()
                self._begin_poll(poll)
            self._namespaces[source.purpose.namespace].dumps.follow(request)
            return
        try:
            source.observe(data)
        except ProtocolError as error:
            self._output.reject(error.reason)

    def finish(self, now: float) -> None:
        """Following: the recording is at its end; what was still expected will not come."""
        self._turn(now)
        self._finish_poll()

    def _finish_poll(self) -> None:
        self._owners.give_up()
        for namespace in self._namespaces:
            if not namespace.dumps.done:
                namespace.dumps.abort()
            namespace.lookups.expire()
        while self._stage is not _Stage.IDLE:
            self._proceed()

    # -- the contract: output

    def commands(self) -> list[Command]:
        """What to do now, in this order."""
        for source in self._sources.values():
            source.flush()
        taken, self._output.commands = self._output.commands, []
        return [] if self._output.following else taken

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""
        taken, self._output.events = self._output.events, []
        return taken

    def next_deadline(self) -> float | None:
        """When `handle_deadline` wants to be called."""
        times = [source.deadline() for source in self._sources.values()]
        if self._stage is _Stage.IDLE:
            times.append(self._schedule.due)
        elif self._stage is _Stage.ANNOUNCING:
            times.append(self._output.now if self._announceable else self._patience_ends)
        return min((time for time in times if time is not None), default=None)

    def handle_deadline(self, now: float) -> None:
        """The time has come (or passed)."""
        self._output.now = now
        self._expire(now)

    def _expire(self, now: float) -> None:
        for source in self._sources.values():
            due = source.deadline()
            if due is not None and due <= now:
                source.expire()
        due = self._schedule.due
        if self._stage is _Stage.IDLE and due is not None and due <= now:
            self._begin_poll(self._output.poll + 1)
        self._proceed()

    # -- polls

    def _proceed(self) -> None:
        """Go on as far as possible without waiting."""
        if self._output.repair_wanted:
            self._output.repair_wanted = False
            self._want_repair()
        if self._stage is _Stage.SETUP and all(namespace.settled for namespace in self._namespaces):
            self._begin_poll(1)
        if self._stage is _Stage.GATHERING and all([namespace.gather() for namespace in self._namespaces]):  # noqa: C419 - each must look into its absences
            self._search()
        if self._stage is _Stage.ANNOUNCING:
            self._announce()

    def _want_repair(self) -> None:
        if self._output.following:  # the recorded client asked for its repair itself
            return
        if self._stage is _Stage.IDLE:
            self._schedule.repair(self._output.now)
        else:
            self._schedule.want()

    def _begin_poll(self, serial: int) -> None:
        self._output.poll = serial
        self._schedule.begin(self._output.now)
        self._stage = _Stage.GATHERING
        for namespace in self._namespaces:
            namespace.begin_poll()
        if all(namespace.dumps.all_refused for namespace in self._namespaces):
            self._output.failure = BackendUnavailableError(
                "sock_diag", UnavailableReason.MISSING, "the kernel has no inet_diag (CONFIG_INET_DIAG)"
            )

    def _search(self) -> None:
        """The book is up to date but for the owners of new sockets."""
        for namespace in self._namespaces:
            namespace.end_poll()
        self._owners.search()
        patience = FIRST_OWNERS_PATIENCE if self._output.first_poll else OWNERS_PATIENCE
        self._patience_ends = self._output.now + patience
        self._stage = _Stage.ANNOUNCING

    @property
    def _searched(self) -> bool:
        """True when new flows need not wait for their process any longer."""
        return not self._owners.searching or self._output.now >= self._patience_ends

    @property
    def _announceable(self) -> bool:
        return any(ns.book.ready or (ns.book.waiting and self._searched) for ns in self._namespaces)

    def _announce(self) -> None:
        left = ANNOUNCED_AT_ONCE
        for namespace in self._namespaces:
            left -= namespace.book.announce_next(left, searched=self._searched)
        if not any(namespace.book.unannounced for namespace in self._namespaces):
            self._end_poll()

    def _end_poll(self) -> None:
        output = self._output
        complete = all(namespace.dumps.complete for namespace in self._namespaces)
        output.events.append(PollCompleted(output.time, self._open_flows(), complete, output.poll))
        output.first_poll = False
        self._stage = _Stage.IDLE
        self._schedule.end(output.now)

"""The Linux core: polls, goodbyes and look-ups in, events and commands out.

A poll goes through four phases, each of which ends by itself or by its deadline:

    SETUP     interfaces and addresses are learned (once)
    DUMPING   every namespace dumps its sockets; absences are looked into
    OWNERS    processes of new sockets are searched for
    ANNOUNCING new flows are announced, some hundred at a time
    IDLE      until the next poll is due

Goodbyes are taken in at any time. A new flow is announced when its process was
searched for, so that `FlowAdded` has it; one that ends before is announced then.
"""

from __future__ import annotations

import enum
import errno as errors
from collections.abc import Iterable, Sequence

from .._contract import Command, Lookup, LookupFailed
from .._errors import BackendUnavailableError, NstatError, ProtocolError, UnavailableReason, UsageError
from .._events import AnyEvent, PollCompleted
from .._model import Capabilities, Counts, Flow, Provider, Visibility
from .._options import MonitorOptions
from ._constants import IPPROTO_TCP, IPPROTO_UDP
from ._dumps import first_request, split_sequence
from ._hub import Hub
from ._links import LinkKindsAnswer
from ._namespace import CHANNELS, DUMPS, GOODBYES, LOOKUPS, ROUTES, Namespace
from ._owners import OwnersAnswer
from ._setup import Setup
from ._table import KINDS

__all__ = ["Session"]

SETUP_PATIENCE = 1.0
"""Seconds until polls begin without knowledge of interfaces."""
DUMP_PATIENCE = 2.0
"""Seconds without a datagram until a dump is given up."""
OWNERS_PATIENCE = 0.25
"""Seconds that new flows wait for their process."""
FIRST_OWNERS_PATIENCE = 3.0
"""The same in the first poll, which finds all sockets of the machine."""
ANNOUNCED_AT_ONCE = 256
"""Flows announced in one step, about 2 ms."""
MAX_DUMP_FAILURES = 5
"""Failures in a row after which the session gives up."""
REPAIR_PAUSE = 0.2
"""Smallest time between the begin of two polls that repair an overrun."""

_PROTOCOLS = {Provider.TCP: IPPROTO_TCP, Provider.UDP: IPPROTO_UDP}


class _Phase(enum.Enum):
    SETUP = enum.auto()
    DUMPING = enum.auto()
    OWNERS = enum.auto()
    ANNOUNCING = enum.auto()
    IDLE = enum.auto()


class Session:
    """The logic of one sock_diag subscription: no sockets, no clock.

    Args:
        options: What to watch and how; `None` for the defaults.
        namespaces: One label a network namespace, as `Flow.namespace` shows it;
            `None` is the own one. The transport knows them by their place here.
        kernel: The kernel's release, for `capabilities`.
        processes: Whose processes the transport can name.
        passive: Follow a recording: nothing is sent, requests are observed.

    Raises:
        UsageError: None of the providers asked for exists on Linux.
    """

    def __init__(
        self,
        options: MonitorOptions | None = None,
        *,
        namespaces: Sequence[str | None] = (None,),
        kernel: str | None = None,
        processes: Visibility = Visibility.UNKNOWN,
        passive: bool = False,
    ) -> None:
        self._options = options or MonitorOptions()
        self.setup = Setup(kernel=kernel, namespaces=tuple(namespaces), processes=processes)
        """What it was made of, beside the options."""
        protocols = [number for provider, number in _PROTOCOLS.items() if provider in self._options.providers]
        if passive:
            protocols = list(_PROTOCOLS.values())
        if not protocols:
            raise UsageError("providers: sock_diag has tcp and udp only")
        self._hub = Hub(self._options.every_update, self._options.extras, passive)
        self._namespaces = [Namespace(self._hub, i, label, protocols) for i, label in enumerate(namespaces)]
        self._protocols = protocols
        self._kernel = kernel
        self._processes = processes
        self._passive = passive
        self._phase = _Phase.IDLE if passive else _Phase.SETUP
        self._failure: NstatError | None = None
        self._deadline: float | None = None
        self._began = 0.0
        self._next_poll: float | None = None
        self._poll_wanted = False
        self._search: int | None = None
        self._no_owners: str | None = None
        """Why the last search for owners failed."""
        self._dump_failures = 0
        self._notes: list[str] = []

    @classmethod
    def from_setup(cls, setup: Setup, options: MonitorOptions) -> Session:
        """The session that has this `setup`.

        Raises:
            UsageError: None of the providers asked for exists on Linux.
        """
        return cls(options, namespaces=setup.namespaces, kernel=setup.kernel, processes=setup.processes)

    # -- the contract: state

    @property
    def epoch_offset(self) -> float:
        """Add it to ``now`` for seconds since the epoch."""
        return self._hub.epoch_offset

    @epoch_offset.setter
    def epoch_offset(self, value: float) -> None:
        self._hub.epoch_offset = value

    @property
    def failure(self) -> NstatError | None:
        """Why the subscription cannot go on, once it cannot."""
        if self._failure is None and self._options.strict and self._hub.malformed:
            self._failure = ProtocolError(self._hub.malformed[0])
        return self._failure

    @property
    def subscribed(self) -> bool:
        """True from the start: the channels join their multicast groups when they are opened."""
        return True

    @property
    def capabilities(self) -> Capabilities:
        """What is known by now about what this subscription can tell."""
        goodbyes = all(namespace.goodbyes_open for namespace in self._namespaces)
        answered = {KINDS[index].protocol for ns in self._namespaces for index in ns.dumps.answered}
        buffers = [ns.goodbye_buffer for ns in self._namespaces if ns.goodbye_buffer is not None]
        return Capabilities(
            backend="sock_diag",
            kernel=self._kernel,
            providers=frozenset(provider for provider, number in _PROTOCOLS.items() if number in answered),
            tcp_counts=IPPROTO_TCP in self._protocols,
            udp_counts=False,
            final_counts=goodbyes,
            short_lived=goodbyes,
            flows=Visibility.ALL,
            processes=self._processes,
            receive_buffer=min(buffers, default=None),
            notes=(*self._remarks(), *self._notes),
        )

    def _remarks(self) -> Iterable[str]:
        if self._no_owners is not None:
            yield f"processes are unknown: {self._no_owners}"
        if Provider.UDP in self._options.providers:
            yield "the kernel keeps no byte counters of UDP sockets"
        if self._processes is Visibility.OWN:
            yield "processes of other users cannot be named: that needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
        yield "a flow that began and ended between two polls has no process"

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The open flows that were reported as added, with their last counts."""
        for namespace in self._namespaces:
            yield from namespace.flows()

    def statistics(self) -> dict[str, int]:
        """Counters about the subscription itself, by name."""
        numbers = {
            "polls": self._hub.generation,
            "reports": self._hub.reports,
            "flows": sum(len(namespace) for namespace in self._namespaces),
            "unresolved_owners": self._hub.owners.unresolved,
            "unanswered_lookups": sum(namespace.lookups.unanswered for namespace in self._namespaces),
        }
        return {**numbers, **self._hub.counters}

    # -- the contract: input

    def start(self, now: float) -> None:
        """Begin to subscribe."""
        self._hub.now = now
        if self._passive:
            return
        for namespace in self._namespaces:
            namespace.open()
        self._deadline = now + SETUP_PATIENCE

    def receive_datagram(self, data: bytes, now: float, channel: int = 0) -> None:
        """Take in one datagram of the kernel."""
        self._hub.now = now
        if self._passive:
            self._catch_up(now)
        namespace, role = self._place(channel)
        if namespace is None:
            self._hub.count("stray_datagrams")
            return
        if role == DUMPS:
            namespace.dumps.receive(data)
            if namespace.dumps.done:
                self._dump_failures = 0
                self._advance()
            return
        try:
            if role == GOODBYES:
                if self._passive:
                    namespace.goodbyes_open = True
                namespace.receive_goodbye(data)
            elif role == ROUTES:
                namespace.routes.receive(data)
                self._advance()
            else:
                namespace.lookups.receive(data, now)
                self._advance()
        except ProtocolError as error:
            self._hub.reject(error.reason)

    def receive_datagrams(self, datagrams: Sequence[bytes], now: float, channel: int) -> None:
        """Take in datagrams of the kernel, in order."""
        for data in datagrams:
            self.receive_datagram(data, now, channel)

    def observe_request(self, data: bytes, now: float, channel: int = 0) -> None:
        """Passive: take in one datagram that the recorded client sent."""
        self._catch_up(now)
        namespace, role = self._place(channel)
        if namespace is None:
            return
        if role == LOOKUPS:
            try:
                namespace.lookups.observe(data)
            except ProtocolError as error:
                self._hub.reject(error.reason)
        elif role == DUMPS:
            request = first_request(data)
            if request is not None and request.dump:
                self._observe_dump(namespace, request.sequence)

    def _observe_dump(self, namespace: Namespace, sequence: int) -> None:
        poll = split_sequence(sequence)[0]
        if self._phase is not _Phase.DUMPING or poll != self._hub.generation:
            self._finish_early()
            self._begin_poll(poll)
        namespace.dumps.observe(sequence)

    def _finish_early(self) -> None:
        """Passive: the next poll begins, whatever was still expected of this one."""
        self._search = None
        while self._phase is not _Phase.IDLE:
            self._expire()

    def _catch_up(self, now: float) -> None:
        """Passive: nobody calls `handle_deadline`; the records' times do."""
        self._hub.now = now
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            self.handle_deadline(now)

    def finish(self, now: float) -> None:
        """Passive: the recording is at its end; what was still expected will not come."""
        self._hub.now = now
        for namespace in self._namespaces:
            namespace.lookups.expire()
        self._finish_early()

    def _place(self, channel: int) -> tuple[Namespace | None, int]:
        index, role = divmod(channel, CHANNELS)
        if self._passive and index >= len(self._namespaces) and index < MAX_NAMESPACES:
            for number in range(len(self._namespaces), index + 1):
                self._namespaces.append(Namespace(self._hub, number, str(number), self._protocols))
        return (self._namespaces[index] if 0 <= index < len(self._namespaces) else None), role

    def channel_opened(self, channel: int, now: float, *, immediate: bool, receive_buffer: int | None) -> None:
        """A channel is open."""
        del immediate  # netlink always answers inside send
        self._hub.now = now
        namespace, role = self._place(channel)
        if namespace is None:
            return
        if role == GOODBYES:
            namespace.goodbyes_open = True
            namespace.goodbye_buffer = receive_buffer
        elif role == ROUTES:
            namespace.routes.begin()
        elif role == DUMPS:
            namespace.dumps.open = True
            self._advance()

    def channel_drained(self, channel: int, now: float) -> None:
        """Nothing is readable now; of interest for goodbyes, progress elsewhere is judged by deadlines."""
        namespace, role = self._place(channel)
        if namespace is not None and role == GOODBYES and namespace.drained():
            self._hub.now = now
            self._want_repair()

    def channel_failed(self, channel: int, errno: int, now: float) -> None:
        """Opening, sending or receiving failed."""
        self._hub.now = now
        namespace, role = self._place(channel)
        if namespace is None:
            return
        if role == DUMPS:
            self._dump_failed(namespace, errno)
        elif role == GOODBYES:
            self._goodbyes_failed(namespace, errno)
        elif role == ROUTES:
            if errno == errors.ENOBUFS and namespace.routes.settled:
                namespace.routes.begin()
            else:
                namespace.routes.give_up()
                self._note(f"interfaces are unknown: rtnetlink failed with error {errno}")
            self._advance()
        else:
            namespace.lookups.expire()
            self._advance()

    def _dump_failed(self, namespace: Namespace, errno: int) -> None:
        self._dump_failures += 1
        if not namespace.dumps.open or self._dump_failures > MAX_DUMP_FAILURES:
            reason = {
                errors.EACCES: UnavailableReason.PERMISSION,
                errors.EPERM: UnavailableReason.PERMISSION,
                errors.EMFILE: UnavailableReason.RESOURCE,
                errors.ENFILE: UnavailableReason.RESOURCE,
                errors.ENOBUFS: UnavailableReason.RESOURCE,
                errors.ENOMEM: UnavailableReason.RESOURCE,
            }.get(errno, UnavailableReason.MISSING)
            self._failure = BackendUnavailableError(
                "sock_diag", reason, f"its netlink socket failed with error {errno}"
            )
            return
        namespace.dumps.abort()
        namespace.reopen(DUMPS)
        self._advance()

    def _goodbyes_failed(self, namespace: Namespace, errno: int) -> None:
        if namespace.goodbyes_open:
            namespace.overrun()
        else:
            self._note(f"destroyed sockets are not told (error {errno}): flows between two polls are missed")

    def _want_repair(self) -> None:
        if self._passive:  # the recorded client asked for its repair itself
            return
        earliest = max(self._hub.now, self._began + REPAIR_PAUSE)
        if self._phase is _Phase.IDLE:
            self._next_poll = earliest if self._next_poll is None else min(self._next_poll, earliest)
        else:
            self._poll_wanted = True

    def channel_closed(self, channel: int, now: float) -> None:
        """A netlink socket has no other side that could close it: taken as a failure."""
        self.channel_failed(channel, errors.EBADF, now)

    def lookup_done(self, token: int, answer: object, now: float) -> None:
        """The answer to a look-up, or `LookupFailed`."""
        self._hub.now = now
        if self._passive:
            self._catch_up(now)
        if isinstance(answer, LinkKindsAnswer):
            namespace, _ = self._place(answer.namespace * CHANNELS)
            if namespace is not None:
                namespace.links.classify(answer)
            return
        if token != self._search and not self._passive:
            return
        self._search = None
        self._no_owners = answer.reason if isinstance(answer, LookupFailed) else None
        if isinstance(answer, OwnersAnswer):
            self._take_owners(answer)
        self._advance()

    def _take_owners(self, answer: OwnersAnswer) -> None:
        owners = self._hub.owners
        for entry, process in owners.settle(answer):
            self._namespace_of(entry.kind.index, entry.cookie).set_owner(entry, process)
        if answer.gone:
            owners.bury(answer.gone, (entry for ns in self._namespaces for entry in ns.entries()))
        request = owners.resume(answer)
        if request is not None:
            self._ask_owners(request)

    def _namespace_of(self, kind: int, cookie: int) -> Namespace:
        for namespace in self._namespaces:
            table = namespace.tables.get(kind)
            if table is not None and cookie in table.entries:
                return namespace
        return self._namespaces[0]

    def request_poll(self, now: float) -> int:
        """Ask for one poll of everything as soon as possible; the serial of the first that begins after this call."""
        self._hub.now = now
        serial = self._hub.generation + 1
        if self._phase is _Phase.IDLE and not self._passive:
            self._begin_poll()
        else:
            self._poll_wanted = True
        return serial

    # -- the contract: output

    def commands(self) -> list[Command]:
        """What to do now, in this order."""
        taken = self._hub.commands
        self._hub.commands = []
        if self._passive:
            return []
        for namespace in self._namespaces:
            taken.extend(namespace.commands())
        return taken

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""
        taken = self._hub.events
        self._hub.events = []
        return taken

    def next_deadline(self) -> float | None:
        """When `handle_deadline` wants to be called."""
        times = [ns.lookups.deadline() for ns in self._namespaces if len(ns.lookups)]
        times.append(self._next_poll if self._phase is _Phase.IDLE else self._deadline)
        return min((time for time in times if time is not None), default=None)

    def handle_deadline(self, now: float) -> None:
        """The time has come (or passed)."""
        self._hub.now = now
        for namespace in self._namespaces:
            due = namespace.lookups.deadline()
            if due is not None and now >= due:
                namespace.lookups.expire()
        if self._phase is _Phase.IDLE:
            if self._next_poll is not None and now >= self._next_poll:
                self._begin_poll()
        elif self._deadline is not None and now >= self._deadline:
            self._expire()
        self._advance()

    # -- phases

    def _expire(self) -> None:
        """This phase took too long, or (announcing) wants its next step."""
        if self._phase is _Phase.SETUP:
            for namespace in self._namespaces:
                namespace.routes.give_up()
            self._deadline = None
        elif self._phase is _Phase.DUMPING:
            self._expire_dumps()
        elif self._phase is _Phase.OWNERS:
            self._enter(_Phase.ANNOUNCING, self._hub.now)
        elif self._phase is _Phase.ANNOUNCING:
            self._announce()

    def _expire_dumps(self) -> None:
        now = self._hub.now
        for namespace in self._namespaces:
            dumps = namespace.dumps
            if self._passive or (not dumps.done and now >= dumps.progress + DUMP_PATIENCE):
                if not dumps.done:
                    dumps.abort()
                    if not self._passive:
                        namespace.reopen(DUMPS)
                namespace.lookups.expire()
        if all(namespace.poll_done for namespace in self._namespaces):
            self._advance()
        else:
            self._deadline = now + DUMP_PATIENCE

    def _enter(self, phase: _Phase, deadline: float | None) -> None:
        self._phase = phase
        self._deadline = deadline

    def _advance(self) -> None:
        """Go on as far as possible without waiting."""
        if self._phase is _Phase.SETUP:
            if all(namespace.ready for namespace in self._namespaces):
                self._begin_poll()
        elif self._phase is _Phase.DUMPING:
            if all(namespace.poll_done for namespace in self._namespaces):
                self._end_dumps()
        elif self._phase is _Phase.OWNERS and self._search is None:
            self._enter(_Phase.ANNOUNCING, self._hub.now)
            self._announce()

    def _begin_poll(self, number: int | None = None) -> None:
        self._hub.generation = self._hub.generation + 1 if number is None else number
        self._poll_wanted = False
        self._began = self._hub.now
        self._enter(_Phase.DUMPING, self._hub.now + DUMP_PATIENCE)
        for namespace in self._namespaces:
            if namespace.dumps.open:
                namespace.begin_poll()
        if self._options.interval is not None and not self._passive:
            self._next_poll = self._hub.now + self._options.interval
        else:
            self._next_poll = None
        self._check_refusals()

    def _check_refusals(self) -> None:
        if all(len(ns.dumps.refused) == len(ns.tables) for ns in self._namespaces):
            self._failure = BackendUnavailableError(
                "sock_diag", UnavailableReason.MISSING, "the kernel has no inet_diag (CONFIG_INET_DIAG)"
            )

    def _end_dumps(self) -> None:
        for namespace in self._namespaces:
            namespace.end_poll()
        if self._search is None:
            request = self._hub.owners.begin(self._hub.generation)
            if request is not None:
                self._ask_owners(request)
        patience = FIRST_OWNERS_PATIENCE if self._hub.first_poll else OWNERS_PATIENCE
        self._enter(_Phase.OWNERS, self._hub.now + patience)
        if not self._hub.fresh:  # nobody waits for a process
            self._enter(_Phase.ANNOUNCING, self._hub.now)
            self._announce()
        else:
            self._advance()

    def _ask_owners(self, request: object) -> None:
        self._search = self._hub.next_token()
        self._hub.commands.append(Lookup(self._search, request))

    def _announce(self) -> None:
        fresh = self._hub.fresh
        for _ in range(min(ANNOUNCED_AT_ONCE, len(fresh))):
            namespace, entry = fresh.popleft()
            if not entry.over and entry.flow is None:
                namespace.announce(entry)
        if not fresh:
            self._end_poll()

    def _end_poll(self) -> None:
        complete = all(namespace.dumps.complete for namespace in self._namespaces)
        flows = sum(len(namespace) for namespace in self._namespaces)
        self._hub.events.append(PollCompleted(self._hub.time, flows, complete, self._hub.generation))
        self._hub.first_poll = False
        self._enter(_Phase.IDLE, None)
        now = self._hub.now
        if self._poll_wanted:
            self._poll_wanted = False
            self._next_poll = max(now, self._began + REPAIR_PAUSE) if not self._passive else None
        elif self._next_poll is not None and self._next_poll <= now and self._options.interval is not None:
            missed = (now - self._next_poll) // self._options.interval + 1
            self._next_poll += missed * self._options.interval

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)


MAX_NAMESPACES = 64
"""Namespaces that a recording may have."""

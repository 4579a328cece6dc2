"""The Linux core: it takes evidence of sockets, and gives events and commands.

It takes removals, changes of addresses and owners at any time, and the presence and absence
of sockets in polls (`_polls`).
"""

from __future__ import annotations

import errno as errors
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain

import attrs

from .._contract import Command, Mode
from .._errors import NstatError, ProtocolError, UsageError
from .._events import AnyEvent, ProviderRefused
from .._model import Capabilities, Counts, Flow, Provider, Visibility
from .._options import Ebpf, MonitorOptions
from ..ebpf import Tier, tells
from ._book import Book
from ._cgroups import CgroupSource
from ._constants import IPPROTO_TCP, IPPROTO_UDP, PROVIDERS
from ._coverage import CoverageSum, coverage_of
from ._dumps import KINDS, first_request, split_sequence
from ._entry import Entry
from ._flows import flows_of
from ._host_requests import (
    AttachAnswer,
    CgroupsAnswer,
    ChangedAnswer,
    FoundNamespace,
    LinkKindsAnswer,
    NamespacesAnswer,
    OwnersAnswer,
    OwnersRequest,
    ProcessesAnswer,
    SocketTablesAnswer,
    TrafficAnswer,
)
from ._namespace import Access, Namespace, SessionParts
from ._namespaces import NamespaceSource
from ._output import Output
from ._owners import OwnerSource
from ._polls import Polls
from ._processes import Processes
from ._program_evidence import ProgramEvidence
from ._program_namespaces import ProgramNamespaces
from ._programs import Programs
from ._purposes import ChannelPurpose, Role, place_of_channel
from ._setup import MAX_NAMESPACES, UNNAMED, NetworkNamespace, Setup
from ._source import Source
from ._waiting import earliest

_PROTOCOLS = {provider: number for number, provider in PROVIDERS.items()}


class Session:
    """The logic of one sock_diag subscription: no sockets, no clock.

    Args:
        options: The monitor's options; `None`: the defaults.
        namespaces: The network namespaces. The transport knows each by its index here.
        kernel: The kernel's release, for `capabilities`.
        processes: Whose processes the transport can name.
        limit: Why it cannot name everybody's, for a person.
        refused: Whose processes it can name if a search meets one whose descriptors we may not see.
        ebpf: Ask for eBPF programs.
        all_namespaces: The transport searches for other network namespaces.
        closed: None of them can be entered.
        cgroups: The transport looks up cgroups.
        mode: `Mode.FOLLOWING`: send nothing, and observe the requests of a recorded client.

    Raises:
        UsageError: None of the wanted providers exists on Linux.
    """

    def __init__(
        self,
        options: MonitorOptions | None = None,
        *,
        namespaces: Sequence[NetworkNamespace] = (NetworkNamespace(),),
        kernel: str | None = None,
        processes: Visibility = Visibility.UNKNOWN,
        limit: str | None = None,
        refused: Visibility = Visibility.SOME,
        ebpf: Ebpf = Ebpf.OFF,
        all_namespaces: bool = False,
        closed: bool = False,
        cgroups: bool = True,
        mode: Mode = Mode.DRIVING,
    ) -> None:
        self._options = options or MonitorOptions()
        self.setup = setup = Setup(
            kernel=kernel,
            namespaces=tuple(namespaces),
            processes=processes,
            limit=limit,
            refused=refused,
            ebpf=ebpf,
            all_namespaces=all_namespaces,
            closed=closed,
            cgroups=cgroups,
        )
        """The arguments that it was made with, except the options."""
        self._output = Output(mode)
        wanted = _PROTOCOLS if self._output.following else self._options.providers
        self._protocols = frozenset(number for provider, number in _PROTOCOLS.items() if provider in wanted)
        if not self._protocols:
            known = ", ".join(provider.value for provider in _PROTOCOLS)
            raise UsageError(f"providers: Linux has only {known}, and udp_subflow together with udp")
        self._processes = Processes(self._output, self._entries)
        self._owners = OwnerSource(self._output, self._processes, sees_all=setup.processes is Visibility.ALL)
        self._cgroups = CgroupSource(self._output, asks=cgroups)
        self._evidence = ProgramEvidence(self._output, self._processes, self._cgroups, self._protocols)
        self._parts = SessionParts(
            self._output, self._owners, self._cgroups, self._evidence, self._protocols, self._options
        )
        self._namespaces: list[Namespace] = []
        self._gone = CoverageSum()
        """The traffic of namespaces that are gone."""
        self._books: list[Book] = []
        """The books of the first namespaces, by number."""
        self._numbered = 0
        self._rows = 0
        """How many sockets the dumps of namespaces that are gone have reported."""
        self._program_namespaces = ProgramNamespaces(self._program_namespace, self._drop_namespace, self._evidence)
        self._spaces = NamespaceSource(
            self._output,
            self._found_namespace,
            self._drop_namespace,
            self._place_namespaces,
            self._program_namespaces,
            asks=setup.all_namespaces,
            closed=setup.closed,
        )
        remotes = Provider.UDP_SUBFLOW in self._options.providers and IPPROTO_UDP in self._protocols
        self._programs = Programs(self._output, self._books, self._owners, self._evidence, ebpf, remotes=remotes)
        self._sources: dict[int, Source] = {}
        """All sources of evidence, by channel."""
        self._add_sources(self._programs.sources)
        self._evidence.met_unwatched = self._spaces.meet
        self._programs.walked = self._program_namespaces.walked
        self._programs.doubted = self._doubt_removals
        for namespace in namespaces:
            self._books.append(self._add_namespace(namespace).book)
        searches = (self._owners, self._cgroups)
        self._polls = Polls(
            self._output, self._namespaces, searches, self._spaces, self._programs, self._options.interval
        )

    @classmethod
    def from_setup(
        cls,
        setup: Setup,
        options: MonitorOptions,
        *,
        mode: Mode = Mode.DRIVING,
        client: int = 0,  # noqa: ARG003  # channels of one recording are one subscription
    ) -> Session:
        """Make the session that has this `setup`.

        Raises:
            UsageError: None of the wanted providers exists on Linux.
        """
        return cls(options, mode=mode, **attrs.asdict(setup, recurse=False))

    def _add_namespace(self, identity: NetworkNamespace, *, vital: bool = True) -> Namespace:
        number, self._numbered = self._numbered, self._numbered + 1
        namespace = self._make_namespace(number, identity, Access.ENTERED, vital=vital)
        self._add_sources((*namespace.sources, namespace.pulse))
        return namespace

    def _add_sources(self, sources: Iterable[Source]) -> None:
        self._sources.update((source.channel, source) for source in sources)
        self._sort_sources()

    def _sort_sources(self) -> None:
        """Note which sources send requests on their own, and which have a deadline: both are read many times in each turn."""
        sources = self._sources.values()
        self._asking = [source for source in sources if type(source).flush is not Source.flush]
        self._timed = [source for source in sources if type(source).deadline is not Source.deadline]

    def _program_namespace(self, number: int, identity: NetworkNamespace) -> Namespace:
        """Make a namespace that only eBPF programs report."""
        return self._make_namespace(number, identity, Access.PROGRAMS)

    def _make_namespace(
        self, number: int, identity: NetworkNamespace, access: Access, *, vital: bool = False
    ) -> Namespace:
        namespace = Namespace(self._parts, number, identity, access, vital=vital)
        self._namespaces.append(namespace)
        return namespace

    def _entered(self) -> Iterator[Namespace]:
        return (namespace for namespace in self._namespaces if namespace.entered)

    def _doubt_removals(self) -> None:
        for namespace in self._entered():
            namespace.removals.doubt()

    def _found_namespace(self, found: FoundNamespace) -> None:
        """Make the namespace that was found."""
        alike = sum(namespace.entered is found.entered for namespace in self._namespaces)
        if self._namespace(found.number) is not None or alike >= MAX_NAMESPACES:
            return
        if not found.entered:
            self._make_namespace(found.number, found.identity, Access.TABLES)
            return
        self._numbered = found.number
        namespace = self._add_namespace(found.identity, vital=False)
        if found.cookie is not None:
            self._evidence.know(found.cookie, namespace.book)
        if not self._output.following and self._programs.settled:
            namespace.open()

    def _place_namespaces(self, cgroups: Mapping[int, int]) -> None:
        """Set the cgroup of each namespace whose visible processes are in one cgroup."""
        for namespace in self._namespaces:
            namespace.tables.cgroup = cgroups.get(namespace.number, 0)

    def _drop_namespace(self, number: int) -> None:
        """Stop watching a namespace: it is gone."""
        namespace = self._namespace(number)
        if namespace is None:
            return
        self._namespaces.remove(namespace)
        if namespace.entered:
            self._gone.absorb(namespace.book.coverage)
        self._rows += namespace.dumps.rows
        for source in (*namespace.sources, namespace.pulse):
            self._sources.pop(source.channel, None)
        self._sort_sources()
        books = self._evidence.books
        for cookie in [cookie for cookie, book in books.items() if book is namespace.book]:
            del books[cookie]
        namespace.end()

    def _namespace(self, number: int) -> Namespace | None:
        return next((namespace for namespace in self._namespaces if namespace.number == number), None)

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
        """True once it is known whether there are eBPF programs; netlink subscribes when its channels are opened.

        If all network namespaces are wanted, they must be known as well, and their channels open.
        """
        return self._programs.settled and (not self.setup.all_namespaces or self._polls.settled)

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of this subscription, as far as they are known by now."""
        removals = [namespace.removals for namespace in self._entered()]
        reported = not any(source.missing for source in removals)
        answered = {KINDS[index].protocol for ns in self._namespaces for index in ns.dumps.answered}
        answered.update(*(namespace.tables.answered for namespace in self._namespaces))
        return Capabilities(
            backend="sock_diag",
            kernel=self.setup.kernel,
            providers=frozenset(provider for provider, number in _PROTOCOLS.items() if number in answered)
            | (frozenset({Provider.UDP_SUBFLOW}) if self._programs.tells_remotes else frozenset()),
            tcp_counts=IPPROTO_TCP in self._protocols,
            udp_counts=IPPROTO_UDP in self._protocols and tells(self._programs.tier).udp_bytes,
            final_counts=reported,
            short_lived=reported,
            flows=Visibility.ALL,
            processes=self._visibility,
            processes_limit=self._hidden(),
            ebpf=self._programs.tier.value if self.setup.ebpf is not Ebpf.OFF else None,
            ebpf_reason=self._programs.reason,
            receive_buffer=min((s.receive_buffer for s in removals if s.receive_buffer is not None), default=None),
            namespaces_limit="; ".join(self._unentered()) or None,
            notes=(*self._remarks(), *self._output.notes),
        )

    @property
    def _visibility(self) -> Visibility:
        """Whose processes can be named, by the test at the start and the searches since then."""
        if self._owners.failure is not None:
            return Visibility.NONE
        processes = Visibility.ALL if self._names_all else self.setup.processes
        return self.setup.refused if processes is Visibility.ALL and self._hidden() else processes

    def _hidden(self) -> str | None:
        """Why not everybody's processes can be named, for a person."""
        if self._owners.failure is not None and self.setup.processes is not Visibility.NONE:
            return f"processes are unknown: {self._owners.failure}"
        if self._names_all:
            return None
        refused = self._owners.refused
        return self.setup.limit or (f"{refused} of the {UNNAMED}" if refused else None)

    def _remarks(self) -> Iterator[str]:
        hidden = self._hidden()
        if hidden is not None:
            yield hidden
        elif self._evidence.walks and self._owners.unresolved:  # programs name everybody's processes, but found none
            yield f"sockets whose process cannot be found: {self._owners.unresolved} (the kernel's own, those of io_uring, or on their way between processes)"
        programs = self._programs
        abilities = tells(programs.tier)
        if Provider.UDP in self._options.providers:
            if abilities.udp_bytes:
                yield "UDP sockets that are older than the monitor are counted from its start on"
            else:
                yield "the kernel keeps no byte counters of UDP sockets"
        if not (abilities.tcp_process and abilities.tcp_accepted_process and programs.attached.processes_trusted):
            beat = self._evidence.pulsing and self._options.pulse
            between = f"within {beat * 1000:g} ms" if beat else "between two polls"
            yield f"a flow that began and ended {between} has no process"
        yield from self._unentered()

    def _unentered(self) -> list[str]:
        """The network namespaces that are not watched, or only from outside, for a person."""
        return self._spaces.remarks(seen=self._programs.tier is not Tier.NONE)

    @property
    def _names_all(self) -> bool:
        """True if eBPF programs name the processes of all users."""
        attached = self._programs.attached
        return self._programs.tier is not Tier.NONE and attached.processes_trusted and attached.owners

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The open flows that were reported as added, with their last counts."""
        return chain(flows_of(self._entries()), self._programs.remotes.flows())

    def settled(self, until: float) -> bool:
        """True if all that was read by then is an event: beginnings and ends may wait for a process, or for what tells how one ended."""
        return self._evidence.announced(until) and all(namespace.book.settled(until) for namespace in self._namespaces)

    def statistics(self) -> dict[str, int]:
        """Counters about the subscription itself, by name."""
        return {
            "polls": self._output.poll,
            "reports": self._rows + sum(namespace.dumps.rows for namespace in self._namespaces),
            "namespaces": len(self._namespaces),
            "flows": sum(len(namespace.book.entries) for namespace in self._namespaces),
            "unresolved_owners": self._owners.unresolved,
            "undecided_owners": self._owners.undecided,
            "sought_owners": self._owners.sought,
            "unanswered_lookups": sum(namespace.lookups.unanswered for namespace in self._namespaces),
            **coverage_of(self._gone, (namespace.book.coverage for namespace in self._entered())),
            **self._output.counters,
        }

    # -- the contract: input

    def start(self, now: float) -> None:
        """Start the subscription."""
        self._output.now = now
        if not self._output.following:
            if Provider.UDP_SUBFLOW in self._options.providers and IPPROTO_UDP not in self._protocols:
                detail = "udp_subflow is reported only together with udp"
                refused = ProviderRefused(self._output.time, Provider.UDP_SUBFLOW, errors.EINVAL, detail)
                self._output.events.append(refused)
            self._programs.start(self._open_sources)
            self._spaces.ask()

    def _open_sources(self) -> None:
        for namespace in self._namespaces:
            namespace.open()
        if self._programs.tier is Tier.NONE:
            self._spaces.watch_outside()

    def receive_datagrams(self, datagrams: Sequence[bytes], now: float, channel: int) -> None:
        """Take in datagrams of the kernel, in order."""
        output = self._output
        if output.following:
            self._turn(now)
            source = self._source(channel)
        else:  # the same in short, because this is called for each batch
            output.now = now
            source = self._sources.get(channel)
        if source is None:
            self._output.count("stray_datagrams", len(datagrams))
            return
        source.receive_many(datagrams)
        if source.done or output.following:
            self._polls.proceed()

    def receive_datagram(self, data: bytes, now: float, channel: int = 0) -> None:
        """Take in one datagram of the kernel."""
        self.receive_datagrams((data,), now, channel)

    def channel_opened(self, channel: int, now: float, *, immediate: bool, receive_buffer: int | None) -> None:
        """A channel is open."""
        del immediate  # netlink always answers inside send
        self._tell(channel, now, lambda source: source.opened(receive_buffer))

    def channel_drained(self, channel: int, now: float) -> None:
        """A channel was read until it was empty."""
        self._turn(now)
        source = self._source(channel)
        if source is not None:
            source.drained()
        self._polls.proceed()

    def channel_failed(self, channel: int, errno: int, now: float) -> None:
        """Opening, sending or receiving failed."""
        self._tell(channel, now, lambda source: source.failed(errno))

    def channel_closed(self, channel: int, now: float) -> None:
        """A channel was closed. No one can close a netlink socket from the other end, so this is a failure."""
        self.channel_failed(channel, errors.EBADF, now)

    def _tell(self, channel: int, now: float, what: Callable[[Source], None]) -> None:
        self._turn(now)
        source = self._source(channel)
        if source is not None:
            what(source)
        self._polls.proceed()

    def lookup_done(self, token: int, answer: object, now: float) -> None:
        """Take in the answer to a look-up, or its failure."""
        self._turn(now)
        if not self._output.following:
            self._output.take_answer(token, answer)
        elif isinstance(answer, OwnersAnswer):
            self._owners.take(answer)
        elif isinstance(answer, ProcessesAnswer):
            self._processes.take_names(answer)
        elif isinstance(answer, CgroupsAnswer):
            self._cgroups.take(answer)
        elif isinstance(answer, ChangedAnswer):
            for namespace in self._namespaces[:1]:
                namespace.walks.take(answer)
        elif isinstance(answer, AttachAnswer):
            self._programs.take(answer)
        elif isinstance(answer, NamespacesAnswer):
            self._spaces.take(answer)
        elif isinstance(answer, (LinkKindsAnswer, SocketTablesAnswer, TrafficAnswer)):
            self._take_of_namespace(answer)
        self._polls.proceed()

    def _take_of_namespace(self, answer: LinkKindsAnswer | SocketTablesAnswer | TrafficAnswer) -> None:
        namespace = self._namespace(answer.namespace)
        if namespace is None:
            return
        if isinstance(answer, LinkKindsAnswer):
            namespace.addresses.take_kinds(answer)
        elif isinstance(answer, TrafficAnswer):
            namespace.book.coverage.take(answer)
        else:
            namespace.tables.take(answer)

    def request_poll(self, now: float) -> int:
        """Ask for one poll of everything as soon as possible; returns the serial of the first that begins after this call."""
        self._turn(now)
        return self._polls.request()

    def _source(self, channel: int) -> Source | None:
        if self._output.following and channel not in self._sources and not self.setup.all_namespaces:
            number, _ = place_of_channel(channel)
            while self._numbered <= number < MAX_NAMESPACES:
                self._add_namespace(NetworkNamespace(str(self._numbered)))
        return self._sources.get(channel)

    def _turn(self, now: float) -> None:
        """Set the time to `now`. When following, deadlines see only the times of the recording."""
        self._output.now = now
        if self._output.following:
            while (due := self.next_deadline()) is not None and due <= now:
                self.handle_deadline(now)

    def _entries(self) -> Iterator[Entry]:
        return chain.from_iterable(namespace.book.entries.values() for namespace in self._namespaces)

    # -- following a recording

    def observe_request(self, data: bytes, now: float, channel: int = 0) -> None:
        """Following: take in one datagram that the recorded client sent."""
        self._turn(now)
        source = self._source(channel)
        if source is None:
            return
        purpose = source.purpose
        dumps = isinstance(purpose, ChannelPurpose) and purpose.role is Role.DUMPS
        request = first_request(data) if dumps else None
        if isinstance(purpose, ChannelPurpose) and request is not None and request.dump:
            self._polls.follow(split_sequence(request.sequence)[0])
            namespace = self._namespace(purpose.namespace)
            if namespace is not None:
                namespace.dumps.follow(request)
        else:
            try:
                source.observe(data)
            except ProtocolError as error:
                self._output.reject(error.reason)

    def observe_lookup(self, request: object) -> None:
        """Following: take in what the recorded client asked the host."""
        if isinstance(request, OwnersRequest):
            self._owners.observe(request)

    def finish(self, now: float) -> None:
        """Following: the recording has ended, so nothing that is still expected will come."""
        self._turn(now)
        self._evidence.give_up_all()
        self._polls.finish()

    # -- the contract: output

    def commands(self) -> list[Command]:
        """The commands to carry out now, in this order."""
        for source in self._asking:
            source.flush()
        self._programs.flush()
        taken, self._output.commands = self._output.commands, []
        return [] if self._output.following else taken

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""
        taken, self._output.events = self._output.events, []
        return taken

    def next_deadline(self) -> float | None:
        """When to call `handle_deadline`; `None`: never."""
        if self._output.busy:
            return self._output.now
        return earliest((self._polls, self._evidence, *self._timed))

    def handle_deadline(self, now: float) -> None:
        """Do what is due: the deadline has come or passed."""
        self._output.now = now
        self._output.work()
        self._evidence.expire()  # another end may wait for one that waited there
        for source in self._timed:
            due = source.deadline()
            if due is not None and due <= now:
                source.expire()
        self._polls.expire()
        self._polls.proceed()

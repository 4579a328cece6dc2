"""The active session: a monitor's whole conversation with a Darwin kernel.

A session drives one `Subscription` (one control socket). It opens a second one when
only that repairs the picture: announcements were lost for good, or the control went
away. The second is subscribed with announcements suppressed and polled completely in
silence; then it takes over: each of its sources that is the same kernel socket as one
of the old subscription (same provider, addresses, creation time) continues that
flow, the others are told as added, and old flows without a counterpart as gone.
Counters are the kernel socket's, not the subscription's, so totals go on unbroken.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from .._contract import CloseChannel, Command, Lookup, LookupFailed, OpenChannel, Send
from .._errors import BackendUnavailableError, NstatError, RequestError, UnavailableReason
from .._events import AnyEvent, EventsLost, FlowAdded, FlowUpdated, LossCause, PollCompleted
from .._model import Capabilities, Counts, Flow, Proof, Visibility
from .._options import Discovery, MonitorOptions
from ._counters import make_counts, raw_values, unpacked
from ._evidence import CloseEvidence, Evidence, OpenEvidence
from ._kernels import Kernel
from ._proof import LayoutProbe
from ._setup import Setup
from ._sources import Source, advance
from ._subscription import State, Subscription
from ._translate import Translator

__all__ = ["Session"]

REOPEN_DELAYS = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Seconds to wait before each try to open a control that went away."""
RESYNC_PAUSE = 5.0
"""Seconds between two resynchronisations for lost announcements."""
PROOF_POLLS = 3
"""Polls in which the known flows of a proof are looked for."""
PURPOSE = "ntstat"
_OPEN_EVIDENCE, _CLOSE_EVIDENCE = 1, 2


class Session:
    """An active session: sans-IO, sans-clock.

    Args:
        kernel: The kernel's version string, or a `Kernel`.
        timebase: Nanoseconds per tick of the kernel's clock, as a fraction:
            ``(1, 1)`` on Intel, ``(125, 3)`` on Apple silicon.
        interfaces: Interface names by index, where they are known.
        options: What to watch and how.
        backend: Name for `Capabilities`.
        verify: Prove the layout with known flows that the transport opens: always,
            never, or (`None`) on kernels newer than known.
        own_uid: User id of this process, to tell whether others' flows are visible.
        path_of: Finds the path of a living process' executable by its pid.

    Raises:
        UsageError: The kernel's version is not understood or too old.
    """

    def __init__(
        self,
        kernel: str | Kernel,
        *,
        timebase: tuple[int, int] = (1, 1),
        interfaces: dict[int, str] | None = None,
        options: MonitorOptions | None = None,
        backend: str = "kctl",
        verify: bool | None = None,
        own_uid: int | None = None,
        path_of: Callable[[int], str | None] | None = None,
    ) -> None:
        self.kernel = Kernel.parse(kernel) if isinstance(kernel, str) else kernel
        self.options = options if options is not None else MonitorOptions()
        self.epoch_offset = 0.0
        self.failure: NstatError | None = None
        self.backend = backend
        self.translator = Translator(self.kernel, timebase, dict(interfaces or {}), path_of)
        self.proof = Proof.ASSUMED if self.kernel.known else Proof.UNKNOWN
        """How sure the layout is."""
        self.setup = Setup(
            kernel=self.kernel.text,
            timebase=timebase,
            interfaces=tuple((interfaces or {}).items()),
            backend=backend,
            verify=verify,
            own_uid=own_uid,
        )
        """What it was made of, beside the options."""
        self._verify = not self.kernel.known if verify is None else verify
        self._own_uid = own_uid
        self._probe: LayoutProbe | None = None
        self._probe_polls = 0
        self._proof_notes: tuple[str, ...] = ()
        self._events: deque[AnyEvent] = deque()
        self._commands: list[Command] = []
        self._generation = 0
        self._current: Subscription | None = None
        self._candidate: Subscription | None = None
        self._next_poll: float | None = None
        self._poll_started = 0.0
        self._reopen_at: float | None = None
        self._reopen_tries = 0
        self._resync_at: float | None = None
        self._candidate_poll: float | None = None
        self._last_resync = float("-inf")
        self._statistics = {"resynchronisations": 0}

    @classmethod
    def from_setup(cls, setup: Setup, options: MonitorOptions) -> Session:
        """The session that has this `setup`.

        Raises:
            UsageError: The kernel's version is not understood or too old.
        """
        return cls(
            setup.kernel,
            timebase=setup.timebase,
            interfaces=dict(setup.interfaces),
            options=options,
            backend=setup.backend,
            verify=setup.verify,
            own_uid=setup.own_uid,
        )

    # --- Core: in -------------------------------------------------------------

    def start(self, now: float) -> None:  # noqa: ARG002
        """Begin to subscribe."""
        self._current = self._open(self.options.discovery, muted=False)

    def channel_opened(self, channel: int, now: float, *, immediate: bool, receive_buffer: int | None) -> None:
        """An `OpenChannel` was carried out."""
        subscription = self._subscription(channel)
        if subscription is not None:
            subscription.opened(now, now + self.epoch_offset, immediate=immediate, receive_buffer=receive_buffer)

    def receive_datagram(self, data: bytes, now: float, channel: int = 0) -> None:
        """Take in one datagram of the kernel.

        Raises:
            ProtocolError: Only with the option ``strict``.
        """
        subscription = self._subscription(channel)
        if subscription is not None:
            before = subscription.table.statistics["sources_seen"]
            subscription.receive(data, now, now + self.epoch_offset)
            if not subscription.suppress and subscription.table.statistics["sources_seen"] != before:
                self._announced(subscription)
            self._check_refusals(subscription)

    def receive_datagrams(self, datagrams: Sequence[bytes], now: float, channel: int) -> None:
        """Take in datagrams of the kernel, in order.

        Raises:
            ProtocolError: Only with the option ``strict``.
        """
        for data in datagrams:
            self.receive_datagram(data, now, channel)

    def channel_drained(self, channel: int, now: float) -> None:
        """The channel would block."""
        subscription = self._subscription(channel)
        if subscription is not None:
            subscription.drained(now)
            self._check_refusals(subscription)

    def channel_failed(self, channel: int, errno: int, now: float) -> None:
        """Opening, sending or receiving failed."""
        import errno as host  # noqa: PLC0415  # numbers of the host that did the call

        subscription = self._subscription(channel)
        if subscription is None:
            return
        if errno in {host.ENOBUFS, host.ENOMEM} and subscription.state is not State.OPENING:
            subscription.overloaded(now)
            return
        if subscription.state is State.OPENING and subscription is self._current and not self._reopen_tries:
            self.failure = BackendUnavailableError(
                self.backend, UnavailableReason.MISSING, f"the control socket cannot be opened (error {errno})"
            )
            return
        self._lost(subscription, now)

    def channel_closed(self, channel: int, now: float) -> None:
        """End of file: the control went away."""
        subscription = self._subscription(channel)
        if subscription is not None:
            self._lost(subscription, now)

    def lookup_done(self, token: int, answer: Any, now: float) -> None:
        """Known flows are open (or cannot be opened): look for them in the next poll."""
        current = self._current
        if token != _OPEN_EVIDENCE or current is None:
            return
        if not isinstance(answer, Evidence):
            reason = f" ({answer.reason})" if isinstance(answer, LookupFailed) else ""
            self._proof_notes = (f"the layout cannot be proven here: no known flows can be opened{reason}",)
            return
        self._probe = LayoutProbe(self.kernel, answer)
        current.receiver.watch(self._probe.observe)
        current.proving = True
        self.request_poll(now)

    # --- Core: out -------------------------------------------------------------

    def commands(self) -> list[Command]:
        """What to do now, in this order."""
        for subscription in (self._current, self._candidate):
            if subscription is not None and subscription.outbox:
                self._commands.extend(Send(subscription.channel, data) for data in subscription.outbox)
                subscription.outbox.clear()
        commands, self._commands = self._commands, []
        return commands

    def data_to_send(self) -> list[bytes]:
        """The datagrams of `commands`, for a caller with exactly one socket.

        The first call also reports that socket as opened, so such a caller needs
        no commands at all; it forgoes resynchronisation.
        """
        data = []
        for command in self.commands():
            if isinstance(command, OpenChannel):
                self.channel_opened(command.channel, self._poll_started, immediate=False, receive_buffer=None)
                data.extend(self.data_to_send())
            elif isinstance(command, Send):
                data.append(command.data)
        return data

    def take_events(self) -> list[AnyEvent]:
        """The events since the last call."""
        events = list(self._events)
        self._events.clear()
        return events

    def next_event(self) -> AnyEvent | None:
        """The next event, or `None`."""
        return self._events.popleft() if self._events else None

    def next_deadline(self) -> float | None:
        """When `handle_deadline` wants to be called."""
        times = [self._next_poll, self._reopen_at, self._resync_at, self._candidate_poll]
        times.extend(s.deadline() for s in (self._current, self._candidate) if s is not None)
        return min((t for t in times if t is not None), default=None)

    def handle_deadline(self, now: float) -> None:
        """The time has come (or passed)."""
        if self._reopen_at is not None and now >= self._reopen_at:
            self._reopen_at = None
            self._candidate = self._open(Discovery.POLL, muted=True)
        if self._resync_at is not None and now >= self._resync_at:
            self._resync_at = None
            self._resynchronise(now)
        for subscription in (self._current, self._candidate):
            if subscription is not None:
                subscription.tick(now)
                self._check_refusals(subscription)
        if self._candidate_poll is not None and now >= self._candidate_poll:
            self._candidate_poll = None
            if self._candidate is not None:
                self._candidate.want_poll(now)
        if self._next_poll is not None and now >= self._next_poll:
            self.request_poll(now)

    def request_poll(self, now: float) -> int:
        """Ask for one poll of everything as soon as possible; the serial of the first that begins after this call."""
        current = self._current
        self._next_poll = None
        if current is None:
            return 1
        serial = current.serial + 1
        if current.state is not State.RUNNING:
            current.poll_wanted = True  # its first poll, or that of the socket which takes over
            return serial
        self._poll_started = now
        current.table.begin(now + self.epoch_offset)
        current.want_poll(now)
        return serial

    def flows(self) -> Iterable[tuple[Flow, Counts | None]]:
        """The open flows, with their last counts."""
        return self._current.table.flows() if self._current is not None else ()

    def statistics(self) -> dict[str, int]:
        """Counters about the subscription, by name."""
        result = dict(self._statistics)
        current = self._current
        if current is not None:
            for part in (current.receiver.statistics, current.table.statistics, current.statistics):
                result.update(part)
            result["sources"] = len(current.table.sources)
        return result

    @property
    def polling(self) -> bool:
        """True while a poll is under way."""
        return self._current is not None and self._current.busy

    @property
    def subscribed(self) -> bool:
        """True once the kernel has answered every subscription."""
        return self._current is not None and self._current.state is State.RUNNING

    @property
    def capabilities(self) -> Capabilities:
        """What this subscription can tell."""
        kernel, current = self.kernel, self._current
        providers = frozenset(current.providers) if current is not None else frozenset()
        return Capabilities(
            backend=self.backend,
            kernel=kernel.text,
            providers=providers,
            tcp_counts=True,
            udp_counts=True,
            per_medium_bytes=kernel.version >= (2422,),
            final_counts=kernel.has_counts_at_goodbye,
            short_lived=kernel.has_counts_at_goodbye,
            flows=self._visibility(),
            processes=Visibility.ALL,
            layout=kernel.layout.name,
            layout_proof=self.proof,
            receive_buffer=current.receive_buffer if current is not None else None,
            notes=self._notes(),
        )

    def _visibility(self) -> Visibility:
        """Whose flows are seen: no public kernel through macOS 26 hides any, later ones may."""
        if self._current is not None and self._own_uid is not None:
            owners = (flow.process.uid for flow, _ in self._current.table.flows() if flow.process is not None)
            if any(uid is not None and uid != self._own_uid for uid in owners):
                return Visibility.ALL
        return Visibility.ALL if self.kernel.version < (12378,) else Visibility.UNKNOWN

    def _notes(self) -> tuple[str, ...]:
        notes = list(self._proof_notes)
        if not self.kernel.known and self.proof is Proof.UNKNOWN:
            notes.append(
                f"{self.kernel.name} is newer than the layouts that were compiled; {self.kernel.layout.name} is assumed"
            )
        if not self.kernel.has_counts_at_goodbye:
            notes.append("this kernel reports a close up to a minute late and without final counts")
        if self.kernel.version > (12377, 99):
            notes.append("this kernel may show an ordinary user only that user's flows; root may see more")
        current = self._current
        if current is not None:
            notes.extend(
                f"{p.value}: refused (error {e})" for p, e in current.refused.items() if p in self.options.providers
            )
        return tuple(notes)

    # --- inside ------------------------------------------------------------------

    def _emit(self, event: AnyEvent) -> None:
        self._events.append(event)

    def _open(self, discovery: Discovery, *, muted: bool) -> Subscription:
        self._generation += 1
        channel = self._generation - 1
        self._commands.append(OpenChannel(channel, PURPOSE))
        subscription = Subscription(
            channel,
            self.translator,
            self._emit,
            self.options,
            generation=self._generation,
            discovery=discovery,
            muted=muted,
            on_ready=self._ready,
            on_gap=self._gap,
        )
        if self._current is not None:
            subscription.table.proven = self._current.table.proven
        return subscription

    def _subscription(self, channel: int) -> Subscription | None:
        for subscription in (self._current, self._candidate):
            if subscription is not None and subscription.channel == channel and subscription.state is not State.CLOSED:
                return subscription
        return None

    def _announced(self, subscription: Subscription) -> None:
        for source in reversed(subscription.table.sources.values()):
            if source.flow is not None or source.announced_ns is None or source.seen < 0:
                break
            source.seen = -1  # asked for once
            subscription.announced(source.ref)

    def _check_refusals(self, subscription: Subscription) -> None:
        """Fail when neither TCP nor UDP of those wanted was granted."""
        if subscription is not self._current or subscription.state is not State.RUNNING or self.failure is not None:
            return
        wanted = self.options.providers
        if subscription.providers or not subscription.refused:
            return
        errno = next(iter(subscription.refused.values()))
        names = ", ".join(sorted(p.value for p in wanted))
        self.failure = RequestError(f"subscription to {names}", errno, "the kernel refused every provider")

    def _ready(self, subscription: Subscription, complete: bool) -> None:
        """A poll of this subscription ended; `complete`: the kernel answered all that was asked."""
        if subscription is self._candidate:
            if complete:
                self._take_over(subscription)
            else:
                # The kernel is short of room: what it could not answer must not count as gone.
                tries = subscription.statistics["polls"] - 1
                self._candidate_poll = subscription._now + REOPEN_DELAYS[min(tries, len(REOPEN_DELAYS) - 1)]  # noqa: SLF001
            return
        self._prove(subscription)
        interval = self.options.interval
        if interval is None:
            self._next_poll = None
            return
        # The next poll is due an interval after this one began; missed turns are skipped.
        now = subscription._now  # noqa: SLF001
        due = self._poll_started + interval
        if due <= now:
            due = now + interval - (now - self._poll_started) % interval
        self._next_poll = due

    def _prove(self, subscription: Subscription) -> None:
        """Begin the proof of the layout after the first poll, conclude it after the next."""
        if self._verify:
            self._verify = False
            self._commands.append(Lookup(_OPEN_EVIDENCE, OpenEvidence()))
        elif self._probe is not None:
            self._probe_polls += 1
            if not self._probe.complete and self._probe_polls < PROOF_POLLS:
                subscription.poll_wanted = True
                return
            probe, self._probe = self._probe, None
            result = probe.conclude()
            subscription.receiver.watch(None)
            subscription.proving = False
            self.proof, self._proof_notes = result.proof, result.notes
            subscription.table.prove(result.codecs)
            self._commands.append(Lookup(_CLOSE_EVIDENCE, CloseEvidence()))

    def _gap(self, subscription: Subscription, count: int | None) -> None:  # noqa: ARG002
        """Announcements were lost for good: only another control socket sees the rest."""
        if subscription is self._current and self._candidate is None and self._resync_at is None:
            now = subscription._now  # noqa: SLF001
            self._resync_at = max(now, self._last_resync + RESYNC_PAUSE)

    def _resynchronise(self, now: float) -> None:
        if self._candidate is None:
            self._last_resync = now
            self._statistics["resynchronisations"] += 1
            self._candidate = self._open(Discovery.POLL, muted=True)

    def _lost(self, subscription: Subscription, now: float) -> None:
        """A control socket went away."""
        self._commands.append(CloseChannel(subscription.channel))
        subscription.state = State.CLOSED
        subscription.outbox.clear()
        if subscription is self._candidate:
            self._candidate = self._candidate_poll = None
            if self._current is not None and self._current.state is not State.CLOSED:
                self._resync_at = now + RESYNC_PAUSE
        elif subscription is self._current:
            self._next_poll = None
            self._emit(
                EventsLost(now + self.epoch_offset, LossCause.RESYNC, None, detail="the kernel control went away")
            )
        current = self._current
        if current is None or current.state is not State.CLOSED:
            return
        if self._reopen_tries >= len(REOPEN_DELAYS):
            self.failure = BackendUnavailableError(
                self.backend, UnavailableReason.MISSING, "the kernel control went away and cannot be opened again"
            )
            return
        self._reopen_at = now + REOPEN_DELAYS[self._reopen_tries]
        self._reopen_tries += 1

    def _take_over(self, candidate: Subscription) -> None:
        """The second socket knows everything: let it continue the flows of the first."""
        old, self._current, self._candidate = self._current, candidate, None
        self._candidate_poll = None
        self._reopen_tries = 0
        assert old is not None
        was_open = old.state is not State.CLOSED
        if was_open:
            self._commands.append(CloseChannel(old.channel))
            old.state = State.CLOSED
        table = candidate.table
        table.muted = False
        old.table.time, old.table.time_ns = table.time, table.time_ns
        partners, fresh, vanished = _pair(old.table.sources.values(), table.sources.values())
        for partner, source in partners:
            if _continue(partner, source) and source.flow is not None:
                counts = source.counts if source.counts is not None else Counts()
                self._emit(FlowUpdated(table.time, source.flow, counts, partner.counts))
        for source in vanished:
            old.table.gone(source)
        for source in fresh:
            source.preexisting = False
            if source.reported and source.flow is not None:
                table.statistics["flows_added"] += 1
                self._emit(FlowAdded(table.time, source.flow, source.counts, preexisting=False))
        for name, value in old.table.statistics.items():
            table.statistics[name] += value
        for name, value in old.receiver.statistics.items():
            candidate.receiver.statistics[name] += value
        candidate.providers |= old.providers & self.options.providers
        if was_open:
            self._emit(
                EventsLost(table.time, LossCause.RESYNC, None, detail="resynchronised on a second control socket")
            )
        # The poll of the new socket is one, and whoever waits for one of the old socket's gets another.
        candidate.serial = old.serial
        self._emit(PollCompleted(table.time, len(table.sources), True, candidate.serial))
        candidate.poll_wanted = old.poll_wanted or old.busy
        self._poll_started = candidate._now  # noqa: SLF001
        self._ready(candidate, True)


def _pair(
    old: Iterable[Source], new: Iterable[Source]
) -> tuple[list[tuple[Source, Source]], list[Source], list[Source]]:
    """Which sources of two control sockets are the same kernel socket.

    Returns:
        The pairs (old, new), what only the new socket knows, what only the old one did.
    """
    pairs: list[tuple[Source, Source]] = []
    left = [s for s in old if s.reported and s.flow is not None and s.reader is not None and s.reader.is_flow]
    fresh = list(new)
    for sign, ambiguous in ((_every_sign, True), (_creation, False), (_local_port, False), (_addresses, False)):
        waiting: dict[tuple[Any, ...], list[Source]] = {}
        for source in left:
            if (key := sign(source)) is not None:
                waiting.setdefault(key, []).append(source)
        rivals = Counter(sign(source) for source in fresh)
        unpaired = []
        for source in fresh:
            key = sign(source)
            partners = waiting.get(key, []) if key is not None else []
            if partners and (ambiguous or len(partners) == rivals[key] == 1):
                pairs.append((partners.pop(0), source))
            else:
                unpaired.append(source)
        found = {id(partner) for partner, _ in pairs}
        left, fresh = [source for source in left if id(source) not in found], unpaired
    return pairs, fresh, left


def _every_sign(source: Source) -> tuple[Any, ...] | None:
    flow = source.flow
    if flow is None:
        return None
    owner = flow.process.key if flow.process is not None else None
    return (source.provider_id, source.start_ticks, owner, flow.local, flow.remote)


def _creation(source: Source) -> tuple[Any, ...] | None:
    """The moment of its creation, to the tick: it may have been bound, connected or handed over since."""
    return None if source.start_ticks is None else (source.provider_id, source.start_ticks)


def _local_port(source: Source) -> tuple[Any, ...] | None:
    """Its owner's local port: it may have been connected since."""
    flow = source.flow
    if flow is None or flow.local is None or flow.process is None:
        return None
    return (source.provider_id, source.start_ticks, flow.process.key, flow.local.port)


def _addresses(source: Source) -> tuple[Any, ...] | None:
    """Both ends of a connection, whoever has it now."""
    flow = source.flow
    if flow is None or flow.remote is None:
        return None
    return (source.provider_id, source.start_ticks, flow.local, flow.remote)


def _continue(old: Source, new: Source) -> bool:
    """Make a source of the new socket carry on a flow of the old one; True if it looks different now."""
    new.id, new.preexisting, new.announced_ns = old.id, old.preexisting, old.announced_ns
    flow, before = new.flow, old.flow
    assert flow is not None
    assert before is not None
    merged = attrs.evolve(
        flow, id=old.id, started_ns=before.started_ns or flow.started_ns, direction=flow.direction or before.direction
    )
    new.flow = before if merged == before else merged
    if old.counts is None or old.raw is None or new.counts is None or new.raw is None:
        return new.flow is not before or new.counts is not old.counts
    assert new.reader is not None
    values = advance(unpacked(raw_values(old.counts)), unpacked(old.raw), unpacked(new.raw))
    new.counts = make_counts(new.reader, values)
    return new.flow is not before or new.counts != old.counts

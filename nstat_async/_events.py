"""What the user iterates: one frozen class for each event, one union of all.

The names are participles, from the observer's point of view. ``match`` on the class and use
keyword patterns: fields may be added, and their order may change.
Constructors take plain values, so tests and programs can make events too. An event of a core is one
object, which keeps what the kernel sent and makes `Counts` and `Details` of it when they are read.
"""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, Union

import attrs

from ._model import (
    Counts,
    CountsForm,
    Delta,
    Details,
    DetailsSource,
    Endpoint,
    Flow,
    Four,
    Interface,
    Outcome,
    Provider,
)


class RemovalReason(enum.Enum):
    """Why a flow left the monitor's view."""

    CLOSED = "closed"
    """It ended, and the kernel said so in full."""
    DROPPED = "dropped"
    """It ended, and the kernel could not deliver its final report."""
    FILTERED = "filtered"
    """It ended or ceased to match, and a filter held its report back."""
    GONE = "gone"
    """It does not exist any more; its removal was not reported, and its absence was confirmed."""
    MONITOR = "monitor"
    """The monitor gave it up (it told the kernel so, or stopped); the flow may live on."""


class LossCause(enum.Enum):
    """What made a gap in the stream."""

    ANNOUNCEMENT = "announcement"
    """The kernel could not announce new sources; they were never seen."""
    BATCH = "batch"
    """Reports of a poll did not arrive; the next poll repairs it."""
    FINAL_COUNTS = "final_counts"
    """A flow ended without its final counts."""
    GOODBYE = "goodbye"
    """Flows came and went, or went, without a report."""
    OVERFLOW = "overflow"
    """The consumer was too slow: its buffer gave up closed flows; `EventsLost.counts` has their sum."""
    KERNEL_BUFFER = "kernel_buffer"
    """The kernel reported that its queue to the monitor overflowed."""
    PROTOCOL = "protocol"
    """Bytes could not be decoded."""
    RESYNC = "resync"
    """The kernel's stream was reopened; flows that lived only in between are unknown."""
    RECORDING = "recording"
    """A recording is damaged or ends in the middle of a record, or its replay differs from the recorded run."""
    LIMIT = "limit"
    """A limit of memory was reached; the detail says which. What is beyond it is not reported."""
    TRANSPORT = "transport"
    """Messages of a machine of a fleet were lost or could not be read. Flows that came and went meanwhile are unknown;
    the machine's next complete state corrects all others."""
    SILENCE = "silence"
    """The kernel's side did not answer, and said nothing else for some seconds. What happens meanwhile is known when it does."""


class Auxiliary(enum.Enum):
    """Helpers of a monitor, which may fail without ending it."""

    LOOKUP = "lookup"
    """A look-up on the machine, such as who owns a socket: the values that it would have given are `None`."""
    THREAD = "thread"
    """A worker thread, in which look-ups run, could not be started."""
    RECORDER = "recorder"
    """The recording ended early; the file holds what came before."""


class HostState(enum.Enum):
    """What is known of a machine of a fleet."""

    PRESENT = "present"
    """It reports: its flows are known as of its last message."""
    SILENT = "silent"
    """Nothing came from it for longer than it promised: its flows are shown as they were last known."""
    LEFT = "left"
    """It said that it stops, or was forgotten after a long silence: its flows are not known any more."""


def silent_hosts(hosts: Mapping[str, HostState]) -> list[str]:
    """The names of the machines that are silent, in order."""
    return sorted(host for host, state in hosts.items() if state is HostState.SILENT)


@attrs.frozen
class Event:
    """Base of all events."""

    time: float
    """When it was observed, seconds since the epoch."""


@attrs.frozen
class _OfHost(Event):
    """The field of all events that are not about a flow, whose `Flow.host` says the same."""

    host: str | None = attrs.field(default=None, kw_only=True)
    """The machine that the event is about, in a fleet; `None` for this machine."""


class ReportReader(Protocol):
    """Makes values of a kernel's report."""

    form: CountsForm | None
    """Where the counters are in the kernel's own form; `None`: only `counts` can read it."""

    def counts(self, raw: Any) -> Counts:
        """The counters, made of the kernel's own form."""

    def details(self, report: Report) -> Details | None:
        """The samples of a report; `None` when it has none."""


Report = tuple[ReportReader, bytes, int, int, int, int, Any, Any]
"""What an event of a core is made of: the reader; the datagram; offsets of the descriptor, of the items behind it, and of
their end; wall clock in nanoseconds (negative: no samples); the counters, and those of the event before, as sent."""
_COUNTS, _PREVIOUS = 6, 7
_Details = Union[Details, DetailsSource, Report, None]


@attrs.frozen
class _Samples:
    """The samples of a report, for an event whose counters are not the report's."""

    report: Report

    def details(self) -> Details | None:
        """The samples, decoded."""
        return self.report[0].details(self.report)


def _apart(found: _Details) -> Any:
    """The details that an update's constructor got; of a report only its samples, because its counters are in `counts`."""
    return _Samples(found) if isinstance(found, tuple) else found


@attrs.frozen
class FlowEvent(Event):
    """Base of the events of one flow: `FlowAdded`, `FlowUpdated` and `FlowRemoved`."""

    flow: Flow
    """The flow, as known at this moment."""
    counts: Counts | None
    """Its totals; `None` while there is no report."""

    _details: ClassVar[Any]

    @property
    def host(self) -> str | None:
        """The machine that the flow is on, in a fleet: `Flow.host`."""
        return self.flow.host

    @property
    def details(self) -> Details | None:
        """Samples of the last report, decoded when read; `None` if it had none. Not compared by ``==``."""
        found = self._details
        if found.__class__ is tuple:
            return found[0].details(found)  # type: ignore[no-any-return]  # a report: its class was compared, which narrows nothing
        return found if found is None or isinstance(found, Details) else found.details()

    @property
    def raw_details(self) -> Details | DetailsSource | Report | None:
        """What `details` are decoded from, to pass it on without decoding."""
        return self._details  # type: ignore[no-any-return]  # each class has its own, as below

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy or a pickle has decoded values: the kernel's own bytes would need their decoder.
        return type(self), tuple(getattr(self, name) for name in self.__match_args__)


def _read_later(owner: type, name: str, place: int, doc: str) -> Any:
    """Make an attribute that is read from the report on first use, unless the constructor got it; returns its slot."""
    slot = owner.__dict__[name]
    put, hidden = slot.__set__, f"_kept_{name}"

    def read(event: Any) -> Any:
        value = getattr(event, hidden, None)
        if value is None:
            report = event._details  # noqa: SLF001  # of this module's classes
            if report.__class__ is tuple and report[place] is not None:
                value = report[0].counts(report[place])
                put(event, value)
        return value

    setattr(owner, hidden, slot)
    setattr(owner, name, property(read, put, doc=doc))
    return slot


_read_later(FlowEvent, "counts", _COUNTS, "Its totals; `None` when no report came yet.")


@attrs.frozen
class FlowAdded(FlowEvent):
    """A flow is seen for the first time."""

    __match_args__ = ("time", "flow", "counts", "preexisting", "details")

    preexisting: bool
    """True if the flow existed before the subscription. macOS 10.13 and later: by its start (`Flow.started_ns`). That is
    known to a few milliseconds, so a flow that began just before the subscription may count as new."""
    _details: _Details = attrs.field(default=None, repr=False, eq=False)  # type: ignore[misc]  # each class has its own


@attrs.frozen
class FlowUpdated(FlowEvent):
    """A flow's counters or facts changed."""

    __match_args__ = ("time", "flow", "counts", "previous", "details")

    counts: Counts
    """Its totals now."""
    previous: Counts | None
    """Its totals at the previous event that this consumer got; `None` if that had none."""
    _details: _Details = attrs.field(default=None, converter=_apart, repr=False, eq=False)  # type: ignore[misc]  # as above

    @property
    def delta(self) -> Delta:
        """What was added since the previous event; never negative. Everything since the flow began if `previous` is `None`."""
        return Delta.between(self.previous, self.counts)


_PREVIOUSLY = "Its totals at the previous event that this consumer got; `None` when there were none."
_inherited: Any = FlowEvent.__dict__["counts"]
FlowUpdated.counts = property(_inherited.fget, _inherited.fset, doc="Its totals now.")  # type: ignore[assignment]  # one
_set_previous = _read_later(FlowUpdated, "previous", _PREVIOUS, _PREVIOUSLY).__set__


def _draft_of(owner: type[FlowEvent]) -> Any:
    """A class of unfinished events: its fields can be set in a third of the time, then `__class__` makes the real event."""
    # CPython writes to slots directly only if both methods are its own.
    own = {name: getattr(object, name) for name in ("__init__", "__setattr__", "__delattr__")}
    return type(f"{owner.__name__}Draft", (FlowEvent,), {"__slots__": owner.__slots__, **own})  # type: ignore[attr-defined]  # made by attrs


UpdateDraft = _draft_of(FlowUpdated)
_AddedDraft = _draft_of(FlowAdded)


def flow_added(
    time: float,
    flow: Flow,
    counts: Counts | None,
    preexisting: bool,  # as the event has it
    details: DetailsSource | Report | None,
) -> FlowAdded:
    """A `FlowAdded` of a core."""
    event: Any = _AddedDraft()
    event.time, event.flow, event.preexisting = time, flow, preexisting
    event._kept_counts, event._details = counts, details  # noqa: SLF001  # of this module
    event.__class__ = FlowAdded
    return event  # type: ignore[no-any-return]


def flow_updated(time: float, flow: Flow, report: Report) -> FlowUpdated:
    """A `FlowUpdated` of a core: its counters are made of the report when they are read."""
    event: Any = UpdateDraft()
    event.time, event.flow, event._details = time, flow, report  # noqa: SLF001  # of this module
    event.__class__ = FlowUpdated
    return event  # type: ignore[no-any-return]


_KERNELS_FOUR = ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes")


@functools.cache
def _four_reader(form: CountsForm) -> Callable[[bytes], Four] | None:
    """A function that reads the four counters of `Delta` from the kernel's own form; `None` if they are not its first."""
    if [form.places.get(name, (None, 0))[:2] for name in _KERNELS_FOUR] != [(0, 8), (8, 8), (16, 8), (24, 8)]:
        return None
    unpack = struct.Struct("<4Q").unpack_from

    def read(raw: bytes) -> Four:
        rx_packets, rx_bytes, tx_packets, tx_bytes = unpack(raw)
        return rx_bytes, tx_bytes, rx_packets, tx_packets

    return read


def four_of(event: FlowEvent) -> Four:
    """Bytes and packets of an event's counts, without making `Counts` if possible: for code that reads many events."""
    report = event._details  # noqa: SLF001  # of this module
    if event.__class__ is FlowUpdated and report.__class__ is tuple:
        reader, raw = report[0], report[_COUNTS]
        if raw.__class__ is bytes and reader.form is not None and len(raw) == reader.form.size:
            read = _four_reader(reader.form)
            if read is not None:
                return read(raw)
    counts = event.counts
    if counts is None:
        return None, None, None, None
    return counts.rx_bytes, counts.tx_bytes, counts.rx_packets, counts.tx_packets


def coalesced(older: FlowUpdated, newer: FlowUpdated) -> FlowUpdated:
    """The newer of two updates of a flow, as a consumer needs it that did not get the older one."""
    report, earlier = newer.raw_details, older.raw_details
    if not isinstance(report, tuple):
        return FlowUpdated(newer.time, newer.flow, newer.counts, older.previous, report)
    reader, data, at, end, items_end, time_ns, counts, _ = report
    before = earlier[_PREVIOUS] if isinstance(earlier, tuple) and earlier[0] is reader else None
    event = flow_updated(newer.time, newer.flow, (reader, data, at, end, items_end, time_ns, counts, before))
    if before is None:
        _set_previous(event, older.previous)
    return event


@attrs.frozen
class FlowRemoved(FlowEvent):
    """A flow ended, or the monitor does not see it any more."""

    __match_args__ = ("time", "flow", "counts", "final", "reason", "details", "uncertainty")

    final: bool
    """True only if `counts` are the flow's very last, to the byte."""
    reason: RemovalReason
    """Why the flow was removed."""
    _details: _Details = attrs.field(default=None, repr=False, eq=False)  # type: ignore[misc]  # as above
    uncertainty: int | None = None
    """By how many bytes ``counts.rx_bytes`` may be wrong, up or down, if these are the kernel's last counts and still not
    `final`. Linux without eBPF: 1 if nothing tells whether the other end's FIN, which the kernel counts as a byte, is
    among them; the `outcome` is then the likelier one. `None`: the counts are exact, or nothing is known."""

    @property
    def outcome(self) -> Outcome | None:
        """How the connection ended: that of its `flow`."""
        return self.flow.outcome


@attrs.frozen
class PollCompleted(_OfHost):
    """One poll of all flows is over."""

    flows: int
    """Flows known at this moment."""
    complete: bool
    """False if something is known to be missing: a part of the answer, or a flow that the kernel announced."""
    serial: int | None = None
    """Number of the poll: `Monitor.poll_now` waits for a poll that began after the call.
    `None` where polls are not numbered."""


@attrs.frozen
class EventsLost(_OfHost):
    """A gap: something happened that the stream does not have."""

    cause: LossCause
    """What made the gap."""
    count: int | None
    """How many flows or messages were lost; `None` if that is unknown."""
    counts: Counts | None = None
    """The lost bytes and packets, if they are known."""
    detail: str | None = None
    """More about it, for a person."""


@attrs.frozen
class ProviderRefused(_OfHost):
    """The kernel refused one provider of the subscription; the others go on."""

    provider: Provider
    """Which one."""
    errno: int
    """The kernel's error number (Darwin's, for a Darwin kernel)."""
    detail: str
    """What it means, for a person."""


@attrs.frozen
class AuxiliaryFailed(_OfHost):
    """A helper of the monitor failed; the monitor goes on without it.

    It is reported once, and again only if it worked in between. `MonitorStatistics.feed`
    counts every failure (``failed_lookup``, ``failed_thread``, ``failed_recorder``).
    """

    auxiliary: Auxiliary
    """What failed."""
    detail: str
    """What failed and why, for a person."""


@attrs.frozen
class InterfaceUpdated(_OfHost):
    """Counters of a watched interface (privileged extra on Darwin)."""

    interface: Interface
    """Which one."""
    counts: Counts
    """Its totals."""
    description: str | None
    """The interface's long name."""
    threshold: int | None
    """Bytes after which the kernel reports without being asked."""
    link: tuple[tuple[str, int], ...] = ()
    """Link quality values that the kernel marked valid, by the kernel's names."""


@attrs.frozen
class RouteUpdated(_OfHost):
    """Counters of a route (Darwin)."""

    id: str
    """Unique while the monitor lives."""
    destination: Endpoint | None
    """Network or host that it leads to."""
    mask: Endpoint | None
    """Mask of the destination; `None` for a host."""
    gateway: Endpoint | None
    """Next hop, where there is one."""
    interface: Interface | None
    """Interface that it leads through, where that is known."""
    flags: int
    """``RTF_*`` bits."""
    counts: Counts
    """Its totals."""
    removed: bool = False
    """True when the route went away."""


@attrs.frozen
class SystemInfo(_OfHost):
    """System-wide statistics as key and value (privileged on Darwin)."""

    values: tuple[tuple[int, int | float | str], ...]
    """The kernel's key numbers with their values."""


@attrs.frozen
class Unrecognized(_OfHost):
    """A message of a newer kernel that this library does not know."""

    number: int
    """The message's type number."""
    data: bytes
    """The whole message."""


@attrs.frozen
class HostUpdated(_OfHost):
    """A machine of a fleet came, became silent, left, or says something new about itself."""

    state: HostState
    """What is known of it."""
    machine_id: str | None = None
    """The machine's own id: Linux ``/etc/machine-id``, macOS ``IOPlatformUUID``; `None` if it is not known."""
    boot_id: str | None = None
    """Distinguishes this boot of the machine from others; `None` if it is not known."""
    labels: tuple[tuple[str, str], ...] = ()
    """Names and values that the publisher was given for the machine."""
    clock_offset: float | None = None
    """Seconds by which its clock is ahead of the server's, by its messages; the time that these took is part of it. If it is
    more than two seconds, the times of its events are corrected by it. `None` while it is not known."""
    last_heard: float | None = None
    """When its last message came, on the server's clock, seconds since the epoch."""
    detail: str | None = None
    """More about it, for a person."""


AnyEvent = Union[
    FlowAdded,
    FlowUpdated,
    FlowRemoved,
    PollCompleted,
    EventsLost,
    ProviderRefused,
    AuxiliaryFailed,
    InterfaceUpdated,
    RouteUpdated,
    SystemInfo,
    Unrecognized,
    HostUpdated,
]
"""Every event that there is; end a ``match`` over it with ``typing.assert_never``."""

"""What the user iterates: one frozen class an event, one union of all.

Names are participles from the observer's place. ``match`` on the class and use
keyword patterns: fields may be added, their order is not promised.
"""

from __future__ import annotations

import enum
from typing import Union

import attrs

from ._model import Counts, Delta, Details, DetailsSource, Endpoint, Flow, Interface, Provider

__all__ = [
    "AnyEvent",
    "Auxiliary",
    "AuxiliaryFailed",
    "Event",
    "EventsLost",
    "FlowAdded",
    "FlowRemoved",
    "FlowUpdated",
    "InterfaceUpdated",
    "LossCause",
    "PollCompleted",
    "ProviderRefused",
    "RemovalReason",
    "RouteUpdated",
    "SystemInfo",
    "Unrecognized",
]


class RemovalReason(enum.Enum):
    """Why a flow left the picture."""

    CLOSED = "closed"
    """It ended, and the kernel said so in full."""
    DROPPED = "dropped"
    """It ended, and the kernel could not deliver its final report."""
    FILTERED = "filtered"
    """It ended, or ceased to match: a filter held its report back."""
    GONE = "gone"
    """It is no longer there; the goodbye was lost and its absence was confirmed."""
    MONITOR = "monitor"
    """The observer gave it up (it asked the kernel to, or stopped); the flow may live on."""


class LossCause(enum.Enum):
    """What made a gap in the stream."""

    ANNOUNCEMENT = "announcement"
    """The kernel could not announce new sources; they were never seen."""
    BATCH = "batch"
    """Reports of a poll did not arrive; the next one repairs it."""
    FINAL_COUNTS = "final_counts"
    """A flow ended without its final counts."""
    GOODBYE = "goodbye"
    """Flows came and went, or went, without a word."""
    OVERFLOW = "overflow"
    """The consumer was too slow: its buffer gave up closed flows; `EventsLost.counts` has their sum."""
    KERNEL_BUFFER = "kernel_buffer"
    """The kernel reported that its queue to us overflowed."""
    PROTOCOL = "protocol"
    """Bytes could not be decoded."""
    RESYNC = "resync"
    """The kernel's stream was reopened; flows that lived only in between are unknown."""
    RECORDING = "recording"
    """A recording is damaged or ends in the middle of a record, or its replay is no longer the run."""


class Auxiliary(enum.Enum):
    """What works beside a monitor, and may fail without ending it."""

    LOOKUP = "lookup"
    """A question to the machine, such as who owns a socket: what it would have told is `None`."""
    THREAD = "thread"
    """A worker thread, which look-ups run in, could not be started."""
    RECORDER = "recorder"
    """The recording ended early; the file holds what came before."""


@attrs.frozen
class Event:
    """Base of all events."""

    time: float
    """When it was observed, seconds since the epoch."""


@attrs.frozen
class _FlowEvent(Event):
    flow: Flow
    """The flow, as known at this moment."""


@attrs.frozen
class FlowAdded(_FlowEvent):
    """A flow is seen for the first time."""

    counts: Counts | None
    """Its totals so far; `None` when no report came yet."""
    preexisting: bool
    """True when it existed before the subscription."""
    raw_details: DetailsSource | None = attrs.field(default=None, repr=False, eq=False)
    """Where `details` come from."""

    @property
    def details(self) -> Details | None:
        """Samples of this report, decoded when read; `None` when it had none."""
        return None if self.raw_details is None else self.raw_details.details()


@attrs.frozen
class FlowUpdated(_FlowEvent):
    """A flow's counters or facts changed."""

    counts: Counts
    """Its totals now."""
    previous: Counts | None
    """Its totals at the previous event that this consumer got; `None` when there were none."""
    raw_details: DetailsSource | None = attrs.field(default=None, repr=False, eq=False)
    """Where `details` come from."""

    @property
    def delta(self) -> Delta:
        """What was added since the previous event; never negative."""
        return Delta.between(self.previous, self.counts)

    @property
    def details(self) -> Details | None:
        """Samples of this report, decoded when read; `None` when it had none."""
        return None if self.raw_details is None else self.raw_details.details()


_new = object.__new__
_set_time = Event.__dict__["time"].__set__
_set_flow = _FlowEvent.__dict__["flow"].__set__
_set_counts = FlowUpdated.__dict__["counts"].__set__
_set_previous = FlowUpdated.__dict__["previous"].__set__
_set_details = FlowUpdated.__dict__["raw_details"].__set__


def flow_updated(
    time: float, flow: Flow, counts: Counts, previous: Counts | None, raw_details: DetailsSource | None
) -> FlowUpdated:
    """``FlowUpdated(…)`` for hot paths: to fill the slots directly takes a third of a frozen class's time."""
    event = _new(FlowUpdated)
    _set_time(event, time)
    _set_flow(event, flow)
    _set_counts(event, counts)
    _set_previous(event, previous)
    _set_details(event, raw_details)
    return event


@attrs.frozen
class FlowRemoved(_FlowEvent):
    """A flow ended, or left the monitor's view."""

    counts: Counts | None
    """Its last known totals; `None` when none were ever reported."""
    final: bool
    """True only when `counts` are the flow's very last."""
    reason: RemovalReason
    raw_details: DetailsSource | None = attrs.field(default=None, repr=False, eq=False)
    """Where `details` come from."""

    @property
    def details(self) -> Details | None:
        """Samples of the last report, decoded when read; `None` when it had none."""
        return None if self.raw_details is None else self.raw_details.details()


@attrs.frozen
class PollCompleted(Event):
    """The kernel finished answering a question about all sources."""

    flows: int
    """Flows known at this moment."""
    complete: bool
    """False when something is known to be missing from the answer."""
    serial: int | None = None
    """Number of the poll: `Monitor.poll_now` waits for that of a poll which began after it was called.
    `None` where polls are not numbered."""


@attrs.frozen
class EventsLost(Event):
    """A gap: something happened and is not in the stream."""

    cause: LossCause
    count: int | None
    """How many flows or messages; `None` when that is unknown."""
    counts: Counts | None = None
    """The bytes and packets concerned, where they are known."""
    detail: str | None = None
    """More about it, for a person."""


@attrs.frozen
class ProviderRefused(Event):
    """The kernel refused one provider of the subscription; the others go on."""

    provider: Provider
    errno: int
    """The kernel's error number (Darwin's, for a Darwin kernel)."""
    detail: str


@attrs.frozen
class AuxiliaryFailed(Event):
    """Something beside the kernel's conversation failed; the monitor goes on without it.

    Reported once, and again only after it worked in between. `MonitorStatistics.feed`
    counts every failure (``failed_lookup``, ``failed_thread``, ``failed_recorder``).
    """

    auxiliary: Auxiliary
    detail: str
    """What failed and why, for a person."""


@attrs.frozen
class InterfaceUpdated(Event):
    """Counters of a watched interface (privileged extra on Darwin)."""

    interface: Interface
    counts: Counts
    description: str | None
    """The interface's long name."""
    threshold: int | None
    """Bytes after which the kernel reports by itself."""
    link: tuple[tuple[str, int], ...] = ()
    """Link quality values that the kernel marked valid, by the kernel's names."""


@attrs.frozen
class RouteUpdated(Event):
    """Counters of a route (Darwin)."""

    id: str
    """Unique while the monitor lives."""
    destination: Endpoint | None
    mask: Endpoint | None
    gateway: Endpoint | None
    interface: Interface | None
    flags: int
    """``RTF_*`` bits."""
    counts: Counts
    removed: bool = False
    """True when the route went away."""


@attrs.frozen
class SystemInfo(Event):
    """System-wide statistics as key and value (privileged on Darwin)."""

    values: tuple[tuple[int, int | float | str], ...]
    """The kernel's key numbers with their values."""


@attrs.frozen
class Unrecognized(Event):
    """Something a newer kernel said that this library has no word for."""

    number: int
    """The message's type number."""
    data: bytes
    """The whole message."""


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
]
"""Every event there is; close a ``match`` over it with ``typing.assert_never``."""

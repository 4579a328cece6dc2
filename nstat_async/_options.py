"""The options of a monitor: one frozen value, validated once."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, TypeVar

import attrs

from ._checks import LONGEST_SECONDS, check_flag, check_predicate, positive
from ._errors import UsageError
from ._model import Provider
from .recording import Recording, Target

_E = TypeVar("_E", bound=enum.Enum)

SHORTEST_PULSE = 0.001
"""Seconds: whoever looks more often spends the time on looking."""
_LARGEST_BUFFER = 2**31 - 1
"""``SO_RCVBUF`` is an int."""
DEFAULT_PROVIDERS = frozenset({Provider.TCP, Provider.UDP, Provider.QUIC})
"""Everything that carries traffic and needs no privilege."""


class Overflow(enum.Enum):
    """What happens when the consumer is slower than the kernel."""

    COALESCE = "coalesce"
    """At most one pending update a flow; past the limit the oldest flows that came
    and went are given up, with their sum in `EventsLost`. Totals stay right."""
    BLOCK = "block"
    """Stop reading; the kernel will drop, and the stream will say so."""
    ALL = "all"
    """Keep everything: unbounded, for recorders that must see each report."""


class Ebpf(enum.Enum):
    """Whether a Linux monitor uses eBPF programs of its own."""

    AUTO = "auto"
    """Where the kernel and the process's privileges allow it; `Capabilities.ebpf` says how much of it."""
    REQUIRE = "require"
    """Or fail with what is missing."""
    OFF = "off"
    """Never: sock_diag and ``/proc`` alone."""


class Discovery(enum.Enum):
    """How new flows of a Darwin kernel are found."""

    POLL = "poll"
    """Announcements are suppressed and polls find the flows: nothing is lost, short-lived flows included."""
    ANNOUNCE = "announce"
    """The kernel announces each new source at once; losses show as gaps in reference numbers."""


def providers_of(name: str, value: Any) -> frozenset[Provider]:
    """The members that providers stand for, by themselves or by name.

    Raises:
        UsageError: One of them is none.
    """
    members = set()
    for item in value if isinstance(value, Iterable) and not isinstance(value, str) else (value,):
        try:
            members.add(Provider(item))
        except ValueError:
            raise UsageError(f"{name}: {item!r} is none of {', '.join(p.value for p in Provider)}") from None
    return frozenset(members)


def _providers(value: Iterable[Provider | str] | Provider | str) -> frozenset[Provider]:
    members = providers_of("providers", value)
    if not members:
        raise UsageError("providers: at least one is needed")
    return members


def _filter(_instance: object, _attribute: Any, value: Any) -> None:
    if value is not None:
        check_predicate("flow_filter", value)


def _recording(value: Target | Recording | None) -> Recording | None:
    return value if value is None or isinstance(value, Recording) else Recording(value)


def _member(kind: type[_E], value: _E | str) -> _E:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(m.value) for m in kind)
        raise UsageError(f"{kind.__name__.lower()}: {value!r} is none of {known}") from None


def _discovery(value: Discovery | str) -> Discovery:
    return _member(Discovery, value)


def _ebpf(value: Ebpf | str) -> Ebpf:
    return _member(Ebpf, value)


def _overflow(value: Overflow | str | None) -> Overflow | None:
    return None if value is None else _member(Overflow, value)


@attrs.frozen(kw_only=True)
class MonitorOptions:
    """How to watch. `Monitor` takes the same names as keywords."""

    providers: frozenset[Provider] = attrs.field(default=DEFAULT_PROVIDERS, converter=_providers)
    """Which kinds of flows."""
    interval: float | None = attrs.field(default=1.0, validator=positive(optional=True, most=LONGEST_SECONDS))
    """Seconds between polls; `None`: only what the kernel volunteers, and `Monitor.poll_now` (on macOS also one poll a minute, which
    shows whether the kernel left anything out)."""
    discovery: Discovery = attrs.field(default=Discovery.POLL, converter=_discovery)
    """How a Darwin kernel's new flows are found."""
    ebpf: Ebpf = attrs.field(default=Ebpf.AUTO, converter=_ebpf)
    """Linux: whether eBPF programs are used: for UDP bytes, and for the process of every flow however short."""
    pulse: float | None = attrs.field(
        default=0.02, validator=positive(optional=True, most=LONGEST_SECONDS, least=SHORTEST_PULSE)
    )
    """Linux: seconds between two looks at the kernel's counters of opened connections, so that the processes of short
    flows are found without privilege: 0.02 for those of 50 ms, 0.005 for those of 10 ms; `None`: none. They take at most
    2 % of a CPU, and more only the shorter the pause is than 0.02, which may be 0.001 at least. Not where eBPF programs report flows by themselves."""
    every_update: bool = attrs.field(default=False, validator=check_flag)
    """True: an update for each report, changed or not. False: only for changes."""
    extras: bool = attrs.field(default=False, validator=check_flag)
    """Also ask for what needs privilege or costs more: domain names, flow ids, Bluetooth
    counters, system information, per-medium details. What is refused is left out."""
    flow_filter: Any = attrs.field(default=None, validator=_filter)
    """A `nstat_async.filters.Filter` or a predicate on flows; `None` passes all."""
    max_pending: int = attrs.field(default=10_000, validator=positive(whole=True))
    """Events that may wait for the consumer before the overflow policy acts."""
    overflow: Overflow | None = attrs.field(default=None, converter=_overflow)
    """What to do then; `None`: ``coalesce`` for a kernel, ``block`` for a recording, which can wait."""
    receive_buffer: int | None = attrs.field(
        default=None, validator=positive(optional=True, whole=True, most=_LARGEST_BUFFER)
    )
    """Receive buffer to ask for, bytes; `None`: the largest that is granted, up to a sensible size."""
    record_to: Recording | None = attrs.field(default=None, converter=_recording)
    """Also write the kernel conversation to this file: JSON Lines if its name ends in
    ``.jsonl``, else the library's own format. `Recording` says more: limits, and parts."""
    strict: bool = attrs.field(default=False, validator=check_flag)
    """True: undecodable bytes raise `ProtocolError` instead of becoming `EventsLost`."""


def refuse_ebpf(options: MonitorOptions, backend: str) -> None:
    """Called by a backend that has no eBPF programs.

    Raises:
        UsageError: They are required.
    """
    if options.ebpf is Ebpf.REQUIRE:
        raise UsageError(
            f"ebpf: 'require' is for the backend sock_diag of a Linux machine; {backend} has no eBPF programs"
        )


STEERING = ("providers", "interval", "discovery", "pulse", "extras", "receive_buffer")
"""The options that steer a core's conversation; the others only say what is made of its events."""

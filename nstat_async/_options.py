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
"""Seconds: with a shorter pause, the looks would take most of the time."""
_LARGEST_BUFFER = 2**31 - 1
"""``SO_RCVBUF`` is an int."""
DEFAULT_PROVIDERS = frozenset({Provider.TCP, Provider.UDP, Provider.QUIC})
"""All providers that carry traffic and need no privilege."""


class Overflow(enum.Enum):
    """What happens when the consumer is slower than the kernel."""

    COALESCE = "coalesce"
    """Keep at most one pending update per flow; beyond the limit give up the oldest flows that came
    and went, with their sum in `EventsLost`. Totals stay right."""
    BLOCK = "block"
    """Stop reading; the kernel will drop reports, and the stream will say so."""
    ALL = "all"
    """Keep everything: unbounded, for recorders that must see each report."""


class Ebpf(enum.Enum):
    """Whether a Linux monitor uses eBPF programs of its own."""

    AUTO = "auto"
    """Yes, as far as the kernel and the process's privileges allow; `Capabilities.ebpf` says how far."""
    REQUIRE = "require"
    """Yes; opening fails if it is not possible, and says what is missing."""
    OFF = "off"
    """No: only sock_diag and ``/proc``."""


class Discovery(enum.Enum):
    """How new flows of a Darwin kernel are found."""

    POLL = "poll"
    """Announcements are suppressed and polls find the flows: nothing is lost, short-lived flows included."""
    ANNOUNCE = "announce"
    """The kernel announces each new source at once; losses show as gaps in reference numbers."""


def providers_of(name: str, value: Any) -> frozenset[Provider]:
    """Providers, given as members or by name.

    Raises:
        UsageError: One of them is not a provider.
    """
    members = set()
    for item in value if isinstance(value, Iterable) and not isinstance(value, str) else (value,):
        try:
            members.add(Provider(item))
        except ValueError:
            raise UsageError(f"{name}: {item!r} is not one of {', '.join(p.value for p in Provider)}") from None
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
        raise UsageError(f"{kind.__name__.lower()}: {value!r} is not one of {known}") from None


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
    """Seconds between polls; `None`: only what the kernel reports by itself, and `Monitor.poll_now`. (On macOS there is
    still one poll a minute, to see whether the kernel left anything out.)"""
    discovery: Discovery = attrs.field(default=Discovery.POLL, converter=_discovery)
    """How a Darwin kernel's new flows are found."""
    ebpf: Ebpf = attrs.field(default=Ebpf.AUTO, converter=_ebpf)
    """Linux: whether eBPF programs are used, for UDP bytes and for the process of every flow, however short it is."""
    pulse: float | None = attrs.field(
        default=0.02, validator=positive(optional=True, most=LONGEST_SECONDS, least=SHORTEST_PULSE)
    )
    """Linux: seconds (at least 0.001) between two looks at the kernel's counters of opened connections, which find the
    processes of short flows without privilege: 0.02 for flows of 50 ms, 0.005 for flows of 10 ms; `None`: no looks. They take
    at most 2 % of a CPU with a pause of 0.02, and more with a shorter one. Not used where eBPF programs report the flows."""
    every_update: bool = attrs.field(default=False, validator=check_flag)
    """True: an update for each report, changed or not. False: updates for changes only."""
    extras: bool = attrs.field(default=False, validator=check_flag)
    """Also ask for what needs privilege or costs more. macOS: domain names, flow ids, Bluetooth counters, system information,
    details per medium; what is refused is left out. Linux: buffers of TCP, command lines, all holders of a socket."""
    flow_filter: Any = attrs.field(default=None, validator=_filter)
    """A `nstat_async.filters.Filter` or a predicate on flows; `None` passes all."""
    max_pending: int = attrs.field(default=10_000, validator=positive(whole=True))
    """Events that may wait for the consumer before the overflow policy acts."""
    overflow: Overflow | None = attrs.field(default=None, converter=_overflow)
    """What happens beyond that; `None`: ``coalesce`` for a kernel, ``block`` for a recording, which can wait."""
    receive_buffer: int | None = attrs.field(
        default=None, validator=positive(optional=True, whole=True, most=_LARGEST_BUFFER)
    )
    """Kernel receive buffer to ask for, bytes; `None`: the largest that is granted, up to a sensible size."""
    record_to: Recording | None = attrs.field(default=None, converter=_recording)
    """Also write the kernel conversation to this file: JSON Lines if its name ends in
    ``.jsonl``, else the library's own format. It has all flows, whatever `flow_filter` passes.
    `Recording` says more: limits, and parts."""
    strict: bool = attrs.field(default=False, validator=check_flag)
    """True: undecodable bytes raise `ProtocolError` instead of becoming `EventsLost`."""


def refuse_ebpf(options: MonitorOptions, backend: str) -> None:
    """Check the options of a backend without eBPF programs.

    Raises:
        UsageError: The options require eBPF programs.
    """
    if options.ebpf is Ebpf.REQUIRE:
        raise UsageError(
            f"ebpf: 'require' is for the backend sock_diag of a Linux machine; {backend} has no eBPF programs"
        )


STEERING = ("providers", "interval", "discovery", "pulse", "extras", "receive_buffer")
"""The options that change a core's conversation with the kernel; the others only decide what becomes of its events."""

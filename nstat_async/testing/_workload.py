"""A seeded random workload: flows that come, carry traffic and go.

It is driven by the kernel's timers: by `EmulatedKernel.advance` or, for a kernel
with a clock, by the server or transport that runs its timers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import NoneType
from typing import Any

import attrs

from nstat_async._errors import UsageError
from nstat_async._model import Provider

from ._flows import EmulatedFlow
from ._scripting import ScriptedMachine
from ._values import LONGEST, checked, instance, number, one_of, whole

_NAMES = ("Safari", "curl", "sshd", "mDNSResponder", "Mail", "nsurlsessiond", "python3", "backupd", "Music", "zoom.us")
_PORTS = (443, 443, 443, 80, 22, 53, 993, 5223, 8080)
_INTERFACES = ("en0", "en0", "en0", "en1", "pdp_ip0", "utun0", "lo0")
_KINDS = (
    (Provider.TCP, False),
    (Provider.TCP, True),
    (Provider.UDP, False),
    (Provider.UDP, True),
    (Provider.QUIC, True),
)


@attrs.define(eq=False, slots=False, repr=False)
class Workload:
    """Random flows on an emulated kernel, the same for the same seed."""

    kernel: ScriptedMachine = attrs.field(validator=checked(instance, ScriptedMachine))
    """The kernel on which the flows are."""
    rate: float = attrs.field(default=10.0, kw_only=True, validator=checked(number))
    """New flows a second (exponential gaps)."""
    size: int = attrs.field(default=100, kw_only=True, validator=checked(whole))
    """How many flows are open at the beginning. If ``rate * mean_life`` is `size`, the number stays near it."""
    mean_life: float = attrs.field(default=10.0, kw_only=True, validator=checked(number, least=1e-9))
    """Mean life of a flow, seconds (exponential)."""
    transfers: float = attrs.field(default=0.2, kw_only=True, validator=checked(number, most=1.0))
    """Share of open flows that move bytes each second."""
    largest: int = attrs.field(default=100_000, kw_only=True, validator=checked(whole))
    """Most bytes that one transfer moves in one direction."""
    kinds: Sequence[tuple[Provider, bool]] | None = attrs.field(default=None, kw_only=True)
    """Kinds of flows, pairs of provider and user-land; `None`: all that carry traffic in this release."""
    seed: int | None = attrs.field(
        default=None, kw_only=True, validator=checked(whole, least=-(1 << 63), optional=True)
    )
    """The seed of the random numbers; `None`: drawn from the kernel's."""
    opened: int = attrs.field(default=0, init=False)
    """Flows since the beginning."""
    closed: int = attrs.field(default=0, init=False)
    """Flows that ended."""
    rx_bytes: int = attrs.field(default=0, init=False)
    """Bytes received by all flows since the beginning, those of ended flows included."""
    tx_bytes: int = attrs.field(default=0, init=False)
    """Bytes sent, as `rx_bytes`."""

    @kinds.validator
    def _check_kinds(self, _attribute: Any, value: Any) -> None:
        for kind in instance("kinds", value, (tuple, list, NoneType)) or ():
            one_of("kinds", kind, _KINDS)

    def __attrs_post_init__(self) -> None:
        kernel, here = self.kernel, set(self.kernel.release.providers.values())
        self._random = random.Random(kernel.random.getrandbits(64) if self.seed is None else self.seed)  # noqa: S311
        self._kinds = tuple(kind for kind in self.kinds or _KINDS if kind in here)
        if not self._kinds:
            raise UsageError(f"workload: {kernel.name} has none of these providers")
        self._flows: dict[int, EmulatedFlow] = {}
        self._running = False

    @property
    def flows(self) -> list[EmulatedFlow]:
        """The flows that are open now."""
        return list(self._flows.values())

    def start(self) -> None:
        """Open the first flows and set the timers. Idempotent."""
        if self._running:
            return
        self._running = True
        with self.kernel.lock:
            for _ in range(self.size - len(self._flows)):
                self._open()
            if self.rate > 0:
                self.kernel.call_later(self._drawn(self.rate), self._arrive)
            if self.transfers > 0:
                self.kernel.call_later(1.0, self._move)

    def stop(self) -> None:
        """Open and close no more flows, and move no more bytes; open flows stay."""
        self._running = False

    def _open(self) -> None:
        draw = self._random
        provider, userland = draw.choice(self._kinds)
        drawn = draw.randrange(len(_NAMES) * 3)
        pid, name = 300 + drawn, _NAMES[drawn % len(_NAMES)]
        interface = draw.choice(_INTERFACES)
        remote = (self._address(interface), draw.choice(_PORTS))
        flow = self.kernel.open(provider, pid, name, remote=remote, interface=interface, userland=userland)
        self._transfer(flow)
        self._flows[flow.number] = flow
        self.opened += 1
        self.kernel.call_later(self._drawn(1 / self.mean_life), lambda: self._close(flow))

    def _drawn(self, rate: float) -> float:
        """A random time in seconds until an event that happens `rate` times a second on average; `LONGEST` at most."""
        return min(self._random.expovariate(rate), LONGEST)

    def _address(self, interface: str) -> str:
        if interface == "lo0":
            return "127.0.0.1"
        host = self._random.randrange(1, 255)
        return f"2001:db8::{host:x}" if self._random.random() < 0.3 else f"198.51.100.{host}"

    def _transfer(self, flow: EmulatedFlow) -> None:
        rx = int(self._random.random() ** 3 * self.largest)
        tx = int(self._random.random() ** 4 * self.largest)
        flow.transfer(rx, tx)
        self.rx_bytes += rx
        self.tx_bytes += tx

    def _arrive(self) -> None:
        if self._running:
            self._open()
            self.kernel.call_later(self._drawn(self.rate), self._arrive)

    def _close(self, flow: EmulatedFlow) -> None:
        if not self._running or not flow.open:
            return
        if self._random.random() < 0.8:
            self._transfer(flow)
        del self._flows[flow.number]
        self.closed += 1
        flow.close()

    def _move(self) -> None:
        if self._running:
            for flow in self._random.sample(self.flows, int(len(self._flows) * self.transfers)):
                self._transfer(flow)
            self.kernel.call_later(1.0, self._move)

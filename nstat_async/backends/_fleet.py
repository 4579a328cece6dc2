"""The backend ``fleet:URL``: the machines whose events are published to a NATS server."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar

import attrs

from .._checks import positive
from .._contract import Feed
from .._errors import UsageError
from .._io.jetstream import StreamSettings
from .._io.nats import require_nats
from .._io.nats_access import NatsAccess, server_urls
from .._options import MonitorOptions, refuse_ebpf
from ..fleet import host_name

_END_OF_TIME = 253_402_300_800
"""The year 10000, which neither Python nor a server knows."""


def _hosts(value: Any) -> frozenset[str] | None:
    if value is None:
        return None
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not names:
        raise UsageError("hosts: name at least one, or None for all")
    return frozenset(host_name(name) for name in names)


def _moment(value: Any) -> float | None:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise UsageError(f"since, until: {value!r} does not say in which time zone it is")
        value = value.timestamp()
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _END_OF_TIME:
        raise UsageError(
            f"since, until: {value!r} is neither seconds since the epoch nor a datetime, from 1970 to 9999"
        )
    return float(value)


@attrs.frozen
class Fleet:
    """All machines that publish to a NATS server with JetStream (`nstat_async.integrations.nats.publish`).

    A monitor of a fleet has the events of all machines; `Flow.host` names the machine. First comes the state of each
    machine now (or at `since`): `HostUpdated`, and its open flows as `FlowAdded` (``preexisting=True``); one
    `PollCompleted` without a host ends that state. A fleet needs asyncio, because nats-py does.

    Raises:
        UsageError: An argument cannot work.
    """

    name: ClassVar[str] = "fleet"
    servers: tuple[str, ...] = attrs.field(converter=server_urls)
    """URL, such as ``"nats://127.0.0.1:4222"``, or several of one cluster."""
    hosts: frozenset[str] | None = attrs.field(default=None, converter=_hosts, kw_only=True)
    """Names of the machines to watch; `None`: all."""
    since: float | None = attrs.field(default=None, converter=_moment, kw_only=True)
    """Where to start, seconds since the epoch on the server's clock or a `datetime`: the messages that the stream still has
    from then on are played first. `None`, or a time in the future: now."""
    until: float | None = attrs.field(default=None, converter=_moment, kw_only=True)
    """Where to end; `None`: never."""
    access: NatsAccess | None = attrs.field(default=None, kw_only=True)
    """How to log in; `None`: as the environment says (`NatsAccess.from_environment`)."""
    stream: StreamSettings = attrs.field(factory=StreamSettings, kw_only=True)
    """The stream that has the messages."""
    forget: float = attrs.field(default=3600.0, validator=positive(), kw_only=True)
    """Seconds of silence after which a machine and its flows are forgotten."""

    def __attrs_post_init__(self) -> None:
        if self.since is not None and self.until is not None and self.until < self.since:
            raise UsageError(f"until: {self.until!r} is before since, {self.since!r}")

    def open(self, options: MonitorOptions) -> Feed:
        """Open it.

        Raises:
            BackendUnavailableError: nats-py is not installed.
            UsageError: The loop is not asyncio's, it is to be recorded, or eBPF is required.
        """
        refuse_ebpf(options, self.name)
        if options.record_to is not None:
            raise UsageError("record_to: a fleet cannot be recorded; its stream keeps the past, and since= plays it")
        require_nats("a fleet")
        from .._io.fleet import FleetFeed  # noqa: PLC0415  # only fleets need it

        access = self.access or NatsAccess.from_environment()
        return FleetFeed(
            self.servers,
            access,
            self.stream,
            hosts=self.hosts,
            since=self.since,
            until=self.until,
            forget=self.forget,
            options=options,
        )

"""The eBPF source: attached programs, and the channels that read them.

The programs are held only by descriptors of this process: when it ends, even by SIGKILL, the kernel frees everything.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any, Union

from .._errors import UsageError
from ..ebpf import (
    CHANGED,
    RECORD,
    Flag,
    MapsPurpose,
    OwnerRow,
    Record,
    Refusal,
    RingPurpose,
    decode_owners,
    refusal_for,
    tier_of,
)
from .bpf import create_iterator, read_rows
from .bpfload import EbpfSettings, Loaded, Loader, socket_number, unavailable
from .bpfmaps import MapsChannel, SharedCounters
from .processes import start_ticks
from .ring import MappedRing, RingChannel

_SO_COOKIE = 57
_NANOSECONDS = 1_000_000_000
_PIECE = 512 * CHANGED.size
"""As many bytes as the kernel keeps of a walk."""


class EbpfSource:
    """The attached programs.

    A transport: `open` gives the channels for a purpose. Made by `EbpfSource.attach`.
    """

    def __init__(self, settings: EbpfSettings, loaded: Loaded, refusals: tuple[Refusal, ...], namespace: int) -> None:
        self.settings = settings
        self.namespace = namespace
        """Cookie of the network namespace whose sockets are seen; 0: all namespaces, also if the kernel is too old
        (before 5.14) to tell the cookie of this one."""
        self.refusals = refusals
        """The refusals, in the order of the attempts."""
        self.programs = frozenset(loaded.links)
        """The programs that are attached."""
        self.tier = tier_of(self.programs)
        self.own_cookies: frozenset[int] = frozenset()
        """Sockets of the source itself, which are not reported."""
        self.processes_trusted = False
        """True if a record had the right pid and start of this process. Otherwise the process is in a pid or time namespace
        of its own, and no process of a record may be reported."""
        self._loaded = loaded
        self._ring: MappedRing | None = None
        self._counters: SharedCounters | None = None

    @classmethod
    def attach(cls, settings: EbpfSettings | None = None) -> EbpfSource:
        """Load and attach the programs that the kernel grants; blocks for some 0.2 s.

        Raises:
            BackendUnavailableError: It grants nothing; the text says why.
        """
        settings = settings or EbpfSettings()
        loader = Loader(settings)
        loaded = loader.load()
        source = cls(settings, loaded, tuple(loader.refusals.values()), loader.namespace)
        try:
            source._prepare()
        except BaseException:
            source.close()
            raise
        return source

    def _prepare(self) -> None:
        maps = self._loaded.maps
        try:
            self._ring = MappedRing(maps["ring"], self.settings.ring)
            self._counters = SharedCounters(maps["statistics"])
        except OSError as error:
            raise unavailable(refusal_for("mapping of the ring", error.errno or 0)) from error
        self._calibrate()

    def open(self, purpose: Any) -> Union[RingChannel, MapsChannel]:
        """Open a channel.

        Raises:
            OSError: It cannot be opened.
            UsageError: It is not a channel of eBPF programs.
        """
        assert self._ring is not None
        assert self._counters is not None
        if isinstance(purpose, RingPurpose):
            return RingChannel(self._loaded.maps["ring"], self._ring.ring)
        if not isinstance(purpose, MapsPurpose):
            raise UsageError(f"{purpose!r} is not a purpose of eBPF")
        loaded = self._loaded
        return MapsChannel(loaded.maps, loaded.programs, loaded.links.get("owners"), self._counters, self._ring.ring)

    def changed(self, *, mark: bool) -> bytes:
        """Find the TCP sockets of this thread's network namespace that had traffic since the last walk.

        Blocks for some 0.5 µs per socket.

        Args:
            mark: Only begin: the next walk tells the sockets that have traffic from now on.

        Raises:
            OSError: The kernel refused, or the programs were detached.
        """
        descriptor = create_iterator(self._loaded.links["changed"])
        try:
            rows = [read_rows(descriptor, CHANGED.size if mark else _PIECE)]
            while rows[-1] and not mark:
                rows.append(read_rows(descriptor, _PIECE))
        finally:
            os.close(descriptor)
        return b"".join(rows)

    def close(self) -> None:
        """Detach and release everything. Idempotent."""
        if self._ring is not None:
            self._ring.close()
        if self._counters is not None:
            self._counters.close()
        self._ring = self._counters = None
        self._loaded.close.close()

    def __enter__(self) -> EbpfSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- is the process of a record the process that this machine's tools show? ----------------

    def _calibrate(self) -> None:
        """Send a datagram to ourselves, and check that its record has our pid and start."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            cookie = socket_number(probe, _SO_COOKIE)
            self.own_cookies = frozenset({cookie})
            with contextlib.suppress(OSError):  # loopback may be down
                probe.bind(("127.0.0.1", 0))
                probe.sendto(b"nstat_async", probe.getsockname())
            seen = self._seen_in_ring(cookie) or self._seen_by_iterator(cookie)
        if seen is not None:
            ticks = seen.start * os.sysconf("SC_CLK_TCK") // _NANOSECONDS
            self.processes_trusted = seen.pid == os.getpid() and ticks == start_ticks(os.getpid())

    def _seen_in_ring(self, cookie: int) -> Record | None:
        """Find the record of our socket; all records stay in the ring."""
        assert self._ring is not None
        most = self.settings.ring // RECORD.size
        for values in RECORD.iter_unpack(self._ring.ring.read(most, keep=True)):
            record = Record._make(values)
            if record.cookie == cookie and record.flags & Flag.HAS_PROCESS:
                return record
        return None

    def _seen_by_iterator(self, cookie: int) -> OwnerRow | None:
        link = self._loaded.links.get("owners")
        if link is None:
            return None
        with contextlib.suppress(OSError):
            descriptor = create_iterator(link)
            with os.fdopen(descriptor, "rb") as rows:
                return next((row for row in decode_owners(rows.read()) if row.cookie == cookie), None)
        return None

"""Messages of a kernel of any release, from a few words."""

from __future__ import annotations

import functools
import ipaddress
import struct
from typing import Any

from nstat_async.ntstat import (
    RELEASES,
    AddAllSources,
    Error,
    Kernel,
    SourceAdded,
    SourceCounts,
    SourceDescription,
    SourceExtendedUpdate,
    SourceRemoved,
    SourceUpdate,
    Success,
)

NEWER = f"xnu-{RELEASES[-1].first[0] + 623}.1.1"
"""A kernel that is newer than every row of the table."""
NEWEST_OF_LAYOUT = {
    1: "xnu-1699.32.7",
    2: "xnu-2050.48.11",
    3: "xnu-2422.115.4",
    4: "xnu-2782.50.9",
    5: "xnu-3248.60.10",
    6: "xnu-3789.70.16",
    7: "xnu-6153.141.1",
    8: "xnu-7195.141.2",
    9: "xnu-8019.41.5",
    10: "xnu-8796.141.3",
    11: "xnu-11417.121.6",
    12: "xnu-12377.1.9",
}


@functools.cache
def address(text: str | None, port: int = 0, scope: int = 0) -> bytes:
    """A Darwin socket address in its slot of 28 bytes."""
    if text is None:
        return bytes(28)
    packed = ipaddress.ip_address(text).packed
    if len(packed) == 4:
        return (struct.pack("<BB", 16, 2) + struct.pack(">H", port) + packed).ljust(28, b"\0")
    return struct.pack("<BB", 28, 30) + struct.pack(">HI", port, 0) + packed + struct.pack("<I", scope)


class Wire:
    """Makes the datagrams of one kernel."""

    def __init__(self, kernel: str | int) -> None:
        self.kernel = Kernel.parse(NEWEST_OF_LAYOUT[kernel] if isinstance(kernel, int) else kernel)
        self.layout = self.kernel.layout
        self.tcp = 2
        self.udp = 3 if self.layout.number < 6 else 4

    def counts(self, rx: int = 0, tx: int = 0, **fields: int) -> bytes:
        """``nstat_counts``; further fields by their names without ``nstat_``."""
        codec = self.layout["nstat_counts"]
        values = {"rxbytes": rx, "txbytes": tx, "rxpackets": -(-rx // 1000), "txpackets": -(-tx // 1000), **fields}
        return codec.encode({f"nstat_{k}": v for k, v in values.items() if f"nstat_{k}" in codec})

    def descriptor(self, provider: int, **fields: Any) -> bytes:
        """A descriptor; fields that this layout lacks are left out."""
        codec = self.layout[self.kernel.descriptor_name(provider) or "nstat_tcp_descriptor"]
        values = {"pid": 42, "upid": 4200, "pname": b"curl", **fields}
        return codec.encode({k: v for k, v in values.items() if k in codec})

    def added(self, ref: int, provider: int | None = None, context: int = 0) -> bytes:
        """SRC_ADDED."""
        return self._encode(SourceAdded(context=context, srcref=ref, provider=provider or self.tcp))

    def removed(self, ref: int, flags: int = 0) -> bytes:
        """SRC_REMOVED."""
        return self._encode(SourceRemoved(srcref=ref, flags=flags))

    def counted(self, ref: int, counts: bytes, *, context: int = 0, flags: int = 0) -> bytes:
        """SRC_COUNTS."""
        return self._encode(SourceCounts(srcref=ref, counts=counts, context=context, flags=flags))

    def described(self, ref: int, descriptor: bytes, *, provider: int | None = None, context: int = 0, flags: int = 0):
        """SRC_DESC."""
        return self._encode(
            SourceDescription(
                srcref=ref, provider=provider or self.tcp, descriptor=descriptor, context=context, flags=flags
            )
        )

    def updated(
        self,
        ref: int,
        counts: bytes,
        descriptor: bytes,
        *,
        provider: int | None = None,
        context: int = 0,
        flags: int = 0,
        items: tuple = (),
    ) -> bytes:
        """SRC_UPDATE, or with items SRC_EXTENDED_UPDATE."""
        cls, more = (SourceExtendedUpdate, {"items": items}) if items else (SourceUpdate, {})
        return self._encode(
            cls(
                srcref=ref,
                counts=counts,
                provider=provider or self.tcp,
                descriptor=descriptor,
                context=context,
                flags=flags,
                **more,
            )
        )

    def report(self, ref: int, counts: bytes, descriptor: bytes, **options: Any) -> list[bytes]:
        """Counters and description, in the one or two messages that this kernel has for them."""
        if self.kernel.has_updates:
            return [self.updated(ref, counts, descriptor, **options)]
        options = {"context": 9, **options}
        provider = options.pop("provider", None)
        return [
            self.counted(ref, counts, **options),
            self.described(ref, descriptor, provider=provider, **options),
        ]

    def goodbye(self, ref: int, counts: bytes, descriptor: bytes, *, provider: int | None = None) -> list[bytes]:
        """What a closing source says in full."""
        if self.kernel.has_updates:
            return [self.updated(ref, counts, descriptor, provider=provider, flags=4), self.removed(ref)]
        return [
            self.counted(ref, counts),
            self.described(ref, descriptor, provider=provider),
            self.removed(ref),
        ]

    def success(self, context: int, flags: int = 0) -> bytes:
        """SUCCESS."""
        return self._encode(Success(context=context, flags=flags))

    def error(self, context: int, errno: int, request: bytes = b"") -> bytes:
        """ERROR."""
        return self._encode(Error(context=context, error=errno, request=request))

    def add_all(self, context: int, provider: int | None = None, **options: int) -> bytes:
        """The request ADD_ALL_SRCS."""
        return self._encode(AddAllSources(context=context, provider=provider or self.tcp, **options))

    def _encode(self, message: Any) -> bytes:
        return message.encode(self.layout)

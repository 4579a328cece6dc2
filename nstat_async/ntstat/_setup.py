"""The setup of a Darwin core, as a value that a recording can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from .._contract import LookupFailed
from .._errors import UsageError
from .._values import Vocabulary
from ._evidence import (
    CloseEvidence,
    Evidence,
    FindPaths,
    InterfacesRead,
    Ledger,
    OpenEvidence,
    PathsFound,
    ReadInterfaces,
    ReadLedger,
)


def _check_timebase(_instance: object, _attribute: object, value: tuple[int, int]) -> None:
    if not all(0 < number < 1 << 32 for number in value):
        raise UsageError(f"timebase: {value!r} is not a fraction of two positive numbers of 32 bits")


def _pairs(value: Any) -> tuple[tuple[int, str], ...]:
    return tuple(value.items()) if isinstance(value, Mapping) else tuple(value or ())


@attrs.frozen
class ProvenStruct:
    """Where a proof of the layout found the fields of a structure."""

    name: str
    """Name in the kernel's header."""
    length: int
    """Its size in bytes."""
    offsets: tuple[tuple[str, int], ...]
    """Each field that was found, with its offset."""


@attrs.frozen(kw_only=True)
class Setup:
    """What a `Session` is made of, besides the options."""

    protocol: ClassVar[str] = "ntstat"
    kernel: str
    """The kernel's version string."""
    timebase: tuple[int, int] = attrs.field(default=(1, 1), validator=_check_timebase)
    """Nanoseconds per tick of the kernel's clock, as a fraction."""
    interfaces: tuple[tuple[int, str], ...] = attrs.field(default=(), converter=_pairs)
    """Interface names by index."""
    backend: str = "kctl"
    """Name for `Capabilities`."""
    verify: bool | None = None
    """Whether the layout is proven: always, never, or (`None`) on kernels newer than known."""
    own_uid: int | None = None
    """User id of the process that watches; `None`: not known."""
    paths: bool = False
    """The transport can find the executables of processes."""
    ledger: bool = False
    """The transport can read the kernel's own counts of losses."""
    coverage: bool = False
    """The transport can read the interfaces' own counters."""
    proven: tuple[ProvenStruct, ...] = ()
    """The structures that a proof has found so far, for a session that follows; one that drives makes its own proof."""


RECORDED = Vocabulary(
    OpenEvidence,
    CloseEvidence,
    Evidence,
    FindPaths,
    PathsFound,
    ReadLedger,
    Ledger,
    ReadInterfaces,
    InterfacesRead,
    LookupFailed,
)
"""The look-ups of this protocol and their answers."""

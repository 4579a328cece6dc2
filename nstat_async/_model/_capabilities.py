"""What a backend can tell, and how sure it is."""

from __future__ import annotations

import enum

import attrs

from ._kinds import Provider


class Proof(enum.Enum):
    """How sure a backend is of the layout it decodes with."""

    VERIFIED = "verified"
    """Checked on this machine against flows with known values."""
    PROBED = "probed"
    """Found on this machine: fields had moved, and the evidence was unambiguous."""
    ASSUMED = "assumed"
    """Chosen by the kernel's version; the lengths agree."""
    UNKNOWN = "unknown"
    """Not checked, on a kernel newer than the known ones: some values may be missing."""


class Visibility(enum.Enum):
    """Whose flows or processes can be seen."""

    ALL = "all"
    OWN = "own"
    """Only those of this user."""
    SOME = "some"
    """Those of several users, but not all: some may not be looked at, or are in another pid namespace."""
    NONE = "none"
    UNKNOWN = "unknown"

    @property
    def whose(self) -> str:
        """Whose they are, in words: ``"all users"``."""
        return _WHOSE[self.value]


_WHOSE = {
    "all": "all users",
    "own": "this user",
    "some": "some users",
    "none": "nobody",
    "unknown": "unknown users",
}


@attrs.frozen(kw_only=True)
class Capabilities:
    """What an open backend can tell, so that programs can test for a fact instead of a platform."""

    backend: str
    """Name of the backend: ``kctl``, ``sock_diag``, ``emulated``, ``unix``, ``replay``, ``fleet``."""
    kernel: str | None = None
    """Kernel version as reported."""
    providers: frozenset[Provider] = frozenset()
    """Providers that answered the subscription."""
    tcp_counts: bool = True
    """TCP flows have byte counts."""
    udp_counts: bool = False
    """UDP flows have byte counts."""
    per_medium_bytes: bool = False
    """Byte counts are split by Wi-Fi, wired, cellular."""
    final_counts: bool = False
    """A flow that ends reports its last counts."""
    short_lived: bool = False
    """Flows that begin and end between two polls are reported."""
    flows: Visibility = Visibility.UNKNOWN
    """Whose flows are visible."""
    processes: Visibility = Visibility.UNKNOWN
    """Whose processes can be named."""
    processes_limit: str | None = None
    """Why not everybody's, and what would change that, for a person; also one of the `notes`."""
    layout: str | None = None
    """Wire layout in use, e.g. ``W11``."""
    layout_proof: Proof | None = None
    """How sure the layout is; `None` for backends without one."""
    receive_buffer: int | None = None
    """Size of the receive buffer that the kernel granted, bytes."""
    ebpf: str | None = None
    """Linux: how much eBPF programs tell: ``all``, ``calls``, ``packets``, ``tcp`` or ``none`` (docs/linux.md);
    `None` where they are not asked for."""
    ebpf_reason: str | None = None
    """Linux: why eBPF programs do not tell everything, and what would help; `None` if they do, or are not asked for."""
    namespaces_limit: str | None = None
    """Linux: which network namespaces are not watched, or only from outside, although all were asked for, and what would help;
    `None` if all are watched from inside."""
    notes: tuple[str, ...] = ()
    """Remarks for a person: what is missing here, and what would help."""

"""What a backend can tell, and how sure it is."""

from __future__ import annotations

import enum

import attrs

from ._kinds import Provider


class Proof(enum.Enum):
    """How sure a backend is of the layout it decodes with."""

    VERIFIED = "verified"
    """Checked on this machine against flows of known values."""
    PROBED = "probed"
    """Found on this machine: offsets had to be moved, evidence was unambiguous."""
    ASSUMED = "assumed"
    """Taken from the kernel's version; lengths agree."""
    UNKNOWN = "unknown"
    """A kernel newer than known, unchecked: parts may be missing."""


class Visibility(enum.Enum):
    """Whose flows or processes can be seen."""

    ALL = "all"
    OWN = "own"
    """Only those of this user."""
    SOME = "some"
    """Of several users, and not all: some may not be looked at, or are of another pid namespace."""
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
    """What an open backend can tell, so that programs test a fact, not a platform."""

    backend: str
    """Name of the backend: ``kctl``, ``sock_diag``, ``emulated``, ``unix``, ``replay``, ``fleet``."""
    kernel: str | None = None
    """Kernel version as reported."""
    providers: frozenset[Provider] = frozenset()
    """Providers that answered the subscription."""
    tcp_counts: bool = True
    """Byte counts for TCP."""
    udp_counts: bool = False
    """Byte counts for UDP."""
    per_medium_bytes: bool = False
    """Byte counts split by Wi-Fi, wired, cellular."""
    final_counts: bool = False
    """A closing flow reports its last counts."""
    short_lived: bool = False
    """Flows that live between two polls are reported."""
    flows: Visibility = Visibility.UNKNOWN
    """Whose flows are visible."""
    processes: Visibility = Visibility.UNKNOWN
    """Whose processes can be named."""
    processes_limit: str | None = None
    """Why not everybody's, and what would change that, for a person; it is one of the `notes`, too."""
    layout: str | None = None
    """Wire layout in use, e.g. ``W11``."""
    layout_proof: Proof | None = None
    """How sure the layout is; `None` where the question does not arise."""
    receive_buffer: int | None = None
    """Size of the kernel's receive buffer that was granted, bytes."""
    ebpf: str | None = None
    """Linux: how much eBPF programs tell: ``all``, ``calls``, ``packets``, ``tcp`` or ``none`` (docs/linux.md);
    `None` where they are not asked for."""
    ebpf_reason: str | None = None
    """Linux: why eBPF programs do not tell everything, and what would help; `None` where they do, or are not asked for."""
    namespaces_limit: str | None = None
    """Linux: of all network namespaces, where they are asked for, which are not watched, and what would help; `None`: all are."""
    notes: tuple[str, ...] = ()
    """Remarks for a person: what is missing here, and what would give it."""

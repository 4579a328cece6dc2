"""Tells which programs need each other, and what a set of granted programs can report.

The kernel, its configuration and the privileges of the process decide about each program. A refused program excludes
those that need it; the rest is a *tier*. Each refusal is kept with its reason.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterable

import attrs

from .._errnos import MORE_FILES, error_text
from .._errors import UnavailableReason

NEEDS: dict[str, tuple[set[str], ...]] = {
    "tcp_state": (),
    "tcp_state_again": ({"tcp_state"},),
    "sent": ({"tcp_state"}, {"received"}),
    "received": ({"tcp_state"}, {"sent"}),
    "released": ({"tcp_state"},),
    "created": ({"released"}, {"egress", "sent"}),
    "ingress": ({"egress"}, {"created"}),
    "egress": ({"ingress"}, {"created"}),
    "owners": (),
    "changed": ({"tcp_state"},),
}
"""What each program needs: one program of each of its sets. Otherwise some entries would never be removed, only one direction
would be counted, or sockets would look idle because nothing counts them."""

_TYPES = {
    "tp_btf": (26, 23),  # BPF_PROG_TYPE_TRACING, BPF_TRACE_RAW_TP
    "iter": (26, 28),  # BPF_PROG_TYPE_TRACING, BPF_TRACE_ITER
    "cgroup/sock_create": (9, 2),  # BPF_PROG_TYPE_CGROUP_SOCK
    "cgroup/sock_release": (9, 34),
    "cgroup_skb/ingress": (8, 0),  # BPF_PROG_TYPE_CGROUP_SKB
    "cgroup_skb/egress": (8, 1),
}
_SINCE = {
    "tp_btf/inet_sock_set_state": "4.16",
    "tp_btf/sock_send_length": "6.3",
    "tp_btf/sock_recv_length": "6.3",
    "iter/task_file": "5.8",
    "iter/tcp": "5.9",
}


def program_types(section: str) -> tuple[int, int]:
    """``enum bpf_prog_type`` and ``enum bpf_attach_type`` of a section."""
    return _TYPES.get(section) or _TYPES[section.partition("/")[0]]


def in_cgroup(section: str) -> bool:
    """True if a program of this section is attached to a cgroup."""
    return section.startswith("cgroup")


def supported(granted: Iterable[str]) -> frozenset[str]:
    """The programs of a set that have all that they need in it."""
    left = frozenset(granted)
    while True:
        kept = frozenset(name for name in left if all(needs & left for needs in NEEDS[name]))
        if kept == left:
            return kept
        left = kept


class Option(enum.IntFlag):
    """The constant ``options`` of the programs (``enum option``)."""

    RELEASE_SEEN = 1
    """``released`` is attached: it removes entries."""
    LEARN_TCP_OWNERS = 2
    """A program is attached that finds the process of an accepted socket."""
    COUNT_PEERS = 4
    """Count per remote address of unconnected sockets."""
    LOOK_INTO_MPTCP = 8
    """Follow an MPTCP socket to its first subflow; needs ``bpf_probe_read_kernel``, which lockdown may forbid."""
    PACKETS_CREATE = 16
    """A packet may make the entry of a socket, because all network namespaces are watched."""
    LENGTHS_SEEN = 32
    """``sent`` and ``received`` are attached, which announce sockets; otherwise packets do."""


def options_for(programs: frozenset[str], *, peers: bool, mptcp: bool, every_namespace: bool) -> Option:
    """The options with which a set of programs is loaded."""
    chosen = {
        Option.RELEASE_SEEN: "released" in programs,
        Option.LEARN_TCP_OWNERS: bool(programs & {"released", "sent"}),
        Option.COUNT_PEERS: peers and "egress" in programs,
        Option.LOOK_INTO_MPTCP: mptcp and "sent" in programs,
        Option.PACKETS_CREATE: every_namespace,
        Option.LENGTHS_SEEN: "sent" in programs,
    }
    return Option(sum(option for option, yes in chosen.items() if yes))


class Tier(enum.Enum):
    """How much the programs can report, by the kernel and the privileges of the process."""

    ALL = "all"
    """Everything: Linux 6.3 or newer with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN (or root), and a cgroup2 mount."""
    CALLS = "calls"
    """Without CAP_NET_ADMIN or cgroup2: the bytes of calls, and no number of packets."""
    PACKETS = "packets"
    """Before Linux 6.3: UDP bytes by packets; other protocols have a process and no bytes."""
    TCP = "tcp"
    """TCP only: before Linux 6.3 and without CAP_NET_ADMIN or cgroup2."""
    NONE = "none"
    """Nothing."""


@attrs.frozen
class Tells:
    """What a tier can tell."""

    tcp_process: bool
    """The process of an outbound connection, and final counts of all."""
    tcp_accepted_process: bool
    """The process of an accepted connection."""
    udp_bytes: bool
    udp_packets: bool
    """The number of datagrams; otherwise only calls are counted."""
    udp_end: bool
    """The end of a datagram socket with its final counts; otherwise sock_diag reports the end, and the entry is taken."""
    other_bytes: bool
    """Bytes of raw, ICMP and packet sockets."""


_TELLS = {
    Tier.ALL: Tells(True, True, True, True, True, True),
    Tier.CALLS: Tells(True, True, True, False, False, True),
    Tier.PACKETS: Tells(True, True, True, True, True, False),
    Tier.TCP: Tells(True, False, False, False, False, False),
    Tier.NONE: Tells(False, False, False, False, False, False),
}


def tells(tier: Tier) -> Tells:
    """What a tier can tell."""
    return _TELLS[tier]


def tier_of(programs: frozenset[str]) -> Tier:
    """The tier that a set of attached programs gives."""
    if "tcp_state" not in programs:
        return Tier.NONE
    calls, packets = "sent" in programs, "egress" in programs
    if calls and packets:
        return Tier.ALL
    if calls:
        return Tier.CALLS
    return Tier.PACKETS if packets else Tier.TCP


@attrs.frozen
class Refusal:
    """Something that was not granted."""

    what: str
    """The program, map or step."""
    reason: UnavailableReason
    errno: int
    """The kernel's error number; 0: the kernel was not asked."""
    detail: str
    """What happened and what to do, for a person."""

    def __str__(self) -> str:
        return f"{self.what}: {self.detail}"


def no_hook(name: str, section: str) -> Refusal:
    """This kernel has nothing to attach a program to."""
    since = _SINCE.get(section)
    detail = f"this kernel has no {section.partition('/')[2]}" + (f" (Linux {since})" if since else "")
    return Refusal(name, UnavailableReason.KERNEL, 0, detail)


def left_out(name: str, missing: Iterable[str]) -> Refusal:
    """A program that is left out because of others."""
    return Refusal(name, UnavailableReason.MISSING, 0, f"is of no use without {', '.join(sorted(missing))}")


def refusal_for(what: str, number: int, log: str = "", *, cgroup: bool = False) -> Refusal:
    """The kernel's error number as a reason.

    Args:
        what: The program, map or step.
        number: ``errno``.
        log: What the verifier said.
        cgroup: It is attached to a cgroup, which needs one more capability.
    """
    last = _last_line(log)
    name = error_text(number)
    if number in {errno.EPERM, errno.EACCES} and not last:
        needs = "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN" if cgroup else "CAP_BPF and CAP_PERFMON"
        return Refusal(what, UnavailableReason.PERMISSION, number, f"{name}: needs {needs} (or root, or a BPF token)")
    if number == errno.EMFILE:
        return Refusal(what, UnavailableReason.RESOURCE, number, f"{name}; {MORE_FILES}")
    if number in {errno.ENOMEM, errno.ENFILE, errno.E2BIG, errno.EAGAIN} and not last:
        return Refusal(what, UnavailableReason.RESOURCE, number, f"{name}: the kernel has no room for it")
    if number == errno.ENOSYS:
        return Refusal(what, UnavailableReason.PLATFORM, number, f"{name}: bpf(2) is not there")
    said = f": {last}" if last else ""
    return Refusal(what, UnavailableReason.KERNEL, number, f"{name}: this kernel refuses it{said}")


def _last_line(log: str) -> str:
    """The line of the verifier's log that says why: the last one that is not about its own work."""
    lines = [
        line
        for line in log.splitlines()
        if line and not line.startswith(("processed ", "verification time", "stack depth"))
    ]
    return lines[-1][:200] if lines else ""

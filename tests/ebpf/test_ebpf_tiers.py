"""What a set of granted programs gives, and why something was refused."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nstat_async._errors import UnavailableReason
from nstat_async.ebpf import (
    NEEDS,
    Option,
    Tier,
    left_out,
    no_hook,
    options_for,
    program_types,
    refusal_for,
    supported,
    tells,
    tier_of,
)

ALL = frozenset(NEEDS)
CALLS = {"sent", "received"}
CGROUP = {"released", "created", "ingress", "egress"}


@pytest.mark.parametrize(
    ("granted", "tier"),
    [
        (ALL, Tier.ALL),
        (ALL - CGROUP, Tier.CALLS),
        (ALL - CALLS, Tier.PACKETS),
        (ALL - CALLS - CGROUP, Tier.TCP),
        (ALL - {"tcp_state"}, Tier.NONE),
        ({"ingress", "egress"}, Tier.NONE),
        (ALL - {"sent"}, Tier.PACKETS),
        (ALL - {"released"}, Tier.CALLS),
        (ALL - {"created", "received"}, Tier.TCP),
        (ALL - CALLS - {"egress"}, Tier.TCP),
        ((), Tier.NONE),
    ],
)
def test_a_tier_is_what_is_granted_without_what_is_of_no_use_alone(granted, tier):
    """What is granted, without what is of no use alone."""
    assert tier_of(supported(granted)) is tier


@given(st.sets(st.sampled_from(sorted(ALL))))
def test_a_supported_set_stands(granted):
    """It is part of what was granted, and each of its programs has what it needs."""
    left = supported(granted)
    assert left <= granted
    assert all(needs & left for name in left for needs in NEEDS[name])
    assert supported(left) == left


def test_a_tier_tells_what_its_programs_count():
    """Nothing is promised that no program counts."""
    assert tells(Tier.ALL).udp_packets
    assert not tells(Tier.CALLS).udp_packets
    assert not tells(Tier.CALLS).udp_end
    assert not tells(Tier.PACKETS).other_bytes
    assert tells(Tier.TCP).tcp_process
    assert not tells(Tier.TCP).udp_bytes
    assert not tells(Tier.NONE).tcp_process


def options(programs, **settings):
    return options_for(frozenset(programs), **{"peers": False, "mptcp": True, "every_namespace": False, **settings})


def test_the_programs_know_which_others_are_attached():
    """The programs know which others are attached."""
    assert options(ALL) == Option.RELEASE_SEEN | Option.LEARN_TCP_OWNERS | Option.LOOK_INTO_MPTCP | Option.LENGTHS_SEEN
    assert options(ALL - CGROUP, mptcp=False, peers=True) == Option.LEARN_TCP_OWNERS | Option.LENGTHS_SEEN
    assert options(ALL - CALLS, peers=True) == Option.RELEASE_SEEN | Option.LEARN_TCP_OWNERS | Option.COUNT_PEERS
    assert options({"tcp_state"}, every_namespace=True) == Option.PACKETS_CREATE


def test_types_of_programs_are_numbered_as_in_the_header():
    """As include/uapi/linux/bpf.h numbers them."""
    assert program_types("tp_btf/inet_sock_set_state") == (26, 23)
    assert program_types("iter/task_file") == (26, 28)
    assert program_types("cgroup/sock_release") == (9, 34)
    assert program_types("cgroup_skb/egress") == (8, 1)


LOG = "0: R1=ctx()\n4: (85) call 195896080\ninvalid func unknown#195896080\nprocessed 5 insns (limit 1000000)\n"


@pytest.mark.parametrize(
    ("number", "log", "reason", "text"),
    [
        (errno.EPERM, "", UnavailableReason.PERMISSION, "CAP_BPF and CAP_PERFMON"),
        (errno.EACCES, LOG, UnavailableReason.KERNEL, "invalid func"),
        (errno.EINVAL, "", UnavailableReason.KERNEL, "Invalid argument: this kernel refuses it"),
        (errno.ENOMEM, "", UnavailableReason.RESOURCE, "Cannot allocate memory"),
        (errno.EMFILE, "", UnavailableReason.RESOURCE, "Too many open files; raise the limit (ulimit -n"),
        (errno.ENOSYS, "", UnavailableReason.PLATFORM, "Function not implemented"),
        (524, "", UnavailableReason.KERNEL, "524"),
    ],
)
def test_reasons(number, log, reason, text):
    """Errors of the kernel are reasons a person can act on; the verifier's last word is kept."""
    refusal = refusal_for("sent", number, log)
    assert (refusal.what, refusal.reason, refusal.errno) == ("sent", reason, number)
    assert text in str(refusal)


def test_reasons_that_the_kernel_was_not_asked_for():
    """Missing hooks and missing company."""
    assert "CAP_NET_ADMIN" in refusal_for("released", errno.EPERM, cgroup=True).detail
    assert "Linux 6.3" in no_hook("sent", "tp_btf/sock_send_length").detail
    assert left_out("created", {"released"}).reason is UnavailableReason.MISSING


def test_nobody_is_counted_as_idle():
    """Where neither calls nor packets are counted, datagram sockets have no entries."""
    assert "created" not in supported(ALL - CALLS - {"egress"})
    assert "created" in supported(ALL - {"egress"})
    assert "created" in supported(ALL - CALLS)

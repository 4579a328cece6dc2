"""The living kernel: what is granted, to whom, and what older kernels lack."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import forked
import pytest
from ebpf_living import (
    ALL,
    HERE,
    NET,
    Watch,
    accepted,
    again,
    cookie,
    counts_calls,
    descriptors,
    entries,
    exchange,
    kernel,
    listener,
    needs_calls,
    udp,
)

from nstat_async._errors import BackendUnavailableError, UnavailableReason
from nstat_async._io.ebpf import EbpfSettings, EbpfSource
from nstat_async._io.linux import SPARE_DESCRIPTORS
from nstat_async.ebpf import (
    Operation,
    Tier,
    owner_of,
)

pytestmark = [pytest.mark.privileged, pytest.mark.linux, pytest.mark.timeout(NET)]


WITHOUT_CGROUP = (Tier.CALLS if counts_calls() else Tier.TCP).value


REPORT = """
import json, sys
from nstat_async._errors import BackendUnavailableError
from nstat_async._io.ebpf import EbpfSource
try:
    with EbpfSource.attach() as source:
        print(json.dumps([source.tier.value, source.processes_trusted, {r.what: r.reason.value for r in source.refusals}]))
except BackendUnavailableError as error:
    print(json.dumps(["none", False, {error.backend: error.reason.value}]))
"""


OTHER_PIDS = """
from nursery import MOUNTS, NETWORK, PROCESSES, unshare
unshare(MOUNTS | NETWORK | PROCESSES)
"""
OTHER_TIME = """
import os, sys
from nursery import NETWORK, unshare
try:
    unshare(NETWORK | 0x80)  # CLONE_NEWTIME: the next process is there
except OSError:
    sys.exit("none")
with open("/proc/self/timens_offsets", "w") as file:
    file.write("boottime 1000000 0")
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def report(*prefix):
    output = subprocess.run([*prefix, sys.executable, "-c", REPORT], capture_output=True, text=True, check=True).stdout
    return json.loads(output)


def report_from(place):
    """What is granted where this program goes."""
    done = forked.run([sys.executable, "-c", place + REPORT], text=True)
    if done.stderr == "none\n":
        pytest.skip("this kernel has no such namespaces")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def with_capabilities(*names):
    wanted = ",".join(f"+{name}" for name in names)
    bounds = f"--inh-caps=-all,{wanted}" if names else "--inh-caps=-all"
    ambient = [f"--ambient-caps=-all,{wanted}"] if names else ["--ambient-caps=-all"]
    return report("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", bounds, *ambient)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capabilities", "tier"),
    [
        ((), "none"),
        (("bpf",), "none"),
        (("perfmon",), "none"),
        (("bpf", "net_admin"), "none"),
        (("bpf", "perfmon"), WITHOUT_CGROUP),
        (("bpf", "perfmon", "net_admin"), ALL.value),
        (
            ("sys_admin",),
            ALL.value if kernel() >= (6, 9) else WITHOUT_CGROUP,
        ),  # before, packets want CAP_NET_ADMIN itself
    ],
    ids=lambda value: "+".join(value) or "no capability" if isinstance(value, tuple) else value,
)
def test_capabilities_one_by_one(namespace, capabilities, tier):
    """An ordinary user with exactly these: the tier, the reason of what is missing, and its own process recognised."""
    granted, trusted, refusals = with_capabilities(*capabilities)
    assert granted == tier
    assert trusted == (tier != "none")
    if tier != ALL.value:
        assert "permission" in refusals.values()


def test_a_delegated_bpffs(granted):
    """Without any privilege, in a user namespace: a BPF token of a bpffs that root delegated grants everything."""
    if kernel() < (6, 9):
        pytest.skip("BPF tokens came with Linux 6.9")
    done = forked.run([sys.executable, HERE / "delegated.py"], text=True)
    assert (done.returncode, done.stderr) == (0, "")
    tier, trusted, saw_records, refusals = json.loads(done.stdout)
    assert (tier, trusted, saw_records) == (Tier.ALL.value, True, True), refusals


def test_a_pid_namespace_is_noticed(granted):
    """There the records' pids are not this namespace's: they are not to be trusted."""
    assert report_from(OTHER_PIDS)[:2] == [ALL.value, False]


def test_a_time_namespace_is_noticed(granted):
    """There the start of a process is another than the records say."""
    assert report_from(OTHER_TIME)[:2] == [ALL.value, False]


@needs_calls
def test_without_cgroup2(namespace):
    """Counts by calls are left; the reason is said."""
    with EbpfSource.attach(EbpfSettings(cgroup=None)) as source:
        assert source.tier is Tier.CALLS
        assert source.refusals[0].what == "cgroup2"
        assert source.refusals[0].reason is UnavailableReason.MISSING


@needs_calls
@pytest.mark.parametrize(
    ("without", "tier"),
    [
        ({"sent"}, Tier.PACKETS),
        ({"received", "released"}, Tier.TCP),
        ({"egress"}, Tier.CALLS),
        ({"created"}, Tier.CALLS),
        ({"owners"}, Tier.ALL),
        ({"tcp_state_again"}, Tier.ALL),
    ],
    ids=lambda value: value.value if isinstance(value, Tier) else " ".join(sorted(value)),
)
@again
def test_what_older_kernels_lack(namespace, without, tier):
    """A program that is missing takes those along that make no sense without it; the rest works."""
    with Watch(without=frozenset(without)) as watch:
        assert watch.source.tier is tier
        assert not watch.source.programs & without
        assert watch.source.processes_trusted or tier is Tier.TCP
        server = listener()
        client, inbound = accepted(server)
        exchange(client, inbound, 70, 7)
        sock = udp()
        sock.sendto(bytes(40), sock.getsockname())
        sock.recv(100)
        numbers = cookie(client), cookie(inbound), cookie(sock)
        for one in (client, inbound, server, sock):
            one.close()
        assert [watch.ended(number).totals.tx_bytes for number in numbers[:2]] == [70, 7]
        if tier is not Tier.TCP:
            owner = watch.until(
                lambda: next((owner_of(e.facts) for e in watch.of(numbers[1]) if owner_of(e.facts)), None)
            )
            assert owner.pid == os.getpid()
        if "released" in watch.source.programs:
            ended = watch.ended(numbers[2])
            packets = 1 if "egress" in watch.source.programs else None
            assert ended.totals[:4] == (40, 40, packets, packets)
            assert owner_of(ended.facts).pid == os.getpid()


@needs_calls
def test_counts_are_taken_where_no_program_sees_the_end(namespace):
    """Without CAP_NET_ADMIN somebody else reports the end of a socket; then its entry is taken, once."""
    with Watch(cgroup=None) as watch:
        sock = udp()
        number = cookie(sock)
        sock.sendto(bytes(40), sock.getsockname())
        sock.close()
        (row,) = watch.rows(Operation.TAKE, [number])
        assert row.tx_bytes == 40
        assert watch.ended(number).final
        assert watch.rows(Operation.TAKE, [number]) == []
        assert entries(watch) == []


def test_a_map_that_is_refused(namespace):
    """One that is larger than memory: a typed reason, and no descriptor left."""
    before = descriptors()
    with pytest.raises(BackendUnavailableError) as caught:
        EbpfSource.attach(EbpfSettings(flows=1 << 31))
    assert caught.value.reason is UnavailableReason.RESOURCE
    assert descriptors() == before


def test_programs_leave_descriptors_to_the_rest_of_the_process(namespace, monkeypatch):
    """A program that may open few would otherwise have none for its own connections."""
    before = descriptors()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (SPARE_DESCRIPTORS, SPARE_DESCRIPTORS))
    with pytest.raises(BackendUnavailableError, match=r"descriptors for the rest .* raise the limit") as caught:
        EbpfSource.attach()
    assert caught.value.reason is UnavailableReason.RESOURCE
    assert descriptors() == before

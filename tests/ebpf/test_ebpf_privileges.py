"""The living kernel through `Monitor`: with which privileges the programs run, and what is left without them, or after them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import forked
import pytest
from ebpf_living import ALL, LIMIT, NET, again, counts_calls, needs_calls, own_namespace, program_ids, wait_until_gone
from ebpf_monitored import (
    Seen,
    Watcher,
    check_short_processes,
    connection,
    end_of_connection,
    ends,
    monitored,
    own,
    port,
    short_processes,
    udp,
)

from nstat_async import FlowAdded, FlowRemoved, PollCompleted
from nstat_async._errors import BackendUnavailableError, UnavailableReason
from nstat_async._io import bpf
from nstat_async._io.netlink import NetlinkTransport
from nstat_async.ebpf import Tier
from nstat_async.sockdiag import AttachRequest

pytestmark = [pytest.mark.privileged, pytest.mark.linux, pytest.mark.timeout(NET)]


@pytest.mark.slow
@needs_calls
@again
@pytest.mark.parametrize("capabilities", [("bpf", "perfmon"), ("bpf", "perfmon", "net_admin")])
def test_two_capabilities_are_enough(namespace, traffic, capabilities):
    """A user without any other privilege sees the same; three capabilities count the packets of UDP, too."""
    with Watcher(*capabilities) as watcher:
        watcher.until(lambda: any(isinstance(e, PollCompleted) for e in watcher.events))
        truth = short_processes(traffic, 40)
        watcher.until(lambda: len(ends(watcher.events, truth)) == 4 * 40)
        check_short_processes(watcher.events, truth, packets="net_admin" in capabilities)


@pytest.mark.slow
@pytest.mark.parametrize("capabilities", [(), ("bpf",), ("perfmon",), ("bpf", "net_admin")])
def test_less_than_that_is_as_without_programs(namespace, traffic, capabilities):
    """Flows and their bytes are there; UDP is not counted."""
    with Watcher(*capabilities, ebpf="auto") as watcher:
        watcher.until(lambda: any(isinstance(e, PollCompleted) for e in watcher.events))
        truth = short_processes(traffic, 4)
        watcher.until(lambda: len(ends(watcher.events, truth)) == 4 * 4)
        for (number, _), event in ends(watcher.events, truth).items():
            size = truth[number][1] if event.flow.provider.value == "tcp" else None
            assert (event.counts.rx_bytes or event.counts.tx_bytes) == size


@pytest.mark.slow
@again
def test_namespaces_that_may_not_be_entered_are_seen_from_outside(namespace):
    """Without CAP_SYS_ADMIN: of another namespace what was there before, what begins, and its exact ends."""
    with Watcher("bpf", "perfmon", "net_admin", netns="all") as watcher, own_namespace():

        def of(kind: type) -> dict[int, list]:
            events = [e for e in watcher.events if isinstance(e, kind) and e.flow.namespace == label]
            return {place: [e for e in events if e.flow.local.port == place] for place in ports}

        label = f"net:[{os.stat('/proc/thread-self/ns/net').st_ino}]"
        client, inbound, server = connection()
        sock = udp()
        ports = port(client), port(inbound), port(sock)
        watcher.until(lambda: all(of(FlowAdded).values()))
        client.sendall(bytes(70))
        sock.sendto(bytes(5), sock.getsockname())
        sock.recv(9)
        for each in (client, inbound, server, sock):
            each.close()
        watcher.until(lambda: all(of(FlowRemoved).values()))
        removed = {place: events[-1] for place, events in of(FlowRemoved).items()}
    client_end, server_end, datagrams = (removed[place] for place in ports)
    assert (client_end.counts.tx_bytes, client_end.final, server_end.counts.rx_bytes, server_end.final) == (
        70,
        True,
        70,
        True,
    )
    assert datagrams.counts.tx_bytes == (6 if datagrams.final else 5)
    assert all(own(event) for event in removed.values())


OF_A_USER = """
import os, sys
from nstat_async._cli import main
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main())
"""


def test_required_and_refused(granted):
    """The error is typed and says what is missing."""
    done = forked.run([sys.executable, "-c", OF_A_USER, "watch", "--ebpf", "require", "--interval", "0.3"], text=True)
    assert done.returncode == 1
    assert "CAP_BPF and CAP_PERFMON" in done.stderr


def test_a_thread_that_stayed_in_another_namespace_attaches_nothing_and_says_so(namespace):
    """Programs for its namespace would see no flow of the monitor's, whose processes were unknown without a word."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(os.getpid).result()  # it begins here
        with own_namespace(), contextlib.closing(NetlinkTransport()) as transport:
            answer = pool.submit(transport.lookup, AttachRequest()).result()
            assert answer.tier is Tier.NONE
            assert "another network namespace" in answer.detail
            assert transport.lookup(AttachRequest()).tier is ALL


@pytest.mark.slow
def test_a_killed_monitor_leaves_nothing(namespace):
    """All is held by descriptors: SIGKILL detaches and frees the programs."""
    with Watcher("bpf", "perfmon", "net_admin") as watcher:
        watcher.until(lambda: any(isinstance(e, PollCompleted) for e in watcher.events))
        ids = program_ids(watcher.process.pid)
        assert len(ids) == (10 if counts_calls() else 8)
        watcher.process.kill()
    wait_until_gone(ids)


def test_without_programs_everything_is_as_before(namespace):
    """``ebpf="off"``: no tier, no counts of UDP, and nothing asked of the kernel."""

    async def work(seen: Seen) -> None:
        await seen.monitor.poll_now()
        capabilities.append(seen.monitor.capabilities)

    capabilities: list = []
    monitored(work, ebpf="off", interval=None)
    assert capabilities[0].ebpf is None
    assert not capabilities[0].udp_counts
    assert any("no byte counters of UDP" in note for note in capabilities[0].notes)


STEPS = ("Loader.load", "MappedRing", "SharedCounters", "EbpfSource.open")


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_whatever_is_refused_sock_diag_goes_on(namespace, monkeypatch, step):
    """At each step the kernel may say no: the monitor says why and shows connections all the same."""
    from nstat_async._io import bpfload, ebpf

    def refuse(*_: object, **__: object) -> None:
        if step == "Loader.load":
            raise BackendUnavailableError("ebpf", UnavailableReason.KERNEL, "no")
        raise OSError(1, "no")

    holder, name = {
        "Loader.load": (bpfload.Loader, "load"),
        "MappedRing": (ebpf, "MappedRing"),
        "SharedCounters": (ebpf, "SharedCounters"),
        "EbpfSource.open": (ebpf.EbpfSource, "open"),
    }[step]
    monkeypatch.setattr(holder, name, refuse)

    async def work(seen: Seen) -> None:
        assert (await end_of_connection(seen)).counts.tx_bytes == 3
        capabilities.append(seen.monitor.capabilities)

    capabilities: list = []
    monitored(work, ebpf="auto", interval=0.1)
    assert capabilities[0].ebpf == "none"
    assert capabilities[0].ebpf_reason


class Refusing:
    """The system call bpf(2), of which some calls are refused.

    Args:
        call: The call itself.
        refused: Numbers of the calls that are, counted from 0.
        number: With which error.
    """

    def __init__(self, call: Callable[..., int], refused: range, number: int) -> None:
        self.calls = 0
        self._call = call
        self._refused = refused
        self._number = number

    def __call__(self, *arguments: object) -> int:
        self.calls += 1
        if self.calls - 1 not in self._refused:
            return self._call(*arguments)
        ctypes.set_errno(self._number)
        return -1


@pytest.mark.long
@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOMEM])
@pytest.mark.parametrize("alone", [True, False])
def test_every_call_refused_leaves_a_working_monitor(namespace, monkeypatch, number, alone):
    """One call after the other, alone or with all that follow: each connection is seen, with its bytes, and nothing is left open."""

    async def work(seen: Seen) -> None:
        with udp() as sock:
            sock.sendto(b"x", sock.getsockname())
            await seen.monitor.poll_now()
        removed = await end_of_connection(seen)
        assert (removed.counts.tx_bytes, removed.final) == (3, True), step
        tiers.append((seen.monitor.capabilities.ebpf, seen.monitor.capabilities.ebpf_reason))

    tiers, step, system_call = [], 0, bpf._system_call()
    monitored(work, ebpf="off", interval=None)  # what is made once and kept
    tiers.clear()
    before = len(os.listdir("/proc/self/fd"))
    while True:
        refusing = Refusing(system_call, range(step, step + 1 if alone else sys.maxsize), number)
        monkeypatch.setattr(bpf, "_system_call", lambda refusing=refusing: refusing)
        monitored(work, ebpf="auto", interval=None)
        end = time.monotonic() + LIMIT
        while len(os.listdir("/proc/self/fd")) != before:  # a look at /proc may still be under way
            assert time.monotonic() < end, step
            time.sleep(0.002)
        if refusing.calls <= step:
            break
        assert tiers[-1][0] == ALL.value or tiers[-1][1], step
        step += 1
    assert step > 20
    assert tiers[0][0] == "none"
    assert tiers[-1] == (ALL.value, None)

"""The table of releases: a new kernel is a row, and an old one is read by what was known of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from ntstat_wire import NEWEST_OF_LAYOUT, Wire
from virtual import VirtualMonitor, compare

from nstat_async import FlowAdded, Proof, Provider
from nstat_async.ntstat import RELEASES, Kernel, Layout, Mode, Release, Session
from nstat_async.testing import EmulatedKernel

TESTS = Path(__file__).parent.parent


@pytest.fixture
def newest(request, monkeypatch):
    """One more row: a newest release whose TCP descriptor has 16 more bytes at a place of the test's choice."""
    row = Release(
        (20000,), Layout(99, grown={"nstat_tcp_descriptor": (request.param, 16)}), darwin={(40,): (20000,)}, known=False
    )
    monkeypatch.setattr("nstat_async.ntstat._kernels.RELEASES", rows := [*RELEASES, row])
    monkeypatch.setattr("nstat_async.ntstat._readers.RELEASES", rows)
    return row


@pytest.mark.parametrize("newest", [0, 72, 260, 292, 340], indirect=True)
def test_a_new_release_is_one_row(newest):
    """Its flows are read whole, with every field where the row says."""
    for text in ("xnu-20000.1.2", "Darwin 40.0.0"):
        assert Kernel.parse(text).layout is newest.layout
    kernel = EmulatedKernel("xnu-20000.1.2")
    old = Kernel.parse("xnu-12377.1.9").layout["nstat_tcp_descriptor"]
    assert kernel.release.layout["nstat_tcp_descriptor"].size == old.size + 16
    assert kernel.release.has_details, "facts hold until a later row says otherwise"
    flow = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10, uid=502, fallback_mode=2)
    monitor = VirtualMonitor(kernel)
    flow.transfer(rx=234)
    monitor.run(3.0)
    ((seen, counts),) = monitor.session.flows()
    assert (seen.process.name, seen.process.uid, seen.fallback_mode, counts.rx_bytes) == ("curl", 502, 2, 1234)
    compare(kernel, monitor.session.flows(), providers={Provider.TCP})
    assert monitor.session.capabilities.layout == "W99"
    assert not monitor.session.statistics()["unknown_lengths"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_other_test_passes_with_one_more_row():
    chosen = ("ntstat/test_ntstat_kernels.py", "ntstat/test_ntstat_layouts.py")
    parts = ("semantics", "counters", "lives", "unknown", "other_sources")
    more = (*(f"ntstat/test_ntstat_{part}.py" for part in parts), "test_proof.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "synthetic_release", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *chosen, *more], cwd=TESTS, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_to_know_a_kernel_is_a_change_of_its_row(monkeypatch):
    rows = [attrs.evolve(row, known=True) if row.first == (12377,) else row for row in RELEASES]
    monkeypatch.setattr("nstat_async.ntstat._kernels.RELEASES", rows)
    session = Session("xnu-12377.121.6")
    assert session.kernel.known
    assert session.capabilities.layout_proof is Proof.ASSUMED
    assert not session.capabilities.notes


@pytest.mark.parametrize("number", [7, 8, 9, 10])
def test_a_known_old_kernel_s_odd_descriptor_is_never_read_by_a_newer_layout(number):
    """It has the length of the newest one: what is there is this kernel's structure, and bytes behind it."""
    wire, newest = Wire(number), Wire(max(NEWEST_OF_LAYOUT))
    own = wire.layout["nstat_tcp_descriptor"]
    data = own.encode({"pid": 77, "pname": b"old", "state": 4}).ljust(
        newest.layout["nstat_tcp_descriptor"].size, b"\x05"
    )
    session = Session(wire.kernel, mode=Mode.FOLLOWING)
    session.receive_datagram(wire.updated(1, wire.counts(5, 5), data), 1.0)
    (event,) = session.take_events()
    assert isinstance(event, FlowAdded)
    assert (event.flow.process.pid, event.flow.process.name) == (77, "old")
    assert event.flow.process.uid is None
    assert event.details.undecoded == data[own.size :]


def test_rows_are_in_order_and_speak_of_facts_that_there_are():
    firsts = [row.first for row in RELEASES]
    assert firsts == sorted(set(firsts))
    facts = {field.name for field in attrs.fields(Kernel)} - {"text", "version", "layout", "known"}
    for row in RELEASES:
        assert set(row.facts) <= facts, row.first
    darwin = [(release, version) for row in RELEASES for release, version in row.darwin.items()]
    assert darwin == sorted(darwin)
    for release, version in darwin:
        assert Kernel.parse("Darwin " + ".".join(map(str, release))).version == version

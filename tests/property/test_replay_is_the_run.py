"""A replay of a recorded run gives the run's events: every one, in every field, in order.

Hypothesis writes the run: on Darwin the scripts of `test_kernel_truth` with their faults,
small receive buffers, proofs of the layout and controls that go away. Linux has its own
(``tests/sockdiag/test_sockdiag_replay.py``).
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels import KERNELS
from replaying import assert_same, replayed
from test_kernel_truth import Machine, life, trouble
from virtual import EPOCH, Picture, VirtualMonitor

from examples import examples
from nstat_async import EventsLost, LossCause, ProtocolError
from nstat_async._contract import LookupFailed
from nstat_async._io.record import RecordedCore
from nstat_async._options import MonitorOptions
from nstat_async.recording import Record, Recording, RecordingWriter, RecordKind, open_recording
from nstat_async.testing import DARWIN_27_INSERTIONS, EmulatedKernel

common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


class Darwin:
    """A recorded run on an emulated Darwin kernel."""

    def __init__(self, kernel: EmulatedKernel, *, as_json: bool = False, **options: Any) -> None:
        self.file = io.BytesIO()
        self.events: list[Any] = []
        self.picture = Picture()
        self.machine = Machine(kernel)
        self.recorded: Any = None

        def record(session: Any, chosen: MonitorOptions) -> RecordedCore:
            self.recorded = RecordedCore(
                session, Recording(self.file), chosen, now=float(kernel.now), epoch_offset=EPOCH
            )
            return self.recorded

        self.record = record
        self._options = options

    def play(self, script: list[tuple[Any, ...]], before: int = 0) -> None:
        self.machine.do_crowd(before)
        self.machine.monitor = VirtualMonitor(
            self.machine.kernel, wrap=self.record, picture=self.picture, sink=self.take, **self._options
        )
        for step in script:
            self.machine.do(step)
        self.recorded.close()
        self.file.seek(0)

    def take(self, events: list[Any]) -> None:
        self.picture.feed(events)
        self.events += events


@settings(common, max_examples=examples(60))
@given(
    kernel=st.sampled_from(KERNELS),
    options=st.fixed_dictionaries(
        {
            "discovery": st.sampled_from(("poll", "announce")),
            "interval": st.sampled_from((None, 0.2, 1.0)),
            "every_update": st.booleans(),
            "providers": st.sampled_from(("tcp", ("tcp", "udp"), ("tcp", "udp", "quic"))),
            "receive_buffer": st.sampled_from((2048, 8192, 1 << 20)),
        }
    ),
    before=st.integers(0, 40),
    delay=st.sampled_from((0.0, 0.0, 0.02, 0.4)),
    seed=st.integers(0, 3),
    script=st.lists(st.one_of(life, trouble), max_size=30),
)
def test_the_replay_of_a_run_on_darwin_is_the_run(kernel, options, before, delay, seed, script):
    run = Darwin(EmulatedKernel(kernel, seed=seed), **options)
    run.machine.kernel.faults.reply_delay = delay
    run.play(script, before)
    assert_same(replayed(run.file, every_update=options["every_update"]), run.events)


@settings(common, max_examples=examples(20))
@given(
    answers=st.sampled_from(("true", "none", "failed")),
    script=st.lists(st.one_of(life, trouble), max_size=10),
)
def test_a_proof_of_the_layout_comes_out_the_same(answers, script):
    kernel = EmulatedKernel("xnu-12500.1.1", insertions=DARWIN_27_INSERTIONS[0], layout_number=12)
    lookup = {"true": None, "none": lambda _request: None, "failed": lambda _request: LookupFailed("no")}[answers]
    run = Darwin(kernel, verify=None, lookup=lookup)
    run.play([("open", 0, True), *script, ("wait", 2.5), ("poll",)])
    assert_same(replayed(run.file), run.events)


# --- what a replay may be asked for ----------------------------------------------------


def test_who_replays_may_want_every_update_and_leave_flows_out():
    """The filter and ``every_update`` are the reader's, what steers the conversation is the recording's."""
    run = Darwin(EmulatedKernel(), every_update=True, interval=1.0)
    run.play([("open", 0, True), ("open", 1, True), ("wait", 2.5), ("transfer", 0, 10, 10), ("wait", 2.5)])
    assert_same(replayed(run.file, every_update=True, interval=77.0, providers="quic", extras=True), run.events)
    run.file.seek(0)
    assert len(replayed(run.file)) < len(run.events)
    run.file.seek(0)
    assert not [e for e in replayed(run.file, flow_filter=lambda _flow: False) if hasattr(e, "flow")]


@pytest.mark.parametrize("lost", ["a request", "a deadline"])
def test_a_replay_that_is_no_longer_the_run_says_so_once(lost):
    """Without one of its requests, or one of its inputs, it is another run: that is said once, and the rest plays."""
    run = Darwin(EmulatedKernel(), interval=1.0)
    run.play([("open", 0, True), ("wait", 2.5), ("transfer", 0, 10, 10), ("wait", 2.5)])
    with open_recording(run.file) as source:
        records = list(source)

    def is_lost(record: Record) -> bool:
        deadline = record.kind is RecordKind.STEP and record.value["type"] == "DeadlineReached"
        return deadline if lost == "a deadline" else record.kind is RecordKind.TO_KERNEL

    records.remove(next(filter(is_lost, records)))
    file = io.BytesIO()
    RecordingWriter(file, source.info).write_batch(records)
    file.seek(0)
    events = replayed(file)
    (loss,) = [e for e in events if isinstance(e, EventsLost) and e.cause is LossCause.RECORDING]
    assert loss.count is None
    assert "differs from the recorded run" in loss.detail
    assert len(events) > 1


def test_bytes_that_cannot_be_decoded_are_a_loss_again_or_an_error_for_who_wants_one():
    """``strict`` is the reader's, too."""
    run = Darwin(EmulatedKernel(), interval=1.0)
    run.play([("open", 0, True), ("garbage", b"\xff" * 40), ("wait", 2.5)])
    assert [e for e in run.events if isinstance(e, EventsLost) and e.cause is LossCause.PROTOCOL]
    assert_same(replayed(run.file), run.events)
    run.file.seek(0)
    with pytest.raises(ProtocolError):
        replayed(run.file, strict=True)


def test_a_recording_of_one_process_is_the_same_run_in_another(tmp_path):
    """Nothing depends on the order of a set, which differs from process to process."""
    run = Darwin(EmulatedKernel(), interval=1.0, providers=("tcp", "udp", "quic"), extras=True)
    run.play([("open", kind, True) for kind in range(5)] + [("wait", 2.5), ("transfer", 0, 5, 5), ("wait", 2.5)], 10)
    path = tmp_path / "run.nstat"
    path.write_bytes(run.file.getvalue())
    program = (
        "import anyio, sys\n"
        "from nstat_async import Monitor, backends\n"
        "async def main():\n"
        "    async with Monitor(backend=backends.Replay(sys.argv[1])) as monitor:\n"
        "        async for event in monitor: print(repr(event))\n"
        "anyio.run(main)\n"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=120,
            text=True,
        )
        assert done.stdout.splitlines() == [repr(event) for event in run.events]

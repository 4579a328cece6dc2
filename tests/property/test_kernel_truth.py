"""Whatever happens, in the end the library's picture is the kernel's truth, or it says what it missed.

Hypothesis writes scripts: sockets that open, connect, listen, accept, carry traffic, change
hands and close, and a kernel that loses announcements, batches, final reports and goodbyes,
whose buffer is full for a while, whose control goes away, whose clock jumps. When the faults
have stopped, two polls must be enough.

Sessions run without descriptors, in virtual time (``tests/virtual.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernels import KERNELS
from virtual import Picture, VirtualMonitor, compare, traffic

from examples import examples
from nstat_async import LossCause, Provider
from nstat_async._buffer import EventBuffer
from nstat_async._options import DEFAULT_PROVIDERS, Overflow
from nstat_async.ntstat._subscription import REDESCRIBE_EVERY
from nstat_async.testing import EmulatedKernel

KINDS = (
    (Provider.TCP, False),
    (Provider.UDP, False),
    (Provider.TCP, True),
    (Provider.UDP, True),
    (Provider.QUIC, True),
)
PAUSES = (0.01, 0.12, 0.5, 1.0, 2.5, 7.0, 61.0)
JUMPS = (-3600.0, -0.5, 0.5, 86_400.0)
UNHEARD = (LossCause.ANNOUNCEMENT, LossCause.GOODBYE, LossCause.RESYNC)
"""What may be said of a flow that was never seen."""

which = st.integers(0, 40)
amount = st.sampled_from((0, 1, 1448, 100_000, 1 << 33))
probability = st.sampled_from((0.0, 0.3, 1.0))
life = st.one_of(
    st.tuples(st.just("open"), st.integers(0, len(KINDS) - 1), st.booleans()),
    st.tuples(st.just("transfer"), which, amount, amount),
    st.tuples(st.just("connect"), which),
    st.tuples(st.just("bind"), which),
    st.tuples(st.just("listen"), which),
    st.tuples(st.just("accept"), which),
    st.tuples(st.just("hand over"), which),
    st.tuples(st.just("close"), which),
    st.tuples(st.just("crowd"), st.integers(1, 40)),
    st.tuples(st.just("wait"), st.sampled_from(PAUSES)),
    st.tuples(st.just("poll")),
)
trouble = st.one_of(
    st.tuples(st.just("fault"), st.just("lose_announcements"), probability),
    st.tuples(st.just("fault"), st.just("lose_batches"), probability),
    st.tuples(st.just("fault"), st.just("lose_final_reports"), probability),
    st.tuples(st.just("fault"), st.just("lose_goodbyes"), probability),
    st.tuples(st.just("fault"), st.just("delay_goodbyes"), st.sampled_from((0.0, 0.3, 4.0))),
    st.tuples(st.just("fault"), st.just("full"), st.booleans()),
    st.tuples(st.just("fault"), st.just("mbufs"), st.sampled_from((None, 0, 3))),
    st.tuples(st.just("end control"), st.booleans()),
    st.tuples(st.just("garbage"), st.binary(max_size=80)),
    st.tuples(st.just("clock"), st.sampled_from(JUMPS)),
    st.tuples(st.just("ticks"), st.sampled_from(JUMPS)),
)


class Machine:
    """Carries out a script on an emulated kernel, and remembers every flow that ever was.

    Every flow belongs to a process whose name is the flow's own, so that what the library
    says of it is found again whatever else changes.
    """

    def __init__(self, kernel: EmulatedKernel) -> None:
        self.kernel = kernel
        self.flows: list[Any] = []
        self.monitor: VirtualMonitor | None = None
        self.unwatched: set[Any] = set()
        """Flows that ended before the subscription was granted."""
        self._serial = 0

    def owner(self) -> dict[str, Any]:
        self._serial += 1
        return {"pid": 1000 + self._serial, "name": f"f{self._serial}."}

    def open(self, kind: int, connected: bool) -> Any:
        self.kernel.advance(1e-6)  # no two sockets are made at the same tick
        here = [k for k in KINDS if k in self.kernel.release.providers.values()]
        provider, userland = here[kind % len(here)]
        remote = ("198.51.100.7", 443) if connected else None
        if provider is Provider.TCP:
            flow = self.kernel.open_tcp(**self.owner(), remote=remote, userland=userland)
        elif provider is Provider.UDP:
            flow = self.kernel.open_udp(**self.owner(), remote=remote, userland=userland)
        else:
            flow = self.kernel.open_quic(**self.owner())
        self.flows.append(flow)
        return flow

    def chosen(self, number: int, *, tcp: bool = False) -> Any:
        alive = [f for f in self.flows if f.open and (not tcp or (f.provider is Provider.TCP and f.is_kernel_socket))]
        return alive[number % len(alive)] if alive else None

    def do(self, step: tuple[Any, ...]) -> None:
        name, *arguments = step
        getattr(self, "do_" + name.replace(" ", "_"))(*arguments)
        if self.monitor is not None:
            self.monitor.turn()

    def do_open(self, kind: int, connected: bool) -> None:
        self.open(kind, connected)

    def do_crowd(self, size: int) -> None:
        for number in range(size):
            self.open(number, True).transfer(number, 1)

    def do_transfer(self, number: int, rx: int, tx: int) -> None:
        if (flow := self.chosen(number)) is not None:
            flow.transfer(rx, tx)

    def do_connect(self, number: int) -> None:
        flow = self.chosen(number)
        if flow is not None and (flow.provider is Provider.UDP or flow.state == "closed"):
            flow.connect(("2001:db8::7", 443))

    def do_bind(self, number: int) -> None:
        flow = self.chosen(number)
        if flow is not None and not any(flow.fields.get("local", b"")[2:4]):  # a port stays
            flow.bind(("192.168.1.10", 8000 + number))

    def do_listen(self, number: int) -> None:
        if (flow := self.chosen(number, tcp=True)) is not None and flow.state == "closed":
            flow.listen(("192.168.1.10", 80))

    def do_accept(self, number: int) -> None:
        listeners = [f for f in self.flows if f.open and f.state == "listen" and f.provider is Provider.TCP]
        if listeners:
            self.kernel.advance(1e-6)
            child = listeners[number % len(listeners)].accept(("203.0.113.5", 40_000 + len(self.flows)))
            owner = self.owner()
            child.rename_process(owner["pid"], owner["name"])
            self.flows.append(child)

    def do_hand_over(self, number: int) -> None:
        if (flow := self.chosen(number)) is not None:
            flow.rename_process(50_000 + number, f"{true_name(flow)}.{number}")

    def do_close(self, number: int) -> None:
        if (flow := self.chosen(number)) is not None:
            if self.monitor is None or not self.monitor.picture.polls:
                self.unwatched.add(flow)
            flow.close()

    def do_wait(self, seconds: float) -> None:
        assert self.monitor is not None
        self.monitor.run(seconds)

    def do_poll(self) -> None:
        assert self.monitor is not None
        self.monitor.core.request_poll(self.kernel.now)

    def do_fault(self, name: str, value: Any) -> None:
        if name == "lose_announcements" and not self.kernel.release.references_are_unique:
            return  # nothing ever tells of them there
        if name in {"full", "mbufs"} and not self.kernel.release.references_are_unique:
            return  # which would lose announcements, too
        setattr(self.kernel.faults, name, value)

    def do_end_control(self, returns: bool) -> None:
        assert self.monitor is not None
        self.kernel.end_controls()
        if not returns:
            self.monitor.control_present = False
            self.monitor.run(0.3)
            self.monitor.control_present = True

    def do_garbage(self, data: bytes) -> None:
        self.kernel.inject(data)

    def do_clock(self, seconds: float) -> None:
        assert self.monitor is not None
        self.monitor.offset += seconds

    def do_ticks(self, seconds: float) -> None:
        self.kernel.jump_clock(seconds)

    def heal(self) -> None:
        """All faults stop."""
        faults = self.kernel.faults
        faults.lose_announcements = faults.lose_batches = faults.lose_final_reports = faults.lose_goodbyes = 0.0
        faults.delay_goodbyes = 0.0
        faults.full, faults.mbufs = False, None


def true_name(flow: Any) -> str:
    """The name of a flow of the kernel, without what a hand-over added."""
    return str(flow.fields["pname"].decode().split(".")[0])


def serial(flow: Any) -> str:
    """The name of a flow of the library, as the script knows it (without what a hand-over added)."""
    return "" if flow.process is None else (flow.process.name or "").split(".")[0]


def check_accounts(machine: Machine, picture: Picture) -> None:
    """Every flow that ever was is known, or was removed with its totals, or its loss was told."""
    never_seen = without_final = 0
    removed = {serial(event.flow): event for event in picture.removed if serial(event.flow)}
    names = Counter(serial(event.flow) for event in picture.removed if serial(event.flow))
    names.update(serial(flow) for flow, _ in picture.flows.values())
    twice = {name for name, count in names.items() if count > 1}
    # Before xnu-4570 nothing tells a socket that changed its addresses while the control was away; nor if ticks were 0.
    if picture.lost(LossCause.RESYNC):
        by_birth = machine.kernel.release.version >= (4570,)
        twice &= {true_name(flow) for flow in machine.flows if by_birth and flow.fields["start_timestamp"]}
    assert not twice, f"one flow of the kernel was two here: {twice}"
    for flow in machine.flows:
        if flow.open or flow in machine.unwatched:
            continue
        event = removed.get(true_name(flow))
        if event is None:
            never_seen += 1
        elif event.final:
            true = tuple(flow.counts.get(f"nstat_{key}", 0) for key in ("rxbytes", "txbytes", "rxpackets", "txpackets"))
            assert traffic(event.counts) == true, f"wrong final counts: {event}, true {true}"
        else:
            without_final += 1
    # A flow of which nothing but its reference was heard has no name here.
    nameless = sum(1 for event in picture.removed if not serial(event.flow))
    assert picture.lost(LossCause.FINAL_COUNTS) >= without_final, picture.losses
    assert picture.lost(*UNHEARD) + nameless >= never_seen, picture.losses


def awaits_repair(picture: Picture) -> bool:
    """Whether announcements are said to be lost and no other control socket has listed all flows since.

    After one whose list was short of flows that lived (or whose end was on its way), the next comes later: at most a
    minute.
    """
    causes = [
        loss.cause for loss in reversed(picture.losses) if loss.cause in {LossCause.ANNOUNCEMENT, LossCause.RESYNC}
    ]
    return causes[:1] == [LossCause.ANNOUNCEMENT]


def awaits_flows(monitor: VirtualMonitor) -> bool:
    """Whether flows of a control that went away may still come back: if nothing else is open, for 80 s."""
    current = monitor.session._sockets.current
    return current is not None and bool(current.table.awaited)


def settle(machine: Machine, monitor: VirtualMonitor) -> None:
    """The faults stop, what was on its way arrives, and there are two polls."""
    machine.heal()
    # Delayed goodbyes, a resynchronisation, TIME_WAIT on the releases that wait for its end.
    monitor.run(36.0 if machine.kernel.release.version < (3247,) else 12.0)
    # The number of a lost announcement is missed when a later one comes.
    machine.open(0, True)
    monitor.turn()
    # A description is asked for a moment later; a second control socket subscribes and polls. Where the buffer is small,
    # at least four flows are asked for together.
    monitor.run(0.2 + (30 + len(machine.flows) / 4) * machine.kernel.faults.reply_delay)
    for _ in range(85):
        if not (awaits_repair(monitor.picture) or awaits_flows(monitor)):
            break
        monitor.run(1.0)
    monitor.poll()
    monitor.poll()
    if not machine.kernel.release.has_updates:
        # Old kernels: what changed in a description is seen when all are asked for again.
        for _ in range(REDESCRIBE_EVERY):
            monitor.poll()


def check(machine: Machine, monitor: VirtualMonitor) -> None:
    assert monitor.session.failure is None
    compare(machine.kernel, monitor.picture.flows.values(), providers=DEFAULT_PROVIDERS)
    compare(machine.kernel, monitor.session.flows(), providers=DEFAULT_PROVIDERS)
    check_accounts(machine, monitor.picture)
    last = monitor.picture.last_poll
    assert last is not None
    assert last.complete
    assert last.flows == len(monitor.picture.flows)


def play(
    kernel: str,
    script: list[tuple[Any, ...]],
    *,
    before: int = 0,
    delay: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> tuple[Machine, VirtualMonitor]:
    machine = Machine(EmulatedKernel(kernel, seed=seed))
    machine.kernel.faults.reply_delay = delay
    machine.do_crowd(before)
    monitor = machine.monitor = VirtualMonitor(machine.kernel, **options)
    for step in script:
        machine.do(step)
    settle(machine, monitor)
    check(machine, monitor)
    return machine, monitor


"""Set it to search longer."""
common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@settings(common, max_examples=examples(50))
@given(
    kernel=st.sampled_from(KERNELS),
    discovery=st.sampled_from(("poll", "announce")),
    before=st.integers(0, 30),
    script=st.lists(life, max_size=30),
)
def test_without_faults_every_flow_is_told_from_begin_to_end_with_exact_counts(kernel, discovery, before, script):
    machine, monitor = play(kernel, script, before=before, discovery=discovery)
    assert not [loss for loss in monitor.picture.losses if loss.cause is not LossCause.FINAL_COUNTS]
    if machine.kernel.release.has_counts_at_goodbye:
        assert not monitor.picture.losses


def totals(flows: Iterable[Any]) -> list[int]:
    """What these flows of the kernel moved since they began, as `Picture.moved`."""
    names = [f"nstat_{key}" for key in ("rxbytes", "txbytes", "rxpackets", "txpackets")]
    return [sum(flow.counts.get(name, 0) for flow in flows) for name in names]


@settings(common, max_examples=examples(30))
@given(
    kernel=st.sampled_from(KERNELS),
    discovery=st.sampled_from(("poll", "announce")),
    before=st.integers(0, 10),
    jump=st.sampled_from(JUMPS),
    script=st.lists(life, min_size=1, max_size=20),
)
def test_what_is_counted_is_what_moved_since_the_subscription_whatever_the_wall_clock_does(
    kernel, discovery, before, jump, script
):
    machine = Machine(EmulatedKernel(kernel))
    machine.do_crowd(before)
    machine.kernel.advance(1.0)
    earlier = totals(machine.flows)
    monitor = machine.monitor = VirtualMonitor(machine.kernel, discovery=discovery)
    for step in (("clock", jump), ("crowd", 3), *script):
        machine.do(step)
    settle(machine, monitor)
    if not monitor.picture.losses:  # 10.7 has no final counts
        assert monitor.picture.moved == [now - then for now, then in zip(totals(machine.flows), earlier, strict=True)]


@settings(common, max_examples=examples(200))
@given(
    kernel=st.sampled_from(KERNELS),
    discovery=st.sampled_from(("poll", "announce")),
    before=st.integers(0, 30),
    interval=st.sampled_from((None, 0.2, 1.0)),
    delay=st.sampled_from((0.0, 0.0, 0.02, 0.4)),
    seed=st.integers(0, 3),
    script=st.lists(st.one_of(life, trouble), max_size=40),
)
def test_after_any_faults_the_picture_is_the_kernels_truth_or_says_what_it_missed(
    kernel, discovery, before, interval, delay, seed, script
):
    play(kernel, script, before=before, discovery=discovery, interval=interval, delay=delay, seed=seed)


def test_what_was_never_announced_is_known_within_a_minute_though_ends_are_on_their_way():
    lost = [("fault", "lose_announcements", 1.0), ("open", 0, True), ("fault", "lose_announcements", 0.0)]
    script = [("fault", "delay_goodbyes", 7.0), *lost, ("close", 2), ("open", 0, True), ("wait", 4.0), ("close", 1)]
    _, monitor = play("xnu-8020.140.41", script, before=5, discovery="announce")
    assert monitor.session.statistics()["resynchronisations"] == 3


@settings(common, max_examples=examples(25))
@given(
    kernel=st.sampled_from(KERNELS[5:]),
    discovery=st.sampled_from(("poll", "announce")),
    size=st.sampled_from((2048, 4096, 8192, 10_000, 16_384, 65_536)),
    before=st.sampled_from((3, 40, 120)),
    script=st.lists(life, max_size=15),
)
def test_with_a_receive_buffer_of_any_size_the_picture_is_the_kernels_truth(kernel, discovery, size, before, script):
    play(kernel, script, before=before, discovery=discovery, receive_buffer=size)


@settings(common, max_examples=examples(50))
@given(
    kernel=st.sampled_from(KERNELS),
    limit=st.integers(1, 40),
    script=st.lists(st.one_of(life, st.tuples(st.just("read"), st.integers(1, 50))), max_size=40),
)
def test_a_consumer_that_reads_late_has_the_same_flows_and_the_same_totals(kernel, limit, script):
    machine = Machine(EmulatedKernel(kernel))
    monitor = machine.monitor = VirtualMonitor(machine.kernel)
    late, buffer = Picture(), EventBuffer(limit, Overflow.COALESCE)
    monitor.add_sink(buffer.extend)
    buffer.extend([])
    for step in script:
        if step[0] == "read":
            late.feed(buffer.pop_some(step[1]))
        else:
            machine.do(step)
    settle(machine, monitor)
    late.feed(buffer.pop_all())
    # The first events came before the buffer was there: none, as nothing was open yet.
    assert {i: (f, traffic(c)) for i, (f, c) in late.flows.items()} == {
        i: (f, traffic(c)) for i, (f, c) in monitor.picture.flows.items()
    }
    assert late.moved == monitor.picture.moved

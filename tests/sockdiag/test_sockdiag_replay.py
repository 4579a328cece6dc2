"""A replay of a recorded run on Linux gives the run's events: every one, in every field, in order.

Hypothesis writes the run: several network namespaces, sockets that come and go, dumps that
are silent, overruns, garbage, look-ups that fail or never come, a wall clock that jumps.
"""

from __future__ import annotations

import io
from typing import Any

import attrs
from endings_fakes import last_words, two_ends
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs_fakes import Programs
from replaying import assert_same, replayed
from sockdiag_fakes import FakeKernel, FakeSocket, flow_events, removals

from examples import examples
from nstat_async._contract import LookupFailed
from nstat_async._io.record import RecordedCore
from nstat_async._model import Attribution, Visibility
from nstat_async._options import Ebpf, MonitorOptions
from nstat_async.ebpf import Tier
from nstat_async.recording import Recording, RecordingWriter, open_recording
from nstat_async.sockdiag import (
    CgroupFacts,
    FoundNamespace,
    NamespacesAnswer,
    NetworkNamespace,
    Session,
    Setup,
    SocketState,
    TcpInfo,
    _host_requests,
    _purposes,
)
from nstat_async.sockdiag._lookups import MAX_OUTSTANDING

common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

THIS, ONE, TWO = (
    NetworkNamespace(),
    NetworkNamespace("one", device=4, inode=11),
    NetworkNamespace("two", device=4, inode=12),
)
BOX = CgroupFacts(7002, f"/docker/{'ab' * 32}", "web")
NAMESPACES = ((THIS,), (THIS, ONE), (ONE, TWO, THIS))
cookie = st.integers(1, 12)
step = st.one_of(
    st.tuples(st.just("open"), cookie, st.booleans()),
    st.tuples(st.just("grow"), cookie, st.integers(1, 1 << 33)),
    st.tuples(st.just("close"), cookie, st.booleans()),
    st.tuples(st.just("owner"), cookie, st.integers(1, 5)),
    st.tuples(st.just("silent"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("overrun"), st.integers(0, 2), st.sampled_from((105, 11, 12))),
    st.tuples(st.just("garbage"), st.integers(0, 11), st.binary(max_size=40)),
    st.tuples(st.just("hold"), st.booleans()),
    st.tuples(st.just("answers"), st.sampled_from((None, LookupFailed("gone")))),
    st.tuples(st.just("clock"), st.sampled_from((-3600.0, 0.0002, 5.0))),
    st.tuples(st.just("wait"), st.sampled_from((0.01, 0.3, 1.0, 3.0))),
    st.tuples(st.just("poll")),
    st.tuples(st.just("came"), st.integers(1, 5)),
    st.tuples(st.just("went"), st.integers(0, 5)),
)


class Linux(FakeKernel):
    """A recorded run on a kernel made of a dictionary."""

    def __init__(
        self, namespaces: tuple[NetworkNamespace, ...], *, all_namespaces: bool = False, **options: Any
    ) -> None:
        chosen = MonitorOptions(**options)
        session = Session(chosen, namespaces=namespaces, kernel="6.18.0", all_namespaces=all_namespaces)
        self.file = io.BytesIO()
        self.recorded = RecordedCore(session, Recording(self.file), chosen, now=100.0, epoch_offset=1000.0)
        super().__init__(self.recorded)  # type: ignore[arg-type]
        self.cgroups = {7001: CgroupFacts(7001, "/system.slice/nginx.service"), 7002: BOX}
        self.unwalked = {7003}

    def feed(self, data: bytes, channel: int) -> None:
        self.recorded.receive_datagrams([data], self.now, channel)

    def do(self, action: tuple[Any, ...]) -> None:
        getattr(self, f"do_{action[0]}")(*action[1:])

    def do_open(self, number: int, tcp: bool) -> None:
        self.sockets.setdefault(
            number,
            FakeSocket(
                number, local_port=4000 + number, inode=number, protocol=6 if tcp else 17, cgroup=7000 + number % 4
            ),
        )

    def do_grow(self, number: int, size: int) -> None:
        if number in self.sockets:
            info = self.sockets[number].info
            info[TcpInfo.BYTES_RECEIVED] = (info.get(TcpInfo.BYTES_RECEIVED, 0) + size) % (1 << 60)

    def do_close(self, number: int, tell: bool) -> None:
        if number in self.sockets:
            self.close(number, tell=tell)
            self.run()

    def do_owner(self, number: int, pid: int) -> None:
        self.owners[number] = pid

    def do_silent(self, role: int, silent: bool) -> None:
        (self.silent.add if silent else self.silent.discard)(role)

    def do_overrun(self, namespace: int, number: int) -> None:
        self.recorded.channel_failed(namespace * 4 + 1, number, self.now)
        self.recorded.channel_drained(namespace * 4 + 1, self.now)
        self.run()

    def do_garbage(self, channel: int, data: bytes) -> None:
        self.feed(data, channel)
        self.run()

    def do_hold(self, hold: bool) -> None:
        self.hold_lookups = hold

    def do_answers(self, answer: Any) -> None:
        held, self.held = self.held, []
        for command in held:
            self.recorded.lookup_done(command.token, answer, self.now)
        self.run()

    def do_clock(self, jump: float) -> None:
        self.recorded.epoch_offset += jump

    def do_wait(self, seconds: float) -> None:
        self.wait(seconds)

    def do_came(self, number: int) -> None:
        identity = NetworkNamespace(f"space {number}", device=4, inode=20 + number)
        self.came_and_went.append(NamespacesAnswer((FoundNamespace(number, identity),)))

    def do_went(self, number: int) -> None:
        self.came_and_went.append(NamespacesAnswer(gone=(number,)))

    def do_poll(self) -> None:
        self.poll()


@settings(common, max_examples=examples(60))
@given(
    namespaces=st.sampled_from(NAMESPACES),
    options=st.fixed_dictionaries(
        {
            "interval": st.sampled_from((None, 1.0)),
            "every_update": st.booleans(),
            "extras": st.booleans(),
            "providers": st.sampled_from(("tcp", "udp", ("tcp", "udp"))),
        }
    ),
    every_namespace=st.booleans(),
    script=st.lists(step, max_size=25),
)
def test_the_replay_of_a_run_on_linux_is_the_run(namespaces, options, every_namespace, script):
    run = Linux(namespaces, all_namespaces=every_namespace, **options)
    run.start()
    for action in script:
        if run.recorded.failure is None:
            run.do(action)
    run.recorded.close()
    run.file.seek(0)
    assert_same(replayed(run.file, every_update=options["every_update"]), run.events)


def test_who_follows_knows_a_channel_by_its_purpose_and_not_by_its_number():
    run = Linux((THIS,))
    for number in range(1, 5):
        run.do(("open", number, True))
        run.do(("owner", number, number))
    run.start()
    run.do(("close", 2, True))
    run.do(("wait", 1.0))
    run.recorded.close()
    run.file.seek(0)
    with open_recording(run.file) as source:
        records = [record._replace(client=record.client * 10 + 3) for record in source]
    assert source.info.run is not None
    file = io.BytesIO()
    info = attrs.evolve(source.info, run={**source.info.run, "library": "another"})
    RecordingWriter(file, info).write_batch(records)
    file.seek(0)
    followed = replayed(file)

    def story(events: list[Any]) -> list[Any]:
        return [(type(e), e.flow.local.port, e.flow.process and e.flow.process.pid) for e in flow_events(events)]

    assert story(followed) == story(run.events)
    assert len(story(followed)) == 5


def test_who_follows_sees_namespaces_come_and_go():
    run = Linux((THIS,), all_namespaces=True)
    run.do(("open", 1, True))
    run.do(("came", 1))
    run.start()
    run.do(("wait", 1.0))
    run.do(("wait", 1.0))
    run.do(("went", 1))
    run.do(("wait", 1.0))
    run.recorded.close()
    run.file.seek(0)
    with open_recording(run.file) as source:
        records = list(source)
    assert source.info.run is not None
    file = io.BytesIO()
    RecordingWriter(file, attrs.evolve(source.info, run={**source.info.run, "library": "another"})).write_batch(records)
    file.seek(0)

    def story(events: list[Any]) -> list[Any]:
        return [(type(e).__name__, e.flow.id, e.flow.namespace) for e in flow_events(events) if e.flow.namespace]

    assert story(run.events) == [("FlowAdded", "n1:c1", "space 1"), ("FlowRemoved", "n1:c1", "space 1")]
    assert story(replayed(file)) == story(run.events)


def test_a_later_part_says_nothing_of_the_owners_that_an_earlier_one_found():
    """What its client asks of the host tells that it did not search for them, rather than in vain."""
    run = Linux((THIS,))
    run.do(("open", 1, True))
    run.do(("owner", 1, 1))
    run.start()
    run.do(("open", 2, True))
    for _ in range(4):
        run.do(("wait", 1.0))
    run.recorded.close()
    run.file.seek(0)
    with open_recording(run.file) as source:
        records = [each for each in source if each.time_ns > 5e8 or "Channel" in str(each.value)]
    assert source.info.run is not None
    file = io.BytesIO()
    RecordingWriter(file, attrs.evolve(source.info, run={**source.info.run, "part": 2})).write_batch(records)
    file.seek(0)
    flows = {event.flow.id: event.flow for event in flow_events(replayed(file))}
    assert {name: (flow.process, flow.attribution) for name, flow in flows.items()} == {
        "c1": (None, None),
        "c2": (None, Attribution.HIDDEN),
    }


def test_what_is_asked_when_there_is_room_for_answers_again_is_asked_in_the_replay():
    """A recording does not have the moments at which nothing could be sent: two ends that meet meanwhile meet in both."""
    kernel = Programs(mode=Ebpf.OFF)
    kernel.start()
    kernel.silent.add(3)
    for port in range(MAX_OUTSTANDING):
        kernel.feed(last_words(20_000 + port).message(final=True), 1)
    kernel.run()
    server, client = two_ends()
    server.info[TcpInfo.DELIVERED] = 2  # its FIN, too
    for end in (server, client):
        kernel.now += 0.01
        kernel.feed(end.message(final=True), 1)
        kernel.run()
    kernel.silent.clear()
    for _ in range(8):
        kernel.wait(1.0)
    assert len(removals(kernel.events)) == MAX_OUTSTANDING + 2
    kernel.recorded.close()
    kernel.file.seek(0)
    assert_same(replayed(kernel.file), kernel.events)


def test_what_an_older_recording_does_not_have_means_no_none_or_nothing_but_for_these():
    recorded = [Setup, *(each for module in (_purposes, _host_requests) for each in vars(module).values())]
    defaults = {
        f"{kind.__name__}.{field.name}": field.default
        for kind in recorded
        if isinstance(kind, type) and attrs.has(kind)
        for field in attrs.fields(kind)
        if field.default is not attrs.NOTHING and field.default
    }
    assert defaults == {
        "AttachAnswer.ticks": 100,
        "AttachAnswer.tier": Tier.NONE,
        "CgroupsAnswer.complete": True,
        "FoundNamespace.entered": True,
        "PulsePurpose.pause": 0.02,
        "Setup.ebpf": Ebpf.OFF,
        "Setup.namespaces": (THIS,),
        "Setup.processes": Visibility.UNKNOWN,
        "Setup.refused": Visibility.SOME,
        "TableRow.state": SocketState.CLOSE,
    }

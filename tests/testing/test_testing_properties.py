"""No request and no script makes the emulated kernel crash or forget its books."""

import contextlib
import struct

import conversations
import details_reproduction
import reproduction
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import KERNELS
from talk import SUPPRESS, Talk

from examples import examples
from nstat_async import Provider
from nstat_async.ntstat import (
    AddAllSources,
    AddSource,
    GetDetails,
    GetSourceDescription,
    GetUpdate,
    MessageType,
    QuerySource,
    RemoveSource,
    SetFilter,
    SubscribeSystemInfo,
    decode_message,
    split,
)
from nstat_async.testing import EmulatedKernel, Workload

kernels = st.sampled_from(KERNELS)


@st.composite
def requests(draw):
    """Bytes that are nearly requests."""
    kind = draw(st.sampled_from([*MessageType, 0, 999, 2**32 - 1]))
    body = draw(st.binary(max_size=80))
    if draw(st.booleans()):
        body = draw(st.sampled_from([b"\xff" * 8, (1).to_bytes(8, "little"), bytes(8)])) + body
    head = draw(st.integers(0, 3)).to_bytes(8, "little") + int(kind).to_bytes(4, "little")
    length = draw(st.sampled_from([16 + len(body), 0, 65535]))
    return head + length.to_bytes(2, "little") + draw(st.integers(0, 3)).to_bytes(2, "little") + body


@settings(max_examples=examples(80), deadline=None)
@given(kernels, st.booleans(), st.lists(requests() | st.binary(max_size=40), max_size=12))
def test_any_request_is_answered_by_well_formed_messages(name, privileged, datagrams):
    kernel = EmulatedKernel(name, privileged=privileged)
    kernel.open_tcp(remote=("198.51.100.7", 443))
    kernel.open_udp()
    client = kernel.connect()
    for datagram in datagrams:
        with contextlib.suppress(OSError):
            client.send(datagram)
        kernel.open_tcp().close()
    while client.readable:
        record = client.receive()
        frames, defect = split(record, has_lengths=kernel.release.layout.has_lengths)
        assert defect is None
        for frame in frames:
            decode_message(kernel.release, record, frame)


@settings(max_examples=examples(25), deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(["xnu-3248.60.10", "xnu-7195.141.2", "xnu-11417.121.6"]),
    st.integers(2048, 65536),
    st.lists(st.floats(0, 2), min_size=1, max_size=6),
)
def test_a_client_that_polls_until_done_has_the_kernels_picture(seed, name, space, waits):
    """With announcements suppressed and a buffer for a chunk, nothing is ever missed."""
    kernel = EmulatedKernel(name, receive_space=space, seed=seed)
    workload = Workload(kernel, rate=20, size=120, mean_life=2, kinds=((Provider.TCP, False),), seed=seed)
    workload.start()
    talk = Talk(kernel, receive_buffer=65536)
    talk.watch(Provider.TCP, filter=SUPPRESS, userland=False)
    for number, wait in enumerate(waits):
        kernel.advance(wait)
        talk.read()
        seen = {}
        while True:
            *reports, end = talk.send(QuerySource(srcref=talk.layout.all_sources, context=number + 1, flags=3))
            seen.update((r.srcref, r.counts) for r in reports if r.name == "SRC_COUNTS")
            if not end.flags & 2:
                break
        truth = {ref: source.flow.encoded_counts() for ref, source in talk.client.sources.items()}
        assert seen == truth
        assert {s.flow for s in talk.client.sources.values()} == set(kernel.flows())


@settings(max_examples=examples(15), deadline=None)
@given(st.integers(0, 2**32), kernels)
def test_a_workload_is_the_same_for_the_same_seed_and_keeps_its_books(seed, name):
    runs = []
    for _ in range(2):
        kernel = EmulatedKernel(name, seed=seed)
        workload = Workload(kernel, rate=30, size=30, mean_life=1)
        workload.start()
        kernel.advance(3)
        totals = sum(f.rx_bytes for f in workload.flows)
        assert set(workload.flows) == set(kernel.flows())
        assert workload.opened - workload.closed == len(workload.flows)
        assert 0 <= totals <= workload.rx_bytes
        runs.append((workload.opened, workload.closed, workload.rx_bytes, totals))
        workload.stop()
        kernel.advance(10)
        assert len(workload.flows) == workload.opened - workload.closed
    assert runs[0] == runs[1]


REPORTS = {"SRC_COUNTS", "SRC_DESC", "SRC_UPDATE", "SRC_EXTENDED_UPDATE", "SRC_DETAILS", "SRC_EXTENDED_DETAILS"}
FILTERS = (0, SUPPRESS, 0x8, 0x4, 0x400000 | SUPPRESS, 1 << 32, 1 << 33, 0x1000000008, 0x3E0000000000)
ASKING = (QuerySource, GetSourceDescription, GetUpdate, GetDetails)


@st.composite
def every_request(draw, everything):
    """A request of any type; `everything` is the release's reference for all sources."""
    head = {"context": draw(st.integers(0, 4)), "flags": draw(st.integers(0, 3))}
    kind = draw(st.sampled_from([AddAllSources, AddSource, RemoveSource, SetFilter, SubscribeSystemInfo, *ASKING * 2]))
    if kind is AddAllSources:
        wanted = {"filter": draw(st.sampled_from(FILTERS)), "target_pid": draw(st.sampled_from([0, 7, 501]))}
        return kind(**head, provider=draw(st.integers(0, 11)), **wanted)
    if kind is AddSource:
        return kind(**head, provider=draw(st.integers(0, 5)), param=draw(st.binary(max_size=60)))
    if kind is SubscribeSystemInfo:
        return kind(**head)
    reference = draw(st.sampled_from([0, 1, 2, 3, everything, everything]))
    return kind(**head, srcref=reference, **({"filter": 1} if kind is SetFilter else {}))


def encoded(request, layout):
    """The bytes of a request; one that the layout has no structure for has its header only."""
    if request.STRUCT in layout:
        return request.encode(layout)
    return struct.pack("<QIHH", request.context, request.TYPE, 16 if layout.has_lengths else 0, 0)


@settings(max_examples=examples(80), deadline=None)
@given(st.data(), kernels, st.booleans())
def test_each_request_of_a_random_sequence_has_the_answer_that_its_type_has(data, name, privileged):
    """One end for each request: what the answer consists of, and in which order, is the protocol's."""
    machine = EmulatedKernel(name, privileged=privileged)
    talks = [Talk(machine) for _ in range(2)]
    flows = [machine.open_tcp(7, "a", remote=("198.51.100.7", 443), rx=1), machine.open_udp(501, "b")]
    everything = talks[0].layout.all_sources
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["ask", "ask", "ask", "open", "close", "die", "move"]))
        if action == "open":
            flows.append(data.draw(st.sampled_from([machine.open_tcp, machine.open_udp]))())
        elif action == "close" and flows:
            flows.pop().close()
        elif action == "die" and flows:
            flows[-1].mark_gone()
        elif action == "move" and flows:
            flows[-1].transfer(rx=10)
        talk = data.draw(st.sampled_from(talks))
        talk.read()
        if action == "ask":
            request = data.draw(every_request(everything))
            talk.client.send(encoded(request, talk.layout))
            _check_answer(talk, request, everything)


def _check_answer(talk, request, everything):
    answers = talk.read()
    displaced = [m for m in answers if m.name == "ERROR" and m.error == 35 and not m.request]
    if answers and answers[0] in displaced:
        answers.pop(0)  # of another poll, and always first
    ends = [m.name for m in answers if m.name in {"SUCCESS", "ERROR"}]
    assert len(ends) <= 1
    for end in (m for m in answers if m.name in {"SUCCESS", "ERROR"}):
        assert end.context == request.context
    reports = [m for m in answers if m.name in REPORTS]
    if isinstance(request, ASKING) and getattr(request, "srcref", 0) == everything and "ERROR" not in ends:
        assert ends == ["SUCCESS"]
        found = [m.srcref for m in reports if m.name != "SRC_DESC" or isinstance(request, GetSourceDescription)]
        assert found == sorted(found, reverse=True), "newest first"
    elif isinstance(request, ASKING):
        assert "SUCCESS" not in ends
        assert {m.srcref for m in reports} <= {request.srcref}
        assert {m.context for m in reports[:1]} <= {request.context}
    if "ERROR" in ends:
        (error,) = [m for m in answers if m.name == "ERROR"]
        assert error.request == (encoded(request, talk.layout) if talk.kernel.release.version >= (3247,) else b"")


BYSTANDING = [
    name
    for name in conversations.names("control/*")
    if len(conversations.raw(name)) < 60_000 and "older_client" not in name and "ifnet" not in name
]


@settings(max_examples=examples(60), deadline=None)
@given(st.data(), st.sampled_from(BYSTANDING))
def test_random_requests_of_another_client_change_no_byte_of_a_recorded_conversation(data, name):
    """Every request of every recorded client is answered as the real kernel did, whatever a bystander asks between."""
    tahoe = "12377" in name
    replay = details_reproduction.DetailsReplay(name) if tahoe else reproduction.ControlReplay(name)
    bystander, layout = replay.kernel.connect(), replay.kernel.layout
    bystander.set_receive_buffer(1 << 20)
    asked = [line["i"] for line in replay.lines if line["dir"] == "to_kernel"]
    moments = data.draw(st.sets(st.sampled_from(asked), max_size=8))
    original = replay.to_kernel

    def interrupted(line):
        if line["i"] in moments and replay.kernel.faults.mbufs is None:
            for _ in range(2):
                request = data.draw(every_request(layout.all_sources))
                bystander.send(encoded(request, layout))
            while bystander.readable:
                bystander.receive()
        original(line)

    replay.to_kernel = interrupted
    assert replay.run() > 0

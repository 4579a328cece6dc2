"""No request and no script makes the emulated kernel crash or forget its books."""

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st
from talk import KERNELS, SUPPRESS, Talk

from nstat_async import Provider
from nstat_async.ntstat._constants import MessageType
from nstat_async.ntstat._framer import split
from nstat_async.ntstat._messages import QuerySource, decode_message
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


@settings(max_examples=80, deadline=None)
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


@settings(max_examples=25, deadline=None)
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


@settings(max_examples=15, deadline=None)
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

"""The proof of a layout: what a kernel says of flows whose every value is known.

A newer kernel is an emulated one with bytes inserted into its structures. Whatever is
inserted wherever, a field is read where it is, or not at all.
"""

from __future__ import annotations

import uuid

import attrs
import pytest
from ntstat_wire import NEWER, address
from virtual import VirtualMonitor, compare

from examples import THOROUGH
from nstat_async import Direction, Endpoint, InterfaceKind, PollCompleted, Proof, Provider, TcpState, Visibility
from nstat_async._contract import LookupFailed, Mode
from nstat_async._options import DEFAULT_PROVIDERS, MonitorOptions
from nstat_async.ntstat import CloseEvidence, Evidence, Kernel, KnownFlow, OpenEvidence, Session
from nstat_async.ntstat._constants import TCP_STATES, InterfaceProperty
from nstat_async.ntstat._proof import LayoutProbe, Proving, codecs_of
from nstat_async.ntstat._setup import ProvenStruct
from nstat_async.testing import DARWIN_27_INSERTIONS, EmulatedKernel
from nstat_async.testing._values import executable_uuid

KNOWN = ("xnu-1699.32.7", "xnu-2422.115.4", "xnu-2782.40.9", "xnu-3248.60.10", "xnu-4570.71.2", "xnu-7195.141.2",
         "xnu-8019.41.5", "xnu-8796.141.3", "xnu-10063.141.1", "xnu-11417.121.6", "xnu-12377.1.9")  # fmt: skip
TCP = Kernel.parse(NEWER).layout["nstat_tcp_descriptor"]
UDP = Kernel.parse(NEWER).layout["nstat_udp_descriptor"]


def populate(kernel):
    """Flows in which every field has a value of its own."""
    more = {"traffic_class": 300, "fallback_mode": 2, "persona_id": 99, "fuuid": bytes(range(16, 32)), "uid": 502,
            "vuuid": bytes(range(32, 48)), "connstatus": 5, "txwindow": 4321, "txcwindow": 8765, "txunacked": 11,
            "traffic_mgt_flags": 1, "sndbufused": 77, "rcvbufused": 33}  # fmt: skip
    tcp = {name: value for name, value in more.items() if name in TCP}
    udp = {name: value for name, value in more.items() if name in UDP}
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10, **tcp)
    kernel.open_tcp(502, "ssh", remote=("2001:db8::7", 22), rx=5, tx=6, **tcp)
    kernel.open_quic(503, "browser", rx=7, tx=8, **tcp)
    kernel.open_udp(504, "dns", remote=("198.51.100.53", 53), rx=70, tx=40, **udp)
    kernel.advance(10.0)


def prove(kernel, *, answer=None, **options):
    """A monitor after the proof is concluded."""
    monitor = VirtualMonitor(kernel, verify=True, lookup=answer, **options)
    monitor.run(3.0)
    return monitor


def evidence_changed(kernel, change):
    """Look-ups of this kernel, with other words about the known flows."""
    lookup = kernel.transport().lookup

    def answer(request):
        found = lookup(request)
        return change(found) if isinstance(request, OpenEvidence) else found

    return answer


# --- known kernels ------------------------------------------------------------


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_kernels_layout_is_verified(name):
    kernel = EmulatedKernel(name)
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10)
    monitor = prove(kernel)
    capabilities = monitor.session.capabilities
    assert capabilities.layout_proof is Proof.VERIFIED, capabilities.notes
    assert "byte counters of 8 known flows are exact" in capabilities.notes
    monitor.run(70.0)  # xnu-1699 reports a close up to a minute late
    compare(kernel, monitor.session.flows(), providers=DEFAULT_PROVIDERS)
    assert not [flow for flow, _ in monitor.session.flows() if flow.process.pid == 4242], "the known flows are closed"


def with_udp(insertions, place, size=16):
    return {**insertions, "nstat_udp_descriptor": ((place, size),)}


@pytest.mark.parametrize("responsible", [None, "Terminal"])
@pytest.mark.parametrize("discovery", ["poll", "announce"])
@pytest.mark.parametrize("name", ["xnu-11417.121.6", "xnu-12377.1.9"])
def test_a_program_that_was_started_from_a_terminal_verifies_the_layout_too(name, discovery, responsible):
    """The sockets of such a program carry the UUID of the process that is responsible for it."""
    kernel = EmulatedKernel(name)
    kernel.responsible = responsible
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10)
    monitor = prove(kernel, discovery=discovery)
    assert monitor.session.capabilities.layout_proof is Proof.VERIFIED, monitor.session.capabilities.notes
    ((flow, _),) = monitor.session.flows()
    assert flow.process.effective_pid == (None if responsible else 501)
    assert flow.process.responsible_uuid == (uuid.UUID(bytes=executable_uuid("Terminal")) if responsible else None)


UDP_PLACES = (None, 232, 248, 264, 272)
BEHIND = {"uid": 502, "persona_id": 99, "pid": 501, "uuid": uuid.UUID(bytes=executable_uuid("curl"))}
BEHIND_TCP = {"fallback_mode": 2, "direction": Direction.OUTBOUND, "traffic_class": 300}


@pytest.mark.parametrize("responsible", [None, "Terminal"])
@pytest.mark.parametrize("udp_place", UDP_PLACES)
@pytest.mark.parametrize("insertions", DARWIN_27_INSERTIONS, ids=["292", "308", "324"])
def test_darwin_27_is_probed_from_a_terminal_too(insertions, udp_place, responsible):
    """What stands behind the insertion is found; what lies where it may be is none. Nobody has seen UDP's descriptor."""
    kernel = EmulatedKernel(NEWER, insertions=insertions if udp_place is None else with_udp(insertions, udp_place))
    kernel.responsible = responsible
    more = {"fallback_mode": 2, "persona_id": 99, "uid": 502, "vuuid": bytes(range(32, 48)), "traffic_class": 300}
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10, connstatus=5, **more)
    kernel.open_udp(501, "curl", remote=("198.51.100.53", 53), rx=70, tx=40, **more)
    monitor = prove(kernel, every_update=True)
    capabilities = monitor.session.capabilities
    assert capabilities.layout_proof is Proof.PROBED, capabilities.notes
    flows = {flow.provider: flow for flow, _ in monitor.session.flows()}
    assert len(flows) == 2
    tcp, udp = flows[Provider.TCP], flows[Provider.UDP]
    for flow in (tcp, udp):
        said = {name: getattr(flow.process, name) for name in BEHIND}
        if flow is udp and udp_place in {264, 272}:  # in the middle of what could tell
            assert all(said[name] in {None, BEHIND[name]} for name in BEHIND)
        else:
            assert said == BEHIND
        assert flow.interface.kind in {InterfaceKind.WIFI, None}
        assert (flow.vpn_uuid, flow.uuid) == (None, None) or flow is udp
    assert {name: getattr(tcp, name) for name in BEHIND_TCP} == BEHIND_TCP
    assert tcp.interface.kind is InterfaceKind.WIFI


def test_the_flows_of_a_proof_are_nobodys_traffic():
    kernel = EmulatedKernel(NEWER, insertions=DARWIN_27_INSERTIONS[1])
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10)
    for discovery in ("poll", "announce"):
        monitor = prove(kernel, discovery=discovery)
        assert monitor.session.proof is Proof.PROBED
        assert monitor.picture.ids == {flow.id for flow, _ in monitor.session.flows()}
        assert monitor.picture.last_poll.flows == len(monitor.picture.ids) == 1
        assert not monitor.picture.losses


def test_another_control_socket_gives_a_proof_of_its_own():
    kernel = EmulatedKernel(NEWER, insertions=DARWIN_27_INSERTIONS[2])
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10)
    asked = []
    lookup = kernel.transport().lookup
    monitor = prove(kernel, answer=lambda request: asked.append(type(request)) or lookup(request))
    assert asked == [OpenEvidence, CloseEvidence]
    kernel.end_controls()
    monitor.run(5.0)
    assert asked == [OpenEvidence, CloseEvidence] * 2
    assert monitor.session.proof is Proof.PROBED
    assert len(monitor.picture.ids) == 1


def test_a_look_up_that_is_never_answered_holds_no_poll_up_for_long():
    kernel = EmulatedKernel(NEWER)
    session = Session(kernel.release, options=MonitorOptions(interval=1.0), verify=True)
    client = kernel.connect()
    session.start(0.0)
    for now in range(20):
        session.handle_deadline(float(now))
        for _ in range(20):
            for data in session.data_to_send():
                client.send(data)
            while client.readable:
                session.receive_datagram(client.receive(), float(now))
    polls = [event for event in session.take_events() if isinstance(event, PollCompleted)]
    assert len(polls) >= 3


def test_without_a_proof_a_known_layout_is_assumed_and_a_new_one_unknown():
    for name, proof in (("xnu-11417.121.6", Proof.ASSUMED), (NEWER, Proof.UNKNOWN)):
        monitor = VirtualMonitor(EmulatedKernel(name), verify=False)
        monitor.run(3.0)
        assert monitor.session.capabilities.layout_proof is proof


def test_a_new_kernel_is_proven_without_being_asked():
    monitor = VirtualMonitor(EmulatedKernel(NEWER), verify=None)
    monitor.run(3.0)
    assert monitor.session.capabilities.layout_proof is Proof.VERIFIED


# --- moved fields -----------------------------------------------------------------


def seen(monitor):
    """What is known of the populated flows, and of their last report, by owner's name or traffic."""
    details = {}
    for event in monitor.collected:
        if getattr(event, "details", None) is not None:
            details[event.flow.id] = event.details
    return {
        counts.rx_bytes: (flow, counts, details.get(flow.id))
        for flow, counts in monitor.session.flows()
        if flow.process is None or flow.process.pid != 4242
    }


def observed(kernel):
    populate(kernel)
    monitor = VirtualMonitor(kernel, verify=True, every_update=True)
    monitor.collected = []
    monitor.add_sink(monitor.collected.extend)
    monitor.run(4.0)
    return monitor


def told(value):
    """The fields of a value that say something, flattened."""
    if not attrs.has(type(value)):
        return {}
    found = {}
    for field in attrs.fields(type(value)):
        inner = getattr(value, field.name)
        if field.name in {"id", "started_ns", "undecoded", "sampled_at_ns", "activity", "activity_started_s"}:
            continue
        if attrs.has(type(inner)) and field.name not in {"local", "remote"}:
            found.update({f"{field.name}.{name}": each for name, each in told(inner).items()})
        elif inner is not None:
            found[field.name] = inner
    return found


@pytest.fixture(scope="module")
def truth():
    """The same machine, its structures as they are known."""
    return seen(observed(EmulatedKernel(NEWER)))


def wrong_fields(monitor, truth):
    wrong = []
    flows = seen(monitor)
    assert set(flows) == set(truth)
    for key, (flow, counts, details) in flows.items():
        true_flow, true_counts, true_details = truth[key]
        assert counts.as_dict() == true_counts.as_dict()
        for mine, theirs in ((told(flow), told(true_flow)), (told(details), told(true_details))):
            wrong += [(key, name, value) for name, value in mine.items() if theirs.get(name) != value]
    return wrong


PLACES = sorted({field.offset for field in TCP.fields} | {TCP.size})


@pytest.mark.parametrize("size", [4, 8, 16, 24])
def test_wherever_something_is_inserted_into_tcp_a_field_is_right_or_none(truth, size):
    """Each place has two of the sizes in the quick suite, and all in the thorough one."""
    proofs, places = [], PLACES if THOROUGH or size == 8 else PLACES[size // 10 :: 3]
    for place in places:
        kernel = EmulatedKernel(NEWER, insertions={"nstat_tcp_descriptor": ((place, size),)})
        monitor = observed(kernel)
        assert not (wrong := wrong_fields(monitor, truth)), f"{size} bytes at {place}: {wrong}"
        proofs.append(monitor.session.capabilities.layout_proof)
    # Behind the last field, nothing moved; before the addresses, all that can be checked did.
    assert proofs.count(Proof.PROBED) > len(places) * 3 // 4, dict(zip(places, proofs, strict=True))


@pytest.mark.parametrize("place", sorted({field.offset for field in UDP.fields} | {UDP.size}))
def test_wherever_something_is_inserted_into_udp_a_field_is_right_or_none(truth, place):
    kernel = EmulatedKernel(NEWER, insertions={"nstat_udp_descriptor": ((place, 8),)})
    monitor = observed(kernel)
    assert not wrong_fields(monitor, truth)


@pytest.mark.parametrize("insertions", [((0, 8), (260, 16)), ((56, 4), (344, 4)), ((124, 8), (180, 8), (300, 8))])
def test_several_insertions_are_not_explained_and_leave_right_fields_or_none(truth, insertions):
    kernel = EmulatedKernel(NEWER, insertions={"nstat_tcp_descriptor": insertions})
    monitor = observed(kernel)
    assert monitor.session.capabilities.layout_proof in {Proof.UNKNOWN, Proof.PROBED}
    assert not wrong_fields(monitor, truth)


def test_without_a_proof_nothing_behind_the_name_is_believed_of_a_longer_descriptor():
    kernel = EmulatedKernel(NEWER, insertions=DARWIN_27_INSERTIONS[0])
    populate(kernel)
    monitor = VirtualMonitor(kernel, verify=False)
    monitor.run(3.0)
    compare(kernel, monitor.session.flows(), providers=DEFAULT_PROVIDERS)
    tcp = [flow for flow, _ in monitor.session.flows() if flow.provider is Provider.TCP]
    assert all(flow.process.uuid is None and flow.process.uid is None for flow in tcp)


@pytest.mark.parametrize(
    ("speaks", "predecessor"), [("xnu-10063.141.1", "xnu-8796.141.3"), ("xnu-7195.141.2", "xnu-6153.141.1")]
)
def test_a_kernel_that_is_taken_for_its_predecessor_is_found_out(speaks, predecessor):
    kernel = EmulatedKernel(speaks)
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10)
    kernel.advance(1.0)
    believed = attrs.evolve(kernel.release, layout=Kernel.parse(predecessor).layout)
    monitor = VirtualMonitor(kernel, verify=True, believed=believed)
    monitor.run(3.0)
    assert monitor.session.capabilities.layout_proof in {Proof.PROBED, Proof.UNKNOWN}
    for flow, counts in monitor.session.flows():
        if counts is not None and counts.rx_bytes == 1000 and flow.remote is not None:
            assert (flow.remote, flow.process.pid) == (Endpoint.parse("198.51.100.7", 443), 501)


# --- evidence that does not agree ---------------------------------------------------


def test_byte_counters_that_are_not_what_was_sent_make_the_layout_unknown():
    kernel = EmulatedKernel("xnu-11417.121.6")

    def change(evidence):
        flows = tuple(attrs.evolve(flow, rx_bytes=flow.rx_bytes + 1) for flow in evidence.flows)
        return attrs.evolve(evidence, flows=flows)

    monitor = prove(kernel, answer=evidence_changed(kernel, change))
    capabilities = monitor.session.capabilities
    assert capabilities.layout_proof is Proof.UNKNOWN
    assert "byte counters of 8 of 8 known flows are not what was sent and received" in capabilities.notes


@pytest.mark.parametrize("field", ["pid", "uid", "interface_index", "unique_pid", "uuid"])
def test_a_known_value_that_is_nowhere_where_it_should_be_makes_the_layout_unknown(field):
    kernel = EmulatedKernel("xnu-11417.121.6")
    answer = evidence_changed(
        kernel, lambda evidence: attrs.evolve(evidence, **{field: b"\7" * 16 if field == "uuid" else 77_777})
    )
    capabilities = prove(kernel, answer=answer).session.capabilities
    assert capabilities.layout_proof is Proof.UNKNOWN
    assert any("no single insertion explains" in note for note in capabilities.notes)


def test_known_flows_that_the_kernel_does_not_show_make_the_layout_unknown():
    kernel = EmulatedKernel("xnu-11417.121.6")

    def change(evidence):
        more = KnownFlow(
            provider=Provider.TCP,
            local=Endpoint.parse("127.0.0.1", 1),
            remote=Endpoint.parse("127.0.0.1", 2),
            state=TcpState.ESTABLISHED,
            rx_bytes=0,
            tx_bytes=0,
        )
        return attrs.evolve(evidence, flows=(*evidence.flows, more))

    capabilities = prove(kernel, answer=evidence_changed(kernel, change)).session.capabilities
    assert capabilities.layout_proof is Proof.UNKNOWN
    assert "tcp: 4 of 5 known flows were found" in capabilities.notes


@pytest.mark.parametrize(
    ("at", "size"), [(2, 6), (58, 4), (94, 8), (96, 4), (104, 4), (106, 8), (114, 2), (130, 4), (205, 4)]
)
def test_where_nothing_explains_a_descriptor_what_stands_before_the_first_wrong_field_is_read(at, size):
    """Bytes in the middle of a field are no insertion that a kernel makes: nothing else is believed, and nothing guessed."""
    kernel = EmulatedKernel(NEWER, insertions={"nstat_udp_descriptor": [(at, size)]})
    populate(kernel)
    monitor = prove(kernel)
    assert monitor.session.proof is Proof.UNKNOWN
    (flow,) = [flow for flow, _ in monitor.session.flows() if flow.provider is Provider.UDP]
    process = flow.process
    assert flow.local is None or flow.local.port == 49155
    assert flow.remote in {None, Endpoint.parse("198.51.100.53", 53)}
    assert flow.interface is None or flow.interface.index in {None, 4}
    assert process is None or (process.pid, process.unique_pid, process.uid) == (504, 100004, process.uid and 502)
    assert process is None or process.name in {None, "dns"}


@pytest.mark.parametrize("lacking", [1, 2])
def test_one_end_of_a_loopback_connection_may_lack_the_bit_and_not_both(lacking):
    kernel = EmulatedKernel(NEWER, insertions=DARWIN_27_INSERTIONS[0])
    opened, made = kernel.open, []

    def open_one(*arguments, **options):
        made.append(options)
        more = {"ifnet_properties": int(InterfaceProperty.UNKNOWN_TYPE)} if len(made) % 2 < lacking else {}
        return opened(*arguments, **options, **more)

    kernel.open = open_one
    assert prove(kernel).session.proof is (Proof.PROBED if lacking == 1 else Proof.UNKNOWN)
    assert len(made) == 8


def test_a_machine_that_cannot_open_known_flows_says_so_and_goes_on():
    kernel = EmulatedKernel("xnu-11417.121.6")
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10)
    monitor = prove(kernel, answer=lambda request: None)
    capabilities = monitor.session.capabilities
    assert capabilities.layout_proof is Proof.ASSUMED
    assert any("no known flows can be opened" in note for note in capabilities.notes)
    compare(kernel, monitor.session.flows(), providers=DEFAULT_PROVIDERS)


def test_a_proof_survives_a_lost_batch_by_looking_again():
    kernel = EmulatedKernel("xnu-11417.121.6", seed=5)
    kernel.faults.lose_batches = 0.5
    assert prove(kernel).session.capabilities.layout_proof is Proof.VERIFIED


def test_a_proof_is_the_same_in_announce_mode():
    assert (
        prove(EmulatedKernel(NEWER, insertions=DARWIN_27_INSERTIONS[0]), discovery="announce").session.proof
        is Proof.PROBED
    )


# --- the probe by itself ---------------------------------------------------------


def probe(kernel=NEWER):
    flow = KnownFlow(
        provider=Provider.TCP,
        local=Endpoint.parse("127.0.0.1", 1000),
        remote=Endpoint.parse("127.0.0.1", 2000),
        state=TcpState.ESTABLISHED,
        rx_bytes=1,
        tx_bytes=2,
    )
    return LayoutProbe(Kernel.parse(kernel), Evidence(flows=(flow,), pid=1, uid=2, interface_index=3))


def test_nothing_observed_is_no_proof():
    result = probe().conclude()
    assert result.proof is Proof.UNKNOWN
    assert "byte counters could not be checked" in result.notes


@pytest.mark.parametrize("descriptor", [b"", b"\0" * 10, b"\xff" * 5000])
def test_descriptors_that_are_not_of_the_known_flows_are_passed_over(descriptor):
    made = probe()
    for provider in (2, 3, 4, 99):
        made.observe(1, provider, (0,) * 18, descriptor)
    assert made.conclude().proof is Proof.UNKNOWN


@pytest.mark.parametrize("size", [56, TCP.by_name["ifindex"].end - 1])
def test_a_descriptor_shorter_than_known_is_no_proof(size):
    made = probe()
    made.observe(1, 2, (0, 1, 0, 2) + (0,) * 14, (address("127.0.0.1", 1000) + address("127.0.0.1", 2000)).ljust(size))
    result = made.conclude()
    assert result.proof is Proof.UNKNOWN
    assert f"tcp: descriptors of [{size}] bytes, {TCP.size} are known" in result.notes


def test_why_known_flows_cannot_be_opened_is_in_the_note():
    kernel = EmulatedKernel("xnu-11417.121.6")
    notes = prove(kernel, answer=lambda request: LookupFailed("no descriptors")).session.capabilities.notes
    assert any("no known flows can be opened (no descriptors)" in note for note in notes)


def known_flow(provider, local=1000, remote=2000, **fields):
    ends = {name: Endpoint.parse("127.0.0.1", port) for name, port in (("local", local), ("remote", remote))}
    state = TcpState.ESTABLISHED if provider is Provider.TCP else None
    return KnownFlow(**{"provider": provider, **ends, "state": state, "rx_bytes": 1, "tx_bytes": 2, **fields})


def described(codec, **fields):
    """The descriptor of a known flow in which everything is right, but for these fields."""
    ends = {"local": address("127.0.0.1", 1000), "remote": address("127.0.0.1", 2000)}
    right = {"pid": 1, "uid": 2, "pname": b"python", "ifindex": 3, "ifnet_properties": InterfaceProperty.LOOPBACK,
             "uuid": b"u" * 16, "euuid": b"u" * 16, "start_timestamp": 7, "timestamp": 9, "state": 4}  # fmt: skip
    return codec.encode({name: value for name, value in {**right, **ends, **fields}.items() if name in codec})


def judged(flows=None, times=1, inserted_at=None, **fields):
    """What is made of one known flow of each protocol, with these fields in TCP's descriptor, and there 8 bytes more."""
    flows = (known_flow(Provider.TCP), known_flow(Provider.UDP)) if flows is None else flows
    made = LayoutProbe(Kernel.parse(NEWER), Evidence(flows=flows, pid=1, uid=2, interface_index=3))
    tcp = described(TCP, **fields)
    if inserted_at is not None:
        tcp = tcp[:inserted_at] + bytes(8) + tcp[inserted_at:]
    for _ in range(times):
        made.observe(1, 2, (0, 1, 0, 2) + (0,) * 14, tcp)
        made.observe(2, 4, (0, 1, 0, 2) + (0,) * 14, described(UDP))
    return made.conclude()


@pytest.mark.parametrize(
    ("fields", "right"),
    [
        ({}, True),
        ({"state": 3}, False),
        ({"state": len(TCP_STATES)}, False),
        ({"pname": b""}, False),
        ({"pname": b"\x1f"}, False),
        ({"pname": b" \0\1"}, True),
        ({"ifnet_properties": InterfaceProperty.LOOPBACK | 1 << 27}, True),
        ({"ifnet_properties": InterfaceProperty.LOOPBACK | 1 << 28}, False),
        ({"ifnet_properties": InterfaceProperty.LOOPBACK | InterfaceProperty.WIFI}, False),
        ({"ifnet_properties": 0}, False),
        ({"fallback_mode": 4}, True),
        ({"fallback_mode": 5}, False),
        ({"uuid": bytes(16), "euuid": bytes(16)}, False),
        ({"start_timestamp": 0}, False),
        ({"start_timestamp": 1, "timestamp": 1}, True),
        ({"start_timestamp": 2, "timestamp": 1}, False),
        ({"euuid": b"e" * 16}, True),
        ({"euuid": b"e" * 16, "epid": 5}, False),
        ({"euuid": b"e" * 16, "eupid": 5}, False),
        ({"euuid": bytes(16)}, False),
    ],
)
def test_a_layout_is_verified_if_each_field_that_can_be_checked_is_what_it_can_be(fields, right):
    result = judged(**fields)
    assert (result.proof is Proof.VERIFIED) is right, result.notes
    checked = "tcp: every field that could be checked is where it is expected"
    explained = f"tcp: no single insertion explains the descriptor of {TCP.size} bytes"
    assert result.notes[0] == (checked if right else explained)


MOVED = "tcp: moved by 8 bytes: "


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("upid", ["tcp: not told apart and left out: upid, eupid", MOVED + "start_timestamp, "]),
        ("remote", [MOVED + "remote, "]),
        ("connstatus", ["tcp: not told apart and left out: connstatus", MOVED + "ifnet_properties, fallback_mode"]),
        (
            "fallback_mode",
            ["tcp: not told apart and left out: fallback_mode", "tcp: every field that could be checked"],
        ),
    ],
)
def test_what_moved_and_what_is_left_out_because_it_may_be_in_two_places_is_said(field, expected):
    result = judged(inserted_at=TCP.by_name[field].offset)
    assert result.proof is Proof.PROBED
    said = [note for note in result.notes if note.startswith("tcp:")]
    assert len(said) == len(expected)
    assert all(note.startswith(begin) for note, begin in zip(said, expected, strict=True)), said


def test_where_one_field_is_wrong_what_stands_before_the_last_right_one_is_believed():
    """State comes behind the interface's number, and what lies between was not checked."""
    codec = judged(state=3).codecs["nstat_tcp_descriptor", TCP.size]
    end = TCP.by_name["ifindex"].end
    assert [field.name for field in codec.fields] == [field.name for field in TCP.fields if field.end <= end]


def test_what_is_not_known_of_a_known_flow_is_not_checked():
    flows = (known_flow(Provider.TCP, state=None), known_flow(Provider.UDP))
    assert judged(flows=flows, state=3).proof is Proof.VERIFIED


def test_a_bounded_number_of_reports_is_kept():
    assert "byte counters of 128 known flows are exact" in judged(times=100).notes


@pytest.mark.parametrize(("kernel", "believed"), [(NEWER, False), (KNOWN[-1], True)])
def test_where_no_known_flow_is_shown_nothing_is_believed_of_descriptors_of_unknown_length(kernel, believed):
    evidence = Evidence(flows=(known_flow(Provider.TCP, 1, 2),), pid=1, uid=2, interface_index=3)
    made = LayoutProbe(Kernel.parse(kernel), evidence)
    for size in (0, 8, 16):
        made.observe(1, 2, None, described(TCP) + bytes(size))
    codecs = made.conclude().codecs
    lengths = {TCP.size + 8, TCP.size + 16}
    assert {(length, codec.fields) for (_, length), codec in codecs.items()} == (
        set() if believed else {(length, ()) for length in lengths}
    )


def test_known_flows_are_opened_once_for_each_control_socket_and_looked_for_in_three_polls():
    proving = Proving(Kernel.parse(NEWER), wanted=True)
    assert (proving.poll_ended(), proving.awaits_flows) == (OpenEvidence(), True)
    proving.begin_again()
    assert (proving.poll_ended(), proving.poll_ended()) == (None, None)
    proving.flows_opened(Evidence(flows=(known_flow(Provider.TCP),), pid=1, uid=2, interface_index=3), "")
    assert (proving.poll_ended(), proving.awaits_flows) == (None, False)
    proving.begin_again()
    assert [proving.poll_ended() for _ in range(4)] == [None, None, CloseEvidence(), None]
    proving.begin_again()
    assert proving.poll_ended() == OpenEvidence()
    proving.flows_opened(Evidence(flows=(known_flow(Provider.TCP),), pid=1, uid=2, interface_index=3), "")
    assert [proving.poll_ended() for _ in range(3)] == [None, None, CloseEvidence()]
    unwanted = Proving(Kernel.parse(NEWER), wanted=False)
    assert (unwanted.poll_ended(), unwanted.awaits_flows) == (None, False)


def test_of_what_a_recording_says_was_proven_only_what_can_be_is_taken():
    kernel, name = Kernel.parse(NEWER), "nstat_tcp_descriptor"
    found = [
        ProvenStruct(name, 4097, (("pid", 0),)),
        ProvenStruct(name, 4096, (("pid", 4092), ("unknown", 4096))),
        ProvenStruct(name, 300, (("pid", 297),)),
        ProvenStruct(name, 301, (("pid", -1),)),
        ProvenStruct("nstat_counts", 302, ()),
    ]
    ((key, codec),) = codecs_of(kernel, found).items()
    assert key == (name, 4096)
    assert [(field.name, field.offset) for field in codec.fields] == [("pid", 4092)]


# --- whose flows are seen -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "own", "uids", "seen"),
    [
        (NEWER, 501, (501, 501), Visibility.OWN),
        (NEWER, 501, (501, 0), Visibility.ALL),
        (NEWER, 501, (), Visibility.UNKNOWN),
        (NEWER, 0, (0,), Visibility.UNKNOWN),
        (NEWER, None, (501,), Visibility.UNKNOWN),
        ("xnu-12377.121.6", 501, (501,), Visibility.ALL),
    ],
)
def test_whose_flows_are_seen_is_measured_where_a_kernel_may_hide_those_of_others(name, own, uids, seen):
    kernel = EmulatedKernel(name, insertions=DARWIN_27_INSERTIONS[0] if name == NEWER else None)
    for uid in uids:
        kernel.open_tcp(600 + uid, "app", remote=("198.51.100.7", 443), uid=uid)
    monitor = prove(kernel)
    monitor.session.setup = attrs.evolve(monitor.session.setup, own_uid=own)
    assert monitor.session.capabilities.flows is seen


def test_a_view_of_ones_own_flows_is_no_verdict_before_a_poll_is_complete():
    kernel = EmulatedKernel(NEWER)
    kernel.open_tcp(601, "app", remote=("198.51.100.7", 443), uid=501)
    sessions, seen = [], []

    def wrap(session, _options):
        session.setup = attrs.evolve(session.setup, own_uid=501)
        sessions.append(session)
        return session

    def take(events):
        seen.append((isinstance(events[-1], PollCompleted), sessions[0].capabilities.flows))

    VirtualMonitor(kernel, verify=False, sink=take, wrap=wrap).run(1.0)
    assert seen[0] == (False, Visibility.UNKNOWN)
    assert (True, Visibility.OWN) in seen


def test_what_was_proven_when_it_was_recorded_is_read_so_by_who_follows():
    kernel = EmulatedKernel(NEWER, insertions=DARWIN_27_INSERTIONS[0])
    populate(kernel)
    heard = []

    class Listening:
        def __init__(self, session, _options):
            self._session = session

        def __getattr__(self, name):
            return getattr(self._session, name)

        def receive_datagrams(self, datagrams, now, channel):
            heard.extend(datagrams)
            self._session.receive_datagrams(datagrams, now, channel)

    monitor = VirtualMonitor(kernel, verify=True, wrap=Listening)
    monitor.run(3.0)
    for proven in (monitor.session.setup.proven, ()):
        setup = attrs.evolve(monitor.session.setup, proven=proven)
        follower = Session.from_setup(setup, MonitorOptions(), mode=Mode.FOLLOWING)
        follower.receive_datagrams(heard, 1.0, 0)
        uids = {flow.process.uid for flow, _ in follower.flows() if flow.provider is Provider.TCP}
        assert (502 in uids) is bool(proven)
        assert (follower.proof is Proof.PROBED) is bool(proven)


def test_a_session_is_subscribed_once_the_kernel_has_answered():
    session = Session(KNOWN[-1])
    assert not session.subscribed
    session.start(0.0)
    assert not session.subscribed
    monitor = VirtualMonitor(EmulatedKernel(KNOWN[-1]))
    monitor.run(1.0)
    assert monitor.session.subscribed

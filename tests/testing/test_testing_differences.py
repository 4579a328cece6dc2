"""What the running kernel code does and the emulated kernel once did not: one test for each difference.

Each was found by sending the same requests to both. The bytes of some requests are those that showed it.
"""

import pytest
from talk import SUPPRESS, Talk, descriptor, names

from nstat_async import InterfaceKind, Provider, UsageError
from nstat_async.ntstat import AddSource, GetDetails, GetSourceDescription, GetUpdate, QuerySource
from nstat_async.ntstat import InterfaceProperty as Bit
from nstat_async.testing import DARWIN_27_INSERTIONS, EmulatedKernel
from nstat_async.testing._values import executable_uuid

TAHOE = "xnu-12377.121.6"
REMOTE = ("198.51.100.7", 443)
ROLES = Bit.SOURCE_IS_LISTENER | Bit.SOURCE_IS_INBOUND | Bit.SOURCE_IS_OUTBOUND
INITIAL_PROPERTIES = 0x1000000000
BY_PID, BY_EPID = 1 << 32, 1 << 33
MEDIA = ("cellular", "wifi_infra", "wifi_non_infra", "wired", "bluetooth", "alternate")


def watching(kernel, provider=Provider.TCP, *, userland=False, insertions=None, **fields):
    machine = EmulatedKernel(kernel, privileged=True, insertions=insertions)
    talk = Talk(machine)
    talk.watch(provider, userland=userland, **{"filter": SUPPRESS, **fields})
    return machine, talk


def references(messages):
    return [m.srcref for m in messages if hasattr(m, "srcref") and m.name != "SRC_ADDED"]


def details(machine, message):
    return machine.release.layout["nstat_detailed_counts"].decode(message.detailed_counts)


# All releases


@pytest.mark.parametrize(("kernel", "starves"), [("xnu-2422.115.4", True), ("xnu-3789.70.16", True),
                                                 ("xnu-10063.141.1", True), ("xnu-11215.81.4", False),
                                                 (TAHOE, False)])  # fmt: skip
@pytest.mark.parametrize("opener", ["open_tcp", "open_udp"])
def test_an_older_client_starves_where_a_newer_one_does_not_read_up_to_10063(kernel, starves, opener):
    machine = EmulatedKernel(kernel)
    older, newer = Talk(machine), Talk(machine, receive_buffer=None)
    provider = Provider.TCP if opener == "open_tcp" else Provider.UDP
    for talk in (older, newer):
        talk.watch(provider, userland=False)
    for _ in range(300):
        getattr(machine, opener)()
    reached = len(newer.client.sources)
    assert reached < 300
    assert len(older.client.sources) == (reached if starves else 300)
    assert older.client.next_reference == len(older.client.sources) + 1, "no number is used up for it"


def test_user_land_flows_reach_an_older_client_in_every_release():
    machine = EmulatedKernel("xnu-10063.141.1")
    older, newer = Talk(machine), Talk(machine, receive_buffer=2048)
    for talk in (older, newer):
        talk.watch(Provider.UDP, userland=True)
    for _ in range(100):
        machine.open_udp(userland=True)
    assert len(newer.client.sources) < len(older.client.sources) == 100


@pytest.mark.parametrize("kernel", ["xnu-10063.141.1", "xnu-11417.121.6", TAHOE])
def test_an_outbound_flow_that_was_never_described_says_goodbye_without_a_role(kernel):
    for described in (False, True):
        machine, talk = watching(kernel)
        flow = machine.open_tcp(remote=REMOTE)
        if described:
            talk.describe(srcref=1, flags=0)
        machine.warm_up()
        flow.close(first=False)
        last, _ = talk.read()
        told = descriptor(machine, last)
        assert told["state"] == 0
        assert told["ifnet_properties"] & ROLES == (Bit.SOURCE_IS_OUTBOUND if described else 0)


def test_a_filter_looks_at_a_flow_without_keeping_its_role():
    machine, talk = watching("xnu-11417.121.6", filter=SUPPRESS | Bit.WIFI)
    machine.open_tcp(remote=REMOTE)
    talk.query()
    next(machine.flows()).close(first=False)
    assert descriptor(machine, talk.read()[0])["ifnet_properties"] & ROLES == 0


@pytest.mark.parametrize(("kernel", "expected"), [("xnu-4570.71.2", 0), ("xnu-4903.270.47", 0),
                                                  ("xnu-6153.141.1", Bit.NON_LOCAL)])  # fmt: skip
def test_tcp_says_whether_its_peer_is_local_since_6153(kernel, expected):
    machine, talk = watching(kernel)
    machine.open_tcp(remote=REMOTE)
    properties = descriptor(machine, talk.update()[0])["ifnet_properties"]
    assert properties & (Bit.LOCAL | Bit.NON_LOCAL) == expected


@pytest.mark.parametrize("kernel", ["xnu-8796.141.3", "xnu-11417.121.6", TAHOE])
def test_initial_properties_hide_no_announcement_of_sockets_and_hide_those_of_subflows(kernel):
    machine, talk = watching(kernel, filter=INITIAL_PROPERTIES | Bit.CELLULAR)
    talk.watch(Provider.UDP, userland=False)
    talk.watch(Provider.UDP_SUBFLOW, filter=INITIAL_PROPERTIES | Bit.CELLULAR)
    machine.open_tcp(remote=REMOTE, interface="en0")
    machine.open_subflow(machine.open_udp(), REMOTE)
    assert [m.srcref for m in talk.read() if m.name == "SRC_ADDED"] == [1, 2]


@pytest.mark.parametrize("kernel", ["xnu-3789.70.16", "xnu-8796.141.3", "xnu-11417.121.6", TAHOE])
def test_an_effective_pid_of_0_hides_a_kernel_socket_and_any_other_shows_it(kernel):
    bit = EmulatedKernel(kernel).release.specific_user_bits["epid"]
    for target, delegated, shown in ((0, False, False), (0, True, True), (9, False, True), (7, True, True)):
        machine, talk = watching(kernel, filter=SUPPRESS | bit, target_pid=target)
        flow = machine.open_tcp(501, "a", remote=REMOTE)
        if delegated:
            flow.set(epid=77)
        assert bool(references(talk.update())) is shown, (target, delegated)


@pytest.mark.parametrize("kernel", ["xnu-8019.41.5", "xnu-8020.140.41", "xnu-8796.141.3"])
def test_the_filter_sees_bits_that_the_descriptor_has_no_room_for(kernel):
    machine, talk = watching(kernel, filter=SUPPRESS | Bit.WIFI_INFRA)
    machine.open_tcp(remote=REMOTE, interface="en0")
    (update, _) = talk.update()
    assert descriptor(machine, update)["ifnet_properties"] & Bit.WIFI_INFRA == 0


@pytest.mark.parametrize("everything", [False, True])
def test_any_request_ends_a_paced_poll_of_3248(everything):
    machine, talk = watching("xnu-3248.60.10")
    machine.open_tcp()
    talk.client.send(bytes.fromhex("0700000000000000ed0300001400030003000000"))
    assert [(m.name, m.error) for m in talk.read()] == [("ERROR", 2)]
    reference = "ffffffff" if everything else "01000000"
    talk.client.send(bytes.fromhex("0300000000000000ef03000014000100" + reference))
    displaced, *answer = talk.read()
    assert (displaced.name, displaced.context, displaced.error, displaced.request) == ("ERROR", 7, 35, b"")
    assert answer[0].name == "SRC_UPDATE"


def test_context_0_reports_everything_to_a_fresh_client_of_3248_and_nothing_to_later_ones():
    for kernel, expected in (("xnu-3248.60.10", [2, 1]), ("xnu-3789.70.16", [])):
        machine, talk = watching(kernel)
        machine.open_tcp()
        machine.open_tcp()
        request = GetUpdate(srcref=talk.layout.all_sources, context=0, flags=3)
        assert references(talk.send(request)) == expected
        assert references(talk.send(request)) == []


def test_filters_read_user_land_udp_of_3789_as_tcp():
    """The descriptor is UDP's: the places of TCP's properties and pid hold other things there, or nothing."""
    pid_bit = EmulatedKernel("xnu-3789.70.16").release.specific_user_bits["pid"]
    for wanted in ({"filter": SUPPRESS | Bit.WIFI}, {"filter": SUPPRESS | pid_bit, "target_pid": 501}):
        machine, talk = watching("xnu-3789.70.16", Provider.TCP, userland=True, **wanted)
        talk.watch(Provider.UDP, userland=True, **wanted)
        machine.open_udp(501, "a", remote=REMOTE, userland=True)
        machine.open_tcp(501, "a", remote=REMOTE, userland=True)
        assert references(talk.update()) == [2], wanted


# macOS 26, and what was found with it


def test_details_have_retransmissions_and_round_trip_times():
    machine, talk = watching(TAHOE)
    flow = machine.open_tcp(remote=REMOTE)
    flow.set(nstat_rxduplicatebytes=1, nstat_rxoutoforderbytes=2, nstat_txretransmit=3)
    values = details(machine, talk.ask(GetDetails)[0])
    found = [values[n] for n in ("rxduplicatebytes", "rxoutoforderbytes", "txretransmit", "min_rtt", "avg_rtt")]
    assert found == [1, 2, 3, 640, 800]
    assert values["var_rtt"] == 160


def test_loopback_is_in_no_medium_and_is_what_the_media_leave_of_the_total():
    machine, talk = watching(TAHOE)
    flow = machine.open_tcp(remote=("127.0.0.1", 80), interface="lo0", rx=1000, tx=100)
    flow.transfer(rx=50, interface="en1")
    values = details(machine, talk.ask(GetDetails)[0])
    media = sum(values[f"media_stats.{medium}.rxbytes"] for medium in MEDIA)
    assert values["media_stats.total.rxbytes"] - media == 1000
    assert values["media_stats.wired.rxbytes"] == media == 50


@pytest.mark.parametrize(
    ("interface", "medium"),
    [("en0", "wifi_infra"), ("awdl0", "wifi_non_infra"), ("utun0", "wifi_non_infra"), ("utun1", "cellular"),
     ("utun2", "alternate"), ("en1", "wired"), ("bt0", "bluetooth")],
)  # fmt: skip
def test_a_tunnel_counts_as_its_delegate_but_never_as_infrastructure(interface, medium):
    machine, talk = watching(TAHOE)
    machine.add_interface("utun1", 20, InterfaceKind.VPN, delegate="pdp_ip0")
    machine.add_interface("utun2", 21, InterfaceKind.VPN)
    machine.add_interface("bt0", 22, InterfaceKind.BLUETOOTH)
    machine.open_tcp(remote=REMOTE, interface=interface, rx=10)
    values = details(machine, talk.ask(GetDetails)[0])
    assert {m: values[f"media_stats.{m}.rxbytes"] for m in MEDIA} == {m: 10 * (m == medium) for m in MEDIA}


@pytest.mark.parametrize("kernel", ["xnu-11417.121.6", TAHOE])
def test_activity_begins_at_a_multiple_of_eight_seconds(kernel):
    machine, talk = watching(kernel)
    machine.advance(61)  # uptime 1061 s
    flow = machine.open_tcp(remote=REMOTE, rx=1)
    machine.advance(3)
    flow.transfer(rx=1)
    values = descriptor(machine, talk.update()[0])
    assert (values["activity_bitmap.start"], values["activity_bitmap.bitmap"]) == (1056, (0b11, 0))


def test_every_medium_and_the_total_have_their_own_activity():
    machine, talk = watching(TAHOE)
    flow = machine.open_tcp(remote=REMOTE, rx=1)
    machine.advance(80)
    flow.transfer(tx=1, interface="pdp_ip0")
    values = details(machine, talk.ask(GetDetails)[0])
    starts = {m: values[f"media_stats.{m}.activity_bitmap.start"] for m in ("total", *MEDIA)}
    assert starts == {m: {"cellular": 1080, "wifi_infra": 1000, "total": 1000}.get(m, 0) for m in starts}
    assert values["media_stats.total.activity_bitmap.bitmap"] == (1 | 1 << 10, 0)
    flow.transfer(tx=1)
    machine.advance(8 * 200)
    flow.transfer(tx=1)
    values = details(machine, talk.ask(GetDetails)[0])
    assert values["media_stats.total.activity_bitmap.bitmap"][1] >> 63 == 1
    assert values["media_stats.total.activity_bitmap.start"] == 1000 + 8 * (210 - 127)


def test_routes_have_no_details():
    machine, talk = watching(TAHOE, Provider.ROUTE, userland=None)
    machine.add_route("203.0.113.9").set(nstat_rxbytes=1000)
    (refused,) = talk.ask(GetDetails, srcref=1, flags=0)
    assert (refused.name, refused.error) == ("ERROR", 102)
    report, success = talk.ask(GetDetails)
    assert (report.name, report.detailed_counts, success.name) == ("SRC_DETAILS", bytes(448), "SUCCESS")
    next(machine.flows()).close()
    machine.idle_check()
    assert [(m.name, m.flags) for m in talk.read()] == [("SRC_REMOVED", 8)]


@pytest.mark.parametrize("mode", [QuerySource, GetUpdate, GetDetails])
def test_the_minute_timer_of_macos_26_finds_dead_sockets_tcp_first(mode):
    machine = EmulatedKernel(TAHOE)
    talk = Talk(machine)
    for provider in (Provider.UDP, Provider.TCP):
        talk.watch(provider, userland=False)
    dead = [machine.open_udp(), machine.open_tcp()]
    talk.ask(mode)
    for flow in dead:
        flow.mark_gone()
    assert names(talk.ask(GetUpdate) if mode is GetUpdate else []) == (["SUCCESS"] if mode is GetUpdate else [])
    machine.advance(61)
    counted = [("SRC_COUNTS", 4)] if mode is QuerySource else []
    found = [(m.name, m.srcref, m.flags) for m in talk.read()]
    assert found == [(name, ref, flags) for ref in (2, 1) for name, flags in [*counted, ("SRC_REMOVED", 8)]]


def test_a_scan_of_user_land_flows_stops_at_a_full_buffer_and_watches_nevertheless():
    machine = EmulatedKernel(TAHOE)
    talk = Talk(machine, receive_buffer=2048)
    for _ in range(70):
        machine.open_tcp(userland=True)
    *added, refused = talk.watch(Provider.TCP, userland=True)
    assert (refused.name, refused.error) == ("ERROR", 55)
    machine.open_tcp(userland=True)
    (later,) = talk.read()
    assert later.srcref == len(added) + 2, "one announcement was refused, and used up its number"
    (again,) = talk.watch(Provider.TCP, userland=True)
    assert again.error == 37


def test_a_scan_of_kernel_sockets_skips_what_does_not_fit():
    machine = EmulatedKernel(TAHOE)
    talk = Talk(machine, receive_buffer=2048)
    for _ in range(70):
        machine.open_tcp()
    *added, success = talk.watch(Provider.TCP, userland=False)
    assert success.name == "SUCCESS"
    machine.open_tcp()
    assert [m.srcref for m in talk.read()] == [71]
    assert len(added) < 70


@pytest.mark.parametrize("kernel", ["xnu-11417.121.6", TAHOE])
def test_a_single_update_is_no_part_of_the_paced_poll_with_its_context(kernel):
    for kind, expected in ((GetUpdate, [2, 1]), (GetDetails, [2, 1]), (QuerySource, [1]), (GetSourceDescription, [1])):
        if kind is GetDetails and kernel != TAHOE:
            continue
        machine, talk = watching(kernel)
        machine.open_tcp()
        machine.open_tcp()
        assert references(talk.send(kind(srcref=2, context=9, flags=2))) == [2]
        paced = GetUpdate if kind is GetDetails else kind
        answers = talk.send(paced(srcref=talk.layout.all_sources, context=9, flags=2))
        assert references(answers) == expected, kind.__name__


def test_bluetooth_is_a_companion_link_and_more():
    for kernel, bits in ((TAHOE, 0x40200), ("xnu-11417.121.6", 0x40200), ("xnu-10063.141.1", 0x200)):
        machine, talk = watching(kernel)
        machine.add_interface("bt0", 9, InterfaceKind.BLUETOOTH)
        machine.open_tcp(remote=REMOTE, interface="bt0")
        assert descriptor(machine, talk.update()[0])["ifnet_properties"] & 0x7FFFF & ~(0x800 | 0x1000) == bits


def test_a_reconnected_udp_socket_keeps_the_bits_of_its_former_interface_on_macos_26():
    for kernel, bits in ((TAHOE, 0x1100A), ("xnu-11417.121.6", 0x11008)):
        machine, talk = watching(kernel, Provider.UDP)
        flow = machine.open_udp(remote=("127.0.0.1", 53), interface="lo0")
        before = descriptor(machine, talk.update()[0])
        flow.disconnect()
        while_apart = descriptor(machine, talk.update()[0])
        assert (before["remote"], before["ifnet_properties"]) == (
            while_apart["remote"],
            while_apart["ifnet_properties"],
        )
        flow.connect(REMOTE, interface="en0")
        assert descriptor(machine, talk.update()[0])["ifnet_properties"] == bits
    with pytest.raises(UsageError, match="UDP"):
        machine.open_tcp(remote=REMOTE).disconnect()


def test_ultra_constrained_comes_with_constrained_and_only_on_macos_26():
    for kernel, bits in ((TAHOE, 0x80400), ("xnu-11417.121.6", 0x400)):
        machine, talk = watching(kernel)
        machine.add_interface("sat0", 9, InterfaceKind.CELLULAR, ultra_constrained=True)
        machine.open_tcp(remote=REMOTE, interface="sat0")
        assert descriptor(machine, talk.update()[0])["ifnet_properties"] & 0x80400 == bits


def test_a_user_land_provider_of_macos_26_is_asked_for_pid_0():
    for kernel, target, shown in ((TAHOE, 0, True), (TAHOE, 501, False), ("xnu-11417.121.6", 501, True)):
        filters = {"filter": SUPPRESS | BY_PID, "target_pid": target}
        machine, talk = watching(kernel, Provider.QUIC, userland=None, **filters)
        machine.open_quic(501, "a")
        assert bool(references(talk.update())) is shown, (kernel, target)


def test_a_flow_in_user_space_is_counted_by_its_process_and_by_the_flow_switch():
    machine, talk = watching(TAHOE, Provider.TCP, userland=True)
    flow = machine.open_tcp(remote=REMOTE, userland=True)
    flow.transfer(1000, 500, rx_packets=3, tx_packets=2, switch=(9, 1400, 7, 800))
    counted = machine.release.layout["nstat_counts"].decode(talk.update()[0].counts)
    assert (counted["nstat_rxpackets"], counted["nstat_rxbytes"], counted["nstat_wifi_rxbytes"]) == (9, 1000, 1400)
    values = details(machine, talk.ask(GetDetails)[0])
    assert (values["media_stats.total.rxpackets"], values["media_stats.total.rxbytes"]) == (3, 1000)
    assert (values["media_stats.wifi_infra.rxpackets"], values["media_stats.wifi_infra.rxbytes"]) == (9, 1400)


def test_a_flow_that_cannot_be_read_is_left_out_refused_alone_and_dropped_at_its_end():
    machine, talk = watching(TAHOE, Provider.TCP, userland=True)
    flow = machine.open_tcp(remote=REMOTE, userland=True)
    flow.unreadable = True
    assert names(talk.ask(GetDetails)) == ["SUCCESS"]
    assert talk.ask(GetDetails, srcref=1, flags=0)[0].error == 5
    flow.close()
    assert [(m.name, m.flags) for m in talk.read()] == [("SRC_REMOVED", 8)]


def test_a_source_that_finds_no_memory_uses_up_no_number_and_ends_a_scan_in_silence():
    machine = EmulatedKernel("xnu-4570.71.2")
    for _ in range(3):
        machine.open_tcp()
    machine.faults.fail_allocations = 1.0
    talk = Talk(machine)
    assert names(talk.watch(Provider.TCP, userland=False)) == ["SUCCESS"]
    machine.faults.fail_allocations = 0.0
    machine.open_tcp()
    assert [m.srcref for m in talk.read()] == [1]


def test_an_interface_that_goes_away_is_found_by_the_minute_timer():
    machine = EmulatedKernel(TAHOE)
    talk = Talk(machine)
    param = machine.release.layout["nstat_ifnet_add_param"].encode({"ifindex": 5, "threshold": 1 << 20})
    talk.send(AddSource(provider=6, param=param, context=1))
    machine.remove_interface("en1")
    assert talk.read() == []
    machine.advance(61)
    assert names(talk.read())[-1] == "SRC_REMOVED"
    assert machine.interface_flow(5) is None


# --- Darwin 27 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("insertions", DARWIN_27_INSERTIONS)
def test_a_descriptor_of_darwin_27_has_its_fields_where_a_living_one_has_them(insertions):
    machine, talk = watching("xnu-13432.1.9", insertions=insertions)
    machine.responsible = "Terminal"
    machine.open_tcp(501, "curl", remote=REMOTE, persona_id=77, uid=501, fallback_mode=2)
    (report, _) = talk.update()
    data = report.descriptor
    assert len(data) == 360
    assert data[260:276] == executable_uuid("curl")
    assert data[276:292] == executable_uuid("Terminal")
    assert (data[340:344], data[344:348], data[356]) == ((77).to_bytes(4, "little"), (501).to_bytes(4, "little"), 2)
    assert int.from_bytes(data[352:356], "little") & Bit.WIFI


@pytest.mark.parametrize(("kernel", "carried"), [("xnu-10002.81.5", False), ("xnu-10063.141.1", True), (TAHOE, True)])
def test_what_a_terminal_started_has_its_uuid_and_no_effective_process(kernel, carried):
    machine, talk = watching(kernel)
    machine.responsible = "Terminal"
    machine.open_tcp(501, "curl", remote=REMOTE)
    told = descriptor(machine, talk.update()[0])
    assert (told["pid"], told["uuid"]) == (501, executable_uuid("curl"))
    assert (told["epid"], told["euuid"]) == ((0, executable_uuid("Terminal")) if carried else (501, told["uuid"]))
    assert (told["eupid"] == 0) is carried


@pytest.mark.parametrize(("size", "begins"), [(16, False), (20, False), (24, True)])
def test_details_begin_with_the_first_request_that_holds_a_reference_even_a_wrong_one(size, begins):
    machine, talk = watching(TAHOE, filter=0)
    flow = machine.open_tcp()
    talk.read()
    talk.client.send(GetDetails(srcref=99, context=7).encode(talk.layout)[:size])
    assert [m.error for m in talk.read()] == [2 if begins else 22]
    flow.close()
    assert names(talk.read())[0] == ("SRC_DETAILS" if begins else "SRC_COUNTS")


@pytest.mark.parametrize(("opener", "sources"), [("open_tcp", 4), ("open_udp", 5)])
def test_a_batch_has_room_for_four_details_of_tcp_and_five_of_udp(opener, sources):
    machine, talk = watching(TAHOE, Provider.TCP if opener == "open_tcp" else Provider.UDP)
    for _ in range(sources + 1):
        getattr(machine, opener)()
    talk.client.send(GetDetails(srcref=talk.layout.all_sources, context=5, flags=3).encode(talk.layout))
    batches = [[(m.srcref, m.context) for m in talk.decode(datagram)] for datagram in talk.datagrams()[:-1]]
    assert batches == [[(ref, 0) for ref in range(sources + 1, 1, -1)], [(1, 0)]]


@pytest.mark.parametrize("sources", [99, 100, 101])
def test_a_hundred_details_are_continued_though_they_are_all(sources):
    machine, talk = watching(TAHOE)
    for _ in range(sources):
        machine.open_tcp()
    request = GetDetails(srcref=talk.layout.all_sources, context=5, flags=3)
    *reports, success = talk.send(request)
    assert (len(reports), success.flags) == (min(sources, 100), 2 * (sources >= 100))
    assert sources < 100 or len(talk.send(request)) == sources - 100 + 1


def test_a_poll_of_updates_displaces_one_of_details_and_is_displaced_by_it():
    machine, talk = watching(TAHOE)
    for _ in range(150):
        machine.open_tcp()
    everything = talk.layout.all_sources
    talk.send(GetDetails(srcref=everything, context=5, flags=3))
    for context, kind in ((6, GetUpdate), (7, GetDetails)):
        displaced = talk.send(kind(srcref=everything, context=context, flags=3))[0]
        assert (displaced.name, displaced.error, displaced.context) == ("ERROR", 35, context - 1)


@pytest.mark.parametrize(("provider", "items", "size"), [(Provider.TCP, {1: 1056}, 1896), (Provider.UDP, {1: 1056}, 1832),
                                                         (Provider.TCP, {1: 1056, 6: 32}, 1936)])  # fmt: skip
def test_details_with_items_are_as_long_as_the_kernels(provider, items, size):
    machine, talk = watching(TAHOE, provider, filter=SUPPRESS | 1 << 41 | 1 << 46)
    flow = machine.open(provider, remote=REMOTE)
    flow.items = {kind: bytes(length) for kind, length in items.items()}
    talk.client.send(GetDetails(srcref=1, context=5).encode(talk.layout))
    assert [len(datagram) for datagram in talk.datagrams()] == [size]


def test_a_source_without_bytes_is_refused_alone_and_ends_as_if_its_counts_were_lost():
    machine, talk = watching(TAHOE, filter=SUPPRESS | EmulatedKernel(TAHOE).release.no_zero_bytes_bit)
    flow = machine.open_tcp()
    assert [(m.name, m.error) for m in talk.ask(GetUpdate, srcref=1, flags=0)] == [("ERROR", 35)]
    flow.close()
    assert [(m.name, m.flags) for m in talk.read()] == [("SRC_REMOVED", 8)]


def test_an_owner_of_a_user_land_flow_has_no_unique_effective_pid_on_macos_26():
    for kernel, known in (("xnu-11417.121.6", True), (TAHOE, False)):
        machine, talk = watching(kernel, userland=True)
        machine.open_tcp(userland=True, remote=REMOTE)
        fields = descriptor(machine, talk.ask(GetUpdate)[0])
        assert fields["epid"] == fields["pid"]
        assert fields["eupid"] == fields["upid"] * known

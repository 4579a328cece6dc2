"""What the emulated kernel does for scripted flows, release by release."""

import pytest
from kernels import KERNELS
from talk import SUPPRESS, Talk, counts, descriptor, names

from nstat_async import InterfaceKind, Provider, UsageError
from nstat_async.ntstat._constants import EventFlag
from nstat_async.ntstat._constants import InterfaceProperty as Bit
from nstat_async.ntstat._messages import AddSource, GetDetails, QuerySource, RemoveSource, SubscribeSystemInfo
from nstat_async.testing import EmulatedKernel

MODERN = [k for k in KERNELS if k >= "xnu-4" or (k.startswith("xnu-1") and len(k.split(".")[0]) > 8)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_tcp_connection_is_announced_counted_and_described_in_every_release(kernel):
    machine = EmulatedKernel(kernel)
    talk = Talk(machine)
    talk.watch(Provider.TCP, userland=False)
    flow = machine.open_tcp(501, "curl")
    (added,) = talk.read()
    assert added.name == "SRC_ADDED"
    flow.connect(("198.51.100.7", 443), local=("192.168.1.10", 50000))
    flow.transfer(rx=5000, tx=300)
    (report,) = talk.query(srcref=added.srcref, flags=0)
    values = counts(machine, report)
    assert (values["nstat_rxbytes"], values["nstat_txbytes"], values["nstat_rxpackets"]) == (5000, 300, 4)
    (message,) = talk.describe(srcref=added.srcref, flags=0)
    told = descriptor(machine, message)
    assert told["pid"] == 501
    assert told["pname"].rstrip(b"\0") == b"curl"
    assert told["local"][2:8] == (50000).to_bytes(2, "big") + bytes((192, 168, 1, 10))
    assert told["remote"][2:8] == (443).to_bytes(2, "big") + bytes((198, 51, 100, 7))
    assert told["state"] == 4


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_goodbye_is_the_releases(kernel):
    machine = EmulatedKernel(kernel)
    talk = Talk(machine)
    talk.watch(Provider.TCP, userland=False)
    flow = machine.open_tcp(remote=("198.51.100.7", 443), rx=10, tx=20)
    talk.read()
    flow.close()
    prompt = names(talk.read())
    version = machine.release.version
    if version < (2050,):
        assert prompt == []
        machine.advance(61)
        assert names(talk.read()) == ["SRC_DESC", "SRC_REMOVED"]
    elif (2782,) <= version < (3247,):
        assert prompt == []
        machine.advance(30)
        assert names(talk.read()) == ["SRC_COUNTS", "SRC_DESC", "SRC_REMOVED"]
    else:
        assert prompt == ["SRC_COUNTS", "SRC_DESC", "SRC_REMOVED"]
    assert not talk.client.sources


@pytest.mark.parametrize("kernel", [k for k in KERNELS if EmulatedKernel(k).release.has_updates])
def test_after_an_update_request_the_goodbye_is_one_update(kernel):
    machine = EmulatedKernel(kernel)
    talk = Talk(machine)
    talk.watch(Provider.TCP, userland=False)
    talk.update()
    flow = machine.open_tcp(remote=("198.51.100.7", 443), rx=10, tx=20)
    talk.read()
    flow.close()
    last, removed = talk.read()
    assert (last.name, last.flags, removed.name, removed.flags) == ("SRC_UPDATE", 4, "SRC_REMOVED", 0)
    assert counts(machine, last)["nstat_rxbytes"] == 10
    assert descriptor(machine, last)["state"] == 10, "this side closed first"


def test_a_paced_poll_reports_a_hundred_at_a_time_newest_first_and_an_exact_multiple_ends_empty():
    machine = EmulatedKernel()
    for _ in range(200):
        machine.open_tcp()
    talk = Talk(machine)
    talk.watch(Provider.TCP, filter=SUPPRESS, userland=False)
    seen = []
    for expected, flags in ((100, 2), (100, 2), (0, 0)):
        *reports, success = talk.send(QuerySource(srcref=talk.layout.all_sources, context=77, flags=3))
        assert (len(reports), success.flags, success.context) == (expected, flags, 77)
        seen += [report.srcref for report in reports]
    assert seen == list(range(200, 0, -1))


def test_a_source_that_comes_during_a_paced_poll_is_in_the_next_chunk():
    machine = EmulatedKernel()
    for _ in range(150):
        machine.open_tcp()
    talk = Talk(machine)
    talk.watch(Provider.TCP, filter=SUPPRESS, userland=False)
    request = QuerySource(srcref=talk.layout.all_sources, context=5, flags=3)
    talk.send(request)
    machine.open_tcp()
    *reports, success = talk.send(request)
    assert [report.srcref for report in reports] == [151, *range(50, 0, -1)]
    assert success.flags == 0


def test_another_context_displaces_a_paced_poll_and_zero_asks_for_nothing():
    machine = EmulatedKernel()
    for _ in range(150):
        machine.open_tcp()
    talk = Talk(machine)
    talk.watch(Provider.TCP, filter=SUPPRESS, userland=False)
    everything = talk.layout.all_sources
    talk.send(QuerySource(srcref=everything, context=5, flags=3))
    error, *_ = talk.send(QuerySource(srcref=everything, context=6, flags=3))
    assert (error.name, error.context, error.error, error.request) == ("ERROR", 5, 35, b"")
    talk.send(QuerySource(srcref=everything, context=6, flags=3))
    assert names(talk.send(QuerySource(srcref=everything, context=0, flags=3))) == ["SUCCESS"]


def test_a_contended_chunk_ends_at_five_since_sequoia():
    for kernel, expected in (("xnu-11417.121.6", 5), ("xnu-10063.141.1", 100)):
        machine = EmulatedKernel(kernel, contended=True)
        for _ in range(150):
            machine.open_tcp()
        talk = Talk(machine)
        talk.watch(Provider.TCP, filter=SUPPRESS, userland=False)
        *reports, _ = talk.query()
        assert len(reports) == expected


def test_a_refused_record_of_a_paced_poll_is_reported_in_the_next_chunk():
    machine = EmulatedKernel("xnu-10063.141.1")
    for _ in range(90):
        machine.open_tcp()
    talk = Talk(machine, receive_buffer=None)
    talk.watch(Provider.TCP, filter=SUPPRESS, userland=False)
    seen = []
    request = QuerySource(srcref=talk.layout.all_sources, context=5, flags=2)
    for _ in range(5):
        *reports, end = talk.send(request)
        seen += [report.srcref for report in reports]
        if end.name == "SUCCESS":
            break
        assert end.error == 55
    assert seen == list(range(90, 0, -1))


def test_filters_hide_reports_but_not_the_goodbye():
    machine = EmulatedKernel()
    talk = Talk(machine)
    talk.watch(Provider.TCP, filter=Bit.CELLULAR | SUPPRESS, userland=False)
    by_wifi = machine.open_tcp(remote=("198.51.100.7", 443), interface="en0", rx=1)
    machine.open_tcp(remote=("198.51.100.7", 443), interface="pdp_ip0", rx=1)
    assert [m.srcref for m in talk.update() if m.name == "SRC_UPDATE"] == [2]
    (error,) = talk.update(srcref=1)
    assert error.error == 2
    by_wifi.close()
    (removed,) = talk.read()
    assert (removed.name, removed.flags) == ("SRC_REMOVED", 16)


def test_sources_without_bytes_can_be_hidden():
    machine = EmulatedKernel()
    talk = Talk(machine)
    talk.watch(Provider.TCP, filter=0x400000 | SUPPRESS, userland=False)
    silent = machine.open_tcp(remote=("198.51.100.7", 443))
    assert names(talk.update()) == ["SUCCESS"]
    assert talk.query(srcref=1, flags=0)[0].error == 35
    silent.close()
    (removed,) = talk.read()
    assert (removed.name, removed.flags) == ("SRC_REMOVED", 8)


def test_a_specific_process_can_be_watched():
    machine = EmulatedKernel()
    talk = Talk(machine)
    talk.watch(Provider.TCP, filter=1 << 32 | SUPPRESS, target_pid=7, userland=False)
    machine.open_tcp(7, "a")
    machine.open_tcp(8, "b")
    assert [m.srcref for m in talk.update() if m.name == "SRC_UPDATE"] == [1]


def test_an_event_mask_sleeps_until_some_client_comes_since_sonoma():
    machine = EmulatedKernel()
    talk = Talk(machine)
    talk.watch(Provider.TCP, filter=SUPPRESS, events=0x3000, userland=False)
    flow = machine.open_tcp()
    flow.connect(("198.51.100.7", 443))
    assert talk.read() == []
    machine.connect().close()
    machine.open_tcp().connect(("198.51.100.8", 443))
    (update,) = talk.read()
    assert update.event_flags == EventFlag.FLOW_STATE_OUTBOUND
    assert descriptor(machine, update)["state"] == 2


def test_listening_and_accepting_tell_their_roles():
    machine = EmulatedKernel()
    talk = Talk(machine)
    talk.watch(Provider.TCP, filter=SUPPRESS, userland=False)
    listener = machine.open_tcp(1, "sshd").listen(("::", 22))
    listener.accept(("2001:db8::5", 40000), local=("2001:db8:1::10", 22))
    machine.open_tcp(2, "ssh", remote=("198.51.100.7", 22))
    roles = {}
    for message in talk.update():
        if message.name == "SRC_UPDATE":
            roles[message.srcref] = descriptor(machine, message)["ifnet_properties"] & 0xE000000
    assert roles == {1: Bit.SOURCE_IS_LISTENER, 2: Bit.SOURCE_IS_INBOUND, 3: Bit.SOURCE_IS_OUTBOUND}


def test_dead_sockets_are_found_by_the_minute_timer():
    machine = EmulatedKernel()
    talk = Talk(machine)
    talk.watch(Provider.TCP, filter=SUPPRESS, userland=False)
    machine.open_tcp().mark_gone()
    assert talk.read() == []
    machine.advance(60)
    (removed,) = talk.read()
    assert (removed.name, removed.flags) == ("SRC_REMOVED", 8)


def test_up_to_sonoma_a_client_that_polls_is_passed_over_once():
    machine = EmulatedKernel("xnu-10063.141.1")
    talk = Talk(machine)
    talk.watch(Provider.UDP, filter=SUPPRESS, userland=False)
    flow = machine.open_udp()
    talk.query()
    flow.mark_gone()
    machine.advance(60)
    assert talk.read() == []
    machine.advance(60)
    assert names(talk.read()) == ["SRC_REMOVED"]


@pytest.mark.parametrize("privileged", [False, True])
def test_connections_and_subflows_need_a_privilege_since_ventura(privileged):
    machine = EmulatedKernel(privileged=privileged)
    talk = Talk(machine)
    for provider in (Provider.CONNECTION, Provider.UDP_SUBFLOW):
        (answer,) = talk.watch(provider)
        assert answer.name == ("SUCCESS" if privileged else "ERROR")
    answers = talk.send(SubscribeSystemInfo(context=9))
    assert [m.error for m in answers] == ([] if privileged else [1])
    old = Talk(EmulatedKernel("xnu-8020.140.41"))
    assert names(old.watch(Provider.CONNECTION)) == ["SUCCESS"]


def test_extension_items_are_dropped_for_the_unprivileged():
    for privileged, expected in ((True, "SRC_EXTENDED_UPDATE"), (False, "SRC_UPDATE")):
        machine = EmulatedKernel(privileged=privileged)
        talk = Talk(machine)
        talk.watch(Provider.TCP, filter=1 << 41 | SUPPRESS, userland=False)
        flow = machine.open_tcp(remote=("198.51.100.7", 443))
        flow.items[1] = b"host.example.org".ljust(1056, b"\0")
        assert talk.update()[0].name == expected


def test_details_count_packets_by_medium_on_tahoe():
    machine = EmulatedKernel("xnu-12377.1.9")
    talk = Talk(machine)
    talk.watch(Provider.TCP, filter=SUPPRESS, userland=False)
    machine.open_tcp(remote=("198.51.100.7", 443), interface="pdp_ip0", rx=5000, tx=100)
    report, _ = talk.ask(GetDetails)
    values = machine.release.layout["nstat_detailed_counts"].decode(report.detailed_counts)
    assert values["media_stats.cellular.rxpackets"] == 4
    assert values["media_stats.total.rxbytes"] == 5000
    assert Talk(EmulatedKernel()).ask(GetDetails)[0].error == 22


def test_goodbyes_are_details_once_details_were_asked_for_and_updates_stay_updates():
    machine = EmulatedKernel("xnu-12377.1.9")
    talk = Talk(machine)
    talk.watch(Provider.TCP, filter=SUPPRESS, userland=False)
    flow = machine.open_tcp(remote=("198.51.100.7", 443))
    talk.ask(GetDetails)
    assert talk.update()[0].name == "SRC_UPDATE"
    flow.close()
    assert names(talk.read()) == ["SRC_DETAILS", "SRC_REMOVED"]


def test_two_clients_have_their_own_references_filters_and_polls():
    machine = EmulatedKernel()
    one, two = Talk(machine), Talk(machine)
    one.watch(Provider.UDP, userland=False)
    machine.open_udp()
    one.read()
    two.watch(Provider.TCP, userland=False)
    flow = machine.open_tcp()
    assert [m.srcref for m in two.read()] == [1]
    assert one.read() == []
    one.watch(Provider.TCP, userland=False)
    assert [client.sources_of(flow)[0].srcref for client in machine.clients] == [1, 2]
    two.client.close()
    flow.close()
    assert names(one.read()) == ["SRC_COUNTS", "SRC_DESC", "SRC_REMOVED"]


def test_watching_twice_or_the_wrong_way_is_refused():
    talk = Talk(EmulatedKernel())
    talk.watch(Provider.TCP, userland=False)
    assert talk.watch(Provider.TCP, userland=False)[0].error == 37
    assert talk.watch(Provider.INTERFACE)[0].error == 45
    assert talk.ask(RemoveSource, srcref=99)[0].error == 2
    assert talk.send(AddSource(provider=2, context=1, param=bytes(56)))[0].error == 45


def test_a_removed_source_stays_away():
    machine = EmulatedKernel()
    talk = Talk(machine)
    talk.watch(Provider.TCP, userland=False)
    flow = machine.open_tcp()
    talk.read()
    assert names(talk.ask(RemoveSource, srcref=1)) == ["SRC_REMOVED"]
    assert names(talk.query()) == ["SUCCESS"]
    flow.close()
    assert talk.read() == []


def test_a_subflows_bytes_are_its_sockets_too():
    machine = EmulatedKernel(privileged=True)
    socket = machine.open_udp(1, "mDNSResponder", local=("0.0.0.0", 5353))
    machine.open_subflow(socket, ("192.168.1.20", 5353), rx=100, tx=50)
    assert (socket.rx_bytes, socket.tx_bytes) == (100, 50)


def test_an_interface_says_when_its_threshold_is_passed():
    machine = EmulatedKernel()
    talk = Talk(machine)
    param = machine.release.layout["nstat_ifnet_add_param"].encode({"ifindex": 4, "threshold": 1 << 20})
    (added,) = talk.send(AddSource(provider=6, context=1, param=param))
    assert added.name == "SRC_ADDED"
    machine.interface_transfer("en0", rx=1000)
    assert talk.read() == []
    machine.interface_transfer("en0", rx=1 << 20)
    (report,) = talk.read()
    assert counts(machine, report)["nstat_rxbytes"] == 1000 + (1 << 20)


def test_the_threshold_left_behind_is_the_least_of_all_interface_sources():
    machine = EmulatedKernel()
    codec = machine.release.layout["nstat_ifnet_add_param"]
    talk = Talk(machine)
    for index, threshold in ((4, 1 << 20), (5, 5 << 20), (6, 3 << 20)):
        talk.send(AddSource(provider=6, context=1, param=codec.encode({"ifindex": index, "threshold": threshold})))
    assert machine.interface("en0").threshold == 1 << 20
    talk.ask(RemoveSource, srcref=1)
    assert machine.interface("en0").threshold == 3 << 20, "of other interfaces, as the kernel has it"


def test_a_tunnel_has_its_delegates_medium_too():
    machine = EmulatedKernel()
    flow = machine.open_udp(remote=("198.51.100.7", 4500), interface="utun0", rx=10, tx=20)
    assert flow.properties & (Bit.VPN | Bit.WIFI) == Bit.VPN | Bit.WIFI
    assert flow.counts["nstat_wifi_rxbytes"] == 10
    machine.add_interface("utun9", 19, InterfaceKind.VPN)
    lonely = machine.open_udp(remote=("198.51.100.7", 4500), interface="utun9", rx=10)
    assert lonely.properties & Bit.UNKNOWN_TYPE
    assert "nstat_wifi_rxbytes" not in lonely.counts


def test_what_a_release_lacks_cannot_be_opened():
    with pytest.raises(UsageError, match="quic"):
        EmulatedKernel("xnu-4903.221.2").open_quic()
    with pytest.raises(UsageError, match="en77"):
        EmulatedKernel().open_tcp(remote=("198.51.100.7", 1), interface="en77")


def test_ticks_follow_the_timebase():
    machine = EmulatedKernel(timebase=(125, 3))
    assert machine.ticks == 1000 * 10**9 * 3 // 125
    flow = machine.open_tcp()
    machine.advance(2)
    assert (machine.ticks - flow.fields["start_timestamp"]) * 125 // 3 == 2 * 10**9


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda k: k.open_tcp(nonsense=1), "nonsense: no descriptor has such a field"),
        (lambda k: k.open_tcp(pid=1, rx_byte=5), "rx_byte: no descriptor"),
        (lambda k: k.open_udp(nstat_rxbyte=5), "nstat_rxbyte: no descriptor has such a field; is it nstat_rxbytes?"),
        (lambda k: k.open_tcp(pid="a"), "pid: 'a' is not a whole number from 0"),
        (lambda k: k.open_tcp(pid=-1), "pid: -1 is not a whole number"),
        (lambda k: k.open_tcp(pid=1 << 31), "pid: 2147483648 is not a whole number"),
        (lambda k: k.open_tcp(name=7), "name: 7 is not a text"),
        (lambda k: k.open_tcp(name="a\0b"), "name: "),
        (lambda k: k.open_tcp(remote="x"), "remote: 'x' is not an address such as"),
        (lambda k: k.open_tcp(remote=("x", 1)), "remote: ('x', 1) is not an address"),
        (lambda k: k.open_tcp(remote="192.0.2.1:99999"), "remote: '192.0.2.1:99999' is not an address: port: 99999"),
        (
            lambda k: k.open_tcp(remote=("192.0.2.1", 99999)),
            "remote: ('192.0.2.1', 99999) is not an address: port: 99999",
        ),
        (lambda k: k.open_tcp(remote=5), "remote: 5 is not an address"),
        (lambda k: k.open_tcp(local="y", remote="192.0.2.1:1"), "local: 'y' is not an address"),
        (lambda k: k.open_tcp(rx=-1), "rx: -1 is not a whole number"),
        (lambda k: k.open_tcp(tx=1.5), "tx: 1.5 is not a whole number"),
        (lambda k: k.open_tcp(interface="en9"), "interface: 'en9' is not one of"),
        (lambda k: k.open_tcp(uuid=b"short"), "uuid: b'short' does not have 16 bytes"),
        (lambda k: k.open_tcp(uid=-5), "uid: -5 is not a whole number"),
        (lambda k: k.open_quic(remote="z"), "remote: 'z' is not an address"),
        (lambda k: k.open_connection(cuuid="text"), "cuuid: 'text' does not have 16 bytes"),
        (lambda k: k.open_connection(nonsense=1), "nonsense: "),
        (lambda k: k.open_subflow(k.open_udp(), "x"), "remote: 'x' is not an address"),
        (lambda k: k.add_route("nowhere"), "destination: ('nowhere', 0) is not an address"),
        (lambda k: k.add_route("192.0.2.0", gateway="x"), "gateway: ('x', 0) is not an address"),
        (lambda k: k.add_route("192.0.2.0", metric=3), "metric: no descriptor"),
        (lambda k: k.open_tcp().transfer(rx=-1), "rx: -1 is not a whole number"),
        (lambda k: k.open_tcp().transfer(tx_packets="1"), "tx_packets: '1' is not a whole number"),
        (lambda k: k.open_tcp().transfer(switch=(1, 2, 3)), "switch: (1, 2, 3) is not"),
        (lambda k: k.open_tcp().transfer(1, interface="en9"), "interface: 'en9'"),
        (lambda k: k.open_tcp().set(stat=1), "stat: no descriptor has such a field; is it state?"),
        (lambda k: k.open_tcp().set(state="open"), "state: 'open' is not a whole number"),
        (lambda k: k.open_tcp().set_state("open"), "state: 'open' is not one of closed, listen"),
        (lambda k: k.open_tcp().connect("x"), "remote: 'x'"),
        (lambda k: k.open_tcp().listen(None), "local: a listener needs an address"),
        (lambda k: k.open_tcp().rename_process("a", "b"), "pid: 'a'"),
        (lambda k: k.interface_transfer("en0", rx=-1), "rx: -1"),
    ],
)
def test_what_no_kernel_could_hold_is_an_error_that_names_the_argument(call, said):
    kernel = EmulatedKernel("xnu-11417.121.6")
    with pytest.raises(UsageError) as error:
        call(kernel)
    assert str(error.value).startswith(said)


def test_counters_wrap_at_64_bits():
    kernel = EmulatedKernel("xnu-11417.121.6")
    flow = kernel.open_tcp(rx=(1 << 64) - 1)
    flow.transfer(rx=2)
    assert flow.rx_bytes == 1

"""Filters as values, and the gate that applies them to a stream."""

from __future__ import annotations

import contextlib
import functools
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async import (
    Counts,
    Direction,
    Endpoint,
    Flow,
    FlowAdded,
    FlowRemoved,
    FlowUpdated,
    Interface,
    InterfaceKind,
    Monitor,
    MonitorOptions,
    PollCompleted,
    Process,
    Provider,
    RemovalReason,
    TcpState,
    UsageError,
    filters,
)
from nstat_async._options import DEFAULT_PROVIDERS
from nstat_async.filters import FlowGate

FLOW = Flow(
    "1",
    Provider.TCP,
    local=Endpoint.parse("192.0.2.1", 50_000),
    remote=Endpoint.parse("2001:db8::7", 443),
    process=Process(42, "curl", effective_pid=7, uid=501),
    interface=Interface(4, "en0", InterfaceKind.WIFI),
    state=TcpState.ESTABLISHED,
    direction=Direction.OUTBOUND,
)
BARE = Flow("2", Provider.UDP)


@pytest.mark.parametrize(
    ("chosen", "misses"),
    [
        (filters.by_pid(42), filters.by_pid(43)),
        (filters.by_pid(1, 7), filters.by_pid(0)),  # on behalf of 7
        (filters.by_process_name("curl"), filters.by_process_name("cur")),
        (filters.by_uid(501), filters.by_uid(0)),
        (filters.by_provider("tcp"), filters.by_provider(Provider.QUIC)),
        (filters.by_direction("outbound"), filters.by_direction("inbound")),
        (filters.by_state("established"), filters.by_state(TcpState.LISTEN)),
        (filters.by_interface("en0"), filters.by_interface("en1")),
        (filters.by_interface_kind("wifi"), filters.by_interface_kind("wired")),
        (filters.by_port(443), filters.by_port(80)),
        (filters.by_port(50_000), filters.by_port(50_000, local=False)),
        (filters.by_address("2001:db8::/32"), filters.by_address("192.0.2.0/24")),
        (filters.by_address("192.0.2.0/24", local=True), filters.by_address("2001:db8::/32", local=True, remote=False)),
        (filters.matching(lambda f: f.id == "1"), filters.loopback()),
    ],
)
def test_a_filter_passes_what_it_names_and_nothing_else(chosen, misses):
    assert chosen(FLOW)
    assert not misses(FLOW)
    assert not chosen(BARE)
    assert not misses(BARE)
    assert (chosen & ~misses)(FLOW)
    assert (misses | chosen)(FLOW)
    assert not (chosen & misses)(FLOW)
    assert ((lambda f: True) & chosen)(FLOW)  # a predicate on the left
    assert ((lambda f: False) | chosen)(FLOW)
    assert repr(chosen & ~misses).startswith("<Filter (")


def test_loopback_is_told_by_an_address_or_the_interface():
    assert filters.loopback()(Flow("1", Provider.UDP, remote=Endpoint.parse("127.0.0.53", 53)))
    assert filters.loopback()(Flow("1", Provider.UDP, local=Endpoint.parse("::1", 53)))
    assert filters.loopback()(Flow("1", Provider.UDP, interface=Interface(1, "lo0", InterfaceKind.LOOPBACK)))
    assert not filters.loopback()(BARE)


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("fe80::2", True, True),
        ("fe80::2%1", True, False),
        ("fe80::%2/64", False, True),
        ("fe80::/64", True, True),
        ("fe80::2%3", False, False),
        ("fe80::3%1", False, False),
        ("fe80::2%0", True, True),
    ],
)
def test_an_address_with_a_zone_is_one_of_that_link(text, first, second):
    chosen = filters.parse(f"address={text}")
    flows = [Flow("1", Provider.TCP, remote=Endpoint.parse(f"fe80::2%{zone}", 443)) for zone in (1, 2)]
    assert [chosen(flow) for flow in flows] == [first, second]
    assert pickle.loads(pickle.dumps(chosen)) == chosen


def test_a_zone_that_is_no_interface_is_a_usage_error_that_names_it():
    with pytest.raises(UsageError, match="'nosuch0' in 'fe80::1%nosuch0' is not an interface"):
        filters.by_address("fe80::1%nosuch0")


@pytest.mark.parametrize("peer", ["192.0.2.1", "::ffff:192.0.2.1"])
@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("192.0.2.0/24", True), ("::ffff:192.0.2.1", True), ("::ffff:192.0.2.0/120", True), ("198.51.100.0/24", False),
        ("::ffff:0:0/96", True), ("::ffff:192.0.2.2", False), ("::ffff:198.51.100.0/120", False),
    ],
)  # fmt: skip
def test_an_ipv4_peer_is_in_networks_of_both_families_however_its_address_is_written(text, peer, matches):
    """Other programs write the address of a dual-stack socket's IPv4 peer as ``::ffff:192.0.2.1``."""
    assert filters.by_address(text)(Flow("1", Provider.TCP, remote=Endpoint.parse(peer, 443))) is matches


def test_networks_wider_than_the_mapped_addresses_are_of_ipv6():
    assert [
        filters.by_address("::/0")(Flow("1", Provider.TCP, remote=Endpoint.parse(peer)))
        for peer in ("192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1")
    ] == [False, True, True]


def test_nonsense_is_a_usage_error_that_names_it():
    with pytest.raises(UsageError, match="by_address: 'nowhere'"):
        filters.by_address("nowhere")
    with pytest.raises(UsageError, match="flow_filter: 5 is neither"):
        filters.as_filter(5)
    with pytest.raises(ValueError, match="carrier pigeon"):
        filters.by_provider("carrier pigeon")


_POOL = [
    Flow(str(number), Provider.TCP, local=Endpoint.parse("192.0.2.1", port), state=state)
    for number in (1, 2, 3)
    for port in (0, 80)
    for state in (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)
]


@st.composite
def _streams(draw):
    """A well-formed stream: each flow added, updated, removed, with growing counters."""
    events, told = [], {}
    for time in range(draw(st.integers(0, 40))):
        flow = draw(st.sampled_from(_POOL))
        before = told.get(flow.id)
        if before is None:
            counts = Counts(rx_bytes=draw(st.integers(0, 9)))
            events.append(FlowAdded(time, flow, counts, preexisting=draw(st.booleans())))
            told[flow.id] = counts
        elif draw(st.integers(0, 4)):
            counts = Counts(rx_bytes=before.rx_bytes + draw(st.integers(0, 9)))
            events.append(FlowUpdated(time, flow, counts, before))
            told[flow.id] = counts
        else:
            events.append(FlowRemoved(time, flow, before, True, RemovalReason.CLOSED))
            del told[flow.id]
    return events


def _counted(events) -> int:
    """What an aggregate makes of a stream: new flows from zero, others from their first counts."""
    total, last = 0, {}
    for event in events:
        if isinstance(event, FlowAdded):
            assert event.flow.id not in last
            last[event.flow.id] = event.counts.rx_bytes
            total += 0 if event.preexisting else event.counts.rx_bytes
        else:
            total += event.counts.rx_bytes - last[event.flow.id]
            last[event.flow.id] = event.counts.rx_bytes
            if isinstance(event, FlowRemoved):
                del last[event.flow.id]
    return total


@settings(deadline=None, max_examples=examples(120))
@given(_streams())
def test_a_gate_adds_updates_and_removes_in_order_and_never_counts_bytes_twice(events):
    chosen = filters.by_port(80) & filters.by_state("established")
    gate = FlowGate(chosen)
    passed = []
    for event in events:
        passed.extend(gate([event]))
    visible = set()
    for event in passed:
        if isinstance(event, FlowAdded):
            assert event.flow.id not in visible
            visible.add(event.flow.id)
            assert chosen(event.flow)
        else:
            assert event.flow.id in visible
            if isinstance(event, FlowRemoved):
                visible.remove(event.flow.id)
            else:
                assert chosen(event.flow)
    assert _counted(passed) <= _counted(events)
    ended = {e.flow.id for e in events if isinstance(e, FlowRemoved)}
    if len(ended) == len({e.flow.id for e in events}):
        assert visible <= {e.flow.id for e in events}
    again = FlowGate(chosen)
    assert list(again(events)) == passed  # however the stream is cut into batches


def test_a_flow_that_ceases_to_match_is_removed_as_filtered_and_comes_back_as_preexisting():
    gate = FlowGate(filters.by_state("established"))
    up = Flow("1", Provider.TCP, state=TcpState.ESTABLISHED)
    down = Flow("1", Provider.TCP, state=TcpState.CLOSE_WAIT)
    one, two, three = (Counts(rx_bytes=n) for n in (1, 20, 300))
    out = gate([FlowAdded(0, up, one, False), FlowUpdated(1, down, two, one), FlowUpdated(2, up, three, two)])
    assert out[0].preexisting is False
    assert (out[1].reason, out[1].final, out[1].counts) == (RemovalReason.FILTERED, False, two)
    assert isinstance(out[2], FlowAdded)
    assert (out[2].preexisting, out[2].counts) == (True, three)


def test_a_flow_that_is_hidden_at_first_keeps_whether_it_is_older_than_the_monitor():
    for old in (True, False):
        gate = FlowGate(filters.by_port(80))
        bound = Flow("1", Provider.TCP, local=Endpoint.parse("192.0.2.1", 80))
        counts = Counts(rx_bytes=5)
        hidden = gate([FlowAdded(0, Flow("1", Provider.TCP), counts, old)])
        assert hidden == []
        (added,) = gate([FlowUpdated(1, bound, counts, counts)])
        assert isinstance(added, FlowAdded)
        assert added.preexisting is old
    assert gate([FlowRemoved(2, BARE, None, False, RemovalReason.CLOSED)]) == []


def test_a_flow_that_matches_only_at_its_end_is_added_and_removed_then():
    """Linux concludes the process of some connections when they are gone, also if it is not known how they ended."""
    counts, known = Counts(rx_bytes=5), Flow("1", Provider.TCP, process=Process(42))
    end = FlowRemoved(2, known, counts, False, RemovalReason.DROPPED)
    for old in (True, False):
        gate = FlowGate(filters.by_pid(42))
        assert gate([FlowAdded(0, Flow("1", Provider.TCP), counts, old)]) == []
        assert gate([end]) == [FlowAdded(2, known, counts, preexisting=old), end]


def test_events_that_are_no_flow_s_pass_every_gate():
    event = PollCompleted(1.0, 0, True)
    assert FlowGate(lambda flow: False)([event]) == [event]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: filters.by_port("443"), "by_port: '443' is not a port .*, e.g. 443"),
        (lambda: filters.by_port(70_000), "0 to 65535"),
        (lambda: filters.by_port(-1), "0 to 65535"),
        (filters.by_port, "at least one"),
        (lambda: filters.by_pid("501"), "e.g. 501"),
        (lambda: filters.by_user("1000"), "'1000' is not the number or the name of a user"),
        (lambda: filters.by_command_line(7), ", e.g. 'celery worker'$"),
        (lambda: filters.by_pid(True), "True"),
        (lambda: filters.by_pid(-5), "-5"),
        (lambda: filters.by_pid(1.0), "1.0"),
        (filters.by_pid, "at least one"),
        (lambda: filters.by_uid("no such user here"), "name of a user"),
        (lambda: filters.by_uid("nul\0"), "name of a user"),
        (filters.by_uid, "at least one"),
        (lambda: filters.by_user("-1"), "name of a user"),
        (lambda: filters.by_user(-1), "name of a user"),
        (filters.by_process_name, "at least one"),
        (lambda: filters.by_process_name(501), "501 is not a name"),
        (lambda: filters.by_process_name(""), "''"),
        (lambda: filters.by_interface(4), "by_interface"),
        (lambda: filters.by_provider("tpc"), "one of tcp, udp, quic"),
        (lambda: filters.by_provider(6), "one of tcp, udp, quic"),
        (lambda: filters.by_state("open"), "one of closed, listen"),
        (lambda: filters.by_direction("up"), "one of outbound, inbound, listener"),
        (lambda: filters.by_interface_kind("wlan"), "one of wifi, wired"),
        (filters.by_address, "at least one"),
        (lambda: filters.by_address("nowhere"), "nowhere"),
        (lambda: filters.by_address(5), "5"),
        (lambda: filters.by_namespace(7), "namespace"),
        (
            lambda: filters.by_port(80) and filters.loopback(),
            r"by_port\(80\)> is neither true nor false: .* &, \| and ~",
        ),
        (lambda: not filters.by_port(80), "not with and, or, not"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_the_error_says_what_is_right(make, says):
    with pytest.raises(UsageError, match=says):
        make()


def test_a_user_may_be_named():
    root = Flow("3", Provider.TCP, process=Process(1, uid=0))
    assert filters.by_uid("root")(root)
    assert not filters.by_uid("root")(FLOW)
    assert filters.by_uid("root", 501)(FLOW)


def test_a_user_is_who_the_machine_of_the_flow_says():
    """Its name there; this machine's where the flow says none. A number is a number everywhere."""
    there = Flow("3", Provider.TCP, process=Process(1, uid=0, user="admin"))
    here = Flow("4", Provider.TCP, process=Process(1, uid=0))
    assert filters.by_user("admin")(there)
    assert not filters.by_user("root")(there)
    assert filters.by_user("root")(here)
    assert filters.by_user(0)(there)
    assert filters.by_user(0)(here)
    assert not filters.by_user("nobody of this machine")(here)
    assert filters.parse("user=admin")(there)
    assert not filters.by_user("root", 0)(Flow("5", Provider.TCP))


def test_a_script_is_found_by_its_own_name_and_by_that_of_its_interpreter():
    script = Flow("3", Provider.TCP, process=Process(1, "python3.11", title="mail-relay"))
    assert filters.by_process_name("mail-relay")(script)
    assert filters.parse("process=python3.11")(script)
    assert not filters.by_process_name("mail")(script)


def test_a_command_line_is_found_by_a_part_of_it():
    worker = Flow("3", Provider.TCP, process=Process(1, "python3", command_line="python3 -m celery worker, two"))
    assert filters.parse("cmdline=celery worker, t")(worker)
    assert not filters.parse("cmdline=celery beat")(worker)
    assert not filters.by_command_line("python")(FLOW)


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("pid=42", True), ("pid=7", True), ("pid=1,42", True), ("pid=1", False), ("~pid=1", True), ("pid=1&pid=7", True),
        ("pid=42 & process=curl", True), ("pid=42 & process=wget", False), ("process=wget & process=curl", True),
        ("~loopback", True), ("loopback", False), ("port=443", True), ("port=80,443", True), ("user=501", True),
        ("provider=udp,tcp & state=established & direction=outbound", True), ("interface=en0", True),
        ("interface_kind=wifi", True), ("address=2001:db8::/32", True), ("address=192.0.2.0/24", False),
        (" pid = 42 & ~ loopback", True), ("%7Epid=7", False), ("~  port = 443", False), ("namespace=blue", False), ("process=c%75rl", True),
    ],
)  # fmt: skip
def test_a_text_says_what_the_functions_say(text, matches):
    assert filters.parse(text)(FLOW) is matches


@pytest.mark.parametrize(
    "text",
    [
        "",
        "&",
        "pid",
        "pid=",
        "pid=x",
        "pid=1&",
        "colour=red",
        "loopback=1",
        "port=99999",
        "pid=" + "9" * 5000,
        "user=-1",
        "~%20loopback",  # of a query string this is another key, too
    ],
)
def test_a_text_that_says_nothing_or_nonsense_is_refused(text):
    with pytest.raises(UsageError):
        filters.parse(text)


def test_a_text_of_endless_conditions_is_refused():
    with pytest.raises(UsageError, match="more than 100"):
        filters.parse("&".join(["pid=1"] * 101))


@given(st.text(max_size=30))
def test_any_text_is_a_filter_or_a_usage_error(text):
    with contextlib.suppress(UsageError):
        filters.parse(text)(FLOW)


def test_names_with_commas_are_names():
    named = Flow("4", Provider.TCP, process=Process(1, "a,b"))
    assert filters.from_items([("process", "a,b")])(named)
    assert filters.from_items([]) is None


def test_the_module_lists_what_it_offers():
    assert dir(filters) == sorted(filters.__all__)


@pytest.mark.parametrize("text", [None, b"pid=1", 5])
def test_a_text_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=r"filter: .* is not a text such as 'pid=1,2"):
        filters.parse(text)
    with pytest.raises(UsageError, match="is not a pair of texts"):
        filters.from_items([("pid", text)])
    with pytest.raises(UsageError, match="is not a pair of texts"):
        filters.from_items([text])


async def _later(_flow):
    return False


def _generated(_flow):
    yield False


class _Asynchronous:
    async def __call__(self, _flow):
        return False


@pytest.mark.parametrize("predicate", [_later, _generated, _Asynchronous(), functools.partial(_later)])
def test_what_does_not_answer_at_once_is_no_filter(predicate):
    """What it returns is always true: everything would pass."""
    for make in (
        filters.matching,
        lambda value: filters.loopback() & value,
        lambda value: Monitor(flow_filter=value),
        lambda value: MonitorOptions(flow_filter=value),
    ):
        with pytest.raises(UsageError, match="is asynchronous or a generator"):
            make(predicate)


def _no_name(flow: Flow) -> bool:
    return flow.process is None


@pytest.mark.parametrize(
    "chosen",
    [
        filters.parse("port=443, 80 & ~loopback & process=curl"),
        filters.by_port(443, local=False) | filters.by_address("2001:db8::/32"),
        ~filters.matching(_no_name) & filters.by_state("established", TcpState.LISTEN),
    ],
)
def test_a_filter_survives_a_pickle(chosen):
    again = pickle.loads(pickle.dumps(chosen))
    assert (again, again(FLOW)) == (chosen, chosen(FLOW))


def test_a_filter_of_a_local_function_cannot_be_pickled_and_says_so():
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(filters.matching(lambda _flow: True))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port", "port needs a value"),
        ("pid= & ~loopback", "pid needs a value"),
        ("port=443,", "a comma with no value beside it"),
        ("~process", "process needs a value"),
        (" & port=1", "there is no key"),
        ("port=abc", "^filter: port: 'abc' is not a port from 0 to 65535, e.g. 443$"),
        ("~direction=up", "^filter: direction: 'up' is not one of outbound"),
        ("loopback=yes", "^filter: loopback: it takes no value"),
        ("curl", "^filter: a condition is KEY=VALUE, and 'curl' is not one of pid, process, "),
        ("prot=443", "^filter: 'prot' is not one of pid, process, "),
    ],
)
def test_a_text_that_cannot_be_is_answered_in_its_own_words(text, says):
    with pytest.raises(UsageError, match=says):
        filters.parse(text)


@pytest.mark.parametrize("text", ["cmdline=x", "~cmdline=x", "port=1 & cmdline=x", "cmdline=x & port=1"])
def test_what_looks_at_command_lines_says_that_it_needs_extras(text):
    made = filters.parse(text)
    assert made.needs_extras
    assert (made | filters.by_port(1)).needs_extras
    assert pickle.loads(pickle.dumps(made)).needs_extras  # our own
    assert not filters.by_process_name("by_command_line(").needs_extras


@pytest.mark.parametrize(
    ("backend", "text", "says"),
    [
        ("sock_diag", "host=web1", "host: only flows of a fleet have one"),
        ("sock_diag", "port=1 & provider=raw", "provider: raw flows are not asked for; --provider raw does"),
        ("sock_diag", "provider=tcp,raw", "provider: raw flows are not asked for; --provider raw does"),
        ("kctl", "~port=1 & unit=x", "unit: only flows of Linux have one"),
        *[("kctl", f"{key}=x", f"{key}: only flows of Linux have one") for key in ("unit", "cgroup", "pod", "cmdline")],
        ("emulated", "container=x", "container: only flows of Linux have one"),
        ("unix", "namespace=x", "namespace: only flows of Linux have one"),
    ],
)
def test_what_no_flow_of_a_backend_has_is_refused(backend, text, says):
    with pytest.raises(UsageError, match=f"^filter: {says}"):
        filters.check_reach(filters.parse(text), backend, DEFAULT_PROVIDERS)
    for other in ("fleet", "replay", "meter"):
        filters.check_reach(filters.parse(text), other, DEFAULT_PROVIDERS)


def test_what_flows_of_a_backend_may_have_is_not_refused():
    filters.check_reach(filters.parse("unit=x & provider=raw & outcome=refused"), "sock_diag", {Provider.RAW})
    filters.check_reach(filters.parse("provider=quic & state=listen & ~loopback"), "kctl", DEFAULT_PROVIDERS)
    filters.check_reach(filters.matching(bool), "kctl", ())


def test_what_no_flow_of_a_backend_has_may_be_excluded():
    chosen = filters.parse("~container=x & ~host=web1 & ~provider=raw & ~cmdline=y")
    filters.check_reach(chosen, "kctl", DEFAULT_PROVIDERS)
    assert chosen.needs_extras
    with pytest.raises(UsageError, match="container: only flows of Linux"):
        filters.check_reach(~filters.parse("~container=x"), "kctl", DEFAULT_PROVIDERS)


def test_users_whom_this_machine_does_not_know_are_named():
    assert filters.unknown_users(filters.parse("user=root,4711,nosuch & ~user=nobody-else")) == [
        "nobody-else",
        "nosuch",
    ]

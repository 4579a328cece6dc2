"""The examination behind ``nstat-async doctor``: each finding is a fact that was looked at."""

from __future__ import annotations

import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
from ntstat_wire import NEWER
from own_namespace import may_be_apart, own_namespace

from nstat_async import (
    BackendUnavailableError,
    Capabilities,
    Counts,
    Proof,
    RequestError,
    UnavailableReason,
    Visibility,
    __version__,
    _doctor,
)
from nstat_async._doctor import Status, examine
from nstat_async.testing import DARWIN_27_INSERTIONS, EmulatedKernel

LINUX = sys.platform.startswith("linux")


def looked_at(backend=None):
    """Examine, and give the findings by name."""
    report = anyio.run(examine, backend)
    return report, {finding.name: finding for finding in report.findings}


class Refusing:
    """A backend that cannot be opened."""

    name = "refusing"

    def __init__(self, error):
        self.error = error

    def open(self, options):
        raise self.error


class Silent:
    """A backend whose kernel never answers."""

    name = "silent"
    can_wait = False
    capabilities = Capabilities(backend="silent")

    def open(self, options):
        return self

    async def run(self, sink):
        await anyio.sleep_forever()

    def flows(self):
        return ()

    async def subscribed(self):
        pass

    def request_poll(self):
        pass

    def close(self):
        pass

    def statistics(self):
        return {}


def emulated(name="xnu-11417.121.6", **options):
    kernel = EmulatedKernel(name, **options)
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1000, tx=10)
    kernel.open_udp(501, "dns")
    return kernel.backend(verify=True)


# --- a backend -------------------------------------------------------------------


def test_a_kernel_that_answers_works_and_its_flows_layout_and_buffer_are_told():
    report, found = looked_at(emulated())
    assert report.works
    assert found["emulated"].status is Status.OK
    assert found["emulated"].data == {"kernel": "xnu-11417.121.6", "receive_buffer": 1 << 20}
    assert found["emulated layout"].data == {"layout": "W11", "proof": "verified"}
    visible = found["emulated visible"]
    assert visible.data["by_provider"]["tcp"] >= 1
    assert visible.data["with_process"] == visible.data["flows"]
    assert visible.data["udp_counts"]


def test_another_machines_kernel_is_not_expected_to_see_this_machines_connections():
    _, found = looked_at(emulated())
    assert found["emulated self-check"].status is Status.INFO


def test_a_layout_that_had_to_be_moved_is_a_warning():
    _, found = looked_at(emulated(NEWER, insertions=DARWIN_27_INSERTIONS[0]))
    assert found["emulated layout"].status is Status.WARN
    assert found["emulated layout"].data["proof"] == Proof.PROBED.value


@pytest.mark.parametrize(
    ("user", "processes", "hint"),
    [
        (0, Visibility.SOME, "; the notes say why"),
        (1000, Visibility.SOME, "; run as root to see more"),
        (1000, Visibility.NONE, "; the notes say why"),
        (1000, Visibility.ALL, "of all users"),
    ],
)
def test_to_be_root_is_advised_where_it_would_help(monkeypatch, user, processes, hint):
    """Where there is no /proc, nobody sees processes."""
    monkeypatch.setattr("os.geteuid", lambda: user, raising=False)
    able = Capabilities(backend="sock_diag", flows=Visibility.ALL, processes=processes)
    assert _doctor._visible("sock_diag", able, ()).detail.endswith(hint)


@pytest.mark.parametrize(
    ("tier", "reason", "words"),
    [
        ("all", None, "all: bytes of UDP, every flow's process"),
        ("calls", "created: no", "UDP packets needs CAP_NET_ADMIN and cgroup2, too (created: no)"),
        ("tcp", "sent: no", "bytes of UDP need Linux 6.3, or CAP_NET_ADMIN and cgroup2 (sent: no)"),
        ("none", "maps: no", "none: maps: no"),
    ],
)
def test_what_programs_tell_and_what_more_would_need_is_said_in_words(tier, reason, words):
    able = Capabilities(backend="sock_diag", ebpf=tier, ebpf_reason=reason)
    assert _doctor._ebpf("sock_diag", able).detail.endswith(words)


def test_whose_flows_a_newer_kernel_shows_is_unknown_until_another_users_flow_is_seen():
    _, found = looked_at(EmulatedKernel(NEWER).backend(verify=False))
    assert found["emulated visible"].status is Status.WARN
    assert found["emulated visible"].detail.endswith(
        "the notes say why" if os.geteuid() == 0 else "run as root to see more"
    )
    _, found = looked_at(emulated(NEWER))  # with flows of user 501
    own = os.getuid() == 501
    assert found["emulated visible"].data["flows_of"] == ("unknown" if own else "all")


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (UnavailableReason.PLATFORM, Status.INFO),
        (UnavailableReason.PERMISSION, Status.FAIL),
        (UnavailableReason.MISSING, Status.FAIL),
    ],
)
def test_a_backend_that_cannot_be_opened_says_why_and_only_another_systems_is_no_fault(reason, status):
    report, found = looked_at(Refusing(BackendUnavailableError("refusing", reason, "because")))
    assert not report.works
    assert (found["refusing"].status, found["refusing"].detail) == (status, "because")
    assert found["refusing"].data == {"reason": reason.value}


def test_a_kernel_that_refuses_is_a_fault_with_its_words():
    report, found = looked_at(Refusing(RequestError("ADD_ALL_SRCS tcp", 1, "needs root")))
    assert not report.works
    assert found["refusing"].status is Status.FAIL
    assert "needs root" in found["refusing"].detail


def test_a_kernel_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(_doctor, "SELF_CHECK_SECONDS", 0.05)
    report, found = looked_at(Silent())
    assert not report.works
    assert found["silent"].status is Status.FAIL
    assert "no complete answer" in found["silent"].detail


# --- the own connection --------------------------------------------------------------


def test_the_own_connection_really_moves_its_bytes():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
        near, far = _doctor._exchange(listener, client)
        assert far == listener.getsockname()[1]
    assert near != far
    assert 0 < near < 65_536
    assert 0 < far < 65_536


@pytest.mark.linux
@pytest.mark.skipif(not may_be_apart(), reason="needs CAP_SYS_ADMIN")
def test_the_own_connection_is_in_the_monitors_network_namespace_also_if_a_worker_thread_stayed_in_another():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(os.getpid).result()  # it begins here
        with own_namespace(), socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            _, far = pool.submit(_doctor._exchange, listener, client).result()
            assert far == listener.getsockname()[1]


SENT, RECEIVED = _doctor.SELF_CHECK_BYTES
EXACT = Counts(tx_bytes=SENT, rx_bytes=RECEIVED)


@pytest.mark.parametrize(
    ("steps", "status", "words"),
    [
        ({}, Status.FAIL, "not seen"),
        ({"FlowAdded": None}, Status.FAIL, "added and never removed"),
        ({"FlowAdded": None, "FlowRemoved": None}, Status.WARN, "ended with None"),
        ({"FlowAdded": None, "FlowRemoved": Counts(tx_bytes=1, rx_bytes=2)}, Status.WARN, "ended with"),
        ({"FlowAdded": None, "FlowUpdated": EXACT, "FlowRemoved": EXACT}, Status.OK, "exact"),
    ],
)
def test_the_verdict_about_the_own_connection_is_what_was_seen_of_it(steps, status, words):
    finding = _doctor._verdict("kctl", steps, 0.1)
    assert finding.status is status
    assert words in finding.detail
    assert finding.data["steps"] == sorted(steps)


@pytest.mark.linux
@pytest.mark.skipif(not LINUX, reason="looks at a living Linux kernel")
def test_on_linux_the_own_connection_is_seen_to_come_and_go_and_darwin_is_absent_without_reproach():
    report, found = looked_at()
    assert report.works
    assert found["kctl"].status is Status.INFO
    assert found["kctl"].data == {"reason": "platform"}
    assert found["sock_diag"].status is Status.OK
    assert found["sock_diag self-check"].status is Status.OK, found["sock_diag self-check"]
    assert found["emulated kernel"].status is Status.OK


# --- facts of the host ------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch):
    """No backend is tried: facts of the host only."""

    async def none(_backend):
        return [], False

    monkeypatch.setattr(_doctor, "_examine_backend", none)


def test_version_system_and_python_are_told(alone):
    _, found = looked_at()
    assert found["library"].data["version"] == __version__
    assert found["library"].data["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert found["system"].data["system"]


def test_without_a_backend_that_works_nothing_works(alone):
    report, _ = looked_at()
    assert not report.works


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_capabilities_that_help_are_named(alone, monkeypatch):
    monkeypatch.setattr(_doctor, "_effective_capabilities", lambda: 1 << 12 | 1 << 19)
    assert looked_at()[1]["privileges"].data["capabilities"] == ["CAP_NET_ADMIN", "CAP_SYS_PTRACE"]
    monkeypatch.setattr(_doctor, "_effective_capabilities", lambda: None)
    assert looked_at()[1]["privileges"].data["capabilities"] is None, "unknown is not the same as none"


@pytest.mark.parametrize(("inode", "within"), [(0xEFFFFFFD, False), (4026532999, True), (None, False)])
def test_privileges_that_end_with_a_user_namespace_are_said_to_do_so(inode, within, alone, monkeypatch):
    """Root of a container has every capability, and eBPF is refused to it for want of them."""
    monkeypatch.setattr(_doctor, "_user_namespace", lambda: inode)
    monkeypatch.setattr(_doctor, "_effective_capabilities", lambda: 1 << 12)
    finding = looked_at()[1]["privileges"]
    assert finding.data["user_namespace"] is within
    assert finding.detail.endswith("does not reach processes or eBPF outside it" if within else "CAP_NET_ADMIN")


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_the_user_namespace_is_the_one_that_the_kernel_shows():
    assert os.readlink("/proc/self/ns/user") == f"user:[{_doctor._user_namespace()}]"


def test_a_system_without_user_ids_is_no_obstacle(alone, monkeypatch):
    monkeypatch.delattr("os.geteuid", raising=False)
    finding = looked_at()[1]["privileges"]
    assert finding.data["uid"] is None
    assert not finding.data["root"]


def test_the_largest_receive_buffer_of_a_mac_is_asked_for(alone, monkeypatch):
    monkeypatch.setattr("nstat_async._io.darwin.sysctl_integer", {"kern.ipc.maxsockbuf": 8 << 20}.get)
    assert looked_at()[1]["kern.ipc.maxsockbuf"].data == {"bytes": 8 << 20}
    monkeypatch.setattr("nstat_async._io.darwin.sysctl_integer", lambda name: None)
    assert "kern.ipc.maxsockbuf" not in looked_at()[1]


def test_optional_packages_are_told_as_they_are(alone, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _, found = looked_at()
    assert found["textual"].data == {"installed": False}
    assert found["textual"].status is Status.INFO


def test_an_emulated_kernel_that_does_not_work_here_is_told(alone, monkeypatch):
    def broken(*_arguments, **_options):
        raise OSError("no socket pairs")

    monkeypatch.setattr("nstat_async.testing.EmulatedKernel", broken)
    finding = looked_at()[1]["emulated kernel"]
    assert finding.status is Status.FAIL
    assert "no socket pairs" in finding.detail


@pytest.mark.parametrize("visibility", list(Visibility))
def test_every_visibility_has_words(visibility):
    assert visibility.whose

"""What netlink refuses is said in words, with what to do about it; and what little can be seen is said, too."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import forked
import pytest
from nursery import MOUNTS, NETWORK
from sockdiag_fakes import FakeKernel, FakeSocket
from sockdiag_living import privileged

from nstat_async._cli._limits import limits_text
from nstat_async._contract import CloseChannel, LookupFailed, OpenChannel
from nstat_async._errnos import error_text
from nstat_async._errors import UnavailableReason
from nstat_async._model import Capabilities, Visibility
from nstat_async.sockdiag import OwnersRequest

REMEDIES = {
    1: ("Operation not permitted", "seccomp", UnavailableReason.PERMISSION),
    13: ("Permission denied", "seccomp", UnavailableReason.PERMISSION),
    12: ("Cannot allocate memory", "no memory", UnavailableReason.RESOURCE),
    23: ("Too many open files in system", "fs.file-max", UnavailableReason.RESOURCE),
    24: ("Too many open files", "ulimit -n", UnavailableReason.RESOURCE),
    93: ("Protocol not supported", "gVisor", UnavailableReason.MISSING),
    97: ("Address family not supported by protocol", "RestrictAddressFamilies=", UnavailableReason.PERMISSION),
    105: ("No buffer space available", "no memory", UnavailableReason.RESOURCE),
    71: ("error 71", "CONFIG_INET_DIAG", UnavailableReason.MISSING),
}


@pytest.mark.parametrize("number", REMEDIES)
def test_a_socket_that_cannot_be_opened_is_an_error_with_a_remedy(number):
    kernel = FakeKernel()
    kernel.session.start(kernel.now)
    for command in kernel.session.commands():
        if isinstance(command, OpenChannel):
            kernel.session.channel_failed(command.channel, number, kernel.now)
    failure = kernel.session.failure
    text, remedy, reason = REMEDIES[number]
    assert text in str(failure)
    assert remedy in str(failure)
    assert failure.reason is reason


@pytest.mark.parametrize(
    ("number", "words"), [(1, "Operation not permitted; a seccomp"), (93, "Protocol not supported")]
)
@pytest.mark.parametrize("channel", [1, 2], ids=["removals", "routes"])
def test_what_is_missing_beside_the_dumps_is_a_note_in_words(channel, number, words):
    """That the kernel has no sock_diag at all would be wrong: it dumps."""
    kernel = FakeKernel()
    carry_out = kernel._carry_out

    def refuse(command):
        if isinstance(command, OpenChannel) and command.channel == channel:
            kernel.session.channel_failed(channel, number, kernel.now)
        else:
            carry_out(command)

    kernel._carry_out = refuse
    assert kernel.session.capabilities.final_counts, "nothing is missing that was not asked for yet"
    kernel.start()
    assert kernel.session.capabilities.final_counts == (channel != 1)
    (note,) = [note for note in kernel.session.capabilities.notes if words in note]
    assert "sock_diag" not in note


@pytest.mark.parametrize("number", [1, 97])
def test_receiving_that_is_forbidden_ends_a_monitor_at_once_and_says_by_whom(number):
    kernel = FakeKernel()
    kernel.start()
    kernel.session.channel_failed(0, number, kernel.now)
    assert REMEDIES[number][1] in str(kernel.session.failure)


@pytest.mark.parametrize(
    ("channel", "words"), [(1, "destroyed sockets are not reported"), (2, "interfaces are unknown"), (3, "")]
)
def test_a_channel_beside_the_dumps_that_may_not_be_read_is_closed(channel, words):
    """It would be read again and again."""
    kernel = FakeKernel(interval=1.0)
    kernel.start()
    for _ in range(2):
        kernel.session.channel_failed(channel, 1, kernel.now)
    assert [each.channel for each in kernel.session.commands() if isinstance(each, CloseChannel)] == [channel]
    said = [note for note in kernel.session.capabilities.notes if "Operation not permitted; a seccomp filter" in note]
    assert [words in note for note in said] == [True] * bool(words)
    kernel.wait(3.0)
    assert kernel.session.failure is None
    assert kernel.session.statistics()["polls"] >= 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library's words are Linux'")
def test_errors_have_the_names_of_the_c_library():
    assert {number: error_text(number) for number in range(133) if not error_text(number).startswith("error ")} == {
        number: os.strerror(number) for number in range(133) if not error_text(number).startswith("error ")
    }


def test_processes_that_cannot_be_searched_for_are_seen_by_nobody():
    """A search that fails is a limit like any other; one that works again is none."""
    kernel = FakeKernel(interval=1.0)
    kernel.hold_lookups = True
    kernel.sockets[1] = FakeSocket(1, inode=1)
    kernel.start()
    session = kernel.session
    (search,) = (command for command in kernel.held if isinstance(command.request, OwnersRequest))
    session.lookup_done(search.token, LookupFailed("Too many open files"), kernel.now)
    assert session.capabilities.processes is Visibility.NONE
    assert session.capabilities.processes_limit == "processes are unknown: Too many open files"
    assert session.capabilities.processes_limit in session.capabilities.notes
    kernel.hold_lookups = False
    kernel.wait(1.0)
    assert session.capabilities.processes_limit is None


@pytest.mark.parametrize(
    ("processes", "limit", "text"),
    [
        (Visibility.ALL, None, None),
        (Visibility.UNKNOWN, None, None),
        (Visibility.OWN, "it needs root", "sees processes of this user only: it needs root"),
        (Visibility.SOME, "3 refuse", "sees processes of some users only: 3 refuse"),
        (Visibility.NONE, None, "sees no processes: nstat-async doctor says why"),
    ],
)
def test_a_command_says_what_it_does_not_see(processes, limit, text):
    able = Capabilities(
        backend="sock_diag", flows=Visibility.ALL, processes=processes, processes_limit=limit, final_counts=True
    )
    assert limits_text(able) == text


def test_a_command_says_that_ends_are_not_reported():
    able = Capabilities(backend="sock_diag", flows=Visibility.ALL, processes=Visibility.ALL, final_counts=False)
    assert limits_text(able) == "sees no ends of flows: nstat-async doctor says why"


# -- the living kernel


def living(test):
    skip = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the living kernel is Linux'")
    return pytest.mark.linux(skip(test))


def run(*arguments: str, before=None, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nstat_async", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, preexec_fn=before)


def forbidden(call: int, number: int, program: str, *arguments: str, **places: int) -> subprocess.CompletedProcess[str]:
    """A program where this system call fails with this error; see `seccomp.forbid`."""
    before = f"import sys\nfrom seccomp import forbid\nforbid({call}, {number}, **{places})\n"
    return forked.run([sys.executable, "-c", before + program, *arguments], text=True)


NETLINK = {"_0": 16}
"""``socket(AF_NETLINK, …)``, call 41."""
COMMAND = "from nstat_async._cli import main; sys.exit(main())"


@living
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a filter of numbers of system calls")
@pytest.mark.parametrize(("number", "command"), [(1, "snapshot"), (93, "watch"), (97, "processes")])
def test_a_service_that_may_not_use_netlink_is_told_why_and_nothing_else(number, command):
    done = forbidden(41, number, COMMAND, command, "--provider", "tcp", **NETLINK)
    assert done.returncode == 1
    assert all(word in done.stderr for word in REMEDIES[number][:2])
    assert len(done.stderr.splitlines()) == 1


@living
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a filter of numbers of system calls")
@pytest.mark.parametrize("call", [44, 45, 53, 233], ids=["sendto", "recvfrom", "socketpair", "epoll_ctl"])
def test_where_no_event_loop_can_work_a_command_says_so(call):
    """asyncio would log a traceback each time that it is woken."""
    done = forbidden(call, 1, COMMAND, "snapshot", "--provider", "tcp")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("nstat-async: error: sockets of the event loop: Operation not permitted; a seccomp")


NOTES = """
import asyncio
from nstat_async import Monitor
async def main():
    async with Monitor(interval=None) as monitor:
        await monitor.poll_now()
        print(*monitor.capabilities.notes, monitor.capabilities.ebpf_reason, sep="\\n")
asyncio.run(main())
"""


@living
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="a filter of numbers of system calls")
def test_where_rtnetlink_is_forbidden_interfaces_are_unknown_and_nothing_else_is():
    """The note names the remedy; eBPF programs need no rtnetlink."""
    done = forbidden(41, 97, NOTES, **NETLINK, _2=0)
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout
    assert (
        "interfaces are unknown: rtnetlink failed: Address family not supported by protocol; AF_NETLINK is not" in told
    )
    assert "RestrictAddressFamilies=" in told
    assert "does not number network namespaces" not in told


@living
@pytest.mark.parametrize(
    "limit", [5, pytest.param(6, marks=pytest.mark.slow), 8, 10, pytest.param(12, marks=pytest.mark.slow)]
)
def test_few_descriptors_are_said_in_words(limit):
    """It fails for want of them, or goes on with less; never with a number, never with a traceback."""

    def lower():
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    done = run("snapshot", "--provider", "tcp", before=lower)
    assert "Traceback" not in done.stderr
    assert "rror 24" not in done.stderr
    assert "Errno" not in done.stderr
    assert ".py" not in done.stderr
    assert done.returncode in {0, 1}
    if done.returncode:
        assert "Too many open files" in done.stderr
        assert "ulimit -n" in done.stderr


WITHOUT_PROC = """
from nursery import MOUNTS, unshare
from own_namespace import call
from nstat_async import _cli, _doctor
unshare(MOUNTS)
for _ in range(2):  # the one over it, and that of the machine
    call("umount2", b"/proc", 2)  # MNT_DETACH
_doctor.SELF_CHECK_SECONDS = 100.0  # the doctor gives up after seconds, which is no matter of this test
_cli.main(["snapshot", "--provider", "tcp"])
_cli.main(["doctor"])
"""


@living
@pytest.mark.privileged
@privileged
def test_without_proc_there_are_flows_and_it_is_said():
    """Flows without processes, and a line that names what is missing."""
    done = forked.run([sys.executable, "-c", WITHOUT_PROC], text=True)
    assert "sees no processes: processes cannot be named: there is no /proc" in done.stderr
    assert "PROTO  LOCAL" in done.stdout
    assert "processes cannot be named: there is no /proc" in done.stdout
    assert "Traceback" not in done.stderr


UNMOUNTED = """
import asyncio, os, socket, subprocess
from nstat_async import Monitor
def owners(monitor, *listeners):
    ports = [each.getsockname()[1] for each in listeners]
    found = {f.local.port: f.process.pid == os.getpid() if f.process else f.attribution for f, _ in monitor.flows if f.remote is None}
    return [found.get(port) for port in ports], monitor.capabilities.processes_limit
async def until(monitor, *listeners, **wanted):
    while (told := owners(monitor, *listeners))[0] != wanted["they"] or ("limit" in wanted and told[1] != wanted["limit"]):
        await monitor.poll_now()
        await asyncio.sleep(0.05)
async def main():
    first = socket.create_server(("127.0.0.1", 0))
    async with Monitor(interval=None, ebpf="off", pulse=None) as monitor:
        await until(monitor, first, they=[True])
        for _ in range(2):  # the one over it, and that of the machine
            subprocess.run(["umount", "-l", "/proc"], check=True)
        second = socket.create_server(("127.0.0.1", 0))
        for _ in range(4):
            await monitor.poll_now()
        await until(monitor, first, second, they=[True, None], limit="processes are unknown: there is no /proc")
        subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
        await until(monitor, first, second, they=[True, True], limit=None)
asyncio.run(main())
"""


@living
@pytest.mark.privileged
@privileged
def test_where_proc_goes_while_it_is_read_nobody_is_taken_for_the_kernel(nursery):
    """What was known stands, what is new is unknown, and it is said; once it is there again all is found."""
    status, _, err = nursery.run(UNMOUNTED, NETWORK | MOUNTS)
    assert (status, err) == (0, "")

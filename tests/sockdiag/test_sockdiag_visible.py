"""What of other processes can be seen on the living kernel: ``/proc`` that hides some, processes that may not be looked at, pids that are used again."""

from __future__ import annotations

import json

import pytest
from nursery import MOUNTS, NETWORK, PROCESSES
from sockdiag_living import privileged

pytestmark = [pytest.mark.linux, pytest.mark.privileged, privileged]

BEGIN = """
import ctypes, json, os, socket, subprocess, sys, time
from sockdiag_fakes import LiveDriver
from nstat_async.backends import SockDiag
from nstat_async._options import MonitorOptions
def driver():
    return LiveDriver(*SockDiag().parts(MonitorOptions(interval=None, ebpf="off", pulse=None)))
def holder(uid=None, dumpable=True):
    "A process with a listener: its pid and port."
    there, here = os.pipe()
    pid = os.fork()
    if not pid:
        ctypes.CDLL(None).prctl(1, 9)
        if uid is not None:
            os.setgroups([]); os.setgid(uid); os.setuid(uid)
        ctypes.CDLL(None).prctl(4, int(dumpable))  # PR_SET_DUMPABLE
        listener = socket.create_server(("127.0.0.1", 0))
        os.write(here, str(listener.getsockname()[1]).encode())
        time.sleep(600)
    port = int(os.read(there, 9)); os.close(there); os.close(here)
    return pid, port
def flows(live):
    return {f.local.port: f for f, _ in live.core.flows() if f.remote is None}
def whose(live, pid, port):
    "Whether this process is known to hold the listener, or why nobody is."
    flow = flows(live)[port]
    return flow.process.pid == pid if flow.process else flow.attribution.value
def told(live):
    return live.core.capabilities.processes.value
"""


@pytest.fixture
def inside(nursery):
    """What a program prints that runs in network, mount and pid namespaces of its own, whose first process is root's."""

    def run(script: str):
        status, out, err = nursery.run(BEGIN + script, NETWORK | MOUNTS | PROCESSES)
        assert status == 0, err
        return json.loads(out)

    return run


MOUNTED = """
mine, others = holder(65534), holder()
subprocess.run(["mount", "-t", "proc", "-o", OPTIONS, "proc", "/proc"], check=True)
if USER:
    os.setgroups([]); os.setgid(65534); os.setuid(65534); ctypes.CDLL(None).prctl(4, 1)
with driver() as live:
    live.poll(); live.poll()
    print(json.dumps([whose(live, *mine), whose(live, *others), told(live)]))
"""


@pytest.mark.parametrize("options", ["hidepid=1", "hidepid=2", "hidepid=4", "subset=pid"])
def test_an_ordinary_user_sees_its_own_processes_and_is_told_so_however_proc_is_mounted(inside, options):
    assert inside(f"OPTIONS, USER = {options!r}, True\n" + MOUNTED) == [True, "hidden", "own"]


@pytest.mark.parametrize("options", ["hidepid=2", "subset=pid"])
def test_root_sees_all_however_proc_is_mounted(inside, options):
    """Only what may be seen counts: a pid namespace of its own is never all of the machine."""
    assert inside(f"OPTIONS, USER = {options!r}, False\n" + MOUNTED) == [True, True, "some"]


NOT_DUMPABLE = """
plain, closed = holder(65534), holder(65534, dumpable=False)
os.setgroups([]); os.setgid(65534); os.setuid(65534); ctypes.CDLL(None).prctl(4, 1)
with driver() as live:
    live.poll(); live.poll()
    print(json.dumps([whose(live, *plain), whose(live, *closed), "cannot be named" in (live.core.capabilities.processes_limit or "")]))
"""


def test_a_process_of_ones_own_that_may_not_be_looked_at_is_hidden(inside):
    """``PR_SET_DUMPABLE``: its descriptors are root's, as ssh-agent's and any program's that changed its user."""
    assert inside(NOT_DUMPABLE) == [True, "hidden", True]


USED_AGAIN = """
first, port = holder()
with driver() as live:
    live.poll()
    before = flows(live)[port]
    os.kill(first, 9); os.waitpid(first, 0)
    time.sleep(0.02)  # a tick: two processes with one pid differ by when they began
    for _ in range(50):
        with open("/proc/sys/kernel/ns_last_pid", "w") as file:
            file.write(str(first - 1))
        again, other = holder()
        if again == first:
            break
    def renewed():
        live.poll()
        flow = flows(live).get(other)
        return flow if flow is not None and flow.process is not None else None
    after = live.until(renewed)
    print(json.dumps([again == first, after.process.pid == before.process.pid, after.process.unique_pid != before.process.unique_pid, port in flows(live)]))
"""


def test_a_process_that_got_the_pid_of_one_that_ended_is_another_process(inside):
    assert inside(USED_AGAIN) == [True, True, True, False]


ROOT_OF_ITS_OWN = """
from nstat_async._io.linux import network_of_this_thread, process_visibility
here = frozenset({network_of_this_thread()})
os.setgroups([]); os.setgid(65534); os.setuid(65534); ctypes.CDLL(None).prctl(4, 1)
if ctypes.CDLL(None).unshare(0x10000000):
    sys.exit("no user namespace")
with open("/proc/self/uid_map", "w") as ids:
    ids.write("0 65534 1")
print(json.dumps([os.geteuid(), process_visibility(here)[0].value]))
"""


def test_root_of_a_user_namespace_is_an_ordinary_user_to_the_processes_outside(inside):
    assert inside(ROOT_OF_ITS_OWN) == [0, "own"]


REFUSED = """
from nstat_async._io.linux import process_visibility
def partly():
    return process_visibility(frozenset())[2].value
root = partly(); os.seteuid(65534)
print(json.dumps([root, partly()]))
"""


def test_what_a_refusal_leaves_is_the_same_whenever_it_is_met(inside):
    """A few processes are tried out at first, the others by a search: an ordinary user sees no others' by either."""
    assert inside(REFUSED) == ["some", "own"]


LOOKING = """
import struct
from nstat_async._io.linux import may_look_at
libc, (other, _) = ctypes.CDLL(None), holder()
def looked(rights=None, sandbox=False):
    "Whether a child sees the descriptors of root's process, as another user with these capabilities, or as root in a sandbox."
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if rights is not None:
        libc.prctl(8, 1)  # PR_SET_KEEPCAPS
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        libc.capset(struct.pack("Ii", 0x20080522, 0), struct.pack("6I", rights, rights, 0, 0, 0, 0))
    if sandbox:
        rules = libc.syscall(444, struct.pack("Q", 1), 8, 0)  # landlock_create_ruleset: about executing files
        if rules < 0:
            os._exit(2)
        libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        libc.syscall(446, rules, 0)  # landlock_restrict_self
    os._exit(may_look_at(other))
read, trace = 1 << 2, 1 << 19  # CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE
print(json.dumps([looked(), looked(read), looked(trace), looked(read | trace), looked(sandbox=True)]))
"""


def test_two_capabilities_let_look_at_a_process_that_has_more_and_a_sandbox_forbids_it_to_root(inside):
    *rights, sandboxed = inside(LOOKING)
    assert rights == [1, 0, 0, 1]
    assert sandboxed in {0, 2}  # 2: this kernel has no Landlock

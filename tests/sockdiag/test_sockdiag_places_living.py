"""The living kernel seen from elsewhere: by the name of a namespace, and by a user without privileges."""

from __future__ import annotations

import os

import pytest
from sockdiag_living import drive, inside, listen, port, privileged

from nstat_async._errors import BackendUnavailableError, UnavailableReason
from nstat_async._model import InterfaceKind
from nstat_async._options import MonitorOptions
from nstat_async.backends import SockDiag

pytestmark = [pytest.mark.linux, pytest.mark.usefixtures("patience")]


def test_a_namespace_that_does_not_exist_is_an_error_with_its_path():
    """Opening fails with the reason and the path."""
    with pytest.raises(BackendUnavailableError, match="no-such-namespace") as caught:
        SockDiag("no-such-namespace").parts(MonitorOptions())
    assert caught.value.reason is UnavailableReason.MISSING


def test_the_own_namespace_has_no_label_by_whichever_name():
    """A path to the own namespace is the own namespace: no label, no privilege."""
    with drive(("/proc/self/ns/net",)) as live:
        live.poll()
        assert {e.flow.namespace for e in live.events if hasattr(e, "flow")} <= {None}


def test_the_own_namespace_named_twice_is_watched_once(live):
    """Two names of one namespace are one namespace: every flow comes once."""
    with drive((os.getpid(), "/proc/self/ns/net", None)) as twice, listen() as listener:
        twice.poll()
        assert len(twice.added(port(listener))) == 1
        assert len(twice.channels) == 4


@pytest.mark.privileged
@privileged
def test_flows_of_another_namespace_say_so_and_end_with_it():
    """Several namespaces at once; the foreign flows say so, and end properly when their namespace vanishes."""
    process = inside()
    here = int(process.stdout.readline())
    listener = listen()
    with drive((None, process.pid)) as live:
        live.poll()
        (added,) = live.added(here)
        assert added.flow.namespace == f"pid:{process.pid}"
        assert added.flow.id.startswith("n1:")
        assert added.flow.process.pid == process.pid
        assert added.flow.interface.kind is InterfaceKind.LOOPBACK
        assert live.added(port(listener))[0].flow.namespace is None
        process.communicate("\n")
        (gone,) = live.until(lambda: live.removed(here))
        assert (gone.counts.tx_bytes, gone.final) == (12345, True)
        assert live.poll().complete
    listener.close()


@pytest.mark.privileged
@privileged
def test_another_namespace_named_twice_has_the_first_name():
    """What a namespace is, its device and inode say; the first name is shown, and no descriptor is left."""
    process = inside()
    here = int(process.stdout.readline())
    before = len(os.listdir("/proc/self/fd"))
    with drive((process.pid, f"/proc/{process.pid}/ns/net")) as live:
        live.poll()
        (added,) = live.added(here)
        assert added.flow.namespace == f"pid:{process.pid}"
        assert len(live.channels) == 4
    assert len(os.listdir("/proc/self/fd")) == before
    process.communicate("\n")


@pytest.mark.privileged
@privileged
def test_a_user_without_capabilities_sees_all_flows_and_the_processes_of_its_own(nursery):
    """A user without any capability sees all flows with exact final bytes, and the processes of the own user only."""
    program = """
import os, socket
from sockdiag_fakes import LiveDriver
from nstat_async.backends import SockDiag
from nstat_async._options import MonitorOptions
os.setgid(65534); os.setuid(65534)
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen()
c = socket.create_connection(l.getsockname()); a, _ = l.accept()
with LiveDriver(*SockDiag().parts(MonitorOptions(interval=None))) as live:
    live.poll()
    (own,) = live.added(c.getsockname()[1])
    (foreign,) = live.added(PORT)
    assert own.flow.process.pid == os.getpid(), own
    assert own.flow.process.uid == 65534
    assert foreign.flow.process is None, foreign
    assert live.core.capabilities.processes.value == "own"
    assert live.core.capabilities.final_counts
    here = c.getsockname()[1]
    c.sendall(b"x" * 99); a.recv(99); c.close(); a.close()
    (gone,) = live.until(lambda: live.removed(here))
    assert gone.counts.tx_bytes == 99 and gone.final
print("as expected")
"""
    with listen() as listener:
        _, out, err = nursery.run(f"PORT = {port(listener)}\n{program}")
    assert out == "as expected\n", err

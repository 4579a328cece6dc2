"""What the tests with a real kernel share: a namespace of their own, and a reader of the source."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import traceback
import warnings
from pathlib import Path

import pytest
from own_namespace import own_namespace

if not sys.platform.startswith("linux"):
    pytest.skip("the living kernel is Linux'", allow_module_level=True)

from nstat_async._errors import BackendUnavailableError
from nstat_async._io.bpf import _bpf
from nstat_async._io.ebpf import EbpfSettings, EbpfSource
from nstat_async.ebpf import (
    Ended,
    Ledger,
    MapsPurpose,
    Operation,
    RingPurpose,
    Tier,
    decode_answer,
    decode_records,
    encode_request,
    tells,
)

HERE = Path(__file__).parent
LIMIT = 120.0
"""Seconds for the kernel to report what happened: never reached unless it doesn't."""
NET = 4 * LIMIT
"""Seconds for a test that may be run three times (`again`)."""


def kernel() -> tuple[int, ...]:
    """Version of the running kernel."""
    return tuple(map(int, os.uname().release.split(".")[:2]))


def counts_calls() -> bool:
    """True if this kernel has the hooks that tell the lengths of sends and receives (Linux 6.3)."""
    return kernel() >= (6, 3)


needs_calls = pytest.mark.skipif(not counts_calls(), reason="needs the length hooks of Linux 6.3")
ALL = Tier.ALL if counts_calls() else Tier.PACKETS
"""What root gets here."""


@functools.cache
def refused() -> str | None:
    """Why the living tests cannot run here; `None` if they can."""
    if os.geteuid() != 0:
        return "needs root"
    try:
        with own_namespace(), EbpfSource.attach() as source:
            whole = source.tier is ALL
            return None if whole else f"only tier {source.tier.value}: {source.refusals}"
    except (OSError, BackendUnavailableError) as error:
        return str(error)


def skip_where_refused() -> None:
    """Skip the test where the programs do not run."""
    if why := refused():
        pytest.skip(why)


@contextlib.contextmanager
def living():
    """A network namespace of one's own, where the programs run; skips the test where they do not."""
    skip_where_refused()
    with own_namespace():
        yield


def compiled(name: str, directory: Path, *libraries: str) -> str:
    """A program of this directory, compiled; skips the test where it cannot be."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("needs a C compiler")
    output = directory / name
    command = [compiler, "-O1", "-o", str(output), str(HERE / f"{name}.c"), *libraries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{name}.c cannot be compiled here: {done.stderr.splitlines()[-1]}")
    return str(output)


def program_ids(pid):
    """The programs that a process holds, by the kernel's number."""
    ids = set()
    for name in os.listdir(f"/proc/{pid}/fdinfo"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/fdinfo/{name}") as file:
            ids |= {int(line.split()[1]) for line in file if line.startswith("prog_id:")}
    return ids


def alive(ids):
    """Those that the kernel still has (BPF_PROG_GET_FD_BY_ID)."""
    left = set()
    for number in ids:
        with contextlib.suppress(FileNotFoundError):
            os.close(_bpf(13, struct.pack("=III", number, 0, 0))[0])
            left.add(number)
    return left


def wait_until_gone(ids):
    """The kernel frees programs a little later."""
    end = time.monotonic() + LIMIT
    while alive(ids):
        assert time.monotonic() < end, f"still there: {alive(ids)}"
        time.sleep(0.02)


def cookie(sock: socket.socket) -> int:
    return struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0]


class NotReportedError(AssertionError):
    """What happened was not reported within the limit."""


def pauses():
    """Seconds to wait between two looks, until `LIMIT` is over: whatever takes long is looked for seldom."""
    end, pause = time.monotonic() + LIMIT, 0.002
    while time.monotonic() < end:
        yield pause
        pause = min(pause * 1.1, 0.1)


def again(test):
    """Run a test up to three times when something was not reported.

    Some sandboxes' kernels do not run tracing programs while a kernel thread is current. On a busy machine that is where a
    connection may end: up to one end in a hundred is not seen there, and nothing says so. (Debian's kernels show all.)
    Wrong code fails three times.
    """

    @functools.wraps(test)
    def run(*arguments, **named):
        for _ in range(2):
            try:
                return test(*arguments, **named)
            except NotReportedError as error:
                _close_what_is_left(error)
        return test(*arguments, **named)

    return run


def _close_what_is_left(error: NotReportedError) -> None:
    """The sockets of a test that was left at this error: if they are collected later, another test is blamed for them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        gc.collect()


class Watch:
    """Reads a source to the ledger, and keeps everything."""

    def __init__(self, **settings) -> None:
        self.source = EbpfSource.attach(EbpfSettings(**settings))
        self.ring = self.source.open(RingPurpose())
        self.maps = self.source.open(MapsPurpose())
        self.ledger = Ledger(
            packets=tells(self.source.tier).udp_packets,
            births="created" in self.source.programs,
            processes=self.source.processes_trusted,
            ignore=self.source.own_cookies,
        )
        self.records = []
        self.datagrams = []
        self.evidence = []

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.maps.close()
        self.source.close()

    def forget(self) -> None:
        """Forget what was reported so far."""
        self.drain()
        for told in (self.records, self.datagrams, self.evidence):
            told.clear()

    def drain(self) -> None:
        batch: list[bytes] = []
        while self.ring.read_into(batch, 16):
            pass
        self.datagrams += batch
        for datagram in batch:
            self.records += decode_records(datagram)[0]
            self.ledger.receive(datagram)
        self.evidence += self.ledger.take_evidence()

    def ask(self, operation: Operation, *arguments):
        self.maps.send(encode_request(operation, *arguments))
        batch: list[bytes] = []
        while self.maps.read_into(batch, 4):
            pass
        answers = [decode_answer(piece) for piece in batch]
        for answer in answers:
            self.ledger.answer(answer)
        self.evidence += self.ledger.take_evidence()
        return answers

    def rows(self, operation: Operation, *arguments):
        return [row for answer in self.ask(operation, *arguments) for row in answer.rows]

    def statistics(self):
        return self.ask(Operation.STATISTICS)[-1].statistics

    def until(self, condition):
        """Drain until it is true; its value."""
        for pause in pauses():
            self.drain()
            value = condition()
            if value:
                return value
            time.sleep(pause)
        raise NotReportedError(f"not within {LIMIT} s; {len(self.evidence)} pieces of evidence")

    def ended(self, number: int) -> Ended:
        return self.until(lambda: next((e for e in self.evidence if is_end(e, number)), None))

    def of(self, number: int):
        return [e for e in self.evidence if e.facts.cookie == number]


def is_end(evidence, number: int) -> bool:
    return isinstance(evidence, Ended) and evidence.facts.cookie == number


def udp(bind=True):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if bind:
        sock.bind(("127.0.0.1", 0))
    return sock


def listener():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    return sock


def accepted(server):
    client = socket.create_connection(server.getsockname()[:2])
    return client, server.accept()[0]


def exchange(client, server, up, down):
    for sender, receiver, size in ((client, server, up), (server, client, down)):
        sender.sendall(bytes(size))
        left = size
        while left:
            left -= len(receiver.recv(left))


def names(evidence):
    return [type(e).__name__ for e in evidence]


def entries(watch):
    return [row for row in watch.rows(Operation.FLOWS) if row.cookie not in watch.source.own_cookies]


def descriptors():
    return len(os.listdir("/proc/self/fd"))

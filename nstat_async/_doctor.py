"""What this machine offers: the examination by ``nstat-async doctor``.

Each finding is a fact that was just looked up; nothing is inferred from the
platform's name. The self-check opens a loopback connection of its own, and checks that the real
monitor sees it begin, count and end.
"""

from __future__ import annotations

import enum
import importlib.util
import os
import platform
import socket
import time
from collections import Counter
from typing import Any, Union

import anyio
import attrs

from . import __version__
from ._compiled import SPEEDUPS
from ._contract import Backend
from ._errors import BackendUnavailableError, NstatError, UnavailableReason, UsageError
from ._events import FlowAdded, FlowRemoved, FlowUpdated, PollCompleted
from ._io.threads import in_thread
from ._model import Capabilities, Counts, Flow, Proof, Provider, Visibility
from ._monitor import Monitor
from .backends._registry import ROWS

SELF_CHECK_SECONDS = 10.0
"""Most seconds that the self-check may take."""
SELF_CHECK_BYTES = (12_345, 6_789)
"""Bytes sent and received by the self-check's own connection."""
_OPTIONAL = {
    "textual": "nstat-async top (extra: cli)",
    "prometheus_client": "Prometheus collector (extra: prometheus)",
    "opentelemetry": "OpenTelemetry metrics (extra: otel)",
    "starlette": "web server (extra: server)",
    "uvloop": "a quicker asyncio loop (extra: uvloop)",
}
_FIRST_USER_NAMESPACE = 0xEFFFFFFD
"""Inode of the user namespace that is there from the start: ``PROC_USER_INIT_INO`` of Linux, include/linux/proc_ns.h."""
_CAPABILITIES = {
    2: "CAP_DAC_READ_SEARCH", 12: "CAP_NET_ADMIN", 19: "CAP_SYS_PTRACE", 21: "CAP_SYS_ADMIN", 38: "CAP_PERFMON", 39: "CAP_BPF",
}  # fmt: skip
"""Capabilities that let a monitor see more, by their numbers in capability.h."""


class Status(enum.Enum):
    """Whether a finding is good or bad."""

    OK = "ok"
    INFO = "info"
    WARN = "warn"
    FAIL = "fail"


@attrs.frozen
class Finding:
    """One fact."""

    name: str
    """What was looked at."""
    status: Status
    detail: str
    """What was found, for a person."""
    data: dict[str, Any] = attrs.field(factory=dict, hash=False)
    """What was found, for a program."""


@attrs.frozen
class DoctorReport:
    """All findings."""

    findings: tuple[Finding, ...]
    works: bool
    """True if a kernel of this machine can be watched."""


async def examine(backend: Backend | None = None) -> DoctorReport:
    """Look at everything.

    Args:
        backend: Examine this backend instead of this machine's own.
    """
    findings = [_library(), _system(), _privileges(), *_buffers()]
    works = False
    candidates = [row.examine() for row in ROWS if row.examine is not None] if backend is None else [backend]
    for candidate in candidates:
        found, ok = await _examine_backend(candidate)
        findings += found
        works = works or ok
    return DoctorReport((*findings, await _emulated(), *_optional()), works)


# --- facts of the host --------------------------------------------------------


def _library() -> Finding:
    data = {
        "version": __version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "speedups": SPEEDUPS,
    }
    detail = f"nstat_async {__version__} on Python {data['python']}; C code {SPEEDUPS}"
    return Finding("library", Status.OK, detail, data)


def _system() -> Finding:
    data = {"system": platform.system(), "release": platform.release(), "machine": platform.machine()}
    if hasattr(os, "uname"):
        data["version"] = os.uname().version
    return Finding("system", Status.OK, f"{data['system']} {data['release']} on {data['machine']}", data)


def _privileges() -> Finding:
    uid = os.geteuid() if hasattr(os, "geteuid") else None
    effective = _effective_capabilities()
    held = [name for bit, name in sorted(_CAPABILITIES.items()) if effective is not None and effective >> bit & 1]
    within = _user_namespace() not in {None, _FIRST_USER_NAMESPACE}
    data = {
        "uid": uid,
        "root": uid == 0,
        "capabilities": held if effective is not None else None,
        "user_namespace": within,
    }
    detail = "no user ids on this system" if uid is None else "root" if uid == 0 else f"user {uid}"
    detail += f"; {', '.join(held)}" if held else ""
    if within and (held or uid == 0):
        detail += "; in a user namespace: this does not reach processes or eBPF outside it"
    return Finding("privileges", Status.INFO, detail, data)


def _user_namespace() -> int | None:
    """The inode of this process's user namespace; `None` where there are none."""
    try:
        return os.stat("/proc/self/ns/user").st_ino  # noqa: PTH116
    except OSError:
        return None


def _effective_capabilities() -> int | None:
    """``CapEff`` of proc(5); `None` if there is no such file."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            line = next((row for row in file if row.startswith("CapEff:")), None)
        return int(line.split()[1], 16) if line is not None else None
    except (OSError, ValueError):
        return None


def _buffers() -> list[Finding]:
    """The largest receive buffers that the system grants without privilege."""
    limits = [row.receive_limit() for row in ROWS if row.receive_limit is not None]
    return [Finding(name, Status.INFO, f"{size:,} bytes", {"bytes": size}) for name, size in limits if size is not None]


def _optional() -> list[Finding]:
    there = {module: importlib.util.find_spec(module) is not None for module in _OPTIONAL}
    return [
        Finding(module, Status.INFO, f"{'' if there[module] else 'not '}installed: {use}", {"installed": there[module]})
        for module, use in _OPTIONAL.items()
    ]


# --- backends -------------------------------------------------------------------


async def _examine_backend(backend: Backend) -> tuple[list[Finding], bool]:
    name = backend.name
    try:
        with anyio.fail_after(SELF_CHECK_SECONDS):
            capabilities, seen, check = await _watch(backend)
    except BackendUnavailableError as error:
        # It is fine that the interface of another system is missing.
        status = Status.INFO if error.reason is UnavailableReason.PLATFORM else Status.FAIL
        return [Finding(name, status, error.detail, {"reason": error.reason.value})], False
    except NstatError as error:
        return [Finding(name, Status.FAIL, str(error))], False
    except TimeoutError:
        return [Finding(name, Status.FAIL, f"no complete answer within {SELF_CHECK_SECONDS:.0f} s")], False
    granted = capabilities.receive_buffer
    size = "" if granted is None else f", receive buffer {granted:,} bytes"
    kernel = {"kernel": capabilities.kernel, "receive_buffer": granted}
    findings = [Finding(name, Status.OK, f"works{size}", kernel)]
    findings += _layout(name, capabilities)
    findings.append(_visible(name, capabilities, seen))
    findings.append(check)
    if capabilities.ebpf is not None:
        findings.append(_ebpf(name, capabilities))
    findings += [Finding(f"{name} note", Status.INFO, note) for note in capabilities.notes]
    return findings, True


def _layout(name: str, capabilities: Capabilities) -> list[Finding]:
    proof = capabilities.layout_proof
    if capabilities.layout is None or proof is None:
        return []
    status = Status.OK if proof in {Proof.VERIFIED, Proof.ASSUMED} else Status.WARN
    detail = f"{capabilities.layout}, {proof.value}"
    return [Finding(f"{name} layout", status, detail, {"layout": capabilities.layout, "proof": proof.value})]


Seen = tuple[tuple[Flow, Union[Counts, None]], ...]


def _visible(name: str, capabilities: Capabilities, seen: Seen) -> Finding:
    by_provider = Counter(flow.provider.value for flow, _ in seen)
    named = sum(1 for flow, _ in seen if flow.process is not None)
    counts = ", ".join(f"{count} {provider}" for provider, count in sorted(by_provider.items())) or "no flows"
    partial = {capabilities.flows, capabilities.processes} != {Visibility.ALL}
    whose = f"flows of {capabilities.flows.whose}, processes of {capabilities.processes.whose}"
    detail = f"{counts}; {named} with a process; {whose}"
    data = {
        "flows": len(seen),
        "with_process": named,
        "by_provider": dict(by_provider),
        "flows_of": capabilities.flows.value,
        "processes_of": capabilities.processes.value,
        "udp_counts": capabilities.udp_counts,
        "ebpf": capabilities.ebpf,
        "final_counts": capabilities.final_counts,
        "per_medium_bytes": capabilities.per_medium_bytes,
    }
    helps = hasattr(os, "geteuid") and os.geteuid() != 0 and capabilities.processes is not Visibility.NONE
    hint = "" if not partial else "; run as root to see more" if helps else "; the notes say why"
    return Finding(f"{name} visible", Status.WARN if partial else Status.OK, detail + hint, data)


_EBPF = {
    "all": "bytes of UDP, every flow's process",
    "calls": "bytes of UDP, every flow's process; the number of UDP packets needs CAP_NET_ADMIN and cgroup2, too",
    "packets": "bytes of UDP, the process of TCP and UDP; bytes of other protocols need Linux 6.3",
    "tcp": "processes of connections made from here and exact ends of TCP; bytes of UDP need Linux 6.3, or CAP_NET_ADMIN and cgroup2",
}
"""What each tier tells, and what the next one needs."""


def _ebpf(name: str, capabilities: Capabilities) -> Finding:
    """How much eBPF programs tell, and why not more."""
    tier, reason = capabilities.ebpf, capabilities.ebpf_reason
    tells = _EBPF.get(tier or "")
    why = reason if tells is None else tells if reason is None else f"{tells} ({reason})"
    detail = f"{tier}: {why}"
    data = {"tier": tier, "reason": reason}
    return Finding(f"{name} eBPF", Status.OK if reason is None else Status.INFO, detail, data)


async def _watch(backend: Backend) -> tuple[Capabilities, Seen, Finding]:
    """Open one monitor: what does it see, and does it count a connection of our own to the byte?"""
    async with Monitor(backend=backend, interval=0.2, providers={Provider.TCP, Provider.UDP, Provider.QUIC}) as monitor:
        polls = 0
        async for event in monitor:
            polls += isinstance(event, PollCompleted)
            # The second or third poll completes a proof of the layout.
            if polls >= 3:
                break
        seen = monitor.flows
        check = await _self_check(monitor, backend.name)
        return monitor.capabilities, seen, check


async def _self_check(monitor: Monitor, name: str) -> Finding:
    """Open, use and close a loopback connection; follow it in the stream."""
    if not any(row.name == name and row.platform is not None for row in ROWS):
        return Finding(
            f"{name} self-check", Status.INFO, "not made: this kernel does not see this machine's connections"
        )
    began = time.perf_counter()
    async with monitor.subscribe() as stream:
        try:
            # Sockets stay in the network namespace of the thread that made them, and a worker thread may be in another one.
            with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
                ports = await in_thread(_exchange, listener, client)
        except OSError as error:
            return Finding(f"{name} self-check", Status.WARN, f"loopback does not work here: {error.strerror or error}")
        steps: dict[str, Counts | None] = {}
        with anyio.move_on_after(SELF_CHECK_SECONDS / 2):
            async for event in stream:
                if not isinstance(event, (FlowAdded, FlowUpdated, FlowRemoved)):
                    continue
                flow = event.flow
                if flow.local is None or flow.remote is None or (flow.local.port, flow.remote.port) != ports:
                    continue
                steps[type(event).__name__] = event.counts
                if isinstance(event, FlowRemoved):
                    break
    return _verdict(name, steps, time.perf_counter() - began)


def _verdict(name: str, steps: dict[str, Counts | None], seconds: float) -> Finding:
    sent, received = SELF_CHECK_BYTES
    final = steps.get("FlowRemoved")
    data: dict[str, Any] = {"steps": sorted(steps), "seconds": round(seconds, 3)}
    if "FlowRemoved" not in steps:
        status, detail = (
            Status.FAIL,
            "a connection of its own was " + ("added and never removed" if steps else "not seen"),
        )
    elif final is None or (final.tx_bytes, final.rx_bytes) != (sent, received):
        status, detail = Status.WARN, f"a connection of its own of {sent}/{received} bytes ended with {final!r}"
        data["exact"] = False
    else:
        seen = f"{sent:,} and {received:,} bytes exact, in {seconds:.2f} s"
        status, detail = Status.OK, f"a connection of its own was seen to come and go, {seen}"
        data["exact"] = True
    return Finding(f"{name} self-check", status, detail, data)


def _exchange(listener: socket.socket, client: socket.socket) -> tuple[int, int]:
    """Connect over loopback, send and receive known amounts, and close the connection; returns its two ports."""
    sent, received = SELF_CHECK_BYTES
    for each in (listener, client):
        each.settimeout(2)
    client.connect(listener.getsockname())
    ports = (client.getsockname()[1], client.getpeername()[1])
    server, _ = listener.accept()
    with client, server:
        server.settimeout(2)
        for sender, receiver, size in ((client, server, sent), (server, client, received)):
            sender.sendall(b"d" * size)
            left = size
            while left > 0:
                piece = len(receiver.recv(65_536))
                if not piece:
                    raise OSError("the connection ended early")
                left -= piece
    return ports


async def _emulated() -> Finding:
    """Check that the emulated kernel works here, as it does wherever Python does."""
    from .testing import EmulatedKernel  # noqa: PLC0415

    try:
        kernel = EmulatedKernel()
        kernel.open_tcp(pid=1, name="doctor", remote=("192.0.2.1", 443), rx=1, tx=2)
        async with Monitor(backend=kernel.backend(), interval=None) as monitor:
            with anyio.fail_after(SELF_CHECK_SECONDS):
                async for event in monitor:
                    if isinstance(event, FlowAdded):
                        break
    except (NstatError, UsageError, OSError, TimeoutError) as error:
        return Finding(
            "emulated kernel", Status.FAIL, f"does not work here: {getattr(error, 'strerror', None) or error}"
        )
    return Finding("emulated kernel", Status.OK, f"works ({kernel.name}); recordings play everywhere too")

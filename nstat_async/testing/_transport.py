"""Channels to an emulated kernel within the process, behind real descriptors.

A record stays in the emulated receive buffer until it is received, so losses are exactly those of the
emulated kernel. The descriptor of a channel is a `Signal`, which is set while there is something to
receive. So `select` and every event loop see an answer as soon as `send` returns.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from nstat_async._model import Provider, TcpState

from ._client import EmulatedClient
from ._flows import EmulatedFlow
from ._kernel import SansIoKernel
from ._signal import Signal
from ._values import checked, executable_uuid, flag, instance, whole

if TYPE_CHECKING:
    from nstat_async._contract import Channel, Feed
    from nstat_async._options import MonitorOptions

_COMFORTABLE = 1 << 20
_LONGEST_WAIT = 0.25
_EVIDENCE_PID = 4242
_EVIDENCE_UID = 501
_EVIDENCE_NAME = "python3"
_NO_PERSONA = 0xFFFFFFFF


class Ticker:
    """A thread that runs a kernel's timers by the wall clock."""

    def __init__(self, kernel: SansIoKernel) -> None:
        self._kernel = kernel
        self._stop = False
        self._thread = threading.Thread(target=self._run, name="nstat-emulated-timers", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        kernel = self._kernel
        while not self._stop:
            kernel.timer_added.clear()
            kernel.run_due()
            due = kernel.next_timer()
            # Another thread that waits for the event may have cleared it, so the wait is bounded.
            kernel.timer_added.wait(_LONGEST_WAIT if due is None else min(due, _LONGEST_WAIT))

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._stop = True
        self._kernel.timer_added.set()
        if self._thread is not threading.current_thread():
            self._thread.join()


class EmulatedChannel:
    """One control socket of the emulated kernel as a `Channel` for the pump."""

    def __init__(self, kernel: SansIoKernel, client: EmulatedClient, receive_buffer: int | None) -> None:
        self._signal = Signal()
        self.kernel = kernel
        self.client = client
        if receive_buffer is not None:
            self.client.set_receive_buffer(receive_buffer)
        self.client.on_readable = self._update_signal
        self.immediate = not kernel.faults.reply_delay
        """True unless the fault of a slow bridge is on."""
        self.receive_buffer: int | None = self.client.receive_buffer
        """Granted receive buffer in bytes."""

    def fileno(self) -> int:
        """The descriptor to wait on; -1 once closed."""
        return self._signal.fileno()

    def _update_signal(self) -> None:
        if self.client.readable or self.client.ended:
            self._signal.set()
        else:
            self._signal.clear()

    def read_into(self, batch: list[bytes], most: int) -> bool:
        """Append the records that are there, at most this many; False if there are no more.

        Raises:
            EOFError: The control went away.
            OSError: The channel is closed.
        """
        with self.kernel.lock:
            try:
                for _ in range(most):
                    batch.append(self.client.receive())  # noqa: PERF401  # what came before an error must stay
            except BlockingIOError:
                return False
            finally:
                self._update_signal()
        return True

    def send(self, data: bytes) -> None:
        """Send one request; it is answered when this returns.

        Raises:
            OSError: As `EmulatedClient.send`.
        """
        self.client.send(data)

    def close(self) -> None:
        """Close the control socket. Idempotent."""
        self.client.close()
        self._signal.close()


class EmulatedTransport:
    """Opens channels to one emulated kernel.

    Args:
        kernel: The kernel.
        receive_buffer: Receive buffer of each channel, bytes; `None` leaves what ``connect`` gives.
    """

    def __init__(self, kernel: SansIoKernel, receive_buffer: int | None = None) -> None:
        self.kernel = kernel
        if receive_buffer is not None:
            whole("receive_buffer", receive_buffer, bits=31, least=1)
        self._receive_buffer = receive_buffer
        self._ticker: Ticker | None = None
        self._evidence: list[EmulatedFlow] = []
        self._own: list[EmulatedClient] = []
        """The open control sockets of this transport."""

    def connect(self) -> EmulatedClient:
        """A control socket without a channel. Like those of channels, it belongs to this transport."""
        client = self.kernel.connect()
        self._own = [*(each for each in self._own if not each.closed), client]
        return client

    def open(self, purpose: Any) -> Channel:  # noqa: ARG002
        """Open a control socket."""
        if self.kernel.runs_by_the_clock and self._ticker is None:
            self._ticker = Ticker(self.kernel)
        return EmulatedChannel(self.kernel, self.connect(), self._receive_buffer)

    def lookup(self, request: Any) -> Any:
        """Open or close flows with known values on the emulated machine, or read its counters of losses or of interfaces."""
        from nstat_async.ntstat import (  # noqa: PLC0415  (a session asks)
            Evidence,
            InterfacesRead,
            Ledger,
            LedgerRow,
            OpenEvidence,
            ReadInterfaces,
            ReadLedger,
        )

        kernel = self.kernel
        with kernel.lock:
            if isinstance(request, ReadLedger):
                counted = kernel.release.has_details and kernel.privileged
                own = [each for each in self._own if counted and not each.closed]
                rows = tuple(LedgerRow(each.unit, each.refused_sources, each.failed_goodbyes) for each in own)
                return Ledger(rows, kernel.refused_announcements) if kernel.release.has_updates else None
            if isinstance(request, ReadInterfaces):
                carried = tuple(each.carried for each in kernel.interfaces.values() if each.carried)
                return InterfacesRead(carried, tuple(kernel.interface_list().items()))
            self._close_evidence()
            if not isinstance(request, OpenEvidence):
                return None
            return Evidence(
                flows=(*self._pair("127.0.0.1", 1000), *self._pair("::1", 2000)),
                pid=_EVIDENCE_PID,
                uid=_EVIDENCE_UID,
                interface_index=kernel.interface("lo0").index,
                unique_pid=kernel.process(_EVIDENCE_PID, _EVIDENCE_NAME),
                uuid=executable_uuid(_EVIDENCE_NAME),
            )

    def _pair(self, address: str, size: int) -> Iterator[Any]:
        """Both ends of a TCP connection and of a UDP one."""
        from nstat_async.ntstat._evidence import KnownFlow  # noqa: PLC0415

        near, far = self.kernel.loopback_pair(address)
        for provider, state in ((Provider.TCP, TcpState.ESTABLISHED), (Provider.UDP, None)):
            for local, remote, rx, tx in ((near, far, size + 1, size + 2), (far, near, size + 2, size + 1)):
                flow = self.kernel.open(
                    provider, _EVIDENCE_PID, _EVIDENCE_NAME, local=local, remote=remote, interface="lo0", rx=rx, tx=tx,
                    inbound=provider is Provider.TCP and local is far, persona_id=_NO_PERSONA,
                )  # fmt: skip
                self._evidence.append(flow)
                yield KnownFlow(provider=provider, local=local, remote=remote, state=state, rx_bytes=rx, tx_bytes=tx)

    def _close_evidence(self) -> None:
        while self._evidence:
            self._evidence.pop(0).close()

    def close(self) -> None:
        """Stop the timers' thread and close what was opened as evidence. Idempotent."""
        self._close_evidence()
        if self._ticker is not None:
            self._ticker.close()
            self._ticker = None


@attrs.frozen
class EmulatedBackend:
    """An emulated kernel as the ``backend`` of a monitor."""

    kernel: SansIoKernel = attrs.field(validator=checked(instance, SansIoKernel))
    verify: bool | None = attrs.field(default=None, validator=checked(flag, optional=True))
    """Prove the layout with flows of known values; `None`: when the kernel is newer than known."""

    @property
    def name(self) -> str:
        """Always ``"emulated"``."""
        return "emulated"

    def open(self, options: MonitorOptions) -> Feed:
        """Open it: a session of the library on channels of this kernel."""
        from nstat_async._io.kctl import make_session  # noqa: PLC0415  (upward, only when a monitor is wanted)
        from nstat_async._io.pump import KernelFeed  # noqa: PLC0415

        kernel = self.kernel
        facts = kernel.release, kernel.timebase, kernel.interface_list()
        core = make_session(options, *facts, backend=self.name, verify=self.verify, ledger=True, coverage=True)
        transport = EmulatedTransport(kernel, options.receive_buffer or _COMFORTABLE)
        return KernelFeed(core, transport, options=options)

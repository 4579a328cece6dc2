"""What the kernel says about a socket, kept as bytes and translated when it is read.

A report is a `Counts`, and by `details` the source of an event's `Details`: one object with one copy of the message.
How it translates, with the kernel's functions:

- ``tcpi_bytes_sent`` counts retransmitted payload too (``__tcp_transmit_skb``), so ``tx_bytes`` is
  ``tcpi_bytes_sent - tcpi_bytes_retrans``. Kernels before 4.19 have neither. ``tcpi_bytes_acked`` is no substitute,
  because it counts a SYN and a FIN as bytes: ``tx_bytes`` is `None` there.
- ``tcpi_bytes_received`` counts the peer's FIN as a byte (``tcp_data_queue``), which is
  subtracted once the FIN was received.
- Until there is a sample, ``tcpi_min_rtt`` is all ones and ``tcpi_rtt`` is zero.
"""

from __future__ import annotations

import struct
from typing import Any, Protocol

from .._compiled import speedups
from .._errors import ProtocolError
from .._events import Report
from .._model import COUNTS_FIELDS, Counts, CountsForm, Details
from ..ebpf import Totals
from ._constants import DiagAttribute, SocketState, TcpInfo
from ._messages import ATTRIBUTES_AT, HEADER, decode_attributes, find_attribute

_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_QUEUES = struct.Struct("=IIII")
_QUEUES_AT = HEADER.size + 56
_ALL_ONES_32 = 0xFFFFFFFF
_ALL_ONES_64 = 0xFFFFFFFFFFFFFFFF

_set_values = Counts.__dict__["_values"].__set__
_new = object.__new__


def _u32(values: tuple[Any, ...], at: int) -> int | None:
    message, start, length, _ = values
    if at + 4 > length:
        return None
    number: int = _U32.unpack_from(message, start + at)[0]
    return number


def _u64(values: tuple[Any, ...], at: int) -> int | None:
    message, start, length, _ = values
    if at + 8 > length:
        return None
    number: int = _U64.unpack_from(message, start + at)[0]
    return number


def _rx_bytes(values: tuple[Any, ...]) -> int | None:
    received = _u64(values, TcpInfo.BYTES_RECEIVED)
    return None if received is None else max(0, received - values[3])


def _tx_bytes(values: tuple[Any, ...]) -> int | None:
    sent = _u64(values, TcpInfo.BYTES_SENT)
    again = _u64(values, TcpInfo.BYTES_RETRANS)
    if sent is None or again is None:
        return None
    return max(0, sent - again)


def _rtt(values: tuple[Any, ...]) -> int | None:
    return _u32(values, TcpInfo.RTT) or None


def _rtt_variance(values: tuple[Any, ...]) -> int | None:
    # Before the first sample the variance is the initial time-out's, not a measurement.
    return None if _rtt(values) is None else _u32(values, TcpInfo.RTTVAR)


def _min_rtt(values: tuple[Any, ...]) -> int | None:
    smallest = _u32(values, TcpInfo.MIN_RTT)
    return None if smallest == _ALL_ONES_32 else smallest


_READERS: dict[str, Any] = {
    "rx_packets": lambda values: _u32(values, TcpInfo.DATA_SEGS_IN),
    "rx_bytes": _rx_bytes,
    "tx_packets": lambda values: _u32(values, TcpInfo.DATA_SEGS_OUT),
    "tx_bytes": _tx_bytes,
    "tx_retransmitted_bytes": lambda values: _u64(values, TcpInfo.BYTES_RETRANS),
    "min_rtt_us": _min_rtt,
    "avg_rtt_us": _rtt,
    "var_rtt_us": _rtt_variance,
}


def _field(name: str) -> Any:
    reader = _READERS.get(name)
    if reader is None:
        return property(lambda _self: None, doc=f"`None`: Linux does not count {name}.")
    return property(lambda self: reader(self._values), doc=getattr(Counts, name).__doc__)


class SocketReport(Counts):
    """The counts of a message, read when needed: ``_values`` is (message, offset of tcp_info, its length, FIN received).

    A message without ``tcp_info`` has no counts.
    """

    __slots__ = ()

    def details(self) -> Details:
        """Decode the samples of this report."""
        return _details(*self._values)

    @property
    def raw(self) -> tuple[bytes, int, int]:
        """The message, and offset and length of ``tcp_info`` in it."""
        message, start, length, _ = self._values
        return message, start, length

    @property
    def has_fin(self) -> bool:
        """True if the peer's FIN is known to be among the bytes received."""
        return bool(self._values[3] == 1)

    @property
    def message(self) -> bytes:
        """The netlink message as received."""
        message: bytes = self._values[0]
        return message

    def _translated(self) -> tuple[int | None, ...]:
        values = self._values
        return tuple(None if (read := _READERS.get(name)) is None else read(values) for name in COUNTS_FIELDS)


class _Reader:
    """Reads the reports of events, which have a `SocketReport` already."""

    form: CountsForm | None = None

    def counts(self, raw: SocketReport) -> SocketReport:
        return raw

    def details(self, report: Report) -> Details:
        details: Details = report[6].details()
        return details


_READER = _Reader()


def report_of(report: SocketReport, previous: SocketReport | None) -> Report:
    """What an event is made from."""
    return (_READER, b"", 0, 0, 0, 0, report, previous)


for _name_of_field in COUNTS_FIELDS:
    setattr(SocketReport, _name_of_field, _field(_name_of_field))


def _make(values: tuple[Any, ...]) -> SocketReport:
    report: SocketReport = _new(SocketReport)
    _set_values(report, values)
    return report


_make_report = _make if speedups is None else speedups.Maker(SocketReport, ("_values",), ()).make


def socket_report(message: bytes, start: int, length: int, fin_received: int) -> SocketReport:
    """A report without validation, for the hot path.

    Args:
        message: One whole netlink message.
        start: Offset of ``tcp_info`` in it; 0 if there is none.
        length: Length of ``tcp_info``; 0 if there is none.
        fin_received: 1 if the peer's FIN is among the received bytes.
    """
    report: SocketReport = _make_report((message, start, length, fin_received))
    return report


class CountedReport(SocketReport):
    """A report whose bytes and packets eBPF programs counted: the last of ``_values`` is their `Totals`."""

    __slots__ = ()

    def _translated(self) -> tuple[int | None, ...]:
        return tuple(getattr(self, name) for name in COUNTS_FIELDS)


def _counted(name: str) -> Any:
    return property(lambda self: getattr(self._values[3], name), doc=getattr(Counts, name).__doc__)


def _retransmitted(values: tuple[Any, ...]) -> int | None:
    known: int | None = values[3].retransmitted_bytes
    return known


def _smoothed_rtt(values: tuple[Any, ...]) -> int | None:
    rtt = values[3].smoothed_rtt_us
    return _rtt(values) if rtt is None else round(rtt)


for _name_of_field in ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes"):
    setattr(CountedReport, _name_of_field, _counted(_name_of_field))
setattr(CountedReport, "tx_retransmitted_bytes", property(lambda self: _retransmitted(self._values)))  # noqa: B010
setattr(CountedReport, "avg_rtt_us", property(lambda self: _smoothed_rtt(self._values)))  # noqa: B010


def counted_report(message: bytes, start: int, length: int, totals: Totals) -> CountedReport:
    """A report with the counts of eBPF programs.

    Args:
        message: As for `socket_report`: everything else is read from it.
        start: As for `socket_report`.
        length: As for `socket_report`.
        totals: What the programs counted.
    """
    report: CountedReport = _new(CountedReport)
    _set_values(report, (message, start, length, totals))
    return report


def is_multipath(entry: _Reported) -> bool:
    """True for a subflow or listener of Multipath TCP: its kernel module is the socket's upper layer (``INET_DIAG_ULP_INFO``)."""
    if entry.report is None:
        return False
    message = entry.report.message
    found = find_attribute(message, ATTRIBUTES_AT, len(message), DiagAttribute.ULP_INFO)
    return found is not None and b"mptcp\0" in message[found[0] : found[0] + found[1]]


class _Reported(Protocol):
    report: SocketReport | None


def _details(message: bytes, start: int, length: int, fin: int) -> Details:
    values = (message, start, length, fin)
    try:
        attributes = decode_attributes(message, ATTRIBUTES_AT, len(message))
    except ProtocolError:  # a damaged message has the details of its fixed part
        attributes = {}
    receive_queue, write_queue, _, inode = _QUEUES.unpack_from(message, _QUEUES_AT)
    memory = attributes.get(DiagAttribute.SKMEMINFO, b"")
    segment = _u32(values, TcpInfo.SND_MSS)
    window = _u32(values, TcpInfo.SND_CWND)
    pacing = _u64(values, TcpInfo.PACING_RATE)
    # The removal of a UDP socket has leftovers here (udp_diag has no queues then); with memory the queues are real.
    queues_known = bool(length or memory) and message[HEADER.size + 1] != SocketState.LISTEN
    return Details(
        congestion_control=_name(attributes.get(DiagAttribute.CONG)),
        congestion_window=None if segment is None or window is None else segment * window,
        send_window=_u32(values, TcpInfo.SND_WND),
        unacked_bytes=_unacked(values, write_queue),
        send_buffer_size=_u32_at(memory, 12),
        send_buffer_used=write_queue if queues_known else None,
        receive_buffer_size=_u32_at(memory, 4),
        receive_buffer_used=receive_queue if queues_known else None,
        cgroup_id=_number(attributes.get(DiagAttribute.CGROUP_ID)),
        mark=_number(attributes.get(DiagAttribute.MARK)),
        delivery_rate=_u64(values, TcpInfo.DELIVERY_RATE) or None,
        pacing_rate=None if pacing in {_ALL_ONES_64, _ALL_ONES_32} else pacing,
        min_rtt_us=_min_rtt(values),
        retransmits=_u32(values, TcpInfo.TOTAL_RETRANS),
        lost=_u32(values, TcpInfo.LOST),
        mss=segment,
        path_mtu=_u32(values, TcpInfo.PMTU),
        rto_us=_u32(values, TcpInfo.RTO),
        inode=inode or None,
    )


def _unacked(values: tuple[Any, ...], write_queue: int) -> int | None:
    # The write queue is write_seq - snd_una (tcp_diag_get_info): what is in flight and what waits to be sent.
    waiting = _u32(values, TcpInfo.NOTSENT_BYTES)
    return None if waiting is None else max(0, write_queue - waiting)


def _name(value: bytes | None) -> str | None:
    return None if value is None else value.split(b"\0", 1)[0].decode("ascii", "replace")


def _number(value: bytes | None) -> int | None:
    if value is None or len(value) not in {4, 8}:
        return None
    number: int = (_U32 if len(value) == 4 else _U64).unpack(value)[0]
    return number


def _u32_at(value: bytes, at: int) -> int | None:
    if len(value) < at + 4:
        return None
    number: int = _U32.unpack_from(value, at)[0]
    return number

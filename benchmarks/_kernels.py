"""A Darwin kernel's answers as bytes, the core that follows them, and the floor of both.

The bytes are made by the library's own encoders once a flow; what changes from poll
to poll is patched in, so that a million messages are made in seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import time

from _turns import Done

from nstat_async import ntstat
from nstat_async.ntstat import Kernel, SourceAdded, SourceCounts, SourceDescription, SourceUpdate

KERNEL = "xnu-11417.121.6"
DATAGRAM = 4096
"""Bytes that the kernel collects before it hands a datagram over (``nstat_accumulate_msg``)."""
PROCESSES = 100
_GROWING = struct.Struct("<4Q")
_HEADER = struct.Struct("<QIHH")


def _sockaddr(address, port):
    return struct.pack(">BBH4s20x", 16, 2, port, address)


class Flows:
    """As many TCP flows of a macOS 15 kernel as wanted, in 100 processes, each with addresses of its own.

    Args:
        count: Flows.
        flow_ids: True: each also has a UUID of the network framework.
    """

    def __init__(self, count, *, flow_ids=False):
        self.kernel = Kernel.parse(KERNEL)
        self.flow_ids = flow_ids
        layout = self.kernel.layout
        message = layout["nstat_msg_src_update"]
        self._counts_at = message.by_name["counts"].offset
        self._stamp_at = message.size + layout["nstat_tcp_descriptor"].by_name["timestamp"].offset
        self.updates = [bytearray(self._update(ref)) for ref in range(1, count + 1)]
        self.counts = [
            bytearray(SourceCounts(srcref=ref, counts=self.counters(ref)).encode(layout)) for ref in range(1, count + 1)
        ]

    def counters(self, ref):
        sent = {"nstat_rxpackets": 10, "nstat_rxbytes": 9000, "nstat_txpackets": 5, "nstat_txbytes": 900}
        media = {"nstat_wifi_rxbytes": 9000, "nstat_wifi_txbytes": 900}
        rtt = {"nstat_min_rtt": 600 + ref % 97, "nstat_avg_rtt": 700 + ref % 89, "nstat_var_rtt": 300 + ref % 83}
        state = {"nstat_connectattempts": 1, "nstat_connectsuccesses": 1}
        return self.kernel.layout["nstat_counts"].encode({**sent, **media, **rtt, **state})

    def descriptor(self, ref, **changes):
        """The TCP descriptor of flow `ref`."""
        pid = 100 + ref % PROCESSES
        fields = {
            "upid": 1000 + pid,
            "eupid": 1000 + pid,
            "start_timestamp": 10**9 + ref * 1000,
            "timestamp": 10**13,
            "ifindex": 4,
            "state": 4,
            "sndbufsize": 131072,
            "rcvbufsize": 131072,
            "txwindow": 65535,
            "txcwindow": 14480,
            "pid": pid,
            "epid": pid,
            "local": _sockaddr(bytes((192, 0, 2, 1)), 1024 + ref % 60000),
            "remote": _sockaddr(struct.pack(">I", 0xC6330000 + ref), 443),
            "cc_algo": b"cubic",
            "pname": b"process-%d" % pid,
            "uuid": bytes([pid % 256]) * 16,
            "euuid": bytes([pid % 256]) * 16,
            "fuuid": hashlib.md5(b"%d" % ref).digest() if self.flow_ids else bytes(16),
            "uid": 501,
            "ifnet_properties": 0x8011008,
        }
        return self.kernel.layout["nstat_tcp_descriptor"].encode({**fields, **changes})

    def _update(self, ref):
        return SourceUpdate(srcref=ref, provider=2, counts=self.counters(ref), descriptor=self.descriptor(ref)).encode(
            self.kernel.layout
        )

    def poll(self, number, *, changed=True, kind="updates"):
        """The datagrams that answer one poll.

        Args:
            number: Which poll.
            changed: True: every flow received and sent something since the last poll.
            kind: ``"updates"`` or ``"counts"``.
        """
        messages = self.updates if kind == "updates" else self.counts
        step = number if changed else 0
        for ref, message in enumerate(messages, 1):
            packets = ref * 7 + step * 3
            _GROWING.pack_into(message, self._counts_at, packets, packets * 1000, packets // 2, packets * 200)
            struct.pack_into("<2Q", message, self._counts_at + 48, packets * 1000, packets * 200)
            if kind == "updates":
                struct.pack_into("<Q", message, self._stamp_at, 10**13 + number * 10**9)
        per = DATAGRAM // len(messages[0])
        return [b"".join(messages[at : at + per]) for at in range(0, len(messages), per)]


def write_bin(path, version, messages, *, changed, sources=100):
    """A headerless recording as clients of older kernels made them: one message a record.

    Args:
        path: Of the file.
        version: Of the kernel.
        messages: Reports of counts in it, beside the announcements and descriptions.
        changed: True: every report has more bytes than the one before.
        sources: Flows.
    """
    layout = Kernel.parse(version).layout
    at = layout["nstat_msg_src_counts"].by_name["counts"].offset
    places = [at + layout["nstat_counts"].by_name[name].offset for name in ("nstat_rxpackets", "nstat_rxbytes")]

    def record(message):
        encoded = message.encode(layout)
        return struct.pack("<II", 1000, len(encoded)) + encoded

    def descriptor(ref):
        codec = layout["nstat_tcp_descriptor"]
        addresses = {
            "local": _sockaddr(bytes((192, 0, 2, 1)), 1024 + ref),
            "remote": _sockaddr(b"\xc6\x33\x64\x01", 443),
        }
        fields = {
            "ifindex": 4,
            "state": 4,
            "pid": 100 + ref % 50,
            "upid": 7,
            "pname": b"process-%d" % (ref % 50),
            **addresses,
        }
        return codec.encode({name: value for name, value in fields.items() if name in codec.by_name})

    references = range(1, sources + 1)
    counts = layout["nstat_counts"].encode({})
    reports = [bytearray(record(SourceCounts(srcref=ref, counts=counts))) for ref in references]
    with open(path, "wb") as file:
        file.writelines(record(SourceAdded(srcref=ref, provider=2)) for ref in references)
        file.writelines(
            record(SourceDescription(srcref=ref, provider=2, descriptor=descriptor(ref))) for ref in references
        )
        for poll in range(messages // sources):
            if changed or not poll:
                for report in reports:
                    for place in places:
                        struct.pack_into("<Q", report, 8 + place, (poll + 1) * 1000)
            file.write(b"".join(reports))


class Follower:
    """A core of the library that follows a kernel's answers; the one place that knows how this is asked for.

    Older checkouts, which ``--against`` measures, have a class of its own for it, and take one datagram at a time.
    """

    def __init__(self, kernel, *first):
        older = getattr(ntstat, "PassiveSession", None)
        self._session = ntstat.Session(kernel, mode=ntstat.Mode.FOLLOWING) if older is None else older(kernel)
        self.take_events = self._session.take_events
        self._batch = getattr(self._session, "receive_datagrams", None)
        self.receive(first, 0.0)
        self.take_events()

    def receive(self, datagrams, now):
        """Take these datagrams in."""
        if self._batch is not None:
            self._batch(datagrams, now, 0)
        else:
            for datagram in datagrams:
                self._session.receive_datagram(datagram, now)


def events_of_polls(sources, number):
    """The events of so many polls of so many flows, a list for each poll."""
    flows = Flows(sources)
    follower, batches = Follower(flows.kernel, *flows.poll(0)), []
    for n in range(1, number + 1):
        follower.receive(flows.poll(n), float(n))
        batches.append(follower.take_events())
    return batches


def walked(datagrams):
    """The floor: receive these from an ``AF_UNIX`` datagram socket and walk their headers; what it cost."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    near.setblocking(False)
    far.setblocking(False)
    unpack, messages, span, at = _HEADER.unpack_from, 0, 0.0, 0
    while at < len(datagrams):
        with contextlib.suppress(BlockingIOError):
            while at < len(datagrams):
                far.send(datagrams[at])
                at += 1
        begin = time.process_time()
        try:
            while True:
                data = near.recv(65536)
                offset, size = 0, len(data)
                while offset < size:
                    offset += unpack(data, offset)[2]
                    messages += 1
        except BlockingIOError:
            pass
        span += time.process_time() - begin
    near.close()
    far.close()
    return Done(messages, span, messages)

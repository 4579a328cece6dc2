"""Helpers of the Darwin benchmarks: a kernel's answers as bytes, clocks, tables.

The bytes are made by the library's own encoders once a flow; what changes from poll
to poll is patched in, so that a million messages are made in seconds.
"""

from __future__ import annotations

import gc
import hashlib
import platform
import statistics
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from nstat_async.ntstat import Kernel, SourceCounts, SourceUpdate

KERNEL = "xnu-11417.121.6"
DATAGRAM = 4096
"""Bytes that the kernel collects before it hands a datagram over (``nstat_accumulate_msg``)."""
PROCESSES = 100
_GROWING = struct.Struct("<4Q")


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
            bytearray(SourceCounts(srcref=ref, counts=self._counters(ref)).encode(layout))
            for ref in range(1, count + 1)
        ]

    def _counters(self, ref):
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
        return SourceUpdate(srcref=ref, provider=2, counts=self._counters(ref), descriptor=self.descriptor(ref)).encode(
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


def clock(rounds, function, *arguments):
    """Median and best of several runs, in seconds of processor time for one unit; `function` returns (seconds, units) or the units it did."""
    spans = []
    for _ in range(rounds):
        gc.collect()
        begin = time.process_time()
        done = function(*arguments)
        span = time.process_time() - begin
        if isinstance(done, tuple):
            span, done = done
        spans.append(span / done)
    return statistics.median(spans), min(spans)


def table(title, header, rows):
    """Print a table with aligned columns."""
    print(f"\n{title}")
    cells = [header, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        print(
            "  "
            + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        )


def machine():
    """One line: what ran this."""
    model = platform.processor() or "?"
    try:
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    except OSError:
        pass
    import os

    load = "/".join(f"{value:.1f}" for value in os.getloadavg())
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {platform.system()} {platform.machine()}, {model}, {os.cpu_count()} CPUs, load {load}"

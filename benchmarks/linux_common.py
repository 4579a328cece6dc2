"""What the Linux benchmarks share: a namespace of their own, sockets to look at, and a sink.

Each benchmark runs in a network namespace of its own where it may (root), so that
the machine's traffic is neither measured nor disturbed. Loopback only.
"""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio

from nstat_async._events import PollCompleted
from nstat_async._options import MonitorOptions
from nstat_async.backends import SockDiag

_INSIDE = "NSTAT_BENCHMARK_NAMESPACE"
HOLDER = """
import socket, sys
count, number = int(sys.argv[1]), int(sys.argv[2])
listener = socket.socket()
listener.bind((f"127.1.{number}.1", 0))
listener.listen(1024)
keep = []
for _ in range(count):
    client = socket.create_connection(listener.getsockname())
    keep += [client, listener.accept()[0]]
print("ready", flush=True)
sys.stdin.readline()
"""
GENERATOR = r"""
/* make COUNT BYTES RATE: connections over loopback, one after another; or hold PORT BYTES MS: one of them. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static char buffer[1 << 20];
static int once(int listener, struct sockaddr_in *to, int bytes, int milliseconds) {
    int client = socket(AF_INET, SOCK_STREAM, 0), got = 0, n;
    if (connect(client, (void *)to, sizeof *to)) { perror("connect"); return 1; }
    int server = accept(listener, 0, 0);
    if (server < 0 || write(client, buffer, bytes) != bytes) { perror("write"); return 1; }
    while (got < bytes && (n = read(server, buffer, bytes - got)) > 0) got += n;
    if (milliseconds) usleep(milliseconds * 1000);
    close(client); close(server);
    return got != bytes;
}
int main(int argc, char **argv) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1, a = atoi(argv[2]), b = atoi(argv[3]), c = atoi(argv[4]);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(!strcmp(argv[1], "hold") ? a : 900)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (void *)&to, sizeof to) || listen(listener, 128)) { perror("bind"); return 1; }
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (!strcmp(argv[1], "hold")) return once(listener, &to, b, c);
    double start = now();
    for (int i = 0; i < a; i++) {
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK + i % 200);
        if (once(listener, &to, b, 0)) return 1;
        double ahead = start + (double)(i + 1) / c - now();
        if (ahead > 0.001) usleep(ahead * 1e6);
    }
    printf("%.6f\n", now() - start);
    return 0;
}
"""


def enter_namespace() -> None:
    """Run this program again in a network namespace of its own, if that is possible."""
    if os.environ.get(_INSIDE):
        return
    if os.geteuid() != 0 or subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        return
    setup = 'ip link set lo up; echo "15000 65500" > /proc/sys/net/ipv4/ip_local_port_range; exec "$@"'
    command = ["unshare", "-n", "sh", "-c", setup, "sh", sys.executable, *sys.argv]
    os.execvpe("unshare", command, {**os.environ, _INSIDE: "1"})


class Holders:
    """Processes that hold a number of idle connected sockets."""

    def __init__(self, sockets: int) -> None:
        limit = 9000  # connections a process: two descriptors each, under the usual hard limit
        self.processes = []
        connections, number = sockets // 2, 0
        while connections > 0:
            share = min(limit, connections)
            command = [sys.executable, "-c", HOLDER, str(share), str(number)]
            self.processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            connections -= share
            number += 1

    def __enter__(self) -> Holders:
        for process in self.processes:
            if process.stdout.readline() != "ready\n":
                sys.exit("a holder of sockets failed: raise the limit of open files")
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            process.communicate()


def generator() -> str:
    """Path of the compiled traffic generator."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("this benchmark needs a C compiler: Python cannot make connections quickly enough")
    path = Path(tempfile.mkdtemp(prefix="nstat-bench-")) / "generator"
    subprocess.run([compiler, "-O2", "-xc", "-", "-o", str(path)], input=GENERATOR, text=True, check=True)
    return str(path)


class Collector:
    """A sink that keeps events, or only counts them, and lets one wait for the next complete poll."""

    def __init__(self, *, keep: bool = True) -> None:
        self.events = []
        self.count = 0
        self.polls = 0
        self._keep = keep
        self._news = anyio.Event()

    def deliver(self, events) -> None:
        """Take events."""
        self.count += len(events)
        if self._keep:
            self.events += events
        polls = sum(type(event) is PollCompleted for event in events)
        if polls:
            self.polls += polls
            self._news.set()

    async def room(self) -> None:
        """There is always room."""

    async def until_polls(self, number: int) -> None:
        """Wait until so many polls were complete."""
        while self.polls < number:
            await self._news.wait()
            self._news = anyio.Event()


class HoldMeter:
    """The longest time that a feed kept the event loop in one go, as CPU time of the thread.

    Wall time is in the feed's own statistics; on a busy machine it holds other programs' turns too.
    """

    def __init__(self, feed) -> None:
        self.longest = 0.0
        for owner, name in ((feed, "_read"), (feed.core, "handle_deadline"), (feed.core, "lookup_done")):
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function):
        def timed(*arguments, **keywords):
            start = time.thread_time()
            try:
                return function(*arguments, **keywords)
            finally:
                self.longest = max(self.longest, time.thread_time() - start)

        return timed


def open_feed(**options):
    return SockDiag().open(MonitorOptions(**options))


def median(values) -> float:
    return statistics.median(values)


def machine() -> str:
    return f"Linux {os.uname().release}, Python {sys.version.split()[0]}, {os.cpu_count()} CPUs"


def settle(seconds: float = 0.2) -> None:
    """Let what was just started come to rest."""
    time.sleep(seconds)


__all__ = [
    "Collector",
    "HoldMeter",
    "Holders",
    "enter_namespace",
    "generator",
    "machine",
    "median",
    "open_feed",
    "settle",
    "socket",
]

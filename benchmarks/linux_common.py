"""What the Linux benchmarks share: a namespace of their own, sockets to look at, and a sink.

Each benchmark runs in a network namespace of its own where it may (root), so that
the machine's traffic is neither measured nor disturbed. Loopback only.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time

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
/* COUNT BYTES: connections over loopback, one after another; prints its processor seconds. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
static char buffer[1 << 20];
static int once(int listener, struct sockaddr_in *to, int bytes) {
    int client = socket(AF_INET, SOCK_STREAM, 0), got = 0, n;
    if (connect(client, (void *)to, sizeof *to)) { perror("connect"); return 1; }
    int server = accept(listener, 0, 0);
    if (server < 0 || write(client, buffer, bytes) != bytes) { perror("write"); return 1; }
    while (got < bytes && (n = read(server, buffer, bytes - got)) > 0) got += n;
    close(client); close(server);
    return got != bytes;
}
int main(int argc, char **argv) {
    int listener = socket(AF_INET, SOCK_STREAM, 0), count = atoi(argv[1]), bytes = atoi(argv[2]);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(900)};
    if (bind(listener, (void *)&to, sizeof to) || listen(listener, 128)) { perror("bind"); return 1; }
    for (int i = 0; i < count; i++) {
        to.sin_addr.s_addr = htonl(INADDR_LOOPBACK + i % 200);
        if (once(listener, &to, bytes)) return 1;
        if (i % 10 == 9) usleep(500);
    }
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("%.6f\n", used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6);
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


def compiled(source: str = GENERATOR) -> str:
    """Path of a compiled C program; the traffic generator if no other is given. It is removed when this process ends."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("this benchmark needs a C compiler: Python cannot make connections quickly enough")
    directory = tempfile.mkdtemp(prefix="nstat-bench-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = f"{directory}/traffic"
    subprocess.run([compiler, "-O2", "-xc", "-", "-o", path], input=source, text=True, check=True)
    return path


class HoldMeter:
    """The longest time that one callback kept an asyncio loop, as processor time of its thread, in seconds.

    It is taken around every turn of every task and reader, so it needs to know nothing of what runs there.
    """

    def __init__(self) -> None:
        self.longest = self.besides_collector = self._collected = 0.0
        self._began = 0.0

    def __enter__(self) -> HoldMeter:
        self._run = run = asyncio.Handle._run

        def timed(handle):
            self._collected, begin = 0.0, time.thread_time()
            try:
                return run(handle)
            finally:
                span = time.thread_time() - begin
                self.longest = max(self.longest, span)
                self.besides_collector = max(self.besides_collector, span - self._collected)

        asyncio.Handle._run = timed
        gc.callbacks.append(self._collector)
        return self

    def __exit__(self, *exception: object) -> None:
        asyncio.Handle._run = self._run
        gc.callbacks.remove(self._collector)

    def _collector(self, phase, _facts) -> None:
        if phase == "start":
            self._began = time.thread_time()
        else:
            self._collected += time.thread_time() - self._began

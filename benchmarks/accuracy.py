"""Who, and how much: this library beside ss, psutil, nethogs and tcplife, on the same traffic at the same time.

Run as root on Linux: ``python benchmarks/accuracy.py [--json] [--no-privilege] [--scenario NAME]``. Two network namespaces
are made, joined by a pair of interfaces; nothing leaves them. The programs that make the traffic (``_traffic.py``) say
afterwards which flows there were, whose, and of how many bytes: that is the truth. For each scenario and tool the share
of the flows in percent that the tool has *seen*, whose *owner* it names rightly (and *wrong*ly), whose bytes are within
10 %, within 1 %, and *exact*, both directions together. ss, psutil and this library look once a second. nethogs knows processes,
not flows: its figures are those of processes, and contain headers. tcplife (of libbpf-tools) reports TCP connections when they
end, in whole KB. A tool that is not installed, or does not run here, is left out, and said.

The library runs twice: without eBPF, which is what everybody has, and with it. With ``--no-privilege`` traffic and tools run
without capabilities, and what needs them (eBPF, tcplife, nethogs) is left out. The last table is by the life of a flow: how sure one can be.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from _traffic import HERE, LIVES, SCENARIOS, THERE, THERE6
from _turns import environment, machine, table
from linux_common import Holders

TRAFFIC, WATCHERS = (str(Path(__file__).with_name(name)) for name in ("_traffic.py", "_watchers.py"))
POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]
_INSIDE = "NSTAT_ACCURACY_PEER"
EBPF = "library, eBPF"
BY_PROCESS = {"nethogs"}
NEEDS_PRIVILEGE = {EBPF, "nethogs", "tcplife"}
MEASURES = ("seen", "owner", "wrong", "10 %", "1 %", "exact")
ALL_TOOLS = ("library", EBPF, "ss", "psutil", "nethogs", "tcplife")
UNSUPPORTED = 3
"""What a program returns whose traffic this kernel does not make."""


# --- two namespaces ------------------------------------------------------------------


def enter():
    """Run this program again in a network namespace of its own, beside one for the other end."""
    if os.environ.get(_INSIDE):
        return
    if sys.platform != "linux" or os.geteuid():
        sys.exit("this benchmark needs Linux and root")
    setup = 'mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null; exec "$@"'  # tcplife needs it
    command = ["unshare", "-n", "--mount", "sh", "-c", setup, "sh", sys.executable, *sys.argv]
    os.execvpe("unshare", command, {**os.environ, _INSIDE: "1"})


@contextlib.contextmanager
def other_end():
    """The server, in a namespace that is joined to this one."""
    server = subprocess.Popen(
        ["unshare", "-n", "sh", "-c", 'echo there; read go; exec "$@"', "sh", sys.executable, TRAFFIC, "serve"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    server.stdout.readline()
    inside = ["nsenter", "-n", "-t", str(server.pid)]

    def ip(text, prefix=()):
        subprocess.run([*prefix, "ip", *text.split()], check=True)

    ip("link set lo up")
    ip(f"link add here type veth peer name there netns {server.pid}")
    for prefix, name, four, six in (((), "here", HERE, "fd09::1"), (inside, "there", THERE, THERE6)):
        ip("link set lo up", prefix)
        ip(f"addr add {four}/24 dev {name}", prefix)
        ip(f"addr add {six}/64 dev {name} nodad", prefix)
        ip(f"link set {name} up", prefix)
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("15000 65500")
    server.stdin.write("go\n")
    server.stdin.flush()
    assert server.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        server.communicate()


# --- the tools -------------------------------------------------------------------------


class Tool:
    """A tool that watches, in a process of its own."""

    def __init__(self, name, prefix, directory):
        self.name = name
        self.output = Path(directory, name)
        command = {
            "nethogs": ["nethogs", "-t", "-v", "2", "-d", "1", "-C", "-a", "-b"],
            "tcplife": ["tcplife", "-w"],
        }.get(name, [*prefix, sys.executable, WATCHERS, *name.split(", ")])
        self._file = self.output.open("wb")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._file,
            stderr=None if name.startswith("library") else subprocess.DEVNULL,
            env=environment(),
        )
        self.cpu = self.memory = 0.0
        self._began = time.monotonic()

    def ready(self):
        """True once it watches; of what does not say so, after a while."""
        if self.failed:
            return True
        if self.name in {"nethogs", "tcplife"}:
            return time.monotonic() > self._began + 2
        return self.output.read_bytes().startswith(b"ready")

    @property
    def failed(self):
        """True if it does not run here."""
        return self._process.poll() is not None

    def stop(self):
        """Let it end; note what it cost."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        # ru_maxrss would be at least what this process had when it forked.
        self.memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
        if self.name in {"nethogs", "tcplife"}:
            self._process.send_signal(signal.SIGINT if self.name == "tcplife" else signal.SIGTERM)
        self._process.stdin.close()
        _, _, used = os.wait4(self._process.pid, 0)
        self._process.returncode = 0
        self._file.close()
        self.cpu = used.ru_utime + used.ru_stime

    def flows(self):
        """What it saw."""
        if self.name == "tcplife":
            return list(_lives(self.output.read_text(errors="replace")))
        return json.loads(self.output.read_text().splitlines()[-1])

    def processes(self):
        """Of nethogs: pid to bytes sent and received; pid 0 for what it could not attribute."""
        found = defaultdict(lambda: (0, 0))
        for line in self.output.read_text(errors="replace").splitlines():
            parts = line.split("\t")
            if len(parts) == 3 and parts[0].count("/") >= 2:
                pid = int(parts[0].rsplit("/", 2)[1])
                found[pid] = max(found[pid], (int(float(parts[1])), int(float(parts[2]))))
        return found


def _lives(text):
    """The flows of tcplife's lines: PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS."""
    for line in text.splitlines()[1:]:
        parts = line.split()
        if len(parts) >= 9 and parts[0].isdigit():
            local, remote, tx, rx = parts[-6], parts[-4], parts[-3], parts[-2]
            yield ["tcp", int(local), int(remote), int(parts[0]) or None, *(round(1024 * float(kb)) for kb in (tx, rx))]


def installed():
    """The tools that are here."""
    yield "library"
    for name, there in (
        (EBPF, True),
        ("tcplife", shutil.which("tcplife")),
        ("ss", shutil.which("ss")),
        ("psutil", importlib.util.find_spec("psutil")),
        ("nethogs", shutil.which("nethogs")),
    ):
        if there:
            yield name


# --- the traffic -----------------------------------------------------------------------


def traffic(name, arguments, prefix):
    """Make it; the truth, or `None` if this kernel does not know such traffic."""
    command = [*prefix, sys.executable, TRAFFIC, name, *(["short"] if arguments.short else [])]
    if name.startswith("container"):
        own = ["--net"] if "network" in name else []
        setup = f'{"ip link set lo up; " if own else ""}exec "$@"'
        command = ["unshare", "--pid", "--fork", "--uts", "--ipc", *own, "sh", "-c", setup, "sh", *command]
    with Holders(200 if arguments.short else 20_000) if "idle" in name else contextlib.nullcontext():
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode == UNSUPPORTED:
        return None
    if answer.returncode:
        sys.exit(f"the traffic of {name!r} failed with status {answer.returncode}")
    return [json.loads(line) for line in answer.stdout.splitlines()]


# --- the judgement -----------------------------------------------------------------------


def near(moved, true, share):
    """True if both counts are known, and what they are off by is no more than this share of what was moved."""
    return None not in moved and sum(abs(a - b) for a, b in zip(moved, true, strict=True)) <= share * sum(true)


def judge(truth, found):
    """Shares in percent of these flows, by what was found for each: (pid, sent, received), or `None`.

    ``off`` has the commonest differences from the truth, (sent, received), with their number.
    """
    hits, off = dict.fromkeys(MEASURES, 0), Counter()
    for flow in truth:
        answer = found(flow)
        if answer is None:
            continue
        pid, *moved = answer
        hits["seen"] += 1
        hits["owner"] += pid == flow["pid"]
        hits["wrong"] += pid not in {None, flow["pid"]}
        for measure, share in (("10 %", 0.1), ("1 %", 0.01), ("exact", 0.0)):
            hits[measure] += near(moved, (flow["tx"], flow["rx"]), share)
        off[tuple(None if a is None else a - b for a, b in zip(moved, (flow["tx"], flow["rx"]), strict=True))] += 1
    shares = {measure: round(100 * count / max(1, len(truth)), 1) for measure, count in hits.items()}
    return {**shares, "off": off.most_common(5)}


def by_flow(flows):
    """How to find a flow of the truth in what a tool saw."""
    index = {}
    for proto, local, remote, *facts in flows:
        key = ("udp" if proto == "udp" else "tcp", local, remote)
        before = index.get(key)
        # One connection may have several entries (MPTCP): the one with the bytes is meant.
        if before is None or (facts[1] or 0) + (facts[2] or 0) >= (before[1] or 0) + (before[2] or 0):
            index[key] = facts if before is None or facts[0] is not None else [before[0], *facts[1:]]
    return lambda flow: index.get((flow["proto"], flow["local"], flow["remote"]))


def by_process(truth, processes):
    """The same for a tool that knows processes only: each is one flow with the sums of its own."""
    sums = {}
    for flow in truth:
        whole = sums.setdefault(flow["pid"], {**flow, "tx": 0, "rx": 0})
        whole["tx"] += flow["tx"]
        whole["rx"] += flow["rx"]
    return list(
        sums.values()
    ), lambda flow: (flow["pid"], *processes[flow["pid"]]) if flow["pid"] in processes else None


def run(arguments):
    """Make the traffic beside the tools; the result as one object."""
    prefix = POWERLESS if arguments.no_privilege else []
    names = [name for name in SCENARIOS if not arguments.scenario or name in arguments.scenario]
    with tempfile.TemporaryDirectory() as directory, other_end():
        wanted = [name for name in installed() if not (arguments.no_privilege and name in NEEDS_PRIVILEGE)]
        tools = [Tool(name, prefix, directory) for name in wanted]
        for tool in tools:
            while not tool.ready():
                time.sleep(0.05)
        left_out = sorted({*ALL_TOOLS} - {tool.name for tool in tools if not tool.failed})
        if "library" in left_out:
            sys.exit("the library does not run here")
        tools = [tool for tool in tools if not tool.failed]
        begin, truths = time.monotonic(), {}
        for name in names:
            truths[name] = traffic(name, arguments, prefix)
            time.sleep(0.2)
        time.sleep(1.2)  # a look of each after the last
        for tool in tools:
            tool.stop()
        seconds = time.monotonic() - begin
        judged = {tool.name: tool.processes() if tool.name in BY_PROCESS else by_flow(tool.flows()) for tool in tools}
    rows = []
    for name, truth in truths.items():
        row = {"scenario": name, "flows": None if truth is None else len(truth), "tools": {}}
        for tool, found in judged.items() if truth is not None else ():
            row["tools"][tool] = judge(*by_process(truth, found)) if tool in BY_PROCESS else judge(truth, found)
        rows.append(row)
    costs = {tool.name: {"cpu_percent": 100 * tool.cpu / seconds, "memory_mib": tool.memory} for tool in tools}
    return {
        "machine": machine(),
        "privileged": not arguments.no_privilege,
        "seconds": seconds,
        "left_out": left_out,
        "rows": rows,
        "costs": costs,
    }


def show(result):
    """Print it as tables: a scenario a line, a tool a table, and the sums."""
    for tool, cost in result["costs"].items():
        lines = []
        for row in result["rows"]:
            if row["flows"] is None:
                lines.append([row["scenario"], "not here", *[""] * len(MEASURES)])
            else:
                lines.append([row["scenario"], row["flows"], *(f"{row['tools'][tool][m]:.0f}" for m in MEASURES)])
        table(
            f"{tool}: {cost['cpu_percent']:.1f} % of a CPU, {cost['memory_mib']:.0f} MiB",
            ["percent of", "flows", *MEASURES],
            lines,
        )
    known = [row["tools"] for row in result["rows"] if row["flows"] is not None]
    sums = [
        [tool, *(sum(row[tool][m] == (0 if m == "wrong" else 100) for row in known) for m in MEASURES)]
        for tool in result["costs"]
    ]
    table(f"of {len(known)} scenarios, right for all flows (wrong: for none)", ["", *MEASURES], sums)
    lives = {row["scenario"]: row["tools"] for row in result["rows"] if row["flows"] is not None}
    shown = [(ms, lives[f"life {ms} ms"]) for ms in LIVES if f"life {ms} ms" in lives]
    table(
        "by the life of a flow: owner right / bytes exact, percent",
        ["milliseconds", *result["costs"]],
        [
            [ms, *(f"{found[tool]['owner']:.0f} / {found[tool]['exact']:.0f}" for tool in result["costs"])]
            for ms, found in shown
        ],
    )
    if result["left_out"]:
        print(f"left out, not installed or not possible here: {', '.join(result['left_out'])}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only this one (repeatable)")
    parser.add_argument("--no-privilege", action="store_true", help="without capabilities")
    parser.add_argument("--short", action="store_true", help="fewer flows")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    enter()
    result = run(arguments)
    if arguments.json:
        print(json.dumps(result))
    else:
        print(result["machine"])
        show(result)


if __name__ == "__main__":
    main()

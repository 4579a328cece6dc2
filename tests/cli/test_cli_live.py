"""The commands on an emulated kernel, in this process or behind a socket."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time

import conversations
import forked
import pytest
from replaying import failed_run
from support import PYTHON, run, run_json

from nstat_async import NstatError
from nstat_async._cli import _processes, _workload
from nstat_async.testing import EmulatedKernel

KERNEL = "xnu-11417.121.6"


@pytest.fixture
def served(tmp_path):
    """An emulated kernel with known flows behind a socket: (kernel, options for the command line)."""
    kernel = EmulatedKernel(KERNEL, clock=time.monotonic)
    server = kernel.serve_unix(str(tmp_path / "s"))
    yield kernel, ("--backend", f"unix:{tmp_path / 's'}", "--kernel", KERNEL)
    server.close()


def test_snapshot_lists_the_flows_of_the_moment(served):
    kernel, options = served
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=10, tx=20)
    kernel.open_tcp(88, "sshd").listen(("0.0.0.0", 22))
    kernel.open_udp(53, "dns", remote=("127.0.0.1", 53), interface="lo0")
    lines = run_json("snapshot", "--json", *options)
    assert {line["flow"]["process"]["name"] for line in lines} == {"curl", "sshd", "dns"}
    assert all(line["v"] == 1 and line["event"] == "flow" for line in lines)
    (curl,) = (line for line in lines if line["flow"]["process"]["pid"] == 501)
    assert (curl["counts"]["rx_bytes"], curl["counts"]["tx_bytes"]) == (10, 20)
    status, out, _ = run("snapshot", *options)
    assert status == 0
    assert "198.51.100.7:443" in out
    assert re.search(r"\b501  curl ", out)


def test_filters_choose_the_flows(served):
    kernel, options = served
    for pid, name, remote in ((1, "a", "198.51.100.7"), (2, "b", "198.51.100.7"), (2, "b", "127.0.0.1")):
        kernel.open_tcp(pid, name, remote=(remote, 443), interface="lo0" if remote == "127.0.0.1" else "en0")
    kernel.open_udp(3, "c", remote=("198.51.100.7", 53))

    def shown(*more: str) -> list[tuple[int, str]]:
        lines = run_json("snapshot", "--json", *options, *more)
        return sorted((line["flow"]["process"]["pid"], line["flow"]["remote"]["address"]) for line in lines)

    assert shown("--pid", "1", "--pid", "3") == [(1, "198.51.100.7"), (3, "198.51.100.7")]
    assert shown("--process", "b") == [(2, "127.0.0.1"), (2, "198.51.100.7")]
    assert shown("--process", "b", "--no-loopback") == [(2, "198.51.100.7")]
    assert shown("--pid", "1", "--process", "b") == []
    assert shown("--provider", "udp") == [(3, "198.51.100.7")]
    assert len(shown("--provider", "udp", "--provider", "tcp")) == 4


def reported(kernel, polls=1):
    """So many polls of a client are over: what moves from now on is news to it."""
    return any(source.sequence >= polls for client in list(kernel.clients) for source in list(client.sources.values()))


@contextlib.contextmanager
def stopped_once(condition, work=lambda: None):
    """Stops the command that runs in this thread, by a signal and after some work, once a condition holds."""
    left = threading.Event()

    def watch() -> None:
        while not condition():
            if left.wait(0.01):
                return
        work()
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


def test_processes_has_exact_totals_also_of_flows_that_are_gone(served):
    """What moved while it watched is counted to the byte: closed flows, and what no regular poll came to tell."""
    kernel, options = served
    old = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1_000_000)

    def work() -> None:
        old.transfer(rx=111, tx=222)
        short = kernel.open_tcp(777, "short", remote=("198.51.100.8", 80))
        short.transfer(rx=5, tx=7)
        short.close()

    with stopped_once(lambda: reported(kernel), work):
        lines = run_json("processes", "--json", "--duration", "100", "--interval", "30", *options)
    rows = {line["pid"]: line for line in lines}
    assert (rows[501]["rx_bytes"], rows[501]["tx_bytes"], rows[501]["open_flows"]) == (111, 222, 1)
    assert (rows[777]["rx_bytes"], rows[777]["tx_bytes"], rows[777]["open_flows"]) == (5, 7, 0)
    assert list(rows[501])[:12] == [
        "v", "time", "pid", "name", "flows", "open_flows", "rx_bytes", "tx_bytes", "rx_packets", "tx_packets",
        "rx_rate", "tx_rate",
    ]  # fmt: skip


@contextlib.contextmanager
def twenty_connections():
    """A port, and a function that opens and ends twenty connections to it, of 1000 bytes each."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def work() -> None:
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0] as server:
                    client.sendall(bytes(1000))
                    assert len(server.recv(1000, socket.MSG_WAITALL)) == 1000

        yield port, work


def test_a_recording_has_what_came_after_the_last_regular_poll(served, tmp_path):
    kernel, options = served
    path, flow = tmp_path / "r.nstat", kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1_000_000)
    with stopped_once(lambda: reported(kernel), lambda: flow.transfer(rx=111, tx=222)):
        assert run("record", path, "--duration", "100", "--interval", "30", *options)[0] == 0
    (row,) = run_json("processes", "--json", "--backend", f"replay:{path}")
    assert (row["rx_bytes"], row["tx_bytes"]) == (1_000_111, 222)  # of a recording, all that flows had carried


def test_a_history_has_what_came_after_the_last_regular_poll(served, tmp_path):
    kernel, options = served
    path, flow = tmp_path / "h.db", kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1_000_000)
    with stopped_once(lambda: path.exists() and reported(kernel), lambda: flow.transfer(rx=111, tx=222)):
        assert run("history", path, "--record", "--duration", "100", "--interval", "30", *options)[0] == 0
    (row,) = run_json("history", "--json", path)
    assert (row["rx_bytes"], row["tx_bytes"]) == (111, 222)


@pytest.mark.linux
def test_processes_counts_what_ended_just_before_it_is_stopped(monkeypatch):
    """On Linux without eBPF an end waits for the other one, and is no event of the first poll after it."""
    begun, begin = threading.Event(), _processes._begun

    async def told(monitor) -> None:
        await begin(monitor)
        begun.set()

    monkeypatch.setattr(_processes, "_begun", told)
    with twenty_connections() as (port, work):
        options = ("--ebpf", "off", "--by", "provider", "--filter", f"port={port}", "--interval", "30")
        with stopped_once(begun.is_set, work):
            status, out, _ = run("processes", "--json", "--duration", "100", *options)
    row = json.loads(out)
    assert status == 0
    assert (row["open_flows"], row["flows"], row["rx_bytes"], row["tx_bytes"]) == (1, 41, 20_000, 20_000)


def test_processes_stopped_by_a_signal_still_prints_its_table(served):
    kernel, options = served
    flow = kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1_000)
    command = [PYTHON, "-m", "nstat_async", "processes", "--json", "--include-history", *options]
    process = forked.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not reported(kernel):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    flow.transfer(rx=5)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")
    assert json.loads(out)["rx_bytes"] == 1_005


def test_processes_prints_a_table_at_each_interval(served):
    kernel, options = served
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=1)
    command = [PYTHON, "-m", "nstat_async", "processes", "--every", "0.1", "--interval", "0.05", *options]
    with forked.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline()]
        while lines[-1] and sum("PROCESS" in line for line in lines) < 3:
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert sum("PROCESS" in line for line in lines) == 3
    assert "curl" in "".join(lines)


def test_processes_of_a_recording_are_its_totals(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(conversations.raw("stack/xnu-11417.121.6/b_tcp_loopback"))
    rows = run_json("processes", "--json", "--backend", f"replay:{path}")
    events = run_json("replay", path, "--json")
    last = {e["flow"]["id"]: e["counts"] for e in events if e["event"].startswith("flow_") and e["counts"]}
    assert sum(row["rx_bytes"] or 0 for row in rows) == sum(c["rx_bytes"] for c in last.values())
    assert sum(row["tx_bytes"] or 0 for row in rows) == sum(c["tx_bytes"] for c in last.values())


def test_a_recording_replays_to_what_was_seen(served, tmp_path):
    """`record`, then `replay`, `messages` and `processes` on the file."""
    kernel, options = served
    kernel.open_tcp(501, "curl", remote=("198.51.100.7", 443), rx=10, tx=20)
    path = tmp_path / "session.nstat"
    with stopped_once(lambda: reported(kernel, 2)):  # it asks for the second when it has read the first
        (summary,) = run_json("record", path, "--interval", "0.05", "--json", *options)
    assert summary["bytes"] == path.stat().st_size > 0
    assert summary["events"] > 0
    (added,) = (event for event in run_json("replay", path, "--json") if event["event"] == "flow_added")
    assert (added["flow"]["process"]["name"], added["counts"]["rx_bytes"]) == ("curl", 10)
    kinds = {line["type"] for line in run_json("messages", path)}
    assert {"ADD_ALL_SRCS", "SUCCESS", "SRC_UPDATE", "GET_UPDATE"} <= kinds


def test_record_replaces_recordings_and_nothing_else(served, tmp_path):
    _, options = served
    path = tmp_path / "thesis.txt"
    path.write_text("years of work\n")
    status, _, err = run("record", path, "--duration", "0.1", *options)
    assert (status, path.read_text()) == (1, "years of work\n")
    assert "--force" in err
    for _ in range(2):
        assert run("record", path, "--duration", "0.1", "--force", *options)[0] == 0
        options = tuple(option for option in options if option != "--force")
    assert run("record", path, "--duration", "0.1", *options)[0] == 0


def test_replay_keeps_every_record_whatever_the_reader_does(tmp_path):
    """`--speed` and `--quiet` change when and whether lines appear, not which."""
    path = tmp_path / "r.jsonl"
    path.write_bytes(conversations.raw("stack/xnu-11417.121.6/c_udp"))
    plain = run("replay", path, "--json")[1]
    assert run("replay", path, "--json", "--speed", "1e9")[1] == plain
    status, out, err = run("replay", path, "--quiet")
    assert (status, out) == (0, "")
    assert err == f"nstat-async: {plain.count(chr(10))} events\n"


def test_quiet_says_how_often_events_were_lost(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(conversations.raw("control/xnu-10063.141.1/buffer_full_adds"))
    lost = [event for event in run_json("replay", path, "--json") if event["event"] == "events_lost"]
    assert len(lost) > 1
    assert run("replay", path, "--quiet")[2].endswith(f" events, {len(lost)} gaps\n")


@pytest.fixture
def failed(tmp_path):
    """The path of a recording of a run that failed."""
    path = tmp_path / "failed.nstat"
    path.write_bytes(failed_run())
    return path


WHY = "nstat-async: error: the recorded run failed: subscription to connection: the kernel refused every provider"


def test_the_replay_of_a_run_that_failed_ends_as_the_run_did(failed):
    status, out, err = run("replay", failed, "--json")
    assert (status, [json.loads(line)["event"] for line in out.splitlines()]) == (1, ["provider_refused"])
    assert err.startswith(WHY)
    status, out, err = run("replay", failed, "--quiet")
    assert (status, out, err.splitlines()[0]) == (1, "", "nstat-async: 1 event")
    assert err.splitlines()[1].startswith(WHY)


def test_the_totals_of_a_run_that_failed_are_printed(failed):
    status, out, err = run("processes", "--backend", f"replay:{failed}")
    assert (status, out.split()[:2]) == (1, ["PID", "PROCESS"])
    assert err.startswith(WHY)


def test_quiet_counts_nothing_where_there_is_no_recording(tmp_path):
    path = tmp_path / "empty.nstat"
    path.write_bytes(b"")
    status, out, err = run("replay", path, "--quiet")
    assert (status, out, err.count("\n")) == (1, "", 1)


def test_a_replay_takes_the_interval_of_watch_without_effect(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(conversations.raw("stack/xnu-11417.121.6/live_demo"))
    assert run("replay", str(path), "--json", "--interval", "2") == run("replay", str(path), "--json")


def test_replay_filters_by_provider(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(conversations.raw("stack/xnu-11417.121.6/live_demo"))
    events = run_json("replay", path, "--json", "--provider", "udp")
    assert {
        event["flow"]["provider"] for event in events if "flow" in event and event["event"] != "poll_completed"
    } == {"udp"}


def test_a_bin_file_needs_its_kernel(tmp_path):
    path = tmp_path / "old.bin"
    datagrams = conversations.datagrams("stack/xnu-7195.141.2/b_tcp_loopback")
    path.write_bytes(b"".join(struct.pack("<II", 5, len(data)) + data for data in datagrams))
    assert run("replay", path)[0] == 1
    events = run_json("replay", path, "--json", "--kernel", "xnu-7195.141.2")
    assert any(event["event"] == "flow_removed" for event in events)


def test_a_script_drives_the_emulated_kernel(tmp_path):
    kernel = EmulatedKernel(KERNEL)
    path = tmp_path / "script"
    steps = [
        {"do": "open", "flow": "a", "kind": "tcp", "pid": 7, "name": "x", "remote": "[2001:db8::1]:443"},
        {"at": 1, "do": "transfer", "flow": "a", "rx": 10, "tx": 20},
        {"at": 2, "do": "close", "flow": "nobody"},
        {"at": 3, "do": "close", "flow": "a"},
    ]
    path.write_text("{1")
    with pytest.raises(NstatError, match=r"line 1: no JSON \("):
        _workload.read_script(str(path))
    path.write_text("\n".join(map(json.dumps, steps)))
    trouble: list[str] = []
    _workload.Script(kernel, _workload.read_script(str(path)), trouble.append).start()
    kernel.advance(1.5)
    (flow,) = kernel.flows()
    assert (flow.rx_bytes, flow.tx_bytes) == (10, 20)
    assert trouble == []
    kernel.advance(5)
    assert len(trouble) == 1
    assert "line 3" in trouble[0]
    assert not flow.open


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"do": "fly", "flow": "a"}', '{"do": "close"}', '{"at": -1, "do": "close", "flow": "a"}']
)
def test_a_script_that_is_none_is_status_1_and_names_the_line(line, tmp_path):
    path = tmp_path / "script"
    path.write_text(line)
    status, _, err = run("emulate", "--listen", tmp_path / "s", "--script", path)
    assert status == 1
    assert f"{path}, line 1" in err
    assert not (tmp_path / "s").exists()


def test_a_socket_that_nobody_serves_is_status_1(tmp_path):
    status, out, err = run("watch", "--backend", f"unix:{tmp_path / 'none'}", "--kernel", KERNEL)
    assert (status, out, err.count("\n")) == (1, "", 1)

"""A history: nothing lost but the open bucket, nothing counted twice, read back by name and time."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import types
import zlib
from datetime import datetime, timezone

import anyio
import attrs
import forked
import pytest
from aggregate_events import (
    CURL,
    SSHD,
    FakeMonitor,
    added,
    counts,
    flow,
    lost,
    polled,
    removed,
    until,
    updated,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from nstat_async._errors import UsageError
from nstat_async._events import LossCause
from nstat_async._model import Outcome, Process
from nstat_async.aggregate import History, HistoryError, HistoryWriter, ProcessTable, _schema, keep_history
from nstat_async.aggregate import _sqlite as module


@pytest.fixture
def path(tmp_path):
    return tmp_path / "history.db"


def usage(path, *span, **options):
    with History(path) as history:
        return [(each.name, each.rx_bytes, each.flows) for each in history.usage(*span, **options)]


def test_traffic_is_written_bucket_by_bucket_and_read_back(path):
    a, b = flow("a"), flow("b", SSHD)
    with HistoryWriter(path, bucket=60) as writer:
        writer.feed_many([added(a, 1000, counts(100, 7)), updated(a, 1010, counts(150, 7))])
        assert writer.pending == 0
        writer.feed_many([added(b, 1025, counts(30)), polled(1090), updated(a, 1095, counts(1150, 7))])
        assert writer.pending == 2
        writer.write()
        assert usage(path) == [("curl", 150, 1), ("sshd", 30, 1)]
    assert usage(path) == [("curl", 1150, 1), ("sshd", 30, 1)]
    assert usage(path, 1020, 1080) == [("sshd", 30, 1)]
    assert usage(path, until=1020) == [("curl", 150, 1)]
    assert usage(path, name="sshd") == [("sshd", 30, 1)]
    week = datetime.fromtimestamp(1020, timezone.utc)
    assert usage(path, week) == [("curl", 1000, 0), ("sshd", 30, 1)]
    assert writer.statistics() == {"buckets_written": 3, "rows_written": 3, "buckets_pending": 0, "failed_writes": 0}


def test_the_backlog_of_a_machine_goes_into_its_bucket_and_costs_no_look_at_all_rows_for_each_event(path):
    """It comes between the events of the other machines of the fleet."""
    live, late = flow("a/1", host="a"), flow("b/1", host="b")
    with HistoryWriter(path, bucket=60) as writer:
        writer.feed_many([added(late, 990, counts(0)), added(live, 2000, counts(0))])
        batch = []
        for number in range(1, 21):
            batch += [updated(late, 1000 + number, counts(number)), updated(live, 2000 + number, counts(100 * number))]
        writer.feed_many(batch)
        assert writer.pending <= 3
    with History(path) as history:
        spans = [(each.begin, each.rx_bytes) for each in history.timeline(60)]
    assert spans == [(960, 19), (1020, 1), (1980, 2000)]


def test_processes_are_told_apart_or_joined_by_name(path):
    again = attrs.evolve(CURL, pid=43, unique_pid=4300, path="/usr/bin/curl")
    with HistoryWriter(path, source="laptop") as writer:
        writer.feed_many([added(flow("a"), 1, counts(5)), added(flow("b", again), 2, counts(6)), lost(3, 2, counts(4))])
        writer.feed(added(flow("c", None), 3, counts(3)))
    assert usage(path) == [("curl", 11, 2), (None, 4, 2), (None, 3, 1)]
    with History(path) as history:
        rows = history.usage(by="process")
        assert [(row.pid, row.unique_pid, row.path, row.kind, row.bytes) for row in rows] == [
            (43, 4300, "/usr/bin/curl", "group", 6),
            (42, 4200, None, "group", 5),
            (None, None, None, "lost", 4),
            (None, None, None, "unknown", 3),
        ]
        assert rows[0].source == "laptop"
        assert (rows[0].begin, rows[0].end) == (0, 300)


def test_a_timeline_adds_buckets_up_into_steps(path):
    a = flow("a")
    with HistoryWriter(path, bucket=60) as writer:
        writer.feed(added(a, 0, counts(0)))
        writer.feed_many(updated(a, minute * 60 + 1, counts(minute * 10)) for minute in range(1, 121))
    with History(path) as history:
        hours = history.timeline(3600)
        assert [(hour.begin, hour.end, hour.rx_bytes) for hour in hours] == [
            (0, 3600, 590),
            (3600, 7200, 600),
            (7200, 7260, 10),
        ]
        assert [each.rx_bytes for each in history.timeline(90.5, 60, 400, name="curl")] == [10, 20, 10, 20]
        assert history.timeline(3600, name="nobody") == []


def test_gaps_are_part_of_the_history(path):
    with HistoryWriter(path, bucket=60) as writer:
        writer.feed_many([lost(1, None, None, LossCause.GOODBYE), lost(2, 3, None, LossCause.GOODBYE)])
        writer.feed_many([lost(70, 2, counts(9)), polled(200)])
    with History(path) as history:
        assert [attrs.astuple(gap) for gap in history.gaps()] == [(0, "goodbye", 2, 3), (60, "overflow", 1, 2)]
        assert history.gaps(60, 120)[0].cause == "overflow"


def test_pieces_of_a_bucket_add_up_over_restarts(path):
    for part in range(3):
        with HistoryWriter(path, bucket=60) as writer:
            writer.feed_many([added(flow("a"), 10 + part, counts(100)), lost(11, 1, None, LossCause.BATCH)])
            writer.flush()
            writer.feed(updated(flow("a"), 20 + part, counts(110)))
    assert usage(path) == [("curl", 330, 3)]
    with History(path) as history:
        assert history.gaps()[0].events == 3


@given(
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 300), st.floats(-100, 200), st.booleans()), max_size=40)
)
@settings(max_examples=examples(20), deadline=None)
def test_the_sums_of_all_buckets_are_the_sums_of_the_table(tmp_path_factory, steps):
    """Whatever the clock does and whenever it is flushed."""
    path = tmp_path_factory.mktemp("history") / "h.db"
    table, time, totals = ProcessTable(), 1e6, {}
    with HistoryWriter(path, bucket=60, max_finished=1) as writer:
        for number, amount, gap, close in steps:
            time += gap
            a = flow(str(number), Process(number, f"p{number}"))
            totals[number] = totals.get(number, 0) + amount
            event = removed(a, time, counts(totals.pop(number))) if close else updated(a, time, counts(totals[number]))
            for each in (writer, table):
                each.feed(event)
            if close:
                writer.flush()
    assert sum(row[1] for row in usage(path)) == table.total().rx_bytes
    assert sum(row[2] for row in usage(path)) == table.total().flows


def test_old_buckets_are_deleted_and_so_are_their_processes(path):
    with HistoryWriter(path, bucket=60, keep=600) as writer:
        for number in range(100):
            a = flow(str(number), Process(number, f"p{number}"))
            writer.feed(added(a, number * 60, counts(1)))
            writer.feed(removed(a, number * 60, counts(1)))
            writer.write()
    with History(path) as history:
        assert len(history.usage()) == 13  # by the third newest bucket, which is two behind
        assert history.usage(by="process")[0].begin >= 87 * 60
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM process").fetchone()[0] == 13
    connection.close()


def test_a_crash_loses_at_most_the_open_bucket(path):
    """A process that is killed without warning leaves every bucket it had written."""
    program = f"""
        import sys
        sys.path[:0] = {sys.path!r}
        from aggregate_events import *
        from nstat_async.aggregate import HistoryWriter
        writer = HistoryWriter({str(path)!r}, bucket=60)
        a = flow("a")
        writer.feed(added(a, 0, counts(0)))
        for minute in range(1, 1000):
            writer.feed(updated(a, minute * 60, counts(minute * 10)))
            writer.write()
            print(minute, flush=True)
    """
    with forked.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as child:
        for line in child.stdout:
            if int(line) >= 20:
                break
        os.kill(child.pid, signal.SIGKILL)
        seen = max([20, *(int(line) for line in child.stdout if line.strip())])
    (row,) = usage(path)
    assert row[1] >= (seen - 1) * 10


def test_a_file_that_cannot_be_written_keeps_its_buckets_waiting(path, monkeypatch):
    """While another program locks it nothing is lost; what waits is bounded, and written later."""
    monkeypatch.setattr(module, "MAX_PENDING_BUCKETS", 4)
    a = flow("a")
    with HistoryWriter(path, bucket=60) as writer:
        writer._connection.execute("PRAGMA busy_timeout=1")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        writer.feed_many([added(a, 0, counts(0)), lost(0, 1, None, LossCause.BATCH)])
        for minute in range(1, 11):
            writer.feed(updated(a, minute * 60, counts(minute * 10)))
            with pytest.raises(HistoryError, match="cannot be written: database is locked") as caught:
                writer.flush() if minute == 10 else writer.write()
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert writer.pending == 4
        assert writer.statistics()["failed_writes"] == 10
        other.execute("ROLLBACK")
        other.close()
        writer.write()
    assert usage(path) == [("curl", 100, 1)]


def test_what_waits_for_a_file_for_long_has_a_bound_and_all_bytes(path, monkeypatch):
    """However many buckets became one: programs, remote addresses and outcomes of it are those of one bucket."""
    monkeypatch.setattr(module, "MAX_PENDING_BUCKETS", 2)
    with HistoryWriter(path, bucket=60, max_rows=3, remotes=3) as writer:
        for minute in range(40):
            process = Process(minute, f"p{minute}", unique_pid=minute)
            each = flow(str(minute), process, remote=f"192.0.2.{minute}", outcome=Outcome.CLOSED_HERE)
            time = minute * 60
            writer.feed_many([added(each, time, counts(0)), removed(each, time + 1, counts(minute + 1))])
        oldest = writer._pending[0]
        assert writer.pending == 2
        assert len(oldest.rows) <= 3 + 2
        assert len(oldest.remotes) <= 3 + 2
        assert len(oldest.outcomes) == 1
    with History(path) as history:
        for by in ("name", "remote", "outcome"):
            assert sum(each.rx_bytes for each in history.usage(by=by)) == sum(range(1, 41))


def test_outcomes_are_counted_where_flows_end_with_what_they_carried(path):
    """Those that are known, also when many buckets wait; a file of before has none, and gets them when it is written."""
    refused, closed, unknown = (
        flow("a", outcome=Outcome.REFUSED),
        flow("b", outcome=Outcome.CLOSED_HERE),
        flow("c"),
    )
    with HistoryWriter(path, bucket=60) as writer:
        writer.feed_many([added(closed, 1000, counts(1)), removed(refused, 1010, counts(0))])
        writer.feed_many([removed(closed, 1090, counts(70, 9)), removed(unknown, 1091, counts(5))])
        writer.feed_many([removed(refused, 1100), polled(1200)])
    with History(path) as history:
        found = history.usage(by="outcome")
        assert [(each.outcome, each.flows, each.uncounted_flows, each.rx_bytes, each.tx_bytes) for each in found] == [
            (Outcome.CLOSED_HERE, 1, 0, 70, 9),
            (Outcome.REFUSED, 2, 1, 0, 0),
        ]
        assert [each.outcome for each in history.usage(until=1020, by="outcome")] == [Outcome.REFUSED]
        with pytest.raises(UsageError, match="not kept for each process"):
            history.usage(name="curl", by="outcome")


def test_a_user_has_the_name_that_its_machine_gave_it(path):
    """In some rows it may be missing: the user is the same. The command line is kept for each process."""
    named = attrs.evolve(CURL, user="mona", command_line="curl -s https://example.org")
    with HistoryWriter(path) as writer:
        writer.feed_many([added(flow("a", CURL), 1000, counts(1)), removed(flow("a", CURL), 1000, counts(1))])
        writer.feed_many([added(flow("b", named), 2000, counts(2)), removed(flow("b", named), 2000, counts(2))])
    with History(path) as history:
        (user,) = history.usage(by="user")
        assert (user.uid, user.user, user.rx_bytes) == (501, "mona", 3)
        assert {each.process.command_line for each in history.usage(by="process")} == {None, named.command_line}


@pytest.mark.parametrize("before", [(), (lost(62, 7, None, LossCause.LIMIT),)])
def test_what_a_bucket_cannot_hold_is_a_gap(before, path):
    with HistoryWriter(path, bucket=60, remotes=5) as writer:
        writer.feed_many(
            [added(flow("a"), 1, counts(module._LARGEST)), added(flow("b"), 61, counts(module._LARGEST + 1)), *before]
        )
        writer.feed(added(flow("c", Process(2, "idle")), 63, counts(1)))
    with History(path) as history:
        assert sum(each.rx_bytes for each in history.usage()) == 2 * module._LARGEST + 1
        assert [attrs.astuple(gap) for gap in history.gaps()] == [(60, "limit", *((2, 8) if before else (1, 1)))]


def test_what_is_no_unicode_in_a_name_is_stored_as_other_outputs_write_it_and_found_by_it(path):
    with HistoryWriter(path) as writer:
        writer.feed(added(flow("a", Process(1, "bad\udcff<b>")), 1, counts(2**63)))
    assert usage(path) == [("bad\ufffd<b>", module._LARGEST, 1)]
    with History(path) as history:
        assert [each.name for each in history.usage(name="bad\udcff<b>")] == ["bad\ufffd<b>"]


def test_files_that_are_no_history_are_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but long enough to be looked at by SQLite" * 20)
    foreign = tmp_path / "foreign.db"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()
    newer = tmp_path / "newer.db"
    HistoryWriter(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    for make in (History, HistoryWriter):
        with pytest.raises(HistoryError, match="no history: file is not a database"):
            make(text)
        with pytest.raises(HistoryError, match="a database of something else"):
            make(foreign)
        with pytest.raises(HistoryError, match="version 99"):
            make(newer)
    with pytest.raises(HistoryError, match="cannot be opened"):
        History(tmp_path / "absent.db")
    with pytest.raises(HistoryError, match="cannot be opened"):
        HistoryWriter(tmp_path / "absent" / "h.db")
    assert not (tmp_path / "absent.db").exists()


def test_whoever_wants_to_read_a_file_that_is_not_there_does_not_hear_of_writing(tmp_path, monkeypatch):
    def fails(*_args, **_options):
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(_schema.os, "access", lambda *_: False)  # as for a user who may not write there
    monkeypatch.setattr(_schema.sqlite3, "connect", fails)
    with pytest.raises(HistoryError, match=r"cannot be opened: No such file"):
        History(tmp_path / "absent.db")
    with pytest.raises(HistoryError, match=r"cannot be opened: no file may be created in"):
        HistoryWriter(tmp_path / "absent.db")


@pytest.mark.skipif(not hasattr(os, "statvfs"), reason="this system does not tell")
@pytest.mark.parametrize(("free", "says"), [(15, "No space left on device"), (16, "disk I/O error")])
def test_a_full_disk_is_called_that(free, says, tmp_path, monkeypatch):
    """SQLite says "disk I/O error" where it cannot make the list of its log's pages."""

    def fails(*_args, **_options):
        raise sqlite3.OperationalError("disk I/O error")

    (tmp_path / "h.db").touch()
    facts = types.SimpleNamespace(f_bavail=free, f_frsize=4096, f_flag=0)
    monkeypatch.setattr(_schema.sqlite3, "connect", fails)
    monkeypatch.setattr("nstat_async._io.sqlite.os.statvfs", lambda _: facts)
    with pytest.raises(HistoryError, match=f"cannot be opened: {says}"):
        HistoryWriter(tmp_path / "h.db")


def test_reading_changes_nothing_and_leaves_no_file_behind(path):
    with HistoryWriter(path, bucket=60) as writer:
        writer.feed_many([added(flow("a"), 1000, counts(100, 7)), polled(1090)])
        writer.write()
        with History(path) as history:  # while it is written
            assert [each.rx_bytes for each in history.usage()] == [100]
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                history._connection.execute("DELETE FROM traffic")
    before = path.read_bytes()
    assert usage(path) == [("curl", 100, 1)]
    assert (path.read_bytes(), os.listdir(path.parent)) == (before, [path.name])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts")
def test_a_history_on_a_file_system_that_is_read_only_is_read(path):
    with HistoryWriter(path, bucket=60) as writer:
        writer.feed_many([added(flow("a"), 1000, counts(100, 7)), polled(1090)])
    folder = path.parent
    script = (
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind {folder} && exec {sys.executable} -m nstat_async"
    )
    words = ["unshare", "-m", "sh", "-c", f'{script} "$@"', "sh", "history"]
    read = subprocess.run([*words, path, "--json"], capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")
    assert '"rx_bytes":100' in read.stdout
    write = subprocess.run([*words, f"{path}2", "--record"], capture_output=True, text=True, check=False)
    assert write.returncode == 1
    assert f"no file may be created in {folder} (Read-only file system)" in write.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("open_it", [History, HistoryWriter])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, open_it):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HistoryError, match="no history, but a pipe or a device"):
        open_it(tmp_path / "pipe")


@pytest.mark.parametrize("open_it", [History, HistoryWriter])
def test_what_keeps_a_history_from_being_opened_is_not_said_of_the_file(tmp_path, monkeypatch, open_it):
    def fails(*_args, **_options):
        raise sqlite3.OperationalError("unable to open database file")  # e.g. no descriptor for its log is left

    HistoryWriter(tmp_path / "h.db").close()
    monkeypatch.setattr(_schema, "_checked", fails)
    with pytest.raises(HistoryError, match="cannot be opened: unable to open database file"):
        open_it(tmp_path / "h.db")


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors have no limit there")
def test_a_history_for_which_no_descriptors_are_left_says_so(tmp_path):
    """SQLite needs several, and says of none what it was."""
    script = """
import os, resource, sys
from nstat_async.aggregate import HistoryError, HistoryWriter
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
for free in range(1, 4):
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        for _ in range(free):
            os.close(taken.pop())
    try:
        HistoryWriter(sys.argv[1]).close()
    except HistoryError as error:
        print(error)
    for each in taken:
        os.close(each)
"""
    HistoryWriter(tmp_path / "h.db").close()
    done = forked.run([sys.executable, "-c", script, tmp_path / "h.db"], text=True)
    assert done.stdout
    assert all("cannot be opened: Too many open files" in line for line in done.stdout.splitlines()), done.stdout


def traffic(writer, time, name, rx=100):
    process = Process(zlib.crc32(f"{name}{time}".encode()), name)
    it = flow(f"{name}{time}", process)
    writer.feed_many([added(it, time, counts(0)), removed(it, time, counts(rx))])


@pytest.mark.parametrize("wrong", [1, 12, 200])
def test_a_clock_that_is_wrong_for_hours_erases_nothing(path, wrong):
    """Ten years ahead for so many buckets, after a restart or in the middle of a run."""
    day = 86_400
    with HistoryWriter(path, bucket=300, keep=90 * day, detail=None) as writer:
        for moment in range(0, 20 * day, day):
            traffic(writer, moment, "curl")
            writer.write()
    for _ in range(2):
        with HistoryWriter(path, bucket=300, keep=90 * day, detail=None) as writer:
            traffic(writer, 20 * day, "curl")
            for number in range(wrong // 2):
                traffic(writer, 3650 * day + number * 300, "curl")
            traffic(writer, 21 * day, "curl")
            writer.write()
    with History(path) as history:
        assert len(history.timeline(day, until=20 * day)) == 20


@pytest.mark.parametrize("time", [float("nan"), float("inf"), float("-inf"), 1e300, -1e18, -5, 2.0**63])
def test_an_event_whose_time_is_none_is_said_and_the_others_are_counted(path, time):
    with HistoryWriter(path) as writer:
        with pytest.raises(HistoryError, match="time is"):
            writer.feed_many([added(flow("a"), 1000, counts(5)), added(flow("b"), time, counts(7)), polled(1001)])
        writer.feed(updated(flow("a"), 1002, counts(9)))
    assert usage(path) == [("curl", 9, 1)]


@pytest.mark.parametrize("numbers", [{"pid": 2**70}, {"pid": 1, "uid": 2**63}, {"pid": 1, "unique_pid": 2**64}])
def test_a_process_whose_numbers_no_file_can_hold_is_said_and_the_others_are_kept(path, numbers):
    with HistoryWriter(path) as writer:
        odd = Process(name="odd", **numbers)
        writer.feed_many([added(flow("a"), 1, counts(5)), added(flow("b", odd), 1, counts(7)), polled(1000)])
        with pytest.raises(HistoryError, match="'odd'"):
            writer.write()
        traffic(writer, 1001, "later")
    assert usage(path) == [("later", 100, 1), ("curl", 5, 1)]


def test_a_bucket_has_so_many_processes_and_the_sum_of_all_others(path):
    """A day of thousands of processes a second is bounded; totals are exact."""
    with HistoryWriter(path, bucket=60, max_rows=20) as writer:
        for bucket in range(5):
            for number in range(500):
                traffic(writer, bucket * 60 + number / 10, f"p{bucket}.{number}", rx=1000 + number)
            writer.write()
            assert writer.statistics()["rows_written"] <= (bucket + 1) * 21
    with History(path) as history:
        rows = history.usage(by="process")
        assert sum(row.rx_bytes for row in rows) == 5 * sum(1000 + number for number in range(500))
        assert sum(row.flows for row in rows) == 2500
        assert "p0.499" in {row.name for row in rows}
        assert len(history.timeline(60)) == 5
    assert path.stat().st_size < 200_000


def test_old_buckets_become_hours_with_the_same_sums(path):
    """Processes of one name become one; what is younger keeps its buckets."""
    hour = 3600
    with HistoryWriter(path, bucket=60, detail=10 * hour) as writer:
        for minute in range(0, 40 * 60, 7):
            for name in ("curl", "ssh"):
                traffic(writer, minute * 60, name, rx=minute)
            writer.write()
        half = usage(path)
        writer.write()
    total = sum(range(0, 40 * 60, 7))
    assert usage(path) == [("curl", total, 343), ("ssh", total, 343)]
    assert sum(flows for _, _, flows in half) == 2 * 342  # the open bucket is not written
    with History(path) as history:
        old = history.usage(until=20 * hour, by="process")
        assert [(row.name, row.pid) for row in old] == [("curl", None), ("ssh", None)]
        assert {row.end - row.begin for row in history.timeline(hour, until=20 * hour)} == {hour}
        assert all(row.pid is not None for row in history.usage(since=35 * hour, by="process"))
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM traffic WHERE length = 3600").fetchone()[0] > 40
    connection.close()


def test_a_file_gives_back_what_it_does_not_need(path):
    with HistoryWriter(path, bucket=60, max_rows=10_000) as writer:
        for number in range(1000):
            traffic(writer, 100 + number / 100, f"some-process-of-a-long-name-{number}")
    full = path.stat().st_size
    with HistoryWriter(path, bucket=60, keep=600) as writer:
        for minute in range(1000, 1030):
            traffic(writer, minute * 60, "curl")
            writer.write()
    assert path.stat().st_size < full / 2


def test_misuse_is_refused_by_name(path):
    for options, text in [
        ({"bucket": 0}, "bucket"), ({"keep": 5}, "keep"), ({"max_rows": 0}, "max_rows"), ({"detail": 5}, "detail"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=text):
            HistoryWriter(path, **options)
    writer = HistoryWriter(path)
    writer.close()
    writer.close()
    with pytest.raises(UsageError, match="closed"):
        writer.write()
    history = History(path)
    with pytest.raises(UsageError, match="by: 'pid'"):
        history.usage(by="pid")
    with pytest.raises(UsageError, match="since: a datetime needs a time zone"):
        history.usage(datetime(2026, 1, 1))
    for nonsense in (math.nan, "2026-01-01"):
        with pytest.raises(UsageError, match=r"until: .* is neither seconds since the epoch nor a datetime"):
            history.timeline(1, until=nonsense)
    assert history.usage(-(1 << 70), math.inf) == history.usage() == history.usage(until=1 << 2000)
    with pytest.raises(UsageError, match="step"):
        history.timeline(0)
    history.close()
    with pytest.raises(UsageError, match="closed"):
        history.usage()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_monitor_writes_its_history_beside_the_loop(path, backend):
    """Complete buckets are there while it runs, the rest when the monitor ends."""

    async def main():
        monitor = FakeMonitor()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: keep_history(monitor, path, bucket=60))
            await until(lambda: monitor.subscriptions)
            monitor.deliver(added(flow("a"), 10, counts(100)), updated(flow("a"), 70, counts(170)))
            await until(lambda: path.exists() and path.stat().st_size and usage_or_nothing(path) == [("curl", 100, 1)])
            monitor.end()
        assert usage(path) == [("curl", 170, 1)]
        assert monitor.subscriptions == []

    anyio.run(main, backend=backend)


def usage_or_nothing(path):
    try:
        return usage(path)
    except HistoryError:
        return []


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_history_is_complete(path, backend):
    async def main():
        monitor = FakeMonitor()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: keep_history(monitor, path))
            await until(lambda: monitor.subscriptions and path.exists())
            await until(lambda: monitor.subscriptions[0].changed.statistics().tasks_waiting)
            # What arrives while the wait is being cancelled, too late to end it.
            monitor.subscriptions[0].events += [added(flow("a"), 10, counts(100)), updated(flow("a"), 11, counts(130))]
            tasks.cancel_scope.cancel()
        assert usage(path) == [("curl", 130, 1)]

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("pause", [1e6, 0.0])
def test_a_history_that_is_locked_for_a_while_is_written_afterwards(path, monkeypatch, caplog, pause):
    """The task goes on, says so in the log, once, and stores the buckets when it can; until it is time it does not try."""
    failing, attempts = True, 0
    write = HistoryWriter.write
    monkeypatch.setattr("nstat_async.aggregate._sqlite._RETRY_SECONDS", pause)

    def flaky(self):
        nonlocal attempts
        attempts += 1
        if failing:
            raise HistoryError(self.path, "cannot be written: disk full")
        write(self)

    monkeypatch.setattr(HistoryWriter, "write", flaky)

    async def main():
        nonlocal failing
        monitor = FakeMonitor()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: keep_history(monitor, path, bucket=60))
            await until(lambda: monitor.subscriptions)
            monitor.deliver(added(flow("a"), 10, counts(100)), updated(flow("a"), 70, counts(170)))
            await until(lambda: "counts wait in memory until the file can be written" in caplog.text)
            for moment in (80, 200):
                monitor.deliver(updated(flow("a"), moment, counts(170)))
                await until(lambda: not monitor.subscriptions[0].events)
            await until(lambda: attempts == (1 if pause else 3))
            failing = False
            monitor.deliver(updated(flow("a"), 300, counts(170)))
            await until(lambda: not monitor.subscriptions[0].events)
            monitor.end()
        assert caplog.text.count("disk full") == 1
        assert caplog.text.count("what waited is written") == (0 if pause else 1)
        assert usage(path) == [("curl", 170, 1)]

    anyio.run(main)

"""The table of fields: adding a field is adding a row."""

from __future__ import annotations

import importlib.util
import json as standard
import shutil
import sqlite3
from pathlib import Path

import attrs
import pytest
from aggregate_events import added, counts, flow, removed

from nstat_async import Process, json
from nstat_async._cli import _views
from nstat_async._cli._views import View
from nstat_async._fields import TABLE, TEXT, Field, Record, SqlTable
from nstat_async._rows import Row, RowKind
from nstat_async.aggregate import History, HistoryError, HistoryWriter, _history, _schema, _sqlite
from nstat_async.aggregate._schema import Schema

ROOT = Path(__file__).parent.parent
VERSION_1 = Path(__file__).parent / "vectors" / "history" / "version-1.sqlite"


def _page():
    spec = importlib.util.spec_from_file_location("make_fields", ROOT / "docs" / "make_fields.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@attrs.frozen(repr=False)
class ContainedProcess(Process):
    """A process that knows its realm."""

    realm: str | None = None
    """The realm that the process runs in."""


NEXT = TABLE.schema_version + 1
NEW = Field("realm", TEXT, platform="Linux", later=True, sql=SqlTable.PROCESS, since=NEXT, heading="REALM")


def _extended():
    """The table with one more row: a field of processes."""
    old = TABLE.of(Process)
    more = Record(ContainedProcess, (*old.fields, NEW))
    return attrs.evolve(TABLE, records=tuple(more if each is old else each for each in TABLE.records))


BOX = ContainedProcess(42, "curl", unique_pid=4200, uid=501, path="/usr/bin/curl", realm="box")


@pytest.fixture
def extended(monkeypatch):
    table = _extended()
    for module in (_schema, _sqlite, _history):
        monkeypatch.setattr(module, "SCHEMA", Schema(table))
    monkeypatch.setattr(_views, "TABLE", table)
    return table


def test_a_new_field_is_in_json_in_both_directions(extended):
    event = added(flow("a", BOX), 1.0, counts(5))
    line = json.JsonFormatter(table=extended)(event)
    assert standard.loads(line)["flow"]["process"]["realm"] == "box"
    assert json.to_dict(event, table=extended)["flow"]["process"]["realm"] == "box"
    assert json.loads(line, table=extended) == event
    row = Row(kind=RowKind.GROUP, key=BOX.key, process=BOX)
    assert json.to_dict(row, table=extended)["process"]["realm"] == "box"


def test_a_new_field_is_a_column_of_processes(extended):
    row, lost, view = Row(kind=RowKind.GROUP, key=BOX.key, process=BOX), Row(kind=RowKind.LOST), View()
    columns = view.columns([row, lost])
    headings = [column.heading for column in columns]
    assert headings[:4] == ["PID", "PROCESS", "FLOWS", "OPEN"]
    assert headings[-1] == "REALM"
    assert view.cell(columns[-1], row) == "box"
    assert view.cell(columns[-1], lost) == ""
    assert "REALM" not in [column.heading for column in view.columns([lost])]


def test_a_new_field_is_in_the_reference():
    text = _page().page(_extended())
    assert "| `realm` | `realm` *later* | text | Linux |" in text
    assert "The realm that the process runs in." in text
    assert f"SQL `process.realm` since schema {NEXT}" in text


def test_a_new_field_is_a_column_of_a_new_history(extended, tmp_path):
    path = tmp_path / "new.sqlite"
    with HistoryWriter(path) as writer:
        writer.feed_many([added(flow("a", BOX), 1, counts(5)), removed(flow("a", BOX), 2, counts(7))])
    with History(path) as history:
        (used,) = history.usage(by="process")
    assert used.process == BOX
    assert used.rx_bytes == 7


def test_a_history_of_version_1_is_read_as_it_is_and_gets_the_new_column_when_it_is_written(extended, tmp_path):
    path = tmp_path / "old.sqlite"
    shutil.copy(VERSION_1, path)
    with History(path) as history:
        before = history.usage(by="process")
        assert before[0].process == ContainedProcess(42, "curl", unique_pid=4200, uid=501, path="/usr/bin/curl")
    with HistoryWriter(path, source="laptop") as writer:
        plain = flow("b", attrs.evolve(BOX, realm=None))
        for event in (added(plain, 2e9, counts(3)), added(flow("c", BOX), 2e9, counts(4))):
            writer.feed(event)
    with History(path) as history:
        after = {
            (each.name, each.process and each.process.realm): each.rx_bytes for each in history.usage(by="process")
        }
        assert history.gaps()
    # The process that was there goes on in its own row; the one in a container is another.
    assert after[("curl", None)] == 1500
    assert after[("curl", "box")] == 7
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (NEXT,)
    connection.close()


def test_a_history_of_today_opens_and_goes_on(tmp_path):
    """The file was written by the first release: the same process keeps its row."""
    path = tmp_path / "old.sqlite"
    shutil.copy(VERSION_1, path)
    curl = Process(42, "curl", unique_pid=4200, uid=501, path="/usr/bin/curl")
    with HistoryWriter(path, source="laptop") as writer:
        writer.feed_many([added(flow("b", curl), 1.8e9, counts(3)), removed(flow("b", curl), 1.8e9, counts(3))])
    with History(path) as history:
        used = history.usage(by="process")
        assert [(each.name, each.source, each.rx_bytes, each.flows) for each in used] == [
            ("curl", "laptop", 1503, 2),
            (None, "laptop", 0, 1),
        ]
        assert used[0].process == curl
        assert [(gap.cause, gap.count) for gap in history.gaps()] == [("batch", 2)]
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM process").fetchone() == (2,)
    connection.close()


def test_a_history_of_a_later_version_is_refused(tmp_path):
    path = tmp_path / "later.sqlite"
    shutil.copy(VERSION_1, path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    for opened in (History, HistoryWriter):
        with pytest.raises(HistoryError, match="version 99"):
            opened(path)


@pytest.mark.parametrize("keep_days", [1, 90])
def test_one_reading_of_a_clock_that_is_ahead_erases_nothing(tmp_path, keep_days):
    day, begin = 86_400, 1.7e9
    path = tmp_path / "glitch.sqlite"

    def traffic(writer, time):
        a = flow(f"f{time}", Process(1, "curl"))
        writer.feed_many([added(a, time, counts(0)), removed(a, time, counts(100))])
        writer.write()

    with HistoryWriter(path, keep=keep_days * day) as writer:
        for minute in range(0, 600, 30):
            traffic(writer, begin + minute * 60)
        for ahead in (3650, 10, 1):
            traffic(writer, begin + ahead * day)
            for minute in range(600, 660, 15):
                traffic(writer, begin + minute * 60)
    with History(path) as history:
        (used,) = history.usage()
    assert used.rx_bytes == 100 * (20 + 3 + 3 * 4)


def test_the_reference_page_is_what_the_table_says():
    module = _page()
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), "run: python docs/make_fields.py"


def test_every_field_is_explained():
    module = _page()
    explained = {record.cls: module.explanations(record.cls) for record in TABLE.records}
    bare = [
        f"{record.cls.__name__}.{field.name}"
        for record in TABLE.records
        for field in record.fields
        if not explained[record.cls].get(field.name)
    ]
    assert not bare

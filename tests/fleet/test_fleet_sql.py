"""The recipes for DuckDB, ClickHouse and Fluent Bit, run on the real output of a fleet, against its truth."""

from __future__ import annotations

import asyncio
import json
import pathlib
import re
import shutil
import subprocess
import sys
from collections import Counter

import anyio
import pytest
from fleet_living import BINARY, Machine, Server, Watcher, truth

from nstat_async import Monitor
from nstat_async.aggregate import ConnectionTable, ProcessTable
from nstat_async.backends import Fleet
from nstat_async.json import JsonFormatter

pytestmark = [pytest.mark.nats, pytest.mark.skipif(BINARY is None, reason="nats-server is not installed")]
duckdb = pytest.importorskip("duckdb")
PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "how-to" / "sql.md").read_text()
NAMES = {501: "curl", 502: "sshd", 503: "psql", 7: "postgres"}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


QUERIES = [query for block in blocks("sql") for query in block.split(";\n")]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A file of lines, the truth of its machines, and the table that the same events made."""
    place = tmp_path_factory.mktemp("fleet")

    async def run():
        with Server(place) as server:
            monitor, one, other = (
                Monitor(backend=Fleet(server.url)),
                Machine("web1", server.url),
                Machine("db1", server.url),
            )
            async with one as web, other as db, monitor:
                watcher = Watcher(monitor, ProcessTable())
                for pid, name in ((501, "curl"), (502, "sshd")):
                    web.open(pid, name)
                web.open(503, "psql", local=("192.0.2.1", 50_000), remote=("192.0.2.2", 5432))
                db.open(7, "postgres", local=("192.0.2.2", 5432), remote=("192.0.2.1", 50_000))
                for _ in range(3):
                    web.move(1000, 300)
                    db.move(300, 1000)
                    await anyio.sleep(0.15)
                for machine in (web, db):
                    machine.close()
                await watcher.until(watcher.ended(4))
                return watcher.events, truth(web, db)

    events, right = asyncio.run(run())
    write = JsonFormatter()
    (place / "flows.jsonl").write_text("".join(f"{write(event)}\n" for event in events))
    connections = ConnectionTable()
    connections.feed_many(events)
    return place, right, connections


def by_name(right):
    return {(host, NAMES[pid]): total for (host, pid), total in right.items()}


def run_all(place, monkeypatch):
    monkeypatch.chdir(place)
    with duckdb.connect() as database:
        return [
            database.sql(query).fetchall() if query.startswith("SELECT") else database.execute(query)
            for query in QUERIES
            if query.strip()
        ]


def test_the_recipes_give_what_the_machines_truly_moved(told, monkeypatch):
    place, right, connections = told
    answers = [answer for answer in run_all(place, monkeypatch) if isinstance(answer, list)]
    talkers, history, both = answers
    assert {(host, name): rx + tx for host, name, _, rx, tx in talkers} == by_name(right)
    assert sum(rx + tx for _, rx, tx in history) == sum(total for (host, _), total in right.items() if host == "web1")
    assert both == [("web1", "psql", "db1", "postgres", 5432, 900, 3000)]
    [talk] = [talk for talk in connections.talks() if talk.both_ends]
    assert (talk.client.name, talk.server.name, talk.port) == ("psql", "postgres", 5432)
    assert (talk.to_server, talk.to_client) == (900, 3000)
    assert connections.total() == 3 * 3 * 1300
    hours = list((place / "history").iterdir())
    assert all(hour.name.startswith("hour=") for hour in hours)
    with duckdb.connect() as database:
        [(total,)] = database.sql(f"SELECT sum(rx_bytes + tx_bytes) FROM '{place}/history/*/*.parquet'").fetchall()
    assert total == Counter(right).total()


CHDB = """
import sys
from chdb.session import Session
session = Session()
for query in sys.stdin.read().split("\\0"):
    answer = session.query(query, "JSONCompactEachRow")
print(answer)
"""


def test_clickhouse_gives_what_the_machines_truly_moved(told):
    pytest.importorskip("chdb")
    place, right, _ = told
    make, talkers = (block.strip().rstrip(";") for block in blocks("clickhouse"))
    [insert] = [query for block in blocks("sh") for query in re.findall("--query '(.*?)'", block)]
    lines = (place / "flows.jsonl").read_text()
    # A process of its own: the library is large, and minds its own signals.
    done = subprocess.run(
        [sys.executable, "-c", CHDB], input="\0".join([make, f"{insert}\n{lines}", talkers]), text=True,
        capture_output=True, cwd=place, check=True,
    )  # fmt: skip
    rows = map(json.loads, done.stdout.split("\n\n")[0].splitlines())
    assert {(host, name): int(rx) + int(tx) for host, name, _, rx, tx in rows} == by_name(right)


@pytest.mark.skipif(shutil.which("fluent-bit") is None, reason="Fluent Bit is not installed")
def test_fluent_bit_gets_every_line(told):
    place, _, _ = told
    [config] = blocks("ini")
    (place / "fluent-bit.conf").write_text(config)
    lines = (place / "flows.jsonl").read_bytes()
    done = subprocess.run(
        ["fluent-bit", "-q", "-c", "fluent-bit.conf"], input=lines, cwd=place, capture_output=True, check=True
    )
    sent, got = ([json.loads(line) for line in output.splitlines()] for output in (lines, done.stdout))
    for each in ("event", "host", "reason", "counts"):
        assert [line.get(each) for line in got] == [line.get(each) for line in sent]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with 3.11")
def test_the_configuration_for_vector_is_toml():
    import tomllib

    [config] = blocks("toml")
    assert tomllib.loads(config)["sources"]["flows"]["decoding"]["codec"] == "json"

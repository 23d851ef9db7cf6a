"""Whole passes, as users run them: what is in the archive afterwards, and how they end."""

import json
import re
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from sqlite3 import connect
from typing import Any
from unittest import mock

import pytest
import time_machine
from sqlalchemy import Connection, select, text

from etl.answers.normalize import normalize
from etl.answers.outcome import Target
from etl.cli.session import Wiring
from etl.db import database
from etl.db.database_clock import keep_clock
from etl.db.schema import metadata, source_limits, tracked_runs
from etl.fetch.door import Clock, Peer
from etl.fetch.fetcher import Attempt, RunFetcher
from etl.fetch.messages import Begin
from etl.fetch.pool import FetchPool
from etl.fetch.rate_limit import Pauses
from etl.sandbox import listing
from etl.sandbox.api import EXECUTE_KEY
from etl.sandbox.listing import Format
from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import World
from etl.sandbox.world_clock import Clock as WorldClock
from tests.support import fake_api
from tests.support.dump import LEDGER, Row, dump
from tests.support.fake_api import SAMPLE, Answer, FakeApi, result
from tests.support.limits import no_file_left
from tests.support.postgres import Server, free_port
from tests.support.program import Program, program

TODAY = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
NOW = TODAY + timedelta(minutes=1)
SAMPLE_ID = "ac247a18-75d5-4094-8ab3-56788d6d2ff9"
ROWS_OF_A_RUN = ("tests", "environments", "counts", "revisions")
A_HANDFUL = 8  # requests: as many as may be under way when it turns out that there is trouble


def contents(database_url: str) -> dict[str, list[Row]]:
    """Return all that is archived; how often and when the API was asked is left out."""
    engine = database.connect(database_url)
    with database.reading(engine) as connection:
        found = dump(connection, leave_out=LEDGER)
    engine.dispose()
    return found


def query(database_url: str, statement: str) -> list[Any]:
    """Return the rows of a statement that users could write."""
    engine = database.connect(database_url)
    with database.reading(engine) as connection:
        rows = [tuple(row) for row in connection.execute(text(statement))]
    engine.dispose()
    return rows


def states(database_url: str) -> dict[str, int]:
    """Return how many runs of the ledger are in which state."""
    return dict(query(database_url, "SELECT state, count(*) FROM tracked_runs GROUP BY state"))


def test_when_no_command_runs_the_file_of_sqlite_is_the_archive(
    tmp_path: Path, api: FakeApi, sqlite_url: str
) -> None:
    """Somebody who copies the file alone has it all."""
    api.answers[SAMPLE_ID] = [Answer(SAMPLE)]
    on_sqlite = program(tmp_path, sqlite_url, api.url)
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    for arguments in (("ingest", SAMPLE_ID), ("status",), ("verify",), ("report", "overview")):
        assert on_sqlite.run(*arguments).exit_code == 0
        assert sorted(each.name for each in file.parent.glob(f"{file.name}*")) == [file.name]


# --- the sample answer ---


@pytest.fixture
def noon() -> Iterator[Wiring]:
    """Time stands still at NOW, whatever the server's clock shows to those who ask it."""
    with time_machine.travel(NOW, tick=False):
        yield Wiring(shared_clock=keep_clock)


@pytest.fixture
def at_noon(archiver: Program, noon: Wiring) -> Program:
    return archiver.wired(noon)


def test_the_sample_answer_can_be_had_back(api: FakeApi, at_noon: Program) -> None:
    api.answers[SAMPLE_ID] = [Answer(SAMPLE)]
    done = at_noon.call("ingest", SAMPLE_ID)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"{NOW:%Y-%m-%dT%H:%M:%SZ}{ONE_NEW}"
    assert at_noon.call("show", SAMPLE_ID, "--json").json() == SHOWN


ONE_NEW = (
    " pass 1: 1 new, 0 changed, 0 unchanged, 0 still going, 0 failed, 0 rejected (1 request)\n"
)
COUNTERS = {"failed": 3, "passed": 12, "aborted": 0, "pending": 0, "unresolved": 0, "total": 15}
CONTENT_HASH = "8dd8cc8f6a406527c3dc5b3b61bd7449ed884da8e69e852d5e025a29d55fe82c"
SHOWN = {
    "run": {
        "run_id": SAMPLE_ID,
        "source": "default",
        "result_id": SAMPLE_ID,
        "name": " plan",
        "application": " app",
        "status": "failed",
        "started_at": "2023-10-24T13:00:12.463Z",
        "started_on": "2023-10-24",
        "iso_date": "2023-10-24",
        "started_hour": 13,
        "duration_ms": 228669,
        "ended_at": "2023-10-24T13:04:01.132Z",
        "environment_count": 3,
        "test_count": 1,
        "environment_signature": '[["Linux","Chrome","Desktop","1440x900"],'
        '["Linux","Chrome","Desktop","1442x3227"],["Linux","Firefox","Desktop","690x490"]]',
        "revision": 1,
        "content_hash": CONTENT_HASH,
        "archived_at": "2026-11-02T09:01:00.000Z",
        "changed_at": "2026-11-02T09:01:00.000Z",
        "row_changed_at": "2026-11-02T09:01:00.000Z",
        "gone_at": None,
        "extra": None,
    },
    "ledger": {
        "run_id": SAMPLE_ID,
        "source": "default",
        "state": "settled",
        "due_at": None,
        "attempts": 0,
        "reason": None,
        "last_error": None,
        "failing_since": None,
        "first_tracked_at": "2026-11-02T09:01:00.000Z",
        "last_fetched_at": "2026-11-02T09:01:00.000Z",
        "fetches": 1,
        "lease_owner": None,
        "lease_until": None,
        "has_read_token": False,
    },
    "labels": {},
    "environments": [
        {
            "run_id": SAMPLE_ID,
            "position": position,
            "name": name,
            "os": "Linux",
            "viewport": f"{width}x{height}",
            "viewport_width": width,
            "viewport_height": height,
            "device": "Desktop",
            "browser": browser,
            "extra": None,
        }
        for position, name, width, height, browser in [
            (1, "env-name_lvc0ei", 1442, 3227, "Chrome"),
            (2, "firefox_ltr6xexec", 690, 490, "Firefox"),
            (3, "Chrome", 1440, 900, "Chrome"),
        ]
    ],
    "tests": [
        {
            "run_id": SAMPLE_ID,
            "position": 1,
            "test_id": "fcc41ac2-95e6-4fed-93d1-c609483300e4",
            "name": "",
            "status": "failed",
            "type": "sitemap_test",
            "sitemap": "",
            "results_url": None,
            "extra": None,
        }
    ],
    "counts": [
        {"run_id": SAMPLE_ID, "test_position": 0, "scope": "run", "other": None, **COUNTERS},
        {"run_id": SAMPLE_ID, "test_position": 1, "scope": "test", "other": None, **COUNTERS},
    ],
    "revisions": [
        {
            "run_id": SAMPLE_ID,
            "revision": 1,
            "observed_at": "2026-11-02T09:01:00.000Z",
            "last_seen_at": None,
            "superseded_at": None,
            "status": "failed",
            "started_at": "2023-10-24T13:00:12.463Z",
            "duration_ms": 228669,
            "content_hash": CONTENT_HASH,
            **COUNTERS,
        }
    ],
    "warnings": [],
}


# --- 300 runs: whatever the way, the archive is the same ---


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    """300 runs, 288 of them begun, at a time that stands still; only for reading."""
    with running(World(end=TODAY), WorldClock(TODAY, speed=0)) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def once_in_order(
    sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Row]]:
    """What one process archived at NOW, in the list's order, on SQLite."""
    folder = tmp_path_factory.mktemp("reference")
    database_url = f"sqlite:///{folder}/archive.db"
    done = lists_written(program(folder, database_url, sandbox.url), sandbox).run_at(
        NOW, "ingest", "--from", "runs.csv"
    )
    assert "pass 1: 288 new, " in done.stderr
    return contents(database_url)


@pytest.fixture
def on_sandbox(tmp_path: Path, database_url: str, sandbox: Sandbox) -> Program:
    """The program on each kind of database, and on the sandbox."""
    return lists_written(program(tmp_path, database_url, sandbox.url), sandbox)


def lists_written(archiver: Program, sandbox: Sandbox) -> Program:
    head, *lines = listing.render(sandbox.world, Format.CSV, TODAY)
    archiver.write("runs.csv", "".join([head, *lines]))
    archiver.write("backwards.csv", "".join([head, *reversed(lines)]))
    return archiver


def test_archived_again_in_another_order_is_archived_once(
    on_sandbox: Program, database_url: str, once_in_order: dict[str, list[Row]], noon: Wiring
) -> None:
    at_noon = on_sandbox.wired(noon)
    at_noon.call("ingest", "--from", "backwards.csv")
    assert contents(database_url) == once_in_order
    again = at_noon.call("ingest", "--refresh", "--from", "runs.csv", "--json").json()
    assert (again["new"], again["changed"], again["unchanged"]) == (0, 0, 288)
    assert contents(database_url) == once_in_order


def test_two_processes_at_once_share_the_work(
    sandbox: Sandbox, on_sandbox: Program, database_url: str, once_in_order: dict[str, list[Row]]
) -> None:
    asked_before = sandbox.requests.total()
    with ThreadPoolExecutor(2) as executor:
        first, second = executor.map(
            lambda name: on_sandbox.run_at(NOW, "ingest", "--json", "--from", name),
            ["runs.csv", "backwards.csv"],
        )
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.json()["new"] + second.json()["new"] == 288
    assert sandbox.requests.total() - asked_before == 288
    assert contents(database_url) == once_in_order


def test_a_later_pass_changes_nothing_but_the_ledger(
    on_sandbox: Program, database_url: str
) -> None:
    on_sandbox.call("ingest", "--from", "runs.csv")
    before = contents(database_url)
    done = on_sandbox.call("ingest", "--from", "runs.csv", "--refresh")
    assert ": 0 new, 0 changed, 288 unchanged, " in done.stderr
    assert contents(database_url) == before


# --- from the CI job's execute call to the archive ---


@pytest.fixture
def executed(own_sandbox: Sandbox) -> bytes:
    """What the execute call answers, as curl would print it."""
    plan_id = next(iter(own_sandbox.world.plans))
    url = f"{own_sandbox.url}/api/plan/{plan_id}/execute?apiKey={EXECUTE_KEY}"
    with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as response:
        body: bytes = response.read()
    return body


@pytest.fixture
def own_sandbox() -> Iterator[Sandbox]:
    """A small world for one test, which may set its clock and start runs."""
    with running(World(end=TODAY, runs=60), WorldClock(TODAY, speed=0)) as sandbox:
        yield sandbox


@pytest.fixture
def executor(tmp_path: Path, database_url: str, own_sandbox: Sandbox) -> Program:
    """The program with a key that reads a run only with its read token."""
    archiver = program(tmp_path, database_url, own_sandbox.url)
    return archiver.given(APPLITOOLS_API_KEY=EXECUTE_KEY)


def test_an_execute_answer_is_all_that_is_needed_to_archive_its_run(
    executed: bytes, executor: Program, own_sandbox: Sandbox
) -> None:
    run_id = json.loads(executed)["result"]["id"]
    tracked = executor.run("track", "--from", "-", stdin=executed.decode())
    assert tracked == (0, "1 new, 0 known already\n", "")
    own_sandbox.clock.set(now=TODAY + timedelta(hours=1))
    assert executor.call("ingest").stderr.endswith(ONE_NEW)
    assert executor.call("show", run_id, "--json").json()["run"]["run_id"] == run_id


def test_the_read_token_is_nowhere_in_the_sqlite_files(
    executed: bytes, own_sandbox: Sandbox, sqlite_url: str, tmp_path: Path
) -> None:
    archiver = program(tmp_path, sqlite_url, own_sandbox.url)
    archiver.call("db", "upgrade")
    with closing(connect(tmp_path / "archive.db")) as reader:
        reader.execute("SELECT * FROM tracked_runs").fetchall()  # or the last to leave tidies up
        archiver.run("track", "--from", "-", stdin=executed.decode())
        files = {path.name: path.read_bytes() for path in tmp_path.glob("archive.db*")}
    run_id, token = (json.loads(executed)["result"][name] for name in ("id", "read_token"))
    assert {name for name, content in files.items() if run_id.encode() in content} != set()
    assert {name for name, content in files.items() if token.encode() in content} == set()


def test_the_read_token_is_in_no_column_on_postgresql(
    executed: bytes, own_sandbox: Sandbox, postgresql_url: str, tmp_path: Path
) -> None:
    archiver = program(tmp_path, postgresql_url, own_sandbox.url)
    archiver.run("track", "--from", "-", stdin=executed.decode())
    archiver.call("ingest")
    run_id, token = (json.loads(executed)["result"][name] for name in ("id", "read_token"))
    assert "tracked_runs" in tables_with(postgresql_url, run_id)
    assert tables_with(postgresql_url, token) == set()


def tables_with(database_url: str, needle: str) -> set[str]:
    """Return the tables in which a row, as text, has `needle`."""
    parts = [
        f"SELECT '{name}' FROM {name} AS r WHERE r::text LIKE '%{needle}%'"
        for name in metadata.tables
    ]
    return {name for (name,) in query(database_url, " UNION ALL ".join(parts))}


# --- good and bad answers in one pass ---

HTML = b"<html><body>Down for maintenance</body></html>"
MIXED: dict[str, list[Answer]] = {
    "good-1": [result()],
    "good-2": [result(status="failed")],
    "good-3": [result(status="aborted")],
    "unknown": [Answer(b"", 404)],
    "denied": [Answer(b"", 403)],
    "flaky": [Answer(b"", 503), Answer(b"", 503), result()],
    "busy": [Answer(b"", 429, {"Retry-After": "1"}), result()],
    "html": [Answer(HTML)],
    "going": [result(status="pending", started_at=None)],
    "leaving": [result(), Answer(b"", 404)],
}


DENIAL = "the API answered 403; the key has no read permission, so this run needs its read token"


class Mixed:
    """An archive after one pass over MIXED, and how that pass ended."""

    def __init__(self, archiver: Program, api: FakeApi) -> None:
        self.archiver = archiver
        self.api = api
        self.database_url = archiver.environment["RESULT_ARCHIVER__DATABASE__URL"]
        self.done = archiver.call("ingest", "--json", *MIXED)

    def shown(self, run_id: str) -> Any:
        return self.archiver.call("show", run_id, "--json").json()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def mixed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgresql: Server
) -> Iterator[Mixed]:
    folder = tmp_path_factory.mktemp("mixed")
    with fake_api.serving() as api, postgresql.database() as postgresql_url:
        api.answers = {run_id: answers[:] for run_id, answers in MIXED.items()}
        urls = {"sqlite": f"sqlite:///{folder}/archive.db", "postgresql": postgresql_url}
        yield Mixed(program(folder, urls[request.param], api.url), api)


def test_bad_runs_do_not_stop_the_good_ones(mixed: Mixed) -> None:
    assert mixed.done.exit_code == 1
    assert mixed.done.json() == {
        "new": 7, "changed": 0, "unchanged": 0, "gone": 0, "waiting": 1, "failed": 2, "rejected": 1,
        "requests": 13, "halted": None, "exit_code": 1, "pass_id": 1,
        "standing_failed": [
            {"source": "default", "reason": "denied", "runs": 1},
            {"source": "default", "reason": "not_found", "runs": 1},
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("run_id", "state", "reason"),
    [
        ("unknown", "failed", "the API does not know this run (404)"),
        ("denied", "failed", DENIAL),
        ("flaky", "settled", None),
        ("busy", "settled", None),
        ("going", "running", None),
    ],
)
def test_the_ledger_tells_how_a_run_stands(
    mixed: Mixed, run_id: str, state: str, reason: str | None
) -> None:
    ledger = mixed.shown(run_id)["ledger"]
    assert (ledger["state"], ledger["last_error"]) == (state, reason)


def test_what_failed_is_said_on_stderr(mixed: Mixed) -> None:
    lines = mixed.done.stderr.splitlines()
    assert len(lines) == 3
    for run_id in ("unknown", "denied", "html"):
        assert sum(f"run_id={run_id} " in f"{line} " for line in lines) == 1


def test_a_body_that_is_no_answer_is_kept_as_it_came(mixed: Mixed) -> None:
    rows = query(mixed.database_url, "SELECT run_id, http_status, body FROM rejects")
    assert [(run_id, status, bytes(body)) for run_id, status, body in rows] == [("html", 200, HTML)]


def test_a_run_that_is_going_is_archived_as_it_is(mixed: Mixed) -> None:
    assert mixed.shown("going")["run"]["status"] == "pending"


def test_no_run_stays_leased(mixed: Mixed) -> None:
    assert query(mixed.database_url, "SELECT * FROM tracked_runs WHERE lease_owner <> ''") == []


def test_a_pass_leaves_a_row_about_itself(mixed: Mixed) -> None:
    [row] = query(
        mixed.database_url,
        "SELECT trigger, new, changed, unchanged, waiting, failed, rejected, exit_code"
        " FROM ingests ORDER BY id LIMIT 1",
    )
    assert row == ("ingest", 7, 0, 0, 1, 2, 1, 1)


def test_a_run_that_disappears_keeps_its_rows(mixed: Mixed) -> None:
    before = mixed.shown("leaving")
    assert mixed.archiver.call("ingest", "--refresh", "leaving").exit_code == 0
    after = mixed.shown("leaving")
    assert (before["run"].pop("gone_at"), after["run"].pop("gone_at")) == (None, mock.ANY)
    assert before["run"].pop("row_changed_at") < after["run"].pop("row_changed_at")
    assert after["run"] == before["run"]
    assert [after[name] for name in ROWS_OF_A_RUN] == [before[name] for name in ROWS_OF_A_RUN]


# --- runs of several accounts ---


def test_each_run_is_asked_of_its_own_account(api: FakeApi, archiver: Program) -> None:
    with fake_api.serving() as other:
        other.answers["r-2"] = [result()]
        api.answers["r-1"] = [result()]
        archiver.write(
            "config.toml", f'[sources.second]\nbase_url = "{other.url}"\nkey_env = "SECOND"\n'
        )
        archiver.write("runs.csv", "run_id,source\nr-1,\nr-2,second\n")
        done = archiver.given(SECOND="another-key").call("ingest", "--from", "runs.csv")
        assert done.exit_code == 0
        assert (list(api.requests), list(other.requests)) == (["r-1"], ["r-2"])


# --- when the API refuses the key ---


@pytest.fixture
def on_own_sandbox(tmp_path: Path, sqlite_url: str, own_sandbox: Sandbox) -> Program:
    archiver = program(tmp_path, sqlite_url, own_sandbox.url)
    archiver.write("runs.txt", "".join(listing.render(own_sandbox.world, Format.TXT, TODAY)))
    return archiver


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("no-such-key", "refused the API key (401); set one that is valid"),
        (EXECUTE_KEY, "the first 5 answers were all 403"),
    ],
)
def test_a_refused_key_stops_the_pass_and_a_good_one_makes_up_for_it(
    on_own_sandbox: Program, own_sandbox: Sandbox, sqlite_url: str, key: str, message: str
) -> None:
    refused = on_own_sandbox.given(APPLITOOLS_API_KEY=key).call("ingest", "--from", "runs.txt")
    assert refused.exit_code == 3
    [line] = [line for line in refused.stderr.splitlines() if " pass 1: error: " in line]
    assert message in line
    assert own_sandbox.requests.total() <= A_HANDFUL
    assert states(sqlite_url) == {"queued": 58}
    done = on_own_sandbox.call("ingest", "--json")
    assert (done.exit_code, done.json()["new"]) == (0, 58)


# --- when the API is down ---


@pytest.mark.parametrize("count", [1, 100])
@pytest.mark.parametrize("kind", ["refused", "broken"])
def test_work_stays_due_until_the_api_is_back(
    tmp_path: Path, sqlite_url: str, kind: str, count: int
) -> None:
    port = free_port()
    archiver = program(tmp_path, sqlite_url, f"http://127.0.0.1:{port}")
    archiver = archiver.wired(Wiring(pauses=Pauses(0.01)))
    run_ids = [f"r-{number}" for number in range(count)]
    if kind == "refused":
        done, asked = archiver.call("ingest", "--json", *run_ids), 0
    else:
        with fake_api.serving(port) as api:
            api.other = Answer(b"", 500)
            done, asked = archiver.call("ingest", "--json", *run_ids), api.requests.total()
    assert (done.exit_code, done.json()["halted"]) == (5, "down")
    [line] = done.stderr.splitlines()
    assert " pass 1: error: no results from the API: " in line
    assert max(asked, done.json()["requests"]) <= A_HANDFUL
    found = states(sqlite_url)
    assert found.keys() <= {"queued", "retrying"}
    assert sum(found.values()) == count
    assert 0 < found["retrying"] <= min(count, 5), "those asked say why; chance may ask one twice"
    with fake_api.serving(port) as api:
        api.other = result()
        assert archiver.call("ingest", "--json").json()["new"] == count


# --- when it is this machine that fails ---


def test_a_machine_without_free_files_is_no_api_that_is_down(
    api: FakeApi, tmp_path: Path, sqlite_url: str
) -> None:
    class Starved(RunFetcher):
        def fetch(self, target: Target) -> Attempt:
            with no_file_left():
                return super().fetch(target)

    def starved(begin: Begin, now: Clock) -> Peer:
        return FetchPool(begin, Starved(begin.config, now))

    api.other = result()
    archiver = program(tmp_path, sqlite_url, api.url)
    run_ids = [f"r-{number}" for number in range(20)]
    done = archiver.wired(Wiring(way=starved)).call("ingest", "--json", *run_ids)
    assert (done.exit_code, done.json()["halted"]) == (1, "no_resources")
    [line] = done.stderr.splitlines()
    assert " error: no more files can be opened (too many open files); raise the limit" in line
    assert line.endswith("; due runs stay due")
    assert archiver.call("ingest", "--json").json()["new"] == 20


@pytest.mark.parametrize("command", ["ingest", "schedule"])
@pytest.mark.parametrize(
    ("name", "value"),
    [("REQUESTS_CA_BUNDLE", "not-there.pem"), ("HTTPS_PROXY", "socks5://127.0.0.1:9")],
)
def test_an_environment_that_can_never_work_is_a_wrong_setting(
    tmp_path: Path, sqlite_url: str, command: str, name: str, value: str
) -> None:
    archiver = program(tmp_path, sqlite_url, "https://api.example.com").given(**{name: value})
    done = archiver.call(command)
    assert done.exit_code == 2
    assert f"error: {name}" in done.stderr
    assert not (tmp_path / "archive.db").exists()


# --- when the pass is interrupted ---


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_pass_finishes_what_it_has_in_hand(
    api: FakeApi, tmp_path: Path, sqlite_url: str, number: signal.Signals, exit_code: int
) -> None:
    api.other = result()._replace(delay_s=0.2)
    archiver = program(tmp_path, sqlite_url, api.url)
    run_ids = [f"r-{number}" for number in range(300)]
    with archiver.started("ingest", "--json", *run_ids) as process:
        wait_until(lambda: api.requests.total() >= 20)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=10)
    assert process.returncode == exit_code
    assert stderr.endswith(f"Z pass 1: error: interrupted by {number.name}; due runs stay due\n")
    assert stderr.count("\n") == 1
    assert json.loads(stdout)["new"] == api.requests.total() < 300
    assert query(sqlite_url, "SELECT count(*) FROM runs") == [(api.requests.total(),)]
    assert query(sqlite_url, "SELECT count(*) FROM tracked_runs WHERE lease_owner <> ''") == [(0,)]
    api.other = result()
    archiver.call("ingest")
    assert set(api.requests.values()) == {1}


def test_a_signal_ends_the_wait_for_runs_that_are_going(
    api: FakeApi, tmp_path: Path, sqlite_url: str
) -> None:
    api.other = result(status="pending", started_at=datetime.now(UTC).isoformat())
    archiver = program(tmp_path, sqlite_url, api.url)
    with archiver.started("ingest", "--wait", "r-1") as process:
        wait_until(lambda: api.requests.total() == 1)
        time.sleep(1)  # until the pass is over, and the wait has begun
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=10)
    assert process.returncode == 143
    [error, summary] = stderr.splitlines()
    assert error.endswith("Z pass 2: error: interrupted by SIGTERM; due runs stay due")
    assert "pass 2: 1 new, " in summary


def test_wait_goes_on_until_the_run_is_over(api: FakeApi, tmp_path: Path, sqlite_url: str) -> None:
    going = result(status="pending", started_at=datetime.now(UTC).isoformat())
    api.answers["r-1"] = [going, going, result()]
    archiver = program(tmp_path, sqlite_url, api.url)
    archiver = archiver.given(RESULT_ARCHIVER__POLLING__RUNNING_EVERY="200ms")
    done = archiver.call("ingest", "--wait", "--json", "r-1")
    assert done.exit_code == 0
    assert done.json() == {
        "new": 1, "changed": 1, "unchanged": 1, "gone": 0, "waiting": 0, "failed": 0, "rejected": 0,
        "requests": 3, "halted": None, "exit_code": 0, "pass_id": 3, "standing_failed": [],
    }  # fmt: skip


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something to come true; fail if it does not within 20 s."""
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come true")


# --- several accounts ---


def test_one_account_that_is_refused_does_not_stop_the_others(
    tmp_path: Path, sqlite_url: str
) -> None:
    with fake_api.serving() as good, fake_api.serving() as bad:
        good.other, bad.other = result(), Answer(b"{}", 401)
        archiver = program(tmp_path, sqlite_url, good.url).given(
            RESULT_ARCHIVER__SOURCES__EU__BASE_URL=bad.url,
            RESULT_ARCHIVER__SOURCES__EU__KEY_ENV="EU_KEY",
            EU_KEY="wrong-key",
        )
        archiver.call("track", "--source", "eu", *(f"e-{number}" for number in range(20)))
        done = archiver.call("ingest", "--json", *(f"r-{number}" for number in range(20)))
    assert (done.exit_code, done.json()["new"]) == (3, 20)
    assert bad.requests.total() == 1
    assert states(sqlite_url) == {"settled": 20, "queued": 20}


def test_a_run_of_an_account_that_is_not_configured_is_tried_again_later(
    api: FakeApi, tmp_path: Path, sqlite_url: str
) -> None:
    archiver = program(tmp_path, sqlite_url, api.url)
    elsewhere = archiver.given(
        RESULT_ARCHIVER__SOURCES__EU__BASE_URL=api.url, RESULT_ARCHIVER__SOURCES__EU__KEY_ENV="EU"
    )
    elsewhere.call("track", "--source", "eu", "e-1")
    done = archiver.call("ingest", "--json")
    assert (done.exit_code, api.requests.total()) == (1, 0)
    assert "[sources.eu]" in done.stderr
    assert states(sqlite_url) == {"retrying": 1}


def test_a_bug_of_ours_costs_one_run_and_is_told_without_a_secret(
    api: FakeApi, archiver: Program, sqlite_url: str
) -> None:
    api.other = result()
    key = archiver.environment["APPLITOOLS_API_KEY"]

    def broken(run_id: str, *_rest: Any) -> Any:
        if run_id == "r-2":
            raise RuntimeError(f"cannot do it with {key}")
        return normalize(run_id, *_rest)

    def with_the_bug(begin: Begin, now: Clock) -> Peer:
        return FetchPool(begin, RunFetcher(begin.config, now, broken))

    done = archiver.wired(Wiring(way=with_the_bug)).call("ingest", "r-1", "r-2", "r-3")
    assert done.exit_code == 1
    summary = "2 new, 0 changed, 0 unchanged, 0 still going, 0 failed, 1 rejected"
    assert summary in done.stderr
    assert "internal error" in done.stderr
    assert "RuntimeError: cannot do it with ***" in done.stderr
    assert "in broken" in done.stderr
    assert key not in done.stderr
    shown = archiver.call("show", "r-2").stdout
    assert "internal error: RuntimeError; please report it" in shown


def test_a_busy_api_is_left_alone_until_the_time_it_said(api: FakeApi, archiver: Program) -> None:
    """By every process, for whichever run. The database's clock decides."""
    archiver = archiver.given(RESULT_ARCHIVER__API__MAX_WAIT_S="60")
    api.other = Answer(b"", 429, {"Retry-After": "3600"})
    done = archiver.call("ingest", "--json", "r-1")
    assert (done.exit_code, done.json()["halted"]) == (5, "busy")
    shorten_wait(archiver, timedelta(seconds=3500))
    done = archiver.call("ingest", "--json", "r-2")
    assert (done.exit_code, done.json()["halted"]) == (5, "busy")
    assert re.search(r"pass 2: error: the API asks to wait (9\d|100) s, longer than", done.stderr)
    assert api.requests.total() == 1
    api.other = result()
    shorten_wait(archiver, timedelta(seconds=101))
    make_all_due(archiver)
    assert archiver.call("ingest", "--json").json()["new"] == 2


def shorten_wait(archiver: Program, by: timedelta) -> None:
    """Let that time pass for the wait that the API asked for."""
    with opened(archiver) as connection:
        asked_until = connection.scalars(select(source_limits.c.asked_until)).one()
        assert asked_until is not None
        connection.execute(source_limits.update().values(asked_until=asked_until - by))


def make_all_due(archiver: Program) -> None:
    with opened(archiver) as connection:
        connection.execute(tracked_runs.update().values(due_at=NOW))


@contextmanager
def opened(archiver: Program) -> Iterator[Connection]:
    """Give a connection to the program's archive."""
    engine = database.connect(archiver.environment["RESULT_ARCHIVER__DATABASE__URL"])
    with database.writing(engine) as connection:
        yield connection
    engine.dispose()


def test_a_wait_that_a_pass_did_not_sit_out_is_kept_by_the_next(
    api: FakeApi, archiver: Program
) -> None:
    archiver = archiver.given(RESULT_ARCHIVER__API__ATTEMPTS="1")
    api.answers["r-1"] = [Answer(b"", 429, {"Retry-After": "3"})]
    api.other = result()
    assert archiver.call("ingest", "r-0", "r-1").exit_code == 1
    asked_at = time.monotonic()
    assert archiver.call("ingest", "r-2").exit_code == 0
    assert time.monotonic() - asked_at > 2


def test_a_wait_from_a_clock_far_ahead_holds_nothing_up(api: FakeApi, archiver: Program) -> None:
    api.other = Answer(b"", 429, {"Retry-After": "3600"})
    with time_machine.travel(NOW + timedelta(days=365)):
        assert archiver.call("ingest", "r-1").exit_code == 5
    api.other = result()
    with time_machine.travel(NOW):
        assert archiver.call("ingest").exit_code == 0


def test_a_run_left_over_by_a_killed_pass_is_waited_for_and_not_spun_on(
    api: FakeApi, tmp_path: Path, sqlite_url: str
) -> None:
    archiver = program(tmp_path, sqlite_url, api.url)
    archiver.call("track", "r-1")
    until = (datetime.now(UTC) + timedelta(seconds=3)).strftime("%Y-%m-%d %H:%M:%S.000")
    with closing(connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        held = "UPDATE tracked_runs SET lease_owner = 'somebody', lease_until = ?"
        connection.execute(held, [until])
        connection.commit()
    api.other = result()
    done = archiver.run("ingest", "--wait", "--json")
    assert (done.exit_code, done.json()["new"]) == (0, 1)
    [(passes,)] = query(sqlite_url, "SELECT count(*) FROM ingests")
    assert passes <= 3


def test_what_is_good_in_the_end_ends_the_wait_well(
    api: FakeApi, tmp_path: Path, sqlite_url: str
) -> None:
    api.answers["r-1"] = [Answer(b"", 503), result()]
    api.other = result()
    archiver = program(tmp_path, sqlite_url, api.url).given(
        RESULT_ARCHIVER__API__ATTEMPTS="1", RESULT_ARCHIVER__POLLING__RETRY_EVERY="1s"
    )
    done = archiver.run("ingest", "--wait", "--json", "r-0", "r-1", "r-2")
    assert (done.exit_code, done.json()["failed"], done.json()["new"]) == (0, 0, 3)

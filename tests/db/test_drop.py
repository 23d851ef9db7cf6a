"""`drop` takes a run out of all tables, and nothing but `track --again` brings it back."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillWaitingError
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, event, select, update

from etl.answers.outcome import Reason, Reject
from etl.archive import identity
from etl.archive.rejects import keep_rejects
from etl.archive.removal import drop_runs
from etl.archive.verify import verify_archive
from etl.config.settings import Reporting
from etl.db import schema
from etl.db.database import connect, prepare, reading, writing
from etl.db.schema import tracked_runs
from etl.derived import refresh
from etl.errors import ArchiverError
from etl.ledger import tracking
from etl.ledger.tracking import Entry, Tracked
from tests.support.dump import dump, rows_of
from tests.support.fake_api import Answer, FakeApi, result
from tests.support.histories import a_run, forget_all, keep, measure_all
from tests.support.program import Program

START = datetime(2024, 3, 1, 18, 0, 0, 123000, UTC)
NOW = START + timedelta(days=9)
RUN_IDS = ("a", "b", "c", "d")
DAYS = ("2024-02-28T12:00:00Z", "2024-03-01T12:00:00Z", None)


def after(minutes: int) -> datetime:
    return START + timedelta(minutes=minutes)


def drop(engine: Engine, *run_ids: str) -> None:
    """Drop runs as the command does."""
    with writing(engine) as connection:
        drop_runs(connection, run_ids, NOW, Reporting())
    identity.apply_decisions(engine, UTC)
    refresh.refresh_marked(engine)


def measure(engine: Engine, now: datetime) -> None:
    measure_all(engine, now, UTC)


def everything(engine: Engine) -> dict[str, Any]:
    """Return all rows, but tombstones and the moments of decisions about test ids."""
    with reading(engine) as connection:
        rows = dump(connection)
    rows["tracked_runs"] = [row for row in rows["tracked_runs"] if row["state"] != "dropped"]
    for row in rows["identities"]:
        del row["decided_at"], row["digest"]
    del rows["identity_decisions"]
    return rows


def wrong(engine: Engine) -> list[Any]:
    batches = verify_archive(engine, Reporting())
    return [each for batch in batches for each in (*batch.damage, *batch.differing)]


def ledger_row(engine: Engine, run_id: str) -> dict[str, Any]:
    with reading(engine) as connection:
        query = select(tracked_runs).where(tracked_runs.c.run_id == run_id)
        return dict(connection.execute(query).mappings().one())


# --- the same archive as if the runs had never been -----------------------------------------

Pass = Mapping[str, Mapping[str, Any]]

answers = st.builds(
    a_run,
    st.sampled_from(DAYS),
    st.dictionaries(st.sampled_from("xyz"), st.sampled_from("PFU"), max_size=3),
    name=st.sampled_from(["nightly", "weekly"]),
    application=st.sampled_from(["shop", "portal", ""]),
    duration=st.sampled_from([1000, 2000]),
)
novel = st.builds(
    lambda answer, news: answer | news,
    answers,
    st.dictionaries(st.sampled_from(["new", "newer"]), st.sampled_from([1, "x"]), max_size=2),
)
passes = st.lists(st.dictionaries(st.sampled_from(RUN_IDS), novel), min_size=1, max_size=4)


def live_through(engine: Engine, history: Sequence[Pass], run_ids: Sequence[str]) -> None:
    """Store all that passes see of some runs, of two accounts, each with a label and a reject."""
    forget_all(engine)
    entries = [Entry(each, account_of(each), "token", {"commit": each}) for each in run_ids]
    with writing(engine) as connection:
        tracking.track(connection, entries, START)
        keep_rejects(
            connection,
            [
                Reject(run_id, START, 200, Reason.UNREADABLE, "no JSON", b"x", "x")
                for run_id in run_ids
            ],
        )
        for minutes, seen in enumerate(history):
            for source in ("default", "second"):
                of_source = {
                    run_id: answer
                    for run_id, answer in seen.items()
                    if run_id in run_ids and account_of(run_id) == source
                }
                keep(connection, after(minutes), of_source, UTC, source)
    measure(engine, NOW)


def account_of(run_id: str) -> str:
    return "second" if run_id == "d" else "default"


def test_all_tables_are_as_if_the_dropped_runs_had_never_been(engine: Engine) -> None:
    is_sqlite = engine.dialect.name == "sqlite"

    @settings(max_examples=30 if is_sqlite else 12, deadline=None)
    @given(passes, st.sets(st.sampled_from(RUN_IDS), min_size=1))
    def holds(history: Sequence[Pass], dropped: set[str]) -> None:
        live_through(engine, history, [each for each in RUN_IDS if each not in dropped])
        wanted = everything(engine)
        live_through(engine, history, RUN_IDS)
        drop(engine, *dropped)
        assert everything(engine) == wanted
        assert wrong(engine) == []

    holds()


def nightly(run_id: str, day: int, **fields: Any) -> dict[str, Any]:
    """Return an answer with a test whose id is the same in every run but the strange ones."""
    test_id = "id" if not run_id.startswith("strange") else f"id in {run_id}"
    tests = [
        {"id": f"{test_id} of {name}", "name": name, "type": "e2e", "status": "passed"}
        for name in "xyz"
    ]
    return a_run(f"2024-02-{day:02}T12:00:00Z", {}, tests=tests) | fields


def test_tests_are_identified_as_the_remaining_runs_say(engine: Engine) -> None:
    run_ids = [f"run-{number}" for number in range(9)]
    strange = [f"strange-{number}" for number in range(9)]
    seen = {run_id: nightly(run_id, day) for day, run_id in enumerate(run_ids, start=1)}
    also = {run_id: nightly(run_id, day) for day, run_id in enumerate(strange, start=10)}
    live_through(engine, [seen], run_ids)
    wanted = everything(engine)
    assert [row["key_kind"] for row in wanted["identities"]] == ["id"]
    live_through(engine, [seen | also], [*run_ids, *strange])
    assert [row["key_kind"] for row in everything(engine)["identities"]] == ["name"]
    drop(engine, *strange)
    assert everything(engine) == wanted
    assert wrong(engine) == []


def test_a_run_with_damaged_tables_can_be_dropped(engine: Engine) -> None:
    live_through(engine, [{"a": nightly("a", 1), "b": nightly("b", 2)}], ["a", "b"])
    with writing(engine) as connection:
        connection.execute(schema.tests.delete().where(schema.tests.c.run_id == "a"))
        connection.execute(update(schema.daily_results).values(runs=99))
        connection.execute(update(schema.payloads).where(is_run_a()).values(size=1))
    drop(engine, "a")
    assert wrong(engine) == []


def is_run_a() -> Any:
    return schema.payloads.c.run_id == "a"


# --- the ledger -----------------------------------------------------------------------------


def test_a_tombstone_has_nothing_but_its_name(engine: Engine) -> None:
    live_through(engine, [{"a": nightly("a", 1)}], ["a"])
    drop(engine, "a")
    assert ledger_row(engine, "a") == {
        "run_id": "a",
        "source": "default",
        "state": "dropped",
        "due_at": None,
        "attempts": 0,
        "reason": None,
        "last_error": None,
        "failing_since": None,
        "first_tracked_at": START,
        "last_fetched_at": None,
        "fetches": 0,
        "lease_owner": None,
        "lease_until": None,
        "read_token": None,
        "gone_at": None,
        "context_changed_at": None,
    }


def test_a_list_leaves_dropped_runs_out(engine: Engine) -> None:
    live_through(engine, [{"a": nightly("a", 1)}], ["a"])
    drop(engine, "a")
    before = everything(engine), ledger_row(engine, "a")
    with writing(engine) as connection:
        entry = Entry("a", "another", "new token", {"branch": "main"})
        assert tracking.track(connection, [entry], NOW) == Tracked(0, 0, 1)
        assert tracking.make_due(connection, ["a"], NOW) == 0
        assert tracking.make_due(connection, None, NOW) == 0
        assert tracking.retry(connection, ["a"], NOW) == 0
        assert tracking.read_accounts(connection, ["a"]) == {}
    assert (everything(engine), ledger_row(engine, "a")) == before


def test_dropping_a_run_again_changes_nothing(engine: Engine) -> None:
    live_through(engine, [{"a": nightly("a", 1), "b": nightly("b", 2)}], ["a", "b"])
    drop(engine, "a")
    before = everything(engine), ledger_row(engine, "a")
    drop(engine, "a")
    assert (everything(engine), ledger_row(engine, "a")) == before


def lease(engine: Engine, run_id: str, until: datetime) -> None:
    with writing(engine) as connection:
        of_run = update(tracked_runs).where(tracked_runs.c.run_id == run_id)
        connection.execute(of_run.values(lease_owner="a pass", lease_until=until))


def test_a_run_that_another_process_holds_is_refused_by_name(engine: Engine) -> None:
    live_through(engine, [{"a": nightly("a", 1), "b": nightly("b", 2)}], ["a", "b"])
    lease(engine, "b", NOW + timedelta(minutes=5))
    before = everything(engine)
    with pytest.raises(ArchiverError, match=r"is fetching b \(until 2024-03-10 18:05:00 UTC\)"):
        drop(engine, "a", "b")
    assert everything(engine) == before
    lease(engine, "b", NOW)
    drop(engine, "a", "b")
    assert everything(engine)["payloads"] == []


@contextmanager
def broken_off(engine: Engine, at_statement: int) -> Iterator[None]:
    """Fail before a statement, counted from 0."""

    def note(*_arguments: Any) -> None:
        if len(done) == at_statement:
            raise KeyboardInterrupt
        done.append(None)

    done: list[None] = []
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", note)


def test_a_drop_that_is_broken_off_has_dropped_all_or_nothing(engine: Engine) -> None:
    live_through(engine, [{"a": nightly("a", 1, new=1), "b": nightly("b", 2)}], ["a", "b"])
    before = everything(engine)
    statement, is_over = 0, False
    while not is_over:
        with broken_off(engine, statement):
            try:
                with writing(engine) as connection:
                    drop_runs(connection, ["a"], NOW, Reporting())
                is_over = True
            except KeyboardInterrupt:
                statement += 1
        if not is_over:
            assert everything(engine) == before
    assert statement > 30
    assert wrong(engine) == []


# --- beside a pass, on PostgreSQL -----------------------------------------------------------


@pytest.fixture
def on_postgresql(postgresql_url: str) -> Iterator[Engine]:
    engine = connect(postgresql_url)
    prepare(engine)
    yield engine
    engine.dispose()


def waits(engine: Engine, storing: Connection, seen: Pass, dropped: str) -> None:
    """Store answers; drop a run before the commit, which has to wait for it."""
    with ThreadPoolExecutor() as executor:
        with storing.begin():
            keep(storing, after(1), seen, UTC)
            dropping = executor.submit(drop, engine, dropped)
            with pytest.raises(StillWaitingError):
                dropping.result(timeout=1)
        dropping.result(timeout=20)


def test_a_run_of_the_same_plan_can_be_stored_meanwhile(on_postgresql: Engine) -> None:
    seen = {"b": nightly("b", 2)}
    live_through(on_postgresql, [{}, seen], ["b"])
    wanted = everything(on_postgresql)
    live_through(on_postgresql, [{"a": nightly("a", 1)}], ["a", "b"])
    with on_postgresql.connect() as storing:
        waits(on_postgresql, storing, seen, "a")
    refresh.refresh_marked(on_postgresql)
    assert everything(on_postgresql) == wanted
    assert wrong(on_postgresql) == []


def test_a_novelty_that_another_run_shows_meanwhile_is_its_first_sighting(
    on_postgresql: Engine,
) -> None:
    """Its application is another one: only the row of the novelty is common to both."""
    seen = {"b": nightly("b", 2, application="portal", new=1)}
    live_through(on_postgresql, [{"a": nightly("a", 1, new=1)}], ["a", "b"])
    with on_postgresql.connect() as storing:
        waits(on_postgresql, storing, seen, "a")
    [row] = everything(on_postgresql)["drift"]
    assert (row["path"], row["first_run_id"]) == ("result.new", "b")


def test_a_list_of_tests_that_another_run_is_about_to_have_stays(on_postgresql: Engine) -> None:
    live_through(on_postgresql, [{"a": nightly("a", 1)}], ["a", "b"])
    other = connect(on_postgresql.url.render_as_string(hide_password=False))
    todo = ["a"]

    def drop_meanwhile(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if "FROM rosters" in statement and todo:
            drop(other, todo.pop())  # waits for nothing: another application

    event.listen(on_postgresql, "after_cursor_execute", drop_meanwhile)
    with writing(on_postgresql) as connection:
        keep(connection, after(1), {"b": nightly("b", 2, application="portal")}, UTC)
    event.remove(on_postgresql, "after_cursor_execute", drop_meanwhile)
    other.dispose()
    refresh.refresh_marked(on_postgresql)
    assert todo == wrong(on_postgresql) == []
    assert len(everything(on_postgresql)["rosters"]) == 1


# --- the command ----------------------------------------------------------------------------

LEFT_OUT = "dropped runs left out; `result-archiver track --again RUN_ID` takes one back"


@pytest.fixture
def filled(archiver: Program, api: FakeApi) -> Program:
    """An archive of r-1 to r-3, and of a mistyped run that has failed."""
    api.answers = {f"r-{number}": [result()] for number in (1, 2, 3)}
    done = archiver.call("ingest", "r-1", "r-2", "r-3", "mistyped")
    assert done.exit_code == 1
    return archiver


def test_without_yes_the_command_lists_and_changes_nothing(engine: Engine, filled: Program) -> None:
    before = everything(engine)
    done = filled.call("drop", "mistyped", "r-1")
    assert done.exit_code == 2
    assert done.stdout.splitlines() == [
        "run mistyped (default, failed): nothing else",
        "run r-1 (default, settled, app, plan): 1 tests, 1 revisions, 1 payloads",
    ]
    assert done.stderr == "2 runs would be dropped for good; add --yes to drop them\n"
    done = filled.call("drop", "mistyped", "r-1", "--json")
    assert done.exit_code == 2
    assert done.json()["dropped"] == 0
    assert [
        (row["run_id"], row["numbers"]["tests"], row["numbers"]["payloads"])
        for row in done.json()["runs"]
    ] == [
        ("mistyped", 0, 0),
        ("r-1", 1, 1),
    ]
    assert everything(engine) == before


@pytest.mark.parametrize("options", [[], ["--yes"]])
def test_a_run_that_is_not_tracked_stops_the_command(
    engine: Engine, filled: Program, options: list[str]
) -> None:
    before = everything(engine)
    done = filled.call("drop", "r-1", "r-4", *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "error: nothing was dropped: not tracked: r-4; correct the run IDs\n"
    assert filled.call("drop", *options).exit_code == 2
    assert everything(engine) == before


def test_a_dropped_run_is_seen_by_nobody_but_as_dropped(engine: Engine, filled: Program) -> None:
    assert filled.call("status", "--check").exit_code == 1
    done = filled.call("drop", "mistyped", "r-1", "--yes")
    assert done.exit_code == 0
    assert done.stdout.endswith("2 runs dropped; `result-archiver track --again` takes one back\n")
    status = filled.call("status", "--json").json()
    assert status["by_state"] == dict.fromkeys(status["by_state"], 0) | {
        "settled": 2,
        "dropped": 2,
    }
    assert status["failed"] == []
    assert filled.call("status", "--check").exit_code == 0
    assert filled.call("verify").exit_code == 0
    show = filled.call("show", "r-1").stdout
    assert show.startswith("run r-1: was dropped; `result-archiver track --again RUN_ID`")
    for command in (["gate", "r-1", "--min-pass-rate", "0"], ["compare", "r-1", "r-2"]):
        done = filled.call(*command)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr.startswith("error: run r-1: was dropped; ")
    with reading(engine) as connection:
        assert [row["runs"] for row in rows_of(connection, schema.daily_results)] == [2]


def test_nothing_but_track_again_brings_a_run_back(
    engine: Engine, filled: Program, api: FakeApi
) -> None:
    filled.call("drop", "r-1", "mistyped", "--yes")
    dropped = ledger_row(engine, "r-1")
    before = api.requests["r-1"]
    listed = filled.write("runs.csv", "run_id,read_token,branch\nr-1,token,main\nr-2,,main\n")
    watching = filled.given(RESULT_ARCHIVER__RUNS__SOURCES=str(listed))
    for command, exit_code in (
        (["track", "r-1"], 0),
        (["ingest", "r-1"], 0),
        (["ingest", "--from", str(listed)], 0),
        (["ingest", "--refresh", "r-1"], 0),
        (["ingest", "--refresh"], 0),
        (["retry"], 0),
        (["retry", "r-1"], 1),
    ):
        done = filled.call(*command)
        assert (command, done.exit_code) == (command, exit_code)
        is_listed = command[-1] == "r-1" or "--from" in command
        assert done.stderr.count(LEFT_OUT) == (is_listed and command[0] != "retry")
    assert watching.call("ingest").stderr.count(LEFT_OUT) == 1
    preview = filled.call("ingest", "--dry-run", "--refresh", "r-1", "--json")
    assert preview.json() == {"would_fetch": []}
    assert ledger_row(engine, "r-1") == dropped
    assert api.requests["r-1"] == before

    done = filled.call("track", "--again", "--from", str(listed))
    assert (done.exit_code, done.stdout) == (0, "0 new, 1 known already, 1 taken back\n")
    row = ledger_row(engine, "r-1")
    assert (row["state"], row["fetches"]) == ("queued", 0)
    assert row["read_token"] is not None
    assert filled.call("ingest").exit_code == 0
    assert ledger_row(engine, "r-1")["state"] == "settled"
    assert filled.call("verify").exit_code == 0


def test_the_ledgers_metrics_count_dropped_runs(filled: Program) -> None:
    metrics = filled.folder / "metrics.prom"
    filled.call("drop", "r-1", "mistyped", "--yes")
    filled.given(RESULT_ARCHIVER__TELEMETRY__METRICS_FILE=str(metrics)).call("ingest")
    lines = metrics.read_text(encoding="utf-8").splitlines()
    assert 'result_archiver_runs{source="default",state="dropped"} 2.0' in lines
    assert 'result_archiver_runs{source="default",state="failed"} 0.0' in lines


def test_a_held_run_is_told_on_stderr(engine: Engine, filled: Program, api: FakeApi) -> None:
    lease(engine, "r-1", datetime(2999, 1, 1, tzinfo=UTC))
    done = filled.call("drop", "r-1", "--yes")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "error: nothing was dropped: another process is fetching"
        " r-1 (until 2999-01-01 00:00:00 UTC); repeat the command when its leases have expired\n"
    )
    api.other = Answer()

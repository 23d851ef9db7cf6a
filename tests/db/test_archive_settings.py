"""The settings of derived rows: stored, used, and replaced by a rebuild alone."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine, event, select, text

from etl.archive.replay import replay_archive
from etl.archive.verify import verify_archive
from etl.config.settings import Reporting, StoredSettings
from etl.db import archive_settings, database
from etl.db.database import connect, prepare, reading, writing
from etl.db.schema import archive_settings as settings_table
from etl.db.schema import metadata, runs
from etl.errors import DatabaseError, Fault
from tests.db.test_rejects import refuse, track
from tests.support.dump import COUNTED
from tests.support.fake_api import Answer, FakeApi
from tests.support.histories import a_run, derive_with, named_rows, see
from tests.support.program import Program, program

START = datetime(2024, 3, 4, 22, 30, tzinfo=UTC)
"""Half past seven on the next morning in Tokyo."""
DAY = timedelta(days=1)
LETTERS = "PFPPFPPPFP"
OLD = Reporting()
CHANGES: list[dict[str, Any]] = [
    {"time_zone": "Asia/Tokyo"},
    {"window_results": 3},
    {"window_days": 2},
    {"flaky_min_results": 11},
    {"flaky_min_flips": 9},
    {"flaky_min_flip_rate": 0.9},
    {"time_zone": "America/New_York", "window_results": 4, "window_days": 5},
]
NAMES = [" ".join(change) for change in CHANGES]


def run_of(number: int) -> dict[str, Any]:
    letter = LETTERS[number % len(LETTERS)]
    started_at = (START + number * DAY).isoformat()
    return a_run(started_at, {"login": letter, "pay": "P"}, duration=60_000 + 1000 * number**2)


def store_runs(engine: Engine, reporting: Reporting, numbers: range) -> None:
    """Store runs as a pass does that uses the archive's settings."""
    for number in numbers:
        at = START + number * DAY + timedelta(hours=1)
        answers = {f"run-{number}": run_of(number)}
        see(engine, at, answers, rules=reporting.rules, zone=reporting.zone)


def derived(engine: Engine) -> dict[str, list[Any]]:
    """Return all derived rows, and the days of the runs."""
    with reading(engine) as connection:
        days = sorted(
            tuple(row) for row in connection.execute(select(runs.c.run_id, runs.c.started_on))
        )
    tables = {name: sorted(named_rows(engine, metadata.tables[name]), key=repr) for name in COUNTED}
    return {**tables, "runs": days}


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Another archive, without runs."""
    engine = connect(f"sqlite:///{tmp_path_factory.mktemp('fresh')}/fresh.db")
    prepare(engine)
    yield engine
    engine.dispose()


def rebuild(engine: Engine, wanted: Reporting) -> None:
    for _ in replay_archive(engine, wanted):
        pass


def stored_settings(engine: Engine) -> dict[str, str]:
    with reading(engine) as connection:
        rows = connection.execute(select(settings_table)).all()
    assert all(row.description for row in rows)
    return {row.name: row.value for row in rows}


def program_at(engine: Engine, api: FakeApi, tmp_path: Any, change: dict[str, Any]) -> Program:
    url = engine.url.render_as_string(hide_password=False)
    variables = {f"RESULT_ARCHIVER__REPORTING__{k.upper()}": str(v) for k, v in change.items()}
    return program(tmp_path, url, api.url).given(**variables)


# --- what is stored ---------------------------------------------------------------------------


def test_a_new_archive_keeps_the_settings_that_it_is_made_with(database_url: str) -> None:
    engine = connect(database_url)
    prepare(engine, StoredSettings(Reporting("Asia/Tokyo", flaky_min_flip_rate=0.25)))
    stored = stored_settings(engine)
    is_postgresql = engine.dialect.name == "postgresql"
    assert stored.pop("database.reporting_schema", None) == ("reporting" if is_postgresql else None)
    assert len(stored.pop("archive_id")) == 36
    assert stored == {
        "schema_version": database.HEAD,
        "view_version": "1",
        "metric_version": database.METRIC_VERSION,
        "reporting.time_zone": "Asia/Tokyo",
        "reporting.window_results": "10",
        "reporting.window_days": "30",
        "reporting.flaky_min_results": "5",
        "reporting.flaky_min_flips": "2",
        "reporting.flaky_min_flip_rate": "0.25",
    }
    database.downgrade(engine, "0003")
    assert stored_settings(engine)["schema_version"] == "0003"
    engine.dispose()


def test_every_setting_of_reports_is_stored(engine: Engine) -> None:
    with reading(engine) as connection:
        assert archive_settings.read_settings(connection).reporting == OLD
    for change in CHANGES:
        wanted = replace(OLD, **change)
        derive_with(engine, wanted)
        with reading(engine) as connection:
            assert archive_settings.read_settings(connection).reporting == wanted


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE archive_settings SET value = 'ten' WHERE name = 'reporting.window_results'",
        "UPDATE archive_settings SET value = 'Mars' WHERE name = 'reporting.time_zone'",
        "UPDATE archive_settings SET value = '-1' WHERE name = 'reporting.window_days'",
    ],
)
def test_a_damaged_setting_is_told_and_mended(
    engine: Engine, api: FakeApi, tmp_path: Any, statement: str
) -> None:
    store_runs(engine, OLD, range(3))
    before = derived(engine)
    with writing(engine) as connection:
        connection.execute(text(statement))
    archiver = program_at(engine, api, tmp_path, {})
    done = archiver.call("report", "overview")
    assert done.exit_code == 4
    assert ": a row of archive_settings is damaged: " in done.stderr
    assert archiver.call("replay").exit_code == 0
    assert archiver.call("report", "overview").exit_code == 0
    assert derived(engine) == before


# --- changed settings -------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_a_replay_makes_the_rows_of_a_fresh_archive(
    engine: Engine, fresh: Engine, change: dict[str, Any]
) -> None:
    wanted = replace(OLD, **change)
    store_runs(engine, OLD, range(12))
    old = derived(engine)
    derive_with(fresh, wanted)
    store_runs(fresh, wanted, range(12))
    rebuild(engine, wanted)
    assert derived(engine) == derived(fresh) != old
    rebuild(engine, OLD)
    assert derived(engine) == old


@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_a_pass_goes_on_with_the_stored_settings_and_says_so(
    engine: Engine, api: FakeApi, tmp_path: Any, change: dict[str, Any]
) -> None:
    wanted = replace(OLD, **change)
    store_runs(engine, OLD, range(10))
    api.answers = {f"run-{number}": [answer(number)] for number in range(10, 13)}
    changed = program_at(engine, api, tmp_path, change)
    done = changed.call("ingest", *api.answers)
    assert done.exit_code == 0
    warnings = [line for line in done.stderr.splitlines() if "a setting differs" in line]
    assert len(warnings) == len(change)
    for line, (name, value) in zip(warnings, change.items(), strict=True):
        assert f"setting=reporting.{name}" in line
        assert f"configured={value}" in line
        assert f"stored={getattr(OLD, name)}" in line
        assert "`result-archiver replay`" in line
    assert changed.call("verify").exit_code == 0
    assert wrong_rows(engine, OLD) == []
    assert changed.call("replay").exit_code == 0
    assert wrong_rows(engine, wanted) == []
    api.answers["run-13"] = [answer(13)]
    done = changed.call("ingest", "run-13")
    assert "a setting differs" not in done.stderr
    assert wrong_rows(engine, wanted) == []


def answer(number: int) -> Answer:
    return Answer(json.dumps({"result": run_of(number)}).encode())


def wrong_rows(engine: Engine, derived_with: Reporting) -> list[Any]:
    return [each for batch in verify_archive(engine, derived_with) for each in batch.differing]


def test_dropped_runs_leave_rows_of_the_stored_settings(
    engine: Engine, api: FakeApi, tmp_path: Any
) -> None:
    store_runs(engine, OLD, range(12))
    for run_id, change in zip(("run-11", "run-5", "run-8"), CHANGES, strict=False):
        changed = program_at(engine, api, tmp_path, change)
        assert changed.call("drop", run_id, "--yes").exit_code == 0
        assert wrong_rows(engine, OLD) == []


@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_a_replay_archives_rejects_with_the_new_settings(
    engine: Engine, api: FakeApi, tmp_path: Any, change: dict[str, Any]
) -> None:
    store_runs(engine, OLD, range(5))
    with writing(engine) as connection:
        track(connection, "run-5")
        refuse(connection, "run-5", START + 6 * DAY, answer(5).body)
    changed = program_at(engine, api, tmp_path, change)
    assert changed.call("replay").exit_code == 0
    assert "run-5" in dict(derived(engine)["runs"])
    assert wrong_rows(engine, replace(OLD, **change)) == []


@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
@pytest.mark.parametrize("report", ["trend", "flaky", "durations", "overview"])
def test_reports_use_the_stored_settings_and_say_so(
    engine: Engine, api: FakeApi, tmp_path: Any, report: str, change: dict[str, Any]
) -> None:
    store_runs(engine, OLD, range(12))
    arguments = ["report", report, "--as-of=2024-03-20", "--json"]
    before = program_at(engine, api, tmp_path, {}).call(*arguments)
    done = program_at(engine, api, tmp_path, change).call(*arguments)
    assert (done.exit_code, done.stdout, before.stderr) == (0, before.stdout, "")
    assert done.stderr.splitlines() == [
        f"reporting.{name} is '{value}' in the configuration, but '{getattr(OLD, name)}' in the"
        " archive, which goes on with that; `result-archiver replay` changes the archive to the"
        " configuration"
        for name, value in change.items()
    ]


# --- a rebuild that is not over ---------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_nothing_reads_or_writes_while_rows_are_derived_with_new_settings(
    engine: Engine, api: FakeApi, tmp_path: Any, steps: int
) -> None:
    wanted = replace(OLD, time_zone="Asia/Tokyo", window_results=3)
    store_runs(engine, OLD, range(5))
    for _ in islice(replay_archive(engine, wanted), steps):
        pass
    api.answers = {"run-5": [answer(5)]}
    archiver = program_at(engine, api, tmp_path, {})
    for command in (["ingest", "run-5"], ["report", "trend"], ["alias", "add", "a", "b"]):
        arguments = [*command, "--application=shop"] if "alias" in command else command
        done = archiver.call(*arguments)
        assert (done.exit_code, "its derived rows are incomplete" in done.stderr) == (4, True)
    assert archiver.call("db", "upgrade").exit_code == 0
    assert wrong_rows(engine, wanted) == []
    assert archiver.call("ingest", "run-5").exit_code == 0
    assert wrong_rows(engine, wanted) == []


def test_a_replay_can_be_interrupted_and_told_otherwise(engine: Engine) -> None:
    store_runs(engine, OLD, range(5))
    first = replay_archive(engine, replace(OLD, time_zone="Asia/Tokyo"))
    next(first)
    rebuild(engine, OLD)
    with pytest.raises(DatabaseError, match="a replay has changed the settings") as caught:
        list(first)
    assert caught.value.reason == Fault.BEHIND
    assert wrong_rows(engine, OLD) == []


def test_a_pass_does_not_mix_settings_that_change_under_it(engine: Engine) -> None:
    """It began with the old ones; its next commit is refused, and its runs stay due."""
    with writing(engine) as connection:
        archive_settings.require_settings(connection, OLD)
    tokyo = replace(OLD, time_zone="Asia/Tokyo")
    archive_settings.begin_rebuild(engine, tokyo)
    for settings in (OLD, tokyo):
        with writing(engine) as connection, pytest.raises(DatabaseError, match="incomplete"):
            archive_settings.require_settings(connection, settings)
    archive_settings.end_rebuild(engine, tokyo)
    with writing(engine) as connection, pytest.raises(DatabaseError, match="has changed"):
        archive_settings.require_settings(connection, OLD)
    with writing(engine) as connection:
        archive_settings.require_settings(connection, tokyo)


def test_new_settings_wait_for_the_rows_of_the_old_ones(postgresql_url: str) -> None:
    """A commit that holds the old settings is over before they change."""
    engine = connect(postgresql_url)
    prepare(engine)
    impatient = connect(postgresql_url).execution_options()
    with writing(engine) as connection:
        archive_settings.hold_settings(connection)
        with pytest.raises(DatabaseError, match="lock timeout"):
            run_with_timeout(impatient)
    archive_settings.begin_rebuild(engine, replace(OLD, window_days=7))
    for each in (engine, impatient):
        each.dispose()


def run_with_timeout(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def _hurry(connection: Any) -> None:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '100ms'")

    archive_settings.begin_rebuild(engine, replace(OLD, window_days=7))


# --- kills ------------------------------------------------------------------------------------


INSTANTS = {
    "tables": "SELECT count(*) FROM archive_settings WHERE name = 'metric_version' AND value = ''",
    "runs": "SELECT count(*) FROM outcomes",
    "plans": "SELECT count(*) FROM daily_results",
}


@pytest.mark.parametrize("instant", INSTANTS)
def test_an_upgrade_that_was_killed_goes_on(
    engine: Engine, api: FakeApi, tmp_path: Any, instant: str
) -> None:
    many = {
        f"run-{number}": run_of(number) | {"application": f"shop-{number % 25}"}
        for number in range(300)
    }
    see(engine, START + 301 * DAY, many, zone=UTC)
    before = derived(engine)
    archiver = program_at(engine, api, tmp_path, {})
    assert archiver.call("db", "downgrade", "0001").exit_code == 0
    with archiver.started("db", "upgrade") as process:
        while process.poll() is None and not has_begun(engine, instant):
            time.sleep(0.001)
        process.kill()
        process.wait(60)
    is_whole = process.returncode == 0
    api.answers = {"run-3": [answer(3)]}
    done = archiver.call("ingest", "run-3", "--refresh")
    assert is_whole or done.exit_code == 4
    assert is_whole or "`result-archiver db upgrade` goes on with it" in done.stderr
    assert archiver.call("db", "upgrade").exit_code == 0
    assert archiver.call("verify").exit_code == 0
    without = ("identities", "aliases")  # the next pass measures them
    after = derived(engine)
    if not is_whole:
        assert {name: after[name] for name in after if name not in without} == {
            name: before[name] for name in before if name not in without
        }


def has_begun(engine: Engine, instant: str) -> bool:
    try:
        with reading(engine) as connection:
            return bool(connection.scalar(text(INSTANTS[instant])))
    except DatabaseError:  # there is no such table yet
        return False


def test_a_rebuild_may_be_idle_while_it_computes(postgresql_url: str) -> None:
    engine = connect(postgresql_url)
    prepare(engine)
    with writing(engine) as connection:
        archive_settings.require_rebuild(connection, OLD)
        assert connection.scalar(text("SHOW idle_in_transaction_session_timeout")) == "0"
    engine.dispose()

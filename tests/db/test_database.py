import multiprocessing
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    CheckConstraint,
    Connection,
    Engine,
    ForeignKeyConstraint,
    Table,
    delete,
    insert,
    inspect,
    make_url,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, StatementError

from etl.answers.rows import COUNTERS
from etl.db import database
from etl.db.database import HEAD, connect, prepare, reading, shown_url, snapshot, writing
from etl.db.schema import (
    SERIES_CLASSES,
    VERSION_TABLE,
    counts,
    dirty_marks,
    drift,
    durations,
    environments,
    identities,
    identity_decisions,
    labels,
    metadata,
    outcomes,
    payloads,
    plan_variants,
    rejects,
    revisions,
    rosters,
    runs,
    series_metrics,
    status_changes,
    test_revisions,
    tests,
    tracked_runs,
    warnings,
)
from etl.errors import DatabaseError, Fault
from tests.support.dump import LEDGER, dump, rows_of
from tests.support.postgres import Server, free_port

NOW = datetime(2024, 3, 1, 12, 0, 0, 123000, UTC)
OLDER, NEWER = "0001", "9999"

RUN = {"run_id": "run-1"}
TRACKED = RUN | {"source": "default", "state": "queued", "first_tracked_at": NOW}
ARCHIVED = RUN | {
    "source": "default",
    "environment_count": 0,
    "test_count": 0,
    "environment_signature": "[]",
    "revision": 1,
    "content_hash": "c0ffee",
    "archived_at": NOW,
    "changed_at": NOW,
    "row_changed_at": NOW,
}
REVISION = RUN | {"revision": 1, "observed_at": NOW, "content_hash": "c0ffee"}
PAYLOAD = RUN | {
    "revision": 1,
    "body": b"",
    "encoding": "zstd",
    "size": 0,
    "sha256": "c0ffee",
    "fetched_at": NOW,
}
REJECT = RUN | {
    "id": "reject-1",
    "fetched_at": NOW,
    "http_status": 200,
    "reason": "the answer is empty",
    "body": b"",
    "sha256": "c0ffee",
}
VARIANT = {
    "variant_id": "variant-1",
    "plan_id": "plan-1",
    "source": "default",
    "application": "Shop",
    "plan": "Nightly",
    "environment_signature": "[]",
}
ROSTER = {"roster_id": "roster-1", "tests": "[]"}
MARK = {"variant_id": "variant-1", "run_id": "run-1", "revision": 1}
COUNTED = dict.fromkeys(COUNTERS, 0)
OUTCOME = RUN | {
    "revision": 1,
    "observed_at": NOW,
    "variant_id": "variant-1",
    "roster_id": "roster-1",
    "outcomes": "",
    "tests_unknown": 0,
    **{f"{scope}_{name}": 0 for scope in ("checks", "tests") for name in COUNTERS},
}
STATUS_CHANGE = RUN | {
    "revision": 1,
    "position": 0,
    "change": "changed",
    "last_seen_at": NOW,
    "changed_by": NOW,
}
SERIES_METRICS = COUNTED | {
    "variant_id": "variant-1",
    "metrics_id": "metrics-1",
    "decided": 0,
    "flips": 0,
    **dict.fromkeys(SERIES_CLASSES, False),
    "fail_streak": 0,
    "recent": "",
    "last_run_id": "run-1",
    "last_started_at": NOW,
    "window_starts_at": NOW,
    "first_seen_on": NOW.date(),
    "iso_date": "2024-03-01",
}
IDENTITY = {
    "source": "default",
    "application": "Shop",
    "compared": 0,
    "repeated": 0,
    "key_kind": "name",
    "decided_at": NOW,
    "measured_at": NOW,
    "is_applied": True,
    "digest": "c0ffee",
}
DURATIONS = {
    "variant_id": "variant-1",
    "measured": 1,
    "p50_ms": 1,
    "p95_ms": 1,
    "p50_last_7_days_ms": 1,
    "last_run_id": "run-1",
    "last_started_at": NOW,
    "last_duration_ms": 1,
    "is_slow": False,
}
A_ROW_OF_EACH: list[tuple[Table, dict[str, Any]]] = [
    (tracked_runs, TRACKED),
    (labels, RUN | {"name": "branch", "value": "main"}),
    (runs, ARCHIVED),
    (environments, RUN | {"position": 1}),
    (tests, RUN | {"position": 1}),
    (counts, RUN | {"test_position": 0, "scope": "run"}),
    (revisions, REVISION),
    (test_revisions, RUN | {"revision": 1, "position": 1, "absent": True}),
    (payloads, PAYLOAD),
    (warnings, RUN | {"revision": 1, "path": "result.name", "reason": "is no text"}),
    (rejects, REJECT),
    (plan_variants, VARIANT),
    (rosters, ROSTER),
    (outcomes, OUTCOME),
    (dirty_marks, MARK),
    (status_changes, STATUS_CHANGE),
]

NEW = {"run_id": "run-2"}
THREE = {"revision": 3}
ROWS_TO_REFUSE: list[tuple[str, Table, dict[str, Any]]] = [
    ("ck_tracked_runs_state", tracked_runs, TRACKED | NEW | {"state": "asleep"}),
    ("ck_tracked_runs_lease", tracked_runs, TRACKED | NEW | {"lease_owner": "somebody"}),
    ("ck_tracked_runs_lease", tracked_runs, TRACKED | NEW | {"lease_until": NOW}),
    ("ck_runs_revision", runs, ARCHIVED | {"run_id": "run-3", "revision": 0}),
    ("ck_environments_position", environments, RUN | {"position": 0}),
    ("ck_tests_position", tests, RUN | {"position": 0}),
    ("ck_counts_scope", counts, RUN | {"test_position": 1, "scope": "run"}),
    ("ck_counts_scope", counts, RUN | {"test_position": 0, "scope": "test"}),
    ("ck_counts_scope", counts, RUN | {"test_position": -1, "scope": "test"}),
    ("ck_revisions_revision", revisions, REVISION | {"revision": 0}),
    ("ck_revisions_stretch", revisions, REVISION | {"revision": 2, "last_seen_at": NOW}),
    ("ck_revisions_stretch", revisions, REVISION | {"revision": 2, "superseded_at": NOW}),
    ("fk_labels_tracked_runs", labels, NEW | {"name": "branch", "value": "main"}),
    ("fk_runs_tracked_runs", runs, ARCHIVED | NEW),
    ("fk_environments_runs", environments, NEW | {"position": 1}),
    ("fk_tests_runs", tests, NEW | {"position": 1}),
    ("fk_counts_runs", counts, NEW | {"test_position": 0, "scope": "run"}),
    ("fk_revisions_runs", revisions, REVISION | NEW),
    (
        "fk_test_revisions_revisions",
        test_revisions,
        RUN | {"revision": 2, "position": 1, "absent": True},
    ),
    ("fk_payloads_tracked_runs", payloads, PAYLOAD | NEW),
    (
        "fk_warnings_revisions",
        warnings,
        RUN | {"revision": 2, "path": "result.name", "reason": "is no text"},
    ),
    ("fk_rejects_tracked_runs", rejects, REJECT | NEW | {"id": "reject-2"}),
    ("fk_outcomes_revisions", outcomes, OUTCOME | {"revision": 2}),
    ("fk_outcomes_plan_variants", outcomes, OUTCOME | THREE | {"variant_id": "variant-2"}),
    ("fk_outcomes_rosters", outcomes, OUTCOME | THREE | {"roster_id": "roster-2"}),
    ("fk_status_changes_revisions", status_changes, STATUS_CHANGE | {"revision": 2}),
    ("fk_dirty_marks_tracked_runs", dirty_marks, MARK | {"run_id": "run-2"}),
    ("fk_dirty_marks_plan_variants", dirty_marks, MARK | {"variant_id": "variant-2"}),
    ("ck_status_changes_change", status_changes, STATUS_CHANGE | {"change": "moved"}),
    (
        "fk_series_metrics_plan_variants",
        series_metrics,
        SERIES_METRICS | {"variant_id": "variant-2"},
    ),
    ("fk_durations_plan_variants", durations, DURATIONS | {"variant_id": "variant-2"}),
    (
        "ck_identities_key_kind",
        identities,
        IDENTITY | {"key_kind": "no"},
    ),
    (
        "ck_identity_decisions_key_kind",
        identity_decisions,
        {name: IDENTITY[name] for name in ("source", "application", "decided_at")}
        | {"key_kind": "no"},
    ),
]


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine for a database that has no archive yet."""
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A transaction in a new archive with a row in every table."""
    prepare(engine)
    with writing(engine) as connection:
        for table, row in A_ROW_OF_EACH:
            connection.execute(insert(table).values(row))
        yield connection


def complaint(about: Callable[..., Any], *arguments: Any) -> str:
    """Return the one line of the DatabaseError that a call ends with."""
    with pytest.raises(DatabaseError) as caught:
        about(*arguments)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


# --- migrations and models ------------------------------------------------------------------


def test_head_is_the_newest_migration() -> None:
    assert ScriptDirectory(database.migrations_folder()).get_heads() == [HEAD]


def test_the_migrations_build_what_the_models_describe(engine: Engine) -> None:
    prepare(engine)
    with reading(engine) as connection:
        options = {"compare_server_default": True, "version_table": VERSION_TABLE}
        assert (
            compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
        )


def statements(engine: Engine) -> dict[str, list[str]]:
    """Return each CREATE statement of a SQLite database; the order of its lines means nothing."""
    query = text(
        "SELECT name, sql FROM sqlite_master"
        " WHERE type IN ('table', 'index') AND sql IS NOT NULL"
        " AND name != 'result_archiver_version'"
    )
    with reading(engine) as connection:
        return {
            name: sorted(
                line.strip().rstrip(",") for line in re.sub(r"[ \t]+", " ", sql).splitlines()
            )
            for name, sql in connection.execute(query)
        }


def test_sqlite_has_the_very_statements_of_the_models(sqlite_url: str, tmp_path: Path) -> None:
    """Names of constraints, WITHOUT ROWID, and types that compare_metadata takes for the same."""
    migrated, described = connect(sqlite_url), connect(f"sqlite:///{tmp_path}/described.db")
    prepare(migrated)
    with writing(described) as connection:
        metadata.create_all(connection)
    assert statements(migrated) == statements(described)
    migrated.dispose()
    described.dispose()


def structure(engine: Engine) -> dict[str, Any]:
    """Return what a PostgreSQL database says of its tables, as text that can be compared."""
    looked = inspect(engine)
    return {
        name: {
            "columns": [str(column) for column in looked.get_columns(name)],
            "primary key": looked.get_pk_constraint(name),
            "foreign keys": sorted(looked.get_foreign_keys(name), key=str),
            "checks": sorted(looked.get_check_constraints(name), key=str),
            "uniques": looked.get_unique_constraints(name),
            "indexes": looked.get_indexes(name),
        }
        for name in looked.get_table_names()
        if name != "result_archiver_version"
    }


def test_postgresql_has_the_very_structure_of_the_models(
    postgresql_url: str, postgresql: Server
) -> None:
    migrated = connect(postgresql_url)
    prepare(migrated)
    with postgresql.database() as url:
        described = connect(url)
        with writing(described) as connection:
            metadata.create_all(connection)
        assert structure(migrated) == structure(described)
        described.dispose()
    migrated.dispose()


def test_sqlite_declares_the_types_that_bi_clients_need(sqlite_url: str) -> None:
    """DESIGN, section 6. INTEGER is read as 32 bits, but the only type that counts up."""
    engine = connect(sqlite_url)
    prepare(engine)
    with reading(engine) as connection:
        declared = {
            (table, column): kind
            for table in metadata.tables
            for _, column, kind, *_ in connection.exec_driver_sql(f"PRAGMA table_info({table})")
        }
    engine.dispose()
    assert declared["runs", "started_at"] == declared["runs", "started_on"] == "DATETIME"
    assert declared.pop(("ingests", "id")) == "INTEGER"
    assert set(declared.values()) == {
        "TEXT", "BIGINT", "DOUBLE", "DATETIME", "JSON", "BLOB", "BOOLEAN",
    }  # fmt: skip


def test_an_empty_archive_can_be_taken_down_and_built_again(engine: Engine) -> None:
    prepare(engine)
    database.downgrade(engine, "base")
    assert inspect(engine).get_table_names() == ["result_archiver_version"]
    assert inspect(engine).get_view_names() == []
    assert database.current_revision(engine) is None
    prepare(engine)
    assert database.current_revision(engine) == HEAD


def test_an_archive_with_runs_is_not_taken_down(engine: Engine) -> None:
    prepare(engine)
    with writing(engine) as connection:
        connection.execute(insert(tracked_runs).values(TRACKED))
        before = dump(connection)
    assert "it is not empty" in complaint(database.downgrade, engine, "base")
    assert database.current_revision(engine) == HEAD
    with reading(engine) as connection:
        assert dump(connection) == before


def test_a_revision_that_is_not_there_is_named(engine: Engine) -> None:
    prepare(engine)
    assert "'4711'" in complaint(database.downgrade, engine, "4711")


def prepare_together(url: str, barrier: Barrier) -> None:
    """Wait for the other processes to be ready, then make the archive at the same time."""
    engine = connect(url)
    barrier.wait(60)
    prepare(engine)
    engine.dispose()


def test_several_processes_can_make_the_same_new_archive(engine: Engine, database_url: str) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports once for all of them
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=prepare_together, args=(database_url, barrier)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert database.has_archive(engine)


# --- constraints ----------------------------------------------------------------------------


def test_there_is_a_row_to_refuse_for_every_check_and_foreign_key() -> None:
    declared = {
        constraint.name
        for table in metadata.sorted_tables
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint | ForeignKeyConstraint)
    }
    assert {name for name, _table, _row in ROWS_TO_REFUSE} == declared


def refusal(connection: Connection, table: Table, row: dict[str, Any]) -> str:
    """Return what the database has against a row, nothing if it takes it."""
    savepoint = connection.begin_nested()
    try:
        connection.execute(insert(table).values(row))
    except IntegrityError as error:
        return str(error.orig)
    finally:
        savepoint.rollback()
    return ""


def test_every_check_and_foreign_key_refuses_what_it_is_there_for(connection: Connection) -> None:
    connection.execute(insert(tracked_runs).values(TRACKED | {"run_id": "run-3"}))
    connection.execute(insert(revisions).values(REVISION | THREE))
    is_nameless = connection.dialect.name == "sqlite"  # its message does not say which key it was
    for name, table, row in ROWS_TO_REFUSE:
        reason = "FOREIGN KEY" if is_nameless and name.startswith("fk_") else rf"[ \"]{name}\b"
        assert re.search(reason, refusal(connection, table, row)), row


def test_a_run_that_leaves_the_ledger_takes_all_its_rows_along(connection: Connection) -> None:
    of_runs = [table for table in metadata.tables.values() if "run_id" in table.c]
    assert all(rows_of(connection, table) for table in of_runs)
    connection.execute(delete(tracked_runs))
    assert not any(rows_of(connection, table) for table in of_runs)


def test_a_replay_can_delete_runs_and_keep_their_payloads(connection: Connection) -> None:
    connection.execute(delete(runs))
    left = {name for name, rows in dump(connection, leave_out=LEDGER).items() if rows}
    assert left == {"labels", "payloads", "rejects", "plan_variants", "rosters", "dirty_marks"}


def test_a_naive_time_is_refused(connection: Connection) -> None:
    naive = datetime(2024, 1, 1)  # noqa: DTZ001  the mistake itself
    with pytest.raises(StatementError, match="2024-01-01 00:00:00 has no time zone"):
        connection.execute(select(drift).where(drift.c.first_seen_at == naive))


# --- what can be wrong with a database ------------------------------------------------------


def test_an_archive_that_is_behind_says_what_to_run(engine: Engine) -> None:
    prepare(engine)
    database.downgrade(engine, OLDER)
    message = (
        f"{shown_url(engine)}: its tables are at revision {OLDER}, this version needs {HEAD};"
        " run `result-archiver db upgrade`"
    )
    assert complaint(prepare, engine) == message
    assert complaint(database.has_archive, engine) == message
    assert complaint(database.require_archive, engine) == message
    assert database.current_revision(engine) == OLDER


@pytest.mark.parametrize(
    ("revision", "remedy", "reason"),
    [
        (OLDER, "run `result-archiver db upgrade`", Fault.BEHIND),
        (NEWER, "install the newer result-archiver", Fault.AHEAD),
    ],
)
def test_an_error_has_problem_remedy_and_reason_code_apart(
    engine: Engine, revision: str, remedy: str, reason: Fault
) -> None:
    prepare(engine)
    with writing(engine) as connection:
        connection.execute(text(f"UPDATE result_archiver_version SET version_num = '{revision}'"))
    with pytest.raises(DatabaseError) as caught:
        database.require_archive(engine)
    error = caught.value
    assert str(error) == f"{error.problem}; {error.remedy}"
    assert error.problem.startswith(f"{shown_url(engine)}: its tables are at revision {revision}")
    assert (error.remedy, error.reason) == (remedy, reason)


def test_an_archive_that_is_ahead_says_so(engine: Engine) -> None:
    prepare(engine)
    with writing(engine) as connection:
        connection.execute(text(f"UPDATE result_archiver_version SET version_num = '{NEWER}'"))
    assert complaint(prepare, engine) == (
        f"{shown_url(engine)}: its tables are at revision {NEWER}, which is newer than this"
        f" version ({HEAD}); install the newer result-archiver"
    )


def test_a_database_without_an_archive_says_what_makes_one(engine: Engine) -> None:
    assert not database.has_archive(engine)
    assert complaint(database.require_archive, engine) == (
        f"{shown_url(engine)}: has no archive yet; `result-archiver ingest` makes one"
    )


def test_asking_for_an_archive_does_not_make_a_file(sqlite_url: str, tmp_path: Path) -> None:
    assert not database.has_archive(connect(sqlite_url))
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_is_there_is_left_as_it_is(engine: Engine) -> None:
    prepare(engine)
    with writing(engine) as connection:
        connection.execute(insert(tracked_runs).values(TRACKED))
        before = dump(connection)
    prepare(engine)
    database.upgrade(engine)
    database.require_archive(engine)
    with reading(engine) as connection:
        assert dump(connection) == before


@pytest.mark.parametrize("make", [prepare, database.upgrade])
def test_the_folder_of_a_new_archive_is_made(tmp_path: Path, make: Callable[..., None]) -> None:
    engine = connect(f"sqlite:///{tmp_path}/new/folder/archive.db")
    make(engine)
    assert database.has_archive(engine)
    engine.dispose()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = complaint(database.upgrade, connect(f"sqlite:///{tmp_path}/file/new/archive.db"))
    assert message == (
        f"{tmp_path}/file/new/archive.db: its folder cannot be made: Not a directory"
    )


def test_a_folder_that_cannot_be_written_to_is_told() -> None:
    """Not even root can make a file in /sys."""
    message = complaint(prepare, connect("sqlite:////sys/archive.db"))
    assert message.startswith("sqlite:////sys/archive.db: unable to open database file; ")


def test_a_file_that_is_no_database_is_told(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "archive.db").write_text("run_id,read_token\n" * 100)
    engine = connect(sqlite_url)
    assert complaint(prepare, engine) == f"{sqlite_url}: file is not a database"
    assert complaint(database.has_archive, engine) == f"{sqlite_url}: file is not a database"
    engine.dispose()


def test_a_server_that_cannot_be_reached_is_told_without_the_password() -> None:
    port = free_port()
    engine = connect(f"postgresql+psycopg://archiver:hunter2@127.0.0.1:{port}/archive")
    message = complaint(prepare, engine)
    assert message.startswith(f"postgresql://archiver:***@127.0.0.1:{port}/archive: ")
    assert "Connection refused" in message
    assert "hunter2" not in message


@pytest.mark.parametrize("default", ["repeatable read", "serializable"])
def test_who_waits_for_a_lock_sees_what_came_of_it_whatever_the_servers_default(
    postgresql_url: str, default: str
) -> None:
    """Else a run that somebody else has just tracked would be tracked a second time."""
    options = f"-c default_transaction_isolation={default.replace(' ', chr(92) + ' ')}"
    url = make_url(postgresql_url).update_query_dict({"options": options})
    engine = connect(url.render_as_string(hide_password=False))
    for room, level in ((writing, "read committed"), (snapshot, "repeatable read")):
        with room(engine) as connection:
            assert connection.scalar(text("SHOW default_transaction_isolation")) == default
            assert connection.scalar(text("SHOW transaction_isolation")) == level
    engine.dispose()


def test_a_server_ends_a_transaction_that_a_lost_host_has_begun(postgresql_url: str) -> None:
    """Its locks would hold up all others for two hours, until the server misses the host."""
    engine = connect(postgresql_url)
    with reading(engine) as connection:
        assert connection.scalar(text("SHOW idle_in_transaction_session_timeout")) == "1min"
        for name, value in {
            "tcp_user_timeout": "25000",
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
        }.items():
            assert connection.scalar(text(f"SHOW {name}")) == value
    engine.dispose()


def test_a_wrong_password_is_told_without_it(postgresql_url: str) -> None:
    url = make_url(postgresql_url).set(password="hunter2")
    engine = connect(url.render_as_string(hide_password=False))
    message = complaint(prepare, engine)
    assert message.startswith(f"{shown_url(engine)}: ")
    assert 'password authentication failed for user "archiver"' in message
    assert "hunter2" not in message


@pytest.mark.parametrize("url", ["postgresql+psycopg://u:hunter2@host:port/db", "no url"])
def test_a_broken_url_is_told_without_the_password(url: str) -> None:
    shown = url.replace("hunter2", "***")
    assert complaint(connect, url) == f"database.url is {shown!r}: not a URL"


def insert_a_run_with_a_wrong_state(engine: Engine) -> None:
    with writing(engine) as connection:
        row = TRACKED | {"state": "asleep", "read_token": "hunter2"}
        connection.execute(insert(tracked_runs).values(row))


def test_a_statement_that_fails_is_told_without_its_values(engine: Engine) -> None:
    prepare(engine)
    message = complaint(insert_a_run_with_a_wrong_state, engine)
    assert "ck_tracked_runs_state" in message
    assert "hunter2" not in message
    assert "INSERT" not in message


# --- transactions ---------------------------------------------------------------------------


def count_up(engine: Engine, times: int) -> None:
    for _ in range(times):
        with writing(engine) as connection:
            fetches = connection.scalar(select(tracked_runs.c.fetches)) or 0
            connection.execute(update(tracked_runs).values(fetches=fetches + 1))


def test_a_writer_on_sqlite_waits_for_another_before_it_reads(sqlite_url: str) -> None:
    """A transaction that has read cannot write once somebody else wrote: it would have to fail."""
    engine = connect(sqlite_url)
    prepare(engine)
    with writing(engine) as connection:
        connection.execute(insert(tracked_runs).values(TRACKED))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(count_up, [engine] * 4, [10] * 4))
    with reading(engine) as connection:
        assert connection.scalar(select(tracked_runs.c.fetches)) == 40
    engine.dispose()

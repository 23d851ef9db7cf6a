"""Errors of a database are told apart by what they concern: one run's values, or every run."""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, Engine, make_url, text

from etl.db.database import connect, connect_to_read, current_revision, prepare, reading, writing
from etl.errors import DatabaseError, Fault, OutOfFilesError
from tests.support.limits import no_file_left
from tests.support.postgres import IN_ENCODING, ROLE, Server
from tests.support.program import program

REMEDY = "create a database with ENCODING 'UTF8' TEMPLATE template0, and name it in database.url"


def fault(engine: Engine, do: Callable[[Connection], object]) -> DatabaseError:
    """Return the error that a transaction ends with."""
    with pytest.raises(DatabaseError) as caught, writing(engine) as connection:
        do(connection)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return caught.value


def run(statement: str) -> Callable[[Connection], object]:
    return lambda connection: connection.exec_driver_sql(statement)


@pytest.fixture
def postgresql_engine(postgresql_url: str) -> Iterator[Engine]:
    engine = connect(postgresql_url)
    yield engine
    engine.dispose()


@pytest.fixture
def sqlite_engine(sqlite_url: str) -> Iterator[Engine]:
    engine = connect(sqlite_url)
    yield engine
    engine.dispose()


# --- PostgreSQL: SQLSTATEs ---


@pytest.mark.parametrize(
    ("states", "reason", "is_transient", "is_of_values"),
    [
        (["08006", "57P01", "57P02", "57014", "58030"], Fault.UNAVAILABLE, True, False),
        (["40001", "40P01", "55P03", "55006"], Fault.UNAVAILABLE, True, False),
        (["53000", "53100", "53200", "53300"], Fault.OUT_OF_RESOURCES, True, False),
        (["42501", "28000", "25006"], Fault.NO_RIGHTS, False, False),
        (["22021", "22P05"], Fault.ENCODING, False, False),
        (["26000", "42P05", "42P01", "42703", "0A000"], Fault.REFUSED_STATEMENT, False, False),
        (["22001", "22003", "23505", "23514", "54000"], Fault.REFUSED_VALUES, False, True),
        (["XX000", "XX001"], Fault.UNUSABLE, False, False),
    ],
)
def test_each_class_of_sqlstates_has_its_reason(
    postgresql_engine: Engine,
    states: list[str],
    reason: Fault,
    is_transient: bool,
    is_of_values: bool,
) -> None:
    for state in states:
        raised = f"DO $$ BEGIN RAISE EXCEPTION 'told' USING ERRCODE = '{state}'; END $$"
        error = fault(postgresql_engine, run(raised))
        assert error.problem.endswith(": told")
        assert (error.reason, error.is_transient, error.is_of_values) == (
            reason, is_transient, is_of_values
        ), state  # fmt: skip


def test_a_revoked_right_is_no_values_error(postgresql_engine: Engine) -> None:
    with writing(postgresql_engine) as connection:
        connection.exec_driver_sql("CREATE TABLE ours (id int)")
        connection.exec_driver_sql(f"REVOKE INSERT ON ours FROM {ROLE}")
    error = fault(postgresql_engine, run("INSERT INTO ours VALUES (1)"))
    assert error.reason == Fault.NO_RIGHTS
    assert "permission denied for table ours" in error.problem
    assert "GRANT" in error.remedy


def test_a_killed_connection_is_transient(postgresql_engine: Engine) -> None:
    error = fault(postgresql_engine, run("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert error.is_transient
    with reading(postgresql_engine) as connection:
        assert connection.scalar(text("SELECT 1")) == 1


def test_a_held_lock_is_transient(postgresql_engine: Engine) -> None:
    with writing(postgresql_engine) as connection:
        connection.exec_driver_sql("CREATE TABLE held (id int)")
    with writing(postgresql_engine) as connection:
        connection.exec_driver_sql("LOCK TABLE held")
        assert fault(postgresql_engine, run("LOCK TABLE held NOWAIT")).is_transient


def test_no_statement_is_prepared_on_the_server(postgresql_engine: Engine) -> None:
    """A pooler in transaction mode gives the next transaction another client's session."""
    for _ in range(10):
        with reading(postgresql_engine) as connection:
            connection.execute(text("SELECT :value"), {"value": 1})
            prepared = text("SELECT count(*) FROM pg_prepared_statements")
            assert connection.scalar(prepared) == 0


# --- PostgreSQL: encodings ---


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "WIN1252", "EUC_JP"])
def test_another_encoding_than_utf_8_is_refused_before_anything_is_written(
    postgresql: Server, tmp_path: Path, encoding: str
) -> None:
    with postgresql.database(options=IN_ENCODING.format(encoding)) as url:
        for make in (connect, connect_to_read):
            engine = make(url)
            with pytest.raises(DatabaseError) as caught:
                current_revision(engine)
            engine.dispose()
            assert caught.value.reason == Fault.ENCODING
            assert f"its encoding is {encoding}, " in caught.value.problem
            assert caught.value.remedy == REMEDY
        archiver = program(tmp_path, url, "http://127.0.0.1:1")
        for command in (["ingest", "r-1"], ["track", "r-1"], ["status"], ["db", "upgrade"]):
            done = archiver.call(*command)
            assert (done.exit_code, done.stdout) == (4, "")
            assert done.stderr.endswith(f"cannot store every name; {REMEDY}\n")
        found = {each["subject"]: each for each in archiver.call("doctor", "--json").json()}
        assert (found["database"]["exit_code"], found["database"]["remedy"]) == (4, REMEDY)
        with psycopg.connect(url.replace("+psycopg", "")) as plain:
            tables = plain.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
            assert tables.fetchone() == (0,)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "WIN1252"])
def test_the_clients_encoding_is_utf_8_whatever_is_set(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    url = make_url(postgresql_url).update_query_dict({"client_encoding": encoding})
    engine = connect(url.render_as_string(hide_password=False))
    with reading(engine) as connection:
        assert connection.scalar(text("SELECT :name"), {"name": "店 Größe"}) == "店 Größe"
    engine.dispose()


# --- SQLite ---


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("INSERT INTO t VALUES (1)", Fault.REFUSED_VALUES),
        ("INSERT INTO t VALUES (NULL)", Fault.REFUSED_VALUES),
        ("INSERT INTO nowhere VALUES (1)", Fault.UNUSABLE),
        ("INSERT INTO t SELECT 1 +", Fault.UNUSABLE),
    ],
)
def test_sqlites_errors_have_their_reasons(
    sqlite_engine: Engine, statement: str, reason: Fault
) -> None:
    with writing(sqlite_engine) as connection:
        connection.exec_driver_sql("CREATE TABLE t (id INT NOT NULL UNIQUE)")
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
    assert fault(sqlite_engine, run(statement)).reason == reason


def test_a_full_disk_says_to_make_room(sqlite_engine: Engine) -> None:
    def fill(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count = 2")
        connection.exec_driver_sql("CREATE TABLE t (id INT)")
        connection.exec_driver_sql("INSERT INTO t VALUES (randomblob(100000))")

    error = fault(sqlite_engine, fill)
    assert (error.reason, error.remedy) == (Fault.UNUSABLE, "make room; due runs stay due")


# --- connections ---


@pytest.mark.parametrize(
    ("mode", "problem"),
    [
        (None, "which cannot be read: No such file or directory"),
        (0o644, "which others can read: run `chmod 600 {file}`"),
        (0o600, ""),
    ],
)
def test_a_password_file_that_libpq_ignores_is_named(
    postgresql_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: int | None,
    problem: str,
) -> None:
    file = tmp_path / "pgpass"
    if mode is not None:
        file.write_text("*:*:*:*:wrong\n")
        file.chmod(mode)
    monkeypatch.setenv("PGPASSFILE", str(file))
    engine = connect(make_url(postgresql_url).set(password=None).render_as_string())
    with pytest.raises(DatabaseError) as caught:
        current_revision(engine)
    engine.dispose()
    remedy = "check database.url, and that the database runs and lets this user in"
    if problem:
        ignored = problem.format(file=file)
        remedy += f"; no password was taken from PGPASSFILE, {file}, {ignored}"
    assert caught.value.remedy == remedy


def test_a_missing_right_is_named_by_its_grant(postgresql_engine: Engine) -> None:
    prepare(postgresql_engine)
    with writing(postgresql_engine) as connection:
        connection.exec_driver_sql(f"REVOKE INSERT, DELETE ON runs, tests FROM {ROLE}")
    error = fault(postgresql_engine, run("INSERT INTO runs DEFAULT VALUES"))
    assert error.remedy == (
        "have an administrator run in this database:"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON runs, tests TO {ROLE};"
    )


def test_a_reader_is_told_no_more_than_a_reader_needs(
    postgresql_engine: Engine, postgresql_url: str
) -> None:
    prepare(postgresql_engine)
    with writing(postgresql_engine) as connection:
        connection.exec_driver_sql(f"REVOKE ALL ON runs FROM {ROLE}")
    engine = connect_to_read(postgresql_url)
    with pytest.raises(DatabaseError) as caught, reading(engine) as connection:
        connection.exec_driver_sql("SELECT * FROM runs")
    engine.dispose()
    assert (
        caught.value.remedy
        == f"have an administrator run in this database: GRANT SELECT ON runs TO {ROLE};"
    )


def test_too_many_open_files_are_called_by_their_name(sqlite_engine: Engine) -> None:
    prepare(sqlite_engine)
    sqlite_engine.dispose()
    with no_file_left():
        error = fault(sqlite_engine, run("SELECT 1"))
    assert error.reason == Fault.OUT_OF_RESOURCES
    assert error.remedy == OutOfFilesError().remedy

"""Another program's objects: never changed, never taken for ours, and named when in the way."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection as Administrator
from psycopg import sql
from sqlalchemy import Engine, make_url, text

from etl.config.settings import StoredSettings
from etl.db import database, indexes, ownership, schema
from etl.db.database import HEAD, connect, prepare, reading, writing
from etl.errors import DatabaseError, Fault
from tests.db.test_views import MONDAY
from tests.support.looks import a_test, look
from tests.support.postgres import Server

INDEXES = [str(index.name) for table in indexes.metadata.tables.values() for index in table.indexes]
TABLES = [*indexes.metadata.tables, schema.VERSION_TABLE]


def run(engine: Engine, *statements: str) -> None:
    with writing(engine) as connection:
        for statement in statements:
            connection.execute(text(statement))


def refusal(about: Callable[..., Any], *arguments: Any, reason: Fault = Fault.FOREIGN) -> str:
    """Return the one line of the error that a call ends with."""
    with pytest.raises(DatabaseError) as caught:
        about(*arguments)
    message = str(caught.value)
    assert (message.splitlines(), caught.value.reason) == ([message], reason)
    return message


@contextmanager
def opened(url: str) -> Iterator[Engine]:
    engine = connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture
def empty(database_url: str) -> Iterator[Engine]:
    """A database without an archive."""
    with opened(database_url) as engine:
        yield engine


def objects(engine: Engine) -> list[tuple[Any, ...]]:
    """Return all that was created in a database, with its definition and comment."""
    on_postgresql = (
        "SELECT nspname, relname, relkind, obj_description(pg_class.oid),"
        " CASE relkind WHEN 'v' THEN pg_get_viewdef(pg_class.oid) END"
        " FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        " WHERE nspname NOT LIKE 'pg_%' AND nspname <> 'information_schema'"
        " UNION ALL SELECT nspname, '', '', obj_description(oid), '' FROM pg_namespace"
        " WHERE nspname NOT LIKE 'pg_temp%' AND nspname NOT LIKE 'pg_toast_temp%'"
    )
    on_sqlite = "SELECT type, name, tbl_name, sql FROM sqlite_master"
    query = on_sqlite if engine.dialect.name == "sqlite" else on_postgresql
    with reading(engine) as connection:
        return sorted((tuple(row) for row in connection.execute(text(query))), key=repr)


# --- tables -----------------------------------------------------------------------------------


def test_another_programs_migrations_are_left_alone(empty: Engine) -> None:
    run(
        empty,
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('5b0e9adcef9c')",
        "CREATE TABLE orders (id BIGINT)",
    )
    before = objects(empty)
    assert database.current_revision(empty) is None
    prepare(empty)
    assert database.current_revision(empty) == HEAD
    database.downgrade(empty, "base")
    run(empty, f"DROP TABLE {schema.VERSION_TABLE}")
    assert objects(empty) == before
    with reading(empty) as connection:
        assert connection.scalar(text("SELECT * FROM alembic_version")) == "5b0e9adcef9c"


@pytest.mark.parametrize(
    "name", ["runs", "archive_settings", "series", "dates", "ix_runs_row_changed_at"]
)
@pytest.mark.parametrize("kind", ["TABLE {} (x TEXT)", "VIEW {} AS SELECT 1 AS x"])
def test_what_has_one_of_our_names_is_named_and_left(empty: Engine, name: str, kind: str) -> None:
    run(empty, f"CREATE {kind.format(name)}", "CREATE TABLE orders (id BIGINT)")
    before = objects(empty)
    place = database.shown_url(empty)
    for call in (prepare, database.upgrade):
        message = refusal(call, empty)
        assert message.startswith(f"{place}: has {name} of another program; name another file")
    assert objects(empty) == before
    assert not database.has_archive(empty)


def test_every_name_of_ours_is_looked_for(sqlite_url: str) -> None:
    with opened(sqlite_url) as engine:
        run(engine, "CREATE TABLE orders (id TEXT)")
        with reading(engine) as connection:
            views = [file.stem for file in ownership.view_files(connection)]
        for name in [*indexes.metadata.tables, *INDEXES, *views]:
            run(engine, f'CREATE TABLE "{name.upper()}" (x TEXT)')
            assert f"has {name.upper()} of another program" in refusal(prepare, engine)
            run(engine, f'DROP TABLE "{name.upper()}"')
        prepare(engine)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TYPE runs AS ENUM ('x')",
        "CREATE SEQUENCE runs",
        "CREATE MATERIALIZED VIEW runs AS SELECT 1",
        "CREATE DOMAIN runs AS text",
        "CREATE INDEX runs ON orders (id)",
    ],
)
def test_a_name_can_be_taken_by_anything(postgresql_url: str, statement: str) -> None:
    with opened(postgresql_url) as engine:
        run(engine, "CREATE TABLE orders (id BIGINT)", statement)
        assert "has runs of another program" in refusal(prepare, engine)


def test_a_refused_file_is_the_same_file(sqlite_url: str, tmp_path: Path) -> None:
    """Its journal mode, too, which every writing connection would otherwise change."""
    with opened(sqlite_url) as engine:
        run(engine, "CREATE TABLE runs (x TEXT)", "INSERT INTO runs VALUES ('theirs')")
    file = tmp_path / "archive.db"
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    with opened(sqlite_url) as engine:
        refusal(prepare, engine)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE {} (id BIGINT)"],
        ["CREATE TABLE {} (version_num TEXT, branch TEXT)"],
        ["CREATE TABLE {} (version_num TEXT)", "INSERT INTO {} VALUES ('0004')"],
        ["CREATE VIEW {} AS SELECT '0001' AS version_num"],
    ],
)
def test_a_version_table_that_is_not_ours_is_named(empty: Engine, statements: list[str]) -> None:
    run(empty, *[each.format(schema.VERSION_TABLE) for each in statements])
    before = objects(empty)
    for call in (prepare, database.upgrade, database.has_archive, database.current_revision):
        assert ": its table result_archiver_version is another program's; name" in refusal(
            call, empty
        )
    assert objects(empty) == before


def test_an_older_archive_is_upgraded_around_nobody(empty: Engine) -> None:
    prepare(empty)
    database.downgrade(empty, "0002")
    run(empty, "CREATE TABLE series (x TEXT)")
    before = objects(empty)
    assert "has series of another program" in refusal(database.upgrade, empty)
    assert objects(empty) == before
    run(empty, "DROP TABLE series")
    database.upgrade(empty)
    assert database.has_archive(empty)


def test_a_view_that_replaced_ours_is_not_dropped(sqlite_url: str) -> None:
    with opened(sqlite_url) as engine:
        prepare(engine)
        run(engine, "DROP VIEW calendar", "CREATE VIEW calendar AS SELECT 'holidays' AS what")
        database.downgrade(engine, "0003")
        assert "has calendar of another program" in refusal(database.upgrade, engine)
        with reading(engine) as connection:
            assert connection.scalar(text("SELECT what FROM calendar")) == "holidays"


# --- the reporting schema ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW reporting.{} AS SELECT 'company holidays' AS what",
        "CREATE TABLE reporting.{} (x TEXT)",
        "CREATE MATERIALIZED VIEW reporting.{} AS SELECT 1 AS x",
        "CREATE VIEW reporting.{} AS SELECT x FROM orders",
    ],
)
@pytest.mark.parametrize("name", ["calendar", "sales"])
def test_a_schema_of_another_program_is_named_and_left(
    postgresql_url: str, statement: str, name: str
) -> None:
    with opened(postgresql_url) as engine:
        run(engine, "CREATE TABLE orders (x TEXT)", "CREATE SCHEMA reporting")
        run(engine, statement.format(name))
        before = objects(engine)
        assert refusal(prepare, engine).endswith(
            f": has {name} of another program in the schema reporting;"
            " set database.reporting_schema to another name than reporting"
        )
        assert objects(engine) == before
        prepare(engine, StoredSettings(reporting_schema="results"))
        assert set(before) <= set(objects(engine))
        assert count_runs(engine, "results") == 0


def count_runs(engine: Engine, schema: str) -> int:
    with reading(engine) as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {schema}.run_results")) or 0)


def in_schema(url: str, schema: str) -> str:
    """Return a URL whose search_path is `schema`."""
    options = {"options": f"-csearch_path={schema}"}
    return make_url(url).update_query_dict(options).render_as_string(hide_password=False)


@pytest.fixture
def two_schemas(postgresql_url: str) -> Iterator[tuple[Engine, Engine]]:
    with opened(postgresql_url) as engine:
        run(engine, "CREATE SCHEMA a", "CREATE SCHEMA b")
    with (
        opened(in_schema(postgresql_url, "a")) as first,
        opened(in_schema(postgresql_url, "b")) as second,
    ):
        yield first, second


def test_another_archives_views_are_named_and_left(two_schemas: tuple[Engine, Engine]) -> None:
    first, second = two_schemas
    prepare(first)
    look(first, "run-1", MONDAY, a_test("cart", "passed"))
    before = objects(first)
    assert refusal(prepare, second).endswith(
        ": has another archive's views in the schema reporting;"
        " set database.reporting_schema to another name than reporting"
    )
    assert objects(first) == before


def test_two_archives_in_one_database_leave_each_other_alone(
    two_schemas: tuple[Engine, Engine],
) -> None:
    first, second = two_schemas
    prepare(first)
    prepare(second, StoredSettings(reporting_schema="reporting_b"))
    for number, engine in enumerate((first, second, second)):
        look(engine, f"run-{number}", MONDAY, a_test("cart", "passed"))
    assert [count_runs(first, "reporting"), count_runs(first, "reporting_b")] == [1, 2]
    database.downgrade(second, "0003")
    assert count_runs(first, "reporting") == 1
    database.upgrade(second, StoredSettings(reporting_schema="reporting_b"))
    assert [count_runs(first, "reporting"), count_runs(first, "reporting_b")] == [1, 2]
    database.downgrade(second, "0001")
    assert not any(each[0] == "reporting_b" for each in objects(first))
    assert count_runs(first, "reporting") == 1


def test_an_archive_behind_the_first_schema_is_not_taken(
    postgresql_url: str, two_schemas: tuple[Engine, Engine]
) -> None:
    first, _second = two_schemas
    prepare(first)
    with opened(in_schema(postgresql_url, "b,a")) as both:
        for call in (prepare, database.has_archive):
            message = refusal(call, both)
            assert ": the archive is in the schema a, but search_path begins with b; " in message


def test_views_of_others_in_our_schema_stay(postgresql_url: str) -> None:
    with opened(postgresql_url) as engine:
        prepare(engine)
        run(engine, "CREATE VIEW reporting.sales AS SELECT 1 AS one")
        database.downgrade(engine, "0003")
        database.upgrade(engine)
        with reading(engine) as connection:
            assert connection.scalar(text("SELECT one FROM reporting.sales")) == 1
        run(engine, "DROP VIEW reporting.calendar")
        run(engine, "CREATE VIEW reporting.calendar AS SELECT 'holidays' AS what")
        database.downgrade(engine, "0003")
        assert "has calendar of another program in the schema" in refusal(database.upgrade, engine)
        with reading(engine) as connection:
            what = connection.scalar(text("SELECT what FROM reporting.calendar"))
            assert what == "holidays"


def test_views_move_to_the_configured_schema(postgresql_url: str) -> None:
    with opened(postgresql_url) as engine:
        prepare(engine)
        look(engine, "run-1", MONDAY, a_test("cart", "passed"))
        moved = StoredSettings(reporting_schema="user")  # a word that SQL reserves
        database.upgrade(engine, moved)
        assert count_runs(engine, '"user"') == 1
        assert not any(each[0] == "reporting" for each in objects(engine))
        prepare(engine)  # which leaves an archive as it is
        assert count_runs(engine, '"user"') == 1


def test_the_schema_of_the_tables_is_not_one_for_views(postgresql_url: str) -> None:
    with opened(postgresql_url) as engine:
        message = refusal(prepare, engine, StoredSettings(reporting_schema="public"))
        assert "has the tables in the schema public, not the views; set" in message


# --- rights -----------------------------------------------------------------------------------


@pytest.fixture
def administrator(postgresql_url: str, postgresql: Server) -> Iterator[Administrator]:
    """A superuser in a database where our role may not create anything."""
    name = make_url(postgresql_url).database or ""
    with postgresql.administer(name) as admin:
        admin.execute(sql.SQL("ALTER DATABASE {} OWNER TO postgres").format(sql.Identifier(name)))
        yield admin


def missing_rights(engine: Engine) -> tuple[str, str]:
    """Return what may not be created, and the statements that the message asks for."""
    message = refusal(prepare, engine, reason=Fault.NO_RIGHTS)
    problem, _, statements = message.partition("; have an administrator run in this database: ")
    return problem.partition(": permission denied to create ")[2], statements


def test_missing_rights_are_named_with_the_statements_that_are_enough(
    postgresql_url: str, administrator: Administrator
) -> None:
    with opened(postgresql_url) as engine:
        before = objects(engine)
        problem, statements = missing_rights(engine)
        assert problem == "tables in the schema public and views in the schema reporting"
        assert objects(engine) == before
        administrator.execute(statements.encode())
        prepare(engine)
        assert count_runs(engine, "reporting") == 0
        database.downgrade(engine, "base")  # an administrator's schema stays
        assert any(each[0] == "reporting" for each in objects(engine))


@pytest.mark.parametrize(
    ("granted", "problem", "statements"),
    [
        (
            "GRANT CREATE ON SCHEMA public TO archiver",
            "views in the schema reporting",
            "CREATE SCHEMA reporting AUTHORIZATION archiver;",
        ),
        (
            "GRANT CREATE ON SCHEMA public TO archiver; CREATE SCHEMA reporting",
            "views in the schema reporting",
            "GRANT USAGE, CREATE ON SCHEMA reporting TO archiver;",
        ),
        (
            "CREATE SCHEMA reporting AUTHORIZATION archiver",
            "tables in the schema public",
            "GRANT CREATE ON SCHEMA public TO archiver;",
        ),
    ],
)
def test_only_what_is_missing_is_asked_for(
    postgresql_url: str, administrator: Administrator, granted: str, problem: str, statements: str
) -> None:
    administrator.execute(granted.encode())
    with opened(postgresql_url) as engine:
        assert missing_rights(engine) == (problem, statements)


def test_a_search_path_without_a_schema_is_told(postgresql_url: str) -> None:
    with opened(in_schema(postgresql_url, "nowhere")) as engine:
        message = refusal(prepare, engine, reason=Fault.NO_RIGHTS)
        assert ": search_path names no schema that exists; create the schema" in message

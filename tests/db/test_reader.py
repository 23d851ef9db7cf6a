"""A role that reads the views, tried as that role on the real server."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine, inspect, make_url, text

from etl.db import database, reader
from etl.db.database import connect, prepare, writing
from etl.db.schema import metadata
from etl.errors import ArchiverError, DatabaseError, UsageError
from tests.db.test_views import MONDAY, VIEWS
from tests.support.looks import a_test, look
from tests.support.postgres import ROLE, Server
from tests.support.program import bare_program

MAY_NOT = psycopg.errors.InsufficientPrivilege
REFUSED = (MAY_NOT, psycopg.errors.ReadOnlySqlTransaction)


@pytest.fixture
def role(postgresql: Server) -> Iterator[str]:
    """A role that may log in and nothing else; its name needs quoting."""
    name = f'BI "{secrets.token_hex(4)}" 100%'
    with postgresql.administer() as admin:
        create = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}")
        admin.execute(create.format(sql.Identifier(name), sql.Literal(postgresql.password)))
        yield name
        admin.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))


@pytest.fixture
def archive(role: str, postgresql_url: str) -> Iterator[Engine]:
    """An archive with a run in it. It goes before the role, which has rights in it."""
    engine = connect(postgresql_url)
    prepare(engine)
    look(engine, "run-1", MONDAY, a_test("cart", "unresolved"))
    yield engine
    engine.dispose()


@pytest.fixture
def granted(archive: Engine, role: str, postgresql: Server) -> Engine:
    """The archive, with the role let in: an administrator did what only one may."""
    with postgresql.administer(archive.url.database or "") as admin:
        names = sql.Identifier(role), sql.Identifier(archive.url.database or "")
        for name, value in (reader.SETTINGS | {"search_path": "reporting"}).items():
            alter = f"ALTER ROLE {{}} IN DATABASE {{}} SET {name} = '{value}'"
            admin.execute(sql.SQL(alter).format(*names))
    reader.grant_views(archive, role)
    return archive


@contextmanager
def logged_in(engine: Engine, role: str) -> Iterator[psycopg.Connection]:
    """Connect as a BI tool would."""
    url = engine.url
    with psycopg.connect(
        host=url.host, port=url.port, user=role, password=url.password, dbname=url.database
    ) as connection:
        connection.autocommit = True
        yield connection


def count(connection: psycopg.Connection, view: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM reporting.{view}").fetchone()
    assert row is not None
    return int(row[0])


def test_the_reader_reads_every_view(granted: Engine, role: str) -> None:
    with logged_in(granted, role) as connection:
        rows = {view: count(connection, view) for view in VIEWS}
    assert rows["run_results"] == rows["unresolved_backlog"] == rows["series_health"] == 1
    assert rows["data_dictionary"] > 200


def test_the_query_of_the_readme_works_word_for_word(granted: Engine, role: str) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    [query] = [part for part in readme.split("```sql\n")[1:] if "FROM daily_trend" in part]
    tests = a_test("cart", "passed"), a_test("login", "failed")
    look(granted, "run-2", MONDAY, *tests, started_at="2026-03-04T09:00:00Z")
    with logged_in(granted, role) as connection:
        rows = connection.execute(query.split("```")[0]).fetchall()
    assert rows == [("Shop", 1, 1, 0.5)]


def test_the_reader_learns_the_rules_behind_the_figures(granted: Engine, role: str) -> None:
    """The time zone of days, the windows and limits, and the versions: a row each."""
    with logged_in(granted, role) as connection:
        query = "SELECT name, value FROM archive_settings"
        settings = {str(name): str(value) for name, value in connection.execute(query)}
    assert settings.pop("archive_id")
    assert settings == {
        "database.reporting_schema": "reporting",
        "metric_version": database.METRIC_VERSION,
        "reporting.flaky_min_flip_rate": "0.3",
        "reporting.flaky_min_flips": "2",
        "reporting.flaky_min_results": "5",
        "reporting.time_zone": "UTC",
        "reporting.window_days": "30",
        "reporting.window_results": "10",
        "schema_version": "0004",
        "view_version": "1",
    }


def test_no_table_can_be_read(granted: Engine, role: str) -> None:
    with logged_in(granted, role) as connection:
        for table in (*metadata.tables, "result_archiver_version"):
            with pytest.raises(MAY_NOT, match=f"permission denied for table {table}"):
                connection.execute(f"SELECT count(*) FROM public.{table}")


CHANGES = (
    "INSERT INTO public.labels VALUES ('run-1', 'branch', 'main')",
    "UPDATE reporting.calendar SET is_weekend = true",
    "DELETE FROM reporting.calendar",
    "TRUNCATE public.runs",
    "CREATE TABLE public.notes (id bigint)",
    "CREATE TABLE reporting.notes (id bigint)",
    "CREATE VIEW reporting.notes AS SELECT 1",
    "CREATE SCHEMA notes",
    "DROP VIEW reporting.calendar",
    "ALTER TABLE public.runs ADD COLUMN note text",
    "COMMENT ON VIEW reporting.calendar IS 'mine'",
    "SELECT nextval('public.ingests_id_seq')",
    "SELECT setval('public.ingests_id_seq', 1)",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT pg_reload_conf()",
    "SELECT lo_import('/etc/hostname')",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'archiver'",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "CREATE FUNCTION reporting.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
)


def test_nothing_can_be_changed(granted: Engine, role: str) -> None:
    with logged_in(granted, role) as connection:
        for statement in (*CHANGES, "CREATE TEMPORARY TABLE notes (id bigint)"):
            with pytest.raises(REFUSED):
                connection.execute(statement)


def test_a_session_that_does_not_only_read_has_no_more_rights(granted: Engine, role: str) -> None:
    """Whoever logs in can take that setting back; nothing of ours hangs on it."""
    with logged_in(granted, role) as connection:
        connection.execute("SET default_transaction_read_only = off")
        for statement in CHANGES:
            with pytest.raises(MAY_NOT):
                connection.execute(statement)


def test_the_readers_times_are_utc(granted: Engine, role: str) -> None:
    """The server's own zone is another one."""
    with logged_in(granted, role) as connection:
        query = "SELECT started_at::text FROM reporting.run_results"
        assert connection.execute(query).fetchone() == ("2024-03-04 09:00:00+00",)


def test_the_reader_still_reads_after_a_migration(granted: Engine, role: str) -> None:
    """Migrations take the views down and make them anew."""
    with writing(granted) as connection:
        connection.execute(text("CREATE VIEW reporting.of_a_later_version AS SELECT 1 AS one"))
    database.downgrade(granted, "-1")
    assert not inspect(granted).has_table("run_results", schema="reporting")
    database.upgrade(granted)
    with logged_in(granted, role) as connection:
        assert [count(connection, view) for view in ("run_results", "of_a_later_version")] == [1, 1]


def test_granting_again_changes_nothing(granted: Engine, role: str) -> None:
    def rights() -> object:
        with granted.connect() as connection:
            query = text("SELECT relname, relacl::text FROM pg_class WHERE relacl IS NOT NULL")
            return sorted(connection.execute(query).all())

    before = rights()
    reader.grant_views(granted, role)
    assert rights() == before


def test_a_reader_can_be_taken_back_as_the_document_says(
    granted: Engine, role: str, postgresql: Server
) -> None:
    with postgresql.administer(granted.url.database or "") as admin:
        taken_back = sql.SQL("DROP OWNED BY {role}; DROP ROLE {role}")
        admin.execute(taken_back.format(role=sql.Identifier(role)))
    assert "there is no role" in complaint(UsageError, granted, role)


def complaint(kind: type[ArchiverError], engine: Engine, role: str) -> str:
    """Return the one line that granting ends with."""
    with pytest.raises(kind) as caught:
        reader.grant_views(engine, role)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_what_only_an_administrator_may_do_is_told_and_then_enough(
    archive: Engine, role: str, postgresql: Server
) -> None:
    message = complaint(DatabaseError, archive, role)
    with logged_in(archive, role) as connection, pytest.raises(REFUSED):
        count(connection, "run_results")
    told, _, statements = message.partition(" run in this database: ")
    assert told.endswith("we may not do all of this; have an administrator of the server")
    with postgresql.administer(archive.url.database or "") as admin:
        admin.execute(statements.encode())
    reader.grant_views(archive, role)
    with logged_in(archive, role) as connection:
        assert count(connection, "run_results") == 1


def test_a_role_that_is_not_there_is_told_how_to_make(archive: Engine) -> None:
    for name, quoted in (("nobody", "nobody"), ("public", "public"), ("No Body", '"No Body"')):
        message = complaint(UsageError, archive, name)
        assert message.endswith(
            f"there is no role {name!r}; make it first: CREATE ROLE {quoted} LOGIN PASSWORD '...'"
        )


def test_a_role_that_reads_more_is_no_reader(archive: Engine, role: str) -> None:
    assert "the role 'archiver' can use the table age_buckets already" in complaint(
        UsageError, archive, ROLE
    )
    with writing(archive) as connection:
        connection.execute(text("GRANT SELECT (body) ON payloads TO PUBLIC"))
    assert "can use the table payloads already" in complaint(UsageError, archive, role)


def test_sqlite_has_no_roles(sqlite_url: str, tmp_path: Path) -> None:
    program = bare_program(tmp_path).given(RESULT_ARCHIVER__DATABASE__URL=sqlite_url)
    done = program.call("db", "grant-reader", "bi")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {sqlite_url}: SQLite has no roles; give readers a copy of their own:"
        " `result-archiver export --sqlite FILE`\n"
    )


def test_the_command_says_what_it_did(granted: Engine, role: str, tmp_path: Path) -> None:
    url = make_url(granted.url).render_as_string(hide_password=False)
    program = bare_program(tmp_path).given(RESULT_ARCHIVER__DATABASE__URL=url)
    done = program.call("db", "grant-reader", role)
    assert done.exit_code == 0
    assert done.stderr.endswith(f": {role} reads the views in reporting\n")
    assert (granted.url.password or "") not in done.stderr

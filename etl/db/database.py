"""Connect to the archive's database, and bring its tables to the revision this version needs."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from etl.config.settings import DEFAULT_TO_STORE, StoredSettings
from etl.db import faults, rights
from etl.db.schema import VERSION_TABLE
from etl.errors import DatabaseError, Fault
from etl.runtime import hide_package
from etl.secrets.masking import hide_password, mask_url_password

HEAD = "0004"
"""The newest migration; a test compares it with `migrations/`. So Alembic loads only to migrate."""
METRIC_VERSION = "1"
"""Version of the rules of docs/REPORTS.md; a migration that raises it deletes the stored one."""

_MIGRATION_LOCK = 0x72_65_73_75_6C_74  # "result": any number that all processes share
CONNECT_TIMEOUT_S = 10
SILENCE_S = 25
"""A server, or a client, that acknowledges nothing for this long counts as lost."""
_KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
_SESSION = f"""
SET TIME ZONE 'UTC';
SET idle_in_transaction_session_timeout = '60s';
SET tcp_user_timeout = '{SILENCE_S}s';
{" ".join(f"SET tcp_{name} = {value};" for name, value in _KEEPALIVES.items())}
"""
"""In another zone the driver cannot read the last hours of the year 9999. The server would keep the
locks of a process that is frozen, or whose host is lost, for hours: while it waits for the rest of
a COPY, the transaction is not idle."""
FOREIGN_REMEDY = "name another file, database or schema in database.url: one for the archive alone"

_OF_SERVERS: Mapping[str, Any] = {
    "connect_args": {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "client_encoding": "UTF8",
        # A server that is cut off is noticed, and waited for by `Patience`, not for hours.
        **_KEEPALIVES,
        "tcp_user_timeout": SILENCE_S * 1000,
        "prepare_threshold": None,  # a pooler gives our transactions sessions of other clients
    },
    # Whatever the server's default: after waiting for a lock we must see the other commit.
    "isolation_level": "READ COMMITTED",
}


def connect(url: str) -> Engine:
    """Return an engine for `url`, as `config.load` left it. Nothing is connected yet.

    Raises:
        DatabaseError: the URL is broken.
    """
    engine = _make_engine(url)
    if engine.dialect.name == "sqlite":
        from etl.db import sqlite_file  # noqa: PLC0415  its driver is not loaded for a server

        sqlite_file.open_to_write(engine)
    return engine


def connect_to_read(url: str) -> Engine:
    """Return an engine whose connections cannot write; see `connect`."""
    engine = _make_engine(url)
    if engine.dialect.name != "sqlite":
        # Of each transaction, not of the session: a pooler hands sessions on to other clients.
        return engine.execution_options(postgresql_readonly=True)
    from etl.db import sqlite_file  # noqa: PLC0415  see `connect`

    sqlite_file.open_to_read(engine)
    return engine


def _make_engine(url: str) -> Engine:
    try:
        is_server = not url.startswith("sqlite")
        options = _OF_SERVERS if is_server else {}
        engine = create_engine(url, pool_pre_ping=True, json_deserializer=_from_json, **options)
    except (ArgumentError, ValueError):
        raise DatabaseError(f"database.url is {mask_url_password(url)!r}: not a URL") from None
    _hide_passwords(engine.url)
    if engine.dialect.name != "sqlite":
        event.listen(engine, "connect", partial(_set_up_postgresql, shown_url(engine)))
    return engine


def _hide_passwords(url: URL) -> None:
    names = [str(name) for name in (url.username, url.host, url.database) if name]
    for password in (url.password, url.query.get("password"), url.query.get("sslpassword")):
        hide_password(str(password or ""), names)


def _from_json(text: str | bytes) -> Any:
    """Decode a JSON column; an integer too long for Python to convert stays a text."""
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) < 4300 else digits)


def _set_up_postgresql(place: str, connection: Any, _record: Any) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        connection.close()
        raise DatabaseError(
            f"{place}: its encoding is {encoding}, which cannot store every name",
            faults.ENCODING_REMEDY,
            Fault.ENCODING,
        )
    connection.execute(_SESSION)
    connection.commit()


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Give a connection in a transaction that only reads."""
    with _explained(engine), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """Give a connection that reads one state of the archive, whatever others commit meanwhile."""
    is_postgresql = engine.dialect.name == "postgresql"  # SQLite always reads a snapshot
    options = {"isolation_level": "REPEATABLE READ"} if is_postgresql else {}
    with reading(engine.execution_options(**options)) as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Give a connection in a transaction that commits at the end, or rolls back on any error."""
    with (
        _explained(engine),
        engine.connect().execution_options(sqlite_begin="IMMEDIATE") as connection,
        connection.begin(),
    ):
        yield connection


@contextmanager
def writing_once(engine: Engine) -> Iterator[Connection]:
    """Give a connection for one statement that writes.

    On a server it commits by itself: a process that is frozen or lost cannot leave its locks.
    """
    if engine.dialect.name == "sqlite":
        with writing(engine) as connection:
            yield connection
        return
    with (
        _explained(engine),
        engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection,
    ):
        yield connection


def writers(engine: Engine) -> int:
    """Return the best number of concurrent writing transactions.

    SQLite has one writer at a time. A backend of PostgreSQL uses one core, mostly for rows at the
    end of a COPY; a second transaction uses ours meanwhile.
    """
    return 1 if engine.dialect.name == "sqlite" else 2


@contextmanager
def _explained(engine: Engine) -> Iterator[None]:
    """Turn the driver's errors into one line without statement, parameters or password."""
    try:
        yield
    except SQLAlchemyError as error:
        explained = faults.explain(error, shown_url(engine))
        raise rights.add_grants(explained, error, engine) from None


def shown_url(engine: Engine) -> str:
    """Return the database's URL as people may see it."""
    shown = engine.url.set(drivername=engine.dialect.name, query={})  # it may have a password too
    return shown.render_as_string(hide_password=True)


def current_revision(engine: Engine) -> str | None:
    """Return the revision of the tables, None where there are no tables of ours.

    Raises:
        DatabaseError: the database cannot be reached, or our version table is not ours.
    """
    with reading(engine) as connection:
        return read_revision(connection)


def read_revision(connection: Connection) -> str | None:
    """Return the revision of the tables; see `current_revision`."""
    columns = _list_columns(connection, VERSION_TABLE)
    if not columns:
        return None
    place = shown_url(connection.engine)
    if columns == ["version_num"]:
        _refuse_other_schema(connection)
        query = text(f"SELECT version_num FROM {VERSION_TABLE}")  # noqa: S608  our name
        revision: str | None = connection.scalar(query)
        if revision is None or _list_columns(connection, "archive_settings"):
            return revision
    raise DatabaseError(
        f"{place}: its table {VERSION_TABLE} is another program's", FOREIGN_REMEDY, Fault.FOREIGN
    )


def _list_columns(connection: Connection, table: str) -> list[str]:
    """Return the columns of a table, none if it does not exist."""
    query = (
        "SELECT attname FROM pg_attribute WHERE attrelid = to_regclass(:name) AND attnum > 0"
        " AND NOT attisdropped"
        if connection.dialect.name == "postgresql"
        else "SELECT name FROM pragma_table_info(:name)"
    )
    return list(connection.scalars(text(query), {"name": table}))


def _refuse_other_schema(connection: Connection) -> None:
    """Refuse an archive that search_path finds behind the schema where we create tables."""
    if connection.dialect.name != "postgresql":
        return
    query = text(
        "SELECT nspname, current_schema() FROM pg_class"
        " JOIN pg_namespace ON pg_namespace.oid = relnamespace"
        " WHERE pg_class.oid = to_regclass(:name)"
    )
    found, first = connection.execute(query, {"name": VERSION_TABLE}).one()
    if found != first:
        raise DatabaseError(
            f"{shown_url(connection.engine)}: the archive is in the schema {found}, but search_path"
            f" begins with {first}",
            "name one of the two in database.url: ?options=-csearch_path%3DSCHEMA",
            Fault.FOREIGN,
        )


def has_archive(engine: Engine) -> bool:
    """Tell whether the database has an archive; creates no file to find out.

    Raises:
        DatabaseError: the database cannot be used, its tables are of another revision, or its
            derived rows are incomplete.
    """
    if not _has_tables(engine):
        return False
    if not is_complete(engine):
        raise describe_incomplete(engine)
    return True


def _has_tables(engine: Engine) -> bool:
    """Tell tables at `HEAD` from no tables. Raises DatabaseError for any other revision."""
    revision = current_revision(engine) if exists(engine) else None
    if revision not in {None, HEAD}:
        raise _mismatch(engine, str(revision))
    return revision is not None


def exists(engine: Engine) -> bool:
    """Tell whether the database exists; connecting would create an SQLite file."""
    file = engine.url.database
    return engine.dialect.name != "sqlite" or not file or Path(file).exists()


def require_archive(engine: Engine) -> None:
    """Check that the database has an archive.

    Raises:
        DatabaseError: there is none, or `has_archive` does.
    """
    require_tables(engine)
    has_archive(engine)


def require_tables(engine: Engine) -> None:
    """Check that the database has an archive, whose derived rows may be incomplete.

    Raises:
        DatabaseError: there is none, or its tables are of another revision.
    """
    if not _has_tables(engine):
        raise DatabaseError(
            f"{shown_url(engine)}: has no archive yet",
            "`result-archiver ingest` makes one",
            Fault.NO_ARCHIVE,
        )


def prepare(engine: Engine, settings: StoredSettings = DEFAULT_TO_STORE) -> None:
    """Create the tables in a new database; leave an older archive alone.

    Raises:
        DatabaseError: the database cannot be used, or is behind (or ahead).
    """
    if not has_archive(engine):
        upgrade(engine, settings)


def is_complete(engine: Engine) -> bool:
    """Return whether the derived rows of an archive at `HEAD` are complete."""
    query = text("SELECT value FROM archive_settings WHERE name = 'metric_version'")
    with reading(engine) as connection:
        return bool(connection.scalar(query) == METRIC_VERSION)


def describe_incomplete(engine: Engine) -> DatabaseError:
    """Return the error of an archive whose derived rows are not complete."""
    return DatabaseError(
        f"{shown_url(engine)}: its derived rows are incomplete: an upgrade or a replay is running,"
        " or was interrupted",
        "`result-archiver db upgrade` goes on with it",
        Fault.BEHIND,
    )


def _mismatch(engine: Engine, revision: str) -> DatabaseError:
    place = f"{shown_url(engine)}: its tables are at revision {revision}"
    if revision < HEAD:
        return DatabaseError(
            f"{place}, this version needs {HEAD}", "run `result-archiver db upgrade`", Fault.BEHIND
        )
    return DatabaseError(
        f"{place}, which is newer than this version ({HEAD})",
        "install the newer result-archiver",
        Fault.AHEAD,
    )


def upgrade(engine: Engine, settings: StoredSettings = DEFAULT_TO_STORE) -> None:
    """Migrate the tables to `HEAD`, whole or not at all; move the views to their schema.

    A no-op if there is nothing to do. A new archive keeps all `settings`.

    Raises:
        DatabaseError: the database cannot be used, or something in it has one of our names.
    """
    _make_folder(engine)
    if not _is_up_to_date(engine, settings):
        _migrate(engine, "upgrade", "head", settings)


def _is_up_to_date(engine: Engine, settings: StoredSettings) -> bool:
    with reading(engine) as connection:
        if read_revision(connection) != HEAD:
            return False
        query = text("SELECT value FROM archive_settings WHERE name = 'database.reporting_schema'")
        return connection.scalar(query) in {None, settings.reporting_schema}


def downgrade(engine: Engine, revision: str) -> None:
    """Migrate the tables back to `revision` ("base": no tables).

    Raises:
        DatabaseError: there is no such revision, or no database.
    """
    if not exists(engine):
        raise DatabaseError(f"{shown_url(engine)}: there is no such file")
    _migrate(engine, "downgrade", revision, None)


def _make_folder(engine: Engine) -> None:
    file = engine.url.database
    if engine.dialect.name == "sqlite" and file:
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseError(f"{file}: its folder cannot be made: {error.strerror}") from None


def migrations_folder() -> Path:
    """Return the folder of the migrations: beside `etl` in a checkout, inside it in a wheel."""
    package = Path(__file__).parent.parent
    bundled = package / "_bundled" / "migrations"
    return bundled if bundled.exists() else package.parent / "migrations"


def _migrate(
    engine: Engine, direction: str, revision: str, to_store: StoredSettings | None
) -> None:
    with hide_package("pygments"):  # a third of the loading time, for colours
        from alembic import command  # noqa: PLC0415  takes a fifth of a second
        from alembic.config import Config  # noqa: PLC0415
        from alembic.util import CommandError  # noqa: PLC0415

    settings = Config()
    settings.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
        settings.attributes.update(connection=connection, to_store=to_store)
        try:
            getattr(command, direction)(settings, revision)
        except CommandError as error:
            raise DatabaseError(f"{shown_url(engine)}: {error}") from None

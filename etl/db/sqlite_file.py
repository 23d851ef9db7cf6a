"""Open an SQLite file: to write, or without the right to write, where nothing can be written, too.

A connection to a file in WAL mode shares memory with others through files beside it. In a folder
that cannot be written, and with no other connection, it opens the file as immutable.
"""

import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, event

from etl.db.schema import VERSION_TABLE
from etl.errors import DatabaseError, Fault

_BUSY_TIMEOUT_MS = 60_000
_CHECKPOINT_PAGES = 16_000
"""Pages of 4 KiB in the WAL at a commit's own checkpoint, which bounds the log: `checkpoints` has
written most of them to the file by then."""
_SEEN = "file_when_opened"
_NOTHING_BESIDE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}


def open_to_write(engine: Engine) -> None:
    """Open the engine's file in WAL mode, if it is ours or has no tables."""
    event.listen(engine, "begin", _begin)
    event.listen(engine, "connect", _set_up)


def open_to_read(engine: Engine) -> None:
    """Open the engine's file read-only. It keeps its journal mode."""
    event.listen(engine, "begin", _begin)
    event.listen(engine, "connect", _set_up_to_read)
    if engine.url.database:
        event.listen(engine, "do_connect", _connect)
        event.listen(engine, "commit", _refuse_torn_read)
        event.listen(engine, "engine_disposed", _remove_empty_wal)


def _begin(connection: Connection) -> None:
    """Begin a writer with the write lock: a transaction that has read cannot wait for it."""
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")


def _set_up_to_read(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN is too late: see _begin
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")


def _set_up(connection: Any, record: Any) -> None:
    _set_up_to_read(connection, record)
    connection.execute("PRAGMA foreign_keys = ON")
    if _is_ours_or_empty(connection):
        _write_ahead(connection)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")


def _is_ours_or_empty(connection: Any) -> bool:
    """Tell whether the file can be changed before `prepare` has seen whose it is."""
    ours = f"count(*) FILTER (WHERE name = '{VERSION_TABLE}')"
    [row] = connection.execute(f"SELECT {ours} > 0 OR count(*) = 0 FROM sqlite_master")  # noqa: S608  our name
    return bool(row[0])


def _write_ahead(connection: Any) -> None:
    """Switch to WAL mode. SQLite itself does not wait while another process switches a new file."""
    patience_until = time.monotonic() + _BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not is_busy or time.monotonic() > patience_until:
                raise
            time.sleep(0.01)
        else:
            return


def _connect(
    dialect: Dialect, record: Any, arguments: list[Any], options: dict[str, Any]
) -> sqlite3.Connection:
    file = Path(arguments[0]).absolute()
    if file.is_dir():  # SQLite would call it an I/O error
        raise DatabaseError(
            f"sqlite:///{file}: unable to open database file: it is a folder", "name a file in it"
        )
    connection: Any = dialect.connect(f"{file.as_uri()}?mode=ro", uri=True, **options)
    try:
        connection.execute("PRAGMA schema_version")
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF not in _NOTHING_BESIDE or _is_unfinished(file):
            raise
        record.info[_SEEN] = file, _state_of(file)
        connection = dialect.connect(f"{file.as_uri()}?immutable=1", uri=True, **options)
    opened: sqlite3.Connection = connection
    return opened


def _refuse_torn_read(connection: Connection) -> None:
    """Refuse rows of an immutable file that a writer changed meanwhile: SQLite does not notice."""
    if _SEEN not in connection.info:
        return
    file, state = connection.info[_SEEN]
    if state != _state_of(file):
        raise DatabaseError(
            f"sqlite:///{file}: was written to while it was read", "try again", Fault.UNAVAILABLE
        )


def _remove_empty_wal(engine: Engine) -> None:
    """Leave nothing beside the file: of its last connections, SQLite lets only writers tidy up."""
    file = Path(engine.url.database or "").absolute()
    wal = file.with_name(f"{file.name}-wal")
    with suppress(OSError, sqlite3.Error):  # another process is using it, or we may not write
        if wal.stat().st_size == 0:
            with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True)) as connection:
                connection.execute("PRAGMA schema_version")


def _state_of(file: Path) -> tuple[int, int, bool]:
    status = file.stat()
    return status.st_mtime_ns, status.st_size, _is_unfinished(file)


def _is_unfinished(file: Path) -> bool:
    """Tell whether a part of the archive is in another file: in the WAL or a journal."""
    return any(file.with_name(f"{file.name}{end}").exists() for end in ("-wal", "-journal"))

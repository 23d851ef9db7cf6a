"""Open an SQLite file without the right to write, where nothing can be written, too.

A connection to a file in WAL mode shares memory with others through files beside it. In a folder
that cannot be written, and with no other connection, it opens the file as immutable.
"""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, event

from etl.errors import DatabaseError, Fault

_SEEN = "file_when_opened"
_NOTHING_BESIDE = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}


def open_read_only(engine: Engine) -> None:
    """Open the engine's file read-only. An SQLite file keeps its journal mode."""
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "commit", _refuse_torn_read)
    event.listen(engine, "engine_disposed", _remove_empty_wal)


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

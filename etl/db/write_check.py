"""Check that a pass can write to the database, without changing it."""

import errno
import tempfile
from pathlib import Path

from sqlalchemy import Engine, text

from etl.db.database import reading, shown_url
from etl.db.rights import WRITER, find_missing_grants, join_grants
from etl.errors import DatabaseError, Fault

ROOM_MIB = 16
"""Free space for the new rows of a pass and the log beside the file."""

_BLOCK = bytes(1_048_576)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_IS_READ_ONLY = """
SELECT pg_is_in_recovery() OR CAST(current_setting('default_transaction_read_only') AS boolean)
"""


def require_writable(engine: Engine) -> None:
    """Check that a pass can write rows.

    Raises:
        DatabaseError: the file, its folder, the disk or a right does not allow it.
    """
    if engine.dialect.name == "postgresql":
        _require_rights(engine)
    elif engine.url.database not in {None, "", ":memory:"}:
        _require_file(Path(str(engine.url.database)).absolute())


def _require_rights(engine: Engine) -> None:
    with reading(engine) as connection:
        is_read_only = connection.scalar(text(_IS_READ_ONLY))
        grants = find_missing_grants(connection, WRITER)
    place = shown_url(engine)
    if is_read_only:
        remedy = "name the primary in database.url"
        raise DatabaseError(f"{place}: the server is read-only", remedy, Fault.NO_RIGHTS)
    if grants:
        problem = f"{place}: the role {engine.url.username} lacks rights"
        raise DatabaseError(problem, join_grants(grants), Fault.NO_RIGHTS)


def _require_file(file: Path) -> None:
    folder = next(parent for parent in file.parents if parent.exists())
    try:
        if file.exists():
            file.open("r+b").close()
    except OSError as error:
        raise DatabaseError(
            f"{file}: cannot be written: {error.strerror}", "make it writable", Fault.NO_RIGHTS
        ) from None
    try:
        _write_blocks(folder)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DatabaseError(
                f"{folder}: no room for {ROOM_MIB} MiB beside the archive: {error.strerror}",
                "make room; due runs stay due",
                Fault.OUT_OF_RESOURCES,
            ) from None
        raise DatabaseError(
            f"{folder}: no file can be written beside the archive: {error.strerror}",
            "make the folder writable, or change database.url",
            Fault.NO_RIGHTS,
        ) from None


def _write_blocks(folder: Path) -> None:
    """Fill a file that has no name, and is gone again when it is closed."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(ROOM_MIB):
            left = memoryview(_BLOCK)
            while left:
                left = left[file.write(left) :]

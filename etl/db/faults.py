"""Explain the errors of a database's driver: a problem, its remedy and a reason code.

Only an error of a statement's values can be a run's own; all others concern every run alike.
"""

import os
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)

from etl.errors import DatabaseError, Fault, OutOfFilesError, is_out_of_files
from etl.secrets.masking import mask

UNREACHABLE_REMEDY = "check database.url, and that the database runs and lets this user in"
ENCODING_REMEDY = (
    "create a database with ENCODING 'UTF8' TEMPLATE template0, and name it in database.url"
)


class _SqliteCode(IntEnum):
    """Primary result codes (sqlite.org/rescode.html).

    `sqlite3` has them too, but a server's process does not import it.
    """

    BUSY = 5
    READONLY = 8
    IOERR = 10
    FULL = 13
    CANTOPEN = 14


_OF_SQLITE: Mapping[int, str] = {
    _SqliteCode.FULL: "make room; due runs stay due",
    _SqliteCode.IOERR: "see whether the disk is full or failing; due runs stay due",
    _SqliteCode.READONLY: "make the file and its folder writable",
    _SqliteCode.CANTOPEN: "make its folder, and that writable",
}
"""Remedies for errors of SQLite, by their primary codes: its own words say little."""

_OF_STATES = {
    "22021": (Fault.ENCODING, ENCODING_REMEDY),
    "22P05": (Fault.ENCODING, ENCODING_REMEDY),
    "25P03": (Fault.UNAVAILABLE, ""),
    "25006": (Fault.NO_RIGHTS, "the server is read-only; name the primary in database.url"),
    "42501": (
        Fault.NO_RIGHTS,
        "GRANT the role of database.url this right, or let it own the tables",
    ),
    "53100": (Fault.OUT_OF_RESOURCES, "make room on the server's disk; due runs stay due"),
    "53300": (Fault.OUT_OF_RESOURCES, "raise max_connections; due runs stay due"),
    "55P03": (Fault.UNAVAILABLE, ""),
    "55006": (Fault.UNAVAILABLE, ""),
}
"""Reason and remedy of single SQLSTATEs; all others go by their class."""

_OF_CLASSES = {
    "08": Fault.UNAVAILABLE,
    "22": Fault.REFUSED_VALUES,
    "23": Fault.REFUSED_VALUES,
    "28": Fault.NO_RIGHTS,
    "40": Fault.UNAVAILABLE,
    "53": Fault.OUT_OF_RESOURCES,
    "54": Fault.REFUSED_VALUES,
    "57": Fault.UNAVAILABLE,
    "58": Fault.UNAVAILABLE,
    "XX": Fault.UNUSABLE,
}
"""Reasons of the classes of SQLSTATEs; of all others the statement is refused."""

_REFUSALS = (DataError, IntegrityError, InterfaceError, NotSupportedError, ProgrammingError)
"""Errors of the values of a statement."""


def explain(error: SQLAlchemyError, place: str) -> DatabaseError:
    """Return a driver's error as one line, without statement, parameters or password."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    if type(cause).__module__ == "sqlite3":  # not imported: a server's process needs no SQLite
        fault, remedy = _explain_sqlite(error, cause)
    elif state := getattr(cause, "sqlstate", None):
        fault, remedy = _explain_state(state)
    else:
        fault, remedy = _explain_driver(error)
    return DatabaseError(f"{place}: {_first_line(cause)}", remedy, fault)


def _explain_sqlite(error: SQLAlchemyError, cause: BaseException) -> tuple[Fault, str]:
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code == _SqliteCode.BUSY:
        return Fault.UNAVAILABLE, ""
    if code == _SqliteCode.CANTOPEN and is_out_of_files(cause):
        return Fault.OUT_OF_RESOURCES, OutOfFilesError().remedy
    if isinstance(error, _REFUSALS):
        return Fault.REFUSED_VALUES, ""
    return Fault.UNUSABLE, _OF_SQLITE.get(code, "")


def _explain_state(state: str) -> tuple[Fault, str]:
    if state in _OF_STATES:
        return _OF_STATES[state]
    return _OF_CLASSES.get(state[:2], Fault.REFUSED_STATEMENT), ""


def _explain_driver(error: SQLAlchemyError) -> tuple[Fault, str]:
    """Explain an error that the driver found itself: no connection, or a value it cannot send."""
    if isinstance(error, OperationalError):
        return Fault.UNAVAILABLE, _remedy_of_connection() if error.statement is None else ""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return Fault.UNAVAILABLE, ""
    return (Fault.REFUSED_VALUES if isinstance(error, _REFUSALS) else Fault.UNUSABLE), ""


def _remedy_of_connection() -> str:
    """Return the remedy of a failed connection; libpq ignores a password file without a word."""
    file = Path(os.environ.get("PGPASSFILE", os.devnull))
    try:
        if file.stat().st_mode & 0o077 and file.is_file():
            problem = f"which others can read: run `chmod 600 {file}`"
        else:
            return UNREACHABLE_REMEDY
    except OSError as error:
        problem = f"which cannot be read: {error.strerror}"
    return f"{UNREACHABLE_REMEDY}; no password was taken from PGPASSFILE, {file}, {problem}"


def _first_line(cause: BaseException) -> str:
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return mask(lines[0]) if lines else type(cause).__name__

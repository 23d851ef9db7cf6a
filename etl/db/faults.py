"""Explain what a database's driver reports: a problem, its remedy and a reason code."""

import sqlite3

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

from etl.errors import DatabaseError, Fault
from etl.secrets.masking import mask

_REMEDIES = {
    sqlite3.SQLITE_FULL: "make room; what is due stays due",
    sqlite3.SQLITE_IOERR: "see whether the disk is full or failing; what is due stays due",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "make its folder, and that writable",
}
"""Remedies for errors of SQLite, by their primary codes: its own words say little."""
UNREACHABLE_REMEDY = "check database.url, and that the database runs and lets this user in"


def explain(error: SQLAlchemyError, place: str) -> DatabaseError:
    """Return a driver's error as one line, without statement, parameters or password."""
    remedy = _REMEDIES.get(_sqlite_code(error), "")
    if _is_unreachable(error):
        remedy = UNREACHABLE_REMEDY
    return DatabaseError(f"{place}: {_first_line(error)}", remedy, _fault(error))


def _fault(error: SQLAlchemyError) -> Fault:
    if _is_transient(error):
        return Fault.UNAVAILABLE
    refusals = (DataError, IntegrityError, InterfaceError, NotSupportedError, ProgrammingError)
    if isinstance(error, refusals) or _is_too_large(error):
        return Fault.REFUSED_VALUES
    return Fault.UNUSABLE


def _is_transient(error: SQLAlchemyError) -> bool:
    """Tell a lost connection, a server that restarts and a held lock from a permanent error."""
    if not isinstance(error, OperationalError):
        return isinstance(error, DBAPIError) and error.connection_invalidated
    if isinstance(error.orig, sqlite3.Error):
        return _sqlite_code(error) == sqlite3.SQLITE_BUSY
    return not _is_too_large(error)


def _is_too_large(error: SQLAlchemyError) -> bool:
    """Tell a value beyond a limit of PostgreSQL, such as a long text in an index (class 54)."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    return str(getattr(cause, "sqlstate", None)).startswith("54")


def _sqlite_code(error: SQLAlchemyError) -> int:
    """Return SQLite's primary code of an error, 0 for errors of other databases."""
    cause = error.orig if isinstance(error, DBAPIError) else None
    return getattr(cause, "sqlite_errorcode", 0) & 0xFF


def _is_unreachable(error: SQLAlchemyError) -> bool:
    """Tell a server that refused the connection from one that refused a statement."""
    if not isinstance(error, OperationalError) or isinstance(error.orig, sqlite3.Error):
        return False
    return error.statement is None


def _first_line(error: SQLAlchemyError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return mask(lines[0]) if lines else type(cause).__name__

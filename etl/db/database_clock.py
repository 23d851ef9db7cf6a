"""The database's own clock in SQL: on a server the one clock that all hosts share."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Engine, func, literal, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from etl.db.database import reading
from etl.db.schema import Timestamp, to_milliseconds

Clock = Callable[[], datetime]


class database_now(FunctionElement[Any]):  # noqa: N801  a function of SQL
    """The moment at which the transaction began (PostgreSQL) or the statement did (SQLite)."""

    type = Timestamp()
    inherit_cache = True


@compiles(database_now, "sqlite")
def _now_on_sqlite(_element: Any, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f', 'now')"


@compiles(database_now, "postgresql")
def _now_on_postgresql(_element: Any, _compiler: SQLCompiler, **_kw: Any) -> str:
    return "date_trunc('milliseconds', now())"


class _later(FunctionElement[Any]):  # noqa: N801  a function of SQL
    type = Timestamp()
    inherit_cache = True


@compiles(_later, "sqlite")
def _later_on_sqlite(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    moment, wait_ms = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"strftime('%Y-%m-%d %H:%M:%f', {moment}, ({wait_ms} / 1000.0) || ' seconds')"


@compiles(_later, "postgresql")
def _later_on_postgresql(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    moment, wait_ms = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"({moment} + {wait_ms} * interval '1 millisecond')"


def later(moment: ColumnElement[Any], wait_ms: int) -> ColumnElement[Any]:
    """Return the time `wait_ms` after `moment`; before it, if that is negative."""
    return _later(moment, literal(wait_ms))


def correct_clock(engine: Engine, now: Clock) -> Clock:
    """Return `now`, corrected by its difference to the clock of the database's server.

    SQLite has the clock of this host.
    """
    if engine.dialect.name == "sqlite":
        return now
    with reading(engine) as connection:
        before = now()
        theirs = connection.scalars(select(func.clock_timestamp())).one()
        ahead = theirs - (before + (now() - before) / 2)
    return lambda: to_milliseconds(now() + ahead)


def keep_clock(_engine: Engine, now: Clock) -> Clock:
    """Return `now` as it is."""
    return now

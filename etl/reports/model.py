"""The parts of a report: definition, request, typed columns and rows, alike in every form."""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from etl.config.settings import Rules

Row = tuple[Any, ...]


class Type(StrEnum):
    """The type of a column's values. A value can be None: the data does not support a number.

    In Python: str, int, float from 0 to 1, float, aware UTC datetime, date, int, bool, str.
    """

    TEXT = "text"
    INTEGER = "integer"
    RATE = "rate"
    """A share from 0 to 1."""
    CHANGE = "change"
    """A relative change: 0.1 is a tenth more."""
    MOMENT = "moment"
    DAY = "day"
    """A calendar day in the report's time zone."""
    MILLISECONDS = "milliseconds"
    FLAG = "flag"
    STRIP = "strip"
    """Results as letters, the oldest first: P, F, A, U, N, and ? for unknown words."""


class Column(NamedTuple):
    """A column of a report; `meaning` is a line for people."""

    name: str
    kind: Type
    meaning: str

    @property
    def heading(self) -> str:
        """The name for people, who see the unit in the values."""
        return self.name.removesuffix("_ms").removeprefix("is_").replace("_", " ")


class Filter(StrEnum):
    """The filters of reports."""

    SOURCE = "source"
    APPLICATION = "application"
    PLAN = "plan"
    TEST = "test"
    LABEL = "label"
    FROM = "from"
    TO = "to"


EVERY_FILTER = frozenset(Filter)
OF_RUNS = EVERY_FILTER - {Filter.TEST}


class Filters(NamedTuple):
    """The values of the filters: names without blanks at their ends, times as UTC.

    `since` is included, `until` is not. Labels are (name, value), and all of them have to match.
    """

    source: str | None = None
    application: str | None = None
    plan: str | None = None
    test: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    @property
    def used(self) -> frozenset[Filter]:
        """The filters that have a value."""
        values = (*self[:4], self.labels or None, *self[5:])
        return frozenset(f for f, value in zip(Filter, values, strict=True) if value is not None)


class ReportRequest(NamedTuple):
    """The moment, rules and filters of a report.

    Ages are counted up to `now`. With `as_of`, which is `now` too, the report shows the archive as
    of then: the same bytes, whatever came later. `most_rows` None is all rows.
    """

    now: datetime
    rules: Rules
    zone: ZoneInfo
    filters: Filters = Filters()
    as_of: datetime | None = None
    most_rows: int | None = None


class Whole(NamedTuple):
    """The number of all rows of a report, and their accounts."""

    total: int
    sources: Collection[str]


class ReportData(NamedTuple):
    """The result of a definition's query: rows in any order, their window, and notes.

    With `whole`, `rows` are only the first ones, as many as were requested.
    """

    rows: Iterable[Row]
    window: str
    notes: tuple[str, ...] = ()
    whole: Whole | None = None


class Definition(NamedTuple):
    """A report by name, with its columns and its query.

    `order` names the columns that rows are sorted by, "-" before one that goes down; missing
    values are the last. `brief` names the columns that a terminal has room for. An answer of one
    account has no column `source` (`ReportResult`).
    """

    name: str
    title: str
    row: str
    columns: tuple[Column, ...]
    brief: tuple[str, ...]
    order: tuple[str, ...]
    filters: frozenset[Filter]
    answer: Callable[[Connection, ReportRequest], ReportData]


class ReportResult(NamedTuple):
    """The first `rows` of a report, out of `total`, each in the order of `columns`.

    `columns` are those of the definition, without `source` if the archive has one account alone.
    `brief` are the definition's, without `source` if all rows are of one account.
    """

    definition: Definition
    request: ReportRequest
    columns: tuple[Column, ...]
    brief: tuple[str, ...]
    rows: Sequence[Row]
    total: int
    window: str
    notes: tuple[str, ...]

"""What a report is: a question, typed columns, and rows; the same for each form it is shown in."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import Connection

from etl.config.settings import Rules

Row = Sequence[Any]


class ColumnKind(StrEnum):
    """What a column's values are. Each can be missing (None): the data does not support a number.

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
    kind: ColumnKind
    meaning: str

    @property
    def heading(self) -> str:
        """The name for people, who see the unit in the values."""
        return self.name.removesuffix("_ms").removeprefix("is_").replace("_", " ")


class Filter(StrEnum):
    """What the rows of a report can be limited by."""

    APPLICATION = "application"
    PLAN = "plan"
    TEST = "test"
    LABEL = "label"
    FROM = "from"
    TO = "to"


EVERY_FILTER = frozenset(Filter)
OF_RUNS = EVERY_FILTER - {Filter.TEST}


class Filters(NamedTuple):
    """What to limit a report to: names without blanks at their ends, times as UTC.

    `since` is included, `until` is not. Labels are (name, value), and all of them have to match.
    """

    application: str | None = None
    plan: str | None = None
    test: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    @property
    def used(self) -> frozenset[Filter]:
        """Which of the filters limit something."""
        values = (self.application, self.plan, self.test, self.labels or None, self[4], self[5])
        return frozenset(f for f, value in zip(Filter, values, strict=True) if value is not None)


class ReportRequest(NamedTuple):
    """What is asked of a report.

    `now` is what ages are counted to. With `as_of`, the answer is what the archive knew then (and
    `now` is the same moment): the same bytes, whatever came later. `most_rows` None is all rows.
    """

    now: datetime
    rules: Rules
    zone: ZoneInfo
    filters: Filters = Filters()
    as_of: datetime | None = None
    most_rows: int | None = None


class ReportData(NamedTuple):
    """What a definition finds: rows in any order, what they cover, and remarks about them all."""

    rows: Iterable[Row]
    window: str
    notes: tuple[str, ...] = ()


class Definition(NamedTuple):
    """A report that can be asked for.

    `order` names the columns that rows are sorted by, "-" before one that goes down; missing
    values are the last. `brief` names the columns that there is room for on a terminal.
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
    """A report that was answered: `rows` are in the order of `columns`, out of `total` ones."""

    definition: Definition
    request: ReportRequest
    rows: Sequence[Row]
    total: int
    window: str
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """All columns; a form with little room shows those that `definition.brief` names."""
        return self.definition.columns

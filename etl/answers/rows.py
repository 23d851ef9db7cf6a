"""The rows of one answer, by table. Pure values."""

from datetime import date, datetime
from typing import Any, NamedTuple

Row = tuple[Any, ...]
"""A row of any table: its values, in the order of the table's columns."""

COUNTERS = ("failed", "passed", "aborted", "pending", "unresolved")
"""The API's counters, in the order of the tables' columns."""


class RunRow(NamedTuple):
    """The columns of `runs` that come from the answer."""

    result_id: str | None
    name: str | None
    application: str | None
    status: str | None
    started_at: datetime | None
    started_on: date | None
    iso_date: str | None
    """`started_on` as text, which SQL on SQLite can compare with a day."""
    started_hour: int | None
    duration_ms: int | None
    ended_at: datetime | None
    environment_count: int
    test_count: int
    environment_signature: str
    extra: str | None


class EnvironmentRow(NamedTuple):
    """A row of `environments`; `extra` is JSON text."""

    run_id: str
    position: int
    name: str | None
    os: str | None
    viewport: str | None
    viewport_width: int | None
    viewport_height: int | None
    device: str | None
    browser: str | None
    extra: str | None


class TestRow(NamedTuple):
    """A row of `tests`; `extra` is JSON text."""

    run_id: str
    position: int
    test_id: str | None
    name: str | None
    status: str | None
    type: str | None
    sitemap: str | None
    results_url: str | None
    extra: str | None


class CountRow(NamedTuple):
    """A row of `counts`; `other` is JSON text."""

    run_id: str
    test_position: int
    scope: str
    failed: int | None
    passed: int | None
    aborted: int | None
    pending: int | None
    unresolved: int | None
    other: str | None
    total: int | None


class LeafWarning(NamedTuple):
    """A leaf that could not be read: its path, its value as JSON, and the reason."""

    path: str
    value: str
    reason: str


ECHO_WARNING = LeafWarning(
    "$body", '"***"', "the answer echoed a key or token of ours, which is masked in the payload"
)
"""Added to the rows of an answer in which a secret was masked before it was decoded."""


class Drift(NamedTuple):
    """Schema drift: a field, status or counter that the API had not shown; `path` names it."""

    path: str
    json_type: str


class Rows(NamedTuple):
    """All rows of one answer. `counts[0]` has the run's own counters."""

    run: RunRow
    environments: list[EnvironmentRow]
    tests: list[TestRow]
    counts: list[CountRow]
    warnings: list[LeafWarning]
    drift: list[Drift]

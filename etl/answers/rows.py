"""The rows that one answer is turned into, by table. Pure values."""

from datetime import date, datetime
from typing import NamedTuple


class RunRow(NamedTuple):
    """The columns of `runs` that the answer decides."""

    result_id: str | None
    name: str | None
    application: str | None
    status: str | None
    started_at: datetime | None
    started_on: date | None
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


class Warned(NamedTuple):
    """A leaf that could not be read: where it stands, what stood there (as JSON), and why not."""

    path: str
    value: str
    reason: str


ECHO_WARNING = Warned(
    "$body", '"***"', "the answer echoed a key or token of ours, which is masked in the payload"
)
"""Stands beside the rows of an answer that was masked before anything else."""


class Drift(NamedTuple):
    """Something that the API was not known to send: `path` names a field, status or counter."""

    path: str
    json_type: str


class Rows(NamedTuple):
    """All that one answer says, as rows. `counts[0]` has the run's own counters."""

    run: RunRow
    environments: list[EnvironmentRow]
    tests: list[TestRow]
    counts: list[CountRow]
    warnings: list[Warned]
    drift: list[Drift]

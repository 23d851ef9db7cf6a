"""`environments`: coverage, staleness, and results of runs in one environment."""

import json
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection

from etl.answers.rows import COUNTERS
from etl.derived.metrics import MILLISECOND, Counts, add_counts, compute_rates, count_letters
from etl.derived.plans import Application, PlanRun, environment_text
from etl.reports.columns import APPLICATION, COUNTS, RATES, SOURCE
from etl.reports.model import OF_RUNS, Column, Definition, ReportData, ReportRequest, Row, Type
from etl.reports.selection import FINISHED, read_runs, start_conditions
from etl.reports.spans import Span, describe_span, requested_or_recent

NOTHING = Counts()
EXPECTED_DAYS = 90
"""An environment is expected if a run ended in it within this number of days."""
Identity = tuple[Application, str | None, str | None, str | None, str | None]
"""Application, OS, browser, device, viewport."""


@dataclass
class _Coverage:
    """The runs of an application in one environment."""

    alone: int = 0
    shared: int = 0
    counts: Counts = NOTHING
    last_ended_at: datetime | None = None

    def add(self, run: PlanRun, *, is_alone: bool, is_in_window: bool) -> None:
        """Add a finished run. The API does not assign results to one of several environments."""
        ended_at = _ended_at(run)
        self.last_ended_at = max(ended_at, self.last_ended_at or ended_at)
        if is_in_window and is_alone:
            self.alone += 1
            self.counts = add_counts([self.counts, count_letters(run.outcomes)])
        elif is_in_window:
            self.shared += 1


def _ended_at(run: PlanRun) -> datetime:
    """Return when a run ended: when it started, if its duration is missing or cannot be true."""
    with suppress(OverflowError):
        return run.started_at + timedelta(milliseconds=run.duration_ms or 0)
    return run.started_at


def _environments(connection: Connection, request: ReportRequest) -> ReportData:
    window = requested_or_recent(request, request.rules.window_days)
    found = _found(connection, request, window)
    covered = sum(each.alone + each.shared > 0 for each in found.values())
    note = (
        f"coverage: {covered} of the {len(found)} environments that a run ended in within"
        f" {EXPECTED_DAYS} days have one in the window"
    )
    rows = (_row(*item, request.now) for item in found.items())
    return ReportData(rows, describe_span("runs", window, request.zone), (note,))


def _found(
    connection: Connection, request: ReportRequest, window: Span
) -> dict[Identity, _Coverage]:
    """Return the environments in which runs ended, in the window or before it."""
    seen = Span(window.since and min(window.since, _expected_since(request)), window.until)
    found: defaultdict[Identity, _Coverage] = defaultdict(_Coverage)
    for variant, runs in read_runs(connection, request, *start_conditions(seen)):
        identities = json.loads(variant.environment_signature)
        for run in runs:
            if run.status not in FINISHED:
                continue
            is_in_window = window.since is None or run.started_at >= window.since
            for identity in identities:
                environment = found[(variant.names.owner, *identity)]
                environment.add(run, is_alone=len(identities) == 1, is_in_window=is_in_window)
    return found


def _expected_since(request: ReportRequest) -> datetime:
    return (request.filters.until or request.now) - timedelta(days=EXPECTED_DAYS)


def _row(identity: Identity, found: _Coverage, now: datetime) -> Row:
    application, *parts = identity
    staleness = max(now - found.last_ended_at, timedelta(0)) if found.last_ended_at else None
    return (
        *application,
        environment_text(parts),
        *parts,
        found.alone + found.shared > 0,
        found.alone,
        found.shared,
        *(getattr(found.counts, name) for name in COUNTERS),
        *compute_rates(found.counts),
        found.last_ended_at,
        None if staleness is None else staleness // MILLISECOND,
    )


REPORTS = (
    Definition(
        "environments",
        "Environments: coverage, and results where they are one environment's",
        "an environment of an application, without its name, which the API can generate",
        (
            SOURCE,
            APPLICATION,
            Column("environment", Type.TEXT, "OS, browser, device and viewport"),
            Column("os", Type.TEXT, "The operating system"),
            Column("browser", Type.TEXT, "The browser"),
            Column("device", Type.TEXT, "The device"),
            Column("viewport", Type.TEXT, "Width and height of the viewport"),
            Column("is_covered", Type.FLAG, "A run in it ended that started in the window"),
            Column("runs", Type.INTEGER, "Such runs in it alone: counts and rates are of these"),
            Column("shared", Type.INTEGER, "Such runs in several environments: not in the rates"),
            *COUNTS,
            *RATES,
            Column("last_ended_at", Type.MOMENT, "When the last run in it ended"),
            Column("staleness_ms", Type.MILLISECONDS, "How long ago that is"),
        ),
        (
            "source",
            "application",
            "environment",
            "runs",
            "shared",
            "pass_rate",
            "decided_share",
            "staleness_ms",
        ),
        ("source", "application", "environment"),
        OF_RUNS,
        _environments,
    ),
)

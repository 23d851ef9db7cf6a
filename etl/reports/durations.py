"""`durations`: how long the runs of each plan take."""

from collections.abc import Iterator

from sqlalchemy import Connection, select

from etl.db.schema import durations, plan_variants
from etl.derived.duration_metrics import compute_durations
from etl.derived.outcome_reader import Variant
from etl.derived.plans import environments_text
from etl.reports.columns import APPLICATION, ENVIRONMENTS, PLAN, SOURCE
from etl.reports.model import (
    OF_RUNS,
    Column,
    Definition,
    Filter,
    ReportData,
    ReportRequest,
    Row,
    Type,
)
from etl.reports.selection import can_use_stored, read_runs, start_conditions, variant_conditions
from etl.reports.spans import describe_requested, requested_span

STORED_FILTERS = frozenset({Filter.SOURCE, Filter.APPLICATION, Filter.PLAN})
_COLUMNS = (
    SOURCE,
    APPLICATION,
    PLAN,
    ENVIRONMENTS,
    Column("measured", Type.INTEGER, "Runs in the window that ended by themselves, not aborted"),
    Column("p50_ms", Type.MILLISECONDS, "Half of them took no longer (nearest rank)"),
    Column("p95_ms", Type.MILLISECONDS, "95 % of them took no longer (nearest rank)"),
    Column("p50_per_test_ms", Type.MILLISECONDS, "The same, of duration / number of tests"),
    Column("p50_last_7_days_ms", Type.MILLISECONDS, "p50 of the last 7 days"),
    Column("p50_28_days_before_ms", Type.MILLISECONDS, "p50 of the 28 days before these"),
    Column("change", Type.CHANGE, "p50_last_7_days_ms / p50_28_days_before_ms - 1"),
    Column("last_run_id", Type.TEXT, "The last run that was measured"),
    Column("last_started_at", Type.MOMENT, "When it started"),
    Column("last_duration_ms", Type.MILLISECONDS, "How long it took"),
    Column("p95_before_last_ms", Type.MILLISECONDS, "p95 of the window without it, of 5 or more"),
    Column("is_slow", Type.FLAG, "It took longer than p95_before_last_ms"),
)


def _durations(connection: Connection, request: ReportRequest) -> ReportData:
    found = (
        _stored(connection, request)
        if can_use_stored(connection, request, STORED_FILTERS)
        else _streamed(connection, request)
    )
    rows = (
        (*variant.names, environments_text(variant.environment_signature), *row)
        for variant, row in found
    )
    days = f"the {request.rules.window_days} days up to the last run of each"
    return ReportData(rows, f"{days}, in {describe_requested(request)}")


def _streamed(connection: Connection, request: ReportRequest) -> Iterator[tuple[Variant, Row]]:
    for variant, runs in read_runs(connection, request, *start_conditions(requested_span(request))):
        found = compute_durations(runs, request.rules)
        if found:
            yield variant, found


def _stored(connection: Connection, request: ReportRequest) -> Iterator[tuple[Variant, Row]]:
    statement = (
        select(*plan_variants.columns, *list(durations.columns)[1:])
        .join(plan_variants, plan_variants.c.variant_id == durations.c.variant_id)
        .where(*variant_conditions(request.filters))
    )
    names = len(plan_variants.columns)
    for row in connection.execute(statement):
        yield Variant(*row[:names]), row[names:]


REPORTS = (
    Definition(
        "durations",
        "How long runs take",
        "a plan under one set of environments",
        _COLUMNS,
        ("source", "application", "plan", "measured", "p50_ms", "p95_ms", "change", "is_slow"),
        ("-p95_ms", "source", "application", "plan", "environments", "last_run_id"),
        OF_RUNS,
        _durations,
    ),
)

"""`compare` and `gate`: a run against another one, and against limits."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, select

from etl import display
from etl.cli.report_command import Options, as_request
from etl.cli.session import open_session
from etl.db import database
from etl.db.schema import outcomes, tracked_runs
from etl.errors import UsageError
from etl.reports.comparison import Class, Compared, compare
from etl.reports.gate import Limits, broken, measure
from etl.reports.model import Request
from etl.reports.source import FINISHED, FoundRun, find_run

LISTED = frozenset(Class) - {Class.STILL_PASSING, Class.OTHER}
"""What people are shown test by test; of the others they are told how many there are."""


@contextmanager
def _asking(path: Path | None, options: Options) -> Iterator[tuple[Connection, Request]]:
    session = open_session(path)
    request = as_request(options, session.config)
    database.require_archive(session.engine)
    with database.snapshot(session.engine) as connection:
        yield connection, request


def compare_runs(path: Path | None, run_ids: tuple[str, str], *, as_json: bool) -> int:
    """Show what became of each test. Raises UsageError for a run that is not archived."""
    with _asking(path, Options()) as (connection, request):
        before, after = (_archived(connection, request, run_id) for run_id in run_ids)
    found = compare((before.roster, before.outcomes), (after.roster, after.outcomes))
    counts = Counter(each.what for each in found)
    if as_json:
        display.as_json(
            {
                "runs": run_ids,
                "counts": {what: counts[what] for what in Class},
                "tests": [_as_dict(each) for each in found],
            }
        )
    else:
        _print_comparison(found, counts)
    return 0


def _as_dict(compared: Compared) -> dict[str, str | None]:
    what, *rest = compared
    return dict(zip(("class", *Compared._fields[1:]), (what, *rest), strict=True))


def _print_comparison(found: list[Compared], counts: Counter[Class]) -> None:
    rows = [
        (each.what, each.test, each.from_status, each.to_status)
        for each in found
        if each.what in LISTED
    ]
    if rows:
        display.table(["class", "test", "from", "to"], rows)
    display.say(", ".join(f"{counts[what]} {what}" for what in Class if counts[what]) or "no tests")


def _archived(connection: Connection, request: Request, run_id: str) -> FoundRun:
    found = _find(connection, request, run_id)
    if found is None:
        raise UsageError(f"run {display.safe(run_id)}: nothing archived yet")
    return found


def _find(connection: Connection, request: Request, run_id: str) -> FoundRun | None:
    """Return a run, None where nothing of it is archived. Raises UsageError for a stranger."""
    found = find_run(connection, request, outcomes.c.run_id == run_id)
    is_it = tracked_runs.c.run_id == run_id
    if found is None and connection.scalar(select(tracked_runs.c.run_id).where(is_it)) is None:
        raise UsageError(
            f"run {display.safe(run_id)}: is not tracked; `result-archiver track` adds it"
        )
    return found


def gate(
    path: Path | None, run_id: str | None, options: Options, limits: Limits, *, as_json: bool
) -> int:
    """Judge a run, or the newest one of a plan that is over: 1 if it breaks a limit.

    A run that is not over yet cannot be judged, which is 1 as well. Raises UsageError where no
    limit is given, or no run found.
    """
    if not any(limit is not None for limit in limits):
        raise UsageError("gate: give a limit, such as --min-pass-rate 0.95")
    is_plan = options.application is not None and options.plan is not None
    if (run_id is not None) == is_plan:
        raise UsageError("gate: give a run ID, or --application and --plan")
    with _asking(path, options) as (connection, request):
        run = _find(connection, request, run_id) if run_id else _newest(connection, request)
        is_over = run is not None and run.status in FINISHED
        measured = measure(connection, request, run) if run and is_over else None
    reasons = list(broken(limits, measured)) if measured else [_not_over(run)]
    name = run.run_id if run else run_id
    if as_json:
        display.as_json(
            {
                "run_id": name,
                "passed": not reasons,
                "reasons": reasons,
                "measured": measured and measured._asdict(),
                "limits": limits._asdict(),
            }
        )
    else:
        for line in reasons or ["is within all limits"]:
            display.say(f"run {display.safe(name)}: {line}")
    return 1 if reasons else 0


def _newest(connection: Connection, request: Request) -> FoundRun:
    is_over = outcomes.c.status.in_(FINISHED)
    found = find_run(connection, request, is_over, outcomes.c.started_at.is_not(None))
    if found is None:
        filters = request.filters
        raise UsageError(
            f"gate: no run that is over is archived of application"
            f" {display.safe(filters.application)!r}, plan {display.safe(filters.plan)!r}"
        )
    return found


def _not_over(run: FoundRun | None) -> str:
    if run is None:
        return "nothing archived yet: it cannot be judged"
    return f"is not over yet (status {display.safe(run.status or None)}): it cannot be judged"

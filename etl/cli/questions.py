"""Questions to the archive: the filters of a command, and the run that a command names."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, select

from etl import display
from etl.cli.run_facts import TAKE_BACK
from etl.cli.session import Session
from etl.config.settings import Config, Reporting
from etl.db.archive_settings import find_differences, read_settings
from etl.db.schema import outcomes, plan_variants, to_milliseconds, tracked_runs
from etl.errors import UsageError
from etl.intake.arguments import read_labels
from etl.reports.empty_answers import find_near
from etl.reports.model import Filters, ReportRequest
from etl.reports.selection import FoundRun, find_run, read_sources, variant_conditions
from etl.reports.spans import DAY, midnight

YEARS = range(1000, 9000)
"""Years that can be asked for: nearer to the calendar's ends, no time lies before or after."""


class Question(NamedTuple):
    """The filters of a report as the command line has them."""

    source: str | None = None
    application: str | None = None
    plan: str | None = None
    test: str | None = None
    labels: Sequence[str] = ()
    since: str | None = None
    until: str | None = None
    as_of: str | None = None
    rows: int | None = None


@contextmanager
def asking(session: Session, question: Question) -> Iterator[tuple[Connection, ReportRequest]]:
    """Open the archive, and give a connection that reads one state of it. Raises UsageError.

    Days, windows and thresholds are those of the archive's derived rows; notes say which settings
    of the configuration differ.
    """
    with session.open_to_read() as archive, archive.snapshot() as connection:
        stored = read_settings(connection)
        request = as_request(question, session.now, stored.reporting)
        require_source(connection, session.config, request.filters.source)
        configured, dialect = session.config.to_store, archive.engine.dialect.name
        for difference in find_differences(stored, configured, dialect):
            display.note(str(difference))
        yield connection, request


def require_source(connection: Connection, config: Config, source: str | None) -> None:
    """Raise UsageError for an account that is neither configured nor in the archive."""
    if source is None or source in config.sources:
        return
    names = sorted({*config.sources, *read_sources(connection)})
    if source not in names:
        near = find_near(source, names)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(
            f"--source {display.safe(source)}: is neither configured nor in the archive",
            display.safe(f"{hint}there are {', '.join(names)}"),
        )


def require_one_source(connection: Connection, filters: Filters) -> str | None:
    """Return the account that has the application and the plan of `filters`, None if none has.

    Raises:
        UsageError: several accounts have them.
    """
    matching = select(plan_variants.c.source).where(*variant_conditions(filters))
    sources = sorted(connection.scalars(matching.distinct()))
    if len(sources) > 1:
        names = ", plan ".join(filter(None, (filters.application, filters.plan)))
        raise UsageError(
            f"application {display.safe(names)}: is in several accounts",
            f"name one by --source: {', '.join(sources)}",
        )
    return sources[0] if sources else None


def as_request(question: Question, now: datetime, reporting: Reporting) -> ReportRequest:
    """Check the filters, and read their times. Raises UsageError."""
    zone = reporting.zone
    as_of = _moment("--as-of", question.as_of, zone, is_end=True)
    if as_of and as_of > now:
        raise UsageError(f"--as-of {question.as_of}: is not over yet ({zone.key})")
    source, application, plan, test = (each and each.strip() for each in question[:4])
    filters = Filters(
        source,
        application,
        plan,
        test,
        tuple(read_labels(question.labels).items()),
        _moment("--from", question.since, zone, is_end=False),
        _moment("--to", question.until, zone, is_end=True),
    )
    if filters.since and filters.until and filters.since >= filters.until:
        raise UsageError(f"--from {question.since}: is not before --to {question.until}")
    return ReportRequest(as_of or now, reporting.rules, zone, filters, as_of, question.rows or None)


def _moment(option: str, text: str | None, zone: ZoneInfo, *, is_end: bool) -> datetime | None:
    """Return a day (its beginning or end, in `zone`) or an ISO 8601 time as a moment.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    try:
        return _parse(text, zone, is_end=is_end)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {display.safe(text)}: give a day or a time such as 2026-11-02 or"
            f" 2026-11-02T09:00 (in {zone.key}), or 2026-11-02T09:00Z"
        ) from None


def _parse(text: str, zone: ZoneInfo, *, is_end: bool) -> datetime:
    if "T" not in text and " " not in text:
        moment = midnight(date.fromisoformat(text) + is_end * DAY, zone)
    else:
        time = datetime.fromisoformat(text)
        moment = to_milliseconds(time if time.tzinfo else time.replace(tzinfo=zone))
    if moment.year not in YEARS:
        raise ValueError(f"{moment.year} is too near to where the calendar ends")
    return moment


def find_archived(connection: Connection, request: ReportRequest, run_id: str) -> FoundRun:
    """Return an archived run. Raises UsageError for any other."""
    found = find_tracked(connection, request, run_id)
    if found is None:
        raise UsageError(f"run {display.safe(run_id)}: nothing archived yet")
    return found


def find_tracked(connection: Connection, request: ReportRequest, run_id: str) -> FoundRun | None:
    """Return a run, None where nothing of it is archived. Raises UsageError for any other."""
    found = find_run(connection, request, outcomes.c.run_id == run_id)
    if found is None:
        is_it = tracked_runs.c.run_id == run_id
        state = connection.scalar(select(tracked_runs.c.state).where(is_it))
        if state is None:
            remedy = "`result-archiver track` adds it"
            raise UsageError(f"run {display.safe(run_id)}: is not tracked", remedy)
        if state == "dropped":
            raise UsageError(f"run {display.safe(run_id)}: was dropped", TAKE_BACK)
    return found

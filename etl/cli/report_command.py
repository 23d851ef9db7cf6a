"""`report`: answer a report in the form that is asked for."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import date, datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from etl import clock, display, files
from etl.cli.session import open_session
from etl.config.settings import Config
from etl.db import database
from etl.db.schema import to_milliseconds
from etl.errors import UsageError
from etl.intake.arguments import read_labels
from etl.reports import catalog, forms
from etl.reports.model import Filters, Report, Request
from etl.reports.spans import DAY, midnight

TABLE_ROWS = 20
"""How many rows people are shown unless they ask for more; programs get all."""
YEARS = range(1000, 9000)
"""What can be asked for: nearer to where the calendar ends, there is no time before or after."""


class Form(StrEnum):
    """The forms of a report."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    MARKDOWN = "markdown"
    HTML = "html"


class Options(NamedTuple):
    """What the command line says of rows and times, as it was typed."""

    application: str | None = None
    plan: str | None = None
    test: str | None = None
    labels: Sequence[str] = ()
    since: str | None = None
    until: str | None = None
    as_of: str | None = None
    rows: int | None = None


def names() -> int:
    """List the reports that there are."""
    rows = [(each.name, each.title, each.row) for each in catalog.REPORTS.values()]
    display.table(["report", "shows", "a row is"], rows)
    return 0


@contextmanager
def written_to(file: Path | None) -> Iterator[None]:
    """Write to `file` what is printed within, all of it or nothing. None prints it.

    Raises:
        UsageError: the file cannot be written.
    """
    if file is None:
        yield
        return
    if not file.name:
        raise UsageError(f"--output {file}: is a folder; name a file in it")
    try:
        with (
            files.finished([file]) as [unfinished],
            unfinished.open("x", encoding="utf-8") as text,
            redirect_stdout(text),
        ):
            yield
    except OSError as error:
        raise UsageError(f"--output {file}: cannot be written: {error.strerror}") from None


def report(path: Path | None, name: str, options: Options, form: Form, *, raw: bool) -> int:
    """Answer a report. Raises UsageError where it cannot be asked so."""
    definition = catalog.find(name)
    session = open_session(path)
    request = as_request(options, session.config)
    if options.rows is None and form in {Form.TABLE, Form.MARKDOWN}:
        request = request._replace(most_rows=TABLE_ROWS)
    database.require_archive(session.engine)
    with database.snapshot(session.engine) as connection:
        found = catalog.run(connection, definition, request)
    show(found, form, raw=raw)
    return 0


def page(path: Path | None, name: str | None, options: Options) -> int:
    """Print one report as a page, or all that can be limited as is asked.

    Raises:
        UsageError: it cannot be asked so.
    """
    from etl.reports.page import document, sections  # noqa: PLC0415  only pages need it

    wanted = [catalog.find(each) for each in ([name] if name else sections.PAGE)]
    session = open_session(path)
    request = as_request(options, session.config)._replace(most_rows=None)  # charts show them all
    if name is None:
        wanted = [each for each in wanted if request.filters.used <= each.filters]
    database.require_archive(session.engine)
    with database.snapshot(session.engine) as connection:
        found = [catalog.run(connection, definition, request) for definition in wanted]
    display.say(document.render(found, options.rows))
    return 0


def as_form(text: str) -> Form:
    """Return the form called `text`. Raises UsageError when there is none."""
    try:
        return Form(text)
    except ValueError:
        raise UsageError(f"--format {display.safe(text)}: give {', '.join(Form)}") from None


def as_request(options: Options, config: Config) -> Request:
    """Return what `options` ask for. Raises UsageError for a time or label that is none."""
    zone = config.reporting_zone
    now = clock.now()
    as_of = moment("--as-of", options.as_of, zone, is_end=True)
    if as_of and as_of > now:
        raise UsageError(f"--as-of {options.as_of}: is not over yet ({zone.key})")
    application, plan, test = (each and each.strip() for each in options[:3])
    filters = Filters(
        application,
        plan,
        test,
        tuple(read_labels(options.labels).items()),
        moment("--from", options.since, zone, is_end=False),
        moment("--to", options.until, zone, is_end=True),
    )
    if filters.since and filters.until and filters.since >= filters.until:
        raise UsageError(f"--from {options.since}: is not before --to {options.until}")
    return Request(as_of or now, config.rules, zone, filters, as_of, options.rows or None)


def moment(option: str, text: str | None, zone: ZoneInfo, *, is_end: bool) -> datetime | None:
    """Return a day (its beginning or end, in `zone`) or an ISO 8601 time as a moment.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    try:
        return _moment(text, zone, is_end=is_end)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {display.safe(text)}: give a day or a time such as 2026-11-02 or"
            f" 2026-11-02T09:00 (in {zone.key}), or 2026-11-02T09:00Z"
        ) from None


def _moment(text: str, zone: ZoneInfo, *, is_end: bool) -> datetime:
    if "T" not in text and " " not in text:
        found = midnight(date.fromisoformat(text) + is_end * DAY, zone)
    else:
        time = datetime.fromisoformat(text)
        found = to_milliseconds(time if time.tzinfo else time.replace(tzinfo=zone))
    if found.year not in YEARS:
        raise ValueError(f"{found.year} is too near to where the calendar ends")
    return found


def show(found: Report, form: Form, *, raw: bool = False) -> None:
    """Print a report; of CSV, what is to be known beside its rows goes to stderr."""
    if form is Form.TABLE:
        forms.show_table(found)
    elif form is Form.CSV:
        for line in forms.as_csv(found, raw=raw):
            display.say_raw(line)
        for line in forms.context(found):
            display.note(line)
    else:
        for line in forms.as_json(found) if form is Form.JSON else forms.as_markdown(found):
            display.say(line)

"""`report`: a report in the form that is asked for, or as a page."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etl import display
from etl.cli import options
from etl.errors import UsageError
from etl.files import ForeignFileError, write_whole

if TYPE_CHECKING:
    from etl.cli.questions import Question
    from etl.cli.session import Session
    from etl.reports.model import ReportResult

TABLE_ROWS = 20
"""How many rows people are shown by default; programs get all."""


class Form(StrEnum):
    """The forms of a report."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    MARKDOWN = "markdown"
    HTML = "html"


@click.command(epilog="Example: result-archiver report flaky --application Storefront --rows 5")
@click.argument(
    "name", metavar="[NAME]", required=False, help="A report; without one, all are listed."
)
@options.of_source
@options.application
@options.plan
@click.option("--test", metavar="NAME", help="Only tests of this name.")
@options.labels
@click.option(
    "--from",
    "since",
    metavar="TIME",
    help="Only runs that started then or later: a day or an ISO 8601 time, in"
    " reporting.time_zone unless it says otherwise.",
)
@click.option(
    "--to", "until", metavar="TIME", help="Only runs before this time; a day is included."
)
@options.as_of
@click.option(
    "--rows",
    type=options.NUMBER,
    metavar="N",
    help="Limit of rows; 0 is all. Default: 20 for people, all for programs.",
)
@click.option(
    "--format",
    "form",
    metavar="FORM",
    default="table",
    show_default=True,
    help="table, csv, json, markdown or html.",
)
@options.raw
@click.option(
    "--output",
    type=options.FILE,
    metavar="FILE",
    help="Write the answer to a file, whole or not at all.",
)
@options.as_json
@options.pass_session
def report(
    session: "Session",
    /,
    *,
    name: str | None,
    form: str,
    raw: bool,
    output: Path | None,
    as_json: bool,
    **filters: Any,
) -> int:
    """Answer a question about the archive (docs/REPORTS.md).

    Now, or as of any moment. --format html makes one page of it to send around; without a NAME,
    of the whole archive.
    """
    from etl.cli.questions import Question

    question = Question(**filters)
    wanted = _read_form("json" if as_json else form)
    with _written_to(output):
        if wanted is Form.HTML:
            _print_page(session, name, question)
        elif name is None:
            _print_names()
        else:
            if question.rows is None and wanted in {Form.TABLE, Form.MARKDOWN}:
                question = question._replace(rows=TABLE_ROWS)
            _answer(session, name, question, wanted, raw=raw)
    return 0


def _read_form(text: str) -> Form:
    try:
        return Form(text)
    except ValueError:
        raise UsageError(f"--format {display.safe(text)}: give {', '.join(Form)}") from None


@contextmanager
def _written_to(file: Path | None) -> Iterator[None]:
    """Write all that is printed within to `file`, whole or not at all. None prints it.

    Raises:
        UsageError: the file cannot be written.
    """
    if file is None:
        yield
        return
    if not file.name:
        raise UsageError(f"--output {file}: is a folder; name a file in it")

    from etl.export.own_files import is_replaceable_answer

    try:
        with (
            write_whole({file: is_replaceable_answer}) as [draft],
            draft.open("w", encoding="utf-8") as text,
            redirect_stdout(text),
        ):
            yield
    except ForeignFileError as error:
        raise UsageError(f"--output {error}") from None
    except OSError as error:
        raise UsageError(f"--output {file}: cannot be written: {error.strerror}") from None


def _print_names() -> None:
    from etl.reports import catalog

    rows = [(each.name, each.title, each.row) for each in catalog.REPORTS.values()]
    display.table(["report", "shows", "a row is"], rows)


def _answer(session: "Session", name: str, question: "Question", form: Form, *, raw: bool) -> None:
    from etl.cli.questions import asking
    from etl.reports import catalog
    from etl.reports.empty_answers import explain_empty

    definition = catalog.find(name)
    with asking(session, question) as (connection, request):
        found = catalog.run(connection, definition, request)
        reason = explain_empty(connection, [found])
    _print_report(found, form, raw=raw)
    if reason:
        display.note(reason)


def _print_page(session: "Session", name: str | None, question: "Question") -> None:
    """Print one report as a page, or all those that have the filters of the question."""
    from etl.cli.questions import asking
    from etl.reports import catalog
    from etl.reports.empty_answers import explain_empty
    from etl.reports.page import document, sections

    wanted = [catalog.find(each) for each in ([name] if name else sections.PAGE)]
    with asking(session, question) as (connection, request):
        if name is None:
            wanted = [each for each in wanted if request.filters.used <= each.filters]
        most_rows = document.choose_rows(len(wanted), question.rows)
        found = [
            catalog.run(
                connection,
                each,
                request._replace(most_rows=None if document.needs_all_rows(each) else most_rows),
            )
            for each in wanted
        ]
        is_narrowed = name or request.as_of or request.filters.used
        # The whole page of an empty archive says so in each section.
        reason = explain_empty(connection, found) if is_narrowed else None
    display.say(document.render(found, most_rows))
    if reason:
        display.note(reason)


def _print_report(found: "ReportResult", form: Form, *, raw: bool) -> None:
    """Print a report; for CSV, its notes go to stderr, beside the rows."""
    from etl.reports import forms

    if form is Form.TABLE:
        forms.show_table(found)
    elif form is Form.MARKDOWN:
        for line in forms.as_markdown(found):
            display.say(line)
    elif form is Form.JSON:
        display.say_lines(forms.as_json(found))
    else:
        display.say_lines(forms.as_csv(found, raw=raw))
        for line in forms.context(found):
            display.note(line)

"""`show`: one run with its history, or all results of a test."""

from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options
from etl.errors import UsageError

if TYPE_CHECKING:
    from etl.cli.questions import Question
    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver show ac247a18-75d5-4094-8ab3-56788d6d2ff9")
@options.run_id
@click.option("--test", metavar="NAME", help="Instead of a run: the history of this test.")
@options.of_source
@options.application
@options.plan
@options.as_of
@options.as_json
@options.pass_session
def show(
    session: "Session",
    *,
    run_id: str | None,
    test: str | None,
    source: str | None,
    application: str | None,
    plan: str | None,
    as_of: str | None,
    as_json: bool,
) -> int:
    """Show one run with its tests and history, or a test's results."""
    from etl.cli.questions import Question

    if (run_id is None) == (test is None):
        raise UsageError("show: give a run ID, or --test NAME")
    if run_id is None:
        question = Question(source, application, plan, test, as_of=as_of)
        return _show_test(session, question, as_json=as_json)
    if source or application or plan or as_of:
        raise UsageError("show RUN_ID: --source, --application, --plan, --as-of go with --test")
    return _show_run(session, run_id, as_json=as_json)


def _show_run(session: "Session", run_id: str, *, as_json: bool) -> int:
    from etl.cli.run_facts import print_run, read_run

    with session.open_to_read() as archive, archive.reading() as connection:
        found = read_run(connection, run_id)
    if as_json:
        display.as_json(found)
    else:
        print_run(found)
    return 0


def _show_test(session: "Session", question: "Question", *, as_json: bool) -> int:
    from etl.cli import test_history
    from etl.cli.questions import asking
    from etl.reports.empty_answers import explain_no_match
    from etl.reports.histories import histories
    from etl.reports.selection import read_sources

    with asking(session, question) as (connection, request):
        test = request.filters.test or ""
        found = list(histories(connection, request, test))
        if not found:
            reason = explain_no_match(connection, request)
            raise UsageError(f"test {display.safe(test)}: no run has it", reason)
        sources = read_sources(connection, request.as_of)
    if as_json:
        names = test_history.choose_names(sources)
        display.as_json([test_history.as_dict(history, names) for history in found])
    else:
        names = test_history.choose_names({history.variant.source for history in found})
        for history in found:
            test_history.print_history(history, names, request.zone)
    return 0

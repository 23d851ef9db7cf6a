"""`compare`: each test in one run and in another."""

from collections import Counter
from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from etl.cli.session import Session
    from etl.reports.comparison import Class, Compared


@click.command(epilog="Example: result-archiver compare RUN_A RUN_B --json")
@click.argument("before", metavar="RUN_A", help="The run before.")
@click.argument("after", metavar="RUN_B", help="The run after.")
@options.as_json
@options.pass_session
def compare(session: "Session", *, before: str, after: str, as_json: bool) -> int:
    """Show how each test changed from one run to another."""
    from etl.cli.questions import Question, asking, find_archived
    from etl.reports import comparison
    from etl.reports.statuses import read_unknown_words

    with asking(session, Question()) as (connection, request):
        first = find_archived(connection, request, before)
        second = find_archived(connection, request, after)
        sides = [
            comparison.RunTests(
                run.roster, run.outcomes, read_unknown_words(connection, request, run.run_id)
            )
            for run in (first, second)
        ]
    found = comparison.compare(*sides)
    counts = Counter(each.what for each in found)
    if as_json:
        display.as_json(
            {
                "runs": [before, after],
                "counts": {what: counts[what] for what in comparison.Class},
                "tests": [_as_dict(each) for each in found],
            }
        )
    else:
        _print_comparison(found, counts)
    return 0


def _as_dict(compared: "Compared") -> dict[str, str | None]:
    what, *rest = compared
    return dict(zip(("class", *compared._fields[1:]), (what, *rest), strict=True))


def _print_comparison(found: "list[Compared]", counts: "Counter[Class]") -> None:
    """Print the tests that changed one by one, and the number of all others."""
    from etl.reports.comparison import Class

    rows = [
        (each.what, each.test, each.from_status, each.to_status)
        for each in found
        if each.what not in {Class.STILL_PASSING, Class.OTHER}
    ]
    if rows:
        display.table(["class", "test", "from", "to"], rows)
    display.say(", ".join(f"{counts[what]} {what}" for what in Class if counts[what]) or "no tests")

"""`gate`: a run against limits, for CI jobs."""

from typing import TYPE_CHECKING, Any

import click

from etl import display
from etl.cli import options
from etl.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from etl.cli.session import Session
    from etl.reports.model import ReportRequest
    from etl.reports.selection import FoundRun


@click.command(
    epilog="Example: result-archiver gate --application Storefront --plan Nightly"
    " --min-pass-rate 0.95 --max-new-failures 0"
)
@options.run_id
@options.of_source
@options.application
@options.plan
@options.labels
@click.option(
    "--min-pass-rate", type=options.SHARE, metavar="SHARE", help="passed / (passed + failed)."
)
@click.option(
    "--min-decided-share",
    type=options.SHARE,
    metavar="SHARE",
    help="Tests that passed or failed, of all.",
)
@click.option("--max-failed", type=options.NUMBER, metavar="N", help="Failed tests.")
@click.option(
    "--max-new-failures",
    type=options.NUMBER,
    metavar="N",
    help="Failed tests that passed the time before, or are new.",
)
@click.option(
    "--max-unresolved", type=options.NUMBER, metavar="N", help="Tests that wait for a person."
)
@click.option("--max-aborted", type=options.NUMBER, metavar="N", help="Aborted tests.")
@options.as_json
@options.pass_session
def gate(
    session: "Session",
    /,
    *,
    run_id: str | None,
    source: str | None,
    application: str | None,
    plan: str | None,
    labels: tuple[str, ...],
    as_json: bool,
    **limits: Any,
) -> int:
    """Exit with 1 if a run breaks a limit, or has not finished.

    The run is the given one, or the newest finished one of a plan.
    """
    from etl.cli.questions import Question, asking, find_tracked, require_one_source
    from etl.reports.gate import GateLimits, broken, measure
    from etl.reports.selection import FINISHED

    if not any(limit is not None for limit in limits.values()):
        raise UsageError("gate: give a limit, such as --min-pass-rate 0.95")
    if (run_id is not None) == (application is not None and plan is not None):
        raise UsageError("gate: give a run ID, or --application and --plan")
    if run_id is not None and source is not None:
        raise UsageError("gate RUN_ID: --source goes with --application and --plan")
    question = Question(source, application, plan, labels=labels)
    with asking(session, question) as (connection, request):
        if run_id is None:
            require_one_source(connection, request.filters)
            run: FoundRun | None = _find_newest(connection, request)
        else:
            run = find_tracked(connection, request, run_id)
        is_finished = run is not None and run.status in FINISHED
        measured = measure(connection, request, run) if run and is_finished else None
    reasons = list(broken(GateLimits(**limits), measured)) if measured else [_describe_open(run)]
    name = run.run_id if run else run_id
    if as_json:
        display.as_json(
            {
                "run_id": name,
                "passed": not reasons,
                "reasons": reasons,
                "measured": measured and measured._asdict(),
                "limits": limits,
            }
        )
    else:
        for line in reasons or ["is within all limits"]:
            display.say(f"run {display.safe(name)}: {line}")
    return 1 if reasons else 0


def _find_newest(connection: "Connection", request: "ReportRequest") -> "FoundRun":
    from etl.db.schema import outcomes
    from etl.reports.empty_answers import explain_no_match
    from etl.reports.selection import FINISHED, find_run

    is_finished = outcomes.c.status.in_(FINISHED)
    found = find_run(connection, request, is_finished, outcomes.c.started_at.is_not(None))
    if found is None:
        filters = request.filters
        raise UsageError(
            f"gate: no run that is over is archived of application"
            f" {display.safe(filters.application)!r}, plan {display.safe(filters.plan)!r}",
            explain_no_match(connection, request),
        )
    return found


def _describe_open(run: "FoundRun | None") -> str:
    if run is None:
        return "nothing archived yet: it cannot be judged"
    return f"is not over yet (status {display.safe(run.status or None)}): it cannot be judged"

"""`doctor`: each problem with its remedy."""

from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver doctor")
@options.as_json
@options.pass_session
def doctor(session: "Session", *, as_json: bool) -> int:
    """Check keys, API and database; say how to fix each problem.

    The exit code is that of the first problem.
    """
    from etl.cli.examination import examine

    with session.open_as_it_is() as archive:
        findings = list(examine(archive, session.config, session.wiring.clock))
    if as_json:
        display.as_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            mark = "problem" if finding.exit_code else "note" if finding.remedy else "ok"
            display.say(f"{mark:8}{finding.subject}: {finding.verdict}")
            if finding.remedy:
                display.say(f"        -> {finding.remedy}")
    return next((finding.exit_code for finding in findings if finding.exit_code), 0)

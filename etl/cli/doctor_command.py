"""`doctor`: each problem with its remedy."""

import textwrap
from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from etl.cli.examination import Finding
    from etl.cli.session import Session

GRAVEST_FIRST = (2, 4, 3, 5, 1)
"""Exit codes in the order in which `ingest` would meet them."""


@click.command(epilog="Example: result-archiver doctor")
@options.as_json
@options.pass_session
def doctor(session: "Session", *, as_json: bool) -> int:
    """Check all that a pass needs; name each problem with its remedy.

    Nothing is changed. The exit code is the one that ingest would have.
    """
    from etl.cli.examination import examine

    with session.open_as_it_is() as archive:
        findings = list(examine(archive, session.config, session.wiring.clock))
    if as_json:
        display.as_json([finding._asdict() for finding in findings])
    else:
        for finding in findings:
            _print_finding(finding)
    codes = {finding.exit_code for finding in findings}
    return next((code for code in GRAVEST_FIRST if code in codes), 0)


def _print_finding(finding: "Finding") -> None:
    mark = "problem" if finding.exit_code else "note" if finding.problem else "ok"
    _print_wrapped(f"{mark:8}", f"{finding.subject}: {finding.problem or finding.state}")
    if finding.remedy:
        _print_wrapped(" " * 8 + "-> ", finding.remedy)


def _print_wrapped(start: str, text: str) -> None:
    lines = textwrap.wrap(
        display.safe(text),
        display.WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_on_hyphens=False,
    )
    for line in lines:
        display.say(line)

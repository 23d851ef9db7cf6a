"""`track`: add runs to the ledger."""

from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options
from etl.errors import UsageError

if TYPE_CHECKING:
    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver track --from runs.csv --label branch=main")
@options.run_ids
@options.lists
@options.source
@click.option(
    "--label",
    "labels",
    metavar="NAME=VALUE",
    multiple=True,
    help="A label for all these runs, such as commit=1f3c. Can be given repeatedly.",
)
@click.option("--again", is_flag=True, help="Take back those of the runs that were dropped.")
@options.as_json
@options.quiet
@options.verbose
@options.pass_session
def track(
    session: "Session",
    *,
    run_ids: tuple[str, ...],
    lists: tuple[str, ...],
    source: str | None,
    labels: tuple[str, ...],
    again: bool,
    as_json: bool,
) -> int:
    """Add runs to the ledger; the next ingest fetches them.

    The exit code is 1 if a list has bad lines.
    """
    from etl.ingest import begin
    from etl.intake import arguments

    given = arguments.read(arguments.Wanted(run_ids, lists, source, labels), session.config)
    if not run_ids and not lists:
        raise UsageError("no runs were given; name run IDs, or a list with --from FILE")
    with session.open_or_create() as archive:
        track_runs = begin.track_again if again else begin.track_named
        tracked = track_runs(session.ingest_into(archive), given)
    if as_json:
        display.as_json({**tracked._asdict(), "bad_lines": given.bad_lines})
    elif session.config.log.level in {"debug", "info"}:
        counts = [f"{tracked.new} new", f"{tracked.known} known already"]
        counts += [f"{tracked.taken_back} taken back"] if tracked.taken_back else []
        counts += [f"{tracked.dropped} left out: dropped"] if tracked.dropped else []
        display.say(", ".join(counts))
    return 1 if given.bad_lines else 0

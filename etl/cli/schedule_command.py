"""`schedule`: passes as a service."""

from typing import TYPE_CHECKING

import click

from etl.cli import options

if TYPE_CHECKING:
    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver schedule")
@options.quiet
@options.verbose
@options.pass_session
def schedule(session: "Session") -> int:
    """Run as a service: a pass now, then as [schedule] says.

    SIGTERM and Ctrl-C end it after the runs in hand: its exit code is 0 then.
    """
    from etl.fetch.door import check_routes
    from etl.ingest import service
    from etl.ingest.interrupt import Interrupt
    from etl.runtime import tune_heap
    from etl.secrets.keys import require_keys

    tune_heap()
    require_keys(session.config.sources, set(session.config.sources))
    check_routes(session.config)
    with (
        session.open_to_migrate() as archive,  # each pass creates or checks the tables
        Interrupt().listening() as interrupt,
    ):
        service.serve(session.ingest_into(archive), interrupt)
    return 0

"""`work`: join a pass that another process has begun, here or on another host."""

from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver work --pass 7")
@click.option("--pass", "pass_id", metavar="ID", type=int, required=True, help="The pass.")
@click.option("--as-part", is_flag=True, hidden=True, help="The command that started it reports.")
@options.as_json
@options.quiet
@options.verbose
@options.pass_session
def work(session: "Session", *, pass_id: int, as_part: bool, as_json: bool) -> int:
    """Work for a pass that another process has begun.

    Fetch and store runs that are due in it until there are none. The process that has begun it
    waits for this one, and counts its runs.
    """
    from etl.errors import ArchiverError, UsageError
    from etl.ingest.context import PassHooks
    from etl.ingest.interrupt import Interrupt
    from etl.ingest.one_pass import join_pass
    from etl.ingest.summary import log_counts, log_halt
    from etl.runtime import tune_heap
    from etl.telemetry.log import log_error, pass_lines

    tune_heap()
    with pass_lines(session.now):
        try:
            with session.open_to_write() as archive, Interrupt().listening() as interrupt:
                context = session.ingest_into(archive)
                with session.progress("archiving") as progress:
                    tally = join_pass(context, pass_id, PassHooks(progress, interrupt))
        except UsageError:
            raise  # the worker has not begun
        except ArchiverError as error:
            log_error(error)
            return error.exit_code
        if as_part:
            return tally.exit_code
        log_halt(tally)
        if as_json:
            display.as_json(tally.summary())
        else:
            log_counts(tally)
    return tally.exit_code

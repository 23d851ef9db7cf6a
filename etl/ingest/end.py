"""The end of a pass: refresh derived tables, close its row in `ingests`, measure health."""

from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy import update

from etl.archive import identity
from etl.db.database import writing
from etl.db.schema import OUTCOMES, ingests
from etl.errors import ArchiverError, DatabaseError
from etl.ingest.begin import OpenPass
from etl.ingest.context import IngestContext
from etl.ingest.patience import Patience
from etl.ledger import health, standings


def end_pass(ingest: IngestContext, opened: OpenPass, *, is_interrupted: bool) -> None:
    """Refresh the derived tables, and close the pass; its tally has the exit code."""
    patience = Patience(ingest.patience_s)
    if not is_interrupted:
        # Even if nothing changed: the pass before may have been killed in it.
        zone = ingest.config.reporting.zone
        patience.run(partial(identity.refresh_archive, ingest.engine, ingest.now(), zone))
    patience.run(partial(_close_pass, ingest, opened))


def fail_pass(ingest: IngestContext, opened: OpenPass, error: Exception) -> None:
    """Close a pass that ended with an error; the next pass refreshes its dirty rows."""
    opened.tally.exit_code = error.exit_code if isinstance(error, ArchiverError) else 1
    with suppress(DatabaseError):  # if that is the error, it is being raised already
        _close_pass(ingest, opened)


def _close_pass(ingest: IngestContext, opened: OpenPass) -> None:
    tally, now = opened.tally, ingest.now()
    values: dict[str, Any] = {name: getattr(tally, name) for name in OUTCOMES}
    values |= {"finished_at": now, "requests": tally.requests, "exit_code": tally.exit_code}
    of_pass = update(ingests).where(ingests.c.id == tally.pass_id)
    with writing(ingest.engine) as connection:
        ended = connection.execute(of_pass.values(values).returning(ingests.c.id))
        health.record_health(connection, ended.scalar_one(), now)
        tally.standing_failed = standings.count_failed(connection)

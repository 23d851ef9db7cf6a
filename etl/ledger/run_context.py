"""Changes of an archived run that its answers do not show: its labels, and whether the API has it.

They are no content: they open no revision, and leave `runs.changed_at` as it is.
"""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import Connection, select

from etl.db import bulk
from etl.db.schema import among, runs, tracked_runs


def record_context_changes(connection: Connection, changed_at: Mapping[str, datetime]) -> None:
    """Move row_changed_at of the archived ones of some runs, so that copies of views take them.

    It never goes back, even if a clock was set back. The ledger has the source of truth.

    Locks the runs' rows in the ledger first, in the order of run IDs: a concurrent transaction may
    be archiving one of them.
    """
    if not changed_at:
        return
    in_ledger = select(tracked_runs.c.run_id).where(among(tracked_runs.c.run_id, changed_at))
    connection.execute(in_ledger.order_by(tracked_runs.c.run_id).with_for_update())
    query = select(runs.c.run_id, runs.c.row_changed_at).where(among(runs.c.run_id, changed_at))
    rows = [
        (max(row.row_changed_at, changed_at[row.run_id]), row.run_id)
        for row in connection.execute(query)
    ]
    bulk.update(connection, runs, ["row_changed_at"], rows)
    bulk.update(connection, tracked_runs, ["context_changed_at"], rows)

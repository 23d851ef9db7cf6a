"""The partial indexes of the tables in `schema`.

Apart, since declaring one loads the dialects of all its databases: only the migrations, which
must agree with these declarations, pay for that.
"""

from typing import Any

from sqlalchemy import Column, ColumnElement, Index

from etl.db import schema
from etl.db.schema import HAS_FAILED, IS_CURRENT, IS_OPEN, QUEUED, outcomes, revisions, tracked_runs

metadata = schema.metadata
"""All tables, with all indexes."""


def _add_partial_index(condition: ColumnElement[bool], *columns: Column[Any]) -> None:
    """Index `columns` in the rows that match `condition`."""
    name = "_".join(["ix", columns[0].table.name, *(column.name for column in columns)])
    Index(name, *columns, sqlite_where=condition, postgresql_where=condition)


for _name, _condition in zip(("with_token", "without_token"), QUEUED, strict=True):
    Index(
        f"ix_tracked_runs_queued_{_name}",
        tracked_runs.c.due_at,
        tracked_runs.c.run_id,
        sqlite_where=_condition,
        postgresql_where=_condition,
    )
_add_partial_index(HAS_FAILED, tracked_runs.c.state)
_add_partial_index(tracked_runs.c.gone_at.is_not(None), tracked_runs.c.gone_at)
_add_partial_index(revisions.c.superseded_at.is_not(None), revisions.c.superseded_at)
_add_partial_index(IS_CURRENT, outcomes.c.variant_id, outcomes.c.started_at, outcomes.c.run_id)
_add_partial_index(IS_CURRENT, outcomes.c.variant_id, outcomes.c.roster_id, outcomes.c.started_on)
# With `superseded_at` in it SQLite sums open tests from the index alone.
_add_partial_index(
    IS_OPEN,
    outcomes.c.variant_id,
    outcomes.c.opened_at,
    outcomes.c.tests_unresolved,
    outcomes.c.superseded_at,
)

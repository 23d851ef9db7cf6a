"""The indexes of some rows only, which belong to the tables of `schema`.

Apart, since to declare one loads the dialects of all databases it is for: only the migrations,
which must agree with it, are to pay for that.
"""

from typing import Any

from sqlalchemy import Column, ColumnElement, Index

from etl.db import schema
from etl.db.schema import HAS_FAILED, IS_CURRENT, IS_OPEN, outcomes, revisions, tracked_runs

metadata = schema.metadata
"""All tables, with all indexes."""


def _partial(condition: ColumnElement[bool], *columns: Column[Any]) -> None:
    """Index `columns` in the rows for which `condition` holds."""
    name = "_".join(["ix", columns[0].table.name, *(column.name for column in columns)])
    Index(name, *columns, sqlite_where=condition, postgresql_where=condition)


_partial(HAS_FAILED, tracked_runs.c.state)
_partial(tracked_runs.c.gone_at.is_not(None), tracked_runs.c.gone_at)
_partial(revisions.c.superseded_at.is_not(None), revisions.c.superseded_at)
_partial(IS_CURRENT, outcomes.c.variant_id, outcomes.c.started_at, outcomes.c.run_id)
_partial(IS_OPEN, outcomes.c.ended_at)

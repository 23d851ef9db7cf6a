"""Read the newest answer of archived runs."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, select

from etl.db.schema import among, payloads, runs, tracked_runs
from etl.ledger.lifecycle import Seen


class ArchivedRun(NamedTuple):
    """The newest revision of a run in the archive."""

    run_id: str
    revision: int
    content_hash: str
    status: str | None
    started_at: datetime | None
    ended_at: datetime | None
    archived_at: datetime
    changed_at: datetime
    gone_at: datetime | None
    context_changed_at: datetime | None
    last_fetched_at: datetime | None

    def seen(self, first_tracked_at: datetime) -> Seen:
        """Return the facts from which `lifecycle` decides."""
        return _build_seen(self, first_tracked_at)


def _build_seen(run: Any, first_tracked_at: datetime) -> Seen:
    """Return the facts from which `lifecycle` decides, from a row of `runs`.

    Times from the answer are capped at the moment when we saw the content: later ones are false.
    """
    over_since = min(run.ended_at or run.changed_at, run.changed_at)
    return Seen(
        run.status,
        began_at=min(run.started_at or first_tracked_at, run.changed_at),
        over_since=over_since,
        changed_at=run.changed_at if run.revision > 1 else over_since,
    )


def read_archived(connection: Connection, run_ids: Sequence[str]) -> dict[str, ArchivedRun]:
    """Return those of `run_ids` that are archived, by run ID."""
    query = (
        select(
            runs.c.run_id,
            runs.c.revision,
            runs.c.content_hash,
            runs.c.status,
            runs.c.started_at,
            runs.c.ended_at,
            runs.c.archived_at,
            runs.c.changed_at,
            runs.c.gone_at,
            tracked_runs.c.context_changed_at,
            tracked_runs.c.last_fetched_at,
        )
        .join(tracked_runs, tracked_runs.c.run_id == runs.c.run_id)
        .where(among(runs.c.run_id, run_ids))
    )
    return {row.run_id: ArchivedRun._make(row) for row in connection.execute(query).all()}


class NewestAnswer(NamedTuple):
    """The newest answer of an archived run, with which the next one is compared."""

    seen: Seen
    fingerprint: str
    """The sha256 of its payload: an answer with the same bytes is a no-op."""


def read_newest_answers(
    connection: Connection, first_tracked_at: Mapping[str, datetime]
) -> dict[str, NewestAnswer]:
    """Return the newest answers of those of the runs that are archived, by run ID."""
    query = (
        select(
            runs.c.run_id,
            runs.c.revision,
            runs.c.status,
            runs.c.started_at,
            runs.c.ended_at,
            runs.c.changed_at,
            payloads.c.sha256,
        )
        .join(
            payloads,
            and_(payloads.c.run_id == runs.c.run_id, payloads.c.revision == runs.c.revision),
        )
        .where(among(runs.c.run_id, first_tracked_at))
    )
    return {
        row.run_id: NewestAnswer(_build_seen(row, first_tracked_at[row.run_id]), row.sha256)
        for row in connection.execute(query).all()
    }

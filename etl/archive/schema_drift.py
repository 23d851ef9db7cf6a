"""Schema drift: fields, types, statuses and counters that the API had not shown before."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, select, tuple_

from etl.answers.outcome import Answer
from etl.answers.rows import Drift
from etl.db import bulk
from etl.db.schema import among, drift


class _Sighting(NamedTuple):
    """The first sighting of a novelty: when, and in which run."""

    seen_at: datetime
    run_id: str


def record_drift(connection: Connection, answers: Sequence[Answer]) -> None:
    """Keep the earliest sighting of each novelty, by run ID among equals.

    The result does not depend on the order of answers. Sorted by key, so that two transactions
    that insert the same novelties never wait for each other.
    """
    first: dict[Drift, _Sighting] = {}
    for answer in answers:
        for novelty in answer.rows.drift:
            sighting = _Sighting(answer.fetched_at, answer.run_id)
            first[novelty] = min(sighting, first.get(novelty, sighting))
    if not first:
        return
    query = select(drift).where(among(drift.c.path, {novelty.path for novelty in first}))
    known = {
        Drift(row.path, row.json_type): (row.first_seen_at, row.first_run_id)
        for row in connection.execute(query)
    }
    earlier = [
        {
            "path": novelty.path,
            "json_type": novelty.json_type,
            "first_run_id": run_id,
            "first_seen_at": seen_at,
        }
        for novelty, (seen_at, run_id) in sorted(first.items())
        if novelty not in known or (seen_at, run_id) < known[novelty]
    ]
    if earlier:
        insert = bulk.upsert_into(connection, drift)
        given, kept = insert.excluded, drift.c
        # By code point, as Python compares; PostgreSQL would use the database's language.
        by_code_point = "C" if connection.dialect.name == "postgresql" else "BINARY"
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=[kept.path, kept.json_type],
                set_={"first_run_id": given.first_run_id, "first_seen_at": given.first_seen_at},
                where=tuple_(given.first_seen_at, given.first_run_id.collate(by_code_point))
                < tuple_(kept.first_seen_at, kept.first_run_id),
            ),
            earlier,
        )

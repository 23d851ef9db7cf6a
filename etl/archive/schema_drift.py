"""Fields, types, statuses and counters that the API had not shown before."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, select, tuple_

from etl.answers.outcome import Answer
from etl.answers.rows import Drift
from etl.db import bulk
from etl.db.schema import (
    drift,
)


class _Sighting(NamedTuple):
    """When a novelty was first seen, and in which run."""

    seen_at: datetime
    run_id: str


def put_drift(connection: Connection, answers: Sequence[Answer]) -> None:
    """Keep for each novelty the earliest sight, by run ID among equals, whatever the order."""
    first: dict[Drift, _Sighting] = {}
    for answer in answers:
        for novelty in answer.rows.drift:
            sight = _Sighting(answer.fetched_at, answer.run_id)
            first[novelty] = min(sight, first.get(novelty, sight))
    if not first:
        return
    known = {
        Drift(row.path, row.json_type): (row.first_seen_at, row.first_run_id)
        for row in _drift_rows(connection, list(first))
    }
    fresh = [
        {
            "path": novelty.path,
            "json_type": novelty.json_type,
            "first_run_id": run_id,
            "first_seen_at": seen_at,
        }
        for novelty, (seen_at, run_id) in sorted(first.items())
        if novelty not in known or (seen_at, run_id) < known[novelty]
    ]
    if fresh:
        insert = bulk.upsert_into(connection, drift)
        given, kept = insert.excluded, drift.c
        # As Python compares texts; PostgreSQL would go by the language of the database.
        by_code_point = "C" if connection.dialect.name == "postgresql" else "BINARY"
        connection.execute(
            insert.on_conflict_do_update(
                index_elements=[kept.path, kept.json_type],
                set_={"first_run_id": given.first_run_id, "first_seen_at": given.first_seen_at},
                where=tuple_(given.first_seen_at, given.first_run_id.collate(by_code_point))
                < tuple_(kept.first_seen_at, kept.first_run_id),
            ),
            fresh,
        )


def _drift_rows(connection: Connection, novelties: Sequence[Drift]) -> list[Any]:
    rows: list[Any] = []
    for start in range(0, len(novelties), 500):
        paths = {novelty.path for novelty in novelties[start : start + 500]}
        rows += connection.execute(select(drift).where(drift.c.path.in_(paths)))
    return rows

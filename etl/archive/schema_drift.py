"""Schema drift: fields, types, statuses and counters that the API had not shown before."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import NamedTuple

import zstandard
from sqlalchemy import Connection, and_, select, tuple_

from etl.answers.compression import decompress
from etl.answers.normalize import normalize
from etl.answers.outcome import Answer
from etl.answers.payload import decode
from etl.answers.rows import Drift
from etl.db import bulk
from etl.db.schema import among, drift, payloads

KEYS_AT_ONCE = 500


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
    # The lock keeps `lock_sightings` from removing a row that our answers would need.
    query = (
        select(drift)
        .where(among(drift.c.path, {novelty.path for novelty in first}))
        .order_by(*drift.primary_key)
        .with_for_update(read=True, key_share=True)
    )
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


def lock_sightings(connection: Connection, run_ids: Sequence[str]) -> dict[Drift, datetime]:
    """Return the novelties first seen in these runs, and when, locked until commit.

    Waits for concurrent transactions that have seen the novelties, too, and left them as they are.
    """
    query = (
        select(drift)
        .where(among(drift.c.first_run_id, run_ids))
        .order_by(*drift.primary_key)
        .with_for_update()
    )
    rows = connection.execute(query).all()
    return {Drift(row.path, row.json_type): row.first_seen_at for row in rows}


def find_sightings_again(
    connection: Connection, sightings: Mapping[Drift, datetime], zone: tzinfo
) -> None:
    """Replace first sightings, whose runs were dropped, by the first ones in other payloads.

    No payload has a novelty before its first sighting: reads the later ones, in the order of
    their fetches, until all novelties are found. Damaged payloads are left out.
    """
    if not sightings:
        return
    bulk.delete(connection, drift, list(sightings))
    lost = set(sightings)
    since = min(sightings.values())
    for fetched_at, run_id, revision in _iterate_payloads(connection, since):
        again = lost.intersection(_read_drift(connection, run_id, revision, zone))
        bulk.insert(connection, drift, [(*each, run_id, fetched_at) for each in sorted(again)])
        lost -= again
        if not lost:
            return


def _iterate_payloads(
    connection: Connection, since: datetime
) -> Iterator[tuple[datetime, str, int]]:
    """Yield time and key of each payload fetched `since` then, in this order."""
    columns = (payloads.c.fetched_at, payloads.c.run_id, payloads.c.revision)
    query = select(*columns).where(payloads.c.fetched_at >= since).order_by(*columns)
    page = connection.execute(query.limit(KEYS_AT_ONCE)).all()
    while page:
        for row in page:
            yield row.fetched_at, row.run_id, row.revision
        following = query.where(tuple_(*columns) > tuple(page[-1]))
        page = connection.execute(following.limit(KEYS_AT_ONCE)).all()


def _read_drift(
    connection: Connection, run_id: str, revision: int, zone: tzinfo
) -> Sequence[Drift]:
    """Return the novelties in a payload, none if it is damaged."""
    query = select(payloads.c.body, payloads.c.encoding)
    is_it = and_(payloads.c.run_id == run_id, payloads.c.revision == revision)
    body, encoding = connection.execute(query.where(is_it)).one()
    try:
        payload = decode(decompress(body, encoding))
    except (ValueError, zstandard.ZstdError):
        return []
    return normalize(run_id, payload, zone).drift

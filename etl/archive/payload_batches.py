"""Derive the rows of runs from their payloads, a batch of runs at a time.

Memory stays bounded, whatever the size of the archive.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import zstandard
from sqlalchemy import ColumnElement, Connection, Engine, Table, func, select, true
from sqlalchemy.exc import DBAPIError

from etl.answers.compression import decompress
from etl.answers.normalize import normalize
from etl.answers.payload import decode
from etl.answers.rows import ECHO_WARNING, LeafWarning, Row, Rows
from etl.archive.differences import Difference, describe_unreadable, show_cell
from etl.archive.history import (
    DERIVED_TABLES,
    LedgerFields,
    Revision,
    RunOutcome,
    derive_outcome,
    derive_rows,
    name_application,
)
from etl.db import bulk
from etl.db.database import reading
from etl.db.schema import (
    environment_combinations,
    metadata,
    payloads,
    plan_variants,
    rosters,
    to_milliseconds,
    to_text,
    tracked_runs,
)
from etl.derived.identity_rules import lock_identities_shared, read_ids_until
from etl.derived.plans import Application

RUN_TABLES = [metadata.tables[name] for name in DERIVED_TABLES]
NAME_TABLES = (plan_variants, environment_combinations, rosters)
"""The tables that `outcomes` refers to, whose rows runs share."""


class BatchLimits(NamedTuple):
    """The largest batch: so that its uncompressed bodies fit in memory."""

    runs: int = 50
    bytes: int = 1_048_576
    """Exceeded only by a single run."""


DEFAULT_LIMITS = BatchLimits()


class _StoredPayload(NamedTuple):
    """A row of `payloads` as raw driver values: a damaged cell can have any type."""

    run_id: Any
    revision: Any
    body: Any
    encoding: Any
    size: Any
    sha256: Any
    fetched_at: Any
    last_seen_at: Any


class PayloadBatch(NamedTuple):
    """The derived rows of some runs, by table; `whole` are the runs without damage."""

    whole: list[str]
    rows: dict[str, list[Row]]
    names: dict[str, dict[Row, Row]]
    """Rows of `NAME_TABLES`, by table and key."""
    damage: list[Difference]


def iterate_batches(
    engine: Engine, limits: BatchLimits, chosen: ColumnElement[bool] | None = None
) -> Iterator[list[str]]:
    """Yield the IDs of all archived runs, or of the `chosen` ones, in batches."""
    query = (
        select(
            payloads.c.run_id,
            func.max(payloads.c.size),
            func.max(func.length(payloads.c.body)),
            func.count(),
        )
        .where(true() if chosen is None else chosen)
        .group_by(payloads.c.run_id)
        .order_by(payloads.c.run_id)
        .limit(limits.runs)
    )
    following = query
    while True:
        with reading(engine) as connection:
            rows = [tuple(row) for row in connection.execute(following)]
        if not rows:
            return
        bytes_until = accumulate(_estimate_bytes(*sizes) for _run_id, *sizes in rows)
        fitting = sum(total <= limits.bytes for total in bytes_until)
        run_ids = [run_id for run_id, *_sizes in rows[: max(fitting, 1)]]
        yield run_ids
        following = query.where(payloads.c.run_id > run_ids[-1])


def _estimate_bytes(unpacked: Any, packed: int | None, bodies: int) -> int:
    """Return an upper bound of the memory for a run's bodies; `unpacked` may be damaged."""
    known = [size for size in (unpacked, packed) if isinstance(size, int)]
    return max(known, default=0) * bodies


class _DecodedBatch(NamedTuple):
    """The revisions of some runs, and the ledger's part of them; damaged runs are left out."""

    revisions: dict[str, list[Revision]]
    fields: dict[str, LedgerFields]
    damage: list[Difference]

    @property
    def applications(self) -> set[Application]:
        """The applications whose test-identity rules the rows depend on."""
        return {
            name_application(self.fields[run_id].source, each.rows)
            for run_id, revisions in self.revisions.items()
            for each in revisions
        }


def derive_batch(connection: Connection, run_ids: Sequence[str], zone: tzinfo) -> PayloadBatch:
    """Derive the rows of `run_ids` from their payloads and ledger rows."""
    decoded = _decode_batch(connection, run_ids, zone)
    return _derive_rows(decoded, read_ids_until(connection))


def derive_batch_to_write(
    connection: Connection, run_ids: Sequence[str], zone: tzinfo
) -> PayloadBatch:
    """Derive the rows of `run_ids`, whose test-identity rules are locked until the commit.

    Locks the rules (`lock_identities_shared`) before it reads them; the caller has locked the
    runs' rows in the ledger before.
    """
    decoded = _decode_batch(connection, run_ids, zone)
    lock_identities_shared(connection, decoded.applications)
    return _derive_rows(decoded, read_ids_until(connection))


def _decode_batch(connection: Connection, run_ids: Sequence[str], zone: tzinfo) -> _DecodedBatch:
    fields, unowned = _read_ledger_fields(connection, run_ids)
    stored, unreadable = read_rows(connection, payloads, run_ids)
    decoded = _DecodedBatch({}, fields, [*unowned, *unreadable])
    for run_id, group in groupby(map(_StoredPayload._make, stored), key=lambda row: row.run_id):
        revisions, damage = _read_revisions(list(group), zone)
        decoded.damage.extend(damage)
        if run_id in fields and not damage:
            decoded.revisions[run_id] = revisions
    return decoded


def _derive_rows(decoded: _DecodedBatch, ids_until: Mapping[Application, datetime]) -> PayloadBatch:
    rows: dict[str, list[Row]] = {table.name: [] for table in RUN_TABLES}
    names: dict[str, dict[Row, Row]] = {table.name: {} for table in NAME_TABLES}
    batch = PayloadBatch(list(decoded.revisions), rows, names, decoded.damage)
    for run_id, revisions in decoded.revisions.items():
        fields = decoded.fields[run_id]
        for name, own in derive_rows(fields, revisions, ids_until).items():
            batch.rows[name] += own
        for revision in revisions:
            _add_names(batch, derive_outcome(fields.source, revision, ids_until))
    return batch


def _add_names(batch: PayloadBatch, outcome: RunOutcome) -> None:
    names = (outcome.variant, outcome.combination, outcome.roster)
    for table, row in zip(NAME_TABLES, names, strict=True):
        batch.names[table.name][row[:1]] = row


def read_history(connection: Connection, run_id: str) -> list[tuple[datetime, Rows]]:
    """Return the answers of a run, each with the time when it was first seen, in order.

    Days are UTC. Empty if a payload of the run is damaged.
    """
    decoded = _decode_batch(connection, [run_id], UTC)
    return [(each.observed_at, each.rows) for each in decoded.revisions.get(run_id, [])]


def _read_ledger_fields(
    connection: Connection, run_ids: Sequence[str]
) -> tuple[dict[str, LedgerFields], list[Difference]]:
    """Return the ledger's part of each run, and its damaged ledger rows."""
    rows, damage = read_rows(connection, tracked_runs, run_ids)
    names = [column.name for column in tracked_runs.columns]
    fields = {}
    for row in rows:
        tracked = dict(zip(names, row, strict=True))
        run_id = tracked["run_id"]
        try:
            times = [_parse_time(name, tracked[name]) for name in ("gone_at", "context_changed_at")]
        except ValueError as error:
            damage.append(Difference("tracked_runs", run_id, "", str(error)))
        else:
            fields[run_id] = LedgerFields(run_id, tracked["source"], *times)
    return fields, damage


def read_rows(
    connection: Connection, table: Table, run_ids: Sequence[str]
) -> tuple[list[Row], list[Difference]]:
    """Return the rows of runs, and a difference for each run with an unreadable cell."""
    try:
        return bulk.read(connection, table, run_ids), []
    except DBAPIError as error:
        problem = describe_unreadable(error)
        if len(run_ids) == 1:
            return [], [Difference(table.name, run_ids[0], "", problem)]
    one_by_one = [read_rows(connection, table, [run_id]) for run_id in run_ids]
    return [row for rows, _ in one_by_one for row in rows], [
        difference for _, differences in one_by_one for difference in differences
    ]


def _read_revisions(
    stored: Sequence[_StoredPayload], zone: tzinfo
) -> tuple[list[Revision], list[Difference]]:
    """Return a run's revisions in order, and the damage of its payloads."""
    revisions: list[Revision] = []
    damage: list[Difference] = []
    for number, row in enumerate(stored, start=1):
        try:
            revisions.append(_read_revision(row, zone))
        except (ValueError, zstandard.ZstdError) as error:
            damage.append(_payload_damage(row, str(error)))
        if row.revision != number:
            damage.append(_payload_damage(row, f"revision {number} is missing before it"))
        if (row.last_seen_at is None) != (number == len(stored)):
            problem = "last_seen_at does not fit its place in the history"
            damage.append(_payload_damage(row, problem))
    if not damage:
        damage += [
            _payload_damage(row, "its times do not end where those of the next revision begin")
            for row, (old, new) in zip(stored, pairwise(revisions), strict=False)
            if old.last_seen_at and not old.observed_at <= old.last_seen_at <= new.observed_at
        ]
    return revisions, damage


def _read_revision(row: _StoredPayload, zone: tzinfo) -> Revision:
    """Decode a payload. Raises ValueError if it is damaged."""
    fetched_at = _parse_time("fetched_at", row.fetched_at)
    if fetched_at is None:
        raise ValueError("fetched_at is missing")
    last_seen_at = _parse_time("last_seen_at", row.last_seen_at)
    body = _unpack_body(row)
    payload = decode(body)
    rows = normalize(row.run_id, payload, zone)
    rows.warnings.extend(find_echo_warnings(body, row.sha256))
    return Revision(row.revision, fetched_at, last_seen_at, payload.content_hash, rows)


def find_echo_warnings(body: bytes, sha256: str) -> list[LeafWarning]:
    """Return the warning of a body in which a secret was masked; `sha256` is the original's.

    Raises ValueError if the body differs from the original without a mask in it.
    """
    if hashlib.sha256(body).hexdigest() == sha256:
        return []
    if b"***" not in body:
        raise ValueError("its body is not the one that was received: the hashes differ")
    return [ECHO_WARNING]


def _unpack_body(row: _StoredPayload) -> bytes:
    """Return a payload's bytes. Raises ValueError or ZstdError if they are damaged."""
    # Check the size before decompressing: a damaged body could take any amount of memory.
    if not isinstance(row.body, bytes) or zstandard.frame_content_size(row.body) != row.size:
        raise ValueError(f"its body is not of the {show_cell(row.size)} bytes that were kept")
    return decompress(row.body, row.encoding)


def _parse_time(name: str, value: Any) -> datetime | None:
    """Parse a raw driver value as a time. Raises ValueError unless it is as we write it."""
    if value is None:
        return None
    with suppress(ValueError, OverflowError):
        is_parsed = isinstance(value, datetime)
        moment = value if is_parsed else datetime.fromisoformat(str(value)).replace(tzinfo=UTC)
        if value in {to_text(moment), to_milliseconds(moment)}:
            return moment
    raise ValueError(f"{name} is {show_cell(value)}, which is no time as it is kept here")


def _payload_damage(row: _StoredPayload, problem: str) -> Difference:
    return Difference("payloads", row.run_id, f"revision {row.revision}", problem)

"""The derived rows that payloads stand for, computed a batch of runs at a time.

Memory stays bounded, however large the archive is.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, tzinfo
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import zstandard
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Table,
    func,
    select,
    true,
)
from sqlalchemy.exc import DBAPIError

from etl.answers.compression import decompress
from etl.answers.normalize import normalize
from etl.answers.payload import decode
from etl.answers.rows import ECHO_WARNING
from etl.archive.differences import (
    Difference,
    describe_unreadable,
    show_cell,
)
from etl.archive.history import DERIVED, Owner, Row, Stretch, derived, outcome_of
from etl.db import bulk
from etl.db.database import reading
from etl.db.schema import (
    metadata,
    payloads,
    plan_variants,
    rosters,
    to_milliseconds,
    to_text,
    tracked_runs,
)
from etl.derived.identity_rules import read_id_keyed

BATCH_RUNS = 50
BATCH_BYTES = 1_048_576
"""How much of unpacked bodies a batch has at most, unless it is a single run."""
TABLES = [metadata.tables[name] for name in DERIVED]
NAMES = (plan_variants, rosters)


class _Kept(NamedTuple):
    """A row of `payloads` as the driver gives it, whatever types its cells have by now."""

    run_id: Any
    revision: Any
    body: Any
    encoding: Any
    size: Any
    sha256: Any
    fetched_at: Any
    last_seen_at: Any


class PayloadBatch(NamedTuple):
    """What the payloads of some runs say: derived rows by table, of the runs that are whole."""

    whole: list[str]
    rows: dict[str, list[Row]]
    names: dict[str, dict[Row, Row]]
    """What `outcomes` refers to: rows of the tables NAMES by key."""
    damage: list[Difference]


def payload_batches(
    engine: Engine, chosen: ColumnElement[bool] | None = None
) -> Iterator[list[str]]:
    """Yield the archived runs, or the `chosen`, by their IDs, as many as are read at once."""
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
        .limit(BATCH_RUNS)
    )
    following = query
    while True:
        with reading(engine) as connection:
            found = [tuple(row) for row in connection.execute(following)]
        if not found:
            return
        bytes_until = accumulate(_most_bytes(*sizes) for _run_id, *sizes in found)
        fitting = sum(total <= BATCH_BYTES for total in bytes_until)
        run_ids = [run_id for run_id, *_sizes in found[: max(fitting, 1)]]
        yield run_ids
        following = query.where(payloads.c.run_id > run_ids[-1])


def _most_bytes(unpacked: Any, packed: int | None, bodies: int) -> int:
    """Return what a run's bodies take in memory at the most; `unpacked` may be damaged."""
    known = [size for size in (unpacked, packed) if isinstance(size, int)]
    return max(known, default=0) * bodies


def expected_rows(connection: Connection, run_ids: Sequence[str], zone: tzinfo) -> PayloadBatch:
    """Return what the payloads of `run_ids` and their ledger rows make of them."""
    owners, unowned = _owners(connection, run_ids)
    kept, unreadable = read_rows(connection, payloads, run_ids)
    id_keyed = read_id_keyed(connection)
    rows: dict[str, list[Row]] = {table.name: [] for table in TABLES}
    batch = PayloadBatch([], rows, {table.name: {} for table in NAMES}, [*unowned, *unreadable])
    for run_id, group in groupby(map(_Kept._make, kept), key=lambda row: row.run_id):
        stretches, damage = _stretches(list(group), zone)
        batch.damage.extend(damage)
        if run_id in owners and not damage:
            batch.whole.append(run_id)
            for name, own in derived(owners[run_id], stretches, id_keyed).items():
                batch.rows[name] += own
            for stretch in stretches:
                _note_names(batch, stretch, id_keyed)
    return batch


def _note_names(batch: PayloadBatch, stretch: Stretch, id_keyed: Collection[str]) -> None:
    outcome = outcome_of(stretch.rows, id_keyed)
    named = {plan_variants: outcome.variant, rosters: outcome.roster}
    for table, row in named.items():
        batch.names[table.name][row[:1]] = row


def _owners(
    connection: Connection, run_ids: Sequence[str]
) -> tuple[dict[str, Owner], list[Difference]]:
    """Return what the ledger says of runs, and where it says nothing that can be understood."""
    rows, damage = read_rows(connection, tracked_runs, run_ids)
    names = [column.name for column in tracked_runs.columns]
    owners = {}
    for row in rows:
        tracked = dict(zip(names, row, strict=True))
        run_id = tracked["run_id"]
        try:
            gone_at = _moment("gone_at", tracked["gone_at"])
        except ValueError as error:
            damage.append(Difference("tracked_runs", run_id, "", str(error)))
        else:
            owners[run_id] = Owner(run_id, tracked["source"], gone_at)
    return owners, damage


def read_rows(
    connection: Connection, table: Table, run_ids: Sequence[str]
) -> tuple[list[Row], list[Difference]]:
    """Return the rows of runs; those of a run with a cell that no driver can read are told."""
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


def _stretches(kept: Sequence[_Kept], zone: tzinfo) -> tuple[list[Stretch], list[Difference]]:
    """Return a run's contents in their order, and what is wrong with its payloads."""
    stretches: list[Stretch] = []
    damage: list[Difference] = []
    for number, row in enumerate(kept, start=1):
        try:
            stretches.append(_stretch(row, zone))
        except (ValueError, zstandard.ZstdError) as error:
            damage.append(_in_payload(row, str(error)))
        if row.revision != number:
            damage.append(_in_payload(row, f"revision {number} is missing before it"))
        if (row.last_seen_at is None) != (number == len(kept)):
            damage.append(_in_payload(row, "last_seen_at does not fit its place in the history"))
    if not damage:
        damage += [
            _in_payload(row, "its times do not end where those of the next revision begin")
            for row, (old, new) in zip(kept, pairwise(stretches), strict=False)
            if old.last_seen_at and not old.observed_at <= old.last_seen_at <= new.observed_at
        ]
    return stretches, damage


def _stretch(row: _Kept, zone: tzinfo) -> Stretch:
    """Return what a payload says. Raises ValueError: it is not what was kept, or not readable."""
    fetched_at = _moment("fetched_at", row.fetched_at)
    if fetched_at is None:
        raise ValueError("fetched_at is missing")
    last_seen_at = _moment("last_seen_at", row.last_seen_at)
    body = _body(row)
    payload = decode(body)
    rows = normalize(row.run_id, payload, zone)
    if hashlib.sha256(body).hexdigest() != row.sha256:
        if b"***" not in body:
            raise ValueError("its body is not the one that was received: the hashes differ")
        rows.warnings.append(ECHO_WARNING)
    return Stretch(row.revision, fetched_at, last_seen_at, payload.content_hash, rows)


def _body(row: _Kept) -> bytes:
    """Return a payload's bytes. Raises ValueError or ZstdError: they are not those kept."""
    # By the size first, before memory is taken for one that is damaged.
    if not isinstance(row.body, bytes) or zstandard.frame_content_size(row.body) != row.size:
        raise ValueError(f"its body is not of the {show_cell(row.size)} bytes that were kept")
    return decompress(row.body, row.encoding)


def _moment(name: str, value: Any) -> datetime | None:
    """Read a time as the driver gives it. Raises ValueError unless it is as we write it."""
    if value is None:
        return None
    with suppress(ValueError, OverflowError):
        is_read = isinstance(value, datetime)
        moment = value if is_read else datetime.fromisoformat(str(value)).replace(tzinfo=UTC)
        if value in {to_text(moment), to_milliseconds(moment)}:
            return moment
    raise ValueError(f"{name} is {show_cell(value)}, which is no time as it is kept here")


def _in_payload(row: _Kept, problem: str) -> Difference:
    return Difference("payloads", row.run_id, f"revision {row.revision}", problem)

"""Take runs out of the archive: every row of theirs, and what other tables derive from them.

Afterwards all tables are those of an archive in which the runs never were, but for a tombstone
in the ledger, which keeps run lists from bringing them back.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, delete, exists, func, or_, select

from etl.archive import identity, schema_drift
from etl.archive.payload_batches import RUN_TABLES
from etl.config.settings import Reporting
from etl.db.schema import (
    among,
    dirty_marks,
    durations,
    environment_combinations,
    labels,
    outcomes,
    payloads,
    plan_variants,
    rejects,
    revisions,
    rosters,
    runs,
    series_metrics,
    tests,
    tracked_runs,
)
from etl.derived import aggregates
from etl.derived.identity_rules import lock_identities_exclusive
from etl.derived.marks import lock_plans
from etl.derived.plans import Application
from etl.display import safe
from etl.errors import ArchiverError
from etl.ledger import tracking

COUNTED_TABLES = (tests, revisions, payloads, rejects, labels)


class RunContent(NamedTuple):
    """The content of a tracked run in the archive: names for people, and numbers of rows."""

    run_id: str
    source: str
    state: str
    application: str | None
    plan: str | None
    numbers: dict[str, int]
    """Of its rows, by table."""


def read_contents(connection: Connection, run_ids: Sequence[str]) -> list[RunContent]:
    """Return the content of those of `run_ids` that are tracked, in the order of run IDs."""
    query = (
        select(
            tracked_runs.c.run_id,
            tracked_runs.c.source,
            tracked_runs.c.state,
            runs.c.application,
            runs.c.name,
        )
        .outerjoin(runs, runs.c.run_id == tracked_runs.c.run_id)
        .where(among(tracked_runs.c.run_id, run_ids))
        .order_by(tracked_runs.c.run_id)
    )
    rows = connection.execute(query).all()
    counted = {each.name: _count_rows(connection, each, run_ids) for each in COUNTED_TABLES}
    return [
        RunContent(*row, {name: each.get(row.run_id, 0) for name, each in counted.items()})
        for row in rows
    ]


def _count_rows(connection: Connection, table: Table, run_ids: Sequence[str]) -> dict[str, int]:
    query = select(table.c.run_id, func.count()).where(among(table.c.run_id, run_ids))
    return dict(connection.execute(query.group_by(table.c.run_id)).all())


def drop_runs(
    connection: Connection, run_ids: Sequence[str], now: datetime, derived_with: Reporting
) -> None:
    """Delete all rows of runs, leave tombstones, and recompute the rows derived from them.

    `derived_with` are the archive's settings, held by the caller (`hold_settings`).

    Where fewer runs change the test-identity rule of an application, `identity.apply_decisions`
    has to follow after the commit, as after a pass.

    Locks, in this order: the runs' rows in the ledger, the test-identity rules (exclusive: no
    concurrent transaction can refer to the names that are deleted), first sightings, the plans.

    Raises:
        ArchiverError: another process holds one of the runs. Nothing was changed.
    """
    _lock_runs(connection, run_ids, now)
    used = _read_used_names(connection, run_ids)
    lock_identities_exclusive(connection, used.applications)
    sightings = schema_drift.lock_sightings(connection, run_ids)
    lock_plans(connection, used.plan_ids)
    for table in (rejects, labels, *reversed(RUN_TABLES), payloads):
        connection.execute(delete(table).where(among(table.c.run_id, run_ids)))
    tracking.leave_tombstones(connection, run_ids)
    schema_drift.find_sightings_again(connection, sightings, derived_with.zone)
    for plan_id in sorted(used.plan_ids):
        aggregates.recompute_plan(connection, plan_id, derived_with.rules)
    _delete_unused_names(connection, used)
    identity.measure_remaining(connection, used.applications, now)


def _lock_runs(connection: Connection, run_ids: Sequence[str], now: datetime) -> None:
    """Lock the ledger rows of runs until commit, in the order of run IDs."""
    ledger = tracked_runs.c
    query = select(ledger.run_id, ledger.lease_until).where(among(ledger.run_id, run_ids))
    rows = connection.execute(query.order_by(ledger.run_id).with_for_update()).all()
    held = [
        f"{safe(row.run_id)} (until {row.lease_until:%Y-%m-%d %H:%M:%S} UTC)"
        for row in rows
        if row.lease_until is not None and row.lease_until > now
    ]
    if held:
        raise ArchiverError(
            f"nothing was dropped: another process is fetching {', '.join(held)}",
            "repeat the command when its leases have expired",
        )


class _UsedNames(NamedTuple):
    """The names that the outcomes of some runs refer to, in all their revisions."""

    applications: set[Application]
    plan_ids: set[str]
    variant_ids: set[str]
    combinations: set[str]
    roster_ids: set[str]


def _read_used_names(connection: Connection, run_ids: Sequence[str]) -> _UsedNames:
    query = (
        select(
            plan_variants.c.source,
            plan_variants.c.application,
            plan_variants.c.plan_id,
            plan_variants.c.variant_id,
            plan_variants.c.environment_signature,
            outcomes.c.roster_id,
        )
        .join(outcomes, outcomes.c.variant_id == plan_variants.c.variant_id)
        .where(among(outcomes.c.run_id, run_ids))
        .distinct()
    )
    rows = connection.execute(query).all()
    return _UsedNames(
        {Application(row.source, row.application) for row in rows},
        {row.plan_id for row in rows},
        {row.variant_id for row in rows},
        {row.environment_signature for row in rows},
        {row.roster_id for row in rows},
    )


def _delete_unused_names(connection: Connection, names: _UsedNames) -> None:
    """Delete those of the names that no row refers to any more."""
    users = (outcomes, series_metrics, durations, dirty_marks)
    _delete_unused(connection, plan_variants, names.variant_ids, users)
    of_variants = (plan_variants,)
    _delete_unused(connection, environment_combinations, names.combinations, of_variants)
    _delete_unused(connection, rosters, names.roster_ids, (outcomes,))


def _delete_unused(
    connection: Connection, table: Table, keys: Collection[str], users: Sequence[Table]
) -> None:
    """Delete those rows with `keys` that no row of `users` refers to.

    Locks the rows before it checks them again, and skips those that others have locked: they are
    about to refer to them (as `refresh.delete_unused_rosters`, and for the same reasons).
    """
    [key] = table.primary_key.columns
    is_used = or_(*(exists().where(user.c[key.name] == key) for user in users))
    unused = select(key).where(among(key, keys), ~is_used).with_for_update(skip_locked=True)
    locked: Sequence[Any] = connection.scalars(unused).all()
    connection.execute(delete(table).where(among(key, locked), ~is_used))

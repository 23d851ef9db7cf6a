"""Measure whether tests keep their ids from run to run, and identify them by id where they do.

The API does not say. Each application of an account is measured in its newest runs: as soon as
its first answers can be compared, so that few rows have to be rewritten, and again with each
refresh of its plans. The result is stored in `identities`, each decision in
`identity_decisions` (docs/REPORTS.md).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from datetime import datetime, tzinfo
from typing import NamedTuple

from sqlalchemy import Connection, Engine, Select, delete, select

from etl.archive.identity_records import (
    IdentityRecord,
    add_decision,
    list_damaged,
    read_decisions,
    read_record,
    write_record,
)
from etl.archive.newest_tests import OWNER_NAMES, ListedTest, find_newest_run, read_newest_tests
from etl.archive.rekey import rekey_application
from etl.db.bulk import upsert_into
from etl.db.database import reading, writing
from etl.db.schema import (
    IS_CURRENT,
    among,
    dirty_marks,
    drift,
    identities,
    identity_decisions,
    outcomes,
    plan_variants,
    to_milliseconds,
)
from etl.derived import refresh
from etl.derived.identity_rules import lock_identities_exclusive, of_application
from etl.derived.plans import Application
from etl.display import safe
from etl.telemetry.log import get_logger

APPLICATIONS_AT_ONCE = 100
"""The most applications that one transaction measures."""
MIN_COMPARED = 20
"""The fewest pairs of the same test in two runs that allow a decision."""
ENOUGH_COMPARED = 50
"""The number of pairs after which the comparison stops."""
REPEATING_SHARE = 0.9
"""The share of pairs with the same id from which ids repeat."""
CHANGING_SHARE = 0.5
"""The share below which they do not. In between, the earlier decision stays."""
MAX_APPLICATION_BYTES = 500
"""A longer name does not fit in a key; its tests are identified by name."""

log = get_logger()


class Repeats(NamedTuple):
    """Pairs of the same test in two consecutive runs, and those of them with the same id."""

    compared: int
    repeated: int


def count_repeats(newest_first: Iterable[Sequence[ListedTest]]) -> Repeats:
    """Compare the ids of tests with the same name and type in neighbouring runs of a plan.

    Skips tests that occur in a run more than once or have no id.
    """
    compared = repeated = 0
    newer: dict[str, dict[tuple[str | None, str | None], str]] = {}
    for listed in newest_first:
        if not listed:
            continue
        plan, often = listed[0].plan, Counter((test.name, test.type) for test in listed)
        ids = {
            name: test.test_id
            for test in listed
            if test.test_id and often[name := (test.name, test.type)] == 1
        }
        neighbours = newer.get(plan, {})
        compared += len(ids.keys() & neighbours.keys())
        repeated += len(ids.items() & neighbours.items())
        newer[plan] = ids
        if compared >= ENOUGH_COMPARED:
            break
    return Repeats(compared, repeated)


def choose_key_kind(repeats: Repeats, before: str) -> str:
    """Return 'id' or 'name', by which tests are identified; `before` is the decision so far."""
    if repeats.compared < MIN_COMPARED:
        return before
    share = repeats.repeated / repeats.compared
    if share >= REPEATING_SHARE:
        return "id"
    return "name" if share < CHANGING_SHARE else before


def refresh_archive(engine: Engine, now: datetime, zone: tzinfo) -> None:
    """Measure the applications with a dirty mark, and refresh all marked aggregates.

    Decisions are valid from `now`: reports as of an earlier moment stay as they were.
    """
    with reading(engine) as connection:
        applications = _find_marked(connection)
    _measure_all(engine, applications, now)
    apply_decisions(engine, zone)
    refresh.refresh_marked(engine)


def measure_new(
    engine: Engine, applications: Collection[Application], now: datetime, zone: tzinfo
) -> None:
    """Measure those of `applications` that are undecided, after the pass has stored runs of them.

    Series that have to be recomputed are marked as dirty; the pass refreshes them.
    """
    with reading(engine) as connection:
        undecided = _find_undecided(connection, applications)
    measure_again(engine, undecided, now, zone)


def measure_again(
    engine: Engine, applications: Collection[Application], now: datetime, zone: tzinfo
) -> None:
    """Measure these applications, and rewrite the keys of tests where a decision has changed.

    Series that have to be recomputed are marked as dirty.
    """
    if applications:
        _measure_all(engine, _keep_short_names(applications), now)
        apply_decisions(engine, zone)


def measure_damaged(engine: Engine, now: datetime, zone: tzinfo) -> None:
    """Measure the applications whose rows somebody has changed; their decisions stay.

    Their rosters are rewritten: nothing tells whether they follow the last decision.
    """
    with writing(engine) as connection:
        applications = {application for application, _ in list_damaged(connection)}
        lock_identities_exclusive(connection, applications)
        for application in applications:
            connection.execute(delete(identities).where(of_application(identities, application)))
        measure_remaining(connection, applications, now)
    apply_decisions(engine, zone)


def measure_remaining(
    connection: Connection, applications: Set[Application], now: datetime
) -> None:
    """Measure applications of which runs were dropped; forget those that have none left.

    Works in the caller's transaction, which has locked their rules
    (`lock_identities_exclusive`); `apply_decisions` has to follow after the commit.
    """
    names = {each.application for each in applications}
    query = select(*OWNER_NAMES).distinct().where(among(plan_variants.c.application, names))
    remaining = applications & _read_applications(connection, query)
    for application in applications - remaining:
        for table in (identities, identity_decisions):
            connection.execute(delete(table).where(of_application(table, application)))
    for _ in _measure_locked(connection, _keep_short_names(remaining), now):
        pass  # a reversed decision is no news of the API here: runs were dropped


def _measure_all(engine: Engine, applications: Sequence[Application], now: datetime) -> None:
    for start in range(0, len(applications), APPLICATIONS_AT_ONCE):
        part = applications[start : start + APPLICATIONS_AT_ONCE]
        with writing(engine) as connection:
            lock_identities_exclusive(connection, part)
            switches = list(_measure_locked(connection, part, now))
            for switch in switches:
                _record_switch(connection, switch)
        for switch in switches:
            _log_switch(switch)


def apply_decisions(engine: Engine, zone: tzinfo) -> None:
    """Rekey the applications whose decision has changed; an interrupted pass may have left some."""
    with reading(engine) as connection:
        names = (identities.c.source, identities.c.application)
        query = select(*names).where(identities.c.is_applied.is_(False)).order_by(*names)
        applications = [Application._make(row) for row in connection.execute(query)]
        pending = [(each, read_decisions(connection, each)) for each in applications]
    for application in applications:
        log.debug("test identity changed: rewriting the keys of tests", **application._asdict())
        rekey_application(engine, application, zone)
    if not pending:
        return
    with writing(engine) as connection:
        lock_identities_exclusive(connection, applications)
        refresh.delete_unused_rosters(connection)
        for application, decisions in pending:
            record = read_record(connection, application)
            if record and read_decisions(connection, application) == decisions:
                write_record(connection, record._replace(is_applied=True))


def _find_undecided(
    connection: Connection, applications: Collection[Application]
) -> list[Application]:
    """Return those of `applications` that have runs, but not enough pairs for a decision."""
    names = {each.application for each in applications}
    decided = select(identities.c.source, identities.c.application).where(
        among(identities.c.application, names), identities.c.compared >= MIN_COMPARED
    )
    undecided = set(applications) - _read_applications(connection, decided)
    if not undecided:
        return []
    there = select(*OWNER_NAMES).distinct().where(among(plan_variants.c.application, names))
    return _keep_short_names(undecided & _read_applications(connection, there))


def _find_marked(connection: Connection) -> list[Application]:
    """Return the applications that have a marked plan with two runs, which can be compared."""
    of_plan = plan_variants.alias()
    second_run = (
        select(outcomes.c.run_id)
        .join(of_plan, of_plan.c.variant_id == outcomes.c.variant_id)
        .where(of_plan.c.plan_id == plan_variants.c.plan_id)
        .where(IS_CURRENT, outcomes.c.started_at.is_not(None))
        .limit(1)
        .offset(1)
        .scalar_subquery()
    )
    is_marked = plan_variants.c.variant_id.in_(select(dirty_marks.c.variant_id))
    query = select(*OWNER_NAMES).where(is_marked, second_run.is_not(None)).distinct()
    return _keep_short_names(_read_applications(connection, query))


def _read_applications(connection: Connection, query: Select[str, str]) -> set[Application]:
    return {Application._make(row) for row in connection.execute(query)}


def _keep_short_names(applications: Iterable[Application]) -> list[Application]:
    """Return the applications whose names fit in a key, sorted, each once."""
    return sorted(
        {each for each in applications if len("".join(each).encode()) <= MAX_APPLICATION_BYTES}
    )


def _measure_locked(
    connection: Connection, applications: Collection[Application], now: datetime
) -> Iterator[IdentityRecord]:
    """Measure applications, whose rules are locked exclusively, and store the decisions.

    Yields the measurements that have reversed an earlier decision.
    """
    for application, newest_tests in read_newest_tests(connection, applications):
        repeats = count_repeats(newest_tests)
        if switch := _record_repeats(connection, application, repeats, now):
            yield switch


def _record_repeats(
    connection: Connection, application: Application, repeats: Repeats, now: datetime
) -> IdentityRecord | None:
    """Store a measurement; return it if it has reversed an earlier decision."""
    measured = read_record(connection, application)
    decisions = read_decisions(connection, application)
    last = decisions[-1] if decisions else None
    kind = choose_key_kind(repeats, last.key_kind if last else "name")
    is_same = kind == (last.key_kind if last else "name")
    decision = last
    if decision is None or decision.key_kind != kind:
        decision = add_decision(connection, application, kind, now)
    record = IdentityRecord(
        *application,
        *repeats,
        repeats.repeated / repeats.compared if repeats.compared else None,
        kind,
        decision.decided_at,
        to_milliseconds(now),
        is_applied=(measured.is_applied if measured else last is None) and is_same,
    )
    write_record(connection, record)
    was_decided = measured is not None and measured.compared >= MIN_COMPARED
    return record if was_decided and decision is not last else None


def _record_switch(connection: Connection, switch: IdentityRecord) -> None:
    """Record schema drift: the application's ids repeat now, or do so no more."""
    row = {
        "path": f"result.tests[].id of {switch.application!r} in {switch.source!r}",
        "json_type": "repeats" if switch.key_kind == "id" else "changes",
        "first_run_id": find_newest_run(connection, switch.owner),
        "first_seen_at": switch.decided_at,
    }
    connection.execute(upsert_into(connection, drift).values(row).on_conflict_do_nothing())


def _log_switch(switch: IdentityRecord) -> None:
    change = "repeat" if switch.key_kind == "id" else "do not repeat any more"
    known_by = "id" if switch.key_kind == "id" else "name and type"
    log.warning(
        "test ids changed",
        source=switch.source,
        application=switch.application,
        key_kind=switch.key_kind,
        text=(
            f"application {safe(switch.application)} of {safe(switch.source)}: test ids {change}"
            f" from run to run; its tests are identified by {known_by} from now on"
        ),
    )

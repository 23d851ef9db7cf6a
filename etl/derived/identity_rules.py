"""Read the rules that identify tests from run to run, and lock them.

An application's tests are identified by id or by name (`identity_decisions`), and renamed tests by
their aliases. Both are of one account: the ids of two accounts are different things.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, and_, or_, select, text

from etl.db.schema import aliases, identity_decisions
from etl.derived.plans import Application, IdentityRule, Plan, hash_parts

NEVER_ENDS = datetime.max.replace(tzinfo=UTC)


class IdentityRules:
    """The identity rule of each plan, now or as of a moment."""

    def __init__(self, connection: Connection, as_of: datetime | None = None) -> None:
        self.id_keyed, self.ids_until = _read_decisions(connection, as_of)
        self._renamed: defaultdict[Plan, dict[str, str]] = defaultdict(dict)
        query = select(aliases).where(_is_valid_alias(as_of)).order_by(aliases.c.added_at)
        for row in connection.execute(query):
            plan = Plan(row.source, row.application, row.plan)
            self._renamed[plan][row.old_name] = row.new_name

    def for_plan(self, plan: Plan) -> IdentityRule:
        """Return the rule of `plan`."""
        renamed = {
            **self._renamed.get(plan._replace(plan=""), {}),
            **self._renamed.get(plan, {}),
        }
        return IdentityRule(plan.owner in self.id_keyed, _resolve_renames(renamed))


class _KeyKinds(NamedTuple):
    """The applications whose tests are identified by id, and until when they were (or will be)."""

    id_keyed: frozenset[Application]
    ids_until: dict[Application, datetime]


def read_ids_until(connection: Connection) -> dict[Application, datetime]:
    """Return the end of the time in which an application's tests are identified by id.

    `NEVER_ENDS` if they are now. Answers seen before need ids in their rosters, since reports as
    of a moment use the decision of that moment.
    """
    return _read_decisions(connection, None).ids_until


def _read_decisions(connection: Connection, as_of: datetime | None) -> _KeyKinds:
    """Read the decisions, all or those that were valid at a moment."""
    decided = identity_decisions.c
    query = select(identity_decisions)
    if as_of is not None:
        query = query.where(decided.decided_at <= as_of)
    kinds: dict[Application, str] = {}
    until: dict[Application, datetime] = {}
    for row in connection.execute(query.order_by(decided.decided_at)):
        application = Application(row.source, row.application)
        if row.key_kind == "id":
            until[application] = NEVER_ENDS
        elif kinds.get(application) == "id":
            until[application] = row.decided_at
        kinds[application] = row.key_kind
    by_id = frozenset(each for each, kind in kinds.items() if kind == "id")
    return _KeyKinds(by_id, until)


def of_application(table: Table, application: Application) -> ColumnElement[bool]:
    """Return the condition for the rows of an application in a table that names it."""
    return and_(
        table.c.source == application.source, table.c.application == application.application
    )


def _is_valid_alias(as_of: datetime | None) -> ColumnElement[bool]:
    if as_of is None:
        return aliases.c.removed_at.is_(None)
    is_removed_later = or_(aliases.c.removed_at.is_(None), aliases.c.removed_at > as_of)
    return and_(aliases.c.added_at <= as_of, is_removed_later)


def _resolve_renames(renamed: Mapping[str, str]) -> dict[str, str]:
    """Map each old name to its newest one: a test can be renamed repeatedly, and even back."""
    newest = {}
    for old in renamed:
        name, seen = old, {old}
        while (following := renamed.get(name)) is not None and following not in seen:
            name = following
            seen.add(name)
        newest[old] = name
    return newest


def lock_identities_shared(connection: Connection, applications: Collection[Application]) -> None:
    """Hold a shared lock on each application's test-identity rule until commit.

    The outcomes that we store depend on the rule, so it must not change before they are visible.
    Taken after the runs' rows in the ledger and before `marks.lock_plans`; in key order.
    """
    _lock_identities(connection, "pg_advisory_xact_lock_shared", applications)


def lock_identities_exclusive(
    connection: Connection, applications: Collection[Application]
) -> None:
    """Hold an exclusive lock on each application's test-identity rule until commit.

    Waits for every transaction that stores outcomes under the old rule, so that we see them;
    those that start later see the new rule. Taken after the runs' rows in the ledger, if any;
    in key order.
    """
    _lock_identities(connection, "pg_advisory_xact_lock", applications)


def _lock_identities(
    connection: Connection, function: str, applications: Collection[Application]
) -> None:
    if connection.dialect.name == "postgresql" and applications:  # SQLite has one writer at a time
        keys = "unnest(CAST(:keys AS text[])) AS key"
        statement = f"SELECT {function}(hashtextextended('identity ' || key, 0)) FROM {keys}"  # noqa: S608  our functions
        connection.execute(text(statement), {"keys": sorted(map(hash_parts, applications))})

"""By which rule the tests of a plan are known again from run to run: as stored, now or then."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    or_,
    select,
    text,
)

from etl.db.schema import (
    aliases,
    identities,
)
from etl.derived.plans import Naming, Plan


class Namings:
    """How the tests of each plan are known again, now or `at` a moment."""

    def __init__(self, connection: Connection, at: datetime | None = None) -> None:
        by_id = _ID_KEYED if at is None else _ID_KEYED.where(identities.c.decided_at <= at)
        self._by_id = frozenset(connection.scalars(by_id))
        self._renamed: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        query = select(aliases).where(_is_valid_alias(at)).order_by(aliases.c.added_at)
        for row in connection.execute(query):
            self._renamed[row.application, row.plan][row.old_name] = row.new_name

    def of(self, plan: Plan) -> Naming:
        """Return how the tests of `plan` are known again."""
        renamed = {
            **self._renamed.get((plan.application, ""), {}),
            **self._renamed.get((plan.application, plan.plan), {}),
        }
        return Naming(plan.application in self._by_id, _followed(renamed))


_ID_KEYED = select(identities.c.application).where(identities.c.key_kind == "id")


def _is_valid_alias(at: datetime | None) -> ColumnElement[bool]:
    if at is None:
        return aliases.c.removed_at.is_(None)
    is_removed_later = or_(aliases.c.removed_at.is_(None), aliases.c.removed_at > at)
    return and_(aliases.c.added_at <= at, is_removed_later)


def _followed(renamed: Mapping[str, str]) -> dict[str, str]:
    """Lead each old name to the newest: a test can be renamed again, and even back."""
    newest = {}
    for old in renamed:
        name, seen = old, {old}
        while (following := renamed.get(name)) is not None and following not in seen:
            name = following
            seen.add(name)
        newest[old] = name
    return newest


def rely_on_identities(connection: Connection, applications: Collection[str]) -> None:
    """Have what tests of these applications are known by stay as it is until the commit."""
    _lock(connection, "pg_advisory_xact_lock_shared", applications)


def change_identity(connection: Connection, application: str) -> None:
    """Wait until all is committed that relies on what an application's tests are known by.

    Who stores runs after our commit sees what we decide, and what was stored before it we see.
    """
    _lock(connection, "pg_advisory_xact_lock", [application])


def _lock(connection: Connection, function: str, applications: Collection[str]) -> None:
    if connection.dialect.name == "postgresql" and applications:  # SQLite has one writer at a time
        names = "unnest(CAST(:names AS text[])) AS name"
        statement = f"SELECT {function}(hashtextextended('identity ' || name, 0)) FROM {names}"  # noqa: S608  our functions
        connection.execute(text(statement), {"names": sorted(applications)})


def id_keyed_applications(connection: Connection) -> frozenset[str]:
    """Return the applications whose tests keep their ids from run to run."""
    query = select(identities.c.application).where(identities.c.key_kind == "id")
    return frozenset(connection.scalars(query))

"""Aliases: join the history of a renamed test, and undo that.

An alias changes no answer and no run, only the tests that a series comprises. `aliases` keeps
each alias with its times, so that a report as of an earlier moment stays as it was.
"""

import difflib
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, insert, select, update

from etl.config.settings import Rules
from etl.db.schema import PLAN_NAMES, aliases, plan_variants
from etl.derived.identity_rules import of_application
from etl.derived.plans import Application, Plan
from etl.derived.refresh import refresh_plans
from etl.derived.stored_series import STORED_SERIES
from etl.errors import UsageError


class Alias(NamedTuple):
    """A test's old and new name; `plan` "" means every plan of the application."""

    source: str
    application: str
    plan: str
    old_name: str
    new_name: str

    @property
    def owner(self) -> Application:
        """The application of the test."""
        return Application(self.source, self.application)


def add_alias(connection: Connection, alias: Alias, now: datetime, rules: Rules) -> None:
    """Count the results under the old name as those of the new one.

    Raises:
        UsageError: both names are the same, the plan does not exist, the old name has an alias, or
            the new name leads back to it.
    """
    if alias.old_name == alias.new_name:
        raise UsageError(f"alias: {alias.old_name!r} and its new name are the same")
    plans = _find_plans(connection, alias)
    if not plans:
        where = ", plan ".join(filter(None, [alias.application, alias.plan]))
        raise UsageError(
            f"alias: application {where} is in no archived run of source {alias.source}",
            "`report overview` lists them",
        )
    current = connection.scalar(select(aliases.c.new_name).where(_is_current(alias)))
    if current is not None:
        raise UsageError(
            f"alias: {alias.old_name!r} is an alias of {current!r} already; take that back"
            " first: alias remove"
        )
    if cycle := _find_cycle(list_aliases(connection), alias):
        raise UsageError(
            f"alias: {alias.old_name!r} would be its own new name: {', '.join(map(repr, cycle))}",
            "take one of these back first: alias remove",
        )
    connection.execute(insert(aliases).values(**alias._asdict(), added_at=now))
    refresh_plans(connection, plans, rules)


def _find_cycle(in_force: Sequence[Alias], added: Alias) -> list[str]:
    """Return the names from the old name of `added` back to itself; empty if there is no cycle.

    An alias of a plan overrides one of its application.
    """
    of_application = [each for each in (*in_force, added) if each.owner == added.owner]
    renamed: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for each in of_application:
        renamed[each.plan][each.old_name] = each.new_name
    for plan in [added.plan] if added.plan else list(renamed):
        newest = renamed[""] | renamed[plan]
        names = [added.old_name]
        while (name := newest.get(names[-1])) is not None and name not in names:
            names.append(name)
        if name == added.old_name:
            return [*names, name]
    return []


def describe_doubt(connection: Connection, alias: Alias) -> str:
    """Return a warning if no test has the old name, which may be misspelt; "" otherwise."""
    names = {
        name
        for columns in STORED_SERIES
        for name in connection.scalars(
            select(columns.test).distinct().select_from(columns.tables).where(_is_affected(alias))
        )
        if name is not None
    }
    if alias.old_name in names:
        return ""
    close = difflib.get_close_matches(alias.old_name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"no test there is called {alias.old_name!r} so far; {hint}alias remove takes it back"


def remove_alias(connection: Connection, alias: Alias, now: datetime, rules: Rules) -> None:
    """Count the old name by itself again. Raises UsageError: it has no such alias."""
    removed = connection.execute(update(aliases).where(_is_current(alias)).values(removed_at=now))
    if not removed.rowcount:
        raise UsageError(f"alias: {alias.old_name!r} has none there; `alias list` has them all")
    refresh_plans(connection, _find_plans(connection, alias), rules)


def list_aliases(connection: Connection) -> list[Alias]:
    """Return the aliases that were not removed, sorted by name."""
    columns = [aliases.c[name] for name in Alias._fields]
    query = select(*columns).where(aliases.c.removed_at.is_(None)).order_by(*columns)
    return [Alias._make(row) for row in connection.execute(query)]


def _is_current(alias: Alias) -> ColumnElement[bool]:
    return and_(
        of_application(aliases, alias.owner),
        aliases.c.plan == alias.plan,
        aliases.c.old_name == alias.old_name,
        aliases.c.removed_at.is_(None),
    )


def _find_plans(connection: Connection, alias: Alias) -> list[Plan]:
    query = select(*PLAN_NAMES).distinct().where(_is_affected(alias))
    return [Plan._make(row) for row in connection.execute(query)]


def _is_affected(alias: Alias) -> ColumnElement[bool]:
    """Return the condition for the plans whose tests the alias renames."""
    is_of_application = of_application(plan_variants, alias.owner)
    if not alias.plan:
        return is_of_application
    return and_(is_of_application, plan_variants.c.plan == alias.plan)

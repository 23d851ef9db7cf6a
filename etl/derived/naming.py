"""Join the history of a renamed test, and take that back.

An alias changes no answer and no run, only what series are counted over: `aliases` keeps each
with its time, so that a report as of an earlier moment is as it was.
"""

import difflib
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, insert, select, update

from etl.config.settings import Rules
from etl.db.schema import aliases, plan_variants, series
from etl.derived import refresh
from etl.derived.plans import Plan
from etl.errors import UsageError


class Renaming(NamedTuple):
    """That a test has another name now; `plan` "" means every plan of the application."""

    application: str
    plan: str
    old_name: str
    new_name: str


def add(connection: Connection, renaming: Renaming, now: datetime, rules: Rules) -> None:
    """Count the results under the old name as those of the new one.

    Raises:
        UsageError: both names are the same, there is no such plan, or the old name has an alias.
    """
    if renaming.old_name == renaming.new_name:
        raise UsageError(f"alias: {renaming.old_name!r} and its new name are the same")
    plans = _plans(connection, renaming)
    if not plans:
        where = ", plan ".join(filter(None, [renaming.application, renaming.plan]))
        raise UsageError(
            f"alias: application {where} is in no archived run; `report overview` lists them"
        )
    standing = connection.scalar(select(aliases.c.new_name).where(_is_standing(renaming)))
    if standing is not None:
        raise UsageError(
            f"alias: {renaming.old_name!r} is an alias of {standing!r} already; take that back"
            " first: alias remove"
        )
    connection.execute(insert(aliases).values(**renaming._asdict(), added_at=now))
    refresh.refresh_plans(connection, plans, rules)


def doubt(connection: Connection, renaming: Renaming) -> str:
    """Return what makes the old name look like a slip, "" where a test is called that."""
    query = (
        select(series.c.test)
        .distinct()
        .join(plan_variants, plan_variants.c.variant_id == series.c.variant_id)
        .where(plan_variants.c.application == renaming.application, series.c.test.is_not(None))
    )
    if renaming.plan:
        query = query.where(plan_variants.c.plan == renaming.plan)
    names = list(connection.scalars(query))
    if renaming.old_name in names:
        return ""
    close = difflib.get_close_matches(renaming.old_name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"no test there is called {renaming.old_name!r} so far; {hint}alias remove takes it back"


def remove(connection: Connection, renaming: Renaming, now: datetime, rules: Rules) -> None:
    """Count the old name by itself again. Raises UsageError: it has no such alias."""
    found = connection.execute(update(aliases).where(_is_standing(renaming)).values(removed_at=now))
    if not found.rowcount:
        raise UsageError(f"alias: {renaming.old_name!r} has none there; `alias list` has them all")
    refresh.refresh_plans(connection, _plans(connection, renaming), rules)


def standing(connection: Connection) -> list[Renaming]:
    """Return the aliases that are not taken back, by their names."""
    columns = (aliases.c.application, aliases.c.plan, aliases.c.old_name, aliases.c.new_name)
    query = select(*columns).where(aliases.c.removed_at.is_(None)).order_by(*columns)
    return [Renaming._make(row) for row in connection.execute(query)]


def _is_standing(renaming: Renaming) -> ColumnElement[bool]:
    return and_(
        aliases.c.application == renaming.application,
        aliases.c.plan == renaming.plan,
        aliases.c.old_name == renaming.old_name,
        aliases.c.removed_at.is_(None),
    )


def _plans(connection: Connection, renaming: Renaming) -> list[Plan]:
    names = (plan_variants.c.application, plan_variants.c.plan)
    query = select(*names).distinct().where(plan_variants.c.application == renaming.application)
    if renaming.plan:
        query = query.where(plan_variants.c.plan == renaming.plan)
    return [Plan._make(row) for row in connection.execute(query)]

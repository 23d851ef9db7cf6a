"""`alias`: former names of tests that were renamed."""

from typing import TYPE_CHECKING, Any

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from etl.cli.session import Session
    from etl.derived.plans import Plan

old_name = click.argument("old", metavar="OLD", help="The former name of the test.")
of_source = click.option(
    "--source", metavar="NAME", help="The account; default: the only one with the application."
)
of_application = click.option(
    "--application", metavar="NAME", required=True, help="The application of the test."
)
of_plan = click.option(
    "--plan", metavar="NAME", default="", help="The plan; default: every plan of the application."
)


@click.group(
    cls=options.OrderedGroup,
    epilog='Example: result-archiver alias add "Pays" "Pays by card" --application Shop',
)
def alias() -> None:
    """Join the history of a renamed test, or separate it again."""


@alias.command(epilog='Example: result-archiver alias add "Pays" "Pays by card" --application Shop')
@old_name
@click.argument("new", metavar="NEW", help="Its name now.")
@of_source
@of_application
@of_plan
@options.pass_session
def add(session: "Session", /, *, old: str, new: str, **where: Any) -> int:
    """Count results under the old name as those of the new one."""
    from etl.db.archive_settings import hold_settings
    from etl.derived import aliases

    with session.open_to_write() as archive, archive.writing() as connection:
        renaming = aliases.Alias(*_choose_plan(connection, session, **where), old, new)
        doubt = aliases.describe_doubt(connection, renaming)
        rules = hold_settings(connection).rules
        aliases.add_alias(connection, renaming, session.now, rules)
    display.note(f"{old} counts as {new} now")
    if doubt:
        display.note(doubt)
    return 0


@alias.command(epilog='Example: result-archiver alias remove "Pays" --application Shop')
@old_name
@of_source
@of_application
@of_plan
@options.pass_session
def remove(session: "Session", /, *, old: str, **where: Any) -> int:
    """Count the old name by itself again."""
    from etl.db.archive_settings import hold_settings
    from etl.derived import aliases

    with session.open_to_write() as archive, archive.writing() as connection:
        renaming = aliases.Alias(*_choose_plan(connection, session, **where), old, "")
        rules = hold_settings(connection).rules
        aliases.remove_alias(connection, renaming, session.now, rules)
    display.note(f"{old} counts by itself again")
    return 0


@alias.command("list", epilog="Example: result-archiver alias list --json")
@click.option("--source", metavar="NAME", help="Only those of this account.")
@options.as_json
@options.pass_session
def list_aliases(session: "Session", *, source: str | None, as_json: bool) -> int:
    """List the aliases in force."""
    from etl.cli.questions import require_source
    from etl.derived import aliases

    with session.open_to_read() as archive, archive.reading() as connection:
        require_source(connection, session.config, source)
        in_force = aliases.list_aliases(connection)
    first = 0 if len({each.source for each in in_force}) > 1 else 1  # without the only account
    names = aliases.Alias._fields[first:]
    rows = [each[first:] for each in in_force if source in {None, each.source}]
    if as_json:
        display.as_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        display.table([name.replace("_", " ") for name in names], rows)
    return 0


def _choose_plan(
    connection: "Connection",
    session: "Session",
    source: str | None,
    application: str,
    plan: str,
) -> "Plan":
    """Return the plan that an alias is for, of the only account that has it unless one is given.

    Raises:
        UsageError: several accounts have it, or none is called `source`.
    """
    from etl.cli.questions import require_one_source, require_source
    from etl.derived.plans import Plan
    from etl.reports.model import Filters
    from etl.secrets.keys import DEFAULT_SOURCE

    require_source(connection, session.config, source)
    if source is None:
        source = require_one_source(connection, Filters(None, application, plan or None))
    return Plan(source or DEFAULT_SOURCE, application, plan)

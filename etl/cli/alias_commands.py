"""`alias`: former names of tests that were renamed."""

from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from etl.cli.session import Session

old_name = click.argument("old", metavar="OLD", help="The former name of the test.")
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
@of_application
@of_plan
@options.pass_session
def add(session: "Session", *, old: str, new: str, application: str, plan: str) -> int:
    """Count results under the old name as those of the new one."""
    from etl.db.archive_settings import hold_settings
    from etl.derived import aliases

    renaming = aliases.Alias(application, plan, old, new)
    with session.open_to_write() as archive, archive.writing() as connection:
        doubt = aliases.describe_doubt(connection, renaming)
        rules = hold_settings(connection).rules
        aliases.add_alias(connection, renaming, session.now, rules)
    display.note(f"{old} counts as {new} now")
    if doubt:
        display.note(doubt)
    return 0


@alias.command(epilog='Example: result-archiver alias remove "Pays" --application Shop')
@old_name
@of_application
@of_plan
@options.pass_session
def remove(session: "Session", *, old: str, application: str, plan: str) -> int:
    """Count the old name by itself again."""
    from etl.db.archive_settings import hold_settings
    from etl.derived import aliases

    renaming = aliases.Alias(application, plan, old, "")
    with session.open_to_write() as archive, archive.writing() as connection:
        rules = hold_settings(connection).rules
        aliases.remove_alias(connection, renaming, session.now, rules)
    display.note(f"{old} counts by itself again")
    return 0


@alias.command("list", epilog="Example: result-archiver alias list --json")
@options.as_json
@options.pass_session
def list_aliases(session: "Session", *, as_json: bool) -> int:
    """List the aliases in force."""
    from etl.derived import aliases

    with session.open_to_read() as archive, archive.reading() as connection:
        in_force = aliases.list_aliases(connection)
    if as_json:
        display.as_json([each._asdict() for each in in_force])
    else:
        display.table([name.replace("_", " ") for name in aliases.Alias._fields], in_force)
    return 0

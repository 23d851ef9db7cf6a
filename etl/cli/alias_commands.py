"""`alias`: what a renamed test was called before."""

from pathlib import Path

from etl import clock, display
from etl.cli.session import open_session
from etl.db import database
from etl.derived.aliases import Alias, add_alias, describe_doubt, list_aliases, remove_alias


def add(path: Path | None, alias: Alias) -> int:
    """Join the history of the old name to that of the new one."""
    session = open_session(path)
    database.require_archive(session.engine)
    with database.writing(session.engine) as connection:
        doubt = describe_doubt(connection, alias)
        add_alias(connection, alias, clock.now(), session.config.rules)
    display.note(f"{alias.old_name} counts as {alias.new_name} now")
    if doubt:
        display.note(doubt)
    return 0


def remove(path: Path | None, alias: Alias) -> int:
    """Part them again."""
    session = open_session(path)
    database.require_archive(session.engine)
    with database.writing(session.engine) as connection:
        remove_alias(connection, alias, clock.now(), session.config.rules)
    display.note(f"{alias.old_name} counts by itself again")
    return 0


def show(path: Path | None, *, as_json: bool) -> int:
    """List the aliases."""
    session = open_session(path)
    database.require_archive(session.engine)
    with database.reading(session.engine) as connection:
        found = list_aliases(connection)
    if as_json:
        display.as_json([each._asdict() for each in found])
    else:
        display.table([name.replace("_", " ") for name in Alias._fields], found)
    return 0

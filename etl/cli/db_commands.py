"""`db`: the tables, and who reads their views."""

from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options

if TYPE_CHECKING:
    from etl.cli.session import Session


@click.group(cls=options.OrderedGroup, epilog="Example: result-archiver db upgrade")
def db() -> None:
    """Create, upgrade or downgrade the tables; give a BI tool access."""


@db.command(epilog="Example: result-archiver db upgrade")
@options.pass_session
def upgrade(session: "Session") -> int:
    """Create the tables, or migrate them to this version.

    Then derive the tables that reports need from the archived answers. An interrupted upgrade
    goes on.
    """
    from etl.archive.replay import replay_archive
    from etl.db import archive_settings, database

    with session.open_to_migrate() as archive:
        database.upgrade(archive.engine, session.config.to_store)
        if not database.is_complete(archive.engine):
            display.note("deriving the rows that reports need from the archived answers")
            with archive.reading() as connection:
                stored = archive_settings.read_settings_of_rebuild(connection)
            for _ in replay_archive(archive.engine, stored.reporting):
                pass
        display.note(f"{database.shown_url(archive.engine)}: at revision {database.HEAD}")
    return 0


@db.command(
    epilog="Example: result-archiver db downgrade 0001",
    context_settings={"ignore_unknown_options": True},  # such as -1
)
@click.argument("revision", metavar="REVISION", help="A revision such as 0001, or -1, or base.")
@options.pass_session
def downgrade(session: "Session", *, revision: str) -> int:
    """Migrate the tables back to an older revision."""
    from etl.db import database

    with session.open_to_migrate() as archive:
        database.downgrade(archive.engine, revision)
        reached = database.current_revision(archive.engine) or "base (no tables)"
        display.note(f"{database.shown_url(archive.engine)}: at revision {reached}")
    return 0


@db.command(epilog="Example: result-archiver db current --json")
@options.as_json
@options.pass_session
def current(session: "Session", *, as_json: bool) -> int:
    """Show the revision of the tables, and the one needed."""
    from etl.db import database

    with session.open_as_it_is() as archive:
        is_there = database.exists(archive.engine)
        revision = database.current_revision(archive.engine) if is_there else None
    if as_json:
        display.as_json({"current": revision, "needed": database.HEAD})
    else:
        display.say(f"{revision or 'no tables yet'} (this version needs {database.HEAD})")
    return 0


@db.command(epilog="Example: result-archiver db grant-reader bi")
@click.argument("role", metavar="ROLE", help="A role of PostgreSQL.")
@options.pass_session
def grant_reader(session: "Session", *, role: str) -> int:
    """Grant a role read access to the BI views only.

    Views of later versions too.
    """
    from etl.db import database, reader

    with session.open_to_migrate() as archive:
        schema = reader.grant_views(archive.engine, role)
        display.note(f"{database.shown_url(archive.engine)}: {role} reads the views in {schema}")
    return 0

"""`bi`: dashboards and queries for BI tools."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options
from etl.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy import URL

    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver bi superset --output test-results.zip")
@click.argument("name", metavar="NAME", help="superset, grafana, datasette, sql or powerbi.")
@click.option(
    "--output", type=options.FILE, metavar="PATH", required=True, help="The file or folder to make."
)
@click.option(
    "--uri",
    metavar="URI",
    help="The database as the tool reaches it, without a password: another host, a reader's name,"
    " or the published copy. Default: database.url.",
)
@click.option(
    "--prefix",
    metavar="TEXT",
    default="",
    help="Begins names and titles, where one tool shows several archives.",
)
@options.pass_session
def bi(session: "Session", /, *, name: str, output: Path, uri: str | None, prefix: str) -> int:
    """Write dashboards and queries for a BI tool (docs/BI.md).

    superset: a ZIP file; grafana, datasette: a JSON file; sql, powerbi: a folder.
    """
    from etl.bi import bundles, view_columns
    from etl.bi.chart_catalog import read_catalog

    with session.open_to_read() as archive, archive.reading() as connection:
        source = view_columns.BiSource(
            read_catalog(),
            view_columns.read_views(connection),
            archive.engine.dialect.name,
            view_columns.read_schema(connection),
            view_columns.quote_schema(connection),
            _read_url(uri, session.config.database.url),
            prefix,
        )
    for file in bundles.write_bundle(name, source, output):
        display.say(display.safe(file))
    return 0


def _read_url(uri: str | None, configured: str) -> "URL":
    """Return the database's URL for a tool, without a password. Raises UsageError."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    if uri is None:
        url = make_url(configured)
        return url.set(drivername=url.get_backend_name(), password=None)
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        raise UsageError("--uri: is no database URL", "give postgresql://USER@HOST/DB") from None
    if url.password is not None:
        raise UsageError(
            "--uri: has a password, which other users of this machine can see",
            "leave it out, and give it to the tool",
        )
    return url

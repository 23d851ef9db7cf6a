"""`bi`: dashboards and queries for BI tools."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl import display
from etl.cli import options
from etl.errors import UsageError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

    from etl.bi.view_columns import BiSource
    from etl.cli.session import Session


@click.command(epilog="Example: result-archiver bi superset --output test-results.zip")
@click.argument(
    "name", metavar="[NAME]", required=False, help="A tool; without one, all are listed."
)
@click.option("--output", type=options.FILE, metavar="PATH", help="The file or folder to make.")
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
def bi(
    session: "Session",
    /,
    *,
    name: str | None,
    output: Path | None,
    uri: str | None,
    prefix: str,
) -> int:
    """Write dashboards and queries for a BI tool (docs/BI.md)."""
    from etl.bi import bundles

    if name is None:
        tools = [(tool, each.makes) for tool, each in bundles.TOOLS.items()]
        display.table(["tool", "bi writes"], tools)
        return 0
    bundles.find_tool(name)
    if output is None:
        raise UsageError(f"bi {name}: give --output PATH")
    with session.open_to_read() as archive, archive.reading() as connection:
        source = _read_source(connection, _read_url(uri, session.config.database.url), prefix)
    for file in bundles.write_bundle(name, source, output):
        display.say(display.safe(file))
    return 0


def _read_source(connection: "Connection", url: "URL", prefix: str) -> "BiSource":
    from etl.bi import view_columns
    from etl.bi.chart_catalog import read_catalog

    return view_columns.BiSource(
        read_catalog(),
        view_columns.read_views(connection),
        connection.dialect.name,
        view_columns.read_schema(connection),
        view_columns.quote_schema(connection),
        url,
        prefix,
    )


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

"""Run the migrations on the connection that `etl.database` hands over, in its transaction.

Called by the `alembic` command itself (to write a new migration), it connects as configured.
The views are taken down first and put up again at the newest revision: SQLite cannot rebuild a
table that a view reads, and so no migration has to mention one. What they and their columns mean
(the first lines of their files, and dictionary.toml) is then written into `data_dictionary`.
Where another program or archive has one of our names, nothing is changed.
"""

import tomllib
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from alembic import context
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, delete, insert, inspect, text
from sqlalchemy.engine.reflection import ObjectKind

from etl.config import loading
from etl.config.settings import StoredSettings
from etl.db import archive_settings, indexes, ownership, schema
from etl.db.database import VERSION_TABLE, read_revision
from etl.db.opening import open_to_migrate

FOLDER = Path(__file__).parent

COMMENT_ON_ALL = r"""
DO $$
DECLARE entry record;
BEGIN
    FOR entry IN SELECT * FROM data_dictionary LOOP
        EXECUTE CASE entry.column_name
            WHEN '' THEN format('COMMENT ON VIEW {schema}.%I IS %L',
                                entry.object_name, entry.description)
            ELSE format('COMMENT ON COLUMN {schema}.%I.%I IS %L',
                        entry.object_name, entry.column_name, entry.description)
        END;
    END LOOP;
END $$
"""


def _migrate(connection: Connection, to_store: StoredSettings | None) -> None:
    """Migrate up, and store settings, or migrate down if there are none to store."""
    context.configure(
        connection=connection,
        target_metadata=indexes.metadata,
        version_table=VERSION_TABLE,
        transactional_ddl=True,
        compare_type=True,
    )
    before = read_revision(connection)
    stored = archive_settings.read_reporting_schema(connection) if before else None
    wanted = to_store or StoredSettings(reporting_schema=stored or "")
    context.config.attributes["reporting_schema"] = wanted.reporting_schema
    if to_store:
        tables = list(_list_new_tables(before))
        ownership.refuse_occupied(connection, to_store.reporting_schema, tables)
    ownership.drop_views(connection, stored)
    with context.begin_transaction():
        context.run_migrations()
    after = read_revision(connection)
    if after:
        archive_settings.record_version(connection, after)
    if after != context.get_head_revision():
        return
    archive_settings.record_settings(connection, wanted)
    if stored and stored != wanted.reporting_schema:
        ownership.drop_schema(connection, stored)
    in_schema = archive_settings.read_reporting_schema(connection)
    if in_schema:
        ownership.create_schema(connection, in_schema)
    _create_views(connection, in_schema)
    _describe(connection, in_schema)


def _list_new_tables(before: str | None) -> Iterator[str]:
    """Yield the tables that the migrations since a revision create."""
    scripts = ScriptDirectory.from_config(context.config)
    for script in scripts.iterate_revisions("heads", before):
        yield from getattr(script.module, "TABLES", ())


def _create_views(connection: Connection, in_schema: str | None) -> None:
    prefix = f"{ownership.quote_name(connection, in_schema)}." if in_schema else ""
    for file in ownership.view_files(connection):
        statement = file.read_text(encoding="utf-8").replace("{reporting}", prefix)
        marked = statement.replace(" AS\n", f" AS {ownership.VIEW_MARK}\n", 1)
        connection.exec_driver_sql(marked)


def _describe(connection: Connection, in_schema: str | None) -> None:
    """Write down what each view and column means; a test sees to it that none is left out."""
    table = schema.data_dictionary
    files = sorted(FOLDER.glob("views/**/*.sql"))
    rows = [(file.stem, "", _first_lines(file)) for file in files]
    found = inspect(connection).get_multi_columns(
        schema=in_schema, filter_names=[name for name, _, _ in rows], kind=ObjectKind.ANY
    )
    meanings = tomllib.loads((FOLDER / "dictionary.toml").read_text(encoding="utf-8"))
    for (_, name), columns in found.items():
        known = meanings["shared"] | meanings.get(name, {})
        rows += [(name, each["name"], known.get(each["name"], "")) for each in columns]
    connection.execute(delete(table))
    names = [column.name for column in table.columns]
    described = [dict(zip(names, row, strict=True)) for row in rows if row[-1]]
    connection.execute(insert(table), described)
    if in_schema:
        quoted = ownership.quote_name(connection, in_schema)
        connection.execute(text(COMMENT_ON_ALL.replace("{schema}", quoted)))


def _first_lines(view: Path) -> str:
    """Return what a view's file begins with: "-- NAME: what a row is, ..."."""
    lines = takewhile(lambda line: line.startswith("-- "), view.read_text("utf-8").splitlines())
    return " ".join(line.removeprefix("-- ") for line in lines).removeprefix(f"{view.stem}: ")


given = context.config.attributes
if "connection" in given:
    _migrate(given["connection"], given["to_store"])
else:
    config = loading.load(None)
    with open_to_migrate(config.database.url) as archive, archive.writing() as opened:
        _migrate(opened, config.to_store)

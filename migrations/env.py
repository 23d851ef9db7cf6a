"""Run the migrations on the connection that `etl.database` hands over, in its transaction.

Called by the `alembic` command itself (to write a new migration), it connects as configured.
The views are taken down first and put up again at the newest revision: SQLite cannot rebuild a
table that a view reads, and so no migration has to mention one. What they and their columns mean
(the first lines of their files, and dictionary.toml) is then written into `data_dictionary`.
"""

import tomllib
from itertools import takewhile
from pathlib import Path

from alembic import context
from sqlalchemy import Connection, delete, insert, inspect, text
from sqlalchemy.engine.reflection import ObjectKind

from etl.config import loading
from etl.db import indexes, schema
from etl.db.opening import open_to_migrate

FOLDER = Path(__file__).parent
VIEWS = sorted(FOLDER.glob("views/*.sql"))
VIEWS_ALONE = sorted(FOLDER.glob("views/postgresql/*.sql"))
"""What is a table on SQLite, and needs a view where only views may be read."""

COMMENT_ON_ALL = r"""
DO $$
DECLARE entry record;
BEGIN
    FOR entry IN SELECT * FROM data_dictionary LOOP
        EXECUTE CASE entry.column_name
            WHEN '' THEN format('COMMENT ON VIEW reporting.%I IS %L',
                                entry.object_name, entry.description)
            ELSE format('COMMENT ON COLUMN reporting.%I.%I IS %L',
                        entry.object_name, entry.column_name, entry.description)
        END;
    END LOOP;
END $$
"""


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=indexes.metadata,
        transactional_ddl=True,
        compare_type=True,
    )
    _drop_views(connection)
    with context.begin_transaction():
        context.run_migrations()
    if context.get_context().get_current_revision() == context.get_head_revision():
        _create_views(connection)
        _describe(connection)


def _schema(connection: Connection) -> str | None:
    return "reporting" if connection.dialect.name == "postgresql" else None


def _prefix(connection: Connection) -> str:
    return "reporting." if _schema(connection) else ""


def _views(connection: Connection) -> list[Path]:
    return [*VIEWS, *VIEWS_ALONE] if _schema(connection) else VIEWS


def _drop_views(connection: Connection) -> None:
    names = inspect(connection).get_view_names(schema=_schema(connection))
    for view in _views(connection):
        if view.stem in names:
            connection.exec_driver_sql(f"DROP VIEW {_prefix(connection)}{view.stem}")


def _create_views(connection: Connection) -> None:
    for view in _views(connection):
        statement = view.read_text(encoding="utf-8")
        connection.exec_driver_sql(statement.replace("{reporting}", _prefix(connection)))


def _describe(connection: Connection) -> None:
    """Write down what each view and column means; a test sees to it that none is left out."""
    table = schema.data_dictionary
    rows = [(view.stem, "", _first_lines(view)) for view in (*VIEWS, *VIEWS_ALONE)]
    found = inspect(connection).get_multi_columns(
        schema=_schema(connection),
        filter_names=[name for name, _, _ in rows],
        kind=ObjectKind.ANY,
    )
    meanings = tomllib.loads((FOLDER / "dictionary.toml").read_text(encoding="utf-8"))
    for (_, name), columns in found.items():
        known = meanings["shared"] | meanings.get(name, {})
        rows += [(name, each["name"], known.get(each["name"], "")) for each in columns]
    connection.execute(delete(table))
    names = [column.name for column in table.columns]
    described = [dict(zip(names, row, strict=True)) for row in rows if row[-1]]
    connection.execute(insert(table), described)
    if _schema(connection):
        connection.execute(text(COMMENT_ON_ALL))


def _first_lines(view: Path) -> str:
    """Return what a view's file begins with: "-- NAME: what a row is, ..."."""
    lines = takewhile(lambda line: line.startswith("-- "), view.read_text("utf-8").splitlines())
    return " ".join(line.removeprefix("-- ") for line in lines).removeprefix(f"{view.stem}: ")


given = context.config.attributes.get("connection")
if given is not None:
    _migrate(given)
else:
    with open_to_migrate(loading.load(None).database.url) as archive, archive.writing() as opened:
        _migrate(opened)

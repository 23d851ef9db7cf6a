"""Run the migrations on the connection that `etl.database` hands over, in its transaction.

Called by the `alembic` command itself (to write a new migration), it connects as configured.
The views are taken down first and put up again at the newest revision: SQLite cannot rebuild a
table that a view reads, and so no migration has to mention one.
"""

from pathlib import Path

from alembic import context
from sqlalchemy import Connection, inspect

from etl import config, database, schema

VIEWS = sorted(Path(__file__).with_name("views").glob("*.sql"))


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=schema.metadata,
        transactional_ddl=True,
        compare_type=True,
    )
    _drop_views(connection)
    with context.begin_transaction():
        context.run_migrations()
    if context.get_context().get_current_revision() == context.get_head_revision():
        _create_views(connection)


def _prefix(connection: Connection) -> str:
    return "reporting." if connection.dialect.name == "postgresql" else ""


def _drop_views(connection: Connection) -> None:
    names = inspect(connection).get_view_names(schema=_prefix(connection).rstrip(".") or None)
    for view in VIEWS:
        if view.stem in names:
            connection.exec_driver_sql(f"DROP VIEW {_prefix(connection)}{view.stem}")


def _create_views(connection: Connection) -> None:
    for view in VIEWS:
        statement = view.read_text(encoding="utf-8")
        connection.exec_driver_sql(statement.replace("{reporting}", _prefix(connection)))


given = context.config.attributes.get("connection")
if given is not None:
    _migrate(given)
else:
    with database.writing(database.connect(config.load(None).database.url)) as opened:
        _migrate(opened)

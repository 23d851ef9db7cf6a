"""Run the migrations on the connection that `etl.database` hands over, in its transaction.

Called by the `alembic` command itself (to write a new migration), it connects as configured.
"""

from alembic import context
from sqlalchemy import Connection

from etl import config, database, schema


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=schema.metadata,
        transactional_ddl=True,
        compare_type=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    with database.writing(database.connect(config.load(None).database.url)) as opened:
        _run(opened)

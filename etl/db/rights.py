"""Name the rights that a role of PostgreSQL lacks, as the GRANTs that give them."""

from contextlib import suppress

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from etl.db.schema import metadata
from etl.errors import DatabaseError, Fault

READER = "SELECT"
WRITER = "SELECT, INSERT, UPDATE, DELETE"

_INSUFFICIENT_PRIVILEGE = "42501"
_MISSING = """
SELECT format('GRANT %s ON %s TO %I', rights, string_agg(format('%I', name), ', '), current_user)
  FROM unnest(CAST(:tables AS text[])) AS name, CAST(:rights AS text) AS rights
 WHERE to_regclass(name) IS NOT NULL AND EXISTS (
       SELECT FROM unnest(string_to_array(rights, ', ')) AS each
        WHERE NOT has_table_privilege(name, each))
 GROUP BY rights
UNION ALL
SELECT format('GRANT USAGE ON SEQUENCE %s TO %I', sequence, current_user)
  FROM (SELECT CASE WHEN to_regclass('ingests') IS NOT NULL
               THEN pg_get_serial_sequence('ingests', 'id') END AS sequence) AS numbers
 WHERE :rights <> 'SELECT' AND NOT has_sequence_privilege(sequence, 'USAGE')
"""


def find_missing_grants(connection: Connection, rights: str) -> list[str]:
    """Return the GRANTs that the connected role needs for `rights` on our tables."""
    given = {"tables": sorted(metadata.tables), "rights": rights}
    return list(connection.scalars(text(_MISSING), given))


def add_grants(error: DatabaseError, cause: SQLAlchemyError, engine: Engine) -> DatabaseError:
    """Return an error that a right is missing with the GRANTs; any other as it is."""
    state = getattr(cause.orig, "sqlstate", None) if isinstance(cause, DBAPIError) else None
    if state != _INSUFFICIENT_PRIVILEGE:
        return error
    is_reader = engine.get_execution_options().get("postgresql_readonly", False)
    grants: list[str] = []
    with suppress(SQLAlchemyError), engine.connect() as connection:  # `error` is what matters
        grants = find_missing_grants(connection, READER if is_reader else WRITER)
    return DatabaseError(error.problem, join_grants(grants) or error.remedy, Fault.NO_RIGHTS)


def join_grants(grants: list[str]) -> str:
    """Return a remedy of GRANTs, "" without one."""
    return f"have an administrator run in this database: {'; '.join(grants)};" if grants else ""

"""Grant a PostgreSQL role the views in the reporting schema, and nothing else of ours."""

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import ProgrammingError

from etl.db.archive_settings import read_reporting_schema
from etl.db.database import require_archive, shown_url, writing
from etl.db.schema import metadata
from etl.errors import DatabaseError, UsageError

INSUFFICIENT_PRIVILEGE = "42501"
"""The SQLSTATE of a missing right."""
SETTINGS = {
    "TimeZone": "UTC",
    "default_transaction_read_only": "on",
    "from_collapse_limit": "12",
    "join_collapse_limit": "12",
}
"""The settings of the role's sessions: times are in UTC, and the role only reads.

With the usual limit of 8 tables, a query that joins two views reads all rows of one of them.
"""


class _Grant(NamedTuple):
    """A statement, and the condition that holds once it was run; both can name a schema."""

    is_granted: str
    statement: str


def _build_setting_grant(name: str, value: str, stored: str) -> _Grant:
    """Return the grant of a setting: its value in a statement, and as an expression."""
    return _Grant(
        "EXISTS (SELECT FROM pg_db_role_setting"
        " JOIN pg_roles ON pg_roles.oid = setrole AND rolname = :role"
        " JOIN pg_database ON pg_database.oid = setdatabase AND datname = current_database()"
        f" WHERE '{name}=' || {stored} = ANY (setconfig))",
        f"ALTER ROLE {{role}} IN DATABASE {{database}} SET {name} = {value}",
    )


GRANTS = (
    _Grant(
        "has_database_privilege(:role, current_database(), 'CONNECT')",
        "GRANT CONNECT ON DATABASE {database} TO {role}",
    ),
    _Grant(
        "has_schema_privilege(:role, :schema, 'USAGE')",
        "GRANT USAGE ON SCHEMA {schema} TO {role}",
    ),
    _Grant(
        "NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace(:schema)"
        " AND relkind = 'v' AND NOT has_table_privilege(:role, oid, 'SELECT'))",
        "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}",
    ),
    # A migration drops and creates the views.
    _Grant(
        "EXISTS (SELECT FROM pg_default_acl, aclexplode(defaclacl)"
        " JOIN pg_roles ON pg_roles.oid = grantee AND rolname = :role"
        " WHERE defaclnamespace = to_regnamespace(:schema)"
        " AND pg_get_userbyid(defaclrole) = current_user AND privilege_type = 'SELECT')",
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema}"
        " GRANT SELECT ON TABLES TO {role}",
    ),
    *(_build_setting_grant(name, f"'{value}'", f"'{value}'") for name, value in SETTINGS.items()),
    # So that the views have the same names as on SQLite.
    _build_setting_grant("search_path", "{schema}", "quote_ident(:schema)"),
)


def grant_views(engine: Engine, role: str) -> str:
    """Grant `role` all views, and those that migrations create later; all or nothing.

    Returns the schema of the views.

    Raises:
        UsageError: the role does not exist, or can already read more than views.
        DatabaseError: the archive does not exist, or we lack a right; gives the statements to run.
    """
    if engine.dialect.name != "postgresql":
        raise UsageError(
            f"{shown_url(engine)}: SQLite has no roles; give readers a copy of their own:"
            " `result-archiver export --sqlite FILE`"
        )
    require_archive(engine)
    with writing(engine) as connection:
        _refuse_unfit(engine, connection, role)
        names = {"role": role, "schema": read_reporting_schema(connection) or ""}
        missing = [each for each in GRANTS if not _is_granted(connection, each, names)]
        statements = [_render_statement(connection, each, names) for each in missing]
        if not _run_statements(connection, statements) or not all(
            _is_granted(connection, each, names) for each in missing
        ):
            raise DatabaseError(
                f"{shown_url(engine)}: we may not do all of this",
                "have an administrator of the server run in this database:"
                f" {'; '.join(statements)};",
            )
    return names["schema"]


def _refuse_unfit(engine: Engine, connection: Connection, role: str) -> None:
    is_known = text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :role)")
    if not connection.scalar(is_known, {"role": role}):
        raise UsageError(
            f"{shown_url(engine)}: there is no role {role!r}; make it first:"
            f" CREATE ROLE {_quote_identifier(connection, role)} LOGIN PASSWORD '...'"
        )
    privileges = "SELECT, INSERT, UPDATE, DELETE, TRUNCATE"
    can_use = text(
        f"SELECT has_table_privilege(:role, :name, '{privileges}')"
        " OR has_any_column_privilege(:role, :name, 'SELECT')"
    )
    for table in sorted(metadata.tables):
        if connection.scalar(can_use, {"role": role, "name": table}):
            raise UsageError(
                f"{shown_url(engine)}: the role {role!r} can use the table {table} already, as"
                " owner, superuser, member of a role or by a GRANT; name one that reads only views"
            )


def _is_granted(connection: Connection, each: _Grant, names: Mapping[str, str]) -> bool:
    return bool(connection.scalar(text(f"SELECT {each.is_granted}"), names))


def _run_statements(connection: Connection, statements: list[str]) -> bool:
    try:
        for statement in statements:
            with connection.begin_nested():
                connection.exec_driver_sql(statement.replace("%", "%%"))
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != INSUFFICIENT_PRIVILEGE:
            raise
        return False
    return True


def _render_statement(connection: Connection, each: _Grant, names: Mapping[str, str]) -> str:
    names = {
        **names,
        "database": connection.scalar(text("SELECT current_database()")),
        "owner": connection.scalar(text("SELECT current_user")),
    }
    quoted = {key: _quote_identifier(connection, str(name)) for key, name in names.items()}
    return each.statement.format(**quoted)


def _quote_identifier(connection: Connection, name: str) -> str:
    return str(connection.scalar(text("SELECT quote_ident(:name)"), {"name": name}))

"""Let a role of PostgreSQL read the views in the schema `reporting`, and nothing else of ours."""

from typing import NamedTuple

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import ProgrammingError

from etl.db.database import require_archive, shown_url, writing
from etl.db.schema import metadata
from etl.errors import DatabaseError, UsageError

MAY_NOT = "42501"
"""What PostgreSQL calls it when somebody lacks a right."""
SETTINGS = {"TimeZone": "UTC", "default_transaction_read_only": "on"}
"""What the role's sessions begin with: our times are UTC, and reading is all that it is for."""


class _Grant(NamedTuple):
    """A statement, and how to tell that it has been run."""

    is_there: str
    statement: str


def _setting(name: str, value: str) -> _Grant:
    return _Grant(
        "EXISTS (SELECT FROM pg_db_role_setting"
        " JOIN pg_roles ON pg_roles.oid = setrole AND rolname = :role"
        " JOIN pg_database ON pg_database.oid = setdatabase AND datname = current_database()"
        f" WHERE '{name}={value}' = ANY (setconfig))",
        f"ALTER ROLE {{role}} IN DATABASE {{database}} SET {name} = '{value}'",
    )


GRANTS = (
    _Grant(
        "has_database_privilege(:role, current_database(), 'CONNECT')",
        "GRANT CONNECT ON DATABASE {database} TO {role}",
    ),
    _Grant(
        "has_schema_privilege(:role, 'reporting', 'USAGE')",
        "GRANT USAGE ON SCHEMA reporting TO {role}",
    ),
    _Grant(
        "NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = 'reporting'::regnamespace"
        " AND relkind = 'v' AND NOT has_table_privilege(:role, oid, 'SELECT'))",
        "GRANT SELECT ON ALL TABLES IN SCHEMA reporting TO {role}",
    ),
    # A migration makes the views anew.
    _Grant(
        "EXISTS (SELECT FROM pg_default_acl, aclexplode(defaclacl)"
        " JOIN pg_roles ON pg_roles.oid = grantee AND rolname = :role"
        " WHERE defaclnamespace = 'reporting'::regnamespace"
        " AND pg_get_userbyid(defaclrole) = current_user AND privilege_type = 'SELECT')",
        "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA reporting"
        " GRANT SELECT ON TABLES TO {role}",
    ),
    *(_setting(name, value) for name, value in SETTINGS.items()),
)


def grant(engine: Engine, role: str) -> None:
    """Let `role` read all views, and those that migrations make later; all of it or nothing.

    Raises:
        UsageError: there is no such role, or it can read more than views already.
        DatabaseError: there is no archive, or we may not do this; says who may, and how.
    """
    if engine.dialect.name != "postgresql":
        raise UsageError(
            f"{shown_url(engine)}: SQLite has no roles; give readers a copy of their own:"
            " `result-archiver export --sqlite FILE`"
        )
    require_archive(engine)
    with writing(engine) as connection:
        _refuse_unfit(engine, connection, role)
        missing = [each for each in GRANTS if not _is_there(connection, each, role)]
        statements = [_spelled(connection, each, role) for each in missing]
        if not _can_run(connection, statements) or not all(
            _is_there(connection, each, role) for each in missing
        ):
            raise DatabaseError(
                f"{shown_url(engine)}: we may not do all of this",
                "have an administrator of the server run in this database:"
                f" {'; '.join(statements)};",
            )


def _refuse_unfit(engine: Engine, connection: Connection, role: str) -> None:
    is_known = text("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :role)")
    if not connection.scalar(is_known, {"role": role}):
        raise UsageError(
            f"{shown_url(engine)}: there is no role {role!r}; make it first:"
            f" CREATE ROLE {_quoted(connection, role)} LOGIN PASSWORD '...'"
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


def _is_there(connection: Connection, each: _Grant, role: str) -> bool:
    return bool(connection.scalar(text(f"SELECT {each.is_there}"), {"role": role}))


def _can_run(connection: Connection, statements: list[str]) -> bool:
    try:
        for statement in statements:
            with connection.begin_nested():
                connection.exec_driver_sql(statement.replace("%", "%%"))
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != MAY_NOT:
            raise
        return False
    return True


def _spelled(connection: Connection, each: _Grant, role: str) -> str:
    names = {
        "role": role,
        "database": connection.scalar(text("SELECT current_database()")),
        "owner": connection.scalar(text("SELECT current_user")),
    }
    quoted = {key: _quoted(connection, str(name)) for key, name in names.items()}
    return each.statement.format(**quoted)


def _quoted(connection: Connection, name: str) -> str:
    return str(connection.scalar(text("SELECT quote_ident(:name)"), {"name": name}))

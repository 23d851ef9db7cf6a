"""Create, copy and drop databases, so that each round starts from the same state."""

import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import psycopg
from psycopg import sql
from sqlalchemy import URL

from bench.content import Totals
from tests.support.postgres import ROLE, Server, running_server

DATABASES = ("sqlite", "postgresql")

_TOTALS = (
    "(SELECT count(*) FROM {0}runs), (SELECT count(*) FROM {0}environments),"
    " (SELECT count(*) FROM {0}tests), (SELECT count(*) FROM {0}counts),"
    " (SELECT coalesce(sum(passed), 0) FROM {0}counts)"
)


class State(NamedTuple):
    """A database, and a folder for a contender's own files."""

    url: str
    folder: Path

    def totals(self, schema: str = "") -> Totals:
        """Count the rows of the four common tables in `schema`."""
        query = f"SELECT {_TOTALS.format(f'{schema}.' if schema else '')}"
        if self.url.startswith("sqlite"):
            connection = sqlite3.connect(self.url.removeprefix("sqlite:///"))
            found = connection.execute(query).fetchone()
            connection.close()
        else:
            with psycopg.connect(self.url.replace("+psycopg", "")) as server:
                found = server.execute(query.encode()).fetchone()
        assert found is not None
        return Totals(*map(int, found))


class States(Protocol):
    """A place for databases of one kind."""

    def new(self) -> State:
        """Return a state with an empty database; SQLite creates its file on first use."""

    def copy(self, state: State) -> State:
        """Return another state with the same content."""

    def drop(self, state: State) -> None:
        """Remove a state."""


class SqliteStates:
    """SQLite files, each in the folder of its state."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def new(self) -> State:
        folder = _new_folder(self._folder)
        return _sqlite_state(folder)

    def copy(self, state: State) -> State:
        folder = _new_folder(self._folder)
        shutil.copytree(state.folder, folder, dirs_exist_ok=True)
        return _sqlite_state(folder)

    def drop(self, state: State) -> None:
        shutil.rmtree(state.folder)


class PostgresqlStates:
    """Databases of one PostgreSQL server."""

    def __init__(self, folder: Path, server: Server) -> None:
        self._folder = folder
        self._server = server

    def new(self) -> State:
        return self._create_from("template1", _new_folder(self._folder))

    def copy(self, state: State) -> State:
        folder = _new_folder(self._folder)
        shutil.copytree(state.folder, folder, dirs_exist_ok=True)
        return self._create_from(str(_name_of(state)), folder)

    def drop(self, state: State) -> None:
        shutil.rmtree(state.folder)
        statement = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        with self._server.administer() as connection:
            connection.execute(statement.format(sql.Identifier(_name_of(state))))

    def _create_from(self, template: str, folder: Path) -> State:
        name = f"bench_{secrets.token_hex(6)}"
        statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {} STRATEGY file_copy").format(
            sql.Identifier(name), sql.Identifier(ROLE), sql.Identifier(template)
        )
        with self._server.administer() as connection:
            connection.execute(statement)
            connection.execute("CHECKPOINT")  # else the checkpoint falls into the contender's time
        server = self._server
        url = URL.create(
            "postgresql+psycopg", ROLE, server.password, "127.0.0.1", server.port, name
        )
        return State(url.render_as_string(hide_password=False), folder)


@contextmanager
def states(kind: str, folder: Path, server_folder: Path | None = None) -> Iterator[States]:
    """Open a place for databases of one kind under `folder`; start a server if the kind needs one.

    The server's own files are in `server_folder`, on whose disk commits wait; by default in memory
    if there is room.
    """
    if kind == "sqlite":
        yield SqliteStates(folder)
    else:
        with running_server(server_folder) as server:
            if server_folder:
                _wait_for_the_disk(server)
            yield PostgresqlStates(folder, server)


def _wait_for_the_disk(server: Server) -> None:
    """Make commits durable, which the servers of tests are not."""
    with server.administer() as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            setting = sql.SQL("ALTER SYSTEM SET {} = on").format(sql.Identifier(name))
            connection.execute(setting)
        connection.execute("SELECT pg_reload_conf()")


def _name_of(state: State) -> str:
    return state.url.rpartition("/")[2]


def _sqlite_state(folder: Path) -> State:
    return State(f"sqlite:///{folder}/archive.db", folder)


def _new_folder(parent: Path) -> Path:
    folder = parent / secrets.token_hex(6)
    folder.mkdir()
    return folder

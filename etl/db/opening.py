"""Open an archive with the rights that its use needs, and close it again."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Connection, Engine

from etl.config.settings import DEFAULT_TO_STORE, StoredSettings
from etl.db import database


class Archive:
    """An archive's database, from its opening to its closing.

    Closing the last connection to an SQLite file writes its WAL back: then the file is the
    archive. Each `open_...` raises DatabaseError where the database cannot be used so.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def reading(self) -> AbstractContextManager[Connection]:
        """Give a connection in a transaction that only reads."""
        return database.reading(self.engine)

    def snapshot(self) -> AbstractContextManager[Connection]:
        """Give a connection that reads one state of the archive."""
        return database.snapshot(self.engine)

    def writing(self) -> AbstractContextManager[Connection]:
        """Give a connection in a transaction that commits at the end."""
        return database.writing(self.engine)


@contextmanager
def open_to_read(url: str) -> Iterator[Archive]:
    """Open an archive whose tables are current, without the right to write."""
    with open_as_it_is(url) as archive:
        database.require_archive(archive.engine)
        yield archive


@contextmanager
def open_to_write(url: str) -> Iterator[Archive]:
    """Open an archive whose tables are current."""
    with open_to_migrate(url) as archive:
        database.require_archive(archive.engine)
        yield archive


@contextmanager
def open_to_rebuild(url: str) -> Iterator[Archive]:
    """Open an archive whose derived rows may be incomplete."""
    with open_to_migrate(url) as archive:
        database.require_tables(archive.engine)
        yield archive


@contextmanager
def open_or_create(url: str, settings: StoredSettings = DEFAULT_TO_STORE) -> Iterator[Archive]:
    """Open an archive whose tables are current; create them in a new database."""
    with open_to_migrate(url) as archive:
        database.prepare(archive.engine, settings)
        yield archive


@contextmanager
def open_as_it_is(url: str) -> Iterator[Archive]:
    """Open a database at any revision, or without tables, without the right to write."""
    with _closed(database.connect_to_read(url)) as archive:
        yield archive


@contextmanager
def open_to_migrate(url: str) -> Iterator[Archive]:
    """Open a database at any revision, or without tables."""
    with _closed(database.connect(url)) as archive:
        yield archive


@contextmanager
def _closed(engine: Engine) -> Iterator[Archive]:
    """Close the connections at the end."""
    try:
        yield Archive(engine)
    finally:
        engine.dispose()

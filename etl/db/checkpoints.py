"""Checkpoints of SQLite: the pages in its write-ahead log are written to its file.

Otherwise a commit does that now and then, and waits for the disk meanwhile.
"""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

EVERY_S = 0.5


@contextmanager
def checkpointing(engine: Engine) -> Iterator[None]:
    """Checkpoint an SQLite database beside the commits, by a thread, within the context."""
    if engine.dialect.name != "sqlite":
        yield
        return
    is_over = threading.Event()
    thread = threading.Thread(target=_checkpoint_until, args=[engine, is_over], name="checkpoints")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _checkpoint_until(engine: Engine, is_over: threading.Event) -> None:
    try:
        while not is_over.wait(EVERY_S):
            with (
                closing(engine.raw_connection()) as connection,
                closing(connection.cursor()) as cursor,
            ):
                cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
    except (engine.dialect.loaded_dbapi.Error, SQLAlchemyError):
        return  # such as a full disk: the next commit meets it, too, and says so

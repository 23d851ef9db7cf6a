"""Tasks on batches of an archive, done in turn or side by side; results are in order.

The batches are the same for any number of processes, so the output is the same, byte for byte.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol, TypeVar

from sqlalchemy import Engine

from etl.archive.differences import BatchFindings
from etl.runtime import relax_garbage_collection

T = TypeVar("T")
Task = Callable[[Engine, T], BatchFindings]

AHEAD = 4
"""Batches per process that are given out before the first result is taken: memory is bounded."""


class Spread(Protocol):
    """A way of doing a task for each item; yields the results in the order of the items."""

    def __call__(self, task: Task[T], items: Iterable[T]) -> Iterator[BatchFindings]:
        """Do the task."""


def in_turn(engine: Engine) -> Spread:
    """Return the way to do one task after the other in this process."""

    def spread(task: Task[T], items: Iterable[T]) -> Iterator[BatchFindings]:
        return (task(engine, item) for item in items)

    return spread


def in_processes(engine: Engine, number: int, connect: Callable[[str], Engine]) -> Spread:
    """Return the way to do tasks by a number of processes, each with its own connection.

    `connect` opens the database there. Tasks and items are pickled.
    """
    url = engine.url.render_as_string(hide_password=False)

    def spread(task: Task[T], items: Iterable[T]) -> Iterator[BatchFindings]:
        # Loaded here: an ingest loads this module, too.
        from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415

        context = multiprocessing.get_context("spawn")
        begin = partial(_begin, connect, url)
        with ProcessPoolExecutor(number, context, initializer=begin) as pool:

            def submit(item: T) -> Pending:
                return pool.submit(_do, task, item)

            yield from take_in_order(submit, items, number)

    return spread


class Pending(Protocol):
    """A task that was given out."""

    def result(self) -> BatchFindings:
        """Wait for the result, and return it."""


def take_in_order(
    submit: Callable[[T], Pending], items: Iterable[T], number: int
) -> Iterator[BatchFindings]:
    """Give out a task for each item to `number` processes; yield the results in order."""
    waiting: deque[Pending] = deque()
    for item in items:
        waiting.append(submit(item))
        if len(waiting) >= AHEAD * number:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_engines: list[Engine] = []
"""The engine of a process that was started by `in_processes`."""


def _begin(connect: Callable[[str], Engine], url: str) -> None:
    """Open the database in a new process, which ends with its parent and leaves signals to it."""
    relax_garbage_collection()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _engines.append(connect(url))


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _do(task: Task[T], item: T) -> BatchFindings:
    return task(_engines[0], item)


def choose_spread(engine: Engine, number: int, connect: Callable[[str], Engine]) -> Spread:
    """Return the way to do tasks by `number` processes; one works without a further process."""
    return in_turn(engine) if number == 1 else in_processes(engine, number, connect)

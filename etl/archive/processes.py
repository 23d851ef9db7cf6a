"""Tasks on an archive, done in turn or side by side; results are in order.

The tasks are the same for any number of processes, so the output is the same, byte for byte.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Protocol

from sqlalchemy import Engine

from etl.archive.differences import BatchFindings
from etl.runtime import relax_garbage_collection

Task = Callable[[Engine], BatchFindings]
Spread = Callable[[Iterable[Task]], Iterator[BatchFindings]]
"""A way of doing tasks; yields the results in the order of the tasks."""

AHEAD = 4
"""Tasks per process that are given out before the first result is taken: memory is bounded."""


def in_turn(engine: Engine) -> Spread:
    """Return the way to do one task after the other in this process."""

    def spread(tasks: Iterable[Task]) -> Iterator[BatchFindings]:
        return (task(engine) for task in tasks)

    return spread


@contextmanager
def in_processes(engine: Engine, number: int, connect: Callable[[str], Engine]) -> Iterator[Spread]:
    """Yield the way to do tasks by a number of processes, each with its own connection.

    `connect` opens the database there. Tasks are pickled.
    """
    # Loaded here: an ingest loads this module, too.
    import multiprocessing  # noqa: PLC0415
    from concurrent.futures import ProcessPoolExecutor  # noqa: PLC0415

    url = engine.url.render_as_string(hide_password=False)
    context = multiprocessing.get_context("spawn")
    begin = partial(_begin, connect, url)
    with ProcessPoolExecutor(number, context, initializer=begin) as pool:

        def submit(task: Task) -> Pending:
            return pool.submit(_do, task)

        yield partial(take_in_order, submit, number)


class Pending(Protocol):
    """A task that was given out."""

    def result(self) -> BatchFindings:
        """Wait for the result, and return it."""


def take_in_order(
    submit: Callable[[Task], Pending], number: int, tasks: Iterable[Task]
) -> Iterator[BatchFindings]:
    """Give out tasks to `number` processes; yield the results in order."""
    waiting: deque[Pending] = deque()
    for task in tasks:
        waiting.append(submit(task))
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
    import multiprocessing  # noqa: PLC0415  see `in_processes`

    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _do(task: Task) -> BatchFindings:
    return task(_engines[0])


def choose_spread(
    engine: Engine, number: int, connect: Callable[[str], Engine]
) -> AbstractContextManager[Spread]:
    """Return the way to do tasks by `number` processes; one works without a further process."""
    if number == 1:
        return nullcontext(in_turn(engine))
    return in_processes(engine, number, connect)

"""The work of a pass, or of `verify` and `replay`, on a Dask cluster.

Nothing else imports `distributed`. Settings and keys are in the environment of each Dask worker,
and never sent. In a pass a task is one worker's whole share, as a process of its own beside the
Dask worker; in `verify` and `replay` it is a batch of runs. Dask repeats the tasks of a worker that
dies; work that is done already is not found again.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from distributed import Client, Event, Future, KilledWorker
from sqlalchemy import Engine

from etl.archive.differences import BatchFindings
from etl.archive.processes import Spread, Task, take_in_order
from etl.config import loading
from etl.db.database import connect_to_read, reading, shown_url
from etl.errors import ArchiverError, ConfigError, DatabaseError, UsageError
from etl.ingest import pass_workers
from etl.ingest.pass_workers import PassMark
from etl.ingest.runners import WorkerEnd

Connect = Callable[[str], Engine]

MISTAKES = {UsageError.exit_code, DatabaseError.exit_code}
"""The exit codes of a worker that did not begin; all others are told by the counts of the pass."""
ANSWER_S = 10
POLL_S = 0.5


class DaskRunner:
    """Places work on a Dask cluster."""

    def __init__(self, address: str) -> None:
        """Connect. Raises UsageError: no scheduler answers at `address`."""
        try:
            self._client = Client(address, timeout=ANSWER_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--dask {address}: no Dask scheduler answers ({type(error).__name__})",
                "give an address such as tcp://HOST:8786",
            ) from None
        if not self.count_workers():
            raise UsageError(
                f"--dask {address}: no Dask worker is connected",
                f"start one: dask worker {address}",
            )
        self._stop = f"result-archiver-stop-{uuid.uuid4()}"
        self._futures: list[Future[WorkerEnd]] = []

    def count_workers(self) -> int:
        """Return the number of the cluster's workers."""
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    def start(self, mark: PassMark) -> None:
        """Start one more worker."""
        key = f"result-archiver-pass-{mark.pass_id}-{uuid.uuid4()}"
        future = self._client.submit(work_in_process, mark, self._stop, key=key, pure=False)
        self._futures.append(future)

    def finished(self) -> list[WorkerEnd]:
        """Return the workers that have ended since the last call."""
        ended = [future for future in self._futures if future.done()]
        self._futures = [each for each in self._futures if each not in ended]
        return [_read_end(future) for future in ended]

    def stop(self) -> None:
        """Ask all workers to end after the runs in hand; those that have not begun never do."""
        Event(self._stop, client=self._client).set()
        begun = {key for keys in self._client.processing().values() for key in keys}
        for future in self._futures:
            if future.key not in begun and not future.done():
                future.cancel()

    def spread(self, connect: Connect, mark: PassMark | None, number: int | None) -> Spread:
        """Return the way to do tasks on the archive with a mark, `number` or more at once."""

        def submit(task: Task) -> _ClusterBatch:
            key = f"result-archiver-batch-{uuid.uuid4()}"
            future = self._client.submit(do_on_archive, connect, mark, task, key=key, pure=False)
            return _ClusterBatch(future)

        return partial(take_in_order, submit, number or max(1, self.count_workers()))


class _ClusterBatch(NamedTuple):
    future: "Future[BatchFindings]"

    def result(self) -> BatchFindings:
        """Wait for the result. Raises ArchiverError: it cannot be had."""
        try:
            return self.future.result()
        except (KilledWorker, CancelledError) as error:
            raise ArchiverError(
                f"the Dask cluster gave a batch up ({type(error).__name__})",
                "see the logs of its workers, and run the command again",
            ) from None


def _open_archive(connect: Connect, mark: PassMark | None) -> Engine:
    """Connect a Dask worker to the archive that its environment names.

    Raises:
        ConfigError: it is another one than the client's.
    """
    engine = connect(loading.load(None).database.url)
    with reading(engine) as connection:
        is_same = mark is None or pass_workers.has_mark(connection, mark)
    if not is_same:
        raise ConfigError(
            f"the Dask worker on {socket.gethostname()} has another archive, {shown_url(engine)}",
            "give the workers the database.url of the command",
        )
    return engine


_open_once = cache(_open_archive)


def do_on_archive(connect: Connect, mark: PassMark | None, task: Task) -> BatchFindings:
    """Do a task on the archive. Called by a Dask worker."""
    return task(_open_once(connect, mark))


def _read_end(future: "Future[WorkerEnd]") -> WorkerEnd:
    """Return how a task ended. Leases of a worker that Dask has given up run out."""
    if future.status == "finished":
        return future.result()
    error = future.exception() if future.status == "error" else None
    exit_code = error.exit_code if isinstance(error, ArchiverError) else 1
    return WorkerEnd(str(future.key), exit_code, str(error or ""))


def work_in_process(mark: PassMark, stop: str) -> WorkerEnd:
    """Do a worker's share of a pass by a process. Called by a Dask worker.

    Raises ConfigError: the Dask worker has another archive.
    """
    _open_archive(connect_to_read, mark).dispose()
    modules = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
    with subprocess.Popen(  # noqa: S603  no argument is from outside
        [sys.executable, "-P", "-m", "etl", "work", "--pass", str(mark.pass_id)],
        env=os.environ | {"PYTHONPATH": modules},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        lines = _Lines(process)
        is_over = Event(stop)
        while process.poll() is None:
            if is_over.wait(POLL_S):
                process.send_signal(signal.SIGTERM)
                process.wait()
        message = lines.last() if process.returncode in MISTAKES else ""
        name = f"{socket.gethostname()}:{process.pid}:"
        return WorkerEnd(name, process.returncode, message)


class _Lines:
    """Passes the lines of a process on to the log of the Dask worker, and keeps the last one."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._last = ""
        self._thread = threading.Thread(target=self._copy, args=[process.stderr], daemon=True)
        self._thread.start()

    def _copy(self, lines: Iterable[str]) -> None:
        for line in lines:
            sys.stderr.write(line)
            self._last = line.strip() or self._last

    def last(self) -> str:
        """Wait for the last line, and return it."""
        self._thread.join()
        return self._last

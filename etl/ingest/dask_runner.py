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
import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from distributed import Client, Event, Future, KilledWorker
from sqlalchemy import Engine

from etl.archive.differences import BatchFindings
from etl.archive.processes import Spread, Task, take_in_order
from etl.config import loading
from etl.errors import ArchiverError, UsageError
from etl.ingest.runners import WorkerEnd

Connect = Callable[[str], Engine]

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
        self._stop = f"result-archiver-stop-{uuid.uuid4()}"
        self._futures: list[Future[tuple[str, int]]] = []

    def count_workers(self) -> int:
        """Return the number of the cluster's workers."""
        return len(self._client.scheduler_info(n_workers=-1)["workers"])

    def start(self, pass_id: int) -> None:
        """Start one more worker."""
        key = f"result-archiver-pass-{pass_id}-{uuid.uuid4()}"
        future = self._client.submit(work_in_process, pass_id, self._stop, key=key, pure=False)
        self._futures.append(future)

    def finished(self) -> list[WorkerEnd]:
        """Return the workers that have ended since the last call."""
        ended = [future for future in self._futures if future.done()]
        self._futures = [each for each in self._futures if each not in ended]
        return [_read_end(future) for future in ended]

    def stop(self) -> None:
        """Ask all workers to end after the runs in hand."""
        Event(self._stop, client=self._client).set()

    def spread(self, connect: Connect, number: int | None) -> Spread:
        """Return the way to do tasks on the archive, `number` or more at once."""

        def submit(task: Task) -> _ClusterBatch:
            key = f"result-archiver-batch-{uuid.uuid4()}"
            future = self._client.submit(do_on_archive, connect, task, key=key, pure=False)
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


@cache
def _open_archive(connect: Connect) -> Engine:
    """Connect a Dask worker to the archive that its environment names."""
    return connect(loading.load(None).database.url)


def do_on_archive(connect: Connect, task: Task) -> BatchFindings:
    """Do a task on the archive. Called by a Dask worker."""
    return task(_open_archive(connect))


def _read_end(future: "Future[tuple[str, int]]") -> WorkerEnd:
    """Return how a task ended. Leases of a worker that Dask has given up run out."""
    if future.status == "finished":
        return WorkerEnd(*future.result())
    return WorkerEnd(str(future.key), 1)


def work_in_process(pass_id: int, stop: str) -> tuple[str, int]:
    """Do a worker's share of a pass by a process; return how its name begins, and its exit code.

    Called by a Dask worker.
    """
    modules = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
    with subprocess.Popen(  # noqa: S603  no argument is from outside
        [sys.executable, "-P", "-m", "etl", "work", "--pass", str(pass_id)],
        env=os.environ | {"PYTHONPATH": modules},
        stdin=subprocess.DEVNULL,
    ) as process:
        is_over = Event(stop)
        while process.poll() is None:
            if is_over.wait(POLL_S):
                process.send_signal(signal.SIGTERM)
                process.wait()
        return f"{socket.gethostname()}:{process.pid}:", process.returncode

"""The workers of a pass that one command starts: it waits for them, and replaces those that die.

A runner only places processes. All that they have to know is in the database: a worker that is
started twice finds nothing to do.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from etl.db.database import reading, writing
from etl.db.schema import to_milliseconds
from etl.errors import UsageError
from etl.fetch.permits import Halt
from etl.ingest import pass_workers
from etl.ingest.begin import OpenPass
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.held_runs import HeldRuns
from etl.ingest.pass_workers import PassMark, PassWorker
from etl.ingest.patience import Patience
from etl.ingest.tally import Tally
from etl.ledger import leases, source_limits
from etl.telemetry.log import get_logger

log = get_logger()

POLL_S = 0.2


class WorkerEnd(NamedTuple):
    """How a worker ended: how its name begins, and its exit code, below 0 if it was killed.

    `message` is its last line, where nobody else sees it.
    """

    name: str
    exit_code: int
    message: str = ""


class Runner(Protocol):
    """Places the workers of a pass."""

    def start(self, mark: PassMark) -> None:
        """Start one more worker for a pass."""

    def finished(self) -> Sequence[WorkerEnd]:
        """Return the workers that have ended since the last call."""

    def stop(self) -> None:
        """Ask all workers to end after the runs in hand."""


class ProcessRunner:
    """Starts each worker as a process of this machine: `work --pass ID`."""

    def __init__(self, config_file: Path | None) -> None:
        self._options = ["--config", str(config_file)] if config_file else []
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, mark: PassMark) -> None:
        """Start one more worker. Raises UsageError: the system has no room for it."""
        command = [sys.executable, "-P", "-m", "etl", *self._options]
        modules = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
        try:
            process = subprocess.Popen(  # noqa: S603  no argument is from outside
                [*command, "work", "--quiet", "--as-part", "--pass", str(mark.pass_id)],
                env=os.environ | {"PYTHONPATH": modules},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us; `stop` passes it on
            )
        except OSError as error:
            raise UsageError(
                f"a worker cannot be started: {error.strerror}", "start fewer of them"
            ) from None
        self._processes.append(process)

    def finished(self) -> list[WorkerEnd]:
        """Return the workers that have ended since the last call."""
        ended = [process for process in self._processes if process.poll() is not None]
        self._processes = [each for each in self._processes if each not in ended]
        host = socket.gethostname()
        return [WorkerEnd(f"{host}:{each.pid}:", each.returncode) for each in ended]

    def stop(self) -> None:
        """Ask all workers to end after the runs in hand."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)


class Workers(NamedTuple):
    """The number of workers of a pass, and their runner."""

    number: int
    runner: Runner


def work_together(
    ingest: IngestContext, opened: OpenPass, hooks: PassHooks, workers: Workers
) -> None:
    """Let workers do the work of a pass; `await_others` sums up their counts.

    The runs of a worker that died are released at once, and another worker takes its place, up to
    the number of workers in all. If runs stay due nevertheless, the exit code is 1.

    Raises:
        DatabaseError: the database went away.
    """
    patience, pass_id = Patience(ingest.patience_s), opened.tally.pass_id or 0
    due = sum(HeldRuns.of_pass(ingest, opened.lease.since).count_due().values())
    at_work, spare, lost = (workers.number if due else 0), workers.number, 0
    codes, mark = [0], PassMark(pass_id, to_milliseconds(opened.lease.since))
    for _ in range(at_work):
        workers.runner.start(mark)
    with hooks.interrupt.calling(workers.runner.stop):
        while at_work:
            for end in workers.runner.finished():
                at_work -= 1
                codes.append(max(end.exit_code, 0))
                if end.message:
                    log.error("a worker failed", reason=end.message)
                released = patience.run(partial(_release, ingest, pass_id, end.name))
                if released and spare and hooks.interrupt.signal is None:
                    log.warning("a worker died; another one takes its place", runs=released)
                    workers.runner.start(mark)
                    at_work, spare = at_work + 1, spare - 1
                else:
                    lost += released
            hooks.progress(patience.run(partial(_sum, ingest, pass_id)).done, due)
            time.sleep(POLL_S)
    opened.tally.exit_code = pass_workers.worst_of(codes)
    if lost and hooks.interrupt.signal is None:
        log.error("runs of workers that died stay due", runs=lost)
        opened.tally.exit_code = opened.tally.exit_code or 1


def await_others(ingest: IngestContext, opened: OpenPass, hooks: PassHooks) -> None:
    """Wait for all workers of a pass, also those that have joined it, and sum up their counts.

    The runs of those that died are released: they stay due, and the exit code is 1.
    """
    patience, pass_id = Patience(ingest.patience_s), opened.tally.pass_id or 0
    found = patience.run(partial(_read_workers, ingest, pass_id))
    if len(found) == 1 and found[0].has_ended and opened.tally.requests:
        return  # it was this process
    while hooks.interrupt.signal is None and any(each.is_alive for each in found):
        time.sleep(POLL_S)
        found = patience.run(partial(_read_workers, ingest, pass_id))
    lost = sum(
        patience.run(partial(_release, ingest, pass_id, each.name))
        for each in found
        if not each.has_ended and not each.is_alive
    )
    exit_code = opened.tally.exit_code
    opened.tally.copy(patience.run(partial(_sum, ingest, pass_id)))
    opened.tally.exit_code = pass_workers.worst_of([exit_code, opened.tally.exit_code])
    if lost:
        log.error("runs of workers that died stay due", runs=lost)
        opened.tally.exit_code = opened.tally.exit_code or 1
    if hooks.interrupt.signal is not None:
        opened.tally.halt, opened.tally.halt_reason = Halt.INTERRUPTED, hooks.interrupt.name


def _read_workers(ingest: IngestContext, pass_id: int) -> list[PassWorker]:
    with reading(ingest.engine) as connection:
        return pass_workers.read_workers(connection, pass_id)


def _release(ingest: IngestContext, pass_id: int, prefix: str) -> int:
    """Release the runs and permits of an ended worker, and return the number of runs."""
    released = 0
    with writing(ingest.engine) as connection:
        for name in pass_workers.find_workers(connection, pass_id, prefix):
            source_limits.leave(connection, name)
            released += leases.release(connection, name)
    return released


def _sum(ingest: IngestContext, pass_id: int) -> Tally:
    with reading(ingest.engine) as connection:
        return pass_workers.sum_pass(connection, pass_id)

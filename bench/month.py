"""Simulate a month of a company's runs in minutes, with the real pass, database and HTTP.

The sandbox's clock is the only clock. It jumps from one due time to the next, so no wait is real.
`make month` prints the result.
"""

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import select

from etl.answers.compression import decompress
from etl.config.settings import Api, Config, Database, Source
from etl.db import database
from etl.db.schema import payloads, runs, tracked_runs
from etl.fetch.door import in_threads
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.interrupt import Interrupt
from etl.ingest.one_pass import PassOrder, run_pass
from etl.ledger import standings, tracking
from etl.ledger.tracking import Entry
from etl.sandbox.api import READ_KEY
from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import World
from etl.sandbox.world_clock import Clock
from etl.secrets.keys import DEFAULT_SOURCE

END = datetime(2026, 11, 2, tzinfo=UTC)
STEP = timedelta(minutes=2)
"""Time between passes of the simulated service while runs are due."""


@dataclass
class Month:
    """The result of the simulation; the lists name the runs that broke a promise."""

    runs: int = 0
    changes: int = 0
    passes: int = 0
    requests: int = 0
    late: list[str] = field(default_factory=list)
    asked_when_settled: list[str] = field(default_factory=list)
    wrong_content: list[str] = field(default_factory=list)
    not_settled: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def broken(self) -> list[str]:
        """All runs that broke a promise."""
        return self.late + self.asked_when_settled + self.wrong_content + self.not_settled


def simulate(days: int, world_runs: int, url: str) -> Month:
    """Archive the last `days` of a world, until all runs are settled, in the database at `url`."""
    began = time.monotonic()
    world = World(end=END, runs=world_runs)
    start = END - timedelta(days=days)
    with ExitStack() as stack:
        sandbox = stack.enter_context(running(world, Clock(start, speed=0)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engine = database.connect(url)
        stack.callback(engine.dispose)
        # In threads: a child process has a clock of its own.
        settings = _settings(sandbox, folder, url)
        ingest = IngestContext(engine, settings, sandbox.clock.now, in_threads)
        month = _Simulation(ingest, sandbox).follow(start)
    month.elapsed_s = time.monotonic() - began
    return month


def _settings(sandbox: Sandbox, folder: Path, url: str) -> Config:
    key_file = folder / "key"
    key_file.write_text(READ_KEY)
    return Config(
        sources={DEFAULT_SOURCE: Source(sandbox.url, key_file=str(key_file))},
        database=Database(url),
        api=Api(sandbox.url, max_requests_per_second=0),
    )


class _Simulation:
    """The archive, the sandbox, and the due time that the ledger announced for each run."""

    def __init__(self, ingest: IngestContext, sandbox: Sandbox) -> None:
        self._ingest = ingest
        self._engine = ingest.engine
        self._sandbox = sandbox
        self._announced: dict[str, datetime | None] = {}
        self._month = Month()

    def follow(self, start: datetime) -> Month:
        """Track each run at its start, and do a pass whenever one is due, until no run is."""
        database.prepare(self._engine)
        world = self._sandbox.world
        followed = [run for run in world.runs(END) if run.started_at >= start]
        to_start = sorted(((run.started_at, run.run_id) for run in followed), reverse=True)
        while moment := self._next_moment(to_start):
            now = max(moment, self._ingest.now() + STEP)
            self._sandbox.clock.set(now=now)
            started = []
            while to_start and to_start[-1][0] <= now:
                started.append(to_start.pop()[1])
            self._track(started)
            self._pass()
        self._month.runs = len(followed)
        self._month.changes = sum(len(world.changes(run.run_id)) for run in followed)
        self._month.requests = self._sandbox.requests.total()
        self._compare([run.run_id for run in followed])
        return self._month

    def _next_moment(self, to_start: list[tuple[datetime, str]]) -> datetime | None:
        with database.reading(self._engine) as connection:
            found = standings.standings(connection, self._ingest.now())
        starts = [to_start[-1][0]] if to_start else []
        return min([*starts, *filter(None, [found.oldest_due_at, found.next_due_at])], default=None)

    def _track(self, run_ids: list[str]) -> None:
        if run_ids:
            entries = [Entry(run_id, None, None, {}) for run_id in run_ids]
            with database.writing(self._engine) as connection:
                tracking.track(connection, entries, self._ingest.now())
            self._announced.update(dict.fromkeys(run_ids, self._ingest.now()))

    def _pass(self) -> None:
        """Do a pass, and compare each fetch with the due time that was announced before."""
        before = self._sandbox.requests.copy()
        hooks = PassHooks(lambda _done, _total: None, Interrupt())
        run_pass(self._ingest, PassOrder("month"), hooks)
        self._month.passes += 1
        fetched = sorted(self._sandbox.requests - before)
        for run_id in fetched:
            announced = self._announced[run_id]
            if announced is None:
                self._month.asked_when_settled.append(run_id)
            elif self._ingest.now() - announced > 2 * STEP:
                self._month.late.append(run_id)
        columns = select(tracked_runs.c.run_id, tracked_runs.c.due_at)
        with database.reading(self._engine) as connection:
            rows = connection.execute(columns.where(tracked_runs.c.run_id.in_(fetched)))
            self._announced.update(rows.all())

    def _compare(self, run_ids: list[str]) -> None:
        """Compare the newest payload of each run with the sandbox's answer now."""
        newest = (
            select(payloads.c.run_id, payloads.c.body, payloads.c.encoding)
            .join(runs, runs.c.run_id == payloads.c.run_id)
            .where(payloads.c.revision == runs.c.revision)
        )
        with database.reading(self._engine) as connection:
            kept = {
                row.run_id: decompress(row.body, row.encoding) for row in connection.execute(newest)
            }
            settled = {
                run_id
                for run_id, state in standings.states(connection, None).items()
                if state == "settled"
            }
        now = self._ingest.now()
        for run_id in run_ids:
            if kept.get(run_id) != self._sandbox.world.answer(run_id, now):
                self._month.wrong_content.append(run_id)
            if run_id not in settled:
                self._month.not_settled.append(run_id)


def main() -> int:
    """Simulate, print the result, and return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument(
        "--runs", type=int, default=4200, help="runs of the world, over four months"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        month = simulate(given.days, given.runs, f"sqlite:///{folder}/month.db")
    print(f"{month.runs} runs, {month.changes} changes of content, {month.passes} passes")
    print(
        f"{month.requests} requests; ideal, one for each change: {month.changes}"
        f" ({month.requests / month.changes:.2f} times as many)"
    )
    print(f"fetched later than announced: {len(month.late)}")
    print(f"fetched when settled: {len(month.asked_when_settled)}")
    print(f"content that differs from the API's: {len(month.wrong_content)}")
    print(f"not settled at the end: {len(month.not_settled)}")
    print(f"simulated in {month.elapsed_s:.0f} s")
    return 1 if month.broken else 0


if __name__ == "__main__":
    sys.exit(main())

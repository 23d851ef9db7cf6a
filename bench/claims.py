"""Time tracking and claims, on both databases, with up to a million queued runs."""

import argparse
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from tempfile import TemporaryDirectory
from typing import NamedTuple

from sqlalchemy import Engine

from etl.db import database
from etl.ledger import leases, tracking
from etl.ledger.leases import Lease
from etl.ledger.tracking import Entry
from tests.support.postgres import roomy_folder, running_server

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CLAIMED_RUNS = 1000
ENTRIES_AT_ONCE = 500
SIZES = (10_000, 100_000, 1_000_000)


class Timing(NamedTuple):
    """The time to track `queued` runs in a new ledger, and to claim a thousand of them."""

    database: str
    queued: int
    track_s: float
    claim_s: float


def main() -> None:
    """Print a line for each database and size."""
    parser = argparse.ArgumentParser(prog="python -m bench.claims", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="queued runs")
    sizes = parser.parse_args().sizes
    with TemporaryDirectory(dir=roomy_folder()) as folder, running_server() as server:
        for size in sizes:
            show(measure(f"sqlite:///{folder}/{size}.db", size))
            with server.database() as url:
                show(measure(url, size))


def show(timing: Timing) -> None:
    print(
        f"{timing.database:10} {timing.queued:>9,} queued:"
        f" tracked in {timing.track_s:.1f} s, {CLAIMED_RUNS} claimed in {timing.claim_s:.3f} s"
    )


def measure(url: str, size: int) -> Timing:
    """Track `size` runs in a new database, then claim some of them; the median of five claims."""
    engine = database.connect(url)
    database.prepare(engine)
    track_s = timed(partial(track, engine, size))
    claims_s = sorted(timed(partial(claim, engine, f"worker {turn}")) for turn in range(5))
    engine.dispose()
    return Timing(engine.dialect.name, size, track_s, claims_s[2])


def track(engine: Engine, size: int) -> None:
    for entries in batches(size):
        with database.writing(engine) as connection:
            tracking.track(connection, entries, NOW)


def batches(size: int) -> Iterator[list[Entry]]:
    for start in range(0, size, ENTRIES_AT_ONCE):
        end = min(start + ENTRIES_AT_ONCE, size)
        yield [Entry(f"run-{number:09}", None, None, {}) for number in range(start, end)]


def claim(engine: Engine, owner: str) -> None:
    lease = Lease(owner, NOW, NOW + timedelta(minutes=10))
    with database.writing(engine) as connection:
        claims = leases.claim(connection, lease, leases.due(NOW, NOW), CLAIMED_RUNS)
    assert len(claims) == CLAIMED_RUNS


def timed(task: Callable[[], None]) -> float:
    began = time.monotonic()
    task()
    return time.monotonic() - began


if __name__ == "__main__":
    main()

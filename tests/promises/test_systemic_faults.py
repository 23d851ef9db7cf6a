"""Faults of the world give no run up: after any schedule of them, each run ends as without them.

A schedule is a row of passes, each in a world of its own: a login page instead of the API, a proxy,
an API that is down or busy, statuses that say nothing, broken connections, a key that is refused, a
database that refuses a right. Then the world is well again, and passes go on by themselves.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, select, text

from etl.config.settings import Api, Config, Database, Polling, Source
from etl.db import database
from etl.db.schema import pass_workers, runs, source_limits, tests, tracked_runs, workers
from etl.errors import ArchiverError
from etl.fetch.door import in_threads
from etl.fetch.rate_limit import Pauses
from etl.ingest.context import IngestContext, PassHooks
from etl.ingest.interrupt import Interrupt
from etl.ingest.one_pass import PassOrder, run_pass
from etl.ledger import tracking
from etl.ledger.tracking import Entry
from etl.secrets.keys import DEFAULT_SOURCE
from tests.support.dump import Row
from tests.support.fake_api import Answer, FakeApi, result

NOW = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
PAGE = b"<!DOCTYPE html><title>Maintenance</title>"
World = Callable[[str, random.Random], Answer]
"""The answer to a run in one pass."""

SCALES = [
    pytest.param(range(40), id="short"),
    pytest.param(range(40, 1040), id="full", marks=[pytest.mark.chaos, pytest.mark.timeout(3600)]),
]


def well(run_id: str, _dice: random.Random) -> Answer:
    """Answer as the API does: by its number a run passed, failed, or is known to nobody."""
    number = int(run_id.removeprefix("run-"))
    if number % 7 == 6:
        return Answer(b'{"error": "no such run"}', 404)
    return result(status=["passed", "failed", "aborted"][number % 3], name=f"Plan {number % 2}")


def always(answer: Answer) -> World:
    return lambda _run_id, _dice: answer


def now_and_then(fault: World) -> World:
    """Begin and end within a pass."""
    return lambda run_id, dice: (fault if dice.random() < 0.6 else well)(run_id, dice)


def any_status(*statuses: int) -> World:
    return lambda _run_id, dice: Answer(PAGE, dice.choice(statuses))


FAULTS: dict[str, World] = {
    "login page": always(Answer(PAGE)),
    "other JSON": always(Answer(b'{"status": "maintenance"}')),
    "empty": always(Answer(b"")),
    "down": any_status(500, 502, 503, 504),
    "busy": always(Answer(b"", 429, {"Retry-After": "0"})),
    "no news": any_status(202, 204, 304, 425),
    "proxy": any_status(407, 302, 400, 451),
    "key refused": always(Answer(b"", 401)),
    "in the middle: page": now_and_then(always(Answer(PAGE))),
    "in the middle: down": now_and_then(any_status(500, 503)),
    "in the middle: statuses": now_and_then(any_status(202, 204, 400, 407, 425, 451)),
}


class ScriptedApi:
    """Answers by the world of the moment."""

    def __init__(self, api: FakeApi, dice: random.Random) -> None:
        self.world: World = well
        self._dice = dice
        api.next_answer = self.answer  # type: ignore[method-assign]  # the fake's own script

    def answer(self, run_id: str) -> Answer:
        return self.world(run_id, self._dice)


def a_context(engine: Engine, api: FakeApi, folder: Path, now: list[datetime]) -> IngestContext:
    key_file = folder / "key"
    key_file.write_text("a key")
    config = Config(
        sources={DEFAULT_SOURCE: Source(api.url, key_file=str(key_file))},
        database=Database(str(engine.url)),
        api=Api(api.url, connections=3, max_requests_per_second=0, attempts=2),
        polling=Polling(max_attempts=3, settle_after=timedelta(seconds=1)),
    )
    return IngestContext(engine, config, lambda: now[0], in_threads, Pauses(0, 0), patience_s=0.1)


def do_pass(context: IngestContext) -> int:
    try:
        hooks = PassHooks(lambda _done, _due: None, Interrupt())
        return run_pass(context, PassOrder("test"), hooks).exit_code
    except ArchiverError as error:
        return error.exit_code


@contextmanager
def without_right(engine: Engine, dice: random.Random) -> Iterator[None]:
    """Take a right away for a pass; SQLite has none, there a table is missing."""
    if engine.dialect.name == "postgresql":
        table = dice.choice(["payloads", "revisions", "rejects"])
        take, give = (f"{verb} INSERT ON {table} {who}" for verb, who in REVOKED)
    else:
        take, give = "ALTER TABLE payloads RENAME TO away", "ALTER TABLE away RENAME TO payloads"
    execute(engine, take)
    try:
        yield
    finally:
        execute(engine, give)


REVOKED = [("REVOKE", "FROM CURRENT_USER"), ("GRANT", "TO CURRENT_USER")]


def execute(engine: Engine, statement: str) -> None:
    with database.writing(engine) as connection:
        connection.execute(text(statement))


def empty(engine: Engine) -> None:
    """Delete the runs, with all rows that refer to them, and the passes."""
    with database.writing(engine) as connection:
        connection.execute(text("DELETE FROM health"))
        connection.execute(text("DELETE FROM tracked_runs"))
        connection.execute(text("DELETE FROM ingests"))
        for table in (source_limits, workers, pass_workers):
            connection.execute(delete(table))


def content(engine: Engine) -> dict[str, list[Row]]:
    """Return the runs, their tests, and how the ledger ends: without times and attempts."""
    queries = {
        "runs": select(runs.c.run_id, runs.c.status, runs.c.content_hash, runs.c.revision),
        "tests": select(tests.c.run_id, tests.c.position, tests.c.status),
        "ledger": select(tracked_runs.c.run_id, tracked_runs.c.state, tracked_runs.c.reason),
    }
    with database.reading(engine) as connection:
        return {
            name: sorted(map(tuple, connection.execute(query).all()))  # type: ignore[misc]  # rows
            for name, query in queries.items()
        }


def play(engine: Engine, api: FakeApi, folder: Path, seed: int) -> None:
    """Play one schedule, and hold what it leaves against a world without faults."""
    dice = random.Random(seed)
    scripted, now = ScriptedApi(api, dice), [NOW]
    context = a_context(engine, api, folder, now)
    run_ids = [f"run-{number}" for number in range(dice.choice([1, 2, 4, 9, 20]))]
    with database.writing(engine) as connection:
        tracking.track(connection, [Entry(run_id, None, None, {}) for run_id in run_ids], NOW)
    schedule = [dice.choice([*FAULTS, "well", "right"]) for _ in range(dice.randrange(1, 16))]
    for name in schedule:
        scripted.world = FAULTS.get(name, well)
        if name == "right":
            with without_right(engine, dice):
                do_pass(context)
        else:
            do_pass(context)
        now[0] += timedelta(hours=dice.choice([0, 1, 7]))
    scripted.world = well
    code = 1
    for _ in range(4):
        now[0] += timedelta(hours=7)
        code = do_pass(context)
    assert code == 0, (seed, schedule)
    found = content(engine)
    ledger = {run_id: (state, reason) for run_id, state, reason in found["ledger"]}
    for run_id in run_ids:
        is_known = well(run_id, dice).status == 200
        wanted = ("settled", None) if is_known else ("failed", "not_found")
        assert ledger[run_id] == wanted, (seed, run_id, schedule)
    empty(engine)
    with database.writing(engine) as connection:
        tracking.track(connection, [Entry(run_id, None, None, {}) for run_id in run_ids], NOW)
    for _ in range(2):
        now[0] += timedelta(hours=7)
        do_pass(context)
    assert content(engine) == found, (seed, schedule)
    empty(engine)


@pytest.mark.parametrize("seeds", SCALES)
def test_no_schedule_of_systemic_faults_gives_a_run_up(
    engine: Engine, api: FakeApi, tmp_path: Path, seeds: range
) -> None:
    for seed in seeds:
        play(engine, api, tmp_path, seed)

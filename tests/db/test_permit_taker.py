"""The moments of permits, where the database's disk is slow."""

import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
from sqlalchemy import Connection, Engine, event, insert

from etl.clock import now
from etl.db.database import connect, prepare, writing
from etl.db.schema import ingests
from etl.fetch.permits import PermitAsk, Permits
from etl.fetch.rate_limit import RequestLimits
from etl.ingest.patience import Patience
from etl.ingest.permit_taker import PermitTaker
from etl.ledger.source_limits import Worker, join

COMMIT_S = 0.4
LIMITS = RequestLimits(8, 50, 3, 60)
ASK = PermitAsk(
    "default",
    room=8,
    probes=False,
    connections=0,
    in_flight=0,
    sent=0,
    answered_at=0,
    asked_until=0,
    halt=None,
    halt_reason="",
)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """An archive with slow commits, on which another worker is alive."""
    engine = connect(f"sqlite:///{tmp_path}/archive.db")
    prepare(engine)
    with writing(engine) as connection:
        connection.execute(insert(ingests).values(id=1, trigger="test", started_at=now()))
        join(connection, Worker("other", 1), {"default": 0}, LIMITS.connections)
    event.listen(engine, "commit", be_slow)
    yield engine
    engine.dispose()


def be_slow(_connection: Connection) -> None:
    time.sleep(COMMIT_S)


@pytest.fixture
def given(engine: Engine) -> tuple[float, float, float]:
    """When permits were given, and when they begin and end."""
    answers: SimpleQueue[tuple[Permits, float]] = SimpleQueue()
    taker = PermitTaker(engine, Worker("one", 1), LIMITS, Patience(5))
    taker.answer_by(lambda permits: answers.put((permits, time.monotonic())), lambda: None)
    with taker.serving():
        taker.ask(ASK)
        while True:
            permits, given_at = answers.get(timeout=10)
            if permits.begins_at is not None:
                return given_at, permits.begins_at, permits.begins_at + permits.length_s


def test_a_slow_commit_does_not_delay_the_slot(given: tuple[float, float, float]) -> None:
    """Late requests would come together with those of the next slots, above the rate."""
    given_at, begins_at, _ = given
    assert begins_at < given_at - 0.04


def test_permits_are_left_after_a_slow_commit(given: tuple[float, float, float]) -> None:
    """Nothing would ever be sent where each commit takes longer than a permit lasts."""
    given_at, _, ends_at = given
    assert ends_at > given_at

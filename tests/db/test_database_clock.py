"""The clock that all hosts of an archive share."""

from datetime import timedelta

from sqlalchemy import Engine

from etl.clock import now
from etl.db.database_clock import correct_clock

SLACK = timedelta(seconds=1)


def test_a_host_whose_clock_is_an_hour_off_sees_the_servers_time(engine: Engine) -> None:
    shared = correct_clock(engine, lambda: now() + timedelta(hours=1))
    is_server = engine.dialect.name == "postgresql"
    expected = now() if is_server else now() + timedelta(hours=1)
    assert abs(shared() - expected) < SLACK
    assert shared().microsecond % 1000 == 0

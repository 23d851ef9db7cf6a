"""The demo's month, once for all tests that hold figures of BI tools against plain Python."""

from collections.abc import Iterator

import pytest

from tests.support.month import Month, month_on_postgresql, month_on_sqlite


@pytest.fixture(scope="session")
def month_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Month]:
    with month_on_sqlite(tmp_path_factory.mktemp("month"), "America/New_York") as month:
        yield month


@pytest.fixture(scope="session")
def month_postgresql(request: pytest.FixtureRequest) -> Iterator[Month]:
    server = request.getfixturevalue("postgresql")
    with month_on_postgresql(server, "Asia/Tokyo") as month:
        yield month


@pytest.fixture(params=["sqlite", "postgresql"])
def month(request: pytest.FixtureRequest) -> Month:
    """An archive on each database, with days of another zone than UTC."""
    month: Month = request.getfixturevalue(f"month_{request.param}")
    return month

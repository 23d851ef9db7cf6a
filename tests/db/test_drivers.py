"""ODBC and JDBC drivers read an archive as BI tools do, in three time zones.

Of PostgreSQL as the granted role. All figures equal counts in plain Python; docs/BI.md has the
rules for days and times that the filters here follow.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.support import restated
from tests.support.drivers import DriverClient, jdbc, odbc
from tests.support.month import Month

ZONES = ("UTC", "Asia/Tokyo", "America/New_York")
DRIVERS: dict[str, Callable[[Month, str], AbstractContextManager[DriverClient]]] = {
    "odbc": odbc,
    "jdbc": jdbc,
}
ODBC_TYPES = {
    "text": "str",
    "bigint": "int",
    "double precision": "float",
    "boolean": "bool",
    "timestamp with time zone": "datetime",
    "date": "date",
}
JDBC_TYPES = {
    "text": "VARCHAR",
    "bigint": "BIGINT",
    "double precision": "DOUBLE",
    "boolean": "BIT",
    "timestamp with time zone": "TIMESTAMP",
    "date": "DATE",
}
TYPES = {
    ("odbc", "postgresql"): ODBC_TYPES,
    ("odbc", "sqlite"): ODBC_TYPES | {"date": "datetime"},
    ("jdbc", "postgresql"): JDBC_TYPES,
    ("jdbc", "sqlite"): JDBC_TYPES | {"timestamp with time zone": "DATE", "boolean": "BOOLEAN"},
}
"""How each driver calls the types of the data dictionary."""
ONE_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Tool:
    """A BI tool's connection."""

    client: DriverClient
    driver: str
    month: Month
    zone: ZoneInfo

    @property
    def types(self) -> dict[str, str]:
        return TYPES[self.driver, self.month.dialect]

    @property
    def zone_of_times(self) -> ZoneInfo:
        """The zone in which times arrive: PostgreSQL turns them, texts of SQLite stay in UTC."""
        return self.zone if self.month.dialect == "postgresql" else ZoneInfo("UTC")


@pytest.fixture(scope="module", params=ZONES)
def zone(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def tool(request: pytest.FixtureRequest, driver: str, zone: str) -> Iterator[Tool]:
    month: Month = request.getfixturevalue(f"month_{request.param}")
    with DRIVERS[driver](month, zone) as client:
        yield Tool(client, driver, month, ZoneInfo(zone))


def dictionary(month: Month) -> dict[str, dict[str, str]]:
    """Return the type of each column of each view."""
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for row in month.ask("SELECT object_name, column_name, type FROM data_dictionary"):
        if row["column_name"]:
            found[row["object_name"]][row["column_name"]] = row["type"]
    return dict(found)


def test_the_driver_lists_all_views(tool: Tool) -> None:
    tables = {"archive_settings", "data_dictionary"} if tool.month.dialect == "sqlite" else set()
    assert set(tool.client.column("views")) >= dictionary(tool.month).keys() - tables


def test_every_view_is_read_with_the_types_of_the_dictionary(tool: Tool) -> None:
    for view, columns in dictionary(tool.month).items():
        places = range(1, len(columns) + 1)
        query = f"SELECT * FROM {view} ORDER BY {', '.join(map(str, places))}"
        answer = tool.client.ask(query)
        assert answer.types == {name: tool.types[each] for name, each in columns.items()}, view
        types = [columns[name] for name in answer.types]
        expected = [row.values() for row in tool.month.ask(query)]
        assert [
            [arriving(kind, value) for kind, value in zip(types, row, strict=True)]
            for row in answer.rows
        ] == [
            [expecting(tool, kind, value) for kind, value in zip(types, row, strict=True)]
            for row in expected
        ], view


def arriving(kind: str, value: Any) -> Any:
    """Return a value of a driver as it can be compared."""
    if value is None or kind in {"text", "bigint", "boolean"}:
        return value
    return round(value, 9) if kind == "double precision" else datetime.fromisoformat(value)


def expecting(tool: Tool, kind: str, value: Any) -> Any:
    """Return the value that a driver should give, from the one that Python's own driver gave."""
    if kind == "boolean" and value is not None:
        return bool(value)
    if isinstance(value, datetime):
        return value.astimezone(tool.zone).replace(tzinfo=None)
    return arriving(kind, str(value) if isinstance(value, date) else value)


def test_rows_are_counted_right(tool: Tool) -> None:
    month = tool.month
    environments = [looks[-1].answer["environments"] for looks in month.looks.values()]
    assert {
        view: tool.client.column(f"SELECT count(*) FROM {view}")
        for view in ("run_results", "test_results", "environment_results")
    } == {
        "run_results": [len(month.runs)],
        "test_results": [sum(len(run.tests) for run in month.runs)],
        "environment_results": [sum(map(len, environments))],
    }


@pytest.mark.parametrize("view", ["daily_trend", "weekly_trend"])
def test_pass_rates_equal_a_count_in_plain_python(tool: Tool, view: str) -> None:
    found = tool.client.rows(
        "SELECT iso_date, sum(passed) AS passed,"
        " sum(passed) * 1.0 / nullif(sum(passed) + sum(failed), 0) AS pass_rate"
        f" FROM {view} GROUP BY iso_date"
    )
    counts: defaultdict[date, Counter[str | None]] = defaultdict(Counter)
    for run in tool.month.runs:
        if run.started_on:
            weekday = run.started_on.weekday() if view == "weekly_trend" else 0
            counts[run.started_on - weekday * ONE_DAY].update(test.status for test in run.tests)
    assert {
        row["iso_date"]: (number(row["passed"]), number(row["pass_rate"])) for row in found
    } == {
        str(day): (each["passed"], share(each["passed"], each["passed"] + each["failed"]))
        for day, each in counts.items()
    }


def number(value: Any) -> float | None:
    """Return a computed number, which some drivers give as text."""
    return None if value is None else round(float(value), 9)


def share(numerator: int, denominator: int) -> float | None:
    return round(numerator / denominator, 9) if denominator else None


OF_DAYS = {
    "iso_date = '{day}'": "day",
    "iso_date IN ('{day}', '{last}')": "two days",
    "iso_date BETWEEN '{day}' AND '{last}'": "days",
    "started_on >= '{day}' AND started_on < '{after}'": "days",
}
"""Filters that docs/BI.md recommends, and the days whose runs they have to find."""
ESCAPES = (
    "started_on >= {{d '{day}'}} AND started_on < {{d '{after}'}}",
    "started_on >= {{ts '{day} 00:00:00'}} AND started_on < {{ts '{after} 00:00:00'}}",
)
"""How ODBC and JDBC write a day and a time in any database's SQL."""


def days(month: Month) -> dict[str, date]:
    """Return two days in the middle of the month that have runs, and the day after them."""
    middle = sorted({run.started_on for run in month.runs if run.started_on})[-20:]
    return {"day": middle[0], "last": middle[5], "after": middle[5] + ONE_DAY}


def runs_of(month: Month, which: str) -> set[str]:
    """Return the runs of a day, of two days, or of all days from one to the other."""
    day, last, _ = days(month).values()
    wanted: dict[str, Callable[[date], bool]] = {
        "day": lambda each: each == day,
        "two days": lambda each: each in {day, last},
        "days": lambda each: day <= each <= last,
    }
    return select(month, lambda run: run.started_on is not None and wanted[which](run.started_on))


def select(month: Month, condition: Callable[[restated.Run], bool]) -> set[str]:
    found = {run.run_id for run in month.runs if condition(run)}
    assert found
    return found


def find(tool: Tool, condition: str, *values: Any) -> set[str]:
    query = f"SELECT run_id FROM run_results WHERE {condition}"
    return set(tool.client.column(query, *values))


@pytest.mark.parametrize("condition", OF_DAYS)
def test_a_filter_on_days_finds_their_runs(tool: Tool, condition: str) -> None:
    found = find(tool, condition.format(**days(tool.month)))
    assert found == runs_of(tool.month, OF_DAYS[condition])


@pytest.mark.parametrize("condition", ESCAPES)
def test_escapes_of_days_and_times_find_their_runs(tool: Tool, condition: str) -> None:
    filled = condition.format(**days(tool.month))
    if (tool.driver, tool.month.dialect) == ("jdbc", "sqlite"):
        with pytest.raises(RuntimeError, match="unrecognized token"):
            find(tool, filled)
    else:
        assert find(tool, filled) == runs_of(tool.month, "days")


def test_bound_days_find_their_runs(tool: Tool) -> None:
    day, last, after = map(str, days(tool.month).values())
    expected = runs_of(tool.month, "days")
    in_range = "started_on >= ? AND started_on < ?"
    midnights = [{"timestamp": f"{each} 00:00:00"} for each in (day, after)]
    assert find(tool, "iso_date BETWEEN ? AND ?", day, last) == expected
    assert find(tool, in_range, {"date": day}, {"date": after}) == expected
    assert find(tool, in_range, *midnights) == expected


def test_bound_times_find_their_runs(tool: Tool) -> None:
    day, _, after = days(tool.month).values()
    starts = [datetime.combine(each, time(9, 30)) for each in (day, after)]
    first, end = (each.replace(tzinfo=tool.zone_of_times).astimezone(UTC) for each in starts)
    values = [{"timestamp": str(each)} for each in starts]
    found = find(tool, "started_at >= ? AND started_at < ?", *values)
    assert found == select(
        tool.month, lambda run: run.started_at is not None and first <= run.started_at < end
    )


def test_a_day_is_equal_to_no_day_of_sqlite(tool: Tool) -> None:
    found = find(tool, "started_on = '{day}'".format(**days(tool.month)))
    assert found == (set() if tool.month.dialect == "sqlite" else runs_of(tool.month, "day"))


def test_jdbc_on_sqlite_binds_no_times_without_an_option(month_sqlite: Month) -> None:
    with jdbc(month_sqlite, "UTC", options="") as client:
        tool = Tool(client, "jdbc", month_sqlite, ZoneInfo("UTC"))
        day, _, after = days(month_sqlite).values()
        values = [{"timestamp": f"{each} 00:00:00"} for each in (day, after)]
        assert find(tool, "started_at >= ? AND started_at < ?", *values) == set()

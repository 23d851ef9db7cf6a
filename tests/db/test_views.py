"""The views that BI tools read: the same everywhere, described, and right."""

import tomllib
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, inspect, text

from etl.db import database
from etl.db.database import connect, prepare, reading
from etl.reports.backlog import AGES
from tests.support.looks import CHROME, a_test, look
from tests.support.view_rows import as_read, only, prefix, select_all
from tests.support.views_page import PAGE, page

FOLDER = database.migrations_folder()
VIEWS = {path.stem: path for path in FOLDER.glob("views/**/*.sql")}

TYPES = {
    "TEXT": {"text"},
    "BIGINT": {"bigint"},
    "INTEGER": {"bigint"},
    "DOUBLE": {"double precision"},
    "BOOLEAN": {"boolean"},
    "DATETIME": {"timestamp with time zone", "date"},
}
"""What a type that a column has on SQLite may be on PostgreSQL."""

MONDAY = datetime(2024, 3, 4, 10, 0, tzinfo=UTC)


# --- the same everywhere --------------------------------------------------------------------


def sqlite_columns(url: str) -> dict[str, list[tuple[str, str]]]:
    """Return name and declared type of the columns of all that a reader sees."""
    engine = connect(url)
    prepare(engine)
    with reading(engine) as connection:
        found = {
            view: [
                (row.name, row.type)
                for row in connection.exec_driver_sql(f"PRAGMA table_info({view})")
            ]
            for view in VIEWS
        }
    engine.dispose()
    return found


def postgresql_columns(url: str) -> dict[str, list[tuple[str, str]]]:
    """Return the same of the schema `reporting`."""
    engine = connect(url)
    prepare(engine)
    query = text(
        "SELECT table_name, column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = 'reporting' ORDER BY table_name, ordinal_position"
    )
    found: dict[str, list[tuple[str, str]]] = {}
    with reading(engine) as connection:
        for view, name, kind in connection.execute(query):
            found.setdefault(view, []).append((name, kind))
    engine.dispose()
    return found


def test_the_columns_are_the_same_on_both_databases_and_have_types(
    sqlite_url: str, postgresql_url: str
) -> None:
    """On SQLite a computed column would have none, which breaks what scans for types."""
    on_sqlite, on_postgresql = sqlite_columns(sqlite_url), postgresql_columns(postgresql_url)
    assert on_sqlite.keys() == on_postgresql.keys()
    for view, columns in on_sqlite.items():
        assert [name for name, _ in columns] == [name for name, _ in on_postgresql[view]]
        for (name, declared), (_, kind) in zip(columns, on_postgresql[view], strict=True):
            assert kind in TYPES[declared], f"{view}.{name} is {declared} and {kind}"


FIRST_TIMES = {
    "archive_health": "measured_at",
    "calendar": "day",
    "daily_trend": "day",
    "environment_results": "started_at",
    "plans": "last_started_at",
    "resolutions": "changed_by",
    "run_durations": "last_started_at",
    "run_labels": "started_at",
    "run_results": "started_at",
    "series_health": "last_started_at",
    "status_history": "changed_by",
    "test_results": "started_at",
    "unresolved_backlog": "started_at",
    "weekly_trend": "week_starts_on",
}
"""The time by which each view is charted."""


def test_the_first_time_of_a_view_is_the_one_to_chart_by(sqlite_url: str) -> None:
    """Superset and others take it for the time of a new dataset."""
    columns = sqlite_columns(sqlite_url)
    first = {
        view: next(name for name, declared in columns[view] if declared == "DATETIME")
        for view in FIRST_TIMES
    }
    assert first == FIRST_TIMES


# --- described ------------------------------------------------------------------------------


def described(connection: Connection) -> dict[tuple[str, str], str]:
    """Return the data dictionary, as a user gets it."""
    return {
        (row["object_name"], row["column_name"]): row["description"]
        for row in select_all(connection, "data_dictionary")
    }


def test_every_view_and_column_is_described_and_nothing_else(engine: Engine) -> None:
    with reading(engine) as connection:
        schema = prefix(connection).rstrip(".") or None
        there = {
            (view, name)
            for view in VIEWS
            for name in (
                "",
                *[each["name"] for each in inspect(connection).get_columns(view, schema)],
            )
        }
        assert described(connection).keys() == there


def test_every_description_is_of_a_column_that_is_there(engine: Engine) -> None:
    meanings = tomllib.loads((FOLDER / "dictionary.toml").read_text(encoding="utf-8"))
    shared = meanings.pop("shared")
    named = [names for part in ("kinds", "units") for names in meanings.pop(part).values()]
    with reading(engine) as connection:
        known = described(connection).keys()
    assert shared.keys() <= {column for _, column in known}
    assert {(view, column) for view, columns in meanings.items() for column in columns} <= known
    every_name = {name for view, column in known for name in (column, f"{view}.{column}")}
    assert {name for names in named for name in names} <= every_name


KINDS = {"key", "dimension", "time", "count", "rate", "flag", "text"}
UNITS = {
    "runs", "tests", "checks", "results", "environments", "fields", "pixels", "milliseconds",
    "share", "UTC", "day",
}  # fmt: skip


def test_every_column_has_the_type_that_postgresql_gives_it(
    sqlite_url: str, postgresql_url: str
) -> None:
    expected = {
        (view, name, kind)
        for view, columns in postgresql_columns(postgresql_url).items()
        for name, kind in columns
    }
    for url in (sqlite_url, postgresql_url):
        columns = dictionary_columns(url)
        assert {(each["object_name"], each["column_name"], each["type"]) for each in columns} == (
            expected
        )


def test_every_column_has_a_kind_and_every_number_a_unit(sqlite_url: str) -> None:
    columns = dictionary_columns(sqlite_url)
    assert {each["kind"] for each in columns} == KINDS
    assert {each["unit"] for each in columns} == {*UNITS, None}
    for each in columns:
        name, kind = each["column_name"], each["kind"]
        is_key = not KEYS.isdisjoint({name, f"{each['object_name']}.{name}"}) or (
            name.endswith(("_id", "_key")) and name != "commit_id"
        )
        assert (kind == "key") == is_key, name
        assert (kind == "time") == (each["type"] in {"date", "timestamp with time zone"}), name
        assert (kind == "flag") == (each["type"] == "boolean") == name.startswith("is_"), name
        assert each["unit"] or kind not in {"count", "rate", "time"}, name
        assert (kind == "rate") == (each["unit"] == "share" or "p50" in name or "p95" in name), name


def test_both_databases_have_the_same_dictionary(sqlite_url: str, postgresql_url: str) -> None:
    assert dictionary_columns(sqlite_url) == dictionary_columns(postgresql_url)


KEYS = {
    "position", "revision", "environment_signature", "object_name", "column_name",
    "archive_settings.name",
}  # fmt: skip


def dictionary_columns(url: str) -> list[dict[str, Any]]:
    """Return the rows of a new archive's dictionary that are of columns."""
    engine = connect(url)
    prepare(engine)
    with reading(engine) as connection:
        rows = select_all(connection, "data_dictionary")
    engine.dispose()
    columns = [row for row in rows if row["column_name"]]
    return sorted(columns, key=lambda row: (row["object_name"], row["column_name"]))


def test_postgresql_has_the_descriptions_as_comments(postgresql_url: str) -> None:
    engine = connect(postgresql_url)
    prepare(engine)
    query = text(
        "SELECT relname, coalesce(attname, ''), description FROM pg_description"
        " JOIN pg_class ON pg_class.oid = objoid AND classoid = 'pg_class'::regclass"
        " LEFT JOIN pg_attribute ON attrelid = objoid AND attnum = objsubid AND attnum > 0"
        " WHERE relnamespace = 'reporting'::regnamespace"
    )
    with reading(engine) as connection:
        comments = {(view, column): comment for view, column, comment in connection.execute(query)}
        assert comments == described(connection)
    engine.dispose()


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_the_file_of_a_view_begins_with_what_a_row_is_and_who_reads_it(view: str) -> None:
    text = " ".join(VIEWS[view].read_text(encoding="utf-8").replace("-- ", "").splitlines())
    assert text.startswith(f"{view}: one row per ")
    assert "Read by: " in text


def test_the_page_says_what_the_archive_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "docs/VIEWS.md is behind; run: make views"


# --- right ----------------------------------------------------------------------------------


def after(minutes: int) -> datetime:
    """Return a moment so long after the first look, which is an hour after the run began."""
    return MONDAY + timedelta(minutes=minutes)


STARTED_AT = after(-60)
ENDED_AT = after(-59)
PLAN = {"application": "Shop", "plan": "Nightly"}
SIGNATURE = '[["Linux","Chrome","","800x600"]]'


@pytest.fixture
def watched(engine: Engine) -> Engine:
    """Two tests of a run are decided, one is still open, and one leaves the answer open."""
    names = ("cart", "login", "search", "wish list")
    look(engine, "run-1", after(0), *[a_test(name, "unresolved") for name in names])
    look(engine, "run-1", after(10), *[a_test(name, "unresolved") for name in names])
    decided = (a_test("cart", "passed"), a_test("login", "failed"), a_test("search", "unresolved"))
    look(engine, "run-1", after(30), *decided)
    look(engine, "run-1", after(45), *decided)
    return engine


def test_a_run_has_its_tests_counted_and_its_rates(watched: Engine) -> None:
    with reading(watched) as connection:
        [row] = select_all(connection, "run_results")
        at = as_read(after(30), connection)
    assert only(row, "run_id application plan status environment_count test_count") == {
        "run_id": "run-1",
        **PLAN,
        "status": "unresolved",
        "environment_count": 1,
        "test_count": 3,
    }
    assert only(row, "tests_passed tests_failed tests_unresolved tests_unknown") == {
        "tests_passed": 1,
        "tests_failed": 1,
        "tests_unresolved": 1,
        "tests_unknown": 0,
    }
    rates = "pass_rate decided_share pass_rate_low pass_rate_high"
    assert list(only(row, rates).values()) == [1 / 2, 2 / 3, 1 / 3, 2 / 3]
    assert only(row, "revision changed_at") == {"revision": 2, "changed_at": at}


def test_a_test_has_its_run_and_joins_its_series(watched: Engine) -> None:
    with reading(watched) as connection:
        views = {"tests": "test_results", "series": "series_health"}
        names = {short: f"{prefix(connection)}{view}" for short, view in views.items()}
        query = text(
            f"SELECT tests.test, tests.status, series.recent FROM {names['tests']} AS tests"
            f" JOIN {names['series']} AS series ON series.variant_id = tests.variant_id"
            " AND series.test = tests.test AND series.type = tests.type ORDER BY tests.position"
        )
        joined = [tuple(row) for row in connection.execute(query)]
        first = select_all(connection, "test_results")[0]
    assert joined == [
        ("cart", "passed", "P"),
        ("login", "failed", "F"),
        ("search", "unresolved", "U"),
    ]
    assert only(first, "run_id application plan run_status") == {
        "run_id": "run-1",
        **PLAN,
        "run_status": "unresolved",
    }


def test_an_environment_has_the_results_of_its_run(watched: Engine) -> None:
    with reading(watched) as connection:
        [row] = select_all(connection, "environment_results")
    assert only(row, "environment os browser viewport_width environment_count") == {
        "environment": "e_1",
        "os": "Linux",
        "browser": "Chrome",
        "viewport_width": 800,
        "environment_count": 1,
    }
    assert only(row, "plan status tests_passed pass_rate") == {
        "plan": "Nightly",
        "status": "unresolved",
        "tests_passed": 1,
        "pass_rate": 0.5,
    }


def test_what_waits_for_a_person_is_in_the_backlog_with_since_when(watched: Engine) -> None:
    look(watched, "run-2", after(0), a_test("cart", "passed"), status="passed")
    with reading(watched) as connection:
        [row] = select_all(connection, "unresolved_backlog")
        times = {
            "opened_at": as_read(ENDED_AT, connection),
            "observed_at": as_read(after(30), connection),
            "last_seen_at": as_read(after(45), connection),
        }
    assert only(row, "run_id tests_unresolved application") == {
        "run_id": "run-1",
        "tests_unresolved": 1,
        "application": "Shop",
    }
    assert only(row, " ".join(times)) == times


def test_what_a_person_decided_has_bounds(watched: Engine) -> None:
    with reading(watched) as connection:
        rows = select_all(connection, "resolutions")
        at = as_read(ENDED_AT, connection)
    bounds = {
        "opened_at": at,
        "resolution_min_ms": (59 + 10) * 60_000,
        "resolution_max_ms": (59 + 30) * 60_000,
    }
    names = f"test to_status plan {' '.join(bounds)}"
    assert [only(row, names) for row in rows] == [
        {"test": "cart", "to_status": "passed", "plan": "Nightly", **bounds},
        {"test": "login", "to_status": "failed", "plan": "Nightly", **bounds},
    ]


def test_the_history_has_each_change_that_was_seen(watched: Engine) -> None:
    look(watched, "run-1", after(60), a_test("cart", "passed"), status="passed")
    with reading(watched) as connection:
        rows = select_all(connection, "status_history")
    changes = sorted(
        (row["revision"], row["position"], row["test"] or "", row["from_status"], row["to_status"])
        for row in rows
    )
    assert changes == [
        (2, 1, "cart", "unresolved", "passed"),
        (2, 2, "login", "unresolved", "failed"),
        (2, 4, "wish list", "unresolved", None),
        (3, 0, "", "unresolved", "passed"),
        (3, 2, "login", "failed", None),
        (3, 3, "search", "unresolved", None),
    ]
    assert {row["application"] for row in rows} == {"Shop"}


@pytest.mark.parametrize(
    ("view", "column", "first_day"),
    [("daily_trend", "day", 5), ("weekly_trend", "week_starts_on", 4)],
)
def test_trends_join_the_calendar(engine: Engine, view: str, column: str, first_day: int) -> None:
    tuesday = {"started_at": "2024-03-05T23:59:59.000Z", "status": "passed"}
    look(engine, "run-1", after(0), a_test("cart", "passed"), a_test("login", "failed"), **tuesday)
    look(engine, "run-2", after(0), a_test("cart", "passed"), **tuesday)
    with reading(engine) as connection:
        query = text(
            f"SELECT calendar.day_of_month, trend.* FROM {prefix(connection)}calendar AS calendar"
            f" JOIN {prefix(connection)}{view} AS trend ON trend.{column} = calendar.day"
        )
        [row] = [dict(row) for row in connection.execute(query).mappings()]
    assert only(row, "day_of_month application plan runs tests passed failed pass_rate") == {
        "day_of_month": first_day,
        **PLAN,
        "runs": 2,
        "tests": 3,
        "passed": 2,
        "failed": 1,
        "pass_rate": 2 / 3,
    }


DAYS = {
    "run_results": "started_on",
    "test_results": "started_on",
    "environment_results": "started_on",
    "unresolved_backlog": "started_on",
    "daily_trend": "day",
    "weekly_trend": "week_starts_on",
    "calendar": "day",
}
"""The views with a day, and its column."""


@pytest.mark.parametrize("view", DAYS)
def test_a_day_is_found_by_its_text_as_by_a_range(engine: Engine, view: str) -> None:
    """On SQLite a day that is a midnight does not equal the text that people and tools write."""
    for number in (3, 4, 5):
        started_at = f"2024-03-{number:02}T09:00:00Z"
        look(engine, f"run-{number}", after(0), a_test("cart", "unresolved"), started_at=started_at)
    day = DAYS[view]
    on_monday = f"{day} >= '2024-03-04' AND {day} < '2024-03-05'"
    conditions = {
        "iso_date = '2024-03-04'": on_monday,
        "iso_date IN ('2024-03-04')": on_monday,
        "iso_date BETWEEN '2024-03-03' AND '2024-03-04'": (
            f"{day} >= '2024-03-03' AND {day} < '2024-03-05'"
        ),
        "iso_date <= '2024-03-04'": f"{day} < '2024-03-05'",
    }
    with reading(engine) as connection:
        for by_text, by_range in conditions.items():
            query = f"SELECT * FROM {prefix(connection)}{view} WHERE "
            found, wanted = (
                [dict(row) for row in connection.execute(text(query + condition)).mappings()]
                for condition in (by_text, by_range)
            )
            assert found == wanted != [], by_text
        dates = {str(row[day])[:10]: row["iso_date"] for row in select_all(connection, view)}
    assert dates == {iso_date: iso_date for iso_date in dates}


def test_a_plan_has_its_durations(watched: Engine) -> None:
    with reading(watched) as connection:
        [row] = select_all(connection, "run_durations")
    assert only(row, "plan environment_signature measured p50_ms is_slow") == {
        "plan": "Nightly",
        "environment_signature": SIGNATURE,
        "measured": 1,
        "p50_ms": 60_000,
        "is_slow": False,
    }


def test_a_plan_is_one_row_that_every_view_joins(watched: Engine) -> None:
    look(watched, "run-2", after(0), a_test("cart", "passed"), started_at="2024-03-05T09:00:00Z")
    look(watched, "run-3", after(0), a_test("cart", "passed"), started_at=None)
    look(watched, "run-4", after(0), a_test("cart", "passed"), started_at=None, name="Other")
    with reading(watched) as connection:
        rows = {row["plan"]: row for row in select_all(connection, "plans")}
        joined = text(
            f"SELECT count(*) FROM {prefix(connection)}run_results AS results"
            f" JOIN {prefix(connection)}plans AS plans ON plans.plan_id = results.plan_id"
        )
        assert connection.scalar(joined) == 4
        started = as_read(datetime(2024, 3, 5, 9, tzinfo=UTC), connection)
    ends = "last_run_id last_started_at iso_date last_pass_rate first_run_id first_status"
    assert list(only(rows["Nightly"], ends).values()) == [
        "run-2",
        started,
        "2024-03-05",
        1.0,
        "run-1",
        "unresolved",
    ]
    figures = "open_runs open_tests flaky_tests p50_ms"
    assert list(only(rows["Nightly"], figures).values()) == [1, 1, 0, 60_000]
    assert list(only(rows["Other"], f"{ends} {figures}").values()) == [*[None] * 6, 0, 0, 0, None]


def test_a_set_of_environments_is_one_row_that_runs_join(watched: Engine) -> None:
    safari = {
        "name": "e_2",
        "os": "Linux",
        "viewport": "800x600",
        "device": "",
        "browser": "Safari",
    }
    look(watched, "run-2", after(0), a_test("cart", "passed"), environments=[CHROME, safari])
    look(watched, "run-3", after(0), a_test("cart", "passed"), environments=[])
    with reading(watched) as connection:
        query = text(
            "SELECT results.run_id, sets.environments, sets.environment_count,"
            " sets.os, sets.browser, sets.device, sets.viewport"
            f" FROM {prefix(connection)}run_results AS results"
            f" JOIN {prefix(connection)}environment_sets AS sets"
            " ON sets.environment_signature = results.environment_signature ORDER BY run_id"
        )
        rows = [tuple(row) for row in connection.execute(query)]
    both = "Linux / Chrome / 800x600; Linux / Safari / 800x600"
    assert rows == [
        ("run-1", "Linux / Chrome / 800x600", 1, "Linux", "Chrome", "", "800x600"),
        ("run-2", both, 2, "Linux", None, "", "800x600"),
        ("run-3", "", 0, None, None, None, None),
    ]


def test_a_run_has_a_row_for_each_content_it_had(watched: Engine) -> None:
    """What the archive knew at a moment: one row of each run."""
    with reading(watched) as connection:
        query = text(
            f"SELECT revision, status, tests_unresolved, tests_failed, plan"
            f" FROM {prefix(connection)}run_revisions WHERE observed_at <= :moment"
            " AND (superseded_at IS NULL OR superseded_at > :moment)"
        )
        found = [
            tuple(connection.execute(query, {"moment": as_read(after(minutes), connection)}).one())
            for minutes in (5, 30)
        ]
    assert found == [(1, "unresolved", 4, 0, "Nightly"), (2, "unresolved", 1, 1, "Nightly")]


def test_an_unresolved_run_has_a_link_to_the_first_open_test(engine: Engine) -> None:
    link = {"testResultsUrl": "https://example.com/results/2"}
    tests = a_test("cart", "passed"), a_test("login", "unresolved") | link
    look(engine, "run-1", after(0), *tests, a_test("pay", "unresolved"))
    with reading(engine) as connection:
        [row] = select_all(connection, "unresolved_backlog")
        sitemaps = [each["sitemap"] for each in select_all(connection, "test_results")]
    assert only(row, "test results_url") == {
        "test": "login",
        "results_url": "https://example.com/results/2",
    }
    assert sitemaps == [None] * 3


def test_an_age_bucket_is_the_age_of_the_report(engine: Engine) -> None:
    """At each limit, a minute before and after it; a clock ahead of ours makes no age below 0."""
    minute, now = timedelta(minutes=1), datetime.now(UTC)
    ages = {-timedelta(days=2): AGES[0][1], minute: AGES[0][1]}
    for (_, younger, limit), (_, older, _) in pairwise(AGES):
        ages |= {limit - minute: younger, limit + minute: older}
    for number, age in enumerate(ages):
        started_at = (now - age).isoformat()
        test = a_test("cart", "unresolved")
        look(engine, f"run-{number}", now, test, started_at=started_at, duration=0)
    with reading(engine) as connection:
        rows = select_all(connection, "unresolved_backlog")
    found = {row["run_id"]: row["age_bucket"] for row in rows}
    assert [found[f"run-{number}"] for number in range(len(ages))] == list(ages.values())


def test_operators_see_what_could_not_be_read_and_what_is_new(engine: Engine) -> None:
    odd = a_test("cart", "passed") | {"owner": "web"}
    look(engine, "run-1", after(0), odd, duration="soon")
    with reading(engine) as connection:
        [warning] = select_all(connection, "value_warnings")
        drift = {row["path"]: row for row in select_all(connection, "schema_drift")}
        at = as_read(after(0), connection)
    assert only(warning, "run_id source path value observed_at superseded_at") == {
        "run_id": "run-1",
        "source": "default",
        "path": "result.duration",
        "value": '"soon"',
        "observed_at": at,
        "superseded_at": None,
    }
    assert only(drift["result.tests[].owner"], "source first_run_id first_seen_at") == {
        "source": "default",
        "first_run_id": "run-1",
        "first_seen_at": at,
    }

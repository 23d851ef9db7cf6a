"""The series of each test result: joined by series_id, whatever the test was called."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, Table, func, select, text

from etl.archive import identity
from etl.archive.verify import verify_archive
from etl.config.settings import DEFAULT_RULES, Reporting
from etl.db.database import reading, writing
from etl.db.schema import variant_rosters
from etl.derived import refresh
from etl.derived.aliases import Alias, add_alias, remove_alias
from etl.derived.plans import Application
from tests.support.histories import a_run, count_all, keep
from tests.support.looks import a_test, look
from tests.support.view_rows import as_read, only, prefix, select_all

MONDAY = datetime(2024, 3, 4, 10, 0, tzinfo=UTC)


def after(minutes: int) -> datetime:
    return MONDAY + timedelta(minutes=minutes)


def joined(engine: Engine) -> list[tuple[Any, ...]]:
    """Return each test of each run, and its series by series_id."""
    with reading(engine) as connection:
        schema = prefix(connection)
        query = text(
            "SELECT tests.run_id, tests.position, tests.test, series.test, series.recent"
            f" FROM {schema}test_results AS tests"
            f" LEFT JOIN {schema}series_health AS series ON series.series_id = tests.series_id"
            " WHERE tests.started_at IS NOT NULL ORDER BY tests.run_id, tests.position"
        )
        return [tuple(row) for row in connection.execute(query)]


def test_each_test_has_its_series_whatever_its_name_was(engine: Engine) -> None:
    """Ids stay the same here, while names change, are empty, or stand twice in a run."""
    names: dict[str, list[str | None]] = {
        "1": ["cart"] * 12,
        "2": [*"abcdefghijk", ""],
        "3": [None] * 12,
        "4": ["login"] * 12,
        "5": ["pay"] * 12,
    }
    for number in range(12):
        started_at = f"2024-03-{number + 1:02}T09:00:00Z"
        tests = [
            a_test("", "passed") | {"id": test_id, "name": each[number]}
            for test_id, each in names.items()
        ]
        look(engine, f"run-{number:02}", after(0), *tests, tests[0], started_at=started_at)
    identity.measure_again(engine, {Application("default", "Shop")}, after(1), UTC)
    refresh.refresh_marked(engine)
    rows = joined(engine)
    assert len(rows) == 12 * 6
    assert {row[3:] for row in rows if row[1] == 2} == {("", "P" * 10)}
    assert {row[3:] for row in rows if row[1] in {1, 6}} == {("cart", "P" * 10)}
    assert all(row[4] for row in rows)
    found = list(verify_archive(engine, Reporting()))
    assert [each for batch in found for each in (*batch.damage, *batch.differing)] == []


def test_a_renamed_test_has_the_series_of_its_new_name(engine: Engine) -> None:
    look(engine, "run-1", after(0), a_test("cart", "passed"))
    look(engine, "run-2", after(0), a_test("basket", "failed"), started_at="2024-03-05T09:00:00Z")
    assert [row[2:] for row in joined(engine)] == [("cart", "cart", "P"), ("basket", "basket", "F")]
    renamed = Alias("default", "Shop", "", "cart", "basket")
    with writing(engine) as connection:
        add_alias(connection, renamed, after(1), DEFAULT_RULES)
    assert [row[2:] for row in joined(engine)] == [
        ("cart", "basket", "PF"),
        ("basket", "basket", "PF"),
    ]
    with writing(engine) as connection:
        remove_alias(connection, renamed, after(2), DEFAULT_RULES)
    assert [row[2:] for row in joined(engine)] == [("cart", "cart", "P"), ("basket", "basket", "F")]


def test_series_are_named_for_current_content_alone(engine: Engine) -> None:
    """What left an answer leaves no row behind, unless another run still has it."""
    for run_id in ("run-1", "run-2"):
        look(engine, run_id, after(0), a_test("cart", "passed"), a_test("login", "passed"))
    look(engine, "run-1", after(1), a_test("login", "passed"))
    assert [row[:3] for row in joined(engine)] == [
        ("run-1", 1, "login"),
        ("run-2", 1, "cart"),
        ("run-2", 2, "login"),
    ]
    assert number_of_rows(engine, variant_rosters) == 2
    look(engine, "run-2", after(2), a_test("login", "passed"))
    assert number_of_rows(engine, variant_rosters) == 1
    look(engine, "run-2", after(3), a_test("login", "passed"), started_at=None)
    assert number_of_rows(engine, variant_rosters) == 1
    with reading(engine) as connection:
        ids = {row["series_id"] for row in select_all(connection, "test_results")}
    assert len(ids) == 1, "of the run without a start too"


def number_of_rows(engine: Engine, table: Table) -> int:
    with reading(engine) as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_a_test_has_no_series_until_the_pass_has_refreshed_them(engine: Engine) -> None:
    """No row is missing meanwhile. The first run of a plan, or a known list, needs no refresh."""
    for day, names in ((4, ["cart"]), (5, ["cart"]), (6, ["cart", "login"])):
        with writing(engine) as connection:
            run = a_run(f"2024-03-{day:02}T09:00:00Z", dict.fromkeys(names, "P"))
            keep(connection, after(0), {f"run-{day}": run})
    assert [row[2:4] for row in joined(engine)] == [
        ("cart", "cart"),
        ("cart", "cart"),
        ("cart", None),
        ("login", None),
    ]
    with writing(engine) as connection:
        count_all(connection)
    assert [row[2:] for row in joined(engine)] == [
        *[("cart", "cart", "PPP")] * 3,
        ("login", "login", "P"),
    ]


def test_a_series_names_the_runs_to_look_at(engine: Engine) -> None:
    """The first run of the streak, that of the newest flip, and the day when it all began."""
    for day, status in enumerate(("passed", "failed", "passed", "failed", "failed"), start=4):
        started_at = f"2024-03-{day:02}T09:00:00Z"
        tests = [a_test("cart", status), *([a_test("new", "passed")] if day >= 6 else [])]
        look(engine, f"run-{day}", after(0), *tests, started_at=started_at)
    with reading(engine) as connection:
        rows = {row["test"]: row for row in select_all(connection, "series_health")}
        flipped_at = as_read(datetime(2024, 3, 7, 9, tzinfo=UTC), connection)
    names = "streak_since streak_since_run_id last_flip_at last_flip_run_id iso_date"
    assert list(only(rows["cart"], names).values()) == [
        flipped_at,
        "run-7",
        flipped_at,
        "run-7",
        "2024-03-04",
    ]
    assert list(only(rows["new"], names).values()) == [None, None, None, None, "2024-03-06"]
    assert {str(row["first_seen_on"])[:10] for row in rows.values()} == {"2024-03-04", "2024-03-06"}
    look(engine, "run-4", after(1), a_test("other", "passed"), started_at="2024-03-04T09:00:00Z")
    with reading(engine) as connection:
        rows = {row["test"]: row for row in select_all(connection, "series_health")}
    assert rows["cart"]["iso_date"] == "2024-03-05", "the test left its first run"

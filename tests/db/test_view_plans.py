"""Filters that docs/BI.md and the dictionary recommend are found by an index, on both databases.

By the query plan alone (EXPLAIN, which runs nothing): on SQLite of an empty archive, which has no
statistics anywhere; on PostgreSQL of some hundred runs, since it plans by the number of rows.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from etl.db.database import connect, prepare, reading, writing
from etl.ledger import tracking
from etl.ledger.tracking import Entry
from tests.support.histories import a_run, see
from tests.support.postgres import Server
from tests.support.view_rows import prefix

DAY = "{} >= '2024-03-01' AND {} < '2024-03-02'"
OF_RUNS = {
    DAY.format("started_at", "started_at"): "ix_runs_started_at",
    DAY.format("started_on", "started_on"): "ix_runs_started_on",
    "iso_date = '2024-03-01'": "ix_runs_iso_date",
    "iso_date IN ('2024-03-01', '2024-03-02')": "ix_runs_iso_date",
    "iso_date BETWEEN '2024-03-01' AND '2024-03-02'": "ix_runs_iso_date",
    "row_changed_at >= '2024-04-29'": "ix_runs_row_changed_at",
    "application = 'shop' AND iso_date = '2024-03-01'": "ix_runs_iso_date",
    "source = 'staging' AND iso_date = '2024-03-01'": "ix_runs_iso_date",
    "run_id = 'run-1'": "pk_runs",
}
OF_BRANCHES = {"branch = 'main' AND iso_date = '2024-03-01'": "ix_runs_iso_date"}
OF_PLANS = {
    "plan_id = 'plan-1'": "ix_plan_variants_plan_id",
    "variant_id = 'variant-1'": "pk_plan_variants",
}
OF_CHANGES = {
    DAY.format("changed_by", "changed_by"): "ix_status_changes_changed_by",
    "run_id = 'run-1'": "pk_status_changes",
}
FILTERS: dict[str, dict[str, str]] = {
    "run_results": OF_RUNS | OF_BRANCHES | OF_PLANS,
    "test_results": OF_RUNS
    | OF_BRANCHES
    | OF_PLANS
    | {"variant_id = 'variant-1' AND series_id = 'series-1'": "pk_plan_variants"},
    "environment_results": OF_RUNS | OF_BRANCHES | OF_PLANS,
    "run_labels": OF_RUNS | {"name = 'branch' AND value = 'topic-2'": "ix_labels_name_value"},
    "daily_trend": {
        DAY.format("day", "day"): "ix_daily_results_day",
        "iso_date = '2024-03-01'": "ix_daily_results_iso_date",
        "plan_id = 'plan-1'": "pk_daily_results",
    },
    "weekly_trend": {
        DAY.format("week_starts_on", "week_starts_on"): "ix_weekly_results_week_starts_on",
        "iso_date = '2024-03-04'": "ix_weekly_results_iso_date",
        "plan_id = 'plan-1'": "pk_weekly_results",
    },
    "series_health": {
        "variant_id = 'variant-1' AND series_id = 'series-1'": "pk_plan_variants",
        "plan_id = 'plan-1'": "ix_plan_variants_plan_id",
    },
    "resolutions": OF_CHANGES,
    "status_history": OF_CHANGES,
    "plans": {"plan_id = 'plan-1'": "pk_plan_summaries"},
    "environment_sets": {"environment_signature = '[]'": "pk_environment_combinations"},
    "run_durations": {"plan_id = 'plan-1'": "ix_plan_variants_plan_id"},
}
"""The filters of each view, and the index by which a query begins."""
CASES = [(view, each, FILTERS[view][each]) for view in FILTERS for each in FILTERS[view]]


@pytest.fixture(scope="module")
def sqlite_archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An empty archive that all tests here only read."""
    engine = connect(f"sqlite:///{tmp_path_factory.mktemp('plans')}/archive.db")
    prepare(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def postgresql_archive(postgresql: Server) -> Iterator[Engine]:
    """An archive with a run of each of 8 plans on each of 120 days, and its statistics."""
    with postgresql.database() as url:
        engine = connect(url)
        prepare(engine)
        fill(engine)
        with writing(engine) as connection:
            connection.execute(text("ANALYZE"))
        yield engine
        engine.dispose()


def fill(engine: Engine) -> None:
    for day in range(120):
        started_at = datetime(2024, 1, 1, 9, tzinfo=UTC) + timedelta(days=day)
        run_ids = [f"run-{day}-{plan}" for plan in range(8)]
        with writing(engine) as connection:
            labels = {"branch": "main" if day % 2 else f"topic-{day}", "build": str(day)}
            entries = [Entry(run_id, None, None, labels) for run_id in run_ids]
            tracking.track(connection, entries, started_at)
        for letter in "UP":
            tests = dict.fromkeys(("cart", "login", "pay", "search"), letter)
            answers = {
                run_id: a_run(started_at.isoformat(), tests, name=f"plan {number}")
                for number, run_id in enumerate(run_ids)
            }
            see(engine, started_at, answers)


@pytest.mark.parametrize(("view", "condition", "index"), CASES)
def test_sqlite_finds_by_an_index(
    sqlite_archive: Engine, view: str, condition: str, index: str
) -> None:
    """It begins with no table that it has to scan; a label is as good a begin as a day."""
    question = f"EXPLAIN QUERY PLAN SELECT * FROM {view} WHERE {condition}"
    with reading(sqlite_archive) as connection:
        steps = [row.detail for row in connection.exec_driver_sql(question)]
    read_nothing = (
        {"SCAN CONSTANT ROW", "SCAN series"} if view == "test_results" else {f"SCAN {view}"}
    )
    steps = [step for step in steps if step not in read_nothing]
    assert not [step for step in steps if step.startswith("SCAN")]
    begins = {"ix_labels_name_value", index} if "branch" in condition else {index}
    first = next(step for step in steps if step.startswith("SEARCH"))
    assert any(spell_on_sqlite(each) in first for each in begins)


def spell_on_sqlite(index: str) -> str:
    """Return how a step names an index; SQLite gives those of primary keys names of its own."""
    if index == "pk_runs":
        return "USING INDEX sqlite_autoindex_runs_1 "
    return "USING PRIMARY KEY " if index.startswith("pk_") else f"INDEX {index} "


def test_sqlite_joins_tests_with_their_series_by_an_index(sqlite_archive: Engine) -> None:
    """It makes one, of all series: they are of two queries."""
    question = (
        "EXPLAIN QUERY PLAN SELECT * FROM test_results"
        " JOIN series_health AS health ON health.series_id = test_results.series_id"
    )
    with reading(sqlite_archive) as connection:
        steps = [row.detail for row in connection.exec_driver_sql(question)]
    assert "SEARCH health USING AUTOMATIC COVERING INDEX (series_id=?)" in steps


@pytest.mark.parametrize(("view", "condition", "index"), CASES)
def test_postgresql_finds_by_an_index(
    postgresql_archive: Engine, view: str, condition: str, index: str
) -> None:
    """It may not scan, as it would with so few rows: the index has the condition."""
    with reading(postgresql_archive) as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        query = f"SELECT * FROM {prefix(connection)}{view} WHERE {condition}"
        nodes = list(explain(connection, query))
    conditions = {
        node.get("Index Name"): node["Index Cond"] for node in nodes if "Index Cond" in node
    }
    assert index in conditions
    assert "'" in conditions[index], "a constant of the filter, no join"
    read_whole = {
        node.get("Relation Name", node.get("Index Name"))
        for node in nodes
        if node["Node Type"].endswith("Scan") and not node.keys() & {"Index Cond", "Recheck Cond"}
    }
    assert read_whole <= {"plan_variants"}, "which has 8 rows here"


def explain(connection: Connection, query: str) -> Iterator[dict[str, Any]]:
    """Yield the nodes of a query plan."""
    [plan] = connection.execute(text(f"EXPLAIN (FORMAT JSON) {query}")).scalar_one()
    yield from walk(plan["Plan"])


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for each in node.get("Plans", ()):
        yield from walk(each)


def test_the_cases_name_each_filter_of_the_page() -> None:
    """What docs/BI.md calls indexed is proved here."""
    proved = " ".join(condition for _, condition, _ in CASES)
    for name in (
        "started_at", "started_on", "iso_date", "day", "week_starts_on", "row_changed_at",
        "changed_by", "run_id", "plan_id", "variant_id", "name", "value",
    ):  # fmt: skip
        assert f"{name} " in proved

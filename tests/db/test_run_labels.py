"""Labels of runs in the views: what people group by first, and what a copy has to learn of."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from etl.archive.verify import verify_archive
from etl.config.settings import Reporting
from etl.db.database import reading, writing
from etl.ledger import leases, tracking
from etl.ledger.tracking import Entry
from tests.support.dump import dump
from tests.support.looks import a_test, look
from tests.support.view_rows import as_read, only, prefix, select_all

MONDAY = datetime(2024, 3, 4, 10, 0, tzinfo=UTC)
COPIED = {
    "run_results": ("run_id",),
    "test_results": ("run_id", "position"),
    "environment_results": ("run_id", "position"),
    "run_labels": ("run_id", "name"),
}
"""The views with row_changed_at, and their keys."""
LABELS = {"branch": "main", "commit": "1f3c", "build": "17", "team": "web"}


def after(minutes: int) -> datetime:
    return MONDAY + timedelta(minutes=minutes)


def track(engine: Engine, run_id: str, at: datetime, **labels: str) -> None:
    """Have a list name a run with labels."""
    with writing(engine) as connection:
        tracking.track(connection, [Entry(run_id, None, None, labels)], at)


@pytest.fixture
def labelled(engine: Engine) -> Engine:
    """Three runs: one listed with labels, one labelled after it was archived, one without."""
    track(engine, "run-1", after(0), **LABELS)
    for number in (1, 2, 3):
        tests = a_test("cart", "passed"), a_test("login", "failed")
        look(engine, f"run-{number}", after(number), *tests, status="failed")
    track(engine, "run-2", after(5), branch="topic")
    return engine


@pytest.mark.parametrize("view", ["run_results", "test_results", "environment_results"])
def test_runs_and_tests_have_their_branch_commit_and_build(labelled: Engine, view: str) -> None:
    with reading(labelled) as connection:
        rows = select_all(connection, view)
    assert {tuple(only(row, "run_id branch commit_id build").values()) for row in rows} == {
        ("run-1", "main", "1f3c", "17"),
        ("run-2", "topic", None, None),
        ("run-3", None, None, None),
    }


def test_each_label_of_an_archived_run_is_a_row(labelled: Engine) -> None:
    track(labelled, "run-9", after(6), branch="not archived yet")
    with reading(labelled) as connection:
        rows = select_all(connection, "run_labels")
        runs = {row["run_id"]: row for row in select_all(connection, "run_results")}
    assert sorted((row["run_id"], row["name"], row["value"]) for row in rows) == sorted(
        [("run-2", "branch", "topic"), *[("run-1", *each) for each in LABELS.items()]]
    )
    shared = "source application plan started_on iso_date plan_id row_changed_at"
    for row in rows:
        assert only(row, shared) == only(runs[row["run_id"]], shared)


def test_a_pass_rate_by_branch_is_one_query(labelled: Engine) -> None:
    with reading(labelled) as connection:
        query = text(
            "SELECT branch, sum(tests_passed) * 1.0 / sum(tests_passed + tests_failed) AS rate"
            f" FROM {prefix(connection)}run_results WHERE branch IS NOT NULL"
            " GROUP BY branch ORDER BY branch"
        )
        assert [tuple(map(str, row)) for row in connection.execute(query)] == [
            ("main", as_number(connection)),
            ("topic", as_number(connection)),
        ]


def as_number(connection: Connection) -> str:
    """Return a half as each database prints it."""
    return "0.5" if connection.dialect.name == "sqlite" else "0.50000000000000000000"


def changed(engine: Engine) -> dict[str, tuple[Any, ...]]:
    """Return revision, changed_at and row_changed_at of each run."""
    with reading(engine) as connection:
        rows = select_all(connection, "run_results")
    names = "revision changed_at row_changed_at"
    return {row["run_id"]: tuple(only(row, names).values()) for row in rows}


def moment(engine: Engine, minutes: int) -> Any:
    with reading(engine) as connection:
        return as_read(after(minutes), connection)


def test_a_label_is_no_content_and_moves_row_changed_at_alone(labelled: Engine) -> None:
    assert changed(labelled) == {
        "run-1": (1, moment(labelled, 1), moment(labelled, 1)),
        "run-2": (1, moment(labelled, 2), moment(labelled, 5)),
        "run-3": (1, moment(labelled, 3), moment(labelled, 3)),
    }
    track(labelled, "run-1", after(7), commit="2e4d")
    assert changed(labelled)["run-1"] == (1, moment(labelled, 1), moment(labelled, 7))


def test_the_same_label_again_changes_nothing(labelled: Engine) -> None:
    with reading(labelled) as connection:
        once = dump(connection)
    track(labelled, "run-1", after(7), **LABELS)
    track(labelled, "run-2", after(7), branch="topic")
    with reading(labelled) as connection:
        assert dump(connection) == once


def test_row_changed_at_never_goes_back(labelled: Engine) -> None:
    """Clocks are set back; content that comes after a label is seen too."""
    track(labelled, "run-2", after(4), branch="main")
    assert changed(labelled)["run-2"] == (1, moment(labelled, 2), moment(labelled, 5))
    look(labelled, "run-2", after(4), a_test("cart", "passed"), status="passed")
    assert changed(labelled)["run-2"] == (2, moment(labelled, 4), moment(labelled, 5))
    look(labelled, "run-2", after(9), a_test("cart", "failed"), status="failed")
    assert changed(labelled)["run-2"] == (3, moment(labelled, 9), moment(labelled, 9))
    assert find_differences(labelled) == []


def find_differences(engine: Engine) -> list[Any]:
    found = list(verify_archive(engine, Reporting()))
    return [each for batch in found for each in (*batch.damage, *batch.differing)]


class Copy:
    """A copy that a BI tool keeps, as docs/BI.md says."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows = {view: {key_of(view, row): row for row in self.read(view)} for view in COPIED}

    def read(self, view: str, condition: str = "1 = 1", **given: Any) -> list[dict[str, Any]]:
        with reading(self.engine) as connection:
            query = text(f"SELECT * FROM {prefix(connection)}{view} WHERE {condition}")
            return [dict(row) for row in connection.execute(query, given).mappings()]

    def refresh(self) -> int:
        """Read the rows that changed since the newest one in the copy; return how many."""
        count = 0
        for view, rows in self.rows.items():
            newest = max(row["row_changed_at"] for row in rows.values())
            fresh = self.read(view, "row_changed_at >= :newest", newest=newest)
            replaced = {row["run_id"] for row in fresh}
            for key in [key for key in rows if key[0] in replaced]:
                del rows[key]
            rows |= {key_of(view, row): row for row in fresh}
            count += len(fresh)
        return count


def key_of(view: str, row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in COPIED[view])


def test_a_copy_that_is_refreshed_equals_a_full_read(labelled: Engine) -> None:
    copy = Copy(labelled)
    with writing(labelled) as connection:
        leases.mark_gone(connection, ["run-3"], after(10))
    track(labelled, "run-1", after(11), branch="release", note="new name")
    look(labelled, "run-2", after(12), a_test("cart", "passed"), status="passed")
    look(labelled, "run-4", after(13), a_test("cart", "passed"), status="passed")
    copy.refresh()
    assert copy.rows == Copy(labelled).rows
    with writing(labelled) as connection:
        leases.clear_gone(connection, {"run-3": after(14)})
    assert copy.refresh() > 0
    assert copy.rows == Copy(labelled).rows

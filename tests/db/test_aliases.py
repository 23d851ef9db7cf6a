"""The history of a renamed test can be joined, and parted again."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, select, text

from etl.config.settings import DEFAULT_RULES
from etl.db.database import connect, prepare, reading, writing
from etl.db.schema import HAS_METRICS, aliases, plan_variants, series, series_metrics
from etl.derived import marks
from etl.derived.aliases import Alias, add_alias
from etl.derived.plans import Plan
from tests.support.dump import rows_of
from tests.support.fake_api import FakeApi, result
from tests.support.histories import a_run, see
from tests.support.program import Program


@pytest.fixture
def engine(database_url: str, api: FakeApi, archiver: Program) -> Iterator[Engine]:
    """An archive in which a test of two plans was renamed, and failed since."""
    for plan in ("Nightly", "Smoke"):
        for day, (name, status) in enumerate(
            [("Pays", "passed"), ("Pays", "passed"), ("Pays by card", "failed")], start=1
        ):
            tests = [{"id": f"{plan} {day}", "name": name, "status": status}]
            started_at = f"2024-03-0{day}T12:00:00Z"
            answer = result(name=plan, application=" Shop", started_at=started_at, tests=tests)
            api.answers[f"{plan}-{day}"] = [answer]
    assert archiver.call("ingest", *api.answers).exit_code == 0
    engine = connect(database_url)
    yield engine
    engine.dispose()


def histories(engine: Engine) -> list[tuple[str, str | None, str]]:
    """Return plan, test and outcomes of each series."""
    query = (
        select(plan_variants.c.plan, series.c.test, series_metrics.c.recent)
        .join(series, series.c.variant_id == plan_variants.c.variant_id)
        .join(series_metrics, HAS_METRICS)
    )
    with reading(engine) as connection:
        return sorted(tuple(row) for row in connection.execute(query))


PARTED = [
    ("Nightly", "Pays", "PP"),
    ("Nightly", "Pays by card", "F"),
    ("Smoke", "Pays", "PP"),
    ("Smoke", "Pays by card", "F"),
]


def test_an_alias_joins_the_history_of_every_plan_and_can_be_taken_back(
    engine: Engine, archiver: Program
) -> None:
    assert histories(engine) == PARTED
    added = archiver.call("alias", "add", "Pays", "Pays by card", "--application", "Shop")
    assert added == (0, "", "Pays counts as Pays by card now\n")
    assert histories(engine) == [
        ("Nightly", "Pays by card", "PPF"),
        ("Smoke", "Pays by card", "PPF"),
    ]
    assert archiver.call("verify").exit_code == 0
    removed = archiver.call("alias", "remove", "Pays", "--application", "Shop")
    assert removed == (0, "", "Pays counts by itself again\n")
    assert histories(engine) == PARTED
    assert archiver.call("verify").exit_code == 0


@pytest.mark.usefixtures("engine")
def test_an_alias_of_a_name_that_no_test_has_is_added_with_a_doubt(archiver: Program) -> None:
    added = archiver.call("alias", "add", "Pay", "Pays by card", "--application", "Shop")
    assert added.exit_code == 0
    assert "no test there is called 'Pay' so far; did you mean 'Pays'?" in added.stderr
    known = archiver.call("alias", "add", "Pays", "Pays by card", "--application", "Shop")
    assert "so far" not in known.stderr


def test_an_alias_can_be_for_one_plan(engine: Engine, archiver: Program) -> None:
    where = ("--application", "Shop", "--plan", "Smoke")
    archiver.call("alias", "add", "Pays", "Pays by card", *where)
    assert histories(engine) == [*PARTED[:2], ("Smoke", "Pays by card", "PPF")]
    listed = archiver.call("alias", "list", "--json").json()
    assert listed == [
        {"application": "Shop", "plan": "Smoke", "old_name": "Pays", "new_name": "Pays by card"}
    ]


def test_what_arrives_later_under_the_old_name_counts_for_the_new_one(
    engine: Engine, archiver: Program, api: FakeApi
) -> None:
    archiver.call("alias", "add", "Pays", "Pays by card", "--application", "Shop")
    tests = [{"id": "again", "name": "Pays", "status": "passed"}]
    started_at = "2024-03-09T12:00:00Z"
    late = result(name="Smoke", application=" Shop", started_at=started_at, tests=tests)
    api.answers["late"] = [late]
    archiver.call("ingest", "late")
    assert ("Smoke", "Pays by card", "PPFP") in histories(engine)
    assert archiver.call("verify").exit_code == 0


def test_an_alias_that_was_taken_back_is_kept_with_its_time(
    engine: Engine, archiver: Program
) -> None:
    for verb in (["add", "Pays", "Pays by card"], ["remove", "Pays"]):
        archiver.call("alias", *verb, "--application", "Shop")
    with reading(engine) as connection:
        [row] = rows_of(connection, aliases)
    assert row["removed_at"] >= row["added_at"]


def test_no_alias_is_lost_by_a_downgrade(engine: Engine, archiver: Program) -> None:
    archiver.call("alias", "add", "Pays", "Pays by card", "--application", "Shop")
    refused = archiver.call("db", "downgrade", "0002")
    assert refused.exit_code == 4
    assert "would delete the aliases of renamed tests" in refused.stderr
    assert ("Smoke", "Pays by card", "PPF") in histories(engine)
    archiver.call("alias", "remove", "Pays", "--application", "Shop")
    assert archiver.call("db", "downgrade", "0002").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["add", "Pays", "Pays", "--application", "Shop"], "are the same"),
        (["add", "Pays", "P", "--application", "Shops"], "is in no archived run"),
        (["add", "Pays", "P", "--application", "Shop", "--plan", "X"], "is in no archived run"),
        (["remove", "Pays", "--application", "Shop"], "has none there"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(
    engine: Engine, archiver: Program, arguments: list[str], complaint: str
) -> None:
    done = archiver.call("alias", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert complaint in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_name_has_one_alias_at_a_time(engine: Engine, archiver: Program) -> None:
    archiver.call("alias", "add", "Pays", "Pays by card", "--application", "Shop")
    done = archiver.call("alias", "add", "Pays", "Pays cash", "--application", "Shop")
    assert done.exit_code == 2
    assert "is an alias of 'Pays by card' already" in done.stderr


def test_an_alias_that_leads_back_to_its_old_name_is_refused(
    engine: Engine, archiver: Program
) -> None:
    where = ("--application", "Shop")
    for names, plan in (
        (("Pays", "Pays by card"), []),
        (("Pays by card", "Pays with a card"), ["--plan", "Smoke"]),
    ):
        assert archiver.call("alias", "add", *names, *where, *plan).exit_code == 0
    joined = histories(engine)
    for new, plan, cycle in (
        ("Pays", [], "'Pays with a card', 'Pays', 'Pays by card', 'Pays with a card'"),
        ("Pays", ["--plan", "Smoke"], "'Pays with a card', 'Pays', 'Pays by card', "),
    ):
        done = archiver.call("alias", "add", "Pays with a card", new, *where, *plan)
        assert done.exit_code == 2
        assert f"would be its own new name: {cycle}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert histories(engine) == joined
    done = archiver.call("alias", "add", "Pays by card", "Pays", *where, "--plan", "Nightly")
    assert (done.exit_code, "would be its own" in done.stderr) == (2, True)


def test_an_alias_and_a_pass_never_wait_for_each_other_in_a_circle(postgresql_url: str) -> None:
    """Both hold several plans, and so have to take them in the same order."""
    engine = connect(postgresql_url)
    prepare(engine)
    plans = [Plan("default", "shop", str(number)) for number in range(8)]
    at = datetime(2024, 3, 4, tzinfo=UTC)
    runs = {plan.plan: a_run("2024-03-03T12:00:00Z", {"a": "P"}, name=plan.plan) for plan in plans}
    see(engine, at, runs)
    first, *others = sorted(plan.plan_id for plan in plans)

    def add() -> None:
        with writing(engine) as connection:
            add_alias(connection, Alias("default", "shop", "", "a", "b"), at, DEFAULT_RULES)

    with ThreadPoolExecutor(1) as executor:
        with writing(engine) as connection:
            marks.lock_plans(connection, [first])
            adding = executor.submit(add)
            is_waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            while not (adding.done() or connection.scalar(text(is_waiting))):
                time.sleep(0.01)
            marks.lock_plans(connection, others)
        adding.result()
    assert histories(engine) == [(plan.plan, "b", "P") for plan in plans]
    engine.dispose()

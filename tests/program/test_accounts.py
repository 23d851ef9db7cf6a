"""Two accounts with equal names of applications, plans and tests: nothing of them is mixed."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert, inspect, select, text, update

from etl import clock
from etl.archive.verify import verify_archive
from etl.cli.session import Wiring
from etl.config.settings import Reporting
from etl.db.database import migrations_folder, reading, writing
from etl.db.database_clock import keep_clock
from etl.db.schema import identities, ingests, tracked_runs
from etl.ledger import tracking
from etl.ledger.health import record_health
from etl.ledger.tracking import Entry
from etl.reports import catalog
from tests.support.histories import a_run, derive_with, label, measure_all, see
from tests.support.program import Program, program

START = datetime(2024, 3, 4, 12, tzinfo=UTC)
DAY = timedelta(days=1)
LIVE = {"login": "FFFFFF", "pay": "PPPPPP", "cart": "PUPPPU"}
STAGING = {"login": "PPPPPP", "pay": "PFPFPF", "cart": "UUPPPP"}
"""Results by day. Of both accounts together, `login` would be flaky."""
OF_ACCOUNTS = {"default": LIVE, "staging": STAGING}
WITHOUT_ACCOUNT = {
    "archive_settings", "calendar", "data_dictionary", "environment_sets", "schema_drift",
}  # fmt: skip
"""The views that are not of runs."""


def fill(engine: Engine, source: str, letters: Mapping[str, str]) -> None:
    """Store a run a day."""
    for day in range(6):
        answer = run_of(source, letters, day)
        see(engine, START + day * DAY + DAY / 24, {f"{source}-{day}": answer}, source=source)


def run_of(source: str, letters: Mapping[str, str], day: int) -> dict[str, Any]:
    """Return the run of a day, which starts a minute later in `staging` than in `default`."""
    tests = {name: each[day] for name, each in letters.items()}
    started_at = START + day * DAY + timedelta(minutes=source == "staging")
    status = "unresolved" if "U" in tests.values() else "passed"
    return a_run(started_at.isoformat(), tests, status=status)


@pytest.fixture
def accounts(engine: Engine) -> Engine:
    """Two accounts; in each, somebody accepted the open test of the second day."""
    derive_with(engine, Reporting("Europe/Berlin"))
    for source, letters in OF_ACCOUNTS.items():
        fill(engine, source, letters)
        accepted = letters | {"cart": letters["cart"][0] + "P" + letters["cart"][2:]}
        see(engine, START + 7 * DAY, {f"{source}-1": run_of(source, accepted, 1)}, source=source)
    label(engine, {"staging-5": "c1", "default-5": "c1"})
    with writing(engine) as connection:
        a_pass = {"trigger": "ingest", "started_at": START, "finished_at": START + 8 * DAY}
        connection.execute(insert(ingests).values(a_pass | {"exit_code": 0}))
        record_health(connection, 1, START + 8 * DAY)
    return engine


@pytest.fixture
def archiver(accounts: Engine, database_url: str, tmp_path: Path) -> Program:
    """The program, with both accounts, and a third one that has no runs."""
    return (
        program(tmp_path, database_url, "http://127.0.0.1:1")
        .given(
            RESULT_ARCHIVER__REPORTING__TIME_ZONE="Europe/Berlin",
            RESULT_ARCHIVER__SOURCES__STAGING__KEY_ENV="A",
            RESULT_ARCHIVER__SOURCES__SANDBOX__KEY_ENV="B",
        )
        .wired(Wiring(clock=lambda: START + 10 * DAY, shared_clock=keep_clock))
    )


def rows(archiver: Program, *arguments: str) -> list[dict[str, Any]]:
    done = archiver.call("report", *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    found: list[dict[str, Any]] = done.json()["rows"]
    return found


def select_all(engine: Engine, statement: str) -> list[tuple[Any, ...]]:
    """Return what a query gives; {} stands for the schema of the views."""
    schema = "reporting." if engine.dialect.name == "postgresql" else ""
    with reading(engine) as connection:
        return sorted(tuple(row) for row in connection.execute(text(statement.format(schema))))


# --- views ----------------------------------------------------------------------------------


def test_equal_names_are_two_plans_with_a_strip_each(accounts: Engine) -> None:
    strips = select_all(accounts, "SELECT source, test, recent, is_flaky FROM {}series_health")
    assert strips == [
        ("default", "cart", "PPPPPU", False),
        ("default", "login", "FFFFFF", False),
        ("default", "pay", "PPPPPP", False),
        ("staging", "cart", "UPPPPP", False),
        ("staging", "login", "PPPPPP", False),
        ("staging", "pay", "PFPFPF", True),
    ]
    days = "SELECT source, count(*), sum(runs), sum(tests) FROM {}daily_trend GROUP BY source"
    assert select_all(accounts, days) == [("default", 6, 6, 18), ("staging", 6, 6, 18)]
    ids = "SELECT count(DISTINCT plan_id), count(DISTINCT variant_id) FROM {}run_results"
    assert select_all(accounts, ids) == [(2, 2)]
    found = verify_archive(accounts, Reporting("Europe/Berlin"))
    assert [each for batch in found for each in (*batch.damage, *batch.differing)] == []


def test_every_view_of_runs_has_the_account_and_can_be_narrowed_to_it(accounts: Engine) -> None:
    views = {path.stem for path in migrations_folder().glob("views/**/*.sql")} - WITHOUT_ACCOUNT
    schema = "reporting" if accounts.dialect.name == "postgresql" else None
    for source, letters in OF_ACCOUNTS.items():  # a warning for each
        odd = run_of(source, letters, 2) | {"duration": "a minute"}
        see(accounts, START + 8 * DAY, {f"{source}-odd": odd}, source=source)
    with writing(accounts) as connection:
        lost = [Entry(f"{source}-lost", source, None, {}) for source in OF_ACCOUNTS]
        tracking.track(connection, lost, START)
        is_lost = tracked_runs.c.run_id.in_([each.run_id for each in lost])
        connection.execute(update(tracked_runs).where(is_lost).values(state="failed", due_at=None))
    for view in views:
        with reading(accounts) as connection:
            names = [each["name"] for each in inspect(connection).get_columns(view, schema)]
        assert "source" in names, view
        found = dict(select_all(accounts, f"SELECT source, count(*) FROM {{}}{view} GROUP BY 1"))
        assert found.keys() == OF_ACCOUNTS.keys(), view
        assert len(set(found.values())) == 1, f"both accounts have the same number of rows: {view}"


def test_whether_ids_repeat_is_measured_in_each_account(engine: Engine) -> None:
    for source in OF_ACCOUNTS:
        for number in range(12):
            run = a_run((START + number * DAY).isoformat(), {"login": "P", "pay": "P"})
            for test in run["tests"]:
                # The staging account makes new ids for each run.
                of_run = number if source == "staging" else ""
                test["id"] = f"{test['name']} {of_run}"
            see(engine, START + 20 * DAY, {f"{source}-{number}": run}, source=source)
    measure_all(engine, clock.now())
    columns = (identities.c.source, identities.c.application, identities.c.key_kind)
    with reading(engine) as connection:
        decided = sorted(tuple(row) for row in connection.execute(select(*columns)))
    assert decided == [("default", "shop", "id"), ("staging", "shop", "name")]
    assert select_all(engine, "SELECT source, test, test_id FROM {}series_health") == [
        ("default", "login", "login "),
        ("default", "pay", "pay "),
        ("staging", "login", None),
        ("staging", "pay", None),
    ]
    found = verify_archive(engine, Reporting("Europe/Berlin"))
    assert [each for batch in found for each in (*batch.damage, *batch.differing)] == []


# --- reports --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalog.REPORTS)
def test_every_report_can_be_narrowed_to_an_account(archiver: Program, name: str) -> None:
    period = [] if name == "health" else ["--from=2024-03-01", "--to=2024-03-20"]
    every = rows(archiver, name, *period)
    if name == "statuses":  # words of all accounts, counted together
        return
    assert {row["source"] for row in every} == {*OF_ACCOUNTS} or name == "flaky"
    for source in OF_ACCOUNTS:
        of_source = [row for row in every if row["source"] == source]
        assert rows(archiver, name, *period, f"--source={source}") == of_source
    table = archiver.call("report", name, *period).stdout
    assert "source" in table or name == "flaky"
    alone = archiver.call("report", name, *period, "--source=staging").stdout
    assert "source" not in alone, "the account is known"


def test_accounts_stay_apart_in_overview_and_trends(archiver: Program) -> None:
    period = ["--from=2024-03-01", "--to=2024-03-20"]
    names = ("source", "application", "runs", "passed", "failed", "flaky_series")
    found = [tuple(row[name] for name in names) for row in rows(archiver, "overview", *period)]
    assert found == [("default", "shop", 6, 11, 6, 0), ("staging", "shop", 6, 14, 3, 1)]
    for name, periods in (("trend", 6), ("weekly", 1)):
        runs = [(row["source"], row["runs"]) for row in rows(archiver, name, *period)]
        assert (
            sorted(runs)
            == [("default", 6 // periods)] * periods + [("staging", 6 // periods)] * periods
        )
    # With --test the answer is computed from history, not read from the tables.
    found = [
        (row["source"], row["failed"]) for row in rows(archiver, "weekly", *period, "--test=login")
    ]
    assert found == [("default", 6), ("staging", 0)]


def test_words_for_a_status_are_counted_in_one_account(archiver: Program) -> None:
    def failed(*arguments: str) -> int:
        found = rows(archiver, "statuses", *arguments)
        return sum(
            row["results"] for row in found if (row["of"], row["status"]) == ("test", "failed")
        )

    assert (failed(), failed("--source=default"), failed("--source=staging")) == (9, 6, 3)


def test_an_archive_of_one_account_answers_without_a_word_of_it(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    archiver = program(tmp_path, database_url, "http://127.0.0.1:1")
    fill(engine, "default", LIVE)
    for name in catalog.REPORTS:
        for form in ("table", "csv", "json", "markdown", "html"):
            done = archiver.call("report", name, f"--format={form}")
            heads = [line for line in done.stdout.splitlines() if "application" in line]
            assert not any("source" in line for line in heads), (name, form)
    assert "source" not in archiver.call("show", "--test=login").stdout
    assert "source" not in archiver.call("show", "--test=login", "--json").stdout


def test_an_answer_as_of_a_moment_before_the_second_account_stays_as_it_was(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    archiver = program(tmp_path, database_url, "http://127.0.0.1:1")
    fill(engine, "default", LIVE)
    asked = ("report", "series", "--as-of=2024-03-20", "--json")
    before = archiver.call(*asked)
    at = START + 30 * DAY
    see(engine, at, {"late": a_run(at.isoformat(), {"login": "P"})}, source="staging")
    assert archiver.call(*asked) == before
    assert {row["source"] for row in rows(archiver, "series")} == {*OF_ACCOUNTS}


# --- the page -------------------------------------------------------------------------------


def test_the_page_names_the_account_of_each_row_and_chart(archiver: Program) -> None:
    period = ["--from=2024-03-01", "--to=2024-03-20"]
    page = archiver.call("report", "--format=html", *period).stdout
    for source in OF_ACCOUNTS:
        assert f"<h3><bdi>{source} · shop</bdi></h3>" in page, "a trend of each account"
    assert "default · login · shop" in page, "fails in one account"
    assert "staging · pay · shop" in page, "flips in the other"
    assert '<th scope="col" title="The account: default' in page
    alone = archiver.call("report", "--format=html", *period, "--source=staging").stdout
    assert "<div><dt>Source</dt><dd><bdi>staging</bdi></dd></div>" in alone
    assert "default" not in alone.replace("default-src", "")
    assert "<h3><bdi>shop</bdi></h3>" in alone


# --- commands -------------------------------------------------------------------------------


def test_a_history_is_of_one_account(archiver: Program) -> None:
    def strips(*arguments: str) -> list[tuple[str, str]]:
        found = archiver.call("show", "--test=login", "--json", *arguments).json()
        return [(each["source"], each["strip"]) for each in found]

    assert sorted(strips()) == [("default", "FFFFFF"), ("staging", "PPPPPP")]
    assert strips("--source=staging") == [("staging", "PPPPPP")]
    both = archiver.call("show", "--test=login").stdout
    assert "default / shop / nightly / login\n" in both
    assert "staging / shop / nightly / login\n" in both
    alone = archiver.call("show", "--test=login", "--source=staging").stdout
    assert alone.startswith("shop / nightly / login\n")


def test_a_gate_judges_the_newest_run_of_one_account(archiver: Program) -> None:
    gate = ("gate", "--application=shop", "--plan=nightly", "--max-failed=0", "--json")
    asked = archiver.call(*gate)
    assert (asked.exit_code, asked.stdout) == (2, "")
    assert asked.stderr == (
        "error: application shop, plan nightly: is in several accounts; name one by --source:"
        " default, staging\n"
    )
    judged = [archiver.call(*gate, f"--source={source}") for source in OF_ACCOUNTS]
    assert [each.json()["run_id"] for each in judged] == ["default-5", "staging-5"]
    new = ("gate", "--application=shop", "--plan=nightly", "--max-new-failures=0")
    # `pay` failed in staging, and passed before; `login` failed in default, as before.
    assert [archiver.call(*new, f"--source={s}").exit_code for s in OF_ACCOUNTS] == [0, 1]
    misplaced = archiver.call("gate", "staging-5", "--max-failed=0", "--source=staging")
    assert misplaced.exit_code == 2
    assert misplaced.stderr.startswith("error: gate RUN_ID: --source goes with --application")


def test_an_alias_is_of_one_account(accounts: Engine, archiver: Program) -> None:
    alias = ("alias", "add", "login", "sign in", "--application=shop")
    asked = archiver.call(*alias)
    assert asked.exit_code == 2
    assert asked.stderr == (
        "error: application shop: is in several accounts; name one by --source: default, staging\n"
    )
    assert archiver.call(*alias, "--source=staging").exit_code == 0
    names = "SELECT source, test FROM {}series_health WHERE test LIKE '%in'"
    assert select_all(accounts, names) == [("default", "login"), ("staging", "sign in")]
    listed = archiver.call("alias", "list", "--source=staging", "--json").json()
    assert [each["new_name"] for each in listed] == ["sign in"]
    assert archiver.call("alias", "list", "--source=default", "--json").json() == []
    missing = archiver.call("alias", "remove", "login", "--application=shop", "--source=default")
    assert missing.exit_code == 2
    archiver.call(*alias, "--source=default")
    both = archiver.call("alias", "list", "--json").json()
    assert [each["source"] for each in both] == ["default", "staging"]
    removed = archiver.call("alias", "remove", "login", "--application=shop", "--source=staging")
    assert removed.exit_code == 0
    assert select_all(accounts, names) == [("default", "sign in"), ("staging", "login")]
    assert archiver.call("verify").exit_code == 0


def test_an_alias_needs_no_account_where_one_alone_has_the_application(
    accounts: Engine, archiver: Program
) -> None:
    see(accounts, START, {"own": a_run(START.isoformat(), {"a": "P"}, application="own")})
    done = archiver.call("alias", "add", "a", "b", "--application=own")
    assert (done.exit_code, done.stderr) == (0, "a counts as b now\n")


@pytest.mark.parametrize(
    "command",
    [
        "report overview",
        "report --format html",
        "show --test login",
        "gate --application shop --plan nightly --max-failed 0",
        "alias list",
        "alias add login in --application shop",
        "alias remove login --application shop",
    ],
)
def test_an_unknown_account_is_an_error_with_near_names(archiver: Program, command: str) -> None:
    done = archiver.call(*command.split(), "--source", "Stagin")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --source Stagin: is neither configured nor in the archive; did you mean staging?"
        " there are default, sandbox, staging\n"
    )


def test_an_account_that_is_configured_no_more_can_be_asked_for(
    accounts: Engine, database_url: str, tmp_path: Path
) -> None:
    archiver = program(tmp_path, database_url, "http://127.0.0.1:1")
    assert {row["source"] for row in rows(archiver, "series", "--source=staging")} == {"staging"}


def test_an_account_without_runs_is_said_to_have_none(archiver: Program) -> None:
    done = archiver.call("report", "overview", "--source=sandbox")
    assert done.exit_code == 0
    assert done.stderr == (
        "no rows: no archived run is of source 'sandbox'; the archive has 'default', 'staging'\n"
    )
    gate = archiver.call(
        "gate", "--source=sandbox", "--application=shop", "--plan=a", "--max-failed=0"
    )
    assert "no archived run is of source 'sandbox'" in gate.stderr


def test_names_are_looked_for_in_the_account_that_is_asked_for(
    accounts: Engine, archiver: Program
) -> None:
    see(accounts, START, {"own": a_run(START.isoformat(), {"a": "P"}, application="shop 2")})
    done = archiver.call("report", "overview", "--source=staging", "--application=shop 2")
    assert done.stderr == (
        "no rows: no application of source 'staging' is called 'shop 2'; near it: 'shop'; the"
        " archive has 'shop'\n"
    )

"""`compare`, `gate` and `show --test`, as users see them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from etl.archive import identity
from etl.db.database import writing
from etl.derived import plans, refresh
from etl.derived.plans import Application, IdentityRule, NamedTest
from etl.ledger import tracking
from etl.ledger.tracking import Entry
from etl.reports.comparison import Class, RunTests, classify, compare
from tests.support.histories import CHROME, SAFARI, WORDS, a_run, label, see
from tests.support.program import Program, program

START = datetime(2024, 3, 4, 9, 0, 0, 0, UTC)
DAY = timedelta(days=1)


@pytest.fixture
def archiver(engine: Engine, database_url: str, tmp_path: Path) -> Program:
    return program(tmp_path, database_url, "http://127.0.0.1:1")


def run_on(day: int, letters: dict[str, str], **fields: object) -> dict[str, object]:
    return a_run((START + day * DAY).isoformat(), letters, **fields)


# --- compare --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("letters", "what"),
    [
        ("PF", Class.NEW_FAILURE),
        ("FP", Class.FIXED),
        ("FF", Class.STILL_FAILING),
        ("PP", Class.STILL_PASSING),
        ("PU", Class.BECAME_OPEN),
        ("AU", Class.BECAME_OPEN),
        ("UP", Class.CLOSED),
        ("UF", Class.CLOSED),
        ("UA", Class.CLOSED),
        ("UU", Class.OTHER),
        ("UN", Class.OTHER),
        ("AF", Class.OTHER),
        ("PA", Class.OTHER),
        ("?P", Class.OTHER),
    ],
)
def test_what_became_of_a_test(letters: str, what: Class) -> None:
    assert classify(*letters) is what


names = st.sampled_from(["login", "pay", "search"])
run_tests = st.lists(st.tuples(names, st.sampled_from("PFAUN?")), max_size=8)


@given(run_tests, run_tests)
def test_each_test_of_both_runs_is_in_one_class(
    before: list[tuple[str, str]], after: list[tuple[str, str]]
) -> None:
    found = compare(side(before), side(after))
    assert sorted(each.test or "" for each in found if each.what is not Class.ADDED) == sorted(
        name for name, _ in before
    )
    assert sorted(each.test or "" for each in found if each.what is not Class.REMOVED) == sorted(
        name for name, _ in after
    )


def side(tests: list[tuple[str, str]]) -> RunTests:
    roster = plans.TestIdentities(IdentityRule()).build_roster(
        "r", [NamedTest(name, "e2e") for name, _ in tests]
    )
    return RunTests(roster, "".join(letter for _, letter in tests), {})


def test_compare_lists_what_is_new_first_and_pairs_equal_names_in_order(
    engine: Engine, archiver: Program
) -> None:
    before = {"same": "P", "worse": "P", "better": "F", "gone": "P", "twice": "PF", "odd": "A"}
    after = {"same": "P", "worse": "F", "better": "P", "new": "F", "twice": "FFP", "odd": "N"}
    see(engine, START, {"a": run_on(0, before), "b": run_on(1, after)})
    done = archiver.call("compare", "a", "b")
    assert done.exit_code == 0
    *listed, counted = done.stdout.splitlines()[2:]
    assert [line.split() for line in listed] == [
        ["new_failure", "worse", "passed", "failed"],
        ["new_failure", "twice", "passed", "failed"],
        ["still_failing", "twice", "failed", "failed"],
        ["fixed", "better", "failed", "passed"],
        ["added", "new", "-", "failed"],
        ["added", "twice", "-", "passed"],
        ["removed", "gone", "passed", "-"],
    ]
    assert counted == (
        "2 new_failure, 1 still_failing, 1 fixed, 2 added, 1 removed, 1 other, 1 still_passing"
    )
    answer = archiver.call("compare", "a", "b", "--json").json()
    assert answer["runs"] == ["a", "b"]
    assert answer["counts"] == {
        "new_failure": 2, "still_failing": 1, "fixed": 1, "became_open": 0, "closed": 0,
        "added": 2, "removed": 1, "other": 1, "still_passing": 1,
    }  # fmt: skip
    assert len(answer["tests"]) == 9
    assert answer["tests"][0] == {
        "class": "new_failure", "test": "worse", "type": "e2e", "from_status": "passed",
        "to_status": "failed",
    }  # fmt: skip


def test_runs_that_cannot_be_compared_are_named(engine: Engine, archiver: Program) -> None:
    see(engine, START, {"a": run_on(0, {"pay": "P"})})
    with writing(engine) as connection:
        tracking.track(connection, [Entry("waiting", None, None, {})], START)
    unknown = archiver.call("compare", "a", "b")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert unknown.stderr == "error: run b: is not tracked; `result-archiver track` adds it\n"
    waiting = archiver.call("compare", "waiting", "a")
    assert (waiting.exit_code, waiting.stderr) == (
        2, "error: run waiting: nothing archived yet\n"
    )  # fmt: skip


# --- gate -----------------------------------------------------------------------------------


@pytest.fixture
def judged(engine: Engine, archiver: Program) -> Program:
    """The program, with runs of a plan: the last but one is over, the last is going."""
    see(engine, START, {"first": run_on(0, {"login": "P", "pay": "F", "search": "P", "a": "P"})})
    see(engine, START, {"open": run_on(1, {"login": "U", "pay": "U", "search": "U", "a": "U"})})
    other = run_on(2, {"login": "F", "pay": "P", "search": "P"}, environments=[CHROME, SAFARI])
    see(engine, START, {"elsewhere": other})
    letters = {"login": "F", "pay": "F", "search": "P", "a": "A", "new": "F", "b": "U"}
    see(engine, START, {"last": run_on(3, letters)})
    see(engine, START, {"going": run_on(4, {"login": "N"}, status="running")})
    label(engine, {"first": "c1", "last": "c2"})
    return archiver


@pytest.mark.parametrize(
    ("limits", "reasons"),
    [
        ("--min-pass-rate 0.25 --min-decided-share 0.6", []),
        ("--min-pass-rate 0.26", ["pass rate: 25.00%, and 26.00% or more is wanted"]),
        ("--min-decided-share 0.7", ["decided share: 66.67%, and 70.00% or more is wanted"]),
        ("--max-failed 3 --max-unresolved 1 --max-aborted 1 --max-new-failures 2", []),
        (
            "--max-failed 2 --max-unresolved 0 --max-aborted 0 --max-new-failures 1",
            [
                "failed: 3, and at most 2 are allowed",
                "new failures: 2, and at most 1 are allowed",
                "unresolved: 1, and at most 0 are allowed",
                "aborted: 1, and at most 0 are allowed",
            ],
        ),
    ],
)
def test_a_run_is_held_against_limits(judged: Program, limits: str, reasons: list[str]) -> None:
    done = judged.call("gate", "last", *limits.split())
    lines = reasons or ["is within all limits"]
    assert done.stdout.splitlines() == [f"run last: {line}" for line in lines]
    assert done.exit_code == bool(reasons)
    answer = judged.call("gate", "last", *limits.split(), "--json").json()
    assert (answer["passed"], answer["reasons"]) == (not reasons, reasons)
    assert answer["measured"] == {
        "pass_rate": 0.25, "decided_share": 4 / 6, "failed": 3, "new_failures": 2,
        "unresolved": 1, "aborted": 1,
    }  # fmt: skip


def test_of_a_plan_the_newest_run_that_is_over_is_judged(judged: Program) -> None:
    plan = ("--application=shop", "--plan=nightly")
    done = judged.call("gate", *plan, "--max-failed=2")
    assert (done.exit_code, done.stdout[:9]) == (1, "run last:")
    of_commit = judged.call("gate", *plan, "--max-failed=2", "--label=commit=c1")
    assert (of_commit.exit_code, of_commit.stdout) == (0, "run first: is within all limits\n")


def test_a_run_that_is_not_over_does_not_pass(engine: Engine, judged: Program) -> None:
    done = judged.call("gate", "going", "--max-failed=9")
    assert done.exit_code == 1
    assert done.stdout == "run going: is not over yet (status running): it cannot be judged\n"
    with writing(engine) as connection:
        tracking.track(connection, [Entry("waiting", None, None, {})], START)
    done = judged.call("gate", "waiting", "--max-failed=9", "--json")
    assert (done.exit_code, done.json()["passed"], done.json()["measured"]) == (1, False, None)


def test_a_pass_rate_of_nothing_is_not_good_enough(judged: Program) -> None:
    done = judged.call("gate", "open", "--min-pass-rate=0.01")
    assert done.exit_code == 1
    assert done.stdout == "run open: pass rate: nothing is decided, and 1.00% or more is wanted\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("last", "gate: give a limit, such as --min-pass-rate 0.95"),
        ("--max-failed 1", "gate: give a run ID, or --application and --plan"),
        ("--max-failed 1 --plan nightly", "gate: give a run ID, or --application and --plan"),
        ("nobody --max-failed 1", "run nobody: is not tracked; `result-archiver track` adds it"),
        (
            "--max-failed 1 --application shop --plan daily",
            (
                "gate: no run that is over is archived of application 'shop', plan 'daily'; no plan"
                " of application 'shop' is called 'daily'; the archive has 'nightly'"
            ),
        ),
    ],
)
def test_what_cannot_be_judged_is_a_usage_error(
    judged: Program, arguments: str, error: str
) -> None:
    done = judged.call("gate", *arguments.split())
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"error: {error}\n")


# --- show --test ----------------------------------------------------------------------------


def test_a_tests_history_is_a_strip_for_each_series(judged: Program) -> None:
    done = judged.call("show", "--test", "login")
    assert done.exit_code == 0
    alone, both = done.stdout.split("\n\n")[:2]
    if "Safari" in alone:
        alone, both = both, alone
    assert alone.splitlines()[:4] == [
        "shop / nightly / login",
        "Linux / Chrome / Desktop",
        "PUFN",
        "1 passed, 1 failed: pass rate 50.0%, decided 50.0%",
    ]
    assert alone.splitlines()[-1].split() == ["2024-03-04", "09:00", "P", "first"]
    assert both.splitlines()[2] == "F"


def test_a_tests_history_as_json_has_all_runs(judged: Program) -> None:
    answer = judged.call("show", "--test", "pay", "--application", "shop", "--json").json()
    alone = next(each for each in answer if "Safari" not in each["environments"])
    assert alone["strip"] == "FUF"
    assert [run["run_id"] for run in alone["runs"]] == ["last", "open", "first"]
    assert alone["runs"][0] == {
        "run_id": "last", "started_at": "2024-03-07T09:00:00.000Z", "status": "failed"
    }  # fmt: skip


def test_a_test_that_is_known_by_its_id_has_its_results_under_former_names(
    engine: Engine, archiver: Program
) -> None:
    for day, (name, letter) in enumerate((("old", "P"), ("old", "F"), ("new", "U"))):
        names = [name, *(f"test {number}" for number in range(10))]
        tests = [
            {"id": f"id-{place}", "name": each, "status": WORDS[letter]}
            for place, each in enumerate(names)
        ]
        see(engine, START, {f"run-{day}": run_on(day, {}, tests=tests)})
    identity.measure_new(engine, {Application("default", "shop")}, START, UTC)
    refresh.refresh_marked(engine)
    [history] = archiver.call("show", "--test", "new", "--json").json()
    assert (history["strip"], history["test_id"]) == ("PFU", "id-0")
    assert [run["run_id"] for run in history["runs"]] == ["run-2", "run-1", "run-0"]
    former = archiver.call("show", "--test", "old")
    assert (former.exit_code, "no test of these runs is called 'old'" in former.stderr) == (2, True)


def test_an_unknown_word_is_shown_as_the_api_sent_it(engine: Engine, archiver: Program) -> None:
    tests = [[("a", "asleep"), ("b", "")], [("a", "passed"), ("b", "dozing")]]
    for day, listed in enumerate(tests):
        named = [{"name": name, "status": word} for name, word in listed]
        see(engine, START + day * DAY, {"changing": run_on(0, {}, tests=named)})
        see(engine, START, {f"run-{day}": run_on(day, {}, tests=named, name="weekly")})
    compared = archiver.call("compare", "run-0", "run-1", "--json").json()["tests"]
    assert [(each["from_status"], each["to_status"]) for each in compared] == [
        ("asleep", "passed"),
        ("", "dozing"),
    ]
    shown = [
        archiver.call("show", "--test", name, "--plan", "weekly", "--json").json()[0]["runs"]
        for name in "ab"
    ]
    assert [[run["status"] for run in runs] for runs in shown] == [
        ["passed", "asleep"],
        ["dozing", ""],
    ]
    changed = archiver.call("report", "changes", "--from=2024-03-01", "--json").json()["rows"]
    assert [(row["from_status"], row["to_status"]) for row in changed] == [
        ("asleep", "passed"),
        ("", "dozing"),
    ]
    of_then = ("--test", "a", "--plan", "nightly", "--as-of", "2024-03-04T12:00Z", "--json")
    [then] = archiver.call("show", *of_then).json()
    assert [run["status"] for run in then["runs"]] == ["asleep"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            "--test Logn",
            (
                "test Logn: no run has it; no test of these runs is called 'Logn'; near it:"
                " 'login'; the archive has 'a', 'b', 'login', 'new', 'pay', 'search'"
            ),
        ),
        (
            "--test login --plan other",
            ("test login: no run has it; no plan is called 'other'; the archive has 'nightly'"),
        ),
        ("last --test login", "show: give a run ID, or --test NAME"),
        (
            "last --plan other",
            "show RUN_ID: --source, --application, --plan, --as-of go with --test",
        ),
    ],
)
def test_a_history_that_is_not_there_is_an_error(
    judged: Program, arguments: str, error: str
) -> None:
    done = judged.call("show", *arguments.split())
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"error: {error}\n")

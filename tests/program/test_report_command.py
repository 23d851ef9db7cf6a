"""`report` as users see it: forms, filters, and names that are out to harm."""

import csv
import io
import json
import re
import unicodedata
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Engine

from etl.config.settings import Reporting
from etl.db import database
from etl.reports import catalog
from etl.reports.model import Filter
from tests.support.histories import CHROME, SAFARI, a_run, derive_with, label, see
from tests.support.program import Program, program

START = datetime(2024, 3, 4, 22, 30, 0, 0, UTC)
"""In Berlin it is half an hour before midnight."""
HOUR = timedelta(hours=1)
AS_OF = "--as-of=2024-03-20"
HOSTILE = (
    "=cmd|' /C calc'!A0",
    "\x1b[31mred\x1b[0m \x9b2J \u202egnp.exe",
    "| pipe ` <script>alert(1)</script> [x](http://x.example) ![](y) **b** &amp; www.x.example",
    "two\nlines\r\tand more",
    "+1 -1 @sum",
    "ヘルプ " * 20,
)


@pytest.fixture
def archiver(engine: Engine, database_url: str, tmp_path: Path) -> Program:
    """The program, with an archive in which two plans ran three times each."""
    derive_with(engine, Reporting("Europe/Berlin"))
    histories: dict[str, tuple[str, str, str]] = {"login": ("P", "F", "P"), "pay": ("P", "U", "F")}
    for day in range(3):
        tests = {name: letters[day] for name, letters in histories.items()}
        started_at = (START + day * 24 * HOUR).isoformat()
        runs = {
            f"shop-{day}": a_run(started_at, tests),
            f"cafe-{day}": a_run(
                started_at,
                {"menu": "P?"},
                application=" café ",
                name="smoke",
                status="unresolved" if day == 1 else "passed",
                environments=[CHROME, SAFARI],
            ),
        }
        see(engine, START + day * 24 * HOUR + HOUR, runs)
    label(engine, {"shop-0": "c1", "shop-1": "c2", "shop-2": "c2"})
    return program(tmp_path, database_url, "http://127.0.0.1:1").given(
        RESULT_ARCHIVER__REPORTING__TIME_ZONE="Europe/Berlin"
    )


def found(archiver: Program, *arguments: str) -> list[dict[str, Any]]:
    """Return the rows of a report."""
    done = archiver.call("report", *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    rows: list[dict[str, Any]] = done.json()["rows"]
    return rows


# --- what is asked --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filters", "runs"),
    [
        ("--from 2024-03-01 --application shop", ["shop"] * 3),
        ("--from 2024-03-01 --application café", ["café"] * 3),
        ("--from 2024-03-01 --plan smoke", ["café"] * 3),
        ("--from 2024-03-01 --test pay", ["shop"] * 3),
        ("--from 2024-03-01 --label commit=c2", ["shop"] * 2),
        ("--from 2024-03-01 --label commit=c2 --application café", []),
        ("--from 2024-03-01 --application Shop", []),
        ("--from 2024-03-05", ["café", "shop"] * 2),
        ("--to 2024-03-04", ["café", "shop"]),
        ("--from 2024-03-05T23:30 --to 2024-03-06T23:30", ["café", "shop"]),
        ("--from 2024-03-05T22:31Z", ["café", "shop"]),
        ("--from 2024-03-05 --to 2024-03-05 --application shop", ["shop"]),
        ("--as-of 2024-03-06T00:30", ["café", "shop"] * 2),
        ("--as-of 2024-03-04", []),
    ],
)
def test_filters_leave_out_what_they_name(archiver: Program, filters: str, runs: list[str]) -> None:
    assert [row["application"] for row in found(archiver, "trend", *filters.split())] == runs


def test_a_test_is_counted_by_itself(archiver: Program) -> None:
    counted = ("passed", "failed", "unresolved", "unknown", "checks_passed")
    rows = found(archiver, "weekly", "--from=2024-03-04", "--to=2024-03-10", "--test=pay")
    assert [[row[name] for name in counted] for row in rows] == [[1, 1, 1, 0, None]]
    rows = found(archiver, "weekly", "--from=2024-03-04", "--to=2024-03-10", "--plan=nightly")
    assert [[row[name] for name in counted] for row in rows] == [[3, 2, 1, 0, 0]]


def test_each_application_is_counted_in_the_overview(archiver: Program) -> None:
    cafe, shop = found(archiver, "overview", AS_OF)
    names = ("runs", "tests", "passed", "failed", "unresolved", "unknown", "pass_rate")
    assert [cafe[name] for name in names] == [3, 6, 3, 0, 0, 3, 1]
    assert [shop[name] for name in names] == [3, 6, 3, 2, 1, 0, 0.6]
    more = ("decided_share", "pass_rate_low", "pass_rate_high", "judged_series", "flaky_rate")
    assert [shop[name] for name in more] == [5 / 6, 0.5, 4 / 6, 0, None]
    assert [shop[name] for name in ("open_runs", "open_tests")] == [1, 1]


def test_tests_that_were_not_seen_for_90_days_are_not_counted_as_flaky(
    engine: Engine, archiver: Program
) -> None:
    for number, letter in enumerate("PFPFP"):
        started_at = (START + number * HOUR).isoformat()
        see(engine, START + 5 * HOUR, {f"old-{number}": a_run(started_at, {"basket": letter})})
    names = ("application", "judged_series", "flaky_series", "flaky_rate")
    for day, counted in (("2024-06-02", [1, 1, 1]), ("2024-06-03", [0, 0, None])):
        rows = found(archiver, "overview", f"--as-of={day}", "--application=shop")
        assert [[row[name] for name in names] for row in rows] == [["shop", *counted]]
    assert [row["test"] for row in found(archiver, "flaky")] == ["basket"]


def test_a_test_is_failing_when_it_failed_twice_in_a_row(engine: Engine, archiver: Program) -> None:
    for number, letters in enumerate(({"once": "A", "twice": "F"}, {"once": "F", "twice": "F"})):
        started_at = (START + number * HOUR).isoformat()
        see(engine, START + 5 * HOUR, {f"new-{number}": a_run(started_at, letters)})
    rows = found(archiver, "failures", "--from=2024-03-04", "--to=2024-03-05")
    assert {row["test"]: row["class"] for row in rows if row["test"] in {"once", "twice"}} == {
        "twice": "failing"
    }


def test_failures_have_their_class_and_their_streak(archiver: Program) -> None:
    rows = found(archiver, "failures")
    names = ("class", "test", "fail_streak", "streak_since", "recent")
    assert [[row[name] for name in names] for row in rows] == [
        ["regression", "pay", 1, "2024-03-06T22:30:00.000Z", "PUF"],
        ["recovered", "login", 0, None, "PFP"],
    ]


def test_what_waits_has_its_age(archiver: Program) -> None:
    [run] = found(archiver, "unresolved", "--as-of=2024-03-07T00:31:00")
    assert [run["run_id"], run["opened_at"], run["tests"]] == [
        "shop-1", "2024-03-05T22:31:00.000Z", 1
    ]  # fmt: skip
    assert [run["age_ms"], run["age"]] == [25 * 3_600_000, "1 to 3 days"]
    [plan] = found(archiver, "backlog", "--as-of=2024-03-07T00:31:00")
    ages = ("under_1_day", "days_1_to_3", "days_3_to_7", "days_7_to_14", "over_14_days")
    assert [plan[name] for name in ages] == [0, 1, 0, 0, 0]


def test_how_long_people_take_is_told_within_bounds(engine: Engine, archiver: Program) -> None:
    decided = a_run((START + 24 * HOUR).isoformat(), {"login": "F", "pay": "P"})
    see(engine, START + 50 * HOUR, {"shop-1": decided})
    [row] = found(archiver, "resolution", AS_OF)
    counts = ("resolved", "to_passed", "to_failed", "to_aborted", "still_open")
    assert [row[name] for name in counts] == [1, 1, 0, 0, 0]
    # Over at 22:31, seen open at 23:30, seen decided the day after at 00:30.
    assert [row["p50_min_ms"], row["p50_max_ms"]] == [59 * 60_000, 26 * 3_600_000 - 60_000]
    changes = found(archiver, "changes", AS_OF)
    assert [[row[name] for name in ("test", "from_status", "to_status")] for row in changes] == [
        ["pay", "unresolved", "passed"]
    ]


def test_a_rate_by_environment_is_that_of_runs_in_it_alone(archiver: Program) -> None:
    rows = found(archiver, "environments", AS_OF)
    names = ("application", "browser", "runs", "shared", "pass_rate", "is_covered")
    assert [[row[name] for name in names] for row in rows] == [
        ["café", "Chrome", 0, 3, None, True],
        ["café", "Safari", 0, 3, None, True],
        ["shop", "Chrome", 3, 0, 0.6, True],
    ]


def test_environments_that_no_run_was_in_lately_are_stale(archiver: Program) -> None:
    rows = found(archiver, "environments", "--as-of=2024-05-01")
    assert {row["is_covered"] for row in rows} == {False}
    assert found(archiver, "environments", "--as-of=2024-07-01") == []


def test_words_that_nobody_knows_are_listed_and_not_counted(archiver: Program) -> None:
    rows = found(archiver, "statuses")
    assert [row for row in rows if row["counted_as"] is None] == [
        {"of": "test", "status": "sleeping", "counted_as": None, "results": 3}
    ]
    assert sum(row["results"] for row in rows if row["of"] == "run") == 6


def test_an_empty_status_is_counted_with_missing_ones(engine: Engine, archiver: Program) -> None:
    for number, status in enumerate((None, "", None)):
        tests = [{"name": name, "status": word} for name, word in (("a", status), ("b", ""))]
        see(engine, START, {f"odd-{number}": a_run(None, {}, status=status, tests=tests)})
    rows = found(archiver, "statuses")
    assert [(row["of"], row["results"]) for row in rows if row["status"] is None] == [
        ("run", 3),
        ("test", 6),
    ]
    assert "" not in {row["status"] for row in rows}


def test_words_are_those_of_the_moment(engine: Engine, archiver: Program) -> None:
    again = {"cafe-0": a_run(START.isoformat(), {"menu": "PP"}, application="café", name="smoke")}
    see(engine, START + 100 * HOUR, again)
    words = ("sleeping", None)
    now, then = (
        [row["results"] for row in found(archiver, "statuses", *as_of) if row["status"] in words]
        for as_of in ((), ("--as-of=2024-03-08T00:00",))
    )
    assert (now, then) == ([2], [3])


# --- bad questions --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("flakey", "report flakey: there is none; there are overview, trend, weekly, "),
        (
            "durations --test login",
            (
                "report durations: cannot be limited by --test; it takes --application, --from,"
                " --label, --plan, --source, --to"
            ),
        ),
        (
            "health --from 2024-03-01",
            "report health: cannot be limited by --from; it takes --source",
        ),
        ("trend --from yesterday", "--from yesterday: give a day or a time such as 2026-11-02"),
        ("trend --from 2024-03-02 --to 2024-03-01", "--from 2024-03-02: is not before --to"),
        ("trend --as-of 2999-01-01", "--as-of 2999-01-01: is not over yet (Europe/Berlin)"),
        ("trend --as-of 2024-03-05 --label a=b", "--label: labels have no history"),
        ("trend --label a", "--label 'a': give NAME=VALUE"),
        ("trend --format pdf", "--format pdf: give table, csv, json"),
    ],
)
def test_a_question_that_makes_no_sense_is_one_line(
    archiver: Program, arguments: str, error: str
) -> None:
    done = archiver.call("report", *arguments.split())
    assert (done.exit_code, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: {error}")


def test_without_a_name_the_reports_are_listed(archiver: Program) -> None:
    done = archiver.call("report")
    listed = {line.split(" ")[0] for line in done.stdout.splitlines()}
    assert done.exit_code == 0
    assert catalog.REPORTS.keys() <= listed


# --- forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalog.REPORTS)
def test_csv_and_json_have_the_same_cells(archiver: Program, name: str) -> None:
    answer = archiver.call("report", name, AS_OF, "--json").json()
    done = archiver.call("report", name, AS_OF, "--format=csv")
    heading, *lines = csv.reader(io.StringIO(done.stdout))
    assert heading == [column["name"] for column in answer["columns"]]
    cells = [[as_text(value) for value in row.values()] for row in answer["rows"]]
    assert lines == cells
    assert answer["total"] == len(lines)
    assert done.stderr.startswith("as of 2024-03-20T23:00:00.000Z: ")


def as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def test_people_are_shown_twenty_rows_and_programs_all(engine: Engine, archiver: Program) -> None:
    see(engine, START, {"many": a_run(START.isoformat(), {f"t{n}": "P" for n in range(30)})})
    asked = ("report", "series", "--application=shop")
    shown = archiver.call(*asked).stdout
    assert "the first 20 of 32 rows (--rows 0: all)" in shown
    assert "rows" not in archiver.call(*asked, "--rows=0").stdout
    assert len(archiver.call(*asked, "--format=csv").stdout.splitlines()) == 33
    assert len(archiver.call(*asked, "--json", "--rows=3").json()["rows"]) == 3


def test_a_table_tells_its_window_and_time_zone(archiver: Program) -> None:
    shown = archiver.call("report", "trend", "--from=2024-03-05", "--to=2024-03-06").stdout
    assert "runs from 2024-03-05 to 2024-03-06; times are Europe/Berlin" in shown


# --- names that are out to harm -------------------------------------------------------------


@pytest.fixture
def hostile(engine: Engine, archiver: Program) -> Program:
    """The program, with names from the API that try what they can."""
    runs = {
        f"{number} {name}": a_run(
            (START + number * HOUR).isoformat(),
            dict.fromkeys(HOSTILE, "PFUA?"[number % 5]),
            application=name,
            name=name,
            status=name,
            environments=[{"os": name, "browser": name, "device": name, "viewport": name}],
        )
        for number, name in enumerate(HOSTILE)
    }
    see(engine, START, runs)
    see(engine, START + HOUR, {run_id: run | {"status": "passed"} for run_id, run in runs.items()})
    return archiver


@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown"])
def test_no_name_steers_a_terminal(hostile: Program, form: str) -> None:
    for name in catalog.REPORTS:
        done = hostile.call("report", name, AS_OF, f"--format={form}")
        assert done.exit_code == 0, done.stderr
        steering = {
            character
            for character in done.stdout.replace("\n", "") + done.stderr.replace("\n", "")
            if unicodedata.category(character) in {"Cc", "Cf", "Zl", "Zp"}
        }
        assert steering == set(), name


def test_tables_fit_80_columns(hostile: Program) -> None:
    for name in catalog.REPORTS:
        shown = hostile.call("report", name, AS_OF).stdout.splitlines()
        assert max(map(width, shown)) <= 80, name


def width(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def test_csv_has_nothing_that_a_spreadsheet_would_run(hostile: Program) -> None:
    done = hostile.call("report", "series", "--format=csv")
    texts = [row["test"] for row in csv.DictReader(io.StringIO(done.stdout))]
    assert [text for text in texts if text.startswith(("=", "+", "-", "@", "\t"))] == []
    assert {"'=cmd|' /C calc'!A0", "'+1 -1 @sum"} <= set(texts)


def test_raw_csv_has_names_as_they_came(hostile: Program) -> None:
    done = hostile.call("report", "series", "--format=csv", "--raw")
    rows = csv.DictReader(io.StringIO(done.stdout, newline=""))
    assert set(HOSTILE) <= {row["test"] for row in rows}


def test_markdown_renders_names_as_they_are(hostile: Program) -> None:
    for name in catalog.REPORTS:
        lines = hostile.call("report", name, AS_OF, "--format=markdown").stdout.splitlines()
        table = [line for line in lines if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, name
        assert [line for line in lines if re.search(r"[<>]|(?<!\\)[`*\[]|www\.", line)] == [], name


def test_json_is_ascii(hostile: Program) -> None:
    done = hostile.call("report", "series", "--json")
    assert done.stdout.isascii()
    assert set(HOSTILE[:2]) <= {row["test"] for row in json.loads(done.stdout)["rows"]}


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_no_time_or_duration_is_beyond_a_report(engine: Engine, tmp_path: Path, zone: str) -> None:
    """Beside the ends of the calendar, a moment has no time in some zones."""
    letters = {"login": "U"}
    runs = {
        "last": a_run("9999-12-31T23:30:00Z", letters),
        "first": a_run("0001-01-01T00:30:00Z", letters),
        "longest": a_run("2024-03-04T12:00:00Z", letters, duration=2**63 - 1),
        "negative": a_run("2024-03-04T12:00:00Z", letters, duration=-(2**63)),
    }
    derive_with(engine, Reporting(zone))
    see(engine, START, runs, zone=ZoneInfo(zone))
    url = engine.url.render_as_string(hide_password=False)
    archiver = program(tmp_path, url, "http://127.0.0.1:1").given(
        RESULT_ARCHIVER__REPORTING__TIME_ZONE=zone
    )
    for name in catalog.REPORTS:
        for form in ("table", "html"):
            done = archiver.call("report", name, AS_OF, f"--format={form}")
            assert done.exit_code == 0, (name, form, done.stderr)
    assert archiver.call("show", "--test", "login").exit_code == 0


@pytest.mark.parametrize("time", ["0001-01-02T00:00Z", "9999-12-31T23:00Z", "9999-12-31"])
def test_a_time_at_the_end_of_the_calendar_cannot_be_asked_for(
    archiver: Program, time: str
) -> None:
    done = archiver.call("report", "trend", f"--to={time}")
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: --to {time}: give a day or a time such as ")


@pytest.mark.parametrize("folder", [".", "/"])
def test_an_answer_cannot_be_written_to_a_folder(archiver: Program, folder: str) -> None:
    done = archiver.call("report", "flaky", "--output", folder)
    assert done == (2, "", f"error: --output {folder}: is a folder; name a file in it\n")


@pytest.mark.parametrize(
    "content",
    [
        b"run_id,read_token\nrun-1,tok-1\n",
        b'[{"run_id": "run-1", "read_token": "tok-1"}]',
        b'\xef\xbb\xbf"Run ID";"read_token"\r\n',
        b"SQLite format 3\0 and so on",
    ],
)
@pytest.mark.parametrize("is_link", [False, True])
def test_no_answer_replaces_a_database_or_a_list_with_tokens(
    archiver: Program, content: bytes, is_link: bool
) -> None:
    theirs = archiver.folder / "theirs"
    theirs.write_bytes(content)
    if is_link:
        (archiver.folder / "link").symlink_to("theirs")
    file = "link" if is_link else "theirs"
    done = archiver.call("report", "flaky", "--format", "csv", "--output", file)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"error: --output {file}: exists, and was not written by this command"
    )
    assert theirs.read_bytes() == content


@pytest.mark.parametrize("form", ["csv", "html"])
def test_an_answer_goes_through_a_link(archiver: Program, form: str) -> None:
    (archiver.folder / "www").mkdir()
    published = archiver.folder / "www" / "answer"
    published.write_text("old")
    link = archiver.folder / "latest"
    link.symlink_to("www/answer")
    assert archiver.call("report", "flaky", "--format", form, "--output", link).exit_code == 0
    assert link.is_symlink()
    assert "flip" in published.read_text("utf-8")


@pytest.mark.parametrize("stream", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_an_answer_can_be_written_to_a_stream(archiver: Program, stream: str) -> None:
    done = archiver.run("report", "statuses", "--json", "--output", stream)
    assert done.exit_code == 0, done.stderr
    assert done.json()["report"] == "statuses"


# --- no rows --------------------------------------------------------------------------------

NO_ROWS = {
    "--application Shop": "no application is called 'Shop'; near it: 'shop'; the archive has 'ca",
    "--application cafe": "no application is called 'cafe'; near it: 'café'; the archive has 'ca",
    "--application zzz": "no application is called 'zzz'; the archive has 'café', 'shop'",
    "--plan nigthly": "no plan is called 'nigthly'; near it: 'nightly'; the archive has 'nightl",
    "--plan smoke --application shop": (
        "no plan of application 'shop' is called 'smoke'; the archive has 'nightly'"
    ),
    "--label comit=c1": "no label is called 'comit'; near it: 'commit'; the archive has 'commit'",
    "--label commit=c3": (
        "no run has for label 'commit' the value 'c3'; the archive has 'c1', 'c2'"
    ),
    "--label commit=c1 --application café": (
        "each of these names is in the archive, and no run has all of them; of "
    ),
    "--test Login": "no test of these runs is called 'Login'; near it: 'login'; the archive has ",
    "--test login --application café": (
        "no test of these runs is called 'login'; the archive has 'menu'"
    ),
    "--from 2020-01-01 --to 2020-02-01": (
        "6 runs match, started from 2024-03-04 23:30 to 2024-03-06 23:30; of runs from 2020-01-01"
        " to 2020-02-01, none gives a row: "
    ),
    "--from 2024-03-07 --plan smoke": "3 runs match, started from 2024-03-04 23:30 to ",
    "--as-of 2024-03-04": "no run was archived by then",
}


@pytest.mark.parametrize("filters", NO_ROWS)
def test_an_answer_without_rows_says_why(archiver: Program, filters: str) -> None:
    done = archiver.call("report", "trend", *filters.split(), "--json")
    assert (done.exit_code, done.json()["rows"], done.json()["total"]) == (0, [], 0)
    assert done.stderr.startswith(f"no rows: {NO_ROWS[filters]}")


@pytest.mark.parametrize("form", ["table", "csv", "json", "markdown", "html"])
def test_each_form_without_rows_says_why(archiver: Program, form: str) -> None:
    done = archiver.call("report", "trend", "--plan=nigthly", f"--format={form}")
    assert (done.exit_code, "nigthly" in done.stdout) == (0, form in {"json", "html"})
    assert done.stderr.splitlines()[-1].startswith("no rows: no plan is called 'nigthly'; near ")


@pytest.mark.parametrize("name", catalog.REPORTS)
def test_each_report_says_why_it_has_no_rows(archiver: Program, name: str) -> None:
    """A report that takes no names covers the whole archive: it has none before the first pass."""
    is_of_runs = Filter.APPLICATION in catalog.REPORTS[name].filters
    done = archiver.call(
        "report", name, "--application=shp" if is_of_runs else "--as-of=2024-01-01"
    )
    reason = "no application is called 'shp'" if is_of_runs else "no run was"
    assert done.stderr.startswith(f"no rows: {reason}")


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ("", ""),
        ("--application shop", ""),
        ("--plan nigthly", "no rows: no plan is called 'nigthly'; near it: 'nightly'"),
        ("--test log", "no rows: no test of these runs is called 'log'; near it: 'login'"),
        ("--label branch=main", "no rows: no label is called 'branch'"),
        ("--from 2020-01-01 --to 2020-02-01", "no rows: 6 runs match, started from 2024-03-04"),
    ],
)
def test_a_page_without_rows_says_why(archiver: Program, filters: str, reason: str) -> None:
    file = archiver.folder / "page.html"
    arguments = filters.split() or [AS_OF]
    done = archiver.call("report", "--format=html", "--output", file, *arguments)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith(reason)
    assert bool(done.stderr) == bool(reason)
    assert "<!doctype html>" in file.read_text("utf-8")


def test_a_good_answer_without_rows_says_what_it_looked_at(archiver: Program) -> None:
    done = archiver.call("report", "flaky", "--application=shop")
    assert done.stderr == (
        "no rows: 3 runs match, started from 2024-03-04 23:30 to 2024-03-06 23:30; of the last 10"
        " decided results of each test, in all runs, none gives a row: a test of a plan under one"
        " set of environments, where it is flaky\n"
    )


def test_no_name_in_a_reason_steers_a_terminal(hostile: Program) -> None:
    done = hostile.call("report", "trend", "--application", "=cmd", "--plan", "\x1b[31mx")
    assert done.exit_code == 0
    assert done.stderr.startswith("no rows: no application is called '=cmd'; ")
    assert done.stderr.rstrip("\n").isprintable()


def test_an_empty_archive_says_that_it_is_empty(
    engine: Engine, database_url: str, tmp_path: Path
) -> None:
    database.prepare(engine)
    done = program(tmp_path, database_url, "http://127.0.0.1:1").call("report", "overview")
    assert (done.exit_code, done.stderr) == (0, "no rows: no run is archived yet\n")

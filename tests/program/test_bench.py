"""The bench compares fairly: same content for all, right arithmetic, and no wrong rows unseen."""

import json
import sqlite3
import subprocess
import sys
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from bench import compare, content
from bench.content import PROFILES, History, Offer, Profile
from bench.figures import (
    Cell,
    Result,
    cpu_table,
    format_with_limit,
    format_with_target,
    memory_table,
    ratio_table,
)
from bench.fill import fill
from bench.process import FailedError, Sample, measure
from bench.states import SqliteStates, State
from etl.answers.normalize import normalize
from etl.answers.payload import decode
from etl.db import database

ROOT = Path(__file__).parents[2]
CONTENDERS = ("archiver", "bare", "script", "threads", "limit")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_archiver_finds_nothing_odd_in_the_answers(profile: Profile) -> None:
    run_id = content.run_id(7)
    rows = normalize(run_id, decode(Offer(profile, 8).answer(7)), UTC)
    assert (rows.warnings, rows.drift, rows.run.result_id) == ([], [], run_id)
    assert (len(rows.environments), len(rows.tests)) == (profile.environments, profile.tests)
    assert sum(count.total or 0 for count in rows.counts[1:]) == rows.counts[0].total


def test_the_same_run_has_the_same_answer_each_time() -> None:
    once, again = (Offer(PROFILES["small"], 31).answer(30) for _ in range(2))
    assert once == again


def test_of_a_hundred_runs_five_change() -> None:
    before = Offer(PROFILES["small"], 100)
    after = before._replace(content="changed")
    changed = [index for index in before.indexes() if before.answer(index) != after.answer(index)]
    assert changed == [0, 20, 40, 60, 80]


def test_plans_recur_with_their_tests() -> None:
    def names_and_ids(index: int) -> list[tuple[str, str]]:
        tests = json.loads(Offer(PROFILES["medium"], 50).answer(index))["result"]["tests"]
        return [(test["name"], test["id"]) for test in tests]

    first, again, other = names_and_ids(1), names_and_ids(1 + content.PLANS), names_and_ids(2)
    assert [name for name, _ in first] == [name for name, _ in again]
    assert [name for name, _ in first] != [name for name, _ in other]
    assert not {test_id for _, test_id in first} & {test_id for _, test_id in again}
    assert other == names_and_ids(2 + content.PLANS)


RESULT = Result(
    Cell("small", "cold", "postgresql", 1000),
    {
        "archiver": [Sample(2.0, 1.9, 70), Sample(9.0, 1.9, 90), Sample(1.0, 1.9, 81)],
        "bare": [Sample(1.0, 0.9, 30), Sample(1.5, 0.9, 30), Sample(1.6, 0.9, 30)],
        "threads": [Sample(3.6, 1.9, 60), Sample(4.0, 1.9, 60), Sample(99.0, 1.9, 60)],
    },
)  # fmt: skip


def test_ratios_are_those_of_medians() -> None:
    assert (RESULT.ratio("bare"), RESULT.ratio("threads"), RESULT.ratio("dlt")) == (0.75, 2.0, None)
    assert (RESULT.target("bare"), RESULT.target("threads")) == (None, 2.0)


def test_what_misses_its_target_is_marked() -> None:
    assert (
        format_with_target(0.7, 0.7),
        format_with_target(0.69, 0.7),
        format_with_target(2.5, None),
    ) == (
        "0.70/0.7",
        "0.69/0.7!",
        "2.50",
    )
    assert (format_with_limit(80.0, 80.0), format_with_limit(80.5, 80.0)) == ("80/80", "80.5/80!")


def test_the_tables_say_it_all_in_80_columns() -> None:
    assert ratio_table([RESULT]).rows == [["small, recurring, cold, PG", "500", "0.75", "2.00/2"]]
    assert cpu_table([RESULT]).rows == [["small, recurring, cold, PG", "0.47", "1.00"]]
    assert memory_table([RESULT]).rows == [["small, recurring, cold, PG", "81/80!", "30", "60"]]
    wide = Result(
        Cell("medium", "changed", "postgresql", 1000),
        {name: [Sample(99.0, 1, 999)] for name in compare.CONTENDERS},
    )
    lines = [*ratio_table([wide]).text().splitlines(), *memory_table([wide]).text().splitlines()]
    assert max(map(len, lines)) <= 80


def test_a_cell_is_measured_from_end_to_end() -> None:
    chosen = ("--profiles", "small", "--contents", "cold", "changed", "--runs", "40")
    cells = _bench("--contenders", *CONTENDERS, *chosen)
    assert [(cell["content"], sorted(cell["contenders"])) for cell in cells] == [
        ("cold", ["archiver", "bare", "script", "threads"]),
        ("changed", ["archiver", "bare", "script", "threads"]),
    ]
    for cell in cells:
        archiver, bare = cell["contenders"]["archiver"], cell["contenders"]["bare"]
        ratio = bare["elapsed_s"] / archiver["elapsed_s"]
        assert bare["archiver_is_faster"] == pytest.approx(ratio, abs=0.01)


def test_the_limit_of_the_database_is_measured_where_runs_are_large() -> None:
    chosen = ("--profiles", "large", "--contents", "cold", "--runs", "2")
    [cell] = _bench("--contenders", "archiver", "limit", *chosen)
    limit, archiver = cell["contenders"]["limit"], cell["contenders"]["archiver"]
    assert 0 < limit["elapsed_s"] < archiver["elapsed_s"]


def test_an_archive_is_grown_and_measured() -> None:
    growth = ("-m", "bench.growth", "--test-rows", "4000", "--repeats", "1")
    chosen = ("--databases", "sqlite", "--probe-runs", "20", "--json")
    figures = _output(*growth, *chosen)["figures"]
    values = {figure["name"]: figure["value"] for figure in figures}
    assert 0 < values["SQLite, all but payloads"] < 1500  # in so few rows
    assert values["SQLite, unchanged medium runs"] > 0
    assert "SQLite, view test_results: 5,000 rows" in values  # 40 runs of 100, 20 of 50


def test_verify_finds_nothing_wrong_in_an_archive_that_was_filled(
    database_url: str, tmp_path: Path
) -> None:
    state = State(database_url, tmp_path)
    history = History(runs=200)
    with compare.serve_task(Offer(PROFILES["medium"], 50, history=history), tmp_path) as task:
        compare.run("archiver", task, state)
    engine = database.connect(state.url)
    fill(engine, Offer(PROFILES["medium"], 60, first=50, history=history))
    engine.dispose()
    measure([sys.executable, "-m", "etl", "verify"], compare.environment_of(state), tmp_path)
    assert "110 runs" in (tmp_path / "output").read_text()
    assert state.totals().tests == 110 * 50


def test_wrong_rows_stop_the_bench(tmp_path: Path) -> None:
    state = SqliteStates(tmp_path).new()
    with compare.serve_task(Offer(PROFILES["small"], 3), tmp_path) as task:
        compare.run("script", task, state)
        with sqlite3.connect(state.url.removeprefix("sqlite:///")) as connection:
            connection.execute("INSERT INTO runs (run_id) VALUES ('one too many')")
        with pytest.raises(FailedError, match="script left"):
            compare.run("script", task, state)


def test_a_contender_that_fails_stops_the_bench(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="ended with 3"):
        measure([sys.executable, "-c", "raise SystemExit(3)"], {}, tmp_path)


def _bench(*options: str) -> list[dict[str, Any]]:
    names = ("--names", "recurring")
    chosen = ("--parts", "cells", "--databases", "sqlite", "--repeats", "1", *names, *options)
    cells: list[dict[str, Any]] = _output("-m", "bench", "--json", *chosen)["cells"]
    return cells


def _output(*arguments: str) -> Any:
    command = (sys.executable, *arguments)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)

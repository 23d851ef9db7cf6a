"""The demo: a first look at the whole job, which has to end well every time."""

from pathlib import Path
from typing import NamedTuple

import pytest

from etl.db import database
from tests.support.dump import LEDGER, Row, dump
from tests.support.program import Done, bare_program

FILLED = (
    "runs", "environments", "tests", "counts", "labels", "revisions", "payloads", "tracked_runs",
    "ingests",
)  # fmt: skip


class Demo(NamedTuple):
    """What the demo printed, and what its file had then."""

    done: Done
    tables: dict[str, list[Row]]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> list[Demo]:
    """The demo twice, in a folder and an environment without any setting."""
    archiver = bare_program(tmp_path_factory.mktemp("demo"))
    return [Demo(archiver.run("demo"), tables(archiver.folder / "demo.db")) for _ in range(2)]


def tables(file: Path) -> dict[str, list[Row]]:
    engine = database.connect(f"sqlite:///{file}")
    with database.reading(engine) as connection:
        found = dump(connection)
    engine.dispose()
    return found


def test_it_ends_well_each_time(demos: list[Demo]) -> None:
    assert [demo.done.exit_code for demo in demos] == [0, 0]


def test_it_says_what_it_archived(demos: list[Demo]) -> None:
    first, *_ = demos[0].done.stdout.splitlines()
    runs = len(demos[0].tables["runs"])
    assert first == f"{runs} runs archived, 0 changed, 0 asked again and unchanged, 0 failed"


@pytest.mark.parametrize("table", FILLED)
def test_its_file_has_rows_in_each_table(demos: list[Demo], table: str) -> None:
    assert demos[0].tables[table] != []


def test_the_second_time_changes_nothing_but_the_ledger(demos: list[Demo]) -> None:
    before, after = ({**demo.tables, **dict.fromkeys(LEDGER)} for demo in demos)
    assert after == before


def test_it_shows_the_same_reports_each_time(demos: list[Demo]) -> None:
    first, second = (demo.done.stdout.partition("\n")[2] for demo in demos)
    assert "Applications at a glance" in first
    assert second == first


def test_it_says_on_stderr_only_what_it_is_doing(demos: list[Demo]) -> None:
    assert {demo.done.stderr for demo in demos} == {
        "starting a made-up API on loopback: no key and no network are needed\n"
    }


def test_its_tables_fit_80_columns(demos: list[Demo]) -> None:
    report, _, _ = demos[0].done.stdout.partition("What to try next:")
    assert max(map(len, report.splitlines())) <= 80


def test_a_run_id_that_it_shows_can_be_copied(demos: list[Demo]) -> None:
    archived = {row["run_id"] for row in demos[0].tables["runs"]}
    _, _, unresolved = demos[0].done.stdout.partition("Waiting for a person")
    shown = {line.split()[-1] for line in unresolved.splitlines() if line.strip()}
    assert len(shown & archived) == 5

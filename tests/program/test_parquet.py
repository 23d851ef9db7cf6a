"""Parquet, as DuckDB reads it: the types and descriptions of the data dictionary."""

import os
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.db.database import connect
from tests.db.test_views import MONDAY, VIEWS
from tests.program.test_export import FORMULA, TOKEN, contents, fill, filled_program
from tests.support.looks import a_test, look
from tests.support.program import Program, bare_program

DUCKDB_TYPES = {
    "text": "VARCHAR",
    "bigint": "BIGINT",
    "double precision": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp with time zone": "TIMESTAMP WITH TIME ZONE",
}
"""The types of DuckDB by those of the data dictionary."""


@pytest.fixture
def archiver(tmp_path: Path, database_url: str) -> Program:
    """The program with an archive of two runs, one of which was decided."""
    return filled_program(database_url, tmp_path)


@pytest.fixture
def results(archiver: Program) -> Path:
    """The folder of an export."""
    done = archiver.call("export", "--parquet", "results")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "results/test_results.parquet: 4 rows" in done.stdout.splitlines()
    return archiver.folder / "results"


def read(folder: Path, query: str) -> list[tuple[object, ...]]:
    """Return the rows that DuckDB gives; {name} stands for a file."""
    files = {file.stem: f"read_parquet('{file}')" for file in folder.iterdir()}
    with duckdb.connect() as connection:
        return connection.execute(query.format(**files)).fetchall()


def test_every_view_has_the_types_of_the_dictionary(results: Path) -> None:
    described = read(results, "SELECT object_name, column_name, type FROM {data_dictionary}")
    expected = {
        (view, column, DUCKDB_TYPES[str(kind)]) for view, column, kind in described if column
    }
    found = {
        (view, row[0], row[1])
        for view in VIEWS
        for row in read(results, f"DESCRIBE SELECT * FROM {{{view}}}")
    }
    assert found == expected


def test_every_view_and_column_has_the_description_of_the_dictionary(results: Path) -> None:
    query = "SELECT object_name, column_name, description FROM {data_dictionary}"
    texts = {(view, column): text for view, column, text in read(results, query)}
    for view in VIEWS:
        schema = pq.read_schema(results / f"{view}.parquet")
        assert schema.metadata[b"description"].decode() == texts[view, ""]
        for field in schema:
            assert field.metadata[b"description"].decode() == texts[view, field.name]


def test_every_resolution_joins_its_run(results: Path) -> None:
    [(resolutions, joined, run_id)] = read(
        results,
        "SELECT (SELECT count(*) FROM {resolutions}), count(*), min(run_results.run_id)"
        "  FROM {resolutions} AS resolutions"
        "  JOIN {run_results} AS run_results USING (run_id, plan_id, variant_id)",
    )
    assert (resolutions, joined, run_id) == (1, 1, "run-1")


def test_days_moments_flags_and_texts_are_right(results: Path) -> None:
    [run] = read(
        results,
        "SELECT started_on, epoch_ms(started_at), pass_rate, gone_at FROM {run_results}"
        " WHERE run_id = 'run-2' AND started_at >= '2024-03-05 09:00:00Z'",
    )
    assert run == (date(2024, 3, 5), 1_709_631_000_120, 1.0, None)
    assert read(results, "SELECT DISTINCT is_flaky FROM {series_health}") == [(False,)]
    tests = read(results, "SELECT name, extra FROM {tests} WHERE extra IS NOT NULL ORDER BY run_id")
    assert tests[0] == (FORMULA, '{"owner": ["Zo\\u00eb", 1]}')


def test_both_databases_give_the_same_rows(
    tmp_path: Path, sqlite_url: str, postgresql_url: str
) -> None:
    folders = []
    for name, url in (("sqlite", sqlite_url), ("postgresql", postgresql_url)):
        engine = connect(url)
        fill(engine)
        engine.dispose()
        (tmp_path / name).mkdir()
        program = bare_program(tmp_path / name).given(RESULT_ARCHIVER__DATABASE__URL=url)
        assert program.call("export", "--parquet", "results").exit_code == 0
        folders.append(program.folder / "results")
    one, other = folders
    names = {file.name for file in one.iterdir()} - {"archive_settings.parquet"}
    assert "test_results.parquet" in names
    for name in names:
        assert pq.read_table(one / name).equals(pq.read_table(other / name), check_metadata=True)


def test_no_secret_is_exported(results: Path) -> None:
    assert [name for name in contents(results) if TOKEN in str(read_all(results / name))] == []


def read_all(file: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(file).to_pylist()
    return rows


def test_an_earlier_export_is_replaced(archiver: Program, database_url: str, results: Path) -> None:
    engine = connect(database_url)
    look(engine, "run-4", MONDAY, a_test("cart", "passed"))
    engine.dispose()
    assert archiver.call("export", "--parquet", "results").exit_code == 0
    assert read(results, "SELECT count(*) FROM {run_results}") == [(3,)]


@pytest.mark.parametrize("kind", ["text", "parquet"])
def test_a_file_that_is_no_export_stays(archiver: Program, kind: str) -> None:
    (archiver.folder / "results").mkdir()
    file = archiver.folder / "results" / "runs.parquet"
    if kind == "text":
        file.write_text("mine")
    else:
        pq.write_table(pa.table({"run_id": ["run-1"]}), file)
    before = file.read_bytes()
    done = archiver.call("export", "--parquet", "results")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "error: results/runs.parquet: exists, and was not written by this command; move it away,"
        " or give another name\n"
    )
    assert contents(archiver.folder / "results") == {"runs.parquet": before}


def test_without_the_extra_the_message_says_what_to_install(archiver: Program) -> None:
    archiver.write("pyarrow.py", "raise ModuleNotFoundError(name='pyarrow')")
    done = archiver.given(PYTHONPATH=os.fspath(archiver.folder)).run("export", "--parquet", "out")
    assert done == (
        2,
        "",
        "error: --parquet: pyarrow is not installed; pip install 'result-archiver[lake]'\n",
    )
    assert not (archiver.folder / "out").exists()

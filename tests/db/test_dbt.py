"""dbt builds the package, and its metrics equal a report.

`make dbt` runs it, in an environment of its own: too heavy for `make test`.
"""

import csv
import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.month import Month
from tests.support.program import Program, bare_program

pytestmark = pytest.mark.dbt

BIN = Path(__file__).parents[2] / ".venv-dbt" / "bin"


@pytest.fixture
def archiver(month: Month, tmp_path: Path) -> Program:
    """The program with a month, and a package beside it."""
    url = month.engine.url.render_as_string(hide_password=False)
    archiver = bare_program(tmp_path).given(RESULT_ARCHIVER__DATABASE__URL=url)
    assert archiver.call("bi", "dbt", "--output", "package").exit_code == 0
    if month.dialect == "sqlite":
        assert archiver.call("export", "--parquet", "package/results").exit_code == 0
    profiles = {"result_archiver": {"target": "test", "outputs": {"test": target(month)}}}
    archiver.write("package/profiles.yml", json.dumps(profiles))
    return archiver


def target(month: Month) -> dict[str, Any]:
    """Return the database that dbt makes its views in."""
    if month.dialect == "sqlite":
        return {"type": "duckdb", "path": "built.duckdb"}
    url = month.engine.url
    return {
        "type": "postgres",
        "host": url.host,
        "port": url.port,
        "user": url.username,
        "password": url.password,
        "dbname": url.database,
        "schema": "dbt_models",
    }


def run(archiver: Program, *command: str) -> str:
    package = archiver.folder / "package"
    environment = {
        "PATH": f"{BIN}:{os.defpath}",
        "HOME": str(archiver.folder),
        "DBT_PROFILES_DIR": str(package),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    }
    done = subprocess.run(
        command, cwd=package, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def metric_by_week(archiver: Program, name: str) -> dict[str, float]:
    run(
        archiver, "mf", "query", "--metrics", name, "--group-by", "metric_time__week",
        "--csv", "answer.csv", "--decimals", "12",
    )  # fmt: skip
    with (archiver.folder / "package" / "answer.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {row["metric_time__week"][:10]: float(row[name]) for row in rows if row[name]}


def test_the_package_builds_and_its_metrics_equal_a_report(archiver: Program) -> None:
    assert "ERROR=0" in run(archiver, "dbt", "build")
    weeks: dict[str, Counter[str]] = {}
    report = archiver.call("report", "weekly", "--from", "2000-01-01", "--json").json()
    for row in report["rows"]:
        counts = weeks.setdefault(row["week_starts_on"], Counter())
        counts.update({name: row[name] for name in ("runs", "passed", "failed")})
    assert metric_by_week(archiver, "runs") == {day: n["runs"] for day, n in weeks.items()}
    rates = {
        day: pytest.approx(n["passed"] / (n["passed"] + n["failed"]))
        for day, n in weeks.items()
        if n["passed"] + n["failed"]
    }
    assert metric_by_week(archiver, "pass_rate") == rates

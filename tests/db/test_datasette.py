"""Datasette serves a published copy with the metadata that `bi datasette` made."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.db.test_charts import CATALOG, OF_RUNS
from tests.support.month import Month
from tests.support.postgres import free_port
from tests.support.program import PATIENCE_S, bare_program

CHARTS = CATALOG.charts
NAMES = {"application": "Storefront"}


@pytest.fixture(scope="module")
def served(month_sqlite: Month, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of Datasette with a month's copy called results.db."""
    folder = tmp_path_factory.mktemp("datasette")
    archiver = bare_program(folder).given(
        RESULT_ARCHIVER__DATABASE__URL=f"sqlite:///{month_sqlite.engine.url.database}"
    )
    uri = f"sqlite:///{folder}/results.db"
    assert archiver.call("export", "--sqlite", "results.db").exit_code == 0
    made = archiver.call("bi", "datasette", "--output", "metadata.json", "--uri", uri)
    assert made.exit_code == 0
    yield from serving(folder)


def serving(folder: Path) -> Iterator[str]:
    port = str(free_port())
    program = (sys.executable, "-m", "datasette", "serve", "--immutable", "results.db")
    with subprocess.Popen(
        [*program, "--metadata", "metadata.json", "--port", port],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url)
            yield url
        finally:
            process.terminate()


def wait_for(url: str) -> None:
    patience_until = time.monotonic() + PATIENCE_S
    while True:
        try:
            assert requests.get(url, timeout=PATIENCE_S).status_code == 200
        except requests.ConnectionError:
            assert time.monotonic() < patience_until
            time.sleep(0.05)
        else:
            return


def get(url: str, **parameters: str) -> Any:
    answer = requests.get(url, parameters, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_view_and_column_has_its_description(served: str) -> None:
    databases = get(f"{served}/-/metadata.json")["databases"]
    tables = databases["results"]["tables"]
    assert len(tables) > 10
    for view, described in tables.items():
        page = requests.get(f"{served}/results/{view}", timeout=PATIENCE_S)
        assert page.status_code == 200
        assert described["description"]
        assert set(described["columns"]) == set(get(f"{served}/results/{view}.json")["columns"])


@pytest.mark.parametrize("name", CHARTS)
def test_a_query_answers_with_and_without_a_filter(served: str, name: str) -> None:
    url = f"{served}/results/{name}.json"
    rows = get(url, _shape="array")
    assert rows
    filtered = get(url, _shape="array", **NAMES)
    if "application" in rows[0]:
        assert filtered == [row for row in rows if row["application"] == "Storefront"]
    assert (filtered != rows) == (name in OF_RUNS)


@pytest.mark.parametrize("name", [name for name, chart in CHARTS.items() if chart.when])
def test_a_query_takes_days_and_includes_the_last(served: str, name: str) -> None:
    url = f"{served}/results/{name}.json"
    rows = get(url, _shape="array")
    assert get(url, _shape="array", first_day="2000-01-01", last_day="2001-01-01") == []
    if time_column := CHARTS[name].time:
        last = rows[-1][time_column]
        found = get(url, _shape="array", first_day=last[:10], last_day=last[:10])
        assert found == [row for row in rows if row[time_column] == last] != []


@pytest.mark.parametrize("parameters", [{}, NAMES])
def test_every_chart_of_the_board_answers(served: str, parameters: dict[str, str]) -> None:
    page = requests.get(f"{served}/-/dashboards/test-results", parameters, timeout=PATIENCE_S)
    assert page.status_code == 200
    drawn = dict(re.findall(r"renderChart\('(\w+)', (\{.*\})\s*,", page.text))
    assert drawn.keys() == CHARTS.keys()
    for name, text in drawn.items():
        chart, _ = json.JSONDecoder().raw_decode(text)
        url = f"{served}/{chart['db']}.json"
        rows = get(url, sql=chart["query"], _shape="array", **parameters)
        assert rows == get(f"{served}/results/{name}.json", _shape="array", **parameters) != []

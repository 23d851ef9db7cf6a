"""Superset imports a bundle, and each chart's data equals a count in plain Python.

`make superset` runs it, in an environment of its own: too heavy for `make test`.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.db.test_charts import CATALOG, COUNTED, OF_RUNS, in_order, plain
from tests.db.test_datasette import wait_for
from tests.support.browser import chromium
from tests.support.month import Month, Row, month_on_postgresql, month_on_sqlite, rounded
from tests.support.postgres import Server, free_port
from tests.support.program import bare_program

pytestmark = pytest.mark.superset

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv-superset" / "bin"
CLIENT = ROOT / "tests" / "support" / "superset_client.py"
ZONES = ("UTC", "Asia/Tokyo", "America/New_York")
CONFIGURATION = """
SECRET_KEY = "a key for tests alone, which has to be long enough"
SQLALCHEMY_DATABASE_URI = "sqlite:///{folder}/superset.db"
PREVENT_UNSAFE_DB_CONNECTIONS = False
"""


@pytest.fixture(scope="module")
def superset(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a new Superset with one administrator."""
    folder = tmp_path_factory.mktemp("superset")
    (folder / "superset_config.py").write_text(CONFIGURATION.format(folder=folder))
    environment = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "SUPERSET_HOME": str(folder),
        "SUPERSET_CONFIG_PATH": str(folder / "superset_config.py"),
    }
    admin = "--username admin --password admin --firstname A --lastname B --email a@example.com"
    for command in ("db upgrade", f"fab create-admin {admin}", "init"):
        run(environment, BIN / "superset", *command.split())
    return environment


@pytest.fixture(scope="module")
def server(superset: dict[str, str]) -> Iterator[str]:
    """The URL of that Superset's pages."""
    port = free_port()
    command = [str(BIN / "superset"), "run", "--port", str(port), "--with-threads"]
    with subprocess.Popen(
        command, env=superset, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(f"{url}/health")
            yield url
        finally:
            process.terminate()


def run(environment: dict[str, str], *command: str | Path) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module", params=ZONES)
def zone(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def month_in_sqlite(zone: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Month]:
    with month_on_sqlite(tmp_path_factory.mktemp("month"), zone) as month:
        yield month


@pytest.fixture(scope="module")
def month_in_postgresql(zone: str, postgresql: Server) -> Iterator[Month]:
    with month_on_postgresql(postgresql, zone) as month:
        yield month


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.timeout(900)
def test_every_chart_equals_a_count_in_plain_python(
    superset: dict[str, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    zone: str,
    database: str,
) -> None:
    month: Month = request.getfixturevalue(f"month_in_{database}")
    url = month.engine.url
    prefix = f"{database}-{zone.replace('/', '-').lower()}"
    uri = (
        f"sqlite:///{url.database}"
        if database == "sqlite"
        else f"postgresql+psycopg2://{month.reader}@{url.host}:{url.port}/{url.database}"
    )
    archiver = bare_program(tmp_path).given(
        RESULT_ARCHIVER__DATABASE__URL=url.render_as_string(hide_password=False)
    )
    made = archiver.call(
        "bi", "superset", "--output", "bundle.zip", "--uri", uri, "--prefix", prefix
    )
    assert made.exit_code == 0, made.stderr
    environment = superset | {"PGPASSWORD": url.password or ""}
    stdout = run(
        environment, BIN / "python", "-P", CLIENT, tmp_path / "bundle.zip", f"{prefix}-test-results"
    )
    data = json.loads(stdout.splitlines()[-1])
    assert len(data) == len(CATALOG.charts)
    for name, chart in CATALOG.charts.items():
        all_rows, filtered = data[f"{prefix}: {chart.title}"]
        expected = rounded(COUNTED[name](month))
        assert in_order(comparable(all_rows, expected)) == in_order(expected), name
        if "application" in expected[0]:
            those = [row for row in expected if row["application"] == "Storefront"]
            assert in_order(comparable(filtered, expected)) == in_order(those), name
        assert (filtered != all_rows) == (name in OF_RUNS)


@pytest.mark.timeout(900)
def test_the_dashboard_is_drawn_without_an_error(
    superset: dict[str, str], server: str, tmp_path: Path
) -> None:
    """On a desktop and on a phone; the pictures stay in the test's folder, to be looked at."""
    with month_on_sqlite(tmp_path, "UTC") as month:
        url = f"sqlite:///{month.engine.url.database}"
        archiver = bare_program(tmp_path).given(RESULT_ARCHIVER__DATABASE__URL=url)
        assert archiver.call("bi", "superset", "--output", "bundle.zip").exit_code == 0
        bundle = tmp_path / "bundle.zip"
        run(superset, BIN / "superset", "import-dashboards", "--path", bundle, "-u", "admin")
        with chromium() as browser:
            for name, width in {"desktop": 1280, "phone": 390}.items():
                page = browser.new_page(viewport={"width": width, "height": TALL_PX})
                assert draw(page, server) == []
                page.locator("[data-test=grid-content]").screenshot(path=tmp_path / f"{name}.png")


TALL_PX = 3400
"""Superset draws a chart when it comes into view."""


def draw(page: Page, server: str) -> list[str]:
    """Open the dashboard, wait for all of its charts, and return errors and failed requests."""
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("response", lambda each: faults.append(each.url) if each.status >= 400 else None)
    page.goto(f"{server}/login/")
    page.get_by_label("Username").fill("admin")
    page.get_by_label("Password").fill("admin")
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/welcome/")
    page.goto(f"{server}/superset/dashboard/test-results/")
    charts = page.locator("[data-test=slice-container]")
    drawn = charts.filter(has=page.locator("canvas, td"))
    expect(drawn).to_have_count(len(CATALOG.charts), timeout=120_000)
    expect(page.locator(".loading, .ant-spin")).to_have_count(0, timeout=120_000)
    page.wait_for_timeout(2_000)  # charts grow into view
    alerts = page.get_by_role("alert").all_inner_texts()
    return [*faults, *alerts]


def comparable(rows: list[dict[str, Any]], expected: list[Row]) -> list[Row]:
    """Return the columns that a count has; days come as text or as milliseconds."""
    named = [{key: row[key] for key in expected[0]} for row in rows]
    return rounded([{key: day_or_plain(key, value) for key, value in row.items()} for row in named])


def day_or_plain(name: str, value: Any) -> Any:
    if isinstance(value, int | float) and name in {"day", "started_on", "week_starts_on"}:
        value = datetime.fromtimestamp(value / 1000, UTC).isoformat()
    return plain(name, value)

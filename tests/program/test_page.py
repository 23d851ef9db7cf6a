"""The page, as a browser shows it: drawn, readable, without errors, and safe to open."""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from playwright.sync_api import Browser, Page

from etl import __version__
from etl.cli.session import Wiring
from etl.reports.catalog import REPORTS
from etl.reports.page.sections import MOST_PERIODS, PAGE, SECTIONS
from tests.support import fake_api
from tests.support.browser import Scheme, chromium, opened
from tests.support.fake_api import FakeApi, result
from tests.support.program import Done, Program, bare_program, program

TODAY = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
SCRIPT = "<script>document.title = 'hacked'</script>"
HOSTILE = (
    SCRIPT,
    '"><img src=x onerror="document.title = \'hacked\'">',
    "</title></style></svg></table><h1>hacked</h1>",
    "'; DROP TABLE runs; --",
    "{{ 7 * 7 }} {% raw %} ${7 * 7} &lt;b&gt;",
    "signed \u202egnp.exe\u202c \x1b[31m",
    '=HYPERLINK("javascript:alert(1)")',
)
HUGE = "x" * 10_000_000
SIZES = [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")]
CHARTED = 8
"""So many sections have charts."""
FIGURES = """
() => [...document.querySelectorAll('figure')].map(figure => {
    const drawings = [...figure.querySelectorAll('svg')].filter(svg => svg.checkVisibility());
    const marks = drawings.flatMap(svg => [...svg.querySelectorAll(
        '.mark-rect path, .mark-line path, .mark-symbol path, .mark-area path')]);
    return {
        drawings: drawings.length,
        marks: marks.filter(mark => mark.getBoundingClientRect().width > 0
            && !['none', ''].includes(getComputedStyle(mark).fill + getComputedStyle(mark).stroke)
        ).length,
        isTold: figure.querySelector('[role=img]').getAttribute('aria-label').length > 3,
        widest: Math.max(0, ...drawings.map(svg => svg.getBoundingClientRect().right)),
    };
})
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program with the demo's archive."""
    folder = tmp_path_factory.mktemp("demo")
    archiver = bare_program(folder)
    assert archiver.wired(Wiring(lambda: TODAY)).call("demo").exit_code == 0
    return archiver.given(RESULT_ARCHIVER__DATABASE__URL=f"sqlite:///{folder}/demo.db")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program with an archive that has nothing in it."""
    archiver = bare_program(tmp_path_factory.mktemp("empty"))
    assert archiver.call("db", "upgrade").exit_code == 0
    return archiver


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The program with an archive in which everything has a name that means harm."""
    folder = tmp_path_factory.mktemp("hostile")
    with fake_api.serving() as api:
        archiver = program(folder, f"sqlite:///{folder}/archive.db", api.url)
        harm(api)
        done = archiver.call("ingest", *api.answers)
    assert done.exit_code == 0, done.stderr
    return archiver


def harm(api: FakeApi) -> None:
    """Answer with runs in which every test flips, and with one whose names have 10 MB."""
    environments = [{"os": SCRIPT, "browser": HOSTILE[1], "device": HOSTILE[5], "viewport": "1x1"}]
    for number, status in enumerate(["passed", "failed"] * 4):
        words = [status, status, status, "aborted", status, status, "unresolved"]
        tests = [
            {"id": f"{number}-{place}", "name": name, "status": word, "type": SCRIPT}
            for place, (name, word) in enumerate(zip(HOSTILE, words, strict=True))
        ]
        api.answers[f"run-{number}"] = [
            result(
                name=HOSTILE[1],
                application=HOSTILE[2],
                status=status,
                started_at=f"2026-11-01T0{number}:00:00Z",
                environments=environments,
                tests=tests,
            )
        ]
    tests = [{"id": "t", "name": HUGE, "status": "failed", "type": "x"}]
    api.answers["huge"] = [
        result(name=HUGE, application=HUGE, tests=tests, started_at="2026-11-02T00:00:00Z")
    ]


@pytest.fixture(scope="module")
def pages(demo: Program, empty: Program, hostile: Program) -> dict[str, Path]:
    """The whole page of each archive, by its name."""
    archives = {"demo": demo, "empty": empty, "hostile": hostile}
    return {name: page_of(archiver, "page.html") for name, archiver in archives.items()}


def page_of(archiver: Program, file: str, *arguments: str) -> Path:
    """Make a page on the day of the made-up runs, and return its file."""
    done = ask(archiver, *arguments, "--format", "html", "--output", file)
    assert done == Done(0, "", "")
    return archiver.folder / file


def ask(archiver: Program, *arguments: str) -> Done:
    """Ask for a report on the day of the made-up runs."""
    with time_machine.travel(TODAY, tick=False):
        return archiver.call("report", *arguments)


# --- in a browser ---------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "scheme"), SIZES)
@pytest.mark.parametrize("archive", ["demo", "empty", "hostile"])
def test_it_opens_without_an_error_fits_and_every_chart_is_drawn(
    browser: Browser, pages: dict[str, Path], archive: str, width: int, scheme: Scheme
) -> None:
    said: list[str] = []
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages[archive].as_uri())
    assert said == []
    assert asked == [pages[archive].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.title() == "Test results"
    assert page.locator("section:has(figure)").count() == (0 if archive == "empty" else CHARTED)
    for figure in page.evaluate(FIGURES):
        assert (figure["drawings"], figure["isTold"]) == (1, True)
        assert figure["marks"] >= 1
        assert figure["widest"] <= width
    page.close()


def test_light_and_dark_differ_and_can_be_read(browser: Browser, pages: dict[str, Path]) -> None:
    pairs = [("ink", "sheet"), ("ink", "paper"), ("muted", "sheet"), ("muted", "paper")]
    pairs += [("accent", "sheet"), ("accent", "paper")]
    words = ("passed", "failed", "unresolved", "aborted", "pending", "unknown")
    pairs += [(f"on-{word}", word) for word in words]
    sheets = set()
    for scheme in ("light", "dark"):
        with opened(browser, pages["empty"], scheme=scheme) as page:
            colors = {name: color_of(page, name) for pair in pairs for name in pair}
        assert {pair for pair in pairs if contrast(*map(colors.get, pair)) < 4.5} == set()
        sheets.add(colors["sheet"])
    assert len(sheets) == 2


def color_of(page: Page, name: str) -> str:
    """Return a colour of the style sheet as "#rrggbb"."""
    script = "name => getComputedStyle(document.documentElement).getPropertyValue('--' + name)"
    return str(page.evaluate(script, name)).strip()


def contrast(one: str | None, other: str | None) -> float:
    """Return the contrast of two colours as WCAG 2 defines it, from 1 to 21."""
    darker, lighter = sorted(luminance(color or "") for color in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    ("width", "media", "is_open"),
    [(390, "screen", False), (1280, "screen", True), (390, "print", True)],
)
def test_tables_are_open_where_there_is_room(
    browser: Browser, pages: dict[str, Path], width: int, media: Any, *, is_open: bool
) -> None:
    with opened(browser, pages["demo"], width) as page:
        page.emulate_media(media=media)
        tables = page.locator("table")
        shown = {table.is_visible() for table in tables.all()}
    assert shown == {is_open}


def test_headings_captions_and_columns_are_told_to_screen_readers(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with opened(browser, pages["demo"]) as page:
        levels = [
            int(tag[1])
            for tag in page.evaluate(
                "[...document.querySelectorAll('h1, h2, h3')].map(heading => heading.tagName)"
            )
        ]
        bare = page.locator("table:not(:has(caption)), th:not([scope]), svg:not([role=img] *)")
        assert bare.count() == 0
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(each => each.id)")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(after - before for before, after in itertools.pairwise(levels)) == 1
    assert len(ids) == len(set(ids))


# --- harm -----------------------------------------------------------------------------------


def test_no_name_becomes_a_part_of_the_page(browser: Browser, pages: dict[str, Path]) -> None:
    script = "() => [...new Set([...document.querySelectorAll('*')].map(e => e.localName))]"
    with opened(browser, pages["hostile"]) as hostile, opened(browser, pages["demo"]) as demo:
        assert set(hostile.evaluate(script)) <= set(demo.evaluate(script))
        assert hostile.locator("h1").all_inner_texts() == ["Test results"]
        attributes = hostile.evaluate(
            "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())"
        )
        links = hostile.evaluate("[...document.querySelectorAll('a')].map(a => a.href)")
    assert [name for name in attributes if name.startswith("on") or name in {"src", "style"}] == []
    assert {link.partition("#")[0] for link in links} == {pages["hostile"].as_uri()}


def test_names_are_shown_as_they_are_and_what_hides_is_made_visible(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with opened(browser, pages["hostile"]) as page:
        shown = page.locator("#failures table").inner_text()
        flaky = page.locator("#flaky table").inner_text()
    assert SCRIPT in flaky
    assert "{{ 7 * 7 }} {% raw %} ${7 * 7} &lt;b&gt;" in shown
    assert r"signed \u202egnp.exe\u202c \x1b[31m" in shown
    assert "\u202e" not in shown


def test_a_name_of_10_mb_is_cut_where_one_sees_it(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["hostile"]) as page:
        shown = page.locator("td", has_text="xxxx").first.inner_text()
    assert re.fullmatch("x{100,200}…", shown)
    assert pages["hostile"].stat().st_size < 2_000_000


def test_its_policy_allows_the_style_sheet_alone(browser: Browser, pages: dict[str, Path]) -> None:
    said: list[str] = []
    with opened(browser, pages["empty"]) as page:
        page.on("console", lambda message: said.append(message.text))
        page.evaluate("document.body.innerHTML = `<img src='data:,'><i style='color:red'>x</i>`")
        assert (
            page.locator("i").evaluate("each => getComputedStyle(each).color") != "rgb(255, 0, 0)"
        )
    assert len(said) == 2


# --- what it says ---------------------------------------------------------------------------


def test_every_report_is_explained() -> None:
    assert SECTIONS.keys() == REPORTS.keys()
    assert all(section.sentence.endswith(".") for section in SECTIONS.values())


def test_each_section_says_what_it_means_and_what_it_counts(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with opened(browser, pages["demo"]) as page:
        for name in PAGE:
            section = page.locator(f"#{name}")
            assert section.locator("h2").inner_text() == SECTIONS[name].title
            assert section.locator("p").first.inner_text() == SECTIONS[name].sentence
            assert "One row: " in section.locator(".basis").inner_text()
        facts = page.locator(".facts").inner_text().split("\n")
        footer = page.locator("footer").inner_text()
    assert facts == ["As of", "2026-11-02 09:00", "Time zone", "UTC"]
    assert __version__ in footer


def test_an_empty_archive_says_so_in_each_section(browser: Browser, pages: dict[str, Path]) -> None:
    with opened(browser, pages["empty"]) as page:
        said = page.locator(".empty").all_inner_texts()
        assert page.locator("figure, table").count() == 0
    assert said == [SECTIONS[name].nothing for name in PAGE]


def test_a_trend_over_years_shows_its_end() -> None:
    days = [{"day": date(2023, 1, 1) + timedelta(days=number)} for number in range(1200)]
    counted = dict.fromkeys(("failed", "aborted", "unresolved", "pending", "unknown"), 0)
    rows = [{**day, "application": "Shop", "tests": 9, "passed": 9, **counted} for day in days]
    [figure] = SECTIONS["trend"].figures(rows)
    shown = figure.chart.wide["data"]["values"]
    assert len(shown) == MOST_PERIODS
    assert figure.detail == "100.0% on 14 Apr 2026"


def test_plans_of_one_name_under_other_environments_are_told_apart(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with opened(browser, pages["demo"]) as page:
        told = page.locator("#durations [role=img]").get_attribute("aria-label") or ""
    unit, _, lines = told.partition(": ")
    names = [re.sub(r" [\d.]+ to [\d.]+$", "", each) for each in lines.split("; ")]
    assert unit == "minutes"
    assert len(names) == 10
    assert len(set(names)) == 10


def test_its_tables_have_what_the_other_forms_have(
    demo: Program, browser: Browser, pages: dict[str, Path]
) -> None:
    flaky = ask(demo, "flaky", "--json").json()["rows"]
    overview = ask(demo, "overview", "--json").json()["rows"]
    with opened(browser, pages["demo"]) as page:
        rows = [cells_of(row) for row in page.locator("#flaky tbody tr").all()]
        rates = [cells_of(row)[4] for row in page.locator("#overview tbody tr").all()]
        decided = page.locator("#overview .basis").inner_text()
    assert [row[2:4] for row in rows] == [[row["test"], row["recent"]] for row in flaky[:10]]
    assert rates == [f"{row['pass_rate']:.1%}" for row in overview]
    assert f"{sum(row['passed'] + row['failed'] for row in overview):,} decided results" in decided


def cells_of(row: Any) -> list[str]:
    return [text.strip() for text in row.locator("td").all_text_contents()]


# --- how it is made -------------------------------------------------------------------------


def test_one_report_is_a_page_of_its_own(demo: Program, browser: Browser) -> None:
    file = page_of(demo, "flaky.html", "flaky", "--application", "Storefront")
    with opened(browser, file) as page:
        assert page.title() == "Flaky tests"
        assert page.locator("section").count() == 1
        applications = {cells_of(row)[0] for row in page.locator("tbody tr").all()}
        assert "Application Storefront" in " ".join(page.locator(".facts").inner_text().split())
    assert applications == {"Storefront"}


def test_its_tables_have_as_many_rows_as_are_asked_for(demo: Program, browser: Browser) -> None:
    rows = []
    for asked in ("3", "0"):
        with opened(browser, page_of(demo, "rows.html", "flaky", "--rows", asked)) as page:
            rows.append(page.locator("#flaky tbody tr").count())
    assert rows == [3, len(ask(demo, "flaky", "--json").json()["rows"])]


def test_a_filter_leaves_out_what_cannot_be_limited_by_it(demo: Program, browser: Browser) -> None:
    file = page_of(demo, "test.html", "--test", "Newsletter: prints")
    with opened(browser, file) as page:
        sections = page.locator("section").evaluate_all("all => all.map(each => each.id)")
    assert sections == [
        name for name in PAGE if name not in {"environments", "durations", "health"}
    ]


def test_as_of_a_moment_it_is_the_same_to_the_byte_whatever_comes_later(
    tmp_path: Path, database_url: str
) -> None:
    with fake_api.serving() as api:
        archiver = program(tmp_path, database_url, api.url)
        api.answers["one"] = [
            result(status="unresolved"),
            result(status="passed", name="renamed plan"),
        ]
        assert archiver.call("ingest", "one").exit_code == 0
        moment = datetime.now(UTC).isoformat()
        asked = ["report", "--format", "html", "--as-of", moment]
        before = archiver.call(*asked)
        assert archiver.call("ingest", "one", "--refresh").exit_code == 0
    after = archiver.call(*asked)
    now = archiver.call("report", "--format", "html")
    assert after == before
    assert before.exit_code == 0
    assert ("renamed" in now.stdout, "renamed" in after.stdout) == (True, False)


def test_a_file_is_written_whole_or_not_at_all(demo: Program) -> None:
    file = demo.write("kept.html", "as it was")
    failed = demo.call("report", "nonsense", "--format", "html", "--output", file)
    assert (failed.exit_code, file.read_text()) == (2, "as it was")
    refused = demo.call("report", "flaky", "--output", demo.folder / "nowhere" / "page.html")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "cannot be written" in refused.stderr
    done = demo.call("report", "flaky", "--json", "--output", file)
    assert (done.exit_code, done.stdout) == (0, "")
    assert json.loads(file.read_text())["report"] == "flaky"
    assert [path.name for path in demo.folder.glob(".kept*")] == []


def test_no_other_command_loads_what_draws_pages() -> None:
    script = (
        "import sys, etl.cli.command_line, etl.cli.ingest_command, etl.cli.report_command;"
        "print({'vl_convert', 'jinja2'} & sys.modules.keys())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"

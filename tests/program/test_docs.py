"""The documents are true: outputs, tables, columns and links exist as shown."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from etl.cli.session import Wiring
from etl.db.schema import metadata
from tests.support.program import bare_program

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_beginning_of_what_the_demo_prints(tmp_path: Path) -> None:
    day = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
    done = bare_program(tmp_path).wired(Wiring(lambda: day)).call("demo")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("```text\n")[2].partition("```")[0]
    assert 10 <= len(shown.splitlines()) <= 40
    assert done.stdout.startswith(shown)


def test_every_table_and_column_is_described() -> None:
    text = (ROOT / "docs" / "TABLES.md").read_text(encoding="utf-8")
    sections = {
        part.partition(":")[0]: part for part in re.split(r"^## ", text, flags=re.MULTILINE)
    }
    missing = [
        f"{table.name}.{column.name}"
        for table in metadata.sorted_tables
        for column in table.columns
        if not re.search(rf"\b{column.name}\b", sections.get(table.name, ""))
    ]
    assert missing == []


PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^):]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not leads_somewhere(page, link)] == []


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not anchor or anchor in anchors(target))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}

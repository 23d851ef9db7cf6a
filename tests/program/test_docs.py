"""The documents tell the truth: what they show is what the program does, and has."""

import re
from pathlib import Path

from etl.db.schema import metadata
from tests.support.program import program

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_beginning_of_what_the_demo_prints(tmp_path: Path) -> None:
    done = program(tmp_path, "sqlite:///unused.db", "http://127.0.0.1:1").run("demo")
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


def test_the_files_that_the_readme_names_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    linked = re.findall(r"\]\(([^)#:]+)\)", text)
    assert linked
    assert [name for name in linked if not (ROOT / name).exists()] == []

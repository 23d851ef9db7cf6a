"""The views are a contract: a changed definition gets a version, which the archive tells."""

import hashlib
import tomllib
from itertools import pairwise
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "migrations"
VERSIONS = FOLDER / "view_versions.toml"


def hash_views(folder: Path) -> str:
    """Return a hash of all statements, without comments and line breaks."""
    files = sorted(folder.glob("views/**/*.sql"), key=lambda file: file.relative_to(folder))
    statements = [normalize(file.read_text(encoding="utf-8")) for file in files]
    return hashlib.sha256("\n".join(statements).encode()).hexdigest()[:16]


def normalize(statement: str) -> str:
    lines = (line.partition("--")[0] for line in statement.splitlines())
    return " ".join(" ".join(lines).split())


def test_a_changed_view_has_a_new_version() -> None:
    versions = tomllib.loads(VERSIONS.read_text(encoding="utf-8"))
    newest = max(versions, key=int)
    found = hash_views(FOLDER)
    assert versions[newest] == found, (
        f'{VERSIONS.name}: a view differs from version {newest}; add: {int(newest) + 1} = "{found}"'
    )


def test_versions_are_counted_from_1() -> None:
    numbers = [int(version) for version in tomllib.loads(VERSIONS.read_text(encoding="utf-8"))]
    assert numbers[0] == 1
    assert all(new == old + 1 for old, new in pairwise(numbers))


def test_any_change_of_a_statement_is_seen_and_no_change_of_a_comment(tmp_path: Path) -> None:
    folder = tmp_path / "views"
    folder.mkdir()
    view = folder / "runs.sql"
    view.write_text("-- runs: one row per run\nCREATE VIEW runs AS\nSELECT run_id FROM t\n")
    before = hash_views(tmp_path)
    view.write_text("-- another text\nCREATE VIEW runs AS SELECT run_id\n  FROM t\n")
    assert hash_views(tmp_path) == before
    view.write_text("CREATE VIEW runs AS SELECT run_id AS id FROM t\n")
    assert hash_views(tmp_path) != before

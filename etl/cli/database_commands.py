"""`init` and `db`: the settings file and the tables."""

from pathlib import Path

from etl import display
from etl.archive.replay import has_underived_runs, replay_archive
from etl.cli.session import open_session
from etl.config.loading import DEFAULT_PATH
from etl.db import database, reader
from etl.errors import UsageError


def init(path: Path | None) -> int:
    """Write the example settings to `path` (default: ./config.toml). Raises UsageError."""
    target = path or DEFAULT_PATH
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(example_config().read_text(encoding="utf-8"))
    except FileExistsError:
        raise UsageError(
            f"{target}: exists already, and was left as it is; "
            "`result-archiver --config FILE init` writes another"
        ) from None
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
    display.note(f"wrote {target}; next: set APPLITOOLS_API_KEY, then `result-archiver doctor`")
    return 0


def example_config() -> Path:
    """Return where the example is: at the top of a checkout, inside `etl` in a wheel."""
    package = Path(database.__file__).parent.parent
    bundled = package / "_bundled" / "config.example.toml"
    return bundled if bundled.exists() else package.parent / "config.example.toml"


def upgrade(path: Path | None) -> int:
    """Bring the tables to this version's revision, and count what is archived already.

    If that was interrupted, it goes on.
    """
    session = open_session(path)
    database.upgrade(session.engine)
    if has_underived_runs(session.engine):
        display.note("counting what reports need from the archived answers")
        for _ in replay_archive(
            session.engine, session.config.reporting_zone, session.config.rules
        ):
            pass
    display.note(f"{database.shown_url(session.engine)}: at revision {database.HEAD}")
    return 0


def downgrade(path: Path | None, revision: str) -> int:
    """Take the tables back to `revision`."""
    session = open_session(path)
    database.downgrade(session.engine, revision)
    current_revision = database.current_revision(session.engine) or "base (no tables)"
    display.note(f"{database.shown_url(session.engine)}: at revision {current_revision}")
    return 0


def grant_reader(path: Path | None, role: str) -> int:
    """Let a role of PostgreSQL read the views, and nothing else. Raises UsageError."""
    session = open_session(path)
    reader.grant_views(session.engine, role)
    display.note(f"{database.shown_url(session.engine)}: {role} reads the views in reporting")
    return 0


def current(path: Path | None, *, as_json: bool) -> int:
    """Say which revision the tables are at."""
    session = open_session(path)
    revision = (
        database.current_revision(session.engine) if database.exists(session.engine) else None
    )
    if as_json:
        display.as_json({"current": revision, "needed": database.HEAD})
    else:
        display.say(f"{revision or 'no tables yet'} (this version needs {database.HEAD})")
    return 0

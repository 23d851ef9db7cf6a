"""`verify` and `replay`: what the archive says against what the API said."""

from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import func, select

from etl import database, display, rebuild
from etl.commands.session import Session, open_session
from etl.rebuild import Checked, Difference
from etl.schema import payloads


def verify(path: Path | None, *, as_json: bool) -> int:
    """Check all runs; 1 if anything is not as it should be."""
    session = _archive(path)
    found = _gathered(session, rebuild.verify(session.engine, session.config.reporting_zone))
    wrong = [*found.damage, *found.differing]
    if as_json:
        display.as_json(
            {
                "runs": found.runs,
                "wrong": [difference._asdict() for difference in wrong],
                "mismatches_of_the_api": [each._asdict() for each in found.mismatches],
            }
        )
    else:
        _print(wrong)
        for mismatch in found.mismatches:
            display.say(f"the API's own: {display.safe(mismatch)}")
        display.say(
            f"{found.runs} runs checked: {len(wrong)} rows wrong,"
            f" {len(found.mismatches)} mismatches in the API's own counters"
        )
    return 1 if wrong else 0


def preview(path: Path | None, *, as_json: bool) -> int:
    """Say what `replay` would change."""
    session = _archive(path)
    found = _gathered(session, rebuild.verify(session.engine, session.config.reporting_zone))
    _tell(found, "would be changed", as_json=as_json)
    return 0


def replay(path: Path | None, *, as_json: bool) -> int:
    """Rebuild what differs; 1 if a payload is damaged, whose run is left as it was."""
    session = _archive(path)
    found = _gathered(session, rebuild.replay(session.engine, session.config.reporting_zone))
    _tell(found, "changed", as_json=as_json)
    return 1 if found.damage else 0


def _archive(path: Path | None) -> Session:
    session = open_session(path)
    database.require_archive(session.engine)
    return session


def _gathered(session: Session, batches: Iterable[Checked]) -> Checked:
    """Add up the batches, with progress."""
    with database.reading(session.engine) as connection:
        query = select(func.count(payloads.c.run_id.distinct()))
        total = connection.scalar(query) or 0
    found = Checked(0, [], [], [])
    with display.progress("checking") as progress:
        for batch in batches:
            found = found.plus(batch)
            progress(found.runs, total)
    return found


def _tell(found: Checked, verb: str, *, as_json: bool) -> None:
    if as_json:
        changes = [difference._asdict() for difference in found.differing]
        damage = [difference._asdict() for difference in found.damage]
        display.as_json({"runs": found.runs, "changes": changes, "damage": damage})
        return
    _print([*found.damage, *found.differing])
    runs = len({difference.run_id for difference in found.differing})
    display.say(
        f"{found.runs} runs read: {len(found.differing)} rows in {runs} runs {verb};"
        f" {len(found.damage)} damaged"
    )


def _print(differences: Iterable[Difference]) -> None:
    for difference in differences:
        display.say(display.safe(difference))

"""Read, write and check the test-identity decisions of applications.

They follow from the archive as it was when they were made, so nothing can derive them again: a
digest over an application's rows shows a change by anybody else.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from etl.archive.differences import Difference, describe_place, describe_unreadable
from etl.db.bulk import upsert_into
from etl.db.schema import identities, identity_decisions, to_milliseconds, to_text
from etl.derived.identity_rules import of_application
from etl.derived.metrics import MILLISECOND
from etl.derived.plans import Application, hash_parts


class IdentityRecord(NamedTuple):
    """A row of `identities` without its digest."""

    source: str
    application: str
    compared: int
    repeated: int
    repeat_share: float | None
    key_kind: str
    decided_at: datetime
    measured_at: datetime
    is_applied: bool

    @property
    def owner(self) -> Application:
        """The application."""
        return Application(self.source, self.application)


class IdentityDecision(NamedTuple):
    """A decision by which the tests of an application are identified, until the next one."""

    decided_at: datetime
    key_kind: str


def read_record(connection: Connection, application: Application) -> IdentityRecord | None:
    """Return the newest measurement of an application."""
    columns = [identities.c[name] for name in IdentityRecord._fields]
    row = connection.execute(select(*columns).where(of_application(identities, application)))
    return next(map(IdentityRecord._make, row), None)


def read_decisions(connection: Connection, application: Application) -> list[IdentityDecision]:
    """Return the decisions on an application, in the order of their times."""
    columns = [identity_decisions.c[name] for name in IdentityDecision._fields]
    query = select(*columns).where(of_application(identity_decisions, application))
    rows = connection.execute(query.order_by(identity_decisions.c.decided_at))
    return [IdentityDecision._make(row) for row in rows]


def add_decision(
    connection: Connection, application: Application, key_kind: str, now: datetime
) -> IdentityDecision:
    """Add a decision, valid from `now`, and after the last one if the clock was set back."""
    earlier = read_decisions(connection, application)
    decided_at = to_milliseconds(now)
    if earlier:
        decided_at = max(decided_at, earlier[-1].decided_at + MILLISECOND)
    decision = IdentityDecision(decided_at, key_kind)
    row = {**application._asdict(), **decision._asdict()}
    connection.execute(identity_decisions.insert().values(row))
    return decision


def write_record(connection: Connection, record: IdentityRecord) -> None:
    """Write a measurement, with the digest of the application's rows."""
    decisions = read_decisions(connection, record.owner)
    row = {**record._asdict(), "digest": _compute_digest(record, decisions)}
    insert = upsert_into(connection, identities).values(row)
    changes = {name: insert.excluded[name] for name in row if name not in Application._fields}
    keys = identities.primary_key.columns
    connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=changes))


def _compute_digest(record: IdentityRecord, decisions: Sequence[IdentityDecision]) -> str:
    values = [record.source, record.application, record.compared, record.repeated, record.key_kind]
    times = [to_text(each) for each in (record.decided_at, record.measured_at)]
    history = [text for each in decisions for text in (to_text(each.decided_at), each.key_kind)]
    return hash_parts([*map(repr, values), repr(bool(record.is_applied)), *times, *history])


def find_identity_faults(connection: Connection) -> Iterator[Difference]:
    """Yield a difference for each application whose rows are not as the archiver wrote them."""
    for application, problem in list_damaged(connection):
        place = describe_place(Application._fields, application)
        yield Difference(identities.name, "", place, problem)


def list_damaged(connection: Connection) -> Iterator[tuple[Application, str]]:
    """Yield these applications, each with its problem."""
    owners = {
        Application(*row)
        for table in (identities, identity_decisions)
        for row in connection.execute(select(table.c.source, table.c.application).distinct())
    }
    for application in sorted(owners):
        try:
            problem = _check_rows(connection, application)
        except DBAPIError as error:
            problem = describe_unreadable(error)
        except (AttributeError, TypeError, ValueError):
            problem = "has a value that cannot be read"
        if problem:
            yield application, problem


def _check_rows(connection: Connection, application: Application) -> str | None:
    record = read_record(connection, application)
    decisions = read_decisions(connection, application)
    if record is None:
        return "is missing, and identity_decisions has decisions"
    share = record.repeated / record.compared if record.compared else None
    digest = connection.scalar(
        select(identities.c.digest).where(of_application(identities, application))
    )
    if digest != _compute_digest(record, decisions) or share != record.repeat_share:
        return "differs from the stored measurement and decisions: its digest does not match"
    return None

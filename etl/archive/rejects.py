"""Rejects: answers that could not be accepted, byte for byte, and how `replay` tries them again."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, tzinfo
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace
from sqlalchemy import Connection, Engine, delete, exists, or_, select, tuple_

from etl.answers.compression import compress
from etl.answers.normalize import normalize
from etl.answers.outcome import Answer, Reject
from etl.answers.payload import decode
from etl.answers.test_names import name_tests
from etl.archive import identity, store
from etl.archive.archived_runs import ArchivedRun
from etl.archive.differences import Difference
from etl.archive.history import name_application
from etl.archive.payload_batches import find_echo_warnings
from etl.config.settings import Config, Polling
from etl.db import bulk
from etl.db.archive_settings import require_rebuild
from etl.db.database import reading, writing
from etl.db.schema import rejects, to_text, tracked_runs
from etl.errors import DatabaseError
from etl.ledger import leases, lifecycle
from etl.ledger.lifecycle import Standing
from etl.ledger.verdicts import Recorded
from etl.telemetry.log import get_logger

if TYPE_CHECKING:
    from etl.derived.plans import Application

KEYS_AT_ONCE = 500

log = get_logger()


def keep_rejects(connection: Connection, rejected: Sequence[Reject]) -> None:
    """Store rejects; the same bad answer of the same run is stored once.

    It has the time of its first fetch, or of a later one if the run had another answer in
    between: `replay` must not take it for the older of the two.
    """
    if not rejected:
        return
    other = rejects.alias("other")
    is_older = or_(
        exists().where(
            tracked_runs.c.run_id == rejects.c.run_id,
            tracked_runs.c.last_fetched_at >= rejects.c.fetched_at,
        ),
        exists().where(
            other.c.run_id == rejects.c.run_id, other.c.fetched_at > rejects.c.fetched_at
        ),
    )
    insert = bulk.upsert_into(connection, rejects)
    changes = {name: insert.excluded[name] for name in ("fetched_at", "reason")}
    connection.execute(
        insert.on_conflict_do_update(index_elements=[rejects.c.id], set_=changes, where=is_older),
        [_build_reject_row(each) for each in rejected],
    )


def _build_reject_row(rejected: Reject) -> dict[str, Any]:
    return {
        "id": _build_reject_id(rejected),
        "run_id": rejected.run_id,
        "fetched_at": rejected.fetched_at,
        "http_status": rejected.http_status,
        "reason": rejected.message,
        "body": rejected.body,
        "sha256": rejected.sha256,
    }


def _build_reject_id(rejected: Reject) -> str:
    key = f"{rejected.run_id}\n{rejected.sha256}\n{rejected.http_status}"
    return hashlib.sha256(key.encode()).hexdigest()[:32]


# --- replay ---------------------------------------------------------------------------------


class KeptReject(NamedTuple):
    """A row of `rejects`, with its run's source."""

    reject_id: str
    run_id: str
    source: str
    fetched_at: datetime
    body: bytes
    sha256: str


class ReadableReject(NamedTuple):
    """A reject that can be accepted now."""

    reject_id: str
    answer: Answer

    def describe(self, problem: str) -> Difference:
        """Return its place for people."""
        fetched_at = to_text(self.answer.fetched_at)
        return Difference("rejects", self.answer.run_id, f"fetched_at {fetched_at}", problem)


Decoder = Callable[[KeptReject, tzinfo], Answer]


def decode_reject(kept: KeptReject, zone: tzinfo) -> Answer:
    """Return the answer in a reject. Raises ValueError if it still cannot be accepted."""
    payload = decode(kept.body)
    rows = normalize(kept.run_id, payload, zone)
    rows.warnings.extend(find_echo_warnings(kept.body, kept.sha256))
    body = compress(kept.body, kept.sha256)
    named = name_tests(rows.tests)
    return Answer(
        kept.run_id, kept.source, kept.fetched_at, body, payload.content_hash, rows, named
    )


def find_readable(
    engine: Engine, zone: tzinfo, decoder: Decoder = decode_reject
) -> Iterator[ReadableReject]:
    """Yield the rejects that can be accepted now and are newer than their runs' last answers.

    By run, in the order in which they were fetched. They are decoded outside of a transaction.
    """
    for reject_id in _iterate_newer(engine):
        with reading(engine) as connection:
            kept = _read_reject(connection, reject_id)
        if kept is None:
            continue
        try:
            yield ReadableReject(reject_id, decoder(kept, zone))
        except ValueError:
            continue
        except Exception as error:  # noqa: BLE001  a bug of ours must neither lose it nor stop others
            log.warning("reject not read", run_id=kept.run_id, reason=type(error).__name__)


def _iterate_newer(engine: Engine) -> Iterator[str]:
    """Yield the keys of the rejects that are newer than their runs' last answers."""
    place = tuple_(rejects.c.run_id, rejects.c.fetched_at, rejects.c.id)
    query = (
        select(rejects.c.run_id, rejects.c.fetched_at, rejects.c.id)
        .join(tracked_runs, tracked_runs.c.run_id == rejects.c.run_id)
        .where(
            or_(
                tracked_runs.c.last_fetched_at.is_(None),
                tracked_runs.c.last_fetched_at < rejects.c.fetched_at,
            )
        )
        .order_by(rejects.c.run_id, rejects.c.fetched_at, rejects.c.id)
        .limit(KEYS_AT_ONCE)
    )
    following = query
    while True:
        with reading(engine) as connection:
            keys = [tuple(row) for row in connection.execute(following)]
        if not keys:
            return
        yield from (reject_id for *_, reject_id in keys)
        following = query.where(place > keys[-1])


def _read_reject(connection: Connection, reject_id: str) -> KeptReject | None:
    kept = rejects.c
    query = (
        select(kept.id, kept.run_id, tracked_runs.c.source, kept.fetched_at, kept.body, kept.sha256)
        .join(tracked_runs, tracked_runs.c.run_id == kept.run_id)
        .where(kept.id == reject_id)
    )
    row = connection.execute(query).one_or_none()
    return KeptReject._make(row) if row else None


def replay_rejects(
    engine: Engine, config: Config, now: datetime, decoder: Decoder = decode_reject
) -> Iterator[ReadableReject]:
    """Archive the rejects that can be accepted now; yield each after its commit.

    Afterwards measures the test identity of their applications, as a pass does. Series stay
    marked as dirty: `replay_archive` or the next pass refreshes them.
    """
    applications: set[Application] = set()
    zone = config.reporting.zone
    for readable in find_readable(engine, zone, decoder):
        if _archive_reject(engine, readable, config, now):
            answer = readable.answer
            applications.add(name_application(answer.source, answer.rows))
            yield readable
    identity.measure_again(engine, applications, now, zone)


def _archive_reject(
    engine: Engine, readable: ReadableReject, config: Config, now: datetime
) -> bool:
    """Store an answer with its ledger row, and delete the reject, in one transaction.

    Returns False, without a change, if the run has a newer answer by now, if another process is
    fetching it, or if the database refuses the answer.
    """
    try:
        with writing(engine) as connection:
            require_rebuild(connection, config.reporting)
            return _store_reject(connection, readable, config, now)
    except DatabaseError as error:
        if not error.is_of_values:
            raise
        log.warning("reject not stored", run_id=readable.answer.run_id, reason=str(error))
        return False


def _store_reject(
    connection: Connection, readable: ReadableReject, config: Config, now: datetime
) -> bool:
    answer = readable.answer
    tracked = _lock_tracked(connection, answer.run_id)
    if tracked.last_fetched_at is not None and tracked.last_fetched_at >= answer.fetched_at:
        return False
    if tracked.lease_until is not None and tracked.lease_until > now:
        # Its owner compares the next answer with the archived one, and would miss this change.
        log.warning(
            "reject not stored: another process is fetching its run; run replay again later",
            run_id=answer.run_id,
            until=tracked.lease_until.isoformat(timespec="seconds"),
        )
        return False
    owned = replace(answer, source=tracked.source)
    saved = store.store_answers(connection, [owned], config.reporting.rules)
    archived = saved[answer.run_id].archived
    standing = _stand_after(connection, tracked, archived, answer.fetched_at, config.polling)
    dated = lifecycle.date_failure(standing, None, now)
    recorded = Recorded(answer.run_id, dated, answer.fetched_at)
    leases.record_without_fetch(connection, recorded)
    connection.execute(delete(rejects).where(rejects.c.id == readable.reject_id))
    return True


def _lock_tracked(connection: Connection, run_id: str) -> Any:
    """Return the ledger row of a run, locked until commit, before any other lock."""
    ledger = tracked_runs.c
    query = select(
        ledger.source,
        ledger.first_tracked_at,
        ledger.last_fetched_at,
        ledger.gone_at,
        ledger.last_error,
        ledger.lease_until,
    )
    return connection.execute(query.where(ledger.run_id == run_id).with_for_update()).one()


def _stand_after(
    connection: Connection,
    tracked: Any,
    archived: ArchivedRun,
    fetched_at: datetime,
    rules: Polling,
) -> Standing:
    """Return the standing after the answer; a run that the API lost later is still gone."""
    seen = archived.seen(tracked.first_tracked_at)
    if tracked.gone_at is None or tracked.gone_at <= fetched_at:
        return lifecycle.after_answer(seen, fetched_at, rules)
    leases.mark_gone(connection, [archived.run_id], tracked.gone_at)
    return lifecycle.after_missing(seen, tracked.last_error or "", tracked.gone_at, rules)

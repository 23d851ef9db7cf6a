"""The beginning of a pass: track lists, and open the pass's row in `ingests`."""

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import islice
from typing import NamedTuple

from msgspec.structs import replace
from sqlalchemy import Connection, insert, select

from etl.db import archive_settings, database
from etl.db.database import writing
from etl.db.schema import ingests
from etl.derived import refresh
from etl.derived.outcome_reader import COMMIT_LABEL
from etl.errors import ConfigError, UsageError
from etl.ingest.context import IngestContext
from etl.ingest.tally import Tally
from etl.intake import lists
from etl.intake.lists import Given
from etl.ledger import leases, source_limits, standings, tracking
from etl.ledger.leases import Lease
from etl.ledger.tracking import Entry, Tracked
from etl.secrets.keys import DEFAULT_SOURCE
from etl.secrets.vault import TokenVault
from etl.telemetry.log import get_logger

ENTRIES_AT_ONCE = 500
CLOCK_ERROR = timedelta(days=1)
"""A pass in the future by more than this had a wrong clock; less may be another machine's."""

log = get_logger()

Then = Callable[[Connection, list[str]], object]
TakeBack = Callable[[Connection, list[str]], int]


class OpenPass(NamedTuple):
    """A pass that is under way. Its tally has the ID of its row in `ingests`."""

    tally: Tally
    lease: Lease
    """The time of the beginning, as a lease that nobody owns."""
    max_requests: int
    """The requests that all workers together may send; 0: any number."""


def track(ingest: IngestContext, given: Given) -> Tracked:
    """Add the runs of lists to the ledger, in a new database if need be."""
    return _track(ingest, given, lambda _connection, _run_ids: None)


def track_named(ingest: IngestContext, given: Given) -> Tracked:
    """Track runs that a person has named; the failed ones among them are asked for again."""
    return _track(
        ingest,
        given,
        lambda connection, run_ids: tracking.retry(connection, run_ids, ingest.now()),
    )


def track_and_make_due(ingest: IngestContext, given: Given) -> Tracked:
    """Track runs, and let the next pass fetch even the settled ones among them."""
    return _track(
        ingest,
        given,
        lambda connection, run_ids: tracking.make_due(connection, run_ids, ingest.now()),
    )


def track_again(ingest: IngestContext, given: Given) -> Tracked:
    """Track runs that a person has named, also those that were dropped."""

    def take_back(connection: Connection, run_ids: list[str]) -> int:
        return tracking.take_back(connection, run_ids, ingest.now())

    return _track(
        ingest,
        given,
        lambda connection, run_ids: tracking.retry(connection, run_ids, ingest.now()),
        take_back,
    )


def _take_none_back(_connection: Connection, _run_ids: list[str]) -> int:
    return 0


def _track(
    ingest: IngestContext, given: Given, then: Then, take_back: TakeBack = _take_none_back
) -> Tracked:
    """Track runs, a batch at a time, so that memory does not grow with the list."""
    database.prepare(ingest.engine, ingest.config.to_store)
    vault = TokenVault(ingest.config.security.token_key_file)
    tracked = Tracked()
    without_token: Counter[str] = Counter()
    is_key_lost: bool | None = None
    runs = given.runs
    while batch := list(islice(runs, ENTRIES_AT_ONCE)):
        entries = lists.entries(given.refuse_second_accounts(ingest.engine, batch), vault)
        has_tokens = any(entry.read_token for entry in entries)
        with writing(ingest.engine) as connection:
            if has_tokens:
                if is_key_lost is None:
                    is_key_lost = _is_key_lost(connection, vault)
                    archive_settings.record_token_key(connection, vault.fingerprints()[0])
                if is_key_lost:
                    renewed = [entry.run_id for entry in entries if entry.read_token]
                    tracking.forget_tokens(connection, renewed)
            taken_back = take_back(connection, [entry.run_id for entry in entries])
            _retry_with_new_tokens(connection, entries, vault, ingest.now())
            added = _track_batch(connection, ingest, entries, then)
        without_token.update(
            entry.source or DEFAULT_SOURCE for entry in entries if entry.read_token is None
        )
        tracked = Tracked(
            tracked.new + added.new,
            tracked.known + added.known - taken_back,
            tracked.dropped + added.dropped,
            tracked.taken_back + taken_back,
        )
    if tracked.dropped:
        log.info(
            "dropped runs left out; `result-archiver track --again RUN_ID` takes one back",
            runs=tracked.dropped,
        )
    if tracked.new:
        _warn_of_missing_tokens(ingest, without_token)
    return tracked


def _is_key_lost(connection: Connection, vault: TokenVault) -> bool:
    """Tell whether the archive's tokens were encrypted with a key that this host does not have."""
    token_key = archive_settings.read_token_key(connection)
    return token_key is not None and token_key not in vault.fingerprints()


def _retry_with_new_tokens(
    connection: Connection, entries: list[Entry], vault: TokenVault, now: datetime
) -> None:
    """Make denied runs due whose token is another than the one that was denied."""
    given = {each.run_id: each.read_token for each in entries if each.read_token}
    denied = tracking.read_denied_tokens(connection, list(given)) if given else {}
    renewed = [
        run_id for run_id, old in denied.items() if not _is_same_token(vault, old, given[run_id])
    ]
    if renewed:
        tracking.retry(connection, renewed, now)


def _is_same_token(vault: TokenVault, old: str | None, new: str) -> bool:
    """Compare decrypted tokens: the same token encrypts differently each time."""
    if old is None:
        return False
    try:
        return vault.decrypt(old).reveal() == vault.decrypt(new).reveal()
    except ConfigError:  # encrypted with a key that is gone: the new token replaces it
        return False


def _track_batch(
    connection: Connection, ingest: IngestContext, entries: list[Entry], then: Then
) -> Tracked:
    """Track a batch; the commit label of an archived run may confirm that a test is flaky.

    Rows of the ledger are locked before plans, as commits do.
    """
    label = COMMIT_LABEL
    commits = {each.run_id: each.labels[label] for each in entries if label in each.labels}
    plans = refresh.find_recommitted_plans(connection, commits)
    added = tracking.track(connection, entries, ingest.now())
    then(connection, [entry.run_id for entry in entries])
    refresh.refresh_plans(connection, plans, archive_settings.hold_settings(connection).rules)
    return added


def _warn_of_missing_tokens(ingest: IngestContext, without_token: Counter[str]) -> None:
    """Warn of runs that will be denied for want of a token, while it can still be found."""
    with database.reading(ingest.engine) as connection:
        denied = standings.sources_without_permission(connection)
    for source in sorted(denied & without_token.keys()):
        log.warning(
            "runs without a read token, which this key needs: it has no read permission",
            source=source,
            runs=without_token[source],
        )


def adopt_settings(ingest: IngestContext) -> IngestContext:
    """Return the context with the settings of the archive's derived rows; warn of differences."""
    with database.reading(ingest.engine) as connection:
        stored = archive_settings.read_settings(connection)
    for each in archive_settings.find_differences(
        stored, ingest.config.to_store, ingest.engine.dialect.name
    ):
        log.warning(
            "a setting differs from the archive's, which this pass uses",
            setting=each.name,
            configured=each.configured,
            stored=each.stored,
            remedy=each.remedy,
        )
    return ingest._replace(config=replace(ingest.config, reporting=stored.reporting))


def require_token_key(ingest: IngestContext) -> None:
    """Check that this host has the key of the archive's read tokens, if runs need them.

    Raises:
        ConfigError: it has another one, or none.
    """
    file = ingest.config.security.token_key_file
    with database.reading(ingest.engine) as connection:
        if not _is_key_lost(connection, TokenVault(file)):
            return
        if not standings.has_open_tokens(connection):
            return
    raise ConfigError(
        f"security.token_key_file: {file} does not have the key of this archive's read tokens",
        "copy the file of the host that tracks the runs; if it is lost, track them again",
    )


def open_pass(ingest: IngestContext, trigger: str) -> OpenPass:
    """Write the row of a pass that begins now."""
    now = ingest.now()
    most = ingest.config.polling.max_requests_per_pass
    opened = OpenPass(Tally(), Lease("", now, now + ingest.config.polling.lease_for), most)
    with writing(ingest.engine) as connection:
        _heed_clock_set_back(connection, opened.lease)
        statement = insert(ingests).values(trigger=trigger, started_at=now, max_requests=most)
        opened.tally.pass_id = connection.execute(statement.returning(ingests.c.id)).scalar_one()
    return opened


def reopen_pass(ingest: IngestContext, pass_id: int) -> OpenPass | None:
    """Return a pass that another process has begun; None if it has ended.

    Raises:
        UsageError: there is no such pass.
    """
    with database.reading(ingest.engine) as connection:
        query = select(ingests.c.started_at, ingests.c.finished_at, ingests.c.max_requests)
        row = connection.execute(query.where(ingests.c.id == pass_id)).one_or_none()
    if row is None:
        problem = f"pass {pass_id} does not exist"
        raise UsageError(problem, "`result-archiver passes` lists the passes")
    if row.finished_at is not None:
        log.info("the pass has ended: nothing to do", text=f"pass {pass_id} has ended")
        return None
    until = row.started_at + ingest.config.polling.lease_for
    return OpenPass(Tally(pass_id=pass_id), Lease("", row.started_at, until), row.max_requests)


def _heed_clock_set_back(connection: Connection, lease: Lease) -> None:
    """Make waiting runs due that a clock far ahead has put off."""
    newest = select(ingests.c.started_at).order_by(ingests.c.id.desc()).limit(1)
    last_began_at = connection.scalar(newest)
    if last_began_at is not None and last_began_at - lease.since > CLOCK_ERROR:
        log.warning("the last pass was in the future: what waits is due", at=last_began_at)
        leases.end_waits(connection, lease)
        source_limits.end_waits(connection)

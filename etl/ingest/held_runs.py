"""The runs that a pass has claimed: their leases, and their claims."""

import os
import socket
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Self

from sqlalchemy import Engine, and_, func, select

from etl.answers.outcome import Target
from etl.archive import archived_runs
from etl.config.settings import Polling
from etl.db.database import reading, writing
from etl.db.schema import tracked_runs
from etl.errors import DatabaseError
from etl.fetch.door import Clock
from etl.ingest.context import IngestContext
from etl.ledger import leases
from etl.ledger.leases import Lease
from etl.ledger.verdicts import Claim
from etl.telemetry.log import get_logger

log = get_logger()


class HeldRuns:
    """Claims runs that were due at the start of a pass, and keeps their leases alive."""

    def __init__(self, engine: Engine, polling: Polling, started_at: datetime, now: Clock) -> None:
        self.has_lost_runs = False
        """Whether answers could not be stored, since their leases had expired."""
        self.claimed = 0
        """The number of runs claimed up to now, less those given up."""
        self.owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._engine = engine
        self._polling = polling
        self.started_at = started_at
        self._now = now
        self._in_hand: dict[str, Claim] = {}
        self._renewed = self.lease()
        self._report_expiry: Callable[[], None] = _report_to_nobody
        self._changing = threading.Lock()

    @classmethod
    def of_pass(cls, ingest: IngestContext, started_at: datetime) -> Self:
        """Return the holder of runs for a pass that began at `started_at`."""
        return cls(ingest.engine, ingest.config.polling, started_at, ingest.now)

    def count_due(self) -> dict[str, int]:
        """Count the runs that this pass will try to claim, by source."""
        query = select(tracked_runs.c.source, func.count()).group_by(tracked_runs.c.source)
        with reading(self._engine) as connection:
            due = leases.due(self.started_at, self._now())
            return dict(connection.execute(query.where(due)).all())

    def claim(self, limit: int, without: Collection[str] = ()) -> list[Target]:
        """Lease up to `limit` due runs, `without` those of some sources; [] if there are none."""
        lease = self.lease()
        with self._changing:
            in_hand = set(self._in_hand)
        due = leases.due_to_owner(self.started_at, lease, in_hand)
        with writing(self._engine) as connection:
            chosen = and_(due, tracked_runs.c.source.not_in(without))
            claims = leases.claim(connection, lease, chosen, limit)
            archived = [each for each in claims if each.last_fetched_at]
            tracked_at = {each.run_id: each.first_tracked_at for each in archived}
            known = archived_runs.read_newest_answers(connection, tracked_at)
        claims = [
            claim._replace(**known[claim.run_id]._asdict()) if claim.run_id in known else claim
            for claim in claims
        ]
        with self._changing:
            self._in_hand |= {claim.run_id: claim for claim in claims}
            self.claimed += len(claims)
        return [Target(c.run_id, c.source, c.read_token, c.fingerprint) for c in claims]

    def claims_of(self, run_ids: Collection[str]) -> list[Claim]:
        """Return the claims of runs that are in hand."""
        with self._changing:
            return [self._in_hand[run_id] for run_id in run_ids]

    def give_up(self, run_ids: Sequence[str]) -> None:
        """Forget runs that will not be fetched."""
        self.drop(run_ids)
        self.claimed -= len(run_ids)

    def drop(self, run_ids: Sequence[str]) -> None:
        """Forget runs that are committed."""
        with self._changing:
            for run_id in run_ids:
                del self._in_hand[run_id]

    def lease(self) -> Lease:
        """Return a lease from now on."""
        now = self._now()
        return Lease(self.owner, now, now + self._polling.lease_for)

    def renew(self) -> None:
        """Extend the leases of all runs in hand that have not expired."""
        lease = self.lease()
        with writing(self._engine) as connection:
            leases.renew(connection, lease)
        self.check_expiry()
        self._renewed = lease

    def report_expiry_to(self, report: Callable[[], None]) -> None:
        """Call `report` when leases have expired: the process was frozen, or cut off."""
        self._report_expiry = report

    def check_expiry(self) -> None:
        """Report whether leases have expired since they were last renewed."""
        if self._now() >= self._renewed.until:
            self._report_expiry()

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Renew the leases each third of their length, by a thread, within the context."""
        is_over = threading.Event()

        def beat() -> None:
            while not is_over.wait(self._polling.lease_for.total_seconds() / 3):
                try:
                    self.renew()
                except DatabaseError as error:
                    if not error.is_transient:
                        return  # the next commit meets the same error, and raises it
                    log.debug("leases not renewed", reason=str(error))

        beating = threading.Thread(target=beat, name="heartbeat", daemon=True)
        beating.start()
        try:
            yield
        finally:
            is_over.set()
            beating.join()


def _report_to_nobody() -> None:
    """Report to nobody: the fetching side is not there yet."""

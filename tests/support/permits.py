"""Permits for the fetching side, as a worker gets them that has a source for itself."""

import time

from etl.fetch.door import AskPermits, Fetching
from etl.fetch.permits import Allowed, PermitAsk, Permits
from etl.fetch.rate_limit import RequestLimits


class LoneWorker:
    """Answers each demand at once, with the requests of half a second."""

    def __init__(self, limits: RequestLimits) -> None:
        self.limits = limits
        self.next_slot_at = 0.0

    def answer(self, ask: PermitAsk, now: float) -> Permits:
        rate = self.limits.max_requests_per_second
        length_s = max(1, int(rate / 2)) / rate if rate else 0.5
        begins_at = max(self.next_slot_at, now) if rate else now
        self.next_slot_at = begins_at + length_s
        connections, most = self.limits.connections, self.limits.max_requests
        allowed = Allowed(most, is_last=True) if most else None
        return Permits(
            ask.source, begins_at, length_s, connections, may_probe=True, allowed=allowed
        )


def given_by(worker: LoneWorker, fetching: Fetching) -> AskPermits:
    """Return the function that answers demands of `fetching`."""

    def ask(demand: PermitAsk) -> None:
        if demand.room:
            fetching.permit(worker.answer(demand, time.monotonic()))

    return ask

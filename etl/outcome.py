"""What a request for a run can come to.

Made by `fetcher`, judged by `pipeline`, kept by `keeper`.
"""

from datetime import datetime
from typing import NamedTuple

from etl.dispatch import Trouble
from etl.errors import KeyRefusedError
from etl.store import Answer, Reject


class Unchanged(NamedTuple):
    """The same bytes as last time."""

    run_id: str
    fetched_at: datetime


class Missing(NamedTuple):
    """A 404."""

    run_id: str
    reason: str
    fetched_at: datetime


class Refused(NamedTuple):
    """A failure of this run alone that stays."""

    run_id: str
    reason: str


class Postponed(NamedTuple):
    """A failure that passes, after the last attempt of this pass."""

    run_id: str
    trouble: Trouble


class Denied(NamedTuple):
    """A 403: the run's own failure, or a sign that the key is refused."""

    reason: str


class Deferred(NamedTuple):
    """A failure of the API, not of this run: it stays due, after `wait_s` if the API said so."""

    run_id: str
    reason: str
    wait_s: float


Outcome = Answer | Unchanged | Reject | Missing | Refused | Postponed | Deferred
"""How one run ended in a pass."""

Returned = Outcome | Trouble | Denied | KeyRefusedError
"""What a worker hands back. The error is a refused key's: it ends the source's part of the pass."""

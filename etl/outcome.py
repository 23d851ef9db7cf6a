"""What a request for a run can come to.

Made by `fetcher`, judged by `pipeline`, kept by `keeper`.
"""

from datetime import datetime
from typing import NamedTuple

from etl.dispatch import Trouble
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


Outcome = Answer | Unchanged | Reject | Missing | Refused | Postponed
"""How one run ended in a pass."""

Returned = Outcome | Trouble | Denied | Exception
"""What a worker hands back. An exception is a refused key, or a bug of ours: it ends the pass."""

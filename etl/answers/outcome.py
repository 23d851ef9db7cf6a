"""The possible outcomes of a request for a run: pure values that travel between processes.

Made in `fetch`, judged by `ledger.verdicts`, stored by `ingest.commits`.
"""

from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from msgspec import Struct

from etl.answers.rows import Rows
from etl.answers.test_names import NamedTests


class Reason(StrEnum):
    """Why a run could not be archived: the codes of `tracked_runs.reason`."""

    NOT_FOUND = "not_found"
    """404 or 410 for a run that was never archived."""
    GONE = "gone"
    """404 or 410 for a run that is archived."""
    DENIED = "denied"
    """403."""
    UNREADABLE = "unreadable"
    """An answer without a result: not JSON, no `result` object, too large."""
    NO_ANSWER = "no_answer"
    """The API cannot be reached, broke the connection off, or took too long."""
    HTTP_STATUS = "http_status"
    """A status without a result that says nothing final of the run: 202, 429, 5xx, ..."""
    NO_RESOURCES = "no_resources"
    """This machine lacks file descriptors for a request."""
    NOT_CONFIGURED = "not_configured"
    """No request was sent: the source, its key or the token key is not there."""
    TOO_MANY_ATTEMPTS = "too_many_attempts"
    """Transient errors, `polling.max_attempts` passes in a row."""
    NEVER_ENDED = "never_ended"
    """Still going `polling.give_up_after` after its start."""
    INTERNAL_ERROR = "internal_error"
    """Our own code cannot digest the answer; its body is in `rejects`."""


class Target(NamedTuple):
    """A run to be fetched: where, with which token (encrypted), and its newest answer.

    `fingerprint` is the sha256 of that answer's payload.
    """

    run_id: str
    source: str
    read_token: str | None
    fingerprint: str | None


class TransientError(NamedTuple):
    """An attempt without a good answer, for a reason that may pass.

    `wait_s` is the API's Retry-After. `is_busy`: the API is alive and asks for patience.
    `chance` (0 to 1) spreads the retries of runs that failed together.
    """

    reason: Reason
    message: str
    wait_s: float | None
    is_busy: bool
    chance: float


class Body(NamedTuple):
    """A payload as it is stored: compressed, with the size and hash of the received bytes."""

    compressed: bytes
    encoding: str
    size: int
    sha256: str


class Answer(Struct, frozen=True, array_like=True, tag=True):
    """An accepted answer, ready to be stored."""

    run_id: str
    source: str
    fetched_at: datetime
    body: Body
    content_hash: str
    rows: Rows
    named: NamedTests
    """`rows.tests` by their names."""


class Reject(Struct, frozen=True, array_like=True, tag=True):
    """An answer that could not be accepted, with its body as received.

    `traceback` is there where our own code failed on it.
    """

    run_id: str
    fetched_at: datetime
    http_status: int
    code: Reason
    message: str
    body: bytes
    sha256: str
    chance: float = 0
    traceback: str = ""


class Unchanged(Struct, frozen=True, array_like=True, tag=True):
    """The same bytes as last time."""

    run_id: str
    fetched_at: datetime


class Missing(Struct, frozen=True, array_like=True, tag=True):
    """A 404 or 410."""

    run_id: str
    message: str
    fetched_at: datetime


class Denied(Struct, frozen=True, array_like=True, tag=True):
    """A 403 that is the run's own, not a sign that the key is refused."""

    run_id: str
    message: str


class Postponed(Struct, frozen=True, array_like=True, tag=True):
    """A transient error in the last attempt of this pass. `reject` is kept.

    `is_own`: the failure is the run's, since the API answered others meanwhile.
    """

    run_id: str
    error: TransientError
    reject: Reject | None = None
    is_own: bool = True
    traceback: str = ""


class Deferred(Struct, frozen=True, array_like=True, tag=True):
    """A failure of the API, not of this run, which stays due. `reject` is kept all the same."""

    run_id: str
    error: TransientError
    reject: Reject | None = None


Outcome = Answer | Unchanged | Reject | Missing | Denied | Postponed | Deferred
"""How one run ended in a pass."""

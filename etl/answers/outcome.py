"""What a request for a run can come to.

Made by `fetcher`, judged at the `exchange`, sent home over the `wire`, kept by `keeper`. Pure
values that can be encoded: a process that only fetches knows nothing of the database.
"""

from datetime import datetime
from typing import NamedTuple

from msgspec import Raw, Struct

from etl.answers.normalize import Rows
from etl.errors import KeyRefusedError


class Target(NamedTuple):
    """A run to be fetched: where, with which token (encrypted), and what its newest answer was.

    `fingerprint` is the sha256 of that one's payload.
    """

    run_id: str
    source: str
    read_token: str | None
    fingerprint: str | None


class Trouble(NamedTuple):
    """A request without a good answer. `wait_s` is what the API asked for, `chance` is 0 to 1."""

    reason: str
    wait_s: float | None
    is_busy: bool
    chance: float


class Body(NamedTuple):
    """An answer's body as it rests: compressed, with the size and hash of what was received."""

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


class Fetched(Struct, frozen=True, array_like=True, tag="Answer"):
    """An answer on its way: `rows` are packed, or many answers would take much memory."""

    run_id: str
    source: str
    fetched_at: datetime
    body: Body
    content_hash: str
    rows: Raw


class Reject(Struct, frozen=True, array_like=True, tag=True):
    """An answer that could not be accepted, with its body as received."""

    run_id: str
    fetched_at: datetime
    http_status: int
    reason: str
    body: bytes
    sha256: str


class Unchanged(Struct, frozen=True, array_like=True, tag=True):
    """The same bytes as last time."""

    run_id: str
    fetched_at: datetime


class Missing(Struct, frozen=True, array_like=True, tag=True):
    """A 404."""

    run_id: str
    reason: str
    fetched_at: datetime


class Refused(Struct, frozen=True, array_like=True, tag=True):
    """A failure of this run alone that stays. `traceback` is there where it is a bug of ours."""

    run_id: str
    reason: str
    traceback: str = ""


class Postponed(Struct, frozen=True, array_like=True, tag=True):
    """A failure that passes, after the last attempt of this pass."""

    run_id: str
    trouble: Trouble


class Deferred(Struct, frozen=True, array_like=True, tag=True):
    """A failure of the API, not of this run: it stays due, after `wait_s` if the API said so."""

    run_id: str
    reason: str
    wait_s: float


class Denied(NamedTuple):
    """A 403: the run's own failure, or a sign that the key is refused."""

    reason: str


Outcome = Answer | Unchanged | Reject | Missing | Refused | Postponed | Deferred
"""How one run ended in a pass."""

Returned = Outcome | Fetched | Trouble | Denied | KeyRefusedError
"""What a thread hands in. The error is a refused key's: it ends the source's part of the pass."""

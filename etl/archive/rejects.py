"""Rejects: answers that could not be accepted, byte for byte."""

import hashlib
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from etl.answers.outcome import Reject
from etl.db import bulk
from etl.db.schema import rejects


def keep_rejects(connection: Connection, rejected: Sequence[Reject]) -> None:
    """Store rejects; the same bad answer of the same run is stored once."""
    if rejected:
        connection.execute(
            bulk.upsert_into(connection, rejects).on_conflict_do_nothing(),
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

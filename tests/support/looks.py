"""Answers about one made-up plan, stored at a given moment as a pass stores them."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Engine

from etl.answers.compression import compress
from etl.answers.normalize import normalize
from etl.answers.outcome import Answer
from etl.answers.payload import decode
from etl.answers.test_names import name_tests
from etl.archive import store
from etl.config.settings import DEFAULT_RULES
from etl.db.database import writing
from etl.ledger import leases, tracking
from etl.ledger.lifecycle import Standing, State
from etl.ledger.tracking import Entry
from etl.ledger.verdicts import Recorded
from tests.support.histories import count_all

NAMES = {"name": " Nightly", "application": "Shop "}
CHROME = {"name": "e_1", "os": "Linux", "viewport": "800x600", "device": "", "browser": "Chrome"}


def a_test(name: str, status: str) -> dict[str, Any]:
    return {"id": f"id of {name}", "name": name, "type": "web", "status": status, "results": {}}


def look(engine: Engine, run_id: str, at: datetime, *tests: Mapping[str, Any], **run: Any) -> None:
    """Store an answer that came at a moment, as a pass does."""
    result = NAMES | {
        "started_at": "2024-03-04T09:00:00.000Z",
        "duration": 60_000,
        "status": "unresolved",
        "environments": [CHROME],
        "tests": tests,
        "results": {},
    }
    body = json.dumps({"result": result | run}).encode()
    payload = decode(body)
    sha256 = hashlib.sha256(body).hexdigest()
    rows = normalize(run_id, payload, ZoneInfo("UTC"))
    answer = Answer(
        run_id,
        "default",
        at,
        compress(body, sha256),
        payload.content_hash,
        rows,
        name_tests(rows.tests),
    )
    with writing(engine) as connection:
        tracking.track(connection, [Entry(run_id, None, None, {})], at)
        store.store_answers(connection, [answer], DEFAULT_RULES)
        count_all(connection)
        leases.record(connection, [Recorded(run_id, Standing(State.WATCHING, at), at)])

"""What the sandbox's tests share: an instant, and answers as objects."""

import json
from datetime import UTC, datetime
from typing import Any

from etl.sandbox.world import World

END = datetime(2026, 1, 15, 12, tzinfo=UTC)
COUNTERS = ("failed", "passed", "aborted", "pending", "unresolved")


def result(world: World, run_id: str, at: datetime) -> dict[str, Any]:
    body = world.answer(run_id, at)
    assert body is not None
    found: dict[str, Any] = json.loads(body)["result"]
    return found


def lives(world: World) -> dict[str, list[dict[str, Any]]]:
    """Return each run's answers, from its first to its final one, by run id."""
    latest = max(run.started_at for run in world.runs(datetime.max.replace(tzinfo=UTC)))
    return {
        run.run_id: [result(world, run.run_id, at) for at in world.changes(run.run_id)]
        for run in world.runs(latest)
    }

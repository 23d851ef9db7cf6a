"""Compare our polling with fixed intervals at equal numbers of requests.

Both follow the same generated runs until each is settled. The fixed interval is chosen so that it
costs as many requests. The measure is the mean time from a change until it is seen. A budget for
each pass (polling.max_requests_per_pass) only delays requests, so it is not simulated.
`make polling` prints the result.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from etl.answers.payload import FINAL_STATUSES
from etl.config.settings import Polling
from etl.ledger.lifecycle import Seen, State, after_answer
from etl.sandbox.world import World

END = datetime(2026, 11, 2, tzinfo=UTC)
RULES = Polling()
AT_LEAST_BETTER = 2.0


class Stage(NamedTuple):
    """A period in which a run's answer stays the same."""

    since: datetime
    status: str | None
    ended_at: datetime | None


class Followed(NamedTuple):
    """The requests for a run, and the seconds until each change was seen."""

    requests: int
    delays_s: list[float]


def stages(world: World, run_id: str) -> list[Stage]:
    """Return the stages of a run, in order."""
    found = []
    for since in world.changes(run_id):
        result: dict[str, Any] = json.loads(world.answer(run_id, since) or b"{}")["result"]
        duration_ms, started_at = result.get("duration"), result.get("started_at")
        ended_at = None
        if duration_ms is not None and started_at is not None:
            ended_at = datetime.fromisoformat(started_at) + timedelta(milliseconds=duration_ms)
        found.append(Stage(since, result.get("status"), ended_at))
    return found


def follow_run(timeline: Sequence[Stage], next_fetch: Callable[..., datetime | None]) -> Followed:
    """Fetch a run from its start, at the times of `next_fetch`, until that returns None."""
    now: datetime | None = timeline[0].since
    seen_until = 0
    changed_at = timeline[0].since
    requests, delays_s = 0, []
    while now is not None:
        requests += 1
        current = max(i for i, stage in enumerate(timeline) if stage.since <= now)
        if current >= seen_until:
            changed_at = now
            changes = timeline[seen_until : current + 1]
            delays_s += [(now - stage.since).total_seconds() for stage in changes]
            seen_until = current + 1
        now = next_fetch(timeline[current], timeline[0].since, changed_at, now)
    return Followed(requests, delays_s)


def our_next_fetch(
    stage: Stage, began_at: datetime, changed_at: datetime, now: datetime
) -> datetime | None:
    """Return the time of the next fetch by the rules of `lifecycle`."""
    over_since = min(stage.ended_at or changed_at, changed_at)
    standing = after_answer(Seen(stage.status, began_at, over_since, changed_at), now, RULES)
    return standing.due_at if standing.state is not State.FAILED else None


def fixed_next_fetch(every: timedelta) -> Callable[..., datetime | None]:
    """Return the rule that fetches at a fixed interval until the status is final."""

    def next_fetch(
        stage: Stage, began_at: datetime, _changed_at: datetime, now: datetime
    ) -> datetime | None:
        is_over = stage.status in FINAL_STATUSES or now - began_at > RULES.watch_for
        return None if is_over else now + every

    return next_fetch


def follow_all(
    timelines: Sequence[Sequence[Stage]], rule: Callable[..., datetime | None]
) -> Followed:
    """Follow all runs by one rule."""
    each = [follow_run(timeline, rule) for timeline in timelines]
    return Followed(sum(f.requests for f in each), [d for f in each for d in f.delays_s])


def interval_for(timelines: Sequence[Sequence[Stage]], requests: int) -> timedelta:
    """Return the shortest fixed interval in seconds that costs up to `requests` requests."""
    low, high = 1, 7 * 86_400
    while low < high:
        middle = (low + high) // 2
        if follow_all(timelines, fixed_next_fetch(timedelta(seconds=middle))).requests > requests:
            low = middle + 1
        else:
            high = middle
    return timedelta(seconds=low)


def main() -> int:
    """Compare, print, and return 1 if our polling is not clearly better."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000)
    world = World(end=END, runs=parser.parse_args().runs)
    timelines = [stages(world, run.run_id) for run in world.runs(END)]
    ours = follow_all(timelines, our_next_fetch)
    every = interval_for(timelines, ours.requests)
    fixed = follow_all(timelines, fixed_next_fetch(every))
    better = _mean(fixed.delays_s) / _mean(ours.delays_s)
    print(f"{len(timelines)} runs, {sum(map(len, timelines))} changes")
    print(f"ours:  {ours.requests} requests, {_mean(ours.delays_s):.0f} s until a change is seen")
    print(f"fixed: {fixed.requests} requests, {_mean(fixed.delays_s):.0f} s, asking every {every}")
    print(f"ours sees a change {better:.1f} times sooner (wanted: {AT_LEAST_BETTER} or more)")
    return 0 if better >= AT_LEAST_BETTER else 1


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main())

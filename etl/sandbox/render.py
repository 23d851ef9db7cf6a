"""An answer's JSON, in the shape that the API gives it."""

import msgspec

from etl.sandbox import dice, life, quirks
from etl.sandbox.life import Stage, Status, TestState
from etl.sandbox.plan_catalog import Ids
from etl.sandbox.quirks import Answer
from etl.sandbox.runs import Fate, Run

COUNTERS = (Status.FAILED, Status.PASSED, Status.ABORTED, Status.PENDING, Status.UNRESOLVED)


def body(run: Run, stage: Stage) -> bytes:
    """Return the API's answer for the run in that stage, as compact UTF-8 JSON."""
    states = life.states(run, stage)
    tests = [_test(run, position, state) for position, state in enumerate(states)]
    answer: Answer = {
        "id": run.run_id,
        "name": run.plan.name,
        "application": run.plan.application,
        "status": _status(run, stage, {state.status for state in states}),
        "environments": _environments(run),
        "started_at": run.started_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "duration": run.duration_ms if stage.step is None else run.elapsed_ms(stage.since),
        "results": {c: sum(test["results"][c] for test in tests) for c in COUNTERS},
        "tests": tests,
    }
    quirks.apply(answer, run.run_id, run.quirks)
    return msgspec.json.encode({"result": answer})


def _status(run: Run, stage: Stage, statuses: set[Status]) -> str | None:
    if stage.step is not None:
        return quirks.running_status(run.index)
    if run.fate is Fate.ABORTED:
        return Status.ABORTED
    for worse in (Status.UNRESOLVED, Status.FAILED):
        if worse in statuses:
            return worse
    return Status.PASSED


def _environments(run: Run) -> list[dict[str, str]]:
    environments = [environment._asdict() for environment in run.plan.environments_of(run.number)]
    if run.plan.ids is Ids.FRESH:
        # The vendor generates the name of an environment that the user gave none.
        environments[0]["name"] = f"env-name_{dice.token(6, 'environment name', run.run_id)}"
    return environments


def _test(run: Run, position: int, state: TestState) -> Answer:
    test = state.test
    fresh = run.plan.ids is Ids.FRESH
    return {
        "id": dice.uuid4("test of run", run.run_id, position) if fresh else test.test_id,
        "name": test.name,
        "status": state.status,
        "type": test.type,
        "sitemap": test.sitemap,
        "results": {counter: state.checks.get(counter, 0) for counter in COUNTERS},
    }

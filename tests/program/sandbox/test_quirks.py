import uuid
from collections.abc import Callable
from typing import Any

import pytest

from etl.sandbox.world import World
from tests.program.sandbox.answers import COUNTERS, lives

FIELDS = {
    "id", "name", "application", "status", "environments", "started_at", "duration", "results",
    "tests",
}  # fmt: skip
ENVIRONMENT_FIELDS = {"name", "os", "viewport", "device", "browser"}
TEST_FIELDS = {"id", "name", "status", "type", "sitemap", "results"}

Occurs = Callable[[str, dict[str, Any]], bool]

QUIRKS: dict[str, Occurs] = {
    "the answer's id differs": lambda run_id, a: a["id"] != run_id,
    "a run id that is no UUID": lambda run_id, _: not is_uuid(run_id),
    "a test with its own URL": lambda _, a: all("testResultsUrl" in t for t in a["tests"]),
    "an empty run name": lambda _, a: a.get("name") == "",
    "a run name that starts with a space": lambda _, a: a.get("name", "").startswith(" "),
    "an empty test name": lambda _, a: any(t["name"] == "" for t in a["tests"]),
    "an empty environment name": lambda _, a: a["environments"][0]["name"] == "",
    "a generated environment name": lambda _, a: "env-name_" in a["environments"][0]["name"],
    "environments with the same name": lambda _, a: repeats(e["name"] for e in a["environments"]),
    "tests with the same id": lambda _, a: repeats(t["id"] for t in a["tests"]),
    "a run's field missing": lambda _, a: bool(FIELDS - set(a)),
    "an environment's field missing": lambda _, a: any(
        ENVIRONMENT_FIELDS - set(e) for e in a["environments"]
    ),
    "a test's field missing": lambda _, a: any(TEST_FIELDS - set(t) for t in a["tests"]),
    "a field added to a run": lambda _, a: bool(set(a) - FIELDS),
    "a field added to an environment": lambda _, a: any(
        set(e) - ENVIRONMENT_FIELDS for e in a["environments"]
    ),
    "a field added to a test": lambda _, a: any("tags" in t for t in a["tests"]),
    "a counter added": lambda _, a: bool(set(a["results"]) - set(COUNTERS)),
    "completed": lambda _, a: a["status"] == "completed",
    "aborted": lambda _, a: a["status"] == "aborted",
    "going, with an empty status": lambda _, a: a["status"] == "",
    "going, with no status": lambda _, a: a["status"] is None,
    "going, with an unlisted status": lambda _, a: a["status"] == "running",
}


def is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def repeats(values: Any) -> bool:
    listed = list(values)
    return len(set(listed)) < len(listed)


@pytest.fixture(scope="module")
def answers(world: World) -> list[tuple[str, dict[str, Any]]]:
    return [(run_id, answer) for run_id, life in lives(world).items() for answer in life]


@pytest.mark.parametrize("occurs", QUIRKS.values(), ids=QUIRKS)
def test_the_default_world_has(occurs: Occurs, answers: list[tuple[str, dict[str, Any]]]) -> None:
    runs = {run_id for run_id, answer in answers if occurs(run_id, answer)}
    assert 1 <= len(runs) <= 100

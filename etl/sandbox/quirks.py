"""Undocumented oddities of API answers, as seen in real ones."""

from enum import Enum
from typing import Any

from etl.sandbox import dice

Answer = dict[str, Any]

# Statuses of a run in progress, beside "pending".
RUNNING_STATUSES = ("pending", "pending", "", "pending", None, "running")

SPARE_FIELDS = ("application", "name", "started_at")


class Quirk(Enum):
    """The value n: every n-th run has the quirk. They are primes, so that quirks also meet."""

    RESULTS_URL = 7  # every test carries `testResultsUrl`
    OTHER_ID = 11  # the answer's id is not the id that was asked for
    ODD_NAMES = 13  # names start with a space, or are empty
    FIELDS_MISSING = 17
    FIELDS_ADDED = 19
    COUNTER_ADDED = 23
    COMPLETED = 29  # the final status is "completed" instead of passed or failed
    SHARED_TEST_ID = 31  # two tests have the same id
    PLAIN_RUN_ID = 37  # the run's id is not a UUID


def of(index: int) -> frozenset[Quirk]:
    """Return the quirks of a world's run number `index`: by turns, so that each world has all."""
    return frozenset(quirk for quirk in Quirk if index % quirk.value == quirk.value // 2)


def running_status(index: int) -> str | None:
    """Return the status of run number `index` while it is going."""
    return RUNNING_STATUSES[index % len(RUNNING_STATUSES)]


def apply(answer: Answer, run_id: str, quirks: frozenset[Quirk]) -> None:
    """Make the answer for `run_id` odd in each way that `quirks` names. Changes it in place."""
    for quirk in Quirk:  # in the order they are declared: a set's differs between processes
        if quirk in quirks and quirk in _APPLY:
            _APPLY[quirk](answer, run_id)


def _results_url(answer: Answer, _run_id: str) -> None:
    for test in answer["tests"]:
        test["testResultsUrl"] = f"https://results.example.com/app/test/{test['id']}"


def _other_id(answer: Answer, run_id: str) -> None:
    answer["id"] = dice.uuid4("other id", run_id)


def _odd_names(answer: Answer, run_id: str) -> None:
    answer["name"] = dice.pick(("", f" {answer['name']}"), "odd name", run_id)
    answer["application"] = f" {answer['application']}"
    answer["tests"][0]["name"] = ""
    answer["environments"][0]["name"] = ""


def _fields_missing(answer: Answer, run_id: str) -> None:
    del answer[dice.pick(SPARE_FIELDS, "missing", run_id)]
    del answer["environments"][0]["device"]
    del answer["tests"][-1]["sitemap"]


def _fields_added(answer: Answer, run_id: str) -> None:
    answer["triggered_by"] = {"kind": "schedule", "attempt": dice.between(1, 3, "attempt", run_id)}
    for environment in answer["environments"]:
        environment["locale"] = "en-GB"
    for test in answer["tests"]:
        test["tags"] = ["nightly"]


def _counter_added(answer: Answer, run_id: str) -> None:
    skipped = [dice.between(0, 2, "skipped", run_id, i) for i in range(len(answer["tests"]))]
    for test, count in zip(answer["tests"], skipped, strict=True):
        test["results"]["skipped"] = count
    answer["results"]["skipped"] = sum(skipped)


def _completed(answer: Answer, _run_id: str) -> None:
    if answer["status"] in {"passed", "failed"}:
        answer["status"] = "completed"


def _shared_test_id(answer: Answer, _run_id: str) -> None:
    answer["tests"][-1]["id"] = answer["tests"][0]["id"]


# PLAIN_RUN_ID is not here: an id is given before there is an answer.
_APPLY = {
    Quirk.RESULTS_URL: _results_url,
    Quirk.OTHER_ID: _other_id,
    Quirk.ODD_NAMES: _odd_names,
    Quirk.FIELDS_MISSING: _fields_missing,
    Quirk.FIELDS_ADDED: _fields_added,
    Quirk.COUNTER_ADDED: _counter_added,
    Quirk.COMPLETED: _completed,
    Quirk.SHARED_TEST_ID: _shared_test_id,
}

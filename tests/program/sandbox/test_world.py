import hashlib
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from etl.sandbox import life
from etl.sandbox.world import Shape, World
from tests.program.sandbox.answers import COUNTERS, END, lives, result

LATER = END + timedelta(days=30)
A_MOMENT = timedelta(milliseconds=1)
GOING = {"pending", "", None, "running"}

Answers = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def all_lives(world: World) -> Answers:
    return lives(world)


def finals(all_lives: Answers) -> Iterator[dict[str, Any]]:
    return (answers[-1] for answers in all_lives.values())


def digest(world: World, at: datetime) -> str:
    bodies = (world.answer(run.run_id, at) or b"" for run in world.runs(at))
    return hashlib.sha256(b"".join(bodies)).hexdigest()


def test_the_same_seed_gives_the_same_bytes_in_another_process(world: World) -> None:
    program = (
        "from etl.sandbox.world import World;"
        "from tests.program.sandbox.answers import END;"
        "from tests.program.sandbox.test_world import digest;"
        "print(digest(World(end=END), END))"
    )
    # Another hash seed shows an order that comes from a set, or a number that comes from hash().
    other = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "4711"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == digest(world, END)


def test_the_answers_stay_what_they_were_when_this_was_written(world: World) -> None:
    """Change the literal together with the made-up data: recorded figures no longer hold then."""
    assert digest(world, END)[:16] == "39c2a46424939f53"


def test_another_seed_gives_other_runs(world: World) -> None:
    other = World(end=END, seed=2)
    assert {run.run_id for run in world.runs(END)}.isdisjoint(r.run_id for r in other.runs(END))


def test_an_answer_has_the_documented_shape(world: World) -> None:
    plain = next(run for run in world.runs(END) if not run.quirks)
    answer = result(world, plain.run_id, END)
    assert list(answer) == [
        "id", "name", "application", "status", "environments", "started_at", "duration", "results",
        "tests",
    ]  # fmt: skip
    assert list(answer["environments"][0]) == ["name", "os", "viewport", "device", "browser"]
    assert list(answer["tests"][0]) == ["id", "name", "status", "type", "sitemap", "results"]
    assert tuple(answer["results"]) == COUNTERS


def test_a_world_is_large_enough_for_reports_and_small_enough_for_a_demo(
    all_lives: Answers,
) -> None:
    sizes = [len(answer["tests"]) for answer in finals(all_lives)]
    assert len(sizes) == 300
    assert 10_000 <= sum(sizes) <= 15_000
    assert (min(sizes), max(sizes)) == (1, 2000)


def test_the_runs_counters_are_the_sums_of_its_tests(all_lives: Answers) -> None:
    for answers in all_lives.values():
        for answer in answers:
            sums = {name: sum(t["results"][name] for t in answer["tests"]) for name in COUNTERS}
            assert {name: answer["results"][name] for name in COUNTERS} == sums


def test_a_tests_counters_agree_with_its_status(all_lives: Answers) -> None:
    for answers in all_lives.values():
        for test in (test for answer in answers for test in answer["tests"]):
            counts = {name: test["results"][name] for name in COUNTERS if test["results"][name]}
            assert min(counts.values()) > 0
            assert set(counts) - {"passed"} == {test["status"]} - {"passed"}


def test_a_run_does_not_exist_before_it_starts(world: World) -> None:
    for run in world.runs(LATER):
        assert world.answer(run.run_id, run.started_at - A_MOMENT) is None
        assert world.answer(run.run_id, run.started_at) is not None


def test_an_unknown_run_has_no_answer_and_never_changes(world: World) -> None:
    assert world.answer("no such run", END) is None
    assert world.changes("no such run") == []


def test_an_answer_is_constant_between_two_changes_and_differs_across_each(world: World) -> None:
    for run in world.runs(LATER):
        for since, until in pairwise([*world.changes(run.run_id), LATER]):
            body = world.answer(run.run_id, since)
            assert world.answer(run.run_id, since + (until - since) / 2) == body
            assert world.answer(run.run_id, until - A_MOMENT) == body
            assert until == LATER or world.answer(run.run_id, until) != body


def test_a_run_goes_forward_in_steps_until_it_is_over(all_lives: Answers) -> None:
    for answers in all_lives.values():
        pending = [answer["results"]["pending"] for answer in answers]
        assert [count > 0 for count in pending[: life.STEPS]] == [True] * life.STEPS
        assert not any(pending[life.STEPS :])
        assert pending == sorted(pending, reverse=True)
        assert {answer["status"] for answer in answers[: life.STEPS]} <= GOING


def test_what_was_finished_while_the_run_was_going_stays_so_at_its_end(all_lives: Answers) -> None:
    for answers in all_lives.values():
        before, after = answers[life.STEPS - 1 : life.STEPS + 1]
        for was, became in zip(before["tests"], after["tests"], strict=True):
            assert was["status"] in {"pending", became["status"]}


def test_at_the_end_some_runs_are_going_and_some_are_to_come(world: World) -> None:
    started = list(world.runs(END))
    assert {result(world, run.run_id, END)["status"] for run in started} > GOING
    assert 5 <= sum(run.ended_at > END for run in started) <= 20
    assert len(list(world.runs(END + timedelta(minutes=30)))) > len(started)


def test_a_run_whose_tests_are_decided_one_by_one_changes_while_it_is_unresolved(
    all_lives: Answers,
) -> None:
    over = [answers[life.STEPS :] for answers in all_lives.values()]
    unresolved = [[a for a in answers if a["status"] == "unresolved"] for answers in over]
    assert max(map(len, unresolved)) > 2


def test_unresolved_runs_become_passed_or_failed_or_never_change(all_lives: Answers) -> None:
    ends = {
        answers[-1]["status"]
        for answers in all_lives.values()
        if answers[life.STEPS]["status"] == "unresolved"
    }
    assert ends == {"passed", "failed", "unresolved"} | ({"completed"} & ends)


def test_unresolved_runs_are_decided_hours_to_ten_days_after_their_end(world: World) -> None:
    waits = [
        change - run.ended_at
        for run in world.runs(LATER)
        for change in world.changes(run.run_id)[life.STEPS + 1 :]
    ]
    assert timedelta(hours=2) <= min(waits) < timedelta(days=1)
    assert timedelta(days=8) < max(waits) <= timedelta(days=10)


def test_runs_unresolved_at_the_end_are_decided_later(world: World) -> None:
    at_end = [r for r in world.runs(END) if result(world, r.run_id, END)["status"] == "unresolved"]
    decided = [r for r in at_end if result(world, r.run_id, LATER)["status"] != "unresolved"]
    assert len(decided) >= 3


def test_test_ids_last_in_some_applications_and_are_new_each_run_in_others(
    world: World, all_lives: Answers
) -> None:
    lasting = {}
    for plan in world.plans.values():
        runs = [run for run in world.runs(END) if run.plan == plan and not run.quirks]
        ids = [{test["id"] for test in all_lives[run.run_id][-1]["tests"]} for run in runs[:2]]
        lasting[plan.application] = bool(set.intersection(*ids))
    assert set(lasting.values()) == {True, False}


def test_a_plan_grows_and_keeps_its_tests_names(world: World, all_lives: Answers) -> None:
    runs = [run for run in world.runs(END) if run.plan.name == "Nightly" and not run.quirks]
    first, *_, last = [[t["name"] for t in all_lives[run.run_id][-1]["tests"]] for run in runs]
    assert last[: len(first)] == first
    assert len(last) > len(first)


def test_names_are_not_all_ascii(all_lives: Answers) -> None:
    assert any(not answer["application"].isascii() for answer in finals(all_lives)
               if "application" in answer)  # fmt: skip


def test_a_naive_time_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="has no time zone"):
        world.answer("any", END.replace(tzinfo=None))


def test_an_executed_run_is_over_after_a_few_minutes() -> None:
    world = World(end=END, runs=10)
    run = world.execute(next(iter(world.plans)), END)
    assert result(world, run.run_id, END)["status"] in GOING
    assert result(world, run.run_id, END + timedelta(minutes=5))["results"]["pending"] == 0


def test_executed_runs_depend_on_the_seed_and_their_count_alone() -> None:
    one, other = World(end=END, runs=10), World(end=END, runs=10)
    plans = list(one.plans)
    assert [one.execute(plan, END) for plan in plans] == [other.execute(p, END) for p in plans]


def test_a_uniform_worlds_runs_all_have_its_shape_and_are_over() -> None:
    world = World(end=END, runs=50, shape=Shape(environments=11, tests=7))
    answers = [result(world, run.run_id, END) for run in world.runs(END)]
    assert {(len(a["environments"]), len(a["tests"])) for a in answers} == {(11, 7)}
    assert {a["status"] for a in answers} <= {"passed", "failed"}
    assert len({a["id"] for a in answers}) == 50


def test_a_uniform_world_knows_no_other_runs() -> None:
    world = World(end=END, runs=50, shape=Shape(environments=1, tests=1))
    known = next(world.runs(END)).run_id
    strangers = (f"{known[:-8]}00000032", f"0{known[1:-1]}1", known[:-8], "", "-0000001", "é" * 36)
    assert [world.answer(stranger, END) for stranger in strangers] == [None] * len(strangers)


def test_a_shape_without_tests_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Shape(environments=1, tests=0)

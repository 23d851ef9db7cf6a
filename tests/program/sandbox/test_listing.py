import csv
import json
from datetime import timedelta

import pytest

from etl.intake.formats import read_list
from etl.sandbox.listing import Format, render
from etl.sandbox.world import Shape, World
from tests.program.sandbox.answers import END


def text(world: World, form: Format) -> str:
    return "".join(render(world, form, END))


def ids(world: World) -> list[str]:
    return [run.run_id for run in world.runs(END)]


def test_plain_lists_have_a_comment_and_an_id_a_line(world: World) -> None:
    comment, *lines = text(world, Format.TXT).splitlines()
    assert comment.startswith("#")
    assert lines == ids(world)


def test_csv_lists_have_the_run_ids_their_tokens_and_labels(world: World) -> None:
    rows = list(csv.DictReader(text(world, Format.CSV).splitlines()))
    assert [row["run_id"] for row in rows] == ids(world)
    assert [row["read_token"] for row in rows] == [world.read_token(i) for i in ids(world)]
    assert list(rows[0]) == ["run_id", "read_token", "branch", "build", "commit"]


def test_the_formats_all_tell_the_same(world: World) -> None:
    rows = list(csv.DictReader(text(world, Format.CSV).splitlines()))
    assert json.loads(text(world, Format.JSON)) == rows
    assert [json.loads(line) for line in text(world, Format.JSONL).splitlines()] == rows


@pytest.mark.parametrize("form", Format)
def test_every_list_can_be_tracked_as_it_is(world: World, form: Format) -> None:
    read = read_list(text(world, form).encode())
    assert [run.run_id for run in read.runs] == ids(world)
    assert not read.bad_lines


def test_a_list_has_no_run_that_has_not_started(world: World) -> None:
    before, after = (list(render(world, Format.TXT, END + timedelta(hours=h))) for h in (0, 6))
    assert set(before) < set(after)


def test_a_commit_is_shared_by_two_runs_of_its_plan() -> None:
    world = World(end=END, runs=4, shape=Shape(environments=1, tests=1))
    commits = [row["commit"] for row in json.loads(text(world, Format.JSON))]
    assert [commits.count(commit) for commit in commits] == [2, 2, 2, 2]


def test_an_empty_list_is_still_json() -> None:
    world = World(end=END, runs=0)
    assert json.loads(text(world, Format.JSON)) == []

from datetime import timedelta

from etl.sandbox.cache import SnapshotCache
from etl.sandbox.world import Shape, World
from tests.program.sandbox.answers import END


def test_a_cached_answer_is_what_the_world_answers_at_any_time(world: World) -> None:
    cache = SnapshotCache(world)
    run = next(run for run in world.runs(END) if run.ended_at > END)
    for minute in (0, 1, 2, 40, 30, -5, 90, 60 * 24 * 20):
        at = END + timedelta(minutes=minute)
        assert cache.get(run.run_id, at) == world.snapshot(run.run_id, at)


def test_a_cache_never_holds_more_than_its_limit() -> None:
    world = World(end=END, runs=200, shape=Shape(environments=1, tests=10))
    cache = SnapshotCache(world, max_bytes=50_000)
    for run in world.runs(END):
        assert cache.get(run.run_id, END) is not None
        assert cache.bytes <= 50_000

"""The limits that all workers of a source share, on each kind of database."""

import threading
import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, func, insert, select

from etl.clock import now
from etl.db.database import connect, prepare, reading, writing, writing_once
from etl.db.schema import ingests, source_limits, workers
from etl.errors import DatabaseError
from etl.ledger.source_limits import (
    ALIVE_MS,
    Demand,
    Share,
    Slot,
    Worker,
    beat,
    divide_connections,
    end_waits,
    join,
    report_halt,
    report_wait,
    take_slot,
)

ONE, OTHER = Worker("one", 1), Worker("other", 2)
TENTH = Demand(100, probes=False, is_alone=False, answered_ms_ago=None)
PROBE = TENTH._replace(probes=True)


def joined(engine: Engine, *members: Worker) -> None:
    with writing(engine) as connection:
        for worker in members:
            row = {"id": worker.pass_id, "trigger": "test", "started_at": now()}
            connection.execute(insert(ingests).values(row))
            join(connection, worker, {"default": 0}, 0)


def take(engine: Engine, worker: Worker, demand: Demand = TENTH) -> Slot:
    with writing(engine) as connection:
        return take_slot(connection, worker, "default", demand)


def test_a_worker_that_is_lost_after_it_took_a_slot_leaves_no_lock(postgresql_url: str) -> None:
    engine = connect(postgresql_url)
    prepare(engine)
    joined(engine, ONE, OTHER)
    with writing_once(engine) as connection:
        take_slot(connection, ONE, "default", TENTH)
        begun_at = time.monotonic()
        take(engine, OTHER)
        assert time.monotonic() - begun_at < 1
    engine.dispose()


def share_of(engine: Engine, worker: Worker, in_use: int = 0) -> Share:
    with writing(engine) as connection:
        return beat(connection, worker, {"default": in_use}, 8)["default"]


def die(engine: Engine, worker: Worker) -> None:
    """Let so much time pass without a heartbeat of the worker that it counts as dead."""
    seen_at = now() - timedelta(milliseconds=2 * ALIVE_MS)
    with writing(engine) as connection:
        is_its = workers.c.worker == worker.name
        connection.execute(workers.update().where(is_its).values(seen_at=seen_at))


def test_each_slot_begins_where_the_last_one_ends(engine: Engine) -> None:
    joined(engine, ONE, OTHER)
    began = time.monotonic()
    begins = [take(engine, worker).begins_in_s for worker in (ONE, OTHER, ONE, ONE)]
    took_s = time.monotonic() - began
    for place, begins_in_s in enumerate(begins):
        assert begins_in_s is not None
        assert 0.1 * place - took_s <= begins_in_s <= 0.1 * place + 0.001


def test_slots_of_processes_at_once_do_not_overlap(engine: Engine) -> None:
    joined(engine, ONE)
    threads = [threading.Thread(target=take, args=[engine, ONE]) for _ in range(20)]
    began_at = now()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(engine) as connection:
        next_at = connection.scalars(select(source_limits.c.next_slot_at)).one()
    assert next_at - began_at >= timedelta(seconds=1.999)


def test_time_that_nobody_took_is_lost(engine: Engine) -> None:
    joined(engine, ONE)
    take(engine, ONE)
    time.sleep(0.3)
    assert take(engine, ONE).begins_in_s == 0


def test_a_slot_far_ahead_was_written_by_a_wrong_clock(engine: Engine) -> None:
    joined(engine, ONE)
    with writing(engine) as connection:
        connection.execute(source_limits.update().values(next_slot_at=now() + timedelta(hours=1)))
    assert take(engine, ONE).begins_in_s == 0


def test_a_wait_that_one_worker_was_asked_for_holds_for_all(engine: Engine) -> None:
    joined(engine, ONE, OTHER)
    with writing(engine) as connection:
        report_wait(connection, "default", 60_000)
        report_wait(connection, "default", 1_000)
    slot = take(engine, OTHER)
    assert slot.begins_in_s is None
    assert 59 < slot.state.asked_wait_s <= 60
    assert 59 < share_of(engine, ONE).state.asked_wait_s <= 60
    with writing(engine) as connection:
        end_waits(connection)
    assert take(engine, OTHER).begins_in_s == 0


def test_a_wait_longer_than_any_was_written_by_a_wrong_clock(engine: Engine) -> None:
    joined(engine, ONE)
    with writing(engine) as connection:
        report_wait(connection, "default", 25 * 3_600_000)
    assert take(engine, ONE).begins_in_s == 0


def test_a_halt_stops_all_passes_that_have_begun_and_no_later_one(engine: Engine) -> None:
    joined(engine, ONE, OTHER)
    with writing(engine) as connection:
        report_halt(connection, "default", "refused", "401")
    for worker in (ONE, OTHER):
        slot = take(engine, worker)
        assert (slot.begins_in_s, slot.state.halt) == (None, "refused")
        assert slot.state.halt_reason == "401"
    later = Worker("later", 3)
    joined(engine, later)
    slot = take(engine, later)
    assert (slot.begins_in_s, slot.state.halt, slot.state.halt_reason) == (0, None, "")


def test_one_worker_probes_at_a_time(engine: Engine) -> None:
    joined(engine, ONE, OTHER)
    assert take(engine, ONE, PROBE).is_prober
    refused = take(engine, OTHER, PROBE)
    assert (refused.begins_in_s, refused.is_prober) == (None, False)
    assert take(engine, OTHER).begins_in_s is not None, "one that does not probe works on"
    assert not take(engine, ONE).is_prober
    assert take(engine, OTHER, PROBE).is_prober


def test_the_probe_of_a_dead_worker_is_free(engine: Engine) -> None:
    joined(engine, ONE, OTHER)
    take(engine, ONE, PROBE)
    die(engine, ONE)
    assert take(engine, OTHER, PROBE).is_prober


def test_the_newest_result_is_known_to_all(engine: Engine) -> None:
    joined(engine, ONE, OTHER)
    take(engine, ONE, TENTH._replace(answered_ms_ago=200))
    take(engine, OTHER, TENTH._replace(answered_ms_ago=5_000))
    answered_s_ago = take(engine, OTHER).state.answered_s_ago
    assert answered_s_ago is not None
    assert 0.2 <= answered_s_ago < 2


def test_connections_are_shared_out_as_they_become_free(engine: Engine) -> None:
    joined(engine, ONE)
    assert share_of(engine, ONE)[:3] == (8, 1, True)
    joined(engine, OTHER)
    assert share_of(engine, OTHER)[:3] == (0, 2, False), "the older worker has all of them"
    assert share_of(engine, ONE, in_use=8)[:3] == (4, 2, False)
    assert share_of(engine, OTHER)[0] == 0
    assert share_of(engine, ONE, in_use=5)[0] == 4
    assert share_of(engine, OTHER)[0] == 3
    assert share_of(engine, ONE, in_use=4)[:3] == (4, 2, True)
    assert share_of(engine, OTHER, in_use=3)[:3] == (4, 2, True)
    die(engine, ONE)
    assert share_of(engine, OTHER, in_use=4)[:3] == (8, 1, True)


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 16)), max_size=60))
def test_connections_are_never_more_than_the_setting(turns: list[tuple[str, int]]) -> None:
    """Whoever beats when, and however many of its connections are busy by then."""
    held: dict[str, int] = {}
    permitted: dict[str, int] = {}
    for name, busy in turns:
        in_use = min(busy, held.get(name, 0))
        others = {other: count for other, count in held.items() if other != name}
        permitted[name] = divide_connections(name, others, in_use, 16).connections
        held[name] = max(in_use, permitted[name])
        assert sum(held.values()) <= 16


def test_a_worker_that_is_frozen_in_a_heartbeat_holds_the_others_up_for_seconds(
    postgresql_url: str,
) -> None:
    engine = connect(postgresql_url)
    prepare(engine)
    joined(engine, ONE, OTHER)
    began = time.monotonic()
    with pytest.raises(DatabaseError) as lost, writing(engine) as frozen:  # noqa: PT012
        beat(frozen, ONE, {"default": 0}, 8)
        assert take(engine, OTHER).begins_in_s == 0
        assert 2 < time.monotonic() - began < 10
        frozen.execute(select(func.now()))
    engine.dispose()
    assert lost.value.is_transient

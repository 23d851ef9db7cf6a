"""The workers of a pass, and the requests that they share, on each kind of database."""

import threading

from sqlalchemy import Engine, insert

from etl.clock import now
from etl.db.database import writing
from etl.db.schema import ingests
from etl.fetch.permits import Allowed, PermitAsk
from etl.fetch.rate_limit import RequestLimits
from etl.ingest.pass_workers import allow, close_worker, find_workers, open_worker
from etl.ingest.tally import Tally
from etl.ledger.source_limits import Worker

BUDGET = 100
LIMITS = RequestLimits(8, 0, 3, 60, max_requests=BUDGET)
DEMAND = PermitAsk("default", 2, False, 8, 0, 0, 0, 0, None, "")


def open_pass(engine: Engine, pass_id: int, *names: str) -> list[Worker]:
    with writing(engine) as connection:
        row = {"id": pass_id, "trigger": "test", "started_at": now()}
        connection.execute(insert(ingests).values(row))
        for name in names:
            open_worker(connection, name, pass_id, now())
    return [Worker(name, pass_id) for name in names]


def ask(engine: Engine, worker: Worker) -> Allowed:
    with writing(engine) as connection:
        return allow(connection, worker, LIMITS, DEMAND)


def take_all(engine: Engine, worker: Worker) -> int:
    allowed = ask(engine, worker)
    while not allowed.is_last:
        allowed = ask(engine, worker)
    return allowed.requests


def test_workers_get_all_requests_of_their_pass_and_not_one_more(engine: Engine) -> None:
    taken: list[int] = []
    threads = [
        threading.Thread(target=lambda worker=worker: taken.append(take_all(engine, worker)))
        for worker in open_pass(engine, 1, "one", "other", "third")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(taken) == BUDGET


def test_one_demand_leaves_most_requests_to_the_others(engine: Engine) -> None:
    [one] = open_pass(engine, 1, "one")
    assert ask(engine, one) == Allowed(BUDGET // 8, is_last=False)


def test_requests_that_a_worker_has_not_sent_are_free_when_it_ends(engine: Engine) -> None:
    one, other = open_pass(engine, 1, "one", "other")
    take_all(engine, one)
    with writing(engine) as connection:
        close_worker(connection, one.name, Tally(requests=70), now())
    assert take_all(engine, other) == 30


def test_each_pass_has_a_budget_of_its_own(engine: Engine) -> None:
    [one], [other] = open_pass(engine, 1, "one"), open_pass(engine, 2, "other")
    assert (take_all(engine, one), take_all(engine, other)) == (BUDGET, BUDGET)


def test_a_process_of_another_container_is_not_mistaken_for_an_ended_one(engine: Engine) -> None:
    """Containers can share the name of a host, and each counts its processes from 1."""
    open_pass(engine, 1, "host:8:one")
    open_pass(engine, 2, "host:8:other")
    with writing(engine) as connection:
        assert find_workers(connection, 2, "host:8:") == ["host:8:other"]

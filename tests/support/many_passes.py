"""A service process that does one pass after another, and counts what it holds after each.

-m tests.support.many_passes ORDER, with an `Order` as JSON. Prints a `Count` as JSON a pass.
"""

import re
import resource
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Literal

from msgspec import Struct, json

from etl import clock
from etl.config.settings import Api, Config, Database, Log, Polling, Runs, Security, Source
from etl.db import opening
from etl.fetch import door
from etl.fetch.rate_limit import Pauses
from etl.ingest import service
from etl.ingest.context import IngestContext
from etl.ingest.interrupt import Interrupt
from etl.runtime import tune_heap
from etl.secrets.keys import DEFAULT_SOURCE
from etl.telemetry import log

WAYS = {"threads": door.in_threads, "child": door.in_child}
SOON = timedelta(milliseconds=1)
ALWAYS_DUE = Polling(
    running_every=SOON,
    retry_every=SOON,
    retry_at_most_every=SOON,
    growth=0,
    give_up_after=timedelta(days=36_500),
    max_attempts=1_000_000,
)


class Order(Struct):
    """Do `passes` passes by a `way` of fetching, with at most `max_files` open files."""

    passes: int
    way: str
    api_url: str
    database_url: str
    folder: str
    max_files: int
    connections: int = 16
    read_timeout_s: float = 0.1
    log_level: Literal["debug", "info", "warning", "error"] = "error"


class Count(Struct):
    """The open files, threads and resident memory of the process after a pass."""

    files: int
    threads: int
    memory_kib: int


def count() -> Count:
    """Count what this process holds now."""
    status = Path("/proc/self/status").read_text()
    memory = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert memory
    files = list(Path("/proc/self/fd").iterdir())
    return Count(len(files), threading.active_count(), int(memory[1]))


def main(order: Order) -> None:
    """Do the passes as the service does them."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (order.max_files, hard))
    tune_heap()
    folder = Path(order.folder)
    config = Config(
        {DEFAULT_SOURCE: Source(order.api_url, key_file=str(folder / "key"))},
        Database(order.database_url),
        Api(
            connections=order.connections,
            max_requests_per_second=0,
            attempts=2,
            read_timeout_s=order.read_timeout_s,
            total_timeout_s=2 * order.read_timeout_s,
        ),
        Runs([str(folder / "runs.txt")]),
        ALWAYS_DUE,
        security=Security(str(folder / "token.key")),
        log=Log(order.log_level),
    )
    log.configure(config.log)
    with opening.open_or_create(order.database_url) as archive:
        pauses = Pauses(0.001, 0.002)
        ingest = IngestContext(archive.engine, config, clock.now, WAYS[order.way], pauses)
        for _ in range(order.passes):
            service.do_pass(ingest, Interrupt())
            sys.stdout.write(json.encode(count()).decode() + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(json.decode(sys.argv[1], type=Order))

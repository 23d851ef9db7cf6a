"""A real Dask cluster on loopback: a scheduler and two workers, each a process of its own."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from tests.support.postgres import free_port
from tests.support.program import Program


class Cluster(NamedTuple):
    address: str
    workers: list[subprocess.Popen[bytes]]


@contextmanager
def dask(archiver: Program, module: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of Dask in the archiver's environment."""
    command = [sys.executable, "-m", f"distributed.cli.dask_{module}", *options, "--no-dashboard"]
    output = subprocess.DEVNULL
    with subprocess.Popen(
        command, cwd=archiver.folder, env=archiver.environment, stdout=output, stderr=output
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def cluster(archiver: Program) -> Iterator[Cluster]:
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    with ExitStack() as stack:
        options = ("--host", "127.0.0.1", "--port", str(port))
        stack.enter_context(dask(archiver, "scheduler", *options))
        worker = ("worker", address, "--nthreads", "1", "--no-nanny", "--death-timeout", "60")
        workers = [stack.enter_context(dask(archiver, *worker)) for _ in range(2)]
        time.sleep(3)
        yield Cluster(address, workers)

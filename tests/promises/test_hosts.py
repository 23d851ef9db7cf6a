"""Hosts that die, freeze, are cut off or have a wrong clock (promise 5): one process's archive.

Hosts are network namespaces of this machine: `make hosts`, as root. CHAOS_SEED picks other
instants.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from etl.db import database
from tests.support import fake_api
from tests.support.certificate import write_certificate
from tests.support.dump import PASSES, dump
from tests.support.fake_api import FakeApi, runs_of_plans
from tests.support.hosts import Host, Network, another_clock, end_all, network
from tests.support.postgres import Server, find_programs, free_port, run, running_server
from tests.support.program import COMMAND, Program, program

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(400)]

SEED = int(os.environ.get("CHAOS_SEED", "20251"))
DATABASE = "RESULT_ARCHIVER__DATABASE__URL"
RUNS = 480
RATE = 40
CONNECTIONS = 6
LEASE_S = 3
FREEZE_S = 3 * LEASE_S
CUT_S = 30
BATCH = RATE * 3 // 2
"""The outcomes of a second wait for a batch, while those before are being committed."""

CLOCKS = {
    "archived_at", "changed_at", "row_changed_at", "context_changed_at", "changed_by",
    "decided_at", "due_at", "fetched_at", "first_run_id", "first_seen_at", "first_tracked_at",
    "last_fetched_at", "last_seen_at", "measured_at", "digest", "observed_at", "opened_at",
    "superseded_at",
}  # fmt: skip
"""The columns that tell when, or in which order, runs were fetched."""
COUNTS_OF_FETCHES = {"fetches"}


# --- the stage ---


def content(url: str) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of all tables but those of passes, without the columns of clocks.

    Of the decisions on test ids the last ones count: earlier ones depend on the order of answers.
    """
    engine = database.connect(url)
    with database.reading(engine) as connection:
        tables = dump(connection, leave_out=PASSES)
    engine.dispose()
    decisions = sorted(tables["identity_decisions"], key=lambda row: row["decided_at"])
    last = {(row["source"], row["application"]): row for row in decisions}
    tables["identity_decisions"] = list(last.values())
    hidden = CLOCKS | COUNTS_OF_FETCHES
    return {
        name: [{key: row[key] for key in row.keys() - hidden} for row in rows]
        for name, rows in tables.items()
    }


@pytest.fixture(scope="module")
def hosts() -> Iterator[Network]:
    with network(3) as made:
        yield made


@pytest.fixture(scope="module")
def server(hosts: Network) -> Iterator[Server]:
    """A server that hosts reach, and that keeps each commit that it confirmed."""
    with running_server() as started:
        data = started.directory / "data"
        with (data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {hosts.subnet} scram-sha-256\n")
        with (data / "postgresql.conf").open("a") as file:
            file.write("listen_addresses = '*'\nsynchronous_commit = on\n")
        restart(started, "fast")
        yield started


def restart(server: Server, mode: str) -> None:
    options = ("--wait", "--mode", mode, "--log", server.directory / "log")
    run(find_programs() / "pg_ctl", *options, "restart", directory=server.directory)


@pytest.fixture(scope="module")
def certificate(hosts: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    write_certificate(path, "127.0.0.1", hosts.address)
    return path


@pytest.fixture(scope="module")
def archived_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The archive that one process makes of the same runs."""
    folder = tmp_path_factory.mktemp("alone")
    url = f"sqlite:///{folder}/archive.db"
    with fake_api.serving() as api:
        api.answers |= runs_of_plans(RUNS)
        alone = program(folder, url, api.url)
        assert alone.call("ingest", "--from", write_list(alone)).exit_code == 0
    return content(url)


def write_list(archiver: Program) -> Path:
    return archiver.write("runs.txt", "\n".join(f"r-{number}" for number in range(RUNS)))


@pytest.fixture
def api(certificate: Path) -> Iterator[FakeApi]:
    with fake_api.serving(certificate=certificate) as api:
        api.answers |= runs_of_plans(RUNS)
        yield api


@dataclass
class Round:
    """One pass by several hosts; `archiver` is the program on this machine."""

    archiver: Program
    network: Network
    server: Server
    api: FakeApi
    chance: random.Random
    wrong_clocks: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    """The variables of hosts whose clocks are wrong, by their numbers."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    """Those of the archiver."""
    logs: list[Path] = field(default_factory=list)

    @property
    def hosts(self) -> Sequence[Host]:
        return self.network.hosts

    def start(self, number: int, *command: str) -> subprocess.Popen[str]:
        """Start a program on a host, where the database and the API have another address."""
        environment = dict(self.archiver.environment)
        for name in (DATABASE, "RESULT_ARCHIVER__API__BASE_URL"):
            environment[name] = environment[name].replace("127.0.0.1", self.network.address)
        environment |= self.wrong_clocks.get(number, {})
        log = self.archiver.folder / f"log-{len(self.started)}"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*self.hosts[number].prefix, *command],
                cwd=self.archiver.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                encoding="utf-8",
            )
        self.started.append(process)
        self.logs.append(log)
        return process

    def work(self, number: int, *arguments: str) -> None:
        self.processes.append(self.start(number, *COMMAND, *arguments))

    def end(self) -> None:
        """End all that was started, and connect all hosts again."""
        for host in self.hosts:
            host.mend()
            end_all(host)
        for process in self.started:
            process.wait()

    def await_requests(self, number: int) -> None:
        wait_for(lambda: len(self.api.log) >= number, 60, self.read_logs)

    def read_logs(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in self.logs)


def wait_for(happened: Callable[[], bool], patience_s: float, explain: Callable[[], str]) -> None:
    until = time.monotonic() + patience_s
    while not happened():
        if time.monotonic() > until:
            pytest.fail(explain())
        time.sleep(0.01)


# --- ways to share a pass ---


def by_cron(its: Round) -> None:
    """Each host begins a pass of its own."""
    for number in range(len(its.hosts)):
        its.work(number, "ingest")


def by_hand(its: Round) -> None:
    """One host begins a pass, the others join it."""
    its.work(0, "ingest")
    its.await_requests(1)
    for number in range(1, len(its.hosts)):
        its.work(number, "work", "--pass", "1")


def by_coordinator(its: Round) -> None:
    """One host has several workers; another one has a pass of its own."""
    its.work(0, "ingest", "--workers", "2")
    its.await_requests(1)
    its.work(1, "ingest")


def by_dask(its: Round) -> None:
    """The workers are on a Dask cluster; its scheduler is on the host that begins the pass."""
    port = str(free_port())
    address = f"tcp://{its.hosts[0].address}:{port}"
    dask = (sys.executable, "-m")
    its.start(0, *dask, "distributed.cli.dask_scheduler", "--no-dashboard", "--port", port)
    for number in range(1, len(its.hosts)):
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "60")
        its.start(number, *dask, "distributed.cli.dask_worker", address, *options)
    wait_for(lambda: its.read_logs().count("Registered to") == 2, 60, its.read_logs)
    its.work(0, "ingest", "--dask", address, "--workers", "2")


class Way(NamedTuple):
    """A way to share a pass, and the host that is disturbed, with its number of workers."""

    begin: Callable[[Round], None]
    victim: int
    workers: int


WAYS = {
    "cron": Way(by_cron, 2, 1),
    "hand": Way(by_hand, 1, 1),
    "coordinator": Way(by_coordinator, 0, 2),
    "dask": Way(by_dask, 1, 1),
}


# --- disasters ---


def kill(its: Round, way: Way) -> int:
    """Kill a worker."""
    for pid in workers_of(its, way):
        os.kill(pid, signal.SIGKILL)
    return 1


def lose_host(its: Round, way: Way) -> int:
    """Cut the link of a host for good, and kill its processes: nobody is told of that."""
    its.hosts[way.victim].cut()
    for pid in its.hosts[way.victim].pids():
        os.kill(pid, signal.SIGKILL)
    return way.workers


def freeze(its: Round, way: Way) -> int:
    """Stop a worker for longer than its lease."""
    victims = workers_of(its, way)
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(FREEZE_S)
    for pid in victims:
        os.kill(pid, signal.SIGCONT)
    return 1


def workers_of(its: Round, way: Way) -> list[int]:
    """Return the processes of one worker: those of its host, if it has no other."""
    if way.workers == 1:
        return its.hosts[way.victim].pids()
    [coordinator, *_] = its.processes
    children = Path(f"/proc/{coordinator.pid}/task/{coordinator.pid}/children")
    return [int(children.read_text().split()[0])]


def cut(its: Round, way: Way) -> int:
    host = its.hosts[way.victim]
    host.cut()
    time.sleep(CUT_S)
    host.mend()
    return way.workers


def restart_database(its: Round, _way: Way) -> int:
    restart(its.server, its.chance.choice(["fast", "immediate"]))
    return 0


def trust_clocks(_its: Round, _way: Way) -> int:
    """Do nothing: the clocks are wrong from the beginning."""
    return 0


DISASTERS = {
    "kill": kill,
    "lost": lose_host,
    "freeze": freeze,
    "cut": cut,
    "clock": trust_clocks,
    "restart": restart_database,
}


@pytest.fixture
def its(
    hosts: Network, server: Server, api: FakeApi, certificate: Path, tmp_path: Path
) -> Iterator[Round]:
    with server.database() as url:
        archiver = program(tmp_path, url, api.url).given(
            REQUESTS_CA_BUNDLE=str(certificate),
            RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND=str(RATE),
            RESULT_ARCHIVER__API__CONNECTIONS=str(CONNECTIONS),
            RESULT_ARCHIVER__API__CONNECT_TIMEOUT_S="3",
            RESULT_ARCHIVER__API__READ_TIMEOUT_S="5",
            RESULT_ARCHIVER__POLLING__LEASE_FOR=f"{LEASE_S}s",
        )
        assert archiver.call("track", "--from", write_list(archiver)).exit_code == 0
        its = Round(archiver, hosts, server, api, random.Random(SEED))
        try:
            yield its
        finally:
            its.end()


@pytest.mark.parametrize("disaster", DISASTERS)
@pytest.mark.parametrize("way", WAYS)
def test_hosts_make_the_archive_of_one_process(
    its: Round, way: str, disaster: str, archived_alone: dict[str, list[dict[str, Any]]]
) -> None:
    its.chance.seed(f"{SEED} {way} {disaster}")
    if disaster == "clock":
        hours = its.chance.choice([1, -1])
        its.wrong_clocks = {WAYS[way].victim: another_clock(its.archiver.folder / "clock", hours)}
    begun_at = time.monotonic()
    WAYS[way].begin(its)
    its.await_requests(int(RUNS * its.chance.uniform(0.1, 0.5)))
    dead = DISASTERS[disaster](its, WAYS[way])
    wait_for(lambda: all(each.poll() is not None for each in its.processes), 120, its.read_logs)
    took_s = time.monotonic() - begun_at
    left = due_runs(its.archiver)
    time.sleep(LEASE_S)
    last = its.archiver.call("ingest")
    repeated = its.api.requests.total() - RUNS
    sys.stdout.write(
        f"\n{way}, {disaster}: {took_s:.0f} s, exit codes"
        f" {[process.returncode for process in its.processes]}, {left} runs left to the last pass,"
        f" {repeated} requests repeated\n"
    )
    assert last.exit_code == 0, its.read_logs() + last.stderr
    assert its.archiver.call("verify").exit_code == 0
    assert content(its.archiver.environment[DATABASE]) == archived_alone
    assert repeated <= dead * (CONNECTIONS + BATCH), its.read_logs()
    assert due_runs(its.archiver) == 0
    assert "internal error" not in its.read_logs()


def due_runs(archiver: Program) -> int:
    standing = archiver.call("status", "--json").json()
    return int(standing["due"]) + int(standing["leased"])

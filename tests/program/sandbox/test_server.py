import os
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from subprocess import PIPE
from urllib.parse import quote

import pytest
import requests

from etl.errors import UsageError
from etl.sandbox.api import EXECUTE_KEY, READ_KEY
from etl.sandbox.listing import Format, render
from etl.sandbox.quirks import Quirk
from etl.sandbox.runs import Run
from etl.sandbox.server import Sandbox, running
from etl.sandbox.world import World
from etl.sandbox.world_clock import Clock
from tests.program.sandbox.answers import END


def get(sandbox: Sandbox, run_id: str, **query: str) -> requests.Response:
    url = f"{sandbox.url}/api/result/{quote(run_id, safe='')}"
    return requests.get(url, params=query, timeout=10)


def a_run(sandbox: Sandbox) -> Run:
    return next(sandbox.world.runs(END))


def test_the_read_key_reads_a_run_as_the_world_has_it(sandbox: Sandbox) -> None:
    run_id = a_run(sandbox).run_id
    response = get(sandbox, run_id, apiKey=READ_KEY)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.content == sandbox.world.answer(run_id, END)


@pytest.mark.parametrize("query", [{}, {"apiKey": ""}, {"apiKey": "stolen"}])
def test_a_missing_or_unknown_key_is_a_401(sandbox: Sandbox, query: dict[str, str]) -> None:
    assert get(sandbox, a_run(sandbox).run_id, **query).status_code == 401


@pytest.mark.parametrize("query", [{}, {"read_token": "wrong"}, {"read_token": "größe"}])
def test_a_key_without_permission_and_token_is_a_403(
    sandbox: Sandbox, query: dict[str, str]
) -> None:
    response = get(sandbox, a_run(sandbox).run_id, apiKey=EXECUTE_KEY, **query)
    assert response.status_code == 403
    assert list(response.json()) == ["error"]


def test_a_read_token_reads_its_own_run_only(sandbox: Sandbox) -> None:
    one, other = list(sandbox.world.runs(END))[:2]
    token = sandbox.world.read_token(one.run_id)
    codes = [
        get(sandbox, run.run_id, apiKey=EXECUTE_KEY, read_token=token).status_code
        for run in (one, other)
    ]
    assert codes == [200, 403]


def test_an_unknown_run_is_a_404(sandbox: Sandbox) -> None:
    assert get(sandbox, "no such run", apiKey=READ_KEY).status_code == 404


def test_a_run_that_has_not_started_is_a_404(own_sandbox: Sandbox) -> None:
    coming = list(own_sandbox.world.runs(END + timedelta(days=8)))[-1]
    assert get(own_sandbox, coming.run_id, apiKey=READ_KEY).status_code == 404
    own_sandbox.clock.set(now=coming.started_at)
    assert get(own_sandbox, coming.run_id, apiKey=READ_KEY).status_code == 200


def test_any_run_id_can_be_asked_for_as_one_encoded_segment(sandbox: Sandbox) -> None:
    plain = [run.run_id for run in sandbox.world.runs(END) if Quirk.PLAIN_RUN_ID in run.quirks]
    assert set("/ ö%+?&=") <= set("".join(plain))
    codes = {run_id: get(sandbox, run_id, apiKey=READ_KEY).status_code for run_id in plain}
    assert codes == dict.fromkeys(plain, 200)


def test_a_run_id_is_one_segment(sandbox: Sandbox) -> None:
    url = f"{sandbox.url}/api/result/{a_run(sandbox).run_id}/more?apiKey={READ_KEY}"
    assert requests.get(url, timeout=10).status_code == 404


def test_a_run_that_is_executed_can_be_read_with_its_token_alone(own_sandbox: Sandbox) -> None:
    plan_id = next(iter(own_sandbox.world.plans))
    url = f"{own_sandbox.url}/api/plan/{plan_id}/execute"
    started = requests.post(url, params={"apiKey": EXECUTE_KEY}, timeout=10).json()["result"]
    query = {"apiKey": EXECUTE_KEY, "read_token": started["read_token"]}
    assert get(own_sandbox, started["id"], **query).json()["result"]["results"]["pending"] > 0
    own_sandbox.clock.set(now=END + timedelta(minutes=6))
    assert get(own_sandbox, started["id"], **query).json()["result"]["results"]["pending"] == 0


def test_a_run_that_is_executed_is_listed(own_sandbox: Sandbox) -> None:
    run = own_sandbox.world.execute(next(iter(own_sandbox.world.plans)), END)
    listed = requests.get(f"{own_sandbox.url}/sandbox/runs.txt", timeout=10).text
    assert listed.splitlines()[-1] == run.run_id


def test_an_unknown_plan_is_a_404(sandbox: Sandbox) -> None:
    url = f"{sandbox.url}/api/plan/none/execute?apiKey={READ_KEY}"
    assert requests.post(url, timeout=10).status_code == 404


def test_an_unknown_key_executes_nothing(sandbox: Sandbox) -> None:
    before = len(list(sandbox.world.runs(END)))
    url = f"{sandbox.url}/api/plan/{next(iter(sandbox.world.plans))}/execute?apiKey=stolen"
    assert requests.post(url, timeout=10).status_code == 401
    assert len(list(sandbox.world.runs(END))) == before


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/result/any"),
        ("GET", "/api/plan/any/execute"),
        ("DELETE", "/sandbox/clock"),
        ("POST", "/sandbox/runs.txt"),
        ("POST", "/sandbox/requests"),
        ("POST", "/"),
    ],
)
def test_a_wrong_method_is_a_405(sandbox: Sandbox, method: str, path: str) -> None:
    response = requests.request(method, sandbox.url + path, params={"apiKey": READ_KEY}, timeout=10)
    assert response.status_code == 405


@pytest.mark.parametrize("path", ["/api", "/api/result", "/sandbox/runs.xml", "/favicon.ico"])
def test_an_unknown_path_is_a_404(sandbox: Sandbox, path: str) -> None:
    assert requests.get(sandbox.url + path, timeout=10).status_code == 404


@pytest.mark.parametrize("form", Format)
def test_a_list_is_served_as_it_is_rendered(sandbox: Sandbox, form: Format) -> None:
    response = requests.get(f"{sandbox.url}/sandbox/runs.{form.value}", timeout=10)
    assert response.content.decode() == "".join(render(sandbox.world, form, END))


def test_the_clock_can_be_read_and_set(own_sandbox: Sandbox) -> None:
    url = f"{own_sandbox.url}/sandbox/clock"
    setting = {"now": "2026-02-01T09:00:00+01:00", "speed": 0}
    assert requests.post(url, json=setting, timeout=10).status_code == 200
    told = requests.get(url, timeout=10).json()
    assert datetime.fromisoformat(told["now"]) == datetime.fromisoformat("2026-02-01T08:00:00Z")
    assert told["speed"] == 0


def test_the_clock_can_be_sped_up(own_sandbox: Sandbox) -> None:
    url = f"{own_sandbox.url}/sandbox/clock"
    requests.post(url, json={"speed": 86400}, timeout=10)
    first = own_sandbox.clock.now()
    time.sleep(0.05)
    assert own_sandbox.clock.now() - first >= timedelta(hours=1)


@pytest.mark.parametrize(
    "setting",
    ["", "now", '{"now": "2026-02-01T09:00:00"}', '{"speed": -1}', '{"speeed": 1}', '{"now": 1}'],
)
def test_a_bad_clock_setting_is_a_400_and_changes_nothing(sandbox: Sandbox, setting: str) -> None:
    response = requests.post(f"{sandbox.url}/sandbox/clock", data=setting, timeout=10)
    assert response.status_code == 400
    assert (sandbox.clock.now(), sandbox.clock.speed) == (END, 0)


def test_a_request_that_is_too_large_is_a_413(sandbox: Sandbox) -> None:
    url = f"{sandbox.url}/sandbox/clock"
    assert requests.post(url, data=b" " * 100_000, timeout=10).status_code == 413


def test_requests_are_counted_by_run(own_sandbox: Sandbox) -> None:
    run_id = a_run(own_sandbox).run_id
    for key in (READ_KEY, READ_KEY, "stolen"):
        get(own_sandbox, run_id, apiKey=key)
    get(own_sandbox, "größe", apiKey=READ_KEY)
    told = requests.get(f"{own_sandbox.url}/sandbox/requests", timeout=10).json()
    assert told == {"total": 4, "runs": {run_id: 3, "größe": 1}}
    assert own_sandbox.requests == told["runs"]


def test_the_root_says_how_to_use_it(sandbox: Sandbox) -> None:
    page = requests.get(sandbox.url, timeout=10).text
    assert f"{sandbox.url}/api/result/" in page
    assert all(plan_id in page for plan_id in sandbox.world.plans)


def test_answers_can_be_slow() -> None:
    with running(World(end=END, runs=1), Clock(END), latency_ms=100) as sandbox:
        assert get(sandbox, "any", apiKey=READ_KEY).elapsed >= timedelta(milliseconds=100)


def test_answers_on_one_connection_do_not_wait_for_each_other(sandbox: Sandbox) -> None:
    """With Nagle's algorithm on, each one takes 40 ms."""
    with requests.Session() as session:
        elapsed = [
            session.get(f"{sandbox.url}/sandbox/clock", timeout=10).elapsed for _ in "x" * 30
        ]
    assert sorted(elapsed)[15] < timedelta(milliseconds=30)


def test_a_port_in_use_is_a_usage_error_that_names_it() -> None:
    world, clock = World(end=END, runs=1), Clock(END)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"^port {port} .*"), running(world, clock, port):
            pass


def test_a_port_that_cannot_be_is_a_usage_error() -> None:
    with (
        pytest.raises(UsageError, match="port 70000"),
        running(World(end=END, runs=1), Clock(END), port=70000),
    ):
        pass


def test_a_sandbox_that_was_shut_down_frees_its_port() -> None:
    world, clock = World(end=END, runs=1), Clock(END)
    with running(world, clock) as sandbox:
        assert requests.get(sandbox.url, timeout=10).ok
    with socket.create_server(("127.0.0.1", int(sandbox.url.rpartition(":")[2]))):
        pass


SERVE = """
from etl.sandbox.world_clock import Clock
from etl.sandbox.server import serve
from etl.sandbox.world import World
from tests.program.sandbox.answers import END

serve(World(end=END, runs=5), Clock(END), lambda sandbox: print(sandbox.url, flush=True))
print("bye")
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_foreground_server_in_good_order(signum: signal.Signals) -> None:
    command = [sys.executable, "-c", SERVE]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        assert "sandbox" in requests.get(url, timeout=10).text
        os.kill(process.pid, signum)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, b"bye\n", b"")

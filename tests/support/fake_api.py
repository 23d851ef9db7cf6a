"""An API on loopback that gives each run the answers that a test lays down."""

import contextlib
import json
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

SAMPLE = (Path(__file__).parents[1] / "samples" / "result.json").read_bytes()


class Answer(NamedTuple):
    """One answer; with `delay_s` it lets the client wait."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = {}
    delay_s: float = 0


class Served(NamedTuple):
    """A request in the API's log: when it came (`time.monotonic`), on which port, its answer."""

    at: float
    run_id: str
    client: int
    status: int


NOT_FOUND = Answer(b'{"error": "no such run"}', 404)


def result(**changes: Any) -> Answer:
    """Return the sample answer with other fields; it is about a run that passed."""
    fields = json.loads(SAMPLE)["result"] | {"status": "passed"} | changes
    return Answer(json.dumps({"result": fields}).encode())


def runs_of_plans(runs: int) -> dict[str, list[Answer]]:
    """Return the answers of runs of several plans, which take a moment."""
    answers = {}
    for number in range(runs):
        name, status = f"plan {number % 5}", ("passed", "failed")[number % 3 == 0]
        answer = result(id=f"r-{number}", name=name, status=status)
        answers[f"r-{number}"] = [answer._replace(delay_s=0.05)]
    return answers


class FakeApi(ThreadingHTTPServer):
    """Gives each run its `answers` one after the other, the last one for good; else `other`."""

    daemon_threads = True

    def __init__(self, port: int, certificate: Path | None = None) -> None:
        """Listen on loopback; with a certificate and its key on all addresses, by TLS."""
        super().__init__(("0.0.0.0" if certificate else "127.0.0.1", port), _Handler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # A client may be cut off amid its handshake: its own thread waits for that.
            self.socket = context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        self.answers: dict[str, list[Answer]] = {}
        self.other = NOT_FOUND
        self.requests: Counter[str] = Counter()
        self.log: list[Served] = []
        self.most_at_once = 0
        self._at_once = 0
        self._counting = threading.Lock()
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent about a client that hangs up: else its test's standard error has it."""
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError | TimeoutError):
            super().handle_error(request, client_address)

    @contextlib.contextmanager
    def logged(self, run_id: str, client: int) -> Iterator[Answer]:
        """Give the answer of a request, and log it."""
        with self._counting:
            answer = self.next_answer(run_id)
            self.log.append(Served(time.monotonic(), run_id, client, answer.status))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield answer
        finally:
            with self._counting:
                self._at_once -= 1

    def next_answer(self, run_id: str) -> Answer:
        """Count the request, and return what it is to be answered."""
        self.requests[run_id] += 1
        left = self.answers.get(run_id, [self.other])
        return left.pop(0) if len(left) > 1 else left[0]


class _Handler(BaseHTTPRequestHandler):
    server: FakeApi
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer takes 40 ms

    def do_GET(self) -> None:
        run_id = unquote(urlsplit(self.path).path.removeprefix("/api/result/"))
        with self.server.logged(run_id, self.client_address[1]) as answer:
            time.sleep(answer.delay_s)
            self._send(answer)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, *_arguments: Any) -> None:
        """Stay silent."""


@contextlib.contextmanager
def serving(port: int = 0, certificate: Path | None = None) -> Iterator[FakeApi]:
    """Run an API that knows no run until it is told of one; port 0 is any free one."""
    with FakeApi(port, certificate) as api:
        thread = threading.Thread(target=api.serve_forever, args=[0.01])
        thread.start()
        try:
            yield api
        finally:
            api.shutdown()
            thread.join()

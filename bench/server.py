"""Serve the bench's API from memory in a separate process, so that the clients are the limit.

It prints one line of JSON with its port and the totals of its answers. If all answers would take
too much memory, it makes each one on request. `GET /stats` returns the number of requests and the
peak number of open connections.
"""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any, NamedTuple

import msgspec

from bench import content
from bench.content import Offer, Totals

HOST = "127.0.0.1"
PREFIX = b"GET /api/result/"
MOST_PREPARED_TESTS = 1_500_000
"""With more tests than this in all answers, the server makes each answer on request."""


class Stats(NamedTuple):
    """The requests and the peak of connections so far."""

    requests: int
    most_connections: int


class Api(NamedTuple):
    """A running server: its port, and the totals of its answers unless it makes them on request."""

    port: int
    totals: Totals | None

    @property
    def url(self) -> str:
        """The base URL to configure."""
        return f"http://{HOST}:{self.port}"

    def stats(self) -> Stats:
        """Return its statistics; this connection does not count."""
        connection = HTTPConnection(HOST, self.port)
        connection.request("GET", "/stats")
        stats = Stats(**json.loads(connection.getresponse().read()))
        connection.close()
        return stats


@contextmanager
def serve(offer: Offer, latency_ms: float = 0) -> Iterator[Api]:
    """Serve runs from a child process during the context."""
    given = [msgspec.json.encode(offer).decode(), str(latency_ms)]
    command = [sys.executable, "-m", "bench.server", *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            started = json.loads(process.stdout.readline())
            totals = started["totals"]
            yield Api(started["port"], Totals(**totals) if totals else None)
        finally:
            process.kill()


class _Served:
    """Finds the whole HTTP response for a run ID, and counts requests and connections."""

    def __init__(self, find: Callable[[bytes], bytes | None], latency_s: float) -> None:
        self.find = find
        self.latency_s = latency_s
        self.requests = 0
        self.connections = 0
        self.most_connections = 0

    def respond(self, request: bytes) -> bytes:
        if not request.startswith(PREFIX):
            stats = {"requests": self.requests, "most_connections": self.most_connections}
            return _response(b"200 OK", json.dumps(stats).encode())
        self.requests += 1
        if self.requests == 1:
            self.most_connections = self.connections
        run_id = request[len(PREFIX) : request.index(b"?")]
        return self.find(run_id) or _response(b"404 Not Found", b"{}")


class _Connection(asyncio.Protocol):
    """One keep-alive connection; clients send a request only after the previous answer."""

    def __init__(self, served: _Served) -> None:
        self._served = served
        self._received = b""
        self._is_counted = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _error: Exception | None) -> None:
        self._served.connections -= self._is_counted

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            request, _, self._received = self._received.partition(b"\r\n\r\n")
            self._count(request)
            response = self._served.respond(request)
            if self._served.latency_s and request.startswith(PREFIX):
                loop = asyncio.get_running_loop()
                loop.call_later(self._served.latency_s, self._transport.write, response)
            else:
                self._transport.write(response)

    def _count(self, request: bytes) -> None:
        served = self._served
        if not self._is_counted and request.startswith(PREFIX):
            self._is_counted = True
            served.connections += 1
            served.most_connections = max(served.most_connections, served.connections)


def _response(status: bytes, body: bytes) -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


async def _serve(served: _Served, announcement: dict[str, Any]) -> None:
    # asyncio turns off Nagle's algorithm only if the protocol is given.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind((HOST, 0))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(served), sock=listener, backlog=1024)
    print(json.dumps({"port": listener.getsockname()[1], **announcement}), flush=True)
    await server.serve_forever()


def _prepare_answers(offer: Offer) -> tuple[Callable[[bytes], bytes | None], Totals]:
    """Make all answers in advance."""
    bodies = [offer.answer(index) for index in offer.indexes()]
    responses = {
        run_id.encode(): _response(b"200 OK", body)
        for run_id, body in zip(offer.run_ids(), bodies, strict=True)
    }
    return responses.get, content.totals(bodies)


def _make_answers_on_demand(offer: Offer) -> Callable[[bytes], bytes | None]:
    run_ids = (run_id.encode() for run_id in offer.run_ids())
    index_of = dict(zip(run_ids, offer.indexes(), strict=True))

    def find(run_id: bytes) -> bytes | None:
        index = index_of.get(run_id)
        return None if index is None else _response(b"200 OK", offer.answer(index))

    return find


def main() -> None:
    """Serve until killed."""
    offer = msgspec.json.decode(sys.argv[1], type=Offer)
    latency_ms = float(sys.argv[2])
    find, totals = _make_answers_on_demand(offer), None
    if offer.runs * offer.profile.tests <= MOST_PREPARED_TESTS:
        find, totals = _prepare_answers(offer)
    announcement = {"totals": totals._asdict() if totals else None}
    asyncio.run(_serve(_Served(find, latency_ms / 1000), announcement))


if __name__ == "__main__":
    main()

"""The sandbox's HTTP interface, as a plain ASGI application.

Paths below /api answer as the vendor's API does; paths below /sandbox are the sandbox's own.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from hmac import compare_digest
from itertools import islice
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote

import msgspec

from etl.sandbox import listing
from etl.sandbox.cache import SnapshotCache
from etl.sandbox.guide import guide
from etl.sandbox.world import World
from etl.sandbox.world_clock import MAX_SPEED, Clock

READ_KEY = "sandbox-key"  # reads every run, and may start one
EXECUTE_KEY = "sandbox-execute-key"  # may start runs; reads a run only with its read token

MAX_REQUEST_BYTES = 64 * 2**10
LINES_PER_CHUNK = 1000

JSON = b"application/json"
TEXT = b"text/plain; charset=utf-8"
LIST_TYPES = {
    listing.Format.TXT: TEXT,
    listing.Format.CSV: b"text/csv; charset=utf-8",
    listing.Format.JSON: JSON,
    listing.Format.JSONL: b"application/x-ndjson",
}

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request: the path in decoded segments, the query, and the source of the body."""

    method: str
    segments: list[str]
    query: dict[str, list[str]]
    address: str  # of the server, as "host:port"
    receive: Receive

    def parameter(self, name: str) -> str:
        """Return the query parameter, or "" where it is missing."""
        return self.query.get(name, [""])[0]


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer; a body in chunks is sent chunk by chunk."""

    body: bytes | Iterable[bytes]
    content_type: bytes = JSON
    status: int = 200


class HttpError(Exception):
    """The request gets no answer but this status, and a line with the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class ClockSetting(msgspec.Struct, forbid_unknown_fields=True):
    """New values for the clock; a missing one stays as it was."""

    now: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    speed: Annotated[float, msgspec.Meta(ge=0, le=MAX_SPEED)] | None = None


class App:
    """Answers for `world` at the time of `clock`; the API's answers take `latency_ms` longer.

    `requests` counts, for each run id asked for, the requests for its result, refused ones too.
    """

    def __init__(self, world: World, clock: Clock, latency_ms: float = 0) -> None:
        self.world = world
        self.clock = clock
        self.requests: Counter[str] = Counter()
        self._latency_s = latency_ms / 1000
        self._snapshots = SnapshotCache(world)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        try:
            response = await self._respond(_request(scope, receive))
        except HttpError as error:
            response = _error(error)
        await _send(response, send)

    async def _respond(self, request: HttpRequest) -> HttpResponse:
        if request.segments[0] == "api" and self._latency_s:
            await asyncio.sleep(self._latency_s)
        match request.segments:
            case ["api", "result", run_id]:
                return self._result(request, run_id)
            case ["api", "plan", plan_id, "execute"]:
                return self._execute(request, plan_id)
            case ["sandbox", "clock"]:
                return await self._clock(request)
            case ["sandbox", "requests"]:
                return self._requests(request)
            case ["sandbox", name] if name.startswith("runs."):
                return self._runs(request, name.removeprefix("runs."))
            case [""]:
                _allow(request, "GET")
                text = guide(f"http://{request.address}", self.world, self.clock.now())
                return HttpResponse(text.encode(), TEXT)
        raise HttpError(404, "no such path; GET / lists those there are")

    def _result(self, request: HttpRequest, run_id: str) -> HttpResponse:
        _allow(request, "GET")
        self.requests[run_id] += 1
        key = _known_key(request)
        if key != READ_KEY and not self._is_read_token(run_id, request.parameter("read_token")):
            raise HttpError(403, "the key has no read permission, and this is not the read token")
        snapshot = self._snapshots.get(run_id, self.clock.now())
        if snapshot is None:
            raise HttpError(404, "no such run")
        return HttpResponse(snapshot.body)

    def _is_read_token(self, run_id: str, token: str) -> bool:
        return compare_digest(token.encode(), self.world.read_token(run_id).encode())

    def _execute(self, request: HttpRequest, plan_id: str) -> HttpResponse:
        _allow(request, "POST")
        _known_key(request)
        if plan_id not in self.world.plans:
            raise HttpError(404, "no such plan")
        run_id = self.world.execute(plan_id, self.clock.now()).run_id
        return _json({"result": {"id": run_id, "read_token": self.world.read_token(run_id)}})

    async def _clock(self, request: HttpRequest) -> HttpResponse:
        _allow(request, "GET", "POST")
        if request.method == "POST":
            setting = _clock_setting(await _body(request.receive))
            self.clock.set(now=setting.now, speed=setting.speed)
        return _json({"now": self.clock.now(), "speed": self.clock.speed})

    def _requests(self, request: HttpRequest) -> HttpResponse:
        _allow(request, "GET")
        return _json({"total": self.requests.total(), "runs": self.requests})

    def _runs(self, request: HttpRequest, ending: str) -> HttpResponse:
        _allow(request, "GET")
        try:
            form = listing.Format(ending)
        except ValueError:
            raise HttpError(
                404, "no such list; there are runs.txt, .csv, .json and .jsonl"
            ) from None
        lines = listing.render(self.world, form, self.clock.now())
        return HttpResponse(_chunks(lines), LIST_TYPES[form])


def _request(scope: Scope, receive: Receive) -> HttpRequest:
    # The raw path: a slash within a run id is sent as %2F, and must not divide the path.
    path = scope["raw_path"].decode("ascii").removeprefix("/")
    host, port = scope["server"]
    return HttpRequest(
        method=scope["method"],
        segments=[unquote(segment) for segment in path.split("/")],
        query=parse_qs(scope["query_string"].decode("latin-1")),
        address=f"{host}:{port}",
        receive=receive,
    )


def _allow(request: HttpRequest, *methods: str) -> None:
    if request.method not in methods:
        raise HttpError(405, f"only {' and '.join(methods)} here")


def _known_key(request: HttpRequest) -> str:
    key = request.parameter("apiKey")
    if key not in {READ_KEY, EXECUTE_KEY}:
        raise HttpError(401, "no API key, or an unknown one")
    return key


async def _body(receive: Receive) -> bytes:
    body = bytearray()
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_REQUEST_BYTES:
            raise HttpError(413, f"more than {MAX_REQUEST_BYTES} bytes")
    return bytes(body)


def _clock_setting(body: bytes) -> ClockSetting:
    try:
        return msgspec.json.decode(body, type=ClockSetting)
    except msgspec.DecodeError as error:
        raise HttpError(400, f'{error}; give {{"now": ISO 8601 with a zone, "speed": n}}') from None


def _json(value: Any) -> HttpResponse:
    return HttpResponse(msgspec.json.encode(value))


def _error(error: HttpError) -> HttpResponse:
    return HttpResponse(msgspec.json.encode({"error": str(error)}), status=error.status)


def _chunks(lines: Iterator[str]) -> Iterator[bytes]:
    while chunk := "".join(islice(lines, LINES_PER_CHUNK)):
        yield chunk.encode()


async def _send(response: HttpResponse, send: Send) -> None:
    headers = [(b"content-type", response.content_type)]
    body = response.body
    if isinstance(body, bytes):
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    if isinstance(body, bytes):
        await send({"type": "http.response.body", "body": body})
        return
    for chunk in body:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body"})

"""Ask the API for one run: the one place that builds a request and knows the secrets in it.

Errors are our own and name no URL. They are sorted by the catcher's next step: an
`UnavailableError` is transient, a `RunRefusedError` is that run's own, a `KeyRefusedError` concerns
every run.
"""

import hashlib
import io
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import HTTPResponse
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from urllib3 import Timeout
from urllib3.exceptions import HTTPError, ReadTimeoutError

from etl import __version__
from etl.answers.outcome import Reason
from etl.config.settings import Api, Source
from etl.errors import ConfigError, KeyRefusedError, OutOfFilesError, is_out_of_files
from etl.fetch.route import NETWORK_REMEDY, read_environment, read_route
from etl.runtime import hide_package
from etl.secrets.masking import Secret, mask_body

with hide_package("charset_normalizer"):  # it guesses encodings; JSON is UTF-8
    import requests
    from requests.adapters import HTTPAdapter

CHUNK_BYTES = 1_048_576
MEBIBYTE = 1_048_576
LONGEST_WAIT = timedelta(days=1)
"""A longer Retry-After is cut to this: a mistake there must not stop the archive for long."""


REFUSALS = {
    403: "the API answered 403; the key has no read permission, so this run needs its read token",
    404: "the API does not know this run (404)",
    410: "the API no longer has this run (410)",
}
"""The statuses that are a run's own, in words."""


class UnavailableError(Exception):
    """No good answer this time, for a transient reason. `wait` is the API's Retry-After."""

    def __init__(
        self,
        problem: str,
        reason: Reason = Reason.NO_ANSWER,
        wait: timedelta | None = None,
        remedy: str = "",
    ) -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy
        self.reason = reason
        self.wait = wait


class BusyError(UnavailableError):
    """The API is alive and asks for patience (429)."""


class RunRefusedError(Exception):
    """The API will not give this run: `http_status` is 403, 404 or 410."""

    def __init__(self, reason: str, http_status: int):
        super().__init__(reason)
        self.http_status = http_status


class Response(NamedTuple):
    """A 200: the decoded body, and the hash of it as received.

    `fetched_at` is the time of sending, so that an answer never counts as newer than it is.
    `is_masked`: the body echoed a secret of ours, which is masked in `body`. A body with the known
    hash is left out: `body` is then empty.
    """

    body: bytes
    sha256: str
    fetched_at: datetime
    is_masked: bool


class Probe(NamedTuple):
    """The status, the kind and the server time of an answer, for `doctor`."""

    http_status: int
    is_json: bool
    server_time: datetime | None
    asked_at: datetime


class Client:
    """Fetches the runs of one source. Safe to be used by several threads at once.

    Makes no second attempt and has no rate limit: the breaker decides when to ask again.
    """

    def __init__(
        self, source: Source, key: Secret, api: Api, clock: Callable[[], datetime]
    ) -> None:
        """Read the environment's proxy and certificates once. Raises ConfigError for bad ones."""
        self._base_url = source.base_url.rstrip("/")
        self._environment = read_environment(source.base_url)
        if self._base_url.lower().startswith("http:"):
            # Plain http is for this machine alone: a proxy would send the key to another one.
            self._environment["proxies"] = {}
        self._route = read_route(source.base_url, self._environment["proxies"])
        self._route.check()
        self._host = self._route.host
        self._key = key
        self._query = Secret(urlencode({"apiKey": key.reveal()}))
        self._api = api
        self._clock = clock
        # The common parts of each request are prepared once. The adapter sends a request and
        # nothing else: no credentials from ~/.netrc, no cookies, no redirects.
        self._request = _prepared(f"{self._base_url}/api/result")
        self._timeout: Any = Timeout(connect=api.connect_timeout_s, read=api.read_timeout_s)
        self._adapter = _Adapter(_root(self._request), api.connections)

    def fetch(self, run_id: str, token: Secret | None, known_sha256: str | None = None) -> Response:
        """Return the vendor's JSON for one run, without the body if it has the known hash.

        Raises:
            UnavailableError: no answer, a timeout, a body larger than allowed, or any status but
                200, 401, 403, 404 and 410.
            RunRefusedError: 403, 404 or 410.
            KeyRefusedError: 401, the key is not accepted.
        """
        fetched_at = self._clock()
        with self._explained(), self._send(run_id, token) as response:
            self._check(response)
            body = self._read(response)
        sha256 = hashlib.sha256(body).hexdigest()
        if sha256 == known_sha256:
            return Response(b"", sha256, fetched_at, is_masked=False)
        masked = mask_body(body, [self._key, token] if token else [self._key])
        return Response(masked, sha256, fetched_at, masked != body)

    def close(self) -> None:
        """Close all connections. A request under way closes its own when it returns."""
        self._adapter.close()

    def probe(self, run_id: str) -> Probe:
        """Ask for a run without its token, and return any answer.

        Raises:
            UnavailableError: no answer.
        """
        asked_at = self._clock()
        with self._explained(), self._send(run_id, None) as response:
            is_json = "json" in response.headers.get("Content-Type", "").lower()
            server_time = parse_http_date(response.headers.get("Date"))
            return Probe(response.status_code, is_json, server_time, asked_at)

    def _send(self, run_id: str, token: Secret | None) -> requests.Response:
        request = copy(self._request)
        request.url = f"{request.url}/{quote(run_id, safe='')}?{self._query.reveal()}"
        if token:
            request.url += f"&{urlencode({'read_token': token.reveal()})}"
        _deadline.set(time.monotonic() + self._api.total_timeout_s)
        return self._adapter.send(request, timeout=self._timeout, **self._environment)

    def _check(self, response: requests.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        if status == 401:
            raise KeyRefusedError(f"{self._host} refused the API key (401); set one that is valid")
        if status in REFUSALS:
            raise RunRefusedError(REFUSALS[status], status)
        wait = self._retry_after(response)
        if status == 429:
            raise BusyError("the API asks for patience (429)", Reason.HTTP_STATUS, wait)
        message = f"the API answered {status}"
        if 300 <= status < 400 and status != 304:
            message = (
                f"the API answered with a redirect ({status}), which is not followed;"
                " check base_url"
            )
        raise UnavailableError(message, Reason.HTTP_STATUS, wait)

    def _retry_after(self, response: requests.Response) -> timedelta | None:
        return parse_retry_after(response.headers.get("Retry-After"), self._clock())

    def _read(self, response: requests.Response) -> bytes:
        limit = int(self._api.max_body_mb * MEBIBYTE)
        chunks, size = [], 0
        while True:
            chunk = response.raw.read(CHUNK_BYTES, decode_content=True)
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise UnavailableError(
                    f"the answer is larger than api.max_body_mb ({self._api.max_body_mb:g});"
                    " raise it and run `result-archiver retry`",
                    Reason.UNREADABLE,
                )
            if len(chunk) < CHUNK_BYTES:  # only the last one is
                return b"".join(chunks)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn each transport error into our own: theirs quote the URL with the key."""
        try:
            yield
        except (requests.Timeout, ReadTimeoutError) as error:
            raise self._explain_timeout(error) from None
        except (requests.RequestException, HTTPError, OSError) as error:
            if is_out_of_files(error):
                raise OutOfFilesError from None
            fault = self._route.explain(error)
            raise UnavailableError(fault.problem, remedy=fault.remedy) from None

    def _explain_timeout(self, error: Exception) -> UnavailableError:
        api = self._api
        if time.monotonic() >= _deadline.get():
            limit = f"api.total_timeout_s ({api.total_timeout_s:g})"
            return UnavailableError(f"{self._host} took longer than {limit}")
        if isinstance(error, requests.ConnectTimeout):
            limit = f"api.connect_timeout_s ({api.connect_timeout_s:g})"
            problem = f"{self._host} accepted no connection within {limit}"
            return UnavailableError(problem, remedy=NETWORK_REMEDY)
        limit = f"api.read_timeout_s ({api.read_timeout_s:g})"
        return UnavailableError(f"{self._host} did not answer within {limit}")


_deadline: ContextVar[float] = ContextVar("deadline")
"""The deadline of this thread's request, in seconds of `time.monotonic`."""


class _DeadlineReader(io.RawIOBase):
    """Reads a socket until the deadline; the socket's timeout restarts with every byte."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._stream = sock.makefile("rb", buffering=0)
        self._patience_s = sock.gettimeout()
        self._deadline = _deadline.get()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        if self._patience_s is None or left_s < self._patience_s:
            self._sock.settimeout(left_s)
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Limited(NamedTuple):
    """A socket that is read until the deadline."""

    sock: socket.socket

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self.sock))


class _LimitedResponse(HTTPResponse):
    """An answer whose head and body, and those of a proxy before it, obey the deadline."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        limited: Any = _Limited(sock)
        super().__init__(limited, *args, **kwargs)


class _Adapter(HTTPAdapter):
    """Sends requests that are alike but for their paths, and leaves cookies alone."""

    def __init__(self, root: str, connections: int) -> None:
        self._root = root
        self._pool: Any = None
        super().__init__(pool_connections=1, pool_maxsize=connections)

    def get_connection_with_tls_context(self, *args: Any, **kwargs: Any) -> Any:
        if self._pool is None:
            pool: Any = super().get_connection_with_tls_context(*args, **kwargs)
            kind = pool.ConnectionCls  # one of several: by http, https or a SOCKS proxy
            pool.ConnectionCls = type("_Limited", (kind,), {"response_class": _LimitedResponse})
            self._pool = pool
        return self._pool

    def close(self) -> None:
        # urllib3 closes a pool's connections when the pool is collected as garbage; tracebacks of
        # broken requests keep it alive until then.
        if self._pool is not None:
            self._pool.close()
        super().close()

    def request_url(self, request: requests.PreparedRequest, _proxies: Any) -> str:
        """Send the path alone: https never asks a proxy to fetch, only to connect."""
        return str(request.url).removeprefix(self._root)

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        response = requests.Response()
        response.status_code = resp.status
        response.headers = resp.headers
        response.raw = resp
        response.request = req
        return response


def _prepared(url: str) -> requests.PreparedRequest:
    headers = requests.utils.default_headers()
    headers["User-Agent"] = f"result-archiver/{__version__}"
    headers["Accept"] = "application/json"
    del headers["Connection"]  # HTTP/1.1 keeps it alive unasked
    try:
        return requests.Request("GET", url, headers=headers).prepare()
    except requests.RequestException:
        raise ConfigError(
            f"base_url: no request can be sent to {url}", "give https://HOST"
        ) from None


def _root(request: requests.PreparedRequest) -> str:
    return str(request.url).removesuffix(request.path_url)


def parse_retry_after(header: str | None, now: datetime) -> timedelta | None:
    """Return how long a Retry-After header (RFC 9110, 10.2.3: seconds or a date) asks to wait."""
    if header is None:
        return None
    text = header.strip()
    if text.isdecimal():
        return min(timedelta(seconds=int(text[:10])), LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    wait = moment.replace(tzinfo=moment.tzinfo or UTC) - now
    return min(max(wait, timedelta(0)), LONGEST_WAIT)


def parse_http_date(header: str | None) -> datetime | None:
    """Return the time of a Date header (RFC 9110, 6.6.1), None if it is missing or unreadable."""
    try:
        moment = parsedate_to_datetime(header) if header else None
    except (ValueError, OverflowError):
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC) if moment else None

"""The client against a server that misbehaves: each answer ends as the right error, none leaks."""

import contextlib
import gzip
import hashlib
import json
import logging
import socket
import ssl
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, quote, quote_plus, unquote, urlsplit

import certifi
import msgspec
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from etl.answers.outcome import Reason
from etl.config.settings import Api, Log, Source
from etl.errors import ConfigError, KeyRefusedError, OutOfFilesError
from etl.fetch.client import (
    LONGEST_WAIT,
    BusyError,
    Client,
    RunRefusedError,
    UnavailableError,
    parse_retry_after,
)
from etl.secrets.masking import Secret, forget_secrets
from etl.telemetry.log import configure
from tests.support import faulty
from tests.support.certificate import write_certificate
from tests.support.faulty import (
    Answer,
    Faulty,
    chunk,
    drip,
    head,
    reply,
    send,
    send_and_close,
    stall,
)
from tests.support.limits import no_file_left
from tests.support.postgres import free_port

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
KEY = "s3cret-key+/=1"
TOKEN = 's3cret-token&"?2'
BODY = '{"result": {"id": "r1", "name": " plan ü"}}\n'.encode()
API = Api(connect_timeout_s=0.2, read_timeout_s=5, total_timeout_s=5, max_body_mb=1)


@pytest.fixture
def server() -> Iterator[Faulty]:
    with faulty.serving() as server:
        server.answer = send(reply(BODY))
        yield server


@pytest.fixture
def other_server() -> Iterator[Faulty]:
    with faulty.serving() as server:
        yield server


@pytest.fixture(scope="module")
def patient_server() -> Iterator[Faulty]:
    """A server for as many examples as there are."""
    with faulty.serving() as server:
        yield server


def client(url: str, api: Api = API) -> Client:
    return Client(Source(url), Secret(KEY), api, lambda: NOW)


def host(server: Faulty) -> str:
    return urlsplit(server.url).netloc


# Good answers


@pytest.mark.parametrize(
    "answer",
    [
        reply(BODY),
        reply(BODY, "200 OK", "Content-Type: text/html"),
        reply(gzip.compress(BODY), "200 OK", "Content-Encoding: gzip"),
        head("200 OK", "Transfer-Encoding: chunked")
        + chunk(BODY[:9])
        + chunk(BODY[9:])
        + chunk(b""),
        b"HTTP/1.1 100 Continue\r\n\r\n" + reply(BODY),
    ],
    ids=["plain", "another content type", "gzip", "chunked", "after a 100"],
)
def test_a_body_arrives_byte_for_byte(answer: bytes, server: Faulty) -> None:
    server.answer = send(answer)
    response = client(server.url).fetch("r1", None)
    assert response == (BODY, hashlib.sha256(BODY).hexdigest(), NOW, False)


def test_a_body_without_a_length_ends_with_the_connection(server: Faulty) -> None:
    server.answer = send_and_close(head("200 OK", "Connection: close") + BODY)
    assert client(server.url).fetch("r1", None).body == BODY


def test_a_body_as_large_as_allowed_arrives(server: Faulty) -> None:
    body = b" " * 1_048_576
    server.answer = send(reply(body))
    assert client(server.url).fetch("r1", None).body == body


def test_one_connection_serves_many_requests(server: Faulty) -> None:
    asked = client(server.url)
    for number in range(5):
        asked.fetch(f"r{number}", None)
    assert (len(server.requests), server.connections) == (5, 1)


def test_a_connection_that_the_server_closed_is_replaced(server: Faulty) -> None:
    asked = client(server.url)
    server.answer = send_and_close(reply(BODY))
    asked.fetch("r1", None)
    time.sleep(0.05)  # until the end of the connection has arrived here
    assert asked.fetch("r2", None).body == BODY


@pytest.mark.parametrize("path", ["", "/", "/base", "/base/"])
def test_the_key_and_the_token_are_in_the_query(path: str, server: Faulty) -> None:
    client(server.url + path).fetch("r1", Secret(TOKEN))
    target = urlsplit(server.requests[0].target)
    assert target.path == f"{path.rstrip('/')}/api/result/r1"
    assert parse_qs(target.query) == {"apiKey": [KEY], "read_token": [TOKEN]}


def test_a_run_without_a_token_is_asked_for_without_one(server: Faulty) -> None:
    client(server.url).fetch("r1", None)
    assert parse_qs(urlsplit(server.requests[0].target).query) == {"apiKey": [KEY]}


@pytest.mark.parametrize(
    "run_id",
    [
        "../x?a=b#c",
        "%2e%2e",
        "a/b",
        "a b",
        "a+b",
        "ü/日本",
        "..;",
        "a\\b",
        "//host/x",
        "a%2Fb",
        "~._-",
    ],
)
def test_a_run_id_stays_one_segment_of_the_path(run_id: str, server: Faulty) -> None:
    client(server.url).fetch(run_id, None)
    path, _, query = server.requests[0].target.partition("?")
    *before, segment = path.split("/")
    assert (before, unquote(segment)) == (["", "api", "result"], run_id)
    assert parse_qs(query) == {"apiKey": [KEY]}


def test_the_request_says_who_asks_and_for_what(server: Faulty) -> None:
    client(server.url).fetch("r1", None)
    headers = server.requests[0].headers
    assert headers["user-agent"].startswith("result-archiver/")
    assert headers["accept"] == "application/json"


# Echoes


@pytest.mark.parametrize(
    "echo",
    [
        f'{{"key": "{KEY}"}}',
        json.dumps({"token": TOKEN}),
        f'{{"url": "/r?apiKey={quote_plus(KEY)}&read_token={quote(TOKEN, safe="")}"}}',
        json.dumps({"key": KEY}).replace("/", "\\/"),
    ],
)
def test_an_echo_of_a_secret_is_masked_and_the_hash_is_of_what_came(
    echo: str, server: Faulty
) -> None:
    server.answer = send(reply(echo.encode()))
    response = client(server.url).fetch("r1", Secret(TOKEN))
    assert response.is_masked
    assert response.sha256 == hashlib.sha256(echo.encode()).hexdigest()
    assert b"s3cret" not in response.body
    assert b"***" in response.body
    json.loads(response.body)


# Refusals


def test_401_is_a_refused_key(server: Faulty) -> None:
    server.answer = send(reply(status="401 Unauthorized"))
    with pytest.raises(KeyRefusedError) as caught:
        client(server.url).fetch("r1", None)
    assert str(caught.value) == f"{host(server)} refused the API key (401); set one that is valid"


DENIAL = "the API answered 403; the key has no read permission, so this run needs its read token"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, "the API does not know this run (404)"),
        (410, "the API no longer has this run (410)"),
        (403, DENIAL),
    ],
)
def test_a_refused_run_has_the_status_and_a_reason(
    status: int, reason: str, server: Faulty
) -> None:
    server.answer = send(reply(status=f"{status} No", body=b""))
    with pytest.raises(RunRefusedError) as caught:
        client(server.url).fetch("r1", None)
    assert (str(caught.value), caught.value.http_status) == (reason, status)


@pytest.mark.parametrize(
    "status", [202, 204, 304, 400, 407, 408, 425, 451, 500, 502, 503, 504, 599]
)
def test_trouble_of_the_server_passes(status: int, server: Faulty) -> None:
    server.answer = send(reply(status=f"{status} Trouble"))
    error = unavailable(server)
    assert (str(error), error.wait, isinstance(error, BusyError)) == (
        f"the API answered {status}",
        None,
        False,
    )


def unavailable(server: Faulty, api: Api = API) -> UnavailableError:
    with pytest.raises(UnavailableError) as caught:
        client(server.url, api).fetch("r1", Secret(TOKEN))
    return caught.value


@pytest.mark.parametrize(("status", "is_busy"), [("429 Too Many", True), ("503 Down", False)])
@pytest.mark.parametrize(
    ("header", "wait"),
    [
        (None, None),
        ("7", timedelta(seconds=7)),
        ("0", timedelta(0)),
        ("Thu, 15 Jan 2026 12:01:30 GMT", timedelta(seconds=90)),
        ("Thu, 15 Jan 2026 11:00:00 GMT", timedelta(0)),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_WAIT),
        ("9" * 5000, LONGEST_WAIT),
        ("soon", None),
        ("-1", None),
        ("", None),
    ],
)
def test_retry_after_is_how_long_to_wait(
    status: str, is_busy: bool, header: str | None, wait: timedelta | None, server: Faulty
) -> None:
    headers = [] if header is None else [f"Retry-After: {header}"]
    server.answer = send(reply(b"", status, *headers))
    error = unavailable(server)
    assert (error.wait, isinstance(error, BusyError)) == (wait, is_busy)


@given(
    st.text()
    | st.from_regex(r"\A(Mon, )?[0-9]{1,3} Jan [0-9]{1,6} [0-9:]{1,12} ?(GMT|[+-][0-9]{1,6})?\Z")
)
def test_any_retry_after_is_read_or_left(header: str) -> None:
    wait = parse_retry_after(header, NOW)
    assert wait is None or timedelta(0) <= wait <= LONGEST_WAIT


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int, server: Faulty, other_server: Faulty) -> None:
    location = f"Location: {other_server.url}/api/result/r1?apiKey={KEY}"
    server.answer = send(reply(b"", f"{status} Elsewhere", location))
    assert str(unavailable(server)) == (
        f"the API answered with a redirect ({status}), which is not followed; check base_url"
    )
    assert other_server.requests == []


@pytest.mark.parametrize("status", ["302 Found", "404 Not Found", "500 Trouble"])
@pytest.mark.parametrize("location", ["/r2", "http://[", "\xff", "//127.0.0.1:99999/"])
def test_nothing_but_the_status_of_a_bad_answer_is_read(
    status: str, location: str, server: Faulty
) -> None:
    start = head(status, f"Location: {location}").replace("ÿ".encode(), b"\xff")
    server.answer = drip(start, b"x" * 65_536, 0)
    begun = time.monotonic()
    with pytest.raises((UnavailableError, RunRefusedError), match=status[:3]):
        client(server.url).fetch("r1", None)
    assert time.monotonic() - begun < 1.5


# Broken answers

BROKE = "{host} broke the connection off"
UNREADABLE = "{host} sent no readable answer"
LATE = "{host} did not answer within api.read_timeout_s (0.1)"
TOO_LATE = "{host} took longer than api.total_timeout_s (0.2)"
TOO_LARGE = (
    "the answer is larger than api.max_body_mb (1); raise it and run `result-archiver retry`"
)
CHUNKED = head("200 OK", "Transfer-Encoding: chunked")
GZIP = "Content-Encoding: gzip"
BOMB = gzip.compress(b"\0" * 100_000_000, 1)

FAULTS: dict[str, tuple[Answer, str]] = {
    "reset": (faulty.reset, BROKE),
    "closed without a word": (send_and_close(b""), BROKE),
    "no HTTP": (send_and_close(b"s3cret-key+/=1 is not HTTP\r\n\r\n"), BROKE),
    "endless header line": (send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000), BROKE),
    "too many headers": (send(head("200 OK", *["X: y"] * 200)), BROKE),
    "fewer bytes than promised": (
        send_and_close(head("200 OK", "Content-Length: 99") + BODY),
        BROKE,
    ),
    "chunks cut off": (send_and_close(CHUNKED + chunk(BODY)), BROKE),
    "chunk cut off": (send_and_close(CHUNKED + chunk(BODY)[:-9]), BROKE),
    "chunk without a size": (send_and_close(CHUNKED + b"zz\r\n"), BROKE),
    "no gzip": (send(reply(BODY, "200 OK", GZIP)), UNREADABLE),
    "silence": (stall(b""), LATE),
    "silence in the head": (stall(b"HTTP/1.1 200 OK\r\nContent-"), LATE),
    "silence in the body": (stall(head("200 OK", "Content-Length: 99") + BODY), LATE),
    "head drips": (drip(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.02), TOO_LATE),
    "headers drip": (drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.05), TOO_LATE),
    "continues drip": (drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05), TOO_LATE),
    "body drips": (drip(head("200 OK", "Content-Length: 9999"), b"x", 0.02), TOO_LATE),
    "chunks drip": (drip(CHUNKED, chunk(b"x"), 0.02), TOO_LATE),
    "size of a chunk drips": (drip(CHUNKED + b"5;", b"x", 0.02), TOO_LATE),
    "empty gzip drips": (drip(head("200 OK", GZIP), gzip.compress(b""), 0.02), TOO_LATE),
    "endless body": (drip(head("200 OK"), b"x" * 65_536, 0), TOO_LARGE),
    "one byte too many": (send(reply(b" " * 1_048_577)), TOO_LARGE),
    "gzip bomb": (send(reply(BOMB, "200 OK", GZIP)), TOO_LARGE),
}


HASTY = {
    LATE: msgspec.structs.replace(API, read_timeout_s=0.1),
    TOO_LATE: msgspec.structs.replace(API, total_timeout_s=0.2),
}


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest) -> tuple[Answer, str]:
    return FAULTS[request.param]


def test_a_broken_answer_is_told_in_time_and_in_our_words(
    fault: tuple[Answer, str], server: Faulty
) -> None:
    server.answer, reason = fault
    begun = time.monotonic()
    with pytest.raises((UnavailableError, RunRefusedError)) as caught:
        client(server.url, HASTY.get(reason, API)).fetch("r1", Secret(TOKEN))
    assert str(caught.value) == reason.format(host=host(server))
    is_unreadable = getattr(caught.value, "reason", None) is Reason.UNREADABLE
    assert is_unreadable == (reason == TOO_LARGE)
    assert time.monotonic() - begun < 1.5


def test_the_client_works_on_after_a_broken_answer(
    fault: tuple[Answer, str], server: Faulty
) -> None:
    server.answer, reason = fault
    asked = client(server.url, HASTY.get(reason, API))
    with pytest.raises((UnavailableError, RunRefusedError)):
        asked.fetch("r1", None)
    server.answer = send(reply(BODY))
    assert asked.fetch("r1", None).body == BODY


def test_a_bomb_does_not_go_off_in_memory(server: Faulty) -> None:
    server.answer, _ = FAULTS["gzip bomb"]
    asked = client(server.url)
    tracemalloc.start()
    with pytest.raises(UnavailableError):
        asked.fetch("r1", None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000


def test_a_closed_port_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UnavailableError) as caught:
            client(f"http://{address}").fetch("r1", None)
    assert str(caught.value) == f"{address} refuses connections; check base_url and its port"


def test_a_port_that_does_not_let_us_in_is_told_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(2)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        address = f"127.0.0.1:{full.getsockname()[1]}"
        with pytest.raises(UnavailableError) as caught:
            client(f"http://{address}").fetch("r1", None)
        for one in waiting:
            one.close()
    assert str(caught.value) == (
        f"{address} accepted no connection within api.connect_timeout_s (0.2);"
        " check the network, and whether HTTPS_PROXY has to name a proxy"
    )


HEADER_LINES = st.lists(
    st.tuples(
        st.sampled_from(
            ["Content-Length", "Transfer-Encoding", "Content-Encoding", "Set-Cookie", "Retry-After",
             "Location", "Connection", "Content-Type"]
        ),
        st.sampled_from(["chunked", "gzip", "-1", "99", "0", "zstd, gzip", "a=b; path"])
        | st.text(max_size=9),
    ).map(": ".join)
)  # fmt: skip


@given(
    start=st.sampled_from(["HTTP/1.1 200 OK", "HTTP/1.0 200", "HTTP/2 200", "HTTP/1.1 999 x"])
    | st.from_regex(r"\AHTTP/[0-9.]{1,3} -?[0-9]{0,5} ?\Z"),
    lines=HEADER_LINES,
    body=st.binary(max_size=50),
)
def test_any_answer_is_a_response_or_an_error_of_ours(
    start: str, lines: list[str], body: bytes, patient_server: Faulty
) -> None:
    answer = "\r\n".join([start, *lines, "", ""]).encode() + body
    patient_server.answer = send_and_close(answer)
    with contextlib.suppress(UnavailableError, RunRefusedError, KeyRefusedError):
        assert client(patient_server.url).fetch("r1", Secret(TOKEN)).fetched_at == NOW


# Discretion

Loudly = Callable[[Literal["text", "json"]], None]


@pytest.fixture
def loudly() -> Iterator[Loudly]:
    """Log everything that any library has to say, until the test ends."""
    root, urllib3 = logging.getLogger(), logging.getLogger("urllib3")
    handlers, level = root.handlers[:], root.level
    forget_secrets()

    def configured(log_format: Literal["text", "json"]) -> None:
        configure(Log(level="debug", format=log_format))
        urllib3.setLevel(logging.DEBUG)

    yield configured
    root.handlers[:], root.level = handlers, level
    urllib3.setLevel(logging.NOTSET)
    structlog.reset_defaults()


def test_no_failure_shows_a_secret_anywhere(
    fault: tuple[Answer, str],
    server: Faulty,
    loudly: Loudly,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loudly("text")
    server.answer, reason = fault
    asked = client(server.url, HASTY.get(reason, API))
    try:
        asked.fetch("r1", Secret(TOKEN))
    except (UnavailableError, RunRefusedError) as error:
        logging.getLogger("some.library").exception("failed")
        shown = [f"{error} {error!r} {vars(error)} {asked!r}", *traceback.format_exception(error)]
    else:
        pytest.fail("the answer was taken for a good one")
    shown.append(capsys.readouterr().err)
    assert "Starting new HTTP connection" in shown[-1]  # urllib3 was heard
    assert "s3cret" not in "".join(shown)


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("status", ["200 OK", "302 Found", "401 No", "403 No", "429 No", "500 No"])
def test_no_answer_shows_a_secret_in_the_log(
    status: str,
    log_format: Literal["text", "json"],
    server: Faulty,
    loudly: Loudly,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loudly(log_format)
    # The last header is none, so that urllib3 warns of it and tells the whole URL.
    server.answer = send_and_close(
        reply(BODY, status, f"Location: /{quote_plus(KEY)}", "no header")
    )
    try:
        client(server.url).fetch("r1", Secret(TOKEN))
    except (UnavailableError, RunRefusedError, KeyRefusedError):
        logging.getLogger("some.library").exception("failed")
    logged = capsys.readouterr().err
    assert "apiKey=***" in logged
    assert "s3cret" not in logged


# The surroundings


def test_netrc_is_not_read(server: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = Path.home() / ".netrc"
    netrc.write_text("machine 127.0.0.1 login ann password s3cret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    client(server.url).fetch("r1", None)
    assert "authorization" not in server.requests[0].headers


def test_plain_http_on_this_machine_goes_round_the_proxy(
    server: Faulty, other_server: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, other_server.url)
    assert client(server.url).fetch("r1", None).body == BODY
    assert other_server.requests == []


ASK_THE_PROXY = "check base_url, or ask the proxy's operator to allow it"


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize(
    ("user", "status", "message"),
    [
        ("ann:s3cret@", "407 Proxy Authentication Required",
         "refuses the user and password given to it (407); correct them in {name}"),
        ("", "407 Proxy Authentication Required",
         "asks for a user and password (407); write http://USER:PASSWORD@HOST:PORT into {name}"),
        ("ann:s3cret@", "403 Forbidden",
         f"answered 403 instead of connecting to api.example.com; {ASK_THE_PROXY}"),
        ("ann:s3%2Fcr@et@", "502 Bad Gateway",
         f"answered 502 instead of connecting to api.example.com; {ASK_THE_PROXY}"),
    ],
)  # fmt: skip
def test_a_proxy_that_refuses_is_named_with_its_variable_and_status(
    name: str, user: str, status: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty.serving() as proxy:
        proxy.answer = send(reply(b"", status))
        monkeypatch.setenv(name, proxy.url.replace("//", f"//{user}"))
        with pytest.raises(UnavailableError) as caught:
            client("https://api.example.com").fetch("r1", Secret(TOKEN))
    assert str(caught.value) == (f"the proxy {host(proxy)} of {name} {message.format(name=name)}")
    [request] = proxy.requests
    assert (request.method, request.target) == ("CONNECT", "api.example.com:443")
    assert "s3cret" not in f"{request}"


@pytest.mark.parametrize(
    ("url", "answer", "message"),
    [
        ("{url}", send_and_close(b""),
         "api.example.com (by {place}) broke the connection off"),
        ("{url}", send_and_close(b"what?\r\n\r\n"),
         "api.example.com (by {place}) broke the connection off"),
        ("{url}", send(head("200 OK") + b"no TLS"),
         "api.example.com (by {place}) does not speak TLS as it should; check base_url"),
        ("https://127.0.0.1:{port}", send(reply(b"")),
         "{place} does not speak TLS; write http:// in HTTPS_PROXY"),
    ],
    ids=["closes", "talks nonsense", "answers itself", "no TLS"],
)  # fmt: skip
def test_a_proxy_that_fails_is_named_with_its_variable(
    url: str, answer: Answer, message: str, other_server: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_server.answer = answer
    monkeypatch.setenv("HTTPS_PROXY", url.format(url=other_server.url, port=other_server.port))
    with pytest.raises(UnavailableError) as caught:
        client("https://api.example.com").fetch("r1", None)
    place = f"the proxy {host(other_server)} of HTTPS_PROXY"
    assert str(caught.value) == message.format(place=place)


def test_a_proxy_that_is_dead_is_named_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("ALL_PROXY", f"http://ann:s3cret@127.0.0.1:{port}")
    with pytest.raises(UnavailableError) as caught:
        client("https://api.example.com").fetch("r1", None)
    assert str(caught.value) == (
        f"the proxy 127.0.0.1:{port} of ALL_PROXY refuses connections;"
        " correct ALL_PROXY, or name api.example.com in NO_PROXY"
    )


def test_no_proxy_goes_round_the_proxy(
    tls_server: Faulty,
    other_server: Faulty,
    certificate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", other_server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert client(tls_server.url).fetch("r1", None).body == BODY
    assert other_server.requests == []


INSTALL = "run `pip install PySocks`, or name an http:// proxy"


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("socks5h://ann:s3cret@127.0.0.1:9",
         f"names the proxy 127.0.0.1:9 of type SOCKS, for which a package is missing; {INSTALL}"),
        ("ftp://127.0.0.1:9",
         "names the proxy 127.0.0.1:9 of type ftp, which is none; name an http:// proxy"),
        ("http://ann:s3cret@proxy:port",
         "names the proxy proxy:port, which is no HOST:PORT; write http://HOST:PORT"),
        ("http://ann:s3cret@:3128",
         "names the proxy :3128, which is no HOST:PORT; write http://HOST:PORT"),
        ("http://ann:s3/cr#et@proxy:99999",
         "names the proxy proxy:99999, which is no HOST:PORT; write http://HOST:PORT"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY"])
def test_a_proxy_that_can_never_work_is_a_wrong_setting(
    name: str, proxy: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, proxy)
    with pytest.raises(ConfigError) as caught:
        client("https://api.example.com")
    assert str(caught.value) == f"{name} {message}"


def test_a_proxy_that_drips_is_cut_off(
    other_server: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", other_server.url)
    other_server.answer = drip(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.02)
    begun = time.monotonic()
    with pytest.raises(UnavailableError):
        client("https://api.example.com", HASTY[TOO_LATE]).fetch("r1", None)
    assert time.monotonic() - begun < 1.5


# This machine


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_too_many_open_files_are_called_by_their_name(host: str, server: Faulty) -> None:
    url = server.url.replace("127.0.0.1", host)
    server.answer = faulty.reset
    asked = client(url)
    with no_file_left(), pytest.raises(OutOfFilesError):
        asked.fetch("r1", None)
    server.answer = send(reply(BODY))
    assert asked.fetch("r1", None).body == BODY


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a certificate for 127.0.0.1, signed by itself, and its key."""
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    write_certificate(path, "127.0.0.1")
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[Faulty]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with faulty.serving(context) as server:
        server.answer = send(reply(BODY))
        yield server


def test_a_certificate_that_nobody_vouches_for_is_told(tls_server: Faulty) -> None:
    assert str(unavailable(tls_server)) == (
        f"{host(tls_server)} shows a certificate that is not trusted (self-signed certificate);"
        " if it is your own, set REQUESTS_CA_BUNDLE"
    )
    assert tls_server.requests == []


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_bundle_without_the_issuer_is_named(
    name: str, tls_server: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, certifi.where())
    assert unavailable(tls_server).remedy == (
        f"add its issuer to the file of {name} ({certifi.where()}), or unset that"
    )


def test_a_certificate_of_another_host_is_told(
    tls_server: Faulty, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with pytest.raises(UnavailableError) as caught:
        client(tls_server.url.replace("127.0.0.1", "localhost")).fetch("r1", None)
    assert caught.value.problem.startswith(
        f"localhost:{tls_server.port} shows a certificate that is not trusted (Hostname mismatch"
    )
    assert caught.value.remedy == "check base_url"


def test_a_server_without_tls_is_told(server: Faulty) -> None:
    with pytest.raises(UnavailableError) as caught:
        client(server.url.replace("http:", "https:")).fetch("r1", None)
    assert str(caught.value) == f"{host(server)} does not speak TLS as it should; check base_url"


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "has no certificates in PEM format"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n", "has no certificates in PEM format"),
        ("{}", "has no certificates in PEM format"),
    ],
)
def test_a_bundle_that_cannot_be_used_is_a_wrong_setting(
    name: str,
    content: str | None,
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    monkeypatch.setenv(name, str(bundle))
    with pytest.raises(ConfigError) as caught:
        client("https://api.example.com")
    assert str(caught.value) == (
        f"{name}: {bundle} {problem};"
        " correct or unset the variable: it names the CA certificates that https trusts"
    )
    client("http://127.0.0.1:9")  # needs no certificate


def test_a_certificate_in_the_bundle_is_trusted(
    tls_server: Faulty, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert client(tls_server.url).fetch("r1", None).body == BODY


def test_what_drips_through_tls_is_cut_off(
    tls_server: Faulty, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    tls_server.answer = drip(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.02)
    error = unavailable(tls_server, HASTY[TOO_LATE])
    assert str(error) == TOO_LATE.format(host=host(tls_server))


def test_no_proxy_keeps_a_host_from_the_proxy(
    tls_server: Faulty, other_server: Faulty, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("HTTPS_PROXY", other_server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert client(tls_server.url).fetch("r1", None).body == BODY
    assert other_server.requests == []


def test_https_to_a_server_without_tls_is_told(server: Faulty) -> None:
    with pytest.raises(UnavailableError) as caught:
        client(server.url.replace("http:", "https:")).fetch("r1", None)
    assert str(caught.value) == f"{host(server)} does not speak TLS as it should; check base_url"

"""Secrets that would be known again anywhere: no command shows one, well or in any trouble.

Each has a core of letters and digits, which stays as it is in a URL, in JSON and in a repr.
"""

import base64
import contextlib
import json
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import click
import pytest
from cryptography.fernet import Fernet
from sqlalchemy import inspect, text

from etl.answers.compression import decompress
from etl.cli import command_line
from etl.cli.session import Wiring
from etl.db import database
from etl.fetch.rate_limit import Pauses
from etl.secrets.masking import forget_secrets
from tests.support import faulty
from tests.support.fake_api import SAMPLE
from tests.support.faulty import Faulty, reply, send
from tests.support.postgres import Server, free_port
from tests.support.program import Done, Program, bare_program

KEY = 'k/CanaryKey7f3Q9x2+"&% \\'
TOKENS = {"r-1": "t/CanaryTokenOne5m8W+", "r-2": "t/CanaryTokenTwo4n6V="}
TOKEN_KEY = base64.urlsafe_b64encode(b"CanaryVaultKey that no one knows").decode()
PING = "CanaryPing9c1Z5k"
PASSWORD = "CanaryPassword3h7J@/:%"
CORES = {
    "API key": "CanaryKey7f3Q9x2",
    "first read token": "CanaryTokenOne5m8W",
    "second read token": "CanaryTokenTwo4n6V",
    "token key": TOKEN_KEY[:30],
    "ping URL": PING,
    "database password": "CanaryPassword3h7J",
}
ROLE = "canary"


def spellings(core: str) -> Iterator[bytes]:
    """Yield the forms in which `core` can be met: as it is, in hex, and somewhere in base64."""
    plain = core.encode()
    yield from (plain, plain.hex().encode(), plain.hex().upper().encode())
    for offset in range(3):
        coded = base64.b64encode(bytes(offset) + plain)
        # What stands at the ends is mixed with the neighbours.
        yield coded[-(-offset * 8 // 6) : len(coded) - 4]
        yield base64.urlsafe_b64encode(bytes(offset) + plain)[-(-offset * 8 // 6) : -4]


SPELLINGS = {name: set(spellings(core)) for name, core in CORES.items()}


def shown(content: bytes | str) -> list[str]:
    """Return the names of the secrets that stand in `content`, also where a table folded them."""
    plain = content.encode(errors="surrogateescape") if isinstance(content, str) else content
    folded = re.sub(rb"\s+", b"", plain)
    return [
        name
        for name, forms in SPELLINGS.items()
        if any(form in plain or form in folded for form in forms)
    ]


@pytest.mark.parametrize(
    "wrapped",
    [
        f"key={KEY}",
        json.dumps({"key": KEY}),
        repr(KEY),
        "".join(f"%{byte:02X}" if chr(byte) in '/+"&% \\' else chr(byte) for byte in KEY.encode()),
        *[base64.b64encode(("x" * count + KEY).encode()).decode() for count in range(3)],
        KEY.encode().hex(),
        f"{KEY[:12]}\n  {KEY[12:]}",
    ],
)
def test_the_search_finds_a_secret_in_each_form(wrapped: str) -> None:
    assert shown(wrapped) == ["API key"]


# --- the commands, as the application itself names them ---


class Command(NamedTuple):
    """A command with arguments that do something; `takes_json` where it can answer in JSON."""

    words: tuple[str, ...]
    takes_json: bool


SERVICES = {"schedule", "sandbox", "demo"}
"""They go on until they are stopped, or see nothing of our secrets: they are tried as processes."""
ARGUMENTS = {
    ("track",): ("--from", "runs.csv"),
    ("show",): ("r-1",),
    ("drop",): ("r-2", "--yes"),
    ("gate",): ("r-1", "--min-pass-rate", "0"),
    ("work",): ("--pass", "1"),
    ("report",): ("overview",),
    ("export",): ("--sqlite", "copy.db"),
    ("alias", "add"): ("old", "new", "--application", "app"),
    ("alias", "remove"): ("old", "--application", "app"),
    ("db", "grant-reader"): ("canary",),
    ("db", "downgrade"): ("0001",),
}
"""For the others, each argument that is required is the run."""
NEEDS_POSTGRESQL = ("db", "grant-reader", "canary")


def commands() -> Iterator[Command]:
    """Yield all commands, those of today and those to come; what is taken back is made again."""
    for name, its in sorted(_walk_all(), key=_turn):
        if name[0] not in SERVICES:
            required = [each for each in its.params if each.required]
            words = ARGUMENTS.get(name, ("r-1",) * len(required))
            takes_json = any("--json" in each.opts for each in its.params)
            yield Command((*name, *words), takes_json)


def _turn(command: tuple[tuple[str, ...], Any]) -> tuple[bool, bool]:
    (name, *rest), _ = command
    return name == "db", rest != ["downgrade"]


def _walk_all() -> Iterator[tuple[tuple[str, ...], Any]]:
    for name in command_line.COMMANDS:
        yield from _walk(command_line.load_command(name), (name,))


def _walk(command: Any, name: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            yield from _walk(inner, (*name, word))
    else:
        yield name, command


# --- the ways in which the ground and the API can be ---

Setup = Callable[[Program, Faulty], Program]
Respond = Callable[[Faulty], faulty.Answer]


def answering(*parts: str, body: bytes = b"{}") -> Setup:
    def setup(archiver: Program, api: Faulty) -> Program:
        api.answer = send(reply(body, *parts))
        return archiver

    return setup


def echoing(make: Callable[[str], bytes], *parts: str) -> Setup:
    """Answer with what `make` makes of the request's target, which has key and token."""

    def setup(archiver: Program, api: Faulty) -> Program:
        def answer(connection: Any) -> None:
            connection.sendall(reply(make(api.requests[-1].target), *parts))

        api.answer = answer
        return archiver

    return setup


def in_json(target: str) -> bytes:
    """Return an answer that is accepted and has the secrets at many places, in many spellings."""
    result = json.loads(SAMPLE)["result"]
    result |= {"name": target, "status": unquote(target), "echo": {target: [unquote(target), KEY]}}
    result["tests"][0] |= {"name": KEY, "results": {KEY: 1}, "duration": json.dumps(target)}
    slashed = json.dumps({"result": result, KEY: KEY}).replace("/", "\\/")
    return slashed.encode()


def in_html(target: str) -> bytes:
    return f"<html>{target} <b>{unquote(target)}</b>".encode()


def given(**variables: str) -> Setup:
    """Set variables; "{port}" is a port that nobody listens on."""

    def setup(archiver: Program, _api: Faulty) -> Program:
        port = free_port()
        return archiver.given(**{name: each.format(port=port) for name, each in variables.items()})

    return setup


def written(name: str, content: str, mode: int = 0o600) -> Setup:
    def setup(archiver: Program, _api: Faulty) -> Program:
        archiver.write(name, content).chmod(mode)
        return archiver

    return setup


API = "RESULT_ARCHIVER__API__"
ARCHIVING: Mapping[str, Setup] = {
    "well": answering(body=SAMPLE),
    "echo": echoing(in_json),
}
MODES: Mapping[str, Setup] = {
    "refused key": echoing(in_html, "401 Unauthorized"),
    "no permission": echoing(in_html, "403 Forbidden"),
    "unknown run": echoing(in_html, "404 Not Found"),
    "busy": echoing(in_html, "429 Slow", "Retry-After: 900"),
    "failing": echoing(in_html, "500 Oops"),
    "redirect": echoing(in_html, "302 Found", f"Location: /?apiKey={PING}"),
    "login page": echoing(in_html),
    "broken JSON": echoing(lambda target: in_json(target)[:-1]),
    "gzip garbage": echoing(in_html, "200 OK", "Content-Encoding: gzip"),
    "no HTTP": lambda archiver, api: _with(archiver, api, faulty.send_and_close(KEY.encode())),
    "reset": lambda archiver, api: _with(archiver, api, faulty.reset),
    "unreachable": given(**{f"{API}BASE_URL": "http://127.0.0.1:{port}"}),
    "no token key": written("token.key", ""),
    "token key that others can read": written("token.key", TOKEN_KEY, 0o644),
    "another thing in the token key": written("token.key", f"{TOKEN_KEY}{KEY}"),
    "key file missing": given(APPLITOOLS_API_KEY="", **{f"{API}KEY_FILE": "missing.key"}),
    "key file unreadable": given(APPLITOOLS_API_KEY="", **{f"{API}KEY_FILE": "/"}),
    "key of two lines": given(APPLITOOLS_API_KEY=f"{KEY}\n{KEY}"),
    "key in the file's place": given(**{f"{API}KEY_FILE": KEY}, APPLITOOLS_API_KEY=""),
    "key as a setting": given(**{f"{API}KEY": KEY}),
    "key as a number": given(**{f"{API}ATTEMPTS": KEY}),
    "key as the URL": given(**{f"{API}BASE_URL": KEY}),
    "key in the URL": given(**{f"{API}BASE_URL": f"https://127.0.0.1/?apiKey={KEY}"}),
    "key as a user": given(**{f"{API}BASE_URL": f"https://{KEY}:{KEY}@127.0.0.1"}),
    "key in config.toml": written("config.toml", f"[api]\nkey = '{KEY}'\nattempts = '{KEY}'\n"),
    "key as a section": written("config.toml", f"['{KEY}']\n"),
    "broken config.toml": written("config.toml", f"[api]\nkey_file = {KEY}\n"),
    "key as a variable": written("config.toml", f"[sources.eu]\nkey_env = '{KEY}'\n"),
    "token in a list": written("runs.csv", "\n".join(map(",".join, TOKENS.items()))),
    "broken JSON list": written("runs.csv", json.dumps([{"x": TOKENS}])[:-3]),
    "token as a label": written("runs.csv", f"run_id,read_token,token\nr-1,x,{TOKENS['r-1']}\n"),
    "password for MySQL": given(RESULT_ARCHIVER__DATABASE__URL=f"mysql://u:{PASSWORD}@h/d"),
    "no such port": given(RESULT_ARCHIVER__DATABASE__URL=f"postgresql://u:{PASSWORD}@h:x/d"),
    "no database": given(
        RESULT_ARCHIVER__DATABASE__URL="postgresql://u:CanaryPassword3h7J@127.0.0.1:{port}/d"
    ),
    "password in the query": given(
        RESULT_ARCHIVER__DATABASE__URL="postgresql://u@127.0.0.1:{port}/d?password=CanaryPassword3h7J"
    ),
    "not pinged": given(
        RESULT_ARCHIVER__TELEMETRY__PING_URL=f"http://127.0.0.1:{{port}}/ping/{PING}"
    ),
    "ping to nowhere": given(RESULT_ARCHIVER__TELEMETRY__PING_URL=f"nowhere:/{PING}"),
}  # fmt: skip


def _with(archiver: Program, api: Faulty, answer: faulty.Answer) -> Program:
    api.answer = answer
    return archiver


# --- the archiver, with all that it must not tell ---


@pytest.fixture
def api() -> Iterator[Faulty]:
    with faulty.serving() as api:
        yield api


@pytest.fixture
def archiver(tmp_path: Path, api: Faulty) -> Program:
    """The program with a secret at each place that takes one; it logs all that it can."""
    in_haste = Wiring(pauses=Pauses(0.001, 0.002))
    archiver = (
        bare_program(tmp_path)
        .wired(in_haste)
        .given(
            APPLITOOLS_API_KEY=KEY,
            RESULT_ARCHIVER__API__BASE_URL=api.url,
            RESULT_ARCHIVER__API__CONNECTIONS="1",
            RESULT_ARCHIVER__API__MAX_REQUESTS_PER_SECOND="0",
            RESULT_ARCHIVER__DATABASE__URL="sqlite:///archive.db",
            RESULT_ARCHIVER__SECURITY__TOKEN_KEY_FILE="token.key",
            RESULT_ARCHIVER__TELEMETRY__PING_URL=f"{api.url}/ping/{PING}",
            RESULT_ARCHIVER__TELEMETRY__METRICS_FILE="metrics.prom",
            RESULT_ARCHIVER__LOG__LEVEL="debug",
        )
    )
    archiver.write("token.key", f"{TOKEN_KEY}\n").chmod(0o600)
    rows = [f"{run_id},{json.dumps(token)}" for run_id, token in TOKENS.items()]
    archiver.write("runs.csv", "\n".join(["run_id,read_token", *rows]))
    return archiver


@pytest.fixture
def password_url(postgresql: Server) -> Iterator[str]:
    """A PostgreSQL database that lets a role in by a password that is known again."""
    coded = "".join(f"%{ord(each):02X}" if each in "@/:%" else each for each in PASSWORD)
    with postgresql.administer() as connection:
        connection.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")
        with postgresql.database() as url:
            name = url.rpartition("/")[2]
            connection.execute(f"ALTER DATABASE {name} OWNER TO {ROLE}".encode())
            yield f"postgresql://{ROLE}:{coded}@127.0.0.1:{postgresql.port}/{name}"
        connection.execute(f"DROP ROLE {ROLE}")


def use(archiver: Program, start: int = 0) -> Iterator[tuple[tuple[str, ...], Done]]:
    """Use each command, every other one for programs: its answer and its logs in JSON."""
    in_json = archiver.given(RESULT_ARCHIVER__LOG__FORMAT="json")
    for number, (words, takes_json) in enumerate(commands(), start):
        if number % 2:
            yield words, fresh(archiver, *words)
        else:
            words_in_json = (*words, "--json") if takes_json else words
            yield words_in_json, fresh(in_json, *words_in_json)


def fresh(archiver: Program, *words: str | Path) -> Done:
    """Run a command as if in a process of its own, which knows no secret from an earlier one."""
    forget_secrets()
    return archiver.call(*words)


def leaks(done: Iterable[tuple[tuple[str, ...], Done]]) -> dict[str, list[str]]:
    """Return which secrets the commands printed, by command."""
    outputs = [(words, shown(f"{each.stdout}\n{each.stderr}")) for words, each in done]
    return {" ".join(words): names for words, names in outputs if names}


def in_files(
    archiver: Program, mine: Iterable[str] = ("token.key", "runs.csv", "config.toml")
) -> Any:
    """Return which secrets stand in files that the program wrote."""
    found = {
        path.name: shown(path.read_bytes())
        for path in archiver.folder.rglob("*")
        if path.is_file() and path.name not in mine
    }
    return {name: names for name, names in found.items() if names}


def in_tables(archiver: Program) -> dict[str, list[str]]:
    """Return which secrets stand in the tables, payloads unpacked."""
    with contextlib.chdir(archiver.folder):
        engine = database.connect(archiver.environment["RESULT_ARCHIVER__DATABASE__URL"])
    found = {}
    with database.reading(engine) as connection:
        names = inspect(connection).get_table_names()
        for name in names:
            rows = connection.execute(text(f"SELECT * FROM {name}")).all()
            found[name] = shown(b"\n".join(_bytes(cell) for row in rows for cell in row))
        for body, encoding in connection.execute(text("SELECT body, encoding FROM payloads")):
            found["payloads"] += shown(decompress(bytes(body), encoding))
    engine.dispose()
    assert names
    return {name: secret for name, secret in found.items() if secret}


def _bytes(cell: object) -> bytes:
    return bytes(cell) if isinstance(cell, bytes | memoryview) else str(cell).encode()


def test_each_command_does_its_work_when_all_is_well(archiver: Program, api: Faulty) -> None:
    done = use(ARCHIVING["well"](archiver, api))
    assert {words: each for words, each in done if each.exit_code}.keys() == {NEEDS_POSTGRESQL}


@pytest.mark.parametrize("mode", MODES)
def test_no_command_shows_a_secret(mode: str, archiver: Program, api: Faulty) -> None:
    archiver = MODES[mode](archiver, api)
    assert leaks(use(archiver)) == {}
    assert in_files(archiver) == {}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("mode", ARCHIVING)
def test_no_table_has_a_secret(
    mode: str, kind: str, archiver: Program, api: Faulty, request: pytest.FixtureRequest
) -> None:
    if kind == "postgresql":
        url = request.getfixturevalue("password_url")
        archiver = archiver.given(RESULT_ARCHIVER__DATABASE__URL=url)
    archiver = ARCHIVING[mode](archiver, api)
    assert leaks([*use(archiver, 0), *use(archiver, 1)]) == {}
    fresh(archiver, "ingest", "--from", "runs.csv")
    assert in_tables(archiver) == {}
    assert in_files(archiver) == {}


def test_a_wrong_database_password_is_not_shown(archiver: Program, password_url: str) -> None:
    wrong = password_url.replace("3h7J", "3h7Jx")
    archiver = archiver.given(RESULT_ARCHIVER__DATABASE__URL=wrong)
    done = list(use(archiver))
    assert {each.exit_code for words, each in done if words[0] == "status"} == {4}
    assert leaks(done) == {}


@pytest.mark.parametrize(
    "words",
    [
        ("ingest", "--api-key", KEY),
        ("ingest", f"--api-key={KEY}"),
        ("ingest", "--read-token", TOKENS["r-1"]),
        ("ingest", f"--read-token={TOKENS['r-1']}"),
        (f"--key={KEY}", "status"),
        ("status", KEY),
        (KEY,),
        ("show", KEY),
        ("ingest", "--source", KEY),
        ("ingest", "--from", KEY),
        ("--config", KEY, "status"),
        ("track", "r-1", "--label", KEY),
        ("track", "r-1", "--label", f"read_token={TOKENS['r-1']}"),
        ("track", f"https://example.com/api/result/r-1?apiKey={KEY}"),
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(
    words: tuple[str, ...], archiver: Program
) -> None:
    fresh(archiver, "track", "r-1")
    done = fresh(archiver, *words)
    assert done.exit_code == 2
    assert leaks([(words, done)]) == {}


# --- as processes: the services, and what others see of them ---


@pytest.mark.parametrize(
    ("mode", "log_format", "last_line"),
    [
        ("well", "text", "still going"),
        ("echo", "json", "pass finished"),
        ("failing", "json", "pass finished"),
    ],
)
def test_no_service_shows_a_secret(
    mode: str, log_format: str, last_line: str, archiver: Program, api: Faulty
) -> None:
    archiver = {**ARCHIVING, **MODES}[mode](archiver, api)
    archiver = archiver.given(
        RESULT_ARCHIVER__RUNS__SOURCES="runs.csv",
        RESULT_ARCHIVER__API__ATTEMPTS="1",
        RESULT_ARCHIVER__LOG__FORMAT=log_format,
    )
    with archiver.started("schedule") as service:
        assert service.stderr
        log = _read_to(last_line, service.stderr)
        assert in_process_list() == []
        service.send_signal(signal.SIGTERM)
        stdout, rest = service.communicate(timeout=20)
    assert service.returncode == 0
    assert shown(f"{log}{stdout}{rest}") == []
    assert in_tables(archiver) == {}
    assert in_files(archiver) == {}


def test_what_needs_no_secret_shows_none(archiver: Program) -> None:
    with archiver.started("sandbox", "--port", "0") as sandbox:
        assert sandbox.stdout
        said = _read_to("serving", sandbox.stdout)
        demonstrated = archiver.run("demo")
        sandbox.send_signal(signal.SIGTERM)
        stdout, stderr = sandbox.communicate(timeout=20)
    assert demonstrated.exit_code == 0
    assert shown(f"{said}{stdout}{stderr}{demonstrated}") == []
    assert in_files(archiver) == {}


def _read_to(word: str, lines: Iterable[str]) -> str:
    """Return what is printed until a line with `word`, which is included."""
    read = []
    for line in lines:
        read.append(line)
        if word in line:
            break
    return "".join(read)


def in_process_list() -> list[str]:
    """Return which secrets anybody on this machine could see in the list of processes."""
    found = b""
    for name in ("cmdline", "comm"):
        for path in Path("/proc").glob(f"[0-9]*/{name}"):
            with contextlib.suppress(OSError):  # that process is over
                found += path.read_bytes()
    assert b"schedule" in found
    return shown(found)


# --- a new key for the read tokens ---


@pytest.fixture
def seen(api: Faulty) -> Callable[[], list[str]]:
    """Return the read tokens that the API was asked with since the last call."""
    api.answer = send(reply(SAMPLE))

    def tokens() -> list[str]:
        targets = [request.target for request in api.requests if "/api/result/" in request.target]
        api.requests.clear()
        return [parse_qs(urlsplit(target).query)["read_token"][0] for target in targets]

    return tokens


@pytest.fixture
def lists(archiver: Program) -> Mapping[str, Path]:
    """A list for each run, with its read token."""
    return {
        run_id: archiver.write(f"{run_id}.csv", f"run_id,read_token\n{run_id},{token}\n")
        for run_id, token in TOKENS.items()
    }


def test_a_new_token_key_encrypts_and_the_old_one_still_decrypts(
    archiver: Program, lists: Mapping[str, Path], seen: Callable[[], list[str]]
) -> None:
    fresh(archiver, "track", "--from", lists["r-1"])
    new_key = Fernet.generate_key().decode()
    archiver.write("token.key", f"{new_key}\n{TOKEN_KEY}\n")
    fresh(archiver, "track", "--from", lists["r-2"])
    assert fresh(archiver, "ingest").exit_code == 0
    assert seen() == [*TOKENS.values()]

    archiver.write("token.key", f"{new_key}\n")
    done = fresh(archiver, "ingest", "--refresh")
    assert (done.exit_code, seen()) == (1, [TOKENS["r-2"]])
    assert "its read token cannot be decrypted" in done.stderr


def test_a_run_whose_token_key_is_lost_can_be_tracked_again(
    archiver: Program, lists: Mapping[str, Path], seen: Callable[[], list[str]]
) -> None:
    fresh(archiver, "ingest", "--from", lists["r-1"])
    archiver.write("token.key", f"{Fernet.generate_key().decode()}\n")
    fresh(archiver, "ingest", "--refresh")
    fresh(archiver, "ingest", "--from", lists["r-1"], "--refresh")
    assert seen() == [TOKENS["r-1"]] * 2

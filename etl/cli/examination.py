"""The checks of `doctor`: a trial of all that a pass needs, each with problem and remedy."""

import http.client
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import requests
from sqlalchemy import Select, func, select

from etl.answers.payload import PayloadError, decode
from etl.config.settings import Config, Source, Telemetry
from etl.db import database
from etl.db.archive_settings import find_differences, read_settings
from etl.db.opening import Archive
from etl.db.ownership import refuse_occupied
from etl.db.schema import runs, tracked_runs
from etl.db.write_check import require_writable
from etl.errors import ArchiverError, ConfigError, OutOfFilesError
from etl.fetch.breaker import DENIED_AT_FIRST
from etl.fetch.client import Client, Probe, RunRefusedError, UnavailableError
from etl.fetch.door import Clock
from etl.fetch.route import read_environment, read_route
from etl.intake import lists
from etl.secrets.keys import api_key
from etl.secrets.masking import Secret, hide
from etl.secrets.vault import TokenVault

ALLOWED_SKEW = timedelta(minutes=1)
UNKNOWN_RUN = "result-archiver-doctor"
"""Requested while nothing is archived: the API's refusal tells how it takes the key."""

T = TypeVar("T")

NOT_THE_API = "check base_url: this does not look like the API"


class Finding(NamedTuple):
    """The result of one check: a `state` that is well, or a `problem`.

    `reason` is a code for programs, "ok" without a problem. `exit_code` is the one with which a
    command ends for this problem, 0 if it goes on.
    """

    subject: str
    state: str
    reason: str = "ok"
    problem: str = ""
    remedy: str = ""
    exit_code: int = 0


def examine(archive: Archive, config: Config, clock: Clock) -> Iterator[Finding]:
    """Check the database, the token key, each source, the run lists and the monitoring."""
    yield _database(archive, config)
    yield from _settings(archive, config)
    yield _token_key(archive, config)
    for name in config.sources:
        yield from _SourceCheck(archive, config, name, clock).findings()
    yield from _run_lists(config)
    yield from _metrics(config.telemetry)
    yield from _ping(config.telemetry)


def _problem(subject: str, reason: str, problem: str, remedy: str, exit_code: int) -> Finding:
    return Finding(subject, "", reason, problem, remedy, exit_code)


def _report(subject: str, error: ArchiverError, remedy: str = "") -> Finding:
    """Return an error as a finding; `remedy` is for one that has none."""
    text = error.remedy or remedy
    return _problem(subject, error.reason, error.problem, text, error.exit_code)


# --- the database and the token key ---


def _database(archive: Archive, config: Config) -> Finding:
    place = database.shown_url(archive.engine)
    try:
        is_there = database.has_archive(archive.engine)
        if not is_there and database.exists(archive.engine):
            with archive.reading() as connection:
                refuse_occupied(connection, config.database.reporting_schema)
        require_writable(archive.engine)
    except ArchiverError as error:
        return _report("database", error, "check database.url")
    state = "up to date" if is_there else "new: the first ingest creates its tables"
    return Finding("database", f"{place} is {state}")


def _settings(archive: Archive, config: Config) -> Iterator[Finding]:
    """Compare the settings of derived rows with the configuration."""
    with suppress(ArchiverError):  # the database has its own finding
        if database.has_archive(archive.engine):
            with archive.reading() as connection:
                stored = read_settings(connection)
            dialect = archive.engine.dialect.name
            for each in find_differences(stored, config.to_store, dialect):
                yield _problem("settings", "settings_differ", each.problem, each.remedy, 1)


def _token_key(archive: Archive, config: Config) -> Finding:
    """Try the token key on a stored token; the first token that is stored creates the key."""
    subject = "token key"
    stored = _ask(archive, select(func.max(tracked_runs.c.read_token)))
    vault = TokenVault(config.security.token_key_file)
    try:
        is_there = vault.has_key_file()
        if is_there and stored:
            vault.decrypt(stored)
        elif is_there:
            vault.encrypt(Secret("doctor"))
    except ArchiverError as error:
        return _report(subject, error, "see security.token_key_file")
    if is_there:
        return Finding(subject, "can be used")
    if not stored:
        return Finding(subject, "not needed yet; the first read token creates it")
    return _problem(
        subject,
        "token_key_missing",
        f"security.token_key_file: {config.security.token_key_file} does not exist, and read"
        " tokens are stored that only its key decrypts",
        "bring the file back, or track these runs again with their tokens",
        ConfigError.exit_code,
    )


def _ask(archive: Archive, query: "Select[T]") -> T | None:
    """Return the value of a query, None without an archive: the database has its own finding."""
    with suppress(ArchiverError):
        if database.has_archive(archive.engine):
            with archive.reading() as connection:
                found: T | None = connection.scalar(query)
                return found
    return None


# --- the sources ---


class _SourceCheck:
    """One request to a source: the route, the key, its permission, and the clock."""

    def __init__(self, archive: Archive, config: Config, name: str, clock: Clock) -> None:
        self._archive = archive
        self._config = config
        self._name = name
        self._clock = clock
        self._subject = f"source {name}"
        self._source: Source = config.sources[name]

    def findings(self) -> Iterator[Finding]:
        """Yield the findings of this source."""
        try:
            key = api_key(self._name, self._source)
        except ArchiverError as error:
            yield _problem(
                self._subject, error.reason, "has no API key", str(error), error.exit_code
            )
            return
        try:
            client = Client(self._source, key, self._config.api, self._clock)
            run_id = self._find_run() or UNKNOWN_RUN
            probe = client.probe(run_id)
            is_api = probe.http_status != 200 or _is_result(client, run_id)
        except (ConfigError, OutOfFilesError) as error:
            yield _report(self._subject, error)
        except UnavailableError as error:
            yield self._describe_no_answer(error)
        else:
            yield self._describe(probe) if is_api else self._describe_other_product()
            if probe.server_time is not None:
                yield self._compare_clocks(probe.server_time)

    def _find_run(self) -> str | None:
        """Return an archived run that the source still has, if there is one."""
        of_source = runs.c.source == self._name, runs.c.gone_at.is_(None)
        query = select(runs.c.run_id).where(*of_source).order_by(runs.c.changed_at.desc())
        return _ask(self._archive, query.limit(1))

    def _describe_no_answer(self, error: UnavailableError) -> Finding:
        remedy = error.remedy or "check base_url, the network, and the proxy settings"
        return _problem(self._subject, error.reason.value, error.problem, remedy, 5)

    def _describe_other_product(self) -> Finding:
        problem = f"{self._source.base_url} answers, but with no result of the API"
        return _problem(self._subject, "not_the_api", problem, NOT_THE_API, 5)

    def _describe(self, probe: Probe) -> Finding:
        subject = self._subject
        match probe.http_status:
            case 404 if not probe.is_json:
                problem = "answered 404, and not in JSON: it may be another server than the API"
                return _problem(subject, "not_the_api", problem, "check base_url", 0)
            case 200 | 404:
                return Finding(subject, "the key is accepted, and reads results")
            case 401:
                remedy = "set the right key in the environment or the key file"
                problem = "the API refuses the key (401)"
                return _problem(subject, "key_refused", problem, remedy, 3)
            case 403:
                return self._describe_no_permission()
            case 429:
                remedy = "wait, and lower api.max_requests_per_second if it happens often"
                return _problem(subject, "busy", "the API asks for patience (429)", remedy, 5)
            case status:
                problem = f"the API answered {status}"
                return _problem(subject, "http_status", problem, NOT_THE_API, 5)

    def _describe_no_permission(self) -> Finding:
        """Describe a 403, which is a problem of due runs without a read token alone."""
        due = (
            tracked_runs.c.source == self._name,
            tracked_runs.c.due_at <= self._clock(),
        )
        has_token = tracked_runs.c.read_token.is_not(None)
        count = select(func.count()).select_from(tracked_runs).where(*due)
        bare = _ask(self._archive, count.where(~has_token)) or 0
        with_token = _ask(self._archive, count.where(has_token)) or 0
        problem = "the key is accepted, but has no read permission (403)"
        exit_code = 0
        if bare:
            problem += f", and {bare} due run{'s have' if bare > 1 else ' has'} no read token"
            exit_code = 1 if with_token or bare < DENIED_AT_FIRST else 3
        remedy = "track each run with its read token, or ask for a key that may read"
        return _problem(self._subject, "no_permission", problem, remedy, exit_code)

    def _compare_clocks(self, server_time: datetime) -> Finding:
        subject = f"{self._subject} clock"
        skew = abs(server_time - self._clock())
        if skew <= ALLOWED_SKEW:
            return Finding(subject, "agrees with this machine's")
        problem = f"differs by {skew.total_seconds():.0f} s"
        remedy = "set this machine's clock (NTP): times in the archive and due times come from it"
        return _problem(subject, "clock_skew", problem, remedy, 1)


def _is_result(client: Client, run_id: str) -> bool:
    """Tell a result from a login page, which answers any path with 200."""
    try:
        decode(client.fetch(run_id, None).body)
    except (PayloadError, RunRefusedError):
        return False
    return True


# --- run lists and monitoring ---


def _run_lists(config: Config) -> Iterator[Finding]:
    missing = lists.find_missing(config)
    for pattern in missing:
        yield _problem(
            "run list",
            "list_missing",
            f"runs.sources: {pattern}: there is no such file",
            "correct runs.sources, or create the file: each pass warns of it",
            1,
        )
    if config.runs.sources and not missing:
        yield Finding("run lists", "each pattern of runs.sources names a file")


def _metrics(settings: Telemetry) -> Iterator[Finding]:
    if settings.metrics_port:
        yield _metrics_port(settings.metrics_host, settings.metrics_port)
    if settings.metrics_file:
        yield _metrics_file(Path(settings.metrics_file))


def _metrics_port(host: str, port: int) -> Finding:
    subject, place = "metrics port", f"{host}:{port}"
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        if _serves_our_metrics(host, port):
            return Finding(subject, f"{place} is served by a running service")
        problem = f"telemetry.metrics_port: {place} cannot be opened: {error.strerror}"
        remedy = "set another port, or end the program that has this one"
        return _problem(subject, "port_taken", problem, remedy, 2)
    return Finding(subject, f"{place} is free for the service")


def _serves_our_metrics(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/metrics")
        return b"result_archiver_" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _metrics_file(file: Path) -> Finding:
    subject = "metrics file"
    folder = next(parent for parent in file.absolute().parents if parent.exists())
    try:
        if file.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        problem = f"telemetry.metrics_file: {file} cannot be written: {error.strerror}"
        remedy = f"let this user write to {folder}, or change telemetry.metrics_file"
        return _problem(subject, "file_not_writable", problem, remedy, 1)
    return Finding(subject, f"{file} can be written")


def _ping(settings: Telemetry) -> Iterator[Finding]:
    """Ask the host of the ping URL for its start page: the URL itself would count as a ping."""
    if settings.ping_url is None:
        return
    hide(settings.ping_url)
    subject = "ping URL"
    try:
        place = _request_start_page(settings.ping_url, settings.ping_timeout_s)
    except ArchiverError as error:
        yield _report(subject, error)._replace(exit_code=1)  # a pass goes on without it
    else:
        yield Finding(subject, f"{place} answers")


def _request_start_page(url: str, timeout_s: float) -> str:
    """Return the host that answered. Raises ArchiverError if none did."""
    root = _start_page_of(url)
    if not root:
        raise ConfigError("telemetry.ping_url is not a URL", "give https://HOST/PATH")
    proxies = read_environment(root)["proxies"]
    route = read_route(root, proxies)._replace(setting="telemetry.ping_url")
    route.check()
    try:
        requests.head(root, timeout=timeout_s, allow_redirects=False).close()
    except requests.Timeout:
        limit = f"telemetry.ping_timeout_s ({timeout_s:g})"
        problem = f"{route.host} did not answer within {limit}"
        raise ArchiverError(problem, "check the network") from None
    except requests.RequestException as error:
        fault = route.explain(error)
        raise ArchiverError(fault.problem, fault.remedy or "check the network") from None
    return route.host


def _start_page_of(url: str) -> str:
    """Return the URL of the host's start page, "" without a host that can be asked."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    is_complete = parts.scheme in {"http", "https"} and parts.hostname
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/" if is_complete else ""

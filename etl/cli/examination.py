"""The checks of `doctor`: settings, database and API, each with verdict and remedy."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import NamedTuple

from sqlalchemy import Engine, select

from etl.answers.payload import PayloadError, decode
from etl.config.settings import Config, Source
from etl.db import database
from etl.db.faults import UNREACHABLE_REMEDY
from etl.db.opening import Archive
from etl.db.schema import runs
from etl.errors import ArchiverError
from etl.fetch.client import Client, Probe, RunRefusedError, UnavailableError
from etl.fetch.door import Clock
from etl.secrets.keys import api_key
from etl.secrets.masking import Secret
from etl.secrets.vault import TokenVault

ALLOWED_SKEW = timedelta(minutes=1)
UNKNOWN_RUN = "result-archiver-doctor"
"""Requested while nothing is archived: the API's refusal tells how it takes the key."""

NOT_THE_API = "check base_url: this does not look like the API"


class Finding(NamedTuple):
    """The result of one check. `exit_code` is 0 unless it is a problem."""

    subject: str
    verdict: str
    remedy: str
    exit_code: int


def examine(archive: Archive, config: Config, now: Clock) -> Iterator[Finding]:
    """Check the database, the key of the read tokens, and each source."""
    yield _database(archive.engine)
    yield _vault(config)
    for name, source in config.sources.items():
        yield from _source(archive, name, source, partial(Client, api=config.api, clock=now))


def _database(engine: Engine) -> Finding:
    try:
        if database.has_archive(engine):
            return Finding("database", f"{database.shown_url(engine)} is up to date", "", 0)
    except ArchiverError as error:
        return _report("database", error, UNREACHABLE_REMEDY)
    if problem := database.folder_problem(engine):
        return Finding("database", problem, "make its folder, or change database.url", 4)
    remedy = "nothing to do: the first ingest makes the tables"
    return Finding("database", f"{database.shown_url(engine)} is new", remedy, 0)


def _report(subject: str, error: ArchiverError, remedy: str) -> Finding:
    """Return an error as a finding; `remedy` is for one that has none."""
    return Finding(subject, error.problem, error.remedy or remedy, error.exit_code)


def _vault(config: Config) -> Finding:
    """Try the key of the read tokens; it is made when the first token is stored."""
    try:
        vault = TokenVault(config.security.token_key_file)
        if not vault.has_key_file():
            return Finding("token key", "not needed yet; the first read token makes it", "", 0)
        vault.encrypt(Secret("doctor"))
    except ArchiverError as error:
        return _report("token key", error, "see security.token_key_file")
    return Finding("token key", "can be used", "", 0)


def _source(
    archive: Archive, name: str, source: Source, open_client: Callable[..., Client]
) -> Iterator[Finding]:
    subject = f"source {name}"
    try:
        key = api_key(name, source)
    except ArchiverError as error:
        yield Finding(subject, "has no API key", str(error), error.exit_code)
        return
    client = open_client(source, key)
    run_id = _find_run(archive, name) or UNKNOWN_RUN
    try:
        probe = client.probe(run_id)
        is_api = _is_api(client, run_id, probe)
    except UnavailableError as error:
        remedy = "check base_url, the network, and the proxy settings"
        yield Finding(subject, f"{source.base_url}: {error}", remedy, 5)
        return
    if is_api:
        yield _permission(subject, probe)
    else:
        yield Finding(subject, "what answered is not the API", NOT_THE_API, 5)
    if probe.server_time is not None:
        yield _skew(subject, abs(probe.server_time - probe.asked_at))


def _is_api(client: Client, run_id: str, probe: Probe) -> bool:
    """Tell the API from any other server, as far as an answer to a run ID can."""
    return probe.http_status != 200 or _is_result(client, run_id)


def _is_result(client: Client, run_id: str) -> bool:
    """Tell a result from a login page, which answers any path with 200."""
    try:
        decode(client.fetch(run_id, None).body)
    except (PayloadError, RunRefusedError):
        return False
    return True


def _permission(subject: str, probe: Probe) -> Finding:
    match probe.http_status:
        case 404 if not probe.is_json:
            verdict = "answered 404, and not in JSON: it may be another server than the API"
            return Finding(subject, verdict, "check base_url", 0)
        case 200 | 404:
            return Finding(subject, "the key is accepted, and reads results", "", 0)
        case 401:
            remedy = "set the right key in the environment or the key file"
            return Finding(subject, "the API refuses the key (401)", remedy, 3)
        case 403:
            return Finding(
                subject,
                "the key is accepted, but has no read permission (403)",
                "track each run with its read token, or ask for a key that may read",
                0,
            )
        case 429:
            remedy = "wait, and lower api.max_requests_per_second if it happens often"
            return Finding(subject, "the API asks for patience (429)", remedy, 5)
        case _:
            return Finding(subject, f"the API answered {probe.http_status}", NOT_THE_API, 5)


def _skew(subject: str, skew: timedelta) -> Finding:
    if skew <= ALLOWED_SKEW:
        return Finding(f"{subject} clock", "agrees with this machine's", "", 0)
    remedy = "set this machine's clock (NTP): times in the archive and due times come from it"
    return Finding(f"{subject} clock", f"differs by {skew.total_seconds():.0f} s", remedy, 1)


def _find_run(archive: Archive, source: str) -> str | None:
    """Return an archived run that the source has not lost, if there is one."""
    try:
        if not database.has_archive(archive.engine):
            return None
        with archive.reading() as connection:
            query = select(runs.c.run_id).where(runs.c.source == source, runs.c.gone_at.is_(None))
            run_id: str | None = connection.scalar(query.order_by(runs.c.changed_at.desc()))
            return run_id
    except ArchiverError:
        return None  # the finding of the database has it

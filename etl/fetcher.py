"""Make a claimed run into an outcome: one request, then decoding, normalizing and compressing.

Runs in worker threads; holds no state but the sources' clients.
"""

import random
import threading
from datetime import datetime

from etl import clock, store
from etl.client import Client, Response, RunRefusedError, UnavailableError
from etl.config import Config
from etl.dispatch import Trouble
from etl.errors import ConfigError, KeyRefusedError
from etl.ledger import Claim
from etl.log import get_logger
from etl.normalize import ECHO_WARNING, Rows, normalize
from etl.outcome import Denied, Missing, Outcome, Postponed, Refused, Returned, Unchanged
from etl.payload import PayloadError, decode
from etl.secrets import api_key, open_vault
from etl.store import Answer, Reject

log = get_logger()


class Clients:
    """The client of each source, made when its first run is fetched."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._clients: dict[str, Client] = {}

    def require(self, names: set[str]) -> None:
        """Make the clients of `names`. Raises ConfigError where a key is missing.

        With one account only, its missing key is a mistake even while nothing is due.
        """
        known = self._config.sources.keys()
        for name in sorted((names & known) or (known if len(known) == 1 else set())):
            source = self._config.sources[name]
            key = api_key(name, source)
            self._clients[name] = Client(source, key, self._config.api, clock.now)

    def of(self, name: str) -> Client:
        """Return the client of a source. Raises ConfigError for one that is not configured."""
        try:
            return self._clients[name]
        except KeyError:
            raise ConfigError(
                f"its source {name!r} is not configured; add [sources.{name}] to config.toml"
            ) from None


class Fetcher:
    """Fetches runs of all sources. Raises nothing: what goes wrong is an outcome too."""

    def __init__(self, clients: Clients, config: Config) -> None:
        self._clients = clients
        self._vault = open_vault(config)
        self._zone = config.reporting_zone
        self._understanding = threading.Lock()

    def fetch(self, claim: Claim) -> Returned:
        """Return what came of one request."""
        sent_at = clock.now()
        try:
            client = self._clients.of(claim.source)
            token = self._vault.decrypt(claim.read_token) if claim.read_token else None
            return self._read(claim, client.fetch(claim.run_id, token))
        except UnavailableError as error:
            wait_s = error.wait.total_seconds() if error.wait else None
            return Trouble(str(error), wait_s, error.is_busy, random.random())  # noqa: S311  jitter
        except RunRefusedError as error:
            return _refused(claim, error, sent_at)
        except ConfigError as error:
            # Another machine, or this one with its settings mended, may well fetch it.
            return Postponed(claim.run_id, _trouble(str(error)))
        except KeyRefusedError as error:
            return error
        except Exception as error:
            log.exception("internal error", run_id=claim.run_id)
            reason = f"internal error: {type(error).__name__}; please report it"
            return Refused(claim.run_id, reason)

    def _read(self, claim: Claim, response: Response) -> Outcome:
        if response.sha256 == claim.fingerprint:
            return Unchanged(claim.run_id, response.fetched_at)
        try:
            content_hash, rows = self._understood(claim.run_id, response.body)
        except PayloadError as error:
            return Reject(
                claim.run_id, response.fetched_at, 200, str(error), response.body, response.sha256
            )
        if response.is_masked:
            rows.warnings.append(ECHO_WARNING)
        body = store.compress(response.body, response.sha256)
        return Answer(claim.run_id, claim.source, response.fetched_at, body, content_hash, rows)

    def _understood(self, run_id: str, body: bytes) -> tuple[str, Rows]:
        """Return the content's hash and rows.

        One after another: Python would not do it faster side by side, and a decoded answer takes
        ten times the memory of its body.
        """
        with self._understanding:
            payload = decode(body)
            return payload.content_hash, normalize(run_id, payload, self._zone)


def _trouble(reason: str) -> Trouble:
    return Trouble(reason, None, is_busy=False, chance=random.random())  # noqa: S311  jitter


def _refused(claim: Claim, error: RunRefusedError, sent_at: datetime) -> Returned:
    match error.http_status:
        case 403:
            return Denied(str(error))
        case 404:
            return Missing(claim.run_id, str(error), sent_at)
        case _:
            return Refused(claim.run_id, str(error))

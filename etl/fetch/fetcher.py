"""Make a target into an outcome: one request, then decoding, normalizing and compressing.

Used by several threads; holds no state but the sources' clients.
"""

import random
import threading
from datetime import datetime
from traceback import format_exc

from msgspec import Raw

from etl import clock
from etl.answers.compression import compress
from etl.answers.normalize import ECHO_WARNING, normalize
from etl.answers.outcome import (
    Denied,
    Fetched,
    Missing,
    Outcome,
    Postponed,
    Refused,
    Reject,
    Returned,
    Target,
    Trouble,
    Unchanged,
)
from etl.answers.payload import PayloadError, decode
from etl.config.settings import Config
from etl.errors import ConfigError, KeyRefusedError
from etl.fetch.client import Client, Response, RunRefusedError, UnavailableError
from etl.fetch.wire import pack_rows
from etl.secrets import api_key, mask, open_vault


class Clients:
    """The client of each source, made when its first run is fetched."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._clients: dict[str, Client] = {}
        self._making = threading.Lock()

    def of(self, name: str) -> Client:
        """Return the client of a source.

        Raises:
            ConfigError: the source is not configured, or has no key.
        """
        with self._making:
            if name not in self._clients:
                self._clients[name] = self._made(name)
            return self._clients[name]

    def _made(self, name: str) -> Client:
        source = self._config.sources.get(name)
        if source is None:
            raise ConfigError(
                f"its source {name!r} is not configured; add [sources.{name}] to config.toml"
            )
        return Client(source, api_key(name, source), self._config.api, clock.now)


class Fetcher:
    """Fetches runs of all sources. Raises nothing: what goes wrong is an outcome too."""

    def __init__(self, config: Config) -> None:
        self._clients = Clients(config)
        self._vault = open_vault(config)
        self._zone = config.reporting_zone
        self._understanding = threading.Lock()

    def fetch(self, target: Target) -> Returned:
        """Return what came of one request."""
        sent_at = clock.now()
        try:
            client = self._clients.of(target.source)
            token = self._vault.decrypt(target.read_token) if target.read_token else None
            return self._read(target, client.fetch(target.run_id, token, target.fingerprint))
        except UnavailableError as error:
            wait_s = error.wait.total_seconds() if error.wait else None
            return Trouble(str(error), wait_s, error.is_busy, random.random())  # noqa: S311  jitter
        except RunRefusedError as error:
            return _refused(target, error, sent_at)
        except ConfigError as error:
            # Another machine, or this one with its settings mended, may well fetch it.
            return Postponed(target.run_id, _trouble(str(error)))
        except KeyRefusedError as error:
            return error
        except Exception as error:  # noqa: BLE001  told where the outcome is written
            reason = f"internal error: {type(error).__name__}; please report it"
            return Refused(target.run_id, reason, mask(format_exc()))

    def _read(self, target: Target, response: Response) -> Outcome | Fetched:
        if response.sha256 == target.fingerprint:
            return Unchanged(target.run_id, response.fetched_at)
        try:
            content_hash, rows = self._understood(target.run_id, response)
        except PayloadError as error:
            return Reject(
                target.run_id, response.fetched_at, 200, str(error), response.body, response.sha256
            )
        body = compress(response.body, response.sha256)
        return Fetched(target.run_id, target.source, response.fetched_at, body, content_hash, rows)

    def _understood(self, run_id: str, response: Response) -> tuple[str, Raw]:
        """Return the content's hash, and the rows, packed.

        One after another: Python would not do it faster side by side, and a decoded answer takes
        ten times the memory of its body.
        """
        with self._understanding:
            payload = decode(response.body)
            rows = normalize(run_id, payload, self._zone)
            if response.is_masked:
                rows.warnings.append(ECHO_WARNING)
            return payload.content_hash, pack_rows(rows)


def _trouble(reason: str) -> Trouble:
    return Trouble(reason, None, is_busy=False, chance=random.random())  # noqa: S311  jitter


def _refused(target: Target, error: RunRefusedError, sent_at: datetime) -> Returned:
    match error.http_status:
        case 403:
            return Denied(str(error))
        case 404:
            return Missing(target.run_id, str(error), sent_at)
        case _:
            return Refused(target.run_id, str(error))

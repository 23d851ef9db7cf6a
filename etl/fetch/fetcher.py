"""Turn a target into an outcome: one request, then decoding, normalizing and compressing.

Several threads use one fetcher; it holds no state but the sources' clients.
"""

import random
import threading
from collections.abc import Callable
from datetime import datetime, tzinfo
from traceback import format_exc
from typing import NamedTuple

from msgspec import Raw, msgpack

from etl.answers.compression import compress
from etl.answers.normalize import normalize
from etl.answers.outcome import (
    Answer,
    Deferred,
    Denied,
    Missing,
    Outcome,
    Postponed,
    Reason,
    Reject,
    Target,
    TransientError,
    Unchanged,
)
from etl.answers.payload import Payload, PayloadError, decode
from etl.answers.rows import ECHO_WARNING, Rows
from etl.answers.test_names import TestNamer
from etl.config.settings import Config
from etl.errors import ConfigError, KeyRefusedError, OutOfFilesError, is_out_of_files
from etl.fetch.breaker import Job, Signal
from etl.fetch.client import BusyError, Client, Response, RunRefusedError, UnavailableError
from etl.secrets.keys import api_key
from etl.secrets.masking import mask
from etl.secrets.vault import TokenVault


class Attempt(NamedTuple):
    """One request for a run. An accepted answer or a 404 is `packed`; all else is an `error`.

    Outcomes are packed as they travel: a decoded answer takes five times the memory. `reject` is
    an answer without a result. `size` is the number of the API's bytes that are kept in memory.
    """

    signal: Signal
    error: TransientError | None = None
    packed: Raw | None = None
    reject: Reject | None = None
    size: int = 0
    traceback: str = ""


class Clients:
    """The client of each source, opened for its first run."""

    def __init__(self, config: Config, now: Callable[[], datetime]) -> None:
        self._config = config
        self._now = now
        self._clients: dict[str, Client] = {}
        self._opening = threading.Lock()

    def of(self, name: str) -> Client:
        """Return the client of a source.

        Raises:
            ConfigError: the source is not configured, or has no key.
        """
        with self._opening:
            if name not in self._clients:
                self._clients[name] = self._open(name)
            return self._clients[name]

    def _open(self, name: str) -> Client:
        source = self._config.sources.get(name)
        if source is None:
            raise ConfigError(
                f"its source {name!r} is not configured; add [sources.{name}] to config.toml"
            )
        return Client(source, api_key(name, source), self._config.api, self._now)

    def close(self) -> None:
        """Close all connections."""
        with self._opening:
            for client in self._clients.values():
                client.close()


class RunFetcher:
    """Fetches runs of all sources. Raises nothing: each error is an attempt too."""

    def __init__(
        self,
        config: Config,
        now: Callable[[], datetime],
        normalizer: Callable[[str, Payload, tzinfo], Rows] = normalize,
    ) -> None:
        self._clients = Clients(config, now)
        self._normalize = normalizer
        self._vault = TokenVault(config.security.token_key_file)
        self._zone = config.reporting.zone
        self._now = now
        self._decoding = threading.Lock()
        self._test_namer = TestNamer()

    def close(self) -> None:
        """Close all connections."""
        self._clients.close()

    def fetch(self, target: Target) -> Attempt:
        """Send one request, and return the attempt."""
        sent_at = self._now()
        try:
            client = self._clients.of(target.source)
            token = self._vault.decrypt(target.read_token) if target.read_token else None
            return self._read(target, client.fetch(target.run_id, token, target.fingerprint))
        except RunRefusedError as error:
            return _refused(target.run_id, error, sent_at)
        except KeyRefusedError as error:
            return Attempt(Signal.KEY_REFUSED, _error(Reason.DENIED, str(error)))
        except Exception as error:  # noqa: BLE001  reported where the outcome is stored
            if is_out_of_files(error):
                message = str(OutOfFilesError())
                return Attempt(Signal.NO_RESOURCES, _error(Reason.NO_RESOURCES, message))
            return _failed(error)

    def _read(self, target: Target, response: Response) -> Attempt:
        if response.sha256 == target.fingerprint:
            return _result(Unchanged(target.run_id, response.fetched_at))
        try:
            answer = self._decode(target, response)
        except PayloadError as error:
            return _unreadable(_reject(target, response, Reason.UNREADABLE, str(error)))
        except Exception as error:  # noqa: BLE001  a bug of ours must not lose the body
            message = f"internal error: {type(error).__name__}; please report it"
            reject = _reject(target, response, Reason.INTERNAL_ERROR, message, mask(format_exc()))
            return _result(reject, len(reject.body))
        return answer

    def _decode(self, target: Target, response: Response) -> Attempt:
        """Return the answer, packed.

        One thread at a time: Python would not do it faster side by side, and a decoded answer
        takes ten times the memory of its body.
        """
        with self._decoding:
            payload = decode(response.body)
            rows = self._normalize(target.run_id, payload, self._zone)
            if response.is_masked:
                rows.warnings.append(ECHO_WARNING)
            body = compress(response.body, response.sha256)
            fetched_at = response.fetched_at
            named = self._test_namer.name(rows.tests)
            answer = Answer(
                target.run_id, target.source, fetched_at, body, payload.content_hash, rows, named
            )
            return _result(answer, body.size)


def pack_outcome(job: Job, attempt: Attempt) -> Raw:
    """Return the outcome of a job whose end is decided, packed."""
    error, run_id = attempt.error, job.target.run_id
    if attempt.packed is not None or error is None:
        return attempt.packed or Raw()
    if attempt.signal is Signal.DENIED:
        return pack(Denied(run_id, error.message))
    if attempt.reject and job.is_own:
        return pack(attempt.reject)
    return pack(Postponed(run_id, error, attempt.reject, job.is_own, attempt.traceback))


def pack_deferred(job: Job, attempt: Attempt) -> Raw:
    """Return the outcome of a job that met a halt while it failed, packed."""
    error = attempt.error or _error(Reason.NO_ANSWER, "")
    return pack(Deferred(job.target.run_id, error, attempt.reject))


def pack(outcome: Outcome) -> Raw:
    """Return an outcome as it travels."""
    return Raw(msgpack.encode(outcome))


def _result(outcome: Outcome, size: int = 0) -> Attempt:
    return Attempt(Signal.RESULT, packed=pack(outcome), size=size)


def _reject(
    target: Target, response: Response, code: Reason, message: str, traceback: str = ""
) -> Reject:
    return Reject(
        target.run_id,
        response.fetched_at,
        200,
        code,
        message,
        response.body,
        response.sha256,
        _chance(),
        traceback,
    )


def _unreadable(reject: Reject) -> Attempt:
    error = _error(reject.code, reject.message)
    return Attempt(Signal.NO_RESULT, error, reject=reject, size=len(reject.body))


def _failed(error: Exception) -> Attempt:
    """Return an attempt that tells nothing final of the run."""
    match error:
        case UnavailableError():
            return _transient(error)
        case ConfigError():
            # Another machine, or this one with its settings corrected, may well fetch it.
            return _without_request(Reason.NOT_CONFIGURED, str(error))
        case _:
            message = f"internal error: {type(error).__name__}; please report it"
            return _without_request(Reason.INTERNAL_ERROR, message, mask(format_exc()))


def _transient(failure: UnavailableError) -> Attempt:
    wait_s = failure.wait.total_seconds() if failure.wait else None
    is_busy = isinstance(failure, BusyError)
    error = TransientError(failure.reason, str(failure), wait_s, is_busy, _chance())
    is_answer = failure.reason is Reason.UNREADABLE
    return Attempt(Signal.NO_RESULT if is_answer else Signal.TRANSIENT, error)


def _refused(run_id: str, error: RunRefusedError, sent_at: datetime) -> Attempt:
    if error.http_status == 403:
        return Attempt(Signal.DENIED, _error(Reason.DENIED, str(error)))
    return _result(Missing(run_id, str(error), sent_at))


def _without_request(reason: Reason, message: str, traceback: str = "") -> Attempt:
    return Attempt(Signal.NO_REQUEST, _error(reason, message), traceback=traceback)


def _error(reason: Reason, message: str) -> TransientError:
    return TransientError(reason, message, None, is_busy=False, chance=_chance())


def _chance() -> float:
    return random.random()  # noqa: S311  jitter

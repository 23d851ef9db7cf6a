"""Patience with a database that is away for a while."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from etl.errors import DatabaseError
from etl.telemetry.log import get_logger

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")

log = get_logger()


class Patience:
    """Runs tasks again and again while the database is away, for `longest_s` in all.

    Each task is one transaction that is a no-op the second time: the leases tell which
    runs an earlier commit stored whose acknowledgement got lost.
    """

    def __init__(self, longest_s: float, retry_s: float = 0.5) -> None:
        self._longest_s = longest_s
        self._retry_s = retry_s
        self._is_over = threading.Event()

    def end(self) -> None:
        """Raise each further error at once."""
        self._is_over.set()

    def run(self, task: Callable[[], T]) -> T:
        """Return the result of `task`. Raises DatabaseError: permanent, or patience is over."""
        try:
            return task()
        except DatabaseError as error:
            if not error.is_transient or self._is_over.is_set():
                raise
            log.warning("database away, trying again", reason=str(error))
            return self._retry(task)

    def _retry(self, task: Callable[[], T]) -> T:
        import tenacity  # noqa: PLC0415  not loaded where the database stays

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=tenacity.wait_fixed(self._retry_s),
            stop=tenacity.stop_after_delay(self._longest_s)
            | tenacity.stop_when_event_set(self._is_over),
            sleep=tenacity.sleep_using_event(self._is_over),
            after=_log_return,
            reraise=True,
        )
        try:
            result: T = retrying(task)
        except DatabaseError:
            self.end()  # the tasks behind this one need not wait as well
            raise
        log.info("database back")
        return result


def _is_transient(error: BaseException) -> bool:
    return isinstance(error, DatabaseError) and error.is_transient


def _log_return(state: "RetryCallState") -> None:
    log.debug("database still away", after_s=state.seconds_since_start)

"""Pings to a dead man's switch, which raises an alarm if they stop or report a failure."""

import queue
import threading

from etl.config.settings import Telemetry
from etl.secrets.masking import hide
from etl.telemetry.log import get_logger

log = get_logger()


def ping(settings: Telemetry, ending: str) -> None:
    """Ping the dead man's switch: "/start", "" (success) or "/fail". Never raises.

    These are the endings of Healthchecks and of services with the same interface
    (https://healthchecks.io/docs/http_api/).
    """
    if settings.ping_url is None:
        return
    hide(settings.ping_url)
    url = settings.ping_url.rstrip("/") + ending
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    # A thread can be abandoned when time is up: the timeout of requests is for each byte.
    threading.Thread(
        target=_deliver, args=[url, settings.ping_timeout_s, answers], name="ping", daemon=True
    ).start()
    try:
        problem = answers.get(timeout=settings.ping_timeout_s)
    except queue.Empty:
        problem = "no answer in time"
    if problem:
        log.warning("ping not delivered", reason=problem)


def _deliver(url: str, timeout_s: float, answers: "queue.SimpleQueue[str]") -> None:
    """Request `url`, and put the problem into `answers`, without the URL: it is a secret."""
    import requests  # noqa: PLC0415  after `client`, which leaves out the parts we do not need

    try:
        with requests.get(url, timeout=timeout_s, allow_redirects=False, stream=True) as response:
            status = response.status_code
    except (requests.RequestException, ValueError) as error:  # ValueError: an impossible host
        answers.put(type(error).__name__)
    else:
        answers.put("" if status < 300 else f"status {status}")

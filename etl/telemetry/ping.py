"""Pings to a dead man's switch: it raises the alarm when they stay away, or tell of a failure."""

import queue
import threading

from etl.config.settings import Telemetry
from etl.secrets.masking import hide
from etl.telemetry.log import get_logger

log = get_logger()


def ping(settings: Telemetry, ending: str) -> None:
    """Tell the dead man's switch: "/start", "" (well) or "/fail". Never raises.

    The endings are those of Healthchecks and of what speaks its language
    (https://healthchecks.io/docs/http_api/).
    """
    if settings.ping_url is None:
        return
    hide(settings.ping_url)
    url = settings.ping_url.rstrip("/") + ending
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    # Only another thread can be left alone in time: the timeout of requests is for each byte.
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
    """Ask for `url`, and answer what was wrong, without the URL: it is a secret."""
    import requests  # noqa: PLC0415  after `client`, which leaves out what we do not need of it

    try:
        with requests.get(url, timeout=timeout_s, allow_redirects=False, stream=True) as response:
            status = response.status_code
    except (requests.RequestException, ValueError) as error:  # ValueError: a host that cannot be
        answers.put(type(error).__name__)
    else:
        answers.put("" if status < 300 else f"status {status}")

"""Logs to stderr, as text for people or JSON for machines, with secrets masked."""

import logging
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from etl import display
from etl.config.settings import Log
from etl.errors import ArchiverError
from etl.runtime import hide_package
from etl.secrets.masking import mask

# Rich takes a tenth of the start-up time, for tracebacks that we do not print; greenlet a MiB.
with hide_package("rich"), hide_package("greenlet"):
    import structlog

bind_context = structlog.contextvars.bind_contextvars
context = structlog.contextvars.get_contextvars


def configure(settings: Log) -> None:
    """Send our own and every library's log through one handler that masks secrets."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _mask_event,
                _renderer(settings.format),
                _mask_line,
                _without_controls,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())
    # Below warnings urllib3 logs each URL and alembic each statement: noise, and a risk.
    for name in ("urllib3", "alembic", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # APScheduler's warnings of missed passes are events of ours.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)


def get_logger() -> structlog.stdlib.BoundLogger:
    """Return the program's logger. Events are short texts; facts are keyword arguments."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("result_archiver")
    return logger


@contextmanager
def pass_lines(started_at: datetime) -> Iterator[None]:
    """Give each line of a pass its time, and its number from when `bind_context` sets it.

    Lines that are printed for people in the meantime are logged as warnings.
    """
    bind_context(pass_started=started_at.isoformat())
    try:
        with display.notes_to(lambda text: get_logger().warning(text, text=text)):
            yield
    finally:
        structlog.contextvars.unbind_contextvars("pass_started", "pass_id")


def log_error(error: ArchiverError) -> None:
    """Log an error that ends a pass."""
    get_logger().error(
        "pass failed", reason=str(error), exit_code=error.exit_code, text=f"error: {error}"
    )


def _renderer(log_format: str) -> Any:
    if log_format == "json":
        return _render_json
    return _render_text


_write_json = structlog.processors.JSONRenderer(ensure_ascii=True)
_write_text = structlog.dev.ConsoleRenderer(
    colors=False,
    pad_event_to=0,
    pad_level=False,
    exception_formatter=structlog.dev.plain_traceback,
)


def _render_json(logger: Any, name: str, event: MutableMapping[str, Any]) -> str | bytes:
    event.pop("text", None)
    return _write_json(logger, name, event)


def _render_text(logger: Any, name: str, event: MutableMapping[str, Any]) -> str:
    """Render the time, the number of the pass, and the `text` of an event or else its facts."""
    time = f"{event.pop('timestamp').partition('.')[0].removesuffix('Z')}Z"
    pass_id = event.pop("pass_id", None)
    head = time if pass_id is None else f"{time} pass {pass_id}:"
    event.pop("pass_started", None)
    text = event.pop("text", None)
    return f"{head} {_write_text(logger, name, event) if text is None else text}"


def _mask_event(
    _logger: Any, _name: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    return {name: mask(value) if isinstance(value, str) else value for name, value in event.items()}


def _mask_line(_logger: Any, _name: str, line: Any) -> str:
    """Mask the whole line: the contents of objects and lists show only when it is written."""
    return mask(line)


def _without_controls(_logger: Any, _name: str, line: Any) -> str:
    """Escape characters that could control a terminal, such as a direction mark in a run ID."""
    return "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1]
        for character in line
    )

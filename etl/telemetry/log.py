"""Logs to stderr, as text for people or JSON for machines, with secrets masked."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

from etl.config.settings import Log
from etl.runtime import hide_package
from etl.secrets.masking import mask

with hide_package("rich"):  # a tenth of the start-up time, for tracebacks that we do not print
    import structlog

bind_context = structlog.contextvars.bind_contextvars
bound_context = structlog.contextvars.bound_contextvars
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
    for name in ("urllib3", "alembic", "uvicorn", "apscheduler"):
        logging.getLogger(name).setLevel(logging.WARNING)


def get_logger() -> structlog.stdlib.BoundLogger:
    """Return the program's logger. Events are short texts; facts are keyword arguments."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("result_archiver")
    return logger


def _renderer(log_format: str) -> Any:
    if log_format == "json":
        return structlog.processors.JSONRenderer(ensure_ascii=True)
    return structlog.dev.ConsoleRenderer(
        colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
    )


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

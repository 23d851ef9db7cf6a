"""The one place where the time is read, so that all else can take it as an argument."""

from datetime import UTC, datetime


def now() -> datetime:
    """Return the current moment in UTC, cut to the milliseconds that the archive keeps."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)

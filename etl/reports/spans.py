"""Spans of time in reports, and their description for people."""

from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from etl.reports.model import ReportRequest

DAY = timedelta(days=1)


class Span(NamedTuple):
    """From `since` up to, not including, `until`; None has no end on that side."""

    since: datetime | None = None
    until: datetime | None = None


ALWAYS = Span()


class Days(NamedTuple):
    """From the first day to the last one, both included; None has no end on that side."""

    first: date | None
    last: date | None


def requested_span(request: ReportRequest) -> Span:
    """Return the span that the request's filters name."""
    return Span(request.filters.since, request.filters.until)


def requested_or_recent(request: ReportRequest, days: int) -> Span:
    """Return the span of the filters, or the last `days` days, with today."""
    span = requested_span(request)
    if span != ALWAYS:
        return span
    today = request.now.astimezone(request.zone).date()
    first, after = today - (days - 1) * DAY, today + DAY
    return Span(midnight(first, request.zone), midnight(after, request.zone))


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """Return when a day begins, as UTC."""
    return datetime.combine(day, time.min, zone).astimezone(UTC)


def whole_days(span: Span, zone: ZoneInfo) -> Days | None:
    """Return the days that a span is made of; None where it begins or ends within one."""
    first, after = (each and each.astimezone(zone).date() for each in span)
    for day, moment in ((first, span.since), (after, span.until)):
        if day and midnight(day, zone) != moment:
            return None
    return Days(first, after and after - DAY)


def describe_span(subject: str, span: Span, zone: ZoneInfo) -> str:
    """Return a span for people: "runs from 2026-11-01 to 2026-11-30"."""
    if span == ALWAYS:
        return f"all {subject}"
    days = whole_days(span, zone)
    ends = days or [each and each.astimezone(zone).isoformat(" ", "minutes") for each in span]
    words = [f" {word} {end}" for word, end in zip(("from", "to"), ends, strict=True) if end]
    return f"{subject}{''.join(words)}"


def describe_requested(request: ReportRequest) -> str:
    """Return the span of the runs that a request's filters leave."""
    return describe_span("runs", requested_span(request), request.zone)

"""Make the Vega-Lite specifications of the page's charts from rows.

Pure. Colours are variables of the page's style sheet, so that one drawing serves light and dark.
Charts come in two widths, so that their text can be read on a phone too. Texts from the API stand
in the data alone, never in an expression. Sizes follow from the rows, not from how wide a font is
on the machine that draws.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

Row = Mapping[str, Any]
Spec = dict[str, Any]

NAME = "name"
"""The column with the label of a row in a chart."""

WIDE_PX = 880
NARROW_PX = 330
TREND_PX = 424
"""Two trends stand side by side on a desktop, and one fits a phone: they need one width only."""
CELL_PX = 22
LETTER_PX = 7
"""How wide a letter is at most, on average, in the fonts that browsers come with."""
NUMBER_PX = 52
AXIS_PX = 38
MOST_TICKS = 5
DAY_MS = 86_400_000
BELOW_NAME_PX = 11
AXIS_FOOT_PX = 40

OUTCOMES = {
    "P": "passed", "F": "failed", "U": "unresolved", "A": "aborted", "N": "pending", "?": "unknown",
}  # fmt: skip
_WORDS = list(OUTCOMES.values())
RATES = ("pass_rate", "pass_rate_low", "pass_rate_high")
_CONFIG: Spec = {
    "aria": False,  # the figure has a label, and the table below has each value
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif",
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "labelFontSize": 12,
        "titleColor": "var(--muted)",
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "gridColor": "var(--line)",
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
    },
    "point": {"filled": True, "opacity": 1, "size": 110, "color": "var(--accent)"},
    "text": {"color": "var(--ink)", "fontSize": 12},
}


class Chart(NamedTuple):
    """A chart, wide and narrow (None: the same), and its text for screen readers."""

    alt: str
    wide: Spec
    narrow: Spec | None


# --- a line for each row --------------------------------------------------------------------


class _RowLayout(NamedTuple):
    """The layout of a chart with a line for each row.

    When it is wide, names stand to the left of the lines, else above them.
    """

    names_px: int
    plot_px: int
    below_px: int

    def spec(self, rows: Sequence[Row], layers: Sequence[Spec], foot_px: int) -> Spec:
        """Return the whole; `foot_px` is the room that the axis below needs."""
        values = [{**row, "line": line} for line, row in enumerate(rows)]
        step = CELL_PX + 6 + 2 * self.below_px
        name: Spec = {
            "mark": {"type": "text", "align": "left", "yOffset": -self.below_px},
            "encoding": {
                "text": {"field": NAME},
                "x": {"value": -self.names_px},
                "y": {"field": "line", "type": "ordinal", "axis": None},
            },
        }
        return {
            "width": self.plot_px,
            "height": {"step": step},
            "padding": {"left": self.names_px, "right": NUMBER_PX, "top": 2, "bottom": foot_px},
            "autosize": "none",
            "config": _CONFIG,
            "data": {"values": values},
            "layer": [*(_lowered(layer, self.below_px) for layer in layers), name],
        }


def _lowered(layer: Spec, by_px: int) -> Spec:
    """Return a layer with a line for each row, `by_px` pixels lower."""
    line = {"field": "line", "type": "ordinal", "axis": None}
    mark = {**layer["mark"], "yOffset": by_px}
    return {**layer, "mark": mark, "encoding": {**layer["encoding"], "y": line}}


def _wide(rows: Sequence[Row]) -> _RowLayout:
    names_px = max(len(row[NAME]) for row in rows) * LETTER_PX + 14
    return _RowLayout(names_px, WIDE_PX - names_px - NUMBER_PX, 0)


def _narrow() -> _RowLayout:
    return _RowLayout(2, NARROW_PX - NUMBER_PX, BELOW_NAME_PX)


def _lines(alt: str, rows: Sequence[Row], layers: Callable[[_RowLayout], Sequence[Spec]]) -> Chart:
    wide, narrow = _wide(rows), _narrow()
    return Chart(
        alt,
        wide.spec(rows, layers(wide), AXIS_FOOT_PX),
        narrow.spec(rows, layers(narrow), AXIS_FOOT_PX),
    )


def intervals(rows: Sequence[Row]) -> Chart:
    """Return pass rates as points, each on the interval that open results still allow."""
    rate = _rate(rows)
    values = [
        _only(row, NAME, *RATES) | {"end": max(row["pass_rate_high"], row["pass_rate"] or 0)}
        for row in rows
    ]

    def layers(lines: _RowLayout) -> list[Spec]:
        axis = {"format": ".0%", "title": "pass rate", "tickCount": lines.plot_px // 80}
        return [
            {
                "mark": {"type": "bar", "height": 12, "cornerRadius": 6, "color": "var(--band)"},
                "encoding": {
                    "x": {"field": "pass_rate_low", "axis": axis, **rate},
                    "x2": {"field": "pass_rate_high"},
                },
            },
            {"mark": {"type": "point"}, "encoding": {"x": {"field": "pass_rate", **rate}}},
            _number("pass_rate", ".1%", {"field": "end", **rate}),
        ]

    told = _told(f"{row[NAME]} {_percent(row['pass_rate'])}" for row in rows)
    return _lines(told, values, layers)


def bars(rows: Sequence[Row], number: str, title: str, color: str = "accent") -> Chart:
    """Return a bar for each row, with its number at the end; `color` is the style sheet's."""

    def layers(lines: _RowLayout) -> list[Spec]:
        axis = {"title": title, "tickCount": lines.plot_px // 90, "tickMinStep": 1, "format": "d"}
        length = {"field": number, "type": "quantitative"}
        return [
            {
                "mark": {"type": "bar", "color": f"var(--{color})", "height": 14},
                "encoding": {"x": {**length, "axis": axis}},
            },
            _number(number, ",d", length),
        ]

    told = _told(f"{row[NAME]}: {row[number]:,}" for row in rows)
    return _lines(told, [_only(row, NAME, number) for row in rows], layers)


def ranges(rows: Sequence[Row]) -> Chart:
    """Return a line from p50 to p95 for each row, in the unit that suits the longest."""
    unit, unit_ms = _unit(max(row["p95_ms"] for row in rows))
    values = [
        {NAME: row[NAME], "p50": row["p50_ms"] / unit_ms, "p95": row["p95_ms"] / unit_ms}
        for row in rows
    ]

    def layers(lines: _RowLayout) -> list[Spec]:
        axis = {"title": f"{unit} for a run", "tickCount": lines.plot_px // 90}
        p50 = {"field": "p50", "type": "quantitative", "scale": {"zero": True}}
        p95 = {"field": "p95", "type": "quantitative"}
        return [
            {
                "mark": {"type": "bar", "height": 5, "color": "var(--band)"},
                "encoding": {"x": {**p50, "axis": axis}, "x2": {"field": "p95"}},
            },
            {"mark": {"type": "point"}, "encoding": {"x": p50}},
            {
                "mark": {"type": "tick", "thickness": 3, "height": 16, "color": "var(--ink)"},
                "encoding": {"x": p95},
            },
            _number("p95", ".1f", p95),
        ]

    told = _told(f"{row[NAME]} {row['p50']:.1f} to {row['p95']:.1f}" for row in values)
    return _lines(f"{unit}: {told}", values, layers)


def strips(rows: Sequence[Row]) -> Chart:
    """Return the results in each row's window as a strip of cells, the newest on the right."""
    names = [_only(row, NAME) for row in rows]
    longest = max(len(row["recent"]) for row in rows) * CELL_PX

    def make(lines: _RowLayout) -> Spec:
        fitted = lines._replace(plot_px=min(longest, lines.plot_px // CELL_PX * CELL_PX))
        spec = fitted.spec(names, _cells(rows, fitted.plot_px), 2)
        return {**spec, "resolve": {"scale": {"color": "independent"}}}

    told = _told(f"{row[NAME]} {row['recent']}" for row in rows)
    return Chart(told, make(_wide(names)), make(_narrow()))


def _cells(rows: Sequence[Row], plot_px: int) -> list[Spec]:
    """Return layers with as many of the newest results as there is room for."""
    cells = [
        {"line": line, "x": plot_px - CELL_PX * (back + 0.5), "outcome": OUTCOMES[letter]}
        | {"letter": letter}
        for line, row in enumerate(rows)
        for back, letter in enumerate(reversed(row["recent"][-(plot_px // CELL_PX) :]))
    ]
    scale = {"domain": [0, plot_px], "nice": False}
    place = {"field": "x", "type": "quantitative", "axis": None, "scale": scale}
    size = CELL_PX - 2
    return [
        {
            "data": {"values": cells},
            "mark": {"type": "rect", "width": size, "height": size, "cornerRadius": 3},
            "encoding": {"x": place, "color": _color("outcome", "")},
        },
        {
            "data": {"values": cells},
            "mark": {"type": "text", "fontSize": 11, "fontWeight": "bold"},
            "encoding": {
                "x": place,
                "text": {"field": "letter"},
                "color": _color("outcome", "on-"),
            },
        },
    ]


def _number(field: str, form: str, place: Spec) -> Spec:
    """Return a layer with the numbers of `field`, to the right of `place`."""
    return {
        "mark": {"type": "text", "align": "left", "xOffset": 10},
        "encoding": {"x": place, "text": {"field": field, "format": form}},
    }


# --- over time ------------------------------------------------------------------------------


class Calendar(NamedTuple):
    """The days, or first days of weeks, from `first` to `last`; `day` names the column of them."""

    day: str
    first: date
    last: date
    step_days: int

    @property
    def periods(self) -> int:
        """How many days or weeks there are."""
        return (self.last - self.first).days // self.step_days + 1

    def axis(self) -> Spec:
        """Return the time axis, with labels for as many days as have room."""
        half = self.step_days * DAY_MS // 2
        first, last = _milliseconds(self.first), _milliseconds(self.last)
        every = self.step_days * DAY_MS * -(-self.periods // MOST_TICKS)
        form = "%-d %b" if last - first < 300 * DAY_MS else "%b %Y"
        return {
            "field": "at",
            "type": "temporal",
            "scale": {"type": "utc", "domain": [first - half, last + half], "nice": False},
            "title": None,
            "axis": {"format": form, "values": list(range(first, last + 1, every)), "grid": False},
        }


def _milliseconds(day: date) -> int:
    """Return a day as Vega counts time: since 1970."""
    return (day - date(1970, 1, 1)).days * DAY_MS


def trend(rows: Sequence[Row], calendar: Calendar) -> Chart:
    """Return pass rates over time with their intervals, and the number of results below."""
    day, time = calendar.day, calendar.axis()
    bar_px = min(max(_TREND_PLOT_PX / calendar.periods * 0.75, 1), 24)
    spec = {
        "padding": {"left": 2, "right": 10, "top": 8, "bottom": 4},
        "spacing": 12,
        "config": _CONFIG,
        "data": {
            "values": [
                _only(row, *RATES, *_WORDS) | {"at": _milliseconds(row[day])} for row in rows
            ]
        },
        "vconcat": [
            _rate_over({**time, "axis": None}, _rate(rows)),
            _volume_over(time, round(bar_px, 1)),
        ],
    }
    first, last = rows[0], rows[-1]
    alt = _told(f"{row[day]}: {_percent(row['pass_rate'])}" for row in (first, last))
    return Chart(alt, spec, None)


_TREND_PLOT_PX = TREND_PX - AXIS_PX - 20
# 2k for 2000; parts of a result, which an axis of few results has, are left out.
_IN_SHORT = "datum.value % 1 ? '' : datum.value ? format(datum.value, '~s') : '0'"
_LEFT: Spec = {"title": None, "tickCount": 3, "minExtent": AXIS_PX, "maxExtent": AXIS_PX}


def _rate_over(time: Spec, rate: Spec) -> Spec:
    return {
        "width": _TREND_PLOT_PX,
        "height": 90,
        "encoding": {"x": time},
        "layer": [
            {
                "mark": {"type": "area", "color": "var(--band)", "opacity": 1},
                "encoding": {
                    "y": {"field": "pass_rate_low", "axis": {**_LEFT, "format": ".0%"}, **rate},
                    "y2": {"field": "pass_rate_high"},
                },
            },
            {
                "mark": {"type": "line", "color": "var(--accent)", "strokeWidth": 2},
                "encoding": {"y": {"field": "pass_rate", **rate}},
            },
            {
                "mark": {"type": "point", "size": 26},
                "encoding": {"y": {"field": "pass_rate", **rate}},
            },
        ],
    }


def _volume_over(time: Spec, bar_px: float) -> Spec:
    return {
        "width": _TREND_PLOT_PX,
        "height": 56,
        "transform": [
            {"fold": _WORDS, "as": ["outcome", "results"]},
            {"filter": "datum.results > 0"},
        ],
        "mark": {"type": "bar", "width": bar_px},
        "encoding": {
            "x": time,
            "y": {
                "field": "results",
                "type": "quantitative",
                "axis": {**_LEFT, "tickCount": 2, "labelExpr": _IN_SHORT},
            },
            "color": _color("outcome", ""),
        },
    }


# --- parts ----------------------------------------------------------------------------------


def _only(row: Row, *names: str) -> dict[str, Any]:
    """Return some columns of a row."""
    return {name: row[name] for name in names}


def _color(field: str, prefix: str) -> Spec:
    """Return the encoding of outcomes by the style sheet's colours for them, or `prefix` them."""
    scale = {"domain": _WORDS, "range": [f"var(--{prefix}{word})" for word in _WORDS]}
    return {"field": field, "type": "nominal", "scale": scale, "legend": None}


def _rate(rows: Sequence[Row]) -> Spec:
    """Return the scale of pass rates: it begins at full 5 % below the lowest one."""
    least = min((row["pass_rate"] for row in rows if row["pass_rate"] is not None), default=0)
    floor = max(0, int(least * 20 - 0.5) / 20)
    scale = {"domain": [floor, 1], "nice": False, "zero": False, "clamp": True}
    return {"type": "quantitative", "scale": scale}


def _unit(longest_ms: int) -> tuple[str, int]:
    if longest_ms >= 3 * 3_600_000:
        return "hours", 3_600_000
    return ("minutes", 60_000) if longest_ms >= 3 * 60_000 else ("seconds", 1000)


def _percent(rate: float | None) -> str:
    return "nothing decided" if rate is None else f"{rate:.1%}"


def _told(parts: Iterable[str]) -> str:
    return "; ".join(parts)

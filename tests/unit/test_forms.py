"""Forms of reports: CSV is what Python's own module writes."""

import csv
import io
import random
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from etl.reports.forms import CSV_ROWS, CSV_VALUES, csv_lines

NOON = datetime(2024, 3, 1, 12, 0, 0, 123000, UTC)
NAMES = ("", " ", "plan", 'a "plan"', "a, b", "two\nlines\r", "ヘルプ", "=sum")


def a_row(dice: random.Random, number: int) -> tuple[Any, ...]:
    return (
        dice.choice(NAMES),
        f"run {number}",
        dice.choice([None, *range(3 * CSV_VALUES)]),
        dice.choice([None, 0.0, 1.0, 1 / 3, dice.random()]),
        dice.choice([None, True, False]),
        dice.choice([None, NOON + number * timedelta(minutes=1)]),
        dice.choice([None, NOON.date()]),
    )


def plain_cells(row: tuple[Any, ...]) -> list[Any]:
    """Return the cells of a row as texts, by the rules of docs/REPORTS.md."""
    texts = []
    for value in row:
        if isinstance(value, bool):
            texts.append("true" if value else "false")
        elif isinstance(value, datetime):
            texts.append(value.strftime("%Y-%m-%dT%H:%M:%S.123Z"))
        elif isinstance(value, date):
            texts.append(value.strftime("%Y-%m-%d"))
        else:
            texts.append(value)
    return texts


@pytest.mark.parametrize("rows", [0, 1, CSV_ROWS, 3 * CSV_ROWS + 1, 3 * CSV_VALUES])
def test_lines_of_csv_are_those_of_the_csv_module(rows: int) -> None:
    dice = random.Random(rows)
    made = [a_row(dice, number) for number in range(rows)]
    expected = io.StringIO()
    csv.writer(expected).writerows(map(plain_cells, made))
    assert "".join(f"{line}\r\n" for line in csv_lines(made, raw=True)) == expected.getvalue()


def test_formulas_and_control_characters_are_made_harmless() -> None:
    texts = ("=1+1", "+1", "-1", "@x", "a\nb", '"', "")
    [line] = csv_lines([texts], raw=False)
    assert line == "'=1+1,'+1,'-1,'@x,a\\nb,\"\"\"\","

"""The program keeps to the bounds of its design, so that a newcomer finds a way through it."""

import tomllib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.support.source import (
    PACKAGE,
    ROOT,
    Graph,
    circle,
    floors,
    idioms,
    module_arrows,
    modules_in,
    patches,
    references,
    repeated_class_names,
    repeated_module_names,
    room_arrows,
    texts_for_people,
)

ETL = ROOT / PACKAGE
TESTS = ROOT / "tests"
CONTRACTS: list[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
    "importlinter"
]["contracts"]

MOST_ROOMS = 25
MOST_ARROWS = 115
MOST_FLOORS = 11
MOST_LAYERS = 12
MOST_LINES = 450
MOST_CLOCK_READINGS = 6
TABLE_DECLARATIONS = ETL / "db" / "schema.py"

PURE = (
    "etl.answers",
    "etl.archive.history",
    "etl.archive.pairing",
    "etl.derived.metrics",
    "etl.fetch.breaker",
    "etl.intake.formats",
    "etl.ledger.lifecycle",
    "etl.ledger.verdicts",
)
"""They give the same output for the same input: their contract forbids I/O and the clock."""
IMPURE = {
    "etl.clock", "logging", "os", "pathlib", "requests", "socket", "sqlalchemy", "threading",
    "time",
}  # fmt: skip

CLOCKS = (
    "etl.clock.now",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
    "time.time",
    "time.time_ns",
)

IDIOMS_BEFORE = 319
"""The idioms that these counters found in the program at commit 13a9e19."""


@pytest.fixture(scope="module")
def modules() -> Graph:
    return module_arrows()


@pytest.fixture(scope="module")
def rooms(modules: Graph) -> Graph:
    return room_arrows(modules)


def test_rooms_are_few(rooms: Graph) -> None:
    assert len(rooms) <= MOST_ROOMS, listing(rooms)


def test_arrows_between_rooms_are_few(rooms: Graph) -> None:
    arrows = [f"{room} -> {other}" for room, others in rooms.items() for other in sorted(others)]
    assert len(arrows) <= MOST_ARROWS, listing(arrows)


def test_floors_are_few(rooms: Graph) -> None:
    assert floors(rooms) <= MOST_FLOORS


def test_no_modules_import_each_other_in_a_circle(modules: Graph, rooms: Graph) -> None:
    assert circle(modules) == []
    assert circle(rooms) == []


def test_layers_are_few() -> None:
    [layers] = [contract["layers"] for contract in CONTRACTS if contract["type"] == "layers"]
    assert len(layers) <= MOST_LAYERS


def test_a_module_fits_into_a_readers_head() -> None:
    lengths = {
        path: len(path.read_text(encoding="utf-8").splitlines())
        for path in modules_in(ETL)
        if path != TABLE_DECLARATIONS
    }
    long = [f"{place(path)}: {lines}" for path, lines in lengths.items() if lines > MOST_LINES]
    assert not long, listing(long)


def test_a_module_name_stands_for_one_thing() -> None:
    repeated = repeated_module_names(ETL)
    assert not repeated, listing(f"{name}: {files}" for name, files in repeated.items())


def test_a_class_name_stands_for_one_thing() -> None:
    repeated = repeated_class_names(ETL)
    assert not repeated, listing(f"{name}: {places}" for name, places in repeated.items())


def test_the_clock_is_read_where_a_command_or_a_pass_begins() -> None:
    readings = [
        f"{place(path)}:{line}"
        for path in modules_in(ETL)
        if path != ETL / "clock.py"
        for line in references(path.read_text(encoding="utf-8"), *CLOCKS)
    ]
    assert len(readings) <= MOST_CLOCK_READINGS, listing(readings)


def test_the_pure_modules_are_under_contract(modules: Graph) -> None:
    """`lint-imports` holds the contract; this test holds its lists."""
    sources = [
        source
        for contract in CONTRACTS
        if contract["type"] == "forbidden" and set(contract["forbidden_modules"]) >= IMPURE
        for source in contract["source_modules"]
    ]
    assert [name for name in PURE if name not in modules] == []
    assert [name for name in members(PURE, modules) if not is_within(name, sources)] == []


def members(packages: Collection[str], modules: Graph) -> list[str]:
    """Return the given modules and those in the given packages, but for the empty __init__."""
    return sorted(
        name
        for name in modules
        if is_within(name, packages) and not any(other.startswith(f"{name}.") for other in modules)
    )


def is_within(name: str, packages: Collection[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_tests_patch_nothing_of_ours() -> None:
    """Whatever a test changes (pauses, sizes, the clock, the way of fetching) is an argument."""
    found = [
        f"{place(path)}:{line}: {target}"
        for path in sorted(TESTS.rglob("*.py"))
        for line, target in patches(path.read_text(encoding="utf-8"))
    ]
    assert not found, listing(found)


def test_the_language_needs_no_deciphering() -> None:
    found = [
        (f"{place(path)}: {count} of {pattern} in: {text!r}", count)
        for path, text in texts_for_people(ETL)
        for pattern, count in idioms([text]).items()
        if count
    ]
    total = sum(count for _, count in found)
    assert total <= IDIOMS_BEFORE // 10, listing(line for line, _ in found)


def place(path: Path) -> str:
    return str(path.relative_to(ROOT))


def listing(lines: Iterable[str]) -> str:
    """Return all lines, which pytest would abridge."""
    return "\n".join(["", *lines])

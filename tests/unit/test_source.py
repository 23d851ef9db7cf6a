"""The counts behind the bounds are right: small sources with known answers."""

from pathlib import Path

import pytest

from tests.support.source import (
    circle,
    floors,
    idioms,
    patches,
    references,
    repeated_class_names,
    repeated_module_names,
    room_arrows,
    texts_for_people,
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return tmp_path / "etl"


def write(package: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


# Imports


def test_rooms_are_the_packages_direct_children_and_count_an_arrow_once() -> None:
    modules = {
        "etl": set[str](),
        "etl.cli": set[str](),
        "etl.cli.app": {"etl", "etl.cli.words", "etl.db.tables", "etl.db.engine"},
        "etl.cli.words": {"etl.db.tables", "etl.clock"},
        "etl.db.tables": {"etl.clock"},
        "etl.db.engine": set[str](),
        "etl.clock": set[str](),
    }
    assert room_arrows(modules) == {"cli": {"db", "clock"}, "db": {"clock"}, "clock": set()}


def test_floors_are_the_longest_chain() -> None:
    assert floors({"a": {"b", "d"}, "b": {"c"}, "c": {"d"}, "d": set(), "e": {"d"}}) == 4


def test_a_circle_is_named() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}


# Names


def test_module_names_repeat_across_packages_and_modules(package: Path) -> None:
    empty = dict.fromkeys(
        [
            "__init__.py",
            "__main__.py",
            "ledger/__init__.py",
            "ledger/ledger.py",
            "reports/__init__.py",
            "reports/_source.py",
            "reports/__main__.py",
            "source.py",
            "clock.py",
        ],
        "",
    )
    write(package, empty)
    assert repeated_module_names(package) == {
        "ledger": ["ledger/__init__.py", "ledger/ledger.py"],
        "source": ["reports/_source.py", "source.py"],
    }


def test_class_names_repeat_whatever_their_underscores_and_nesting(package: Path) -> None:
    write(
        package,
        {
            "a.py": "class Row:\n    class Limits: ...\n",
            "b/c.py": "class _Row: ...\n\n\ndef limits():\n    class __Limits: ...\n",
            "d.py": "class Rows: ...\n",
        },
    )
    assert repeated_class_names(package) == {
        "Limits": ["a.py:2", "b/c.py:5"],
        "Row": ["a.py:1", "b/c.py:1"],
    }


# References


@pytest.mark.parametrize(
    "text",
    [
        "from etl import clock\nx = clock.now()",
        "from etl import clock as c\nx = c.now()",
        "import etl.clock\nx = etl.clock.now()",
        "from etl.clock import now\nx = now()",
        "from etl.clock import now as at\nx = at()",
        "from etl import clock\nx = Client(clock.now)",
    ],
)
def test_a_reference_is_found_however_it_is_imported(text: str) -> None:
    assert references(text, "etl.clock.now") == [2]


@pytest.mark.parametrize(
    "text",
    [
        "from etl import clock\nx = clock.later()",
        "from etl.sandbox.world_clock import Clock\nclock = Clock()\nx = clock.now()",
        "from etl.sandbox import clock\nx = clock.now()",
        "x = 'etl.clock.now'",
    ],
)
def test_another_objects_name_is_no_reference(text: str) -> None:
    assert references(text, "etl.clock.now") == []


# Patches

OURS = "from etl.fetch import dispatch\nfrom etl.db.database import Engine\n"


@pytest.mark.parametrize(
    ("patch", "target"),
    [
        ("monkeypatch.setattr(dispatch, 'PAUSE_S', 0)", "etl.fetch.dispatch"),
        ("monkeypatch.setattr(target=dispatch, name='PAUSE_S', value=0)", "etl.fetch.dispatch"),
        ("monkeypatch.setattr('etl.clock.now', f)", "etl.clock.now"),
        ("monkeypatch.delattr(Engine, 'close')", "etl.db.database.Engine"),
        ("monkeypatch.setitem(dispatch.TABLE, 'a', 1)", "etl.fetch.dispatch.TABLE"),
        ("setattr(dispatch, 'PAUSE_S', 0)", "etl.fetch.dispatch"),
        ("with monkeypatch.context() as p: p.setattr(Engine, 'x', 1)", "etl.db.database.Engine"),
        ("with patch('etl.clock.now'): pass", "etl.clock.now"),
        ("with mock.patch.object(dispatch, 'send'): pass", "etl.fetch.dispatch"),
        ("with unittest.mock.patch.dict(dispatch.TABLE): pass", "etl.fetch.dispatch.TABLE"),
        ("stack.enter_context(patch.multiple(dispatch, a=1))", "etl.fetch.dispatch"),
        ("@patch('etl.clock.now')\ndef test_it(): pass", "etl.clock.now"),
        ("monkeypatch.setitem(dic=dispatch.TABLE, name='a', value=1)", "etl.fetch.dispatch.TABLE"),
        ("dispatch.PAUSE_S = 0", "etl.fetch.dispatch.PAUSE_S"),
        ("dispatch.PAUSE_S += 1", "etl.fetch.dispatch.PAUSE_S"),
        ("dispatch.TABLE['a'] = 1", "etl.fetch.dispatch.TABLE"),
        ("del dispatch.TABLE['a']", "etl.fetch.dispatch.TABLE"),
        ("dispatch.PAUSE_S, x = 0, 1", "etl.fetch.dispatch.PAUSE_S"),
    ],
)
def test_a_patch_of_ours_is_found(patch: str, target: str) -> None:
    assert patches(OURS + patch) == [(3, target)]


@pytest.mark.parametrize(
    "text",
    [
        "monkeypatch.setattr(sys, 'stdin', stream)",
        "monkeypatch.setattr('time.sleep', f)",
        "monkeypatch.setenv('HOME', 'etl.home')",
        "mock.patch.dict(os.environ, {}, clear=True)",
        "with mock.patch.object(sys, 'stdin', new=Engine): pass",
        "answer = dispatch.patch_of(Engine)",
        "assert setting == 'etl.clock.now'",
        "engine = Engine()\nengine.url = 'sqlite://'",
    ],
)
def test_other_peoples_objects_and_values_are_no_patch(text: str) -> None:
    assert patches(f"import os, sys\n{OURS}{text}") == []


def test_a_patch_in_a_program_that_a_test_runs_is_found() -> None:
    program = '"""\n    import sys\n    from etl.fetch import dispatch\n    dispatch.X = 1\n    """'
    assert patches(f"PROGRAM = {program}") == [(4, "etl.fetch.dispatch.X")]


# Language


def test_idioms_are_counted_where_people_read_and_nowhere_else(package: Path) -> None:
    module = '''"""What is kept. Whoever asks gets so many rows."""

# There is none left, and what
# we count is counted anew; at the
# least twice.
WHAT = "What is this"
"""Let it be."""


def f():
    """
    Have rows be kept.

    Who asks: nobody.
    """
    return option("--x", help="So long as " "it is no page", epilog=f"Give what {WHAT} has")


def g():  # so what
    """Start: what has it?"""
'''
    write(package, {"a.py": module, "sql/b.sql": "-- What is due.\nSELECT 1 -- so much\n"})
    counts = idioms(text for _, text in texts_for_people(package))
    assert {pattern: count for pattern, count in counts.items() if count} == {
        r"\b[Ww]hat\s+(is|was|has|had|they|it|a|we|the)\b": 4,
        r"\b[Ss]o\s+(many|long|much|often)\b": 3,
        r"^(Have|Let)\s": 2,
        r"\banew\b": 1,
        r"\bat\s+the\s+(most|least)\b": 1,
        r"\b([Ww]hoever|Who)\s+\w+": 2,
        r"\bis\s+(no|none)\b": 2,
    }

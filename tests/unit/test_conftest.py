"""What conftest.py promises of each test's surroundings and of the closing line is true."""

import sqlite3

import pytest

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def ours(pytester: pytest.Pytester) -> None:
    """The test runs inside these tests use the same conftest."""
    pytester.makeconftest("from tests.conftest import *")


def test_the_closing_line_counts_only_tests_that_passed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        def test_passes(sqlite_url): pass
        def test_fails(sqlite_url): assert False
        def test_skips(sqlite_url): pytest.skip("no")
        def test_uses_no_database(): pass
    """)
    result = pytester.runpytest()
    result.stdout.fnmatch_lines([f"databases: 1 tests on SQLite {sqlite3.sqlite_version}"])


def test_the_closing_line_of_a_run_without_databases_says_so(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_uses_no_database(): pass")
    pytester.runpytest().stdout.fnmatch_lines(["databases: none"])


def test_our_variables_do_not_reach_a_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"APPLITOOLS_API_KEY", "RESULT_ARCHIVER__DATABASE__URL", "https_proxy", "PGPASSWORD"}
    for name in names:
        monkeypatch.setenv(name, "from outside")
    pytester.makepyfile(f"import os\ndef test_it(): assert not {names} & set(os.environ)")
    pytester.runpytest().assert_outcomes(passed=1)


def test_each_test_starts_in_an_empty_folder_with_an_empty_home(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from pathlib import Path

        def test_it(tmp_path):
            assert [*Path.cwd().iterdir(), *Path.home().iterdir()] == []
    """)
    pytester.runpytest().assert_outcomes(passed=1)

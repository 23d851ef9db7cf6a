"""conftest.py keeps its promises: each test's surroundings, the network, the closing line."""

import sqlite3

import pytest

from tests.support.loopback import is_loopback

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


def test_a_test_that_reaches_for_another_machine_fails_even_if_the_error_is_handled(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile("""
        import contextlib, socket

        def test_connects():
            with socket.socket() as connection, contextlib.suppress(OSError):
                connection.connect(("192.0.2.1", 443))

        def test_connects_over_ipv6():
            with socket.socket(socket.AF_INET6) as connection, contextlib.suppress(OSError):
                connection.connect_ex(("2001:db8::1", 443))

        def test_sends_a_datagram():
            with socket.socket(type=socket.SOCK_DGRAM) as connection, contextlib.suppress(OSError):
                connection.sendto(b"", ("192.0.2.1", 53))

        def test_looks_a_name_up():
            with contextlib.suppress(OSError):
                socket.create_connection(("api.example.com", 443))
    """)
    result = pytester.runpytest()
    result.assert_outcomes(passed=4, errors=4)
    for refused in (
        "socket.connect 192.0.2.1:443",
        "socket.connect 2001:db8::1:443",
        "socket.sendto 192.0.2.1:53",
        "socket.getaddrinfo api.example.com",
    ):
        message = f"{refused}: tests may reach this machine only; give 127.0.0.1"
        result.stdout.fnmatch_lines([message])


def test_a_test_may_reach_this_machine(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import socket

        def test_tcp():
            with socket.create_server(("localhost", 0)) as server:
                socket.create_connection(server.getsockname()).close()

        def test_unix(tmp_path):
            with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
                server.bind(str(tmp_path / "s"))
                server.listen()
                client.connect(str(tmp_path / "s"))

        def test_socketpair():
            one, other = socket.socketpair()
            with one, other:
                one.sendall(b"x")
    """)
    pytester.runpytest().assert_outcomes(passed=3)


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", b"127.0.0.1"]
)
def test_loopback_has_these_names(host: str | bytes) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "192.0.2.1", "::", "::ffff:192.0.2.1", "localhost.example", "", b"x"]
)
def test_these_are_not_loopback(host: str | bytes) -> None:
    assert not is_loopback(host)

"""The PostgreSQL of these tests is a real one, and each test has a database of its own."""

from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, make_url, text
from sqlalchemy.exc import OperationalError

from tests.support.postgres import Server, find_programs


def ask(url: str, question: str) -> object:
    """Return the first column of the first row of the answer."""
    engine = create_engine(url)
    with engine.connect() as connection:
        answer = connection.scalar(text(question))
    engine.dispose()
    return answer


def test_the_server_is_postgresql_15_or_newer(postgresql: Server) -> None:
    assert int(postgresql.version.split(".")[0]) >= 15


def test_a_database_is_empty(postgresql_url: str) -> None:
    engine = create_engine(postgresql_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_two_databases_share_nothing(postgresql: Server) -> None:
    with postgresql.database() as one, postgresql.database() as other:
        engine = create_engine(one)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE ours (id BIGINT)"))
        engine.dispose()
        assert ask(other, "SELECT to_regclass('ours')") is None


def test_a_database_is_dropped_even_while_somebody_is_connected(postgresql: Server) -> None:
    with postgresql.database() as url:
        engine = create_engine(url)
        connection = engine.connect()
        connection.execute(text("SELECT 1"))
    with postgresql.administer() as admin:
        names = {name for (name,) in admin.execute("SELECT datname FROM pg_database")}
    assert make_url(url).database not in names
    connection.invalidate()
    connection.close()
    engine.dispose()


def test_our_role_is_no_superuser(postgresql_url: str) -> None:
    question = "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
    assert ask(postgresql_url, question) is False


def test_a_wrong_password_is_refused(postgresql_url: str) -> None:
    wrong = make_url(postgresql_url).set(password="guess").render_as_string(hide_password=False)
    with pytest.raises(OperationalError, match="password authentication failed"):
        ask(wrong, "SELECT 1")


def test_texts_sort_as_people_sort_them_not_by_byte(postgresql_url: str) -> None:
    assert ask(postgresql_url, "SELECT 'b' < 'C'") is True


def test_a_machine_without_postgresql_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LookupError, match="apt-get install postgresql"):
        find_programs(debian=tmp_path)

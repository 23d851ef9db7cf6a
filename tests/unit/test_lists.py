"""Run lists from files, standard input and watched folders."""

import glob
import io
import os
import sys
import threading
from pathlib import Path

import pytest

from etl.config.settings import Config, Runs, Source
from etl.errors import UsageError
from etl.intake import arguments, lists
from etl.intake.entries import ListedRun
from etl.secrets.vault import TokenVault

EU = Config(sources={"default": Source(), "eu": Source(key_env="EU_API_KEY")})


def watching(*patterns: str) -> Config:
    return Config(sources={"default": Source()}, runs=Runs([str(Path.cwd() / p) for p in patterns]))


def ids(given: lists.Given) -> list[str]:
    return [run.run_id for run in given.runs]


def write(name: str, content: str) -> Path:
    path = Path.cwd() / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def listed(run_id: str, token: str | None = None, **labels: str) -> ListedRun:
    return ListedRun(run_id, read_token=token, labels=labels)


# --- lists that are given ---


def test_lists_are_read_in_the_order_in_which_they_are_given() -> None:
    write("b.txt", "r2\n")
    write("a.csv", "run_id,branch\nr1,main\n")
    assert list(lists.read(["b.txt", "a.csv"], EU).runs) == [
        listed("r2"),
        listed("r1", branch="main"),
    ]


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfr1\r\n")))
    assert ids(lists.read(["-"], EU)) == ["r1"]


def test_a_bad_line_is_told_with_its_place_and_the_rest_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("a.txt", "r1\n..\nr2\n")
    given = lists.read(["a.txt"], EU)
    assert (ids(given), given.bad_lines) == (["r1", "r2"], 1)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("a.txt:2: ")


def test_a_run_of_a_source_that_is_not_configured_counts_as_a_bad_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write("a.csv", "run_id,source\nr1,eu\nr2,us\n")
    given = lists.read(["a.csv"], EU)
    assert (ids(given), given.bad_lines) == (["r1"], 1)
    assert capsys.readouterr().err == (
        "a.csv:3: run r2: source us is not configured; there are default, eu\n"
    )


def test_a_list_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"^a\.txt: cannot be read: No such file or directory$"):
        lists.read(["a.txt"], EU)


@pytest.mark.parametrize("count", [2, 40_000])
def test_a_named_pipe_is_opened_once(count: int) -> None:
    os.mkfifo("pipe")
    content = "".join(f"run-{number}\n" for number in range(count))
    writer = threading.Thread(target=lambda: Path("pipe").write_text(content))
    writer.start()
    assert len(ids(lists.read(["pipe"], EU))) == count
    writer.join()


def test_a_pipe_of_the_shell_is_opened_once() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"r1\nr2\n")
    os.close(writing)
    assert ids(lists.read([f"/dev/fd/{reading}"], EU)) == ["r1", "r2"]
    os.close(reading)


def test_a_list_that_is_named_twice_is_read_once() -> None:
    write("a.txt", "r1\n")
    assert ids(lists.read(["a.txt", "a.txt"], EU)) == ["r1"]


def test_no_list_is_begun_with_if_another_cannot_be_read() -> None:
    write("a.txt", "r1\n")
    Path("folder").mkdir()
    with pytest.raises(UsageError, match=r"^folder: cannot be read: Is a directory$"):
        lists.read(["a.txt", "folder"], EU)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("r1\n\u200br2\nr3\u200b\n", 2),
        ("run_id,read_token\nr1,to\u2060ken\nr2,\nr3,\n", 2),
        ('[\n"r1\ufeff",\n"r2", "r3"]', 2),
    ],
)
def test_invisible_characters_are_removed_and_said_once(
    content: str, place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.txt", content)
    given = lists.read(["a.txt"], EU)
    assert (ids(given), given.bad_lines) == (["r1", "r2", "r3"], 0)
    assert capsys.readouterr().err == (
        f"a.txt:{place}: invisible characters removed, here and further down\n"
    )


@pytest.mark.parametrize("run_id", ["\u200br1", "r\u00ad1", "r1\ufeff"])
def test_invisible_characters_of_an_argument_are_removed_and_said(
    run_id: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = arguments.Wanted([run_id], [], None, [])
    assert ids(arguments.read(wanted, EU)) == ["r1"]
    assert "invisible characters removed" in capsys.readouterr().err


# --- lists that are watched ---


def test_every_file_that_a_pattern_names_now_is_read_once() -> None:
    config = watching("runs/*.txt", "runs/a*", "more.csv")
    assert ids(lists.read_watched(config)) == []
    write("runs/b.txt", "r2\n")
    write("runs/a.txt", "r1\n")
    write("runs/c.md", "r3\n")
    assert ids(lists.read_watched(config)) == ["r1", "r2"]
    write("more.csv", "run_id\nr4\n")
    assert ids(lists.read_watched(config)) == ["r4", "r1", "r2"]


def test_a_watched_file_that_cannot_be_read_is_told_and_the_others_are_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write("runs/b.txt", "r2\n").with_name("a.txt")
    folder.mkdir()
    gone = folder.with_name("c.txt")
    gone.symlink_to("nowhere")
    given = lists.read_watched(watching("runs/*.txt"))
    assert ids(given) == ["r2"]
    told = capsys.readouterr().err
    assert f"{folder}: cannot be read: Is a directory\n" in told
    assert given.bad_lines == len(told.splitlines())


@pytest.mark.parametrize("name", ["runs.tx", "lists/*.csv", "nowhere/runs.txt", "[ab].txt"])
def test_a_source_that_names_no_file_is_a_warning(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("runs.txt", "r1\n")
    config = watching("runs.txt", name)
    missing = f"{Path.cwd()}/{name}"
    assert lists.find_missing(config) == [missing]
    given = lists.read_watched(config)
    assert (ids(given), given.bad_lines) == (["r1"], 0)
    assert capsys.readouterr().err == (
        f"warning: runs.sources: {missing}: there is no such file; nothing was read\n"
    )


@pytest.mark.parametrize("name", ["runs [prod].txt", "a*b.txt", "[x].txt", "what?.txt"])
def test_a_file_may_have_a_pattern_for_its_name(name: str) -> None:
    write(name, "r1\n")
    config = watching(name)
    assert (lists.find_missing(config), ids(lists.read_watched(config))) == ([], ["r1"])


def test_the_folder_of_a_pattern_is_shown_as_it_is() -> None:
    config = Config(sources={}, runs=Runs([f"{glob.escape('/conf [prod]/a*')}/*.txt"]))
    assert lists.find_missing(config) == ["/conf [prod]/a*/*.txt"]


def test_a_watched_pipe_does_not_block_a_pass(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("runs.txt")
    given = lists.read_watched(watching("*.txt"))
    assert (ids(given), given.bad_lines) == ([], 1)
    assert capsys.readouterr().err.endswith("cannot be read: is a pipe; give it as --from\n")


# --- what the ledger gets ---


def test_a_run_that_comes_twice_is_one_entry_and_the_later_one_wins(tmp_path: Path) -> None:
    vault = TokenVault(f"{tmp_path}/token.key")
    [entry] = lists.entries(
        [
            ListedRun("r1", "eu", "token-0", {"branch": "main", "build": "1"}),
            listed("r1", "token-1"),
            listed("r1", build="2"),
        ],
        vault,
    )
    assert (entry.source, entry.labels) == ("eu", {"branch": "main", "build": "2"})
    assert entry.read_token is not None
    assert "token-1" not in entry.read_token
    assert vault.decrypt(entry.read_token).reveal() == "token-1"


def test_runs_without_a_token_need_no_key_file(tmp_path: Path) -> None:
    lists.entries([listed("r1")], TokenVault(f"{tmp_path}/token.key"))
    assert list(tmp_path.iterdir()) == []

"""Files that we write: whole, through links, over nothing that is not ours."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from etl.files import ForeignFileError, create_once, write_whole


def accept(_file: Path) -> bool:
    return True


def refuse(_file: Path) -> bool:
    return False


def write(target: Path, text: str) -> None:
    with write_whole({target: accept}) as [draft]:
        draft.write_text(text)


# --- whole or not at all --------------------------------------------------------------------


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    with write_whole({target: accept}) as [draft]:
        draft.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_all_old_files_and_nothing_else(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("old")
    with (
        pytest.raises(FileNotFoundError),
        write_whole({one: accept, other: accept}) as [draft, _never_written],
    ):
        draft.write_text("new")
    assert one.read_text() == "old"
    assert list(tmp_path.iterdir()) == [one]


@pytest.mark.parametrize(
    "leftover",
    [f".page.html.{os.getpid()}.part", ".page.html.part", "page.html.part", ".page.html.1.part"],
    ids=["of this process", "hidden", "plain", "of another process"],
)
@pytest.mark.parametrize("is_folder", [False, True])
def test_what_a_killed_process_left_behind_does_no_harm(
    tmp_path: Path, leftover: str, is_folder: bool
) -> None:
    if is_folder:
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "page.html").write_text("half")
    else:
        (tmp_path / leftover).write_text("half")
    write(tmp_path / "page.html", "new")
    assert (tmp_path / "page.html").read_text() == "new"


def test_two_writers_at_once_leave_the_file_of_the_last_one(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    with write_whole({target: accept}) as [first], write_whole({target: accept}) as [second]:
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"


@pytest.mark.parametrize("name", ["x" * 255, "größe" * 36, "with\nline", "-n", "a%20b?#"])
def test_any_name_that_a_file_can_have_will_do(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, "new")
    assert (tmp_path / name).read_text() == "new"


def test_a_replaced_file_keeps_its_permissions_and_a_new_one_has_those_of_new_files(
    tmp_path: Path,
) -> None:
    private, new = tmp_path / "private", tmp_path / "new"
    private.touch(mode=0o600)
    (tmp_path / "usual").touch()
    write(private, "a")
    write(new, "b")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private", "new", "usual")]
    assert modes == [0o600, modes[2], modes[2]]


# --- links, pipes, devices ------------------------------------------------------------------


@pytest.mark.parametrize("links", [1, 2, 5])
@pytest.mark.parametrize("is_dangling", [False, True])
def test_links_stay_and_the_file_at_their_end_is_written(
    tmp_path: Path, links: int, is_dangling: bool
) -> None:
    (tmp_path / "www").mkdir()
    page = tmp_path / "www" / "page.html"
    if not is_dangling:
        page.write_text("old")
    target: Path = Path("www/page.html")
    for number in range(links):
        (tmp_path / f"link-{number}").symlink_to(target)
        target = Path(f"link-{number}")
    write(tmp_path / target, "new")
    assert page.read_text() == "new"
    assert not page.is_symlink()
    assert all((tmp_path / f"link-{number}").is_symlink() for number in range(links))


def test_a_link_to_a_folder_of_the_target_is_followed(tmp_path: Path) -> None:
    (tmp_path / "2026").mkdir()
    (tmp_path / "latest").symlink_to("2026")
    write(tmp_path / "latest" / "page.html", "new")
    assert (tmp_path / "2026" / "page.html").read_text() == "new"


@pytest.mark.parametrize(
    ("target", "number"),
    [
        ("loop", errno.ELOOP),
        ("to-folder", errno.EISDIR),
        ("folder", errno.EISDIR),
        ("to-nowhere", errno.ENOENT),
        ("x" * 300, errno.ENAMETOOLONG),
    ],
)
def test_a_target_that_cannot_be_written_is_an_error(
    tmp_path: Path, target: str, number: int
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-folder").symlink_to("folder")
    (tmp_path / "to-nowhere").symlink_to("no/such/folder/page.html")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match=os.strerror(number)):
        write(tmp_path / target, "new")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("is_link", [False, True])
def test_a_pipe_is_written_straight(tmp_path: Path, is_link: bool) -> None:
    pipe = target = tmp_path / "pipe"
    os.mkfifo(pipe)
    if is_link:
        target = tmp_path / "link"
        target.symlink_to("pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write(target, "new")
    reader.join()
    assert read == ["new"]
    assert pipe.is_fifo()


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_a_device_is_written_straight_and_stays(device: str) -> None:
    if device == "/dev/full":
        with pytest.raises(OSError, match="No space left"):
            write(Path(device), "new")
    else:
        write(Path(device), "new")
    assert Path(device).is_char_device()


# --- what is not ours -----------------------------------------------------------------------


@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_that_is_not_ours_is_named_and_stays(tmp_path: Path, is_link: bool) -> None:
    target = tmp_path / "runs.csv"
    if is_link:
        (tmp_path / "list").write_text("mine")
        target.symlink_to("list")
    else:
        target.write_text("mine")
    new = tmp_path / "new.csv"
    message = f"^{target}: exists, and was not written by this command"
    with (
        pytest.raises(ForeignFileError, match=message),
        write_whole({new: refuse, target: refuse}),
    ):
        raise AssertionError("nothing may be written")
    assert target.read_text() == "mine"
    assert not new.exists()


def test_an_empty_file_has_nothing_to_lose(tmp_path: Path) -> None:
    (tmp_path / "page").touch()
    with write_whole({tmp_path / "page": refuse}) as [draft]:
        draft.write_text("new")
    assert (tmp_path / "page").read_text() == "new"


# --- a file that is made once ---------------------------------------------------------------


@pytest.fixture(params=[None, errno.ENOTSUP, errno.EPERM, errno.ENOSYS, errno.EMLINK])
def link_error(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int | None:
    """The error with which a drive without hard links refuses one; None: it has them."""
    number: int | None = request.param
    if number is not None:

        def fail(*_paths: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "link", fail)
    return number


@pytest.mark.usefixtures("link_error")
def test_a_file_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    create_once(tmp_path / "token.key", b"key\n")
    assert (tmp_path / "token.key").read_bytes() == b"key\n"
    assert stat.S_IMODE((tmp_path / "token.key").stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [tmp_path / "token.key"]


@pytest.mark.usefixtures("link_error")
def test_the_file_of_another_process_stays(tmp_path: Path) -> None:
    (tmp_path / "token.key").write_bytes(b"theirs\n")
    create_once(tmp_path / "token.key", b"ours\n")
    assert (tmp_path / "token.key").read_bytes() == b"theirs\n"


@pytest.mark.usefixtures("link_error")
def test_of_many_that_make_it_at_once_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "token.key"
    contents = [b"%d" % number * 1000 for number in range(8)]
    threads = [threading.Thread(target=create_once, args=(target, each)) for each in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [target]

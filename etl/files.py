"""Write files whole or not at all, for readers that may open them at any moment."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

MAX_LINKS = 40
"""The kernel follows as many symbolic links in one path."""

IsOurs = Callable[[Path], bool]
"""Tells whether an existing file was written by us, so that it may be replaced."""


class ForeignFileError(Exception):
    """A target exists and was not written by us: it stays as it is."""

    def __init__(self, target: Path) -> None:
        super().__init__(
            f"{target}: exists, and was not written by this command; move it away, or give"
            " another name"
        )


@contextmanager
def write_whole(targets: Mapping[Path, IsOurs]) -> Iterator[list[Path]]:
    """Give a path for each target to write a new file to.

    An existing target is replaced only if its check says that it is an earlier output of ours.

    At the end, when all of them are safe on the disk, they replace the targets; on any error they
    are removed, and the targets stay as they were. A symbolic link stays, and the file that it
    leads to is replaced. A pipe or a device cannot be replaced: its own path is given.

    Raises:
        ForeignFileError: a target exists that may not be replaced.
        OSError: a file cannot be written, or a target is a folder.
    """
    places = [_follow_links(target) for target in targets]
    for (target, is_ours), place in zip(targets.items(), places, strict=True):
        _require_replaceable(target, place, is_ours)
    with ExitStack() as folders:
        drafts: dict[Path, Path] = {}  # of each folder, a new one in it
        paths = []
        for place in places:
            if is_stream(place):
                paths.append(place)
                continue
            if place.parent not in drafts:
                drafts[place.parent] = Path(folders.enter_context(_temporary_folder(place)))
            paths.append(drafts[place.parent] / place.name)
        yield paths
        written = [pair for pair in zip(paths, places, strict=True) if pair[0] != pair[1]]
        for path, place in written:
            _sync(path)
            with suppress(FileNotFoundError):  # a new file has the permissions of any new file
                shutil.copymode(place, path)
        for path, place in written:
            path.replace(place)


def create_once(target: Path, content: bytes) -> None:
    """Create `target`, readable by its owner alone; leave a file that is there as it is.

    A hard link makes the file whole or not at all. On a drive without hard links (SMB, FAT) the
    name is claimed by an empty file, which the whole one replaces at once.

    Raises:
        OSError: the file cannot be written.
    """
    with _temporary_folder(target) as folder:
        draft = Path(folder, target.name)
        draft.touch(mode=0o600)
        draft.write_bytes(content)
        _sync(draft)
        try:
            os.link(draft, target)
        except FileExistsError:
            return
        except OSError:
            with suppress(FileExistsError):
                target.touch(mode=0o600, exist_ok=False)
                draft.replace(target)


def is_stream(path: Path) -> bool:
    """Tell whether `path` is a pipe, a device or an open file of a process: nothing to replace."""
    if _is_device_folder(path.parent):
        return True
    with suppress(OSError):
        mode = path.stat().st_mode
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


def _follow_links(target: Path) -> Path:
    """Return the path that symbolic links lead to, whether or not there is a file.

    A link such as /dev/stdout is not followed: the file that it stands for is open already.
    """
    path = target
    for _ in range(MAX_LINKS):
        if _is_device_folder(path.parent) or not path.is_symlink():
            return path
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(target))


def _is_device_folder(folder: Path) -> bool:
    real = os.path.realpath(folder)
    return real == "/dev" or real.startswith("/proc/")


def _require_replaceable(target: Path, place: Path, is_ours: IsOurs) -> None:
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not is_stream(place) and place.exists() and place.stat().st_size and not is_ours(place):
        raise ForeignFileError(target)


def _temporary_folder(place: Path) -> "TemporaryDirectory[str]":
    """Make a folder of a random name beside `place`; one left by a killed process does no harm."""
    return TemporaryDirectory(prefix=f".{place.name[:40]}.", suffix=".part", dir=place.parent)


def _sync(path: Path) -> None:
    with path.open("rb") as opened:
        os.fsync(opened.fileno())

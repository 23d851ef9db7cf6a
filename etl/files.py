"""Write files whole or not at all, for readers that may open them at any moment."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def finished(targets: Sequence[Path]) -> Iterator[list[Path]]:
    """Give a path beside each of `targets` to write a new file to.

    At the end, when all of them are safe on the disk, they take the places of `targets`; on any
    error they are removed, and what was there stays.

    Raises:
        OSError: one of them cannot be written, or a target is a folder.
    """
    for target in targets:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    unfinished = [target.with_name(f".{target.name}.{os.getpid()}.part") for target in targets]
    try:
        yield unfinished
        for file in unfinished:
            _save(file)
        for file, target in zip(unfinished, targets, strict=True):
            file.replace(target)
    finally:
        for file in unfinished:
            file.unlink(missing_ok=True)


def _save(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())

"""Files written whole or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

# A file in the making has a name of its own and is locked, so that another process sees whether its maker is alive.
_PREFIX = ".lux_sciml-"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A new file, which takes the place of another one, and its permissions, at the end; of a link's target."""
    target = FilePath(os.path.realpath(path))
    old = target.stat() if target.exists() else None
    if old is not None and not stat.S_ISREG(old.st_mode):
        what = "a folder" if target.is_dir() else "something else"
        raise ValueError(
            f"{os.fspath(path)!r} is no file that a new one could replace, but {what}: choose another path"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(target.parent))
    _remove_left_over(target.parent)
    temporary, file = _new_file(target.parent)
    try:
        with file:
            yield file
            file.flush()
            if old is not None:
                _keep_permissions(target, temporary, old)
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no open files
            os.replace(temporary, target)
        _sync(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(folder: FilePath) -> None:
    """Put the names in a folder on the disk, where that can be done: else a power cut may undo a renaming."""
    if fcntl is None:
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _new_file(folder: FilePath) -> tuple[FilePath, BinaryIO]:
    while True:
        path = folder / f"{_PREFIX}{secrets.token_hex(8)}"
        file = open(path, "xb")
        _lock(file, wait=True)
        if path.exists():  # and was not removed as left over before it was locked
            return path, file
        file.close()


def _remove_left_over(folder: FilePath) -> None:
    """Remove what killed processes left in a folder: files with our names that nobody has locked."""
    paths = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        ours = [entry for entry in entries if entry.name.startswith(_PREFIX)]
        paths = [entry.path for entry in ours if entry.is_file(follow_symlinks=False)]
    for path in paths:
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if _lock(file, wait=False):
                os.unlink(path)


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Whether a file's lock is ours now, until it is closed or the process ends; never where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _keep_permissions(old_path: FilePath, new_path: FilePath, old: os.stat_result) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another owner: for the superuser only
        os.chown(new_path, old.st_uid, old.st_gid)
    shutil.copymode(old_path, new_path)

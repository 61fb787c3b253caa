"""Directories that appear complete or not at all: checks, locks, reserved space, and the final exchange."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
from pathlib import Path

__all__ = ["check_target", "exchange", "lock", "remove_abandoned", "reserve", "sync"]


def check_target(out: Path, *, overwrite: bool, source: Path | None) -> None:
    """Refuse a target directory before any work; the errors are those of `CheckpointWriter`."""
    if source is not None:
        origin = source.resolve()
        if out == origin or origin in out.parents or out in origin.parents:
            raise ValueError(f"out must lie apart from the source directory {str(origin)!r}, got {str(out)!r}")
    if not out.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the directory that out goes into does not exist", str(out.parent))
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "the directory that out goes into is not writable", str(out.parent))
    if out.exists():
        if not overwrite:
            raise FileExistsError(errno.EEXIST, "out already exists (pass overwrite to replace it)", str(out))
        # A wrong path must not cost someone a home directory.
        if not out.is_dir() or (any(out.iterdir()) and not (out / "config.json").is_file()):
            raise ValueError(
                f"out must be a checkpoint directory to be overwritten, got {str(out)!r}, which has no config.json"
            )


def remove_abandoned(out: Path) -> None:
    """Remove what killed runs for the same target left beside it: directories whose lock no process holds."""
    for directory in out.parent.glob(f".{glob.escape(out.name)}.tensorfact-*"):
        descriptor = lock(directory)
        if descriptor is not None:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)


def lock(directory: Path) -> int | None:
    """Lock a directory until the descriptor is closed or the process ends; None where it is taken or not possible."""
    try:
        import fcntl

        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def reserve(descriptor: int, size: int) -> None:
    """Give a file its final size, taking the space on disk now where the file system can."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(descriptor, size)


def sync(path: Path) -> None:
    """Flush a file or directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def exchange(new: Path, old: Path) -> None:
    """Swap two directories, in one step where the kernel can (Linux), else in two renames with a way back."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    if rename is not None and rename(-100, os.fsencode(new), -100, os.fsencode(old), 2) == 0:
        return
    aside = new.with_name(new.name + "-old")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except BaseException:
        os.rename(aside, old)
        raise
    os.rename(aside, new)

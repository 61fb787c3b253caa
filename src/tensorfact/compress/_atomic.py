"""Directories that appear complete or not at all: checks, locks, reserved space, and the final exchange."""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import secrets
import shutil
from pathlib import Path

__all__ = [
    "check_replaceable",
    "check_target",
    "exchange",
    "make_hidden",
    "remove_abandoned",
    "replace_text",
    "reserve",
    "sync",
]

# What checkpoints consist of. A directory that holds anything else may be someone's work.
_KNOWN = (".safetensors", ".json", ".jsonl", ".txt", ".model", ".tiktoken", ".jinja", ".md", ".py", ".html", ".bin")
_KNOWN_NAMES = ("LICENSE", "NOTICE", "README", ".gitattributes")


def check_target(out: Path, *, overwrite: bool, source: Path | None) -> None:
    """Refuse a target directory before any work; the errors are those of `CheckpointWriter`.

    A target that a killed run had put aside is put back first.
    """
    if source is not None:
        origin = source.resolve()
        if out == origin or origin in out.parents or out in origin.parents or _leads_into(origin, out):
            raise ValueError(
                f"out must lie apart from the source directory {str(origin)!r} and what its links lead to, "
                f"got {str(out)!r}"
            )
    if not out.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the directory that out goes into does not exist", str(out.parent))
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "the directory that out goes into is not writable", str(out.parent))
    _put_back(out)
    if out.exists():
        if not overwrite:
            raise FileExistsError(errno.EEXIST, "out already exists (pass overwrite to replace it)", str(out))
        check_replaceable(out)


def check_replaceable(out: Path) -> None:
    """Refuse to replace what is not a checkpoint: a wrong path must not cost someone a home directory.

    Raises
    ------
    ValueError
        If `out` is neither empty, nor written by this library, nor a checkpoint and nothing else.
    """
    reason = "is no directory"
    if out.is_dir():
        record, config = _json(out / "tensorfact.json"), _json(out / "config.json")
        if ("format_version" in record and "digest" in record) or not any(out.iterdir()):
            return
        files = [Path(root) / name for root, _, names in os.walk(out) for name in names]
        strange = sorted(
            str(f.relative_to(out)) for f in files if f.suffix not in _KNOWN and f.name not in _KNOWN_NAMES
        )
        if not config.get("model_type") or not any(out.glob("*.safetensors")):
            reason = "which has no config.json with a model_type beside a safetensors file"
        elif strange:
            reason = f"which also holds {', '.join(strange[:3])}"
        else:
            return
    raise ValueError(f"out must be a checkpoint directory to be overwritten, got {str(out)!r}, {reason}")


def make_hidden(out: Path) -> tuple[Path, int | None]:
    """Make a directory beside `out` that `remove_abandoned` knows; it is kept while the descriptor is open."""
    directory = out.parent / f".{out.name}.tensorfact-{secrets.token_hex(4)}"
    # Locked before it gets its name, or another run for the same target could take it for abandoned.
    fresh = directory.with_name(directory.name + "-new")
    try:
        fresh.mkdir()
    except OSError as error:
        raise OSError(error.errno, f"out cannot be created: {error.strerror}", str(out.parent)) from error
    descriptor = lock(fresh)
    os.rename(fresh, directory)
    return directory, descriptor


def remove_abandoned(out: Path) -> None:
    """Remove what killed runs for the same target left beside it: directories whose lock no process holds."""
    for directory in _hidden(out, ""):
        descriptor = lock(directory)
        if descriptor is not None:
            shutil.rmtree(directory, ignore_errors=True)
            os.close(descriptor)


def _put_back(out: Path) -> None:
    """Undo the first half of an `exchange` in two renames whose process was killed between them."""
    for aside in [] if out.exists() else _hidden(out, "-old"):
        directory = aside.with_name(aside.name.removesuffix("-old"))
        descriptor = lock(directory)
        if descriptor is not None or not directory.exists():
            os.rename(aside, out)
        if descriptor is not None:
            os.close(descriptor)
        if out.exists():
            return


def _hidden(out: Path, suffix: str) -> list[Path]:
    return sorted(out.parent.glob(f".{glob.escape(out.name)}.tensorfact-{'[0-9a-f]' * 8}{suffix}"))


def _leads_into(source: Path, out: Path) -> bool:
    """Whether a file of the source is a link to one that goes when `out` is replaced."""
    files = (os.path.join(root, name) for root, _, names in os.walk(source) for name in names)
    return out.exists() and any(out in Path(os.path.realpath(file)).parents for file in files if os.path.islink(file))


def _json(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


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


def replace_text(file: Path, text: str) -> None:
    """Write a text file that is the old one or the new one at any moment; a device is written through."""
    place = Path(os.path.realpath(file))
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        if place.exists() and not place.is_file():
            place.write_text(text, encoding="utf-8")
            return
        try:
            temporary.write_text(text, encoding="utf-8")
            sync(temporary)
            os.replace(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error


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

"""What a long run has done so far, beside its target: a rerun of the same command goes on from there.

One file a stage, each written under another name and renamed, so that a process killed at any point leaves whole files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tensorfact.compress._atomic import lock, sync

__all__ = ["State"]


class State:
    """Context manager of the directory; it stays where the block ends with an error, for the next run.

    Raises
    ------
    ValueError
        If another process works for the same target.
    """

    def __init__(self, out: Path) -> None:
        self.directory = out.parent / f".{out.name}.tensorfact-state"
        self.resumed = False
        self._lock: int | None = None

    def __enter__(self) -> Self:
        """Make the directory, or take the one that an earlier run left."""
        self.directory.mkdir(exist_ok=True)
        self._lock = lock(self.directory)
        if self._lock is None and os.name == "posix":
            raise ValueError(f"out must not be written by two runs at once: {str(self.directory)!r} is in use")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the directory after success, and where it is of no use; an error loses no finished stage."""
        refused = isinstance(error, ValueError) and not any(self.directory.glob("stage-*.npz"))
        if error is None or refused or not any(self.directory.glob("*.np[yz]")):
            shutil.rmtree(self.directory, ignore_errors=True)
        else:
            error.add_note("the same command goes on from where this one stopped")
        if self._lock is not None:
            os.close(self._lock)

    def agree(self, content: Mapping[str, Any], seed: int | None, fresh: int) -> int:
        """Keep what is there if it was made for `content` and `seed`, else remove it; return the seed of the run.

        A `seed` of None takes that of the earlier run, or else `fresh`.
        """
        text = json.dumps(content, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()
        file = self.directory / "run.json"
        try:
            before = json.loads(file.read_bytes())
        except (OSError, ValueError):
            before = {}
        if before.get("digest") == digest and seed in (None, before.get("seed")):
            self.resumed = any(self.directory.glob("*.np[yz]"))
            return int(before["seed"])
        file.unlink(missing_ok=True)  # first: what is left without it is taken for nothing
        for path in self.directory.iterdir():
            path.unlink()
        chosen = fresh if seed is None else seed
        self._replace(file, json.dumps({"digest": digest, "seed": chosen}).encode())
        return chosen

    def load(self, stage: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]] | None:
        """Return arrays and facts of a finished stage, None if it is not finished."""
        file = self.directory / f"{stage}.npz"
        if not file.is_file():
            return None
        with np.load(file, allow_pickle=False) as content:
            arrays = {key.removeprefix("array:"): content[key] for key in content.files if key.startswith("array:")}
            return arrays, json.loads(content["facts"].tobytes())

    def save(self, stage: str, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Store arrays and facts (JSON values) of a finished stage; return the facts as `load` gives them."""
        written = json.dumps(facts)
        text = np.frombuffer(written.encode(), dtype=np.uint8)
        temporary = self.directory / f"{stage}.new"
        with temporary.open("wb") as stream:
            named: dict[str, Any] = {f"array:{key}": values for key, values in arrays.items()}
            np.savez(stream, facts=text, **named)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self.directory / f"{stage}.npz")
        sync(self.directory)
        return dict(json.loads(written))

    def _replace(self, file: Path, content: bytes) -> None:
        temporary = file.with_suffix(".new")
        temporary.write_bytes(content)
        os.replace(temporary, file)

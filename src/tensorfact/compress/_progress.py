"""Progress of long runs: off, a bar on the terminal, or a function of the caller."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tensorfact.compress._grouping import printable

__all__ = ["ProgressCallback", "Step", "progress_of"]

ProgressCallback = Callable[[str, int, int, str], object]
"""Called as ``progress(phase, done, total, name)`` after each layer."""

Step = Callable[[str], None]


def progress_of(progress: bool | ProgressCallback | None) -> ProgressCallback | None:
    """Check the argument; True means a bar, and only on a terminal.

    Raises
    ------
    ValueError
        If `progress` is neither a boolean nor callable.
    """
    if progress is None or progress is False:
        return None
    if progress is True:
        return _bar if sys.stderr.isatty() else None
    if not callable(progress):
        raise ValueError(f"progress must be False, True or callable, got {progress!r}")
    return progress


@contextmanager
def steps(progress: ProgressCallback | None, phase: str, total: int) -> Iterator[Step]:
    """Yield a function to be called with a name after each of `total` steps."""
    done = 0
    bar = None
    if progress is _bar and importlib.util.find_spec("tqdm"):
        from tqdm import tqdm

        bar = tqdm(total=total, desc=phase, unit="layer", leave=True, file=sys.stderr)

    def step(name: str) -> None:
        nonlocal done
        done += 1
        if bar is not None:
            bar.update()
            bar.set_postfix_str(printable(name[-40:]), refresh=False)
        elif progress is not None:
            progress(phase, done, total, name)

    try:
        yield step
    finally:
        if bar is not None:
            bar.close()


def _bar(phase: str, done: int, total: int, name: str) -> None:
    """One line that is rewritten, for a terminal without tqdm."""
    end = "\n" if done == total else ""
    sys.stderr.write(f"\r{phase} {done}/{total} {printable(name[-40:]):40s}{end}")
    sys.stderr.flush()

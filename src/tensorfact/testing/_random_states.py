"""The global random states of a process: watched, and set to what no routine sets them to."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["random_states", "unusual_random_states"]


def random_states() -> tuple[str, ...]:
    """Print every global random state of this process: Python's, NumPy's, and torch's if it is loaded."""
    states = [repr(random.getstate()), repr([np.asarray(part).tolist() for part in np.random.get_state()])]  # noqa: NPY002
    torch = sys.modules.get("torch")
    torch = torch if hasattr(torch, "get_rng_state") else None  # a folder of that name is no torch
    if torch is not None:
        states.append(repr(torch.get_rng_state().tolist()))
    return tuple(states)


@contextmanager
def unusual_random_states() -> Iterator[None]:
    """Seed the global states with numbers that no routine seeds with; put the old states back at the end.

    Hypothesis seeds them with 0 before every case, and a routine that calls ``seed(0)`` would go unseen.
    """
    torch = sys.modules.get("torch")
    torch = torch if hasattr(torch, "get_rng_state") else None  # a folder of that name is no torch
    old = (random.getstate(), np.random.get_state(), None if torch is None else torch.get_rng_state())  # noqa: NPY002
    random.seed(775_211)
    np.random.seed(775_211)  # noqa: NPY002
    if torch is not None:
        torch.manual_seed(775_211)
    try:
        yield
    finally:
        random.setstate(old[0])
        np.random.set_state(old[1])  # noqa: NPY002
        if torch is not None and old[2] is not None:
            torch.set_rng_state(old[2])

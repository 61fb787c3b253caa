"""`check_low_rank`: the contract of a truncated SVD as named promises, searched for counter-examples.

Any routine can be held to it, ours or another library's. The promises are one function each, in ``_low_rank``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tensorfact.testing._low_rank import _accuracy, _manners, _matrices
from tensorfact.testing._low_rank._routine import LowRankRoutine
from tensorfact.testing._promises import CheckReport, Promise, run_promises, select

__all__ = ["LOW_RANK_PROMISES", "LowRankRoutine", "check_low_rank"]

LOW_RANK_PROMISES: tuple[Promise[LowRankRoutine], ...] = (*_accuracy.PROMISES, *_matrices.PROMISES, *_manners.PROMISES)


def check_low_rank(
    fn: Callable[..., Any],
    *,
    promises: Iterable[str] | None = None,
    max_examples: int = 25,
    seed: int = 0,
    raise_on_failure: bool = True,
) -> CheckReport:
    """Hold a low-rank routine to its contract, promise by promise.

    Parameters
    ----------
    fn : callable
        ``fn(a, *, rank=None, tol=None, rng=None)`` on a NumPy matrix, exactly one of `rank` and `tol` given. Returns
        ``(u, s, vh)`` or an object with these attributes and, if it reports one, ``error`` (relative Frobenius).
        A routine without `tol` or `rng` takes no such argument, or raises TypeError or NotImplementedError for it;
        the promises about it are then "not offered". The text of the exception is kept as the reason.
    promises : iterable of str, optional
        Names of the promises to check, default all of `LOW_RANK_PROMISES`.
    max_examples : int
        Random cases per promise, besides the fixed ones. 25 cases take a few seconds for a fast `fn`.
    seed : int
        Same seed, same cases. The smallest failing case is looked for, so it may differ from the first one met.
    raise_on_failure : bool
        Raise if a promise is broken (the default, for use as a test), or only report it.

    Returns
    -------
    CheckReport
        A sequence of `CheckResult`, one a promise; ``print(report)`` shows the table.

    Raises
    ------
    AssertionError
        A promise is broken; the message names each with the smallest case found.
    ValueError
        Unknown name in `promises`, or `max_examples` < 1.

    Examples
    --------
    >>> import numpy as np
    >>> def truncated(a, *, rank):
    ...     u, s, vh = np.linalg.svd(a, full_matrices=False)
    ...     return u[:, :rank], s[:rank], vh[:rank]
    >>> report = check_low_rank(truncated, promises=["ordered", "tol-kept"])
    >>> [(result.promise, result.status) for result in report]
    [('ordered', 'kept'), ('tol-kept', 'not offered')]
    """
    if max_examples < 1:
        raise ValueError(f"max_examples must be at least 1, got {max_examples}")
    chosen = select(LOW_RANK_PROMISES, promises)
    report = run_promises(LowRankRoutine(fn), chosen, max_examples=max_examples, seed=seed)
    if raise_on_failure:
        report.raise_if_broken()
    return report

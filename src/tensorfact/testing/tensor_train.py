"""`check_tensor_train`: the contract of a TT-SVD as named promises, searched for counter-examples.

Any routine can be held to it, ours or another library's. The promises are one function each, in ``_tensor_train``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tensorfact.testing._promises import CheckReport, Promise, run_promises, select
from tensorfact.testing._tensor_train import _accuracy, _manners, _tensors
from tensorfact.testing._tensor_train._routine import TrainRoutine

__all__ = ["TENSOR_TRAIN_PROMISES", "TrainRoutine", "check_tensor_train"]

TENSOR_TRAIN_PROMISES: tuple[Promise[TrainRoutine], ...] = (
    *_accuracy.PROMISES,
    *_tensors.PROMISES,
    *_manners.PROMISES,
)


def check_tensor_train(
    fn: Callable[..., Any],
    *,
    promises: Iterable[str] | None = None,
    max_examples: int = 25,
    seed: int = 0,
    raise_on_failure: bool = True,
) -> CheckReport:
    """Hold a TT-SVD routine to its contract, promise by promise.

    Parameters
    ----------
    fn : callable
        ``fn(a, *, rank=None, tol=None, rng=None)`` on a NumPy array, exactly one of `rank` (an int, or one for each
        inner bond) and `tol` given. Returns the cores (r, n, r'), or an object with ``cores`` and, if it reports them,
        ``error`` (relative Frobenius) and ``canonical`` ("left" or "right": which cores are orthonormal).
        A routine without `tol`, ranks by bond or `rng` takes no such argument, or raises TypeError or
        NotImplementedError for it; the promises about it are then "not offered", with the text as the reason.
    promises : iterable of str, optional
        Names of the promises to check, default all of `TENSOR_TRAIN_PROMISES`.
    max_examples : int
        Random cases per promise, besides the fixed ones. 25 cases take some seconds for a fast `fn`.
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
    >>> def two_modes_only(a, *, rank):
    ...     u, s, vh = np.linalg.svd(a, full_matrices=False)
    ...     return u[None, :, :rank], (s[:rank, None] * vh[:rank])[:, :, None]
    >>> report = check_tensor_train(two_modes_only, promises=["matrices", "tol-kept"])
    >>> [(result.promise, result.status) for result in report]
    [('matrices', 'kept'), ('tol-kept', 'not offered')]
    """
    if max_examples < 1:
        raise ValueError(f"max_examples must be at least 1, got {max_examples}")
    chosen = select(TENSOR_TRAIN_PROMISES, promises)
    report = run_promises(TrainRoutine(fn), chosen, max_examples=max_examples, seed=seed)
    if raise_on_failure:
        report.raise_if_broken()
    return report

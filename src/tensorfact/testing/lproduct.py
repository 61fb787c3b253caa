"""`check_lproduct`: the contract of a tensor-tensor product as named promises, searched for counter-examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tensorfact.testing._lproduct import _laws, _manners
from tensorfact.testing._lproduct._routine import LproductRoutine
from tensorfact.testing._promises import CheckReport, Promise, run_promises, select

__all__ = ["LPRODUCT_PROMISES", "LproductRoutine", "check_lproduct"]

LPRODUCT_PROMISES: tuple[Promise[LproductRoutine], ...] = (*_laws.PROMISES, *_manners.PROMISES)


def check_lproduct(
    fn: Callable[..., Any],
    *,
    promises: Iterable[str] | None = None,
    max_examples: int = 25,
    seed: int = 0,
    raise_on_failure: bool = True,
) -> CheckReport:
    """Hold a tensor-tensor product to its contract, promise by promise.

    Parameters
    ----------
    fn : callable
        ``fn(a, b, z)`` on NumPy tensors ``a (m, l, p)`` and ``b (l, n, p)`` and the transform ``z (p, p)``, a matrix in
        double precision. Returns the tensor (m, n, p). A routine that refuses complex tensors or batch axes with
        ``ValueError``, ``TypeError`` or ``NotImplementedError`` does not offer them; the text is kept as the reason.
    promises : iterable of str, optional
        Names of the promises to check, default all of `LPRODUCT_PROMISES`.
    max_examples : int
        Random cases per promise, besides the fixed ones.
    seed : int
        Same seed, same cases.
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

    Notes
    -----
    Equalities hold to ``100 eps cond(Z)`` times the sizes of the factors. ``worst`` is the largest multiple met.

    Examples
    --------
    >>> import numpy as np
    >>> def t_product(a, b, z):  # right, but blind to what it is given
    ...     faces = np.einsum("mlu,lnu->mnu", a @ z.T, b @ z.T)
    ...     return faces @ np.linalg.inv(z).T
    >>> report = check_lproduct(t_product, raise_on_failure=False, max_examples=5)
    >>> "associative" in report.names("kept"), "real-stays-real" in report.names("broken")
    (True, True)
    """
    if max_examples < 1:
        raise ValueError(f"max_examples must be at least 1, got {max_examples}")
    chosen = select(LPRODUCT_PROMISES, promises)
    report = run_promises(LproductRoutine(fn), chosen, max_examples=max_examples, seed=seed)
    if raise_on_failure:
        report.raise_if_broken()
    return report

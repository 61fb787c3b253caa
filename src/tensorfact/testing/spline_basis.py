"""`check_spline_basis`: the contract of a B-spline basis as named promises, searched for counter-examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tensorfact.testing._promises import BrokenPromise, CheckReport, NotOffered, Promise, run_promises, select
from tensorfact.testing._spline_basis._routine import SplineCase, SplineRoutine, cases, oracle

__all__ = ["SPLINE_BASIS_PROMISES", "check_spline_basis"]

# Relative to the largest value, 1e-14 in float64. de Boor's recurrence is within 5 eps; exactly uniform knots in place
# of rounded ones cost up to 40 eps at 200 intervals. A factor of 10 for derivatives, whose differences cancel.
ACCURACY, SLOPE_ACCURACY = 45.0, 450.0
# The recurrence has positive terms only, so every value is accurate to a few eps of itself.
SMALL_ACCURACY = 45.0


def _promise(
    name: str, text: str, search: Callable[[], st.SearchStrategy[Any]], always: tuple[Any, ...] = ()
) -> Callable[[Callable[[SplineRoutine, Any], float | None]], Promise[SplineRoutine]]:
    return lambda check: Promise(name=name, text=text, cases=lambda _: search(), check=check, always=always)


def _compare(routine: SplineRoutine, case: SplineCase, allowed: float) -> float:
    found, expected = routine.dense(case).astype(np.float64), oracle(case)
    scale = float(np.abs(expected).max(initial=0.0)) or 1.0
    error = float(np.abs(found - expected).max(initial=0.0)) / scale / float(np.finfo(case.dtype).eps)
    if not error <= allowed:
        raise BrokenPromise(f"off by {error:.3g} eps of the largest value, {allowed:g} allowed", error)
    return error


@_promise("values", "values agree with SciPy to 45 eps of the largest, clamped knots of any spacing", cases)
def _values(routine: SplineRoutine, case: SplineCase) -> float:
    return _compare(routine, case, ACCURACY)


@_promise(
    "fine-grids",
    "200 equal intervals lose no accuracy",
    lambda: st.builds(SplineCase, degree=st.integers(1, 4), n_basis=st.just(203), count=st.just(400)),
)
def _fine_grids(routine: SplineRoutine, case: SplineCase) -> float:
    return _compare(routine, case, ACCURACY)


@_promise(
    "derivatives",
    "derivatives of order 1 to 3 agree with SciPy to 450 eps of the largest, zero above the degree",
    lambda: cases(("uniform", "general", "repeated"), nu=(1, 2, 3)),
)
def _derivatives(routine: SplineRoutine, case: SplineCase) -> float:
    return _compare(routine, case, SLOPE_ACCURACY)


@_promise("sums-to-one", "values are not negative and sum to one, also at both ends and on knots", cases)
def _sums_to_one(routine: SplineRoutine, case: SplineCase) -> float:
    found = routine.dense(case).astype(np.float64)
    if not (found >= 0).all():
        raise BrokenPromise(f"a value is {found.min():.3g}")
    defect = float(np.abs(found.sum(axis=1) - 1).max()) / float(np.finfo(case.dtype).eps)
    if not defect <= 16:
        raise BrokenPromise(f"the values of a point sum to one within {defect:.3g} eps only", defect)
    return defect


@_promise("right-end", "the last function is one at the right end", lambda: cases(("uniform", "general")))
def _right_end(routine: SplineRoutine, case: SplineCase) -> None:
    last = routine.dense(case)[case.x == case.knots[-1]]
    if not (np.abs(last[:, -1] - 1) <= 16 * np.finfo(case.dtype).eps).all():
        raise BrokenPromise(f"it is {last[0, -1]:.6g}")


@_promise("local", "at most degree + 1 functions are not zero at a point", cases)
def _local(routine: SplineRoutine, case: SplineCase) -> None:
    most = int(np.count_nonzero(routine.dense(case), axis=1).max())
    if most > case.degree + 1:
        raise BrokenPromise(f"{most} functions are not zero at one point")


@_promise(
    "small-values",
    "on general knots every value is accurate to 45 eps of itself",
    lambda: cases(("general", "repeated")),
)
def _small_values(routine: SplineRoutine, case: SplineCase) -> float:
    found, expected = routine.dense(case).astype(np.float64), oracle(case)
    # SciPy's own values carry a few eps too; below 1e-290 neither has all its digits.
    error = float((np.abs(found - expected) / np.maximum(expected, 1e-290)).max()) / float(np.finfo(case.dtype).eps)
    if not error <= SMALL_ACCURACY:
        raise BrokenPromise(f"a value is off by {error:.3g} eps of itself", error)
    return error


@_promise(
    "scale-free",
    "knots and points in other units give the same values",
    lambda: st.builds(
        SplineCase, kind=st.sampled_from(("uniform", "general")), scale=st.sampled_from((2.0**-66, 2.0**66))
    ),
)
def _scale_free(routine: SplineRoutine, case: SplineCase) -> float:
    return _compare(routine, case, ACCURACY)


@_promise("single-precision", "float32 stays float32, accurate to its eps", lambda: cases(dtypes=("float32",)))
def _single_precision(routine: SplineRoutine, case: SplineCase) -> float:
    kind = routine.dense(case).dtype
    if kind != np.float32:
        raise BrokenPromise(f"came back as {kind}")
    return _compare(routine, case, ACCURACY)


@_promise(
    "input-untouched",
    "points and knots are not changed, read-only ones are served",
    lambda: cases(("uniform", "general")),
)
def _input_untouched(routine: SplineRoutine, case: SplineCase) -> None:
    x, t = case.x, case.knots
    routine.call(x, t, case.degree, 0)
    if not (np.array_equal(x, case.x) and np.array_equal(t, case.knots)):
        raise BrokenPromise("the input was changed")
    x.flags.writeable = t.flags.writeable = False
    try:
        routine.call(x, t, case.degree, 0)
    except (ValueError, RuntimeError) as error:
        raise BrokenPromise(f"refused a read-only array: {error}") from error


@_promise(
    "refuses-bad-knots",
    "ValueError for knots that decrease, are too few, not finite, or span nothing",
    lambda: st.sampled_from(
        ((0.0, 0.0, 1.0, 0.5, 2.0, 2.0), (0.0, 1.0, 2.0), (0.0, 0.0, float("nan"), 1.0, 1.0), (1.0, 1.0, 1.0, 1.0, 1.0))
    ),
)
def _refuses_bad_knots(routine: SplineRoutine, knots: tuple[float, ...]) -> None:
    try:
        routine.call(np.array([1.0]), np.array(knots), 1, 0)
    except ValueError:
        return
    except NotOffered as refusal:
        raise BrokenPromise(f"{refusal}, ValueError expected") from refusal
    raise BrokenPromise(f"knots {knots} of degree 1 were accepted")


SPLINE_BASIS_PROMISES: tuple[Promise[SplineRoutine], ...] = (
    _values,
    _fine_grids,
    _derivatives,
    _sums_to_one,
    _right_end,
    _local,
    _small_values,
    _scale_free,
    _single_precision,
    _input_untouched,
    _refuses_bad_knots,
)


def check_spline_basis(
    fn: Callable[..., Any],
    *,
    promises: Iterable[str] | None = None,
    max_examples: int = 25,
    seed: int = 0,
    raise_on_failure: bool = True,
) -> CheckReport:
    """Hold a B-spline basis to its contract, promise by promise.

    Parameters
    ----------
    fn : callable
        ``fn(x, knots, degree, nu)`` on NumPy arrays, called without `nu` for values. Returns the basis at the points x
        (n,) as a dense or sparse matrix (n, k), or as ``(values (n, degree + 1), first (n,))``. A routine that takes no
        `nu`, or only some degrees, raises TypeError or NotImplementedError: those promises are then "not offered".
    promises : iterable of str, optional
        Names of the promises to check, default all of `SPLINE_BASIS_PROMISES`.
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

    Examples
    --------
    >>> from scipy.interpolate import BSpline
    >>> def design(x, knots, degree):
    ...     return BSpline.design_matrix(x, knots, degree)
    >>> report = check_spline_basis(design, promises=["values", "derivatives"], max_examples=5)
    >>> [(result.promise, result.status) for result in report]
    [('values', 'kept'), ('derivatives', 'not offered')]
    """
    if max_examples < 1:
        raise ValueError(f"max_examples must be at least 1, got {max_examples}")
    chosen = select(SPLINE_BASIS_PROMISES, promises)
    report = run_promises(SplineRoutine(fn), chosen, max_examples=max_examples, seed=seed)
    if raise_on_failure:
        report.raise_if_broken()
    return report

"""What a low-rank routine promises about its result."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tensorfact.testing import oracles
from tensorfact.testing._low_rank._cases import (
    DEEP,
    FROBENIUS_FACTOR,
    HALF_RANK,
    OVERESTIMATE_C,
    RANK_FACTOR,
    RANK_SLACK,
    REGULAR,
    REPORTED_SHARE,
    SLOW_DECAY,
    SPECTRAL_FACTOR,
    check_orthonormal,
    eps_of,
    medium,
    promise,
    rounding,
    small,
    toleranced,
)
from tensorfact.testing._low_rank._routine import LowRankCase, LowRankRoutine
from tensorfact.testing._promises import NotOffered, Promise, require
from tensorfact.testing.strategies import EXACT_LOW_RANK, MatrixSpec


@promise("shapes", "u is (m, rank), s (rank,), vh (rank, n): the rank that was asked for", small)
def _shapes(routine: LowRankRoutine, case: LowRankCase) -> None:
    _, answer = routine.solve(case)
    require(answer.s.size == case.rank, f"rank {answer.s.size} came back")


@promise(
    "dtype-kept",
    "float32 stays float32 and float64 stays float64, in u, s and vh",
    lambda routine: st.builds(
        LowRankCase,
        st.builds(MatrixSpec, shape=st.just((7, 5)), dtype=st.sampled_from(("float64", "float32"))),
        st.just(2),
    ),
)
def _dtype_kept(routine: LowRankRoutine, case: LowRankCase) -> None:
    known, answer = routine.solve(case)
    found = [part.dtype.name for part in (answer.u, answer.s, answer.vh)]
    require(found == [known.a.dtype.name] * 3, f"u, s, vh came back as {', '.join(found)}")


@promise(
    "orthonormal",
    "the columns of u and the rows of vh are orthonormal to 50 eps sqrt(rank), also for graded spectra",
    lambda routine: st.one_of(small(routine, (*REGULAR, *DEEP)), medium(routine)),
    (LowRankCase(MatrixSpec(shape=(64, 48), spectrum="10^(-i/4)"), 20),),
)
def _orthonormal_factors(routine: LowRankRoutine, case: LowRankCase) -> float:
    return check_orthonormal(routine.solve(case)[1])


@promise("ordered", "singular values are non-negative and never increase", small, (SLOW_DECAY,))
def _ordered(routine: LowRankRoutine, case: LowRankCase) -> None:
    s = routine.solve(case)[1].s
    require(bool((s >= 0).all()), f"negative or NaN singular value {s.min():.4g}")
    require(bool((s[1:] <= s[:-1]).all()), f"s increases: {np.array2string(s[:6], precision=4)}")


@promise(
    "never-overestimates",
    "no singular value above the true one (50 eps sigma_1 for rounding)",
    lambda routine: st.one_of(small(routine), medium(routine)),
)
def _never_overestimates(routine: LowRankRoutine, case: LowRankCase) -> None:
    known, answer = routine.solve(case)
    found, true = np.sort(answer.s.astype(np.float64))[::-1], known.s[: answer.s.size]
    allowed = OVERESTIMATE_C * eps_of(known.a) * true[0]
    excess = float((found - true).max())
    require(excess <= allowed, f"a singular value exceeds the true one by {excess:.3g} > {allowed:.3g}")


@promise(
    "near-optimal-frobenius",
    f"Frobenius error at most {FROBENIUS_FACTOR} x the optimal one, rank 5 to 50 %",
    medium,
    (SLOW_DECAY, HALF_RANK),
)
def _near_optimal_frobenius(routine: LowRankRoutine, case: LowRankCase) -> float:
    known, answer = routine.solve(case)
    error, best = oracles.relative_error(known.a, answer.approx), known.best(case.rank or 0).frobenius
    ratio = error / (best + rounding(known.a))
    require(ratio <= FROBENIUS_FACTOR, f"{ratio:.4f} x optimal (relative error {error:.4g}, optimal {best:.4g})", ratio)
    return ratio


@promise(
    "near-optimal-spectral",
    f"spectral error at most {SPECTRAL_FACTOR} x the optimal one, rank 5 to 50 %",
    medium,
    (SLOW_DECAY, HALF_RANK),
)
def _near_optimal_spectral(routine: LowRankRoutine, case: LowRankCase) -> float:
    known, answer = routine.solve(case)
    error, best = oracles.spectral_error(known.a, answer.approx), known.best(case.rank or 0).spectral
    ratio = error / (best + rounding(known.a))
    require(ratio <= SPECTRAL_FACTOR, f"{ratio:.3f} x optimal (relative error {error:.4g}, optimal {best:.4g})", ratio)
    return ratio


@promise(
    "deep-tails",
    "where singular values fall to rounding level, so does the error: at most 2 x the optimal one + 100 eps",
    lambda routine: medium(routine, DEEP),
    (LowRankCase(MatrixSpec(shape=(60, 40), spectrum="10^(-i/4)"), 36),),
)
def _deep_tails(routine: LowRankRoutine, case: LowRankCase) -> None:
    known, answer = routine.solve(case)
    error, best = oracles.relative_error(known.a, answer.approx), known.best(case.rank or 0).frobenius
    # Twice, not 1.005: on these spectra the question is which digits are lost, near-optimal asks the other one.
    allowed = 2.0 * best + rounding(known.a)
    require(error <= allowed, f"relative error {error:.4g} > {allowed:.4g} (optimal {best:.4g})")


@promise(
    "reported-error",
    "the error that the result reports is the error recomputed from its factors, to 1 %",
    lambda routine: st.one_of(small(routine, (*REGULAR, *DEEP, EXACT_LOW_RANK)), medium(routine)),
    (LowRankCase(MatrixSpec(shape=(60, 40), dtype="float64", spectrum="10^(-i/4)"), 39),),
)
def _reported_error(routine: LowRankRoutine, case: LowRankCase) -> None:
    known, answer = routine.solve(case)
    if answer.error is None:
        raise NotOffered("the result carries no error")
    error = oracles.relative_error(known.a, answer.approx)
    allowed = REPORTED_SHARE * error + rounding(known.a)
    require(abs(answer.error - error) <= allowed, f"reported {answer.error:.6g}, recomputed {error:.6g}")


# --- tolerance --------------------------------------------------------------------------------------------------------


@promise("tol-kept", "relative Frobenius error <= tol, always", toleranced)
def _tol_kept(routine: LowRankRoutine, case: LowRankCase) -> float:
    known, answer = routine.solve(case)
    error, asked = oracles.relative_error(known.a, answer.approx), float(case.tol or 0.0)
    # Spectra such as 10^(-i/4) put the best error exactly on tol. Rounding the entries of the matrix moves the error by
    # up to eps, rounding the factors by a share of itself: a tie within that is not a miss.
    allowed = asked * (1.0 + rounding(known.a)) + eps_of(known.a)
    require(error <= allowed, f"relative error {error:.6g} > tol (by {error / asked - 1:.2g} of it)", error / asked)
    return error / asked


@promise(
    "tol-rank-small",
    f"the rank chosen for a tol is at most {RANK_FACTOR} x the smallest possible + {RANK_SLACK}",
    toleranced,
)
def _tol_rank_small(routine: LowRankRoutine, case: LowRankCase) -> float:
    known, answer = routine.solve(case)
    least = oracles.effective_rank_for(known.a, float(case.tol or 0.0))
    allowed = RANK_FACTOR * least + RANK_SLACK
    ratio = answer.s.size / max(least, 1)
    require(answer.s.size <= allowed, f"rank {answer.s.size}, smallest possible {least}", ratio)
    return ratio


PROMISES: tuple[Promise[LowRankRoutine], ...] = (
    _shapes,
    _dtype_kept,
    _orthonormal_factors,
    _ordered,
    _never_overestimates,
    _near_optimal_frobenius,
    _near_optimal_spectral,
    _deep_tails,
    _reported_error,
    _tol_kept,
    _tol_rank_small,
)

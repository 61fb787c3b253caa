"""Which matrices a low-rank routine promises to serve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from tensorfact.testing import oracles, tolerances
from tensorfact.testing._low_rank._cases import (
    REGULAR,
    SCALES,
    TIED,
    check_near_optimal,
    check_orthonormal,
    medium,
    promise,
    rounding,
    small,
    specs,
)
from tensorfact.testing._low_rank._routine import LowRankCase, LowRankRoutine, problem
from tensorfact.testing._promises import BrokenPromise, Promise, first_line, require
from tensorfact.testing.strategies import EXACT_LOW_RANK, LAYOUTS, MatrixSpec, shapes


@promise(
    "every-rank",
    "every rank from 1 to min(m, n) is served; at full rank the matrix comes back",
    lambda routine: specs(routine, shapes(min_side=2), REGULAR).flatmap(
        lambda spec: st.builds(LowRankCase, st.just(spec), st.sampled_from((min(spec.shape), 1)))
    ),
)
def _every_rank(routine: LowRankRoutine, case: LowRankCase) -> None:
    known, answer = routine.solve(case)
    require(answer.s.size == case.rank, f"rank {answer.s.size} came back")
    if case.rank == min(case.matrix.shape):  # rank 1 of a flat spectrum is a hard problem, and not this one
        check_near_optimal(known, answer)


@promise(
    "rows-and-columns",
    "1 x 1, 1 x n and n x 1 are served exactly",
    lambda routine: st.builds(
        LowRankCase,
        specs(routine, st.sampled_from(((1, 1), (1, 7), (7, 1), (1, 64), (64, 1))), ("i^-1",)),
        st.just(1),
    ),
)
def _rows_and_columns(routine: LowRankRoutine, case: LowRankCase) -> None:
    known, answer = routine.solve(case)
    check_near_optimal(known, answer)
    check_orthonormal(answer)


@promise(
    "tied-values",
    "repeated singular values, all equal or in groups, are served like others",
    lambda routine: st.one_of(small(routine, TIED), medium(routine, TIED)),
    (
        *(LowRankCase(MatrixSpec(shape=(60, 40), spectrum=name), 20) for name in TIED),
        # s_27 = s_1 / 9: left vectors from a Gram matrix, not orthogonalised again, lose (s_1 / s_27)^2 = 81 eps
        LowRankCase(MatrixSpec(shape=(200, 150), spectrum="ties", seed=17), 27),
        LowRankCase(MatrixSpec(shape=(128, 128), spectrum="ties", seed=17), 26),
    ),
)
def _tied_values(routine: LowRankRoutine, case: LowRankCase) -> None:
    known, answer = routine.solve(case)
    error, best = oracles.relative_error(known.a, answer.approx), known.best(case.rank or 0).frobenius
    # 1.5, as where the question is not how near to optimal: a missed copy of a tied value costs more on these.
    require(error <= 1.5 * best + rounding(known.a), f"relative error {error:.4g}, optimal {best:.4g}")
    check_orthonormal(answer)


@promise(
    "rank-deficient",
    "a matrix of exactly lower rank comes back to rounding, with orthonormal factors all the same",
    lambda routine: small(routine, (EXACT_LOW_RANK,)),
    (LowRankCase(MatrixSpec(shape=(60, 40), spectrum=EXACT_LOW_RANK), 30),),
)
def _rank_deficient(routine: LowRankRoutine, case: LowRankCase) -> None:
    known, answer = routine.solve(case)
    if (case.rank or 0) >= max(1, min(case.matrix.shape) // 3):
        error = oracles.relative_error(known.a, answer.approx)
        require(error <= rounding(known.a), f"relative error {error:.3g} > {rounding(known.a):.3g}")
    check_orthonormal(answer)


@promise(
    "zero-matrix",
    "the zero matrix gives zero singular values and finite, orthonormal factors",
    lambda routine: small(routine, ("zero",)),
)
def _zero_matrix(routine: LowRankRoutine, case: LowRankCase) -> None:
    _, answer = routine.solve(case)
    require(bool((answer.s == 0).all()), f"s = {np.array2string(answer.s[:6], precision=3)}")
    check_orthonormal(answer)


@promise(
    "scale-free",
    "multiplying the matrix by 1e-20 or 1e20 leaves the relative error as it was, in float32 too",
    lambda routine: st.builds(
        lambda case, scale: replace(case, matrix=replace(case.matrix, scale=scale)),
        small(routine),
        st.sampled_from(SCALES),
    ),
    (
        LowRankCase(MatrixSpec(shape=(60, 40), scale=SCALES[0]), 8),
        LowRankCase(MatrixSpec(shape=(60, 40), scale=SCALES[1]), 8),
    ),
)
def _scale_free(routine: LowRankRoutine, case: LowRankCase) -> None:
    plain, answer_plain = routine.solve(replace(case, matrix=replace(case.matrix, scale=1.0)))
    scaled, answer = routine.solve(case)
    before = oracles.relative_error(plain.a, answer_plain.approx)
    after = oracles.relative_error(scaled.a, answer.approx)
    # 1.25: a routine without rng draws another sketch each time, and the two errors differ by that much at most.
    require(after <= 1.25 * before + rounding(plain.a), f"relative error {before:.4g} became {after:.4g}")


@promise(
    "any-layout",
    "C and Fortran order, strided, read-only and negatively strided matrices are served alike",
    lambda routine: st.builds(
        lambda case, layout: replace(case, matrix=replace(case.matrix, layout=layout)),
        small(routine, ("10^(-i/4)",)),
        st.sampled_from(list(LAYOUTS)),
    ),
    tuple(LowRankCase(MatrixSpec(shape=(7, 5), spectrum="10^(-i/4)", layout=layout), 3) for layout in LAYOUTS),
)
def _any_layout(routine: LowRankRoutine, case: LowRankCase) -> None:
    known, answer = routine.solve(case)
    _, in_order = routine.solve(replace(case, matrix=replace(case.matrix, layout="C")))
    error, before = (oracles.relative_error(known.a, found.approx) for found in (answer, in_order))
    # 2: layouts may take other code paths and sums, but a matrix read in the wrong order misses by far more.
    allowed = 2.0 * before + rounding(known.a)
    require(error <= allowed, f"relative error {error:.4g}, in C order {before:.4g}")


@promise(
    "complex",
    "complex matrices are right, or refused: never their real part",
    lambda routine: st.builds(
        lambda shape, dtype: LowRankCase(MatrixSpec(shape=shape, dtype=dtype, spectrum="10^(-i/4)"), 4),
        st.sampled_from(((7, 5), (5, 7), (31, 17), (64, 6))),
        st.sampled_from(("complex128", "complex64")),
    ),
)
def _complex(routine: LowRankRoutine, case: LowRankCase) -> None:
    known = problem(case.matrix)
    try:
        routine.raw(known.a.copy(), rank=case.rank, rng=0)
    except (TypeError, ValueError, NotImplementedError):
        return  # refused
    except Exception as failure:
        raise BrokenPromise(f"raised {type(failure).__name__}: {first_line(failure)}") from failure
    known, answer = routine.solve(case)
    error = oracles.relative_error(known.a, answer.approx)
    # 3: a lost conjugate misses by the norm of the matrix, ten times the best error at rank 4.
    allowed = 3.0 * known.best(case.rank or 0).frobenius + rounding(known.a)
    require(error <= allowed, f"relative error {error:.4g} > {allowed:.4g}")
    check_orthonormal(answer)


@promise(
    "other-dtypes",
    "integers come back as float64 and float16 as float16, both right, or are refused",
    lambda routine: st.sampled_from(("int64", "float16")),
)
def _other_dtypes(routine: LowRankRoutine, dtype: str) -> None:
    exact = MatrixSpec(shape=(13, 11), spectrum=EXACT_LOW_RANK).build()
    a = exact.astype(dtype)  # entries are small integers: exact in every dtype
    try:
        routine.raw(a, rank=3, rng=0)
    except (TypeError, ValueError, NotImplementedError):
        return  # refused
    except Exception as failure:
        raise BrokenPromise(f"raised {type(failure).__name__}: {first_line(failure)}") from failure
    answer = routine(a, rank=3)
    expected = "float64" if dtype == "int64" else dtype
    found = [part.dtype.name for part in (answer.u, answer.s, answer.vh)]
    require(found == [expected] * 3, f"u, s, vh came back as {', '.join(found)}")
    error = oracles.relative_error(exact, answer.approx)
    allowed = tolerances.tol(expected)
    require(error <= allowed, f"relative error {error:.3g} > {allowed:.3g}")


PROMISES: tuple[Promise[LowRankRoutine], ...] = (
    _every_rank,
    _rows_and_columns,
    _tied_values,
    _rank_deficient,
    _zero_matrix,
    _scale_free,
    _any_layout,
    _complex,
    _other_dtypes,
)

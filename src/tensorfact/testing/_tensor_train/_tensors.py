"""The tensors that a TT-SVD routine promises to serve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from tensorfact.testing import oracles, tolerances
from tensorfact.testing._promises import BrokenPromise, Promise, first_line, require
from tensorfact.testing._tensor_train._cases import (
    REGULAR,
    SCALES,
    TIED,
    check_exact,
    check_orthonormal,
    check_quasi_optimal,
    promise,
    rounding,
    small,
    specs,
)
from tensorfact.testing._tensor_train._routine import TrainCase, TrainRoutine, problem
from tensorfact.testing.strategies import EXACT_LOW_RANK
from tensorfact.testing.tensors import TENSOR_LAYOUTS, TENSOR_SHAPES, TensorSpec, tensor_shapes

_PLENTY = 10**6
_UNIT = [shape for shape in TENSOR_SHAPES if min(shape) == 1]


@promise(
    "exact-at-full-rank",
    "a rank above every useful bond is clipped, and the tensor comes back to 100 eps",
    lambda routine: st.builds(TrainCase, specs(routine, tensor_shapes(min_side=2), REGULAR), st.just(_PLENTY)),
)
def _exact_at_full_rank(routine: TrainRoutine, case: TrainCase) -> None:
    known, train = routine.solve(case)
    check_exact(known, train)
    wanted = oracles.full_bonds(case.tensor.shape)
    require(all(b <= w for b, w in zip(train.bonds, wanted, strict=True)), f"bonds {train.bonds}, useful {wanted}")


@promise(
    "matrices",
    "a tensor of two modes gives the truncated SVD of the matrix",
    lambda routine: st.builds(
        TrainCase, specs(routine, st.sampled_from(((16, 16), (7, 5), (5, 7), (40, 60))), REGULAR), st.integers(1, 4)
    ),
)
def _matrices(routine: TrainRoutine, case: TrainCase) -> None:
    check_quasi_optimal(*routine.solve(case))


@promise(
    "vectors",
    "a vector is its own train, or is refused with ValueError",
    lambda routine: st.builds(
        TrainCase,
        st.builds(TensorSpec, shape=st.sampled_from(((7,), (1,), (64,))), dtype=st.sampled_from(routine.dtypes)),
        st.just(1),
    ),
)
def _vectors(routine: TrainRoutine, case: TrainCase) -> None:
    known = problem(case.tensor)
    try:
        routine.raw(known.a.copy(), rank=1, rng=0)
    except ValueError:
        return  # refused
    except Exception as failure:
        raise BrokenPromise(f"raised {type(failure).__name__}: {first_line(failure)}") from failure
    check_exact(*routine.solve(case))


@promise(
    "unit-modes",
    "modes of size 1, first, last, between or everywhere, are served like others",
    lambda routine: st.builds(TrainCase, specs(routine, st.sampled_from(_UNIT), REGULAR), st.integers(1, 4)),
    tuple(TrainCase(TensorSpec(shape=shape), 3) for shape in _UNIT),
)
def _unit_modes(routine: TrainRoutine, case: TrainCase) -> None:
    known, train = routine.solve(case)
    check_quasi_optimal(known, train)
    require(max(train.bonds) <= case.rank, f"bonds {train.bonds} for rank {case.rank}")


@promise(
    "many-modes",
    "twelve to sixteen modes of size 2 are served, quasi-optimal",
    lambda routine: st.builds(
        TrainCase, specs(routine, st.sampled_from(((2,) * 12, (2,) * 16)), ("i^-1",)), st.sampled_from((2, 8))
    ),
)
def _many_modes(routine: TrainRoutine, case: TrainCase) -> None:
    check_quasi_optimal(*routine.solve(case))


@promise(
    "tied-values",
    "repeated singular values, all equal or in groups, are served like others",
    lambda routine: small(routine, TIED),
    tuple(TrainCase(TensorSpec(shape=(7, 5, 3), kind=kind), 2) for kind in TIED),
)
def _tied_values(routine: TrainRoutine, case: TrainCase) -> None:
    known, train = routine.solve(case)
    check_quasi_optimal(known, train, 1.5)  # which of the tied directions is kept may cost more in later bonds
    if routine.canonical:
        check_orthonormal(train)


@promise(
    "rank-deficient",
    "a tensor of exactly lower rank comes back to rounding, its cores as orthonormal as others",
    lambda routine: st.builds(
        TrainCase, specs(routine, tensor_shapes(min_side=2), (EXACT_LOW_RANK,)), st.sampled_from((2, 3, 5))
    ),
    (TrainCase(TensorSpec(shape=(4, 5, 6), kind=EXACT_LOW_RANK), 4),),
)
def _rank_deficient(routine: TrainRoutine, case: TrainCase) -> None:
    known, train = routine.solve(case)
    check_exact(known, train)
    if routine.canonical:
        check_orthonormal(train)


@promise(
    "zero-tensor",
    "the zero tensor gives a zero train of finite cores, orthonormal where others are",
    lambda routine: st.builds(TrainCase, specs(routine, tensor_shapes(), ("zero",)), st.integers(1, 3)),
    (TrainCase(TensorSpec(shape=(4, 5, 6), kind="zero"), 2),),
)
def _zero_tensor(routine: TrainRoutine, case: TrainCase) -> None:
    _, train = routine.solve(case)
    require(
        bool((train.approx == 0).all()), f"the train is not zero, its largest entry is {np.abs(train.approx).max()}"
    )
    if routine.canonical:
        check_orthonormal(train)


@promise(
    "scale-free",
    "multiplying the tensor by 1e-20 or 1e20 leaves the relative error as it was, in float32 too",
    lambda routine: st.builds(
        lambda case, scale: replace(case, tensor=replace(case.tensor, scale=scale)),
        small(routine),
        st.sampled_from(SCALES),
    ),
    (
        TrainCase(TensorSpec(shape=(12, 30, 18), scale=SCALES[0]), 5),
        TrainCase(TensorSpec(shape=(12, 30, 18), scale=SCALES[1]), 5),
    ),
)
def _scale_free(routine: TrainRoutine, case: TrainCase) -> None:
    plain, train_plain = routine.solve(replace(case, tensor=replace(case.tensor, scale=1.0)))
    scaled, train = routine.solve(case)
    before = oracles.relative_error(plain.a, train_plain.approx)
    after = oracles.relative_error(scaled.a, train.approx)
    # 1.25: a routine without rng draws another sketch each time, and the two errors differ by that much at most.
    require(after <= 1.25 * before + rounding(plain.a), f"relative error {before:.4g} became {after:.4g}")


@promise(
    "any-layout",
    "C and Fortran order, strided, read-only, permuted and negatively strided tensors are served alike",
    lambda routine: st.builds(
        lambda case, layout: replace(case, tensor=replace(case.tensor, layout=layout)),
        small(routine, ("10^(-i/4)",)),
        st.sampled_from(list(TENSOR_LAYOUTS)),
    ),
    tuple(TrainCase(TensorSpec(shape=(4, 5, 6), kind="10^(-i/4)", layout=layout), 3) for layout in TENSOR_LAYOUTS),
)
def _any_layout(routine: TrainRoutine, case: TrainCase) -> None:
    known, train = routine.solve(case)
    _, in_order = routine.solve(replace(case, tensor=replace(case.tensor, layout="C")))
    error, before = (oracles.relative_error(known.a, found.approx) for found in (train, in_order))
    # 2: layouts may take other code paths and sums, but a tensor read in the wrong order misses by far more.
    allowed = 2.0 * before + rounding(known.a)
    require(error <= allowed, f"relative error {error:.4g}, in C order {before:.4g}")


@promise(
    "complex",
    "complex tensors are right, or refused: no lost conjugate, never the real part",
    lambda routine: st.builds(
        lambda shape, dtype, rank: TrainCase(TensorSpec(shape=shape, dtype=dtype, kind="10^(-i/4)"), rank),
        st.sampled_from(((4, 5, 6), (5, 7), (3, 4, 3, 4), (2,) * 6)),
        st.sampled_from(("complex128", "complex64")),
        st.sampled_from((3, _PLENTY)),
    ),
    (TrainCase(TensorSpec(shape=(4, 5, 6), dtype="complex128", kind="10^(-i/4)"), _PLENTY),),
)
def _complex(routine: TrainRoutine, case: TrainCase) -> None:
    known = problem(case.tensor)
    try:
        routine.raw(known.a.copy(), rank=case.rank, rng=0)
    except (TypeError, ValueError, NotImplementedError):
        return  # refused
    except Exception as failure:
        raise BrokenPromise(f"raised {type(failure).__name__}: {first_line(failure)}") from failure
    known, train = routine.solve(case)
    error = oracles.relative_error(known.a, train.approx)
    # 3: a lost conjugate misses by the norm of the tensor, many times the bound.
    allowed = 3.0 * known.bound(train.bonds) + rounding(known.a)
    require(error <= allowed, f"relative error {error:.4g} > {allowed:.4g}")
    if routine.canonical:
        check_orthonormal(train)


@promise(
    "other-dtypes",
    "integers come back as float64 and float16 as float16, both right, or are refused",
    lambda routine: st.sampled_from(("int64", "float16")),
)
def _other_dtypes(routine: TrainRoutine, dtype: str) -> None:
    exact = TensorSpec(shape=(4, 5, 3), kind=EXACT_LOW_RANK).build()
    a = exact.astype(dtype)  # entries are small integers: exact in every dtype
    try:
        routine.raw(a.copy(), rank=3, rng=0)
    except (TypeError, ValueError, NotImplementedError):
        return  # refused
    except Exception as failure:
        raise BrokenPromise(f"raised {type(failure).__name__}: {first_line(failure)}") from failure
    train = routine(a, rank=3)
    expected = "float64" if dtype == "int64" else dtype
    found = [core.dtype.name for core in train.cores]
    require(found == [expected] * len(found), f"cores came back as {', '.join(found)}")
    error = oracles.relative_error(exact, train.approx)
    require(error <= tolerances.tol(expected), f"relative error {error:.3g} > {tolerances.tol(expected):.3g}")


PROMISES: tuple[Promise[TrainRoutine], ...] = (
    _exact_at_full_rank,
    _matrices,
    _vectors,
    _unit_modes,
    _many_modes,
    _tied_values,
    _rank_deficient,
    _zero_tensor,
    _scale_free,
    _any_layout,
    _complex,
    _other_dtypes,
)

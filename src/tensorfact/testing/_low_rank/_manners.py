"""How a low-rank routine promises to behave: towards its input, bad input and random state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tensorfact.testing._low_rank._cases import (
    SLOW_DECAY,
    medium,
    promise,
    small,
)
from tensorfact.testing._low_rank._routine import (
    LowRankCase,
    LowRankRoutine,
    problem,
)
from tensorfact.testing._promises import BadInput, BrokenPromise, NotOffered, Promise, first_line, refused, require
from tensorfact.testing._random_states import random_states, unusual_random_states
from tensorfact.testing.strategies import MatrixSpec


@promise(
    "input-untouched",
    "the matrix is not modified, whatever its layout",
    lambda routine: st.builds(
        lambda case, layout: replace(case, matrix=replace(case.matrix, layout=layout)),
        small(routine),
        st.sampled_from(("C", "F", "strided")),
    ),
    (LowRankCase(MatrixSpec(shape=(7, 5), layout="F"), 2), LowRankCase(MatrixSpec(shape=(5, 7), layout="C"), 4)),
)
def _input_untouched(routine: LowRankRoutine, case: LowRankCase) -> None:
    given = case.matrix.build()
    before = given.copy()
    routine(given, rank=case.rank, rng=case.matrix.seed)
    require(given.tobytes() == before.tobytes(), f"{int((given != before).sum())} entries were changed")


def _refused(routine: LowRankRoutine, bad: BadInput) -> None:
    def describe(result: Any) -> str:
        s = result.s if hasattr(result, "s") else result[1]
        return f"s = {np.array2string(np.asarray(s)[:4], precision=3)}"

    a, rank = bad.args
    refused(bad, lambda: routine.raw(a, rank=rank, rng=0), describe)


def _nonfinite(shape: tuple[int, int], value: float, at: float) -> BadInput:
    a = MatrixSpec(shape=shape).build()
    index = int(at * (a.size - 1))
    a.flat[index] = value
    return BadInput(f"{value} at flat index {index} of shape {shape}", (a, 2))


@promise(
    "refuses-nonfinite",
    "NaN and infinity anywhere are refused with ValueError before any work",
    lambda routine: st.builds(
        _nonfinite,
        st.sampled_from(((7, 5), (5, 7), (31, 17), (64, 6), (6, 64))),
        st.sampled_from((float("nan"), float("inf"), float("-inf"))),
        st.sampled_from((0.0, 0.5, 1.0)),
    ),
    (_nonfinite((7, 5), float("nan"), 0.0), _nonfinite((7, 5), float("inf"), 1.0)),
)
def _refuses_nonfinite(routine: LowRankRoutine, bad: BadInput) -> None:
    _refused(routine, bad)


_PLAIN = MatrixSpec(shape=(7, 5)).build()


@promise(
    "refuses-bad-rank",
    "rank 0, negative or above min(m, n) is refused with ValueError",
    lambda routine: st.sampled_from(
        tuple(BadInput(f"rank={rank} of shape (7, 5)", (_PLAIN.copy(), rank)) for rank in (0, 6, -1))
    ),
)
def _refuses_bad_rank(routine: LowRankRoutine, bad: BadInput) -> None:
    _refused(routine, bad)


def _bad_tolerances(routine: LowRankRoutine) -> st.SearchStrategy[float]:
    routine.require_tol()
    return st.sampled_from((-0.1, float("nan")))


@promise(
    "refuses-bad-tol",
    "a negative or NaN tol is refused with ValueError",
    _bad_tolerances,
)
def _refuses_bad_tol(routine: LowRankRoutine, tol: float) -> None:
    try:
        routine.raw(_PLAIN.copy(), tol=tol, rng=0)
    except ValueError:
        return
    except Exception as error:
        raise BrokenPromise(f"{type(error).__name__}, not ValueError: {first_line(error)}") from error
    raise BrokenPromise("accepted")


@promise(
    "refuses-bad-input",
    "empty, 1-D, 3-D and object arrays are refused with ValueError (or TypeError)",
    lambda routine: st.sampled_from(
        tuple(
            BadInput(what, (a, 1), (ValueError, TypeError))
            for what, a in (
                ("shape (0, 5)", np.zeros((0, 5))),
                ("shape (5, 0)", np.zeros((5, 0))),
                ("shape (5,)", np.ones(5)),
                ("shape (2, 3, 4)", np.ones((2, 3, 4))),
                ("object array", np.array([[1.0, None], [2.0, "x"]], dtype=object)),
            )
        )
    ),
)
def _refuses_bad_input(routine: LowRankRoutine, bad: BadInput) -> None:
    _refused(routine, bad)


def _with_rng(routine: LowRankRoutine) -> st.SearchStrategy[LowRankCase]:
    routine.require_rng()
    return st.one_of(small(routine), medium(routine))


@promise("same-rng-same-bits", "equal rng gives equal bits", _with_rng, (SLOW_DECAY,))
def _same_rng_same_bits(routine: LowRankRoutine, case: LowRankCase) -> None:
    first, second = routine.solve(case)[1], routine.solve(case)[1]
    for name in ("u", "s", "vh"):
        require(getattr(first, name).tobytes() == getattr(second, name).tobytes(), f"{name} differs between two calls")


def _with_generator(routine: LowRankRoutine) -> st.SearchStrategy[LowRankCase]:
    if routine.no_generator is not None:
        raise NotOffered(routine.no_generator)
    return small(routine)


@promise("rng-kinds", "rng is an int or the Generator made from it, to the same bits (SPEC 7)", _with_generator)
def _rng_kinds(routine: LowRankRoutine, case: LowRankCase) -> None:
    known = problem(case.matrix)
    by_int = routine(known.a.copy(), rank=case.rank, rng=case.matrix.seed)
    by_generator = routine(known.a.copy(), rank=case.rank, rng=np.random.default_rng(case.matrix.seed))
    require(by_int.u.tobytes() == by_generator.u.tobytes(), "u differs between rng=int and rng=Generator")


@promise(
    "global-state-untouched",
    "the global random states of Python, NumPy and torch are left as they were, with rng and without",
    lambda routine: medium(routine),
    (SLOW_DECAY,),
)
def _global_state_untouched(routine: LowRankRoutine, case: LowRankCase) -> None:
    known = problem(case.matrix)
    with unusual_random_states():
        for rng in (None, 0):
            before = random_states()
            routine(known.a.copy(), rank=case.rank, rng=rng)
            require(random_states() == before, f"a global random state was changed (rng={rng})")


PROMISES: tuple[Promise[LowRankRoutine], ...] = (
    _input_untouched,
    _refuses_nonfinite,
    _refuses_bad_rank,
    _refuses_bad_tol,
    _refuses_bad_input,
    _same_rng_same_bits,
    _rng_kinds,
    _global_state_untouched,
)

"""How a tensor-tensor product promises to behave towards its input, good and bad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tensorfact.testing._lproduct._routine import LproductCase, LproductRoutine, agree, cases, first_line, promise
from tensorfact.testing._promises import BadInput, BrokenPromise, Promise, refused
from tensorfact.testing.strategies import LAYOUTS

CASE = LproductCase()


@promise("input-untouched", "neither tensor nor the matrix is modified", cases)
def _input_untouched(routine: LproductRoutine, case: LproductCase) -> None:
    a, b = case.pair()
    z = case.z
    before = [x.tobytes() for x in (a, b, z)]
    try:
        routine.fn(a, b, z)
    except Exception as error:
        raise BrokenPromise(f"raised {type(error).__name__}: {first_line(error)}") from error
    changed = [name for name, x, old in zip("abz", (a, b, z), before, strict=True) if x.tobytes() != old]
    if changed:
        raise BrokenPromise(f"{', '.join(changed)} changed")


def _axes_reversed(a: Any) -> Any:
    return np.asfortranarray(a)


def _every_other(a: Any) -> Any:
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


_LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "F": _axes_reversed,
    "strided": _every_other,
    "read-only": LAYOUTS["read-only"],
    "negative": lambda a: a[::-1].copy()[::-1],
}


@promise(
    "any-layout",
    "Fortran order, strides, read-only and negative strides give the product of the same values in C order",
    lambda routine: st.tuples(cases(routine), st.sampled_from(list(_LAYOUTS))),
)
def _any_layout(routine: LproductRoutine, given: tuple[LproductCase, str]) -> float:
    case, layout = given
    a, b = case.pair()
    try:
        found = np.asarray(routine.fn(_LAYOUTS[layout](a), _LAYOUTS[layout](b), case.z))
    except Exception as error:
        raise BrokenPromise(f"raised {type(error).__name__}: {first_line(error)}") from error
    return agree(found, routine(a, b, case.z), case, a, b)


def _refused(routine: LproductRoutine, bad: BadInput) -> None:
    refused(bad, lambda: routine.fn(*bad.args), lambda found: f"product of shape {np.asarray(found).shape}")


def _with(value: float, where: int) -> BadInput:
    a, b = CASE.pair()
    target = (a, b)[where % 2]
    target.flat[where] = value
    return BadInput(f"{value} in {'ab'[where % 2]}", (a, b, CASE.z))


@promise(
    "refuses-nonfinite",
    "NaN and infinity anywhere are refused with ValueError",
    lambda routine: st.builds(
        _with, st.sampled_from((float("nan"), float("inf"), float("-inf"))), st.sampled_from((0, 1, 14, 17))
    ),
)
def _refuses_nonfinite(routine: LproductRoutine, bad: BadInput) -> None:
    _refused(routine, bad)


def _misfits() -> tuple[BadInput, ...]:
    a, b = CASE.pair()
    five = LproductCase(p=5)
    return (
        BadInput("tubes of 4 and 5 entries", (a, five.pair()[1], CASE.z)),
        BadInput("a transform of length 5 for tubes of 4", (a, b, five.z)),
        BadInput("2 x 3 faces times 2 x 2 faces", (a, b[:2], CASE.z)),
        BadInput("a matrix for a tensor", (a[..., 0], b[..., 0], CASE.z)),
        BadInput("a transform that is not square", (a, b, CASE.z[:3])),
        BadInput("an empty tensor", (a[:, :0], b[:0], CASE.z)),
    )


@promise(
    "refuses-misfits",
    "tubes, faces or transforms that do not fit are refused with ValueError",
    lambda routine: st.sampled_from(_misfits()),
)
def _refuses_misfits(routine: LproductRoutine, bad: BadInput) -> None:
    _refused(routine, bad)


@promise(
    "refuses-singular",
    "a singular transform is refused with ValueError",
    lambda routine: st.sampled_from(
        (
            BadInput("a transform of ones", (*CASE.pair(), np.ones((4, 4)))),
            BadInput("a transform of zeros", (*CASE.pair(), np.zeros((4, 4)))),
        )
    ),
)
def _refuses_singular(routine: LproductRoutine, bad: BadInput) -> None:
    _refused(routine, bad)


@promise(
    "refuses-mixed-dtypes",
    "float32 times float64 is refused, with ValueError or TypeError: nothing is promoted silently",
    lambda routine: st.just(
        BadInput(
            "float64 and float32",
            (CASE.pair()[0], CASE.pair()[1].astype("float32"), CASE.z),
            (ValueError, TypeError),
        )
    ),
)
def _refuses_mixed_dtypes(routine: LproductRoutine, bad: BadInput) -> None:
    _refused(routine, bad)


PROMISES: tuple[Promise[LproductRoutine], ...] = (
    _input_untouched,
    _any_layout,
    _refuses_nonfinite,
    _refuses_misfits,
    _refuses_singular,
    _refuses_mixed_dtypes,
)

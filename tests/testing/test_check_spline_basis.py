"""check_spline_basis passes a correct basis and names the promise that a broken one breaks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import BSpline

from tensorfact import BSplineBasis
from tensorfact.testing import SPLINE_BASIS_PROMISES, check_spline_basis

NAMES = [promise.name for promise in SPLINE_BASIS_PROMISES]


def ours(x, knots, degree, nu=0):
    return BSplineBasis(knots, degree).evaluate(x, nu)


def test_ours_keeps_every_promise():
    report = check_spline_basis(ours, max_examples=15)
    assert report.names("kept") == tuple(NAMES)


def test_other_forms_of_a_result():
    def sparse(x, knots, degree, nu=0):
        return BSplineBasis(knots, degree).design_matrix(x, nu)

    assert not check_spline_basis(sparse, max_examples=3).broken
    assert not check_spline_basis(lambda *a: sparse(*a).toarray(), max_examples=3).broken


def altered(change):
    def routine(x, knots, degree, nu=0):
        values, first = ours(x, knots, degree, nu)
        return change(values.copy(), first, np.asarray(x), np.asarray(knots), nu)

    return routine


def half_open(values, first, x, knots, nu):
    values[x == knots[-1]] = 0
    return values, first


def squared_bins(x, knots, degree, nu=0):
    if nu == 0 and degree == 3 and knots.size > 100:
        noise = 1e-9 * np.random.default_rng(0).standard_normal((x.size, 4))
        values, first = ours(x, knots, degree)
        return values * (1 + noise), first
    return ours(x, knots, degree, nu)


def absolute(values, first, x, knots, nu):
    return np.where(values < 1e-4, values + 1e-18, values), first


def accepts_anything(x, knots, degree, nu=0):
    try:
        return ours(x, knots, degree, nu)
    except ValueError:
        return np.zeros((x.size, degree + 1)), np.zeros(x.size, int)


def leaks(x, knots, degree, nu=0):
    basis = BSplineBasis(knots, degree).design_matrix(x, nu).toarray()
    return basis + 1e-18


def writes(x, knots, degree, nu=0):
    x[:1] += 0.0
    return ours(x, knots, degree, nu)


FAULTS = [
    (
        "right-end",
        altered(half_open),
        {"values", "sums-to-one", "fine-grids", "scale-free", "single-precision", "derivatives", "small-values"},
    ),
    ("fine-grids", squared_bins, set()),
    ("small-values", altered(absolute), {"local", "derivatives"}),
    ("refuses-bad-knots", accepts_anything, set()),
    ("local", leaks, {"small-values"}),
    ("input-untouched", writes, set()),
    (
        "single-precision",
        altered(lambda values, first, x, knots, nu: (values.astype(float), first)),
        set(),
    ),
    (
        "derivatives",
        altered(lambda values, first, x, knots, nu: (values * (1.001 if nu else 1.0), first)),
        set(),
    ),
]


@pytest.mark.parametrize(("promise", "routine", "consequences"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_planted_fault_is_named_by_its_promise(promise, routine, consequences):
    report = check_spline_basis(routine, max_examples=8, raise_on_failure=False)
    assert promise in report.names("broken")
    assert set(report.names("broken")) <= {promise, *consequences}


def test_scipy_is_accurate_and_refuses_what_it_must():
    report = check_spline_basis(
        lambda x, knots, degree: BSpline.design_matrix(x, knots, degree), max_examples=6, raise_on_failure=False
    )
    assert {"values", "fine-grids", "local"} <= set(report.names("kept"))
    assert "derivatives" in report.names("not offered")


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="max_examples must be at least 1, got 0"):
        check_spline_basis(ours, max_examples=0)
    with pytest.raises(ValueError, match=r"promises must be among values, .* got 'speed'"):
        check_spline_basis(ours, promises=["speed"])

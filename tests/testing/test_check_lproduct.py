"""check_lproduct passes a correct product and names the promise that a broken one breaks."""

from __future__ import annotations

import numpy as np
import pytest

from tensorfact.testing import LPRODUCT_PROMISES, check_lproduct

NAMES = [promise.name for promise in LPRODUCT_PROMISES]


def reference(a, b, z):
    """Written out in double precision: slow, and right in every respect."""
    if a.ndim < 3 or b.ndim < 3 or not a.size or not b.size:
        raise ValueError("tensors must have three axes and not be empty")
    if not a.shape[-1] == b.shape[-1] == z.shape[0] == z.shape[1] or a.shape[-2] != b.shape[-3]:
        raise ValueError("sizes do not fit")
    if a.dtype != b.dtype:
        raise ValueError("dtypes differ")
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or np.linalg.cond(z) > 1e12:
        raise ValueError("not finite, or a singular transform")
    wide = np.result_type(a.dtype, z.dtype, np.float64)
    faces = np.einsum("...mlu,...lnu->...mnu", a.astype(wide) @ z.T, b.astype(wide) @ z.T)
    found = faces @ np.linalg.inv(z).T
    return (found.real if a.dtype.kind != "c" else found).astype(a.dtype)


def test_a_correct_product_keeps_every_promise():
    report = check_lproduct(reference, max_examples=15)
    assert report.names("kept") == tuple(NAMES)
    assert all(result.examples > 0 and result.detail == "" for result in report)


def applies_z_twice(a, b, z):
    return reference(a, b, z) if np.allclose(z, np.eye(len(z))) else reference(a, b, z) @ z.T @ z.T


def unitary_dft(a, b, z):
    return reference(a, b, z / np.linalg.norm(z[0]))


def forgets_the_conjugate_face(a, b, z):
    found = reference(a, b, z)
    return found if a.shape[-1] < 3 or not np.iscomplexobj(z) else found[..., ::-1]


def single_precision(a, b, z):
    return reference(a, b, z).astype(np.float32).astype(a.dtype)


def complex_out(a, b, z):
    return reference(a, b, z) + 0j


def drops_imaginary_parts(a, b, z):
    return reference(a.real, b.real, z).astype(a.dtype)


def modifies(a, b, z):
    found = reference(a, b, z)
    a *= 2
    return found


def promotes(a, b, z):
    return reference(a.astype(np.result_type(a, b)), b.astype(np.result_type(a, b)), z)


def reads_in_memory_order(a, b, z):
    return reference(np.ravel(a, order="K").reshape(a.shape), b, z)


@pytest.mark.parametrize(
    ("fault", "promise"),
    [
        (applies_z_twice, "definition"),
        (unitary_dft, "scaling"),
        (unitary_dft, "classical"),
        (forgets_the_conjugate_face, "classical"),
        (single_precision, "definition"),
        (complex_out, "real-stays-real"),
        (drops_imaginary_parts, "complex"),
        (modifies, "input-untouched"),
        (promotes, "refuses-mixed-dtypes"),
        (reads_in_memory_order, "any-layout"),
    ],
)
def test_a_planted_fault_is_named(fault, promise):
    report = check_lproduct(fault, promises=[promise], max_examples=40, raise_on_failure=False)
    assert report.names("broken") == (promise,)
    assert "case:" in report[0].detail


@pytest.mark.parametrize("promise", [name for name in NAMES if name.startswith("refuses")])
def test_a_product_that_refuses_nothing_is_found(promise):
    def careless(a, b, z):
        try:
            return reference(a, b, z)
        except ValueError:
            return np.zeros((1, 1, 1))

    assert check_lproduct(careless, promises=[promise], raise_on_failure=False).names("broken") == (promise,)


def test_what_is_refused_is_not_offered():
    def plain(a, b, z):
        if a.ndim != 3 or np.iscomplexobj(a):
            raise NotImplementedError("real tensors of order three only")
        return reference(a, b, z)

    report = check_lproduct(plain, promises=["complex", "batch"])
    assert report.names("not offered") == ("complex", "batch")
    assert "order three only" in report[1].detail


def test_arguments_are_judged():
    with pytest.raises(ValueError, match="promises must be among definition, associative"):
        check_lproduct(reference, promises=["nope"])
    with pytest.raises(ValueError, match="max_examples must be at least 1, got 0"):
        check_lproduct(reference, max_examples=0)
    with pytest.raises(AssertionError, match="real-stays-real"):
        check_lproduct(complex_out, promises=["real-stays-real"])

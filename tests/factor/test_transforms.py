"""Transforms of tubes: inverses, adjoints, scales, known matrices, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import fft

from tensorfact import Transform
from tensorfact.testing.tolerances import assert_close

NAMES = ("identity", "dct", "dst", "dft", "hartley", "haar")


def all_of(p):
    found = [getattr(Transform, name)(p) for name in NAMES if name != "haar" or p & (p - 1) == 0]
    given = np.random.default_rng(p).standard_normal((p, p)) + 3 * math.sqrt(p) * np.eye(p)
    return [*found, Transform.random_orthogonal(p, rng=p), Transform.from_matrix(given)]


@pytest.mark.parametrize("p", range(1, 17))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_inverse_undoes_forward_and_norms_scale(p, dtype):
    rng = np.random.default_rng(0)
    for transform in all_of(p):
        cond = np.linalg.cond(transform.matrix)
        for axis in (0, 1, -1):
            shape = [3, 4, 2]
            shape[axis] = p
            x = rng.standard_normal(shape).astype(dtype)
            hat = transform.forward(x, axis=axis)
            assert hat.shape == x.shape
            assert_close(hat, np.moveaxis(np.tensordot(transform.matrix, x, (1, axis)), 0, axis), dtype=dtype)
            assert_close(transform.inverse(hat, axis=axis), x, cond=cond, dtype=dtype)
            if transform.scale is not None:
                assert_allclose(
                    np.linalg.norm(hat), transform.scale * np.linalg.norm(x), rtol=100 * np.finfo(dtype).eps
                )
            y = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
            left, right = np.vdot(y, transform.forward(x, axis=axis)), np.vdot(transform.adjoint(y, axis=axis), x)
            assert_allclose(left, right, atol=1e4 * np.finfo(dtype).eps * transform.length)


def test_known_matrices():
    # specification, section 2: the orthonormal DCT-II of length 4
    rows = [[0.5] * 4, [0.6533, 0.2706, -0.2706, -0.6533], [0.5, -0.5, -0.5, 0.5], [0.2706, -0.6533, 0.6533, -0.2706]]
    assert_allclose(Transform.dct(4).matrix, rows, atol=5e-5)
    for p in (1, 2, 5, 8, 13):
        assert_allclose(Transform.dct(p).matrix, fft.dct(np.eye(p), axis=0, norm="ortho"), atol=1e-14)
        assert_allclose(Transform.dst(p).matrix, fft.dst(np.eye(p), axis=0, norm="ortho"), atol=1e-14)
        assert_allclose(Transform.dft(p).matrix, np.fft.fft(np.eye(p), axis=0), atol=1e-13)
        h = Transform.hartley(p).matrix
        assert_allclose(h @ h, np.eye(p), atol=1e-13)
    half = 0.5**0.5
    haar = [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, -0.5, -0.5], [half, -half, 0, 0], [0, 0, half, -half]]
    assert_allclose(Transform.haar(4).matrix, haar, atol=1e-15)


@pytest.mark.parametrize("name", ["dct", "dst", "dft"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.complex128])
def test_long_tubes_go_through_an_fft_with_the_same_result(name, dtype):
    p = 600
    transform = getattr(Transform, name)(p)
    x = np.random.default_rng(0).standard_normal((2, p, 3)).astype(dtype)
    by_matrix = Transform.from_matrix(transform.matrix)
    for way in ("forward", "inverse", "adjoint"):
        found = getattr(transform, way)(x, axis=1)
        assert_close(found, getattr(by_matrix, way)(x, axis=1), dtype=dtype, c=1000)
        assert (found.dtype.kind == "c") == (name == "dft" or x.dtype.kind == "c")


def test_random_orthogonal_is_seeded_and_orthogonal():
    z = Transform.random_orthogonal(7, rng=3)
    assert z == Transform.random_orthogonal(7, rng=np.random.default_rng(3))
    assert z != Transform.random_orthogonal(7, rng=4)
    assert z.scale == pytest.approx(1.0)
    assert_allclose(z.matrix @ z.matrix.T, np.eye(7), atol=1e-14)
    assert z.size == 49
    assert Transform.dct(7).size == 0


def test_scales_of_given_matrices_are_found():
    assert Transform.from_matrix(3 * Transform.dct(5).matrix).scale == pytest.approx(3.0)
    assert Transform.from_matrix(Transform.dft(5).matrix).scale == pytest.approx(math.sqrt(5))
    single = Transform.from_matrix(Transform.dct(5).matrix.astype(np.float32))
    assert single.scale == pytest.approx(1.0)  # orthogonal in single precision, made so in double
    assert_allclose(single.matrix @ single.matrix.T, np.eye(5), atol=1e-14)
    assert Transform.from_matrix(np.diag([1.0, 2.0])).scale is None


def test_partners_of_conjugate_rows():
    assert Transform.dft(5).partner.tolist() == [0, 4, 3, 2, 1]
    assert Transform.from_matrix(Transform.dft(5).matrix[[1, 0, 4, 2, 3]]).partner.tolist() == [2, 1, 0, 4, 3]
    assert Transform.from_matrix(1j * np.eye(3)).partner is None


def test_arrays_carry_a_transform():
    for transform in all_of(4):
        again = Transform.from_arrays(transform.to_arrays())
        assert again == transform
        assert hash(again) == hash(transform)
        assert again.scale == transform.scale
    with pytest.raises(ValueError, match="arrays must hold transform"):
        Transform.from_arrays({})


def test_repr_is_one_line():
    assert repr(Transform.dct(4)) == "Transform.dct(4)"
    assert repr(Transform.from_matrix(np.diag([1.0, 2.0]))) == "Transform(matrix, p=2, not orthogonal)"
    assert repr(Transform.random_orthogonal(3, 0)) == "Transform(random, p=3, scale 1)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Transform.haar(6), "p must be a power of two for the Haar wavelet, got 6"),
        (lambda: Transform.dct(0), "p must be at least 1, got 0"),
        (lambda: Transform.dct(2.5), "p must be an integer"),
        (lambda: Transform("cosine", 4), "name must be one of identity, dct"),
        (lambda: Transform.from_matrix(np.ones((3, 3))), "m must be invertible, its condition number is"),
        (lambda: Transform.from_matrix(np.ones((3, 2))), r"m must be a square matrix, got shape \(3, 2\)"),
        (lambda: Transform.from_matrix(np.full((2, 2), np.nan)), "m must be finite, got NaN"),
        (lambda: Transform.from_matrix([["a"]]), "m must hold numbers"),
        (lambda: Transform.dct(4).forward(np.ones((2, 3))), "must have the length 4 of the transform"),
        (lambda: Transform.dct(4).forward(np.ones((2, 4)), axis=2), "axis must be between -2 and 1, got 2"),
        (lambda: Transform.dct(4).forward(np.ones((2, 4)), axis=0.5), "axis must be an integer, got 0.5"),
    ],
)
def test_refusals_name_what_is_wrong(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_ill_conditioned_matrix_warns():
    with pytest.warns(UserWarning, match="m is ill-conditioned"):
        Transform.from_matrix(np.diag([1.0, 1e-9]))

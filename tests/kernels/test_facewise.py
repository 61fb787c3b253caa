"""The kernels on tubes against einsum in float64: both layouts, odd sizes, threads, what lies beyond the arrays."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from tensorfact import kernels

DTYPES = [np.float32, np.float64]
TUBES = [1, 2, 3, 4, 5, 8, 13, 16]
SIZES = [(1, 1), (5, 17), (16, 48), (33, 50), (64, 7)]

pytestmark = pytest.mark.usefixtures("rung")


def make(rows, p, inner, columns, last, dtype, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, inner, p) if last else (rows, p, inner)).astype(dtype)
    faces = rng.standard_normal((p, inner, columns)).astype(dtype)
    forward, inverse = rng.standard_normal((2, p, p)).astype(dtype)
    return x.reshape(rows, p * inner), faces, forward, inverse


def expected_faces(x, forward, last):
    rows, p = x.shape[0], forward.shape[0]
    x = x.astype(np.float64).reshape((rows, -1, p) if last else (rows, p, -1))
    return np.einsum("uk,tjk->utj" if last else "uk,tkj->utj", forward.astype(np.float64), x)


def expected_product(x, faces, forward, inverse, last):
    product = expected_faces(x, forward, last) @ faces.astype(np.float64)
    spec = "ku,utj->tjk" if last else "ku,utj->tkj"
    return np.einsum(spec, inverse.astype(np.float64), product).reshape(x.shape[0], -1)


def close(actual, expected, dtype, terms):
    # sums of `terms` rounded products of normal numbers, whose size the largest result shows
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(actual, expected, rtol=0, atol=10 * eps * np.sqrt(terms) * np.abs(expected).max())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [True, False])
def test_both_equal_einsum(rung, dtype, last):
    for p in TUBES if rung == "cpp" else (1, 3, 8):
        for inner, columns in SIZES if rung == "cpp" else SIZES[1:3]:
            for rows in (1, 3, 25, 130):
                x, faces, forward, inverse = make(rows, p, inner, columns, last, dtype)
                found, finite = kernels.tube_faces(x, forward, last=last)
                assert finite
                assert found.dtype == dtype
                close(found, expected_faces(x, forward, last), dtype, p)
                y, finite = kernels.facewise_product(x, faces, forward, inverse, last=last)
                assert finite
                assert y.dtype == dtype
                close(y, expected_product(x, faces, forward, inverse, last), dtype, p * p * inner)


def test_a_bias_is_added_to_slices():
    x, faces, forward, inverse = make(30, 4, 9, 21, False, np.float64)
    bias = np.random.default_rng(1).standard_normal(84)
    y, _ = kernels.facewise_product(x, faces, forward, inverse, bias, last=False)
    close(y, expected_product(x, faces, forward, inverse, False) + bias, np.float64, 150)


def test_a_result_may_not_lie_on_the_bias():
    x, faces, forward, inverse = make(30, 4, 9, 21, False, np.float64)
    out = np.ones((30, 84))
    with pytest.raises(ValueError, match="out must not share memory"):
        kernels.facewise_product(x, faces, forward, inverse, out[29], last=False, out=out)
    assert (out == 1).all()


def test_no_rows():
    x, faces, forward, inverse = make(0, 4, 3, 5, True, np.float32)
    assert kernels.facewise_product(x, faces, forward, inverse)[0].shape == (0, 20)
    assert kernels.tube_faces(x, forward)[0].shape == (4, 0, 3)


@pytest.mark.parametrize("last", [True, False])
def test_bits_do_not_depend_on_threads_or_company(rung, last):
    x, faces, forward, inverse = make(301, 8, 20, 30, last, np.float32)
    one, _ = kernels.facewise_product(x, faces, forward, inverse, last=last, workers=1)
    front, _ = kernels.tube_faces(x, forward, last=last, workers=1)
    for workers in (2, 7):
        np.testing.assert_array_equal(
            one, kernels.facewise_product(x, faces, forward, inverse, last=last, workers=workers)[0]
        )
        np.testing.assert_array_equal(front, kernels.tube_faces(x, forward, last=last, workers=workers)[0])
    if rung == "cpp":  # BLAS, which the other rungs use, sums one row otherwise than many
        alone = [kernels.facewise_product(row[None], faces, forward, inverse, last=last)[0] for row in x[:20]]
        np.testing.assert_array_equal(one[:20], np.concatenate(alone))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("last", [True, False])
def test_nothing_beyond_the_arrays_is_read_or_written(rung, dtype, last):
    """Inputs at the very end of a mapped page, output between guards: a vector too far faults or shows."""
    if rung != "cpp":
        pytest.skip("only the compiled kernel has vectors")
    for p, inner, columns in [(4, 5, 7), (16, 3, 17), (3, 17, 5)]:
        x, faces, forward, inverse = make(19, p, inner, columns, last, dtype)
        ends = []
        for array in (x, faces):
            memory = mmap.mmap(-1, 1 << 16)
            ends.append(np.frombuffer(memory, dtype)[-array.size :].reshape(array.shape))
            ends[-1][...] = array
        guarded = np.full((21, p * columns), 7.0, dtype)
        kernels.facewise_product(ends[0], ends[1], forward, inverse, last=last, out=guarded[1:-1])
        close(guarded[1:-1], expected_product(x, faces, forward, inverse, last), dtype, p * p * inner)
        assert (guarded[[0, -1]] == 7.0).all()
        guarded = np.full((p * 19 + 2, inner), 7.0, dtype)
        kernels.tube_faces(ends[0], forward, last=last, out=guarded[1:-1])
        assert (guarded[[0, -1]] == 7.0).all()


@pytest.mark.parametrize("last", [True, False])
def test_numbers_that_are_not_finite_are_told_and_stay_in_their_row(last):
    for bad in (np.nan, np.inf, -np.inf):
        x, faces, forward, inverse = make(9, 4, 5, 6, last, np.float32)
        x[3, 7] = bad
        assert not kernels.tube_faces(x, forward, last=last)[1]
        y, finite = kernels.facewise_product(x, faces, forward, inverse, last=last)
        assert not finite
        inside = np.isfinite(y)
        assert inside[[0, 1, 2, 4, 5, 6, 7, 8]].all()
        assert not inside[3].all()


def test_a_product_that_overflows_is_no_bad_input():
    y, finite = kernels.facewise_product(
        np.full((2, 4), 1e30, np.float32), np.full((2, 2, 2), 1e30), np.eye(2), np.eye(2)
    )
    assert finite
    assert not np.isfinite(y).any()


def test_layouts_and_casts():
    x, faces, forward, inverse = make(40, 4, 6, 5, True, np.float64)
    expected = expected_product(x[::2], faces, forward, inverse, True)
    got, _ = kernels.facewise_product(
        x[::2], np.asfortranarray(faces), np.asfortranarray(forward), np.asfortranarray(inverse)
    )
    close(got, expected, np.float64, 96)
    assert kernels.facewise_product(x.astype(np.float16), faces, forward, inverse)[0].dtype == np.float32


def test_bad_arguments_are_named():
    x, faces, forward, inverse = make(2, 4, 3, 5, False, np.float64)
    for args, options, message in [
        ((x[:, :-1], faces, forward, inverse), {}, r"x must have a multiple of 4 columns, got shape \(2, 11\)"),
        ((x + 1j, faces, forward, inverse), {}, "x must be real, got dtype complex128"),
        ((x, faces, forward[:2], inverse), {}, r"forward must be real and square, up to 16, got float64 \(2, 4\)"),
        ((x, faces, np.eye(17), inverse), {}, "up to 16"),
        ((x, faces, forward, inverse[:2, :2]), {}, "inverse the shape of forward"),
        ((x, faces[:, :2], forward, inverse), {}, "x must have 8 columns"),
        ((x, faces[0], forward, inverse), {}, r"faces must be real of shape \(4, l, n\)"),
        ((x, faces, forward, inverse, np.ones(3)), {"last": False}, r"bias must have shape \(20,\)"),
        ((x, faces, forward, inverse, np.ones(20)), {}, "bias must be None with last=True"),
        ((x, faces, forward, inverse), {"out": np.ones((2, 3))}, "out must be an array of float64 with shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernels.facewise_product(*args, **options)


def test_addresses_are_offered_by_the_compiled_rung_only(rung):
    from tensorfact.kernels.facewise import compiled

    assert (compiled() is not None) == (rung == "cpp")

"""The chain kernels against einsum in float64: directions, ragged shapes, layouts, threads, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tensorfact import kernels
from tensorfact.kernels import _dispatch

DTYPES = [np.float32, np.float64]
# rows and columns of each core, bonds
CASES = {
    "one core": ([5], [7], []),
    "whole vectors": ([6, 32], [3, 16], [4]),
    "ragged": ([5, 13], [8, 3], [3]),
    "ones": ([1, 7, 1], [1, 1, 5], [1, 2]),
    "wide tiles": ([7, 100], [3, 65], [2]),
    "three": ([4, 3, 8], [2, 5, 6], [5, 3]),
    "four": ([2, 3, 2, 17], [3, 2, 2, 2], [3, 7, 2]),
    "tall bond": ([3, 4], [4, 5], [12]),
}

pytestmark = pytest.mark.usefixtures("rung")


def make(case, seed=0):
    rows, cols, bonds = CASES[case]
    rng = np.random.default_rng(seed)
    ends = [1, *bonds, 1]
    return [rng.standard_normal((ends[k], rows[k], cols[k], ends[k + 1])) for k in range(len(rows))]


def dense(cores):
    """The weight by one einsum over named axes, in float64."""
    order = len(cores)
    operands = []
    for k, core in enumerate(cores):
        operands += [core.astype(np.float64), [k, 20 + k, 40 + k, k + 1]]
    weight = np.einsum(*operands, [*range(20, 20 + order), *range(40, 40 + order)])
    return weight.reshape(math.prod(core.shape[1] for core in cores), -1)


def close(actual, expected, dtype, terms):
    # a sum of `terms` rounded products, its parts no larger than the norms allow
    scale = 10 * np.finfo(dtype).eps * math.sqrt(terms) * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=max(scale, 100 * np.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", ["left", "right"])
def test_chain_equals_einsum(rung, dtype, direction):
    names = ["ragged", "three"] if rung == "numba" else CASES
    for case in names:
        cores = [core.astype(dtype) for core in make(case)]
        weight = dense(cores)
        rng = np.random.default_rng(1)
        bias = rng.standard_normal(weight.shape[0]).astype(dtype)
        for tokens in (0, 1, 2, 9, 33):
            x = rng.standard_normal((tokens, weight.shape[1])).astype(dtype)
            expected = x.astype(np.float64) @ weight.T
            got = kernels.chain(x, cores, direction=direction)
            assert got.dtype == dtype
            assert got.shape == expected.shape
            close(got, expected, dtype, weight.shape[1]) if tokens else None
            close(kernels.chain(x, cores, bias, direction=direction), expected + bias, dtype, 99) if tokens else None


@pytest.mark.parametrize("dtype", DTYPES)
def test_kron_sum_equals_einsum(rung, dtype):
    for m1, n1, r, m2, n2 in [(1, 1, 1, 1, 1), (3, 5, 2, 4, 16), (2, 7, 9, 3, 33), (6, 4, 1, 5, 3)]:
        rng = np.random.default_rng(0)
        left = rng.standard_normal((m1, n1, r)).astype(dtype)
        right = rng.standard_normal((r, m2, n2)).astype(dtype)
        expected = np.einsum("ija,akl->ikjl", left.astype(float), right.astype(float)).reshape(m1 * m2, n1 * n2)
        got = kernels.kron_sum(left, right)
        assert got.dtype == dtype
        close(got, expected, dtype, r)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_beyond_the_arrays_is_read_or_written(rung, dtype):
    """Inputs at the very end of a mapped page, output between guards: a vector too far faults or shows."""
    if rung != "cpp":
        pytest.skip("only the compiled kernel has vectors")
    import mmap

    cores = [core.astype(dtype) for core in make("ragged")]
    weight = dense(cores)
    for tokens in (1, 3, 17):
        count = tokens * weight.shape[1]
        memory = mmap.mmap(-1, 1 << 16)
        x = np.frombuffer(memory, dtype)[-count:].reshape(tokens, -1)
        x[...] = np.random.default_rng(0).standard_normal(x.shape)
        for direction in ("left", "right"):
            guarded = np.full((tokens + 2, weight.shape[0]), 7.0, dtype)
            kernels.chain(x, cores, direction=direction, out=guarded[1:-1])
            close(guarded[1:-1], x.astype(float) @ weight.T, dtype, 99)
            assert (guarded[[0, -1]] == 7.0).all()


def test_bits_do_not_depend_on_threads_or_company(rung):
    cores = [core.astype(np.float32) for core in make("three")]
    x = np.random.default_rng(0).standard_normal((301, 60)).astype(np.float32)
    for direction in ("left", "right"):
        one = kernels.chain(x, cores, direction=direction, workers=1)
        for workers in (2, 7):
            np.testing.assert_array_equal(one, kernels.chain(x, cores, direction=direction, workers=workers))
        if rung == "cpp":  # BLAS, which the other rungs use, sums one row otherwise than many
            alone = np.concatenate([kernels.chain(row[None], cores, direction=direction) for row in x[:20]])
            np.testing.assert_array_equal(one[:20], alone)


def test_layouts_and_casts():
    cores = make("ragged")
    weight = dense(cores)
    x = np.random.default_rng(0).standard_normal((40, 48))[::2, ::2]
    close(kernels.chain(x, [np.asfortranarray(core) for core in cores]), x @ weight.T, np.float64, 24)
    got = kernels.chain(x.astype(np.float16), cores)
    assert got.dtype == np.float32
    whole = np.arange(24).reshape(1, 24)
    close(kernels.chain(whole, cores), whole @ weight.T, np.float64, 24)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_their_row(bad):
    cores = make("ragged")
    x = np.ones((5, 24))
    x[2, 3] = bad
    for direction in ("left", "right"):
        finite = np.isfinite(kernels.chain(x, cores, direction=direction))
        assert finite[[0, 1, 3, 4]].all()
        assert not finite[2].all()


def test_out_is_used_and_inputs_are_left():
    cores = make("three")
    x = np.random.default_rng(0).standard_normal((4, 60))
    before = x.copy(), [core.copy() for core in cores]
    out = np.empty((4, 96))
    assert kernels.chain(x, cores, out=out) is out
    np.testing.assert_array_equal(x, before[0])
    for core, kept in zip(cores, before[1], strict=True):
        np.testing.assert_array_equal(core, kept)


def test_a_result_may_not_lie_on_the_bias():
    cores = make("ragged")
    out = np.ones((30, 65))
    with pytest.raises(ValueError, match="out must not share memory"):
        kernels.chain(np.ones((30, 24)), cores, out[29], out=out)


def test_bad_arguments_are_named():
    cores = make("ragged")
    x = np.ones((2, 24))
    for args, options, message in [
        ((np.ones((2, 23)), cores), {}, r"x must have 24 columns.*got shape \(2, 23\)"),
        ((x[0], cores), {}, r"x must have 2 axes, got shape \(24,\)"),
        ((x + 1j, cores), {}, "x must be real, got dtype complex128"),
        ((x, []), {}, "cores must be from 1 to 16 arrays, got 0"),
        (
            (x, [cores[0], cores[1][:2]]),
            {},
            r"cores\[1\] must be real of shape \(3, m, n, r'\), got float64 \(2, 13, 3, 1\)",
        ),
        ((x, [cores[0]]), {}, "the last core must end in a bond of 1"),
        ((x, cores, np.ones(3)), {}, r"bias must have shape \(65,\), got \(3,\)"),
        ((x, cores), {"direction": "up"}, 'direction must be "left" or "right", got \'up\''),
        ((x, cores), {"out": np.ones((2, 3))}, "out must be an array of float64 with shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernels.chain(*args, **options)
    with pytest.raises(ValueError, match="left and right must be"):
        kernels.kron_sum(np.ones((2, 2, 3)), np.ones((2, 2, 2)))
    with pytest.raises(ValueError, match="must be real"):
        kernels.kron_sum(np.ones((2, 2, 2)) * 1j, np.ones((2, 2, 2)))


def test_addresses_are_offered_by_the_compiled_rung_only(rung):
    from tensorfact.kernels.chain import compiled

    assert (compiled() is not None) == (rung == "cpp")
    assert compiled() is (_dispatch._core if rung == "cpp" else None)

"""tt_svd takes what users hold: any layout, halves, integers, other libraries, any scale; and names what it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from tensorfact import tt_svd
from tensorfact.factor import _tt_tall
from trains import left_defect, tensor, true_error


def example(dtype=np.float64, order=17):
    return tensor((2,) * order, 4, dtype, np.random.default_rng(0), noise=1e-2)


@pytest.mark.parametrize("method", ["tsqr", "sketch"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_every_layout_gives_the_error_of_its_numbers(method, dtype, monkeypatch):
    monkeypatch.setattr(_tt_tall, "_BLOCK_BYTES", 1 << 17)
    base = tensor((4, 8, 3, 16, 5, 6, 4), 3, dtype, np.random.default_rng(1), noise=1e-2)
    views = {
        "C": base,
        "Fortran": np.asfortranarray(base),
        "permuted": base.transpose(3, 1, 0, 2, 6, 5, 4),
        "reversed": base[::-1, :, ::-1],
        "strided": np.repeat(base, 2, axis=3)[:, :, :, ::2],
        "broadcast": np.broadcast_to(base[:1], base.shape),
        "other byte order": base.astype(base.dtype.newbyteorder()),
        "unaligned": np.frombuffer(bytearray(base.nbytes + 1), np.uint8)[1:].view(dtype).reshape(base.shape),
    }
    views["unaligned"][...] = base
    for name, view in views.items():
        train = tt_svd(view, rank=3, method=method, rng=0)
        assert train.error == pytest.approx(true_error(view, train), rel=1e-3), name
        assert left_defect(train) <= 100 * np.finfo(dtype).eps, name
        assert train.dtype == np.dtype(dtype), name


@pytest.mark.parametrize("method", ["auto", "tsqr", "sketch"])
@pytest.mark.parametrize("shape", [(2, 3, 4000), (4000, 3, 2), (300, 300), (2000, 30), (30, 2000), (1, 500, 1, 40, 1)])
def test_flat_and_square_unfoldings(shape, method):
    a = tensor(shape, 6, np.float64, np.random.default_rng(2), decay=0.5, noise=1e-3)
    for wish in ({"rank": 3}, {"tol": 1e-2}):
        train = tt_svd(a, method=method, rng=0, **wish)
        assert train.error == pytest.approx(true_error(a, train), rel=1e-3)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_halves_compute_in_float32_and_are_cast_back(name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    a = tensor((8, 9, 10, 11), 3, np.float32, np.random.default_rng(3), noise=0.1).astype(dtype)
    train = tt_svd(a, rank=3, rng=0)
    assert train.dtype == dtype
    assert train.error == pytest.approx(true_error(a.astype(np.float32), train), rel=5e-2)


def test_integers_become_float64():
    a = np.arange(120).reshape(4, 5, 6)
    train = tt_svd(a, tol=1e-10)
    assert train.dtype == np.float64
    assert train.ranks == (1, 2, 2, 1)
    assert true_error(a, train) <= 1e-10
    assert tt_svd(a.tolist(), rank=1).order == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
@pytest.mark.parametrize("method", ["tsqr", "sketch"])
def test_extreme_scales(dtype, method):
    a = example(dtype, 15)
    plain = tt_svd(a, rank=3, method=method, rng=0)
    for factor in (np.finfo(dtype).max / 10, np.finfo(dtype).tiny * 1e4):
        train = tt_svd(a * a.real.dtype.type(factor), rank=3, method=method, rng=0)
        assert "scaled" in train.info.notes
        assert train.error == pytest.approx(plain.error, rel=1e-3)
        assert np.isfinite(train.cores[-1]).all()
        np.testing.assert_allclose(train.cores[0], plain.cores[0], atol=1e-3)


def arrays():
    torch = pytest.importorskip("torch")
    strict = pytest.importorskip("array_api_strict")
    pytest.importorskip("array_api_compat")
    return {"torch": torch.from_numpy, "strict": strict.asarray}


@pytest.mark.parametrize("library", ["torch", "strict"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
@pytest.mark.parametrize("method", ["auto", "tsqr", "sketch"])
def test_arrays_of_other_libraries(library, dtype, method):
    make = arrays()[library]
    for shape in ((2,) * 17, (5, 4, 3000)):
        host = tensor(shape, 4, dtype, np.random.default_rng(4), noise=1e-2)
        train = tt_svd(make(host), rank=4, method=method, rng=0)
        assert type(train.cores[0]) is type(make(host))
        assert train.dtype == make(host).dtype
        cores = [np.asarray(core) for core in train.cores]
        dense = np.ones((1, 1))
        for core in cores:
            dense = (dense @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[2])
        actual = np.linalg.norm(dense.reshape(shape) - host) / np.linalg.norm(host)
        assert train.error == pytest.approx(actual, rel=1e-3)
        small = tt_svd(make(host), tol=0.1, method=method, rng=0)
        assert small.error <= 0.1


def test_torch_halves_and_gradients():
    torch = pytest.importorskip("torch")
    pytest.importorskip("array_api_compat")
    a = torch.from_numpy(example(np.float32, 14)).requires_grad_()
    assert not tt_svd(a, rank=2).cores[0].requires_grad
    half = tt_svd(a.detach().to(torch.bfloat16), rank=2)
    assert half.cores[0].dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(40,), (5, 6, 7), (2,) * 15])
def test_what_is_not_finite_is_refused(shape, bad):
    for dtype in (np.float32, np.complex128):
        a = np.ones(shape, dtype)
        a[(-1,) * a.ndim] = bad
        for method in ("auto", "tsqr", "sketch"):
            with pytest.raises(ValueError, match="a must be finite, got NaN or infinity"):
                tt_svd(a, rank=1, method=method)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_tolerance_below_rounding_is_refused_and_the_smallest_is_kept(dtype):
    a = example(np.float32, 10).astype(dtype)
    smallest = 10 * np.finfo(dtype).eps if dtype != np.float16 else 2.5 * a.ndim * 2.0**-11
    with pytest.raises(ValueError, match=r"tol must be a number in \["):
        tt_svd(a, tol=0.9 * smallest)
    train = tt_svd(a, tol=smallest)
    assert train.info.converged
    assert true_error(a.astype(np.float64), train) <= smallest


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: tt_svd(a), "give exactly one of rank and tol, got rank=None, tol=None"),
        (lambda a: tt_svd(a, rank=2, tol=0.1), "give exactly one of rank and tol"),
        (lambda a: tt_svd(a, rank=2, max_rank=3), "max_rank goes with tol"),
        (lambda a: tt_svd(a, rank=0), "rank must be at least 1, got 0"),
        (lambda a: tt_svd(a, rank=2.5), "rank must be an integer, got 2.5"),
        (lambda a: tt_svd(a, rank=(2, 2, 2)), "rank must be an integer or hold 2 of them, one an inner bond"),
        (lambda a: tt_svd(a, rank=(2, 0)), r"rank\[1\] must be at least 1, got 0"),
        (lambda a: tt_svd(a, tol=0.1, max_rank=-1), "max_rank must be at least 1, got -1"),
        (lambda a: tt_svd(a, tol=-0.1), "tol must be a number in .* got -0.1"),
        (lambda a: tt_svd(a, tol=1.0), "tol must be a number in .* got 1.0"),
        (lambda a: tt_svd(a, tol=np.nan), "tol must be a number in .* got nan"),
        (lambda a: tt_svd(a, rank=1, method="svd"), "method must be 'auto', 'tsqr' or 'sketch', got 'svd'"),
        (lambda a: tt_svd(a, rank=1, workers=0), "workers must be a positive integer or None, got 0"),
        (lambda a: tt_svd(np.float64(3.0), rank=1), r"a must have at least one mode, got a scalar of shape \(\)"),
        (lambda a: tt_svd(np.empty((3, 0, 2)), rank=1), r"a must not be empty, got shape \(3, 0, 2\)"),
        (lambda a: tt_svd(np.array(["x"]), rank=1), "a must hold float16, .* got dtype <U1"),
        (lambda a: tt_svd(np.ma.masked_array(a), rank=1), "a must not be a masked array"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((3, 4, 5)))


@pytest.mark.parametrize(("value", "dtype"), [(3e38, np.float32), (1.7e308, np.float64), (1000, np.float16)])
def test_a_norm_beyond_the_dtype_is_refused(value, dtype):
    with pytest.raises(ValueError, match="a must have a norm that fits its dtype"):
        tt_svd(np.full((100, 100, 100), value, dtype), tol=0.1)


def test_norms_of_tiny_data_are_right():
    info = tt_svd(np.full((20, 20, 20), 1e-305), rank=1).info
    assert info.norm == pytest.approx(1e-305 * 8000**0.5)

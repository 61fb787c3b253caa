"""randomized_svd takes what users hold: halves, files, operators, other libraries; and names what it cannot take."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import tensorfact
from matrices import power_law, ratios
from tensorfact.factor import _input
from tensorfact.testing import optimal_errors, relative_error, spectral_error


def half_types():
    yield np.dtype(np.float16)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    yield np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("index", [0, 1])
def test_half_precision_computes_in_float32_and_is_cast_back(index):
    dtype = list(half_types())[index]
    a = power_law(120, 90, 1.0)[0].astype(dtype)
    result = tensorfact.randomized_svd(a, rank=20, rng=0)
    assert result.u.dtype == result.s.dtype == result.vh.dtype == dtype
    wide = (result.u.astype(float) * result.s.astype(float)) @ result.vh.astype(float)
    assert_allclose(result.error, relative_error(a.astype(float), wide), rtol=1e-3)
    kept = tensorfact.randomized_svd(a, tol=0.1, rng=0)
    assert kept.error <= 0.1
    with pytest.raises(ValueError, match="tol must be a number in"):
        tensorfact.randomized_svd(a, tol=1e-3)


def test_half_precision_overflow_is_refused():
    with pytest.raises(ValueError, match="singular values overflow float16"):
        tensorfact.randomized_svd(np.full((200, 200), 60000.0, dtype=np.float16), rank=1)


def test_a_file_is_read_in_row_blocks_with_one_read_a_step(tmp_path, monkeypatch):
    a, s = power_law(700, 500)
    on_disk = np.memmap(tmp_path / "a.bin", dtype=np.float32, mode="w+", shape=a.shape)
    on_disk[:] = a
    on_disk.flush()
    monkeypatch.setattr(_input, "_STREAM_BYTES", 0)
    monkeypatch.setattr("tensorfact.factor._operand._BLOCK_BYTES", 64 << 10)
    source = np.memmap(tmp_path / "a.bin", dtype=np.float32, mode="r", shape=a.shape)
    result = tensorfact.randomized_svd(source, rank=40, certify=True, rng=0)
    frobenius, spectral = ratios(a, s, result)
    assert frobenius <= 1.005
    assert spectral <= 1.05
    assert result.spectral_bound >= spectral * s[40]
    assert result.info.matrix_reads == result.info.n_iter + 3  # sketch, steps, final product, norm
    assert tensorfact.randomized_svd(source, tol=0.5, rng=0).error <= 0.5
    assert_allclose(tensorfact.singular_values(source), s, rtol=1e-3)
    loud = np.memmap(tmp_path / "loud.bin", dtype=np.float32, mode="w+", shape=a.shape)
    loud[:] = a * 1e9  # beyond the safe range: scaled block by block, still a file
    scaled = tensorfact.randomized_svd(loud, rank=40, rng=0)
    assert scaled.info.matrix_reads == result.info.matrix_reads + 2  # the largest entry, and the norm again
    assert_allclose(scaled.s, result.s * 1e9, rtol=1e-4)
    wide = np.memmap(tmp_path / "a.bin", dtype=np.float32, mode="r", shape=(350, 1000))
    assert_allclose(tensorfact.singular_values(wide), np.linalg.svd(wide, compute_uv=False), rtol=1e-3, atol=1e-7)
    again = tensorfact.randomized_svd(wide, rank=40, rng=0)
    assert_allclose(again.error, relative_error(np.asarray(wide), again.reconstruct()), rtol=1e-4)


def test_a_copy_on_write_map_keeps_its_changes(tmp_path, monkeypatch):
    np.ones((64, 48), dtype=np.float32).tofile(tmp_path / "a.bin")
    monkeypatch.setattr(_input, "_STREAM_BYTES", 0)
    private = np.memmap(tmp_path / "a.bin", dtype=np.float32, mode="c", shape=(64, 48))
    private[:, :] = 2.0
    result = tensorfact.randomized_svd(private, rank=1, rng=0)
    assert_allclose(result.s, [2 * np.sqrt(64 * 48)], rtol=1e-5)
    assert (private == 2).all()


def test_safetensors_slices_are_streamed(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    numpy_io = pytest.importorskip("safetensors.numpy")
    a, _ = power_law(90, 70)
    numpy_io.save_file({"w": a, "h": a.astype(np.float16), "i": np.ones((3, 3), np.int32)}, tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="numpy") as opened:
        result = tensorfact.randomized_svd(opened.get_slice("w"), rank=10, rng=0)
        half = tensorfact.randomized_svd(opened.get_slice("h"), rank=10, rng=0)
        with pytest.raises(ValueError, match="safetensors slice of type I32"):
            tensorfact.randomized_svd(opened.get_slice("i"), rank=1)
    assert_allclose(result.error, relative_error(a, result.reconstruct()), rtol=1e-4)
    assert half.dtype == np.float16


def test_bfloat16_slices_of_torch_come_back_as_bfloat16(tmp_path):
    torch = pytest.importorskip("torch")
    safetensors, torch_io = pytest.importorskip("safetensors"), pytest.importorskip("safetensors.torch")
    pytest.importorskip("ml_dtypes")
    a = torch.from_numpy(power_law(90, 70)[0])
    torch_io.save_file({"w": a.to(torch.bfloat16)}, tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "a.safetensors", framework="pt") as opened:
        result = tensorfact.randomized_svd(opened.get_slice("w"), rank=10, rng=0)
    assert result.dtype.name == "bfloat16"
    assert result.error < 0.8


def test_the_certificate_covers_the_rounding_of_half_precision():
    a = (np.outer(np.arange(64.0), np.ones(48)) / 64).astype(np.float16)
    result = tensorfact.randomized_svd(a, rank=1, certify=True, rng=0)
    wide = (result.u.astype(float) * result.s.astype(float)) @ result.vh.astype(float)
    assert result.spectral_bound >= np.linalg.norm(a.astype(float) - wide, 2) > 0


def test_sparse_duplicates_count_once_and_tiny_entries_count():
    dense = np.random.default_rng(0).standard_normal((40, 30))
    rows, cols = np.indices(dense.shape)
    twice = [np.concatenate([x.ravel()] * 2) for x in (rows, cols, dense / 2)]
    coo = sparse.coo_array((twice[2], (twice[0], twice[1])), shape=dense.shape)
    result = tensorfact.randomized_svd(coo, rank=3, rng=0)
    assert_allclose(result.error, relative_error(dense, result.reconstruct()), rtol=1e-10)
    for tiny in (sparse.csr_array(np.eye(6) * 1e-170), aslinearoperator(np.eye(6) * 1e-170)):
        kept = tensorfact.randomized_svd(tiny, tol=0.1, rng=0)
        assert kept.rank == 6
        assert_allclose(kept.s, 1e-170, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30, 3e37])
def test_extreme_float32_operators_are_scaled(scale):
    a = (power_law(60, 40)[0] * np.float64(scale)).astype(np.float32)
    result = tensorfact.randomized_svd(aslinearoperator(a), rank=5, rng=0)
    assert result.s.dtype == np.float32
    assert "scaled" in result.info.notes
    reference = np.linalg.svd(a.astype(float), compute_uv=False)[:5]
    assert_allclose(result.s, reference, rtol=2e-2 if scale < 1e-40 else 1e-3)


def test_subnormal_and_nearly_overflowing_entries_are_served():
    assert_allclose(tensorfact.randomized_svd(np.eye(3) * 6e-309, rank=1, rng=0).s, [6e-309])
    huge = np.full((2, 2), 1e38 + 1e38j, dtype=np.complex64)
    assert_allclose(tensorfact.randomized_svd(huge, rank=1, rng=0).s, [2 * np.sqrt(2.0) * 1e38], rtol=1e-6)


@pytest.mark.parametrize("method", ["shifted", "krylov"])
def test_an_operator_may_use_its_buffer_again(method):
    a = power_law(90, 70, dtype=np.float64)[0]
    buffers: dict[tuple[int, ...], np.ndarray] = {}

    def into(name, product):
        out = buffers.setdefault((name, *product.shape), np.empty_like(product))
        out[:] = product
        return out

    reusing = LinearOperator(
        a.shape, matvec=None, matmat=lambda x: into(0, a @ x), rmatmat=lambda x: into(1, a.T @ x), dtype=a.dtype
    )
    one, two = (tensorfact.randomized_svd(x, rank=8, method=method, rng=0) for x in (reusing, aslinearoperator(a)))
    assert_allclose(one.s, two.s, rtol=1e-12)


def test_operators_that_cannot_be_served_are_named():
    complex_ones = LinearOperator((5, 4), matvec=None, matmat=lambda x: x[:4] * 1j, dtype=np.float64)
    with pytest.raises(ValueError, match="must return real numbers"):
        tensorfact.randomized_svd(complex_ones, rank=1)
    one_way = LinearOperator((5, 5), matvec=lambda x: x, matmat=lambda x: x, dtype=np.float64)
    with pytest.raises(ValueError, match="products with its adjoint"):
        tensorfact.randomized_svd(one_way, rank=1)
    with pytest.raises(ValueError, match="must not be a masked array"):
        tensorfact.randomized_svd(np.ma.masked_array(np.eye(3)), rank=1)


def test_operators_and_sparse_matrices():
    a = sparse.random(300, 200, density=0.05, rng=np.random.default_rng(0), dtype=np.float64).tocsr()
    dense = a.toarray()
    result = tensorfact.randomized_svd(a, rank=20, certify=True, rng=0)
    assert_allclose(result.error, relative_error(dense, result.reconstruct()), rtol=1e-8)
    free = tensorfact.randomized_svd(aslinearoperator(a), rank=20, certify=True, rng=0)
    assert np.isnan(free.error)  # its norm would cost min(m, n) products, which nobody asked for
    assert free.spectral_bound >= spectral_error(dense, free.reconstruct()) * np.linalg.norm(dense, 2)
    kept = tensorfact.randomized_svd(aslinearoperator(a), tol=0.6, rng=0)
    assert relative_error(dense, kept.reconstruct()) <= 0.6
    assert_allclose(kept.error, relative_error(dense, kept.reconstruct()), rtol=1e-8)


def test_an_operator_equals_the_array_bit_for_bit():
    """The same direct route, the same products: nothing but the source differs."""
    a = power_law(300, 200, dtype=np.float64)[0]
    operator = LinearOperator(a.shape, matmat=lambda x: a @ x, rmatmat=lambda x: a.T @ x, matvec=None, dtype=a.dtype)
    one, two = (tensorfact.randomized_svd(x, rank=20, n_iter=0, rng=3) for x in (a, operator))
    for x, y in zip(one, two, strict=True):
        assert np.array_equal(x, y)


@pytest.mark.parametrize("result", ["wrong shape", "nan"])
def test_a_lying_operator_is_named(result):
    bad = {"wrong shape": np.zeros((3, 3)), "nan": np.full((30, 15), np.nan)}[result]
    operator = LinearOperator((30, 30), matvec=None, matmat=lambda x: bad, rmatmat=lambda x: bad, dtype=np.float64)
    with pytest.raises(ValueError, match="operator must return"):
        tensorfact.randomized_svd(operator, rank=5)


@pytest.mark.parametrize("library", ["array_api_strict", "torch", "jax.numpy", "cupy"])
def test_arrays_of_other_libraries_stay_in_their_library(library):
    xp = pytest.importorskip(library)
    a, s = power_law(150, 220)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # JAX without x64 says that it has no float64
        result = tensorfact.randomized_svd(xp.asarray(a), rank=30, rng=0, certify=True)
        reference = tensorfact.randomized_svd(a, rank=30, rng=0)
    assert type(result.u) is type(result.s) is type(result.vh) is type(xp.asarray(a))
    assert str(result.dtype).endswith("float32")
    assert_allclose(result.error, reference.error, rtol=1e-4)
    assert_allclose(np.asarray(result.s), s[:30], rtol=1e-3)


def test_torch_bfloat16_and_gradients_are_left_behind():
    torch = pytest.importorskip("torch")
    a = torch.from_numpy(power_law(80, 60)[0]).to(torch.bfloat16).requires_grad_()
    result = tensorfact.randomized_svd(a, rank=10, rng=0)
    assert result.u.dtype == torch.bfloat16
    assert not result.u.requires_grad
    assert_allclose(result.error, optimal_errors(a.detach().float().numpy(), 10).frobenius, rtol=0.02)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "exactly one of rank and tol"),
        ({"rank": 2, "tol": 0.1}, "exactly one of rank and tol"),
        ({"rank": 2, "max_rank": 3}, "max_rank goes with tol"),
        ({"rank": 0}, "rank must be between 1 and 4, got 0"),
        ({"rank": 5}, "rank must be between 1 and 4, got 5"),
        ({"rank": 1.0}, "rank must be an integer, got 1.0"),
        ({"rank": True}, "rank must be an integer, got True"),
        ({"tol": 0.0}, "tol must be a number in"),
        ({"tol": 1.0}, "tol must be a number in"),
        ({"tol": "fine"}, "tol must be a number in"),
        ({"rank": 1, "n_iter": -1}, "n_iter must be at least 0, got -1"),
        ({"rank": 1, "n_oversamples": 2.5}, "n_oversamples must be an integer"),
        ({"rank": 1, "method": "power"}, "method must be 'subspace', 'krylov' or 'shifted', got 'power'"),
    ],
)
def test_options_out_of_range_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tensorfact.randomized_svd(np.eye(4, 6), **kwargs)


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (np.zeros((0, 3)), "must not be empty"),
        (np.zeros(3), "two axes"),
        (np.zeros((2, 2, 2)), "two axes"),
        (np.array([[1, None]], dtype=object), "got dtype object"),
        (np.array([["a"]]), "got dtype <U1"),
        (np.array([[True, False]]), "got dtype bool"),
        (np.array([[1.0, np.nan]]), r"must be finite, got NaN or infinity, first at index \(0, 1\)"),
        (np.array([[1.0], [-np.inf]]), r"must be finite, got NaN or infinity, first at index \(1, 0\)"),
    ],
)
def test_bad_matrices_are_named(a, message):
    with pytest.raises(ValueError, match=message):
        tensorfact.randomized_svd(a, rank=1)

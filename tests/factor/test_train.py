"""TensorTrain: arithmetic, canonical forms, indexing and contraction, against dense arrays in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import tensorfact
from chains import dense_of, make
from tensorfact import TensorTrain, TrainInfo
from tensorfact.testing import assert_close, assert_orthonormal
from tensorfact.testing.tensors import train_specs

few = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def close(found, wanted, dtype, scale=None):
    """Within 100 eps of the size of what was summed."""
    size = np.linalg.norm(wanted) if scale is None else scale
    assert np.linalg.norm(np.asarray(found) - wanted) <= 100 * np.finfo(dtype).eps * max(size, np.finfo(dtype).tiny)


@given(train_specs())
@few
def test_the_dense_tensor_is_the_einsum_of_the_cores(spec):
    train = TensorTrain(cores=spec.build())
    size = np.prod([np.linalg.norm(core) for core in train.cores])
    close(train.reconstruct(), dense_of(train), spec.dtype, size)
    assert train.reconstruct().dtype == train.to_dense().dtype == spec.dtype
    assert train.shape == spec.shape == train.reconstruct().shape
    assert train.ranks == (1, *(spec.rank,) * (len(spec.shape) - 1), 1)
    assert train.size == sum(core.size for core in train.cores)
    assert train.nbytes == sum(core.nbytes for core in train.cores)
    assert (train.order, train.ndim, train.dense_size) == (len(spec.shape), len(spec.shape), math.prod(spec.shape))


@given(train_specs(), st.integers(1, 4), st.sampled_from([2.0, -0.5, 3]))
@few
def test_arithmetic(spec, rank, factor):
    a = TensorTrain(cores=spec.build())
    b = make(spec.shape, rank, spec.dtype, spec.seed + 1)
    x, y = dense_of(a), dense_of(b)
    size = np.prod([np.linalg.norm(c) for c in a.cores]) + np.prod([np.linalg.norm(c) for c in b.cores])
    both = size**2
    for found, wanted, scale in (
        (a + b, x + y, size),
        (a - b, x - y, size),
        (a * b, x * y, both),
        (factor * a, factor * x, 4 * size),
        (a * factor, factor * x, 4 * size),
        (a / 4, x / 4, size),
        (-a, -x, size),
        (+a, x, size),
        (a + factor, x + factor, size + 4 * math.sqrt(x.size)),
        (factor - a, factor - x, size + 4 * math.sqrt(x.size)),
        (a - factor, x - factor, size + 4 * math.sqrt(x.size)),
        (a.conj(), x.conj(), size),
    ):
        assert found.dtype == spec.dtype
        close(dense_of(found), wanted, spec.dtype, scale)


@given(train_specs(), st.integers(1, 4))
@few
def test_inner_and_norm(spec, rank):
    a = TensorTrain(cores=spec.build())
    b = make(spec.shape, rank, spec.dtype, spec.seed + 1)
    x, y = dense_of(a), dense_of(b)
    size = np.prod([np.linalg.norm(c) for c in a.cores])
    close(a.inner(b), np.vdot(x, y), spec.dtype, size * np.prod([np.linalg.norm(c) for c in b.cores]))
    assert isinstance(a.dot(b), complex if np.dtype(spec.dtype).kind == "c" else float)
    close(a.norm(), np.linalg.norm(x), spec.dtype, size)


def test_a_complex_number_makes_every_core_complex():
    for dtype, wide in (("float32", "complex64"), ("float64", "complex128"), ("complex64", "complex64")):
        train = make((3, 4, 2), dtype=dtype)
        scaled = train * (2 - 1j)
        assert {core.dtype for core in scaled.cores} == {np.dtype(wide)}
        assert_close(dense_of(scaled), dense_of(train) * (2 - 1j), dtype=wide)
        assert (np.float64(2) * train).dtype == dtype  # a NumPy scalar takes no part in the precision


def test_types_meet_in_the_wider_one():
    total = make((3, 4), dtype="float32") + make((3, 4), dtype="float64")
    assert total.dtype == np.float64
    assert (make((3, 4), dtype="complex64") * make((3, 4), dtype="float64")).dtype == np.complex128


def test_the_norm_of_a_small_difference_keeps_its_digits():
    train = make((6, 5, 7), rank=4)
    moved = TensorTrain(cores=[*train.cores[:2], train.cores[2] * (1 + 1e-11)])
    exact = 1e-11 * np.linalg.norm(dense_of(train))
    assert (moved - train).norm() == pytest.approx(exact, rel=1e-3)  # through squares: noise of sqrt(eps)
    assert (train - train).norm() <= 1e-14 * train.norm()


@pytest.mark.parametrize(("dtype", "size"), [("float64", 1e200), ("float64", 1e-200), ("float32", 1e25)])
def test_norm_and_inner_leave_no_range(dtype, size):
    train = make((4, 4, 4), rank=2, dtype=dtype)
    norm = float(np.linalg.norm(dense_of(train)))
    big = TensorTrain(cores=[(core * size ** (1 / 3)).astype(dtype) for core in train.cores])
    assert big.norm() == pytest.approx(norm * size, rel=1e-4)
    assert big.left().norm() == pytest.approx(norm * size, rel=1e-4)
    assert big.inner(big / size) == pytest.approx(norm**2 * size, rel=1e-4)
    assert tensorfact.tt_round(big, rank=2).norm() == pytest.approx(norm * size, rel=1e-4)


def test_a_norm_beyond_float64_is_infinite_and_beyond_the_type_is_refused():
    large = np.full((1, 2, 1), 1e300)
    assert TensorTrain(cores=[large, large]).norm() == math.inf
    large = np.full((1, 2, 1), 1e30, np.float32)
    train = TensorTrain(cores=[large, large])
    assert train.norm() == pytest.approx(2e60, rel=1e-5)
    with pytest.raises(ValueError, match=r"the norm of the train must fit float32, got about 2\^2"):
        train.left()


@given(train_specs())
@few
def test_canonical_forms(spec):
    train = TensorTrain(cores=spec.build(), error=0.25)
    x = dense_of(train)
    size = np.prod([np.linalg.norm(c) for c in train.cores])
    middle = train.order // 2
    for form, at in ((train.left(), train.order - 1), (train.right(), 0), (train.centred(middle), middle)):
        for core in form.cores[:at]:
            assert_orthonormal(core.reshape(-1, core.shape[2]))
        for core in form.cores[at + 1 :]:
            assert_orthonormal(core.reshape(core.shape[0], -1), axis=0)
        close(dense_of(form), x, spec.dtype, size)
        close(form.norm(), np.linalg.norm(x), spec.dtype, size)
        assert form.dtype == spec.dtype
        assert form.error == 0.25
    assert (train.left().canonical, train.right().canonical) == ("left", "right")


def test_canonical_forms_cut_bonds_that_are_of_no_use():
    assert make((2, 2, 2), rank=9).left().ranks == (1, 2, 4, 1)
    assert make((2, 2, 2), rank=9).right().ranks == (1, 4, 2, 1)


KEYS = [
    0,
    -1,
    slice(None),
    slice(1, None),
    slice(None, None, -1),
    slice(3, 0, -2),
    (1, 2),
    (slice(0, 2), 1),
    (..., 1),
    (1, ...),
    (0, ..., -1),
    (None, 1),
    (slice(None), None, slice(1, 3)),
    (..., None),
    (1, None, slice(None), slice(None, None, 2)),
    (1, 2, 3),
    (None, 1, 2, 3),
    (np.int64(1), slice(None), np.int32(2)),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_indexing_follows_numpy(key, library):
    train = make((4, 5, 6), rank=3)
    x = dense_of(train)
    if library == "torch":
        torch = pytest.importorskip("torch")
        train = TensorTrain(cores=[torch.from_numpy(core.copy()) for core in train.cores])
    found = train[key]
    if x[key].ndim == 0:
        assert float(found) == pytest.approx(x[key])
    else:
        assert found.shape == x[key].shape
        assert_allclose(np.asarray(found.to_dense()), x[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        (7, IndexError, "index 7 is out of bounds for mode 0 with size 4"),
        ((0, 0, 0, 0), IndexError, "too many indices: the train has 3 modes, but 4 were indexed"),
        ((..., ...), IndexError, "single ellipsis"),
        (slice(2, 2), ValueError, "a slice must keep at least one index"),
        ([0, 1], IndexError, "gather"),
        (True, IndexError, "got bool"),
        (1.0, IndexError, "got float"),
        (np.array([1, 2]), IndexError, "got ndarray"),
    ],
)
def test_indices_that_are_refused(key, error, text):
    with pytest.raises(error, match=text):
        make((4, 5, 6))[key]


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_contraction_with_vectors(dtype):
    train = make((4, 5, 6), rank=3, dtype=dtype)
    x, rng = dense_of(train), np.random.default_rng(0)
    v = [rng.standard_normal(n).astype(dtype) for n in train.shape]
    if dtype == "complex128":
        v = [u + 1j * rng.standard_normal(u.size) for u in v]
    assert_close(train.contract(v), np.einsum("ijk,i,j,k", x, *v), dtype=dtype, c=1000)
    for chosen in ({0: v[0]}, {1: v[1]}, {-1: v[2], 0: v[0]}, {0: v[0], 1: v[1]}):
        wanted = x
        for mode in sorted((k % 3 for k in chosen), reverse=True):
            wanted = np.tensordot(wanted, v[mode], axes=(mode, 0))
        found = train.contract(chosen)
        assert found.dtype == dtype
        assert_close(dense_of(found), wanted, c=1000, dtype=dtype)
    assert_close(dense_of(train.contract([None, v[1], None])), np.einsum("ijk,j->ik", x, v[1]), c=1000, dtype=dtype)
    counts = train.contract([np.ones(4, int), None, None])
    assert counts.dtype == dtype
    assert_close(dense_of(counts), x.sum(axis=0), c=1000, dtype=dtype)


@pytest.mark.parametrize(
    ("vectors", "text"),
    [
        ([np.ones(4)], r"one vector or None a mode, got 1 for 3"),
        ([np.ones(4), np.ones(4), None], r"vectors\[1\] must have shape \(5,\), the size of its mode, got \(4,\)"),
        ({3: np.ones(4)}, "name modes from -3 to 2, got 3"),
        ({0: np.ones(4), -3: np.ones(4)}, "name a mode once, got -3 twice"),
    ],
)
def test_vectors_that_are_refused(vectors, text):
    with pytest.raises(ValueError, match=text):
        make((4, 5, 6)).contract(vectors)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_gather_evaluates_at_index_tuples(library, monkeypatch):
    monkeypatch.setattr("tensorfact.factor._train_algebra._GATHER_ENTRIES", 50)
    train = make((4, 5, 6), rank=3, dtype="complex128")
    x, points = dense_of(train), np.random.default_rng(0).integers(-4, 4, size=(7, 9, 3))
    if library == "torch":
        torch = pytest.importorskip("torch")
        train = TensorTrain(cores=[torch.from_numpy(core.copy()) for core in train.cores])
        points = torch.from_numpy(points)
    found = train.gather(points)
    assert tuple(found.shape) == (7, 9)
    wanted = x[tuple(np.moveaxis(np.asarray(points), -1, 0))]
    assert_allclose(np.asarray(found), wanted, rtol=1e-12, atol=1e-12)
    assert train.gather(np.zeros((0, 3), int)).shape == (0,)
    assert complex(train.gather([1, 2, 3])) == pytest.approx(x[1, 2, 3])


def test_indices_of_gather_that_are_refused():
    train = make((4, 5, 6))
    with pytest.raises(ValueError, match=r"indices must have shape \(..., 3\), one index a mode, got \(2,\)"):
        train.gather([0, 1])
    with pytest.raises(ValueError, match="indices must be integers, got dtype float64"):
        train.gather([0.0, 1.0, 2.0])
    with pytest.raises(IndexError, match="index 5 is out of bounds for mode 1 with size 5"):
        train.gather([[0, 0, 0], [0, 5, 0]])


def test_a_large_dense_tensor_is_made_on_request_only():
    train = TensorTrain(cores=[np.ones((1, 2, 1))] * 40)
    with pytest.raises(ValueError, match=r"must not exceed max_bytes=8589934592, got shape \(2, 2, .* 8796093022208 b"):
        train.reconstruct()
    with pytest.raises(ValueError, match="max_bytes=100"):
        make((4, 5, 6)).to_dense(max_bytes=100)
    assert make((4, 5, 6)).to_dense(max_bytes=None).shape == (4, 5, 6)
    assert train[(0,) * 38].to_dense().shape == (2, 2)


def test_errors_pass_through_exact_steps_and_become_unknown_in_others():
    exact, rough = make((3, 4)), TensorTrain(cores=make((3, 4)).cores, error=0.1)
    assert (exact + exact).error == (exact * exact).error == exact[0].error == 0.0
    assert (rough * -2).error == rough.conj().error == rough.left().error == 0.1
    assert math.isnan((rough + exact).error)
    assert math.isnan(rough[0].error)
    assert math.isnan((exact * rough).error)
    known = TensorTrain(cores=exact.cores, info=TrainInfo(norm=2.0, site_errors=(0.5,)))
    assert ((-3 * known).info.norm, (-3 * known).info.site_errors) == (6.0, (1.5,))


def test_scaling_keeps_the_orthonormal_side():
    train = make((3, 4, 5)).left()
    for core in (train * 7).cores[:-1]:
        assert_orthonormal(core.reshape(-1, core.shape[2]))
    right = make((3, 4, 5)).right() * 7
    assert right.canonical == "right"
    assert_orthonormal(right.cores[1].reshape(right.ranks[1], -1), axis=0)


def test_cores_are_read_only_views_and_the_arrays_of_the_caller_stay_writeable():
    cores = make((3, 4)).cores
    own = [core.copy() for core in cores]
    train = TensorTrain(cores=own)
    assert not train.cores[0].flags.writeable
    assert own[0].flags.writeable
    with pytest.raises(AttributeError):
        train.error = 1.0


@pytest.mark.parametrize(
    ("shapes", "text"),
    [
        ([], "at least one core"),
        ([(1, 2)], r"three axes \(r, n, r'\), got shape \(1, 2\) at 0"),
        ([(1, 2, 3), (2, 2, 1)], r"share a bond, got shapes \(1, 2, 3\) and \(2, 2, 1\) at 0 and 1"),
        ([(2, 2, 1)], "the outer bonds must be 1, got 2 and 1"),
        ([(1, 2, 3)], "the outer bonds must be 1, got 1 and 3"),
        ([(1, 0, 1)], r"must not be empty, got shape \(1, 0, 1\) at 0"),
    ],
)
def test_cores_that_are_refused(shapes, text):
    with pytest.raises(ValueError, match=text):
        TensorTrain(cores=[np.ones(shape) for shape in shapes])


def test_other_refusals():
    train = make((3, 4))
    with pytest.raises(ValueError, match="share one dtype, got float64 and float32 at 1"):
        TensorTrain(cores=[train.cores[0], train.cores[1].astype(np.float32)])
    with pytest.raises(ValueError, match="canonical must be 'left', 'right' or 'none', got 'up'"):
        TensorTrain(cores=train.cores, canonical="up")
    with pytest.raises(ValueError, match=r"one shape, got \(3, 4\) and \(4, 3\)"):
        train + make((4, 3))
    with pytest.raises(TypeError, match="other must be a TensorTrain, got ndarray"):
        train.inner(np.ones((3, 4)))
    for other in ("x", np.ones((3, 4)), None):
        with pytest.raises(TypeError):
            train + other
        with pytest.raises(TypeError):
            other * train
    with pytest.raises(ValueError, match="cores must be finite, got NaN or infinity in core 1"):
        TensorTrain(cores=[train.cores[0], train.cores[1] * np.nan]).left()


def test_repr_draws_the_chain():
    train = make((4, 5, 6), rank=3)
    assert repr(train) == "TensorTrain(4 -3- 5 -3- 6, 1.6x smaller, error=0)"
    assert repr(make((4, 5, 6), rank=2).left()).endswith("error=0, left)")
    assert repr(make((7,))) == "TensorTrain(7, 1x smaller, error=0)"
    long = repr(TensorTrain(cores=[np.ones((1, 2, 1))] * 40))
    assert "\n" not in long
    assert "2 -1- 2 -1- 2 -1- 2 -1- 2 ... 40 modes ... -1- 2 -1- 2 -1- 2 -1- 2 -1- 2" in long


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_other_libraries_give_the_same_numbers(library, dtype):
    xp = pytest.importorskip(library)
    a, b = make((3, 4, 5), 3, dtype), make((3, 4, 5), 2, dtype, seed=1)
    first, second = (TensorTrain(cores=[xp.asarray(core.copy()) for core in train.cores]) for train in (a, b))
    kind = type(first.cores[0])
    for found, wanted in (
        (first + second, a + b),
        (first - 2 * second, a - 2 * b),
        (first * second, a * b),
        (first.conj() + 1.5, a.conj() + 1.5),
        (first.left(), a),
        (first.right(), a),
        (first.centred(1), a),
        (first[1], a[1]),
        (first.contract({1: xp.asarray(np.ones(4, dtype))}), a.contract({1: np.ones(4, dtype)})),
    ):
        assert all(isinstance(core, kind) for core in found.cores)
        assert found.dtype == first.dtype
        assert_close(np.asarray(found.reconstruct()), dense_of(wanted), dtype=dtype, c=1000)
    assert first.inner(second) == pytest.approx(a.inner(b), rel=1e-4)
    assert first.norm() == pytest.approx(a.norm(), rel=1e-4)


def test_two_libraries_do_not_mix():
    torch = pytest.importorskip("torch")
    train = make((3, 4))
    with pytest.raises(TypeError, match="both trains must be of one array library"):
        train + TensorTrain(cores=[torch.from_numpy(core.copy()) for core in train.cores])


def test_gradients_reach_the_cores_through_contractions():
    torch = pytest.importorskip("torch")
    cores = [torch.from_numpy(core.copy()).requires_grad_() for core in make((3, 4)).cores]
    TensorTrain(cores=cores).reconstruct().sum().backward()
    wanted = cores[1].detach().sum(dim=1)[:, 0]
    assert torch.allclose(cores[0].grad, wanted[None, None, :].expand(1, 3, -1))


def test_half_precision_trains():
    torch = pytest.importorskip("torch")
    train = TensorTrain(cores=[torch.from_numpy(core.copy()).bfloat16() for core in make((3, 4, 5)).cores])
    wanted = np.linalg.norm(np.einsum("aib,bjc,ckd->ijk", *(core.float().numpy() for core in train.cores)))
    assert train.norm() == pytest.approx(wanted, rel=1e-5)
    assert train.left().dtype == torch.bfloat16
    assert train.inner(train) == pytest.approx(wanted**2, rel=1e-5)

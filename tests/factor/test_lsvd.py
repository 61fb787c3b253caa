"""t-SVD, truncations of known error, ranks, norms and thresholding."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from tensorfact import (
    LSVD,
    Transform,
    TruncatedLSVD,
    implicit_rank,
    lidentity,
    lnorm,
    lproduct,
    lsvd,
    lsvd_truncate,
    ltranspose,
    multirank,
    prox_nuclear,
    tubal_rank,
)
from tensorfact.testing.oracles import relative_error
from tensorfact.testing.tolerances import assert_close

ORTHOGONAL = ("identity", "dct", "dst", "dft", "hartley")
sides = st.sampled_from((1, 2, 3, 5, 8))
lengths = st.sampled_from((1, 2, 3, 4, 5, 8))
some_transforms = st.sampled_from(ORTHOGONAL)
some_dtypes = st.sampled_from(("float64", "float32", "complex128"))


def gauss(*shape, dtype=np.float64, seed=0):
    rng = np.random.default_rng((seed, *shape))
    a = rng.standard_normal(shape)
    return (a + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else a).astype(dtype)


def face_values(a, z):
    """Singular values of all faces over c, one row a face: their squares add up to the squared norm."""
    hat = np.moveaxis(np.asarray(a, complex) @ z.matrix.T, -1, 0)
    return np.linalg.svd(hat, compute_uv=False) / z.scale


@settings(max_examples=50, deadline=None)
@given(sides, sides, lengths, some_transforms, some_dtypes, st.booleans())
def test_tsvd_reconstructs_with_orthogonal_factors(m, l, p, name, dtype, full):
    a, z = gauss(m, l, p, dtype=dtype), Transform(name, p)
    found = lsvd(a, z, full=full)
    u, s, vh = found
    assert u.dtype == s.dtype == vh.dtype == found.dtype == a.dtype
    k = min(m, l)
    assert (u.shape, s.shape, vh.shape) == (
        (m, m if full else k, p),
        ((m, l, p) if full else (k, k, p)),
        (l if full else k, l, p),
    )
    assert_close(lproduct(lproduct(u, s, z), vh, z), a, dtype=dtype)
    assert_close(found.reconstruct(), a, dtype=dtype)
    for q in (u, ltranspose(vh, z)):
        assert_close(lproduct(ltranspose(q, z), q, z), lidentity(q.shape[1], z, dtype=dtype), dtype=dtype)
    hat = np.moveaxis(z.forward(s), -1, 0)
    assert (
        np.abs(hat[:, ~np.eye(*hat.shape[1:], dtype=bool)]).max(initial=0.0)
        <= 100 * np.finfo(dtype).eps * np.abs(hat).max()
    )


@settings(max_examples=50, deadline=None)
@given(st.sampled_from((2, 3, 5, 8)), st.sampled_from((2, 4, 7)), lengths, some_transforms, some_dtypes, st.data())
def test_tsvdm_drops_the_tail_of_every_face(m, l, p, name, dtype, data):
    a, z = gauss(m, l, p, dtype=dtype), Transform(name, p)
    rank = data.draw(st.integers(1, min(m, l)))
    found = lsvd_truncate(a, z, rank=rank)
    values = face_values(a, z)
    discarded = float(np.linalg.norm(values[:, rank:])) / float(np.linalg.norm(a))
    eps = np.finfo(dtype).eps
    assert abs(found.error - discarded) <= 100 * eps
    assert abs(relative_error(a, found.reconstruct()) - discarded) <= 100 * eps
    assert found.multirank.tolist() == [rank] * p
    assert found.tubal_rank == rank
    assert found.implicit_rank == rank * p
    assert found.size == rank * p * (m + l) + p
    rng = np.random.default_rng(0)
    other = lproduct(rng.standard_normal((m, rank, p)), rng.standard_normal((rank, l, p)), z)
    best = (
        np.vdot(other, a) / np.vdot(other, other) * other
    )  # a tensor of this tubal rank, scaled to be as near as it can
    assert relative_error(a, found.reconstruct()) <= relative_error(a, best) + 100 * eps
    # rank r of the stacked matrix has faces of rank r, so it competes: specification 3.2
    unfolded = np.linalg.svd(np.moveaxis(a, -1, 0).reshape(p * m, l), compute_uv=False)
    matrix_error = np.linalg.norm(unfolded[rank:]) / np.linalg.norm(unfolded)
    assert found.error <= matrix_error + 100 * eps
    if p == 1:
        assert abs(found.error - matrix_error) <= 100 * eps


@settings(max_examples=60, deadline=None)
@given(sides, sides, lengths, some_transforms, some_dtypes, st.sampled_from((0.9, 0.5, 0.3, 0.1, 1e-2, 1e-4)))
def test_tsvdmii_keeps_tol_with_the_fewest_triples(m, l, p, name, dtype, tol):
    a, z = gauss(m, l, p, dtype=dtype), Transform(name, p)
    found = lsvd_truncate(a, z, tol=tol)
    eps = np.finfo(dtype).eps
    achieved = relative_error(a, found.reconstruct())
    assert found.error <= tol
    assert achieved <= tol + eps
    assert abs(found.error - achieved) <= 100 * eps
    values = face_values(a, z)
    kept = found.multirank
    gone = np.concatenate([row[rank:] for row, rank in zip(values, kept, strict=True)])
    assert abs(found.error - np.linalg.norm(gone) / np.linalg.norm(a)) <= 100 * eps
    left = [(row[rank - 1], k) for k, (row, rank) in enumerate(zip(values, kept, strict=True)) if rank]
    if left:  # one more would be too many; conjugate faces lose theirs together
        least, face = min(left)
        pair = name == "dft" and np.dtype(dtype).kind != "c" and face not in (0, p / 2)
        more = math.hypot(np.linalg.norm(gone), least * (math.sqrt(2) if pair else 1.0)) / np.linalg.norm(a)
        assert more > tol * (1 - 1e-6) - 100 * eps
        if name != "dft":
            pooled = np.sort(values.ravel())
            most = np.count_nonzero(np.sqrt(np.cumsum(pooled**2)) <= (tol - 200 * eps) * np.linalg.norm(a))
            assert found.implicit_rank <= values.size - most
    assert found.info.converged


def test_ties_are_cut_by_count_and_always_alike():
    a = np.zeros((3, 3, 4))
    a[np.arange(3), np.arange(3)] = 1.0  # twelve equal singular values under the identity
    found = lsvd_truncate(a, "identity", tol=math.sqrt(5.5 / 12))
    assert found.multirank.tolist() == [3, 3, 1, 0]
    assert found.error == pytest.approx(math.sqrt(5 / 12))
    assert lsvd_truncate(a, "identity", tol=math.sqrt(5.5 / 12)).multirank.tolist() == [3, 3, 1, 0]


def test_max_rank_caps_every_face_and_says_so():
    a = gauss(8, 6, 4)
    free = lsvd_truncate(a, tol=0.3)
    capped = lsvd_truncate(a, tol=0.3, max_rank=2)
    assert free.tubal_rank > 2
    assert capped.multirank.tolist() == [2] * 4
    assert not capped.info.converged
    assert capped.error == pytest.approx(relative_error(a, capped.reconstruct()))
    loose = lsvd_truncate(a, tol=0.95, max_rank=2)
    assert loose.info.converged
    assert loose.error <= 0.95


def test_rank_deficient_and_empty_faces():
    z = Transform.dct(4)
    hat = np.moveaxis(gauss(4, 5, 2) @ gauss(4, 2, 6, seed=1), 0, -1)
    hat[..., 1] = 0
    hat[..., 2] = np.outer(np.ones(5), np.ones(6))
    a = z.inverse(hat)
    assert multirank(a, z).tolist() == [2, 0, 1, 2]
    assert (tubal_rank(a, z), implicit_rank(a, z)) == (2, 5)
    found = lsvd_truncate(a, z, tol=1e-10)
    assert found.multirank.tolist() == [2, 0, 1, 2]
    assert_close(found.reconstruct(), a)
    zero = lsvd_truncate(np.zeros((3, 2, 4)), tol=0.1)
    assert zero.implicit_rank == 0
    assert zero.error == 0.0
    assert not zero.reconstruct().any()
    assert multirank(np.zeros((3, 2, 4))).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["dct", "dft"])
def test_every_item_of_a_batch_keeps_tol_and_equals_a_call_of_its_own(name):
    a = gauss(2, 3, 6, 5, 4)
    a[0, 1] *= 1e-3
    a[1, 2] = 0
    found = lsvd_truncate(a, name, tol=0.4)
    dense = found.reconstruct()
    assert found.shape == a.shape
    for i, j in np.ndindex(2, 3):
        alone = lsvd_truncate(a[i, j], name, tol=0.4)
        assert found.multirank[i, j].tolist() == alone.multirank.tolist()
        assert_allclose(dense[i, j], alone.reconstruct(), atol=1e-13)
    assert multirank(a, name).shape == (2, 3, 4)
    assert tubal_rank(a, name).tolist() == [[5, 5, 5], [5, 5, 0]]
    assert lnorm(a, name).shape == (2, 3)
    assert found.error == pytest.approx(relative_error(a, dense))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_tube_axis_and_order_four(axis):
    a = np.moveaxis(gauss(6, 5, 4), -1, axis)
    found = lsvd_truncate(a, "dft", tol=0.4, axis=axis)
    assert found.shape == a.shape
    assert relative_error(a, found.reconstruct()) == pytest.approx(found.error)
    assert lsvd(a, "dft", axis=axis).shape == a.shape
    b = np.moveaxis(gauss(6, 5, 4, 3), -1, axis)
    found = lsvd_truncate(b, ["dft", "dft"], tol=0.4, axis=(axis, 3))
    assert found.shape == b.shape
    assert relative_error(b, found.reconstruct()) == pytest.approx(found.error)
    assert found.reconstruct().dtype == np.float64
    assert multirank(b, ["dct", "dft"], axis=(axis, 3)).shape == (b.shape[axis], b.shape[3])


def test_without_an_orthogonal_transform_tol_is_kept_by_a_bound():
    z = Transform.from_matrix(gauss(4, 4) + 2 * np.eye(4))
    a = gauss(8, 7, 4)
    with pytest.raises(ValueError, match="tol needs a transform that is a multiple of an orthogonal one"):
        lsvd_truncate(a, z, tol=0.5)
    found = lsvd_truncate(a, z, tol=0.5, conservative=True)
    assert found.info.path == "t-svdmii-bound"
    assert found.error == pytest.approx(relative_error(a, found.reconstruct()))
    assert 0 < found.error <= 0.5
    missed = a - found.reconstruct()
    norm = np.linalg.norm(np.linalg.inv(z.matrix), 2)
    assert np.linalg.norm(missed) <= norm * np.linalg.norm(z.forward(missed)) * (1 + 1e-12)
    assert norm * np.linalg.norm(z.forward(missed)) <= 0.5 * np.linalg.norm(a) * (1 + 1e-12)
    by_rank = lsvd_truncate(a, z, rank=3)
    assert by_rank.error == pytest.approx(relative_error(a, by_rank.reconstruct()))


@settings(max_examples=40, deadline=None)
@given(sides, sides, lengths, some_transforms, st.floats(0.1, 4.0))
def test_norms_are_dual_and_scale(m, l, p, name, c):
    a, b, z = gauss(m, l, p), gauss(m, l, p, seed=1), Transform(name, p)
    values = face_values(a, z) * z.scale
    assert lnorm(a, z) == pytest.approx(values.max())
    assert lnorm(a, z, ord="nuclear") == pytest.approx(values.sum() / z.scale**2)
    assert lnorm(a, z, ord="frobenius") == pytest.approx(np.linalg.norm(a))
    assert np.vdot(a, b) <= lnorm(a, z) * lnorm(b, z, ord="nuclear") * (1 + 1e-12)
    scaled = Transform.from_matrix(c * z.matrix)
    assert lnorm(a, scaled) == pytest.approx(c * lnorm(a, z))
    assert lnorm(a, scaled, ord="nuclear") == pytest.approx(lnorm(a, z, ord="nuclear") / c)
    u, _, vh = lsvd(a, z)  # the bound is reached: <a, u * vh> is the nuclear norm, and u * vh has spectral norm one
    reached = np.vdot(a, lproduct(u, vh, z))
    assert reached == pytest.approx(lnorm(a, z, ord="nuclear"))


@settings(max_examples=40, deadline=None)
@given(sides, sides, lengths, some_transforms, st.floats(0.0, 3.0))
def test_prox_is_where_the_subgradient_vanishes(m, l, p, name, tau):
    """x minimises tau ||x||_* + ||x - a||^2 / 2: (a - x) / tau is a subgradient, of spectral norm <= 1 in its scale."""
    a, z = gauss(m, l, p), Transform(name, p)
    x = prox_nuclear(a, tau, z)
    assert x.dtype == a.dtype
    assert lnorm(a - x, z) <= tau * (1 + 1e-10) + 1e-12
    assert np.vdot(a - x, x) == pytest.approx(tau * lnorm(x, z, ord="nuclear"), abs=1e-10)
    value = tau * lnorm(x, z, ord="nuclear") + np.sum((x - a) ** 2) / 2
    for seed in range(3):
        y = x + 0.1 * gauss(m, l, p, seed=seed)
        assert value <= tau * lnorm(y, z, ord="nuclear") + np.sum((y - a) ** 2) / 2 + 1e-12


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_other_libraries_agree_with_numpy(library):
    xp = pytest.importorskip(library)
    a = gauss(2, 6, 5, 4)
    x = xp.asarray(a.copy())
    for name in ("dct", "dft", ["dct", "dft"]):
        first, second = lsvd_truncate(a, name, tol=0.4), lsvd_truncate(x, name, tol=0.4)
        assert isinstance(second.reconstruct(), type(x))
        assert first.multirank.tolist() == second.multirank.tolist()
        assert first.error == pytest.approx(second.error)
        assert_close(np.asarray(second.reconstruct()), first.reconstruct())
        u, s, vh = lsvd(x, name)
        assert_close(np.asarray(lproduct(lproduct(u, s, name), vh, name)), a)
        assert_close(np.asarray(prox_nuclear(x, 0.5, name)), prox_nuclear(a, 0.5, name))
        assert_allclose(lnorm(x, name), lnorm(a, name))
        again = TruncatedLSVD.from_arrays(second.to_arrays())
        assert again.dtype == x.dtype


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_keeps_its_promise_after_the_cast(name):
    dtype = np.dtype(name) if name == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    a = gauss(20, 12, 4).astype(dtype)
    found = lsvd_truncate(a, "dft", tol=0.05)
    assert found.dtype == found.reconstruct().dtype == dtype
    assert relative_error(a.astype(float), found.reconstruct().astype(float)) <= 0.05
    assert lsvd(a).u.dtype == dtype
    assert TruncatedLSVD.from_arrays(found.to_arrays()).reconstruct().dtype == dtype
    with pytest.raises(ValueError, match="tol must be a number in"):
        lsvd_truncate(a, tol=1e-5)


def test_results_travel_as_arrays_and_are_frozen():
    a = gauss(2, 6, 5, 4)
    random = Transform.random_orthogonal(4, rng=0)
    for transform in ("dft", random, ["dft", random]):
        shape = a if isinstance(transform, list) else a[0]
        svd, cut = lsvd(shape, transform), lsvd_truncate(shape, transform, tol=0.3)
        for found, again in (
            (svd, LSVD.from_arrays(svd.to_arrays())),
            (cut, TruncatedLSVD.from_arrays(cut.to_arrays())),
        ):
            assert np.array_equal(found.reconstruct(), again.reconstruct())
            assert repr(found) == repr(again)
            assert found.size == again.size
            assert found.nbytes == again.nbytes
            assert found.dense_size == shape.size
            assert "\n" not in repr(found)
        assert cut.info == TruncatedLSVD.from_arrays(cut.to_arrays()).info
        assert relative_error(svd.reconstruct(), lsvd_truncate(svd, rank=2).reconstruct()) < 1
        assert lsvd_truncate(svd, tol=0.3).multirank.tolist() == cut.multirank.tolist()
    with pytest.raises(ValueError, match="read-only"):
        cut.u[0] = 0
    with pytest.raises(ValueError, match=r"missing \['meta', 'ranks'\]"):
        TruncatedLSVD.from_arrays({"u": cut.u, "s": cut.s, "vh": cut.vh})
    with pytest.raises(ValueError, match="must hold the"):
        TruncatedLSVD(u=cut.u, s=cut.s[:-1], vh=cut.vh, ranks=cut.ranks, tubes=cut.tubes, dtype=cut.dtype, error=0.0)


def test_scales_far_from_one():
    for factor in (1e-200, 1e200):
        a = gauss(6, 5, 4)
        plain, scaled = lsvd_truncate(a, tol=0.3), lsvd_truncate(a * factor, tol=0.3)
        assert plain.multirank.tolist() == scaled.multirank.tolist()
        assert scaled.error == pytest.approx(plain.error)
        assert lnorm(a * factor, ord="frobenius") == pytest.approx(factor * np.linalg.norm(a))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: lsvd_truncate(a), "exactly one of rank and tol, got rank=None, tol=None"),
        (lambda a: lsvd_truncate(a, rank=1, tol=0.1), "exactly one of rank and tol"),
        (lambda a: lsvd_truncate(a, rank=4), "rank must be between 1 and 3, got 4"),
        (lambda a: lsvd_truncate(a, rank=0), "rank must be between 1 and 3, got 0"),
        (lambda a: lsvd_truncate(a, rank=1, max_rank=2), "max_rank goes with tol"),
        (lambda a: lsvd_truncate(a, tol=0.1, max_rank=0), "max_rank must be at least 1"),
        (lambda a: lsvd_truncate(a, tol=1e-16), "tol must be a number in"),
        (lambda a: lsvd_truncate(a, tol=-0.1), "tol must be a number in"),
        (lambda a: lsvd_truncate(a, tol=1.0), "tol must be a number in"),
        (lambda a: lsvd(a * np.nan), "a must be finite"),
        (lambda a: lsvd(a.astype(int)), "got dtype int64"),
        (lambda a: lnorm(a, ord="trace"), "ord must be 'spectral', 'nuclear' or 'frobenius'"),
        (lambda a: lnorm(a, np.diag([1.0, 2, 3, 4])), "multiple of an orthogonal one"),
        (lambda a: prox_nuclear(a, -1.0), "tau must be a number of at least 0, got -1.0"),
        (lambda a: prox_nuclear(a, 1.0, np.diag([1.0, 2, 3, 4])), "multiple of an orthogonal one"),
        (lambda a: multirank(a, rtol=-1.0), "rtol must be a number of at least 0"),
        (lambda a: multirank(a, "dct", axis=5), "axis must be between -3 and 2, got 5"),
    ],
)
def test_refusals_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(gauss(3, 3, 4))

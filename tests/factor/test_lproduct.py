"""The tensor-tensor product and its algebra, against products that are written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import tensorfact
from tensorfact import Transform, facewise, lidentity, linv, lpinv, lproduct, lqr, ltranspose
from tensorfact.testing import (
    LPRODUCT_PROMISES,
    block_circulant_product,
    check_lproduct,
    star_product,
    star_transpose,
)
from tensorfact.testing.tolerances import assert_close

NAMES = tuple(promise.name for promise in LPRODUCT_PROMISES)
TRANSFORMS = ("identity", "dct", "dst", "dft", "hartley")


def gauss(*shape, dtype=np.float64, seed=0):
    rng = np.random.default_rng((seed, *shape))
    a = rng.standard_normal(shape)
    return (a + 1j * rng.standard_normal(shape) if np.dtype(dtype).kind == "c" else a).astype(dtype)


def test_numpy_keeps_every_promise():
    assert check_lproduct(lproduct, max_examples=40).names("kept") == NAMES


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_arrays_of_other_libraries_keep_every_promise(library):
    xp = pytest.importorskip(library)

    def routine(a, b, z):
        found = lproduct(xp.asarray(a.copy()), xp.asarray(b.copy()), z)
        assert type(found) is type(xp.asarray(a.copy()))
        return found

    assert check_lproduct(routine, max_examples=10).names("kept") == NAMES


sides = st.sampled_from((1, 2, 3, 5, 8))
lengths = st.sampled_from((1, 2, 3, 4, 5, 8, 9))
some_transforms = st.sampled_from(TRANSFORMS)
some_dtypes = st.sampled_from(("float64", "float32", "complex128"))


@settings(max_examples=60, deadline=None)
@given(sides, sides, lengths, some_transforms, some_dtypes)
def test_transposes_inverses_and_pseudo_inverses(m, l, p, name, dtype):
    a, b = gauss(m, l, p, dtype=dtype), gauss(l, m, p, dtype=dtype, seed=1)
    z = Transform(name, p)
    assert_close(ltranspose(a, z), star_transpose(a, z.matrix), dtype=dtype)
    assert_close(ltranspose(ltranspose(a, z), z), a, c=0)
    size = np.linalg.norm(a) * np.linalg.norm(b) * np.linalg.norm(z.matrix, 2)
    eps = np.finfo(dtype).eps
    turned = lproduct(ltranspose(b, z), ltranspose(a, z), z)
    assert np.linalg.norm(ltranspose(lproduct(a, b, z), z) - turned) <= 100 * eps * size
    hat = [z.matrix @ a.reshape(-1, p)[i] for i in range(m * l)]
    s = np.linalg.svd(np.moveaxis(np.reshape(hat, (m, l, p)), -1, 0), compute_uv=False)
    cond = float(s.max() / s.min())
    x = lpinv(a, z)
    assert x.dtype == a.dtype
    assert_close(lproduct(lproduct(a, x, z), a, z), a, cond=cond, dtype=dtype)
    assert_close(lproduct(lproduct(x, a, z), x, z), x, cond=cond, dtype=dtype)
    square = gauss(l, l, p, dtype=dtype, seed=2) + 4 * np.sqrt(l) * lidentity(l, z, dtype=dtype)
    assert_close(lproduct(square, linv(square, z), z), lidentity(l, z, dtype=dtype), cond=20, dtype=dtype)


@settings(max_examples=40, deadline=None)
@given(sides, sides, lengths, some_transforms, some_dtypes, st.sampled_from(("reduced", "complete")))
def test_qr_is_orthogonal_and_triangular(m, l, p, name, dtype, mode):
    a, z = gauss(m, l, p, dtype=dtype), Transform(name, p)
    q, r = lqr(a, z, mode=mode)
    k = m if mode == "complete" else min(m, l)
    assert q.shape == (m, k, p)
    assert r.shape == (k, l, p)
    assert q.dtype == r.dtype == a.dtype
    assert_close(lproduct(q, r, z), a, dtype=dtype)
    assert_close(lproduct(ltranspose(q, z), q, z), lidentity(k, z, dtype=dtype), dtype=dtype)
    below = np.tril(np.moveaxis(z.forward(r), -1, 0), -1)
    assert np.abs(below).max(initial=0.0) <= 100 * np.finfo(dtype).eps * np.abs(r).max() * p


def test_identity_tubes():
    # specification, section 2
    assert_allclose(lidentity(1, Transform.dct(4))[0, 0], [1.9239, -0.3827, 0.3827, 0.0761], atol=5e-5)
    assert_allclose(lidentity(2, Transform.dft(4))[0, 0], [1, 0, 0, 0], atol=1e-15)
    assert_allclose(lidentity(2, Transform.dft(4))[0, 1], 0, atol=1e-15)


@pytest.mark.parametrize("p", [4, 5])
def test_half_the_spectrum_gives_what_the_whole_gives(p):
    a, b = gauss(3, 4, p), gauss(4, 2, p)
    half = lproduct(a, b, "dft")
    whole = lproduct(a.astype(complex), b.astype(complex), "dft")
    assert half.dtype == np.float64
    assert_close(half, whole.real)
    assert_close(half, block_circulant_product(a, b))


NESTED = list(itertools.product(("dct", "dft", "identity"), repeat=2))


@pytest.mark.parametrize("names", NESTED, ids="-".join)
def test_order_four_is_a_product_of_tubes_of_tubes(names):
    """The product of order 4 multiplies order-3 tensors face by face in the domain of the last transform."""
    p, q = 3, 4
    first, second = Transform(names[0], p), Transform(names[1], q)
    a, b = gauss(2, 3, p, q), gauss(3, 2, p, q, seed=1)
    ahat, bhat = second.forward(a), second.forward(b)
    faces = [star_product(ahat[..., k], bhat[..., k], first.matrix) for k in range(q)]
    wanted = second.inverse(np.stack(faces, axis=-1))
    found = lproduct(a, b, [first, second])
    assert found.dtype == np.float64
    assert_close(found, wanted.real)
    assert_close(lproduct(a + 0j, b + 0j, [first, second]), wanted)
    one = lidentity(3, [first, second])
    assert_close(lproduct(a, one, [first, second]), a)
    moved = [np.moveaxis(x, (-2, -1), (0, 2)) for x in (a, b)]
    assert_close(np.moveaxis(lproduct(*moved, [first, second], axis=(0, 2)), (0, 2), (-2, -1)), found, c=10)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_any_tube_axis(axis):
    a, b = gauss(3, 4, 5), gauss(4, 2, 5)
    wanted = lproduct(a, b, "dct")
    x, y = (np.moveaxis(t, -1, axis) for t in (a, b))
    assert_close(np.moveaxis(lproduct(x, y, "dct", axis=axis), axis, -1), wanted, c=10)
    assert_close(np.moveaxis(ltranspose(x, "dft", axis=axis), axis, -1), ltranspose(a, "dft"), c=0)
    assert_close(np.moveaxis(lpinv(x, axis=axis), axis, -1), lpinv(a), c=100)
    q, r = lqr(x, axis=axis)
    assert_close(lproduct(q, r, axis=axis), x)
    assert_close(lproduct(x, lidentity(4, Transform.dct(5), axis=axis), "dct", axis=axis), x)


def test_batches_broadcast_and_equal_a_loop():
    a, b = gauss(6, 1, 3, 4, 5), gauss(2, 4, 2, 5)
    found = lproduct(a, b, "dft")
    assert found.shape == (6, 2, 3, 2, 5)
    for i, j in itertools.product(range(6), range(2)):
        assert_close(found[i, j], lproduct(a[i, 0], b[j], "dft"))
    shared = lproduct(gauss(6, 2, 3, 4, 5), gauss(4, 2, 5), "dct")  # one product a face, batch joined to the rows
    assert_close(shared[3, 1], lproduct(gauss(6, 2, 3, 4, 5)[3, 1], gauss(4, 2, 5), "dct"))
    assert lproduct(gauss(4, 2, 5).transpose(1, 0, 2), gauss(6, 2, 4, 2, 5), "dct").shape == (6, 2, 2, 2, 5)
    square = gauss(3, 4, 4, 5)
    assert_close(linv(square, "dft")[1], linv(square[1], "dft"), cond=1e4)


def test_facewise_is_the_product_of_faces():
    a, b = gauss(3, 4, 5), gauss(4, 2, 5)
    assert_close(facewise(a, b), np.einsum("mlp,lnp->mnp", a, b))
    assert_close(
        facewise(gauss(3, 4, 2, 3), gauss(4, 2, 2, 3), axis=(2, 3))[:, :, 1, 2],
        gauss(3, 4, 2, 3)[:, :, 1, 2] @ gauss(4, 2, 2, 3)[:, :, 1, 2],
    )


def test_half_precision_is_computed_in_float32_and_cast_back():
    a, b = gauss(3, 4, 5, dtype=np.float16), gauss(4, 2, 5, dtype=np.float16)
    for name in ("dct", "dft"):
        found = lproduct(a, b, name)
        assert found.dtype == np.float16
        wanted = lproduct(a.astype(np.float32), b.astype(np.float32), name)
        assert np.array_equal(found, wanted.astype(np.float16))


def test_torch_arrays_stay_torch_arrays():
    torch = pytest.importorskip("torch")
    a, b = (torch.randn(*s, requires_grad=True, dtype=torch.bfloat16) for s in ((3, 4, 5), (4, 2, 5)))
    found = lproduct(a, b, "dft")
    assert found.dtype == torch.bfloat16
    assert not found.requires_grad
    assert lidentity(3, Transform.dct(5), like=a).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="arrays of one library, got torch and numpy"):
        lproduct(torch.ones(2, 2, 2), np.ones((2, 2, 2), np.float32))
    with pytest.raises(np.linalg.LinAlgError, match="face 0 in the transform domain is singular"):
        linv(torch.ones(3, 3, 4))


A, B = np.ones((2, 3, 4)), np.ones((3, 2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lproduct(A, np.ones((3, 2, 5))), r"tubes of one length, got \(4,\) and \(5,\)"),
        (lambda: lproduct(A, A), "as many rows as a has columns, 3, got shapes"),
        (lambda: lproduct(A, B, Transform.dct(3)), "the tubes of a, its axis 2, must have the length 3"),
        (lambda: lproduct(A, B, "cosine"), "transform must be one of identity, dct"),
        (lambda: lproduct(A, B, np.ones((4, 4))), "transform: m must be invertible"),
        (lambda: lproduct(A, B, ["dct", "dct"]), "a must have at least 4 axes"),
        (lambda: lproduct(A, B, ["dct"], axis=(0, 1)), "one entry per tube axis, 2, got 1"),
        (lambda: lproduct(A, B, Transform.dct(4), axis=(0, 1)), "one entry per tube axis, 2, got one"),
        (lambda: lproduct(np.ones((2, 3, 4, 4)), B, "dct", axis=(2, -2)), "axis must name different axes"),
        (lambda: lproduct(A, B, axis=3), "axis must be between -3 and 2, got 3"),
        (lambda: lproduct(A[..., 0], B), "a must have at least 3 axes"),
        (lambda: lproduct(A, B[..., 0]), "b must have at least 3 axes"),
        (lambda: lproduct(A[:0], B), "must not be empty"),
        (lambda: lproduct(A, B[:, :0]), "must not be empty"),
        (lambda: lproduct(A.astype(int), B), "a must hold .* got dtype int64; convert it first"),
        (lambda: lproduct(A, B.astype(np.float32)), "one dtype, got float64 and float32"),
        (lambda: lproduct(A.astype(np.float16), B.astype(np.float32)), "one dtype, got float16 and float32"),
        (lambda: lproduct(np.full((2, 3, 4), np.nan), B), "a must be finite, got NaN or infinity"),
        (lambda: lproduct(A, np.full((3, 2, 4), -np.inf)), "b must be finite"),
        (lambda: lproduct(np.ones((2, 2, 3, 4)), np.ones((3, 3, 2, 4))), r"batch axes must broadcast, got \(2,\) and"),
        (lambda: lproduct(np.ma.masked_array(A), B), "a must not be a masked array"),
        (lambda: linv(A), r"a must have square faces, got faces \(2, 3\)"),
        (lambda: lqr(A, mode="full"), "mode must be 'reduced' or 'complete', got 'full'"),
        (lambda: lpinv(A, rtol=-1), "rtol must be a number of at least 0"),
        (lambda: lidentity(2, "dct"), "transform must be a Transform, which knows the length"),
        (lambda: lidentity(0, Transform.dct(2)), "n must be at least 1, got 0"),
        (lambda: lidentity(2, Transform.from_matrix(1j * np.eye(2))), "dtype must be complex"),
    ],
)
def test_refusals_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_singular_face_is_named():
    hat = np.broadcast_to(np.eye(3), (4, 3, 3)).copy()
    hat[2] = np.outer([1.0, 2, 3], [1, 1, 1])
    a = Transform.dct(4).inverse(np.moveaxis(hat, 0, -1))
    with pytest.raises(np.linalg.LinAlgError, match="face 2 in the transform domain is singular"):
        linv(a, "dct")
    exact = np.moveaxis(hat, 0, -1).copy()
    exact[:, :, 2] = 0
    with pytest.raises(ValueError, match="face 2 in the transform domain is singular"):
        linv(exact, "identity")
    four = np.broadcast_to(np.eye(2)[:, :, None, None], (2, 2, 3, 2)).copy()
    four[:, :, 1, 0] = 0
    with pytest.raises(ValueError, match=r"face \(1, 0\) in the transform domain"):
        linv(four, ["identity", "identity"])


def test_names_are_public():
    for name in ("lproduct", "lsvd", "lsvd_truncate", "Transform", "prox_nuclear", "lidentity"):
        assert getattr(tensorfact, name).__doc__


@pytest.mark.parametrize("scale", [1e-154, 1e154])
def test_the_inverse_does_not_depend_on_the_scale(scale):
    a = np.eye(3)[:, :, None] * scale
    np.testing.assert_allclose(tensorfact.linv(a, "identity") * scale, np.eye(3)[:, :, None], rtol=1e-12)

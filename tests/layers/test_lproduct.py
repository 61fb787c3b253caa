"""Differentiable tensor-tensor products: equal to those of NumPy arrays, and their gradients to finite differences."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck  # noqa: E402

import tensorfact  # noqa: E402
from tensorfact.testing import check_lproduct  # noqa: E402
from tensorfact.torch import lproduct, lqr, ltranspose, ltruncate  # noqa: E402

CASES = [(name, dtype) for name in ("dct", "dft", "identity") for dtype in (torch.float64, torch.complex128)]


def gauss(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_the_product_keeps_the_promises_of_a_product():
    def routine(a, b, z):
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError("left to PyTorch")
        return lproduct(torch.asarray(a.copy()), torch.asarray(b.copy()), z).numpy()

    names = ("definition", "associative", "identity", "transposes", "classical", "real-stays-real", "complex", "batch")
    assert check_lproduct(routine, promises=(*names, "refuses-mixed-dtypes"), max_examples=10)


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("p", [1, 3])
def test_values_and_gradients(name, dtype, p):
    a, b = gauss(3, 2, p, dtype=dtype), gauss(2, 3, p, dtype=dtype, seed=1)
    x, y = a.detach().numpy(), b.detach().numpy()
    assert np.allclose(lproduct(a, b, name).detach(), tensorfact.lproduct(x, y, name), atol=1e-13)
    assert np.array_equal(ltranspose(a, "identity").detach(), tensorfact.ltranspose(x, "identity"))
    assert np.allclose(ltranspose(a, name).detach(), tensorfact.ltranspose(x, name), atol=1e-14)
    assert gradcheck(lambda s, t: lproduct(s, t, name), (a, b))
    assert gradcheck(lambda s: ltranspose(s, name), (a,))
    assert gradcheck(lambda s: lqr(s, name), (a,))
    q, r = lqr(a, name)
    assert q.dtype == r.dtype == dtype
    assert torch.allclose(lproduct(q, r, name), a)


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (2, 4)])
def test_reconstruction_after_truncation(name, dtype, shape):
    a = gauss(*shape, 3, dtype=dtype)
    for rank in range(1, min(shape)):
        found = ltruncate(a, name, rank=rank)
        wanted = tensorfact.lsvd_truncate(a.detach().numpy(), name, rank=rank).reconstruct()
        assert np.allclose(found.detach(), wanted, atol=1e-13)
        assert gradcheck(lambda s, rank=rank: ltruncate(s, name, rank=rank), (a,), fast_mode=rank == 2)


def test_ties_among_the_kept_values_leave_the_gradient_finite():
    a = torch.diag(torch.tensor([2.0, 2.0, 1.0, 0.5], dtype=torch.float64)).unsqueeze(-1).requires_grad_()
    assert gradcheck(lambda s: ltruncate(s, "identity", rank=2), (a,))
    u, s, vh = torch.linalg.svd(a[..., 0])
    (gradient,) = torch.autograd.grad(((u[:, :2] * s[:2]) @ vh[:2])[0, 1], a)
    assert not gradient.isfinite().all(), "PyTorch's own gradient survives ties now: is this function still needed?"


def test_order_four_other_axes_and_a_trained_transform():
    a, b = gauss(5, 2, 3, 4, 3), gauss(3, 2, 4, 3, seed=1)
    for names in (["dct", "dft"], ["dft", "dft"]):
        wanted = tensorfact.lproduct(a.detach().numpy(), b.detach().numpy(), names)
        assert np.allclose(lproduct(a, b, names).detach(), wanted, atol=1e-13)
    moved = lproduct(a.movedim((-2, -1), (0, 2)), b.movedim((-2, -1), (0, 2)), ["dct", "dft"], axis=(0, 2))
    assert torch.allclose(moved, lproduct(a, b, ["dct", "dft"]).movedim((-2, -1), (0, 2)))
    x, y, z = gauss(2, 3, 4), gauss(3, 2, 4, seed=1), gauss(4, 4, seed=2)
    assert gradcheck(lambda s: lproduct(x, y, s), (z,))
    wanted = tensorfact.lproduct(x.detach().numpy(), y.detach().numpy(), z.detach().numpy())
    assert np.allclose(lproduct(x, y, z).detach(), wanted, atol=1e-12)


def test_half_precision_and_compiled():
    a, b = gauss(2, 3, 4).detach(), gauss(3, 2, 4, seed=1).detach()
    found = lproduct(a.bfloat16(), b.bfloat16(), "dft")
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.double(), lproduct(a, b, "dft"), rtol=0.05, atol=0.1)
    for name in ("dct", "dft"):
        compiled = torch.compile(lambda s, t, name=name: lproduct(s, t, name), backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(a, b), lproduct(a, b, name))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: lproduct(a, a), "as many rows as a has columns, 3"),
        (lambda a: lproduct(a, a.mT.float()), "one dtype and device"),
        (lambda a: lproduct(a, a, torch.eye(3, dtype=a.dtype)), "must have the length 3 of the transform, got 4"),
        (lambda a: lproduct(a, torch.ones(3, 2, 5, dtype=a.dtype)), "the tubes of b, its axis 2"),
        (lambda a: lproduct(a, a, torch.ones(4, 3)), "transform must be a square matrix"),
        (lambda a: lproduct(a, a, np.ones((4, 4))), "m must be invertible"),
        (lambda a: lproduct(a, a, "cosine"), "name must be one of"),
        (lambda a: lproduct(a, a, axis=3), "axis must name 1 different axes"),
        (lambda a: lproduct(a, a, ["dct"], axis=(1, 2)), "one entry per tube axis, 2, got 1"),
        (lambda a: lproduct(a[0], a), "a must have at least 3 axes"),
        (lambda a: ltranspose(a.long()), "a must hold floating-point or complex numbers"),
        (lambda a: ltruncate(a, rank=3), "rank must be between 1 and 2, got 3"),
    ],
)
def test_refusals_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call(gauss(2, 3, 4).detach())

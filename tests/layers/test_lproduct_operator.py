"""The operator of lproduct under torch's own checks, against einsum, and on every path that it can take."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import gradcheck, gradgradcheck  # noqa: E402

from tensorfact.kernels import _dispatch  # noqa: E402
from tensorfact.torch import _lproduct_op, lproduct  # noqa: E402

ROWS = 17  # more than the fewest that the kernel takes


def made(p: int = 3, last: bool = True, dtype: Any = torch.float64, rows: int = ROWS, l: int = 2, n: int = 4) -> Any:
    generator = torch.Generator().manual_seed(0)

    def gauss(*shape: int) -> Any:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    bias = None if last else gauss(p * n)
    return gauss(rows, *((l, p) if last else (p, l))), gauss(p, l, n), gauss(p, p), gauss(p, p), bias, last


operator = torch.ops.tensorfact.facewise.default


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_opcheck(last: bool, dtype: Any) -> None:
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    if dtype == torch.float64:
        checks += ("test_aot_dispatch_dynamic",)
    x, faces, forward, inverse, bias, _ = made(last=last, dtype=dtype)
    torch.library.opcheck(operator, (x, faces, forward, inverse, bias, last), test_utils=checks)
    torch.library.opcheck(torch.ops.tensorfact.tube_faces.default, (x, forward, last), test_utils=checks)


@pytest.mark.parametrize("last", [True, False])
def test_gradients_of_everything(last: bool) -> None:
    assert gradcheck(operator, made(last=last))
    assert gradgradcheck(operator, made(p=2, last=last, n=2))
    x, _, forward, _, _, _ = made(last=last)
    assert gradcheck(torch.ops.tensorfact.tube_faces.default, (x, forward, last))


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("rows", [1, ROWS, 100])
def test_the_kernel_equals_plain_operations(last: bool, rows: int) -> None:
    for p, l, n in [(1, 3, 3), (4, 5, 17), (16, 20, 3), (17, 2, 3)]:
        for faces_as in (lambda faces: faces, lambda faces: faces.mT.contiguous().mT):
            x, faces, forward, inverse, bias, _ = made(p, last, rows=rows, l=l, n=n)
            args = (x, faces_as(faces), forward, inverse, bias, last)
            torch.testing.assert_close(operator(*args), _lproduct_op.plain(*args), rtol=1e-12, atol=1e-11)
            torch.testing.assert_close(operator(x.double().float(), *(
                None if z is None else z.float() for z in args[1:-1]), last).double(),
                _lproduct_op.plain(*args), rtol=1e-3, atol=1e-3)  # fmt: skip


def test_leading_axes_and_strides() -> None:
    x, faces, forward, inverse, _, _ = made()
    several = torch.randn(2, 3, 9, *x.shape[1:], dtype=x.dtype)
    expected = operator(several.reshape(-1, *x.shape[1:]), faces, forward, inverse, None, True)
    torch.testing.assert_close(operator(several, faces, forward, inverse, None, True).flatten(0, 2), expected)
    strided = several.permute(2, 0, 1, 3, 4)
    torch.testing.assert_close(
        operator(strided, faces, forward, inverse, None, True)[4, 1, 2], expected[(1 * 3 + 2) * 9 + 4]
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("axis", [-1, -2])
def test_lproduct_compiles_whole_and_differentiates(axis: int) -> None:
    shapes = ((30, 4, 3), (4, 5, 3)) if axis == -1 else ((30, 3, 4), (4, 3, 5))
    a, b = (torch.randn(*shape, dtype=torch.float64).requires_grad_() for shape in shapes)
    torch.compiler.reset()  # else the second layout would be compiled for tubes of any length
    compiled = torch.compile(lambda s, t: lproduct(s, t, "dct", axis=axis), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(a, b), lproduct(a, b, "dct", axis=axis))
    assert gradcheck(lambda s, t: lproduct(s, t, "dct", axis=axis), (a[:18].detach().requires_grad_(), b))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_function_transforms_and_forward_mode_take_plain_operations() -> None:
    a, b = torch.randn(20, 4, 3, dtype=torch.float64), torch.randn(4, 5, 3, dtype=torch.float64)
    batch = torch.stack([a, 2 * a])
    each = torch.func.vmap(lambda s: lproduct(s, b))(batch)
    torch.testing.assert_close(each[1], 2 * lproduct(a, b))
    _, tangent = torch.func.jvp(lambda s: lproduct(s, b), (a,), (a,))
    torch.testing.assert_close(tangent, lproduct(a, b))
    jacobian = torch.func.jacrev(lambda t: lproduct(a, t).sum())(b)
    grown = b.clone().requires_grad_()
    lproduct(a, grown).sum().backward()
    torch.testing.assert_close(jacobian, grown.grad)


def test_without_the_compiled_module() -> None:
    a, b = torch.randn(20, 4, 3), torch.randn(4, 5, 3)
    expected = lproduct(a, b)
    with _dispatch.use("python"):
        torch.testing.assert_close(lproduct(a, b), expected)


def test_misfits_end_in_an_error_and_not_in_the_kernel() -> None:
    x, faces, forward, inverse, _, _ = made()
    for args in [
        (x, faces.float(), forward, inverse, None, True),
        (x[..., :2], faces, forward, inverse, None, True),
        (x, faces, forward, inverse, torch.zeros(12, dtype=x.dtype), True),
        (x, faces, forward[:2, :2], inverse, None, True),
    ]:
        with pytest.raises(RuntimeError):
            operator(*args)


def test_gradients_in_batches() -> None:
    a, b = torch.randn(20, 3, 4), torch.randn(3, 5, 4)
    for transform in ("dct", "dft"):
        slow, fast = (
            torch.autograd.functional.jacobian(lambda q: lproduct(a, q, transform), b, vectorize=vectorize)  # noqa: B023
            for vectorize in (False, True)
        )
        torch.testing.assert_close(slow, fast)


@pytest.mark.parametrize("transform", ["dct", "dft"])
@pytest.mark.parametrize("shapes", [((20, 3, 4), (3, 0, 4)), ((20, 0, 4), (0, 5, 4)), ((0, 3, 4), (3, 5, 4))])
def test_empty_tensors_are_refused_as_in_numpy(shapes: Any, transform: str) -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        lproduct(*map(torch.ones, shapes), transform)

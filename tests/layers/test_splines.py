"""SplineActivation and its operators: SciPy as the oracle, torch's own checks, gradients of every order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.interpolate import BSpline

torch = pytest.importorskip("torch")

from tensorfact.kernels import _dispatch  # noqa: E402
from tensorfact.torch import SplineActivation  # noqa: E402
from tensorfact.torch._spline_math import adjoint_reference, reference  # noqa: E402
from tensorfact.torch._spline_op import spline  # noqa: E402

EPS = float(np.finfo(np.float64).eps)


def made(degree: int = 3, features: int = 4, n_basis: int = 9, dtype: Any = torch.float64) -> Any:
    """A layer with uneven knots, one of them double, and points inside, outside, on knots and at both ends."""
    rng = np.random.default_rng(degree)
    inner = np.sort(rng.uniform(-1, 1, (features, n_basis - degree - 1)), axis=1)
    if inner.shape[1] > 3 and degree > 1:
        inner[1, 2] = inner[1, 1]
    ends = np.ones((features, degree + 1))
    knots = np.hstack([-ends, inner, ends])
    layer = SplineActivation.from_splines(knots, rng.standard_normal((features, n_basis)), degree, dtype=dtype)
    x = rng.uniform(-1.7, 1.7, (6, 5, features))
    x[0, 0], x[0, 1], x[1, 1] = -1.0, 1.0, inner[:, 0]
    return layer, torch.from_numpy(x).to(dtype)


def expected(layer: Any, x: Any, nu: int = 0) -> np.ndarray:
    """SciPy inside, a straight line outside."""
    found = np.empty(x.shape)
    for i in range(layer.features):
        t, c = (a[i].detach().double().numpy() for a in (layer.knots, layer.coefficients))
        g = BSpline(t, c, layer.degree)
        z = x[..., i].double().numpy()
        inside = np.clip(z, t[0], t[-1])
        # at the right end the limit from the left
        edge = np.where(inside == t[-1], np.nextafter(t[-1], -np.inf), inside) if nu == layer.degree else inside
        found[..., i] = g(edge, nu) if nu else g(inside) + (g(inside, 1) * (z - inside) if layer.degree else 0)
        if nu > 1:
            found[..., i][z != inside] = 0
    return found


@pytest.mark.parametrize("degree", range(8))
@pytest.mark.parametrize("nu", [0, 1, 2])
def test_values_and_derivatives_are_those_of_scipy(degree: int, nu: int) -> None:
    layer, x = made(degree)
    if nu >= degree:
        x = x[2:]  # away from knots, where the highest derivative jumps
    truth = expected(layer, x, nu)
    scale = EPS * max(1.0, float(np.abs(truth).max())) * 40 * 10**nu
    for how in (spline, reference):
        found = how(x, layer.knots, layer.coefficients.detach(), degree, nu)
        assert found.shape == x.shape
        assert np.abs(found.numpy() - truth).max() <= scale
    assert torch.equal(layer(x).detach(), spline(x, layer.knots, layer.coefficients, degree).detach())


@pytest.mark.parametrize("nu", [0, 1, 2])
def test_adjoint_is_the_transpose(nu: int) -> None:
    layer, x = made()
    g = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
    for how in (torch.ops.tensorfact.spline_adjoint.default, adjoint_reference):
        c = torch.randn(layer.coefficients.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
        left = (spline(x, layer.knots, c, 3, nu) * g).sum()
        right = (c * how(x, g, layer.knots, 3, nu)).sum()
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("degree", [1, 3, 4])
def test_gradients_against_differences(degree: int) -> None:
    layer, x = made(degree)
    x = x[2:].requires_grad_()  # differences straddle no knot of degree 1 with these points

    def run(x: Any, c: Any) -> Any:
        return spline(x, layer.knots, c, degree)

    assert torch.autograd.gradcheck(run, (x, layer.coefficients))
    if degree > 2:
        assert torch.autograd.gradgradcheck(run, (x, layer.coefficients))
    x.requires_grad_(False)
    assert torch.autograd.gradcheck(lambda c: run(x, c), (layer.coefficients,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype: Any) -> None:
    layer, x = made(dtype=dtype)
    x.requires_grad_()
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    checks += ["test_aot_dispatch_dynamic"] if dtype != torch.bfloat16 else []
    run = torch.ops.tensorfact
    torch.library.opcheck(run.spline.default, (x, layer.knots, layer.coefficients, 3, 0), test_utils=checks)
    g = torch.ones_like(x).requires_grad_()
    torch.library.opcheck(run.spline_adjoint.default, (x, g, layer.knots, 3, 0), test_utils=checks)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_compile_fullgraph_and_export() -> None:
    layer, x = made()
    truth = layer(x)
    out = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(out, truth)
    out.square().sum().backward()
    found = layer.coefficients.grad.clone()
    layer.zero_grad()
    truth.square().sum().backward()
    torch.testing.assert_close(found, layer.coefficients.grad)
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    longer = torch.cat([x, x])
    torch.testing.assert_close(exported.module()(longer), layer(longer))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_function_transforms_see_the_plain_torch_path() -> None:
    layer, x = made()
    slope, bend = (spline(x, layer.knots, layer.coefficients, 3, nu).detach() for nu in (1, 2))
    row = x[2, 0]
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(jacobian(layer)(row), torch.diag(slope[2, 0]))
    torch.testing.assert_close(torch.func.hessian(lambda a: layer(a).sum())(row), torch.diag(bend[2, 0]))
    _, along = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(along, slope)


def test_without_the_compiled_module_values_and_gradients_are_the_same() -> None:
    layer, x = made()
    found = []
    for rung in ("cpp", "python"):
        with _dispatch.use(rung):
            layer.zero_grad()
            y = layer(x.requires_grad_())
            to_x, to_c = torch.autograd.grad(y.square().sum(), (x, layer.coefficients))
            found.append((y.detach(), to_x, to_c))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_computed_in_float32(dtype: Any) -> None:
    layer, x = made(dtype=dtype)
    wide = spline(x.float(), layer.knots.float(), layer.coefficients.float(), 3)
    y = layer(x.requires_grad_())
    assert y.dtype == dtype
    assert torch.equal(y, wide.to(dtype))
    y.float().sum().backward()
    assert x.grad.dtype == layer.coefficients.grad.dtype == dtype
    layer = layer.float()
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.detach().to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.coefficients.grad.dtype == torch.float32


def test_only_the_gradients_that_are_wanted() -> None:
    layer, x = made()
    layer.coefficients.requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()
    assert layer.coefficients.grad is None
    assert x.grad is not None
    assert not layer.knots.requires_grad


def test_fresh_layer_is_the_identity_and_a_state_survives() -> None:
    for degree in (1, 2, 3, 7):
        layer = SplineActivation(3, n_basis=9, degree=degree, span=(-2, 1), dtype=torch.float64)
        x = torch.linspace(-4, 4, 51, dtype=torch.float64)[:, None].expand(-1, 3)
        torch.testing.assert_close(layer(x).detach(), x, rtol=1e-13, atol=1e-13)
    assert set(layer.state_dict()) == {"knots", "coefficients"}
    assert torch.equal(SplineActivation(3, uniform=True).grid(), SplineActivation(3).knots)
    with torch.device("meta"):
        other = SplineActivation(3, n_basis=9, degree=7)
    other.load_state_dict(layer.state_dict(), assign=True)
    torch.testing.assert_close(other(x), layer(x))
    assert SplineActivation(2)(torch.empty(0, 2)).shape == (0, 2)
    assert "n_basis=12" in repr(SplineActivation(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_uniform_knots_keep_their_ends_only(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    ends = np.sort(rng.standard_normal((5, 2)), axis=1)
    inner = np.linspace(ends[:, 0], ends[:, 1], 7, axis=1)
    knots = np.pad(inner, ((0, 0), (3, 3)), mode="edge")
    c = rng.standard_normal((5, 9))
    full, short = (SplineActivation.from_splines(knots, c, 3, uniform=kind, dtype=dtype) for kind in (False, True))
    assert set(short.state_dict()) == {"ends", "coefficients"}
    assert short.ends.shape == (5, 2)
    x = torch.from_numpy(rng.standard_normal((40, 5))).to(dtype)
    wide = full.grid().double() - short.grid().double()
    bound = 4 * torch.finfo(dtype).eps * float(np.abs(knots).max())
    assert float(wide.abs().max()) <= bound
    close = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 0.5}[dtype]
    torch.testing.assert_close(short(x), full(x), rtol=close, atol=close)
    knots[2, 5] += 0.01
    with pytest.raises(ValueError, match="equally spaced"):
        SplineActivation.from_splines(knots, c, 3, uniform=True)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: SplineActivation(0), "features"),
        (lambda: SplineActivation(2, n_basis=3), "n_basis"),
        (lambda: SplineActivation(2, degree=8), "degree"),
        (lambda: SplineActivation(2, span=(1, 1)), "span"),
        (lambda: SplineActivation(2)(torch.zeros(4, 3)), "2 features"),
        (lambda: SplineActivation.from_splines(np.zeros((2, 5)), np.zeros((2, 4)), 3), "knots must have shape"),
        (lambda: SplineActivation.from_splines(np.zeros((2, 8)), np.zeros((2, 4)), 3), "span an interval"),
        (lambda: SplineActivation.from_splines(np.arange(16.0).reshape(2, 8)[:, ::-1].copy(), np.zeros((2, 4)), 3),
         "must not decrease"),
        (lambda: SplineActivation.from_splines(np.full((2, 8), np.nan), np.zeros((2, 4)), 3), "finite"),
        (lambda: SplineActivation.from_splines(np.zeros(8), np.zeros((2, 4)), 3), "two axes"),
    ],
)  # fmt: skip
def test_bad_input(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()


def test_nan_stays_where_it_is() -> None:
    layer, x = made()
    x[0, 0, 0], x[1, 0, 2] = float("nan"), float("inf")
    for rung in ("cpp", "python"):
        with _dispatch.use(rung):
            y = layer(x)
        assert torch.isnan(y[0, 0, 0])
        assert not torch.isfinite(y[1, 0, 2])
        assert int((~torch.isfinite(y)).sum()) == 2


def test_nan_goes_through_the_transforms_of_torch_func() -> None:
    layer, x = SplineActivation(3, n_basis=6, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    expected = layer(x)
    x[0, 0] = float("nan")
    found = torch.vmap(layer)(x)
    assert found[0, 0].isnan()
    torch.testing.assert_close(found[1:], expected[1:])
    slopes = torch.func.grad(lambda z: layer(z).sum())(x)
    assert slopes[0, 0].isnan()
    assert slopes[1:].isfinite().all()
    with pytest.raises(RuntimeError, match="x must be real"):
        torch.vmap(layer)(torch.ones(4, 3, dtype=torch.int64))


@pytest.mark.parametrize("how", [spline, reference])
def test_infinite_inputs_follow_the_tails(how: Any) -> None:
    knots = torch.tensor([[0.0] * 4 + [0.5] + [1.0] * 4] * 3, dtype=torch.float64)
    coefficients = torch.tensor([[0.0, 1, 2, 3, 4], [4.0, 3, 2, 1, 0], [2.5] * 5], dtype=torch.float64)
    inf = float("inf")
    x = torch.tensor([[-inf] * 3, [inf] * 3], dtype=torch.float64)
    found = how(x, knots, coefficients, 3) if how is spline else how(x, knots, coefficients, 3, 0)
    torch.testing.assert_close(found, torch.tensor([[-inf, inf, 2.5], [inf, -inf, 2.5]], dtype=torch.float64))

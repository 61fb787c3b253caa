"""LProductLinear: both structures against dense layers, their gradients, conversion, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.autograd import gradcheck  # noqa: E402

from tensorfact import Transform  # noqa: E402
from tensorfact.torch import LProductLinear  # noqa: E402

FORMS: list[dict[str, Any]] = [{}, {"ranks": (2, 0, 3, 1)}, {"ranks": (3, 3, 3, 3)}, {"transform": "identity"}]
SIZES = [(12, 20), (20, 12), (12, 12)]


def made(i: int = 12, o: int = 20, dtype: Any = torch.float64, **options: Any) -> LProductLinear:
    torch.manual_seed(0)
    return LProductLinear(i, o, dtype=dtype, **options)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("i", "o"), SIZES)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_dense_layer_of_its_weight(form: dict[str, Any], i: int, o: int, bias: bool) -> None:
    layer = made(i, o, bias=bias, **form)
    x = torch.randn(3, 11, i, dtype=torch.float64)
    dense = layer.to_linear()
    torch.testing.assert_close(layer(x), dense(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x[0, 0]), dense(x[0, 0]), rtol=0, atol=1e-12)
    assert layer(x[:0]).shape == (0, 11, o)
    z = torch.tensor(Transform(form.get("transform", "dct"), 4).matrix)
    if layer.faces is not None:
        blocks = torch.block_diag(*layer.faces.mT)
        outer, inner = torch.kron(z, torch.eye(o // 4).double()), torch.kron(z, torch.eye(i // 4).double())
        torch.testing.assert_close(dense.weight, outer.T @ blocks @ inner, rtol=0, atol=1e-13)
    assert sum(p.numel() for p in layer.parameters()) == (o if bias else 0) + (
        i * o // 4 if layer.faces is not None
        else sum(form["ranks"]) * (o // 4 + i if layer.side == "out" else o + i // 4)
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_gradients(form: dict[str, Any]) -> None:
    layer = made(8, 8, **({} if not form else {"ranks": (1, 0, 2, 1)}))
    x = torch.randn(18, 8, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def call(x: Any, *values: Any) -> Any:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

    assert gradcheck(call, (x, *values))
    assert gradcheck(lambda *values: torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,)),
                     values, check_forward_ad=False)  # fmt: skip
    layer.weight.square().sum().backward()
    assert all(p.grad is not None for name, p in layer.named_parameters() if name != "bias")


@pytest.mark.parametrize(("i", "o"), SIZES)
def test_from_linear_is_the_nearest_and_exact_where_it_can_be(i: int, o: int) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(i, o, dtype=torch.float64)
    size = float(linear.weight.detach().norm())

    def error(layer: LProductLinear) -> float:
        return float((layer.weight - linear.weight).detach().norm()) / size

    near = LProductLinear.from_linear(linear)
    assert error(near) == pytest.approx((1 - float(near.weight.detach().norm()) ** 2 / size**2) ** 0.5)  # a projection
    again = LProductLinear.from_linear(near.to_linear())
    torch.testing.assert_close(again.weight, near.weight, rtol=0, atol=1e-13)
    for tol in (0.5, 0.1, 1e-9):
        cut = LProductLinear.from_linear(linear, tol=tol)
        assert error(cut) <= tol
        total = sum(cut.ranks or ())
        if tol > 1e-3:
            assert error(LProductLinear.from_linear(linear, rank=total - 1)) > tol
        assert LProductLinear.from_linear(linear, rank=total).ranks == cut.ranks
    torch.testing.assert_close(cut.bias, linear.bias)
    same = LProductLinear.from_linear(cut.to_linear(), ranks=cut.ranks)
    torch.testing.assert_close(same.weight, cut.weight, rtol=0, atol=1e-12)


def test_what_survives_a_conversion() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        linear = nn.Linear(8, 8, dtype=dtype).eval()
        linear.weight.requires_grad_(False)
        for options in ({}, {"rank": 5}):
            layer = LProductLinear.from_linear(linear, **options)
            assert {p.dtype for p in layer.parameters()} == {dtype}
            assert not layer.training
            assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"bias"}
            back = layer.to_linear()
            assert (back.weight.requires_grad, back.bias.requires_grad, back.training) == (False, True, False)


def test_state_dicts_copies_and_meta() -> None:
    for form in FORMS:
        layer = made(**form)
        keys = set(layer.state_dict())
        assert keys >= {"bias"}
        assert ("mixing" in keys) == (layer.faces is not None)
        blank = LProductLinear(12, 20, device="meta", dtype=torch.float64, **{**form, "transform": "identity"})
        assert all(p.is_meta for p in blank.parameters())
        blank = blank.to_empty(device="cpu")
        blank.load_state_dict(layer.state_dict())
        x = torch.randn(20, 12, dtype=torch.float64)
        torch.testing.assert_close(blank(x), layer(x))
        torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("form", FORMS[:2], ids=str)
def test_compile_export_and_autocast(form: dict[str, Any]) -> None:
    torch.compiler.reset()
    layer = made(**form).eval()
    x = torch.randn(20, 12, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    longer = torch.cat([x, x, x])
    torch.testing.assert_close(exported.module()(longer), layer(longer))
    narrow = made(dtype=torch.float32, **form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = narrow(x.float())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), narrow(x.float()), rtol=0.05, atol=0.05)


def test_a_fresh_layer_has_outputs_as_large_as_those_of_a_linear_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 256)
    for form in ({}, {"ranks": (20, 30, 40, 25)}):
        ratio = float((LProductLinear(256, 512, **form)(x).std() / nn.Linear(256, 512)(x).std()).detach())
        assert 0.9 < ratio < 1.1


def test_bad_arguments_are_named() -> None:
    for options, message in [
        ({"slices": 5}, "slices must divide 12 inputs and 20 outputs, got 5"),
        ({"slices": 0}, "slices must be a positive integer, got 0"),
        ({"slices": 7, "ranks": (1,) * 7}, r"slices must divide one side of a weight \(20, 12\), got 7"),
        ({"ranks": (1, 2)}, r"ranks must be 4 numbers from 0 to 5, not all 0, got \(1, 2\)"),
        ({"ranks": (0, 0, 0, 0)}, "not all 0"),
        ({"transform": "dft"}, "transform must be real and orthogonal"),
        ({"transform": Transform.dct(3)}, "transform must have the length of slices, 4, got 3"),
    ]:
        with pytest.raises(ValueError, match=message):
            LProductLinear(12, 20, **options)
    layer = made()
    with pytest.raises(ValueError, match="x must have 12 numbers"):
        layer(torch.zeros(3, 11, dtype=torch.float64))
    with pytest.raises(ValueError, match="x must be of the layer's dtype and device"):
        layer(torch.zeros(3, 12))
    linear = nn.Linear(8, 8)
    for target, options, message in [
        (nn.ReLU(), {}, "linear must be a torch.nn.Linear"),
        (nn.Linear(8, 8, device="meta"), {}, "got a weight on the meta device"),
        (linear, {"rank": 3, "tol": 0.1}, "give at most one of ranks, rank and tol"),
        (linear, {"rank": 99}, "rank must be from 1 to 8, got 99"),
        (linear, {"tol": 2.0}, "tol must be between 0 and 1, got 2.0"),
        (linear, {"slices": 3, "rank": 2}, "slices must divide one side"),
    ]:
        with pytest.raises(ValueError, match=message):
            LProductLinear.from_linear(target, **options)
    linear.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="linear must have a finite weight"):
        LProductLinear.from_linear(linear)


@pytest.mark.parametrize(("dtype", "scale", "tol"), [(torch.bfloat16, 1.0, 0.05), (torch.float64, 1e-200, 0.1)])
def test_a_tolerance_counts_rounding_and_not_the_scale(dtype: Any, scale: float, tol: float) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(32, 64, bias=False, dtype=torch.float64)
    linear.weight.data.copy_(torch.randn(64, 32, dtype=torch.float64) * scale)
    linear = linear.to(dtype)
    made = LProductLinear.from_linear(linear, slices=4, tol=tol)
    exact, found = (weight.detach().double() / scale for weight in (linear.weight, made.weight))
    assert (found - exact).norm() <= tol * exact.norm()


def test_a_tolerance_that_rounding_breaks_is_refused() -> None:
    with pytest.raises(ValueError, match="tol must be above"):
        LProductLinear.from_linear(torch.nn.Linear(32, 64).bfloat16(), slices=4, tol=1e-4)

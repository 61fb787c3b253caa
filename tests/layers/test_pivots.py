"""PivotLowRankLinear: the layer of its factors, in fewer numbers."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorfact.torch import PivotLowRankLinear  # noqa: E402

OUT, IN, RANK = 37, 24, 9


def made(dtype: Any = torch.float64, bias: bool = True) -> tuple[PivotLowRankLinear, Any, Any]:
    g = torch.Generator().manual_seed(0)
    up, down = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((OUT, RANK), (RANK, IN)))
    offset = torch.randn(OUT, generator=g, dtype=torch.float64) if bias else None
    layer = PivotLowRankLinear.from_factors(up.to(dtype), down.to(dtype), None if offset is None else offset.to(dtype))
    return layer, up @ down, offset


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_outputs_and_weight(dtype: Any, bias: bool) -> None:
    layer, weight, offset = made(dtype, bias)
    assert layer.head.weight.numel() + layer.follow.weight.numel() == RANK * (OUT + IN - RANK)
    atol = 150 * torch.finfo(dtype).eps
    torch.testing.assert_close(layer.weight.double(), weight, rtol=0, atol=atol)
    x = torch.randn(2, 5, IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = nn.functional.linear(x, weight, offset)
    torch.testing.assert_close(layer(x.to(dtype)).double(), expected, rtol=0, atol=6 * atol)
    torch.testing.assert_close(layer.to_linear()(x.to(dtype)).double(), expected, rtol=0, atol=6 * atol)


def test_gradients() -> None:
    layer, _, _ = made()
    x = torch.randn(3, IN, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    parameters = dict(layer.named_parameters())

    def run(x: Any, *values: Any) -> Any:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


def test_opened_and_closed_it_is_the_same() -> None:
    layer, weight, _ = made()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    layer.open(u[:, :RANK] * s[:RANK], vh[:RANK])
    assert {name for name, _ in layer.named_parameters()} >= {"up", "down"}
    torch.testing.assert_close(layer.weight, weight)
    torch.testing.assert_close(layer(torch.eye(IN, dtype=torch.float64)), weight.T + layer.bias)
    layer.close()
    for key, value in layer.state_dict().items():
        torch.testing.assert_close(value, before[key])


def test_compiled_exported_and_full_rank() -> None:
    layer = made(torch.float32)[0].eval()
    x = torch.randn(4, IN, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))
    square = torch.randn(6, 6, generator=torch.Generator().manual_seed(4))
    full = PivotLowRankLinear.from_factors(square, torch.eye(6))
    assert full.follow.weight.numel() == 0
    torch.testing.assert_close(full.weight, square)
    fresh = PivotLowRankLinear(IN, OUT, rank=RANK)
    assert torch.isfinite(fresh(x)).all()


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="rank must be from 1 to min"):
        PivotLowRankLinear(4, 3, rank=4)
    with pytest.raises(ValueError, match="up and down must have rank 2"):
        PivotLowRankLinear(4, 3, rank=2).store(torch.zeros(3, 1), torch.zeros(1, 4))

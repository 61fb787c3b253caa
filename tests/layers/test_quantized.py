"""Layers with few bits: against NumPy in float64, their gradients, their types, and what is saved of them."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorfact.factor._quantized import dequantize, pack_codes, quantize  # noqa: E402
from tensorfact.torch import CodeTrainer, LowRankLinear, QuantizedLinear, SharedBasisGroup, SharedBasisLinear  # noqa: E402
from tensorfact.torch._quantized import QuantizedTensor, unpack  # noqa: E402


def seeded(shape: Any, seed: int = 0, dtype: Any = torch.float64) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def oracle(weight: Any, bits: int) -> Any:
    """What a weight becomes, in float64."""
    codes, scale = quantize(weight.detach().float().numpy(), bits)
    return torch.from_numpy(dequantize(codes, scale).astype(np.float64))


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(5,), (8, 3), (13, 70), (3, 2, 65)])
def test_unpacking_equals_numpy(bits: int, shape: tuple[int, ...]) -> None:
    half = 1 << (bits - 1)
    codes = np.random.default_rng(0).integers(-half, half, shape).astype(np.int8)
    found = unpack(torch.from_numpy(pack_codes(codes, bits)), bits, shape[0])
    np.testing.assert_array_equal(found.numpy(), codes)


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_layer_computes_with_the_rounded_weight(bits: int, dtype: Any) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(70, 24, dtype=dtype)
    layer = QuantizedLinear.from_linear(linear, bits=bits)
    x = seeded((5, 70), dtype=dtype)
    expected = x.double() @ oracle(linear.weight, bits).T + linear.bias.double()
    tolerance = 200 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6
    for mode in (True, False):
        with torch.no_grad():
            out = layer.train(mode)(x)
            assert out.dtype == dtype
            torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
            torch.testing.assert_close(layer.to_linear()(x), out)
    assert layer.nbytes == 24 * bits // 8 * 70 + 2 * 24 * 2


def test_the_numbers_change_their_type_and_the_scales_do_not() -> None:
    layer = QuantizedLinear(70, 24, bits=4).eval()
    before = layer.weight.double()
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        layer.to(dtype)
        assert layer.scale.dtype == torch.bfloat16
        assert layer.packed.dtype == torch.uint8
        assert layer.weight.dtype == dtype
    torch.testing.assert_close(layer.weight.double(), before, rtol=0, atol=0)
    assert layer.to("meta").weight.shape == (24, 70)


def test_states_go_through_a_file_and_copies_are_their_own() -> None:
    layer, other = QuantizedLinear(70, 24, bits=3), QuantizedLinear(70, 24, bits=3).eval()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    x = seeded((2, 70), dtype=torch.float32)
    with torch.no_grad():
        other(x)  # fills the kept weight
        other.load_state_dict(torch.load(file))
        torch.testing.assert_close(other(x), layer(x))
        twin = copy.deepcopy(other)
        other.store(torch.zeros(24, 70))
        assert not torch.equal(twin(x), other(x))


def test_exported_and_compiled_layers_compute_the_same() -> None:
    layer = LowRankLinear.from_linear(nn.Linear(40, 24), rank=8, bits=4, rng=0).eval()
    x = seeded((3, 40), dtype=torch.float32)
    with torch.no_grad():
        expected = layer(x)
        torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), expected)
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), expected)


def test_gradients_pass_where_the_range_reaches() -> None:
    part = QuantizedTensor((2, 64), 3, dtype=torch.float64)
    values = seeded((2, 64))
    part.store(values)
    part.open(values)
    out = part()
    torch.testing.assert_close(out, oracle(values, 3), rtol=1e-6, atol=0)
    slope = seeded((2, 64), 1)
    (out * slope).sum().backward()
    step = part.scale.double()
    ratio = values / step
    inside = (ratio > -4) & (ratio < 3)
    assert 0 < (~inside).sum() < 40
    torch.testing.assert_close(part.latent.grad, slope * inside)
    # LSQ: the derivative by the step is round(v / s) - v / s inside and the end of the range outside
    by_step = torch.where(inside, ratio.round() - ratio, ratio.clamp(-4, 3))
    expected = (slope * by_step).sum(1, keepdim=True) * step
    torch.testing.assert_close(part.log_scale.grad, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_opening_and_closing_changes_nothing(bits: int) -> None:
    part = QuantizedTensor((13, 70), bits)
    part.store(seeded((13, 70)))
    before = [tensor.clone() for tensor in (part.packed, part.scale)]
    for latent in (None, seeded((13, 70), dtype=torch.float32)):
        part.open(latent)
        assert [tuple(p.shape) for p in part.parameters()] == [(13, 70), (13, 2)]
        part.close()
        for tensor, old in zip((part.packed, part.scale), before, strict=True):
            assert torch.equal(tensor, old)
    assert list(part.parameters()) == []


def test_a_linear_layer_opens_with_what_it_stores() -> None:
    layer = QuantizedLinear(70, 24, bits=4)
    x = seeded((3, 70), dtype=torch.float32)
    before = layer(x)
    layer.open()
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)
    layer(x).sum().backward()
    assert layer.latent.grad is not None
    layer.close()
    torch.testing.assert_close(layer(x), before, rtol=0, atol=0)


def test_parameters_of_several_holders_stay_tied_and_keep_their_scales() -> None:
    first, second = (QuantizedTensor((13, 70), 4, shared=True) for _ in range(2))
    first.store(seeded((13, 70)))
    second.packed, second.scale = first.packed, first.scale
    both, before = nn.ModuleList([first, second]), first()
    for dtype in (torch.float16, torch.float64, torch.bfloat16, torch.float32):
        both.to(dtype)
        assert second.scale is first.scale
        assert second.packed is first.packed
        assert first.scale.dtype == torch.bfloat16
        assert first().dtype == second().dtype == dtype
    for part in (first, second):
        torch.testing.assert_close(part(), before, rtol=0, atol=0)


@pytest.mark.parametrize(("n_in", "n_out"), [(16, 64), (64, 16), (24, 24)])
@pytest.mark.parametrize("path", ["dense", "factored"])
@pytest.mark.parametrize("bits", [8, 3])
def test_shared_layers_compute_with_rounded_parts(n_in: int, n_out: int, path: Any, bits: int) -> None:
    layer = SharedBasisLinear(n_in, n_out, rank=20, kept=300, bits=bits, path=path, dtype=torch.float64)
    basis, values = seeded((min(n_in, n_out), 20)), seeded(300, 1)
    layer.basis.store(basis)
    layer.values.store(values)
    codes = torch.zeros(layer.code_shape, dtype=torch.float64)
    codes[layer.kept_places()] = oracle(values, bits)
    weight = oracle(basis, bits) @ codes
    weight = weight.T if n_out >= n_in else weight
    x = seeded((7, n_in), 2)
    expected = x @ weight.T + layer.bias
    for mode in (True, False):
        with torch.no_grad():
            torch.testing.assert_close(layer.train(mode)(x), expected)
    torch.testing.assert_close(layer.to_linear()(x), expected)


def test_a_group_has_one_basis_in_few_bits() -> None:
    first = SharedBasisLinear(16, 64, rank=20, kept=300, bits=4)
    second = SharedBasisLinear(64, 16, rank=20, kept=200, bits=4)
    group = SharedBasisGroup({"a": first, "b": second})
    assert second.basis is first.basis
    state = group.state_dict()
    assert sorted(key for key in state if "basis" in key) == ["members.0.basis.packed", "members.0.basis.scale"]
    parts = [value for key, value in state.items() if not key.endswith("bias")]
    assert group.nbytes == sum(part.numel() * part.element_size() for part in parts)
    twin = SharedBasisGroup(
        {
            "a": SharedBasisLinear(16, 64, rank=20, kept=300, bits=4),
            "b": SharedBasisLinear(64, 16, rank=20, kept=200, bits=4),
        }
    )
    twin.load_state_dict(state)
    x = seeded((3, 64), dtype=torch.float32)
    torch.testing.assert_close(twin["b"](x), group["b"](x))
    moved = copy.deepcopy(group).double()
    torch.testing.assert_close(moved["b"](x.double()), group["b"](x).double(), rtol=1e-5, atol=1e-6)
    assert moved["b"].basis is moved["a"].basis


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="bits must be an integer from 2 to 8, got 9"):
        QuantizedLinear(4, 4, bits=9)
    with pytest.raises(ValueError, match="linear must be a torch"):
        QuantizedLinear.from_linear(nn.Identity(), bits=4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight on the meta device"):
        QuantizedLinear.from_linear(nn.Linear(4, 4, device="meta"), bits=4)
    bad = nn.Linear(4, 4)
    with torch.no_grad():
        bad.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="values must be finite"):
        QuantizedLinear.from_linear(bad, bits=4)
    with pytest.raises(ValueError, match="basis must be stored in as many bits"):
        SharedBasisLinear(16, 64, rank=20, kept=3, bits=4, basis=SharedBasisLinear(16, 64, rank=20, kept=3).basis)
    with pytest.raises(ValueError, match="layers must not be stored in few bits"):
        CodeTrainer([SharedBasisLinear(16, 64, rank=20, kept=3, bits=4)])
    part = QuantizedTensor((2, 3), 4)
    with pytest.raises(ValueError, match=r"values must be of shape \(2, 3\)"):
        part.store(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"latent must be of shape \(2, 3\)"):
        part.open(torch.zeros(3, 2))

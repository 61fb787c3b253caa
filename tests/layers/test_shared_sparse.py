"""The sparse path of SharedBasisLinear: the same numbers, only where it can serve, and never stale."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tensorfact import kernels  # noqa: E402
from tensorfact.factor._shared_path import shared_path  # noqa: E402
from tensorfact.torch import SharedBasisLinear  # noqa: E402


def layer(n_in: int, n_out: int, path: Any = "sparse", density: float = 0.2, **options: Any) -> SharedBasisLinear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rank = min(n_in, n_out)
        kept = int(density * rank * max(n_in, n_out))
        return SharedBasisLinear(n_in, n_out, rank=rank, kept=kept, path=path, **options).eval()


def data(*shape: int, dtype: Any = torch.float32) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("n_in", "n_out"), [(24, 70), (70, 24), (33, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"bits": 4}])
def test_the_numbers_are_those_of_the_dense_weight(n_in: int, n_out: int, dtype: Any, options: Any) -> None:
    sparse = layer(n_in, n_out, dtype=dtype, **options)
    x = data(2, 9, n_in, dtype=dtype)
    with torch.no_grad():
        assert sparse.plan(18) == "sparse"
        exact = torch.nn.functional.linear(
            x.double(), sparse.weight.double(), None if sparse.bias is None else sparse.bias.double()
        )
        found = sparse(x)
        assert found.dtype == dtype
        scale = float(exact.abs().max())
        assert float((found.double() - exact).abs().max()) <= 40 * torch.finfo(dtype).eps * scale
        assert sparse(x[:0]).shape == (0, 9, n_out)


def test_it_serves_only_what_it_can() -> None:
    sparse = layer(24, 70)
    x = data(9, 24)
    assert sparse.plan(9) != "sparse"  # gradients of its own parameters are wanted
    sparse(x).sum().backward()
    assert sparse.values.grad is not None
    sparse.requires_grad_(False)
    assert sparse.plan(9) == "sparse"
    x.requires_grad_()
    sparse(x).sum().backward()
    torch.testing.assert_close(x.grad, sparse.weight.sum(0).expand(9, 24))
    assert sparse.train().plan(9) != "sparse"
    assert layer(24, 70, dtype=torch.bfloat16).requires_grad_(False).plan(9) != "sparse"
    compiled = torch.compile(sparse.eval(), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x.detach()), sparse(x.detach()), rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(data(9, 24)), sparse(x.detach()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n_in", "n_out"), [(24, 70), (70, 24), (33, 33)])
@pytest.mark.parametrize("bits", [None, 4])
def test_a_bias_that_is_trained_alone_gets_its_gradient(n_in: int, n_out: int, bits: int | None) -> None:
    sparse = layer(n_in, n_out, bits=bits)
    for part in sparse.parameters():
        if part.is_floating_point():
            part.requires_grad_(part is sparse.bias)
    assert sparse.plan(9) == "sparse"
    x, slope = data(9, n_in), data(9, n_out)
    out = sparse(x)
    with torch.no_grad():
        torch.testing.assert_close(out, sparse(x))
    (out * slope).sum().backward()
    torch.testing.assert_close(sparse.bias.grad, slope.sum(0))


def test_nothing_stale_is_used() -> None:
    sparse = layer(24, 70).requires_grad_(False)
    x = data(9, 24)
    before = sparse(x)
    sparse.values.mul_(2)
    bias = sparse.bias
    torch.testing.assert_close(sparse(x) - bias, 2 * (before - bias), rtol=1e-4, atol=1e-5)
    sparse.set_places(sparse.kept_places().flip(0))
    torch.testing.assert_close(sparse(x), torch.nn.functional.linear(x, sparse.weight, bias), rtol=1e-4, atol=1e-5)
    for twin in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        twin.values.zero_()
        torch.testing.assert_close(twin(x), bias.expand(9, 70))
    assert float(sparse(x).std()) > 0.01


def test_auto_takes_it_where_it_was_faster() -> None:
    if kernels.active() != "cpp":
        pytest.skip("needs the compiled kernel")
    assert shared_path(512, (3072, 768), 768, int(0.1 * 768 * 3072)) == "sparse"
    assert shared_path(512, (768, 3072), 768, int(0.1 * 768 * 3072)) == "sparse"
    assert shared_path(512, (3072, 768), 768, int(0.5 * 768 * 3072)) == "dense"
    assert shared_path(512, (3072, 768), 2304, int(0.25 * 2304 * 3072)) == "dense"
    assert shared_path(2, (3072, 768), 768, int(0.1 * 768 * 3072)) == "dense"
    wide = layer(256, 1024, "auto", 0.05).requires_grad_(False)
    assert wide.plan(512) == "sparse"
    assert wide.plan(1) == "kept"
    assert layer(256, 1024, "auto", 0.6).requires_grad_(False).plan(512) == "kept"


@pytest.mark.parametrize(("pattern", "kept"), [("2:4", 2), ("1:4", 1)])
@pytest.mark.parametrize(("n_in", "n_out"), [(24, 70), (70, 24)])
def test_patterns_of_four(pattern: Any, kept: int, n_in: int, n_out: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = SharedBasisLinear(n_in, n_out, rank=28, kept=7 * kept * 70, pattern=pattern, path="dense").eval()
    keep = made.kept_places()
    assert bool((keep.reshape(7, 4, 70).sum(1) == kept).all())
    assert made.mask.numel() == math.ceil(28 * kept / 16) * 70
    x = data(9, n_in)
    codes = torch.zeros(28, 70)
    codes[keep] = made.values.detach()
    weight = made.basis @ codes
    expected = torch.nn.functional.linear(x, weight.T if n_out >= n_in else weight, made.bias)
    twin = SharedBasisLinear(n_in, n_out, rank=28, kept=7 * kept * 70, pattern=pattern, path="sparse").eval()
    twin.load_state_dict(made.state_dict())
    with torch.no_grad():
        for layer_ in (made, made.train(), twin):
            torch.testing.assert_close(layer_(x), expected, rtol=1e-4, atol=1e-5)
    flipped = keep.reshape(7, 4, 70).flip(1).reshape(28, 70)
    twin.set_places(flipped)
    assert torch.equal(twin.kept_places(), flipped)
    with pytest.raises(ValueError, match=f"mask must keep {kept} of every 4 rows"):
        twin.set_places(torch.ones(28, 70, dtype=torch.bool))
    with pytest.raises(ValueError, match="pattern must be 2:4 or 1:4"):
        SharedBasisLinear(n_in, n_out, rank=27, kept=7 * kept * 70, pattern=pattern)

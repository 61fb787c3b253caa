"""DecoupledMLP: against the decoupling it was built from, trained, exported, and turned back where that is exact."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import tensorfact  # noqa: E402
from tensorfact.torch import DecoupledMLP  # noqa: E402


def dense(activation: Any, dtype: Any = torch.float64, h: int = 10) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(4, h), activation, torch.nn.Linear(h, 3)).to(dtype)
        return network, torch.randn(300, 4, dtype=dtype)


def fitted(dtype: Any = torch.float64, rank: int = 10, **options: Any) -> Any:
    network, x = dense(torch.nn.GELU(), dtype)
    options = {"n_basis": 10, "max_iter": 20, "polish_iter": 30, "rng": 0} | options
    return DecoupledMLP.from_dense(*network, x, rank=rank, **options), network, x


def test_from_decoupling_is_the_same_function() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 3))
    result = tensorfact.decouple_mlp(
        rng.standard_normal((5, 3)), rng.standard_normal(5), rng.standard_normal((2, 5)), np.ones(2), "tanh", x,
        rank=4, max_iter=5, polish_iter=5, rng=0,
    )  # fmt: skip
    layer = DecoupledMLP.from_decoupling(result)
    wide = 3 * rng.standard_normal((50, 3))  # beyond the knots too
    given = torch.from_numpy(wide)
    np.testing.assert_allclose(layer(given).detach().numpy(), result(wide), rtol=1e-12, atol=1e-12)
    jacobian = torch.func.vmap(torch.func.jacrev(layer))(given)
    np.testing.assert_allclose(jacobian.detach().numpy(), result.jacobian(wide), rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in layer.parameters()) == result.n_params
    assert DecoupledMLP.from_decoupling(result, dtype=torch.float32).up.weight.dtype == torch.float32


@pytest.mark.parametrize("activation", ["gelu", "module", "function"])
def test_from_dense_meets_the_network(activation: str) -> None:
    network, x = dense(torch.nn.GELU())
    given = {"gelu": "gelu", "module": network[1], "function": torch.nn.functional.gelu}[activation]
    layer = DecoupledMLP.from_dense(
        network[0], given, network[2], x, rank=10, n_basis=14, max_iter=5, polish_iter=25, rng=0
    )
    truth = network(x)
    assert float(((layer(x) - truth).norm() / truth.norm()).detach()) < 3e-3  # a spline for every unit
    assert layer.rank == 10


def test_half_of_the_units_still_follow_and_training_brings_them_closer() -> None:
    layer, network, x = fitted(rank=5)
    truth = network(x).detach()

    def error(model: Any) -> float:
        return float(((model(x) - truth).norm() / truth.norm()).detach())

    start = error(layer)
    assert start < 0.15
    after = {}
    for frozen in (False, True):
        trained = copy.deepcopy(layer).freeze_splines(frozen)
        before = trained.splines.coefficients.detach().clone()
        wanted = [p for p in trained.parameters() if p.requires_grad]
        assert len(wanted) == (3 if frozen else 4)
        optimizer = torch.optim.Adam(wanted, 1e-3)
        for _ in range(60):
            optimizer.zero_grad()
            (trained(x) - truth).square().mean().backward()
            optimizer.step()
        assert torch.equal(before, trained.splines.coefficients) == frozen
        after[frozen] = error(trained)
    assert after[False] < after[True] < start
    assert layer.freeze_splines().freeze_splines(False).splines.coefficients.requires_grad


@pytest.mark.parametrize("n_basis", [2, 3, 7])
def test_degree_one_is_a_relu_network(n_basis: int) -> None:
    layer, _, x = fitted(rank=6, degree=1, n_basis=n_basis)
    for points in (x, 5 * x):
        torch.testing.assert_close(layer.to_dense()(points), layer(points), rtol=1e-11, atol=1e-11)
    assert layer.to_dense()[0].out_features == 6 * n_basis
    with pytest.raises(ValueError, match="degree 1"):
        fitted(max_iter=1, polish_iter=1)[0].to_dense()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_float32_compile_export_and_state() -> None:
    layer, network, x = fitted(torch.float32, rank=6)
    assert all(p.dtype == torch.float32 for p in layer.parameters())
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    torch.testing.assert_close(torch.export.export(layer, (x,)).module()(x), layer(x))
    fresh = DecoupledMLP(4, 3, rank=6, n_basis=10)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))
    half, _, _ = fitted(torch.bfloat16, rank=6)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    close = (half(x.bfloat16()).float() - network(x)).norm() / network(x).norm()
    assert float(close.detach()) < 0.2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"activation": torch.nn.Softmax(-1)}, "number by number"),
        ({"activation": torch.nn.Linear(3, 3)}, "number by number"),
        ({"activation": "softplus"}, "activation must be one of"),
        ({"activation": 3}, "activation"),
        ({"fc1": torch.nn.Identity()}, "fc1 must be a torch.nn.Linear"),
        ({"samples": torch.zeros(5, 3)}, "4 features"),
        ({"samples": torch.full((5, 4), torch.nan)}, "finite"),
        ({"rank": 0}, "rank"),
    ],
)
def test_bad_input(change: dict[str, Any], text: str) -> None:
    network, x = dense(torch.nn.GELU(), torch.float32)
    given: dict[str, Any] = {"fc1": network[0], "activation": network[1], "fc2": network[2], "samples": x, "rank": 4}
    given |= change
    parts = [given.pop(name) for name in ("fc1", "activation", "fc2", "samples")]
    with pytest.raises(ValueError, match=text):
        DecoupledMLP.from_dense(*parts, **given)


@pytest.mark.parametrize("activation", [torch.nn.ReLU, torch.nn.SiLU])
def test_activations_that_work_in_place_are_the_others(activation: Any) -> None:
    torch.manual_seed(0)
    fc1, fc2, x = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3), torch.randn(60, 4)
    plain, hasty = (
        DecoupledMLP.from_dense(fc1, activation(inplace=inplace), fc2, x, rank=3, rng=0, max_iter=5, polish=False)
        for inplace in (False, True)
    )
    torch.testing.assert_close(plain(x), hasty(x))

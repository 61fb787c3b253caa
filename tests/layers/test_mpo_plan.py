"""The planner, the kept weight of evaluation and the families of MPOLinear."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorfact.torch import MPOLinear, _mpo_plan, share_rebuilds  # noqa: E402
from tensorfact.torch import mpo as module  # noqa: E402


@pytest.fixture
def rebuilds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often a weight is multiplied out by `MPOLinear` itself."""
    calls: list[int] = []
    real = module.mpo_weights

    def counted(members: Any) -> Any:
        calls.append(len(members))
        return real(members)

    monkeypatch.setattr(module, "mpo_weights", counted)
    return calls


def layer_of(**options: Any) -> MPOLinear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MPOLinear(24, 60, rank=4, path="reconstruct", **options)


def test_forced_paths_and_thin_bonds() -> None:
    wide = MPOLinear(768, 3072, rank=4, device="meta")
    assert wide.plan(4096).how in ("fused", "reconstruct")
    for path in ("chain", "reconstruct"):
        forced = MPOLinear(768, 3072, rank=64, order=3, path=path, device="meta")
        for tokens in (1, 64, 4096):
            assert (forced.plan(tokens).how == "reconstruct") == (path == "reconstruct")


def test_chains_pay_at_thin_bonds_and_the_weight_at_wide_ones() -> None:
    plans = {chi: MPOLinear(768, 3072, rank=chi, device="meta").plan(4096) for chi in (4, 8, 32, 64)}
    if _mpo_plan.kernels.active() == "cpp":
        assert plans[4].how == plans[8].how == "fused"
    assert plans[32].how == plans[64].how == "reconstruct"
    assert plans[4].seconds < plans[8].seconds < plans[64].seconds


def test_the_direction_keeps_what_lies_between_small() -> None:
    """Specification 4.3: up from the right, down from the left."""
    up = MPOLinear(128, 512, rank=4, order=3, path="chain", device="meta")
    down = MPOLinear(512, 128, rank=4, order=3, path="chain", device="meta")
    for sizes, better in ((up, "right"), (down, "left")):
        cores = tuple(tuple(core.shape) for core in sizes.cores)
        cost = {
            direction: sum(n * r * t * c for n, r, t, c, _ in _mpo_plan.steps(cores, direction))  # type: ignore[arg-type]
            for direction in ("left", "right")
        }
        assert min(cost, key=lambda key: cost[key]) == better
    assert sum(
        n * r * t * c for n, r, t, c, _ in _mpo_plan.steps(((1, 8, 4, 4), (4, 8, 4, 4), (4, 8, 8, 1)), "right")
    ) == (3072 * 4 + 1024 * 16)


def test_plans_are_made_once_for_a_bucket() -> None:
    sizes = ((1, 6, 4, 3), (3, 10, 6, 1))
    assert _mpo_plan.plan(sizes, 4096) is _mpo_plan.plan(sizes, 4100)
    assert _mpo_plan.plan(sizes, 0).seconds > 0
    assert [_mpo_plan._bucket(n) for n in (0, 1, 7, 8, 9, 4095, 4096)] == [1, 1, 7, 8, 8, 3584, 4096]
    assert set(_mpo_plan.groupings(3)) == {(3,), (1, 2), (2, 1), (1, 1, 1)}
    assert str(_mpo_plan.Plan("fused", "left", (2, 1), 1.0)) == "fused from the left, cores merged (2, 1)"


def test_evaluation_keeps_the_weight_until_a_core_changes(rebuilds: list[int]) -> None:
    layer = layer_of().eval()
    x = torch.randn(5, 24)
    with torch.no_grad():
        first = layer(x)
        assert torch.equal(layer(x), first)
        assert len(rebuilds) == 1
        layer.cores[0].mul_(2)
        assert layer.bias is not None
        torch.testing.assert_close(layer(x) - layer.bias, 2 * (first - layer.bias))
        assert len(rebuilds) == 2
        layer.bias.add_(1)  # no part of the weight
        layer(x)
        assert len(rebuilds) == 2


def change_by_optimiser(layer: MPOLinear) -> None:
    layer(torch.ones(2, 24, dtype=layer.cores[0].dtype)).sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1).step()


def change_by_state_dict(layer: MPOLinear) -> None:
    layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()})


def change_by_assignment(layer: MPOLinear) -> None:
    layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()}, assign=True)


def change_by_data(layer: MPOLinear) -> None:
    for core in layer.cores:
        core.data = core.data + 1


@pytest.mark.parametrize(
    "change",
    [change_by_optimiser, change_by_state_dict, change_by_assignment, change_by_data, lambda layer: layer.double()],
)
def test_every_change_reaches_the_output(change: Any) -> None:
    layer = layer_of().eval()
    x = torch.randn(5, 24)
    with torch.no_grad():
        before = layer(x)
    change(layer)
    x = x.to(layer.cores[0].dtype)
    with torch.no_grad():
        after = layer(x)
        torch.testing.assert_close(after, nn.functional.linear(x, layer.weight, layer.bias))
    assert after.dtype == layer.cores[0].dtype
    if after.dtype == before.dtype:
        assert not torch.allclose(after, before)


def test_no_graph_is_kept_and_gradients_flow_in_evaluation_too(rebuilds: list[int]) -> None:
    layer = layer_of().eval()
    x = torch.randn(5, 24)
    with torch.no_grad():
        layer(x)
    for _ in range(2):
        layer(x).sum().backward()
    assert layer.cores[0].grad is not None
    assert len(rebuilds) == 1
    for core in layer.cores:
        core.requires_grad_(False)
    x.requires_grad_()
    layer(x).sum().backward()  # frozen: the kept weight serves the gradient of the input
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(5, 24))


def test_inference_mode_and_back() -> None:
    layer = layer_of().eval()
    x = torch.randn(5, 24)
    with torch.inference_mode():
        kept = layer(x).clone()
    for core in layer.cores:
        core.requires_grad_(False)
    y = x.clone().requires_grad_()
    out = layer(y)
    torch.testing.assert_close(out.detach(), torch.tensor(kept.tolist()))
    out.sum().backward()
    assert y.grad is not None


def test_training_keeps_nothing_and_copies_are_empty(rebuilds: list[int]) -> None:
    layer = layer_of()
    x = torch.randn(5, 24)
    with torch.no_grad():
        layer(x)
    assert layer._dense._state is None
    with torch.no_grad():
        layer.eval()(x)
    assert layer._dense._state is not None
    assert copy.deepcopy(layer)._dense._state is None
    assert pickle.loads(pickle.dumps(layer))._dense._state is None
    assert set(layer.state_dict()) == {"bias", "cores.0", "cores.1"}
    assert layer.train()._dense._state is None


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.same = nn.ModuleList(MPOLinear(12, 12, rank=3, order=3, dtype=torch.float64) for _ in range(3))
        self.other = MPOLinear(12, 20, rank=3, dtype=torch.float64)
        self.chain = MPOLinear(12, 12, rank=2, path="chain", dtype=torch.float64)

    def forward(self, x: Any) -> Any:
        for layer in self.same:
            x = x + layer(x)
        return self.other(self.chain(x))


def test_families_are_rebuilt_together_and_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorfact.torch import _mpo_family

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model()
        x = torch.randn(6, 12, dtype=torch.float64)
    plain = copy.deepcopy(model)
    expected = plain(x)
    (expected.square().sum() + plain(2 * x).sum()).backward()
    calls = []
    real = _mpo_family.mpo_weights
    monkeypatch.setattr(_mpo_family, "mpo_weights", lambda members: (calls.append(len(members)), real(members))[1])
    with share_rebuilds(model):
        out = model(x)
        torch.testing.assert_close(out, expected)
        (out.square().sum() + model(2 * x).sum()).backward()
    assert sorted(calls) == [1, 3]
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert all(layer._shared is None for layer in model.modules() if isinstance(layer, MPOLinear))


def test_sharing_ends_with_the_block_even_by_an_error_and_may_be_nested() -> None:
    model = Model()

    def fail() -> None:
        with share_rebuilds(model), share_rebuilds(model):
            assert model.other._shared is not None
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.other._shared is None
    assert copy.deepcopy(model).other._shared is None


def test_another_device_or_dtype_is_refused():
    layer = MPOLinear(64, 64, rank=2, device="meta")
    with pytest.raises(ValueError, match="x must be on the layer's device"):
        layer(torch.ones(4, 64))
    mixed = MPOLinear(64, 64, rank=2, path="chain")
    mixed.bias = torch.nn.Parameter(mixed.bias.detach().double())
    with pytest.raises(RuntimeError, match="must share dtype and device"):
        mixed(torch.ones(4, 64))


def test_copies_made_while_weights_are_shared_have_their_own():
    layer = MPOLinear(16, 16, rank=2)
    with torch.no_grad(), share_rebuilds(layer):
        copied = copy.deepcopy(layer)
    before = copied(torch.ones(1, 16))
    with torch.no_grad():
        copied.cores[0].mul_(2)
        copied.bias.mul_(2)
    torch.testing.assert_close(copied(torch.ones(1, 16)), 2 * before)


# PyTorch loads its own forward rules through a function that it calls deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_forward_differentiation_inside_a_compiled_function_is_no_zero():
    layer, x = MPOLinear(64, 64, rank=2, bias=False), torch.randn(3, 64)
    run = torch.compile(lambda x: torch.func.jvp(layer, (x,), (x,))[1], backend="aot_eager")
    torch.testing.assert_close(run(x), layer(x), rtol=1e-4, atol=1e-5)


def test_the_kept_weight_stays_out_of_transforms_of_the_cores():
    layer, x = MPOLinear(16, 16, rank=2, path="reconstruct").eval().requires_grad_(False), torch.randn(3, 16)
    expected = layer(x)
    parameters = dict(layer.named_parameters())
    twice = {name: 2 * value for name, value in parameters.items()}
    called = torch.fx.experimental.proxy_tensor.make_fx(lambda p, x: torch.func.functional_call(layer, p, (x,)))
    torch.testing.assert_close(
        called(parameters, x)(twice, x), torch.func.functional_call(layer, twice, (x,)), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(called(parameters, x)(twice, x), expected)

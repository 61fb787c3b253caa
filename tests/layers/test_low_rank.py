"""LowRankLinear against a dense layer with the same weight, and against the tools that people put on linear layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorfact.factor import randomized_svd  # noqa: E402
from tensorfact.torch import LowRankLinear  # noqa: E402

IN, OUT, RANK = 24, 40, 6


def dense(dtype: Any = torch.float32, bias: bool = True, seed: int = 0) -> nn.Linear:
    """Return a layer whose singular values decay like 1/i."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = nn.Linear(IN, OUT, bias=bias, dtype=torch.float64)
        u, s, vh = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
        with torch.no_grad():
            linear.weight.copy_(u / torch.arange(1, len(s) + 1) @ vh)
    return linear.to(dtype)


def data(dtype: Any = torch.float32, rows: int = 5) -> Any:
    return torch.randn(3, rows, IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_gradients_equal_the_dense_layer(bias: bool) -> None:
    layer = LowRankLinear.from_linear(dense(torch.float64, bias), rank=RANK, rng=0)
    twin = layer.to_linear()
    x, y = data(torch.float64).requires_grad_(), data(torch.float64).requires_grad_()
    out = layer(x)
    torch.testing.assert_close(out, twin(y))
    out.square().sum().backward()
    twin(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    # d/d up = (d/d W) down^T, d/d down = up^T (d/d W)
    torch.testing.assert_close(layer.up.weight.grad, twin.weight.grad @ layer.down.weight.T)
    torch.testing.assert_close(layer.down.weight.grad, layer.up.weight.T @ twin.weight.grad)
    if bias:
        torch.testing.assert_close(layer.up.bias.grad, twin.bias.grad)


def test_gradcheck_over_input_and_factors() -> None:
    layer = LowRankLinear(4, 3, rank=2, dtype=torch.float64)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())

    def run(x: Any, *values: Any) -> Any:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_from_linear_is_the_best_low_rank_weight_in_the_dtype_of_the_layer(dtype: Any) -> None:
    linear = dense(dtype)
    layer = LowRankLinear.from_linear(linear, rank=RANK, rng=0)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    weight = linear.weight.detach().double()
    s = torch.linalg.svdvals(weight)
    best = (s[RANK:].norm() / s.norm()).item()
    error = ((layer.up.weight.double() @ layer.down.weight.double() - weight).norm() / weight.norm()).item()
    # 1.005 is the accuracy promise of randomized_svd; two factors rounded to the dtype add a few of its eps
    assert best * (1 - 1e-6) <= error <= 1.005 * best + 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(layer.bias, linear.bias, rtol=0, atol=0)
    assert layer(data(dtype)).dtype == dtype


def test_tol_decides_the_rank() -> None:
    linear = dense()
    layer = LowRankLinear.from_linear(linear, tol=0.3, rng=0)
    error = (layer.weight - linear.weight).norm() / linear.weight.norm()
    assert error <= 0.3
    assert 1 < layer.rank < min(IN, OUT)
    assert LowRankLinear.from_linear(linear, tol=0.3, max_rank=2, rng=0).rank == 2


def test_full_rank_round_trip_gives_the_layer_back() -> None:
    linear = dense(torch.float64)
    back = LowRankLinear.from_linear(linear, rank=min(IN, OUT)).to_linear()
    torch.testing.assert_close(back.weight, linear.weight)
    torch.testing.assert_close(back.bias, linear.bias, rtol=0, atol=0)


@pytest.mark.parametrize("split", ["sqrt", "left", "right"])
def test_from_factors_splits_the_singular_values(split: str) -> None:
    weight = dense(torch.float64).weight.detach().numpy()
    result = randomized_svd(weight, rank=RANK, rng=0)
    layer = LowRankLinear.from_factors(result, split=split)
    assert layer.bias is None
    torch.testing.assert_close(layer.weight.detach(), torch.tensor(result.reconstruct()))
    s = torch.tensor(result.s)
    expected = {"sqrt": s.sqrt(), "left": s, "right": torch.ones_like(s)}[split]
    torch.testing.assert_close(layer.up.weight.detach().norm(dim=0), expected)


def test_from_factors_takes_torch_factors_and_casts() -> None:
    result = randomized_svd(dense(torch.float64).weight.detach(), rank=RANK, rng=0)
    layer = LowRankLinear.from_factors(result, dtype=torch.float32)
    assert layer.up.weight.dtype == torch.float32
    torch.testing.assert_close(layer.weight.detach(), result.reconstruct().float())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_on_the_gpu_stays_there(dtype: Any) -> None:
    linear = dense(dtype).cuda()
    layer = LowRankLinear.from_linear(linear, rank=RANK, rng=0)
    assert {(p.device.type, p.dtype) for p in layer.parameters()} == {("cuda", dtype)}
    host = LowRankLinear.from_linear(dense(dtype), rank=RANK, rng=0)
    error, best = ((x.weight.double().cpu() - linear.weight.double().cpu()).norm() for x in (layer, host))
    assert error <= 1.01 * best


def test_modes_and_frozen_parameters_survive() -> None:
    linear = dense().eval()
    linear.weight.requires_grad_(False)
    layer = LowRankLinear.from_linear(linear, rank=2)
    assert not layer.training
    assert not layer.down.training
    assert [p.requires_grad for p in (layer.down.weight, layer.up.weight, layer.up.bias)] == [False, False, True]
    back = layer.to_linear()
    assert (back.training, back.weight.requires_grad, back.bias.requires_grad) == (False, False, True)


def test_from_linear_leaves_the_layer_and_shares_nothing_with_it() -> None:
    linear = dense()
    before = copy.deepcopy(linear.state_dict())
    layer = LowRankLinear.from_linear(linear, rank=2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert all(torch.equal(before[key], value) for key, value in linear.state_dict().items())


def test_fresh_weights_have_the_variance_of_a_fresh_linear() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = LowRankLinear(256, 256, rank=64)
    # the variance estimated from 65536 entries of rank 64; about 2 / sqrt(64 * 64) relative spread
    assert layer.weight.var().item() == pytest.approx(1 / (3 * 256), rel=0.1)


def test_state_dict_safetensors_and_deepcopy_round_trip(tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    layer = LowRankLinear.from_linear(dense(), rank=RANK)
    assert list(layer.state_dict()) == ["down.weight", "up.weight", "up.bias"]
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other = LowRankLinear(IN, OUT, rank=RANK)
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    x = data()
    assert torch.equal(other(x), layer(x))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    assert twin.up.weight.data_ptr() != layer.up.weight.data_ptr()


def test_meta_device_allocates_nothing_and_takes_a_state_dict() -> None:
    layer = LowRankLinear.from_linear(dense(), rank=RANK)
    meta = LowRankLinear(IN, OUT, rank=RANK, device="meta")
    assert all(p.is_meta for p in meta.parameters())
    assert meta.weight.shape == (OUT, IN)
    meta.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(meta(data()), layer(data()))
    with torch.device("meta"):
        assert LowRankLinear(IN, OUT, rank=RANK).up.weight.is_meta


def test_compile_fullgraph_and_export() -> None:
    layer = LowRankLinear.from_linear(dense(), rank=RANK).eval()
    x = data()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))
    exported = torch.export.export(layer, (x,), dynamic_shapes=({1: torch.export.Dim("rows", min=2)},))
    longer = data(rows=9)
    torch.testing.assert_close(exported.module()(longer), layer(longer))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = LowRankLinear.from_linear(dense(), rank=RANK)
        self.out = nn.Linear(OUT, IN)

    def forward(self, x: Any) -> Any:
        return self.out(self.proj(x).relu())


# PEFT reads a property of transformers models that transformers has renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("targets", [["proj.down", "proj.up"], "all-linear"], ids=str)
def test_peft_lora_attaches_to_both_children_and_trains(targets: Any) -> None:
    peft = pytest.importorskip("peft")
    x = data()
    if targets == "all-linear":  # PEFT offers it for transformers models only
        transformers = pytest.importorskip("transformers")
        config = transformers.LlamaConfig(
            vocab_size=16,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        base: Any = transformers.LlamaForCausalLM(config)
        mlp = base.model.layers[0].mlp
        mlp.up_proj = LowRankLinear.from_linear(mlp.up_proj, rank=4)
        x = torch.arange(6)[None]
    else:
        base = Block()
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False))
    adapted = {
        name.split(".lora_A")[0].split("base_model.model.")[-1]
        for name, _ in model.named_parameters()
        if "lora_A" in name
    }
    prefix = "model.layers.0.mlp.up_proj" if targets == "all-linear" else "proj"
    assert {f"{prefix}.down", f"{prefix}.up"} <= adapted
    output = model(x)
    output = output.logits if hasattr(output, "logits") else output
    output.square().sum().backward()
    gradients = [p.grad for name, p in model.named_parameters() if "lora_" in name and prefix in name]
    assert gradients
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


def test_torchao_int8_weight_only_converts_both_children() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = Block().eval()
    x = data()
    with torch.no_grad():
        before = model(x)
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        assert type(model.proj.up.weight.data) is not torch.Tensor
        assert type(model.proj.down.weight.data) is not torch.Tensor
        after = model(x)
    assert not torch.equal(after, before)
    assert (after - before).norm() <= 0.05 * before.norm()  # one byte a weight: relative error below 1 % a layer


def test_repr_names_the_sizes() -> None:
    assert "in_features=24, out_features=40, rank=6, bias=False" in repr(LowRankLinear(IN, OUT, rank=RANK, bias=False))


@pytest.mark.parametrize("rank", [0, -1, 25])
def test_impossible_rank_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"rank must be from 1 to min\(in_features, out_features\) = 24, got {rank}"):
        LowRankLinear(IN, OUT, rank=rank)


def test_from_linear_refuses_what_it_cannot_factorise() -> None:
    with pytest.raises(ValueError, match=r"linear must be a torch\.nn\.Linear, got Embedding"):
        LowRankLinear.from_linear(nn.Embedding(3, 4), rank=1)
    with pytest.raises(ValueError, match="linear must hold values, got a weight on the meta device"):
        LowRankLinear.from_linear(nn.Linear(3, 4, device="meta"), rank=1)
    with pytest.raises(ValueError, match="rank"):
        LowRankLinear.from_linear(dense())
    broken = dense()
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"(?i)nan|finite"):
        LowRankLinear.from_linear(broken, rank=2)

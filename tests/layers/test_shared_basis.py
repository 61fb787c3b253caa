"""SharedBasisLinear and its group against dense layers with the same weights; sharing, saving, compiling."""

from __future__ import annotations

import copy
import gc
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import tensorfact  # noqa: E402
from tensorfact.torch import SharedBasisGroup, SharedBasisLinear  # noqa: E402
from tensorfact.torch._shared_codes import mask_shape, pack_mask, unpack_mask  # noqa: E402

WIDTH, HIDDEN = 16, 56  # a ratio of 3.5


def linears(dtype: Any = torch.float32, *, gated: bool = False, bias: bool = True) -> dict[str, nn.Linear]:
    """Return the MLP layers of two blocks."""
    shapes = {"up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH), **({"gate": (WIDTH, HIDDEN)} if gated else {})}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            f"{block}.{name}": nn.Linear(*shape, bias=bias, dtype=dtype)
            for block in (0, 1)
            for name, shape in shapes.items()
        }


def group(dtype: Any = torch.float32, **arguments: Any) -> SharedBasisGroup:
    gated, bias = arguments.pop("gated", False), arguments.pop("bias", True)
    return SharedBasisGroup.from_linears(
        linears(dtype, gated=gated, bias=bias), **{"param_ratio": 0.6, "rng": 0, "sweeps": 1, **arguments}
    )


def data(features: int, dtype: Any = torch.float32, rows: int = 5) -> Any:
    return torch.randn(3, rows, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("path", ["dense", "factored", "auto"])
@pytest.mark.parametrize(("gated", "bias"), [(False, True), (True, False)])
def test_forward_and_gradients_equal_the_dense_layer(path: Any, gated: bool, bias: bool) -> None:
    for name, layer in group(torch.float64, gated=gated, bias=bias).layers().items():
        layer.path = path
        twin = layer.to_linear()
        x = data(layer.in_features, torch.float64).requires_grad_()
        y = x.detach().clone().requires_grad_()
        out, expected = layer(x), twin(y)
        assert torch.allclose(out, expected, rtol=1e-12, atol=1e-12), name
        out.square().sum().backward()
        expected.square().sum().backward()
        assert torch.allclose(x.grad, y.grad, rtol=1e-10, atol=1e-10)
        weight = twin.weight.grad.T if layer.transposed else twin.weight.grad  # of basis @ codes
        codes = layer.dense_codes().detach()
        assert torch.allclose(layer.basis.grad, weight @ codes.T, rtol=1e-10, atol=1e-10)
        full = layer.basis.detach().T @ weight
        assert torch.allclose(layer.values.grad, full[layer.kept_places()], rtol=1e-10, atol=1e-10)
        if bias:
            assert torch.allclose(layer.bias.grad, twin.bias.grad, rtol=1e-10, atol=1e-10)
        layer.zero_grad()


def test_the_weight_is_what_shared_basis_made() -> None:
    weights = {name: layer.weight.detach().numpy() for name, layer in linears().items()}
    made = tensorfact.shared_basis(list(weights.values()), param_ratio=0.6, sweeps=1, rng=0)
    layers = group()
    for i, name in enumerate(weights):
        assert layers[name].weight.detach().numpy() == pytest.approx(made.reconstruct(i), abs=1e-6)
    back = layers.to_result()
    assert np.array_equal(back.basis, made.basis)
    assert all(np.array_equal(a.dense(), b.dense()) for a, b in zip(back.codes, made.codes, strict=True))
    assert back.nbytes == made.nbytes == layers.nbytes


def test_gradients_by_differences() -> None:
    for shape in ((4, 6), (6, 4)):
        layer = SharedBasisLinear(*shape, rank=5, kept=14, dtype=torch.float64)
        for path in ("dense", "factored"):
            layer.path = path
            inputs = (data(layer.in_features, torch.float64, 1), layer.basis.detach(), layer.values.detach())
            assert torch.autograd.gradcheck(
                lambda x, basis, values, layer=layer: torch.func.functional_call(
                    layer, {"basis": basis, "values": values}, (x,)
                ),
                [part.requires_grad_() for part in inputs],
            )


def test_full_codes_and_a_full_basis_meet_the_weight() -> None:
    given = linears(torch.float64)
    made = SharedBasisGroup.from_linears(given, param_ratio=1.0, sparsity=0.0, sweeps=0, rng=0)
    # the masks of full codes take bits too, so a little is missing
    assert made.basis.shape[1] <= WIDTH
    one = SharedBasisLinear.from_linear(given["0.up"], param_ratio=1.0, sparsity="auto", rng=0)
    assert one.weight.shape == given["0.up"].weight.shape
    assert torch.equal(one.bias, given["0.up"].bias)


def test_one_parameter_serves_all() -> None:
    layers = group()
    model = nn.ModuleDict({name.replace(".", "_"): layer for name, layer in layers.layers().items()})
    assert len({id(layer.basis) for layer in model.values()}) == 1
    assert sum(1 for name, _ in model.named_parameters() if name.endswith("basis")) == 1
    twin = copy.deepcopy(model)
    assert len({id(layer.basis) for layer in twin.values()}) == 1
    assert twin["0_up"].basis is not model["0_up"].basis
    model.double()
    assert len({id(layer.basis) for layer in model.values()}) == 1
    # taken away, or put back as a dense layer: the others keep the basis
    expected = model["1_up"](data(WIDTH, torch.float64))
    del model["0_up"]
    model["0_down"] = nn.Linear(HIDDEN, WIDTH)
    del layers
    gc.collect()
    assert torch.equal(model["1_up"](data(WIDTH, torch.float64)), expected)


def test_gradients_of_all_members_meet_in_the_basis() -> None:
    layers = group(torch.float64)
    x = data(WIDTH, torch.float64)
    total = sum(layer(data(layer.in_features, torch.float64)).square().sum() for layer in layers.layers().values())
    total.backward()
    whole = layers.basis.grad.clone()
    parts = torch.zeros_like(whole)
    for layer in layers.layers().values():
        layers.zero_grad()
        layer(data(layer.in_features, torch.float64)).square().sum().backward()
        parts += layer.basis.grad
    assert torch.allclose(whole, parts, rtol=1e-10, atol=1e-10)
    assert x.shape[-1] == WIDTH


def test_a_group_is_saved_once(tmp_path: Path) -> None:
    from safetensors.torch import load_model, save_model

    layers = group()
    state = layers.state_dict()
    assert sum(key.endswith("basis") for key in state) == 1
    assert sum(v.numel() * v.element_size() for k, v in state.items() if not k.endswith("bias")) == layers.nbytes
    other = group(rng=5)
    with torch.no_grad():
        other.basis.zero_()
    other.load_state_dict(state)
    x = data(WIDTH)
    assert torch.equal(other["1.up"](x), layers["1.up"](x))
    assert other["1.up"].basis is other["0.up"].basis
    # a model that holds the members has the basis under every name, and files have it once
    model = nn.ModuleList(layers.layers().values())
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    small = io.BytesIO()
    torch.save(state, small)
    assert buffer.tell() < small.tell() + 0.5 * layers.basis.nbytes
    save_model(model, str(tmp_path / "model.safetensors"))
    loaded = nn.ModuleList(group(rng=6).layers().values())
    load_model(loaded, str(tmp_path / "model.safetensors"))
    assert torch.equal(loaded[2](x), model[2](x))
    assert loaded[2].basis is loaded[0].basis


def test_evaluation_keeps_the_weight_until_something_changes() -> None:
    layer = group()["0.up"].eval()
    x = data(WIDTH)
    with torch.no_grad():
        assert layer.plan(15) == "kept"
        first = layer(x)
        kept = layer._dense._state
        layer(x)
        assert layer._dense._state is kept
        for change in (layer.values, layer.basis):
            change.mul_(2)
            assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5)
        assert not torch.allclose(layer(x), first)
        assert layer.train().plan(15) != "kept"


def test_the_cheaper_way_is_taken() -> None:
    narrow = SharedBasisLinear(64, 256, rank=8, kept=512)
    wide = SharedBasisLinear(64, 256, rank=96, kept=2048)
    assert narrow.plan(1000) == narrow.eval().plan(1000) == "factored"
    assert wide.plan(1) == "factored"  # to multiply the weight out for one row would not pay
    assert wide.plan(100_000) == "dense"
    with torch.no_grad():
        assert wide.eval().plan(1) == "kept"
    narrow.path = "dense"
    with torch.no_grad():
        assert narrow.eval().plan(4) == "kept"


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["0.up", "0.down"])
def test_compile_and_export(name: str) -> None:
    layer = group()[name]
    x = data(layer.in_features)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    out = compiled(x)
    assert torch.allclose(out, layer(x), atol=1e-5)
    out.sum().backward()
    found = layer.values.grad.clone()
    layer.zero_grad()
    layer(x).sum().backward()
    assert torch.allclose(found, layer.values.grad, atol=1e-4)
    program = torch.export.export(layer.eval(), (x,), dynamic_shapes=({1: torch.export.Dim("rows", min=2)},))
    more = data(layer.in_features, rows=9)
    assert torch.allclose(program.module()(more), layer(more), atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_vmap_and_forward_gradients() -> None:
    layer = group(torch.float64)["0.up"]
    x = data(WIDTH, torch.float64)
    assert torch.allclose(torch.func.vmap(layer)(x), layer(x))
    with torch.no_grad():
        _, moved = torch.func.jvp(layer, (x,), (torch.ones_like(x),))
    assert torch.allclose(moved, nn.functional.linear(torch.ones_like(x), layer.weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(dtype: Any) -> None:
    given = linears(dtype)
    made = SharedBasisGroup.from_linears(given, param_ratio=0.6, rng=0)
    assert made.basis.dtype == dtype
    assert made.nbytes <= 0.6 * sum(2 * layer.weight.numel() for layer in given.values())
    layer = made["0.up"]
    assert layer(data(WIDTH, dtype)).dtype == dtype
    exact = layer.double()
    assert torch.isfinite(exact.weight).all()


def test_meta_and_to_empty() -> None:
    layer = SharedBasisLinear(8, 12, rank=5, kept=20, device="meta")
    assert layer.mask.is_meta
    made = layer.to_empty(device="cpu")
    assert made.mask.shape == (12, 1)
    sizes = {"a": (8, 12), "b": (12, 8)}
    layers = {name: SharedBasisLinear(*size, rank=5, kept=20, device="meta") for name, size in sizes.items()}
    meta = SharedBasisGroup(layers).to_empty(device="cpu")
    meta.tie()
    assert meta["a"].basis is meta["b"].basis


def test_a_fresh_layer_has_the_variance_of_linear() -> None:
    torch.manual_seed(0)
    layer = SharedBasisLinear(128, 512, rank=192, kept=192 * 512 // 4)
    assert layer.kept_places().sum() == layer.kept
    assert float(layer.weight.detach().std()) == pytest.approx((1 / (3 * 128)) ** 0.5, rel=0.1)
    assert "density=0.25" in repr(layer)


@pytest.mark.parametrize("shape", [(5, 7), (8, 3), (17, 11), (64, 1)])
def test_masks_are_those_of_numpy(shape: tuple[int, int]) -> None:
    keep = np.random.default_rng(0).random(shape) < 0.4
    bits = pack_mask(torch.tensor(keep))
    assert tuple(bits.shape) == mask_shape(*shape)
    assert np.array_equal(bits.numpy(), np.packbits(keep, axis=0, bitorder="little"))
    assert np.array_equal(unpack_mask(bits, shape[0]).numpy(), keep)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_gives_the_same() -> None:
    layers = group()
    x = data(WIDTH)
    expected = layers["0.up"](x)
    assert torch.allclose(layers.cuda()["0.up"](x.cuda()).cpu(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": True}, "rank"),
        ({"kept": -1}, "kept"),
        ({"kept": 5 * 12 + 1}, "kept"),
        ({"path": "csr"}, "path"),
        ({"basis": nn.Parameter(torch.zeros(3, 3))}, "basis"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SharedBasisLinear(8, 12, **{"rank": 5, "kept": 10, **arguments})


def test_bad_groups() -> None:
    with pytest.raises(ValueError, match="at least one"):
        SharedBasisGroup({})
    with pytest.raises(ValueError, match="one shape"):
        SharedBasisGroup({"a": SharedBasisLinear(8, 12, rank=5, kept=1), "b": SharedBasisLinear(8, 12, rank=6, kept=1)})
    with pytest.raises(ValueError, match="one short side"):
        SharedBasisGroup.from_linears({"a": nn.Linear(8, 12), "b": nn.Linear(9, 12)}, param_ratio=0.5)
    with pytest.raises(ValueError, match="meta"):
        SharedBasisGroup.from_linears({"a": nn.Linear(8, 12, device="meta")}, param_ratio=0.5)
    with pytest.raises(KeyError):
        group()["2.up"]
    with pytest.raises(ValueError, match="last axis"):
        group()["0.up"](torch.zeros(2, 5))


def test_a_weight_kept_under_autocast_serves_other_regions_too() -> None:
    layer = SharedBasisLinear(16, 64, rank=24, kept=384).eval()
    x = torch.randn(2, 16)
    with torch.no_grad():
        expected = x @ layer.weight.T + layer.bias
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_bfloat16_layers_keep_their_range(scale: float) -> None:
    linear = nn.Linear(16, 32, bias=False)
    linear.weight.data.mul_(scale)
    errors = []
    for source in (linear, copy.deepcopy(linear).bfloat16()):
        group = SharedBasisGroup.from_linears({"a": source}, param_ratio=0.9, sparsity=0.3, rng=0)
        weight = source.weight.detach().double()
        errors.append(float((group["a"].weight.detach().double() - weight).norm() / weight.norm()))
    assert errors[1] < errors[0] + 0.1  # a mask weighs more beside numbers of two bytes


def test_assigned_state_is_tied_again() -> None:
    layers = {
        "a": SharedBasisLinear(16, 64, rank=24, kept=384),
        "b": SharedBasisLinear(64, 16, rank=24, kept=100, bias=False),
    }
    group = SharedBasisGroup(layers)
    before = len(list(group.parameters()))
    group.load_state_dict({key: value.clone() for key, value in group.state_dict().items()}, assign=True)
    assert group["a"].basis is group["b"].basis
    assert len(list(group.parameters())) == before


def test_a_mask_that_does_not_fit_is_refused() -> None:
    layer = SharedBasisLinear(16, 64, rank=20, kept=300)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    state["mask"][0, 0] ^= 1
    with pytest.raises(ValueError, match="mask must keep 300 places of the codes"):
        layer.load_state_dict(state)
    state["mask"][0, 0] ^= 1
    layer.load_state_dict(state)
    state["mask"][0, 2] |= 128  # a bit beyond the last row
    with pytest.raises(ValueError, match=r"mask must keep 300 places of the codes \(20, 64\), got 301"):
        nn.ModuleList([layer]).load_state_dict({f"0.{key}": value for key, value in state.items()})

"""MPOLinear against a dense layer with the same weight: paths, gradients, round trips, initialisation, bad input."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorfact.factor import TTMatrix, tt_matrix_svd  # noqa: E402
from tensorfact.torch import MPOLinear  # noqa: E402

IN, OUT = 24, 60
PATHS = ["chain", "reconstruct", "auto"]


def layer_of(order: int = 2, dtype: Any = torch.float64, seed: int = 0, **options: Any) -> MPOLinear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MPOLinear(IN, OUT, rank=3, order=order, dtype=dtype, **options)


def data(dtype: Any = torch.float64, rows: int = 5, width: int = IN) -> Any:
    return torch.randn(3, rows, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def oracle(layer: MPOLinear) -> Any:
    """The weight by one einsum over named axes, in float64."""
    order = len(layer.cores)
    operands: list[Any] = []
    for k, core in enumerate(layer.cores):
        operands += [core.detach().double().numpy(), [k, 20 + k, 40 + k, k + 1]]
    weight = np.einsum(*operands, [*range(20, 20 + order), *range(40, 40 + order)])
    return torch.from_numpy(weight.reshape(layer.out_features, layer.in_features))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("path", PATHS)
def test_every_path_equals_the_dense_layer_in_values_and_gradients(order: int, path: Any) -> None:
    layer = layer_of(order, path=path)
    weight = oracle(layer)
    torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-12, atol=1e-13)
    x, y = data().requires_grad_(), data().requires_grad_()
    cores = [core.detach().clone().requires_grad_() for core in layer.cores]
    assert layer.bias is not None
    bias = layer.bias.detach().clone().requires_grad_()
    names = [(k, 20 + k, 40 + k, k + 1) for k in range(order)]
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    inputs = ",".join("".join(letters[axis] for axis in name) for name in names)
    target = "".join(letters[20 + k] for k in range(order)) + "".join(letters[40 + k] for k in range(order))
    dense = torch.einsum(f"{inputs}->{target}", *cores).reshape(OUT, IN)
    out, expected = layer(x), nn.functional.linear(y, dense, bias)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    scale = torch.randn_like(out)
    (out * scale).sum().backward()
    (expected * scale).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.bias.grad, bias.grad, rtol=1e-10, atol=1e-10)
    for mine, core in zip(layer.cores, cores, strict=True):
        torch.testing.assert_close(mine.grad, core.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("path", ["chain", "reconstruct"])
def test_gradcheck_over_input_cores_and_bias(order: int, path: Any) -> None:
    layer = MPOLinear(6, 8, rank=2, order=order, path=path, dtype=torch.float64)
    x = data(width=6)[0, :2].clone().requires_grad_()
    parameters = dict(layer.named_parameters())

    def run(x: Any, *values: Any) -> Any:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))
    assert torch.autograd.gradgradcheck(run, (x, *parameters.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", PATHS)
def test_narrow_types_are_as_exact_as_their_digits(dtype: Any, path: Any) -> None:
    layer = layer_of(3, dtype, path=path)
    x = data(dtype)
    assert layer.bias is not None
    expected = x.double() @ oracle(layer).T + layer.bias.double()
    out = layer(x)
    assert out.dtype == dtype
    # the weight may be rounded to the dtype before the product
    assert (out - expected).norm() <= 8 * torch.finfo(dtype).eps * expected.norm()
    out.sum().backward()
    assert all(core.grad is not None and core.grad.dtype == dtype for core in layer.cores)
    twin = layer.to_linear().double()
    got, want = layer(x).double(), twin(x.double())
    assert (got - want).norm() <= 8 * torch.finfo(dtype).eps * want.norm()


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("path", PATHS)
def test_no_rows_single_rows_and_strided_input(rows: int, path: Any) -> None:
    layer = layer_of(3, path=path)
    x = data(rows=rows)
    assert layer(x).shape == (3, rows, OUT)
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    wide = data(width=2 * IN)[..., ::2]
    torch.testing.assert_close(layer(wide), layer(wide.contiguous()))
    vector = data()[0, 0]
    assert layer(vector).shape == (OUT,)


def test_complex_is_right() -> None:
    layer = MPOLinear(6, 8, rank=2, dtype=torch.complex128)
    x = torch.randn(3, 6, dtype=torch.complex128)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    for path in ("chain", "reconstruct"):
        layer.path = path  # type: ignore[assignment]
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", [2, 3])
def test_from_linear_is_the_train_of_the_weight(order: int, dtype: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = nn.Linear(IN, OUT, dtype=dtype).eval()
    linear.weight.requires_grad_(False)
    layer = MPOLinear.from_linear(linear, order=order, rank=4)
    weight = linear.weight.detach().double()
    matrix = tt_matrix_svd(weight.numpy(), layer.row_shape, layer.col_shape, rank=4)
    error = ((oracle(layer) - weight).norm() / weight.norm()).item()
    assert error == pytest.approx(matrix.error, rel=1e-3, abs=4 * torch.finfo(dtype).eps)
    assert {core.dtype for core in layer.cores} == {dtype}
    assert not layer.training
    assert [core.requires_grad for core in layer.cores] == [False] * order
    assert layer.bias is not None
    assert layer.bias.requires_grad
    torch.testing.assert_close(layer.bias, linear.bias, rtol=0, atol=0)
    back = layer.to_linear()
    assert (back.training, back.weight.requires_grad) == (False, False)
    torch.testing.assert_close(back.weight.double(), oracle(layer), rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_tol_decides_the_bonds_and_full_bonds_are_exact() -> None:
    linear = nn.Linear(IN, OUT, dtype=torch.float64)
    loose = MPOLinear.from_linear(linear, order=3, tol=0.5)
    assert (loose.weight - linear.weight).norm() <= 0.5 * linear.weight.norm()
    exact = MPOLinear.from_linear(linear, order=3, rank=10**6)
    torch.testing.assert_close(exact.weight, linear.weight)
    assert max(loose.ranks) < max(exact.ranks)
    assert MPOLinear.from_linear(linear, order=3, tol=0.1, max_rank=2).ranks == (1, 2, 2, 1)


def test_from_matrix_copies() -> None:
    matrix = TTMatrix.random((3, 4), (2, 5), rank=3, std=0.1, rng=0)
    bias = torch.ones(12)
    layer = MPOLinear.from_matrix(matrix, bias)
    assert (layer.in_features, layer.out_features, layer.ranks) == (10, 12, (1, 3, 1))
    torch.testing.assert_close(layer.weight.detach(), torch.tensor(matrix.reconstruct()).to(layer.cores[0].dtype))
    before = [np.array(core) for core in matrix.cores]
    with torch.no_grad():
        for core in layer.cores:
            core.zero_()
    assert all((a == b).all() for a, b in zip(before, matrix.cores, strict=True))
    assert MPOLinear.from_matrix(matrix, dtype=torch.float16).cores[0].dtype == torch.float16


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_exact_initialisation_has_the_asked_spread_for_any_order(order: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(order)
        layer = MPOLinear(64, 96, rank=6, order=order)
        for std in (None, 0.02):
            squares = []
            for _ in range(400):
                layer.reset_parameters(std)
                squares.append(layer.weight.detach().square().mean().item())
            target = std if std is not None else 1 / math.sqrt(3 * 64)
            assert math.sqrt(np.mean(squares)) == pytest.approx(target, rel=0.03)  # one draw scatters by 5 to 12 %


@pytest.mark.parametrize(("shape", "order", "published"), [((128, 128), 2, 0.088), ((128, 512), 3, 0.026),
                                                           ((512, 128), 3, 0.0093)])  # fmt: skip
def test_paper_initialisation_is_the_published_rule(shape: Any, order: int, published: float) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = MPOLinear(*shape, rank=8, order=order, init="paper")
        squares = []
        for _ in range(200):
            layer.reset_parameters()
            squares.append(layer.weight.detach().square().mean().item())
    assert math.sqrt(np.mean(squares)) == pytest.approx(published, rel=0.03)


@pytest.mark.parametrize(("shape", "order", "largest"), [((128, 128), 2, (64,)), ((128, 512), 3, (32, 64)),
                                                         ((512, 128), 3, (32, 64)), ((128, 65), 2, (40,))])  # fmt: skip
def test_dead_bonds_are_clipped(shape: Any, order: int, largest: Any) -> None:
    layer = MPOLinear(*shape, rank=1000, order=order, device="meta")
    assert layer.ranks == (1, *largest, 1)


def test_sizes_of_the_published_layers() -> None:
    """Whole models: 13,696 numbers elsewhere, four blocks of 1472 chi + 64 chi^2, a head of 248 chi."""

    def numbers(*args: Any, **options: Any) -> int:
        return sum(core.numel() for core in MPOLinear(*args, bias=False, device="meta", **options).cores)

    for chi in (4, 8, 16, 32):
        attention = 4 * numbers(128, 128, rank=chi)
        block = attention + numbers(128, 512, rank=chi, order=3) + numbers(512, 128, rank=chi, order=3)
        head = numbers(128, 65, rank=chi)
        assert 13_696 + 4 * block + head == {4: 42_336, 8: 79_168, 16: 177_408, 32: 472_192}[chi]


def test_state_dict_safetensors_and_deepcopy_round_trip(tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    layer = layer_of(3)
    assert list(layer.state_dict()) == ["bias", "cores.0", "cores.1", "cores.2"]
    save_file(layer.state_dict(), tmp_path / "layer.safetensors")
    other = layer_of(3, seed=7)
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    x = data()
    assert torch.equal(other(x), layer(x))
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    assert twin.cores[0].data_ptr() != layer.cores[0].data_ptr()


def test_meta_device_allocates_nothing_and_takes_a_state_dict() -> None:
    layer = layer_of(3)
    meta = MPOLinear(IN, OUT, rank=3, order=3, device="meta", dtype=torch.float64)
    assert all(p.is_meta for p in meta.parameters())
    assert meta.weight.shape == (OUT, IN)
    assert meta(data().to("meta")).shape == (3, 5, OUT)
    meta.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(meta(data()), layer(data()))
    with torch.device("meta"):
        assert MPOLinear(IN, OUT, rank=2).cores[0].is_meta


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("path", PATHS)
def test_a_layer_on_the_gpu_equals_the_one_on_the_host(path: Any) -> None:
    layer = layer_of(3, path=path)
    expected = layer(data())
    there = copy.deepcopy(layer).cuda()
    out = there(data().cuda())
    assert out.device.type == "cuda"
    torch.testing.assert_close(out.cpu(), expected)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(there.cores[1].grad.cpu(), layer.cores[1].grad)


def test_repr_names_the_sizes() -> None:
    text = repr(layer_of(2))
    assert "in_features=24, out_features=60" in text
    assert "row_shape=(6, 10), col_shape=(4, 6), ranks=(1, 3, 1), bias=True" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be .*got 0"),
        ({"rank": (2, 2)}, r"rank .*got \(2, 2\)"),
        ({"rank": 2, "order": 0}, "order must be a positive integer, got 0"),
        ({"rank": 2, "row_shape": (7, 9)}, r"row_shape must be 2 positive factors of out_features = 60, got \(7, 9\)"),
        ({"rank": 2, "col_shape": (24,), "row_shape": (6, 10)}, "col_shape must be 2 positive factors"),
        ({"rank": 2, "init": "zero"}, 'init must be "exact" or "paper", got \'zero\''),
        ({"rank": 2, "path": "fast"}, "path must be .*got 'fast'"),
    ],
)
def test_impossible_arguments_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MPOLinear(IN, OUT, **options)


def test_input_that_does_not_fit_is_refused() -> None:
    layer = layer_of()
    with pytest.raises(ValueError, match=r"x must have 24 numbers in its last axis, got shape \(3, 5, 23\)"):
        layer(data(width=23))
    with pytest.raises(ValueError, match=r"x must be of the layer's dtype, torch\.float64, got torch\.float32"):
        layer(data(torch.float32))


def test_from_linear_refuses_what_it_cannot_decompose() -> None:
    with pytest.raises(ValueError, match=r"linear must be a torch\.nn\.Linear, got Embedding"):
        MPOLinear.from_linear(nn.Embedding(3, 4), rank=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="linear must hold values, got a weight on the meta device"):
        MPOLinear.from_linear(nn.Linear(3, 4, device="meta"), rank=1)
    with pytest.raises(ValueError, match="rank"):
        MPOLinear.from_linear(nn.Linear(6, 4))
    broken = nn.Linear(6, 4)
    with torch.no_grad():
        broken.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"(?i)nan|finite"):
        MPOLinear.from_linear(broken, rank=2)

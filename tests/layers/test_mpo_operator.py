"""The operators of MPOLinear under torch's own checks: opcheck, compile, export, function transforms, autocast."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tensorfact import kernels  # noqa: E402
from tensorfact.kernels import _dispatch  # noqa: E402
from tensorfact.torch import MPOLinear, _mpo_op  # noqa: E402

PATHS = ["chain", "reconstruct", "auto"]


def made(order: int = 3, dtype: Any = torch.float64, **options: Any) -> tuple[MPOLinear, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = MPOLinear(12, 20, rank=3, order=order, dtype=dtype, **options)
        return layer, torch.randn(4, 12, dtype=torch.float64).to(dtype)


QUICK = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize(
    ("order", "dtype", "path", "checks"),
    [
        (1, torch.float64, "auto", QUICK),
        (2, torch.float64, "chain", (*QUICK, "test_aot_dispatch_dynamic")),
        (2, torch.float32, "reconstruct", (*QUICK, "test_aot_dispatch_dynamic")),
        (3, torch.bfloat16, "chain", QUICK),
        (3, torch.float32, "auto", QUICK),
    ],
    ids=str,
)
def test_opcheck(order: int, dtype: Any, path: str, checks: Any) -> None:
    layer, x = made(order, dtype)
    x.requires_grad_()
    operators = torch.ops.tensorfact
    torch.library.opcheck(operators.mpo_linear.default, (x, list(layer.cores), layer.bias, path), test_utils=checks)
    torch.library.opcheck(operators.mpo_linear.default, (x, list(layer.cores), None, path), test_utils=QUICK)
    family = [*layer.cores, *(core.detach().clone().requires_grad_() for core in layer.cores)]
    torch.library.opcheck(operators.mpo_weight.default, (family, order), test_utils=checks)


# torch's own tracing tools call torch.jit.script
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("path", PATHS)
def test_compile_fullgraph_and_export(path: Any) -> None:
    layer, x = made(path=path)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    out = compiled(x)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    found = [core.grad.clone() for core in layer.cores]
    layer.zero_grad()
    expected.sum().backward()
    for mine, core in zip(found, layer.cores, strict=True):
        torch.testing.assert_close(mine, core.grad)
    exported = torch.export.export(layer.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2)},))
    longer = torch.cat([x, x, x])
    torch.testing.assert_close(exported.module()(longer), layer(longer))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("path", ["chain", "reconstruct"])
def test_function_transforms_and_forward_mode_see_the_plain_torch_path(path: Any) -> None:
    layer, x = made(path=path)
    weight = layer.weight.detach()
    tangent = torch.randn_like(x)

    def energy(row: Any) -> Any:
        return layer(row).square().sum()

    row = x[0]
    expected = 2 * (weight @ row + layer.bias) @ weight
    torch.testing.assert_close(torch.func.grad(energy)(row), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(energy))(x)[0], expected)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    torch.testing.assert_close(torch.func.jacrev(layer)(row), weight)
    torch.testing.assert_close(torch.func.jacfwd(layer)(row), weight)
    torch.testing.assert_close(torch.func.hessian(energy)(row), 2 * weight.T @ weight)
    value, derivative = torch.func.jvp(layer, (x,), (tangent,))
    torch.testing.assert_close(derivative, tangent @ weight.T)
    torch.testing.assert_close(value, layer(x))
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, tangent))
        _, derivative = torch.autograd.forward_ad.unpack_dual(dual)
    assert derivative is not None
    torch.testing.assert_close(derivative, tangent @ weight.T)


def test_the_private_names_that_the_fallback_asks_exist() -> None:
    assert _mpo_op._active is not None
    assert hasattr(torch.autograd.forward_ad, "_current_level")
    assert not _mpo_op.transforms_active()


@pytest.mark.parametrize("path", PATHS)
def test_autocast_computes_in_the_type_of_the_region(path: Any) -> None:
    layer, x = made(dtype=torch.float32, path=path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        dense = layer.to_linear()(x)
    assert out.dtype == dense.dtype == torch.bfloat16
    assert (out.float() - layer(x)).norm() <= 0.03 * layer(x).norm()
    out.float().sum().backward()
    assert all(core.grad is not None and core.grad.dtype == torch.float32 for core in layer.cores)


@pytest.mark.parametrize("path", PATHS)
def test_backward_keeps_the_input_and_the_cores_only(path: Any) -> None:
    layer, x = made(path=path)
    saved: list[Any] = []

    def pack(tensor: Any) -> Any:
        saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x.requires_grad_())
    assert set(saved) == {x.data_ptr(), *(core.data_ptr() for core in layer.cores)}


@pytest.mark.parametrize("rung", ["python", "cpp"])
def test_without_the_compiled_module_the_values_are_the_same(rung: str) -> None:
    layer, x = made()
    expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
    with _dispatch.use(rung):
        assert kernels.active() == rung
        for path in ("chain", "reconstruct"):
            layer.path = path  # type: ignore[assignment]
            torch.testing.assert_close(layer(x), expected)
        assert layer.plan(8).how == "reconstruct"
        layer.path = "chain"
        assert layer.plan(8).how == ("fused" if rung == "cpp" else "chain")


@pytest.mark.parametrize("frozen", ["cores", "input", "bias"])
def test_only_the_gradients_that_are_wanted(frozen: str) -> None:
    layer, x = made()
    x.requires_grad_(frozen != "input")
    for core in layer.cores:
        core.requires_grad_(frozen != "cores")
    assert layer.bias is not None
    layer.bias.requires_grad_(frozen != "bias")
    layer(x).sum().backward()
    assert (x.grad is None) == (frozen == "input")
    assert (layer.bias.grad is None) == (frozen == "bias")
    assert all((core.grad is None) == (frozen == "cores") for core in layer.cores)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", ["chain", "reconstruct"])
def test_the_default_compiler_gives_the_same_values_and_gradients(path: Any) -> None:
    layer, x = made(path=path)
    expected = layer(x)
    expected.sum().backward()
    wanted = [core.grad.clone() for core in layer.cores]
    layer.zero_grad()
    out = torch.compile(layer, fullgraph=True)(x)
    out.sum().backward()
    torch.testing.assert_close(out, expected)
    for core, gradient in zip(layer.cores, wanted, strict=True):
        torch.testing.assert_close(core.grad, gradient)


def test_threads_that_share_a_layer_never_see_a_weight_of_other_cores() -> None:
    layer, x = made(path="reconstruct")
    layer.eval()
    versions = [[core.detach().clone() * scale for core in layer.cores] for scale in (1.0, -2.0)]
    with torch.no_grad():
        values = [layer.weight.clone()]
        for core, new in zip(layer.cores, versions[1], strict=True):
            core.copy_(new)
        values.append(layer.weight.clone())
        expected = [x @ value.T + layer.bias for value in values]

        def serve(_: int) -> None:
            for _ in range(200):
                with torch.no_grad():  # of this thread
                    found = layer(x)
                assert any(torch.allclose(found, wanted) for wanted in expected)

        with ThreadPoolExecutor(4) as pool:
            served = [pool.submit(serve, k) for k in range(3)]
            for turn in range(40):  # the parameters are replaced as a whole: a torn core is the writer's own affair
                layer.cores = torch.nn.ParameterList(versions[turn % 2])
            for future in served:
                future.result(timeout=60)
        torch.testing.assert_close(layer(x), expected[1])

"""The custom operators ``tensorfact::spline`` and ``tensorfact::spline_adjoint``.

Each is linear in its second operand and differentiates into the two of them at the next order, so that gradients of any
order cost what values cost. On the CPU they run the compiled kernels, elsewhere torch operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tensorfact import kernels
from tensorfact.torch._mpo_op import transforms_active
from tensorfact.torch._spline_math import adjoint_reference, reference

__all__ = ["spline"]

_HALVES = (torch.float16, torch.bfloat16)


def spline(x: Tensor, knots: Tensor, coefficients: Tensor, degree: int, nu: int = 0) -> Tensor:
    """Map (..., r) to (..., r): feature i by the spline of ``knots[i]`` and ``coefficients[i]``, or its derivative.

    Parameters
    ----------
    x : Tensor, shape (..., r)
        Half precision is computed in float32 and cast back.
    knots : Tensor, shape (r, k + degree + 1)
        Not differentiated.
    coefficients : Tensor, shape (r, k)
    degree, nu : int
        Degree and order of the derivative.
    """
    if transforms_active():
        _check(x, knots, coefficients, degree)
        kind = _computed(x, knots, coefficients)
        wide = x.to(kind), knots.detach().to(kind), coefficients.to(kind)
        return reference(*wide, degree, nu).to(x.dtype)
    return torch.ops.tensorfact.spline.default(x, knots, coefficients, degree, nu)  # type: ignore[no-any-return]


def _computed(*tensors: Tensor) -> torch.dtype:
    """float64 where there is any, else float32."""
    return torch.float64 if any(a.dtype == torch.float64 for a in tensors) else torch.float32


def _check(x: Tensor, knots: Tensor, coefficients: Tensor, degree: int) -> None:
    r = x.shape[-1] if x.ndim else 0
    if (
        not x.is_floating_point()
        or x.ndim == 0
        or knots.ndim != 2
        or tuple(coefficients.shape) != (knots.shape[0], knots.shape[1] - degree - 1)
        or knots.shape[0] != r
    ):
        raise RuntimeError(
            "x must be real with one spline for each number of its last axis, got shapes "
            f"{tuple(x.shape)} ({x.dtype}), knots {tuple(knots.shape)}, coefficients {tuple(coefficients.shape)}"
        )


def _on_kernels(x: Tensor) -> bool:
    return x.device.type == "cpu" and kernels.active() != "python"


def _rows(x: Tensor, kind: torch.dtype) -> Any:
    """Points as the kernels take them, (r, N)."""
    return x.detach().to(kind).reshape(-1, x.shape[-1]).mT.contiguous().numpy()


def _spline(x: Tensor, knots: Tensor, coefficients: Tensor, degree: int, nu: int) -> Tensor:
    _check(x, knots, coefficients, degree)
    kind = _computed(x, knots, coefficients)
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    if not _on_kernels(x):
        return reference(x.to(kind), knots.to(kind), coefficients.to(kind), degree, nu).to(x.dtype).contiguous()
    t, c = knots.detach().to(kind).numpy(), coefficients.detach().to(kind).numpy()
    y = kernels.spline_values(_rows(x, kind), t, degree, c, nu, workers=torch.get_num_threads())
    return torch.from_numpy(y).mT.reshape(x.shape).to(x.dtype).contiguous()


def _adjoint(x: Tensor, gradient: Tensor, knots: Tensor, degree: int, nu: int) -> Tensor:
    kind = _computed(x, knots, gradient)
    shape = knots.shape[0], knots.shape[1] - degree - 1
    if x.numel() == 0:
        return gradient.new_zeros(shape)
    if not _on_kernels(x):
        return adjoint_reference(x.to(kind), gradient.to(kind), knots.to(kind), degree, nu).to(gradient.dtype)
    t = knots.detach().to(kind).numpy()
    workers = torch.get_num_threads()
    _, found = kernels.spline_gram(_rows(x, kind), t, degree, _rows(gradient, kind), nu, workers=workers)
    return torch.from_numpy(found).to(gradient.dtype)


def _spline_fake(x: Tensor, knots: Tensor, coefficients: Tensor, degree: int, nu: int) -> Tensor:
    return x.new_empty(x.shape)


def _adjoint_fake(x: Tensor, gradient: Tensor, knots: Tensor, degree: int, nu: int) -> Tensor:
    return gradient.new_empty(knots.shape[0], knots.shape[1] - degree - 1)


def _spline_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, knots, coefficients, ctx.degree, ctx.nu = inputs
    ctx.save_for_backward(x, knots, coefficients)


def _spline_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, knots, coefficients = ctx.saved_tensors
    operators = torch.ops.tensorfact
    to_x = to_c = None
    if ctx.needs_input_grad[0]:
        to_x = gradient * operators.spline.default(x, knots, coefficients, ctx.degree, ctx.nu + 1)
    if ctx.needs_input_grad[2]:
        wide = gradient.to(coefficients.dtype) if gradient.dtype in _HALVES else gradient
        to_c = operators.spline_adjoint.default(x, wide, knots, ctx.degree, ctx.nu).to(coefficients.dtype)
    return to_x, None, to_c, None, None


def _adjoint_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, gradient, knots, ctx.degree, ctx.nu = inputs
    ctx.save_for_backward(x, gradient, knots)


def _adjoint_backward(ctx: Any, towards: Tensor) -> tuple[Any, ...]:
    x, gradient, knots = ctx.saved_tensors
    run = torch.ops.tensorfact.spline.default
    to_x = to_gradient = None
    if ctx.needs_input_grad[0]:
        to_x = (gradient * run(x, knots, towards, ctx.degree, ctx.nu + 1)).to(x.dtype)
    if ctx.needs_input_grad[1]:
        to_gradient = run(x, knots, towards, ctx.degree, ctx.nu).to(gradient.dtype)
    return to_x, to_gradient, None, None, None


_LIBRARY: Any = torch.library.Library("tensorfact", "FRAGMENT")  # type: ignore[no-untyped-call]
for _name, _schema, _run, _fake, _context, _backward in (
    ("spline", "(Tensor x, Tensor knots, Tensor coefficients, int degree, int nu) -> Tensor",
     _spline, _spline_fake, _spline_context, _spline_backward),
    ("spline_adjoint", "(Tensor x, Tensor gradient, Tensor knots, int degree, int nu) -> Tensor",
     _adjoint, _adjoint_fake, _adjoint_context, _adjoint_backward),
):  # fmt: skip
    _LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tensorfact::{_name}", _fake, lib=_LIBRARY)
    torch.library.register_autograd(f"tensorfact::{_name}", _backward, setup_context=_context, lib=_LIBRARY)

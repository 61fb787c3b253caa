"""The custom operators ``tensorfact::mpo_linear`` and ``tensorfact::mpo_weight``.

Registered through `torch.library.Library`, which costs less a call than the decorator. They save the input and the
cores for the backward pass, nothing else. The kernels take addresses; whatever they do not take (other devices and
dtypes, no compiled module) runs in torch operations inside the same operator.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tensorfact.kernels.chain import compiled
from tensorfact.torch import _mpo_plan as planning
from tensorfact.torch._mpo_math import environments, merge_all, reference

_active = getattr(torch._C, "_are_functorch_transforms_active", None)
_HALVES = (torch.float16, torch.bfloat16)
_ALIGNED = (torch.float32, torch.float64)


def transforms_active() -> bool:
    """Whether `torch.func` or forward-mode differentiation is at work, through which a custom operator is wrong."""
    if _active is None:  # an unknown torch: slow and right
        return True
    return bool(_active()) or getattr(forward_ad, "_current_level", 0) >= 0


def untrackable() -> bool:
    """Whether something watches the operations, so that a weight kept from before would escape it."""
    modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
    return (
        torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or transforms_active() or modes() > 0
    )


def mpo_linear(x: Tensor, cores: Sequence[Tensor], bias: Tensor | None = None, path: planning.Path = "auto") -> Tensor:
    """Map (..., in) to (..., out) by the matrix product operator of `cores` (r, m, n, r'), plus `bias`."""
    plain = not x.dtype.is_floating_point
    if plain or transforms_active():
        return reference(x, cores, bias, "left" if path == "chain" else "reconstruct")
    return torch.ops.tensorfact.mpo_linear.default(x, list(cores), bias, path)  # type: ignore[no-any-return]


def mpo_weights(members: Sequence[Sequence[Tensor]]) -> Tensor:
    """Multiply out a family of operators with equal shapes: (members, out, in), in one call."""
    order = len(members[0])
    flat = [core for cores in members for core in cores]
    plain = not flat[0].dtype.is_floating_point
    if plain or transforms_active():
        return merge_all(_stacks(flat, order))[:, 0, :, :, 0]
    return torch.ops.tensorfact.mpo_weight.default(flat, order)  # type: ignore[no-any-return]


def sizes_of(cores: Sequence[Tensor]) -> planning.Sizes:
    """Shapes of the cores as the planner wants them."""
    return tuple(tuple(core.shape) for core in cores)  # type: ignore[misc]


def plan_for(x: Tensor, cores: Sequence[Tensor], path: planning.Path, rebuilt: bool = False) -> planning.Plan:
    """The plan for the tokens of `x`."""
    return planning.plan(
        sizes_of(cores),
        int(x.numel() // max(1, x.shape[-1])),
        itemsize=x.element_size(),
        threads=torch.get_num_threads(),
        path=path,
        gpu=x.device.type != "cpu",
        rebuilt=rebuilt,
    )


def _exact(run: Any) -> Any:
    """Switch autocast off inside: it would narrow the small products, and the kernels trust the dtypes."""

    @functools.wraps(run)
    def wrapped(first: Any, *rest: Any) -> Any:
        kind = (first if isinstance(first, Tensor) else first[0]).device.type
        if not torch.is_autocast_enabled(kind):
            return run(first, *rest)
        with torch.autocast(kind, enabled=False):
            return run(first, *rest)

    return wrapped


def _stacks(flat: Sequence[Tensor], order: int) -> list[Tensor]:
    """One stack (members, r, m, n, s) for each core; `flat` has the cores of one member after another."""
    if len(flat) == order:
        return [core[None] for core in flat]
    return [torch.stack(list(flat[k::order])) for k in range(order)]


@_exact
def _linear(x: Tensor, cores: list[Tensor], bias: Tensor | None, path: planning.Path) -> Tensor:
    plan = plan_for(x, cores, path)
    if plan.how == "reconstruct":
        return torch.nn.functional.linear(x, _weight(cores, len(cores))[0], bias)
    wide = [core.float() if core.dtype in _HALVES else core for core in cores]
    merged, begin = [], 0
    for count in plan.groups:
        run = wide[begin : begin + count]
        merged.append(run[0] if count == 1 else merge_all([core[None] for core in run])[0])
        begin += count
    source = x.float() if x.dtype in _HALVES else x
    offset = bias.float() if bias is not None and bias.dtype in _HALVES else bias
    _check_alike(source, [*merged, *(() if offset is None else (offset,))])
    core_module = compiled() if plan.how == "fused" else None
    if core_module is None or source.dtype not in _ALIGNED:
        return reference(source, merged, offset, plan.direction).to(x.dtype).contiguous()
    source = source.contiguous()
    merged = [core.contiguous() for core in merged]
    offset = None if offset is None else offset.contiguous()
    y = source.new_empty(*x.shape[:-1], math.prod(core.shape[1] for core in merged))
    core_module.chain_at(
        source.dtype == torch.float64,
        source.data_ptr(),
        source.numel() // source.shape[-1],
        tuple((core.data_ptr(), *core.shape) for core in merged),
        0 if offset is None else offset.data_ptr(),
        y.data_ptr(),
        plan.direction == "left",
        torch.get_num_threads(),
    )
    return y.to(x.dtype)


@_exact
def _weight(flat: list[Tensor], order: int) -> Tensor:
    dtype = flat[0].dtype
    wide = [core.float() for core in flat] if dtype in _HALVES else flat
    _check_alike(wide[0], wide)
    stacks = _stacks(wide, order)
    core_module = compiled() if stacks[0].device.type == "cpu" and stacks[0].dtype in _ALIGNED else None
    if core_module is None or order == 1:
        return merge_all(stacks)[:, 0, :, :, 0].to(dtype, copy=True, memory_format=torch.contiguous_format)
    cut = planning.split(sizes_of(flat[:order]))
    left, right = merge_all(stacks[:cut]).contiguous(), merge_all(stacks[cut:]).contiguous()
    members, _, m1, n1, r = left.shape
    _, _, m2, n2, _ = right.shape
    weight = left.new_empty(members, m1 * m2, n1 * n2)
    core_module.kron_sum_at(
        weight.dtype == torch.float64,
        tuple((left[k].data_ptr(), right[k].data_ptr(), weight[k].data_ptr()) for k in range(members)),
        m1,
        n1,
        r,
        m2,
        n2,
        torch.get_num_threads(),
    )
    return weight.to(dtype)


def _check_alike(source: Tensor, others: Sequence[Tensor]) -> None:
    """The kernels take addresses, so a mixture must end here."""
    for each in others:
        if each.dtype != source.dtype or each.device != source.device:
            raise RuntimeError(
                f"x, cores and bias must share dtype and device, got {source.dtype} on {source.device} "
                f"and {each.dtype} on {each.device}"
            )


def _linear_fake(x: Tensor, cores: list[Tensor], bias: Tensor | None, path: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], math.prod(core.shape[1] for core in cores))


def _weight_fake(flat: list[Tensor], order: int) -> Tensor:
    rows, cols = (math.prod(core.shape[axis] for core in flat[:order]) for axis in (1, 2))
    return flat[0].new_empty(len(flat) // order, rows, cols)


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, cores, bias, path = inputs
    ctx.save_for_backward(x, *cores)
    ctx.path = path
    ctx.has_bias = bias is not None


def _linear_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, *cores = ctx.saved_tensors
    need_x, need_cores, need_bias = ctx.needs_input_grad[:3]
    to_x = to_bias = None
    to_cores: list[Tensor | None] = [None] * len(cores)
    if need_x:
        turned = [core.transpose(1, 2) for core in cores]
        to_x = torch.ops.tensorfact.mpo_linear.default(gradient, turned, None, ctx.path)
    rows = gradient.reshape(-1, gradient.shape[-1])
    if need_cores is True or (isinstance(need_cores, Sequence) and any(need_cores)):
        product = rows.mT @ x.reshape(-1, x.shape[-1])
        to_cores = list(_unstacked(environments(*_widened(product[None], [core[None] for core in cores])), cores))
    if ctx.has_bias and need_bias:
        to_bias = rows.sum(0)
    return to_x, to_cores, to_bias, None


def _weight_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    flat, order = inputs
    ctx.save_for_backward(*flat)
    ctx.order = order


def _weight_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    flat = ctx.saved_tensors
    found = environments(*_widened(gradient, _stacks(flat, ctx.order)))
    return list(_unstacked(found, flat)), None


def _widened(gradient: Tensor, stacks: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    if gradient.dtype not in _HALVES:
        return gradient, stacks
    return gradient.float(), [stack.float() for stack in stacks]


def _unstacked(found: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    order, members = len(found), found[0].shape[0]
    return [found[k][member].to(like[member * order + k].dtype) for member in range(members) for k in range(order)]


_LIBRARY: Any = torch.library.Library("tensorfact", "FRAGMENT")  # type: ignore[no-untyped-call]
for _name, _schema, _run, _fake, _context, _backward in (
    ("mpo_linear", "(Tensor x, Tensor[] cores, Tensor? bias, str path) -> Tensor",
     _linear, _linear_fake, _linear_context, _linear_backward),
    ("mpo_weight", "(Tensor[] cores, int order) -> Tensor", _weight, _weight_fake, _weight_context, _weight_backward),
):  # fmt: skip
    _LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tensorfact::{_name}", _fake, lib=_LIBRARY)
    torch.library.register_autograd(f"tensorfact::{_name}", _backward, setup_context=_context, lib=_LIBRARY)

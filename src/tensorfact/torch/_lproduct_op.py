"""The custom operators ``tensorfact::tube_faces`` (tubes to faces) and ``tensorfact::facewise`` (a product with them).

On the CPU compiled kernels fuse transforms with moves and products; elsewhere, and under the transforms of
`torch.func`, PyTorch's own operations do the same. The backward pass keeps the inputs only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tensorfact.kernels.facewise import MAX_TUBE, compiled
from tensorfact.torch._mpo_op import _LIBRARY, _exact, transforms_active

__all__ = ["apply_faces", "hat", "plain"]

_HALVES = (torch.float16, torch.bfloat16)
_FEW = 16  # rows; below, the weights are moved more often than used, and packing them does not pay


def apply_faces(
    x: Tensor, faces: Tensor, forward: Tensor, inverse: Tensor, bias: Tensor | None = None, *, last: bool
) -> Tensor:
    """``inverse`` of the facewise product of ``forward`` of the tubes of ``x`` with ``faces (p, l, n)``.

    ``x`` is (..., l, p) with ``last``, else (..., p, l), and so is the result with n for l; ``bias (p * n,)`` goes
    without ``last`` only.
    """
    if x.dtype.is_complex or transforms_active():
        return plain(x, faces, forward, inverse, bias, last)
    return torch.ops.tensorfact.facewise.default(x, faces, forward, inverse, bias, last)  # type: ignore[no-any-return]


def hat(z: Tensor, rows: Tensor, last: bool) -> Tensor:
    """Tubes of ``rows (t, l, p)`` or ``(t, p, l)`` transformed by ``z``, faces first: (p, t, l)."""
    if transforms_active():
        return _hat(z, rows, last)
    return torch.ops.tensorfact.tube_faces.default(rows, z, last)  # type: ignore[no-any-return]


def _hat(z: Tensor, rows: Tensor, last: bool) -> Tensor:
    return torch.einsum("uk,tjk->utj" if last else "uk,tkj->utj", z, rows)


def plain(x: Tensor, faces: Tensor, forward: Tensor, inverse: Tensor, bias: Tensor | None, last: bool) -> Tensor:
    """The same in PyTorch's operations."""
    product = torch.bmm(_hat(forward, x.reshape(-1, *x.shape[-2:]), last), faces)
    y = torch.einsum("ku,utj->tjk" if last else "ku,utj->tkj", inverse, product)
    y = y if bias is None else y + bias.view(y.shape[1:])
    return y.reshape(*x.shape[:-2], *y.shape[1:])


@_exact
def _tube_faces(x: Tensor, z: Tensor, last: bool) -> Tensor:
    _check_alike(x, (z,))
    t, p = x.shape[0], z.shape[0]
    columns = x.shape[1 if last else 2]
    if x.ndim != 3 or x.shape[2 if last else 1] != p or z.shape != (p, p):
        raise RuntimeError(f"x {tuple(x.shape)} and the transform {tuple(z.shape)} must fit")
    core = compiled() if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) else None
    if core is None or p > MAX_TUBE:
        return _hat(z, x, last).contiguous()
    x, z = x.contiguous(), z.contiguous()
    faces = x.new_empty(p, t, columns)
    core.tube_faces_at(
        x.dtype == torch.float64,
        x.data_ptr(),
        z.data_ptr(),
        faces.data_ptr(),
        t,
        columns,
        p,
        last,
        torch.get_num_threads(),
    )
    return faces


def _tube_fake(x: Tensor, z: Tensor, last: bool) -> Tensor:
    return x.new_empty(z.shape[0], x.shape[0], x.shape[1 if last else 2])


def _tube_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, z, last = inputs
    ctx.save_for_backward(x, z)
    ctx.last = last


def _pair(faces: Tensor, rows: Tensor, last: bool) -> Tensor:
    """Inner products (u, k) of faces ``(u, t, j)`` with the entries k of the tubes of ``rows``."""
    flat = (rows if last else rows.transpose(1, 2)).reshape(-1, rows.shape[2 if last else 1])
    return faces.reshape(faces.shape[0], -1) @ flat


def _tube_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, z = ctx.saved_tensors
    to_x = to_z = None
    if ctx.needs_input_grad[0]:
        pulled = torch.tensordot(gradient, z, dims=([0], [0]))  # no einsum: the older vmap has no rule for it
        to_x = pulled if ctx.last else pulled.transpose(1, 2)
    if ctx.needs_input_grad[1]:
        to_z = _pair(gradient, x, ctx.last)
    return to_x, to_z, None


def _check_alike(x: Tensor, others: Sequence[Tensor]) -> None:
    """The kernels take addresses, so a mixture must end here."""
    for each in others:
        if each.dtype != x.dtype or each.device != x.device:
            raise RuntimeError(
                f"x, faces, transforms and bias must share dtype and device, got {x.dtype} on {x.device} "
                f"and {each.dtype} on {each.device}"
            )


@_exact
def _facewise(x: Tensor, faces: Tensor, forward: Tensor, inverse: Tensor, bias: Tensor | None, last: bool) -> Tensor:
    p, inner, columns = faces.shape
    _check_alike(x, (faces, forward, inverse, *(() if bias is None else (bias,))))
    fits = tuple(x.shape[-2:]) == ((inner, p) if last else (p, inner)) and forward.shape == inverse.shape == (p, p)
    if not fits or (bias is not None and (last or bias.numel() != p * columns)):
        raise RuntimeError(
            f"x {tuple(x.shape)}, faces {tuple(faces.shape)}, transforms {tuple(forward.shape)} and "
            f"{tuple(inverse.shape)} and a bias, without last, must fit"
        )
    dtype = x.dtype
    if dtype in _HALVES and x.device.type == "cpu":
        x, faces, forward, inverse = x.float(), faces.float(), forward.float(), inverse.float()
        bias = None if bias is None else bias.float()
    tokens = x.numel() // max(1, p * inner)
    core = compiled() if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) else None
    if core is None or p > MAX_TUBE or tokens < _FEW:
        y = plain(x, faces, forward, inverse, bias, last)
        return y.to(dtype).contiguous()
    x, forward, inverse = x.contiguous(), forward.contiguous(), inverse.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty(*x.shape[:-2], *((columns, p) if last else (p, columns)))
    core.facewise_at(
        x.dtype == torch.float64,
        x.data_ptr(),
        faces.data_ptr(),
        forward.data_ptr(),
        inverse.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        (tokens, p, inner, columns),
        faces.stride(),
        last,
        torch.get_num_threads(),
    )
    return y.to(dtype)


def _fake(x: Tensor, faces: Tensor, forward: Tensor, inverse: Tensor, bias: Tensor | None, last: bool) -> Tensor:
    p, _, columns = faces.shape
    return x.new_empty(*x.shape[:-2], *((columns, p) if last else (p, columns)))


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, faces, forward, inverse, bias, last = inputs
    ctx.save_for_backward(x, faces, forward, inverse)
    ctx.last = last
    ctx.bias_shape = None if bias is None else bias.shape


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, faces, forward, inverse = ctx.saved_tensors
    last: bool = ctx.last
    need_x, need_faces, need_forward, need_inverse, need_bias, _ = ctx.needs_input_grad
    to_x = to_faces = to_forward = to_inverse = to_bias = None
    if need_x:
        to_x = torch.ops.tensorfact.facewise.default(gradient, faces.mT, inverse.mT, forward.mT, None, last)
    rows, grown = x.reshape(-1, *x.shape[-2:]), gradient.reshape(-1, *gradient.shape[-2:])
    if need_faces or need_forward:
        before = hat(inverse.mT, grown, last)
        if need_faces:
            to_faces = torch.bmm(hat(forward, rows, last).mT, before)
        if need_forward:
            to_forward = _pair(torch.bmm(before, faces.mT), rows, last)
    if need_inverse:
        product = torch.bmm(hat(forward, rows, last), faces)
        to_inverse = _pair(product, grown, last).mT
    if ctx.bias_shape is not None and need_bias:
        to_bias = grown.sum(0).reshape(ctx.bias_shape)
    return to_x, to_faces, to_forward, to_inverse, to_bias, None


for _name, _schema, _run, _fake_run, _save, _back in (
    ("tube_faces", "(Tensor x, Tensor z, bool last) -> Tensor", _tube_faces, _tube_fake, _tube_context, _tube_backward),
    ("facewise", "(Tensor x, Tensor faces, Tensor forward, Tensor inverse, Tensor? bias, bool last) -> Tensor",
     _facewise, _fake, _context, _backward),
):  # fmt: skip
    _LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"tensorfact::{_name}", _fake_run, lib=_LIBRARY)
    torch.library.register_autograd(f"tensorfact::{_name}", _back, setup_context=_save, lib=_LIBRARY)

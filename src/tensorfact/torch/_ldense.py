"""Between slices and dense weights: what an L-structured layer is as an ordinary one, and the nearest one to a given.

In the original domain a projection into the transform domain is ``blockdiag(B_i) (Z x I)`` and one out of it
``(Z^-1 x I) blockdiag(B_i)``. Each block appears in p places, times an entry of the matrix, so the nearest blocks are
weighted means over these places: a least-squares problem of one unknown a block entry, for any invertible Z.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tensorfact.factor import Transform
from tensorfact.torch._lmixing import Mixing, make_mixing
from tensorfact.torch._lslices import SliceLayerNorm

__all__ = ["encoder_from_dense", "encoder_to_dense", "layer_from_dense", "layer_to_dense"]


def spread_in(blocks: Tensor, z: Tensor) -> Tensor:
    """Dense (out, in) of blocks (p, in / p, out / p) that read the transform domain."""
    p, rows, cols = blocks.shape
    return torch.einsum("ijo,ik->iokj", blocks, z).reshape(p * cols, p * rows)


def gather_in(weight: Tensor, z: Tensor) -> Tensor:
    """Nearest blocks to a dense (out, in): the inverse of `spread_in` on its range."""
    p, (out, inner) = z.shape[0], weight.shape
    found = torch.einsum("iokj,ik->ijo", weight.reshape(p, out // p, p, inner // p), z)
    return found / z.square().sum(1)[:, None, None]


def spread_out(blocks: Tensor, inverse: Tensor) -> Tensor:
    """Dense (out, in) of blocks (p, in / p, out / p) that write the transform domain."""
    p, rows, cols = blocks.shape
    return torch.einsum("ijo,ki->koij", blocks, inverse).reshape(p * cols, p * rows)


def gather_out(weight: Tensor, inverse: Tensor) -> Tensor:
    """Nearest blocks to a dense (out, in): the inverse of `spread_out` on its range."""
    p, (out, inner) = inverse.shape[0], weight.shape
    found = torch.einsum("koij,ki->ijo", weight.reshape(p, out // p, p, inner // p), inverse)
    return found / inverse.square().sum(0)[:, None, None]


@torch.no_grad()
def layer_to_dense(layer: Any) -> nn.TransformerEncoderLayer:
    """An ordinary encoder layer of the same function."""
    if layer.positions is not None:
        raise ValueError("a layer that adds positions has no dense equivalent: positions must be None")
    attn, p = layer.self_attn, layer.slices
    weight = layer.linear1.weight
    dense = nn.TransformerEncoderLayer(
        layer.d_model,
        p * layer.slice_heads,
        p * weight.shape[2],
        layer.dropout.p,
        layer.activation,
        layer.norm1.eps,
        layer.batch_first,
        layer.norm_first,
        bias=layer.linear1.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    z, inverse = (m.double() for m in layer.mixing.matrices())
    thirds = [spread_in(third, z) for third in attn.in_proj_weight.double().chunk(3, dim=2)]
    dense.self_attn.in_proj_weight.copy_(torch.cat(thirds))
    dense.self_attn.out_proj.weight.copy_(spread_out(attn.out_proj.weight.double(), inverse))
    dense.linear1.weight.copy_(spread_in(weight.double(), z))
    dense.linear2.weight.copy_(spread_out(layer.linear2.weight.double(), inverse))
    if layer.linear1.bias is not None:
        dense.self_attn.in_proj_bias.copy_(torch.cat([third.flatten() for third in attn.in_proj_bias.chunk(3, dim=1)]))
        dense.self_attn.out_proj.bias.copy_((inverse @ attn.out_proj.bias.double()).flatten())
        dense.linear1.bias.copy_(layer.linear1.bias.flatten())
        dense.linear2.bias.copy_((inverse @ layer.linear2.bias.double()).flatten())
    for name in ("norm1", "norm2"):
        _dense_norm(dense, name, getattr(layer, name), layer, z)
    dense.self_attn.dropout = attn.dropout
    dense.dropout1.p, dense.dropout2.p = layer.dropout1.p, layer.dropout2.p
    return dense.train(layer.training)


def _dense_norm(dense: nn.TransformerEncoderLayer, name: str, norm: SliceLayerNorm, layer: Any, z: Tensor) -> None:
    weight = norm.weight
    if layer.slices == 1 and (layer.ln_domain == "original" or float(z[0, 0]) == 1.0):
        made: Any = getattr(dense, name)
        made.weight.copy_(weight[0])
        if norm.bias is not None:
            made.bias.copy_(norm.bias[0])
        return
    mixing = None
    if layer.ln_domain == "transform" and not layer.mixing.trivial:
        mixing = Mixing(Transform.from_matrix(z.cpu().numpy()), device=weight.device, dtype=weight.dtype)
    p, features = weight.shape
    made = SliceLayerNorm(p, features, norm.eps, bias=norm.bias is not None, dense=True, mixing=mixing)
    made.to(device=weight.device, dtype=weight.dtype)
    made.load_state_dict(norm.state_dict(), strict=False)
    setattr(dense, name, made)
    dense.activation_relu_or_gelu = 0  # keeps PyTorch off its fused path, which knows one kind of norm


@torch.no_grad()
def layer_from_dense(cls: Any, dense: nn.TransformerEncoderLayer, options: dict[str, Any]) -> Any:
    """The L-structured layer nearest to a dense one."""
    if not isinstance(dense, nn.TransformerEncoderLayer):
        raise ValueError(f"layer must be a torch.nn.TransformerEncoderLayer, got {type(dense).__name__}")
    for name, parameter in dense.named_parameters():
        if not parameter.is_meta and not torch.isfinite(parameter).all():
            raise ValueError(f"weights of layer must be finite, got NaN or infinity in {name}")
    attn, options = dense.self_attn, dict(options)
    slices = options.setdefault("slices", 4)
    if options.get("slice_heads") is None:
        if attn.num_heads % slices:
            raise ValueError(f"slices={slices} must divide the {attn.num_heads} heads, or slice_heads must be given")
        options["slice_heads"] = attn.num_heads // slices
    weight = dense.linear1.weight
    layer = cls(
        attn.embed_dim,
        attn.num_heads,
        dense.linear1.out_features,
        dense.dropout.p,
        dense.activation,
        dense.norm1.eps,
        attn.batch_first,
        dense.norm_first,
        attn.in_proj_bias is not None,
        weight.device,
        weight.dtype,
        **options,
    )
    z, inverse = (m.double() for m in layer.mixing.matrices())
    thirds = [gather_in(third.double(), z) for third in attn.in_proj_weight.chunk(3)]
    layer.self_attn.in_proj_weight.copy_(torch.cat(thirds, dim=2))
    layer.self_attn.out_proj.weight.copy_(gather_out(attn.out_proj.weight.double(), inverse))
    layer.linear1.weight.copy_(gather_in(weight.double(), z))
    layer.linear2.weight.copy_(gather_out(dense.linear2.weight.double(), inverse))
    if attn.in_proj_bias is not None:
        shares = [third.view(slices, -1) for third in attn.in_proj_bias.chunk(3)]
        layer.self_attn.in_proj_bias.copy_(torch.cat(shares, dim=1))
        layer.self_attn.out_proj.bias.copy_(z @ attn.out_proj.bias.double().view(slices, -1))
        layer.linear1.bias.copy_(dense.linear1.bias.view(slices, -1))
        layer.linear2.bias.copy_(z @ dense.linear2.bias.double().view(slices, -1))
    for name in ("norm1", "norm2"):
        _slice_norm(getattr(layer, name), getattr(dense, name), layer.ln_domain, z, inverse)
    layer.self_attn.dropout = attn.dropout
    layer.dropout1.p, layer.dropout2.p = dense.dropout1.p, dense.dropout2.p
    layer.requires_grad_(weight.requires_grad)
    return layer.train(dense.training)


def _slice_norm(norm: SliceLayerNorm, dense: Any, domain: str, z: Tensor, inverse: Tensor) -> None:
    """Gain and shift of a dense norm, slice by slice; in the transform domain the diagonal of what the gain becomes."""
    weight, bias = dense.weight.double().view(norm.weight.shape), dense.bias
    if domain == "transform" and not isinstance(dense, SliceLayerNorm):
        weight = (z * inverse.mT) @ weight
        bias = None if bias is None else (z @ bias.double().view(norm.weight.shape)).flatten()
    norm.weight.copy_(weight)
    if norm.bias is not None and bias is not None:
        norm.bias.copy_(bias.view(norm.weight.shape))


def encoder_to_dense(encoder: Any) -> nn.TransformerEncoder:
    """An ordinary encoder of the same function."""
    layers = [layer_to_dense(layer) for layer in encoder.layers]
    made = nn.TransformerEncoder(layers[0], len(layers), copy.deepcopy(encoder.norm), enable_nested_tensor=False)
    made.layers = nn.ModuleList(layers)
    return made.train(encoder.training)


def encoder_from_dense(cls: Any, dense: nn.TransformerEncoder, options: dict[str, Any]) -> Any:
    """The L-structured encoder nearest to a dense one."""
    from tensorfact.torch.ltransformer import LTransformerEncoderLayer

    if not isinstance(dense, nn.TransformerEncoder):
        raise ValueError(f"encoder must be a torch.nn.TransformerEncoder, got {type(dense).__name__}")
    options = dict(options)
    if options.get("transform") == "random":  # one draw for all layers
        options["transform"] = make_mixing("random", options.get("slices", 4)).transform
    layers = [layer_from_dense(LTransformerEncoderLayer, layer, options) for layer in dense.layers]
    made = cls(layers[0], len(layers), copy.deepcopy(dense.norm))
    for layer in layers:
        layer.mixing, layer.positions = made.layers[0].mixing, made.layers[0].positions
    made.layers = nn.ModuleList(layers)
    return made.train(dense.training)

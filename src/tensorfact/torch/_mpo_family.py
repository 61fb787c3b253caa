"""Weights of a whole model multiplied out once, equal shapes together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from tensorfact.torch._mpo_op import mpo_weights, sizes_of
from tensorfact.torch.mpo import MPOLinear


@contextmanager
def share_rebuilds(model: nn.Module, *, tokens: int | None = None) -> Iterator[None]:
    """Multiply the weights of all `MPOLinear` layers of `model` out now, for use inside the ``with`` block.

    Layers of equal shape are one call. Gradients flow to the cores, so a training step may run several forward passes
    and the backward pass of their sum inside. The cores must not be changed inside: what they were at the start is
    used. A layer that is not called inside gets gradients of zero, not None.

    Parameters
    ----------
    model : torch.nn.Module
        Any module; layers with ``path="chain"`` are left as they are.
    tokens : int, optional
        Rows a layer sees in one forward pass. Layers whose plan for them is a chain are left as they are.

    Examples
    --------
    >>> import torch
    >>> from tensorfact.torch import MPOLinear, share_rebuilds
    >>> model = torch.nn.Sequential(MPOLinear(8, 8, rank=2), MPOLinear(8, 8, rank=2))
    >>> with share_rebuilds(model):
    ...     model(torch.ones(4, 8)).sum().backward()
    """
    families: dict[object, list[MPOLinear]] = {}
    for layer in model.modules():
        if not isinstance(layer, MPOLinear) or layer.path == "chain" or layer._shared is not None:
            continue
        if tokens is None or layer.plan(tokens).how == "reconstruct":
            first = layer.cores[0]
            key = (sizes_of(list(layer.cores)), first.dtype, first.device)
            families.setdefault(key, []).append(layer)
    try:
        for layers in families.values():
            weights = mpo_weights([list(layer.cores) for layer in layers])
            for layer, weight in zip(layers, weights.unbind(), strict=True):
                layer._shared = weight
        yield
    finally:
        for layers in families.values():
            for layer in layers:
                layer._shared = None

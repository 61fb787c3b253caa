"""PicoGPT: a small character-level transformer whose 25 linear layers can be of any kind.

Pre-norm blocks, final LayerNorm, untied head without bias, fixed sinusoidal positions, no dropout. Query, key and value
projections have no bias; the output projection and the feed-forward layers (ReLU) do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Make = Callable[[str, int, int, bool], nn.Module]  # kind of layer, in_features, out_features, bias -> layer
Weights = Mapping[str, Tensor]
STD = 0.02  # of fresh weights and embeddings


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of a model; the defaults are those of the experiment."""

    vocabulary: int = 65
    width: int = 128
    heads: int = 4
    layers: int = 4
    context: int = 256
    hidden: int = 512

    @property
    def parameters(self) -> int:
        """Parameters of the dense model of these sizes."""
        d, h = self.width, self.hidden
        block = 4 * d * d + d + 2 * d * h + h + d + 4 * d  # attention and its bias, feed-forward and biases, two norms
        return 2 * self.vocabulary * d + self.layers * block + 2 * d


def dense(kind: str, in_features: int, out_features: int, bias: bool) -> nn.Module:
    """A plain linear layer, weights N(0, 0.02^2), bias 0."""
    layer = nn.Linear(in_features, out_features, bias=bias)
    nn.init.normal_(layer.weight, std=STD)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Attention and feed-forward, each behind a LayerNorm and beside a residual path."""

    def __init__(self, size: Size, make: Make) -> None:
        super().__init__()
        d = size.width
        self.heads = size.heads
        self.norm_1 = nn.LayerNorm(d)
        self.query, self.key, self.value = (make("attention", d, d, False) for _ in range(3))
        self.output = make("attention", d, d, True)
        self.norm_2 = nn.LayerNorm(d)
        self.up = make("up", d, size.hidden, True)
        self.down = make("down", size.hidden, d, True)

    def forward(self, x: Tensor, weights: Weights | None = None, prefix: str = "") -> Tensor:
        """Map (batch, time, width) to the same shape; see `PicoGPT.forward` for ``weights``."""
        y = self.norm_1(x)
        if weights is None:
            q, k, v = self.query(y), self.key(y), self.value(y)
        else:  # one product for the three
            joined = torch.cat([weights[prefix + name] for name in ("query", "key", "value")])
            q, k, v = functional.linear(y, joined).chunk(3, dim=-1)
        heads = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        y = functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + apply(self.output, y, weights, prefix + "output")
        y = apply(self.up, self.norm_2(x), weights, prefix + "up").relu()
        return x + apply(self.down, y, weights, prefix + "down")


def apply(layer: nn.Module, x: Tensor, weights: Weights | None, name: str) -> Tensor:
    """``layer(x)``, or the same with the weight of that name and the layer's own bias."""
    result = layer(x) if weights is None else functional.linear(x, weights[name], layer.bias)  # type: ignore[arg-type]
    return result  # type: ignore[no-any-return]


class PicoGPT(nn.Module):
    """The model; ``make(kind, in_features, out_features, bias)`` builds each linear layer.

    ``kind`` is "attention", "up", "down" or "head".
    """

    def __init__(self, size: Size | None = None, make: Make = dense) -> None:
        super().__init__()
        self.size = size = size or Size()
        self.embedding = nn.Embedding(size.vocabulary, size.width)
        nn.init.normal_(self.embedding.weight, std=STD)
        self.blocks = nn.ModuleList(Block(size, make) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.head = make("head", size.width, size.vocabulary, False)
        self.register_buffer("positions", sinusoids(size.context, size.width), persistent=False)

    def linears(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of each of the linear layers, in order."""
        for index, block in enumerate(self.blocks):
            for name in ("query", "key", "value", "output", "up", "down"):
                yield f"blocks.{index}.{name}", getattr(block, name)
        yield "head", self.head

    def weights(self) -> dict[str, Tensor]:
        """Dense weight of every linear layer, differentiable: what `forward` takes to rebuild each only once."""
        return {name: layer.weight for name, layer in self.linears()}  # type: ignore[misc]

    def forward(self, tokens: Tensor, weights: Weights | None = None) -> Tensor:
        """Logits (batch, time, vocabulary) of tokens (batch, time).

        With ``weights`` (see the method of that name) every layer multiplies by the weight given for it. The result is
        the same up to rounding; layers that store something else are then rebuilt once a step, not once a batch.
        """
        x = self.embedding(tokens) + self.positions[: tokens.shape[1]]  # type: ignore[index]
        for index, block in enumerate(self.blocks):
            x = block(x, weights, f"blocks.{index}.")
        return apply(self.head, self.norm(x), weights, "head")


def sinusoids(length: int, width: int) -> Tensor:
    """Positions (length, width): sine in the even columns, cosine in the odd ones, frequencies 10000^(-2i/width)."""
    angle = torch.arange(length, dtype=torch.float64)[:, None] * torch.exp(
        torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width)
    )
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()


def count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def describe(size: Size) -> dict[str, Any]:
    """Sizes as plain numbers, for the logs."""
    return {name: getattr(size, name) for name in size.__dataclass_fields__}

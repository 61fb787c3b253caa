"""A text classifier around an encoder: embedding, mean over the tokens, linear."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from bench.ltransformer.data import PAD


class Classifier(nn.Module):
    """Embedding times the root of its width, a projection where the encoder is narrower, encoder, mean, linear.

    With ``length`` sinusoids are added to the embedding, as an ordinary encoder needs; slices add positions themselves.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        encoder: Any,
        width: int,
        classes: int,
        *,
        length: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        outer = embedding.embedding_dim
        self.embedding, self.encoder = embedding, encoder
        self.project = nn.Linear(outer, width, bias=False) if width != outer else None
        self.head = nn.Linear(width, classes)
        self.dropout = nn.Dropout(dropout)
        table = None if length is None else sinusoids(length, outer)
        self.register_buffer("positions", table, persistent=False)

    def embed(self, ids: Tensor) -> Tensor:
        """What the encoder reads, (batch, length, width of the embedding), of ids (batch, length)."""
        x = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim)
        if self.positions is not None:
            x = x + self.positions[: ids.shape[1]]
        return x

    def classify(self, x: Tensor, padding: Tensor) -> Tensor:
        """Logits (batch, classes) of what `embed` gave; ``padding`` (batch, length) is True where there is no token."""
        x = self.dropout(x)
        if self.project is not None:
            x = self.project(x)
        y = self.encoder(x, src_key_padding_mask=padding if bool(padding.any()) else None)
        real = (~padding).unsqueeze(-1).to(y.dtype)
        return self.head((y * real).sum(1) / real.sum(1))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, classes) of ids (batch, length)."""
        return self.classify(self.embed(ids), ids == PAD)


def sinusoids(length: int, width: int) -> Tensor:
    """Positions (length, width): sine in the even columns, cosine in the odd ones, frequencies 10000^(-2i/width)."""
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10000.0) / width))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()


def count(module: nn.Module | None) -> int:
    """Number of parameters."""
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def sizes(model: Classifier) -> dict[str, int]:
    """Parameters of the encoder (with a projection in front of it) and of all."""
    return {"encoder": count(model.encoder) + count(model.project), "all": count(model)}

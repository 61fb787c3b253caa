"""Factorised layers for PyTorch: modules that stand where a dense layer stood. Importing this imports torch."""

from __future__ import annotations

from tensorfact.torch.low_rank import LowRankLinear
from tensorfact.torch.lproduct import lproduct, lqr, ltranspose, ltruncate
from tensorfact.torch.ltransformer import LTransformerEncoder, LTransformerEncoderLayer

__all__ = [
    "LTransformerEncoder",
    "LTransformerEncoderLayer",
    "LowRankLinear",
    "lproduct",
    "lqr",
    "ltranspose",
    "ltruncate",
]

"""Factorised layers for PyTorch: modules that stand where a dense layer stood. Importing this imports torch."""

from __future__ import annotations

from tensorfact.torch._mpo_family import share_rebuilds
from tensorfact.torch.low_rank import LowRankLinear
from tensorfact.torch.lproduct import lproduct, lqr, ltranspose, ltruncate
from tensorfact.torch.lproduct_linear import LProductLinear
from tensorfact.torch.ltransformer import LTransformerEncoder, LTransformerEncoderLayer
from tensorfact.torch.mpo import MPOLinear

__all__ = [
    "LProductLinear",
    "LTransformerEncoder",
    "LTransformerEncoderLayer",
    "LowRankLinear",
    "MPOLinear",
    "lproduct",
    "lqr",
    "ltranspose",
    "ltruncate",
    "share_rebuilds",
]

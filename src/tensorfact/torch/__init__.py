"""Factorised layers for PyTorch: modules that stand where a dense layer stood. Importing this imports torch."""

from __future__ import annotations

from tensorfact.torch._mpo_family import share_rebuilds
from tensorfact.torch._shared_training import CodeTrainer, PruningSchedule
from tensorfact.torch.decoupling import DecoupledMLP
from tensorfact.torch.low_rank import LowRankLinear
from tensorfact.torch.lproduct import lproduct, lqr, ltranspose, ltruncate
from tensorfact.torch.lproduct_linear import LProductLinear
from tensorfact.torch.ltransformer import LTransformerEncoder, LTransformerEncoderLayer
from tensorfact.torch.mpo import MPOLinear
from tensorfact.torch.quantized import QuantizedLinear
from tensorfact.torch.shared_basis import SharedBasisLinear
from tensorfact.torch.shared_group import SharedBasisGroup
from tensorfact.torch.splines import SplineActivation

__all__ = [
    "CodeTrainer",
    "DecoupledMLP",
    "LProductLinear",
    "LTransformerEncoder",
    "LTransformerEncoderLayer",
    "LowRankLinear",
    "MPOLinear",
    "PruningSchedule",
    "QuantizedLinear",
    "SharedBasisGroup",
    "SharedBasisLinear",
    "SplineActivation",
    "lproduct",
    "lqr",
    "ltranspose",
    "ltruncate",
    "share_rebuilds",
]

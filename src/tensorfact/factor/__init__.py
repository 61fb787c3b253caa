"""Decompositions: functions of arrays that return small frozen results."""

from __future__ import annotations

from tensorfact.factor._decoupling_fit import Progress as DecouplingProgress
from tensorfact.factor._decoupling_result import Decoupling, DecouplingInfo
from tensorfact.factor._result import LowRank, LowRankInfo
from tensorfact.factor.certificate import softmax_bound
from tensorfact.factor.decoupling import decouple
from tensorfact.factor.decoupling_mlp import decouple_mlp
from tensorfact.factor.knots import clamped_knots, difference_penalty, quantile_knots
from tensorfact.factor.low_rank import randomized_svd, singular_values
from tensorfact.factor.sampling import mlp_jacobians, sample_jacobians
from tensorfact.factor.splines import BSplineBasis

__all__ = [
    "BSplineBasis",
    "Decoupling",
    "DecouplingInfo",
    "DecouplingProgress",
    "LowRank",
    "LowRankInfo",
    "clamped_knots",
    "decouple",
    "decouple_mlp",
    "difference_penalty",
    "mlp_jacobians",
    "quantile_knots",
    "randomized_svd",
    "sample_jacobians",
    "singular_values",
    "softmax_bound",
]

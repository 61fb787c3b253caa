"""Decompositions: functions of arrays that return small frozen results."""

from __future__ import annotations

from tensorfact.factor._lresult import LSVD, LSVDInfo, TruncatedLSVD
from tensorfact.factor._result import LowRank, LowRankInfo
from tensorfact.factor._transform import Transform
from tensorfact.factor.certificate import softmax_bound
from tensorfact.factor.low_rank import randomized_svd, singular_values
from tensorfact.factor.lproduct import facewise, lidentity, linv, lpinv, lproduct, lqr, ltranspose
from tensorfact.factor.lsvd import implicit_rank, lnorm, lsvd, lsvd_truncate, multirank, prox_nuclear, tubal_rank

__all__ = [
    "LSVD",
    "LSVDInfo",
    "LowRank",
    "LowRankInfo",
    "Transform",
    "TruncatedLSVD",
    "facewise",
    "implicit_rank",
    "lidentity",
    "linv",
    "lnorm",
    "lpinv",
    "lproduct",
    "lqr",
    "lsvd",
    "lsvd_truncate",
    "ltranspose",
    "multirank",
    "prox_nuclear",
    "randomized_svd",
    "singular_values",
    "softmax_bound",
    "tubal_rank",
]

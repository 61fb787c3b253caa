"""Decompositions: functions of arrays that return small frozen results."""

from __future__ import annotations

from tensorfact.factor._result import LowRank, LowRankInfo
from tensorfact.factor.certificate import softmax_bound
from tensorfact.factor.low_rank import randomized_svd, singular_values
from tensorfact.factor.tensor_train import tt_svd

__all__ = ["LowRank", "LowRankInfo", "randomized_svd", "singular_values", "softmax_bound", "tt_svd"]

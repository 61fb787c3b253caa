"""Decompositions: functions of arrays that return small frozen results."""

from __future__ import annotations

from tensorfact.factor._bonds import balanced_shape, useful_ranks
from tensorfact.factor._result import LowRank, LowRankInfo
from tensorfact.factor._rounding import tt_round
from tensorfact.factor._train import TensorTrain, TrainInfo
from tensorfact.factor._tt_matrix import TTMatrix
from tensorfact.factor.certificate import softmax_bound
from tensorfact.factor.low_rank import randomized_svd, singular_values
from tensorfact.factor.tensor_train import tt_svd
from tensorfact.factor.tt_matrix import tt_matrix_svd

__all__ = [
    "LowRank",
    "LowRankInfo",
    "TTMatrix",
    "TensorTrain",
    "TrainInfo",
    "balanced_shape",
    "randomized_svd",
    "singular_values",
    "softmax_bound",
    "tt_matrix_svd",
    "tt_round",
    "tt_svd",
    "useful_ranks",
]

"""Structured compression of transformers, and fast low-rank factorisation of arrays.

Examples
--------
>>> import numpy as np, tensorfact
>>> a = np.random.default_rng(0).standard_normal((200, 30)) @ np.random.default_rng(1).standard_normal((30, 100))
>>> tensorfact.randomized_svd(a, tol=1e-6, rng=0).rank
30
"""

from __future__ import annotations

from importlib.metadata import version

from tensorfact.factor import (
    LowRank,
    LowRankInfo,
    TensorTrain,
    TrainInfo,
    TTMatrix,
    balanced_shape,
    randomized_svd,
    singular_values,
    softmax_bound,
    tt_matrix_svd,
    tt_round,
    tt_svd,
    useful_ranks,
)
from tensorfact.kernels import get_num_threads, set_num_threads

__all__ = [
    "LowRank",
    "LowRankInfo",
    "TTMatrix",
    "TensorTrain",
    "TrainInfo",
    "balanced_shape",
    "get_num_threads",
    "randomized_svd",
    "set_num_threads",
    "singular_values",
    "softmax_bound",
    "tt_matrix_svd",
    "tt_round",
    "tt_svd",
    "useful_ranks",
]

__version__ = version("tensorfact")

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
    LSVD,
    BSplineBasis,
    Decoupling,
    DecouplingInfo,
    DecouplingProgress,
    LowRank,
    LowRankInfo,
    LSVDInfo,
    TensorTrain,
    TrainInfo,
    Transform,
    TruncatedLSVD,
    TTMatrix,
    Whitened,
    balanced_shape,
    clamped_knots,
    decouple,
    decouple_mlp,
    difference_penalty,
    facewise,
    implicit_rank,
    lidentity,
    linv,
    lnorm,
    lpinv,
    lproduct,
    lqr,
    lsvd,
    lsvd_truncate,
    ltranspose,
    mlp_jacobians,
    multirank,
    prox_nuclear,
    quantile_knots,
    randomized_svd,
    sample_jacobians,
    singular_values,
    softmax_bound,
    tt_matrix_svd,
    tt_round,
    tt_svd,
    tubal_rank,
    useful_ranks,
    whitened_svd,
)
from tensorfact.kernels import get_num_threads, set_num_threads

__all__ = [
    "LSVD",
    "BSplineBasis",
    "Decoupling",
    "DecouplingInfo",
    "DecouplingProgress",
    "LSVDInfo",
    "LowRank",
    "LowRankInfo",
    "TTMatrix",
    "TensorTrain",
    "TrainInfo",
    "Transform",
    "TruncatedLSVD",
    "Whitened",
    "balanced_shape",
    "clamped_knots",
    "decouple",
    "decouple_mlp",
    "difference_penalty",
    "facewise",
    "get_num_threads",
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
    "mlp_jacobians",
    "multirank",
    "prox_nuclear",
    "quantile_knots",
    "randomized_svd",
    "sample_jacobians",
    "set_num_threads",
    "singular_values",
    "softmax_bound",
    "tt_matrix_svd",
    "tt_round",
    "tt_svd",
    "tubal_rank",
    "useful_ranks",
    "whitened_svd",
]


__version__ = version("tensorfact")

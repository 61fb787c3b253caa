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
    BSplineBasis,
    Decoupling,
    DecouplingInfo,
    DecouplingProgress,
    LowRank,
    LowRankInfo,
    clamped_knots,
    decouple,
    decouple_mlp,
    difference_penalty,
    mlp_jacobians,
    quantile_knots,
    randomized_svd,
    sample_jacobians,
    singular_values,
    softmax_bound,
)
from tensorfact.kernels import get_num_threads, set_num_threads

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
    "get_num_threads",
    "mlp_jacobians",
    "quantile_knots",
    "randomized_svd",
    "sample_jacobians",
    "set_num_threads",
    "singular_values",
    "softmax_bound",
]

__version__ = version("tensorfact")

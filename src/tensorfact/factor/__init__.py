"""Decompositions: functions of arrays that return small frozen results."""

from __future__ import annotations

from tensorfact.factor._bonds import balanced_shape, useful_ranks
from tensorfact.factor._decoupling_fit import Progress as DecouplingProgress
from tensorfact.factor._decoupling_result import Decoupling, DecouplingInfo
from tensorfact.factor._lresult import LSVD, LSVDInfo, TruncatedLSVD
from tensorfact.factor._result import LowRank, LowRankInfo
from tensorfact.factor._rounding import tt_round
from tensorfact.factor._shared_codes import SparseCodes
from tensorfact.factor._shared_result import SharedBasis, SharedBasisInfo
from tensorfact.factor._train import TensorTrain
from tensorfact.factor._train_chain import TrainInfo
from tensorfact.factor._transform import Transform
from tensorfact.factor._tt_matrix import TTMatrix
from tensorfact.factor.certificate import softmax_bound
from tensorfact.factor.decoupling import decouple
from tensorfact.factor.decoupling_mlp import decouple_mlp
from tensorfact.factor.knots import clamped_knots, difference_penalty, quantile_knots
from tensorfact.factor.low_rank import randomized_svd, singular_values
from tensorfact.factor.lproduct import facewise, lidentity, linv, lpinv, lproduct, lqr, ltranspose
from tensorfact.factor.lsvd import implicit_rank, lnorm, lsvd, lsvd_truncate, multirank, prox_nuclear, tubal_rank
from tensorfact.factor.sampling import mlp_jacobians, sample_jacobians
from tensorfact.factor.shared_basis import shared_basis
from tensorfact.factor.splines import BSplineBasis
from tensorfact.factor.tensor_train import tt_svd
from tensorfact.factor.tt_matrix import tt_matrix_svd
from tensorfact.factor.whitened import Whitened, whitened_singular_values, whitened_svd

__all__ = [
    "LSVD",
    "BSplineBasis",
    "Decoupling",
    "DecouplingInfo",
    "DecouplingProgress",
    "LSVDInfo",
    "LowRank",
    "LowRankInfo",
    "SharedBasis",
    "SharedBasisInfo",
    "SparseCodes",
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
    "shared_basis",
    "singular_values",
    "softmax_bound",
    "tt_matrix_svd",
    "tt_round",
    "tt_svd",
    "tubal_rank",
    "useful_ranks",
    "whitened_singular_values",
    "whitened_svd",
]

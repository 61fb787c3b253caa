"""Property-based testing of decompositions, tensorfact's own or anyone's. Needs Hypothesis.

* `check_low_rank` holds a truncated-SVD routine to its contract, promise by promise; `check_tensor_train` a TT-SVD,
  `check_lproduct` a tensor-tensor product.
* `tensorfact.testing.strategies`: Hypothesis strategies for shapes, spectra, layouts and whole matrices;
  `tensorfact.testing.tensors` for tensors and trains.
* `tensorfact.testing.oracles`: slow, obvious, double-precision answers.
* `tensorfact.testing.tolerances`: ``C * eps * cond`` and the assertions built on it.

Examples
--------
>>> import numpy as np
>>> from tensorfact.testing import check_low_rank
>>> def truncated(a, *, rank):
...     u, s, vh = np.linalg.svd(a, full_matrices=False)
...     return u[:, :rank], s[:rank], vh[:rank]
>>> report = check_low_rank(truncated, raise_on_failure=False, max_examples=3)
>>> "orthonormal" in report.names("kept"), "refuses-bad-rank" in report.names("broken")
(True, True)
"""

from __future__ import annotations

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError("tensorfact.testing needs Hypothesis: pip install hypothesis") from error

from tensorfact.testing import oracles, strategies, tensors, tolerances
from tensorfact.testing._promises import CheckReport, CheckResult, Promise
from tensorfact.testing.low_rank import LOW_RANK_PROMISES, check_low_rank
from tensorfact.testing.lproduct import LPRODUCT_PROMISES, check_lproduct
from tensorfact.testing.oracles import OptimalErrors, effective_rank_for, optimal_errors, relative_error, spectral_error
from tensorfact.testing.strategies import MatrixSpec, matrices, matrix_with_spectrum
from tensorfact.testing.tensor_train import TENSOR_TRAIN_PROMISES, check_tensor_train
from tensorfact.testing.tensors import TensorSpec, TrainSpec
from tensorfact.testing.tolerances import assert_close, assert_orthonormal, assert_same_span, tol

__all__ = [
    "LOW_RANK_PROMISES",
    "LPRODUCT_PROMISES",
    "TENSOR_TRAIN_PROMISES",
    "CheckReport",
    "CheckResult",
    "MatrixSpec",
    "OptimalErrors",
    "Promise",
    "TensorSpec",
    "TrainSpec",
    "assert_close",
    "assert_orthonormal",
    "assert_same_span",
    "check_low_rank",
    "check_lproduct",
    "check_tensor_train",
    "effective_rank_for",
    "matrices",
    "matrix_with_spectrum",
    "optimal_errors",
    "oracles",
    "relative_error",
    "spectral_error",
    "strategies",
    "tensors",
    "tol",
    "tolerances",
]

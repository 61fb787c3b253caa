"""Numeric kernels: NumPy arrays in, NumPy arrays out. Each exists in C++, Numba and plain Python."""

from __future__ import annotations

from tensorfact.kernels._dispatch import active, get_num_threads, set_num_threads
from tensorfact.kernels.chain import chain, kron_sum
from tensorfact.kernels.dense import cholesky_qr, eigh, gram, matmul, normal_apply, sum_squares
from tensorfact.kernels.facewise import facewise_product, tube_faces
from tensorfact.kernels.sparse import SparsePlan, pack_sparse, sparse_path, sparse_product
from tensorfact.kernels.spline import spline_basis, spline_gram, spline_solve, spline_uniform, spline_values
from tensorfact.kernels.tall import row_sketch, tall_gram, tall_product, tall_triangle

__all__ = [
    "SparsePlan",
    "active",
    "chain",
    "cholesky_qr",
    "eigh",
    "facewise_product",
    "get_num_threads",
    "gram",
    "kron_sum",
    "matmul",
    "normal_apply",
    "pack_sparse",
    "row_sketch",
    "set_num_threads",
    "sparse_path",
    "sparse_product",
    "spline_basis",
    "spline_gram",
    "spline_solve",
    "spline_uniform",
    "spline_values",
    "sum_squares",
    "tall_gram",
    "tall_product",
    "tall_triangle",
    "tube_faces",
]

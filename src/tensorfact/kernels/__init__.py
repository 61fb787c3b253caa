"""Numeric kernels: NumPy arrays in, NumPy arrays out. Each exists in C++, Numba and plain Python."""

from __future__ import annotations

from tensorfact.kernels._dispatch import active, get_num_threads, set_num_threads
from tensorfact.kernels.dense import cholesky_qr, gram, normal_apply, sum_squares

__all__ = ["active", "cholesky_qr", "get_num_threads", "gram", "normal_apply", "set_num_threads", "sum_squares"]

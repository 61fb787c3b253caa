"""Trains for tests, and their dense tensors by one einsum in double precision."""

from __future__ import annotations

import numpy as np

from tensorfact import TensorTrain
from tensorfact.testing import TrainSpec


def make(shape, rank=3, dtype="float64", seed=0):
    """A Gaussian train."""
    return TensorTrain(cores=TrainSpec(shape=shape, rank=rank, dtype=dtype, seed=seed).build())


def dense_of(train):
    """The dense tensor or matrix in double precision, by one einsum over all cores; independent of the library."""
    cores = [np.asarray(core) for core in train.cores]
    wide = [core.astype(np.complex128 if core.dtype.kind == "c" else np.float64) for core in cores]
    operands, axis = [], len(cores) + 1
    rows, columns = [], []
    for k, core in enumerate(wide):
        modes = list(range(axis, axis + core.ndim - 2))
        axis += len(modes)
        operands += [core, [k, *modes, k + 1]]
        rows.append(modes[0])
        columns += modes[1:]
    dense = np.einsum(*operands, [0, *rows, *columns, len(cores)], optimize=True)[0, ..., 0]
    if columns:
        sizes = [core.shape[1] for core in cores]
        dense = dense.reshape(int(np.prod(sizes)), -1)
    return dense

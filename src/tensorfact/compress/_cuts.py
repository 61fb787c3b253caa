"""Baselines of decoupled MLPs: both weights cut to one rank, by SVD, or so that their outputs on data change least."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["cut_errors"]

Matrix = npt.NDArray[np.float64]


def cut_errors(
    mlp: tuple[Matrix, Matrix, Matrix, Matrix],
    activation: Callable[[Matrix], Matrix],
    x: Matrix,
    hidden_gram: Matrix,
    left: npt.NDArray[np.intp],
    numbers: int,
) -> list[tuple[str, int, float]]:
    """Return name, rank and relative output error at the rows `left` of x, for as many numbers as a decoupling takes.

    Parameters
    ----------
    mlp : (w1, b1, w2, b2)
    x : array, shape (N, m)
        Inputs; DRONE sees those that are not in `left`.
    hidden_gram : array, shape (h, h)
        Of the inputs of the second layer in the dense model, over all data.
    numbers : int
        To spend on both weights; biases stay as they are.

    Notes
    -----
    SVD: Eckart and Young (1936). DRONE: Chen, Yu, Dhillon, Hsieh (NeurIPS 2021): the best rank-k map on data X is
    ``L L^T W`` with the leading left singular vectors L of W X; the second layer sees the dense model's hidden values.
    """
    w1, b1, w2, b2 = mlp
    rank = max(1, numbers // (w1.shape[0] + w1.shape[1] + w2.shape[0] + w2.shape[1]))
    rank = min(rank, *w1.shape, *w2.shape)
    truth = activation(x[left] @ w1.T + b1) @ w2.T + b2
    rest = np.delete(x, left, axis=0)
    ways: dict[str, tuple[Any, Any]] = {
        "SVD of both weights": (_svd(w1, rank), _svd(w2, rank)),
        "DRONE": (_drone(w1, rest.T @ rest, rank), _drone(w2, hidden_gram, rank)),
    }
    found = []
    for name, (first, second) in ways.items():
        made = activation(x[left] @ first.T + b1) @ second.T + b2
        norm = float(np.linalg.norm(truth))
        found.append((name, rank, float(np.linalg.norm(made - truth)) / norm if norm > 0 else 0.0))
    return found


def _svd(weight: Matrix, rank: int) -> Matrix:
    u, s, vh = np.linalg.svd(weight, full_matrices=False)
    cut: Matrix = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return cut


def _drone(weight: Matrix, gram: Matrix, rank: int) -> Matrix:
    _, vectors = np.linalg.eigh(weight @ gram @ weight.T)
    basis = vectors[:, -rank:]
    cut: Matrix = basis @ (basis.T @ weight)
    return cut

"""The best low-rank weight for given inputs: truncated SVD in the metric of their Gram matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy.linalg

from tensorfact.factor._input import check_count, check_fraction

__all__ = ["Whitened", "whitened_singular_values", "whitened_svd"]

Form = Literal["auto", "output", "input", "cholesky"]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Whitened:
    """Two factors ``left @ right`` of a weight, closest to it on given inputs.

    Parameters
    ----------
    left : array, shape (m, r)
        Orthonormal columns.
    right : array, shape (r, n)
        ``left^H A``.
    s : array, shape (r,)
        Leading singular values of the weight on the inputs, ``A X``, non-increasing.
    error : float
        Relative Frobenius error of the outputs, ``||(A - left right) X|| / ||A X||``.
    weight_error : float
        The same of the weight itself, ``||A - left right|| / ||A||``. Neither counts the rounding of the factors to a
        type of 16 bits.
    path : str
        The form that was computed: ``"output"``, ``"input"`` or ``"cholesky"``.
    """

    left: Array
    right: Array
    s: Array
    error: float
    weight_error: float
    path: str

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (m, n) of the weight."""
        return int(self.left.shape[0]), int(self.right.shape[1])

    @property
    def rank(self) -> int:
        """Columns of `left`."""
        return int(self.left.shape[1])

    @property
    def dtype(self) -> Any:
        """Type of the stored numbers."""
        return self.left.dtype

    @property
    def size(self) -> int:
        """Stored numbers: ``rank * (m + n)``."""
        return self.rank * sum(self.shape)

    @property
    def dense_size(self) -> int:
        """Numbers in the dense weight: ``m * n``."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the two factors."""
        return int(self.left.nbytes + self.right.nbytes)

    def reconstruct(self) -> Array:
        """The dense weight (m, n); ``2 m n r`` flop."""
        return self.left @ self.right

    def factors(self, split: Literal["sqrt", "left", "right"] = "sqrt") -> tuple[Array, Array]:
        """Two factors whose product is the weight.

        Parameters
        ----------
        split : {"sqrt", "left", "right"}
            Which side takes the norms of the rows of `right`: half each (balanced, for training), all left, all right.
        """
        if split not in ("sqrt", "left", "right"):
            raise ValueError(f"split must be 'sqrt', 'left' or 'right', got {split!r}")
        norms = np.linalg.norm(self.right.astype(np.complex128 if self.dtype.kind == "c" else np.float64), axis=1)
        power = {"sqrt": 0.5, "left": 1.0, "right": 0.0}[split]
        scale = (np.where(norms > 0, norms, 1.0) ** power).astype(self.left.real.dtype)
        return self.left * scale, self.right / scale[:, None]


def whitened_svd(
    a: Any,
    gram: Any,
    /,
    *,
    rank: int | None = None,
    tol: float | None = None,
    max_rank: int | None = None,
    form: Form = "auto",
) -> Whitened:
    """Return the matrix B of a rank that minimises ``||(A - B) X||`` over inputs X known by their Gram matrix.

    Parameters
    ----------
    a : array (m, n)
        The weight, outputs by inputs; computed in double precision whatever its type.
    gram : array (n, n)
        ``X X^H``, the sum of ``x x^H`` over the inputs; positive semidefinite, singular or not.
    rank : int, optional
        Exact rank, 1 to min(m, n).
    tol : float, optional
        Largest relative error of the outputs, in (0, 1). Give `rank` or `tol`.
    max_rank : int, optional
        Upper bound on the rank with `tol`; where it bites, `Whitened.error` tells the truth.
    form : {"auto", "output", "input", "cholesky"}
        How to compute it. The eigenvectors of ``A G A^H`` need no inverse and no factor of G; where m > n it is
        cheaper to take a square root of G by its eigenvalues. Both work for any G. The Cholesky form of SVD-LLM adds
        the ridge that a singular G needs, and is here for comparison. "auto" takes the cheaper one of the first two.

    Returns
    -------
    Whitened
        Factors in the type of `a`, with the errors of outputs and of weight. The squared output error is the sum of
        the squared singular values of ``A X`` beyond the rank. Where `gram` leaves directions free (fewer inputs than
        the rank), the rest of the rank goes to the weight that is left, by its plain SVD.

    Raises
    ------
    ValueError
        If the shapes do not fit, a value is not finite, `gram` is not Hermitian or not positive semidefinite, or an
        option is out of range.

    Notes
    -----
    ``2 m n (m + n)`` flop in products and eigenvalues of one matrix of order m, or of two of order n. Shares of the
    error below about 1e-14 of ``||A X||^2`` are round-off.

    References
    ----------
    Wang et al. (2024), SVD-LLM, arXiv 2403.07378 (Cholesky form); Swift-SVD, arXiv 2604.01609 (output form).

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> rng = np.random.default_rng(0)
    >>> w, x = rng.standard_normal((8, 6)), rng.standard_normal((6, 2)) @ rng.standard_normal((2, 100))
    >>> tensorfact.whitened_svd(w, x @ x.T, rank=2).error < 1e-6
    True
    """
    weight, metric, dtype, scales = _checked(a, gram)
    limit = min(weight.shape)
    if (rank is None) == (tol is None):
        raise ValueError(f"give exactly one of rank and tol, got rank={rank!r}, tol={tol!r}")
    if rank is not None and max_rank is not None:
        raise ValueError(f"max_rank goes with tol, not with rank, got max_rank={max_rank!r}, rank={rank!r}")
    if form not in ("auto", "output", "input", "cholesky"):
        raise ValueError(f"form must be 'auto', 'output', 'input' or 'cholesky', got {form!r}")
    cap = limit if max_rank is None else min(limit, check_count("max_rank", max_rank, 1))
    path = ("output" if weight.shape[0] <= weight.shape[1] else "input") if form == "auto" else form
    vectors, squares = _FORMS[path](weight, metric)
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
    if rank is None:
        wanted = check_fraction("tol", tol, 1e-6, 1.0)
        k = min(cap, max(1, int(np.argmax(tails <= wanted**2 * tails[0]))))
    else:
        k = check_count("rank", rank, 1, limit)
    left, right = _complete(weight, vectors[:, :k], k)
    lost = weight - left @ right
    return Whitened(
        left=left.astype(dtype, copy=False),
        right=_shifted(right, scales[0]).astype(dtype, copy=False),
        s=_shifted(np.sqrt(np.pad(squares[:k], (0, k - len(squares[:k])))), scales[1]).astype(
            np.float64 if dtype in (np.float64, np.complex128) else np.float32  # they may exceed half types
        ),
        error=math.sqrt(tails[min(k, len(squares))] / tails[0]) if tails[0] > 0 else 0.0,
        weight_error=_norm(lost) / (_norm(weight) or 1.0),
        path=path,
    )


def whitened_singular_values(a: Any, gram: Any, /) -> npt.NDArray[np.float64]:
    """Return all singular values of ``A X``, descending, from the Gram matrix ``X X^H``; see `whitened_svd`."""
    weight, metric, _, scales = _checked(a, gram)
    _, squares = _output(weight, metric) if weight.shape[0] <= weight.shape[1] else _input(weight, metric)
    limit = min(weight.shape)
    found = np.sqrt(np.pad(squares[:limit], (0, limit - len(squares[:limit]))))
    return _shifted(found, scales[1])


def _checked(a: Any, gram: Any) -> tuple[Array, Array, Any, tuple[int, int]]:
    """Return weight and Gram matrix in double precision and of size 1, and the type of the result.

    Last come the exponents of the powers of two that the weight, and the singular values, have lost.
    """
    given = np.asarray(a)
    if given.ndim != 2 or 0 in given.shape:
        raise ValueError(f"a must be a matrix that is not empty, got shape {given.shape}")
    if given.dtype.kind not in "fciu" and given.dtype.name != "bfloat16":
        raise ValueError(f"a must hold numbers, got dtype {given.dtype}")
    result = given.dtype if given.dtype.kind in "fc" or given.dtype.name == "bfloat16" else np.dtype(np.float64)
    metric = np.asarray(gram)
    n = given.shape[1]
    if metric.shape != (n, n):
        raise ValueError(f"gram must have shape {(n, n)} for a weight with {n} inputs, got {metric.shape}")
    if metric.dtype.kind not in "fciu":
        raise ValueError(f"gram must hold numbers, got dtype {metric.dtype}")
    wide = np.complex128 if given.dtype.kind == "c" or metric.dtype.kind == "c" else np.float64
    if wide is np.complex128 and result.kind != "c":
        result = np.dtype(np.complex64 if result.itemsize <= 4 else np.complex128)
    weight, metric = given.astype(wide), metric.astype(wide)
    for name, values in (("a", weight), ("gram", metric)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    largest = float(np.abs(metric).max())
    if float(np.abs(metric - metric.conj().T).max()) > 1e-8 * largest:
        raise ValueError("gram must be Hermitian: the sum of x x^H over the inputs")
    if float(metric.diagonal().real.min()) < 0:
        raise ValueError(f"gram must be positive semidefinite, got a diagonal of {metric.diagonal().real.min():.3g}")
    own, other = (math.frexp(float(np.abs(values).max()))[1] for values in (weight, metric))
    other += other % 2
    return _shifted(weight, -own), _shifted(metric, -other), result, (own, own + other // 2)


def _shifted(values: Array, exponent: int) -> Array:
    """Multiply by a power of two, in two steps: it may itself be out of range."""
    half = exponent // 2
    return np.asarray(values * 2.0**half * 2.0 ** (exponent - half))


def _output(weight: Array, gram: Array) -> tuple[Array, npt.NDArray[np.float64]]:
    """Left singular vectors and squared singular values of A X from the eigenvalues of ``A G A^H``."""
    values, vectors = _eigh(weight @ gram @ weight.conj().T)
    return _significant(vectors, values)


def _input(weight: Array, gram: Array) -> tuple[Array, npt.NDArray[np.float64]]:
    """The same from ``A G^(1/2)``, with the root from the eigenvalues of G: cheaper where m > n."""
    scales, basis = _eigh(gram)
    kept = scales > len(scales) * np.finfo(np.float64).eps * scales[0]
    if not kept.any():
        return weight[:, :0], np.zeros(1)
    root = (weight @ basis[:, kept]) * np.sqrt(scales[kept])
    values, right = _eigh(root.conj().T @ root)
    right, values = _significant(right, values)
    # Columns of small values have lost their orthogonality; in descending order a QR gives it back.
    return np.linalg.qr((root @ right) / np.sqrt(values[: right.shape[1]]))[0], values


def _cholesky(weight: Array, gram: Array) -> tuple[Array, npt.NDArray[np.float64]]:
    """The same from ``A L`` with ``G = L L^H``, after the ridge that makes a singular G positive definite."""
    scales = scipy.linalg.eigvalsh(gram)
    least = float(scales[0])
    ridge = 0.0 if least > len(gram) * np.finfo(np.float64).eps * scales[-1] else 1e-6 * scales[-1] - min(0.0, least)
    lower = scipy.linalg.cholesky(gram + ridge * np.eye(len(gram)), lower=True)
    u, s, _ = scipy.linalg.svd(weight @ lower, full_matrices=False)
    return _significant(u, s**2)


_FORMS = {"output": _output, "input": _input, "cholesky": _cholesky}


def _eigh(matrix: Array) -> tuple[npt.NDArray[np.float64], Array]:
    """Eigenvalues, descending, and eigenvectors of a Hermitian matrix that should be positive semidefinite."""
    values, vectors = scipy.linalg.eigh((matrix + matrix.conj().T) / 2, check_finite=False)
    if values[0] < -1e-8 * max(abs(values[-1]), abs(values[0])):
        raise ValueError(f"gram must be positive semidefinite, got an eigenvalue ratio of {values[0] / values[-1]:.3g}")
    return np.maximum(values[::-1], 0.0), vectors[:, ::-1]


def _significant(vectors: Array, values: npt.NDArray[np.float64]) -> tuple[Array, npt.NDArray[np.float64]]:
    """Drop directions that are round-off, but none of the values: together they may exceed a tolerance."""
    kept = values > len(vectors) * np.finfo(np.float64).eps * values[0]
    return vectors[:, kept], values


def _complete(weight: Array, vectors: Array, rank: int) -> tuple[Array, Array]:
    """Factors from left vectors; what they lack in rank is taken from the weight that they leave."""
    right = vectors.conj().T @ weight
    missing = rank - vectors.shape[1]
    if missing == 0:
        return vectors, right
    rest = weight - vectors @ right
    u, _, _ = scipy.linalg.svd(rest, full_matrices=False, check_finite=False)
    more = np.linalg.qr(np.hstack([vectors, u]))[0][:, vectors.shape[1] : rank]
    return np.hstack([vectors, more]), np.vstack([right, more.conj().T @ rest])


def _norm(values: Array) -> float:
    return float(np.linalg.norm(values))

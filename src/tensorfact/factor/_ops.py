"""Linear algebra on thin arrays: one small table of primitives, for NumPy and for every other array library.

The decompositions are written once against these methods.  ``NumpyOps`` goes to the compiled kernels and to LAPACK;
``PortableOps`` speaks the array API standard, so torch, CuPy and JAX arrays stay on their own device.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np

from tensorfact import kernels

__all__ = ["NumpyOps", "PortableOps", "ops_for"]

# One pass of Cholesky QR leaves ||Q^H Q - I|| of about eps / spread^2 (Yamamoto et al., 2015, eq. 3.1 in our terms).
# A second pass repairs anything clearly below one; beyond that only Householder QR is safe.
_MAX_LOSS = 0.05
# After a sound first pass every column of the second one is nearly unit and nearly orthogonal to the others.
_SECOND_SPREAD = 0.9
_DRAW_ROWS = 512


class NumpyOps:
    """Primitives on NumPy arrays."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self.eps = float(np.finfo(self.dtype).eps)
        self.complex = self.dtype.kind == "c"
        self.notes: list[str] = []
        self.reads = 0  # passes over the matrix
        self.wide_eps = float(np.finfo(np.float64).eps)  # of what gram64 accumulates in

    # -- small helpers -------------------------------------------------------------------------------------------
    def draw(self, rows: int, cols: int, rng: np.random.Generator) -> Any:
        """Standard normal matrix (rows, cols), drawn by ``rng`` alone: the same on every device and in any threads.

        Fixed blocks of rows have streams of their own, so two threads may fill them; alone the generator would take
        longer than an orthonormalisation of the same block.
        """
        out = np.empty((rows, cols), dtype=self.dtype)
        flat = out.view(self._real)
        starts = range(0, rows, _DRAW_ROWS)
        seeds = rng.integers(0, 2**63, size=len(starts))

        def fill(start: int, seed: int) -> None:
            stream = np.random.Generator(np.random.SFC64(int(seed)))
            stream.standard_normal(dtype=self._real, out=flat[start : start + _DRAW_ROWS])

        if flat.size < 1 << 18:
            for start, seed in zip(starts, seeds, strict=True):
                fill(start, seed)
        else:
            with ThreadPoolExecutor(kernels.get_num_threads()) as pool:
                list(pool.map(fill, starts, seeds))
        return out

    def adjoint(self, x: Any) -> Any:
        return x.conj().T if self.complex else x.T

    def matmul(self, x: Any, y: Any) -> Any:
        return kernels.matmul(x, y)

    def subtract(self, y: Any, factor: float, x: Any) -> Any:
        """``y - factor x``, in place of ``y``."""
        if factor != 0.0:
            y -= self.dtype.type(factor) * x
        return y

    def add_diagonal(self, g: Any, value: float) -> Any:
        """``g + value I``, in place of ``g``."""
        g.flat[:: g.shape[1] + 1] += self.dtype.type(value)
        return g

    def sum2(self, x: Any) -> float:
        return kernels.sum_squares(x)

    def signs(self, x: Any) -> np.ndarray:
        """Per column the phase that makes its largest entry real and positive."""
        if self.complex:
            x = self.to_numpy(x)
            top = x[np.argmax(np.abs(x), axis=0), np.arange(x.shape[1])]
            return np.asarray(np.where(top != 0, np.abs(top) / np.where(top != 0, top, 1), 1))
        high, low = self.extremes(x)
        return np.where(high >= -low, 1.0, -1.0)

    def extremes(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """Largest and smallest entry of each column."""
        return x.max(axis=0), x.min(axis=0)

    def column_norms(self, x: Any) -> np.ndarray:
        """Euclidean norms of the columns, accumulated in float64."""
        total = np.zeros(x.shape[1])
        for lo in range(0, x.shape[0], 1024):
            block = x[lo : lo + 1024]
            square = block.real**2 + block.imag**2 if self.complex else block * block
            total += square.sum(axis=0, dtype=np.float64)
        return np.asarray(np.sqrt(total))

    def cast(self, x: Any) -> Any:
        return np.asarray(x, dtype=self.dtype)

    def to_half(self, x: Any, dtype: Any) -> Any:
        """``x`` in a half-precision type; ``"bfloat16"`` by name needs the package ml_dtypes."""
        if dtype == "bfloat16":
            import ml_dtypes

            dtype = ml_dtypes.bfloat16
        with np.errstate(over="ignore"):  # the caller looks for infinities
            return x.astype(dtype)

    def hstack(self, parts: list[Any]) -> Any:
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def take(self, x: Any, columns: np.ndarray) -> Any:
        """The named columns of ``x``."""
        return np.ascontiguousarray(x[:, columns])

    def to_numpy(self, x: Any) -> np.ndarray:
        return np.asarray(x)

    def from_numpy(self, x: np.ndarray) -> Any:
        """A host array in working precision; a real array stays real."""
        return x.astype(self.dtype if x.dtype.kind == "c" else self._real, copy=False)

    @property
    def _real(self) -> np.dtype[Any]:
        return np.dtype(np.float32 if self.eps > 1e-10 else np.float64)

    # -- orthonormalisation --------------------------------------------------------------------------------------
    def orth(self, y: Any, *, passes: int = 2) -> tuple[Any, Any]:
        """Orthonormal basis ``q`` of the columns of ``y`` and ``r`` with ``y = q r``.

        ``passes=1`` is enough between power steps, which only need a well-conditioned block; a basis that is kept
        takes two.  An ill-conditioned block goes to Householder QR, and the result's notes say so.
        """
        q, r, spread = kernels.cholesky_qr(y)
        good = spread > 0 and self.eps / spread**2 <= _MAX_LOSS / math.sqrt(y.shape[1])
        if good and passes == 2:
            # what the first pass lost shows in the second one's own spread, also where the estimate above is blind
            # (a triangle like Kahan's is worse conditioned than its diagonal tells)
            q, again, spread = kernels.cholesky_qr(q, overwrite=True)
            r = kernels.matmul(again, r)
            good = spread > _SECOND_SPREAD
        if good:
            return q, r
        self._householder_note()
        q, r = np.linalg.qr(y)
        phase = _phases(r)  # a positive diagonal, like Cholesky's: callers may pair q with what they had before
        return np.ascontiguousarray(q * phase), phase.conj()[:, None] * r

    def _householder_note(self) -> None:
        if "householder" not in self.notes:
            self.notes.append("householder")

    def settle(self, left: Any, s: np.ndarray, eps: float) -> Any:
        """``left``, whose columns are images of Gram eigenvectors over ``s``, orthonormal to working precision.

        The eigenvectors' round-off, ``eps`` of the accumulation times ``(s_1/s_k)^2``, and that of their cast to
        working precision, times ``s_1/s_k``, show up here. One pass removes it and moves the product by round-off.
        """
        spread = float(s[0] / s[-1]) if s[-1] > 0 else math.inf
        lost = max(eps / self.eps * spread**2, spread / 5)
        return self.orth(left, passes=1 if lost * self.eps < 0.01 else 2)[0] if lost > 10 else left

    def gram64(self, z: Any) -> np.ndarray:
        """``z^H z`` accumulated in float64 or complex128."""
        return kernels.gram(z, accumulate="double")

    def smallest_singular_value(self, r: Any) -> float:
        """Lower bound, 10 to 15 % below, on the least singular value of an upper triangular ``r``; 0.0 if singular.

        The certificate of a spectral norm (:func:`residual_certificate`), applied to the inverse: an estimate from
        above would let a shift reach singular values that are wanted.
        """
        from scipy.linalg import lapack

        r = np.asarray(r)
        prefix = {"f": "s", "d": "d", "F": "c", "D": "z"}[r.dtype.char]
        solve, lower = getattr(lapack, f"{prefix}trtrs"), r.T  # column-major without a copy
        probes, powers = 6, 12
        x = np.random.Generator(np.random.SFC64(0)).standard_normal((r.shape[0], probes)).astype(r.dtype, order="F")
        logs = np.zeros(probes)
        for step in range(2 * powers + 1):
            if step % 2 == 0:
                x, info = solve(lower, x, lower=1, trans=1, overwrite_b=1)
            else:  # r^H = conj(lower)
                x, info = solve(lower, x.conj(), lower=1, trans=0, overwrite_b=1)
                x = x.conj()
            norms = np.sqrt(np.sum(np.abs(x).astype(np.float64) ** 2, axis=0))
            if info != 0 or not (norms.all() and norms.max() < float(np.finfo(x.dtype).max)):
                return 0.0  # singular as far as this precision can tell
            logs += np.log(norms)
            x = np.asfortranarray(x / norms.astype(x.real.dtype))
        return math.exp(-(math.log(10 * math.sqrt(2 / math.pi)) + float(logs.max())) / (2 * powers + 1))

    def singular_values(self, x: Any) -> np.ndarray:
        """All singular values in float64."""
        return np.linalg.svd(x, compute_uv=False).astype(np.float64)

    def svd(self, x: Any) -> tuple[Any, Any, Any]:
        """Thin SVD; ``gesdd`` first, ``gesvd`` where it does not converge (recorded in the notes)."""
        try:
            return np.linalg.svd(x, full_matrices=False)
        except np.linalg.LinAlgError:
            from scipy.linalg import svd

            self.notes.append("gesvd")
            return svd(x, full_matrices=False, lapack_driver="gesvd", check_finite=False)


class PortableOps(NumpyOps):
    """The same primitives through the array API; small matrices visit the host, tall ones never do."""

    def __init__(self, like: Any, xp: Any, dtype: Any) -> None:
        from array_api_compat import device

        self.xp = xp
        self.xdtype = dtype
        self.device = device(like)
        self.complex = bool(xp.isdtype(dtype, "complex floating"))
        self.eps = float(xp.finfo(dtype).eps)
        self.notes = []
        self.reads = 0
        self.wide_eps = float(xp.finfo(xp.asarray(0.0, dtype=xp.float64).dtype).eps)  # JAX may have float32 only
        wide = self.eps < 1e-10
        host = (np.complex128 if wide else np.complex64) if self.complex else (np.float64 if wide else np.float32)
        self.dtype = np.dtype(host)

    def draw(self, rows: int, cols: int, rng: np.random.Generator) -> Any:
        return self.from_numpy(super().draw(rows, cols, rng))

    def adjoint(self, x: Any) -> Any:
        return self.xp.conj(x).mT if self.complex else x.mT

    def matmul(self, x: Any, y: Any) -> Any:
        return self.xp.matmul(x, y)

    def subtract(self, y: Any, factor: float, x: Any) -> Any:
        return y if factor == 0.0 else y - factor * x

    def add_diagonal(self, g: Any, value: float) -> Any:
        return g + value * self.xp.eye(int(g.shape[0]), dtype=g.dtype, device=self.device)

    def sum2(self, x: Any) -> float:
        magnitude = self.xp.abs(x)
        return float(self.xp.sum(magnitude * magnitude, dtype=self.xp.float64))

    def extremes(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.to_numpy(self.xp.max(x, axis=0)), self.to_numpy(self.xp.min(x, axis=0))

    def column_norms(self, x: Any) -> np.ndarray:
        magnitude = self.xp.abs(x)
        return np.asarray(np.sqrt(self.to_numpy(self.xp.sum(magnitude * magnitude, axis=0, dtype=self.xp.float64))))

    def cast(self, x: Any) -> Any:
        return self.xp.astype(x, self.xdtype)

    def to_half(self, x: Any, dtype: Any) -> Any:
        return self.xp.astype(x, dtype)

    def hstack(self, parts: list[Any]) -> Any:
        return parts[0] if len(parts) == 1 else self.xp.concat(parts, axis=1)

    def take(self, x: Any, columns: np.ndarray) -> Any:
        return self.xp.take(x, self.xp.asarray(columns, device=self.device), axis=1)

    def to_numpy(self, x: Any) -> np.ndarray:
        from array_api_compat import to_device

        if hasattr(x, "detach"):  # torch: never drag the autograd graph along
            x = x.detach()
        if hasattr(x, "get") and "cupy" in type(x).__module__:
            return np.asarray(x.get())
        host = to_device(x, "cpu") if hasattr(x, "detach") else x
        return np.asarray(host) if hasattr(host, "__array__") else cast(np.ndarray, np.from_dlpack(host))

    def from_numpy(self, x: np.ndarray) -> Any:
        host = np.array(super().from_numpy(x), order="C")  # a copy: a 1 x 1 view may keep a negative stride
        return self.xp.asarray(host, device=self.device)

    def orth(self, y: Any, *, passes: int = 2) -> tuple[Any, Any]:
        q, r, spread = self._cholesky_qr(y)
        good = spread > 0 and self.eps / spread**2 <= _MAX_LOSS / math.sqrt(y.shape[1])
        if good and passes == 2:
            q, again, spread = self._cholesky_qr(q)
            r, good = again @ r, spread > _SECOND_SPREAD
        if good:
            return q, r
        self._householder_note()
        q, r = self.xp.linalg.qr(y, mode="reduced")
        r = self.to_numpy(r)
        phase = _phases(r)
        return q * self.from_numpy(phase)[None, :], phase.conj()[:, None] * r

    def _cholesky_qr(self, y: Any) -> tuple[Any, np.ndarray, float]:
        """The kernel of that name: one product and one triangular factor on the device, the small ones on the host."""
        g = self.gram64(y)
        scale = np.sqrt(np.abs(np.diagonal(g)))
        try:
            r = np.linalg.cholesky(g).conj().T
        except np.linalg.LinAlgError:
            return y, g, 0.0
        spread = float(np.min(np.abs(np.diagonal(r)) / scale, initial=1.0)) if scale.all() else 0.0
        return (self.matmul(y, self.from_numpy(np.linalg.inv(r))), r, spread) if spread > 0 else (y, r, 0.0)

    def gram64(self, z: Any) -> np.ndarray:
        wide = self.xp.complex128 if self.complex else self.xp.float64
        z = self.xp.astype(z, wide)
        g = self.xp.matmul(self.xp.conj(z).mT if self.complex else z.mT, z)
        return self.to_numpy(g)

    def singular_values(self, x: Any) -> np.ndarray:
        return self.to_numpy(self.xp.linalg.svdvals(x)).astype(np.float64)

    def svd(self, x: Any) -> tuple[Any, Any, Any]:
        return tuple(self.xp.linalg.svd(x, full_matrices=False))


def _phases(r: np.ndarray) -> np.ndarray:
    diagonal = np.diagonal(r)
    size = np.abs(diagonal)
    return np.where(size > 0, diagonal / np.where(size > 0, size, 1), 1).astype(r.dtype)


def ops_for(array: Any, dtype: Any, xp: Any | None) -> NumpyOps:
    """Primitives for ``array``: compiled for NumPy (``xp=None``), portable for the rest."""
    return NumpyOps(dtype) if xp is None else PortableOps(array, xp, dtype)

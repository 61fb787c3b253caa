"""The result of a decoupling: a small network with one learned spline in each branch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tensorfact import kernels

__all__ = ["Decoupling", "DecouplingInfo"]

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecouplingInfo:
    """How a decoupling was computed.

    Parameters
    ----------
    polish : str
        ``"lm"``, ``"lbfgs"`` or ``"none"``.
    sweeps, polish_iterations, repairs : int
        Alternating sweeps, steps of the polish that won, branches that died and were started again.
    restarts : tuple of float
        Final objective of each start; the result is the least.
    history : tuple of float
        Objective of the start that won, after each sweep.
    floor_function, floor_jacobian : float
        Errors of the best coefficients at the final weights and knots: no other choice of splines does better there.
        They count like ``function_error`` and ``jacobian_error``, but for the objective: one may be a little larger.
    converged : bool
        Whether the sweeps settled before their limit.
    notes : tuple of str
        What the input made necessary, for example ``"constant outputs"``.
    """

    polish: str = "none"
    sweeps: int = 0
    polish_iterations: int = 0
    repairs: int = 0
    restarts: tuple[float, ...] = ()
    history: tuple[float, ...] = ()
    floor_function: float = float("nan")
    floor_jacobian: float = float("nan")
    converged: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Decoupling:
    """A function ``f(x) ~ w g(v^T x) + bias`` with one spline for each of r branches.

    Parameters
    ----------
    w : array, shape (n, r)
        Output weights.
    v : array, shape (m, r)
        Input directions, unit columns, the largest entry of each positive.
    knots : array, shape (r, k + degree + 1)
    coefficients : array, shape (r, k)
        Splines of zero mean over the samples.
    bias : array, shape (n,)
    degree : int
    error : float
        Achieved ``||F - f(X)|| / ||F||`` over the samples (Frobenius).
    jacobian_error : float
        The same for the Jacobians.
    info : DecouplingInfo

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> x = np.random.default_rng(0).uniform(-1, 1, (60, 2))
    >>> s = x.sum(axis=1, keepdims=True)
    >>> fit = tensorfact.decouple(x, s**3, (3 * s**2)[:, :, None] * np.ones((1, 1, 2)), rank=1, n_basis=4, rng=0)
    >>> fit.error < 1e-12, fit(x).shape, fit.jacobian(x).shape
    (True, (60, 1), (60, 1, 2))
    """

    w: Array
    v: Array
    knots: Array
    coefficients: Array
    bias: Array
    degree: int
    error: float
    jacobian_error: float = float("nan")
    info: DecouplingInfo = field(default_factory=DecouplingInfo)

    def __post_init__(self) -> None:
        r = self.w.shape[-1]
        shapes = {name: getattr(self, name).shape for name in ("w", "v", "knots", "coefficients", "bias")}
        wanted = self.coefficients.shape[-1] + self.degree + 1
        if not (
            self.w.ndim == self.v.ndim == self.coefficients.ndim == 2
            and self.v.shape[1] == r
            and self.coefficients.shape[0] == r
            and self.knots.shape == (r, wanted)
            and self.bias.shape == (self.w.shape[0],)
        ):
            raise ValueError(f"w, v, knots, coefficients and bias must fit each other and the degree, got {shapes}")
        for name in shapes:
            frozen = np.ascontiguousarray(getattr(self, name)).view()
            frozen.setflags(write=False)
            object.__setattr__(self, name, frozen)

    @property
    def rank(self) -> int:
        """Number of branches."""
        return int(self.w.shape[1])

    @property
    def shape(self) -> tuple[int, int]:
        """(n outputs, m inputs)."""
        return int(self.w.shape[0]), int(self.v.shape[0])

    @property
    def dtype(self) -> Any:
        """Type of the stored numbers."""
        return self.w.dtype

    @property
    def n_basis(self) -> int:
        """Coefficients of each branch."""
        return int(self.coefficients.shape[1])

    @property
    def size(self) -> int:
        """Parameters with the inner knots and the two ends of each branch: ``r (n + m + 2 k - degree + 1) + n``."""
        return self.n_params + self.rank * (self.n_basis - self.degree + 1)

    @property
    def n_params(self) -> int:
        """Parameters without knots: ``r (n + m + k) + n``."""
        return self.w.size + self.v.size + self.coefficients.size + self.bias.size

    @property
    def nbytes(self) -> int:
        """Bytes of `size` numbers."""
        return self.size * int(self.dtype.itemsize)

    @property
    def splines(self) -> tuple[Any, ...]:
        """``scipy.interpolate.BSpline`` of each branch (polynomial tails; ours are linear)."""
        from scipy.interpolate import BSpline

        return tuple(BSpline(t, c, self.degree) for t, c in zip(self.knots, self.coefficients, strict=True))

    def internals(self, x: ArrayLike, nu: int = 0) -> Array:
        """Branch values ``g_i(v_i^T x)`` or derivatives, shape (N, r), for x (N, m)."""
        z = np.ascontiguousarray((self._points(x) @ self.v).T)
        found: Array = kernels.spline_values(z, self.knots, self.degree, self.coefficients, nu).T
        return found

    def __call__(self, x: ArrayLike) -> Array:
        """Outputs (N, n) at inputs (N, m), or (n,) at one input (m,); straight on outside the knots."""
        single = np.ndim(x) == 1
        y: Array = self.internals(x) @ self.w.T + self.bias
        return y[0] if single else y

    def jacobian(self, x: ArrayLike) -> Array:
        """Jacobians (N, n, m) at inputs (N, m), or (n, m) at one input (m,)."""
        single = np.ndim(x) == 1
        jac: Array = np.einsum("ni,si,mi->snm", self.w, self.internals(x, 1), self.v, optimize=True)
        return jac[0] if single else jac

    def _points(self, x: ArrayLike) -> Array:
        points = np.asarray(x, self.dtype)
        points = points[None] if points.ndim == 1 else points
        if points.ndim != 2 or points.shape[1] != self.v.shape[0]:
            raise ValueError(f"x must have shape (N, {self.v.shape[0]}), got {np.shape(x)}")
        return points

    def to_arrays(self) -> dict[str, Any]:
        """The parts by name, for a file of arrays; :meth:`from_arrays` reads them back."""
        arrays: dict[str, Any] = {name: getattr(self, name) for name in ("w", "v", "knots", "coefficients", "bias")}
        arrays["degree"] = np.asarray(self.degree)
        arrays["error"], arrays["jacobian_error"] = np.asarray(self.error), np.asarray(self.jacobian_error)
        arrays["info"] = np.frombuffer(json.dumps(asdict(self.info)).encode(), dtype=np.uint8)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Decoupling:
        """Rebuild a result from :meth:`to_arrays`; a missing part raises ``ValueError``."""
        names = ("w", "v", "knots", "coefficients", "bias")
        missing = {*names, "degree", "error"} - set(arrays)
        if missing:
            raise ValueError(f"arrays must hold {', '.join(names)}, degree and error, missing {sorted(missing)}")
        info = DecouplingInfo()
        if "info" in arrays:
            stored = json.loads(np.asarray(arrays["info"]).tobytes())
            lists = {key: tuple(value) for key, value in stored.items() if isinstance(value, list)}
            info = DecouplingInfo(**{**stored, **lists})
        return cls(
            **{name: np.asarray(arrays[name]) for name in names},
            degree=int(arrays["degree"]),
            error=float(arrays["error"]),
            jacobian_error=float(arrays.get("jacobian_error", np.nan)),
            info=info,
        )

    def __repr__(self) -> str:
        n, m = self.shape
        return (
            f"Decoupling({m} -> {self.rank} -> {n}, degree={self.degree}, n_basis={self.n_basis}, "
            f"error={self.error:.3g}, jacobian_error={self.jacobian_error:.3g}, polish={self.info.polish!r})"
        )

"""Values and Jacobians at samples: of a torch, JAX or NumPy function, or of a two-layer network in closed form."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["ACTIVATIONS", "activation_pair", "mlp_jacobians", "sample_jacobians"]

Array = NDArray[np.float64]
Activation = str | tuple[Callable[[Array], Array], Callable[[Array], Array]]


def _gelu(a: Array) -> Array:
    from scipy.special import ndtr

    return np.asarray(a * ndtr(a))


def _gelu_slope(a: Array) -> Array:
    from scipy.special import ndtr

    return np.asarray(ndtr(a) + a * np.exp(-0.5 * a * a) / np.sqrt(2 * np.pi))


def _gelu_tanh(a: Array) -> Array:
    return np.asarray(0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))))


def _gelu_tanh_slope(a: Array) -> Array:
    t = np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))
    return np.asarray(0.5 * (1 + t) + 0.5 * a * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * a * a))


def _sigmoid(a: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * a)))


# name -> (function, derivative)
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "gelu": (_gelu, _gelu_slope),
    "gelu_tanh": (_gelu_tanh, _gelu_tanh_slope),
    "relu": (lambda a: np.maximum(a, 0.0), lambda a: (a > 0).astype(a.dtype)),
    "sigmoid": (_sigmoid, lambda a: _sigmoid(a) * (1 - _sigmoid(a))),
    "silu": (lambda a: a * _sigmoid(a), lambda a: _sigmoid(a) * (1 + a * (1 - _sigmoid(a)))),
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
}


def activation_pair(activation: Activation) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """The function and its derivative, from a name or as given."""
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)} or two functions, got {activation!r}")
        return ACTIVATIONS[activation]
    if not (isinstance(activation, tuple) and len(activation) == 2 and all(callable(part) for part in activation)):
        raise ValueError(f"activation must be a name or a pair (function, derivative), got {activation!r}")
    return activation


def mlp_jacobians(
    w1: ArrayLike, b1: ArrayLike, w2: ArrayLike, b2: ArrayLike, activation: Activation, x: ArrayLike, /
) -> tuple[Array, Array]:
    """Values and Jacobians of ``w2 activation(w1 x + b1) + b2`` in closed form.

    Parameters
    ----------
    w1 : array_like, shape (h, m)
    b1 : array_like, shape (h,)
    w2 : array_like, shape (n, h)
    b2 : array_like, shape (n,)
    activation : str or (callable, callable)
        "gelu", "gelu_tanh", "relu", "sigmoid", "silu", "tanh", or a function and its derivative.
    x : array_like, shape (N, m)

    Returns
    -------
    f : numpy.ndarray, shape (N, n)
    jac : numpy.ndarray, shape (N, n, m)
        ``2 N n m h`` flop. `decouple_mlp` does without it.

    Examples
    --------
    >>> f, jac = mlp_jacobians([[2.0]], [0.0], [[3.0]], [1.0], "relu", [[0.5], [-1.0]])
    >>> f.ravel().tolist(), jac.ravel().tolist()
    ([4.0, 1.0], [6.0, 0.0])
    """
    value, slope = activation_pair(activation)
    first, second = np.asarray(w1, np.float64), np.asarray(w2, np.float64)
    hidden = np.asarray(x, np.float64) @ first.T + np.asarray(b1, np.float64)
    f = value(hidden) @ second.T + np.asarray(b2, np.float64)
    jac: Array = np.matmul(second * slope(hidden)[:, None, :], first)
    return f, jac


def sample_jacobians(
    fn: Callable[[Any], Any], x: Any, /, *, method: Literal["auto", "torch", "jax", "central"] = "auto"
) -> tuple[Array, Array]:
    """Values and Jacobians of a function at samples.

    Parameters
    ----------
    fn : callable
        Takes a batch (N, m), returns (N, n); each row of the result depends on the same row of the input only.
    x : array, shape (N, m)
        A torch tensor or JAX array for their automatic differentiation, anything else for NumPy.
    method : {"auto", "torch", "jax", "central"}
        "auto" goes by the type of `x`; "central" takes central differences, 2 m calls of `fn`.

    Returns
    -------
    f : numpy.ndarray, shape (N, n)
    jac : numpy.ndarray, shape (N, n, m)

    Raises
    ------
    ValueError
        If the shapes do not fit, or values are NaN or infinite.

    Notes
    -----
    Central differences lose a third of the digits: about 1e-10 relative in float64; they are taken in float64 only.

    Examples
    --------
    >>> import numpy as np
    >>> f, jac = sample_jacobians(lambda x: x**2, np.array([[1.0], [3.0]]))
    >>> jac.round(6).ravel().tolist()
    [2.0, 6.0]
    """
    if method not in ("auto", "torch", "jax", "central"):
        raise ValueError(f"method must be 'auto', 'torch', 'jax' or 'central', got {method!r}")
    if np.ndim(x) != 2:
        raise ValueError(f"x must have two axes, one row a sample, got shape {tuple(np.shape(x))}")
    if method == "auto":
        kind = type(x).__module__.partition(".")[0]
        is_jax = kind in ("jax", "jaxlib") and "jax" in sys.modules
        method = "torch" if kind == "torch" else "jax" if is_jax else "central"
    if method == "torch":
        f, jac = _by_torch(fn, x)
    elif method == "jax":
        f, jac = _by_jax(fn, x)
    else:
        f, jac = _by_differences(fn, np.asarray(x, np.float64))
    if f.ndim != 2 or f.shape[0] != x.shape[0] or jac.shape != (*f.shape, x.shape[1]):
        raise ValueError(f"fn must map (N, m) to (N, n), got {f.shape} for x of shape {tuple(x.shape)}")
    if not (np.isfinite(f).all() and np.isfinite(jac).all()):
        raise ValueError("fn must give finite values and Jacobians at x")
    return f, jac


def _by_torch(fn: Callable[[Any], Any], x: Any) -> tuple[Array, Array]:
    import torch

    with torch.no_grad():
        f = fn(x)
    jac = torch.func.vmap(torch.func.jacrev(lambda one: fn(one[None])[0]))(x.detach())
    return tuple(a.detach().cpu().double().numpy() for a in (f, jac))


def _by_jax(fn: Callable[[Any], Any], x: Any) -> tuple[Array, Array]:
    import jax

    jac = jax.vmap(jax.jacrev(lambda one: fn(one[None])[0]))(x)
    return np.asarray(fn(x), np.float64), np.asarray(jac, np.float64)


def _by_differences(fn: Callable[[Any], Any], x: Array) -> tuple[Array, Array]:
    f = np.asarray(fn(x), np.float64)
    columns = []
    for b in range(x.shape[1]):
        step = np.cbrt(np.finfo(np.float64).eps) * np.maximum(1.0, np.abs(x[:, b]))
        above, below = x.copy(), x.copy()
        above[:, b] += step
        below[:, b] -= step
        width = (above[:, b] - below[:, b])[:, None]  # what the rounded points are apart
        columns.append((np.asarray(fn(above), np.float64) - np.asarray(fn(below), np.float64)) / width)
    return f, np.stack(columns, axis=-1) if columns else np.empty((*f.shape, 0))

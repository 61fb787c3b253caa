"""The matrices of the named transforms, built once a length, and their fast forms for long NumPy tubes."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

__all__ = ["NAMES", "fast", "fast_real_inverse", "is_long", "named_inverse", "named_matrix"]

# Up to here a transform is a matrix product, which also brings the faces to the front on the way. An FFT needs a
# transposition after it: in float32 on two cores it took 6 times as long at 64 and 3.3 times at 256.
_FAST_LENGTH = 512
_FAST = ("dct", "dst", "dft")


def _dct(p: int) -> np.ndarray:
    k, n = np.arange(p)[:, None], np.arange(p)[None, :]
    z = math.sqrt(2 / p) * np.cos(np.pi * (2 * n + 1) * k / (2 * p))
    z[0] = math.sqrt(1 / p)
    return np.asarray(z)


def _dst(p: int) -> np.ndarray:
    k, n = np.arange(1, p + 1)[:, None], np.arange(p)[None, :]
    z = math.sqrt(2 / p) * np.sin(np.pi * (2 * n + 1) * k / (2 * p))
    z[-1] *= math.sqrt(0.5)
    return np.asarray(z)


def _angles(p: int) -> np.ndarray:
    """``2 pi k n / p`` with the product reduced first: exact periods for long tubes."""
    return 2 * np.pi / p * ((np.arange(p)[:, None] * np.arange(p)[None, :]) % p)


def _dft(p: int) -> np.ndarray:
    angles = _angles(p)
    return np.asarray(np.cos(angles) - 1j * np.sin(angles))


def _hartley(p: int) -> np.ndarray:
    angles = _angles(p)
    return np.asarray((np.cos(angles) + np.sin(angles)) / math.sqrt(p))


def _haar(p: int) -> np.ndarray:
    z = np.ones((1, 1))
    while z.shape[0] < p:
        n = z.shape[0]
        z = np.vstack([np.kron(z, [1.0, 1.0]), np.kron(np.eye(n), [1.0, -1.0])]) * math.sqrt(0.5)
    return z


_BUILD: dict[str, Callable[[int], np.ndarray]] = {
    "identity": np.eye,
    "dct": _dct,
    "dst": _dst,
    "dft": _dft,
    "hartley": _hartley,
    "haar": _haar,
}
NAMES = tuple(_BUILD)


def is_long(name: str, p: int) -> bool:
    """Whether tubes of length ``p`` go through an FFT; only NumPy's do."""
    return name in _FAST and p > _FAST_LENGTH


@lru_cache(maxsize=32)
def named_matrix(name: str, p: int) -> np.ndarray:
    """The matrix of the transform called ``name``, read-only."""
    z = _BUILD[name](p)
    z.setflags(write=False)
    return z


@lru_cache(maxsize=32)
def named_inverse(name: str, p: int) -> np.ndarray:
    """Its inverse: the adjoint, over ``p`` for the unnormalised DFT."""
    z = named_matrix(name, p).conj().T / (p if name == "dft" else 1)
    z.setflags(write=False)
    return z


def fast(name: str, x: np.ndarray, axis: int, inverse: bool = False) -> np.ndarray:
    """The transform called ``name`` by FFT; for the DFT of a real array only the first half of the spectrum."""
    from scipy import fft

    if name == "dct":
        y = (fft.idct if inverse else fft.dct)(x, type=2, norm="ortho", axis=axis)
    elif name == "dst":
        y = (fft.idst if inverse else fft.dst)(x, type=2, norm="ortho", axis=axis)
    else:
        y = (
            fft.ifft(x, axis=axis)
            if inverse
            else fft.fft(x, axis=axis)
            if x.dtype.kind == "c"
            else fft.rfft(x, axis=axis)
        )
    return np.asarray(y)


def fast_real_inverse(y: np.ndarray, length: int, axis: int) -> np.ndarray:
    """The real array of ``length`` entries behind a half spectrum."""
    from scipy import fft

    return np.asarray(fft.irfft(y, n=length, axis=axis))

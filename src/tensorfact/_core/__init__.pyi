from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_R = TypeVar("_R", np.float32, np.float64)
_F = TypeVar("_F", np.float32, np.float64, np.complex64, np.complex128)

__version__: str

def isa() -> str: ...
def blas_int_bits() -> int: ...
def load_blas(blas: Mapping[str, Any], lapack: Mapping[str, Any]) -> None: ...
def parse_signature(text: str) -> str: ...
def probe_pool(nthreads: int, fail: bool) -> int: ...
def chain(
    x: NDArray[_R],
    cores: NDArray[_R],
    sizes: NDArray[np.int64],
    bias: NDArray[_R],
    y: NDArray[_R],
    from_left: bool,
    nthreads: int,
) -> None: ...
def chain_at(
    wide: bool,
    x: int,
    tokens: int,
    cores: tuple[tuple[int, int, int, int, int], ...],
    bias: int,
    y: int,
    from_left: bool,
    nthreads: int,
) -> None: ...
def kron_sum(left: NDArray[_R], right: NDArray[_R], out: NDArray[_R], m1: int, m2: int, nthreads: int) -> None: ...
def kron_sum_at(
    wide: bool, members: tuple[tuple[int, int, int], ...], m1: int, n1: int, r: int, m2: int, n2: int, nthreads: int
) -> None: ...
def facewise(
    x: NDArray[_R],
    faces: NDArray[_R],
    forward: NDArray[_R],
    inverse: NDArray[_R],
    bias: NDArray[_R],
    y: NDArray[_R],
    last: bool,
    nthreads: int,
) -> bool: ...
def facewise_at(
    wide: bool,
    x: int,
    faces: int,
    forward: int,
    inverse: int,
    bias: int,
    y: int,
    sizes: tuple[int, int, int, int],
    strides: tuple[int, int, int],
    last: bool,
    nthreads: int,
) -> bool: ...
def tube_faces(x: NDArray[_R], forward: NDArray[_R], faces: NDArray[_R], last: bool, nthreads: int) -> bool: ...
def tube_faces_at(
    wide: bool, x: int, forward: int, faces: int, rows: int, columns: int, p: int, last: bool, nthreads: int
) -> bool: ...
def sum_squares(a: NDArray[_R], nthreads: int) -> float: ...
def normal_apply(a: NDArray[_F], x: NDArray[_F], out: NDArray[_F], block_rows: int) -> None: ...
def matmul(a: NDArray[_F], b: NDArray[_F], out: NDArray[_F]) -> None: ...
def eigh(a: NDArray[_F], values: NDArray[Any]) -> int: ...
def gram(a: NDArray[_F], out: NDArray[Any], nthreads: int) -> None: ...
def cholesky_qr(y: NDArray[_F], q: NDArray[_F], r: NDArray[_F], g: NDArray[Any], nthreads: int) -> float: ...
def row_sketch(y: NDArray[_F], codes: NDArray[np.uint32], z: NDArray[_F], nthreads: int) -> float: ...
def tall_triangle(y: NDArray[_F], r: NDArray[_F], nthreads: int) -> None: ...
def tall_gram(y: NDArray[_F], g: NDArray[Any], nthreads: int) -> None: ...
def tall_product(
    y: NDArray[_F], v: NDArray[_F], w: NDArray[_F], sums: NDArray[np.float64], residual: bool, nthreads: int
) -> None: ...
def spline_basis(
    x: NDArray[_R],
    knots: NDArray[_R],
    degree: int,
    nu: int,
    clamp: bool,
    values: NDArray[_R],
    first: NDArray[np.int32],
    nthreads: int,
) -> None: ...
def probe_write(values: NDArray[_R], first: NDArray[np.int32], nthreads: int) -> None: ...
def spline_uniform(knots: NDArray[_R], degree: int) -> bool: ...
def spline_values(
    x: NDArray[_R],
    knots: NDArray[_R],
    degree: int,
    nu: int,
    clamp: bool,
    coefficients: NDArray[_R],
    out: NDArray[_R],
    nthreads: int,
) -> None: ...
def spline_gram(
    x: NDArray[_R],
    knots: NDArray[_R],
    degree: int,
    nu: int,
    clamp: bool,
    weights: NDArray[_R],
    y: NDArray[_R],
    band: NDArray[np.float64],
    rhs: NDArray[np.float64],
    nthreads: int,
) -> None: ...
def spline_solve(band: NDArray[np.float64], rhs: NDArray[np.float64], branches: int, nthreads: int) -> float: ...
def sparse_product(
    x: NDArray[_R],
    values: NDArray[_R],
    rows: NDArray[np.uint8],
    columns: NDArray[np.uint8],
    starts: NDArray[np.int64],
    bias: NDArray[_R],
    y: NDArray[_R],
    nthreads: int,
) -> None: ...

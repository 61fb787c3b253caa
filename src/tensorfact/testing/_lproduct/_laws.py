"""What a tensor-tensor product promises about its result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tensorfact.testing._lproduct._oracles import block_circulant_product, star_product, star_transpose
from tensorfact.testing._lproduct._routine import LproductCase, LproductRoutine, agree, cases, promise
from tensorfact.testing._promises import BrokenPromise, Promise

ODD = LproductCase(m=3, l=5, n=2, p=5, transform="dft")


@promise("definition", "transform the tubes, multiply the faces, transform back: equal to that, written out", cases)
def _definition(routine: LproductRoutine, case: LproductCase) -> float:
    a, b = case.pair()
    found, wanted = routine(a, b, case.z), star_product(a, b, case.z)
    return agree(found, wanted, case, a, b)


@promise("associative", "(a * b) * c = a * (b * c)", cases)
def _associative(routine: LproductRoutine, case: LproductCase) -> float:
    a, b = case.pair()
    c, z = case.tensor(case.n, case.m, 2), case.z
    return agree(routine(routine(a, b, z), c, z), routine(a, routine(b, c, z), z), case, a, b, c)


@promise("distributive", "a * (b + c) = a * b + a * c", cases)
def _distributive(routine: LproductRoutine, case: LproductCase) -> float:
    a, b = case.pair()
    c, z = case.tensor(case.l, case.n, 2), case.z
    return agree(routine(a, b + c, z), routine(a, b, z) + routine(a, c, z), case, a, np.stack([b, c]))


@promise("identity", "a * identity = a, the identity having the tubes Z^-1 1 on its diagonal", cases, (ODD,))
def _identity(routine: LproductRoutine, case: LproductCase) -> float:
    a, z = case.tensor(case.m, case.l), case.z
    tube = np.linalg.solve(z, np.ones(case.p))
    one = np.eye(case.l)[:, :, None] * (tube.real if np.abs(tube.imag).max() < 1e-12 else tube)
    kept = one.astype(a.dtype if one.dtype.kind == "f" else np.result_type(a.dtype, np.complex64))
    return agree(routine(a, kept, z), a, case, a, kept)


@promise("transposes", "(a * b)^H = b^H * a^H, faces conjugate transposed in the transform domain", cases, (ODD,))
def _transposes(routine: LproductRoutine, case: LproductCase) -> float:
    a, b = case.pair()
    z = case.z
    turned = [star_transpose(x, z) for x in (b, a)]
    parts = [(x.real if a.dtype.kind != "c" else x).astype(a.dtype) for x in turned]
    return agree(routine(parts[0], parts[1], z), star_transpose(routine(a, b, z), z), case, a, b)


@promise(
    "classical",
    "under the unnormalised DFT: the t-product, block circulant",
    lambda routine: cases(routine, ("dft",)),
    (ODD, replace(ODD, p=4), replace(ODD, p=1)),
)
def _classical(routine: LproductRoutine, case: LproductCase) -> float:
    a, b = case.pair()
    return agree(routine(a, b, case.z), block_circulant_product(a, b), case, a, b)


@promise(
    "independent-faces",
    "under the identity: p matrix products; at p = 1 one, whatever the transform",
    lambda routine: cases(routine, ("identity", "dct", "dft", "random")),
)
def _independent_faces(routine: LproductRoutine, case: LproductCase) -> float:
    case = case if case.transform == "identity" else replace(case, p=1)
    a, b = case.pair()
    wanted = np.stack([a[..., k].astype(float) @ b[..., k].astype(float) for k in range(case.p)], axis=-1)
    if case.p == 1:
        wanted = wanted * case.z[0, 0].real
    return agree(routine(a, b, case.z), wanted, case, a, b)


@promise("scaling", "the product under c Z is c times the product under Z", cases)
def _scaling(routine: LproductRoutine, case: LproductCase) -> float:
    a, b = case.pair()
    return agree(routine(a, b, 0.25 * case.z), 0.25 * routine(a, b, case.z), case, a, b)


@promise("real-stays-real", "real tensors under a real transform or the DFT have a real product, of their dtype", cases)
def _real_stays_real(routine: LproductRoutine, case: LproductCase) -> None:
    a, b = case.pair()
    found = routine(a, b, case.z).dtype
    if found != a.dtype:
        raise BrokenPromise(f"{a.dtype} in, {found} out")


@promise(
    "complex",
    "complex tensors have the right product, or are refused",
    lambda routine: cases(routine, None, ("complex128", "complex64")),
    (replace(ODD, dtype="complex128"),),
)
def _complex(routine: LproductRoutine, case: LproductCase) -> float:
    a, b = case.pair()
    found = routine.offered("complex tensors", a, b, case.z)
    return agree(found, star_product(a, b, case.z), case, a, b)


@promise("batch", "axes in front are a batch: the same as one product after the other", cases)
def _batch(routine: LproductRoutine, case: LproductCase) -> float:
    a, b = case.pair((3,))
    found = routine.offered("batch axes", a, b, case.z)
    wanted = np.stack([routine(a[k], b[k], case.z) for k in range(3)])
    return agree(found, wanted, case, a, b)


PROMISES: tuple[Promise[LproductRoutine], ...] = (
    _definition,
    _associative,
    _distributive,
    _identity,
    _transposes,
    _classical,
    _independent_faces,
    _scaling,
    _real_stays_real,
    _complex,
    _batch,
)

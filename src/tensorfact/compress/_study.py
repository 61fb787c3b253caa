"""How many power iterations do real weights need? Ranks fixed by a budget, sketches and their iterations compared.

The question of RSI (arXiv 2604.02659): q = 1 is plain randomized SVD with a sketch as wide as the rank; every further
q is one more power iteration. The exact truncated SVD is what more work cannot beat.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigvalsh

from tensorfact.compress._inputs import pad
from tensorfact.factor import LowRank, randomized_svd

if TYPE_CHECKING:
    import torch

__all__ = ["DEFAULT", "EXACT", "VARIANTS", "Embedder", "Row", "run_study", "uniform_rank"]

Array = npt.NDArray[np.float32]
EXACT, DEFAULT = "exact SVD", "default"
POWERS = {"q = 1": 1, "q = 2": 2, "q = 3": 3, "q = 4": 4}
"""Applications of the weight, as RSI counts them."""
VARIANTS = (*POWERS, DEFAULT, EXACT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant at one budget.

    `frobenius` is the mean over the weights of the relative Frobenius error; `spectral` and `spectral_worst` are mean
    and maximum of the spectral norm of the error over the first singular value left out (1 is optimal); `cosine` is the
    mean cosine between the sentence embeddings of the dense and of the compressed model; `spearman` is in percent;
    `seconds` is the time of all factorisations.
    """

    param_ratio: float
    variant: str
    frobenius: float
    spectral: float
    spectral_worst: float
    cosine: float
    spearman: float | None
    seconds: float


class Embedder:
    """Sentence embeddings as all-MiniLM-L6-v2 makes them: mean over the tokens, then length one."""

    def __init__(self, tokenizer: Any, sentences: Sequence[str], *, batch: int = 32, max_tokens: int = 256) -> None:
        encoded = [tokenizer(sentence, truncation=True, max_length=max_tokens)["input_ids"] for sentence in sentences]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # like lengths together: little padding
        rows = [order[start : start + batch] for start in range(0, len(order), batch)]
        self._batches = [(indices, *pad([encoded[i] for i in indices])) for indices in rows]
        self.sentences, self.tokens = len(encoded), sum(map(len, encoded))

    def __call__(self, model: torch.nn.Module) -> Array:
        """Embeddings (sentences, width) in the order given to the constructor."""
        import torch

        out: torch.Tensor | None = None
        with torch.inference_mode():
            for indices, ids, mask in self._batches:
                hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
                mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                if out is None:
                    out = torch.empty(self.sentences, mean.shape[1])
                out[indices] = torch.nn.functional.normalize(mean, dim=1)
        if out is None:
            raise ValueError("sentences must not be empty")
        return out.numpy()


def uniform_rank(shape: tuple[int, int], param_ratio: float) -> int:
    """Largest rank whose two factors hold at most `param_ratio` of the parameters of the weight, at least 1."""
    m, n = shape
    return max(1, int(param_ratio * m * n / (m + n)))


def run_study(
    model: torch.nn.Module,
    names: Sequence[str],
    embed: Embedder,
    *,
    ratios: Sequence[float],
    variants: Sequence[str] = VARIANTS,
    spearman: Callable[[Array], float] | None = None,
    seed: int = 0,
    step: Callable[[str], object] = lambda name: None,
) -> tuple[list[Row], float | None]:
    """Replace the linear layers `names` of `model` by every variant at every ratio and measure; the model is restored.

    Every variant of a ratio has the same ranks, and every sketch of a weight the same seed. Returns the rows and the
    Spearman correlation of the dense model (None without `spearman`). `step` is called before each row with its name.
    """
    import torch

    from tensorfact.torch import LowRankLinear

    modules: dict[str, torch.nn.Linear] = {}
    weights: dict[str, Array] = {}
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, torch.nn.Linear):
            raise ValueError(f"names must be those of nn.Linear modules, {name!r} is a {type(module).__name__}")
        modules[name] = module
        weights[name] = module.weight.detach().float().numpy().copy()
    begin = time.perf_counter()
    exact = {name: np.linalg.svd(weight, full_matrices=False) for name, weight in weights.items()}
    exact_seconds = time.perf_counter() - begin
    dense = embed(model)
    rows = []
    try:
        for ratio in ratios:
            for variant in variants:
                step(f"{variant} at {ratio:g}")
                frobenius, spectral, seconds = [], [], exact_seconds if variant == EXACT else 0.0
                for i, (name, weight) in enumerate(weights.items()):
                    rank = uniform_rank(weight.shape, ratio)
                    start = time.perf_counter()
                    found = _factorise(weight, rank, variant, exact[name], (seed, i))
                    seconds += time.perf_counter() - start
                    error = weight - found.reconstruct()
                    frobenius.append(float(np.linalg.norm(error) / np.linalg.norm(weight)))
                    spectral.append(_spectral_norm(error) / float(exact[name][1][rank]))
                    model.set_submodule(name, LowRankLinear.from_factors(found, modules[name].bias))
                embeddings = embed(model)
                rows.append(
                    Row(
                        param_ratio=ratio,
                        variant=variant,
                        frobenius=float(np.mean(frobenius)),
                        spectral=float(np.mean(spectral)),
                        spectral_worst=max(spectral),
                        cosine=float(np.mean(np.sum(dense * embeddings, axis=1))),
                        spearman=None if spearman is None else spearman(embeddings),
                        seconds=seconds,
                    )
                )
    finally:
        for name, module in modules.items():
            model.set_submodule(name, module)
    return rows, None if spearman is None else spearman(dense)


def _factorise(
    weight: Array,
    rank: int,
    variant: str,
    exact: tuple[Array, Array, Array],
    seed: tuple[int, int],
) -> LowRank:
    if variant == EXACT:
        u, s, vh = exact
        return LowRank(u=u[:, :rank], s=s[:rank], vh=vh[:rank], error=math.nan)
    rng = np.random.default_rng(seed)
    if variant == DEFAULT:
        return randomized_svd(weight, rank=rank, rng=rng)
    return randomized_svd(weight, rank=rank, n_iter=POWERS[variant] - 1, n_oversamples=0, rng=rng)


def _spectral_norm(error: Array) -> float:
    """Largest singular value, from the Gram matrix of the short side: the largest one loses nothing by that."""
    gram = error @ error.T if error.shape[0] <= error.shape[1] else error.T @ error
    last = len(gram) - 1
    return float(np.sqrt(max(0.0, eigvalsh(gram, subset_by_index=[last, last])[0])))

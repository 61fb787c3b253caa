"""What a compressed model is worth: perplexity, accuracy, nearness of embeddings and features to the dense ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Scores = dict[str, float]


@torch.inference_mode()
def perplexity(model: Any, windows: Tensor, batch: int = 8) -> float:
    """exp of the mean loss of every token of each window (windows, length) but its first; no window sees another."""
    total = 0.0
    for ids in windows.split(batch):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].double()
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
    return float(np.exp(total / windows[:, 1:].numel()))


@dataclass(frozen=True)
class Perplexities:
    """Perplexity on each of some texts, as windows of token ids."""

    texts: Mapping[str, Tensor]
    batch: int = 8

    def __call__(self, model: Any) -> Scores:
        return {name: perplexity(model, windows, self.batch) for name, windows in self.texts.items()}


@torch.inference_mode()
def run_images(model: Any, images: Tensor, batch: int) -> list[Any]:
    """Outputs of a model, a batch each."""
    return [model(pixel_values=x) for x in images.split(batch)]


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers on each set of images with labels, in percent."""

    sets: Mapping[str, tuple[Tensor, Tensor]]

    def __call__(self, model: Any) -> Scores:
        return {
            name: 100 * float((torch.cat([o.logits for o in run_images(model, x, 128)]).argmax(1) == y).double().mean())
            for name, (x, y) in self.sets.items()
        }


class Features:
    """How near the features of a vision model are to those of the dense one: the first token's and the patches'."""

    def __init__(self, dense: Any, images: Tensor, batch: int = 8) -> None:
        self.images, self.batch = images, batch
        self.dense = self._features(dense)

    def _features(self, model: Any) -> Tensor:
        return torch.cat([out.last_hidden_state for out in run_images(model, self.images, self.batch)])

    def __call__(self, model: Any) -> Scores:
        ours = self._features(model)
        found = {}
        for name, at in (("cls", slice(0, 1)), ("patches", slice(1, None))):
            a, b = ours[:, at].double(), self.dense[:, at].double()
            found[f"{name}_cosine"] = float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean())
            found[f"{name}_error"] = float((a - b).norm() / b.norm())
        return found


class Sentences:
    """Spearman correlation on STS-B test in percent, and the mean cosine with the embeddings of the dense model."""

    def __init__(self, source: Path, file: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        from tensorfact.compress._sentences import read_stsb
        from tensorfact.compress._study import Embedder

        self.pairs = read_stsb(file)
        self.embed = Embedder(AutoTokenizer.from_pretrained(source), self.pairs.sentences)
        self.dense = self.embed(AutoModel.from_pretrained(source).eval())

    def __call__(self, model: Any) -> Scores:
        ours = self.embed(model)
        return {"spearman": self.pairs.spearman(ours), "cosine": float(np.mean(np.sum(ours * self.dense, axis=1)))}


def windows(ids: Sequence[int], length: int, count: int) -> Tensor:
    """The first `count` windows of `length` tokens, without overlap."""
    if len(ids) < count * length:
        raise ValueError(f"ids must hold {count} windows of {length} tokens, got {len(ids)} tokens")
    return torch.tensor(ids[: count * length]).view(count, length)

"""A small vision transformer of transformers, trained here on the handwritten digits that scikit-learn ships."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WIDTH, HIDDEN, LAYERS = 48, 192, 4


@dataclass(frozen=True, slots=True)
class Images:
    """Scaled images (N, 1, 8, 8) and labels, split the same way by every run of one seed."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def load(seed: int, share: float = 0.6) -> Images:
    """The 1797 digits, `share` of them for training."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x = torch.from_numpy((digits.images[order] / 8 - 1).astype(np.float32))[:, None]
    y = torch.from_numpy(digits.target[order])
    cut = int(share * len(y))
    return Images(x[:cut], y[:cut], x[cut:], y[cut:])


def build(seed: int) -> Any:
    """ViTForImageClassification: 16 patches of 2 x 2 pixels, 4 layers of width 48, hidden width 192."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    config = ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=HIDDEN,
        num_labels=10,
        initializer_range=0.1,
    )
    return ViTForImageClassification(config)


def batches(images: Images, epochs: int, rng: torch.Generator, size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled batches."""
    for _ in range(epochs):
        for rows in torch.randperm(len(images.train), generator=rng).split(size):
            yield images.train[rows], images.train_labels[rows]


def fit(
    model: Any, images: Images, *, epochs: int, lr: float, seed: int, loss: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Any:
    """Train all parameters by AdamW, learning rate up for a tenth of the steps and down along a cosine."""
    rng = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(images.train) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)

    def share(step: int) -> float:
        warm = max(1, steps // 10)
        return (step + 1) / warm if step < warm else 0.5 + 0.5 * float(np.cos(np.pi * (step - warm) / (steps - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    model.train()
    for x, y in batches(images, epochs, rng):
        optimizer.zero_grad()
        loss(model(x).logits, y, x).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def teach(images: Images, *, epochs: int, seed: int) -> Any:
    """The dense model, from scratch."""
    return fit(
        build(seed), images, epochs=epochs, lr=2e-3, seed=seed, loss=lambda z, y, x: nn.functional.cross_entropy(z, y)
    )


def distil(student: Any, teacher: Any, images: Images, *, epochs: int, seed: int, temperature: float = 2.0) -> Any:
    """All parameters of `student` towards the teacher's outputs (Hinton, Vinyals, Dean, arXiv 1503.02531)."""

    def loss(logits: Tensor, _: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = nn.functional.softmax(teacher(x).logits / temperature, dim=-1)
        soft = nn.functional.log_softmax(logits / temperature, dim=-1)
        return temperature**2 * nn.functional.kl_div(soft, target, reduction="batchmean")

    return fit(student, images, epochs=epochs, lr=5e-4, seed=seed, loss=loss)


@torch.no_grad()
def measure(model: Any, teacher: Any, images: Images) -> dict[str, float]:
    """Accuracy on the test images, share of them where the teacher says the same, distance of the logits."""
    mine, its = model(images.test).logits, teacher(images.test).logits
    return {
        "accuracy": float((mine.argmax(-1) == images.test_labels).float().mean()),
        "agreement": float((mine.argmax(-1) == its.argmax(-1)).float().mean()),
        "logits": float((mine - its).norm() / its.norm()),
    }

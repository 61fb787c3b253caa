"""The models of the experiment: which weights are their MLPs, how they are calibrated and scored, and what is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.fips.arms import ARMS, FEW_BITS, MAIN, RATIOS, stored_bits

GATED = r"re:\.mlp\.(gate|up|down)_proj$"


@dataclass(frozen=True)
class Measure:
    """One score: its name in the results, in words, and whether more of it is better."""

    key: str
    words: str
    digits: int
    higher: bool = True


@dataclass(frozen=True)
class Subject:
    """What is known of a model before anything is loaded."""

    name: str
    targets: str
    measures: tuple[Measure, ...]
    protocol: str
    ratios: tuple[float, ...] = RATIOS
    arms: tuple[str, ...] = MAIN
    further: tuple[str, ...] = ()
    further_ratio: float = 0.5
    bits: int = 32
    few: tuple[tuple[str, int], ...] = FEW_BITS
    low_rank: Mapping[str, Any] = field(default_factory=dict)

    def few_bits(self) -> list[tuple[str, float]]:
        """Arms in few bits with the shares of the bytes that they keep."""
        return [(arm, share(bits, self.bits)) for arm, bits in self.few]

    def tasks(self) -> list[tuple[str, float]]:
        """All arms with their ratios, the quick ones first."""
        found = [(arm, ratio) for arm in self.arms for ratio in self.ratios] + self.few_bits()
        found += [(arm, self.further_ratio) for arm in self.further]
        return sorted(found, key=lambda task: ARMS[task[0]].refine)


def share(bits: int, width: int) -> float:
    """Share of the bytes of weights of `width` bits that `bits` a number take, with a hundredth to spare."""
    return math.ceil(1010 * stored_bits(bits) / width) / 1000


PERPLEXITY = "perplexity on WikiText-2 test"
SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(
            "vit_cifar10",
            r"re:\.fc[12]$",
            (
                Measure("lossless", "accuracy on 3,488 lossless images, %", 2),
                Measure("jpeg", "accuracy on 5,000 JPEG test images, %", 2),
            ),
            "ViT of 811,146 parameters, 6 post-norm blocks of width 128, in float32. Calibrated on 512 of the 4,000 "
            "lossless images (which are training images of the model); scored on the other 3,488 and on every second "
            "JPEG test image.",
            low_rank={"rank_multiple": 1},
        ),
        Subject(
            "stories260K",
            GATED,
            (
                Measure("stories", "perplexity on stories of its own", 3, higher=False),
                Measure("wikitext2", PERPLEXITY, 2, higher=False),
            ),
            "Llama of 260,032 parameters, 5 blocks of width 64, context 512, in float32. Calibrated on 64 windows of "
            "512 tokens that the dense model told (sampled as they come, seed 0); scored on 64 further ones and on "
            "the first 64 windows of 512 tokens of WikiText-2 test. Other text: 64 windows of WikiText-2 validation.",
            further=("whitened SVD, refined, other text", "FiPS, refined, other text"),
            low_rank={"rank_multiple": 1},
        ),
        Subject(
            "all-MiniLM-L6-v2",
            r"re:\.(intermediate|(?<!attention\.)output)\.dense$",
            (
                Measure("spearman", "STS-B test Spearman, %", 2),
                Measure("cosine", "mean cosine to the dense embeddings", 3),
            ),
            "Sentence encoder of 22.7 M parameters, 6 blocks of width 384, in float32. Calibrated on 512 STS-B "
            "training sentences without their scores; scored on STS-B test. Other text: AG News.",
            ratios=(0.8, 0.67, 0.5, 0.4, 0.33),
            further=(
                "FiPS, refined, teacher inputs",
                "FiPS, refined, other text",
                "whitened SVD, refined, other text",
                "FiPS, one basis, refined",
                "FiPS, 75 % sparse, refined",
                "FiPS as published, refined",
            ),
        ),
        Subject(
            "vit_s14",
            r"re:\.mlp\.fc[12]$",
            (
                Measure("cls_cosine", "mean cosine of the CLS features with the dense ones", 4),
                Measure("patches_cosine", "mean cosine of the patch features", 4),
                Measure("cls_error", "relative error of the CLS features", 3, higher=False),
                Measure("patches_error", "relative error of the patch features", 3, higher=False),
            ),
            "ViT-S/14 of the DINOv2 architecture, 22.1 M parameters, 12 blocks of width 384, in float16. Calibrated on "
            "64 ImageNet images of 224 pixels, scored on 96 others (seed 0).",
            bits=16,
        ),
        Subject(
            "SmolLM2-135M",
            GATED,
            (Measure("wikitext2", PERPLEXITY, 2, higher=False),),
            "SmolLM2-135M-Instruct, 30 blocks of width 576, dequantised from Q4_1 to float16. Calibrated on 32 windows "
            "of 512 tokens of WikiText-2 validation; scored on the first 6,144 tokens of WikiText-2 test in windows of "
            "512, not on all of it. Other text: AG News.",
            ratios=(0.8, 0.67, 0.5),
            bits=16,
        ),
    )
}

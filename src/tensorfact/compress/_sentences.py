"""Real English sentences and scored pairs that need no network."""

from __future__ import annotations

import lzma
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tensorfact.compress._inputs import SENTENCES

__all__ = ["ScoredPairs", "offline_sentences", "read_stsb"]


def offline_sentences(count: int = 256) -> list[str]:
    """`count` distinct sentences: those of this library, then sentences of the Python language reference.

    Every Python ships the reference as `pydoc_data.topics`. The sentences are taken at even distances, so they cover it
    and do not depend on a seed.
    """
    if count <= len(SENTENCES):
        return list(SENTENCES[:count])
    from pydoc_data.topics import topics

    found: dict[str, None] = {}
    for key in sorted(topics):
        for paragraph in re.split(r"\n\s*\n", topics[key]):
            for sentence in re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(paragraph.split())):
                # Plain prose only: words and commas, no code, no mark-up, not too short to mean something.
                if 7 <= len(sentence.split()) <= 28 and re.fullmatch(r"[A-Z][a-z]+[A-Za-z ,;:'\-]*[.?!]", sentence):
                    found[sentence] = None
    texts = list(found)
    wanted = min(count - len(SENTENCES), len(texts))
    return [*SENTENCES, *(texts[i * len(texts) // wanted] for i in range(wanted))]


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Pairs of sentences with the similarity that people gave them.

    `sentences` are the distinct ones; `first` and `second` index them, one pair a score.
    """

    sentences: tuple[str, ...]
    first: npt.NDArray[np.intp]
    second: npt.NDArray[np.intp]
    scores: npt.NDArray[np.float64]

    def spearman(self, embeddings: npt.NDArray[np.float32]) -> float:
        """Rank correlation, in percent, of the cosines of unit `embeddings` (sentences, width) with the scores."""
        from scipy.stats import spearmanr

        cosines = np.sum(embeddings[self.first] * embeddings[self.second], axis=1)
        return 100.0 * float(spearmanr(cosines, self.scores).statistic)


def read_stsb(path: str | Path) -> ScoredPairs:
    """Read a file of the STS benchmark: tab-separated, score in column 5, sentences in 6 and 7; ``.xz`` or plain.

    Raises
    ------
    ValueError
        If the file does not exist or has a line of another form.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"stsb must be a file of the STS benchmark, got {str(path)!r}")
    raw = path.read_bytes()
    text = (lzma.decompress(raw) if path.suffix == ".xz" else raw).decode("utf-8")
    # The benchmark has no quoting and may have stray control characters, so only a newline ends a line.
    rows = [line.split("\t") for line in text.split("\n") if line.strip()]
    try:
        pairs = [(float(row[4]), row[5].strip(), row[6].strip()) for row in rows]
    except (IndexError, ValueError) as error:
        raise ValueError(f"stsb must have a score in column 5 and sentences in 6 and 7, got {str(path)!r}") from error
    if not pairs:
        raise ValueError(f"stsb must hold at least one pair, got {str(path)!r}")
    index = {sentence: i for i, sentence in enumerate(dict.fromkeys(s for _, a, b in pairs for s in (a, b)))}
    return ScoredPairs(
        sentences=tuple(index),
        first=np.array([index[a] for _, a, _ in pairs]),
        second=np.array([index[b] for _, _, b in pairs]),
        scores=np.array([score for score, _, _ in pairs]),
    )

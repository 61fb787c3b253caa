"""IMDB and AG News as token ids: from a folder, or from shared data beside the repository.

The tokenizer (byte-level BPE) is trained on what the model is trained on, and on nothing else.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import lzma
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench import resumable

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = ROOT.parent / "shared" / "data" / "cls"
PAD, UNKNOWN = 0, 1
Rows = list[tuple[int, str]]
WHOLE = "ag_news_train.csv.xz"  # 120,000 rows (class from 1, title, description), as the test file


@dataclass(frozen=True)
class Task:
    """One data set and what the model for it has: classes, width, and files by part."""

    name: str
    classes: int
    width: int
    files: tuple[str, ...]


TASKS = {
    "imdb": Task("imdb", 2, 128, ("imdb50k.jsonl.xz",)),
    "ag_news": Task("ag_news", 4, 256, ("ag_news_train_subset.csv.xz", "ag_news_test.csv.xz")),
}


@dataclass(frozen=True)
class Part:
    """Texts as ids (n, length), padded with `PAD`, and classes (n,)."""

    ids: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and classes of some texts, cut at the longest of them."""
        ids = self.ids[index].long()
        longest = int((ids != PAD).sum(1).max())
        return ids[:, :longest], self.labels[index]

    def head(self, count: int | None) -> Part:
        """The first ``count`` texts; all for None."""
        return Part(self.ids[:count], self.labels[:count])


@dataclass(frozen=True)
class Data:
    """What is trained on, what chooses the checkpoint, and what is looked at once."""

    task: Task
    train: Part
    validation: Part
    test: Part


def find(task: Task, folder: Path | None = None) -> list[Path] | None:
    """Files of a task, or None where they are not all there; all of AG News goes before a part of it."""
    files = [(folder or SHARED) / name for name in task.files]
    whole = (folder or SHARED) / WHOLE
    if task.name == "ag_news" and whole.exists():
        files[0] = whole
    return files if all(file.exists() for file in files) else None


def read_rows(task: Task, files: list[Path]) -> tuple[Rows, Rows]:
    """Training and test rows (class, text), as they are in the files."""
    texts = [lzma.decompress(file.read_bytes()).decode() for file in files]
    if task.name == "imdb":
        rows = [json.loads(line) for line in texts[0].split("\n") if line]
        parts = ([(r["label"], clean(r["text"])) for r in rows if r["split"] == s] for s in ("train", "test"))
        train, test = parts
        return train, test
    first, second = (list(csv.reader(io.StringIO(text))) for text in texts)
    if files[0].name == WHOLE:
        return news(first), news(second)
    return [(int(label), clean(text)) for label, text, _ in first[1:]], news(second)


def news(rows: list[list[str]]) -> Rows:
    """Rows (class from 1, title, description)."""
    return [(int(label) - 1, clean(f"{title} . {text}")) for label, title, text in rows]


def clean(text: str) -> str:
    """Entities and markup out, small letters, one blank between words."""
    text = re.sub(r"<[^<>]{1,40}>", " ", html.unescape(text).replace("\\", " "))
    return " ".join(text.lower().split())


def split(rows: Rows, share: float, seed: int = 0) -> tuple[Rows, Rows]:
    """All but a share of the rows, and that share of every class; both shuffled."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    held: dict[int, int] = {}
    for label, _ in rows:
        held[label] = held.get(label, 0) + 1
    held = {label: round(share * count) for label, count in held.items()}
    kept, out = [], []
    for index in order:
        label = rows[index][0]
        if held[label] > 0:
            held[label] -= 1
            out.append(rows[index])
        else:
            kept.append(rows[index])
    return kept, out


def train_tokenizer(texts: list[str], vocabulary: int) -> object:
    """Byte-level BPE of these texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE(unk_token="[UNK]"))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["[PAD]", "[UNK]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(texts, trainer)
    return found


def encode(tokenizer: object, rows: Rows, length: int) -> Part:
    """Ids of the first ``length`` tokens of each text."""
    ids = torch.full((len(rows), length), PAD, dtype=torch.int32)
    for start in range(0, len(rows), 1000):
        part = [text for _, text in rows[start : start + 1000]]
        for row, found in enumerate(tokenizer.encode_batch(part), start):  # type: ignore[attr-defined]
            tokens = found.ids[:length] or [UNKNOWN]
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
    return Part(ids, torch.tensor([label for label, _ in rows]))


def load(
    task: Task,
    cache: Path,
    folder: Path | None = None,
    *,
    vocabulary: int = 30_000,
    length: int = 128,
    held: float = 0.1,
) -> Data:
    """The task as ids; tokenizing is done once, its result is kept in ``cache``.

    Raises
    ------
    FileNotFoundError
        The files are neither in ``folder`` nor in shared data.
    """
    files = find(task, folder)
    if files is None:
        raise FileNotFoundError(f"{', '.join(task.files)} must be in {folder or SHARED}, or give their folder: --data")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    stamp = f"{task.name}-{vocabulary}-{length}-{held:g}-{digest.hexdigest()[:12]}"
    stored = cache / f"{stamp}.tokens"
    with resumable.locked(stored):
        if not stored.exists():
            rows, test = read_rows(task, files)
            train, validation = split(rows, held)
            tokenizer = train_tokenizer([text for _, text in train], vocabulary)
            tensors = {}
            for name, part in (("train", train), ("validation", validation), ("test", split(test, 0.0)[0])):
                found = encode(tokenizer, part, length)
                tensors |= {f"{name}.ids": found.ids, f"{name}.labels": found.labels}
            resumable.write(stored, tensors, {"vocabulary": tokenizer.get_vocab_size()})  # type: ignore[attr-defined]
    tensors, _ = resumable.read(stored)
    parts = (Part(tensors[f"{name}.ids"], tensors[f"{name}.labels"]) for name in ("train", "validation", "test"))
    return Data(task, *parts)

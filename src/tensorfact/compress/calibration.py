"""Calibration data: what a user has, turned into batches of model inputs, and checked before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tensorfact.compress._images import is_images, read_images
from tensorfact.compress._inputs import pad
from tensorfact.compress._texts import context_of, read_texts, tokenize
from tensorfact.compress._types import is_positive_int

if TYPE_CHECKING:
    import torch

__all__ = ["Batches", "Calibration", "open_calibration"]

_POSITIONS = 2048  # in a batch: bounds what training a block keeps for its gradients
_MOST = 32  # sequences or images in a batch
_LEAST = 8  # batches, where there are so many samples: some are held out, and training needs to mix


@dataclass(frozen=True)
class Calibration:
    """Unlabelled samples that a compression may learn from.

    Parameters
    ----------
    data : path, list of str, tensor, mapping, or iterable of mappings or tensors
        A ``.txt`` file (a line a text for encoders, one long text for language models), ``.jsonl``, ``.tsv`` or
        ``.csv`` (each may end in ``.gz`` or ``.xz``); a ``.safetensors`` file whose keys are inputs of the model and
        whose first axis counts samples; a folder or a tar archive of images, which go through the processor of the
        checkpoint; texts; or batches of inputs as the model takes them.
    samples : int
        Most sequences or images to use, taken at even distances.
    length : int, optional
        Tokens of the longest sequence. None is what the model takes, at most 2048. Longer texts are cut into windows;
        for language models all texts are joined and cut.
    batch : int, optional
        Sequences or images in a batch. None makes batches of about 2048 tokens, or of 8 images.
    column : str, int or list of them, optional
        Which fields of a ``.jsonl`` object (``"text"``) or columns of a table (by name, or by number from 0) are texts.

    Notes
    -----
    Refinement fits the domain of the samples: mix domains, and measure on another one.
    """

    data: Any
    _: KW_ONLY
    samples: int = 256
    length: int | None = None
    batch: int | None = None
    column: Any = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("samples", "length", "batch"):
            value = getattr(self, name)
            if not is_positive_int(value) and not (value is None and name != "samples"):
                raise ValueError(f"{name} of the calibration must be an integer >= 1, got {value!r}")


@dataclass(frozen=True, slots=True)
class Batches:
    """Inputs of the model, a batch each, with the masks of real positions (None where every position counts)."""

    inputs: tuple[dict[str, torch.Tensor], ...]
    masks: tuple[torch.Tensor | None, ...]
    description: str
    samples: int
    positions: int
    notes: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 of all inputs."""
        import torch

        total = hashlib.sha256()
        for batch in self.inputs:
            for name in sorted(batch):
                values = batch[name].detach().contiguous().cpu()
                total.update(f"{name}{tuple(values.shape)}{values.dtype}".encode())
                total.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


def open_calibration(calibration: Any, directory: Path, model: Any) -> Batches:
    """Return checked batches for a loaded model.

    Parameters
    ----------
    calibration : Calibration or its `data`
        What the user gave.
    directory : Path
        The checkpoint: its tokenizer or image processor is used, nothing is fetched.
    model : transformers.PreTrainedModel
        Says what its inputs are and how long they may be.

    Raises
    ------
    ValueError
        If there is no data, it is not of a kind that the model takes, does not fit its vocabulary or context, or has
        NaN or infinite values.
    """
    given = calibration if isinstance(calibration, Calibration) else Calibration(data=calibration)
    name = getattr(model, "main_input_name", "input_ids")
    data = given.data
    if isinstance(data, str) and not Path(data).exists():
        raise ValueError(f"calibration must be an existing file or folder, or a list of texts, got {data!r}")
    path = Path(data) if isinstance(data, str | Path) else None
    if path is not None and not path.exists():
        raise ValueError(f"calibration must be an existing file or folder, got {str(path)!r}")
    if path is not None and path.suffix == ".safetensors":
        found = _given_batches(_read_tensors(path), name, given)
    elif path is not None and is_images(path):
        _require(name == "pixel_values", f"calibration must be text for this model, got images in {str(path)!r}")
        found = _image_batches(read_images(path, directory, given.samples), given)
    elif path is not None or (isinstance(data, Sequence) and data and isinstance(data[0], str)):
        _require(name == "input_ids", f"calibration must give {name} for this model, got text")
        texts = read_texts(path, given.column) if path is not None else list(data)
        found = _text_batches(texts, directory, model, given)
    else:
        found = _given_batches(data, name, given)
    _check(found, model, name)
    return found


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _text_batches(texts: Sequence[Any], directory: Path, model: Any, given: Calibration) -> Batches:
    rows, description, notes = tokenize(texts, directory, model, samples=given.samples, length=given.length)
    rows.sort(key=len)  # like lengths together: little padding
    positions = sum(map(len, rows))
    size = given.batch or _batch_size(len(rows), positions / len(rows))
    inputs: list[dict[str, torch.Tensor]] = []
    masks: list[torch.Tensor | None] = []
    for start in range(0, len(rows), size):
        ids, mask = pad(rows[start : start + size])
        batch = {"input_ids": ids, "attention_mask": mask}
        if getattr(model.config, "is_encoder_decoder", False):
            batch["decoder_input_ids"] = ids
        inputs.append(batch)
        masks.append(None if bool(mask.all()) else mask.bool())
    return Batches(tuple(inputs), tuple(masks), description, len(rows), positions, notes)


def _image_batches(images: torch.Tensor, given: Calibration) -> Batches:
    size = given.batch or max(1, min(_LEAST, len(images) // _LEAST))
    inputs = tuple({"pixel_values": images[start : start + size]} for start in range(0, len(images), size))
    shape = " x ".join(map(str, images.shape[2:]))
    return Batches(inputs, (None,) * len(inputs), f"{len(images)} images, {shape}", len(images), len(images))


def _batch_size(count: int, mean: float) -> int:
    return max(1, min(_MOST, int(_POSITIONS // mean), count // _LEAST))


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # the errors of safetensors have no class of their own that is stable
        raise ValueError(f"calibration must be a readable safetensors file, got {str(path)!r}: {error}") from error


def _given_batches(data: Any, name: str, given: Calibration) -> Batches:
    """Take batches as they are; one table of samples (a mapping or a tensor) is cut into batches."""
    import torch

    if isinstance(data, torch.Tensor):
        data = {name: data}
    if isinstance(data, Mapping):
        batches = _cut({key: torch.as_tensor(value) for key, value in data.items()}, given)
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
        batches = _taken(data, name, given.samples)
    else:
        raise ValueError(
            "calibration must be a path, texts, a mapping of inputs, or an iterable of batches, "
            f"got {type(data).__name__}"
        )
    if not batches or not any(len(next(iter(batch.values()))) for batch in batches):
        raise ValueError("calibration must hold at least one sample, got none")
    kept, samples = [], 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        if samples < given.samples and size:
            kept.append({key: value[: given.samples - samples] for key, value in batch.items()})
            samples += len(next(iter(kept[-1].values())))
    masks = [batch.get("attention_mask") for batch in kept]
    bools = tuple(None if mask is None or mask.ndim != 2 or bool(mask.all()) else mask.bool() for mask in masks)
    positions = sum(
        int(mask.sum()) if mask is not None else batch[name].shape[: 2 if name == "input_ids" else 1].numel()
        for mask, batch in zip(bools, kept, strict=True)
        if name in batch or mask is not None
    )
    return Batches(tuple(kept), bools, f"{samples} samples of the caller", samples, positions)


def _taken(data: Iterable[Any], name: str, samples: int) -> list[dict[str, torch.Tensor]]:
    """Read batches until there are enough samples: the rest of a stream is left alone."""
    batches: list[dict[str, torch.Tensor]] = []
    for item in data:
        batches.append(_as_batch(item, name))
        samples -= len(next(iter(batches[-1].values())))
        if samples <= 0:
            break
    return batches


def _cut(table: dict[str, torch.Tensor], given: Calibration) -> list[dict[str, torch.Tensor]]:
    lengths = {len(value) if value.ndim else 0 for value in table.values()}
    if len(lengths) != 1 or not (count := lengths.pop()):
        raise ValueError(
            "calibration must hold tensors with one first axis, that of the samples, got "
            f"{ {key: tuple(value.shape) for key, value in table.items()} }"
        )
    wanted = min(given.samples, count)
    picked = [i * count // wanted for i in range(wanted)]
    first = next(iter(table.values()))
    size = given.batch or _batch_size(wanted, first.shape[1] if first.ndim == 2 else _POSITIONS / _LEAST)
    return [
        {key: value[picked[start : start + size]] for key, value in table.items()} for start in range(0, wanted, size)
    ]


def _as_batch(item: Any, name: str) -> dict[str, torch.Tensor]:
    import torch

    if isinstance(item, torch.Tensor):
        item = {name: item}
    if not isinstance(item, Mapping):
        raise ValueError(f"calibration must yield mappings or tensors, got {type(item).__name__}")
    batch = {key: torch.as_tensor(value) for key, value in item.items()}
    if not batch or not all(value.ndim for value in batch.values()):
        raise ValueError(
            "calibration must yield batches whose tensors have a first axis of samples, got "
            f"{ {key: tuple(value.shape) for key, value in batch.items()} }"
        )
    return batch


def _check(batches: Batches, model: Any, name: str) -> None:
    """Refuse what the model cannot take, by name and number."""
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings if name == "input_ids" else 0
    context = context_of(model)
    for batch in batches.inputs:
        if name not in batch and "inputs_embeds" not in batch:
            raise ValueError(f"calibration must give {name} for this model, got {', '.join(sorted(batch))}")
        for key, values in batch.items():
            if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                raise ValueError(f"calibration must be finite, got NaN or infinity in {key}")
        ids = batch.get("input_ids")
        if ids is None or name != "input_ids":
            continue
        if ids.is_floating_point() or ids.ndim != 2:
            raise ValueError(f"input_ids of the calibration must be integers (samples, tokens), got {ids.dtype}")
        if ids.shape[1] > context:
            raise ValueError(
                f"calibration must not be longer than the model's context of {context} tokens, got {ids.shape[1]}"
            )
        if int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
            raise ValueError(
                f"input_ids of the calibration must be from 0 to {vocabulary - 1}, got {int(ids.min())} to "
                f"{int(ids.max())}"
            )

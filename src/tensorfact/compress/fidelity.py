"""How close a compressed model is to its source, and how fast: measured, with what was measured in words.

torch and transformers are imported inside the functions; nothing here touches the network or runs remote code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tensorfact.compress._inputs import Inputs, prepare
from tensorfact.compress._latency import interleaved, measure_layers
from tensorfact.compress.records import Fidelity, Latency, LayerRecord

if TYPE_CHECKING:
    import torch

__all__ = ["Evaluation", "compare_outputs", "evaluate", "measure_latency", "measure_layers"]

_WHOLE_MODEL_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What `evaluate` measured; None, and a line in `notes`, where something could not be measured."""

    fidelity: Fidelity | None
    latency: Latency | None
    layers: tuple[LayerRecord, ...]
    notes: tuple[str, ...] = ()


def evaluate(
    source: str | Path | Any,
    compressed: str | Path | Any,
    layers: Sequence[LayerRecord] = (),
    method: str = "lowrank",
    *,
    seed: int = 0,
) -> Evaluation:
    """Compare outputs and time both models and every distinct layer, loading each model once.

    Never raises for a model that cannot be loaded or run: the reason goes into `Evaluation.notes`.

    Parameters
    ----------
    source, compressed : path or torch.nn.Module
        The dense model and the compressed one. Paths are loaded in float32.
    layers : sequence of LayerRecord
        Records to complete with `latency_before_ms` and `latency_after_ms`.
    method : str
        Name of the method that made them.
    seed : int
        Seed of the inputs where the checkpoint has no tokenizer.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        note = "outputs and latency were not measured: torch is not installed (pip install 'tensorfact[hf]')"
        return Evaluation(fidelity=None, latency=None, layers=tuple(layers), notes=(note,))
    timed, layer_input = tuple(layers), ""
    fidelity: Fidelity | None = None
    latency: Latency | None = None
    notes: tuple[str, ...] = ()
    try:
        timed, layer_input = measure_layers(layers, method)
        dense, small, inputs = prepare(source, compressed, None, seed)
        fidelity = _compare(dense, small, inputs)
        latency = dataclasses.replace(_time_models(dense, small, inputs, repeats=7), layer_input=layer_input)
    except Exception as error:  # any model's own code runs here; a finished compression must not be lost to it
        notes = (f"the two models were not compared: {type(error).__name__}: {' '.join(str(error).split())[:300]}",)
    return Evaluation(fidelity=fidelity, latency=latency, layers=timed, notes=notes)


def compare_outputs(
    source: str | Path | Any,
    compressed: str | Path | Any,
    *,
    inputs: Mapping[str, torch.Tensor] | None = None,
    seed: int = 0,
) -> Fidelity:
    """Compare the outputs of two models on the same inputs.

    Parameters
    ----------
    source, compressed : path or torch.nn.Module
        The dense model and the compressed one. Paths are loaded in float32, modules are taken as they are.
    inputs : mapping of str to tensor, optional
        Keyword arguments of the forward pass. By default two dozen English sentences through the checkpoint's own
        tokenizer, seeded token ids where it has none, smooth synthetic images for a vision model.
    seed : int
        Seed of synthetic inputs.

    Returns
    -------
    Fidelity
        ``relative_error`` (Frobenius, over all real positions) and ``cosine_mean`` (mean over positions). For logits
        also ``top1_agreement`` and ``kl_mean`` (nats, source against compressed), and for causal language models on
        text ``perplexity_before`` and ``perplexity_after``. For hidden states of text ``sentence_cosine_mean`` (mean
        pooling).

    Raises
    ------
    ValueError
        If there is no default input for the model, or its output holds neither logits nor hidden states.
    """
    return _compare(*prepare(source, compressed, inputs, seed))


def measure_latency(
    source: str | Path | Any,
    compressed: str | Path | Any,
    *,
    inputs: Mapping[str, torch.Tensor] | None = None,
    repeats: int = 7,
    seed: int = 0,
) -> Latency:
    """Time one forward pass of both models, interleaved; medians in milliseconds. Arguments as in `compare_outputs`.

    With several batches of inputs, as by default for sentences, one pass is the mean over a round of all of them.
    """
    return _time_models(*prepare(source, compressed, inputs, seed), repeats=repeats)


def _time_models(dense: Any, small: Any, inputs: Inputs, *, repeats: int) -> Latency:
    import torch

    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")

    def forward(model: Any) -> Callable[[], object]:
        return lambda: [model(**batch) for batch in inputs.batches]

    with torch.inference_mode():
        (before, after), done = interleaved(
            [forward(dense), forward(small)], repeats=repeats, seconds=_WHOLE_MODEL_SECONDS
        )
    count = len(inputs.batches)
    words = f"{inputs.description}, {_dtype(small)}" + (f", mean of {count} batches" if count > 1 else "")
    threads = torch.get_num_threads()
    return Latency(before_ms=before / count, after_ms=after / count, input=words, threads=threads, repeats=done)


def _compare(dense: Any, small: Any, inputs: Inputs) -> Fidelity:
    import torch

    totals: dict[str, float] = {}
    name = ""
    with torch.inference_mode():
        for batch, mask in zip(inputs.batches, inputs.masks, strict=True):
            name, a = _output(dense(**batch))
            _, b = _output(small(**batch))
            for key, value in _sums(name, a.float(), b.float(), mask, batch, causal=inputs.language and _causal(dense)):
                totals[key] = totals.get(key, 0.0) + value
    metrics = {
        "relative_error": (totals["difference"] / totals["norm"]) ** 0.5 if totals["norm"] else 0.0,
        "cosine_mean": totals["cosine"] / totals["positions"],
    }
    if "kl" in totals:
        metrics["top1_agreement"] = totals["top1"] / totals["positions"]
        metrics["kl_mean"] = totals["kl"] / totals["positions"]
    if "sentence_cosine" in totals:
        metrics["sentence_cosine_mean"] = totals["sentence_cosine"] / totals["sentences"]
    if "predicted" in totals:
        metrics["perplexity_before"] = float(np.exp(totals["loss_before"] / totals["predicted"]))
        metrics["perplexity_after"] = float(np.exp(totals["loss_after"] / totals["predicted"]))
    if not all(np.isfinite(value) for value in metrics.values()):
        raise ValueError(f"the outputs must be finite, got {metrics}")
    return Fidelity(input=f"{inputs.description}, {_dtype(small)}", output=name, metrics=metrics)


def _sums(
    name: str,
    a: torch.Tensor,
    b: torch.Tensor,
    mask: torch.Tensor | None,
    batch: Mapping[str, torch.Tensor],
    *,
    causal: bool,
) -> Iterator[tuple[str, float]]:
    """Sums over one batch from which the means over all batches follow. Padding is left out."""
    import torch
    from torch.nn.functional import cosine_similarity, log_softmax, nll_loss

    positional = mask is not None and a.shape[:2] == mask.shape
    flat_a, flat_b = (a[mask], b[mask]) if positional else (a.flatten(0, -2), b.flatten(0, -2))
    yield "difference", float((flat_a - flat_b).double().square().sum())
    yield "norm", float(flat_a.double().square().sum())
    yield "cosine", float(cosine_similarity(flat_a, flat_b, dim=-1).double().sum())
    yield "positions", float(len(flat_a))
    if name == "last_hidden_state" and positional and mask is not None:
        weight = (mask / mask.sum(1, keepdim=True))[..., None]
        yield "sentence_cosine", float(cosine_similarity((a * weight).sum(1), (b * weight).sum(1), dim=-1).sum())
        yield "sentences", float(len(mask))
    if name == "logits" and a.shape[-1] > 1:
        log_p, log_q = log_softmax(flat_a, -1), log_softmax(flat_b, -1)
        yield "top1", float((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        yield "kl", float((log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0).double().sum())
        if causal and positional and mask is not None:
            target = torch.where(mask, batch["input_ids"], -100)[:, 1:].flatten()  # -100: ignored by nll_loss
            for key, logits in (("loss_before", a), ("loss_after", b)):
                rows = log_softmax(logits[:, :-1].flatten(0, 1), -1)
                yield key, float(nll_loss(rows, target, ignore_index=-100, reduction="sum"))
            yield "predicted", float((target != -100).sum())


def _output(result: Any) -> tuple[str, torch.Tensor]:
    import torch

    for name in ("logits", "last_hidden_state"):
        value = getattr(result, name, None)
        if isinstance(value, torch.Tensor):
            return name, value
    if isinstance(result, torch.Tensor) and result.ndim >= 2:
        return "output", result
    raise ValueError(f"the model must return logits or last_hidden_state, got {type(result).__name__}")


def _causal(model: Any) -> bool:
    return type(model).__name__.endswith(("ForCausalLM", "LMHeadModel"))


def _dtype(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")

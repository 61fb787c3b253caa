"""One training: AdamW, warm-up and cosine; resumable after a kill at any moment, to the same bits as if undisturbed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import resumable
from bench.picogpt.data import Corpus, batch
from bench.picogpt.model import STD, PicoGPT
from bench.resumable import Log
from tensorfact.torch import MPOLinear


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a model is trained; the defaults are the published ones."""

    steps: int = 2000
    lr: float = 3e-4
    batch: int = 32
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    decay_all: bool = True  # also LayerNorm and biases
    scale_cores: bool = False  # learning rates of MPO cores in proportion to their entries, as seen from dense weights
    clip: float = 1.0
    evaluate_every: int = 200
    save_every: int = 50
    chunk: int = 8  # windows at once: gradients of a batch are summed over such parts, which stay near the cache

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine to zero."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))

    def short(self, steps: int, lr: float, evaluate_every: int) -> Protocol:
        """The same for a fine-tuning: warm-up is shortened to keep its share."""
        return replace(self, steps=steps, lr=lr, warmup=max(1, min(100, steps // 20)), evaluate_every=evaluate_every)

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


@torch.no_grad()
def evaluate(model: PicoGPT, tokens: Tensor, windows: int = 8) -> dict[str, float]:
    """Mean loss (nats) and argmax accuracy over every character of ``tokens`` but the first.

    Windows of the model's context, one after another without overlap, the last one shorter: no chance in it.
    """
    model.eval()
    weights, context = model.weights(), model.size.context
    whole = (len(tokens) - 1) // context * context
    inputs, targets = tokens[:whole].view(-1, context), tokens[1 : whole + 1].view(-1, context)
    parts = list(zip(inputs.split(windows), targets.split(windows), strict=True))
    if whole < len(tokens) - 1:
        parts.append((tokens[None, whole:-1], tokens[None, whole + 1 :]))
    loss, right = 0.0, 0
    for x, y in parts:
        logits = model(x, weights).flatten(0, 1)
        loss += float(functional.cross_entropy(logits, y.flatten(), reduction="sum"))
        right += int((logits.argmax(-1) == y.flatten()).sum())
    model.train()
    return {"loss": loss / (len(tokens) - 1), "accuracy": right / (len(tokens) - 1)}


class Trainer:
    """A model, its optimiser, the generator of its batches and the log: all that a checkpoint holds."""

    def __init__(self, model: PicoGPT, corpus: Corpus, protocol: Protocol, seed: int) -> None:
        self.model, self.corpus, self.protocol = model, corpus, protocol
        self.rng = torch.Generator().manual_seed(seed)
        self.log: Log = {
            "seed": seed,
            "protocol": protocol.plain(),
            "step": 0,
            "train": [],
            "validation": [],
            "cpu_seconds": 0.0,
        }
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        spared = {id(p) for p in unweighted(model)} if not protocol.decay_all else set()
        scales = core_scales(model) if protocol.scale_cores else {}
        for parameter in model.parameters():
            scale = scales.get(id(parameter), 1.0)
            decay = 0.0 if id(parameter) in spared else protocol.weight_decay / scale  # the same shrinking a step
            groups.setdefault((scale, decay), []).append(parameter)
        settings = [{"params": found, "scale": s, "weight_decay": decay} for (s, decay), found in groups.items()]
        self._began = 0.0
        self.optimizer = torch.optim.AdamW(settings, lr=protocol.lr, betas=protocol.betas, fused=True)

    def advance(self) -> float:
        """One step; returns the mean training loss of its batch before the step.

        Every layer's dense weight is formed once, the batch runs through these in parts, and the sum of the parts'
        gradients goes back into the parameters. So all kinds of layers cost the same, up to the forming.
        """
        protocol, model = self.protocol, self.model
        for group in self.optimizer.param_groups:
            group["lr"] = protocol.rate(self.log["step"]) * group["scale"]
        x, y = batch(self.corpus.train, model.size.context, protocol.batch, self.rng)
        weights = model.weights()
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        total = 0.0
        for xs, ys in zip(x.split(protocol.chunk), y.split(protocol.chunk), strict=True):
            loss = functional.cross_entropy(model(xs, leaves).flatten(0, 1), ys.flatten(), reduction="sum") / y.numel()
            loss.backward()
            total += float(loss.detach())
        torch.autograd.backward(list(weights.values()), [leaf.grad for leaf in leaves.values()])  # type: ignore[misc]
        nn.utils.clip_grad_norm_(model.parameters(), protocol.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.log["step"] += 1
        self.log["train"].append(total)
        return total

    def run(self, file: Path | None = None, tick: Callable[[int, float], None] | None = None) -> Log:
        """Train to the end, from ``file`` where it exists and saving to it as often as the protocol says."""
        protocol, log = self.protocol, self.log
        if file is not None and file.exists():
            log = self.load(file)
        self._began = time.process_time() - log["cpu_seconds"]
        if not log["validation"]:
            self._validate()
        while log["step"] < protocol.steps:
            loss = self.advance()
            if not math.isfinite(loss):
                raise FloatingPointError(f"training loss became {loss} at step {log['step']}")
            last = log["step"] == protocol.steps
            if last or log["step"] % protocol.evaluate_every == 0:
                self._validate()
            if file is not None and (last or log["step"] % protocol.save_every == 0):
                self.save(file)
            if tick is not None:
                tick(log["step"], loss)
        return log

    def _validate(self) -> None:
        self.log["validation"].append({"step": self.log["step"], **evaluate(self.model, self.corpus.validation)})

    def save(self, file: Path) -> None:
        """Write everything that another process needs to go on with the same bits."""
        self.log["cpu_seconds"] = time.process_time() - self._began
        tensors = {f"model.{name}": tensor.detach() for name, tensor in self.model.state_dict().items()}
        tensors |= resumable.optimizer_tensors(self.optimizer)
        tensors["rng"] = self.rng.get_state()
        resumable.write(file, tensors, self.log)

    def load(self, file: Path) -> Log:
        """Take everything back from a checkpoint.

        Raises
        ------
        ValueError
            If it was trained by another protocol or seed.
        """
        tensors, log = resumable.read(file)
        log["protocol"] = Protocol().plain() | log["protocol"]  # an older checkpoint has the defaults of newer options
        for key in ("seed", "protocol"):
            if log[key] != self.log[key]:
                raise ValueError(
                    f"{file} must hold {key} {self.log[key]}, got {log[key]}: take another --out or remove it"
                )
        self.model.load_state_dict(resumable.pick(tensors, "model."))
        resumable.restore_optimizer(self.optimizer, tensors)
        self.rng.set_state(tensors["rng"])
        self.log = log
        return self.log


def unweighted(model: PicoGPT) -> list[nn.Parameter]:
    """Biases and the parameters of LayerNorm."""
    norms = [p for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()]
    return norms + [layer.bias for _, layer in model.linears() if layer.bias is not None]  # type: ignore[misc]


def core_scales(model: PicoGPT) -> dict[int, float]:
    """For each MPO core, by its id: standard deviation of its entries over that of a dense weight, both at the start.

    Adam moves every entry by about the learning rate. Cores have larger entries than the weight that they multiply out
    to, so at one rate they move less in proportion: by this factor.
    """
    found = {}
    for _, layer in model.linears():
        if isinstance(layer, MPOLinear):
            exponent = 1 / (2 * len(layer.cores))
            scale = (STD**2 / math.prod(layer.ranks)) ** exponent / STD
            found |= {id(core): scale for core in layer.cores}
    return found

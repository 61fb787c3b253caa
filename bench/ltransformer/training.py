"""One training: AdamW, warm-up and cosine; resumable after a kill at any moment, to the same bits as if undisturbed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import resumable
from bench.ltransformer.data import PAD, Data, Part
from bench.ltransformer.model import Classifier
from bench.resumable import Log


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a model is made and trained; the defaults are those of the CPU subset."""

    steps: int
    width: int | None = None  # None: the task's
    heads: int = 4
    length: int = 128
    vocabulary: int = 30_000
    batch: int = 32
    test_batch: int = 64
    lr: float = 1e-3
    last_lr: float = 1e-3 / 30
    warmup: float = 0.1  # share of the steps
    weight_decay: float = 0.01
    clip: float = 1.0
    dropout: float = 0.0
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.1
    evaluate_every: int = 0
    save_every: int = 200
    chunk: int = 8  # texts at once: a batch runs in such parts, which stay near the cache
    test_examples: int | None = None  # all

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then half a cosine down to the last rate."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.lr * (step + 1) / warm
        along = (step - warm) / max(1, self.steps - 1 - warm)
        return self.last_lr + (self.lr - self.last_lr) * 0.5 * (1 + math.cos(math.pi * along))

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]


@torch.no_grad()
def evaluate(model: Classifier, part: Part, size: int, device: torch.device) -> dict[str, float]:
    """Mean loss (nats) and accuracy; texts of one length together, so that little is padded."""
    model.eval()
    loss, right = 0.0, 0
    order = torch.argsort((part.ids != PAD).sum(1), stable=True)
    for index in order.split(size):
        ids, labels = (t.to(device) for t in part.batch(index))
        with autocast(device):
            logits = model(ids)
        loss += float(functional.cross_entropy(logits.float(), labels, reduction="sum"))
        right += int((logits.argmax(-1) == labels).sum())
    model.train()
    return {"loss": loss / len(part), "accuracy": right / len(part)}


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision on a GPU, float32 on a CPU, where bfloat16 was no faster at these widths."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Trainer:
    """A model, its optimiser, the state of chance and the log: all that a checkpoint holds."""

    def __init__(self, model: Classifier, data: Data, protocol: Protocol, seed: int, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.model, self.data, self.protocol, self.seed = model.to(self.device).train(), data, protocol, seed
        self.log: Log = {
            "seed": seed,
            "protocol": protocol.plain(),
            "device": self.device.type,
            "step": 0,
            "train": [],
            "validation": [],
            "best": None,
            "test": None,
            "cpu_seconds": 0.0,
        }
        self._began = 0.0
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=protocol.lr, weight_decay=protocol.weight_decay, fused=True
        )
        torch.manual_seed(seed + 1_000_003)  # dropout

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Texts of a step: every epoch takes all of them in an order that the seed decides, for every arm the same."""
        size, total = self.protocol.batch, len(self.data.train)
        per_epoch = max(1, total // size)
        rng = torch.Generator().manual_seed(1_000 * self.seed + step // per_epoch)
        order = torch.randperm(total, generator=rng)
        start = step % per_epoch * size
        ids, labels = self.data.train.batch(order[start : start + size])
        return ids.to(self.device), labels.to(self.device)

    def advance(self) -> float:
        """One step; returns the mean training loss of its batch before the step.

        On a CPU the batch runs through the encoder in parts; the embedding is read and its gradient scattered once.
        """
        protocol, model = self.protocol, self.model
        for group in self.optimizer.param_groups:
            group["lr"] = protocol.rate(self.log["step"])
        ids, labels = self.batch(self.log["step"])
        embedded = model.embed(ids)
        leaf = embedded.detach().requires_grad_()
        total = 0.0
        chunk = protocol.chunk if self.device.type == "cpu" else len(ids)
        for x, pad, y in zip(leaf.split(chunk), (ids == PAD).split(chunk), labels.split(chunk), strict=True):
            with autocast(self.device):
                logits = model.classify(x, pad)
            loss = functional.cross_entropy(logits.float(), y, reduction="sum") / len(labels)
            loss.backward()
            total += float(loss.detach())
        embedded.backward(leaf.grad)
        nn.utils.clip_grad_norm_(model.parameters(), protocol.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.log["step"] += 1
        self.log["train"].append(total)
        return total

    def run(self, file: Path, tick: Callable[[int, float], None] | None = None) -> Log:
        """Train to the end, from ``file`` where it exists, then look at the test set once, with the best checkpoint."""
        protocol = self.protocol
        best = file.with_name(f"{file.stem}-best.safetensors")
        if file.exists():
            self.load(file)
        self._began = time.process_time() - self.log["cpu_seconds"]
        while self.log["step"] < protocol.steps:
            loss = self.advance()
            if not math.isfinite(loss):
                raise FloatingPointError(f"training loss became {loss} at step {self.log['step']}")
            step = self.log["step"]
            last = step == protocol.steps
            if last or (protocol.evaluate_every and step % protocol.evaluate_every == 0):
                self._validate(best)
            if last or step % protocol.save_every == 0:
                self.save(file)
            if tick is not None:
                tick(step, loss)
        if self.log["test"] is None:
            tensors, _ = resumable.read(best)
            self.model.load_state_dict(resumable.pick(tensors, "model."))
            part = self.data.test.head(protocol.test_examples)
            self.log["test"] = {**evaluate(self.model, part, protocol.test_batch, self.device), "examples": len(part)}
            self.save(file)
        return self.log

    def _validate(self, best: Path) -> None:
        found = evaluate(self.model, self.data.validation, self.protocol.test_batch, self.device)
        self.log["validation"].append({"step": self.log["step"], **found})
        values = [v["accuracy"] for v in self.log["validation"]]
        if values[-1] > max(values[:-1], default=-1.0):  # the first of equals stays
            self.log["best"] = self.log["step"]
            tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
            resumable.write(best, tensors, {"step": self.log["step"]})

    def save(self, file: Path) -> None:
        """Write everything that another process needs to go on with the same bits."""
        self.log["cpu_seconds"] = time.process_time() - self._began
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= resumable.optimizer_tensors(self.optimizer)
        tensors["rng"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        resumable.write(file, tensors, self.log)

    def load(self, file: Path) -> Log:
        """Take everything back from a checkpoint.

        Raises
        ------
        ValueError
            If it was trained by another protocol, seed or device.
        """
        tensors, log = resumable.read(file)
        for key in ("seed", "protocol", "device"):
            if log[key] != self.log[key]:
                raise ValueError(
                    f"{file} must hold {key} {self.log[key]}, got {log[key]}: take another --out or remove it"
                )
        self.model.load_state_dict(resumable.pick(tensors, "model."))
        resumable.restore_optimizer(self.optimizer, tensors)
        torch.set_rng_state(tensors["rng"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
        self.log = {**self.log, **log}
        return self.log

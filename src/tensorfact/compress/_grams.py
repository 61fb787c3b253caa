"""What the dense model shows of the inputs of its linear layers: Gram matrices and samples, kept on disk.

The Gram matrices of one pass stay below a bound; where all of them would exceed it, the model runs more than once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tensorfact import kernels

if TYPE_CHECKING:
    import torch

    from tensorfact.compress.calibration import Batches

__all__ = ["StoredEvidence", "collect_evidence", "run_model"]

_INDEX = "evidence.json"
_ROWS = 2048  # inputs of a layer that are summed at once


@dataclass(frozen=True, slots=True)
class StoredEvidence:
    """Gram matrices and samples in a directory; `files` maps layers to the number of their file, `counts` to rows."""

    directory: str
    files: Mapping[str, int]
    counts: Mapping[str, int]

    @classmethod
    def read(cls, directory: Path) -> StoredEvidence | None:
        """Return what an earlier run has stored, None where it did not get to its end."""
        file = directory / _INDEX
        if not file.is_file():
            return None
        content = json.loads(file.read_bytes())
        return cls(str(directory), content["files"], content["counts"])

    def gram(self, name: str, /) -> npt.NDArray[np.float64]:
        """Return the sum of ``x x^T`` over the inputs of a layer, (in, in)."""
        return np.asarray(np.load(self._file("gram", name), allow_pickle=False))

    def count(self, name: str, /) -> int:
        """Return how many inputs were summed; 0 for a layer that never ran."""
        return self.counts[name]

    def inputs(self, name: str, n: int, /) -> npt.NDArray[np.float32]:
        """Return up to `n` inputs of a layer, (rows, in)."""
        file = self._file("inputs", name)
        if not file.is_file():
            raise ValueError("samples of the method must be at least 1 for it to see inputs of the layers")
        rows: npt.NDArray[np.float32] = np.load(file, allow_pickle=False)
        return rows if len(rows) <= n else rows[np.linspace(0, len(rows) - 1, n).round().astype(np.intp)]

    def _file(self, kind: str, name: str) -> Path:
        return Path(self.directory) / f"{kind}-{self.files[name]}.npy"


def collect_evidence(
    model: Any,
    names: Mapping[str, str],
    batches: Batches,
    directory: Path,
    *,
    samples: int,
    limit: int,
    step: Callable[[str], object],
    watched: Callable[[Callable[[], None]], None] = lambda run: run(),
) -> StoredEvidence:
    """Run the dense model over all batches and store Gram matrices and samples of the inputs of its layers.

    Parameters
    ----------
    names : mapping
        Layers to names of modules.
    samples : int
        Inputs of each layer to keep.
    limit : int
        Bytes that the Gram matrices of one pass may take; at least one a pass.
    step : callable
        Called after each batch of each pass.
    watched : callable
        Given the function that is the first pass, calls it.

    Raises
    ------
    ValueError
        If an activation is NaN or infinite; the message names the layer.
    """
    shared = _groups(model, names, batches)
    leaders = list(dict.fromkeys(shared.values()))
    counts: dict[str, int] = {}
    rest = list(leaders)
    first = True
    while rest:
        now: list[str] = []
        size = 0
        for name in rest:
            size += 8 * _width(model.get_submodule(names[name])) ** 2
            if now and size > limit:
                break
            now.append(name)
        rest = rest[len(now) :]
        taps = {name: _Tap(name, leaders.index(name), samples, len(batches.inputs)) for name in now}
        run = _pass(model, {name: names[name] for name in now}, taps, batches, step)
        if first:
            watched(run)
        else:
            run()
        first = False
        for name, tap in taps.items():
            tap.save(directory)
            counts[name] = tap.count
    files = {name: leaders.index(leader) for name, leader in shared.items()}
    content = {"files": files, "counts": {name: counts[leader] for name, leader in shared.items()}}
    temporary = directory / f"{_INDEX}.new"
    temporary.write_text(json.dumps(content))
    os.replace(temporary, directory / _INDEX)
    return StoredEvidence(str(directory), files, content["counts"])


class _Tap:
    """Sums and samples of one layer's inputs."""

    def __init__(self, name: str, index: int, samples: int, batches: int) -> None:
        self.name, self.index = name, index
        self.quota = -(-samples // batches)
        self.count = self.batch = 0
        self.gram: npt.NDArray[np.float64] | None = None
        self.rows: list[npt.NDArray[np.float32]] = []
        self.waiting: list[npt.NDArray[np.float32]] = []
        self.mask: torch.Tensor | None = None

    def __call__(self, module: Any, args: tuple[Any, ...]) -> None:
        import torch

        x = args[0].detach()
        mask = self.mask
        rows = x[mask] if mask is not None and x.shape[:2] == mask.shape else x.reshape(-1, x.shape[-1])
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(
                f"calibration must give finite activations, got NaN or infinity in the input of {self.name}"
            )
        values = rows.float().cpu().numpy()
        self.waiting.append(values)
        if self.quota:
            rng = np.random.default_rng([self.index, self.batch])
            self.rows.append(values[np.sort(rng.permutation(len(values))[: self.quota])])
        self.count += len(values)
        self.batch += 1
        if sum(map(len, self.waiting)) >= _ROWS:
            self.flush()

    def flush(self) -> None:
        """Sum the rows that wait: products of few rows would spend their time on reading and writing the sum."""
        if self.waiting:
            product = kernels.gram(np.concatenate(self.waiting), accumulate="double")
            self.gram = product if self.gram is None else np.add(self.gram, product, out=self.gram)
            self.waiting = []

    def save(self, directory: Path) -> None:
        self.flush()
        if self.gram is not None:
            np.save(directory / f"gram-{self.index}.npy", self.gram)
        if self.rows:
            np.save(directory / f"inputs-{self.index}.npy", np.concatenate(self.rows))
        self.gram, self.rows = None, []


def _pass(
    model: Any, names: Mapping[str, str], taps: Mapping[str, _Tap], batches: Batches, step: Callable[[str], object]
) -> Callable[[], None]:
    def run() -> None:
        handles = [model.get_submodule(names[name]).register_forward_pre_hook(tap) for name, tap in taps.items()]
        try:
            for index, mask in enumerate(batches.masks):
                for tap in taps.values():
                    tap.mask = mask
                run_model(model, batches, index)
                step(f"batch {index + 1}")
        finally:
            for handle in handles:
                handle.remove()

    return run


def run_model(model: Any, batches: Batches, index: int) -> None:
    """Run the model on one batch, without gradients, and drop its output."""
    import torch

    device = next(model.parameters()).device
    batch = {key: value.to(device) for key, value in batches.inputs[index].items()}
    with torch.no_grad():
        model(**batch)


def _groups(model: Any, names: Mapping[str, str], batches: Batches) -> dict[str, str]:
    """Map each layer to the first one that has the same input: queries, keys and values share one Gram matrix."""
    seen: list[tuple[Any, str]] = []  # the inputs themselves, so that none is freed and its place taken by another
    shared: dict[str, str] = {}

    def hook(name: str) -> Any:
        def note(module: Any, args: tuple[Any, ...]) -> None:
            leader = next((other for x, other in seen if x is args[0]), None)
            if leader is None:
                seen.append((args[0], name))
            shared.setdefault(name, leader or name)

        return note

    handles = [model.get_submodule(place).register_forward_pre_hook(hook(name)) for name, place in names.items()]
    try:
        run_model(model, batches, 0)
    finally:
        for handle in handles:
            handle.remove()
    return {name: shared.get(name, name) for name in names}


def _width(module: Any) -> int:
    return int(module.in_features if hasattr(module, "in_features") else module.weight.shape[0])

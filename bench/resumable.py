"""What every resumable training shares: locked runs, checkpoints that are whole or absent, settings that keep bits."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Log = dict[str, Any]


def quiet_torch(threads: int, device: str = "cpu") -> None:
    """Settings of a worker: its threads, and no switch that would change bits from run to run.

    On a GPU some gradients of attention have no such form: PyTorch then warns, and bits may differ.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # a tenth of a step, for memory that nobody reads


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a run for this process; another process that wants the same waits, and then finds it finished."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def write(file: Path, tensors: Mapping[str, Tensor], log: Log) -> None:
    """Write tensors and log under a passing name, then rename: a kill leaves the old checkpoint or the new one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    whole, seen = {}, set()
    for name, tensor in tensors.items():
        tied = tensor.data_ptr() in seen  # the format wants a copy for each name
        seen.add(tensor.data_ptr())
        whole[name] = tensor.clone(memory_format=torch.contiguous_format) if tied else tensor.contiguous()
    save_file(whole, part, {"log": json.dumps(log)})
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.replace(file)


def read(file: Path) -> tuple[dict[str, Tensor], Log]:
    """Tensors and log of a checkpoint."""
    with safe_open(file, "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}, json.loads(stored.metadata()["log"])  # noqa: SIM118


def write_json(file: Path, value: Any) -> None:
    """Write JSON in the same way."""
    part = file.with_name(f"{file.stem}.{os.getpid()}.part")
    part.write_text(json.dumps(value) + "\n")
    part.replace(file)


def stored_log(file: Path) -> Log | None:
    """Log of a checkpoint without its tensors, or None where there is none."""
    if not file.exists():
        return None
    with safe_open(file, "pt") as stored:
        return json.loads(stored.metadata()["log"])  # type: ignore[no-any-return]


def stored_model(file: Path) -> dict[str, Tensor]:
    """State dict of the model in a checkpoint."""
    return pick(read(file)[0], "model.")


def pick(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimiser as named tensors."""
    states = optimizer.state_dict()["state"].items()
    return {f"optimizer.{index}.{key}": value for index, state in states for key, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take back what `optimizer_tensors` gave; groups and rates stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in pick(tensors, "optimizer.").items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

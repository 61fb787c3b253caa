"""Small checkpoints written by hand: no model class knows them, so names decide what is linear."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

# Subprocesses do without transformers: importing it takes longer than the work.
PREAMBLE = "import sys; sys.modules['transformers'] = None\n"

Write = Callable[..., Path]


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Write:
    """Write `blocks` blocks of two weights (3 width, width) and (width, 3 width) with a power-law spectrum."""

    def write(
        name: str = "source",
        *,
        blocks: int = 2,
        width: int = 48,
        shards: int = 1,
    ) -> Path:
        directory = tmp_path / name
        (directory / "extra").mkdir(parents=True)
        rng = np.random.default_rng(0)
        tensors = {"model.embed_tokens.weight": rng.standard_normal((50, width)).astype(np.float32)}
        for block in range(blocks):
            for part, shape in (("up_proj", (3 * width, width)), ("down_proj", (width, 3 * width))):
                u, _ = np.linalg.qr(rng.standard_normal((shape[0], width)))
                v, _ = np.linalg.qr(rng.standard_normal((shape[1], width)))
                sigma = np.arange(1, width + 1) ** -(0.5 + 0.25 * block)
                tensors[f"model.layers.{block}.{part}.weight"] = ((u * sigma) @ v.T).astype(np.float32)
            tensors[f"model.layers.{block}.up_proj.bias"] = rng.standard_normal(3 * width).astype(np.float32)
            tensors[f"model.layers.{block}.norm.weight"] = np.ones(width, np.float32)
        tensors["lm_head.weight"] = rng.standard_normal((50, width)).astype(np.float32)
        (directory / "config.json").write_text(json.dumps({"model_type": "plain", "architectures": ["PlainModel"]}))
        (directory / "tokenizer.json").write_text('{"made": "up"}')
        (directory / "extra" / "config.json").write_text("{}")
        (directory / "pytorch_model.bin").write_bytes(b"not to be copied")
        write_shards(directory, tensors, shards)
        return directory

    return write


def write_shards(directory: Path, tensors: dict[str, np.ndarray], shards: int) -> None:
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[i::shards]}
        save_file(part, directory / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def weights_digest() -> Callable[[Path], str]:
    """Return a digest of every weight file of a directory."""

    def digest(directory: Path) -> str:
        total = hashlib.sha256()
        for file in sorted(directory.glob("*.safetensors")):
            total.update(file.name.encode() + file.read_bytes())
        return total.hexdigest()

    return digest


@pytest.fixture
def leftovers() -> Callable[[Path], list[str]]:
    """Return the hidden entries that a run left in a directory."""
    return lambda directory: [p.name for p in directory.iterdir() if p.name.startswith(".")]


@pytest.fixture
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code in a fresh interpreter without transformers."""

    def run(code: str, *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PREAMBLE + code]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture
def start_python() -> Callable[[str], subprocess.Popen[str]]:
    """Start code in a fresh interpreter without transformers, to be interrupted."""

    def start(code: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PREAMBLE + code]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start
